//! The lock of a manager and platform: a container with a fixed name, because the engine allows each name only once.
//!
//! A container's labels cannot change, so the lock cannot say how long it lasts. Instead the pass that holds it gives a
//! sign of life from time to time: a container of its own that replaces the one before. When a lock counts as abandoned
//! is judged by the engine's clock alone, from the times at which the engine made the lock and the last sign of life, so
//! that a machine whose clock is wrong neither takes a lock that is held nor locks the others out.
//!
//! A pass takes a lock over when its process is seen to be gone, or when there was no sign of life for a minute and the
//! process is not seen to be alive. It renames the lock first, and then looks for a sign of life once more. The holder
//! looks at the name of its lock after each sign of life. So either the one sees the sign, or the other sees the new name.
//! While the lock is renamed, a third pass can take the name; it finds the renamed lock among the containers of its
//! manager, and works only when that one is abandoned as well.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bollard::models::ContainerSummary;
use bollard::query_parameters::{InspectContainerOptions, RenameContainerOptionsBuilder};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use super::{Docker, FAILED, gone, status};
use crate::holder::{self, Holder};
use crate::model::Cure;
use crate::orchestrator::versioned::{decode, encode};
use crate::orchestrator::{Orchestrator, OrchestratorError};
use crate::stop::{Cause, Stop};

pub(super) const LABEL_LOCK: &str = "xtm-reconcile.lock";
/// The label of a sign of life. Its value is the id of the lock.
pub(super) const LABEL_ALIVE: &str = "xtm-reconcile.alive";
/// How long a lock of an earlier version counts when its label cannot be read.
const FORMER_TTL: Duration = Duration::from_hours(1);
/// How often the lock is tried for again when it vanishes between the attempt to take it and the look at its holder.
const TRIES: usize = 5;
/// The time between two signs of life.
const RENEW: Duration = Duration::from_secs(15);
/// The time between two attempts while the engine does not take a sign of life.
const RETRY: Duration = Duration::from_secs(3);
/// Longest wait for an answer about the lock. With [`TRUSTED`] it is less than [`ABANDONED`].
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a pass trusts its last sign of life. Others wait for longer, see [`ABANDONED`].
const TRUSTED: Duration = Duration::from_secs(40);
/// The time without a sign of life after which a lock counts as abandoned.
const ABANDONED: SignedDuration = SignedDuration::from_secs(60);

const LOCKED: Cure = Cure(
    "wait for that pass; if its process is gone for good, remove the container that the lock is, or wait until it expires",
);
const ALIVE: Cure = Cure("wait for that pass; its process is there on this machine, so end it if it hangs");
const LOST: Cure = Cure("see what took or removed the lock; the next pass goes on where this one stopped");

/// The lock that this pass holds, and the task that keeps it.
pub struct DockerLock {
    held: Arc<HeldLock>,
    keeping: JoinHandle<()>,
}

/// The lock as this pass knows it.
pub(super) struct HeldLock {
    id: String,
    name: String,
    /// Stopped when the lock is lost.
    stop: Stop,
    last_sign: Mutex<Sign>,
}

impl HeldLock {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// A sign of life that the engine has taken.
struct Sign {
    /// The container. `None` when it is the lock itself.
    id: Option<String>,
    at: Moment,
}

/// A moment by both clocks. While a machine sleeps only the wall clock goes on, and somebody may set the wall clock back.
#[derive(Clone, Copy)]
struct Moment {
    steady: Instant,
    wall: SystemTime,
}

impl Moment {
    fn now() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }

    /// The time since then, by the clock that shows more of it.
    fn age(self) -> Duration {
        self.steady.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }
}

#[derive(Serialize, Deserialize)]
struct LockState {
    holder: Holder,
    since: Timestamp,
    /// When it expires unless the pass ends before, by the clock of the holder. Only versions before this one go by it.
    until: Timestamp,
    /// Whether the holder gives signs of life. Versions before this one did not.
    #[serde(default)]
    shows_life: bool,
}

