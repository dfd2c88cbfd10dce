//! The troubles that a workload can have. Each orchestrator has its own words and cures for them.

use serde::Serialize;

use crate::model::Cure;

/// Why a workload does not run as it should, in the orchestrator's own terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TroubleKind {
    /// It crashes again and again.
    CrashLoop,
    /// It was ended for using more memory than it may.
    OutOfMemory,
    /// Its image cannot be pulled.
    ImagePull,
    /// Its settings name something that is not there.
    Settings,
    /// The node cannot start it.
    WontStart,
    /// No node has room for it or matches its constraints.
    Unschedulable,
    /// A node evicted it, for lack of memory or disk.
    Evicted,
    /// A quota or an admission policy does not let the orchestrator run it.
    NotAdmitted,
    /// It has not come to run for long, and nothing says why.
    Stuck,
    /// Its rollout is paused, so that changes do not reach what runs.
    Paused,
    /// Somebody changed it since it was applied.
    Drifted,
}

/// Something wrong with a workload that no step of this pass repairs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// The kind of trouble, which is the same on every orchestrator.
    pub kind: TroubleKind,
    /// The trouble in plain words.
    pub what: &'static str,
    /// The orchestrator's own words.
    pub detail: String,
    #[serde(skip)]
    pub(crate) cure: Cure,
}

impl TroubleKind {
    /// Whether it keeps the connector from running at all.
    #[must_use]
    pub fn blocks(self) -> bool {
        !matches!(self, Self::CrashLoop | Self::OutOfMemory | Self::Evicted | Self::Paused | Self::Drifted)
    }
}
