//! Where connectors run: lock, observe, carry out steps, logs, memory. What every orchestrator offers, and how it fails.
//!
//! What only one of them knows (its words, its cures, its variables) stands in its own folder.

pub mod docker;
pub mod kubernetes;
mod versioned;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;

use crate::access::Permit;
use crate::desired::Desired;
use crate::holder::Holder;
use crate::log_cursor::{LogCursor, LogPart};
use crate::memory::{ConnectorMemory, Memory};
use crate::model::{ConnectorId, Cure, Handle, ManagerId, Observed, Phase, PlatformKind, Trouble, Vitals};
use crate::plan::Step;
use crate::render::Spec;
use crate::secret::Secret;
use crate::stop::Stop;

/// Where connectors run.
#[derive(Debug)]
pub enum OrchestratorSettings {
    /// One Docker engine.
    Docker(Box<docker::DockerSettings>),
    /// One namespace of a cluster.
    Kubernetes(Box<kubernetes::KubernetesSettings>),
}

impl OrchestratorSettings {
    /// Where it is, as far as the configuration tells.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Docker(docker) => docker.endpoint.to_string(),
            Self::Kubernetes(kubernetes) => kubernetes.to_string(),
        }
    }
}

/// Whose lock, record and workloads a connection is about. Everything else on the same engine or in the same namespace is foreign
/// to it, also what the same manager runs for the other platform.
#[derive(Debug, Clone)]
pub struct Owner {
    /// `MANAGER__ID`.
    pub manager: ManagerId,
    /// The platform of the lane.
    pub platform: PlatformKind,
}

/// Where connectors run.
pub trait Orchestrator: Send + Sync + 'static {
    /// The lock, held; given back with [`Orchestrator::unlock`].
    type Lock: Send;

    /// Where it is, for messages.
    fn place(&self) -> String;

    /// What it is, and its version.
    fn description(&self) -> &str;

    /// Takes the lock of this manager for `ttl`; an expired one is taken over.
    fn lock(
        &self,
        permit: Permit,
        holder: &Holder,
        ttl: Duration,
    ) -> impl Future<Output = Result<Self::Lock, OrchestratorError>> + Send;

    /// Gives the lock back.
    fn unlock(&self, permit: Permit, lock: Self::Lock) -> impl Future<Output = Result<(), OrchestratorError>> + Send;

    /// What the last pass left with the manager. Parts that cannot be read are empty and named in the notices. What it left
    /// with the workloads comes with [`Orchestrator::observe`].
    fn recall(&self) -> impl Future<Output = Result<Recalled, OrchestratorError>> + Send;

    /// Everything there is. Any failure of the listing is an error, never "nothing there".
    fn observe(
        &self,
        desired: &Desired,
        memory: &Memory,
    ) -> impl Future<Output = Result<Observation, OrchestratorError>> + Send;

    /// Carries out one step. When the pass has to stop within it, it ends early where nothing is lost by that, and fails.
    fn execute(
        &self,
        permit: Permit,
        step: &Step,
        context: StepContext<'_>,
    ) -> impl Future<Output = Result<Executed, StepError>> + Send;

    /// A closer look at one workload; `None` when it is gone.
    fn look(&self, handle: &Handle) -> impl Future<Output = Result<Option<Look>, OrchestratorError>> + Send;

    /// A part of a workload's log, with the secrets masked.
    fn logs(
        &self,
        handle: &Handle,
        request: &LogRequest<'_>,
    ) -> impl Future<Output = Result<LogRead, OrchestratorError>> + Send;

    /// Puts right what belongs to no single connector, where the observation shows that it is needed.
    fn mend(
        &self,
        permit: Permit,
        observation: &Observation,
    ) -> impl Future<Output = Result<(), OrchestratorError>> + Send;

    /// Replaces what is remembered: `before` by `memory`. `None`: what is there cannot be relied on. Safe against being
    /// killed at any point.
    fn remember(
        &self,
        permit: Permit,
        before: Option<&Memory>,
        memory: &Memory,
    ) -> impl Future<Output = Result<(), OrchestratorError>> + Send;

    /// Each permission that a pass needs, and whether it has it, in words. Empty where there is no such thing to ask.
    fn permissions(&self) -> impl Future<Output = Result<Vec<Permission>, OrchestratorError>> + Send;
}

