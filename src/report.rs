//! Builds the report, which says what each lane of a pass found, did and failed to do. Building and rendering are pure.

mod registration;
mod table;
mod xtm_one;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use crate::apply::{Outcome, Outcomes};
use crate::desired::Rejection;
use crate::exit;
use crate::model::{ConnectorId, Cure, PlatformKind, Trouble};
use crate::orchestrator::{OrchestratorError, StepError};
use crate::plan::{Decision, Entry, Plan, PruneRefusal, Skip, Step};
use crate::platform::PlatformError;
use crate::publish::{Failure, Sent};
use crate::restart_window::Assessment;
use crate::stop::Cause;
use crate::xtm_one::XtmOneOutcome;

pub(crate) use registration::RegistrationReport;
pub(crate) use table::{columns, on_one_line, printable, table};

/// The version of the JSON report's schema (fixtures/schemas). It grows when a field changes its meaning or is removed.
pub const SCHEMA_VERSION: u32 = 2;

/// The report of one pass.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) schema_version: u32,
    /// `run` or `plan`.
    pub(crate) command: &'static str,
    /// The id of the pass, which its log and its locks show as well.
    pub(crate) pass: String,
    pub(crate) manager: String,
    pub(crate) started_at: Timestamp,
    pub(crate) took_ms: u64,
    /// One for each platform that was served, in the order of [`PlatformKind::ALL`].
    pub(crate) lanes: Vec<LaneReport>,
    /// The sums of all lanes.
    pub(crate) counts: Counts,
    /// What an operator should know about the configuration.
    pub(crate) notices: Vec<String>,
    /// The gravest exit code of all lanes.
    pub(crate) exit_code: u8,
}

/// One lane's part of the report.
#[derive(Debug, Serialize)]
pub(crate) struct LaneReport {
    pub(crate) lane: PlatformKind,
    pub(crate) took_ms: u64,
    pub(crate) stages: Vec<Stage>,
    pub(crate) platform: PlatformReport,
    pub(crate) orchestrator: OrchestratorReport,
    /// Each decision of the plan with its result.
    pub(crate) connectors: Vec<Line>,
    pub(crate) counts: Counts,
    /// What came of the registration with XTM One. `None` when it is not active.
    pub(crate) xtm_one: Option<XtmOneOutcome>,
    /// Why the prune guard refused removals. `None` when it did not.
    pub(crate) prune_refused: Option<PruneRefusal>,
    /// The faults that stopped the lane or a part of it.
    pub(crate) errors: Vec<Fault>,
    /// What an operator should know although it is no fault.
    pub(crate) notices: Vec<String>,
    pub(crate) exit_code: u8,
    /// Whether a connector that was held was released, as the operator asked.
    #[serde(skip)]
    pub(crate) released: bool,
    #[serde(skip)]
    codes: Vec<u8>,
}

/// How long one stage of a lane took, in milliseconds. `prepare` is the time from the plan until the last value was
/// decrypted, which goes on during `apply`.
#[derive(Debug, Serialize)]
pub(crate) struct Stage {
    /// The name of the stage as in design.md.
    pub(crate) name: &'static str,
    pub(crate) ms: u64,
}

/// The platform of a lane. What the pass did not get to is `None`.
#[derive(Debug, Serialize)]
pub(crate) struct PlatformReport {
    pub(crate) url: String,
    pub(crate) version: Option<String>,
    pub(crate) registration: Option<RegistrationReport>,
    /// The number of connectors in its list.
    pub(crate) listed: Option<usize>,
    pub(crate) sent: Sent,
}

/// The orchestrator of a lane. What the pass did not get to is `None`.
#[derive(Debug, Serialize)]
pub(crate) struct OrchestratorReport {
    pub(crate) place: String,
    /// The product and its version.
    pub(crate) description: Option<String>,
    /// The number of workloads of this manager and platform.
    pub(crate) workloads: Option<usize>,
}

