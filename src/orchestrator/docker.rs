//! Connectors as containers of one Docker engine (API 1.41 and later).

mod connection;
mod images;
mod lock;
mod logs;
mod observe;
mod record;
mod replace;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bollard::Docker as Engine;
use bollard::errors::Error as EngineError;
use bollard::models::ContainerUpdateBody;
use bollard::query_parameters::{
    RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder, StartContainerOptions, StopContainerOptions,
};

use crate::access::Permit;
use crate::desired::Desired;
use crate::holder::Holder;
use crate::memory::Memory;
use crate::model::{Cure, Handle, Phase};
use crate::orchestrator::{
    LogRead, LogRequest, Look, Observation, OnLook, Orchestrator, OrchestratorError, Owner, Permission, Recalled,
    StepContext, StepError,
};
use crate::plan::{StartReason, Step, UpdateReason};
use crate::progress::Progress;
use crate::render::docker::ContainerDefaults;
use crate::render::{self, PullPolicy, Registry};
use crate::secret::Secret;
use crate::stop::{Cause, Stop};
use images::Images;

/// Longest wait for the engine to begin an answer, in seconds: stopping a container can take its whole grace period.
const ENGINE_TIMEOUT_S: u64 = 180;
const UNREACHABLE: Cure = Cure(
    "see that the engine runs, that DOCKER_HOST names it, that DOCKER_TLS_VERIFY is set if it wants TLS, that ca.pem is of the CA that signed its certificate, and that this user may use its socket",
);
const FAILED: Cure = Cure("look into the engine's log at this time; the next pass tries again");
const LOOK_AT_IT: Cure = Cure("look at the container and into the engine's log; the next pass tries again");
/// How often a rename is tried again that the engine failed to do.
const RENAME_TRIES: usize = 2;
/// The settings of the Docker engine and of every container that a lane creates on it.
#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// The address of the engine, from `DOCKER_HOST`.
    pub endpoint: Endpoint,
    /// When images are pulled. `None` decides by the tag of the image, as Kubernetes does.
    pub(crate) pull_policy: Option<PullPolicy>,
    /// What every container gets, whichever connector it runs.
    pub container: ContainerDefaults,
}

/// How to reach the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The path of a Unix socket.
    Unix(String),
    /// `host:port`, over TLS when there are certificates.
    Tcp(String, Option<TlsFiles>),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Tcp(address, None) => write!(f, "tcp://{address}"),
            Self::Tcp(address, Some(_)) => write!(f, "tcp://{address} with TLS"),
        }
    }
}

/// The certificates in `DOCKER_CERT_PATH`, under the names that the docker client gives them: `ca.pem`, `cert.pem`,
/// `key.pem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// A connection to one engine, for one manager and one platform.
#[derive(Clone)]
pub(crate) struct Docker {
    engine: Engine,
    description: String,
    endpoint: Endpoint,
    owner: Owner,
    settings: DockerSettings,
    images: Arc<Images>,
    concurrency: usize,
    stop: Stop,
    /// The lock of this pass, once it is taken.
    held: Arc<OnceLock<Arc<lock::HeldLock>>>,
}

impl Docker {
    /// Connects to the engine and agrees with it on a version of the API.
    pub async fn connect(
        docker: &DockerSettings,
        owner: Owner,
        registry: &Registry,
        concurrency: usize,
        progress: Arc<Progress>,
        stop: &Stop,
    ) -> Result<Self, OrchestratorError> {
        let endpoint = docker.endpoint.clone();
        let (engine, description) = connection::connect(&endpoint).await?;
        Ok(Self {
            engine,
            description,
            owner,
            settings: docker.clone(),
            images: Arc::new(Images::new(registry, docker.pull_policy, progress)),
            concurrency,
            endpoint,
            stop: stop.clone(),
            held: Arc::default(),
        })
    }

    fn refused(&self, what: impl Into<String>) -> impl FnOnce(EngineError) -> OrchestratorError {
        let (what, place) = (what.into(), self.place());
        move |error| {
            if is_transport(&error) {
                OrchestratorError::Unreachable { place, why: format!("{what}: {}", words(&error)), cure: UNREACHABLE }
            } else {
                OrchestratorError::Refused { what, place, why: words(&error), cure: FAILED }
            }
        }
    }

