//! Status, health and logs to the platform: what to send (pure), and sending it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Serialize;

use crate::access::Permit;
use crate::desired::{Desired, Rejection};
use crate::memory::Memory;
use crate::model::{Connector, ConnectorId, CurrentStatus, Handle, PlatformKind, VariableValue};
use crate::orchestrator::Orchestrator;
use crate::platform::{Health, Platform, PlatformError};
use crate::render::{VARIABLE_HASH, names_a_secret};
use crate::restart_window::Assessment;
use crate::secret::Secret;
use crate::settle::{After, Afters};
use crate::stop::Stop;

/// Longest wait for one log: the engine may begin a stream and never end it.
const LOG_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for an answer once the pass has to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What to send for one connector.
#[derive(Debug, PartialEq, Eq)]
pub struct Job {
    /// Whose.
    pub connector: ConnectorId,
    /// When it differs from what the platform shows.
    pub status: Option<CurrentStatus>,
    /// When it runs, or is held for a reboot loop.
    pub health: Option<Health>,
    /// The workload whose log to send, when it can have changed.
    pub logs: Option<Handle>,
    /// To be masked in it.
    pub secrets: Vec<Secret>,
}

/// What could not be sent.
#[derive(Debug)]
pub struct Failure {
    /// Whose.
    pub connector: ConnectorId,
    /// Status, health or logs.
    pub what: &'static str,
    /// Why.
    pub error: String,
    /// What to do.
    pub cure: String,
    /// Whether the platform as a whole could not be used.
    pub platform_gone: bool,
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
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { status: self.status + other.status, health: self.health + other.health, logs: self.logs + other.logs }
    }
}

/// What to send for each listed connector that is `wanted`. Pure.
#[must_use]
pub fn jobs(
    desired: &Desired,
    afters: &Afters,
    assessments: &BTreeMap<ConnectorId, Assessment>,
    memory: &Memory,
    now: Timestamp,
    wanted: impl Fn(&ConnectorId) -> bool,
) -> Vec<Job> {
    let usable = desired.connectors.values().map(|connector| (&connector.id, Some(connector.shown), Some(connector)));
    // What the platform shows of an entry that cannot be read is not known, and so neither is what would be new to it.
    let rejected = desired.rejected.values().map(|rejected| {
        let unread = matches!(rejected.reason, Rejection::Unreadable { .. } | Rejection::ListedTwice);
        (&rejected.id, (!unread).then_some(rejected.shown), None)
    });
    let listed = usable.chain(rejected).filter(|(id, ..)| wanted(id) && !afters.is_unknown(id));
    listed
        .filter_map(|(id, shown, connector)| {
            let after = afters.states.get(id);
            let up = after.is_some_and(|after| after.phase.is_up());
            let status = if up { CurrentStatus::Started } else { CurrentStatus::Stopped };
            let status = shown.is_some_and(|shown| shown != Some(status)).then_some(status);
            // The log of a workload that is down and was not touched is on the platform already.
            // Without its environment nobody knows what to mask in it.
            let logs = after.filter(|after| !after.environment.is_empty());
            let logs = logs.filter(|after| up || after.touched || status.is_some());
            let held = memory.connectors.get(id).is_some_and(|connector| connector.held.is_some());
            let job = Job {
                connector: id.clone(),
                status,
                health: after.filter(|_| up || held).and_then(|after| health(after, assessments.get(id), held, now)),
                logs: logs.map(|after| after.handle.clone()),
                secrets: after.map(|after| secrets(connector, &after.environment)).unwrap_or_default(),
            };
            (job.status.is_some() || job.health.is_some() || job.logs.is_some()).then_some(job)
        })
        .collect()
}

fn health(after: &After, assessment: Option<&Assessment>, held: bool, now: Timestamp) -> Option<Health> {
    let vitals = after.vitals.as_ref()?;
    Some(Health {
        restarts: assessment.map_or(vitals.restarts, |assessment| assessment.total),
        started_at: vitals.started_at.unwrap_or(now),
        looping: held || assessment.is_some_and(|assessment| assessment.looping),
    })
}

