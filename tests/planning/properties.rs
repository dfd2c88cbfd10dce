//! What holds for every plan, whatever the fleet looks like.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use xtm_reconcile::model::{Change, ConnectorId, Handle, Phase, Workload};
use xtm_reconcile::plan::{Decision, LoopAction, Plan, RemoveReason, Skip, StartReason, Step, plan, settled};

use crate::generate::{Case, case, check, now};
use crate::simulator::{World, later};

const CASES: u32 = 2048;

fn handle(step: &Step) -> Option<&Handle> {
    match step {
        Step::Deploy { .. } => None,
        Step::Refresh { old, .. } | Step::Recreate { old, .. } => Some(old),
        Step::RollBack { failed, .. } => Some(failed),
        Step::Rename { handle, .. }
        | Step::Start { handle, .. }
        | Step::Stop { handle }
        | Step::Update { handle, .. }
        | Step::Remove { handle, .. }
        | Step::Hold { handle, .. } => Some(handle),
    }
}

fn rejected(case: &Case, plan: &Plan) -> BTreeSet<ConnectorId> {
    let by_plan = plan.entries.iter().filter(|entry| matches!(entry.decision, Decision::Reject(_)));
    by_plan.map(|entry| entry.connector.clone()).chain(case.desired().rejected.into_keys()).collect()
}

fn workload<'a>(case: &'a Case, handle: &Handle) -> Option<&'a Workload> {
    case.observed.workloads.iter().find(|workload| workload.handle == *handle)
}

/// Connectors with a workload that has a platform label or is listed, and those of them that are not listed.
fn owned(case: &Case) -> (BTreeSet<&ConnectorId>, BTreeSet<&ConnectorId>) {
    let desired = case.desired();
    let workloads = case.observed.workloads.iter();
    let owned: BTreeSet<_> =
        workloads.filter(|w| w.platform.is_some() || desired.lists(&w.connector)).map(|w| &w.connector).collect();
    let unlisted = owned.iter().copied().filter(|id| !desired.lists(id)).collect();
    (owned, unlisted)
}

#[test]
fn every_listed_connector_and_every_workload_is_accounted_for() {
    check(CASES, case(), |case| {
        let (plan, desired) = (case.plan(), case.desired());
        let named: BTreeSet<_> = plan.entries.iter().map(|entry| &entry.connector).collect();
        for id in desired.connectors.keys().chain(desired.rejected.keys()) {
            let last = plan.entries.iter().rfind(|entry| entry.connector == *id);
            prop_assert!(last.is_some(), "{id} is missing");
        }
        for workload in &case.observed.workloads {
            prop_assert!(named.contains(&workload.connector), "{} is missing", workload.name);
        }
        Ok(())
    });
}

#[test]
fn the_order_of_the_input_does_not_matter() {
    check(CASES, (case(), 0..50_usize), |(case, by)| {
        let other = case.reordered(by);
        prop_assert_eq!(case.desired(), other.desired());
        prop_assert_eq!(case.plan(), other.plan());
        Ok(())
    });
}

// Shows what README says under "What a pass does": "**Foreign workloads are never touched**".
#[test]
fn steps_touch_only_workloads_of_their_own_connector_that_exist() {
    check(CASES, case(), |case| {
        let mut removed = BTreeSet::new();
        let plan = case.plan();
        for (entry, step) in plan.steps() {
            let Some(handle) = handle(step) else { continue };
            let workload = workload(&case, handle);
            prop_assert_eq!(workload.map(|workload| &workload.connector), Some(&entry.connector));
            if matches!(step, Step::Remove { .. } | Step::Refresh { .. } | Step::Recreate { .. }) {
                prop_assert!(removed.insert(handle.clone()), "{handle} goes twice");
            }
        }
        Ok(())
    });
}

