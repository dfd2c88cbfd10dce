//! A manager id of one test alone, so that tests share an engine without meeting.

use std::fmt;
use std::ops::Deref;

use super::engine::Engine;

/// A manager id that no other test has. All containers of that manager go when it is dropped.
#[derive(Debug)]
pub(crate) struct Manager {
    id: String,
    engine: Engine,
}

impl Manager {
    /// `test-<name>-<random>`.
    pub(crate) fn new(engine: &Engine, name: &str) -> Self {
        Self { id: super::unique(&format!("test-{name}")), engine: engine.clone() }
    }

    /// A connector name for this test alone, for workloads are named after connectors, whoever manages them.
    pub(crate) fn connector_name(&self, name: &str) -> String {
        let (_, random) = self.id.rsplit_once('-').unwrap_or(("", &self.id));
        format!("{name}-{random}")
    }
}

impl Deref for Manager {
    type Target = str;

    fn deref(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // An engine that the test stopped takes its containers with it.
        if self.engine.answers() {
            for container in self.engine.containers_of(&self.id) {
                self.engine.remove(&container.id);
            }
        }
    }
}
