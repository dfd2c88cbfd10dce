//! Connectors as Deployments in one namespace of a cluster.

mod api;
mod condition;
mod lease;
mod logs;
mod objects;
mod observe;
mod ownership;
mod trouble;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::access::Permit;
use crate::desired::Desired;
use crate::holder::Holder;
use crate::memory::{ConnectorMemory, Memory};
use crate::model::{ConnectorId, Cure, Handle, PlatformKind, short_hash};
use crate::orchestrator::versioned::{decode, encode};
use crate::orchestrator::{
    LogRead, LogRequest, Look, Observation, OnLook, Orchestrator, OrchestratorError, Owner, Permission, Recalled,
    StepContext, StepError,
};
use crate::plan::{RemoveReason, Step};
use crate::render::Registry;
use crate::render::kubernetes::WorkloadDefaults;
use crate::secret::{Secret, SecretJson};
use crate::stop::Stop;
use api::{Api, Kind};
use condition::LogSource;
use lease::{HeldLease, Record};

/// The annotation of a Deployment with what a pass remembers of its connector.
const ANNOTATION_MEMORY: &str = "xtm-reconcile/memory";
/// The annotation of a Deployment with what was applied to it, so that a change by somebody else is seen.
const ANNOTATION_APPLIED: &str = "xtm-reconcile/applied";
/// The annotation of the Lease with the last registration.
const ANNOTATION_REGISTRATION: &str = "xtm-reconcile/registration";
/// The annotation of the Lease with what is remembered of the registration with XTM One.
const ANNOTATION_XTM_ONE: &str = "xtm-reconcile/xtm-one";
/// The annotation of the Lease with the time at which the last pass looked. It is written with what gives the Lease back.
const ANNOTATION_LAST_PASS: &str = "xtm-reconcile/last-pass";
/// Longest wait for the API server's first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for credentials from a plugin.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(30);
/// Characters of the longest RFC 1123 label.
const NAME_MAX: usize = 63;

/// The permissions that a pass needs, each as group, resource and verb. The Role in `deploy/kubernetes` grants exactly
/// these.
pub const PERMISSIONS: [(&str, &str, &str); 15] = [
    ("", "namespaces", "get"),
    ("apps", "deployments", "list"),
    ("apps", "deployments", "get"),
    ("apps", "deployments", "create"),
    ("apps", "deployments", "patch"),
    ("apps", "deployments", "delete"),
    ("apps", "deployments/scale", "patch"),
    ("", "pods", "list"),
    ("", "pods/log", "get"),
    ("", "secrets", "create"),
    ("", "secrets", "patch"),
    ("", "secrets", "delete"),
    ("coordination.k8s.io", "leases", "get"),
    ("coordination.k8s.io", "leases", "create"),
    ("coordination.k8s.io", "leases", "patch"),
];

/// What an apply notes for later passes, in the annotation `xtm-reconcile/applied`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Applied {
    /// The hash of the configuration that was applied.
    hash: String,
    /// A fingerprint of the fields that were ours after the apply.
    fields: String,
    /// The Secret of the pods from before the apply. `None` once the last of them is gone and the Secret is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<String>,
}

/// What the pass knows of a Deployment beside what the plan needs.
#[derive(Debug)]
struct Known {
    connector: ConnectorId,
    log: Option<LogSource>,
    /// The memory as the text that is in the annotation now.
    memory: Option<String>,
    /// The note of the last apply, when nothing uses its retired Secret any more, so that the Secret can be deleted.
    outlived: Option<Applied>,
}

/// The settings of the cluster and of every Deployment that a lane creates in it.
#[derive(Debug)]
pub struct KubernetesSettings {
    pub(crate) access: ClusterAccess,
    /// The namespace of the connectors. `None` uses that of the pod, or of the kubeconfig's context.
    pub namespace: Option<String>,
    /// What every Deployment gets, whichever connector it runs.
    pub workload: WorkloadDefaults,
}

