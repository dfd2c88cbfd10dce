//! Checks what a platform sent and turns it into the connectors that should run. A malformed connector is rejected
//! without harm to the others. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use crate::model::{
    ConfigHash, Connector, ConnectorId, CurrentStatus, Requested, Variable, VariableValue, WorkloadName,
};
use crate::probation::Failure;
use crate::secret::Secret;

/// The list that a platform sent, whatever its protocol, before anything is checked.
#[derive(Debug, Default)]
pub struct Listing {
    /// The entries that have the shape of a connector.
    pub connectors: Vec<WireConnector>,
    /// The entries that do not, each with the reason. The id is `None` when not even that can be read.
    pub unreadable: Vec<(Option<String>, String)>,
}

/// One connector as the platform sent it.
#[derive(Debug)]
pub struct WireConnector {
    /// The id that the platform gives it.
    pub id: String,
    /// The display name, which may hold anything: OpenCTI stores an edited name as it was typed (contracts 1.2).
    pub name: String,
    /// `image:version`, or empty when the platform's catalogue does not know it.
    pub image: String,
    /// The hash of image and configuration.
    pub hash: String,
    /// The status that the platform wants: `starting`, `stopping` or `stopped`.
    pub requested: String,
    /// The status that the platform shows: `started` or `stopped`. `None` when none was ever reported.
    pub current: Option<String>,
    /// The variables, in the platform's order.
    pub configuration: Vec<WireVariable>,
}

/// One configuration entry as the platform sent it.
#[derive(Debug)]
pub struct WireVariable {
    /// The name of the environment variable.
    pub key: String,
    /// Clear text or an envelope. `None` when the platform sent null.
    pub value: Option<Secret>,
    /// Whether `value` is an envelope.
    pub encrypted: bool,
}

/// Why a connector cannot be planned or deployed. A workload that it has keeps running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Rejection {
    /// The entry in the list does not have the shape of a connector.
    #[error("the platform's entry for it cannot be read: {why}")]
    Unreadable {
        /// What is wrong with the entry.
        why: String,
    },
    /// The list has the same id twice, with different content.
    #[error("the platform lists this id twice with different content")]
    ListedTwice,
    /// The requested status is none of the three known ones.
    #[error("the requested status {status:?} is unknown; starting, stopping and stopped are understood")]
    UnknownStatus {
        /// The status as the platform sent it.
        status: String,
    },
    /// The hash is missing or is not a hash.
    #[error("its configuration hash cannot be used: {why}")]
    InvalidHash {
        /// What is wrong with the hash.
        why: String,
    },
    /// The platform sent no image, because the catalogue entry is missing or has no snapshot (contracts 1.2).
    #[error("the platform sent no image for it: see whether its catalogue entry still exists")]
    EmptyImage,
    /// The image is not an image reference.
    #[error("the image {image:?} is not an image reference")]
    InvalidImage {
        /// The image as the platform sent it.
        image: String,
    },
    /// A name cannot be that of an environment variable.
    #[error("{name:?} cannot be the name of an environment variable")]
    InvalidVariable {
        /// The name as the platform sent it.
        name: String,
    },
    /// A value holds a NUL byte, which no environment can hold.
    #[error("the value of {name} holds a NUL byte")]
    InvalidValue {
        /// The name of the variable.
        name: String,
    },
    /// An encrypted value is missing, or is empty once decrypted.
    #[error("the secret {name} is empty: type it again on the platform")]
    EmptySecret {
        /// The name of the variable.
        name: String,
    },
    /// An envelope cannot be opened.
    #[error("the secret {name} cannot be decrypted: {why}")]
    Undecryptable {
        /// The name of the variable.
        name: String,
        /// The reason, and what to do about it.
        why: String,
    },
    /// Its new configuration did not start, or did not stay up. The old one runs on and is not interrupted again so soon.
    #[error(
        "its new configuration {} ({times} attempts), the old one runs on; it is tried again after {after}, or at once when the configuration changes",
        .failure.map_or("could not be started".to_owned(), |failure| format!("did not stay up: {failure}"))
    )]
    WontStart {
        /// The number of attempts so far.
        times: u32,
        /// How the last attempt failed on probation. `None` when it was not even started.
        failure: Option<Failure>,
        /// The earliest time of the next attempt.
        after: Timestamp,
    },
    /// Its workload could not be looked at.
    #[error("its workload could not be looked at: {why}")]
    Unobservable {
        /// The orchestrator's words.
        why: String,
    },
    /// Its workload name belongs to somebody else's workload.
    #[error("the name {name} is taken by {owner}: rename that one or the connector")]
    NameTaken {
        /// The name that the workload should have.
        name: String,
        /// A description of the owner.
        owner: String,
    },
    /// Its workload name is that of another connector.
    #[error("connector {other} has the same workload name {name}: rename one of them on the platform")]
    NameCollision {
        /// The name that both workloads should have.
        name: String,
        /// The connector that keeps the name.
        other: ConnectorId,
    },
}

