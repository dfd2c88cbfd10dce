//! Carries out steps on Deployments, in an order in which no value is missing and no two instances of a connector run
//! at once.

use std::time::Duration;

use futures_util::StreamExt;
use kube::core::params::ListParams;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::api::{ApiError, FIELD_MANAGER, Kind};
use super::objects::{Deployment, Page, Pod};
use super::ownership::{self, Takeover};
use super::{ANNOTATION_APPLIED, ANNOTATION_MEMORY, Applied, Known, Kubernetes, handle};
use crate::model::{ConnectorId, Cure, Handle, short_hash};
use crate::orchestrator::versioned::encode;
use crate::orchestrator::{OrchestratorError, StepError};
use crate::plan::Obstacle;
use crate::render::kubernetes::{self as render, Shape};
use crate::render::{LABEL_CONNECTOR, LABEL_MANAGER, LABEL_PLATFORM, Spec};
use crate::stop::{Cause, Stop};

/// Longest wait for the pods of a Deployment to end; the default grace period of a pod is 30 s.
const END_TIMEOUT: Duration = Duration::from_mins(1);
/// The time between two looks at pods that are ending.
const END_POLL: Duration = Duration::from_millis(500);
/// How often fields are taken over again when somebody else wrote the object meanwhile.
const TAKEOVER_TRIES: usize = 5;
/// A connector's Secret has one of two names, which end like this. A change is written to the name that is not in use.
const SLOTS: [&str; 2] = ["env-a", "env-b"];

const CURE_CHANGED: Cure = Cure("see who else changes or deletes it; the next pass tries again");

impl Kubernetes {
    /// Creates a Deployment. It is paused and counts as incomplete until its Secret and everything else exist.
    pub(super) async fn deploy(&self, spec: &Spec, name: &str, start: bool) -> Result<Handle, StepError> {
        let pull_secret = self.pull_secret().await?;
        let shape = Shape { name, secret: name, pull_secret: pull_secret.as_deref(), start: false, complete: false };
        let skeleton = render::deployment(spec, &self.defaults, shape);
        let object = match self.api.create::<Value>(Kind::Deployments, &skeleton).await {
            Ok(object) => object,
            // An earlier request made it and its answer was lost, or somebody else made it.
            Err(error) if error.code() == 409 => self.api.get::<Value>(Kind::Deployments, name).await?,
            Err(error) => return Err(error.into()),
        };
        if let Some(owner) = self.other_owner(&object, &spec.connector) {
            return Err(StepError::NameTaken { name: name.to_owned(), owner });
        }
        self.converge(spec, object, start).await
    }

    /// Changes a Deployment in place.
    pub(super) async fn refresh(&self, spec: &Spec, old: &Handle, start: bool) -> Result<Handle, StepError> {
        let (name, uid) = parts(old);
        let object: Value = self.api.get(Kind::Deployments, name).await?;
        if object.pointer("/metadata/uid").and_then(Value::as_str) != Some(uid) {
            return Err(made_anew(name));
        }
        self.converge(spec, object, start).await
    }

