//! Finds the refreshed workloads that failed within a few seconds, so that they are rolled back in the same pass. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::after_apply::WorkloadsAfter;
use crate::apply::Outcomes;
use crate::model::ConnectorId;
use crate::plan::{Decision, Entry, Former, Plan, RefreshReason, Step};
use crate::probation::{ProbationRule, Verdict};

/// A refresh that was done and can be undone: the place of its entry in the plan, and what it replaced.
pub(crate) type Refreshed<'a> = (usize, &'a Entry, &'a Former);

/// The refreshes of a plan that began a probation: what was not started has nothing to prove yet.
pub(crate) fn on_probation<'a>(plan: &'a Plan, outcomes: &Outcomes) -> Vec<Refreshed<'a>> {
    let begun = plan.entries.iter().enumerate().filter_map(|(place, entry)| match &entry.decision {
        Decision::Step(Step::Refresh { fallback: Some(former), start: true, .. }) => Some((place, entry, former)),
        _ => None,
    });
    begun.filter(|(place, ..)| outcomes.get(place).is_some_and(|outcome| outcome.result.is_ok())).collect()
}

/// What probation has shown of each refreshed workload that still exists.
pub(crate) fn verdicts(
    refreshed: &[Refreshed<'_>],
    after: &WorkloadsAfter,
    rule: ProbationRule,
    now: Timestamp,
) -> BTreeMap<ConnectorId, Verdict> {
    let judge = |(_, entry, _): &Refreshed<'_>| {
        let workload = after.workloads.get(&entry.connector)?;
        // It was started a moment ago, so that no status of the platform can be about it.
        let verdict = rule.judge(workload.phase, workload.vitals.as_ref(), None, now);
        Some((entry.connector.clone(), verdict))
    };
    refreshed.iter().filter_map(judge).collect()
}

/// The plan that rolls back what failed, with the place that each of its entries has in the plan that was carried out.
pub(crate) fn roll_backs(
    refreshed: &[Refreshed<'_>],
    after: &WorkloadsAfter,
    verdicts: &BTreeMap<ConnectorId, Verdict>,
) -> (Plan, Vec<usize>) {
    let (mut entries, mut places) = (vec![], vec![]);
    for (place, entry, former) in refreshed {
        let Some(Verdict::Failed(failure)) = verdicts.get(&entry.connector) else { continue };
        let Some(workload) = after.workloads.get(&entry.connector) else { continue };
        let Decision::Step(Step::Refresh { name, reason, .. }) = &entry.decision else { continue };
        let hash = match reason {
            RefreshReason::HashChanged { to, .. } => Some(to.clone()),
            RefreshReason::Broken => None,
        };
        let step = Step::RollBack {
            failed: workload.handle.clone(),
            former: (*former).clone(),
            name: name.clone(),
            hash,
            failure: *failure,
        };
        entries.push(Entry { decision: Decision::Step(step), ..(*entry).clone() });
        places.push(*place);
    }
    (Plan { entries, ..Plan::default() }, places)
}

/// Puts the results of the roll-backs in place of those of the refreshes that failed.
pub(crate) fn put_in_place(outcomes: &mut Outcomes, rolled_back: Outcomes, places: &[usize]) {
    for (place, outcome) in rolled_back {
        let Some(original) = places.get(place) else { continue };
        outcomes.insert(*original, outcome);
    }
}
