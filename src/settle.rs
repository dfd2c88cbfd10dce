//! What is there after the steps: workloads that a step was for are looked at again, and their restarts judged anew.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use jiff::Timestamp;

use crate::apply::Outcomes;
use crate::desired::{Desired, Rejection};
use crate::memory::{Memory, RefusedStart};
use crate::model::{ConnectorId, CurrentStatus, Handle, Phase, Trouble, Vitals};
use crate::orchestrator::{Observation, Orchestrator, OrchestratorError, StepError};
use crate::plan::{Decision, Plan, RefreshReason, Skip, Step};
use crate::restart_window::{Assessment, LoopRule, Reading, observe};
use crate::secret::Secret;

/// One connector's workload after the steps.
#[derive(Debug)]
pub struct After {
    /// The engine's id.
    pub handle: Handle,
    /// What it is doing.
    pub phase: Phase,
    /// When it was made.
    pub created: Timestamp,
    /// Its counters, where it was looked at.
    pub vitals: Option<Vitals>,
    /// Its environment, where it was looked at.
    pub environment: Vec<(String, Secret)>,
    /// Whether this pass did something to it.
    pub touched: bool,
    /// What is wrong with it.
    pub troubles: Vec<Trouble>,
}

/// Workloads after the steps. A connector that is nowhere here has none.
#[derive(Debug, Default)]
pub struct Afters {
    /// By connector.
    pub states: BTreeMap<ConnectorId, After>,
    /// Could not be looked at before the steps: rejected for it by the plan.
    pub unknown: BTreeSet<ConnectorId>,
    /// Could not be looked at after the steps, and why.
    pub lost: BTreeMap<ConnectorId, OrchestratorError>,
}

impl Afters {
    /// What is wrong with the workloads, by connector.
    #[must_use]
    pub fn troubles(&self) -> BTreeMap<ConnectorId, Vec<Trouble>> {
        let troubled = self.states.iter().filter(|(_, after)| !after.troubles.is_empty());
        troubled.map(|(id, after)| (id.clone(), after.troubles.clone())).collect()
    }

    /// Whether nothing can be said of this connector.
    #[must_use]
    pub fn is_unknown(&self, id: &ConnectorId) -> bool {
        self.unknown.contains(id) || self.lost.contains_key(id)
    }
}

/// The workloads that stay, as they were observed. Those that are down while the platform shows something else are looked
/// at: their logs will be sent, and their secrets must be known for that.
pub async fn observed<O: Orchestrator>(
    orchestrator: &O,
    desired: &Desired,
    plan: &Plan,
    observation: Observation,
    concurrency: usize,
) -> Afters {
    let Observation { observed, mut environments, .. } = observation;
    let mut afters = Afters { unknown: observed.failed.into_keys().collect(), ..Afters::default() };
    for workload in observed.workloads {
        if plan.kept.get(&workload.connector) == Some(&workload.handle) {
            let environment = environments.remove(&workload.handle).unwrap_or_default();
            let (handle, phase, created, vitals) = (workload.handle, workload.phase, workload.created, workload.vitals);
            let troubles = workload.troubles;
            let after = After { handle, phase, created, vitals, environment, touched: false, troubles };
            afters.states.insert(workload.connector, after);
        }
    }
    let unknown = afters.states.iter().filter(|(id, after)| {
        !after.phase.is_up() && after.environment.is_empty() && desired.shown(id) != Some(CurrentStatus::Stopped)
    });
    let unknown = unknown.map(|(id, after)| (id.clone(), after.handle.clone())).collect();
    look(orchestrator, unknown, false, concurrency, &mut afters).await;
    afters
}

/// Looks again at what the steps were for.
pub async fn look_again<O: Orchestrator>(
    orchestrator: &O,
    plan: &Plan,
    outcomes: &Outcomes,
    concurrency: usize,
    afters: &mut Afters,
) {
    let touched = touched(plan, outcomes);
    for id in touched.keys() {
        afters.states.remove(id);
    }
    look(orchestrator, touched, true, concurrency, afters).await;
}