/// A lock that exists already, with what is known of its holder.
struct Found {
    id: String,
    /// `None` when the label of the lock cannot be read.
    state: Option<LockState>,
    /// By the engine's clock.
    created: Timestamp,
}

impl Docker {
    pub(super) async fn take_lock(&self, holder: &Holder, ttl: Duration) -> Result<DockerLock, OrchestratorError> {
        let name = format!("xtm-reconcile-lock-{}-{}", self.owner.manager, self.owner.platform.label());
        let mut found = None;
        for _ in 0..TRIES {
            let begun = Moment::now();
            match self.try_lock(&name, holder, ttl).await? {
                Some(id) => return Ok(self.hold(id, name, begun)),
                None => found = self.find_lock(&name).await?,
            }
            let Some(lock) = &found else { continue };
            if !self.is_void(lock, ttl).await? {
                break;
            }
            tracing::warn!(lock = name, "taking over the lock of a pass that is gone");
            if !self.take_away(lock, &name, ttl).await? {
                break;
            }
        }
        Err(self.locked(found.as_ref(), ttl))
    }

    /// Gives the lock back. Every container that it consists of goes.
    pub(super) async fn release(&self, lock: DockerLock) -> Result<(), OrchestratorError> {
        lock.keeping.abort();
        // When a sign of life was being given just now, its container stays, and the next pass removes it.
        let sign = lock.held.last_sign.lock().await;
        let removed = match &sign.id {
            Some(id) => self.remove(id).await,
            None => Ok(()),
        };
        // Whatever became of the sign of life, others wait for the lock.
        let released = self.remove(&lock.held.id).await;
        released.and(removed).map_err(self.refused("giving back the lock"))
    }

    /// Fails when this pass does not hold its lock any more, so that it must not change anything. A pass without a lock
    /// changes nothing anyway.
    pub(super) async fn expect_lock(&self) -> Result<(), OrchestratorError> {
        let Some(held) = self.held.get() else { return Ok(()) };
        let mut sign = held.last_sign.lock().await;
        if sign.at.age() >= TRUSTED {
            // It slept, or could not reach the engine, for long enough that somebody may be about to take the lock.
            self.in_time(held, self.give_sign(held, &mut sign)).await
        } else {
            // Steps that go on side by side need not ask one after the other.
            drop(sign);
            self.in_time(held, self.is_held(held)).await
        }
    }

