//! The words of the domain as types that are valid once built. No I/O, no decision.

mod account;
mod trouble;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::secret::Secret;

pub use account::{TokenId, UserId};
pub use trouble::{Trouble, TroubleKind};

/// Longest value that every orchestrator accepts as a label, and longest RFC 1123 label.
pub const LABEL_MAX: usize = 63;

/// Why a text is not the value it should be. Completes "… is not a valid identifier: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    /// The text is empty.
    #[error("it is empty")]
    Empty,
    /// It is longer than a label value may be; the number of its characters.
    #[error("it has {0} characters, a label value has at most {LABEL_MAX}")]
    TooLong(usize),
    /// It has a character that no hash has.
    #[error("a hash has letters and digits only")]
    NotHash,
    /// It has a character that a label value cannot hold, or cannot begin or end with.
    #[error("only letters, digits, '-', '_' and '.' are allowed, and the first and last must be a letter or digit")]
    Character,
}

fn label_value(text: &str) -> Result<String, InvalidValue> {
    let plain = |c: char| c.is_ascii_alphanumeric();
    if text.is_empty() {
        return Err(InvalidValue::Empty);
    }
    if text.len() > LABEL_MAX {
        return Err(InvalidValue::TooLong(text.chars().count()));
    }
    let ends = text.starts_with(plain) && text.ends_with(plain);
    if !ends || !text.chars().all(|c| plain(c) || matches!(c, '-' | '_' | '.')) {
        return Err(InvalidValue::Character);
    }
    Ok(text.to_owned())
}

macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks that `text` can be a label value on every orchestrator.
            pub fn new(text: &str) -> Result<Self, InvalidValue> {
                label_value(text).map(Self)
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidValue;
            fn try_from(text: String) -> Result<Self, InvalidValue> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label_type! {
    /// The id of this manager (`MANAGER__ID`), which marks the workloads that it owns. It must never change, because
    /// OpenCTI refuses a second manager (contracts 1.2).
    ManagerId
}
label_type! {
    /// The platform's id of one connector.
    ConnectorId
}

/// The platform's hash of a connector's image and configuration: when it differs, the workload is out of date.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConfigHash(String);

impl ConfigHash {
    /// Accepts 1 to 128 ASCII letters and digits: OpenCTI sends 8 hex digits, OpenAEV 64 (contracts 1.2, 3).
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        match text.len() {
            0 => Err(InvalidValue::Empty),
            1..=128 if text.chars().all(|c| c.is_ascii_alphanumeric()) => Ok(Self(text.to_owned())),
            1..=128 => Err(InvalidValue::NotHash),
            n => Err(InvalidValue::TooLong(n)),
        }
    }

    /// The hash as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ConfigHash {
    type Error = InvalidValue;
    fn try_from(text: String) -> Result<Self, InvalidValue> {
        Self::new(&text)
    }
}

impl From<ConfigHash> for String {
    fn from(value: ConfigHash) -> Self {
        value.0
    }
}

impl fmt::Display for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// First `digits` hex digits of the SHA-256 of `text`.
#[must_use]
pub fn short_hash(text: &str, digits: usize) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text.as_bytes()) {
        hex.push_str(&format!("{byte:02x}"));
    }
    hex.truncate(digits);
    hex
}

/// Name of the workload of one connector: a valid RFC 1123 label of at least two characters (Docker's minimum).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct WorkloadName(String);