    /// Deletes a Deployment and makes it anew. What the API server may refuse of the new one is tried before the old
    /// one goes.
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
                self.end(old, stop).await?;
                self.delete(old).await?;
                if start {
                    self.scale(&new, 1).await?;
                }
                Ok(new)
            }
            Obstacle::Selector => {
                let trial = format!("{name}.xtm-trial");
                let shape = Shape { name: &trial, secret: &trial, pull_secret: None, start, complete: true };
                self.api.try_apply(Kind::Deployments, &render::deployment(spec, &self.defaults, shape)).await?;
                self.end(old, stop).await?;
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
        self.api.delete(Kind::Deployments, name, Some(uid)).await?;
        self.known().remove(handle);
        Ok(())
    }

    /// Writes the Secret and then the Deployment, so that nothing that runs changes before the Deployment is applied.
    /// The Secret of the old pods stays until the last of them is gone, because a container that restarts reads it
    /// again.
    async fn converge(&self, spec: &Spec, object: Value, start: bool) -> Result<Handle, StepError> {
        let target = read(&object)?;
        let meta = &target.metadata;
        let (name, uid) = (meta.name.as_str(), meta.uid.as_str());
        if meta.deletion_timestamp.is_some() {
            let (what, why) = (format!("the Deployment {name}"), "it is being deleted".to_owned());
            return Err(StepError::Refused { what, why, cure: CURE_CHANGED });
        }
        let pull_secret = self.pull_secret().await?;
        let current = secret_in(&target);
        let slots = SLOTS.map(|slot| secret_name(name, uid, slot));
        let free = slots.into_iter().find(|slot| Some(slot) != current.as_ref()).unwrap_or_default();
        let shape = Shape { name, secret: &free, pull_secret: pull_secret.as_deref(), start, complete: true };
        let mut wanted = render::deployment(spec, &self.defaults, shape);
        if let Some(metadata) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
            // With the uid, the API server refuses the apply when somebody made the Deployment anew meanwhile.
            metadata.insert("uid".to_owned(), uid.into());
        }
        if !ownership::is_applied(&meta.managed_fields) {
            self.take_over(object.clone(), Takeover::Maker).await?;
        }
        if let Some(secret) = render::secret(spec, &free, name, uid) {
            self.api.apply_secret(&secret).await?;
        }
        let applied: Value = match self.api.apply(Kind::Deployments, &wanted).await {
            // Fields that somebody wrote by hand contradict ours, so ours are made the only ones.
            Err(error) if error.code() == 422 && !error.is_another() => {
                self.take_over(self.api.get(Kind::Deployments, name).await?, Takeover::Exclusive).await?;
                self.api.apply(Kind::Deployments, &wanted).await?
            }
            applied => applied?,
        };
        let handle = handle(name, uid);
        let memory = meta.annotations.get(ANNOTATION_MEMORY).cloned();
        let known = Known { connector: spec.connector.clone(), log: None, memory, outlived: None };
        self.known().insert(handle.clone(), known);
        self.note_applied(name, &applied, spec, current).await;
        Ok(handle)
    }

    /// Notes on the Deployment which fields were applied, so that a change by somebody else is seen, and which Secret
    /// is to be deleted later.
    async fn note_applied(&self, name: &str, applied: &Value, spec: &Spec, retired: Option<String>) {
        let Ok(applied) = read(applied) else { return };
        let managed = &applied.metadata.managed_fields;
        let Some(fields) = ownership::fingerprint(managed) else { return };
        let note = Applied { hash: spec.hash.as_str().to_owned(), fields, retired };
        if let Err(error) = self.write_note(name, &applied.metadata.uid, &note).await {
            let error = OrchestratorError::from(error);
            tracing::warn!(deployment = name, %error, "what was applied could not be noted: changes by others are not seen");
        }
    }

    async fn write_note(&self, name: &str, uid: &str, note: &Applied) -> Result<(), ApiError> {
        let text = encode(note).ok();
        let patch = json!({ "metadata": { "uid": uid, "annotations": { ANNOTATION_APPLIED: text } } });
        self.api.merge::<Value>(Kind::Deployments, name, None, &patch).await.map(drop)
    }

    /// Deletes the Secrets whose pods are all gone. A Secret that cannot be deleted now is tried again by the next
    /// pass, and the garbage collector deletes it with its Deployment at the latest.
    pub(super) async fn discard_retired(&self) {
        let outlived: Vec<(Handle, Applied)> = self
            .known()
            .iter_mut()
            .filter_map(|(handle, known)| Some((handle.clone(), known.outlived.take()?)))
            .collect();
        let discarding = outlived.into_iter().map(|(handle, mut note)| async move {
            let Some(secret) = note.retired.take().filter(|_| self.stop.cause().is_none()) else { return };
            let done = async {
                self.api.delete(Kind::Secrets, &secret, None).await?;
                let (name, uid) = parts(&handle);
                self.write_note(name, uid, &note).await
            };
            if let Err(error) = done.await {
                let error = OrchestratorError::from(error);
                tracing::warn!(secret, %error, "a Secret that is no longer used could not be taken away");
            }
        });
        futures_util::stream::iter(discarding).buffer_unordered(self.concurrency).collect::<Vec<()>>().await;
    }

    /// Makes fields ours in `managedFields`. Tries again with a fresh look at the object when one of the
    /// cluster's own controllers wrote it meanwhile.
    async fn take_over(&self, mut object: Value, takeover: Takeover) -> Result<(), StepError> {
        let (name, uid) = {
            let target = read(&object)?;
            (target.metadata.name, target.metadata.uid)
        };
        for _ in 0..TAKEOVER_TRIES {
            let target = read(&object)?;
            if target.metadata.uid != uid {
                return Err(made_anew(&name));
            }
            let managed =
                object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
            let managed = ownership::taken_over(&managed, takeover);
            let ours = |entry: &Value| entry.get("manager").and_then(Value::as_str) == Some(FIELD_MANAGER);
            let mut metadata = Map::new();
            metadata.insert("resourceVersion".to_owned(), target.metadata.resource_version.into());
            if managed.iter().any(ours) {
                metadata.insert("managedFields".to_owned(), managed.into());
            }
            let mut patch = Map::new();
            patch.insert("metadata".to_owned(), metadata.into());
            if takeover == Takeover::Exclusive {
                let strategy = json!({ "type": "Recreate", "rollingUpdate": null });
                patch.insert("spec".to_owned(), json!({ "strategy": strategy }));
            }
            let patch = Value::Object(patch);
            match self.api.merge::<Value>(Kind::Deployments, &name, None, &patch).await {
                Err(error) if error.code() == 409 => object = self.api.get(Kind::Deployments, &name).await?,
                done => return done.map(drop).map_err(Into::into),
            }
        }
        let (what, why) = (format!("the Deployment {name}"), "it changes all the time".to_owned());
        Err(StepError::Refused { what, why, cure: CURE_CHANGED })
    }

    /// Describes the owner of a Deployment. `None` when it belongs to this connector.
    fn other_owner(&self, object: &Value, connector: &ConnectorId) -> Option<String> {
        let label = |name: &str| object.pointer("/metadata/labels")?.get(name)?.as_str();
        let (manager, platform) = (self.owner.manager.as_str(), self.owner.platform.label());
        match (label(LABEL_MANAGER), label(LABEL_PLATFORM), label(LABEL_CONNECTOR)) {
            (None, ..) => Some("a Deployment that no connector manager made".to_owned()),
            (Some(other), ..) if other != manager => Some(format!("a Deployment of the manager {other}")),
            (_, Some(other), _) if other != platform => Some(format!("a connector of the platform {other}")),
            (.., Some(id)) if id == connector.as_str() => None,
            (.., other) => Some(format!("the connector {}", other.unwrap_or("of an unknown id"))),
        }
    }

    /// Stops a Deployment and waits until none of its pods is left. A signal does not end the wait, because what comes
    /// after it starts the connector again.
    pub(super) async fn end(&self, handle: &Handle, stop: &Stop) -> Result<(), StepError> {
        let (name, uid) = parts(handle);
        let deployment: Deployment = match self.api.get(Kind::Deployments, name).await {
            Err(error) if error.is_absent() => return Ok(()),
            deployment => deployment?,
        };
        if deployment.metadata.uid != uid {
            return Err(made_anew(name));
        }
        self.scale(handle, 0).await?;
        let connector = deployment.metadata.labels.get(LABEL_CONNECTOR).cloned().unwrap_or_default();
        let params = ListParams::default().labels(&format!("{LABEL_CONNECTOR}={connector}"));
        let begun = tokio::time::Instant::now();
        loop {
            let pods = self.api.list::<Page<Pod>>(Kind::Pods, &params).await?.items;
            let its = |pod: &&Pod| pod.is_of(name) && !self.is_other_platforms(pod) && !pod.has_ended();
            let Some(left) = pods.iter().find(its) else { return Ok(()) };
            if begun.elapsed() >= END_TIMEOUT || stop.cause() == Some(Cause::LockLost) {
                let what = format!("the pod {} of the old Deployment has not ended", left.metadata.name);
                return Err(StepError::StillRunning { what, waited_s: begun.elapsed().as_secs() });
            }
            tokio::time::sleep(END_POLL).await;
        }
    }

    /// The name of the pull secret for the configured registry, which is written once in a pass. `None` without a
    /// login.
    pub(super) async fn pull_secret(&self) -> Result<Option<String>, ApiError> {
        let Some((lease_name, lease_uid)) = self.lease_owner() else { return Ok(None) };
        let name = self.pull_secret_name();
        let Some(secret) = render::pull_secret(&self.registry, &name, &self.owner.manager, (&lease_name, &lease_uid))
        else {
            return Ok(None);
        };
        let applied = self.pull_secret_applied.get_or_try_init(|| self.api.apply_secret(&secret)).await;
        applied.map(|()| Some(name))
    }
}