    /// Removes a container even while it runs. A container that is gone, or that somebody else is removing, counts as
    /// removed.
    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.engine.remove_container(id, Some(options)).await {
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(()),
            done => done,
        }
    }

    async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.engine.start_container(id, None::<StartContainerOptions>).await
    }

    /// Asks a container to end. The engine kills it after the container's own grace period.
    async fn stop(&self, id: &str) -> Result<(), EngineError> {
        self.engine.stop_container(id, None::<StopContainerOptions>).await
    }

    /// Renames a container. The engine cannot rename one that crashed and waits for its next run, so such a container
    /// is stopped for the rename and started again.
    async fn rename(&self, id: &str, name: &str) -> Result<(), EngineError> {
        let ask = || self.engine.rename_container(id, RenameContainerOptionsBuilder::default().name(name).build());
        for _ in 0..RENAME_TRIES {
            match ask().await {
                // Between two runs a container has no network, and the engine answers 404 for that network.
                Err(error) if matches!(status(&error), Some(404 | 500)) => {}
                done => return done,
            }
            let look = self.look_at(&Handle(id.to_owned())).await;
            if look.is_ok_and(|look| look.is_some_and(|look| look.phase == Phase::Restarting)) {
                self.stop(id).await?;
                let renamed = ask().await;
                self.start(id).await?;
                return renamed;
            }
        }
        ask().await
    }

    /// Fails when another pass may have the lock by now, whatever this one believes. Asked before each step, and again
    /// before a container is started, because a step may take long.
    async fn still_held(&self) -> Result<(), StepError> {
        match self.expect_lock().await {
            Err(OrchestratorError::Locked { .. }) => Err(StepError::Stopped(Cause::LockLost.as_str())),
            held => Ok(held?),
        }
    }

    async fn begin(&self, handle: &Handle, reason: StartReason) -> Result<(), StepError> {
        match reason {
            StartReason::Paused => self.engine.unpause_container(&handle.0).await.map_err(part("cannot be unpaused")),
            StartReason::Requested | StartReason::Ended | StartReason::Multiplied | StartReason::RolledBack => {
                self.start(&handle.0).await.map_err(part("cannot be started"))
            }
        }
    }
}

fn place(endpoint: &Endpoint) -> String {
    format!("the Docker engine at {endpoint}")
}

/// The HTTP status of an engine's answer; `None` when there is no answer.
fn status(error: &EngineError) -> Option<u16> {
    match error {
        EngineError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Whether the engine gave no answer at all.
fn is_transport(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::HyperLegacyError { .. }
            | EngineError::HyperResponseError { .. }
            | EngineError::IOError { .. }
            | EngineError::SocketNotFoundError(_)
            | EngineError::RequestTimeoutError
    )
}

/// The text of an engine's error, without what the client library puts around it and with the causes that the library
/// leaves out.
fn words(error: &EngineError) -> String {
    match error {
        EngineError::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        EngineError::DockerStreamError { error } => error.trim().to_owned(),
        EngineError::RequestTimeoutError => format!("no answer within {ENGINE_TIMEOUT_S} s"),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            text
        }
    }
}

/// Turns an engine's error into the error of a step; `what` completes "the container …".
fn part(what: &'static str) -> impl FnOnce(EngineError) -> StepError {
    move |error| StepError::Refused { what: format!("the container {what}"), why: words(&error), cure: LOOK_AT_IT }
}

impl Orchestrator for Docker {
    type Lock = lock::DockerLock;

    fn place(&self) -> String {
        place(&self.endpoint)
    }

    fn description(&self) -> &str {
        &self.description
    }

    async fn lock(&self, _: Permit, holder: &Holder, ttl: Duration) -> Result<Self::Lock, OrchestratorError> {
        self.take_lock(holder, ttl).await
    }

    async fn unlock(&self, _: Permit, lock: Self::Lock) -> Result<(), OrchestratorError> {
        self.release(lock).await
    }

    async fn recall(&self) -> Result<Recalled, OrchestratorError> {
        Ok(self.read_record().await?.recalled)
    }