impl WorkloadName {
    /// Makes a name by the daemon's rule: letters in lower case, `-` for every character that is not an ASCII letter or
    /// digit, and no dashes at either end. Other than with the daemon, a name that is then too long or too short is cut
    /// or kept, and gets a short hash of the connector id, so that it is valid and two such names differ.
    #[must_use]
    pub fn of(connector_name: &str, id: &ConnectorId) -> Self {
        let dashed: String = connector_name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let trimmed = dashed.trim_matches('-');
        if (2..=LABEL_MAX).contains(&trimmed.len()) {
            return Self(trimmed.to_owned());
        }
        let hash = short_hash(id.as_str(), 8);
        let kept: String = trimmed.chars().take(LABEL_MAX - 1 - hash.len()).collect();
        let kept = if kept.is_empty() { "connector" } else { kept.trim_end_matches('-') };
        Self(format!("{kept}-{hash}"))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The temporary name of a workload with this hash, until it is complete. It holds a `.`, which no final name does.
    #[must_use]
    pub fn staged(&self, hash: &ConfigHash) -> String {
        let hash: String = hash.as_str().chars().take(8).collect();
        format!("{}.{hash}{STAGED_SUFFIX}", self.0)
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a workload that was replaced and is kept until its replacement has proved itself. The engine's id in it
/// keeps two such names apart. It holds a `.`, which no final name does.
#[must_use]
pub fn former_name(name: &WorkloadName, handle: &Handle) -> String {
    let id: String = handle.0.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("{name}.{id}{FORMER_SUFFIX}")
}

/// The end of the name of each workload that is kept for a roll-back.
pub const FORMER_SUFFIX: &str = ".xtm-former";

/// The end of each temporary name, which a workload has until it is complete and its final name is free.
pub const STAGED_SUFFIX: &str = ".xtm-next";

/// The product that a connector belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlatformKind {
    /// OpenCTI, which speaks GraphQL.
    OpenCti,
    /// OpenAEV, which speaks REST.
    OpenAev,
}

impl PlatformKind {
    /// Every platform, in the order of the lanes in reports.
    pub const ALL: [Self; 2] = [Self::OpenCti, Self::OpenAev];

    /// The value of the `opencti-platform` label, and the name of the lane in reports.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::OpenCti => "opencti",
            Self::OpenAev => "openaev",
        }
    }

    /// The product's name as people write it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::OpenCti => "OpenCTI",
            Self::OpenAev => "OpenAEV",
        }
    }

    /// The prefix of the variables that configure this platform's lane.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::OpenCti => "OPENCTI__",
            Self::OpenAev => "OPENAEV__",
        }
    }

    /// The variable that tells a connector where its platform is.
    #[must_use]
    pub fn url_variable(self) -> &'static str {
        match self {
            Self::OpenCti => "OPENCTI_URL",
            Self::OpenAev => "OPENAEV_URL",
        }
    }
}

/// What an operator can do about a fault, as a sentence.
///
/// Both platforms have the same settings under prefixes of their own, and most faults can occur on both. So the text
/// names such a setting as `P__URL`, and [`Cure::on`] puts the prefix of the platform there before the text is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cure(pub &'static str);

impl Cure {
    /// The text to show for a lane of this platform.
    #[must_use]
    pub fn on(self, platform: PlatformKind) -> String {
        self.0.replace("P__", platform.prefix())
    }
}

/// What the platform wants of a connector: `starting` means run, `stopping` and `stopped` mean do not (contracts 1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Requested {
    /// The connector should run.
    Run,
    /// The connector should not run.
    Stop,
}

/// What a manager reports of a connector (`ConnectorCurrentStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CurrentStatus {
    /// Its workload runs or is being restarted by the engine.
    Started,
    /// Its workload does not run or does not exist.
    Stopped,
}

impl CurrentStatus {
    /// The word that the platform uses for the status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopped => "stopped",
        }
    }
}

/// One variable of a connector as the platform sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// A valid name of an environment variable.
    pub name: String,
    /// The value, as clear text or as an envelope.
    pub value: VariableValue,
}

/// A variable's value. Clear values count as secrets too, because older platforms send the token in clear (contracts
/// 1.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VariableValue {
    /// The value itself, as clear text.
    Clear(Secret),
    /// An envelope (contracts 2) in base64.
    Encrypted(String),
}

/// One connector that the platform lists, after everything that the platform says of it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connector {
    /// The id that the platform gives it.
    pub id: ConnectorId,
    /// The name that people see on the platform.
    pub title: String,
    /// The name of its workload.
    pub name: WorkloadName,
    /// The image reference as the platform sent it, without the configured registry.
    pub image: String,
    /// The hash of image and configuration. A workload with another hash is out of date.
    pub hash: ConfigHash,
    /// Whether the platform wants it to run.
    pub requested: Requested,
    /// The status that the platform shows now. `None` when none was ever reported or the platform's word for it is
    /// unknown.
    pub shown: Option<CurrentStatus>,
    /// Its variables in the platform's order.
    pub variables: Vec<Variable>,
}