    /// Waits for an answer about the lock. An engine that does not answer for long has lost this pass its lock, because
    /// others may reach it.
    async fn in_time(
        &self,
        held: &HeldLock,
        asking: impl Future<Output = Result<(), OrchestratorError>>,
    ) -> Result<(), OrchestratorError> {
        match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(answered) => answered,
            Err(_) => Err(self.lost(held, "unknown, for the engine does not answer")),
        }
    }

    fn lost(&self, held: &HeldLock, holder: &str) -> OrchestratorError {
        held.stop.signal(Cause::LockLost);
        let (holder, since, until) = (holder.to_owned(), format!("{:.0}", Timestamp::now()), "unknown".to_owned());
        OrchestratorError::Locked { place: self.place(), holder, since, until, cure: LOST }
    }

    fn hold(&self, id: String, name: String, begun: Moment) -> DockerLock {
        let last_sign = Mutex::new(Sign { id: None, at: begun });
        let held = Arc::new(HeldLock { id, name, stop: self.stop.clone(), last_sign });
        // A lane takes its lock once.
        drop(self.held.set(Arc::clone(&held)));
        let (engine, lock) = (self.clone(), Arc::clone(&held));
        let keep = async move { engine.keep_lock(&lock).await };
        DockerLock { held, keeping: tokio::spawn(keep.in_current_span()) }
    }

    /// Gives signs of life until the lock is lost.
    async fn keep_lock(&self, held: &HeldLock) {
        let mut wait = RENEW;
        loop {
            tokio::time::sleep(wait).await;
            let mut sign = held.last_sign.lock().await;
            let given = self.in_time(held, self.give_sign(held, &mut sign)).await;
            wait = match given {
                Ok(()) => RENEW,
                Err(OrchestratorError::Locked { .. }) => return,
                Err(error) if sign.at.age() >= TRUSTED => {
                    tracing::error!(%error, "the lock cannot be kept");
                    held.stop.signal(Cause::LockLost);
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the lock cannot be kept yet");
                    RETRY
                }
            };
        }
    }

    /// Gives a sign of life, and then sees whether the lock is still held.
    async fn give_sign(&self, held: &HeldLock, sign: &mut Sign) -> Result<(), OrchestratorError> {
        let at = Moment::now();
        let name = format!("{}-alive-{:08x}", held.name, fastrand::u32(..));
        let labels = HashMap::from([(LABEL_ALIVE.to_owned(), held.id.clone())]);
        let id = self.create_marker(&name, labels).await.map_err(self.refused("keeping the lock"))?;
        let former = sign.id.replace(id);
        if let Some(former) = former
            && let Err(error) = self.remove(&former).await
        {
            // The next pass removes what is left of a lock.
            tracing::debug!(%error, "a sign of life stays");
        }
        self.is_held(held).await?;
        sign.at = at;
        Ok(())
    }

    /// Fails when the lock is gone or has another name. The pass ends then.
    async fn is_held(&self, held: &HeldLock) -> Result<(), OrchestratorError> {
        let why = match self.engine.inspect_container(&held.id, None::<InspectContainerOptions>).await {
            Ok(inspected) if inspected.name.as_deref().map(|name| name.trim_start_matches('/')) == Some(&held.name) => {
                return Ok(());
            }
            Ok(_) => "a pass that is taking it over",
            Err(error) if status(&error) == Some(404) => "nobody, for somebody removed it,",
            Err(error) => return Err(self.refused("looking at the own lock")(error)),
        };
        Err(self.lost(held, why))
    }

    /// Tries once to take the lock. `None` when the lock exists already.
    async fn try_lock(&self, name: &str, holder: &Holder, ttl: Duration) -> Result<Option<String>, OrchestratorError> {
        let since = Timestamp::now();
        let until = since.saturating_add(ttl).unwrap_or(Timestamp::MAX);
        let what = "taking the lock";
        let state = LockState { holder: holder.clone(), since, until, shows_life: true };
        let label = encode(state).map_err(|error| {
            let (what, why) = (what.to_owned(), error.to_string());
            OrchestratorError::Refused { what, place: self.place(), why, cure: FAILED }
        })?;
        let labels = HashMap::from([(LABEL_LOCK.to_owned(), label)]);
        match self.create_marker(name, labels).await {
            Ok(id) => Ok(Some(id)),
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

    /// Whether nobody holds this lock any more.
    async fn is_void(&self, lock: &Found, ttl: Duration) -> Result<bool, OrchestratorError> {
        if let Some(state) = &lock.state {
            if holder::is_gone(&state.holder) {
                return Ok(true);
            }
            if holder::is_alive(&state.holder) {
                return Ok(false);
            }
        }
        let (sign, now) = tokio::try_join!(self.last_sign_of(lock), self.engine_time())?;
        Ok(expiry(lock, sign.map(|(_, at)| at), ttl) <= now)
    }

    /// Whether this container is gone within a second.
    async fn goes_away(&self, id: &str) -> bool {
        for _ in 0..20 {
            match self.engine.inspect_container(id, None::<InspectContainerOptions>).await {
                Err(error) if status(&error) == Some(404) => return true,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        false
    }

    /// Takes an abandoned lock away. False when its holder turns out to be alive.
    async fn take_away(&self, lock: &Found, name: &str, ttl: Duration) -> Result<bool, OrchestratorError> {
        const WHAT: &str = "taking over the lock";
        let rename = |to: String| {
            let options = RenameContainerOptionsBuilder::default().name(&to).build();
            self.engine.rename_container(&lock.id, options)
        };
        let void = format!("{name}-void-{:08x}", fastrand::u32(..));
        if let Err(error) = rename(void).await.or_else(gone) {
            // While another pass removes the lock, engines refuse to rename or to remove it in various words.
            return if self.goes_away(&lock.id).await { Ok(true) } else { Err(self.refused(WHAT)(error)) };
        }
        if !self.is_void(lock, ttl).await? {
            return match rename(name.to_owned()).await.or_else(gone) {
                // A third pass took the name meanwhile. It finds the other lock, and gives its own back.
                Err(error) if status(&error) == Some(409) => Ok(false),
                renamed => renamed.map(|()| false).map_err(self.refused(WHAT)),
            };
        }
        for id in self.signs_of(lock).await?.into_iter().map(|(id, _)| id).chain([lock.id.clone()]) {
            if let Err(error) = self.remove(&id).await
                && !self.goes_away(&id).await
            {
                return Err(self.refused(WHAT)(error));
            }
        }
        Ok(true)
    }

    /// The signs of life of the holder of a lock, each with its time by the engine's clock.
    async fn signs_of(&self, lock: &Found) -> Result<Vec<(String, Timestamp)>, OrchestratorError> {
        let filters = HashMap::from([("label", vec![format!("{LABEL_ALIVE}={}", lock.id)])]);
        let signs = self.list(&filters).await?.into_iter().map(|summary| (created(&summary), summary.id));
        Ok(signs.map(|(at, id)| (id.unwrap_or_default(), at)).collect())
    }

    async fn last_sign_of(&self, lock: &Found) -> Result<Option<(String, Timestamp)>, OrchestratorError> {
        Ok(self.signs_of(lock).await?.into_iter().max_by_key(|(_, at)| *at))
    }

    /// The time by the engine's clock; by our own when the engine does not say, as behind a proxy that allows little.
    pub(super) async fn engine_time(&self) -> Result<Timestamp, OrchestratorError> {
        match self.engine.info().await {
            Ok(info) => Ok(info.system_time.and_then(|text| text.parse().ok()).unwrap_or_else(Timestamp::now)),
            Err(error) if status(&error) == Some(403) => Ok(Timestamp::now()),
            Err(error) => Err(self.refused("asking for the engine's time")(error)),
        }
    }

    /// The error for a pass whose lock this is, although it does not have the name of the lock any more. `None` when it is
    /// abandoned.
    pub(super) async fn other_holder(
        &self,
        summary: &ContainerSummary,
    ) -> Result<Option<OrchestratorError>, OrchestratorError> {
        let state = summary.labels.as_ref().and_then(state);
        let found = Found { id: summary.id.clone().unwrap_or_default(), state, created: created(summary) };
        let is_void = self.is_void(&found, FORMER_TTL).await?;
        Ok((!is_void).then(|| self.locked(Some(&found), FORMER_TTL)))
    }

    /// The error for a pass of an earlier version that is still at work; `None` when its lock is void. The lock of that
    /// version has another name, so that the two versions do not exclude each other by themselves.
    pub(super) fn former_lock_holder(&self, summary: &ContainerSummary) -> Option<OrchestratorError> {
        let state = summary.labels.as_ref().and_then(state);
        let found = Found { id: summary.id.clone().unwrap_or_default(), state, created: created(summary) };
        let is_gone = found.state.as_ref().is_some_and(|state| holder::is_gone(&state.holder));
        // A label that cannot be read does not say how long the lock was meant to last, so a fixed time counts.
        let is_void = is_gone || expiry(&found, None, FORMER_TTL) <= Timestamp::now();
        (!is_void).then(|| self.locked(Some(&found), FORMER_TTL))
    }

    fn locked(&self, found: Option<&Found>, ttl: Duration) -> OrchestratorError {
        let place = self.place();
        let Some(found) = found else {
            let (holder, now) = ("several passes at once".to_owned(), format!("{:.0}", Timestamp::now()));
            return OrchestratorError::Locked { place, holder, since: now.clone(), until: now, cure: LOCKED };
        };
        match &found.state {
            Some(state) => {
                let LockState { holder, since, shows_life, until } = state;
                let until = if *shows_life {
                    "it gives no sign of life for a minute".to_owned()
                } else {
                    format!("{until:.0}")
                };
                let cure = if holder::is_alive(holder) { ALIVE } else { LOCKED };
                let holder = format!("pass {} (process {} on {})", holder.pass, holder.pid, holder.host);
                OrchestratorError::Locked { place, holder, since: format!("{since:.0}"), until, cure }
            }
            None => {
                let (holder, since) = ("one that cannot be read".to_owned(), format!("{:.0}", found.created));
                let until = format!("{:.0}", expiry(found, None, ttl));
                OrchestratorError::Locked { place, holder, since, until, cure: LOCKED }
            }
        }
    }
}

fn state(labels: &HashMap<String, String>) -> Option<LockState> {
    labels.get(LABEL_LOCK).and_then(|text| decode(text).ok())
}

fn created(summary: &ContainerSummary) -> Timestamp {
    summary.created.and_then(|second| Timestamp::from_second(second).ok()).unwrap_or_default()
}

/// When a lock counts as abandoned, by the engine's clock. Pure.
///
/// A version before this one gave no signs of life and wrote by its own clock until when its lock lasts. A wrong clock must
/// not make that hours, so it lasts no longer after its creation than was meant. A lock whose label cannot be read lasts
/// `ttl`.
fn expiry(lock: &Found, last_sign: Option<Timestamp>, ttl: Duration) -> Timestamp {
    let after = |time: Timestamp, lasts| time.saturating_add(lasts).unwrap_or(Timestamp::MAX);
    let ttl = SignedDuration::try_from(ttl).unwrap_or(ABANDONED);
    match &lock.state {
        Some(state) if state.shows_life => after(last_sign.unwrap_or_default().max(lock.created), ABANDONED),
        Some(state) => {
            let meant = state.since.duration_until(state.until);
            let longest = ttl.max(SignedDuration::from_hours(1));
            after(lock.created, meant.clamp(SignedDuration::ZERO, longest)).min(state.until)
        }
        None => after(lock.created, ttl),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_mins(14);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn found(since: &str, until: &str, shows_life: bool) -> Found {
        let holder = holder::this_process("p");
        let state = Some(LockState { holder, since: at(since), until: at(until), shows_life });
        Found { id: "l".to_owned(), state, created: at("2026-03-01T12:00:00Z") }
    }

    #[test]
    fn a_lock_lasts_by_the_engines_clock_whatever_the_clock_of_its_holder_shows() {
        for since in ["2026-03-01T12:00:00Z", "2026-03-01T17:00:00Z", "2026-03-01T07:00:00Z"] {
            let lock = found(since, "2126-03-01T12:00:00Z", true);
            assert_eq!(expiry(&lock, None, TTL), at("2026-03-01T12:01:00Z"));
            assert_eq!(expiry(&lock, Some(at("2026-03-01T12:08:30Z")), TTL), at("2026-03-01T12:09:30Z"));
        }
    }

    #[test]
    fn a_lock_of_an_earlier_version_lasts_as_long_as_was_meant_and_not_for_hours() {
        // Its holder's clock was right, then five hours ahead.
        for (since, until) in
            [("2026-03-01T12:00:00Z", "2026-03-01T12:14:00Z"), ("2026-03-01T17:00:00Z", "2026-03-01T17:14:00Z")]
        {
            assert_eq!(expiry(&found(since, until, false), None, TTL), at("2026-03-01T12:14:00Z"));
        }
        let absurd = found("2026-03-01T12:00:00Z", "2126-03-01T12:00:00Z", false);
        assert_eq!(expiry(&absurd, None, TTL), at("2026-03-01T13:00:00Z"));
        let unreadable = Found { state: None, ..absurd };
        assert_eq!(expiry(&unreadable, None, TTL), at("2026-03-01T12:14:00Z"));
    }

    #[test]
    fn a_pass_that_slept_does_not_trust_its_last_sign_of_life() {
        let now = Moment::now();
        let slept = Moment { wall: now.wall - Duration::from_mins(2), ..now };
        let set_back = Moment {
            steady: now.steady.checked_sub(Duration::from_mins(2)).unwrap(),
            wall: now.wall + Duration::from_hours(1),
        };
        assert!(now.age() < TRUSTED && slept.age() >= TRUSTED && set_back.age() >= TRUSTED);
    }
}