/// The name of the Secret of ours to which the containers of a Deployment refer.
pub(super) fn secret_in(deployment: &Deployment) -> Option<String> {
    let ours = SLOTS.map(|slot| secret_name(&deployment.metadata.name, &deployment.metadata.uid, slot));
    deployment.spec.template.spec.secrets().find(|name| ours.iter().any(|ours| ours == name)).map(str::to_owned)
}

/// The name of a connector's Secret. It holds a hash of the Deployment's uid, so it is neither somebody else's nor that
/// of an earlier Deployment of the same name, whose Secret the garbage collector may be about to delete.
fn secret_name(name: &str, uid: &str, slot: &str) -> String {
    format!("{name}-{}-{slot}", short_hash(uid, 8))
}

fn made_anew(name: &str) -> StepError {
    let (what, why) = (format!("the Deployment {name}"), "it was made anew by somebody else meanwhile".to_owned());
    StepError::Refused { what, why, cure: CURE_CHANGED }
}

fn read(object: &Value) -> Result<Deployment, StepError> {
    let unreadable = |error: serde_json::Error| StepError::Internal(format!("a Deployment cannot be read: {error}"));
    Deployment::deserialize(object).map_err(unreadable)
}

fn parts(handle: &Handle) -> (&str, &str) {
    handle.0.split_once('/').unwrap_or((&handle.0, ""))
}