/// A workload that is published before the others are looked at must be published as the whole plan would have it.
#[test]
fn what_is_settled_by_a_look_at_one_workload_stays_so_in_the_whole_plan() {
    let found = std::cell::Cell::new(0);
    check(8 * CASES, case(), |case| {
        let (whole, desired) = (case.plan(), case.desired());
        let mut count: BTreeMap<&ConnectorId, usize> = BTreeMap::new();
        case.observed.workloads.iter().for_each(|workload| *count.entry(&workload.connector).or_default() += 1);
        let failed = |id: &ConnectorId| case.observed.failed.contains_key(id);
        for workload in
            case.observed.workloads.iter().filter(|one| count[&one.connector] == 1 && !failed(&one.connector))
        {
            let id = &workload.connector;
            let entries: Vec<_> = whole.entries.iter().filter(|entry| entry.connector == *id).collect();
            let runs = |decision: &Decision| *decision == Decision::Skip(Skip::Running);
            let Some(alone) = settled(&desired, workload, &case.memory, &case.policy, now()) else {
                let named = desired.connectors.get(id).is_some_and(|one| one.name.as_str() == workload.name);
                let quiet = named && entries.iter().all(|entry| runs(&entry.decision));
                prop_assert!(!quiet, "{id} could have been settled");
                continue;
            };
            found.set(found.get() + 1);
            prop_assert!(entries.len() == 1 && runs(&entries[0].decision), "{entries:?}");
            prop_assert_eq!(alone.assessments.get(id), whole.assessments.get(id));
            prop_assert_eq!(alone.kept.get(id), whole.kept.get(id));
            let held = |plan: &Plan| plan.memory.connectors.get(id).and_then(|memory| memory.held.clone());
            prop_assert_eq!(held(&alone), held(&whole));
        }
        Ok(())
    });
    assert!(found.get() > 40, "only {} cases show anything", found.get());
}

/// The simulator refuses a name that is taken, by ours or by a foreign one, at the moment it is needed.
#[test]
fn a_plan_can_be_carried_out_and_leaves_one_workload_of_each_connector() {
    check(CASES, (case(), 0..6_usize), |(case, by)| {
        let (plan, desired) = (case.plan(), case.desired());
        let mut world = World::new(case.observed.clone());
        world.apply_turned(&plan, &desired, now(), by).map_err(TestCaseError::fail)?;
        let rejected = rejected(&case, &plan);
        let mut count: BTreeMap<&ConnectorId, (usize, usize)> = BTreeMap::new();
        for workload in &world.observed.workloads {
            let (current, former) = count.entry(&workload.connector).or_default();
            // What was replaced is kept beside its replacement, but never runs beside it.
            *(if workload.is_former() && !workload.phase.is_up() { former } else { current }) += 1;
        }
        for (id, (current, former)) in count {
            let excepted = rejected.contains(id) || !desired.lists(id);
            let one = current == 1 && former <= 1 || current == 0 && former == 1;
            prop_assert!(one || excepted, "{id} has {current} workloads and {former} former ones");
        }
        Ok(())
    });
}

/// The exceptions: connectors that trade names need one more round; a workload that was down while its restarts were recent can be judged only once it was started.
#[test]
fn planning_again_after_the_plan_changes_nothing() {
    check(CASES, case(), |case| {
        let desired = case.desired();
        let mut world = World::new(case.observed.clone());
        let mut last = case.plan();
        world.apply(&last, &desired, now()).map_err(TestCaseError::fail)?;
        for round in 1..4 {
            let time = later(now(), 10 * round);
            let next = plan(&desired, &world.observed, &last.memory, &case.policy, time);
            for (entry, step) in next.steps() {
                let started =
                    last.steps().any(|(e, s)| e.connector == entry.connector && matches!(s, Step::Start { .. }));
                // A configuration that failed once is tried a second time.
                let went_back = last.steps().any(|(e, s)| {
                    let back = matches!(s, Step::RollBack { .. } | Step::Start { reason: StartReason::RolledBack, .. });
                    e.connector == entry.connector && back
                });
                let hold = case.policy.loop_action == LoopAction::Stop && started;
                let excepted = match step {
                    Step::Rename { from, .. } => {
                        (from.ends_with(".xtm-next") || from.ends_with(".xtm-former")) && round == 1
                    }
                    // It was replaced under a temporary name and never ran there, which looks like a leftover.
                    Step::Remove { reason: RemoveReason::Incomplete, .. } => round == 1,
                    Step::Hold { .. } => hold,
                    Step::Refresh { .. } => went_back,
                    _ => false,
                };
                prop_assert!(excepted, "round {round}: {entry:?} after {last:#?}");
            }
            // The first round sees the counters that began anew with what the plan started.
            if !next.has_steps() && !last.has_steps() {
                prop_assert_eq!(&next.memory, &last.memory, "a quiet pass has nothing to write");
            }
            world.apply(&next, &desired, time).map_err(TestCaseError::fail)?;
            last = next;
        }
        prop_assert!(!last.has_steps());
        Ok(())
    });
}

