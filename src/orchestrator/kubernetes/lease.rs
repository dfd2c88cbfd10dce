//! The Lease of a manager and platform, which is the lock and stores what is remembered of the registrations.
//!
//! It lasts for a short time and is renewed while the pass runs, so that the next pass need not wait long after one
//! that was killed. Every write names the version that it changes, so that only one of two passes that both see the
//! Lease expired can take it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::api::{Api, ApiError, Kind};
use super::{ANNOTATION_LAST_PASS, ANNOTATION_REGISTRATION, ANNOTATION_XTM_ONE, Kubernetes};
use crate::holder::Holder;
use crate::memory::{Memory, Registration, XtmOneMemory};
use crate::model::Cure;
use crate::orchestrator::versioned::{decode, encode};
use crate::orchestrator::{OrchestratorError, Recalled};
use crate::render::{LABEL_MANAGER, LABEL_PLATFORM};
use crate::stop::{Cause, Stop};

/// Seconds after the last renewal until a Lease is free.
const DURATION_S: i32 = 60;
/// The time between two renewals.
const RENEW: Duration = Duration::from_secs(15);
/// How often a write of the Lease is tried again when somebody else changed the Lease meanwhile.
const TRIES: usize = 5;
const CURE_LOCKED: Cure =
    Cure("wait for that pass; if it is gone for good, its Lease expires a minute after its last sign of life");

/// The Lease that this pass holds, and the task that renews it.
pub struct HeldLease {
    record: Arc<Record>,
    renewing: JoinHandle<()>,
}

/// When the last pass looked at the workloads, as Unix time in seconds.
#[derive(Serialize, Deserialize)]
struct LastPass {
    at: i64,
}

/// The Lease as this pass knows it. Whoever writes the Lease locks `version` meanwhile, so that writes do not overlap.
#[derive(Debug)]
pub(super) struct Record {
    name: String,
    pub(super) uid: String,
    holder: String,
    /// `None` once the Lease is lost, after which this pass must not write it any more.
    version: Mutex<Option<String>>,
}

