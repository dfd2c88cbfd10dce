//! The program against a real Docker engine, a real registry and the stand-in platform. Run by `tests/run`.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod cli;
mod config;
mod deadline;
mod decrypting;
mod docker;
mod images;
mod input;
mod kill;
mod lanes;
mod lock;
mod memory;
mod moves;
mod network;
mod new_key;
mod openaev;
mod overlap;
mod platform;
mod probation;
mod publish;
mod readme;
mod readonly;
mod refresh;
mod scene;
mod support;
mod terminal;
mod watch;
mod wire;
mod xtm_one;
