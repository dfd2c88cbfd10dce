//! Carries out a plan without deciding anything: the removals first, then the steps of each connector in order, several
//! connectors at a time. The steps of a connector wait until its spec is made, which goes on meanwhile.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};

use crate::access::Permit;
use crate::model::{ConnectorId, Handle, PlatformKind};
use crate::orchestrator::{LastLog, LogRead, LogRequest, Orchestrator, OrchestratorError, StepContext, StepError};
use crate::plan::{Plan, Step};
use crate::prepare::{Preparation, Prepared};
use crate::probation::Failure;
use crate::render::Spec;
use crate::stop::{Cause, Stop};

/// How many log lines of a workload that failed on probation a message shows.
const LINES_SHOWN: usize = 3;

/// The result of one step.
#[derive(Debug)]
pub struct Outcome {
    /// The workload after the step (`None` when there is none), or why the step failed.
    pub result: Result<Option<Handle>, StepError>,
    /// The last log of the workload that the step removed. `None` when nobody wanted it.
    pub(crate) last_log: Option<Result<LogRead, OrchestratorError>>,
    pub(crate) took: Duration,
}

/// The results of a plan, by the index of the entry in it. The steps of rejected connectors have no result.
pub type Outcomes = BTreeMap<usize, Outcome>;

/// A step with the index of its entry in the plan, and its connector.
type Placed<'a> = (usize, &'a ConnectorId, &'a Step);

/// What is needed to carry out a plan.
pub struct Applier<'a, O> {
    pub(crate) orchestrator: &'a O,
    pub(crate) platform: PlatformKind,
    pub(crate) permit: Permit,
    pub(crate) prepared: &'a Prepared,
    /// For each connector, the part of the log to read of a workload before a step removes it.
    pub(crate) last_logs: &'a BTreeMap<ConnectorId, LogRequest<'a>>,
    pub(crate) stop: &'a Stop,
    /// How many connectors are worked on at the same time.
    pub(crate) concurrency: usize,
}

impl<O: Orchestrator> Applier<'_, O> {
    /// Carries out the steps, except those of rejected connectors. A step that is not begun has the reason as its
    /// result.
    pub async fn apply(&self, plan: &Plan) -> Outcomes {
        let (removals, others): (Vec<Placed<'_>>, Vec<Placed<'_>>) = plan
            .entries
            .iter()
            .enumerate()
            .filter_map(|(place, entry)| match &entry.decision {
                crate::plan::Decision::Step(step) => Some((place, &entry.connector, step)),
                _ => None,
            })
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

    /// Carries out steps of one connector, up to the first that fails. Without its spec, none is begun: what they would
    /// take away may be all that the connector has.
    async fn sequence(&self, steps: Vec<Placed<'_>>) -> Vec<(usize, Outcome)> {
        let Some((_, connector, _)) = steps.first() else { return vec![] };
        let spec = match self.prepared.of(connector).await {
            Preparation::NotNeeded => None,
            Preparation::Ready(spec) => Some(spec),
            Preparation::Rejected => return vec![],
            Preparation::GivenUp => {
                let why = self.stop.cause().map_or("its values were not decrypted", Cause::as_str);
                return steps.into_iter().map(|(place, ..)| (place, not_done(why))).collect();
            }
        };
        let mut outcomes = Vec::with_capacity(steps.len());
        let mut failed = false;
        for (place, connector, step) in steps {
            let outcome = if failed {
                not_done("the step before it failed")
            } else if let Some(cause) = self.stop.cause() {
                not_done(cause.as_str())
            } else {
                self.step(connector, step, spec).await
            };
            failed = outcome.result.is_err();
            outcomes.push((place, outcome));
        }
        outcomes
    }

    async fn step(&self, connector: &ConnectorId, step: &Step, spec: Option<&Spec>) -> Outcome {
        let begun = Instant::now();
        let wanted = self.last_logs.get(connector).filter(|_| step.ends_log_of().is_some());
        let last_log = wanted.cloned().map(LastLog::new);
        let exit_code = OnceLock::new();
        let context = StepContext { spec, stop: self.stop, last_log: last_log.as_ref(), exit_code: &exit_code };
        let done = self.orchestrator.execute(self.permit, step, context);
        // A panic in the work on one connector must not end the work on the others.
        let result = AssertUnwindSafe(done)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(StepError::Internal("the step panicked".to_owned())));
        let took = begun.elapsed();
        let mut last_log = last_log.and_then(LastLog::into_read);
        if let (Step::RollBack { .. }, Some(Ok(read))) = (step, &mut last_log) {
            // The next delivery is about the former workload, so it does not go on where this log ended.
            read.cursor = None;
        }
        // For the connector, also a roll-back that succeeds is a refresh that failed.
        let result = match (step, result) {
            (Step::RollBack { .. }, Err(StepError::Stopped(cause))) => Err(StepError::Stopped(cause)),
            (Step::RollBack { failure, .. }, result) => {
                let failure = Failure { exit_code: failure.exit_code.or(exit_code.get().copied()), ..*failure };
                Err(match result {
                    Ok(_) => StepError::Unstable { failure, log: last_lines(last_log.as_ref()) },
                    Err(rollback) => StepError::NotRolledBack { failure, rollback: Box::new(rollback) },
                })
            }
            (_, result) => result,
        };
        match &result {
            Ok(_) => tracing::info!(%connector, step = step.word(), ms = took.as_millis(), "done"),
            Err(error) => {
                let cure = error.cure().on(self.platform);
                tracing::error!(%connector, step = step.word(), %error, cure, "failed");
            }
        }
        Outcome { result, last_log, took }
    }
}

/// The last lines of a log for a message. A log that cannot be read must not hide what the message is about.
fn last_lines(read: Option<&Result<LogRead, OrchestratorError>>) -> Vec<String> {
    let lines = read.and_then(|read| read.as_ref().ok()).map_or(&[][..], |read| &read.lines);
    let mut shown: Vec<String> =
        lines.iter().rev().filter(|line| !line.trim().is_empty()).take(LINES_SHOWN).cloned().collect();
    shown.reverse();
    shown
}

fn not_done(why: &'static str) -> Outcome {
    Outcome { result: Err(StepError::Stopped(why)), last_log: None, took: Duration::ZERO }
}

/// Groups the steps by connector, of which a plan keeps all entries together.
fn by_connector<'a>(steps: &[Placed<'a>]) -> Vec<Vec<Placed<'a>>> {
    steps.chunk_by(|a, b| a.1 == b.1).map(<[_]>::to_vec).collect()
}
