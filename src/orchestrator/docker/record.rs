//! The pass record: the labels of one container that is created and never started (design: What a pass remembers).
//!
//! The labels of a container cannot change, so each record replaces the one before it: first the new one is created,
//! then the old one removed. When the pass is killed in between, both exist, and the newest one that can be read
//! counts.

use std::collections::{BTreeMap, HashMap};

use bollard::body_full;
use bollard::errors::Error as EngineError;
use bollard::models::{ContainerCreateBody, ContainerSummary};
use bollard::query_parameters::{CreateContainerOptionsBuilder, CreateImageOptionsBuilder};
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};

use super::lock::{LABEL_ALIVE, LABEL_LOCK};
use super::observe::names;
use super::{Docker, FAILED, status};
use crate::memory::{ConnectorMemory, Memory, Registration, XtmOneMemory};
use crate::model::{ConfigHash, ConnectorId, PlatformKind};
use crate::orchestrator::versioned::{decode, encode};
use crate::orchestrator::{OrchestratorError, Recalled};

/// The label that names the manager of a record or a lock.
const LABEL_OWNER: &str = "xtm-reconcile.manager";
/// The label that names the platform. Version 0.1 served only OpenCTI and did not write it.
const LABEL_PLATFORM: &str = "xtm-reconcile.platform";
const LABEL_RECORD: &str = "xtm-reconcile.record";
const LABEL_REGISTRATION: &str = "xtm-reconcile.registration";
const LABEL_ADOPTED: &str = "xtm-reconcile.adopted";
const LABEL_XTM_ONE: &str = "xtm-reconcile.xtm-one";
const PREFIX_CONNECTOR: &str = "xtm-reconcile.connector.";
/// The image that records and locks are created from. It is empty, and is made when it is missing.
const EMPTY_IMAGE: &str = "xtm-reconcile/empty";
const EMPTY_TAG: &str = "1";
/// A tar archive without a file in it, which is two blocks of zeros.
const EMPTY_TAR: &[u8] = &[0; 1024];
#[derive(Serialize, Deserialize)]
struct RecordHead {
    seq: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    blind: bool,
}

#[derive(Serialize, Deserialize)]
struct Adopted {
    hashes: BTreeMap<String, ConfigHash>,
}

/// What the records of this manager and platform say, and their ids, so that the next record can replace them all.
#[derive(Default)]
pub(super) struct Records {
    pub(super) recalled: Recalled,
    ids: Vec<String>,
    seq: u64,
}

impl Docker {
    /// Whether a record or lock with these labels belongs to this lane. Without a platform it is from version 0.1,
    /// which served only OpenCTI.
    pub(super) fn is_marker_of_ours(&self, labels: &HashMap<String, String>) -> bool {
        let label = |name: &str| labels.get(name).map(String::as_str);
        let platform = label(LABEL_PLATFORM).unwrap_or(PlatformKind::OpenCti.label());
        label(LABEL_OWNER) == Some(self.owner.manager.as_str()) && platform == self.owner.platform.label()
    }

    /// Reads the newest record that can be read. The memory counts as stale when an earlier version wrote it, so that
    /// it is written again under its new name.
    pub(super) async fn read_record(&self) -> Result<Records, OrchestratorError> {
        let mut records = Records::default();
        // Parts of locks, where a pass was killed while it took one over.
        let mut left_over = Vec::new();
        let mut best: Option<(RecordHead, HashMap<String, String>)> = None;
        let owner = format!("{LABEL_OWNER}={}", self.owner.manager);
        let filters = HashMap::from([("label", vec![owner])]);
        for summary in self.list(&filters).await? {
            let Some(labels) = summary.labels.as_ref().filter(|labels| self.is_marker_of_ours(labels)) else {
                continue;
            };
            let is_former = !labels.contains_key(LABEL_PLATFORM);
            if is_former && labels.contains_key(LABEL_LOCK) {
                match self.former_lock_holder(&summary) {
                    None => records.ids.extend(summary.id.clone()),
                    Some(held) => records.recalled.locked = Some(held),
                }
            } else if labels.contains_key(LABEL_LOCK) && self.is_left_over(&summary) {
                match self.other_holder(&summary).await? {
                    None => left_over.extend(summary.id.clone()),
                    Some(held) => records.recalled.locked = Some(held),
                }
            } else if labels.get(LABEL_ALIVE).is_some_and(|lock| self.held.get().is_some_and(|held| held.id() != lock))
            {
                left_over.extend(summary.id.clone());
            }
            let Some(head) = labels.get(LABEL_RECORD) else { continue };
            records.ids.extend(summary.id.clone());
            records.recalled.stale |= is_former;
            match decode::<RecordHead>(head) {
                Ok(head) => {
                    records.seq = records.seq.max(head.seq);
                    if best.as_ref().is_none_or(|(newest, _)| head.seq > newest.seq) {
                        best = Some((head, labels.clone()));
                    }
                }
                Err(why) => {
                    records.recalled.notices.push(format!("a pass record cannot be read and is ignored: {why}"));
                }
            }
        }
        records.recalled.stale |= !left_over.is_empty();
        records.ids.extend(left_over);
        match best {
            Some((head, labels)) => {
                records.recalled.memory.blind = head.blind;
                read_labels(&labels, &mut records.recalled);
            }
            None => records.recalled.memory.no_record = true,
        }
        records.recalled.stale |= records.ids.len() > 1 || !records.recalled.notices.is_empty();
        Ok(records)
    }

