//! What can be wrong with a workload. The words for it, and what to do about it, are each orchestrator's own.

use serde::Serialize;

use crate::model::Cure;

/// Why a workload does not run as it should, in the orchestrator's own terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TroubleKind {
    /// It ends again and again.
    CrashLoop,
    /// It was ended for using more memory than it may.
    OutOfMemory,
    /// Its image cannot be pulled.
    ImagePull,
    /// Its settings name something that is not there.
    Settings,
    /// The node cannot start it.
    WontStart,
    /// No node takes it.
    Unschedulable,
    /// A node threw it out.
    Evicted,
    /// The orchestrator is not allowed to run it: a quota or an admission policy.
    NotAdmitted,
    /// It has not come to run for long, and nothing says why.
    Stuck,
    /// Its rollout is paused: changes do not reach what runs.
    Paused,
    /// Somebody changed it since it was applied.
    Drifted,
}

/// Something wrong with a workload that no step of this pass mends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// What kind.
    pub kind: TroubleKind,
    /// What it is, in plain words.
    pub what: &'static str,
    /// The orchestrator's own words.
    pub detail: String,
    #[serde(skip)]
    pub(crate) cure: Cure,
}

impl TroubleKind {
    /// Whether the connector does not run at all for it.
    #[must_use]
    pub fn blocks(self) -> bool {
        !matches!(self, Self::CrashLoop | Self::OutOfMemory | Self::Evicted | Self::Paused | Self::Drifted)
    }
}
