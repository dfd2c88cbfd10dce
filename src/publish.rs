//! Status, health and logs to the platform: what to send (pure), and sending it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Serialize;

use crate::access::Permit;
use crate::after_apply::{WorkloadAfter, WorkloadsAfter};
use crate::desired::{Desired, Rejected, Rejection};
use crate::log_cursor::{LogCursor, LogPart};
use crate::memory::Memory;
use crate::model::{
    Connector, ConnectorId, Cure, CurrentStatus, Handle, Observed, PlatformKind, VariableValue, Workload,
};
use crate::orchestrator::{LogRead, LogRequest, Orchestrator, OrchestratorError};
use crate::platform::{Health, LogDelivery, Platform, PlatformError};
use crate::render::{VARIABLE_HASH, names_a_secret};
use crate::restart_window::{self, Assessment, LoopRule, Reading};
use crate::secret::Secret;
use crate::stop::Stop;

/// Longest wait for one log: the engine may begin a stream and never end it.
const LOG_TIMEOUT: Duration = Duration::from_secs(30);
/// Deliveries that a platform keeps of an appended log (contracts 3): more than so many times the tail would push each other out.
const KEPT: u32 = 10;
/// Longest wait for an answer once the pass has to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What to send for one connector.
#[derive(Debug)]
pub struct Publication {
    pub(crate) connector: ConnectorId,
    /// When it differs from what the platform shows.
    pub(crate) status: Option<CurrentStatus>,
    /// When it runs, or is held for a reboot loop.
    pub(crate) health: Option<Health>,
    /// The workload whose log to send, when it can have changed.
    pub(crate) logs: Option<Handle>,
    /// The last log of a workload that is gone, to be sent before.
    pub(crate) last_log: Option<Result<LogRead, OrchestratorError>>,
    /// How far its log was delivered before.
    pub(crate) delivered: Option<LogCursor>,
    /// To be masked in the log.
    pub(crate) secrets: Vec<Secret>,
}

/// What could not be sent.
#[derive(Debug)]
pub struct Failure {
    pub(crate) connector: ConnectorId,
    /// Status, health or logs.
    pub(crate) what: &'static str,
    pub(crate) error: String,
    pub(crate) cure: Cure,
    /// Whether the platform as a whole could not be used.
    pub(crate) platform_gone: bool,
}

/// What became of publications.
#[derive(Debug, Default)]
pub struct Published {
    pub(crate) sent: Sent,
    pub(crate) failures: Vec<Failure>,
    /// How far logs were delivered, for the next memory.
    pub(crate) delivered: BTreeMap<ConnectorId, LogCursor>,
}

impl Published {
    /// Adds what became of others.
    pub fn add(&mut self, other: Self) {
        self.sent = self.sent.and(other.sent);
        self.failures.extend(other.failures);
        self.delivered.extend(other.delivered);
    }
}

/// How much was sent.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Statuses.
    pub status: usize,
    /// Health.
    pub health: usize,
    /// Logs.
    pub logs: usize,
}

impl Sent {
    /// The sums.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { status: self.status + other.status, health: self.health + other.health, logs: self.logs + other.logs }
    }
}

/// What decides which publications there are.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    pub(crate) platform: PlatformKind,
    pub(crate) desired: &'a Desired,
    pub(crate) after: &'a WorkloadsAfter,
    pub(crate) assessments: &'a BTreeMap<ConnectorId, Assessment>,
    pub(crate) memory: &'a Memory,
    pub(crate) now: Timestamp,
}

/// An entry of the platform's list.
#[derive(Debug, Clone, Copy)]
enum Listed<'a> {
    Usable(&'a Connector),
    Rejected(&'a Rejected),
}

impl<'a> Listed<'a> {
    fn id(self) -> &'a ConnectorId {
        match self {
            Self::Usable(connector) => &connector.id,
            Self::Rejected(rejected) => &rejected.id,
        }
    }

    /// Whether the platform shows something else than `status`. What it shows of an entry that cannot be read is not known,
    /// and so neither is what would be new to it.
    fn shows_otherwise(self, status: CurrentStatus) -> bool {
        match self {
            Self::Usable(connector) => connector.shown != Some(status),
            Self::Rejected(rejected) => {
                let unread = matches!(rejected.reason, Rejection::Unreadable { .. } | Rejection::ListedTwice);
                !unread && rejected.shown != Some(status)
            }
        }
    }
}

