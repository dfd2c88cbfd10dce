//! Steps on Deployments: what is made, in which order, so that no value is ever missing and no two instances run at once.

use std::time::Duration;

use kube::core::params::ListParams;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{ApiError, FIELD_MANAGER, Kind};
use super::objects::{Deployment, Page, Pod};
use super::ownership::{self, Takeover};
use super::{ANNOTATION_APPLIED, Applied, Known, Kubernetes, handle};
use crate::model::{ConnectorId, Handle, short_hash};
use crate::orchestrator::versioned::encode;
use crate::orchestrator::{OrchestratorError, StepError};
use crate::plan::Obstacle;
use crate::render::kubernetes::{self as render, ANNOTATION_HASH, Shape};
use crate::render::{LABEL_CONNECTOR, LABEL_MANAGER, Spec};
use crate::stop::Stop;

/// Longest wait for the pods of a Deployment to end; the default grace period of a pod is 30 s.
const END_TIMEOUT: Duration = Duration::from_mins(1);
/// Time between two looks at pods that end.
const END_POLL: Duration = Duration::from_millis(500);
/// Ends of the two names that a connector's Secret can have: a change is written to the one that is not in use.
const SLOTS: [&str; 2] = ["env-a", "env-b"];

impl Kubernetes {
    /// Makes a Deployment that does not exist. It starts, and counts as complete, once everything is there.
    pub(super) async fn deploy(&self, spec: &Spec, name: &str, start: bool) -> Result<Handle, StepError> {
        let pull_secret = self.pull_secret().await?;
        let secret = secret_name(spec, SLOTS[0]);
        let shape = Shape { name, secret: &secret, pull_secret: pull_secret.as_deref(), start: false, complete: false };
        let skeleton = render::deployment(spec, &self.defaults, shape);
        let object = match self.api.create::<Value>(Kind::Deployments, &skeleton, false).await {
            Ok(object) => object,
            // Made by a request whose answer was lost, or by somebody else.
            Err(error) if error.code() == 409 => self.api.get::<Value>(Kind::Deployments, name).await?,
            Err(error) => return Err(error.into()),
        };
        if !self.is_its(&object, &spec.connector) {
            return Err(StepError::NameTaken { name: name.to_owned(), kind: "Deployment" });
        }
        self.converge(spec, object, start).await
    }

    /// Changes a Deployment where it is.
    pub(super) async fn refresh(&self, spec: &Spec, old: &Handle, start: bool) -> Result<Handle, StepError> {
        let object = self.get_old(old).await?;
        self.converge(spec, object, start).await
    }

    /// Takes a Deployment away and makes it anew. What can be found wrong with the new one is found before that.
    pub(super) async fn recreate(
        &self,
        spec: &Spec,
        old: &Handle,
        name: &str,
        start: bool,
        obstacle: Obstacle,
        stop: &Stop,
    ) -> Result<Handle, StepError> {
        match obstacle {
            Obstacle::Name => {
                let new = self.deploy(spec, name, false).await?;
                self.end(old, &spec.connector, stop).await?;
                self.delete(old).await?;
                if start {
                    self.scale(&new, 1).await?;
                }
                Ok(new)
            }
            Obstacle::Selector => {
                let pull_secret = self.pull_secret().await?;
                let (trial, secret) = (format!("{name}.xtm-trial"), secret_name(spec, SLOTS[0]));
                let pull_secret = pull_secret.as_deref();
                let shape = Shape { name: &trial, secret: &secret, pull_secret, start, complete: true };
                let trial = render::deployment(spec, &self.defaults, shape);
                self.api.create::<Value>(Kind::Deployments, &trial, true).await?;
                self.end(old, &spec.connector, stop).await?;
                self.delete(old).await?;
                self.deploy(spec, name, start).await
            }
        }
    }

    pub(super) async fn scale(&self, handle: &Handle, replicas: u8) -> Result<(), ApiError> {
        let (name, uid) = parts(handle);
        let patch = json!({ "metadata": { "uid": uid }, "spec": { "replicas": replicas } });
        self.api.merge::<Value>(Kind::Deployments, name, Some("scale"), &patch).await.map(drop)
    }