/// How to reach an API server.
#[derive(Debug)]
pub(crate) enum ClusterAccess {
    /// With the service account of the pod in which this program runs.
    InCluster,
    /// With a kubeconfig, whose files are merged in `config`. `paths` names the files for messages; a `context` of
    /// `None` is the current one.
    Kubeconfig { config: Box<Kubeconfig>, context: Option<String>, paths: String },
}

impl fmt::Display for KubernetesSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.access {
            ClusterAccess::InCluster => write!(f, "the cluster of this pod"),
            ClusterAccess::Kubeconfig { paths, context: None, .. } => write!(f, "the cluster of {paths}"),
            ClusterAccess::Kubeconfig { paths, context: Some(context), .. } => {
                write!(f, "the cluster of context {context} in {paths}")
            }
        }
    }
}

/// A connection to one namespace, for one manager and one platform.
pub(crate) struct Kubernetes {
    api: Arc<Api>,
    description: String,
    owner: Owner,
    defaults: WorkloadDefaults,
    registry: Registry,
    concurrency: usize,
    stop: Stop,
    known: Mutex<BTreeMap<Handle, Known>>,
    lease: Mutex<Option<(Lease, Arc<Record>)>>,
    /// When the workloads were looked at of which the stored memory tells. `None` until this pass has stored it.
    last_pass: Mutex<Option<Timestamp>>,
    pull_secret_applied: OnceCell<()>,
}

impl Kubernetes {
    /// Connects to the API server and asks for its version.
    pub async fn connect(
        kubernetes: &KubernetesSettings,
        owner: Owner,
        registry: &Registry,
        concurrency: usize,
        stop: &Stop,
    ) -> Result<Self, OrchestratorError> {
        let refused = |why: String| OrchestratorError::Unreachable {
            place: kubernetes.to_string(),
            why,
            cure: Cure("mend the kubeconfig, or the service account of the pod"),
        };
        let mut config = match &kubernetes.access {
            ClusterAccess::InCluster => Config::incluster_env().map_err(|error| refused(api::words(&error)))?,
            ClusterAccess::Kubeconfig { config, context, .. } => {
                let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
                let read = Config::from_custom_kubeconfig((**config).clone(), &options).await;
                let mut config = read.map_err(|error| refused(api::words(&error)))?;
                // The proxy of the environment is meant for the platform, not for the cluster.
                config.proxy_url = None;
                config
            }
        };
        // `Api` repeats requests itself, because it knows what each asks for. The library must not do it as well.
        config.default_retry = false;
        let namespace = kubernetes.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let place = format!("the API server at {}", config.cluster_url.to_string().trim_end_matches('/'));
        if config.cluster_url.scheme().is_none() || config.cluster_url.host().is_none() {
            return Err(refused(format!("{:?} is no URL of an API server", config.cluster_url.to_string())));
        }
        let client = client(config).await.map_err(refused)?;
        let api = Arc::new(Api::new(client, namespace, place, stop.clone()));
        let asked = tokio::time::timeout(CONNECT_TIMEOUT, api.version()).await;
        let version = asked.map_err(|_| OrchestratorError::Unreachable {
            place: api.place.clone(),
            why: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            cure: api::CURE_UNREACHABLE,
        })??;
        Ok(Self {
            description: format!("Kubernetes {}, namespace {}", version.git_version, api.namespace),
            api,
            owner,
            defaults: kubernetes.workload.clone(),
            registry: registry.clone(),
            concurrency,
            stop: stop.clone(),
            known: Mutex::default(),
            lease: Mutex::default(),
            last_pass: Mutex::default(),
            pull_secret_applied: OnceCell::new(),
        })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Handle, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> MutexGuard<'_, Option<(Lease, Arc<Record>)>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_pass(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.last_pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Name and uid of the Lease that is held. It owns the objects that belong to no single connector.
    fn lease_owner(&self) -> Option<(String, String)> {
        self.lease().as_ref().map(|(_, record)| (self.lease_name(), record.uid.clone()))
    }

    /// The name of the Lease of this manager and platform.
    fn lease_name(&self) -> String {
        object_name(self.owner.manager.as_str(), &format!("-{}", self.owner.platform.label()))
    }

    /// The name of the Lease of version 0.1, which served only OpenCTI. `None` for the other platform.
    fn former_lease_name(&self) -> Option<String> {
        (self.owner.platform == PlatformKind::OpenCti).then(|| object_name(self.owner.manager.as_str(), ""))
    }

    /// The name of the pull secret for the configured registry. For `OpenCTI` it is the name that version 0.1 gave it,
    /// because existing Deployments refer to that name.
    fn pull_secret_name(&self) -> String {
        format!("{}-registry", self.former_lease_name().unwrap_or_else(|| self.lease_name()))
    }

    async fn write_memory(&self, handle: &Handle, text: Option<&str>) -> Result<(), OrchestratorError> {
        let Some((name, uid)) = handle.0.split_once('/') else { return Ok(()) };
        let patch = json!({ "metadata": { "uid": uid, "annotations": { ANNOTATION_MEMORY: text } } });
        match self.api.merge::<Value>(Kind::Deployments, name, None, &patch).await {
            // The Deployment is gone or is another one by now, so its memory has no place and no use any more.
            Err(error) if error.is_absent() || error.is_another() => Ok(()),
            done => done.map(drop).map_err(Into::into),
        }
    }
}

/// Makes the client, within a bounded time. This may run a credentials plugin, and a plugin may wait for ever.
async fn client(config: Config) -> Result<Client, String> {
    let making = tokio::task::spawn_blocking(move || Client::try_from(config));
    match tokio::time::timeout(CREDENTIALS_TIMEOUT, making).await {
        Ok(Ok(made)) => made.map_err(|error| api::words(&error)),
        Ok(Err(lost)) => Err(lost.to_string()),
        Err(_) => Err(format!("no credentials came within {} s", CREDENTIALS_TIMEOUT.as_secs())),
    }
}

/// The name of an object of this manager. A manager's id may be too long for a name or hold characters that a name
/// cannot have. Then the name holds a hash of the id, so that two such managers have different names.
fn object_name(manager: &str, end: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let name = format!("xtm-reconcile-{manager}{end}");
    if name.len() <= NAME_MAX && manager.chars().all(|c| plain(c) || c == '-') {
        return name;
    }
    let lower = manager.to_ascii_lowercase();
    let kept: String = lower.chars().map(|c| if plain(c) { c } else { '-' }).take(40 - end.len()).collect();
    format!("xtm-reconcile-{}-{}{end}", kept.trim_matches('-'), short_hash(manager, 8))
}

fn handle(name: &str, uid: &str) -> Handle {
    Handle(format!("{name}/{uid}"))
}

impl Orchestrator for Kubernetes {
    type Lock = HeldLease;