/// One decision of the plan with its result.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    #[serde(flatten)]
    pub(crate) entry: Entry,
    pub(crate) result: LineResult,
    /// Why the step failed or the connector is rejected. `None` otherwise.
    pub(crate) error: Option<String>,
    /// What to do about `error`.
    pub(crate) cure: Option<String>,
    /// How long the step took, in milliseconds. `None` when no step was tried.
    pub(crate) took_ms: Option<u64>,
    /// Restarts over the workload's life. `None` for a workload that is down.
    pub(crate) restarts: Option<u64>,
    pub(crate) reboot_loop: bool,
    /// Until when the workload is on probation at least. `None` when it is not.
    pub(crate) on_probation_until: Option<Timestamp>,
    pub(crate) troubles: Vec<TroubleReport>,
}

/// A trouble of a workload, with the text of its cure for this platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TroubleReport {
    #[serde(flatten)]
    pub(crate) trouble: Trouble,
    pub(crate) cure: String,
}

/// What a lane reports once its plan is made or carried out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanReport<'a> {
    pub(crate) plan: &'a Plan,
    /// The connectors that were rejected after the plan was made, because their values cannot be used.
    pub(crate) rejected: &'a BTreeMap<ConnectorId, Rejection>,
    /// The results of the steps. `None` when the steps are only shown.
    pub(crate) outcomes: Option<&'a Outcomes>,
    /// The judgement on the restarts of each workload that is up.
    pub(crate) assessments: &'a BTreeMap<ConnectorId, Assessment>,
    pub(crate) troubles: &'a BTreeMap<ConnectorId, Vec<Trouble>>,
    /// Until when the workloads are on probation that this pass has refreshed.
    pub(crate) probation: &'a BTreeMap<ConnectorId, Timestamp>,
}

/// The result of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LineResult {
    Done,
    /// `plan` shows the step and does not carry it out.
    Planned,
    /// The step failed, or the connector should run and cannot.
    Failed,
    /// The pass ended before the step, or an earlier step of the connector failed.
    NotDone,
    /// There is nothing to do.
    Unchanged,
    Rejected,
}

/// The numbers of steps and connectors, by result.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Steps that were done or planned, by the word for the step.
    pub(crate) steps: BTreeMap<&'static str, usize>,
    pub(crate) unchanged: usize,
    pub(crate) rejected: usize,
    pub(crate) failed: usize,
    pub(crate) not_done: usize,
    pub(crate) reboot_loops: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        for (word, count) in &other.steps {
            *self.steps.entry(word).or_default() += count;
        }
        self.unchanged += other.unchanged;
        self.rejected += other.rejected;
        self.failed += other.failed;
        self.not_done += other.not_done;
        self.reboot_loops += other.reboot_loops;
    }
}

/// Something that went wrong outside the steps, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    /// `None` when the fault concerns the whole lane.
    pub(crate) connector: Option<ConnectorId>,
    pub(crate) error: String,
    pub(crate) cure: String,
}

impl Report {
    /// Makes the report of a pass from those of its lanes, which have ended.
    #[must_use]
    pub fn new(command: &'static str, pass: &str, manager: &str, lanes: Vec<LaneReport>) -> Self {
        let mut counts = Counts::default();
        for lane in &lanes {
            counts.add(&lane.counts);
        }
        Self {
            schema_version: SCHEMA_VERSION,
            command,
            pass: pass.to_owned(),
            manager: manager.to_owned(),
            started_at: Timestamp::now(),
            took_ms: 0,
            exit_code: exit::worst(lanes.iter().map(|lane| lane.exit_code)),
            lanes,
            counts,
            notices: vec![],
        }
    }
}

impl LaneReport {
    /// Begins the report of a lane.
    #[must_use]
    pub fn new(lane: PlatformKind, url: &str, place: &str) -> Self {
        let (version, registration, listed) = (None, None, None);
        Self {
            lane,
            took_ms: 0,
            stages: vec![],
            platform: PlatformReport { url: url.to_owned(), version, registration, listed, sent: Sent::default() },
            orchestrator: OrchestratorReport { place: place.to_owned(), description: None, workloads: None },
            connectors: vec![],
            counts: Counts::default(),
            xtm_one: None,
            prune_refused: None,
            errors: vec![],
            notices: vec![],
            exit_code: exit::OK,
            released: false,
            codes: vec![],
        }
    }

