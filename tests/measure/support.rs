//! The tap that the integration tests put before an engine, to count engine calls with.

#![expect(dead_code, reason = "the tests use the rest of it")]

#[path = "../integration/support/engine.rs"]
pub(crate) mod engine;
#[path = "../integration/support/events.rs"]
mod events;
#[path = "../integration/support/http.rs"]
pub(crate) mod http;
#[path = "../integration/support/process.rs"]
mod process;
#[path = "../integration/support/schema.rs"]
pub(crate) mod schema;
#[path = "../integration/support/tap.rs"]
pub(crate) mod tap;

/// A variable of `tests/bench`.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the benchmark with tests/bench"))
}

/// `prefix-<random>`, valid as the name of a container.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}-{:08x}", fastrand::u32(..))
}