/// What carrying out a step takes beside the step.
#[derive(Debug, Clone, Copy)]
pub struct StepContext<'a> {
    /// Comes with the steps that make a workload.
    pub spec: Option<&'a Spec>,
    pub(crate) stop: &'a Stop,
    /// Wanted of the workload that the step takes away, before it is gone for good.
    pub(crate) last_log: Option<&'a LogRequest<'a>>,
}

/// What a step left.
#[derive(Debug)]
pub struct Executed {
    /// The workload that is there afterwards, if any.
    pub handle: Option<Handle>,
    /// The last log of the workload that is gone, where it was wanted.
    pub(crate) last_log: Option<Result<LogRead, OrchestratorError>>,
}

impl Executed {
    /// A step that left this workload, and no log.
    #[must_use]
    pub fn leaving(handle: Handle) -> Self {
        Self { handle: Some(handle), last_log: None }
    }

    /// A step after which there is no workload.
    #[must_use]
    pub fn leaving_nothing() -> Self {
        Self { handle: None, last_log: None }
    }
}

/// Which part of a log is wanted, and what must not be shown of it.
#[derive(Debug, Clone)]
pub struct LogRequest<'a> {
    pub(crate) part: LogPart<'a>,
    pub(crate) secrets: &'a [Secret],
}

/// A part of a log, fit to be shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LogRead {
    pub(crate) lines: Vec<String>,
    /// Where the next delivery begins; `None` where that was not asked for, or where nothing was ever written.
    pub(crate) cursor: Option<LogCursor>,
}

/// Something that a pass has to be allowed to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// What, in words.
    pub what: String,
    /// Whether it is granted.
    pub granted: bool,
}

/// What was remembered.
#[derive(Debug, Default)]
pub struct Recalled {
    /// What could be read.
    pub memory: Memory,
    /// What could not, in words.
    pub notices: Vec<String>,
    /// Whether it has to be written anew even if it stays the same: a part cannot be read, or there are several records.
    pub stale: bool,
}

/// What is there.
#[derive(Debug, Default)]
pub struct Observation {
    /// For the planner.
    pub observed: Observed,
    /// What an earlier pass left with the workloads, where the orchestrator keeps it there.
    pub remembered: BTreeMap<ConnectorId, ConnectorMemory>,
    /// What of that could not be read, in words.
    pub notices: Vec<String>,
    /// Hashes of workloads without a hash label, to be remembered.
    pub adopted: BTreeMap<String, crate::model::ConfigHash>,
    /// Environments of the workloads that were looked at: where secrets for masking are at hand.
    pub environments: BTreeMap<Handle, Vec<(String, Secret)>>,
}

/// A closer look at one workload.
#[derive(Debug)]
pub struct Look {
    /// What it is doing.
    pub phase: Phase,
    /// When it was made.
    pub created: Timestamp,
    /// Its counters.
    pub vitals: Vitals,
    /// Its environment.
    pub environment: Vec<(String, Secret)>,
    /// What is wrong with it.
    pub troubles: Vec<Trouble>,
}

/// Why an orchestrator could not be used. `cure` is what the operator can do about it.
#[derive(Debug, thiserror::Error)]
pub enum OrchestratorError {
    /// Not there.
    #[error("{place} cannot be reached: {why}")]
    Unreachable {
        /// Which.
        place: String,
        /// The transport's words.
        why: String,
        /// What to do.
        cure: Cure,
    },
    /// Accepts no version of the API that this program speaks.
    #[error("{place} accepts none of the API versions that this program speaks: {why}")]
    Version {
        /// Which.
        place: String,
        /// Its words.
        why: String,
        /// What to do.
        cure: Cure,
    },
    /// Another pass holds the lock.
    #[error(
        "another pass holds the lock of this manager and platform on {place}: {holder}, since {since}, at most until {until}"
    )]
    Locked {
        /// Where.
        place: String,
        /// Who.
        holder: String,
        /// Since when.
        since: String,
        /// When it expires.
        until: String,
        /// What to do.
        cure: Cure,
    },
    /// It refused something.
    #[error("{what} on {place}: {why}")]
    Refused {
        /// What was asked.
        what: String,
        /// Whom.
        place: String,
        /// Its words.
        why: String,
        /// What to do.
        cure: Cure,
    },
}