    pub(super) async fn delete(&self, handle: &Handle) -> Result<(), ApiError> {
        let (name, uid) = parts(handle);
        self.api.delete(Kind::Deployments, name, Some(uid)).await
    }

    /// Secret, then Deployment, then what is no longer needed. Up to the Deployment's apply nothing that runs is changed.
    async fn converge(&self, spec: &Spec, object: Value, start: bool) -> Result<Handle, StepError> {
        let target = read(&object)?;
        let (name, uid) = (target.metadata.name.clone(), target.metadata.uid.clone());
        // What is not complete runs nothing: it keeps the Secret that it was made for.
        let complete = target.metadata.annotations.get(ANNOTATION_HASH).is_none_or(|hash| !hash.is_empty());
        let current = secret_in(&target).filter(|_| complete);
        let pull_secret = self.pull_secret().await?;
        let free = SLOTS.map(|slot| secret_name(spec, slot)).into_iter().find(|slot| Some(slot) != current.as_ref());
        let free = free.unwrap_or_default();
        let secret = render::secret(spec, &free, &name, &uid);
        let shape = Shape { name: &name, secret: &free, pull_secret: pull_secret.as_deref(), start, complete: true };
        let mut wanted = render::deployment(spec, &self.defaults, shape);
        if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
            // Of a Deployment that was made anew meanwhile, nothing is changed.
            metadata.insert("uid".to_owned(), uid.as_str().into());
        }
        if !ownership::is_applied(&target.metadata.managed_fields) {
            self.take_over(&object, Takeover::Maker).await?;
        }
        if let Some(secret) = &secret {
            self.api.apply::<Value>(Kind::Secrets, secret).await?;
        }
        let applied = match self.api.apply::<Value>(Kind::Deployments, &wanted).await {
            // What somebody wrote by hand does not go together with ours.
            Err(error) if error.code() == 422 => {
                let present: Value = self.api.get(Kind::Deployments, &name).await?;
                if read(&present)?.metadata.uid == uid {
                    self.take_over(&present, Takeover::Exclusive).await?;
                    self.api.apply::<Value>(Kind::Deployments, &wanted).await
                } else {
                    Err(error)
                }
            }
            applied => applied,
        };
        let applied = match applied {
            Ok(applied) => applied,
            Err(error) => {
                if secret.is_some() {
                    self.discard(&free).await;
                }
                return Err(error.into());
            }
        };
        let handle = handle(&name, &uid);
        let secret = secret.map(|_| free);
        if let Some(unused) = current.filter(|current| Some(current) != secret.as_ref()) {
            self.discard(&unused).await;
        }
        self.known().insert(handle.clone(), Known { connector: spec.connector.clone(), log: None });
        self.note_applied(&name, &applied, spec).await?;
        Ok(handle)
    }

    /// Writes down whose fields were applied, so that a change by somebody else is seen.
    async fn note_applied(&self, name: &str, applied: &Value, spec: &Spec) -> Result<(), StepError> {
        let managed = read(applied)?.metadata.managed_fields;
        let Some(fields) = ownership::fingerprint(&managed) else { return Ok(()) };
        let text = encode(Applied { hash: spec.hash.as_str().to_owned(), fields })
            .map_err(|error| StepError::Internal(error.to_string()))?;
        let patch = json!({ "metadata": { "annotations": { ANNOTATION_APPLIED: text } } });
        self.api.merge::<Value>(Kind::Deployments, name, None, &patch).await?;
        Ok(())
    }

    /// Writes fields down as ours without changing them.
    async fn take_over(&self, object: &Value, takeover: Takeover) -> Result<(), StepError> {
        let target = read(object)?;
        let managed = object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
        let managed = ownership::taken_over(&managed, takeover);
        if !managed.iter().any(|entry| entry.get("manager").and_then(Value::as_str) == Some(FIELD_MANAGER)) {
            return Ok(());
        }
        let (name, version) = (&target.metadata.name, &target.metadata.resource_version);
        let patch = json!({ "metadata": { "resourceVersion": version, "managedFields": managed } });
        self.api.merge::<Value>(Kind::Deployments, name, None, &patch).await?;
        Ok(())
    }

    /// Takes away a Secret that nothing refers to any more. It goes with its Deployment at the latest.
    async fn discard(&self, secret: &str) {
        if let Err(error) = self.api.delete(Kind::Secrets, secret, None).await {
            let error = OrchestratorError::from(error);
            tracing::warn!(secret, %error, "a Secret that is no longer used stays until its connector changes or goes");
        }
    }

    async fn get_old(&self, old: &Handle) -> Result<Value, StepError> {
        let (name, uid) = parts(old);
        let object: Value = self.api.get(Kind::Deployments, name).await?;
        if object.pointer("/metadata/uid").and_then(Value::as_str) == Some(uid) {
            return Ok(object);
        }
        let (what, why) = (format!("the Deployment {name}"), "it was made anew by somebody else meanwhile".to_owned());
        Err(StepError::Engine { what, why })
    }

    /// Ours, and this connector's.
    fn is_its(&self, object: &Value, connector: &ConnectorId) -> bool {
        let label = |name: &str| object.pointer("/metadata/labels")?.get(name)?.as_str();
        label(LABEL_MANAGER) == Some(self.manager.as_str()) && label(LABEL_CONNECTOR) == Some(connector.as_str())
    }

    /// Stops a Deployment and waits until none of its pods is left.
    async fn end(&self, handle: &Handle, connector: &ConnectorId, stop: &Stop) -> Result<(), StepError> {
        let (name, _) = parts(handle);
        self.scale(handle, 0).await?;
        let params = ListParams::default().labels(&format!("{LABEL_CONNECTOR}={connector}"));
        let begun = tokio::time::Instant::now();
        loop {
            let pods = self.api.list::<Page<Pod>>(Kind::Pods, &params).await?.items;
            let ended = |pod: &Pod| matches!(pod.status.phase.as_str(), "Failed" | "Succeeded");
            let Some(left) = pods.iter().find(|pod| pod.is_of(name) && !ended(pod)) else { return Ok(()) };
            if begun.elapsed() >= END_TIMEOUT || stop.cause().is_some() {
                let what = format!("the pod {} of the old Deployment has not ended", left.metadata.name);
                return Err(StepError::StillRunning { what, waited_s: begun.elapsed().as_secs() });
            }
            tokio::time::sleep(END_POLL).await;
        }
    }

    /// The pull secret for the configured registry, made or brought up to date once in a pass. `None` without a login.
    pub(super) async fn pull_secret(&self) -> Result<Option<String>, ApiError> {
        let Some((lease_name, lease_uid)) = self.lease_owner() else { return Ok(None) };
        let name = format!("{}-registry", self.lease_name());
        let Some(secret) = render::pull_secret(&self.registry, &name, &self.manager, (&lease_name, &lease_uid)) else {
            return Ok(None);
        };
        let applied =
            self.pull_secret_applied.get_or_try_init(|| self.api.apply::<Value>(Kind::Secrets, &secret)).await;
        applied.map(|_| Some(name))
    }
}

/// The Secret of ours that a Deployment's containers refer to.
pub(super) fn secret_in(deployment: &Deployment) -> Option<String> {
    let variables = deployment.spec.template.spec.containers.iter().flat_map(|container| &container.env);
    let mut names = variables.filter_map(|env| Some(&env.value_from.as_ref()?.secret_key_ref.as_ref()?.name));
    names.find(|name| SLOTS.iter().any(|slot| name.ends_with(slot))).cloned()
}

/// It cannot be somebody else's by accident, for it holds a hash of the connector's id.
fn secret_name(spec: &Spec, slot: &str) -> String {
    format!("{}-{}-{slot}", spec.name, short_hash(spec.connector.as_str(), 8))
}

fn read(object: &Value) -> Result<Deployment, StepError> {
    let unreadable = |error: serde_json::Error| StepError::Internal(format!("a Deployment cannot be read: {error}"));
    Deployment::deserialize(object).map_err(unreadable)
}

fn parts(handle: &Handle) -> (&str, &str) {
    handle.0.split_once('/').unwrap_or((&handle.0, ""))
}