/// Values of a workload's environment that must not be shown: what the platform encrypts, and what is named like a secret.
/// Of a connector that was rejected it is not known what is encrypted: there it is all but what is known to be harmless.
fn secrets(connector: Option<&Connector>, environment: &[(String, Secret)]) -> Vec<Secret> {
    let harmless = [VARIABLE_HASH, PlatformKind::OpenCti.url_variable(), "CONNECTOR_NAME", "CONNECTOR_TYPE"];
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
    /// Where the logs come from.
    pub orchestrator: &'a O,
    /// Where all goes.
    pub platform: Arc<dyn Platform>,
    /// The right to.
    pub permit: Permit,
    /// Last lines of each log.
    pub tail: u32,
    /// Connectors at a time.
    pub concurrency: usize,
    /// When to leave the rest to the next pass.
    pub stop: &'a Stop,
}

impl<O: Orchestrator> Publisher<'_, O> {
    /// Sends all jobs. A stopped pass still sends statuses: they tell what it did.
    pub async fn publish(&self, jobs: Vec<Job>) -> (Sent, Vec<Failure>) {
        let gone = AtomicBool::new(false);
        let sending = jobs.into_iter().map(|job| self.send(job, &gone));
        let all = futures_util::stream::iter(sending).buffer_unordered(self.concurrency).collect::<Vec<_>>().await;
        let mut sent = Sent::default();
        let mut failures = Vec::new();
        for (one, mut failed) in all {
            sent = sent.and(one);
            failures.append(&mut failed);
        }
        failures.sort_by(|a, b| a.connector.cmp(&b.connector));
        (sent, failures)
    }

    async fn send(&self, job: Job, gone: &AtomicBool) -> (Sent, Vec<Failure>) {
        let mut sent = Sent::default();
        let mut failures = Vec::new();
        let stopped = self.stop.cause().is_some();
        let Job { connector, status, health, logs, secrets } = job;
        if let Some(health) = health.filter(|_| !stopped) {
            let call =
                move |platform: &dyn Platform, permit, id: &ConnectorId| platform.set_health(permit, id, &health);
            sent.health += usize::from(self.call(&connector, "health", gone, &mut failures, call).await);
        }
        if let Some(handle) = logs.filter(|_| !stopped && self.tail > 0) {
            sent.logs += usize::from(self.send_logs(&connector, &handle, &secrets, gone, &mut failures).await);
        }
        if let Some(status) = status {
            let call = move |platform: &dyn Platform, permit, id: &ConnectorId| platform.set_status(permit, id, status);
            sent.status += usize::from(self.call(&connector, "status", gone, &mut failures, call).await);
        }
        (sent, failures)
    }

    async fn send_logs(
        &self,
        connector: &ConnectorId,
        handle: &Handle,
        secrets: &[Secret],
        gone: &AtomicBool,
        failures: &mut Vec<Failure>,
    ) -> bool {
        let secrets: Vec<&Secret> = secrets.iter().collect();
        let reading = tokio::time::timeout(LOG_TIMEOUT, self.orchestrator.logs(handle, self.tail, &secrets));
        let Some(Ok(read)) = self.patiently(reading).await else {
            let error = format!("the log of {handle} did not come within {} s", LOG_TIMEOUT.as_secs());
            let cure = "see what keeps the engine, or the node, from giving it".to_owned();
            let connector = connector.clone();
            failures.push(Failure { connector, what: "logs", error, cure, platform_gone: false });
            return false;
        };
        match read {
            Ok(lines) if lines.is_empty() => false,
            Ok(lines) => {
                let call =
                    move |platform: &dyn Platform, permit, id: &ConnectorId| platform.set_logs(permit, id, &lines);
                self.call(connector, "logs", gone, failures, call).await
            }
            Err(error) => {
                failures.push(Failure {
                    connector: connector.clone(),
                    what: "logs",
                    error: error.to_string(),
                    cure: error.cure().to_owned(),
                    platform_gone: false,
                });
                false
            }
        }
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
        let failure = |error: String, cure: &str, platform_gone| Failure {
            connector: connector.clone(),
            what,
            error,
            cure: cure.to_owned(),
            platform_gone,
        };
        if gone.load(Ordering::Relaxed) {
            failures.push(failure("not sent: the platform went away".to_owned(), "the next pass sends it", true));
            return false;
        }
        let (platform, permit, id) = (Arc::clone(&self.platform), self.permit, connector.clone());
        let answer = tokio::task::spawn_blocking(move || call(platform.as_ref(), permit, &id));
        let Some(answer) = self.patiently(answer).await else {
            gone.store(true, Ordering::Relaxed);
            failures.push(failure(
                "no answer came before the pass had to end".to_owned(),
                "the next pass sends it",
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
                failures.push(failure(error.to_string(), &cure, platform_gone));
                false
            }
            Err(lost) => {
                failures.push(failure(lost.to_string(), "report it, with the log", false));
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