/// A listed connector that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The id that the platform gives it. It counts as listed, so its workload is not removed.
    pub id: ConnectorId,
    /// The display name, or the id when the name could not be read.
    pub title: String,
    /// Why it cannot be used.
    pub reason: Rejection,
    /// The status that the platform shows now. `None` when it shows none or that could not be read.
    pub shown: Option<CurrentStatus>,
}

/// What the platform wants. Every listed connector is in here once, either usable or rejected.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The usable connectors.
    pub connectors: BTreeMap<ConnectorId, Connector>,
    /// The connectors that cannot be used.
    pub rejected: BTreeMap<ConnectorId, Rejected>,
    /// The clear variables that the platform sends as null, by connector. They are not set, so that the connector uses
    /// its own defaults.
    pub unset: BTreeMap<ConnectorId, BTreeSet<String>>,
    /// One sentence for each entry without a usable id. While there is such an entry, nothing may be removed, because
    /// it could be any connector.
    pub unidentified: Vec<String>,
}

impl Desired {
    /// How many entries the platform listed.
    #[must_use]
    pub fn listed(&self) -> usize {
        self.connectors.len() + self.rejected.len() + self.unidentified.len()
    }

    /// Whether this connector should run.
    #[must_use]
    pub fn wants_running(&self, id: &ConnectorId) -> bool {
        self.connectors.get(id).is_some_and(|connector| connector.requested == Requested::Run)
    }

    /// The status that the platform shows of this connector now.
    #[must_use]
    pub fn shown(&self, id: &ConnectorId) -> Option<CurrentStatus> {
        let usable = self.connectors.get(id).map(|connector| connector.shown);
        usable.or_else(|| self.rejected.get(id).map(|rejected| rejected.shown)).flatten()
    }

    /// Whether the platform lists this id.
    #[must_use]
    pub fn lists(&self, id: &ConnectorId) -> bool {
        self.connectors.contains_key(id) || self.rejected.contains_key(id)
    }
}

/// Checks a listing. The order of the listing has no influence on the result.
#[must_use]
pub fn read(listing: Listing) -> Desired {
    let mut desired = Desired::default();
    for (id, why) in listing.unreadable {
        match id.as_deref().map(ConnectorId::new) {
            Some(Ok(id)) => desired.reject(&id, id.to_string(), None, Rejection::Unreadable { why }),
            Some(Err(invalid)) => desired.unidentified.push(format!("an entry's id cannot be used: {invalid}")),
            None => desired.unidentified.push(why),
        }
    }
    for wire in listing.connectors {
        match ConnectorId::new(&wire.id) {
            Ok(id) => desired.add(id, wire),
            Err(invalid) => {
                desired.unidentified.push(format!("the id of connector {:?} cannot be used: {invalid}", wire.name));
            }
        }
    }
    desired.unidentified.sort();
    desired
}

