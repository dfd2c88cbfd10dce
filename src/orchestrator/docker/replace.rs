//! Creates containers, and replaces one by another without losing the one that works.
//!
//! A container has a temporary name until it is complete. A pass that is killed leaves one of these states, and the
//! next pass continues from each of them:
//!
//! - The new container is incomplete: it is removed and made again.
//! - The old container is stopped and the new one incomplete: the same, and the new one is started.
//! - Both are complete: the one with the right hash stays.
//! - Only the new container is left, under its temporary name: it is renamed.
//!
//! While the new container is on probation the old one is kept, stopped, under a name that says so. It gets that name
//! before it is stopped and loses it after it runs again, so that at any time in between the name alone shows that the
//! container worked and has to run when there is no other.

use std::collections::HashMap;
use std::future::ready;
use std::time::Duration;

use bollard::body_full;
use bollard::models::EventMessage;
use bollard::query_parameters::{CreateContainerOptionsBuilder, EventsOptionsBuilder, UploadToContainerOptionsBuilder};
use bytes::Bytes;
use futures_util::StreamExt;

use bollard::errors::Error as EngineError;

use super::{Docker, gone, is_transport, part, status, words};
use crate::model::{Cure, Handle};
use crate::orchestrator::{StepContext, StepError};
use crate::plan::Former;
use crate::render::{self, Spec};
use crate::stop::Stop;

/// Longest wait for the events of a container.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the container that has a name is looked for.
const OWNER_TRIES: u32 = 10;
/// The time between two of these looks.
const OWNER_WAIT: Duration = Duration::from_millis(100);

/// The container that a refresh replaces.
pub(super) struct Old<'a> {
    pub(super) handle: &'a Handle,
    pub(super) name: &'a str,
    pub(super) up: bool,
    /// The name under which it is kept while the new one is on probation. `None` when it is removed.
    pub(super) kept_as: Option<&'a str>,
}

impl Old<'_> {
    /// Whether the refresh gives it the name of a former container.
    fn is_set_aside(&self) -> bool {
        self.kept_as.is_some_and(|kept_as| kept_as != self.name)
    }
}

impl Docker {
    /// Creates and starts a container, and removes it again when it cannot be started.
    pub(super) async fn deploy(&self, spec: &Spec, name: &str, stop: &Stop) -> Result<Handle, StepError> {
        self.images.ensure(&self.engine, &spec.image, stop).await?;
        if stop.cause().is_some() {
            return Err(StepError::Stopped("the pass ended before the container was created"));
        }
        // A container without files to copy is complete once it is created, so it can have its final name at once.
        let first = if spec.ca.is_some() { spec.name.staged(&spec.hash) } else { name.to_owned() };
        let handle = self.create(spec, &first).await?;
        let finished = async {
            if first != name
                && let Err(error) = self.rename(&handle.0, name).await
            {
                return Err(self.unnamed(name, error, "cannot be named").await);
            }
            self.still_held().await?;
            self.start(&handle.0).await.map_err(wont_start)
        };
        match finished.await {
            Ok(()) => Ok(handle),
            Err(cause) => Err(self.discard(&handle, cause).await),
        }
    }

