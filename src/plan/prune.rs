//! The prune guard: refuses all removals when the platform's list is implausible.

use serde::Serialize;

use crate::desired::Desired;
use crate::memory::Memory;
use crate::model::{ConnectorId, Workload};
use crate::plan::{Groups, PrunePolicy};

/// Why the prune guard refuses removals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PruneRefusal {
    /// The list is empty while several connectors are deployed.
    #[error(
        "the platform lists no connector while {owned} are deployed here; nothing is removed. If that is right, run once with --allow-prune"
    )]
    EmptyListing {
        /// The number of connectors that have a workload here.
        owned: usize,
    },
    /// Too large a share of the connectors would be removed at once.
    #[error(
        "{removals} of {owned} connectors would be removed, more than MANAGER__MAX_REMOVALS_PERCENT={max_percent}; nothing is removed. If that is right, run once with --allow-prune"
    )]
    TooMany {
        /// The number of connectors that would be removed.
        removals: usize,
        /// The number of connectors that have a workload here.
        owned: usize,
        /// The largest share that may be removed, in percent.
        max_percent: u8,
    },
    /// An earlier pass refused some of the removals. Without this reason, connectors that were deployed since would
    /// make the share small enough to be allowed.
    #[error(
        "{removals} connectors are not listed, and an earlier pass refused to remove {spared} of them; nothing is removed. If that is right, run once with --allow-prune"
    )]
    RefusedBefore {
        /// The number of connectors that would be removed.
        removals: usize,
        /// How many of them the guard kept in an earlier pass.
        spared: usize,
    },
    /// Some entries of the list have no usable id, so the connectors that seem unlisted may be among them. No flag
    /// overrides this.
    #[error(
        "{unidentified} entries of the platform's list have no usable id, so {removals} connectors that seem unlisted are kept"
    )]
    PartialListing {
        /// The number of entries without a usable id.
        unidentified: usize,
        /// The number of connectors that would be removed.
        removals: usize,
    },
}

impl PruneRefusal {
    /// Whether later passes refuse as well, until the operator allows the removals or the connectors are listed again.
    pub(super) fn is_lasting(&self) -> bool {
        !matches!(self, Self::PartialListing { .. })
    }
}

/// Judges the removals that the listing would lead to. Workloads without a platform label are not among them.
pub(super) fn judge(
    desired: &Desired,
    groups: &Groups<'_>,
    memory: &Memory,
    policy: PrunePolicy,
) -> Option<PruneRefusal> {
    let ours = |id: &ConnectorId, workloads: &[&Workload]| {
        desired.lists(id) || workloads.iter().any(|workload| workload.platform.is_some())
    };
    let owned = groups.iter().filter(|(id, workloads)| ours(id, workloads)).count();
    let unlisted: Vec<&ConnectorId> =
        groups.iter().filter(|(id, workloads)| !desired.lists(id) && ours(id, workloads)).map(|(id, _)| *id).collect();
    let removals = unlisted.len();
    if removals == 0 {
        return None;
    }
    if !desired.unidentified.is_empty() {
        return Some(PruneRefusal::PartialListing { unidentified: desired.unidentified.len(), removals });
    }
    if policy.allow {
        return None;
    }
    if desired.listed() == 0 && owned >= 2 {
        return Some(PruneRefusal::EmptyListing { owned });
    }
    if owned >= 3 && removals * 100 > owned * usize::from(policy.max_percent) {
        return Some(PruneRefusal::TooMany { removals, owned, max_percent: policy.max_percent });
    }
    let spared = |id: &&&ConnectorId| memory.connectors.get(**id).is_some_and(|connector| connector.spared);
    let spared = unlisted.iter().filter(spared).count();
    (spared > 0).then_some(PruneRefusal::RefusedBefore { removals, spared })
}
