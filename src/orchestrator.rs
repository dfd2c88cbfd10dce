//! What every orchestrator offers (lock, observation, steps, logs, memory) and how it fails.
//!
//! What only one orchestrator knows (its messages, its cures, its variables) is in the folder of that orchestrator.

pub(crate) mod bounded;
pub mod docker;
pub mod kubernetes;
mod versioned;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;

use crate::access::Permit;
use crate::desired::Desired;
use crate::holder::Holder;
use crate::log_cursor::{LogCursor, LogPart};
use crate::memory::{ConnectorMemory, Memory};
use crate::model::{ConnectorId, Cure, Handle, ManagerId, Observed, Phase, PlatformKind, Trouble, Vitals, Workload};
use crate::plan::Step;
use crate::probation::Failure;
use crate::render::Spec;
use crate::secret::Secret;
use crate::stop::Stop;

/// Longest wait for one log: an engine may begin a stream and never end it.
pub(crate) const LOG_TIMEOUT: Duration = Duration::from_secs(30);

/// The orchestrator on which the connectors of a lane run, and how to reach it.
#[derive(Debug)]
pub enum OrchestratorSettings {
    /// The connectors run as containers of one Docker engine.
    Docker(Box<docker::DockerSettings>),
    /// The connectors run as Deployments in one namespace of a cluster.
    Kubernetes(Box<kubernetes::KubernetesSettings>),
}

impl OrchestratorSettings {
    /// The address of the orchestrator for messages, as far as the configuration names it. Nothing is connected for it.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Docker(docker) => docker.endpoint.to_string(),
            Self::Kubernetes(kubernetes) => kubernetes.to_string(),
        }
    }
}

/// The manager and the platform for which a connection works. It touches only the lock, the record and the workloads of
/// these two. Everything else on the same engine or in the same namespace is foreign to it, including what the same
/// manager runs for the other platform.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) manager: ManagerId,
    pub(crate) platform: PlatformKind,
}

/// A connection to one orchestrator, for one manager and one platform.
///
/// Everything that writes takes a [`Permit`], so that `plan` and `check` cannot write by mistake.
pub(crate) trait Orchestrator: Send + Sync + 'static {
    /// Proof that the lock is held. [`Orchestrator::unlock`] releases it.
    type Lock: Send;

    /// The address of the orchestrator, for messages.
    fn place(&self) -> String;

    /// The product and its version, for the report.
    fn description(&self) -> &str;

    /// Takes the lock of this manager and platform for `ttl`. Takes it over from a pass whose lock has expired.
    fn lock(
        &self,
        permit: Permit,
        holder: &Holder,
        ttl: Duration,
    ) -> impl Future<Output = Result<Self::Lock, OrchestratorError>> + Send;

    /// Releases the lock, so that the next pass need not wait until it expires. What it writes for that also keeps
    /// [`Memory::last_pass`] of the memory that was remembered last, so that [`Orchestrator::recall`] finds it. An
    /// orchestrator that keeps no such time recalls none, and then reboot loops are judged from what was stored alone.
    fn unlock(&self, permit: Permit, lock: Self::Lock) -> impl Future<Output = Result<(), OrchestratorError>> + Send;

    /// Reads what the last pass stored for the manager. Parts that cannot be read are empty and named in the notices.
    /// What the last pass stored on the workloads themselves comes with [`Orchestrator::observe`].
    fn recall(&self) -> impl Future<Output = Result<Recalled, OrchestratorError>> + Send;

    /// Lists all workloads, and looks closely at those that `desired` and `memory` make interesting. A failure of the
    /// listing is an error and never an empty list, for an empty list would lead to deployments of what runs already.
    ///
    /// `on_look` gets each workload that is the only one of its connector after the closer look at it, while the others
    /// are still looked at. Where one list says everything, nothing is gained by that, and it is not called.
    fn observe(
        &self,
        desired: &Desired,
        memory: &Memory,
        on_look: &OnLook<'_>,
    ) -> impl Future<Output = Result<Observation, OrchestratorError>> + Send;

    /// Carries out one step, and returns the workload after it (`None` when there is none). When the pass has to
    /// stop meanwhile, the step ends early and fails, but only at a point where nothing is lost by that.
    fn execute(
        &self,
        permit: Permit,
        step: &Step,
        context: StepContext<'_>,
    ) -> impl Future<Output = Result<Option<Handle>, StepError>> + Send;

    /// Reads the current state of one workload. `None` means that the workload is gone.
    fn look(&self, handle: &Handle) -> impl Future<Output = Result<Option<Look>, OrchestratorError>> + Send;

    /// Reads a part of a workload's log and masks the secrets in it.
    fn logs(
        &self,
        handle: &Handle,
        request: &LogRequest<'_>,
    ) -> impl Future<Output = Result<LogRead, OrchestratorError>> + Send;

    /// Repairs what belongs to no single connector, such as a pull secret, where the observation shows that it is
    /// needed.
    fn mend(
        &self,
        permit: Permit,
        observation: &Observation,
    ) -> impl Future<Output = Result<(), OrchestratorError>> + Send;

    /// Replaces the stored memory `before` by `memory`, and writes only what differs. `None` means that what is stored
    /// cannot be relied on, so that everything is written. The pass may be killed at any point of it.
    fn remember(
        &self,
        permit: Permit,
        before: Option<&Memory>,
        memory: &Memory,
    ) -> impl Future<Output = Result<(), OrchestratorError>> + Send;

    /// Keeps a value under `key` in a Secret of this name, which it makes when there is none. Other keys of the Secret
    /// stay. Fails where the orchestrator has no Secrets.
    fn write_secret(
        &self,
        permit: Permit,
        name: &str,
        key: &str,
        value: &Secret,
    ) -> impl Future<Output = Result<(), OrchestratorError>> + Send;

    /// Lists each permission that a pass needs, and whether it is granted, for `check`. Empty where the orchestrator
    /// has no permissions to ask for.
    fn permissions(&self) -> impl Future<Output = Result<Vec<Permission>, OrchestratorError>> + Send;
}