impl Desired {
    fn add(&mut self, id: ConnectorId, wire: WireConnector) {
        let title = wire.name.clone();
        let shown = shown(wire.current.as_deref());
        let null = wire.configuration.iter().filter(|variable| variable.value.is_none() && !variable.encrypted);
        let unset: Vec<String> = null.map(|variable| variable.key.clone()).collect();
        if !unset.is_empty() {
            self.unset.entry(id.clone()).or_default().extend(unset);
        }
        match check(&id, wire) {
            Ok(connector) => match self.connectors.get(&id) {
                Some(same) if *same == connector => {}
                Some(_) => self.reject(&id, title, shown, Rejection::ListedTwice),
                None if self.rejected.contains_key(&id) => self.reject(&id, title, shown, Rejection::ListedTwice),
                None => {
                    self.connectors.insert(id, connector);
                }
            },
            Err(reason) => self.reject(&id, title, shown, reason),
        }
    }

    /// Rejects an id. When the list has another entry for the id with different content, that is the reason, whatever
    /// is wrong with this entry.
    fn reject(&mut self, id: &ConnectorId, title: String, shown: Option<CurrentStatus>, reason: Rejection) {
        let mut rejected = Rejected { id: id.clone(), title, reason, shown };
        let usable = self.connectors.remove(id).map(|connector| connector.title);
        let before = self.rejected.remove(id);
        if usable.is_some() || before.as_ref().is_some_and(|before| *before != rejected) {
            (rejected.reason, rejected.shown) = (Rejection::ListedTwice, None);
        }
        // The smallest title is taken, so that the order of the list has no influence.
        let titles = usable.into_iter().chain(before.map(|before| before.title));
        rejected.title = titles.fold(rejected.title, Ord::min);
        self.rejected.insert(id.clone(), rejected);
    }
}

fn shown(current: Option<&str>) -> Option<CurrentStatus> {
    match current {
        Some("started") => Some(CurrentStatus::Started),
        Some("stopped") => Some(CurrentStatus::Stopped),
        _ => None,
    }
}

fn check(id: &ConnectorId, wire: WireConnector) -> Result<Connector, Rejection> {
    let requested = match wire.requested.as_str() {
        "starting" => Requested::Run,
        "stopping" | "stopped" => Requested::Stop,
        _ => return Err(Rejection::UnknownStatus { status: wire.requested }),
    };
    let hash = ConfigHash::new(&wire.hash).map_err(|invalid| Rejection::InvalidHash { why: invalid.to_string() })?;
    let image = check_image(&wire.image)?;
    let variables = wire.configuration.into_iter().filter_map(|entry| variable(entry).transpose());
    Ok(Connector {
        name: WorkloadName::of(&wire.name, id),
        id: id.clone(),
        title: wire.name,
        image,
        hash,
        requested,
        shown: shown(wire.current.as_deref()),
        variables: variables.collect::<Result<_, _>>()?,
    })
}

fn check_image(image: &str) -> Result<String, Rejection> {
    let image = image.trim();
    if image.is_empty() {
        return Err(Rejection::EmptyImage);
    }
    if image.chars().any(|c| c.is_whitespace() || c.is_control()) || image.starts_with(['/', ':', '@']) {
        return Err(Rejection::InvalidImage { image: image.to_owned() });
    }
    Ok(image.to_owned())
}

/// Checks a variable. `None` for a clear value that is null, see [`Desired::unset`].
fn variable(wire: WireVariable) -> Result<Option<Variable>, Rejection> {
    let name = wire.key;
    if !is_variable_name(&name) {
        return Err(Rejection::InvalidVariable { name });
    }
    let value = match (wire.encrypted, wire.value) {
        (true, None) => return Err(Rejection::EmptySecret { name }),
        (true, Some(envelope)) if envelope.expose().trim().is_empty() => return Err(Rejection::EmptySecret { name }),
        (true, Some(envelope)) => VariableValue::Encrypted(envelope.expose().trim().to_owned()),
        (false, None) => return Ok(None),
        (false, Some(clear)) if clear.expose().contains('\0') => return Err(Rejection::InvalidValue { name }),
        (false, Some(clear)) => VariableValue::Clear(clear),
    };
    Ok(Some(Variable { name, value }))
}

/// Whether both Docker and Kubernetes accept the name: letters, digits, `_`, `-`, `.`, and no digit at the beginning.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}