/// What to send for each listed connector that is `wanted`. Pure.
#[must_use]
pub fn publications(state: State<'_>, wanted: impl Fn(&ConnectorId) -> bool) -> Vec<Publication> {
    let usable = state.desired.connectors.values().map(Listed::Usable);
    let listed = usable.chain(state.desired.rejected.values().map(Listed::Rejected));
    listed
        .filter(|listed| wanted(listed.id()) && !state.after.is_unknown(listed.id()))
        .map(|listed| publication(state, listed))
        .filter(|one| one.status.is_some() || one.health.is_some() || one.logs.is_some())
        .collect()
}

fn publication(state: State<'_>, listed: Listed<'_>) -> Publication {
    let id = listed.id();
    let connector = match listed {
        Listed::Usable(connector) => Some(connector),
        Listed::Rejected(_) => None,
    };
    let after = state.after.workloads.get(id);
    let up = after.is_some_and(|after| after.phase.is_up());
    let status = if up { CurrentStatus::Started } else { CurrentStatus::Stopped };
    let status = Some(status).filter(|status| listed.shows_otherwise(*status));
    // The log of a workload that is down and was not touched is on the platform already.
    // Without its environment nobody knows what to mask in it.
    let logs = after.filter(|after| !after.environment.is_empty());
    let logs = logs.filter(|after| up || after.touched || status.is_some());
    let memory = state.memory.connectors.get(id);
    let held = memory.is_some_and(|memory| memory.held.is_some());
    let assessment = state.assessments.get(id);
    Publication {
        connector: id.clone(),
        status,
        health: after.filter(|_| up || held).and_then(|after| health(after, assessment, held, state.now)),
        logs: logs.map(|after| after.handle.clone()),
        last_log: None,
        delivered: memory.and_then(|memory| memory.log.clone()),
        secrets: after.map(|after| secrets(state.platform, connector, &after.environment)).unwrap_or_default(),
    }
}

/// Health of the workloads that run, when the list could not be had: without it they would look dead on the platform after a
/// few minutes, though it is the list alone that is broken.
#[must_use]
pub fn health_alone(observed: &Observed, memory: &Memory, rule: LoopRule, now: Timestamp) -> Vec<Publication> {
    let ours = observed.workloads.iter().filter(|workload| workload.platform.is_some() && workload.phase.is_up());
    let one = |workload: &Workload| {
        let vitals = workload.vitals.as_ref()?;
        let known = memory.connectors.get(&workload.connector).and_then(|connector| connector.window.as_ref());
        let generation = vitals.generation.as_deref().unwrap_or(&workload.handle.0);
        let (counter, backing_off) = (vitals.restarts, vitals.backing_off);
        let reading = Reading { counter, generation, created: workload.created, backing_off };
        let (_, assessment) = restart_window::observe(known, reading, 0, rule, now);
        let started_at = vitals.started_at.unwrap_or(now);
        let health = Some(Health { restarts: assessment.total, started_at, looping: assessment.looping });
        let connector = workload.connector.clone();
        let (status, logs, last_log, delivered, secrets) = (None, None, None, None, vec![]);
        Some(Publication { connector, status, health, logs, last_log, delivered, secrets })
    };
    ours.filter_map(one).collect()
}

fn health(after: &WorkloadAfter, assessment: Option<&Assessment>, held: bool, now: Timestamp) -> Option<Health> {
    let vitals = after.vitals.as_ref()?;
    Some(Health {
        restarts: assessment.map_or(vitals.restarts, |assessment| assessment.total),
        started_at: vitals.started_at.unwrap_or(now),
        looping: held || assessment.is_some_and(|assessment| assessment.looping),
    })
}