    async fn observe(
        &self,
        desired: &Desired,
        memory: &Memory,
        on_look: &OnLook<'_>,
    ) -> Result<Observation, OrchestratorError> {
        self.observe_all(desired, memory, on_look).await
    }

    async fn execute(&self, _: Permit, step: &Step, context: StepContext<'_>) -> Result<Option<Handle>, StepError> {
        self.still_held().await?;
        let spec = || context.spec.ok_or_else(|| StepError::Internal(format!("a {} without a spec", step.word())));
        match step {
            Step::Deploy { name } => self.deploy(spec()?, name, context.stop).await.map(Some),
            Step::Refresh { old, old_name, old_up, name, start, fallback, .. } => {
                let kept = fallback.as_ref().filter(|former| former.handle == *old);
                let kept_as = kept.map(|former| former.name.as_str());
                let old = replace::Old { handle: old, name: old_name, up: *old_up, kept_as };
                self.refresh(spec()?, &old, name, *start, context).await.map(Some)
            }
            Step::RollBack { failed, former, name, failure, .. } => {
                if failure.exit_code.is_none()
                    && let Some(code) = self.last_exit_code(failed).await
                {
                    // Nobody else fills it.
                    context.exit_code.set(code).unwrap_or_default();
                }
                self.roll_back(failed, former, name, context).await.map(Some)
            }
            // The planner recreates Deployments only. A container is always replaced by another one.
            Step::Recreate { .. } => Err(StepError::Internal("a container need not be recreated".to_owned())),
            Step::Rename { handle, to, .. } => {
                if let Err(error) = self.rename(&handle.0, to).await {
                    return Err(self.unnamed(to, error, "cannot be renamed").await);
                }
                Ok(Some(handle.clone()))
            }
            Step::Start { handle, reason } => self.begin(handle, *reason).await.map(|()| Some(handle.clone())),
            Step::Stop { handle } | Step::Hold { handle, .. } => {
                self.stop(&handle.0).await.map_err(part("cannot be stopped"))?;
                Ok(Some(handle.clone()))
            }
            Step::Update { handle, reason: UpdateReason::RestartPolicy } => {
                let restart_policy = Some(render::docker::restart_policy(self.settings.container.restart_policy));
                let body = ContainerUpdateBody { restart_policy, ..Default::default() };
                let updated = self.engine.update_container(&handle.0, body).await;
                updated.map_err(part("cannot get the restart policy"))?;
                Ok(Some(handle.clone()))
            }
            Step::Remove { handle, .. } => {
                // A connector may have work to finish, so it is asked to end before it is removed.
                self.stop(&handle.0).await.or_else(gone).map_err(part("cannot be stopped"))?;
                self.remove(&handle.0).await.map_err(part("cannot be removed"))?;
                Ok(None)
            }
        }
    }

    async fn look(&self, handle: &Handle) -> Result<Option<Look>, OrchestratorError> {
        self.look_at(handle).await
    }

    async fn logs(&self, handle: &Handle, request: &LogRequest<'_>) -> Result<LogRead, OrchestratorError> {
        self.read_log(handle, request).await
    }

    async fn remember(&self, _: Permit, before: Option<&Memory>, memory: &Memory) -> Result<(), OrchestratorError> {
        if before == Some(memory) {
            return Ok(());
        }
        self.expect_lock().await?;
        self.write_record(memory).await
    }

    async fn mend(&self, _: Permit, _: &Observation) -> Result<(), OrchestratorError> {
        Ok(())
    }

    /// The configuration allows this on Kubernetes alone.
    async fn write_secret(&self, _: Permit, name: &str, _: &str, _: &Secret) -> Result<(), OrchestratorError> {
        let (what, why) = (format!("writing the Secret {name}"), "Docker has no Secrets".to_owned());
        Err(OrchestratorError::Refused { what, place: self.place(), why, cure: FAILED })
    }

    /// The engine has no permissions: whoever may use its socket may do everything.
    async fn permissions(&self) -> Result<Vec<Permission>, OrchestratorError> {
        Ok(vec![])
    }
}

/// Accepts an error that says that the container is gone, for such a container need not be stopped.
fn gone(error: EngineError) -> Result<(), EngineError> {
    if status(&error) == Some(404) { Ok(()) } else { Err(error) }
}
