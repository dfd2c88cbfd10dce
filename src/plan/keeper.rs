//! Which of a connector's workloads stays, and which go.

use jiff::Timestamp;

use crate::desired::Desired;
use crate::memory::{ConnectorMemory, Memory};
use crate::model::{ConfigHash, Observed, Phase, Requested, Workload, WorkloadName};
use crate::plan::names::Claims;
use crate::plan::{Decision, Entry, Formers, Groups, Kept, RemoveReason, Step};
use crate::probation::{ProbationRule, Verdict};

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

/// A workload that never ran under a temporary name was being made when a pass was cut off: it may lack its files. A
/// broken one is of no more use, and would be in the way of the next attempt, which needs the same name.
fn is_complete(workload: &Workload) -> bool {
    !(workload.is_staged() && matches!(workload.phase, Phase::Created | Phase::Broken))
}

/// The workloads that are kept for a roll-back, each with the verdict on its replacement.
///
/// A connector that should not run has no verdict to wait for, and its former workload stays as well. One that somebody
/// started by hand is a duplicate like any other, unless its replacement does not work.
pub(super) fn formers<'a>(
    desired: &Desired,
    groups: &Groups<'a>,
    kept: &Kept<'a>,
    memory: &Memory,
    rule: ProbationRule,
    now: Timestamp,
) -> Formers<'a> {
    let mut formers = Formers::new();
    for (id, keeper) in kept.iter().filter(|(_, keeper)| !keeper.is_former()) {
        let Some(connector) = desired.connectors.get(*id) else { continue };
        let is_known = memory.connectors.get(*id).is_some_and(|memory| is_known_to_fail(memory, keeper));
        let shown = connector.shown.filter(|_| !is_known);
        let verdict = match (rule.judge(keeper.phase, keeper.vitals.as_ref(), shown, now), connector.requested) {
            (Verdict::Failed(_) | Verdict::Until(_), Requested::Stop) => Verdict::Down,
            (verdict, _) => verdict,
        };
        let may_come_back = |workload: &&&Workload| match workload.phase {
            Phase::Created | Phase::Exited => workload.is_former(),
            phase => workload.is_former() && phase.is_up() && matches!(verdict, Verdict::Failed(_)),
        };
        let theirs = groups.get(*id).into_iter().flatten();
        let former = theirs.filter(may_come_back).max_by_key(|workload| (workload.created, &workload.handle));
        if let Some(former) = former {
            formers.insert(id, (former, verdict));
        }
    }
    formers
}

/// Whether an earlier pass saw this workload fail and could not go back. The platform shows the connector as stopped
/// then, as if that had been requested.
fn is_known_to_fail(memory: &ConnectorMemory, workload: &Workload) -> bool {
    let started = workload.vitals.as_ref().and_then(|vitals| vitals.started_at);
    let refused = memory.refused.as_ref().is_some_and(|refused| {
        let since = started.is_none_or(|started| started.as_second() <= refused.at);
        refused.failure.is_some() && Some(&refused.hash) == workload.hash.as_ref() && since
    });
    memory.ended || refused
}

/// Right name and hash first (design: Ownership), unless it can never run again; then what runs, before what is merely
/// well named. A replacement that is down before it took its name has failed: what it was to replace stays.
fn rank<'a>(workload: &'a Workload, wanted: Option<(&WorkloadName, &ConfigHash)>) -> impl Ord + use<'a> {
    let name = wanted.is_some_and(|(name, _)| workload.name == name.as_str());
    let hash = wanted.is_some_and(|(_, hash)| workload.hash.as_ref() == Some(hash));
    let up = workload.phase.is_up();
    let failed = workload.is_staged() && !up;
    // What was replaced counts only when somebody started it, or when nothing else is left. Also when its configuration
    // is wanted again: until it runs again, nobody knows whether it still works.
    let current = up || !workload.is_former();
    (
        current,
        workload.phase != Phase::Broken,
        name && hash,
        !failed,
        hash,
        up,
        name,
        workload.created,
        &workload.handle,
    )
}

/// Every removal: of unlisted connectors unless refused, and of what a listed connector has too many.
///
/// A rejected connector keeps all it has, incomplete leftovers aside; one that could not be looked at keeps these too.
pub(super) fn removals(
    desired: &Desired,
    groups: &Groups<'_>,
    kept: &Kept<'_>,
    formers: &Formers<'_>,
    claims: &Claims<'_>,
    refused: bool,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (id, workloads) in groups {
        let connector = desired.connectors.get(*id);
        let usable = connector.is_some_and(|connector| claims.rejection(connector).is_none());
        for workload in workloads {
            let stays = kept.get(*id).is_some_and(|keeper| keeper.handle == workload.handle);
            let former = formers.get(*id).filter(|(former, _)| former.handle == workload.handle);
            let reason = if !desired.lists(id) {
                (!refused && workload.platform.is_some()).then_some(RemoveReason::NotListed)
            } else if claims.is_unobservable(id) {
                None
            } else if !is_complete(workload) {
                Some(RemoveReason::Incomplete)
            } else if let Some((_, verdict)) = former {
                (*verdict == Verdict::Passed && usable).then_some(RemoveReason::Replaced)
            } else {
                (!stays && usable).then_some(RemoveReason::Duplicate)
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
