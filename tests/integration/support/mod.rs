//! What the integration tests stand on: engines, registries, the binary under test, and faults on demand.
//!
//! `tests/run` prepares all of it and says where it is in variables `XTM_TEST_*`; without them a test fails and says
//! so, for a test that skips itself is a test that nobody runs.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: an assumption that does not hold is a failed test"
)]

pub(crate) mod engine;
pub(crate) mod events;
mod http;
pub(crate) mod keys;
pub(crate) mod manager;
pub(crate) mod private;
pub(crate) mod process;
pub(crate) mod registry;
mod schema;
mod selftest;
mod stub_engine;
pub(crate) mod tap;
pub(crate) mod told;

pub(crate) use engine::{Container, Engine, NewContainer};
pub(crate) use events::EventLog;
pub(crate) use keys::{KeyForm, TestKey};
pub(crate) use manager::Manager;
pub(crate) use process::{Binary, Outcome, Running, Signal};
pub(crate) use registry::Registry;
pub(crate) use stub_engine::StubEngine;
pub(crate) use tap::{ApiTap, Fault, Turns};

/// A variable of `tests/run`.
#[track_caller]
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests with tests/run"))
}

/// The root of the repository.
pub(crate) fn repository() -> std::path::PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// `prefix-<random>`, valid as the name of a container.
pub(crate) fn unique(prefix: &str) -> String {
    let random: String =
        std::iter::repeat_with(|| char::from_digit(fastrand::u32(..36), 36).unwrap_or('0')).take(10).collect();
    format!("{prefix}-{random}")
}