impl OrchestratorError {
    /// What the operator can do about it.
    #[must_use]
    pub fn cure(&self) -> Cure {
        match self {
            Self::Unreachable { cure, .. }
            | Self::Version { cure, .. }
            | Self::Locked { cure, .. }
            | Self::Refused { cure, .. } => *cure,
        }
    }
}

/// Why a step failed, and what is there now.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Pulling failed.
    #[error("the image {image} cannot be pulled: {why}")]
    Pull {
        /// Which.
        image: String,
        /// The registry's words.
        why: String,
        /// What to do.
        cure: Cure,
    },
    /// The image is not there and must not be pulled.
    #[error("the image {image} is not on the engine, and the pull policy is Never")]
    NoImage {
        /// Which.
        image: String,
        /// What to do.
        cure: Cure,
    },
    /// A request that is part of the step failed.
    #[error(transparent)]
    Request(#[from] OrchestratorError),
    /// Its name belongs to something that is not this connector's. Whatever the plan knew, it is a rejection by name.
    #[error("the name {name} is taken by {owner}")]
    NameTaken {
        /// The workload's name.
        name: String,
        /// Whose it is, in words.
        owner: String,
    },
    /// The old workload does not end, and two must never run at once.
    #[error("{what} after {waited_s} s")]
    StillRunning {
        /// What still runs.
        what: String,
        /// How long it was waited for.
        waited_s: u64,
    },
    /// A part of the step was refused.
    #[error("{what}: {why}")]
    Refused {
        /// Which part.
        what: String,
        /// The orchestrator's words.
        why: String,
        /// What to do.
        cure: Cure,
    },
    /// A workload was made and does not start.
    #[error("{what} cannot be started: {why}")]
    WontStart {
        /// The workload, in the orchestrator's word for it.
        what: &'static str,
        /// The orchestrator's words.
        why: String,
        /// What to do.
        cure: Cure,
    },
    /// A refresh failed and the old workload runs again.
    #[error("{cause}; the old one was kept")]
    RolledBack {
        /// What failed.
        cause: Box<StepError>,
    },
    /// A refresh failed and so did going back.
    #[error("{cause}; going back failed as well: {rollback}; the next pass repairs it")]
    RollbackFailed {
        /// What failed.
        cause: Box<StepError>,
        /// What failed then.
        rollback: Box<StepError>,
    },
    /// The pass had to stop before the step was through; nothing was changed.
    #[error("not done: {0}")]
    Stopped(&'static str),
    /// The step needs a spec and has none, or the task was lost: a fault of this program.
    #[error("internal fault: {0}")]
    Internal(String),
}

impl StepError {
    /// Whether a new workload did not start, and the old one was interrupted for it.
    #[must_use]
    pub fn is_refused_start(&self) -> bool {
        matches!(self, Self::RolledBack { cause } if matches!(**cause, Self::WontStart { .. }))
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn cure(&self) -> Cure {
        match self {
            Self::Pull { cure, .. }
            | Self::NoImage { cure, .. }
            | Self::Refused { cure, .. }
            | Self::WontStart { cure, .. } => *cure,
            Self::RolledBack { cause } => cause.cure(),
            Self::RollbackFailed { rollback, .. } => rollback.cure(),
            Self::Request(error) => error.cure(),
            Self::NameTaken { .. } => Cure("give the connector another name on the platform, or take that one away"),
            Self::StillRunning { .. } => Cure("the next pass goes on once it has ended; look at what keeps it"),
            Self::Stopped(_) => Cure("the next pass goes on"),
            Self::Internal(_) => Cure("report it, with the log"),
        }
    }
}