impl Kubernetes {
    pub(super) async fn take_lease(&self, holder: &Holder) -> Result<HeldLease, OrchestratorError> {
        let name = self.lease_name();
        let holder = format!("{}_{}_{}", holder.pass, holder.host, holder.pid);
        for _ in 0..TRIES {
            let found = match self.api.get::<Lease>(Kind::Leases, &name).await {
                Ok(lease) => Some(lease),
                Err(error) if error.is_absent() => None,
                Err(error) => return Err(error.into()),
            };
            let begun = Instant::now();
            let taken = match &found {
                None => {
                    self.heed_former_lease().await?;
                    self.create_lease(&name, &holder).await
                }
                Some(lease) => self.take_over_lease(lease, &name, &holder).await?,
            };
            match taken {
                Ok(lease) => return Ok(self.held(lease, name, holder, begun)),
                // Somebody else was faster, so look again.
                Err(error) if error.code() == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (since, until) = (format!("{:.0}", Timestamp::now()), "a minute from now".to_owned());
        let holder = "several passes at once".to_owned();
        Err(OrchestratorError::Locked { place: self.api.place.clone(), holder, since, until, cure: CURE_LOCKED })
    }

    async fn create_lease(&self, name: &str, holder: &str) -> Result<Lease, ApiError> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name, "labels": {
                LABEL_MANAGER: self.owner.manager.as_str(),
                LABEL_PLATFORM: self.owner.platform.label(),
            } },
            "spec": fields(holder, 0),
        });
        self.api.create(Kind::Leases, &lease).await
    }

    /// Fails while somebody holds the Lease.
    fn expect_free(&self, spec: &LeaseSpec) -> Result<(), OrchestratorError> {
        let (Some(held_by), Some(until)) = (held_by(spec), expiry(spec)) else { return Ok(()) };
        if until <= Timestamp::now() {
            return Ok(());
        }
        let since =
            spec.acquire_time.as_ref().map_or_else(|| "a time unknown".to_owned(), |time| format!("{:.0}", time.0));
        Err(OrchestratorError::Locked {
            place: self.api.place.clone(),
            holder: in_words(held_by),
            since,
            until: format!("{until:.0} unless it is renewed"),
            cure: CURE_LOCKED,
        })
    }

    /// Fails when a pass of version 0.1 is still at work, whose Lease has another name. This is asked only while there
    /// is no Lease of this version yet.
    async fn heed_former_lease(&self) -> Result<(), OrchestratorError> {
        match self.former_lease().await? {
            Some(Lease { spec: Some(spec), .. }) => self.expect_free(&spec),
            _ => Ok(()),
        }
    }

    /// The Lease of version 0.1, if this manager has one. It is not deleted, because it may own the pull secret that
    /// Deployments refer to.
    async fn former_lease(&self) -> Result<Option<Lease>, OrchestratorError> {
        let Some(name) = self.former_lease_name() else { return Ok(None) };
        match self.api.get::<Lease>(Kind::Leases, &name).await {
            Ok(lease) => {
                let labels = lease.metadata.labels.as_ref();
                let owner = labels.and_then(|labels| labels.get(LABEL_MANAGER)).map(String::as_str);
                Ok((owner == Some(self.owner.manager.as_str())).then_some(lease))
            }
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a Lease that nobody holds any more. The inner error is a conflict when somebody changed the Lease
    /// meanwhile.
    async fn take_over_lease(
        &self,
        lease: &Lease,
        name: &str,
        holder: &str,
    ) -> Result<Result<Lease, ApiError>, OrchestratorError> {
        let owner = lease.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_MANAGER));
        if owner.map(String::as_str) != Some(self.owner.manager.as_str()) {
            return Err(OrchestratorError::Refused {
                what: "taking the lock".to_owned(),
                place: self.api.place.clone(),
                why: format!("the Lease {name} has not this manager's {LABEL_MANAGER} label: it is somebody else's"),
                cure: Cure("delete or rename that Lease, or use another namespace"),
            });
        }
        let none = LeaseSpec::default();
        let spec = lease.spec.as_ref().unwrap_or(&none);
        let held_by = held_by(spec);
        if held_by == Some(holder) {
            // An earlier request took it, and its answer was lost.
            return Ok(Ok(lease.clone()));
        }
        self.expect_free(spec)?;
        if let Some(held_by) = held_by {
            tracing::warn!(lease = name, holder = held_by, "taking over the lock of a pass that is gone");
        }
        let transitions = spec.lease_transitions.unwrap_or_default().saturating_add(1);
        let version = lease.metadata.resource_version.as_deref().unwrap_or_default();
        let patch = json!({ "metadata": { "resourceVersion": version }, "spec": fields(holder, transitions) });
        Ok(self.api.merge(Kind::Leases, name, None, &patch).await)
    }

    fn held(&self, lease: Lease, name: String, holder: String, taken: Instant) -> HeldLease {
        let version = Mutex::new(lease.metadata.resource_version.clone());
        let uid = lease.metadata.uid.clone().unwrap_or_default();
        let record = Arc::new(Record { name, uid, holder, version });
        let renewing = renew(Arc::clone(&self.api), Arc::clone(&record), self.stop.clone(), taken);
        // What it logs must name the lane as well.
        let renewing = tokio::spawn(renewing.instrument(tracing::Span::current()));
        *self.lease() = Some((lease, Arc::clone(&record)));
        HeldLease { record, renewing }
    }

    pub(super) async fn give_back(&self, held: HeldLease) -> Result<(), OrchestratorError> {
        held.renewing.abort();
        let last_pass = self.last_pass().and_then(|at| encode(LastPass { at: at.as_second() }).ok());
        let mut patch = json!({ "spec": { "holderIdentity": null } });
        if let (Some(text), Some(patch)) = (last_pass, patch.as_object_mut()) {
            patch.insert("metadata".to_owned(), json!({ "annotations": { ANNOTATION_LAST_PASS: text } }));
        }
        if !held.record.write(&self.api, patch).await? {
            tracing::warn!(lease = held.record.name, "the lock was not ours any more");
        }
        Ok(())
    }

    /// Reads the registration that the last pass stored. Without a Lease it also makes sure that the namespace exists,
    /// because in a namespace that does not exist the lists are empty instead of failing.
    pub(super) async fn read_record(&self) -> Result<Recalled, OrchestratorError> {
        let taken = self.lease().as_ref().map(|(lease, _)| lease.clone());
        let lease = match taken {
            Some(lease) => lease,
            None => match self.api.get::<Lease>(Kind::Leases, &self.lease_name()).await {
                Ok(lease) => lease,
                Err(error) if error.is_absent() => {
                    self.see_namespace().await?;
                    Lease::default()
                }
                Err(error) => return Err(error.into()),
            },
        };
        let noted = |lease: &Lease| {
            lease.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(ANNOTATION_REGISTRATION))
        };
        let mut recalled = Recalled::default();
        let registered = match self.former_lease_if(!noted(&lease)).await? {
            Some(former) => {
                // The registration has to be written to the new Lease as well.
                recalled.stale = true;
                former
            }
            None => lease.clone(),
        };
        // Earlier versions had no memory of XTM One.
        let text = |lease: &Lease, name: &str| lease.metadata.annotations.as_ref()?.get(name).cloned();
        let mut unreadable = |name: &str, why: String| {
            recalled.notices.push(format!("{name} of the Lease cannot be read and counts as empty: {why}"));
        };
        match text(&registered, ANNOTATION_REGISTRATION).map(|text| decode::<Registration>(&text)).transpose() {
            Ok(registration) => recalled.memory.registration = registration,
            Err(why) => unreadable(ANNOTATION_REGISTRATION, why),
        }
        match text(&lease, ANNOTATION_XTM_ONE).map(|text| decode::<XtmOneMemory>(&text)).transpose() {
            Ok(xtm_one) => recalled.memory.xtm_one = xtm_one.unwrap_or_default(),
            Err(why) => unreadable(ANNOTATION_XTM_ONE, why),
        }
        match text(&lease, ANNOTATION_LAST_PASS).map(|text| decode::<LastPass>(&text)).transpose() {
            Ok(last) => {
                recalled.memory.last_pass = last.and_then(|last| Timestamp::from_second(last.at).ok());
            }
            Err(why) => unreadable(ANNOTATION_LAST_PASS, why),
        }
        Ok(recalled)
    }

    async fn former_lease_if(&self, wanted: bool) -> Result<Option<Lease>, OrchestratorError> {
        if wanted { self.former_lease().await } else { Ok(None) }
    }

    /// Fails when the namespace does not exist. Without the permission to ask, it counts as existing.
    async fn see_namespace(&self) -> Result<(), OrchestratorError> {
        match self.api.get_namespace().await {
            Err(error) if error.code() == 403 => Ok(()),
            seen => seen.map(drop).map_err(Into::into),
        }
    }

    pub(super) async fn write_registration(&self, memory: &Memory) -> Result<(), OrchestratorError> {
        let Some(record) = self.lease().as_ref().map(|(_, record)| Arc::clone(record)) else { return Ok(()) };
        let text = memory.registration.as_ref().and_then(|registration| encode(registration).ok());
        let patch = json!({ "metadata": { "annotations": { ANNOTATION_REGISTRATION: text } } });
        record.write(&self.api, patch).await?;
        Ok(())
    }

    /// Writes what is remembered of the registration with XTM One. Fails when the Lease was lost, because tokens may be
    /// made only after it is written.
    pub(super) async fn write_xtm_one(&self, memory: &Memory) -> Result<(), OrchestratorError> {
        let failed = |why: String| OrchestratorError::Refused {
            what: format!("writing the Lease {}", self.lease_name()),
            place: self.api.place.clone(),
            why,
            cure: Cure("see which other pass of this manager runs; the next pass goes on"),
        };
        let record = self.lease().as_ref().map(|(_, record)| Arc::clone(record));
        let record = record.ok_or_else(|| failed("this pass does not hold it".to_owned()))?;
        let text = (!memory.xtm_one.is_empty()).then(|| encode(&memory.xtm_one)).transpose();
        let text = text.map_err(|error| failed(error.to_string()))?;
        let patch = json!({ "metadata": { "annotations": { ANNOTATION_XTM_ONE: text } } });
        if record.write(&self.api, patch).await? { Ok(()) } else { Err(failed("it was lost".to_owned())) }
    }
}