    /// Adds that the platform could not be used.
    pub fn platform_failed(&mut self, error: &PlatformError) {
        self.fault(exit::PLATFORM, None, error.to_string(), error.cure());
    }

    /// Adds that the orchestrator could not be used.
    pub fn orchestrator_failed(&mut self, error: &OrchestratorError) {
        let code = match error {
            OrchestratorError::Locked { .. } => exit::LOCKED,
            // Whether it was the orchestrator that took too long is not known.
            OrchestratorError::Cut { .. } => exit::CONNECTOR_FAILED,
            _ => exit::ORCHESTRATOR,
        };
        self.fault(code, None, error.to_string(), error.cure());
    }

    /// Adds that the pass had to stop.
    pub fn stopped(&mut self, cause: Cause) {
        let cure = Cure("the next pass goes on where this one stopped");
        self.fault(cause.exit_code(), None, format!("the pass was ended early: {}", cause.as_str()), cure);
    }

    /// Adds that a workload could not be looked at after the steps.
    pub fn not_seen(&mut self, connector: &ConnectorId, error: &OrchestratorError) {
        self.fault(exit::CONNECTOR_FAILED, Some(connector.clone()), error.to_string(), error.cure());
    }

    /// Adds that something could not be published.
    pub fn publish_failed(&mut self, failure: &Failure) {
        let code = if failure.platform_gone { exit::PLATFORM } else { exit::CONNECTOR_FAILED };
        let error = format!("{} was not published: {}", failure.what, failure.error);
        self.fault(code, Some(failure.connector.clone()), error, failure.cure);
    }

    /// Adds what came of the registration with XTM One. Whatever failed there ends in exit code 1 and no other.
    pub fn xtm_one(&mut self, outcome: XtmOneOutcome) {
        if !outcome.faults.is_empty() {
            self.codes.push(exit::CONNECTOR_FAILED);
        }
        self.xtm_one = Some(outcome);
    }

    /// Adds an entry of the list that has no usable id.
    pub fn unidentified(&mut self, why: &str) {
        let error = format!("an entry of the platform's list cannot be used: {why}");
        let cure =
            Cure("look at the connectors on the platform; nothing is removed while one of them cannot be identified");
        self.fault(exit::CONNECTOR_FAILED, None, error, cure);
    }

    fn fault(&mut self, code: u8, connector: Option<ConnectorId>, error: String, cure: Cure) {
        self.codes.push(code);
        self.errors.push(Fault { connector, error, cure: cure.on(self.lane) });
    }

    /// Adds the decisions of the plan with their results.
    pub fn plan(&mut self, input: PlanReport<'_>) {
        let PlanReport { plan, rejected, outcomes, assessments, troubles, probation } = input;
        self.released = !plan.released.is_empty();
        if let Some(refusal) = &plan.refusal {
            self.codes.push(exit::GUARD);
            self.prune_refused = Some(refusal.clone());
        }
        let mut told = BTreeSet::new();
        for (place, entry) in plan.entries.iter().enumerate() {
            let outcome = outcomes.and_then(|outcomes| outcomes.get(&place));
            let late = match &entry.decision {
                Decision::Step(_) => rejected.get(&entry.connector).cloned().or_else(|| rejection(outcome)),
                _ => None,
            };
            if late.is_some() && !told.insert(&entry.connector) {
                continue;
            }
            let mut line = self.line(entry, late, outcomes.is_some(), outcome);
            if let Some(assessment) = assessments.get(&entry.connector) {
                line.restarts = Some(assessment.total);
                line.reboot_loop = assessment.looping;
            }
            line.on_probation_until = match &line.entry.decision {
                Decision::Skip(Skip::OnProbation { until }) => Some(*until),
                Decision::Step(Step::Refresh { .. }) if line.result == LineResult::Done => {
                    probation.get(&entry.connector).copied()
                }
                _ => None,
            };
            if let Some(troubles) = troubles.get(&entry.connector) {
                line.take_troubles(troubles, self.lane);
            }
            self.count(&line);
            self.connectors.push(line);
        }
        let loops = assessments.values().filter(|assessment| assessment.looping);
        self.counts.reboot_loops = loops.count();
    }