/// Values of a workload's environment that must not be shown: what the platform encrypts, and what is named like a secret.
/// Of a connector that was rejected it is not known what is encrypted: there it is all but what is known to be harmless.
pub(crate) fn secrets(
    platform: PlatformKind,
    connector: Option<&Connector>,
    environment: &[(String, Secret)],
) -> Vec<Secret> {
    let harmless = [VARIABLE_HASH, platform.url_variable(), "CONNECTOR_NAME", "CONNECTOR_TYPE"];
    let encrypted = |name: &str| {
        connector.map_or(!harmless.contains(&name), |connector| {
            let mut variables = connector.variables.iter();
            variables.any(|v| v.name == name && matches!(v.value, VariableValue::Encrypted(_)))
        })
    };
    let sensitive = |name: &str, value: &Secret| {
        let proxy = name.to_ascii_uppercase().ends_with("_PROXY");
        encrypted(name) || (names_a_secret(name) && !proxy) || (proxy && value.expose().contains('@'))
    };
    let trivial =
        |value: &Secret| matches!(value.expose().to_ascii_lowercase().as_str(), "true" | "false" | "none" | "null");
    // What the platform sends in clear is known even where the workload does not show it.
    let clear = connector.map(|connector| connector.variables.as_slice()).unwrap_or_default().iter();
    let clear = clear.filter_map(|variable| match &variable.value {
        VariableValue::Clear(value) => Some((&variable.name, value)),
        VariableValue::Encrypted(_) => None,
    });
    let own = environment.iter().map(|(name, value)| (name, value));
    let found = own.chain(clear).filter(|(name, value)| sensitive(name, value) && !trivial(value));
    found.map(|(_, value)| value.clone()).collect()
}

/// Everything that sending takes.
pub struct Publisher<'a, O> {
    pub(crate) orchestrator: &'a O,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) permit: Permit,
    /// Last lines of each log.
    pub(crate) tail: u32,
    /// Connectors that are served at the same time.
    pub(crate) concurrency: usize,
    /// When to leave the rest to the next pass.
    pub(crate) stop: &'a Stop,
}

/// The part of a log that a platform gets, which either replaces what it shows or is added to it.
#[must_use]
pub fn log_part(delivery: LogDelivery, delivered: Option<&LogCursor>, tail: u32) -> LogPart<'_> {
    match delivery {
        LogDelivery::Replace => LogPart::Last(tail),
        LogDelivery::Append => LogPart::New { after: delivered, first: tail, most: tail.saturating_mul(KEPT) },
    }
}