/// What an orchestrator needs to carry out a step, beside the step itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepContext<'a> {
    /// `None` for the steps that make no workload.
    pub(crate) spec: Option<&'a Spec>,
    pub(crate) stop: &'a Stop,
    /// The log to read of the workload that the step removes, before it is gone. `None` when nobody wants it.
    pub(crate) last_log: Option<&'a LastLog<'a>>,
    /// Where a roll-back puts the exit code of the last run that ended by itself: while the failed workload runs again,
    /// an observation does not show it.
    pub(crate) exit_code: &'a OnceLock<i64>,
}

/// The last log of a workload that a step removes. It is kept even when the rest of the step fails.
#[derive(Debug)]
pub(crate) struct LastLog<'a> {
    request: LogRequest<'a>,
    read: OnceLock<Result<LogRead, OrchestratorError>>,
}

impl<'a> LastLog<'a> {
    /// A log that has not been read yet.
    #[must_use]
    pub(crate) fn new(request: LogRequest<'a>) -> Self {
        Self { request, read: OnceLock::new() }
    }

    /// Reads the log. Gives up when it does not come in time, because the step must not wait for it.
    pub(crate) async fn read<O: Orchestrator>(&self, orchestrator: &O, handle: &Handle) {
        let reading = tokio::time::timeout(LOG_TIMEOUT, orchestrator.logs(handle, &self.request));
        let read = reading.await.unwrap_or_else(|_| {
            Err(OrchestratorError::Refused {
                what: format!("reading the last log of {handle}"),
                place: orchestrator.place(),
                why: format!("it did not come within {} s", LOG_TIMEOUT.as_secs()),
                cure: Cure("see what keeps the engine, or the node, from giving it; its last lines are lost"),
            })
        });
        // A step reads its log only once, so the cell is still empty.
        drop(self.read.set(read));
    }

    /// What was read. `None` when the step did not get that far.
    #[must_use]
    pub(crate) fn into_read(self) -> Option<Result<LogRead, OrchestratorError>> {
        self.read.into_inner()
    }
}

