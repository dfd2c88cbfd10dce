//! The prune guard: refuses all removals when the platform's list is implausible.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::desired::Desired;
use crate::memory::Memory;
use crate::model::{ConnectorId, Observed, Workload};
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
    /// An earlier pass refused removals, and the list is still not plausible for the connectors that were deployed then.
    /// Without this reason, connectors that were deployed since would make the share small enough to be allowed.
    #[error(
        "{removals} connectors are not listed, among them {spared} of the {owned} that were deployed when an earlier pass refused removals, more than MANAGER__MAX_REMOVALS_PERCENT={max_percent}; nothing is removed. If that is right, run once with --allow-prune"
    )]
    RefusedBefore {
        /// The number of connectors that would be removed.
        removals: usize,
        /// How many of them were deployed when an earlier pass refused.
        spared: usize,
        /// The number of connectors that were deployed then and still are.
        owned: usize,
        /// The largest share of those that may be removed, in percent.
        max_percent: u8,
    },
    /// Nobody knows whether an earlier pass refused removals, because what it remembered is gone. So the share counts
    /// however few connectors there are.
    #[error(
        "{removals} of {owned} connectors would be removed, more than MANAGER__MAX_REMOVALS_PERCENT={max_percent}, and there is no memory of earlier passes; nothing is removed. If that is right, run once with --allow-prune"
    )]
    NoRecord {
        /// The number of connectors that would be removed.
        removals: usize,
        /// The number of connectors that have a workload here.
        owned: usize,
        /// The largest share that may be removed, in percent.
        max_percent: u8,
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

/// What the guard says to a list.
pub(super) struct Verdict<'a> {
    /// Why it refuses removals. `None` when it does not.
    pub(super) refusal: Option<PruneRefusal>,
    /// The connectors by which later lists are judged, while a refusal lasts: all that were deployed when it began.
    pub(super) guarded: BTreeSet<&'a ConnectorId>,
}

/// Judges the removals that the listing would lead to. Workloads without a platform label are not among them.
///
/// A refusal lasts until the list is plausible for the connectors that were deployed when it began. Connectors that are
/// deployed meanwhile are not counted, because they would make the share of the missing ones smaller every time.
pub(super) fn judge<'a>(
    desired: &Desired,
    observed: &Observed,
    groups: &Groups<'a>,
    memory: &Memory,
    policy: PrunePolicy,
) -> Verdict<'a> {
    let ours = |id: &ConnectorId, workloads: &[&Workload]| {
        desired.lists(id) || workloads.iter().any(|workload| workload.platform.is_some())
    };
    let owned: BTreeSet<&ConnectorId> =
        groups.iter().filter(|(id, workloads)| ours(id, workloads)).map(|(id, _)| *id).collect();
    let noted = |id: &&&ConnectorId| memory.connectors.get(**id).is_some_and(|connector| connector.guarded);
    let guarded: BTreeSet<&ConnectorId> = owned.iter().filter(noted).copied().collect();
    let unlisted = |of: &BTreeSet<&ConnectorId>| of.iter().filter(|id| !desired.lists(id)).count();
    let (removals, max_percent) = (unlisted(&owned), policy.max_percent);
    let too_many = |some: usize, of: usize| some * 100 > of * usize::from(max_percent);

    if !desired.unidentified.is_empty() {
        let unidentified = desired.unidentified.len();
        let refusal = (removals > 0).then_some(PruneRefusal::PartialListing { unidentified, removals });
        return Verdict { refusal, guarded };
    }
    if removals == 0 || policy.allow {
        return Verdict { refusal: None, guarded: BTreeSet::new() };
    }
    let spared = unlisted(&guarded);
    let lasting = too_many(spared, guarded.len()).then(|| {
        let owned = guarded.len();
        PruneRefusal::RefusedBefore { removals, spared, owned, max_percent }
    });
    let fresh = if desired.listed() == 0 && owned.len() >= 2 {
        Some(PruneRefusal::EmptyListing { owned: owned.len() })
    } else if owned.len() >= 3 && too_many(removals, owned.len()) {
        Some(PruneRefusal::TooMany { removals, owned: owned.len(), max_percent })
    } else if observed.record_lost && too_many(removals, owned.len()) {
        Some(PruneRefusal::NoRecord { removals, owned: owned.len(), max_percent })
    } else {
        None
    };
    match (fresh, lasting) {
        (None, None) => Verdict { refusal: None, guarded: BTreeSet::new() },
        (fresh, Some(lasting)) => Verdict { refusal: fresh.or(Some(lasting)), guarded },
        (Some(fresh), None) => Verdict { refusal: Some(fresh), guarded: owned },
    }
}