/// Until a replacement has stayed up for the time of probation, what it replaced is there to go back to, if it worked.
// Shows what README says under "What a pass does": "So the old one is kept, stopped, under a name that ends in
// `.xtm-former`", "Nothing is kept of a connector that was down or restarting before.".
#[test]
fn what_worked_is_given_away_only_for_something_that_has_stayed_up() {
    check(CASES, case(), |case| {
        let (plan, desired) = (case.plan(), case.desired());
        let mut world = World::new(case.observed.clone());
        world.apply(&plan, &desired, now()).map_err(TestCaseError::fail)?;
        let exists = |handle: &Handle| world.observed.workloads.iter().any(|w| w.handle == *handle);
        for (entry, step) in plan.steps() {
            match step {
                Step::Refresh { old, fallback, start: true, .. } => {
                    let old = workload(&case, old).unwrap();
                    let worked = old.phase == Phase::Running && old.change == Change::Replaced;
                    let kept = fallback.as_ref().is_some_and(|former| exists(&former.handle));
                    prop_assert!(!worked || kept || case.policy.probation.length_s == 0, "{entry:?}");
                    let ran_before = case
                        .memory
                        .connectors
                        .get(&entry.connector)
                        .is_some_and(|memory| memory.refused.as_ref().is_some_and(|refused| refused.former_ran));
                    let may_have_worked = match old.phase {
                        Phase::Running | Phase::Paused => true,
                        Phase::Created | Phase::Exited => old.is_former() || ran_before,
                        _ => false,
                    };
                    let is_kept = fallback.as_ref().is_some_and(|former| former.handle == old.handle);
                    prop_assert!(!is_kept || may_have_worked, "{entry:?}");
                }
                Step::Remove { reason: RemoveReason::Replaced, .. } if case.policy.probation.length_s > 0 => {
                    let stays = workload(&case, &plan.kept[&entry.connector]).unwrap();
                    let started = stays.vitals.as_ref().and_then(|vitals| vitals.started_at).unwrap();
                    let up_s = now().as_second() - started.as_second();
                    prop_assert!(stays.phase == Phase::Running && up_s >= case.policy.probation.length_s, "{stays:?}");
                }
                _ => {}
            }
        }
        Ok(())
    });
}

/// Whatever fails on probation, the next plans bring back what worked and never run two at once; after the last wait the
/// new configuration is tried again.
// Shows what README says under "What a pass does": "Whatever did not work is tried again in the next pass".
#[test]
fn what_fails_on_probation_is_rolled_back_and_waits() {
    check(CASES, (case(), 1..9_u64), |(case, restarts)| {
        let desired = case.desired();
        let mut world = World::new(case.observed.clone());
        let first = case.plan();
        world.apply(&first, &desired, now()).map_err(TestCaseError::fail)?;
        let refreshed: Vec<_> = first
            .steps()
            .filter_map(|(entry, step)| match step {
                Step::Refresh { fallback: Some(former), start: true, .. } => {
                    Some((entry.connector.clone(), former.clone()))
                }
                _ => None,
            })
            .collect();
        for workload in &mut world.observed.workloads {
            if let (true, Some(vitals)) =
                (refreshed.iter().any(|(id, _)| *id == workload.connector), workload.vitals.as_mut())
            {
                vitals.restarts = restarts;
            }
        }
        let time = later(now(), 20);
        let second = plan(&desired, &world.observed, &first.memory, &case.policy, time);
        world.apply(&second, &desired, time).map_err(TestCaseError::fail)?;
        let third = plan(&desired, &world.observed, &second.memory, &case.policy, later(time, 1));
        for (id, former) in &refreshed {
            let theirs: Vec<_> = world.observed.workloads.iter().filter(|w| w.connector == *id).collect();
            prop_assert!(theirs.len() == 1 && theirs[0].handle == former.handle, "{theirs:?}");
            // It has its name again, unless another connector still has that.
            let name = desired.connectors[id].name.as_str();
            let busy = world.observed.workloads.iter().any(|w| w.name == name && w.connector != *id);
            prop_assert!(theirs[0].phase == Phase::Running && (!theirs[0].is_former() || busy), "{theirs:?}");
            let refused = second.memory.connectors[id].refused.as_ref().unwrap();
            let failure = refused.failure.unwrap();
            prop_assert_eq!((failure.restarts, refused.former_ran), (restarts, true));
            let tried = third.steps().any(|(entry, step)| entry.connector == *id && step.makes_workload());
            let wanted_runs = theirs[0].hash.as_ref() == Some(&desired.connectors[id].hash);
            prop_assert_eq!(tried, refused.times == 1 && !wanted_runs, "attempt {}", refused.times);
        }
        Ok(())
    });
}