    /// Replaces `old`. Until the new container runs, each failure leads back to the old one.
    pub(super) async fn refresh(
        &self,
        spec: &Spec,
        old: &Old<'_>,
        name: &str,
        start: bool,
        context: StepContext<'_>,
    ) -> Result<Handle, StepError> {
        if let Err(cause) = self.images.ensure(&self.engine, &spec.image, context.stop).await {
            return Err(self.keep(old, start, false, cause).await);
        }
        if context.stop.cause().is_some() {
            return Err(StepError::Stopped("the pass ended before the container was replaced"));
        }
        let new = match self.create(spec, &spec.name.staged(&spec.hash)).await {
            Ok(new) => new,
            Err(cause) => return Err(self.keep(old, start, false, cause).await),
        };
        if context.stop.cause().is_some() {
            // What runs is not stopped when there may be no time to start anything.
            let cause = StepError::Stopped("the pass ended before the container was replaced");
            return Err(self.discard(&new, cause).await);
        }
        let exchanged = async {
            if let Some(kept_as) = old.kept_as.filter(|_| old.is_set_aside()) {
                let renamed = self.rename(&old.handle.0, kept_as).await.or_else(gone);
                renamed.map_err(part("that is replaced cannot be set aside"))?;
            }
            self.stop(&old.handle.0).await.or_else(gone).map_err(part("that is replaced cannot be stopped"))?;
            if start {
                self.still_held().await?;
                self.start(&new.0).await.map_err(wont_start)
            } else {
                Ok(())
            }
        };
        if let Err(cause) = exchanged.await {
            tracing::warn!(container = old.name, "going back to the old container");
            let cause = self.discard(&new, cause).await;
            return Err(self.keep(old, start, old.is_set_aside(), cause).await);
        }
        // The old container has ended, so its log is complete.
        if let Some(last_log) = context.last_log {
            last_log.read(self, old.handle).await;
        }
        // The new container is complete from here on. After a failure the next pass does the rest, and nothing goes
        // back.
        if old.kept_as.is_none() {
            self.remove(&old.handle.0).await.map_err(part("that was replaced cannot be removed"))?;
        }
        if let Err(error) = self.rename(&new.0, name).await {
            return Err(self.unnamed(name, error, "cannot be named").await);
        }
        Ok(new)
    }

    /// Removes a container that failed on probation, and brings the one that it replaced back.
    pub(super) async fn roll_back(
        &self,
        failed: &Handle,
        former: &Former,
        name: &str,
        context: StepContext<'_>,
    ) -> Result<Handle, StepError> {
        self.stop(&failed.0).await.or_else(gone).map_err(part("that failed cannot be stopped"))?;
        if let Some(last_log) = context.last_log {
            last_log.read(self, failed).await;
        }
        self.remove(&failed.0).await.map_err(part("that failed cannot be removed"))?;
        self.still_held().await?;
        // It keeps the name of a former container until it runs: see above.
        self.start(&former.handle.0).await.map_err(part("that was replaced cannot be started again"))?;
        if name != former.name
            && let Err(error) = self.rename(&former.handle.0, name).await
        {
            return Err(self.unnamed(name, error, "cannot be named").await);
        }
        Ok(former.handle.clone())
    }

    /// The exit code of the last run of a container that ended, from the engine's events. `None` when they do not tell,
    /// because that must not keep anything from going on.
    pub(super) async fn last_exit_code(&self, container: &Handle) -> Option<i64> {
        let filters = HashMap::from([("container", vec![container.0.as_str()]), ("event", vec!["die"])]);
        // The engine keeps the last 256 events and gives those since the beginning, up to now. A time in whole seconds
        // would leave out what happened in this one.
        let now = self.engine_time().await.ok()?;
        let now = format!("{}.{:09}", now.as_second(), now.subsec_nanosecond());
        let options = EventsOptionsBuilder::default().since("0").until(&now).filters(&filters).build();
        let events = self.engine.events(Some(options)).filter_map(|event| ready(event.ok()));
        let code = |event: EventMessage| event.actor?.attributes?.get("exitCode")?.parse().ok();
        let last = events.fold(None, |last, event| ready(code(event).or(last)));
        tokio::time::timeout(EVENTS_TIMEOUT, last).await.ok()?
    }

    /// The error for a container that cannot get its name. Somebody else may have taken the name since the plan was
    /// made.
    pub(super) async fn unnamed(&self, name: &str, error: EngineError, what: &'static str) -> StepError {
        if status(&error) == Some(409)
            && let Some(owner) = self.owner_of(name).await
        {
            return StepError::NameTaken { name: name.to_owned(), owner };
        }
        part(what)(error)
    }

    /// Describes the owner of the container with this name. `None` when the container belongs to this lane.
    ///
    /// The engine reserves a name before anybody can see the container that gets it, so several looks may be needed.
    async fn owner_of(&self, name: &str) -> Option<String> {
        for _ in 0..OWNER_TRIES {
            if let Ok((inspected, _)) = self.inspect(name).await {
                let labels = inspected.config.and_then(|config| config.labels).unwrap_or_default();
                return self.ownership(&labels).err();
            }
            tokio::time::sleep(OWNER_WAIT).await;
        }
        Some("a container that is being made".to_owned())
    }

