//! Judges a Deployment and its pods: the phase of the connector, its restarts, its troubles and where its log is. Pure.

use jiff::{SignedDuration, Timestamp};

use super::objects::{ContainerStatus, Deployment, Pod};
use crate::model::{Phase, Trouble, TroubleKind, Vitals};
use crate::render::kubernetes::CONTAINER;

/// After a crash, a run that is younger than this has written little yet. Its owner wants to read the log of the run
/// before.
const YOUNG: SignedDuration = SignedDuration::from_mins(1);

/// A pod that is pending or ending for longer is reported as a trouble, even if nothing says why.
const STUCK: SignedDuration = SignedDuration::from_mins(10);
/// An end of a container that is longer ago is not reported any more.
const LATELY: SignedDuration = SignedDuration::from_hours(1);

/// The result of the judgement on one connector.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) phase: Phase,
    pub(super) vitals: Option<Vitals>,
    pub(super) troubles: Vec<Trouble>,
    pub(super) log: Option<LogSource>,
}

/// The pod and the container whose log is the connector's, and which of its runs to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogSource {
    pub(super) pod: String,
    pub(super) pod_uid: String,
    pub(super) container: String,
    /// When the run before the current one ended. `None` when there was none.
    pub(super) ended_at: Option<Timestamp>,
    /// Whether to read the run before the current one.
    pub(super) previous: bool,
    /// Whether to read the current run.
    pub(super) current: bool,
}

/// Judges a Deployment that asks for `replicas` and has these `pods`. `troubles` are those of the Deployment itself,
/// and `secret` is the name of the Secret with the connector's values.
pub(super) fn condition(
    replicas: i64,
    mut troubles: Vec<Trouble>,
    pods: &[&Pod],
    secret: Option<&str>,
    now: Timestamp,
) -> Condition {
    // Of several pods the youngest that has not ended counts, because a node may have evicted older ones.
    let pod = pods.iter().max_by_key(|pod| (!pod.is_over(), pod.metadata.creation_timestamp, &pod.metadata.name));
    if pod.is_some() {
        // A pod says more precisely what is wrong.
        troubles.retain(|trouble| trouble.kind != TroubleKind::Stuck);
    }
    let Some(pod) = pod else {
        let phase = if replicas == 0 { Phase::Stopped } else { Phase::Pending };
        return Condition { phase, vitals: None, troubles, log: None };
    };
    let ending = pods.iter().any(|pod| !pod.has_ended());
    let mut vitals = vitals(pod);
    let containers = &pod.status.container_statuses;
    troubles.extend(pod_troubles(pod));
    let initial = &pod.status.init_container_statuses;
    let waiting: Vec<&ContainerStatus> =
        initial.iter().chain(containers).filter(|container| container.state.waiting.is_some()).collect();
    troubles.extend(containers.iter().filter_map(waiting_trouble));
    // While an init container fails, the connector itself does not run at all.
    troubles.extend(initial.iter().filter_map(waiting_trouble).map(|trouble| match trouble.kind {
        TroubleKind::CrashLoop => Trouble { kind: TroubleKind::WontStart, ..trouble },
        _ => trouble,
    }));
    troubles.extend(containers.iter().filter_map(|container| out_of_memory(container, now)));
    vitals.backing_off = containers.iter().any(is_backing_off);
    let lacks_secret = waiting.iter().any(|container| lacks(container, secret));
    let runs = containers.iter().any(|container| container.state.running.is_some());
    let ended = containers.iter().any(|container| container.state.terminated.is_some());
    let phase = match replicas {
        0 if ending => Phase::Ending,
        0 => Phase::Stopped,
        2.. => Phase::Multiplied,
        _ if pod.is_over() => Phase::Pending,
        // Only a refresh makes the missing Secret or its missing key again, so the workload counts as broken.
        _ if lacks_secret => Phase::Broken,
        _ if vitals.backing_off || (ended && !runs) => Phase::Restarting,
        _ if runs => Phase::Running,
        _ => Phase::Pending,
    };
    if matches!(phase, Phase::Stopped | Phase::Ending) {
        troubles.clear();
    }
    if matches!(phase, Phase::Pending | Phase::Ending) && troubles.is_empty() {
        troubles.extend(pods.iter().filter(|pod| !pod.has_ended()).find_map(|pod| stuck(pod, now)));
    }
    troubles.sort_by(|a, b| (a.kind, &a.detail).cmp(&(b.kind, &b.detail)));
    troubles.dedup();
    Condition { phase, vitals: Some(vitals), troubles, log: log(pod, now) }
}

/// The trouble of a pod that has been starting or ending for long without saying why.
fn stuck(pod: &Pod, now: Timestamp) -> Option<Trouble> {
    let (name, minutes) = (&pod.metadata.name, STUCK.as_mins());
    let (since, detail) = match pod.metadata.deletion_timestamp {
        Some(deleted) => (deleted, format!("the pod {name} has not ended in {minutes} minutes; its node may be gone")),
        None => (pod.metadata.creation_timestamp?, format!("the pod {name} is in no state in {minutes} minutes")),
    };
    (since.duration_until(now) > STUCK).then_some(super::trouble::trouble(TroubleKind::Stuck, detail))
}