// Shows what README says under "What a pass does": "what runs of it keeps running, the others are served".
#[test]
fn what_runs_of_a_rejected_connector_keeps_running() {
    check(CASES, case(), |case| {
        let plan = case.plan();
        let rejected = rejected(&case, &plan);
        for (entry, step) in plan.steps().filter(|(entry, _)| rejected.contains(&entry.connector)) {
            let leftover = matches!(step, Step::Remove { reason: RemoveReason::Incomplete, .. });
            prop_assert!(leftover, "{entry:?}");
            let workload = handle(step).and_then(|handle| workload(&case, handle)).unwrap();
            prop_assert!(matches!(workload.phase, Phase::Created | Phase::Broken), "{entry:?}");
        }
        Ok(())
    });
}

/// Right name and hash stay in any case; beyond that, nothing that works goes in favour of something that does not.
#[test]
fn a_duplicate_that_works_is_not_removed_for_one_that_does_not() {
    check(CASES, case(), |case| {
        let (plan, desired) = (case.plan(), case.desired());
        for (entry, step) in plan.steps() {
            let Step::Remove { handle, reason: RemoveReason::Duplicate, .. } = step else { continue };
            let gone = workload(&case, handle).unwrap();
            let connector = &desired.connectors[&entry.connector];
            let removed: BTreeSet<_> = plan
                .steps()
                .filter(|(_, step)| matches!(step, Step::Remove { .. }))
                .filter_map(|(_, step)| self::handle(step))
                .collect();
            let stays: Vec<_> = case
                .observed
                .workloads
                .iter()
                .filter(|w| w.connector == entry.connector && !removed.contains(&w.handle))
                .filter(|w| !w.is_former() || plan.kept.get(&w.connector) == Some(&w.handle))
                .collect();
            prop_assert_eq!(stays.len(), 1);
            let stays = stays[0];
            let right = |w: &Workload| w.name == connector.name.as_str() && w.hash.as_ref() == Some(&connector.hash);
            if right(stays) && stays.phase != Phase::Broken {
                continue;
            }
            prop_assert!(!right(gone) || gone.phase == Phase::Broken, "{entry:?} has the right name and hash");
            let hash_for_running = stays.hash.as_ref() == Some(&connector.hash) && !stays.is_staged();
            prop_assert!(!gone.phase.is_up() || stays.phase.is_up() || hash_for_running, "{entry:?} works, {stays:?}");
        }
        Ok(())
    });
}

// Shows what README says under "What a pass does": "A failed or partial list removes nothing.", "or a list that would
// remove more than half of three or more".
#[test]
fn the_prune_guard_holds() {
    check(CASES, case(), |case| {
        let plan = case.plan();
        let gone: BTreeSet<&ConnectorId> = plan
            .steps()
            .filter(|(_, step)| matches!(step, Step::Remove { reason: RemoveReason::NotListed, .. }))
            .map(|(entry, _)| &entry.connector)
            .collect();
        let (owned, unlisted) = owned(&case);
        let empty = case.listed.is_empty() && case.unreadable.is_empty();
        let partial = !case.desired().unidentified.is_empty();
        let prune = case.policy.prune;
        let too_many = owned.len() >= 3 && unlisted.len() * 100 > owned.len() * usize::from(prune.max_percent);
        let guarded = |id: &&&ConnectorId| case.memory.connectors.get(**id).is_some_and(|memory| memory.guarded);
        let (then, still) = (owned.iter().filter(guarded).count(), unlisted.iter().filter(guarded).count());
        let lasting = still * 100 > then * usize::from(prune.max_percent);
        let refused = partial || (!prune.allow && ((empty && owned.len() >= 2) || too_many || lasting));
        if refused {
            prop_assert!(gone.is_empty(), "removed {gone:?} of {owned:?}");
            prop_assert_eq!(plan.refusal.is_some(), !unlisted.is_empty());
        } else {
            prop_assert_eq!(&gone, &unlisted);
            prop_assert!(plan.refusal.is_none());
        }
        let unlabelled = case.observed.workloads.iter().filter(|w| w.platform.is_none());
        for workload in unlabelled.filter(|w| unlisted.contains(&w.connector) || !owned.contains(&w.connector)) {
            let touched = plan.steps().any(|(_, step)| handle(step) == Some(&workload.handle));
            prop_assert!(!touched, "{} could be another platform's", workload.name);
        }
        Ok(())
    });
}
