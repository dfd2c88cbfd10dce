//! What must not change on the engine while a pass fails, and what a report says.

use serde_json::Value;

use crate::scene::Scene;
use crate::support::EventLog;

pub(crate) use crate::support::told::{expect_all, faults};

/// Everything that happens to a scene's connectors from now on.
pub(crate) struct Watch<'a> {
    scene: &'a Scene,
    before: Vec<[String; 3]>,
    log: EventLog,
}

impl<'a> Watch<'a> {
    #[track_caller]
    pub(crate) fn new(scene: &'a Scene) -> Self {
        Self { scene, before: state(scene), log: EventLog::start(scene.engine) }
    }

    /// Panics when a container of a connector was made, changed, started, stopped or removed, or a lock was left.
    #[track_caller]
    pub(crate) fn expect_untouched(self, what: &str) {
        assert_eq!(state(self.scene), self.before, "{what}: the containers are as they were");
        let manager = &*self.scene.manager;
        let ours = |label: &str, attributes: &std::collections::BTreeMap<String, String>| {
            attributes.get(label).is_some_and(|value| value == manager)
        };
        let events = self.log.finish();
        let touched: Vec<String> =
            events.iter().filter(|event| ours("opencti-manager", &event.attributes)).map(ToString::to_string).collect();
        assert!(touched.is_empty(), "{what}: nothing happened to the connectors' containers: {touched:?}");
        expect_unlocked(self.scene, what);
    }
}

/// Panics when the lock of the scene's manager is still held.
#[track_caller]
pub(crate) fn expect_unlocked(scene: &Scene, what: &str) {
    let lock = format!("xtm-reconcile-lock-{}-opencti", scene.manager);
    assert!(scene.engine.container(&lock).is_none(), "{what}: the lock was given back");
}

fn state(scene: &Scene) -> Vec<[String; 3]> {
    scene.containers().into_iter().map(|container| [container.name, container.id, container.state]).collect()
}

/// The line of a report about one connector.
#[track_caller]
pub(crate) fn line<'a>(report: &'a Value, connector: &str) -> &'a Value {
    let mut lines = report["connectors"].as_array().expect("a report has connectors").iter();
    lines.find(|line| line["connector"] == connector).unwrap_or_else(|| panic!("{connector} is not in {report:#}"))
}
