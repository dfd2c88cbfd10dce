//! The platform: registration, pull, publish. What every product's implementation offers, and how it fails.

mod answer;
pub mod envelope;
mod error;
mod graphql;
mod openaev;
mod opencti;
mod rest;
mod retry;
mod transport;
mod version;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::access::Permit;
use crate::desired::Listing;
use crate::manager::Manager;
use crate::memory::Registration;
use crate::model::{ConnectorId, Cure, CurrentStatus, PlatformKind};
use crate::secret::Secret;
use crate::stop::Stop;

pub use error::PlatformError;
pub use transport::TransportError;

/// How to reach one platform.
#[derive(Debug)]
pub struct PlatformSettings {
    /// Which product it is.
    pub kind: PlatformKind,
    /// Without a trailing slash.
    pub url: String,
    /// Bearer token.
    pub token: Secret,
    /// Accept any certificate.
    pub insecure: bool,
    /// The CAs to trust instead of the public ones, PEM; empty: the public ones.
    pub ca: Vec<String>,
    /// The proxy's CA, trusted as well, PEM.
    pub proxy_ca: Option<String>,
    /// The proxy to go through.
    pub proxy: Option<Secret>,
    /// Hosts reached without it.
    pub no_proxy: Vec<String>,
    /// For one request.
    pub request_timeout: Duration,
    /// To connect.
    pub connect_timeout: Duration,
    /// For the list of connectors.
    pub pull_timeout: Duration,
    /// The tenant whose routes are used; OpenAEV alone has tenants.
    pub tenant: Option<String>,
    /// Whether another composer may lose its place to this one; OpenAEV alone gives it away without a word.
    pub take_over: bool,
}

/// One platform. Calls block their thread; they are made from blocking tasks.
///
/// Whatever writes takes a [`Permit`]. Calls that may happen twice are repeated inside the pass's deadline when the network or
/// the platform fails for a moment.
pub trait Platform: Send + Sync + 'static {
    /// Which product it is.
    fn kind(&self) -> PlatformKind;

    /// Its URL, for messages.
    fn url(&self) -> &str;

    /// Its version. Fails when it is too old for the composer API.
    fn version(&self) -> Result<String, PlatformError>;

    /// The heartbeat. `remembered`: whether memory says that this manager was registered by an earlier pass.
    ///
    /// Fails with [`PlatformError::OtherManager`] where the platform would give another composer's place away without a word,
    /// so that [`Heartbeat::Unregistered`] always means that this manager may register.
    fn heartbeat(&self, permit: Permit, remembered: bool) -> Result<Heartbeat, PlatformError>;

    /// Registers this manager; an upsert.
    fn register(&self, permit: Permit) -> Result<(), PlatformError>;

    /// What a registration of this manager with this version would send: when it differs, register again.
    fn registration(&self, version: &str) -> Registration;

    /// Who is registered, asked without a write: for `plan` and `check`.
    fn registrant(&self, remembered: bool) -> Result<Registrant, PlatformError>;

    /// Every managed connector. Null or an error is an error, never an empty list.
    fn pull(&self) -> Result<Listing, PlatformError>;

    /// What the token's user may do, as far as the platform tells; `None` where it tells nothing. For `check`.
    fn capabilities(&self) -> Result<Option<Vec<Capability>>, PlatformError>;

    /// What the platform does with log lines that it is sent.
    fn log_delivery(&self) -> LogDelivery;

    /// What an operator should know about being asked for the list (OpenCTI issues tokens for connectors that have none).
    fn listing_notice(&self) -> Option<&'static str>;

    /// What an operator should know when this manager's key changed (OpenAEV keeps the former public key for up to 24 h).
    fn key_change_notice(&self) -> Option<&'static str>;

    /// Whether the list is given to the registered manager alone (OpenAEV), so that `plan` cannot see it before the first pass.
    fn lists_for_registered_only(&self) -> bool;

    /// Reports the status. Both products note each report for auditors, so this is for changes alone.
    fn set_status(&self, permit: Permit, id: &ConnectorId, status: CurrentStatus) -> Result<(), PlatformError>;

    /// Reports health.
    fn set_health(&self, permit: Permit, id: &ConnectorId, health: &Health) -> Result<(), PlatformError>;

    /// Sends log lines. What becomes of the lines that the platform has is told by [`Platform::log_delivery`].
    fn set_logs(&self, permit: Permit, id: &ConnectorId, lines: &[String]) -> Result<(), PlatformError>;
}

/// A client for the platform that the settings name; nothing is sent yet. Connections are kept for `concurrency` calls at a
/// time, and `stop` ends waits between attempts.
#[must_use]
pub fn connect(settings: &PlatformSettings, manager: &Manager, concurrency: usize, stop: Stop) -> Arc<dyn Platform> {
    match settings.kind {
        PlatformKind::OpenCti => Arc::new(opencti::OpenCti::new(settings, manager, concurrency, stop)),
        PlatformKind::OpenAev => Arc::new(openaev::OpenAev::new(settings, manager, concurrency, stop)),
    }
}

/// The platform's answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heartbeat {
    /// This manager is registered.
    Known {
        /// The platform's own version when this manager registered, where the platform notes it. One that differs from the
        /// version of today calls for another registration.
        registered_with: Option<String>,
    },
    /// It is not, and may register.
    Unregistered,
}

/// Who has the place of the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registrant {
    /// This manager.
    Ours,
    /// Nobody whom a registration would have to spare.
    Nobody,
    /// Another one.
    Other {
        /// In words that complete "the platform has … already".
        who: String,
        /// How to have its place.
        cure: Cure,
    },
    /// It cannot be told, and this is why. A pass may work all the same.
    Unknown(String),
}

/// One thing that a manager's user should be allowed to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// As the platform's administrators see it.
    pub name: &'static str,
    /// Whether the token's user has it.
    pub granted: bool,
    /// How much depends on it.
    pub need: Need,
}

/// How much depends on a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// No pass works without it.
    Always,
    /// A pass works without it, but not as well.
    Useful {
        /// What is lost.
        without: &'static str,
    },
}

/// What a platform does with log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogDelivery {
    /// They take the place of what it had: send the whole tail each time (OpenCTI).
    Replace,
    /// They are added to what it has: send only what is new (OpenAEV).
    Append,
}

/// Health of one workload that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Restarts over the workload's life.
    pub restarts: u64,
    /// Start of the current run.
    pub started_at: Timestamp,
    /// Whether it is in a reboot loop.
    pub looping: bool,
}

/// Longest waits for an answer, from configuration.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    request: Duration,
    pull: Duration,
}

/// What registering this manager sends; the version is the platform's and comes later.
fn registration(manager: &Manager) -> Registration {
    Registration { version: String::new(), key: manager.key.fingerprint.clone(), name: manager.name.clone() }
}