/// The engine's own id of a workload; on Kubernetes its name and uid, with a slash between them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Handle(pub String);

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = match self.0.split_once('/') {
            Some((name, _)) => name,
            None => self.0.get(..12).unwrap_or(&self.0),
        };
        f.write_str(short)
    }
}

/// What a workload is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Created and never started.
    Created,
    /// Ended by itself or stopped, which Docker does not tell apart.
    Exited,
    /// Scaled to no instance, so that it did not end by itself.
    Stopped,
    /// Frozen by an operator.
    Paused,
    /// Scaled to no instance, while its last instance has not ended yet.
    Ending,
    /// Told to run, but the orchestrator does not have it running (yet).
    Pending,
    /// Ended, and about to be started again by the engine.
    Restarting,
    /// Its program runs.
    Running,
    /// Scaled by an operator to more than the one instance that may run.
    Multiplied,
    /// The engine cannot run it any more, or is removing it.
    Broken,
}

impl Phase {
    /// Whether the connector is up, as the platform understands it.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Restarting | Self::Multiplied)
    }
}

/// The counters of a workload, which only a closer look at it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// The engine's restart counter, which begins at zero for each `generation`.
    pub restarts: u64,
    /// The uid of the pod that the counter belongs to. `None` where it belongs to the workload itself, as with a
    /// container.
    pub generation: Option<String>,
    /// Whether the engine waits longer after each crash before it starts the workload again.
    pub backing_off: bool,
    /// The start of the current run, or of the last one. `None` when it never ran.
    pub started_at: Option<Timestamp>,
    /// The exit code of the last run that ended. `None` when the engine does not say.
    pub exit_code: Option<i64>,
    /// Whether the engine does not start it again when it ends, although the settings want that. So it is with the
    /// daemon's containers. What it lacks can be added while it runs.
    pub unattended: bool,
}

/// How a workload gets another image or configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Change {
    /// A new one takes its place, and either can be renamed at any time. This is so for a container.
    #[default]
    Replaced,
    /// It is changed in place and keeps its name. This is so for a Deployment.
    InPlace,
    /// It has to be deleted before the new one can exist. This is so for a Deployment that selects its pods by other
    /// labels.
    Recreated,
}

/// One workload that is ours, as the orchestrator shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The engine's id of it.
    pub handle: Handle,
    /// Its name on the orchestrator now, which may be a temporary one.
    pub name: String,
    /// The connector that it runs.
    pub connector: ConnectorId,
    /// `None` when an older daemon made it, which set no platform label.
    pub platform: Option<PlatformKind>,
    /// `None` when it carries no hash that can be read. Then it counts as out of date.
    pub hash: Option<ConfigHash>,
    /// What it is doing now.
    pub phase: Phase,
    /// When the engine made it.
    pub created: Timestamp,
    /// Its counters. `None` for a workload that is down and got no closer look.
    pub vitals: Option<Vitals>,
    /// How it gets another image or configuration.
    pub change: Change,
    /// What is wrong with it and is no step's to repair.
    pub troubles: Vec<Trouble>,
}

impl Workload {
    /// Whether it has a temporary name: a pass was cut off while making it, or its final name was not free yet.
    #[must_use]
    pub fn is_staged(&self) -> bool {
        self.name.ends_with(STAGED_SUFFIX)
    }

    /// Whether it was replaced while it worked, and is kept for a roll-back. The name says so, because it is the one
    /// thing about a container that can change, and because it survives the loss of the pass record.
    #[must_use]
    pub fn is_former(&self) -> bool {
        self.name.ends_with(FORMER_SUFFIX)
    }
}

/// The workloads on an orchestrator. It is made only from a complete listing; a listing that fails is an error instead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The workloads of this manager and platform.
    pub workloads: Vec<Workload>,
    /// The names that other workloads have, each with a description of the owner.
    pub foreign: BTreeMap<String, String>,
    /// Connectors with a workload that could not be looked at closely, and why. The plan decides nothing about them.
    pub failed: BTreeMap<ConnectorId, String>,
    /// Whether earlier passes of this program made some of the workloads, and what they remembered is gone.
    pub record_lost: bool,
}
