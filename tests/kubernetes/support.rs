//! What these tests share with those against a Docker engine: processes and keys.

#![expect(dead_code, reason = "the other tests use the rest of it")]

#[path = "../integration/support/keys.rs"]
mod keys;
#[path = "../integration/support/process.rs"]
mod process;
#[path = "../integration/support/schema.rs"]
pub(crate) mod schema;
#[path = "../integration/support/told.rs"]
pub(crate) mod told;

pub(crate) use keys::{KeyForm, TestKey};
pub(crate) use process::{Binary, Outcome, Signal};

/// The root of the repository.
pub(crate) fn repository() -> std::path::PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// `prefix-<random>`, valid as the name of an object.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}-{:08x}", fastrand::u32(..))
}
