//! Decides which statuses, health and logs to send to the platform (pure), and sends them.

mod delivery;
mod reach;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
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
use crate::orchestrator::{LOG_TIMEOUT, LogRead, LogRequest, Orchestrator, OrchestratorError};
use crate::platform::{Health, LogDelivery, Platform, PlatformError};
use crate::render::{VARIABLE_HASH, names_a_secret};
use crate::restart_window::{self, Assessment, LoopRule, Reading};
use crate::secret::Secret;
use crate::stop::{Cause, Stop, Until};
use delivery::within_bounds;
use reach::Reach;

/// How many deliveries of an appended log a platform keeps (contracts 3). A delivery of more than this many times the
/// tail would push out its own beginning.
const KEPT: u32 = 10;
/// Longest wait for one answer once the pass has to end.
const LAST_WORDS: Duration = Duration::from_secs(5);
const LOG_REFUSED: Cure = Cure(
    "the platform answers other requests: see what it, or a proxy before it, has against the size or the content of this log, \
     or lower MANAGER__LOGS_TAIL",
);

/// What to send for one connector.
#[derive(Debug)]
pub struct Publication {
    pub(crate) connector: ConnectorId,
    /// `None` when the platform shows the right status already.
    pub(crate) status: Option<CurrentStatus>,
    /// `None` for a workload that neither runs nor is held for a reboot loop.
    pub(crate) health: Option<Health>,
    /// The workload whose log to send. `None` when the platform has its log already.
    pub(crate) logs: Option<Handle>,
    /// The last log of the workload that a step replaced, to be sent before the log of the new one.
    pub(crate) last_log: Option<Result<LogRead, OrchestratorError>>,
    /// How far earlier passes delivered its log. `None` when they delivered nothing, or the platform replaces logs.
    pub(crate) delivered: Option<LogCursor>,
    /// The values to mask in the log.
    pub(crate) secrets: Vec<Secret>,
}

impl Publication {
    /// The same without anything of a log, which takes long and says nothing about whether the connector is alive.
    pub(crate) fn without_logs(self) -> Self {
        Self { logs: None, last_log: None, ..self }
    }

    /// The publication for a connector about whose workload nothing else is known.
    pub(crate) fn of_last_log(connector: ConnectorId, last_log: Result<LogRead, OrchestratorError>) -> Self {
        let (status, health, logs, delivered, secrets) = (None, None, None, None, vec![]);
        Self { connector, status, health, logs, last_log: Some(last_log), delivered, secrets }
    }
}

/// One thing that could not be sent.
#[derive(Debug)]
pub struct Failure {
    pub(crate) connector: ConnectorId,
    /// `status`, `health` or `logs`.
    pub(crate) what: &'static str,
    pub(crate) error: String,
    pub(crate) cure: Cure,
    /// Whether the platform as a whole cannot be used, so that the rest is not sent either.
    pub(crate) platform_gone: bool,
}

/// What was sent and what was not.
#[derive(Debug, Default)]
pub struct Published {
    pub(crate) sent: Sent,
    pub(crate) failures: Vec<Failure>,
    /// How far logs are delivered now, for the next memory.
    pub(crate) delivered: BTreeMap<ConnectorId, LogCursor>,
}

impl Published {
    /// Adds the result of other publications.
    pub fn add(&mut self, other: Self) {
        self.sent = self.sent.and(other.sent);
        self.failures.extend(other.failures);
        self.delivered.extend(other.delivered);
    }
}

/// How many statuses, health messages and logs were sent.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sent {
    pub(crate) status: usize,
    pub(crate) health: usize,
    pub(crate) logs: usize,
}

impl Sent {
    /// Adds the numbers of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { status: self.status + other.status, health: self.health + other.health, logs: self.logs + other.logs }
    }
}

/// Everything on which the publications depend.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    pub(crate) platform: PlatformKind,
    pub(crate) desired: &'a Desired,
    pub(crate) after: &'a WorkloadsAfter,
    pub(crate) assessments: &'a BTreeMap<ConnectorId, Assessment>,
    pub(crate) memory: &'a Memory,
    pub(crate) now: Timestamp,
}

/// A connector of the platform's list.
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

    /// Whether the platform is known to show something other than `status`. It is unknown what it shows of an entry
    /// that cannot be read, so no status is sent for such an entry.
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

/// Decides what to send for each listed connector that is `wanted`. Pure.
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