/// The part of a log that is wanted, and the secrets to mask in it.
#[derive(Debug, Clone)]
pub(crate) struct LogRequest<'a> {
    pub(crate) part: LogPart<'a>,
    pub(crate) secrets: &'a [Secret],
}

/// A part of a log as the platform may show it: printable, bounded and without secrets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LogRead {
    pub(crate) lines: Vec<String>,
    /// Where the next delivery begins. `None` when the request did not ask for that, or when the log is still empty.
    pub(crate) cursor: Option<LogCursor>,
}

/// One thing that a pass has to be allowed to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permission {
    /// What is to be allowed, as the table of `check` shows it.
    pub(crate) what: String,
    pub(crate) granted: bool,
}

/// The memory that [`Orchestrator::recall`] reads.
#[derive(Debug, Default)]
pub(crate) struct Recalled {
    pub(crate) memory: Memory,
    /// One sentence for each part that cannot be read and therefore counts as empty.
    pub(crate) notices: Vec<String>,
    /// Whether the memory has to be written again even if it does not change, because a part of it cannot be read,
    /// because there are several records, or because an earlier version wrote it under another name.
    pub(crate) stale: bool,
    /// The error to end with while a pass of an earlier version is at work, whose lock has another name. `plan` and
    /// `check` ignore it, because they change nothing.
    pub(crate) locked: Option<OrchestratorError>,
}

/// Takes a workload and its environment as soon as they are known.
pub(crate) type OnLook<'a> = dyn Fn(&Workload, &[(String, Secret)]) + Send + Sync + 'a;

/// Everything that [`Orchestrator::observe`] finds.
#[derive(Debug, Default)]
pub(crate) struct Observation {
    /// The workloads, as the planner needs them.
    pub(crate) observed: Observed,
    /// What an earlier pass stored on the workloads themselves. Empty where the orchestrator stores it elsewhere.
    pub(crate) remembered: BTreeMap<ConnectorId, ConnectorMemory>,
    /// One sentence for each part of `remembered` that cannot be read, and one when everything is lost.
    pub(crate) notices: Vec<String>,
    /// Hashes of workloads that carry no hash label, by engine id. The pass remembers them, so that it reads them only
    /// once.
    pub(crate) adopted: BTreeMap<String, crate::model::ConfigHash>,
    /// Environments of the workloads that got a closer look. They hold the secrets to mask in the logs.
    pub(crate) environments: BTreeMap<Handle, Vec<(String, Secret)>>,
}

/// The current state of one workload, as only a closer look at it shows it.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) phase: Phase,
    pub(crate) created: Timestamp,
    pub(crate) vitals: Vitals,
    pub(crate) environment: Vec<(String, Secret)>,
    pub(crate) troubles: Vec<Trouble>,
}

/// Why an orchestrator cannot be used. `place` is its address, `why` are its own words (or those of the client
/// library), and `cure` is what the operator can do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrchestratorError {
    #[error("{place} cannot be reached: {why}")]
    Unreachable { place: String, why: String, cure: Cure },
    #[error("{place} accepts none of the API versions that this program speaks: {why}")]
    Version { place: String, why: String, cure: Cure },
    /// Another pass holds the lock.
    #[error(
        "another pass holds the lock of this manager and platform on {place}: {holder}, since {since}, at most until {until}"
    )]
    Locked { place: String, holder: String, since: String, until: String, cure: Cure },
    /// The pass had to end before an answer came. `what` says what was going on.
    #[error("{what} on {place} did not end before the pass had to")]
    Cut { what: String, place: String, cure: Cure },
    /// The orchestrator answers a request, and the answer is no. `what` says what the request was for.
    #[error("{what} on {place}: {why}")]
    Refused { what: String, place: String, why: String, cure: Cure },
}

impl OrchestratorError {
    #[must_use]
    pub(crate) fn cure(&self) -> Cure {
        match self {
            Self::Unreachable { cure, .. }
            | Self::Version { cure, .. }
            | Self::Locked { cure, .. }
            | Self::Cut { cure, .. }
            | Self::Refused { cure, .. } => *cure,
        }
    }
}