fn vitals(pod: &Pod) -> Vitals {
    let containers = &pod.status.container_statuses;
    let started = containers.iter().filter_map(|container| {
        let (running, terminated) = (&container.state.running, &container.state.terminated);
        let now = running.as_ref().and_then(|run| run.started_at);
        let ended = terminated.as_ref().and_then(|run| run.started_at);
        now.or(ended).or_else(|| container.last_state.terminated.as_ref().and_then(|run| run.started_at))
    });
    Vitals {
        restarts: containers.iter().map(|container| container.restart_count).sum(),
        generation: Some(pod.metadata.uid.clone()),
        backing_off: false,
        started_at: started.max(),
        exit_code: None,
        unattended: false,
    }
}

/// The troubles that a Deployment reports itself. A quota or an admission policy may keep it from creating pods, its
/// rollout may be paused, or it may take too long.
pub(super) fn own_troubles(deployment: &Deployment) -> Vec<Trouble> {
    let paused = deployment.spec.paused.then(|| trouble(TroubleKind::Paused, "spec.paused", None));
    let failed = deployment.status.conditions.iter().filter(|c| c.kind == "ReplicaFailure" && c.status == "True");
    let failed = failed.map(|c| trouble(TroubleKind::NotAdmitted, "FailedCreate", c.message.as_deref()));
    let late = deployment.status.conditions.iter().filter(|c| c.kind == "Progressing" && c.status == "False");
    let late = late.map(|c| trouble(TroubleKind::Stuck, "ProgressDeadlineExceeded", c.message.as_deref()));
    failed.chain(paused).chain(late).collect()
}

fn pod_troubles(pod: &Pod) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    if pod.status.phase == "Failed" && pod.status.reason.as_deref() == Some("Evicted") {
        troubles.push(trouble(TroubleKind::Evicted, "Evicted", pod.status.message.as_deref()));
    }
    let unscheduled = pod.status.conditions.iter().find(|c| c.kind == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled.filter(|c| c.reason.as_deref() == Some("Unschedulable")) {
        troubles.push(trouble(TroubleKind::Unschedulable, "Unschedulable", condition.message.as_deref()));
    }
    troubles
}

fn waiting_trouble(container: &ContainerStatus) -> Option<Trouble> {
    let waiting = container.state.waiting.as_ref()?;
    let kind = match waiting.reason.as_str() {
        "CrashLoopBackOff" => TroubleKind::CrashLoop,
        "ImagePullBackOff"
        | "ErrImagePull"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError" => TroubleKind::ImagePull,
        "CreateContainerConfigError" => TroubleKind::Settings,
        "CreateContainerError" | "RunContainerError" => TroubleKind::WontStart,
        _ => return None,
    };
    // For a crash loop the run before says why the container crashed.
    let last = container.last_state.terminated.as_ref().filter(|_| kind == TroubleKind::CrashLoop);
    let Some(last) = last else { return Some(trouble(kind, &waiting.reason, Some(&waiting.message))) };
    let words = format!("exit code {} {}", last.exit_code, last.message);
    Some(trouble(kind, &waiting.reason, Some(words.trim())))
}

/// The trouble of a container that was ended lately for using too much memory. Older ends do not count, although they
/// stay in the pod's status for as long as the pod exists.
fn out_of_memory(container: &ContainerStatus, now: Timestamp) -> Option<Trouble> {
    let mut ends = [&container.state, &container.last_state].into_iter().filter_map(|state| state.terminated.as_ref());
    let lately = |end: &&super::objects::Terminated| end.finished_at.is_none_or(|at| at.duration_until(now) < LATELY);
    let end = ends.find(|end| end.reason == "OOMKilled").filter(lately)?;
    Some(trouble(TroubleKind::OutOfMemory, "OOMKilled", Some(&format!("exit code {}", end.exit_code))))
}

fn trouble(kind: TroubleKind, reason: &str, words: Option<&str>) -> Trouble {
    let words = words.map(str::trim).filter(|words| !words.is_empty());
    super::trouble::trouble(kind, words.map_or_else(|| reason.to_owned(), |words| format!("{reason}: {words}")))
}

fn is_backing_off(container: &ContainerStatus) -> bool {
    container.state.waiting.as_ref().is_some_and(|waiting| waiting.reason == "CrashLoopBackOff")
}

/// Whether a container waits for our Secret or for a key of it. The kubelet then says `secret "x" not found` or
/// `couldn't find key K in Secret ns/x`.
fn lacks(container: &ContainerStatus, secret: Option<&str>) -> bool {
    let (Some(waiting), Some(secret)) = (&container.state.waiting, secret) else { return false };
    waiting.reason == "CreateContainerConfigError"
        && (waiting.message.contains(&format!("secret \"{secret}\" not found"))
            || (waiting.message.contains("find key") && waiting.message.contains(&format!("/{secret}"))))
}

fn log(pod: &Pod, now: Timestamp) -> Option<LogSource> {
    let containers = &pod.status.container_statuses;
    let container = containers.iter().find(|container| container.name == CONTAINER).or_else(|| containers.first())?;
    let crashed = container.last_state.terminated.as_ref().is_some_and(|end| end.exit_code != 0);
    let started = container.state.running.as_ref().and_then(|run| run.started_at);
    let young = started.is_some_and(|started| started.duration_until(now) < YOUNG);
    let waits = container.state.waiting.is_some();
    let previous = crashed && (waits || young);
    let current = !(waits && (previous || container.restart_count == 0));
    let ended_at = container.last_state.terminated.as_ref().and_then(|end| end.finished_at);
    let (pod_uid, pod) = (pod.metadata.uid.clone(), pod.metadata.name.clone());
    let container = container.name.clone();
    (previous || current).then_some(LogSource { pod, pod_uid, container, ended_at, previous, current })
}