/// Decides what to send for one usable connector. Pure.
pub(crate) fn publication_of(state: State<'_>, connector: &Connector) -> Publication {
    publication(state, Listed::Usable(connector))
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
    // The platform already has the log of a workload that is down and was not touched. Without the environment of the
    // workload it is unknown what to mask in the log.
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

/// The health of the workloads that run, for a pass that could not get the list. Without it they would look dead on the
/// platform after a few minutes, although only the list is broken.
#[must_use]
pub fn health_alone(observed: &Observed, memory: &Memory, rule: LoopRule, now: Timestamp) -> Vec<Publication> {
    let ours = observed.workloads.iter().filter(|workload| workload.platform.is_some() && workload.phase.is_up());
    let one = |workload: &Workload| {
        let vitals = workload.vitals.as_ref()?;
        let known = memory.connectors.get(&workload.connector).and_then(|connector| connector.window.as_ref());
        let generation = vitals.generation.as_deref().unwrap_or(&workload.handle.0);
        let (counter, backing_off) = (vitals.restarts, vitals.backing_off);
        let reading = Reading { counter, generation, created: workload.created, backing_off };
        let (_, assessment) = restart_window::observe(known, reading, 0, rule, memory.last_pass, now);
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

/// The values in a workload's environment that must not be shown: those that the platform encrypts, and those that are
/// named like a secret. For a connector that was rejected it is unknown what is encrypted, so all values count except
/// harmless ones.
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
    // The platform also sends values in clear, which are known even if the workload does not show them.
    let clear = connector.map(|connector| connector.variables.as_slice()).unwrap_or_default().iter();
    let clear = clear.filter_map(|variable| match &variable.value {
        VariableValue::Clear(value) => Some((&variable.name, value)),
        VariableValue::Encrypted(_) => None,
    });
    let own = environment.iter().map(|(name, value)| (name, value));
    let found = own.chain(clear).filter(|(name, value)| sensitive(name, value) && !trivial(value));
    found.map(|(_, value)| value.clone()).collect()
}

/// What is needed to send publications.
pub struct Publisher<'a, O> {
    pub(crate) orchestrator: &'a O,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) permit: Permit,
    /// How many lines of each log to send; 0 sends no logs.
    pub(crate) tail: u32,
    /// How many connectors are served at the same time.
    pub(crate) concurrency: usize,
    /// Once it stops, health and logs are left to the next pass.
    pub(crate) stop: &'a Stop,
}

/// The part of a log to send. A platform that replaces what it has gets the last `tail` lines, and one that appends
/// gets only what is new.
#[must_use]
pub fn log_part(delivery: LogDelivery, delivered: Option<&LogCursor>, tail: u32) -> LogPart<'_> {
    match delivery {
        LogDelivery::Replace => LogPart::Last(tail),
        LogDelivery::Append => LogPart::New { after: delivered, first: tail, most: tail.saturating_mul(KEPT) },
    }
}

