//! The prune guard: an implausible listing removes nothing.

use serde::Serialize;

use crate::desired::Desired;
use crate::memory::Memory;
use crate::model::{ConnectorId, Workload};
use crate::plan::{Groups, PrunePolicy};

/// Why removals are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PruneRefusal {
    /// The list is empty while several connectors are deployed.
    #[error(
        "the platform lists no connector while {owned} are deployed here; nothing is removed. If that is right, run once with --allow-prune"
    )]
    EmptyListing {
        /// Connectors with a workload.
        owned: usize,
    },
    /// Too large a share would go at once.
    #[error(
        "{removals} of {owned} connectors would be removed, more than MANAGER__MAX_REMOVALS_PERCENT={max_percent}; nothing is removed. If that is right, run once with --allow-prune"
    )]
    TooMany {
        /// Connectors that would go.
        removals: usize,
        /// Connectors with a workload.
        owned: usize,
        /// The limit.
        max_percent: u8,
    },
    /// Refused by an earlier pass. Without this, connectors deployed since would make the share look small.
    #[error(
        "{removals} connectors are not listed, and an earlier pass refused to remove {spared} of them; nothing is removed. If that is right, run once with --allow-prune"
    )]
    RefusedBefore {
        /// Connectors that would go.
        removals: usize,
        /// Those of them that the guard kept before.
        spared: usize,
    },
    /// Some entries of the list could not even be identified. No flag overrides this one.
    #[error(
        "{unidentified} entries of the platform's list have no usable id, so {removals} connectors that seem unlisted are kept"
    )]
    PartialListing {
        /// Entries without an id.
        unidentified: usize,
        /// Connectors that would go.
        removals: usize,
    },
}

impl PruneRefusal {
    /// Whether it stands until the operator allows the removals or the connectors are listed again.
    pub(super) fn is_lasting(&self) -> bool {
        !matches!(self, Self::PartialListing { .. })
    }
}

/// Judges the removals that the listing would lead to. Workloads that carry no platform label are never among them.
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
