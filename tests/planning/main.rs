//! The planner: golden scenarios and properties. Pure, no engine needed.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking, helpers too"
)]

mod generate;
mod golden;
mod guard;
mod layers;
mod names;
mod properties;
mod scenario;
mod sequences;
mod simulator;
mod window;