impl<O: Orchestrator> Publisher<'_, O> {
    /// Sends all publications. A pass that has to stop still sends statuses, because they show what it did.
    pub async fn publish(&self, publications: Vec<Publication>) -> Published {
        self.publish_as_they_come(futures_util::stream::iter(publications)).await
    }

    /// Sends each publication as soon as it comes, until there will be no more.
    pub(crate) async fn publish_as_they_come(&self, publications: impl Stream<Item = Publication>) -> Published {
        let reach = Reach::default();
        let sending = publications.map(|one| self.send(one, &reach));
        let all = sending.buffer_unordered(self.concurrency).collect::<Vec<_>>().await;
        let mut published = Published::default();
        for one in all {
            published.add(one);
        }
        published.failures.sort_by(|a, b| a.connector.cmp(&b.connector));
        published
    }

    async fn send(&self, mut publication: Publication, reach: &Reach) -> Published {
        let mut published = Published::default();
        if self.stop.cause() == Some(Cause::LockLost) {
            // Whoever has the lock now tells the platform.
            return published;
        }
        let stopped = self.stop.cause().is_some();
        let connector = publication.connector.clone();
        if let Some(health) = publication.health.take().filter(|_| !stopped) {
            let call =
                move |platform: &dyn Platform, permit, id: &ConnectorId| platform.set_health(permit, id, &health);
            published.sent.health +=
                usize::from(self.call(&connector, "health", reach, &mut published.failures, call).await);
        }
        if stopped {
            // What a step read of a workload that is gone cannot be had again, so that is sent all the same.
            publication.logs = None;
        }
        if self.tail > 0 {
            self.send_logs(&mut publication, reach, &mut published).await;
        }
        if let Some(status) = publication.status {
            let call = move |platform: &dyn Platform, permit, id: &ConnectorId| platform.set_status(permit, id, status);
            published.sent.status +=
                usize::from(self.call(&connector, "status", reach, &mut published.failures, call).await);
        }
        published
    }

    async fn send_logs(&self, publication: &mut Publication, reach: &Reach, published: &mut Published) {
        let connector = publication.connector.clone();
        let mut lines = Vec::new();
        let mut cursor = None;
        let last = publication.last_log.take();
        if let Some(Ok(LogRead { cursor: Some(reached), .. })) = &last {
            // The same workload may still be there, as a pod is for a while: its lines must not come twice.
            publication.delivered = Some(reached.clone());
        }
        let before = publication.delivered.clone().filter(|_| last.is_none());
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
        if self.platform.log_delivery() == LogDelivery::Append {
            lines = within_bounds(lines);
        }
        let nothing = match self.platform.log_delivery() {
            LogDelivery::Replace => lines.is_empty(),
            // The platform drops blank lines itself (contracts 3).
            LogDelivery::Append => lines.iter().all(|line| line.trim().is_empty()),
        };
        if !nothing {
            let call = move |platform: &dyn Platform, permit, id: &ConnectorId| platform.set_logs(permit, id, &lines);
            if !self.call(&connector, "logs", reach, &mut published.failures, call).await {
                return;
            }
            published.sent.logs += 1;
        }
        if let Some(cursor) = cursor.filter(|cursor| before.as_ref() != Some(cursor)) {
            published.delivered.insert(connector, cursor);
        }
    }

    /// Reads the log to send. `None` when it did not come in time, which is added to `failures`.
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

    /// Makes a call on a thread that may block, and returns whether it succeeded. Once a call finds the platform
    /// gone, later ones are not tried.
    async fn call(
        &self,
        connector: &ConnectorId,
        what: &'static str,
        reach: &Reach,
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
        if reach.is_cut() {
            failures.push(failure("not sent: the pass had to end".to_owned(), Cure("the next pass sends it"), false));
            return false;
        }
        if reach.is_gone() {
            failures.push(failure("not sent: the platform went away".to_owned(), Cure("the next pass sends it"), true));
            return false;
        }
        let (platform, permit, id) = (Arc::clone(&self.platform), self.permit, connector.clone());
        let answer = tokio::task::spawn_blocking(move || call(platform.as_ref(), permit, &id));
        let Some(answer) = self.patiently(answer).await else {
            reach.cut();
            failures.push(failure(
                "no answer came before the pass had to end".to_owned(),
                Cure("the next pass sends it"),
                false,
            ));
            return false;
        };
        match answer {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                // A log can be what a proxy does not let through, for its size or its content, and OpenAEV's is sent only
                // once. So one that fails says nothing yet about the platform, and a small request tells.
                let alone = what == "logs" && error.is_general() && self.still_answers(reach).await;
                // After the pass had to end, requests are given less time, so that this says nothing either.
                let late = error.is_general() && self.stop.cause().is_some();
                let platform_gone = error.is_general() && !alone && !late;
                if platform_gone {
                    reach.lose();
                } else if late {
                    reach.cut();
                }
                let cure = if alone { LOG_REFUSED } else { error.cure() };
                let told = cure.on(self.platform.kind());
                tracing::error!(%connector, what, %error, cure = told, "cannot be published");
                failures.push(failure(error.to_string(), cure, platform_gone));
                false
            }
            Err(lost) => {
                failures.push(failure(lost.to_string(), Cure("report it, with the log"), false));
                false
            }
        }
    }

    /// Whether the platform answers a small request after another one failed. Also false when the pass has to end first.
    async fn still_answers(&self, reach: &Reach) -> bool {
        let answers = reach.answers_since(Instant::now(), &self.platform);
        self.patiently(answers).await.unwrap_or(false)
    }

    /// Waits for an answer. Once the pass has to end, that takes a few seconds at most, so that one answer that does not
    /// come leaves time for what comes after it.
    async fn patiently<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let answer = async {
            tokio::select! {
                biased;
                answer = answer => Some(answer),
                () = async { self.stop.stopped().await; tokio::time::sleep(LAST_WORDS).await } => None,
            }
        };
        self.stop.within(Until::Published, answer).await.flatten()
    }
}