async fn look<O: Orchestrator>(
    orchestrator: &O,
    workloads: BTreeMap<ConnectorId, Handle>,
    touched: bool,
    concurrency: usize,
    afters: &mut Afters,
) {
    let looks = workloads.into_iter().map(|(id, handle)| async move {
        let look = orchestrator.look(&handle).await;
        (id, handle, look)
    });
    let mut looks = futures_util::stream::iter(looks).buffer_unordered(concurrency);
    while let Some((id, handle, look)) = looks.next().await {
        match look {
            Ok(None) => {
                afters.states.remove(&id);
            }
            Ok(Some(look)) => {
                let (phase, created, vitals) = (look.phase, look.created, Some(look.vitals));
                // Just after a step it is still the workload before that shows: the next pass tells.
                let troubles = if touched { vec![] } else { look.troubles };
                let environment = look.environment;
                let after = After { handle, phase, created, vitals, environment, touched, troubles };
                afters.states.insert(id, after);
            }
            Err(error) => {
                afters.lost.insert(id, error);
            }
        }
    }
}

/// The connectors that a plan does something for, or holds: what is published of them waits until that is done.
#[must_use]
pub fn busy(plan: &Plan) -> BTreeSet<ConnectorId> {
    let busy =
        plan.entries.iter().filter(|entry| matches!(entry.decision, Decision::Step(_) | Decision::Skip(Skip::Held)));
    busy.map(|entry| entry.connector.clone()).collect()
}

/// Takes back what the plan wanted remembered of connectors whose steps failed: they are as they were. A start that was
/// refused is remembered. The same for connectors that were rejected after the plan was made.
pub fn take_back(
    plan: &Plan,
    outcomes: &Outcomes,
    rejected: &BTreeMap<ConnectorId, Rejection>,
    recalled: &Memory,
    memory: &mut Memory,
    now: Timestamp,
) {
    for id in rejected.keys() {
        match recalled.connectors.get(id) {
            Some(before) => memory.connectors.insert(id.clone(), before.clone()),
            None => memory.connectors.remove(id),
        };
    }
    for (place, outcome) in outcomes {
        let (Some(entry), Err(error)) = (plan.entries.get(*place), &outcome.result) else { continue };
        let before = recalled.connectors.get(&entry.connector);
        let mut connector = before.cloned().unwrap_or_default();
        if let Decision::Step(Step::Refresh { reason: RefreshReason::HashChanged { to, .. }, .. }) = &entry.decision
            && error.is_refused_start()
        {
            let earlier = connector.refused.filter(|refused| refused.hash == *to).map_or(0, |refused| refused.times);
            let (times, at) = (earlier.saturating_add(1), now.as_second());
            connector.refused = Some(RefusedStart { hash: to.clone(), times, at });
        }
        if connector.is_empty() {
            memory.connectors.remove(&entry.connector);
        } else {
            memory.connectors.insert(entry.connector.clone(), connector);
        }
    }
}

/// Brings the restart histories of the workloads that this pass touched up to date: their counters began anew.
pub fn reassess(
    afters: &Afters,
    memory: &mut Memory,
    assessments: &mut BTreeMap<ConnectorId, Assessment>,
    rule: LoopRule,
    now: Timestamp,
) {
    for (id, after) in &afters.states {
        let (true, Some(vitals)) = (after.touched, &after.vitals) else { continue };
        let known = memory.connectors.get(id).and_then(|connector| connector.window.clone());
        let generation = vitals.generation.as_deref().unwrap_or(&after.handle.0);
        let backing_off = vitals.backing_off;
        let reading = Reading { counter: vitals.restarts, generation, created: after.created, backing_off };
        let (window, assessment) = observe(known.as_ref(), reading, 0, rule, now);
        assessments.insert(id.clone(), assessment);
        if window != known {
            memory.connectors.entry(id.clone()).or_default().window = window;
        }
    }
}

/// The workloads that steps were for, as far as something was begun, and those that are held.
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
