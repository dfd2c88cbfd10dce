//! What a pass remembers. Where it is kept is each orchestrator's own matter. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{ConfigHash, ConnectorId};
use crate::restart_window::RestartWindow;

/// What a pass remembers of one connector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorMemory {
    /// Recent restarts; absent while there were none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window: Option<RestartWindow>,
    /// Held for a reboot loop with this hash: stays stopped until the hash changes or a stop is requested.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held: Option<ConfigHash>,
    /// A configuration whose workload could not be started, while an older one works.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<RefusedStart>,
    /// Not listed any more, and kept by the prune guard: stays until it is listed again or its removal is allowed.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub spared: bool,
}

impl ConnectorMemory {
    /// Nothing worth writing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.window.is_none() && self.held.is_none() && self.refused.is_none() && !self.spared
    }
}

/// A workload that did not start in place of one that works. Each attempt interrupts the one that works, so that they
/// become rarer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStart {
    /// The configuration that was tried.
    pub hash: ConfigHash,
    /// Attempts so far.
    pub times: u32,
    /// The last one, Unix time in seconds.
    pub at: i64,
}

impl RefusedStart {
    /// When to try this configuration again, Unix time in seconds: at once after the first attempt, for the engine may have
    /// failed for reasons of its own; after 5 minutes then, and twice as long each time, an hour at most.
    #[must_use]
    pub fn next(&self) -> i64 {
        const FIRST_S: i64 = 300;
        const LONGEST_S: i64 = 3600;
        let Some(doublings) = self.times.checked_sub(2) else { return self.at };
        self.at.saturating_add((FIRST_S << doublings.min(10)).min(LONGEST_S))
    }
}

/// What was registered with a platform, so that a change is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The platform's version at that time.
    pub version: String,
    /// Fingerprint of the public key that was sent.
    pub key: String,
    /// The name that was sent.
    pub name: String,
}

/// What one pass leaves for the next. Empty parts are not written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The last registration.
    pub registration: Option<Registration>,
    /// By connector.
    pub connectors: BTreeMap<ConnectorId, ConnectorMemory>,
    /// Hashes of workloads that carry no hash label, by engine id: read once, so that later passes need not look again.
    pub adopted: BTreeMap<String, ConfigHash>,
}
