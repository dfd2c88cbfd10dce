//! The words of the domain as types that are valid once built. No I/O, no decision.

mod trouble;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::secret::Secret;

pub use trouble::{Trouble, TroubleKind};

/// Longest value that every orchestrator accepts as a label, and longest RFC 1123 label.
pub const LABEL_MAX: usize = 63;

/// Why a text is not the value it should be. Completes "… is not a valid identifier: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Longer than a label value may be.
    #[error("it has {0} characters, a label value has at most {LABEL_MAX}")]
    TooLong(usize),
    /// A character that a hash does not have.
    #[error("a hash has letters and digits only")]
    NotHash,
    /// A character that a label value cannot hold.
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

            /// The text.
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
    /// `MANAGER__ID`: who owns a workload. Must never change, OpenCTI refuses a second one (contracts 1.2).
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

    /// The text.
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
    /// The daemon's rule, made valid: every character that is not an ASCII letter or digit becomes `-`, lower-cased,
    /// outer dashes trimmed. What is then too long is cut, what is too short or empty is kept, and both get a short hash
    /// of the connector id appended, so that two such names differ.
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

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that a workload with this hash has until it is complete. It holds a `.`, so that no connector's own name
    /// can be it.
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

/// Ends the name of a workload that is not complete or could not yet take its name.
pub const STAGED_SUFFIX: &str = ".xtm-next";

/// Which product a connector belongs to. The value of the `opencti-platform` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlatformKind {
    /// OpenCTI, over GraphQL.
    OpenCti,
    /// OpenAEV, over REST.
    OpenAev,
}

impl PlatformKind {
    /// Every platform that there is, in the order in which reports name them.
    pub const ALL: [Self; 2] = [Self::OpenCti, Self::OpenAev];

    /// Value of the `opencti-platform` label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::OpenCti => "opencti",
            Self::OpenAev => "openaev",
        }
    }

    /// The product's name as its users write it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::OpenCti => "OpenCTI",
            Self::OpenAev => "OpenAEV",
        }
    }

    /// What the names of this platform's own settings begin with.
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

/// What an operator can do about a fault, in words.
///
/// Both platforms have the same settings under prefixes of their own, and most faults can be either's. So the text names such a
/// setting as `P__URL`, and only [`Cure::on`] gives the text that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cure(pub &'static str);

impl Cure {
    /// The text for a lane of this platform, with its own variables' names.
    #[must_use]
    pub fn on(self, platform: PlatformKind) -> String {
        self.0.replace("P__", platform.prefix())
    }
}

/// What the platform wants of a connector: `starting` means run, `stopping` and `stopped` mean do not (contracts 1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Requested {
    /// It should run.
    Run,
    /// It should not run.
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
    /// The platform's word.
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
    /// Valid name of an environment variable.
    pub name: String,
    /// Its value.
    pub value: VariableValue,
}

/// A variable's value. Clear ones are kept as secrets too: older platforms send the token in clear (contracts 1.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VariableValue {
    /// As it is.
    Clear(Secret),
    /// An envelope (contracts 2), base64.
    Encrypted(String),
}

/// One connector that should be managed: everything the platform says of it, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connector {
    /// The platform's id.
    pub id: ConnectorId,
    /// The platform's name for it, as people see it.
    pub title: String,
    /// What its workload is called.
    pub name: WorkloadName,
    /// Image reference as the platform sent it, without the configured registry.
    pub image: String,
    /// When this differs from the workload's, the workload is out of date.
    pub hash: ConfigHash,
    /// Run or stop.
    pub requested: Requested,
    /// What the platform shows now; `None` for never reported or a word that is not ours.
    pub shown: Option<CurrentStatus>,
    /// In the platform's order.
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
    /// Made and never started.
    Created,
    /// Ended, or stopped.
    Exited,
    /// Told to run nothing; it did not end by itself.
    Stopped,
    /// Frozen by an operator.
    Paused,
    /// Told to run nothing, and its last instance has not ended yet.
    Ending,
    /// Told to run, and the orchestrator has not got it running (yet).
    Pending,
    /// Between two attempts of the engine to keep it running.
    Restarting,
    /// Running.
    Running,
    /// Scaled by an operator to more than the one instance that may run.
    Multiplied,
    /// The engine cannot run it any more, or is taking it away.
    Broken,
}

impl Phase {
    /// Whether the connector is up, as the platform understands it.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Restarting | Self::Multiplied)
    }
}

/// What only a closer look at a workload tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// The engine's restart counter, which starts anew with `generation`.
    pub restarts: u64,
    /// What the counter belongs to, where that is not the workload itself: a pod's uid.
    pub generation: Option<String>,
    /// Whether the engine waits longer and longer before it starts it again.
    pub backing_off: bool,
    /// Start of the current run, or of the last one.
    pub started_at: Option<Timestamp>,
}

/// How a workload becomes another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Change {
    /// A new one takes its place, and names can be changed at any time: a container.
    #[default]
    Replaced,
    /// It is changed where it is, and keeps its name: a Deployment.
    InPlace,
    /// It has to go before the new one can come: a Deployment that selects its pods by other labels.
    Recreated,
}

/// One workload that is ours, as the orchestrator shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The engine's id.
    pub handle: Handle,
    /// Its name now.
    pub name: String,
    /// Whose it is.
    pub connector: ConnectorId,
    /// `None`: made by an older daemon, which set no platform label.
    pub platform: Option<PlatformKind>,
    /// `None`: it carries none that can be read, so it counts as out of date.
    pub hash: Option<ConfigHash>,
    /// What it is doing.
    pub phase: Phase,
    /// When the engine made it.
    pub created: Timestamp,
    /// For workloads that are up.
    pub vitals: Option<Vitals>,
    /// How it becomes another one.
    pub change: Change,
    /// What is wrong with it.
    pub troubles: Vec<Trouble>,
}

impl Workload {
    /// Whether it is a workload that was being made when a pass was cut off, or could not take its name yet.
    #[must_use]
    pub fn is_staged(&self) -> bool {
        self.name.ends_with(STAGED_SUFFIX)
    }
}

/// What an orchestrator holds. Only a complete listing becomes one: a failed listing is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Ours, of this manager and platform.
    pub workloads: Vec<Workload>,
    /// Names that somebody else's workloads have, with whose they are, in words.
    pub foreign: BTreeMap<String, String>,
    /// Connectors with a workload that could not be looked at closely, and why: nothing is decided about these.
    pub failed: BTreeMap<ConnectorId, String>,
}
