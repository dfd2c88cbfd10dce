//! Carries out a plan. Decides nothing: removals first, then each connector's steps in order, several connectors at a time.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};

use crate::access::Permit;
use crate::model::{ConnectorId, Handle, PlatformKind};
use crate::orchestrator::{Executed, LogRead, LogRequest, Orchestrator, OrchestratorError, StepContext, StepError};
use crate::plan::{Plan, Step};
use crate::prepare::Prepared;
use crate::stop::Stop;

/// What became of one step.
#[derive(Debug)]
pub struct Outcome {
    /// The workload that is there afterwards, or why the step failed.
    pub result: Result<Option<Handle>, StepError>,
    /// The last log of a workload that the step took away, where it was wanted.
    pub(crate) last_log: Option<Result<LogRead, OrchestratorError>>,
    pub(crate) took: Duration,
}

/// What became of the plan: by the place of the entry in it.
pub type Outcomes = BTreeMap<usize, Outcome>;

/// A step and its place in the plan.
type Placed<'a> = (usize, &'a ConnectorId, &'a Step);

/// Everything that carrying out a plan takes.
pub struct Applier<'a, O> {
    pub(crate) orchestrator: &'a O,
    pub(crate) platform: PlatformKind,
    pub(crate) permit: Permit,
    pub(crate) prepared: &'a Prepared,
    /// Which part of the log of a workload that goes is wanted, by connector.
    pub(crate) last_logs: &'a BTreeMap<ConnectorId, LogRequest<'a>>,
    pub(crate) stop: &'a Stop,
    /// Connectors that are worked on at the same time.
    pub(crate) concurrency: usize,
}

impl<O: Orchestrator> Applier<'_, O> {
    /// Carries out every step, or says why not. Steps of rejected connectors are left out.
    pub async fn apply(&self, plan: &Plan) -> Outcomes {
        let (removals, others): (Vec<Placed<'_>>, Vec<Placed<'_>>) = plan
            .entries
            .iter()
            .enumerate()
            .filter_map(|(place, entry)| match &entry.decision {
                crate::plan::Decision::Step(step) => Some((place, &entry.connector, step)),
                _ => None,
            })
            .filter(|(_, connector, _)| !self.prepared.rejected.contains_key(*connector))
            .partition(|(_, _, step)| matches!(step, Step::Remove { .. }));
        let mut outcomes = self.run(removals.into_iter().map(|placed| vec![placed]).collect()).await;
        let failed: Vec<&ConnectorId> = outcomes
            .iter()
            .filter(|(_, outcome)| outcome.result.is_err())
            .filter_map(|(place, _)| plan.entries.get(*place).map(|entry| &entry.connector))
            .collect();
        let (blocked, free): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(_, connector, _)| failed.contains(connector));
        for (place, _, _) in blocked {
            outcomes.insert(place, not_done("a removal before it failed"));
        }
        outcomes.append(&mut self.run(by_connector(&free)).await);
        outcomes
    }

    async fn run(&self, sequences: Vec<Vec<Placed<'_>>>) -> Outcomes {
        let running = sequences.into_iter().map(|sequence| self.sequence(sequence));
        let results = futures_util::stream::iter(running).buffer_unordered(self.concurrency).collect::<Vec<_>>();
        results.await.into_iter().flatten().collect()
    }

    /// The steps of one connector, up to the first that fails.
    async fn sequence(&self, steps: Vec<Placed<'_>>) -> Vec<(usize, Outcome)> {
        let mut outcomes = Vec::with_capacity(steps.len());
        let mut failed = false;
        for (place, connector, step) in steps {
            let outcome = if failed {
                not_done("the step before it failed")
            } else if let Some(cause) = self.stop.cause() {
                not_done(cause.as_str())
            } else {
                self.step(connector, step).await
            };
            failed = outcome.result.is_err();
            outcomes.push((place, outcome));
        }
        outcomes
    }

    async fn step(&self, connector: &ConnectorId, step: &Step) -> Outcome {
        let begun = Instant::now();
        let spec = self.prepared.specs.get(connector);
        if step.makes_workload() && spec.is_none() {
            return not_done("the pass ended before its values were decrypted");
        }
        let last_log = self.last_logs.get(connector).filter(|_| step.takes_away().is_some());
        let context = StepContext { spec, stop: self.stop, last_log };
        let done = self.orchestrator.execute(self.permit, step, context);
        // One connector's fault must not end the others.
        let result = AssertUnwindSafe(done)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(StepError::Internal("the step panicked".to_owned())));
        let took = begun.elapsed();
        match &result {
            Ok(_) => tracing::info!(%connector, step = step.word(), ms = took.as_millis(), "done"),
            Err(error) => {
                let cure = error.cure().on(self.platform);
                tracing::error!(%connector, step = step.word(), %error, cure, "failed");
            }
        }
        match result {
            Ok(Executed { handle, last_log }) => Outcome { result: Ok(handle), last_log, took },
            Err(error) => Outcome { result: Err(error), last_log: None, took },
        }
    }
}

fn not_done(why: &'static str) -> Outcome {
    Outcome { result: Err(StepError::Stopped(why)), last_log: None, took: Duration::ZERO }
}

/// Entries of one connector stand together in a plan.
fn by_connector<'a>(steps: &[Placed<'a>]) -> Vec<Vec<Placed<'a>>> {
    steps.chunk_by(|a, b| a.1 == b.1).map(<[_]>::to_vec).collect()
}
