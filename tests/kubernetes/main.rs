//! The program against a Kubernetes API server: the stand-in, or a real one. Run by `tests/run`.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod access;
mod adopt;
mod cluster;
mod deploy;
mod faults;
mod hazards;
mod lanes;
mod large;
mod lease;
mod logs;
mod scene;
mod states;
mod support;
mod tap;
mod xtm_one;