impl<O: Orchestrator> Publisher<'_, O> {
    /// Sends all publications. A stopped pass still sends statuses: they tell what it did.
    pub async fn publish(&self, publications: Vec<Publication>) -> Published {
        let gone = AtomicBool::new(false);
        let sending = publications.into_iter().map(|one| self.send(one, &gone));
        let all = futures_util::stream::iter(sending).buffer_unordered(self.concurrency).collect::<Vec<_>>().await;
        let mut published = Published::default();
        for one in all {
            published.add(one);
        }
        published.failures.sort_by(|a, b| a.connector.cmp(&b.connector));
        published
    }

    async fn send(&self, mut publication: Publication, gone: &AtomicBool) -> Published {
        let mut published = Published::default();
        let stopped = self.stop.cause().is_some();
        let connector = publication.connector.clone();
        if let Some(health) = publication.health.take().filter(|_| !stopped) {
            let call =
                move |platform: &dyn Platform, permit, id: &ConnectorId| platform.set_health(permit, id, &health);
            published.sent.health +=
                usize::from(self.call(&connector, "health", gone, &mut published.failures, call).await);
        }
        if !stopped && self.tail > 0 {
            self.send_logs(&mut publication, gone, &mut published).await;
        }
        if let Some(status) = publication.status {
            let call = move |platform: &dyn Platform, permit, id: &ConnectorId| platform.set_status(permit, id, status);
            published.sent.status +=
                usize::from(self.call(&connector, "status", gone, &mut published.failures, call).await);
        }
        published
    }

    async fn send_logs(&self, publication: &mut Publication, gone: &AtomicBool, published: &mut Published) {
        let connector = publication.connector.clone();
        let mut lines = Vec::new();
        let mut cursor = None;
        let last = publication.last_log.take();
        let current = match &publication.logs {
            Some(handle) => self.read_log(&connector, handle, publication, &mut published.failures).await,
            None => None,
        };
        for read in last.into_iter().chain(current) {
            match read {
                Ok(read) => {
                    lines.extend(read.lines);
                    cursor = read.cursor.or(cursor);
                }
                Err(error) => {
                    let (cure, error) = (error.cure(), error.to_string());
                    let connector = connector.clone();
                    published.failures.push(Failure { connector, what: "logs", error, cure, platform_gone: false });
                }
            }
        }
        let nothing = match self.platform.log_delivery() {
            LogDelivery::Replace => lines.is_empty(),
            // The platform drops blank entries itself (contracts 3).
            LogDelivery::Append => lines.iter().all(|line| line.trim().is_empty()),
        };
        if !nothing {
            let call = move |platform: &dyn Platform, permit, id: &ConnectorId| platform.set_logs(permit, id, &lines);
            if !self.call(&connector, "logs", gone, &mut published.failures, call).await {
                return;
            }
            published.sent.logs += 1;
        }
        if let Some(cursor) = cursor.filter(|cursor| publication.delivered.as_ref() != Some(cursor)) {
            published.delivered.insert(connector, cursor);
        }
    }

    /// `None`: no answer came in time, which is a failure already.
    async fn read_log(
        &self,
        connector: &ConnectorId,
        handle: &Handle,
        publication: &Publication,
        failures: &mut Vec<Failure>,
    ) -> Option<Result<LogRead, OrchestratorError>> {
        let part = log_part(self.platform.log_delivery(), publication.delivered.as_ref(), self.tail);
        let request = LogRequest { part, secrets: &publication.secrets };
        let reading = tokio::time::timeout(LOG_TIMEOUT, self.orchestrator.logs(handle, &request));
        if let Some(Ok(read)) = self.patiently(reading).await {
            return Some(read);
        }
        let error = format!("the log of {handle} did not come within {} s", LOG_TIMEOUT.as_secs());
        let (connector, cure) = (connector.clone(), Cure("see what keeps the engine, or the node, from giving it"));
        failures.push(Failure { connector, what: "logs", error, cure, platform_gone: false });
        None
    }

    /// One call on a thread that may block. After the platform went away, the rest is not even tried.
    async fn call(
        &self,
        connector: &ConnectorId,
        what: &'static str,
        gone: &AtomicBool,
        failures: &mut Vec<Failure>,
        call: impl FnOnce(&dyn Platform, Permit, &ConnectorId) -> Result<(), PlatformError> + Send + 'static,
    ) -> bool {
        let failure = |error: String, cure, platform_gone| Failure {
            connector: connector.clone(),
            what,
            error,
            cure,
            platform_gone,
        };
        if gone.load(Ordering::Relaxed) {
            failures.push(failure("not sent: the platform went away".to_owned(), Cure("the next pass sends it"), true));
            return false;
        }
        let (platform, permit, id) = (Arc::clone(&self.platform), self.permit, connector.clone());
        let answer = tokio::task::spawn_blocking(move || call(platform.as_ref(), permit, &id));
        let Some(answer) = self.patiently(answer).await else {
            gone.store(true, Ordering::Relaxed);
            failures.push(failure(
                "no answer came before the pass had to end".to_owned(),
                Cure("the next pass sends it"),
                true,
            ));
            return false;
        };
        match answer {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                let platform_gone = error.is_general();
                if platform_gone {
                    gone.store(true, Ordering::Relaxed);
                }
                let cure = error.cure().on(self.platform.kind());
                tracing::error!(%connector, what, %error, cure, "cannot be published");
                failures.push(failure(error.to_string(), error.cure(), platform_gone));
                false
            }
            Err(lost) => {
                failures.push(failure(lost.to_string(), Cure("report it, with the log"), false));
                false
            }
        }
    }

    /// Waits for an answer; once the pass has to end, not for long: whoever ended it may not wait until a request times
    /// out before killing the process, and the lock is still to be given back.
    async fn patiently<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            answer = answer => Some(answer),
            () = async { self.stop.stopped().await; tokio::time::sleep(LAST_WORDS).await } => None,
        }
    }
}