    fn count(&mut self, line: &Line) {
        match line.result {
            LineResult::Done | LineResult::Planned => {
                if let Decision::Step(step) = &line.entry.decision {
                    *self.counts.steps.entry(step.word()).or_default() += 1;
                }
            }
            LineResult::Failed => self.counts.failed += 1,
            LineResult::NotDone => self.counts.not_done += 1,
            LineResult::Unchanged => self.counts.unchanged += 1,
            LineResult::Rejected => self.counts.rejected += 1,
        }
        if matches!(line.result, LineResult::Failed | LineResult::NotDone | LineResult::Rejected) {
            self.codes.push(exit::CONNECTOR_FAILED);
        }
    }

    /// Ends the report and computes its exit code. `pending` is the code to use when the plan has steps.
    pub fn finish(&mut self, took_ms: u64, pending: Option<u8>) {
        self.took_ms = took_ms;
        let has_changes = self.xtm_one.as_ref().is_some_and(XtmOneOutcome::has_changes);
        if let Some(code) = pending.filter(|_| !self.counts.steps.is_empty() || has_changes) {
            self.codes.push(code);
        }
        self.exit_code = exit::worst(self.codes.iter().copied());
    }

    /// Makes the line of one decision. `carried_out` says whether the plan was carried out and not only shown; a step
    /// without an outcome was then not begun.
    fn line(&self, entry: &Entry, late: Option<Rejection>, carried_out: bool, outcome: Option<&Outcome>) -> Line {
        let mut line = Line {
            entry: entry.clone(),
            result: LineResult::Unchanged,
            error: None,
            cure: None,
            took_ms: None,
            restarts: None,
            reboot_loop: false,
            on_probation_until: None,
            troubles: vec![],
        };
        if let Some(rejection) = late {
            line.entry.decision = Decision::Reject(rejection);
        }
        match &line.entry.decision {
            Decision::Skip(_) => {}
            Decision::Reject(rejection) => {
                line.result = LineResult::Rejected;
                line.error = Some(rejection.to_string());
            }
            Decision::Step(_) => match outcome {
                None if carried_out => line.result = LineResult::NotDone,
                None => line.result = LineResult::Planned,
                Some(outcome) => {
                    line.took_ms = u64::try_from(outcome.took.as_millis()).ok();
                    line.result = match &outcome.result {
                        Ok(_) => LineResult::Done,
                        Err(StepError::Stopped(_)) => LineResult::NotDone,
                        Err(_) => LineResult::Failed,
                    };
                    if let Err(error) = &outcome.result {
                        line.error = Some(error.to_string());
                        line.cure = Some(error.cure().on(self.lane));
                    }
                }
            },
        }
        line
    }
}

/// The rejection of a connector whose name somebody else took after this pass looked. The next pass rejects it in the
/// same way.
fn rejection(outcome: Option<&Outcome>) -> Option<Rejection> {
    match &outcome?.result {
        Err(StepError::NameTaken { name, owner }) => {
            Some(Rejection::NameTaken { name: name.clone(), owner: owner.clone() })
        }
        _ => None,
    }
}

impl Line {
    /// Adds the troubles of the workload. A connector that should run and cannot counts as failed, unless a step was
    /// done for it just now, which may still come to run.
    fn take_troubles(&mut self, troubles: &[Trouble], lane: PlatformKind) {
        if matches!(self.entry.decision, Decision::Step(Step::Remove { .. })) {
            return;
        }
        let report = |trouble: &Trouble| TroubleReport { trouble: trouble.clone(), cure: trouble.cure.on(lane) };
        self.troubles = troubles.iter().map(report).collect();
        if self.result == LineResult::Unchanged && troubles.iter().any(|trouble| trouble.kind.blocks()) {
            self.result = LineResult::Failed;
        }
    }
}