impl Record {
    /// Changes the Lease, and returns whether this pass still holds it. A Lease that is lost is left unchanged.
    async fn write(&self, api: &Api, mut patch: Value) -> Result<bool, ApiError> {
        let mut known = self.version.lock().await;
        for _ in 0..TRIES {
            let Some(version) = known.as_ref() else { return Ok(false) };
            if let Some(fields) = patch.as_object_mut() {
                let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
                if let Some(metadata) = metadata.as_object_mut() {
                    metadata.insert("resourceVersion".to_owned(), version.as_str().into());
                }
            }
            match api.merge::<Lease>(Kind::Leases, &self.name, None, &patch).await {
                Ok(lease) => {
                    *known = lease.metadata.resource_version;
                    return Ok(true);
                }
                // Somebody else wrote or deleted it, or a request of ours did whose answer was lost.
                Err(error) if error.code() == 409 => *known = self.version_if_ours(api).await?,
                Err(error) if error.is_absent() => *known = None,
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn version_if_ours(&self, api: &Api) -> Result<Option<String>, ApiError> {
        let lease: Lease = match api.get(Kind::Leases, &self.name).await {
            Err(error) if error.is_absent() => return Ok(None),
            lease => lease?,
        };
        let ours = lease.spec.and_then(|spec| spec.holder_identity).as_deref() == Some(self.holder.as_str());
        Ok(lease.metadata.resource_version.filter(|_| ours))
    }
}

/// Renews the Lease until this task is aborted. Stops the pass when the Lease is lost.
async fn renew(api: Arc<Api>, record: Arc<Record>, stop: Stop, taken: Instant) {
    let mut last = taken;
    let longest = Duration::from_secs(u64::try_from(DURATION_S).unwrap_or_default());
    loop {
        tokio::time::sleep(RENEW).await;
        // The duration of the Lease counts from the time that the request writes, not from the answer.
        let begun = Instant::now();
        let renewal = record.write(&api, json!({ "spec": { "renewTime": micro_time() } }));
        // No answer may be waited for longer than the Lease lasts, because another pass may take it after that.
        match tokio::time::timeout_at(last + longest, renewal).await {
            Ok(Ok(true)) => last = begun,
            Ok(Ok(false)) | Err(_) => {
                stop.signal(Cause::LockLost);
                return;
            }
            Ok(Err(error)) => {
                let error = OrchestratorError::from(error);
                tracing::warn!(%error, "the lock could not be renewed");
            }
        }
    }
}

fn fields(holder: &str, transitions: i32) -> Value {
    let now = micro_time();
    json!({
        "holderIdentity": holder,
        "leaseDurationSeconds": DURATION_S,
        "acquireTime": now,
        "renewTime": now,
        "leaseTransitions": transitions,
    })
}

/// The time now as a `MicroTime`, for which the API server wants six digits after the point.
fn micro_time() -> String {
    format!("{:.6}", Timestamp::now())
}

fn held_by(spec: &LeaseSpec) -> Option<&str> {
    spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn expiry(spec: &LeaseSpec) -> Option<Timestamp> {
    let renewed = spec.renew_time.as_ref().or(spec.acquire_time.as_ref())?.0;
    let duration = u64::try_from(spec.lease_duration_seconds.unwrap_or(DURATION_S)).unwrap_or_default();
    renewed.saturating_add(Duration::from_secs(duration)).ok()
}

/// Turns the holder identity `pass_host_pid` into words for a message.
fn in_words(holder: &str) -> String {
    let parts: Option<(&str, &str, &str)> =
        holder.split_once('_').and_then(|(pass, rest)| rest.rsplit_once('_').map(|(host, pid)| (pass, host, pid)));
    parts.map_or_else(|| holder.to_owned(), |(pass, host, pid)| format!("pass {pass} (process {pid} on {host})"))
}
