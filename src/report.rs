//! The report: what a pass found, did and failed to do. Building and rendering are pure.

mod table;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use crate::apply::{Outcome, Outcomes};
use crate::desired::Rejection;
use crate::exit;
use crate::model::{ConnectorId, PlatformKind, Trouble};
use crate::orchestrator::OrchestratorError;
use crate::plan::{Decision, Entry, Plan, PruneRefusal, Step};
use crate::platform::PlatformError;
use crate::publish::{Failure, Sent};
use crate::restart_window::Assessment;
use crate::stop::Cause;

pub use table::table;
pub(crate) use table::{on_one_line, printable};

/// Version of the JSON report's form; grows when a field changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything about one pass.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// `run` or `plan`.
    pub command: &'static str,
    /// This pass's id; the same as in the log.
    pub pass: String,
    /// `MANAGER__ID`.
    pub manager: String,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How long each stage took.
    pub stages: Vec<Stage>,
    /// The platforms that were served.
    pub platforms: Vec<PlatformReport>,
    /// Where connectors run.
    pub orchestrator: OrchestratorReport,
    /// Every decision and what became of it.
    pub connectors: Vec<Line>,
    /// How many of each.
    pub counts: Counts,
    /// Why removals were refused, if they were.
    pub prune_refused: Option<PruneRefusal>,
    /// What stopped the pass or a part of it.
    pub errors: Vec<Fault>,
    /// What an operator should know.
    pub notices: Vec<String>,
    /// See the README.
    pub exit_code: u8,
    #[serde(skip)]
    codes: Vec<u8>,
}

/// One stage's time.
#[derive(Debug, Serialize)]
pub struct Stage {
    /// Its name, as design.md has it.
    pub name: &'static str,
    /// Milliseconds.
    pub ms: u64,
}

/// One platform.
#[derive(Debug, Serialize)]
pub struct PlatformReport {
    /// Which product.
    pub kind: PlatformKind,
    /// Where.
    pub url: String,
    /// Its version, once known.
    pub version: Option<String>,
    /// What the registration check led to, in words.
    pub registration: Option<String>,
    /// Connectors in its list, once pulled.
    pub listed: Option<usize>,
    /// What was sent to it.
    pub sent: Sent,
}

/// Where connectors run.
#[derive(Debug, Serialize)]
pub struct OrchestratorReport {
    /// Where.
    pub place: String,
    /// What, with its version, once reached.
    pub description: Option<String>,
    /// Workloads of this manager, once observed.
    pub workloads: Option<usize>,
}

/// One decision and what became of it.
#[derive(Debug, Serialize)]
pub struct Line {
    /// The decision.
    #[serde(flatten)]
    pub entry: Entry,
    /// What became of it.
    pub result: LineResult,
    /// Why it failed or was rejected.
    pub error: Option<String>,
    /// What to do about it.
    pub cure: Option<String>,
    /// Milliseconds that a step took.
    pub took_ms: Option<u64>,
    /// Restarts over the workload's life, for what is up.
    pub restarts: Option<u64>,
    /// Whether it is in a reboot loop.
    pub reboot_loop: bool,
    /// What is wrong with its workload.
    pub troubles: Vec<Trouble>,
}

/// What a pass learned after its plan was made.
#[derive(Debug, Clone, Copy)]
pub struct Learned<'a> {
    /// Connectors whose values cannot be used.
    pub rejected: &'a BTreeMap<ConnectorId, Rejection>,
    /// What became of the steps. `None`: nothing was to be done.
    pub outcomes: Option<&'a Outcomes>,
    /// The judgement on each workload that is up.
    pub assessments: &'a BTreeMap<ConnectorId, Assessment>,
    /// What is wrong with the workloads.
    pub troubles: &'a BTreeMap<ConnectorId, Vec<Trouble>>,
}

/// What became of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LineResult {
    /// A step was done.
    Done,
    /// A step would be done.
    Planned,
    /// A step failed.
    Failed,
    /// A step was not begun.
    NotDone,
    /// Nothing to do.
    Unchanged,
    /// The connector cannot be used.
    Rejected,
}

/// How many of each.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Steps by word.
    pub steps: BTreeMap<&'static str, usize>,
    /// Connectors as they should be.
    pub unchanged: usize,
    /// Rejected connectors.
    pub rejected: usize,
    /// Failed steps.
    pub failed: usize,
    /// Steps that were not begun.
    pub not_done: usize,
    /// Reboot loops.
    pub reboot_loops: usize,
}

/// Something that went wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The connector, where it is one's.
    pub connector: Option<ConnectorId>,
    /// What went wrong, and where.
    pub error: String,
    /// What to do.
    pub cure: String,
}

