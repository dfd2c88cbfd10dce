//! The lock of a manager and platform: a container with a fixed name, because the engine allows each name only once.
//!
//! A pass takes the lock over when it has expired, or when the process that holds it is seen to be gone. For that it
//! removes the container by its id, so that only one of two passes that both see the lock expired can take it over.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::ContainerSummary;
use bollard::query_parameters::InspectContainerOptions;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Docker, FAILED, status};
use crate::holder::{self, Holder};
use crate::model::Cure;
use crate::orchestrator::versioned::{decode, encode};
use crate::orchestrator::{Orchestrator, OrchestratorError};

pub(super) const LABEL_LOCK: &str = "xtm-reconcile.lock";
/// How long a lock of an earlier version counts when its label cannot be read.
const FORMER_TTL: Duration = Duration::from_hours(1);
/// How often the lock is tried for again when it vanishes between the attempt to take it and the look at its holder.
const TRIES: usize = 5;

const LOCKED: Cure = Cure(
    "wait for that pass; if its process is gone for good, remove the container that the lock is, or wait until it expires",
);

/// The lock that this pass holds.
pub struct DockerLock {
    pub(super) id: String,
}

#[derive(Serialize, Deserialize)]
struct LockState {
    holder: Holder,
    since: Timestamp,
    until: Timestamp,
}

/// A lock that exists already, with what is known of its holder.
struct Found {
    id: String,
    /// `None` when the label of the lock cannot be read.
    state: Option<LockState>,
    created: Timestamp,
}

impl Docker {
    pub(super) async fn take_lock(&self, holder: &Holder, ttl: Duration) -> Result<DockerLock, OrchestratorError> {
        let name = format!("xtm-reconcile-lock-{}-{}", self.owner.manager, self.owner.platform.label());
        let mut found = None;
        for _ in 0..TRIES {
            match self.try_lock(&name, holder, ttl).await? {
                Some(lock) => return Ok(lock),
                None => found = self.find_lock(&name).await?,
            }
            let Some(lock) = &found else { continue };
            if !is_void(lock, ttl) {
                break;
            }
            tracing::warn!(lock = name, "taking over the lock of a pass that is gone");
            self.remove(&lock.id).await.map_err(self.refused("taking over the lock"))?;
        }
        Err(self.locked(found.as_ref(), ttl))
    }

    /// Tries once to take the lock. `None` when the lock exists already.
    async fn try_lock(
        &self,
        name: &str,
        holder: &Holder,
        ttl: Duration,
    ) -> Result<Option<DockerLock>, OrchestratorError> {
        let since = Timestamp::now();
        let until = since.saturating_add(ttl).unwrap_or(Timestamp::MAX);
        let what = "taking the lock";
        let label = encode(LockState { holder: holder.clone(), since, until }).map_err(|error| {
            let (what, why) = (what.to_owned(), error.to_string());
            OrchestratorError::Refused { what, place: self.place(), why, cure: FAILED }
        })?;
        let labels = HashMap::from([(LABEL_LOCK.to_owned(), label)]);
        match self.create_marker(name, labels).await {
            Ok(id) => Ok(Some(DockerLock { id })),
            Err(error) if status(&error) == Some(409) => Ok(None),
            Err(error) => Err(self.refused(what)(error)),
        }
    }

    /// Looks at the lock that exists. `None` when its holder released it just now.
    async fn find_lock(&self, name: &str) -> Result<Option<Found>, OrchestratorError> {
        let inspected = match self.engine.inspect_container(name, None::<InspectContainerOptions>).await {
            Ok(inspected) => inspected,
            Err(error) if status(&error) == Some(404) => return Ok(None),
            Err(error) => return Err(self.refused("looking at the lock")(error)),
        };
        let labels = inspected.config.and_then(|config| config.labels).unwrap_or_default();
        if !self.is_marker_of_ours(&labels) {
            let why = format!("its name {name} is taken by a container of somebody else: rename or remove that one");
            let what = "taking the lock".to_owned();
            return Err(OrchestratorError::Refused { what, place: self.place(), why, cure: FAILED });
        }
        let created = inspected.created.and_then(|text| text.parse().ok()).unwrap_or_default();
        Ok(Some(Found { id: inspected.id.unwrap_or_default(), state: state(&labels), created }))
    }

    /// The error for a pass of an earlier version that is still at work; `None` when its lock is void. The lock of that
    /// version has another name, so that the two versions do not exclude each other by themselves.
    pub(super) fn former_lock_holder(&self, summary: &ContainerSummary) -> Option<OrchestratorError> {
        let state = summary.labels.as_ref().and_then(state);
        let created = summary.created.and_then(|second| Timestamp::from_second(second).ok()).unwrap_or_default();
        let found = Found { id: summary.id.clone().unwrap_or_default(), state, created };
        // A label that cannot be read does not say how long the lock was meant to last, so a fixed time counts.
        (!is_void(&found, FORMER_TTL)).then(|| self.locked(Some(&found), FORMER_TTL))
    }

    fn locked(&self, found: Option<&Found>, ttl: Duration) -> OrchestratorError {
        let place = self.place();
        let text = |holder: String, since: Timestamp, until: Timestamp| OrchestratorError::Locked {
            place: place.clone(),
            holder,
            since: format!("{since:.0}"),
            until: format!("{until:.0}"),
            cure: LOCKED,
        };
        match found {
            Some(Found { state: Some(LockState { holder, since, until }), .. }) => {
                text(format!("pass {} (process {} on {})", holder.pass, holder.pid, holder.host), *since, *until)
            }
            Some(found) => {
                let until = found.created.saturating_add(ttl).unwrap_or(Timestamp::MAX);
                text("one that cannot be read".to_owned(), found.created, until)
            }
            None => text("several passes at once".to_owned(), Timestamp::now(), Timestamp::now()),
        }
    }
}

fn state(labels: &HashMap<String, String>) -> Option<LockState> {
    labels.get(LABEL_LOCK).and_then(|text| decode(text).ok())
}

/// Whether nobody can hold this lock any more. A lock whose label cannot be read expires `ttl` after it was created.
fn is_void(lock: &Found, ttl: Duration) -> bool {
    match &lock.state {
        Some(state) => state.until < Timestamp::now() || holder::is_gone(&state.holder),
        None => lock.created.saturating_add(ttl).is_ok_and(|until| until < Timestamp::now()),
    }
}