    /// Whether a lock is neither that of this pass nor the one that has the name of the lock.
    fn is_left_over(&self, summary: &ContainerSummary) -> bool {
        let Some(held) = self.held.get() else { return false };
        let has_name = names(summary).any(|name| name == held.name());
        summary.id.as_deref() != Some(held.id()) && !has_name
    }

    /// Replaces all records by a single one that holds `memory`.
    pub(super) async fn write_record(&self, memory: &Memory) -> Result<(), OrchestratorError> {
        let before = self.read_record().await?;
        let seq = before.seq + 1;
        let labels = labels(memory, seq).map_err(|error| OrchestratorError::Refused {
            what: "writing the pass record".to_owned(),
            place: crate::orchestrator::Orchestrator::place(self),
            why: error.to_string(),
            cure: FAILED,
        })?;
        // A record that cannot be read may have the same number. The random part keeps its name from being in the way.
        let (manager, platform) = (&self.owner.manager, self.owner.platform.label());
        let name = format!("xtm-reconcile-record-{manager}-{platform}-{seq}-{:08x}", fastrand::u32(..));
        self.create_marker(&name, labels).await.map_err(self.refused("writing the pass record"))?;
        for id in &before.ids {
            self.remove(id).await.map_err(self.refused("removing the previous pass record"))?;
        }
        Ok(())
    }

    /// Creates a container that is never started, for a record or a lock, and returns its id.
    pub(super) async fn create_marker(
        &self,
        name: &str,
        mut labels: HashMap<String, String>,
    ) -> Result<String, EngineError> {
        labels.insert(LABEL_OWNER.to_owned(), self.owner.manager.to_string());
        labels.insert(LABEL_PLATFORM.to_owned(), self.owner.platform.label().to_owned());
        let body = ContainerCreateBody {
            image: Some(format!("{EMPTY_IMAGE}:{EMPTY_TAG}")),
            // The engine insists on a command, although the image holds no program.
            cmd: Some(vec!["never-started".to_owned()]),
            labels: Some(labels),
            ..Default::default()
        };
        let create = || {
            let options = CreateContainerOptionsBuilder::default().name(name).build();
            self.engine.create_container(Some(options), body.clone())
        };
        let created = match create().await {
            Err(error) if status(&error) == Some(404) => {
                self.make_empty_image().await?;
                create().await?
            }
            created => created?,
        };
        Ok(created.id)
    }

    async fn make_empty_image(&self) -> Result<(), EngineError> {
        let options = CreateImageOptionsBuilder::default().from_src("-").repo(EMPTY_IMAGE).tag(EMPTY_TAG).build();
        let body = body_full(Bytes::from_static(EMPTY_TAR));
        self.engine.create_image(Some(options), Some(body), None).try_for_each(|_| async { Ok(()) }).await
    }
}

fn labels(memory: &Memory, seq: u64) -> Result<HashMap<String, String>, serde_json::Error> {
    let mut labels = HashMap::new();
    labels.insert(LABEL_RECORD.to_owned(), encode(RecordHead { seq, blind: memory.blind })?);
    if let Some(registration) = &memory.registration {
        labels.insert(LABEL_REGISTRATION.to_owned(), encode(registration)?);
    }
    if !memory.adopted.is_empty() {
        labels.insert(LABEL_ADOPTED.to_owned(), encode(Adopted { hashes: memory.adopted.clone() })?);
    }
    if !memory.xtm_one.is_empty() {
        labels.insert(LABEL_XTM_ONE.to_owned(), encode(&memory.xtm_one)?);
    }
    for (id, connector) in &memory.connectors {
        labels.insert(format!("{PREFIX_CONNECTOR}{id}"), encode(connector)?);
    }
    Ok(labels)
}

/// Reads the parts of a record. A part that cannot be read counts as empty and becomes a notice.
fn read_labels(labels: &HashMap<String, String>, recalled: &mut Recalled) {
    let Recalled { memory, notices, .. } = recalled;
    let mut unreadable = |label: &str, why: String| {
        notices.push(format!("{label} in the pass record cannot be read and counts as empty: {why}"));
    };
    if let Some(text) = labels.get(LABEL_REGISTRATION) {
        match decode::<Registration>(text) {
            Ok(registration) => memory.registration = Some(registration),
            Err(why) => unreadable(LABEL_REGISTRATION, why),
        }
    }
    if let Some(text) = labels.get(LABEL_ADOPTED) {
        match decode::<Adopted>(text) {
            Ok(adopted) => memory.adopted = adopted.hashes,
            Err(why) => unreadable(LABEL_ADOPTED, why),
        }
    }
    if let Some(text) = labels.get(LABEL_XTM_ONE) {
        match decode::<XtmOneMemory>(text) {
            Ok(xtm_one) => memory.xtm_one = xtm_one,
            Err(why) => unreadable(LABEL_XTM_ONE, why),
        }
    }
    for (label, text) in labels {
        let Some(id) = label.strip_prefix(PREFIX_CONNECTOR) else { continue };
        let read = ConnectorId::new(id).map_err(|invalid| invalid.to_string());
        match read.and_then(|id| Ok((id, decode::<ConnectorMemory>(text)?))) {
            Ok((id, connector)) => {
                memory.connectors.insert(id, connector);
            }
            Err(why) => unreadable(label, why),
        }
    }
}