    fn place(&self) -> String {
        self.api.place.clone()
    }

    fn description(&self) -> &str {
        &self.description
    }

    /// Ignores how long the pass may take, because the Lease has its own short duration and is renewed.
    async fn lock(&self, _: Permit, holder: &Holder, _: Duration) -> Result<Self::Lock, OrchestratorError> {
        self.take_lease(holder).await
    }

    async fn unlock(&self, _: Permit, lock: Self::Lock) -> Result<(), OrchestratorError> {
        self.give_back(lock).await
    }

    async fn recall(&self) -> Result<Recalled, OrchestratorError> {
        self.read_record().await
    }

    async fn observe(&self, desired: &Desired, _: &Memory, _: &OnLook<'_>) -> Result<Observation, OrchestratorError> {
        self.observe_all(desired).await
    }

    async fn execute(&self, _: Permit, step: &Step, context: StepContext<'_>) -> Result<Option<Handle>, StepError> {
        let spec = || context.spec.ok_or_else(|| StepError::Internal(format!("a {} without a spec", step.word())));
        match step {
            Step::Deploy { name } => self.deploy(spec()?, name, true).await.map(Some),
            Step::Refresh { old, start, .. } => {
                self.read_last_log(old, context).await;
                self.refresh(spec()?, old, *start).await.map(Some)
            }
            Step::Recreate { old, name, start, obstacle, .. } => {
                self.read_last_log(old, context).await;
                self.recreate(spec()?, old, name, *start, *obstacle, context.stop).await.map(Some)
            }
            // The planner keeps no former Deployment.
            Step::RollBack { .. } => Err(StepError::Internal("a Deployment cannot be rolled back".to_owned())),
            Step::Rename { .. } => Err(StepError::Internal("a Deployment cannot be renamed".to_owned())),
            Step::Update { .. } => Err(StepError::Internal("a Deployment lacks no setting".to_owned())),
            Step::Start { handle, .. } => {
                self.scale(handle, 1).await?;
                Ok(Some(handle.clone()))
            }
            Step::Stop { handle } | Step::Hold { handle, .. } => {
                self.scale(handle, 0).await?;
                Ok(Some(handle.clone()))
            }
            Step::Remove { handle, reason, .. } => {
                // Another workload of the same connector stays and may be started next. The removed one has to end
                // before that.
                if *reason != RemoveReason::NotListed {
                    self.end(handle, context.stop).await?;
                }
                self.delete(handle).await?;
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

    async fn mend(&self, _: Permit, observation: &Observation) -> Result<(), OrchestratorError> {
        if Self::has_pull_trouble(observation) {
            self.pull_secret().await?;
        }
        self.discard_retired().await;
        Ok(())
    }

    /// Writes each Deployment whose stored memory differs, including one that was just made in place of another.
    async fn remember(&self, _: Permit, before: Option<&Memory>, memory: &Memory) -> Result<(), OrchestratorError> {
        if before.is_none_or(|before| before.registration != memory.registration) {
            self.write_registration(memory).await?;
        }
        if before.is_none_or(|before| before.xtm_one != memory.xtm_one) {
            self.write_xtm_one(memory).await?;
        }
        let wanted = |known: &Known| {
            let connector = memory.connectors.get(&known.connector).filter(|connector| !connector.is_empty());
            connector.and_then(|connector| encode(connector).ok())
        };
        // A memory is deleted only when this pass knew it or when nobody can read it.
        let ours = |known: &Known| {
            let had = before.is_none_or(|before| before.connectors.contains_key(&known.connector));
            had || known.memory.as_ref().is_some_and(|text| decode::<ConnectorMemory>(text).is_err())
        };
        let change = |(handle, known): (&Handle, &Known)| {
            let wanted = wanted(known);
            let differs = wanted != known.memory && (wanted.is_some() || ours(known));
            differs.then(|| (handle.clone(), wanted))
        };
        let changes: Vec<(Handle, Option<String>)> = self.known().iter().filter_map(change).collect();
        let writes = changes.into_iter().map(|(handle, text)| async move {
            self.write_memory(&handle, text.as_deref()).await?;
            if let Some(known) = self.known().get_mut(&handle) {
                known.memory = text;
            }
            Ok(())
        });
        let written = futures_util::stream::iter(writes).buffer_unordered(self.concurrency).collect::<Vec<_>>().await;
        written.into_iter().collect::<Result<(), OrchestratorError>>()?;
        *self.last_pass() = memory.last_pass;
        Ok(())
    }

    /// Applies the one key, so that keys of others stay. Nothing owns the Secret, so that it outlives the manager.
    async fn write_secret(&self, _: Permit, name: &str, key: &str, value: &Secret) -> Result<(), OrchestratorError> {
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name },
            "stringData": { key: value.expose() },
        });
        self.api.apply_secret(&SecretJson::new(secret)).await?;
        Ok(())
    }

    async fn permissions(&self) -> Result<Vec<Permission>, OrchestratorError> {
        let mut permissions = Vec::new();
        for (group, resource, verb) in PERMISSIONS {
            let (resource_name, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let attributes = json!({
                "namespace": self.api.namespace,
                "group": group,
                "resource": resource_name,
                "subresource": subresource,
                "verb": verb,
                "name": if resource == "namespaces" { self.api.namespace.as_str() } else { "" },
            });
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": { "resourceAttributes": attributes },
            });
            let answer = self.api.may(&review).await?;
            let granted = answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or(false);
            let group = if group.is_empty() { "the core group" } else { group };
            permissions.push(Permission { what: format!("{verb} {resource} of {group}"), granted });
        }
        Ok(permissions)
    }
}
