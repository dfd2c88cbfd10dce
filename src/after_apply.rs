//! Looks at the workloads again after the steps, and finds out which connectors the steps left undone.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use jiff::Timestamp;

use crate::apply::Outcomes;
use crate::desired::{Desired, Rejection};
use crate::memory::{LastLook, Undone};
use crate::model::{ConnectorId, CurrentStatus, Handle, Phase, Trouble, Vitals, Workload};
use crate::orchestrator::{Observation, Orchestrator, OrchestratorError, StepError};
use crate::plan::{Decision, Plan, RefreshReason, Skip, Step};
use crate::secret::Secret;

/// The workload of one connector after the steps.
#[derive(Debug)]
pub struct WorkloadAfter {
    pub(crate) handle: Handle,
    pub(crate) phase: Phase,
    pub(crate) created: Timestamp,
    /// `None` for a workload that is down and got no closer look.
    pub(crate) vitals: Option<Vitals>,
    /// Empty for a workload that got no closer look.
    pub(crate) environment: Vec<(String, Secret)>,
    /// Whether a step of this pass changed it.
    pub(crate) touched: bool,
    pub(crate) troubles: Vec<Trouble>,
}

/// The workloads after the steps. A connector in none of these parts has no workload.
#[derive(Debug, Default)]
pub struct WorkloadsAfter {
    pub(crate) workloads: BTreeMap<ConnectorId, WorkloadAfter>,
    /// The connectors whose workload could not be looked at before the steps. The plan rejects them for that.
    unknown: BTreeSet<ConnectorId>,
    /// The connectors whose workload could not be looked at after the steps, and why.
    pub(crate) lost: BTreeMap<ConnectorId, OrchestratorError>,
}

impl WorkloadsAfter {
    /// The troubles of the workloads, by connector.
    #[must_use]
    pub fn troubles(&self) -> BTreeMap<ConnectorId, Vec<Trouble>> {
        let troubled = self.workloads.iter().filter(|(_, after)| !after.troubles.is_empty());
        troubled.map(|(id, after)| (id.clone(), after.troubles.clone())).collect()
    }

    /// Whether it is unknown if this connector has a workload, so that nothing may be published of it.
    #[must_use]
    pub fn is_unknown(&self, id: &ConnectorId) -> bool {
        self.unknown.contains(id) || self.lost.contains_key(id)
    }

    /// The counters of the workloads that this pass changed, for the next memory.
    #[must_use]
    pub fn last_looks(&self, plan: &Plan) -> BTreeMap<ConnectorId, LastLook> {
        let started = plan.steps().filter(|(_, step)| step.starts()).map(|(entry, _)| &entry.connector);
        let started: BTreeSet<&ConnectorId> = started.collect();
        let looks = self.workloads.iter().filter_map(|(id, after)| {
            let vitals = after.vitals.clone().filter(|_| after.touched)?;
            let generation = vitals.generation.clone().unwrap_or_else(|| after.handle.0.clone());
            let ended = started.contains(id) && after.phase == Phase::Exited;
            let (created, phase) = (after.created, after.phase);
            Some((id.clone(), LastLook { generation, created, vitals, phase, ended }))
        });
        looks.collect()
    }
}

/// One workload of which nothing is changed, as it was observed.
pub(crate) fn unchanged(workload: &Workload, environment: &[(String, Secret)]) -> WorkloadsAfter {
    let Workload { handle, phase, created, vitals, troubles, .. } = workload.clone();
    let environment = environment.to_vec();
    let one = WorkloadAfter { handle, phase, created, vitals, environment, touched: false, troubles };
    WorkloadsAfter { workloads: BTreeMap::from([(workload.connector.clone(), one)]), ..WorkloadsAfter::default() }
}

/// The workloads that stay, as they were observed before the steps. A workload that is down while the platform shows
/// another status gets a closer look, because its log is about to be sent and the secrets in it must be known for that.
pub async fn before_steps<O: Orchestrator>(
    orchestrator: &O,
    desired: &Desired,
    plan: &Plan,
    observation: Observation,
    concurrency: usize,
) -> WorkloadsAfter {
    let Observation { observed, mut environments, .. } = observation;
    let mut all = WorkloadsAfter { unknown: observed.failed.into_keys().collect(), ..WorkloadsAfter::default() };
    for workload in observed.workloads {
        if plan.kept.get(&workload.connector) == Some(&workload.handle) {
            let environment = environments.remove(&workload.handle).unwrap_or_default();
            let (handle, phase, created, vitals) = (workload.handle, workload.phase, workload.created, workload.vitals);
            let troubles = workload.troubles;
            let one = WorkloadAfter { handle, phase, created, vitals, environment, touched: false, troubles };
            all.workloads.insert(workload.connector, one);
        }
    }
    let unseen = all.workloads.iter().filter(|(id, one)| {
        !one.phase.is_up() && one.environment.is_empty() && desired.shown(id) != Some(CurrentStatus::Stopped)
    });
    let unseen = unseen.map(|(id, one)| (id.clone(), one.handle.clone())).collect();
    look(orchestrator, unseen, false, concurrency, &mut all).await;
    all
}