/// Why a step failed. `why` are the words of the orchestrator or the registry, and `cure` is what the operator can do
/// about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error("the image {image} cannot be pulled: {why}")]
    Pull { image: String, why: String, cure: Cure },
    #[error("the image {image} is not on the engine, and the pull policy is Never")]
    NoImage { image: String, cure: Cure },
    #[error(transparent)]
    Request(#[from] OrchestratorError),
    /// Somebody else took the name after the pass looked. The report shows it as a rejection, as the next plan will.
    #[error("the name {name} is taken by {owner}")]
    NameTaken { name: String, owner: String },
    /// The old workload does not end. The step fails because two instances of a connector must never run at once.
    #[error("{what} after {waited_s} s")]
    StillRunning { what: String, waited_s: u64 },
    /// The orchestrator refuses a part of the step, which `what` names.
    #[error("{what}: {why}")]
    Refused { what: String, why: String, cure: Cure },
    /// The workload was created and cannot be started. `what` is the orchestrator's word for a workload.
    #[error("{what} cannot be started: {why}")]
    WontStart { what: &'static str, why: String, cure: Cure },
    /// A refresh failed, and the old workload is as it was before.
    #[error("{cause}; the old one was kept")]
    RolledBack { cause: Box<StepError> },
    /// The new workload started and did not stay up, so that the former one runs again. `log` are its last lines.
    #[error("rolled back: {failure}{}; the former one runs again", last_lines(.log))]
    Unstable { failure: Failure, log: Vec<String> },
    /// The new workload started and did not stay up, and the attempt to go back failed.
    #[error("it did not stay up: {failure}; going back failed as well: {rollback}; the next pass repairs it")]
    NotRolledBack { failure: Failure, rollback: Box<StepError> },
    /// A refresh failed, and so did the attempt to bring the old workload back.
    #[error("{cause}; going back failed as well: {rollback}; the next pass repairs it")]
    RollbackFailed { cause: Box<StepError>, rollback: Box<StepError> },
    /// The pass had to stop before the step changed anything.
    #[error("not done: {0}")]
    Stopped(&'static str),
    /// A fault of this program: the step needs a spec and has none, or its task was lost.
    #[error("internal fault: {0}")]
    Internal(String),
}

impl StepError {
    /// Whether the old workload was interrupted for a new one that then did not start or did not stay up, whatever
    /// became of the attempt to go back.
    #[must_use]
    pub(crate) fn is_refused_start(&self) -> bool {
        match self {
            Self::RolledBack { cause } | Self::RollbackFailed { cause, .. } => cause.is_refused_start(),
            Self::WontStart { .. } | Self::Unstable { .. } | Self::NotRolledBack { .. } => true,
            _ => false,
        }
    }

    /// How the new workload failed after it was started. `None` when it did not get that far.
    #[must_use]
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Self::Unstable { failure, .. } | Self::NotRolledBack { failure, .. } => Some(*failure),
            _ => None,
        }
    }

    #[must_use]
    pub(crate) fn cure(&self) -> Cure {
        match self {
            Self::Pull { cure, .. }
            | Self::NoImage { cure, .. }
            | Self::Refused { cure, .. }
            | Self::WontStart { cure, .. } => *cure,
            Self::RolledBack { cause } => cause.cure(),
            Self::RollbackFailed { rollback, .. } | Self::NotRolledBack { rollback, .. } => rollback.cure(),
            Self::Request(error) => error.cure(),
            Self::Unstable { .. } => {
                Cure("look at its log and mend its configuration on the platform, which is then tried at once")
            }
            Self::NameTaken { .. } => Cure("give the connector another name on the platform, or take that one away"),
            Self::StillRunning { .. } => Cure("the next pass goes on once it has ended; look at what keeps it"),
            Self::Stopped(_) => Cure("the next pass goes on"),
            Self::Internal(_) => Cure("report it, with the log"),
        }
    }
}

/// The last lines of a log, to be put into a message of one line.
fn last_lines(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!(", last log lines: {}", log.join(" | ")) }
}