    /// Creates a container and copies its files into it.
    async fn create(&self, spec: &Spec, name: &str) -> Result<Handle, StepError> {
        let handle = self.create_empty(spec, name).await?;
        let Some(ca) = &spec.ca else { return Ok(handle) };
        let copied = match archive(ca) {
            Ok(archive) => {
                let options = UploadToContainerOptionsBuilder::default().path("/").build();
                let upload = self.engine.upload_to_container(&handle.0, Some(options), body_full(archive)).await;
                upload.map_err(part("does not take the proxy's CA"))
            }
            Err(error) => Err(StepError::Internal(error.to_string())),
        };
        match copied {
            Ok(()) => Ok(handle),
            Err(cause) => Err(self.discard(&handle, cause).await),
        }
    }

    async fn create_empty(&self, spec: &Spec, name: &str) -> Result<Handle, StepError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let body = render::docker::container(spec, &self.settings.container);
        match self.engine.create_container(Some(options), body).await {
            Ok(created) => {
                for warning in created.warnings {
                    tracing::warn!(connector = %spec.connector, name, warning, "the engine warns");
                }
                Ok(Handle(created.id))
            }
            Err(error) => Err(self.unnamed(name, error, "cannot be created").await),
        }
    }

    /// Removes an unfinished container. The error stays `cause` unless the removal fails as well.
    async fn discard(&self, handle: &Handle, cause: StepError) -> StepError {
        match self.remove(&handle.0).await {
            Ok(()) => cause,
            Err(error) => {
                let rollback = part("that was not finished cannot be removed")(error);
                StepError::RollbackFailed { cause: Box::new(cause), rollback: Box::new(rollback) }
            }
        }
    }

    /// Brings the old container back after a failure. It is started although it may never have been stopped, for a pass
    /// that was killed may have stopped it, and starting a container that runs changes nothing. `set_aside` says whether
    /// it may have the name of a former container.
    async fn keep(&self, old: &Old<'_>, wanted: bool, set_aside: bool, cause: StepError) -> StepError {
        if matches!(cause, StepError::Stopped(_)) {
            return cause;
        }
        if !(old.up && wanted) {
            return rolled_back(cause);
        }
        let back = async {
            self.still_held().await?;
            self.start(&old.handle.0).await.map_err(part("that was to be replaced cannot be started again"))?;
            if !set_aside {
                return Ok(());
            }
            match self.rename(&old.handle.0, old.name).await {
                // It still has its name, because the engine failed to rename it before.
                Err(error) if status(&error) == Some(400) => Ok(()),
                renamed => renamed.map_err(part("that was to be replaced cannot be named")),
            }
        };
        match back.await {
            Ok(()) => rolled_back(cause),
            Err(rollback) => StepError::RollbackFailed { cause: Box::new(cause), rollback: Box::new(rollback) },
        }
    }
}

const WONT_START: Cure = Cure("see that the image and its settings fit this engine; the next pass tries again");

fn wont_start(error: EngineError) -> StepError {
    // When the engine cannot be reached, nothing is known of the container.
    if is_transport(&error) {
        part("cannot be started")(error)
    } else {
        StepError::WontStart { what: "the container", why: words(&error), cure: WONT_START }
    }
}

fn rolled_back(cause: StepError) -> StepError {
    match cause {
        already @ (StepError::RolledBack { .. } | StepError::RollbackFailed { .. }) => already,
        cause => StepError::RolledBack { cause: Box::new(cause) },
    }
}

/// A tar archive with the CA at its path. The engine makes the folders above it.
fn archive(ca: &str) -> std::io::Result<Bytes> {
    let mut header = tar::Header::new_ustar();
    header.set_size(u64::try_from(ca.len()).unwrap_or_default());
    header.set_mode(0o644);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, render::CA_PATH, ca.as_bytes())?;
    builder.into_inner().map(Bytes::from)
}
