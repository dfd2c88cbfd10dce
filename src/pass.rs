//! Makes one pass: runs a lane for each platform, side by side, and makes one report of them.
//!
//! Lanes share only what is in `Pass`, so that whatever happens in one lane changes nothing in the other.

pub mod lane;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::Instrument;

use crate::access::Access;
use crate::exit;
use crate::manager::Manager;
use crate::prepare::Decryptors;
use crate::progress::Progress;
use crate::report::Report;
use crate::stop::Stop;
use lane::LaneSettings;

/// The bounds of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// After this time, nothing new starts.
    pub deadline: Duration,
    /// Within this time after the deadline or a signal, everything that still runs has to end.
    pub(crate) stop_budget: Duration,
    /// How long to wait after refreshes before looking whether the new workloads still run.
    pub(crate) settle: Duration,
    /// How many connectors are worked on at the same time, in all lanes together.
    pub(crate) concurrency: usize,
    /// How many log lines are sent for each connector; 0 sends none.
    pub(crate) logs_tail: u32,
}

/// What a pass does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Registers, reconciles and publishes. Takes the locks, and writes to both sides.
    Run,
    /// Does what `Run` does up to the plan, without the lock and without a write anywhere.
    Plan {
        /// Whether the exit code is 2 when the plan has steps.
        detailed_exitcode: bool,
    },
    /// Does what `Run` does, and starts a connector that is held. `connector` is its id or one of its names.
    Release { connector: String },
    /// Does one thing about XTM One, and nothing about connectors.
    XtmOne(XtmOneCommand),
}

/// What an operator does about XTM One by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum XtmOneCommand {
    /// Replaces the tokens of all users who have one, or of the user with this address.
    Rotate { user: Option<String>, dry_run: bool },
    /// Looks at the tokens and at what is remembered.
    Status,
    /// Takes back all tokens.
    Revoke { dry_run: bool },
}

impl XtmOneCommand {
    /// Whether the command is about the keys of users, which one product alone has.
    pub(crate) fn is_about_keys(&self) -> bool {
        !matches!(self, Self::Status)
    }
}

impl Command {
    /// The name of the command in reports and logs.
    #[must_use]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Plan { .. } => "plan",
            Self::Release { .. } => "release",
            Self::XtmOne(XtmOneCommand::Rotate { .. }) => "xtm-one rotate",
            Self::XtmOne(XtmOneCommand::Status) => "xtm-one status",
            Self::XtmOne(XtmOneCommand::Revoke { .. }) => "xtm-one revoke",
        }
    }

    fn access(&self) -> Access {
        match self {
            Self::Run
            | Self::Release { .. }
            | Self::XtmOne(XtmOneCommand::Rotate { dry_run: false, .. } | XtmOneCommand::Revoke { dry_run: false }) => {
                Access::ReadWrite
            }
            Self::Plan { .. } | Self::XtmOne(_) => Access::ReadOnly,
        }
    }
}

/// What the lanes of a pass share.
pub(crate) struct Pass {
    /// Identifies this pass in its log, its locks and its report.
    id: String,
    command: Command,
    manager: Arc<Manager>,
    limits: Limits,
    /// How many connectors each lane works on at the same time. Each lane has its own share of the bound, so that a
    /// lane that waits for a slow engine does not take the places of the other.
    concurrency: usize,
    stop: Stop,
    progress: Arc<Progress>,
    decryptors: Decryptors,
}

/// Makes one pass and returns its report.
pub(crate) async fn pass(
    manager: Manager,
    limits: Limits,
    lanes: Vec<LaneSettings>,
    command: Command,
    stop: &Stop,
    progress: Arc<Progress>,
) -> Report {
    let (begun, started_at) = (Instant::now(), Timestamp::now());
    let pass = Pass {
        id: format!("{:08x}", fastrand::u32(..)),
        command: command.clone(),
        manager: Arc::new(manager),
        limits,
        concurrency: (limits.concurrency / lanes.len().max(1)).max(1),
        stop: stop.clone(),
        progress,
        decryptors: Decryptors::new(command.access()),
    };
    tracing::info!(pass = pass.id, command = command.name(), "begins");
    let running = lanes.into_iter().map(|settings| {
        let span = tracing::info_span!("lane", platform = settings.platform.kind.label());
        Box::pin(lane::run(&pass, settings)).instrument(span)
    });
    let lanes = futures_util::future::join_all(running).await;
    let released = lanes.iter().any(|lane| lane.released);
    let mut report = Report::new(command.name(), &pass.id, pass.manager.id.as_str(), lanes);
    if let (Command::Release { connector }, false) = (&command, released) {
        report.exit_code = exit::worst([report.exit_code, exit::CONNECTOR_FAILED]);
        report.notices.push(format!(
            "no connector that is held was found under {connector:?}; give its id, its name on the platform, or the name of its workload"
        ));
    }
    (report.started_at, report.took_ms) = (started_at, millis(begun.elapsed()));
    tracing::info!(pass = pass.id, exit_code = report.exit_code, ms = report.took_ms, "ends");
    report
}

impl Pass {
    /// The exit code for a plan with steps. `None` when steps do not change the exit code.
    fn pending_code(&self) -> Option<u8> {
        match self.command {
            Command::Plan { detailed_exitcode: true } => Some(exit::CHANGES_PENDING),
            _ => None,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
