//! The lock of a manager and platform: a container of one name, which the engine makes unique.
//!
//! It is taken over when it has expired, or when the process that holds it is seen to be gone. Taking over removes the
//! lock by its id, so that of two passes that both saw it expired only one can.

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
/// How long a lock of an earlier version counts whose label cannot be read.
const FORMER_TTL: Duration = Duration::from_hours(1);
/// Times that a lock which vanishes between two looks is tried for again.
const TRIES: usize = 5;

const LOCKED: Cure = Cure(
    "wait for that pass; if its process is gone for good, remove the container that the lock is, or wait until it expires",
);

/// A lock that is held.
pub struct DockerLock {
    pub(super) id: String,
}

#[derive(Serialize, Deserialize)]
struct LockState {
    holder: Holder,
    since: Timestamp,
    until: Timestamp,
}

/// A lock that somebody holds.
struct Found {
    id: String,
    /// `None`: its label cannot be read.
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

    /// `None`: somebody has it.
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

    /// `None`: it was given back just now.
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

    /// An error when a pass of an earlier version, whose lock has another name, is still at work.
    pub(super) fn heed_former_lock(&self, summary: &ContainerSummary) -> Result<(), OrchestratorError> {
        let state = summary.labels.as_ref().and_then(state);
        let created = summary.created.and_then(|second| Timestamp::from_second(second).ok()).unwrap_or_default();
        let found = Found { id: summary.id.clone().unwrap_or_default(), state, created };
        // How long one that cannot be read was meant to last is not known: as long as the longest pass.
        if is_void(&found, FORMER_TTL) { Ok(()) } else { Err(self.locked(Some(&found), FORMER_TTL)) }
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

/// Whether nobody can hold it any more. One whose label cannot be read expires by its age.
fn is_void(lock: &Found, ttl: Duration) -> bool {
    match &lock.state {
        Some(state) => state.until < Timestamp::now() || holder::is_gone(&state.holder),
        None => lock.created.saturating_add(ttl).is_ok_and(|until| until < Timestamp::now()),
    }
}
