//! Which of a connector's workloads stays, and which go.

use crate::desired::Desired;
use crate::model::{ConfigHash, Observed, Phase, Workload, WorkloadName};
use crate::plan::{Decision, Entry, Groups, Kept, RemoveReason, Step};

/// Workloads by connector; within one, in the order of their engine ids.
pub(super) fn group(observed: &Observed) -> Groups<'_> {
    let mut groups = Groups::new();
    for workload in &observed.workloads {
        groups.entry(&workload.connector).or_default().push(workload);
    }
    for workloads in groups.values_mut() {
        workloads.sort_by(|a, b| a.handle.cmp(&b.handle));
    }
    groups
}

/// The workload that stays, for each listed connector that has a complete one.
pub(super) fn choose<'a>(desired: &Desired, groups: &Groups<'a>) -> Kept<'a> {
    let mut kept = Kept::new();
    for (id, workloads) in groups.iter().filter(|(id, _)| desired.lists(id)) {
        let wanted = desired.connectors.get(*id).map(|connector| (&connector.name, &connector.hash));
        let best = workloads.iter().filter(|workload| is_complete(workload)).max_by_key(|w| rank(w, wanted));
        if let Some(best) = best {
            kept.insert(id, best);
        }
    }
    kept
}

/// A workload that never ran under a temporary name was being made when a pass was cut off: it may lack its files.
fn is_complete(workload: &Workload) -> bool {
    !(workload.is_staged() && workload.phase == Phase::Created)
}

/// Right name and hash first (design: Ownership); then what runs, before what is merely well named.
fn rank<'a>(workload: &'a Workload, wanted: Option<(&WorkloadName, &ConfigHash)>) -> impl Ord + use<'a> {
    let name = wanted.is_some_and(|(name, _)| workload.name == name.as_str());
    let hash = wanted.is_some_and(|(_, hash)| workload.hash.as_ref() == Some(hash));
    (name && hash, hash, workload.phase.is_up(), name, workload.created, &workload.handle)
}

/// Every removal: of unlisted connectors unless refused, and of what a listed connector has too many.
///
/// A rejected connector keeps all it has, incomplete leftovers aside.
pub(super) fn removals(desired: &Desired, groups: &Groups<'_>, kept: &Kept<'_>, refused: bool) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (id, workloads) in groups {
        let connector = desired.connectors.get(*id);
        for workload in workloads {
            let stays = kept.get(*id).is_some_and(|keeper| keeper.handle == workload.handle);
            let reason = if !desired.lists(id) {
                (!refused && workload.platform.is_some()).then_some(RemoveReason::NotListed)
            } else if !is_complete(workload) {
                Some(RemoveReason::Incomplete)
            } else {
                (!stays && connector.is_some()).then_some(RemoveReason::Duplicate)
            };
            let Some(reason) = reason else { continue };
            entries.push(Entry {
                connector: (*id).clone(),
                title: connector.map_or_else(|| workload.name.clone(), |c| c.title.clone()),
                decision: Decision::Step(Step::Remove {
                    handle: workload.handle.clone(),
                    name: workload.name.clone(),
                    reason,
                }),
            });
        }
    }
    entries
}
