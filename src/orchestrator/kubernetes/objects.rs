//! What is read of the API's objects: the few fields that matter, so that a list of thousands stays small.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::secret::Secret;

/// One page of a list.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub(super) struct Page<T> {
    #[serde(default)]
    pub(super) metadata: PageMeta,
    /// Null for none, of some servers; but an answer without it is no list.
    #[serde(deserialize_with = "nullable")]
    pub(super) items: Vec<T>,
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct PageMeta {
    #[serde(default, rename = "continue")]
    pub(super) next: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) creation_timestamp: Option<Timestamp>,
    pub(super) deletion_timestamp: Option<Timestamp>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) owner_references: Vec<Owner>,
    pub(super) managed_fields: Vec<ManagedFields>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Owner {
    pub(super) kind: String,
    pub(super) name: String,
}

/// One manager's fields.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ManagedFields {
    #[serde(default)]
    pub(super) manager: String,
    #[serde(default)]
    pub(super) operation: String,
    #[serde(default)]
    pub(super) subresource: String,
    /// As text: of thousands of Deployments few are ever looked into.
    #[serde(default)]
    pub(super) fields_v1: Option<Box<RawValue>>,
}

impl ManagedFields {
    /// The fields; null for none.
    pub(super) fn fields(&self) -> Value {
        let text = self.fields_v1.as_ref().map_or("null", |fields| fields.get());
        serde_json::from_str(text).unwrap_or_default()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Deployment {
    pub(super) metadata: Meta,
    pub(super) spec: DeploymentSpec,
    #[serde(default)]
    pub(super) status: DeploymentStatus,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeploymentSpec {
    #[serde(default)]
    pub(super) replicas: Option<i64>,
    #[serde(default)]
    pub(super) paused: bool,
    #[serde(default)]
    pub(super) selector: Selector,
    pub(super) template: Template,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Selector {
    pub(super) match_labels: BTreeMap<String, String>,
    pub(super) match_expressions: Vec<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Template {
    #[serde(default)]
    pub(super) metadata: Meta,
    pub(super) spec: PodSpec,
}

impl Pod {
    /// Whether it is one of this Deployment's: its `ReplicaSet` is named after it.
    pub(super) fn is_of(&self, deployment: &str) -> bool {
        let sets = self.metadata.owner_references.iter().filter(|owner| owner.kind == "ReplicaSet");
        let mut names = sets.map(|owner| owner.name.rsplit_once('-').map_or(owner.name.as_str(), |(name, _)| name));
        names.all(|name| name == deployment)
    }

    /// Whether nothing of it runs any more.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Failed" | "Succeeded")
    }

    /// Whether it has ended for good, or is about to.
    pub(super) fn is_over(&self) -> bool {
        self.metadata.deletion_timestamp.is_some() || self.has_ended()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct PodSpec {
    #[serde(default)]
    pub(super) containers: Vec<Container>,
    #[serde(default)]
    pub(super) volumes: Vec<Volume>,
}

impl PodSpec {
    /// The Secrets that it refers to, by its variables and volumes.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &str> {
        let variables = self.containers.iter().flat_map(|container| &container.env);
        let named = variables.filter_map(|env| Some(env.value_from.as_ref()?.secret_key_ref.as_ref()?.name.as_str()));
        let mounted = self.volumes.iter().filter_map(|volume| Some(volume.secret.as_ref()?.secret_name.as_str()));
        named.chain(mounted)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Volume {
    #[serde(default)]
    pub(super) secret: Option<SecretVolume>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SecretVolume {
    #[serde(default)]
    pub(super) secret_name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Container {
    pub(super) name: String,
    #[serde(default)]
    pub(super) env: Vec<Env>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Env {
    pub(super) name: String,
    /// It may be a secret when the daemon made the Deployment.
    #[serde(default)]
    pub(super) value: Option<Secret>,
    #[serde(default)]
    pub(super) value_from: Option<ValueFrom>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ValueFrom {
    #[serde(default)]
    pub(super) secret_key_ref: Option<SecretKeyRef>,
}

#[derive(Debug, Deserialize)]
pub(super) struct SecretKeyRef {
    #[serde(default)]
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct DeploymentStatus {
    #[serde(default)]
    pub(super) conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) reason: Option<String>,
    #[serde(default)]
    pub(super) message: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Meta,
    pub(super) spec: PodSpec,
    #[serde(default)]
    pub(super) status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodStatus {
    pub(super) phase: String,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    pub(super) conditions: Vec<Condition>,
    pub(super) container_statuses: Vec<ContainerStatus>,
    pub(super) init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerStatus {
    pub(super) name: String,
    #[serde(default)]
    pub(super) restart_count: u64,
    #[serde(default)]
    pub(super) state: State,
    #[serde(default)]
    pub(super) last_state: State,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct State {
    pub(super) waiting: Option<Waiting>,
    pub(super) running: Option<Running>,
    pub(super) terminated: Option<Terminated>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Waiting {
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Running {
    #[serde(default)]
    pub(super) started_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Terminated {
    #[serde(default)]
    pub(super) exit_code: i64,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) started_at: Option<Timestamp>,
    #[serde(default)]
    pub(super) finished_at: Option<Timestamp>,
}