impl Report {
    /// An empty report of a pass that begins.
    #[must_use]
    pub fn new(command: &'static str, pass: &str, manager: &str, platform: PlatformReport, place: &str) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            command,
            pass: pass.to_owned(),
            manager: manager.to_owned(),
            started_at: Timestamp::now(),
            took_ms: 0,
            stages: vec![],
            platforms: vec![platform],
            orchestrator: OrchestratorReport { place: place.to_owned(), description: None, workloads: None },
            connectors: vec![],
            counts: Counts::default(),
            prune_refused: None,
            errors: vec![],
            notices: vec![],
            exit_code: exit::OK,
            codes: vec![],
        }
    }

    /// The platform of this pass.
    pub fn platform(&mut self, change: impl FnOnce(&mut PlatformReport)) {
        if let Some(platform) = self.platforms.first_mut() {
            change(platform);
        }
    }

    /// A platform could not be used.
    pub fn platform_failed(&mut self, error: &PlatformError) {
        let kind = self.platforms.first().map_or(PlatformKind::OpenCti, |platform| platform.kind);
        self.fault(exit::PLATFORM, None, error.to_string(), &error.cure().on(kind));
    }

    /// An orchestrator could not be used.
    pub fn orchestrator_failed(&mut self, error: &OrchestratorError) {
        let code = match error {
            OrchestratorError::Locked { .. } => exit::LOCKED,
            _ => exit::ORCHESTRATOR,
        };
        self.fault(code, None, error.to_string(), error.cure());
    }

    /// The pass was told to stop.
    pub fn stopped(&mut self, cause: Cause) {
        let cure = "the next pass goes on where this one stopped";
        self.fault(cause.exit_code(), None, format!("the pass was ended early: {}", cause.as_str()), cure);
    }

    /// Something of a connector could not be published or looked at.
    pub fn connector_fault(&mut self, connector: &ConnectorId, error: String, cure: &str) {
        self.fault(exit::CONNECTOR_FAILED, Some(connector.clone()), error, cure);
    }

    /// Something could not be published.
    pub fn publish_failed(&mut self, failure: &Failure) {
        let code = if failure.platform_gone { exit::PLATFORM } else { exit::CONNECTOR_FAILED };
        let error = format!("{} was not published: {}", failure.what, failure.error);
        self.fault(code, Some(failure.connector.clone()), error, &failure.cure);
    }

    /// Entries of the list that could not even be identified.
    pub fn unidentified(&mut self, why: &str) {
        let error = format!("an entry of the platform's list cannot be used: {why}");
        let cure = "look at the connectors on the platform; nothing is removed while one of them cannot be identified";
        self.fault(exit::CONNECTOR_FAILED, None, error, cure);
    }

    fn fault(&mut self, code: u8, connector: Option<ConnectorId>, error: String, cure: &str) {
        self.codes.push(code);
        self.errors.push(Fault { connector, error, cure: cure.to_owned() });
    }

    /// Takes over the plan: what was decided, and what became of it.
    pub fn plan(&mut self, plan: &Plan, learned: Learned<'_>) {
        let Learned { rejected, outcomes, assessments, troubles } = learned;
        if let Some(refusal) = &plan.refusal {
            self.codes.push(exit::GUARD);
            self.prune_refused = Some(refusal.clone());
        }
        let mut told = BTreeSet::new();
        for (place, entry) in plan.entries.iter().enumerate() {
            let late = match &entry.decision {
                Decision::Step(_) => rejected.get(&entry.connector),
                _ => None,
            };
            if late.is_some() && !told.insert(&entry.connector) {
                continue;
            }
            let outcome = outcomes.and_then(|outcomes| outcomes.get(&place));
            let mut line = line(entry, late, outcomes.is_some(), outcome);
            if let Some(assessment) = assessments.get(&entry.connector) {
                line.restarts = Some(assessment.total);
                line.reboot_loop = assessment.looping;
            }
            if let Some(troubles) = troubles.get(&entry.connector) {
                line.take_troubles(troubles);
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

    /// Ends the report. `pending`: the code for a plan with steps.
    pub fn finish(&mut self, took_ms: u64, pending: Option<u8>) {
        self.took_ms = took_ms;
        if let Some(code) = pending.filter(|_| !self.counts.steps.is_empty()) {
            self.codes.push(code);
        }
        self.exit_code = exit::worst(self.codes.iter().copied());
    }
}

impl Line {
    /// A connector that should run and cannot is a failed one. What a step did just now may yet come to run.
    fn take_troubles(&mut self, troubles: &[Trouble]) {
        if matches!(self.entry.decision, Decision::Step(Step::Remove { .. })) {
            return;
        }
        self.troubles = troubles.to_vec();
        if self.result == LineResult::Unchanged && troubles.iter().any(|trouble| trouble.kind.blocks()) {
            self.result = LineResult::Failed;
        }
    }
}

/// `carried_out`: whether the plan was more than looked at. A step without an outcome was then left out.
fn line(entry: &Entry, late: Option<&Rejection>, carried_out: bool, outcome: Option<&Outcome>) -> Line {
    let mut line = Line {
        entry: entry.clone(),
        result: LineResult::Unchanged,
        error: None,
        cure: None,
        took_ms: None,
        restarts: None,
        reboot_loop: false,
        troubles: vec![],
    };
    if let Some(rejection) = late {
        line.entry.decision = Decision::Reject(rejection.clone());
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
                    Err(crate::orchestrator::StepError::Stopped(_)) => LineResult::NotDone,
                    Err(_) => LineResult::Failed,
                };
                if let Err(error) = &outcome.result {
                    line.error = Some(error.to_string());
                    line.cure = Some(error.cure().to_owned());
                }
            }
        },
    }
    line
}