/// Looks again at the workloads that the steps were for.
pub async fn look_again<O: Orchestrator>(
    orchestrator: &O,
    plan: &Plan,
    outcomes: &Outcomes,
    concurrency: usize,
    all: &mut WorkloadsAfter,
) {
    let touched = touched(plan, outcomes);
    for id in touched.keys() {
        all.workloads.remove(id);
    }
    look(orchestrator, touched, true, concurrency, all).await;
}

pub(crate) async fn look<O: Orchestrator>(
    orchestrator: &O,
    handles: BTreeMap<ConnectorId, Handle>,
    touched: bool,
    concurrency: usize,
    all: &mut WorkloadsAfter,
) {
    let looks = handles.into_iter().map(|(id, handle)| async move {
        let look = orchestrator.look(&handle).await;
        (id, handle, look)
    });
    let mut looks = futures_util::stream::iter(looks).buffer_unordered(concurrency);
    while let Some((id, handle, look)) = looks.next().await {
        match look {
            Ok(None) => {
                all.workloads.remove(&id);
            }
            Ok(Some(look)) => {
                let (phase, created, vitals) = (look.phase, look.created, Some(look.vitals));
                // Just after a step the orchestrator may still show the state from before it. The next pass reports
                // troubles.
                let troubles = if touched { vec![] } else { look.troubles };
                let environment = look.environment;
                let one = WorkloadAfter { handle, phase, created, vitals, environment, touched, troubles };
                all.workloads.insert(id, one);
            }
            Err(error) => {
                all.lost.insert(id, error);
            }
        }
    }
}

/// The connectors that a plan has steps for, or holds. Publishing them waits until the steps are done.
#[must_use]
pub fn connectors_with_steps(plan: &Plan) -> BTreeSet<ConnectorId> {
    let theirs =
        plan.entries.iter().filter(|entry| matches!(entry.decision, Decision::Step(_) | Decision::Skip(Skip::Held)));
    theirs.map(|entry| entry.connector.clone()).collect()
}

/// The connectors whose steps failed or were not begun, or that were rejected after the plan was made. What the plan
/// wanted remembered of them does not hold.
#[must_use]
pub fn undone(
    plan: &Plan,
    outcomes: &Outcomes,
    rejected: &BTreeMap<ConnectorId, Rejection>,
) -> BTreeMap<ConnectorId, Undone> {
    let mut undone: BTreeMap<_, _> = rejected.keys().map(|id| (id.clone(), Undone::AsBefore)).collect();
    for (place, outcome) in outcomes {
        let (Some(entry), Err(error)) = (plan.entries.get(*place), &outcome.result) else { continue };
        let what = match &entry.decision {
            Decision::Step(Step::Refresh { reason: RefreshReason::HashChanged { to, .. }, old_up, .. })
                if error.is_refused_start() =>
            {
                Undone::RefusedStart { hash: to.clone(), failure: error.failure(), former_ran: *old_up }
            }
            // Also when it failed half-way: what was replaced has to run again, and the next pass sees to that.
            Decision::Step(Step::RollBack { hash: Some(hash), failure, .. }) => {
                let failure = error.failure().or(Some(*failure));
                Undone::RefusedStart { hash: hash.clone(), failure, former_ran: true }
            }
            _ => Undone::AsBefore,
        };
        undone.insert(entry.connector.clone(), what);
    }
    undone
}

/// The workloads for which a step was begun, and those that are held.
fn touched(plan: &Plan, outcomes: &Outcomes) -> BTreeMap<ConnectorId, Handle> {
    let mut touched = BTreeMap::new();
    for (place, entry) in plan.entries.iter().enumerate() {
        let outcome = outcomes.get(&place).map(|outcome| &outcome.result);
        let handle = match (&entry.decision, outcome) {
            (Decision::Skip(Skip::Held), _) => plan.kept.get(&entry.connector).cloned(),
            (Decision::Step(Step::Remove { .. }), _) | (_, Some(Err(StepError::Stopped(_)))) => None,
            (Decision::Step(_), Some(Ok(handle))) => handle.clone(),
            (Decision::Step(step), Some(Err(_))) => step.handle().cloned(),
            _ => None,
        };
        if let Some(handle) = handle {
            touched.insert(entry.connector.clone(), handle);
        }
    }
    touched
}
