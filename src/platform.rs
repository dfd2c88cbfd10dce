//! What the client of every platform offers (registration, pull, publishing) and how it fails.

mod accounts;
pub(crate) mod answer;
pub mod envelope;
mod error;
mod graphql;
mod openaev;
mod opencti;
mod resolver;
mod rest;
pub(crate) mod retry;
pub(crate) mod transport;
pub(crate) mod version;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::access::Permit;
use crate::desired::Listing;
use crate::manager::Manager;
use crate::memory::Registration;
use crate::model::{ConnectorId, Cure, CurrentStatus, PlatformKind};
use crate::stop::Stop;

pub(crate) use accounts::{Account, AccountPage, Accounts, NewToken, Profile, TOKEN_NAME};
pub use error::PlatformError;
pub use transport::Endpoint;

/// How to reach one platform.
#[derive(Debug)]
pub struct PlatformSettings {
    pub kind: PlatformKind,
    pub endpoint: Endpoint,
    pub request_timeout: Duration,
    /// The longest time for the list of connectors, which a platform may hold back for a while.
    pub pull_timeout: Duration,
    /// The tenant whose routes are used. Only OpenAEV has tenants.
    pub tenant: Option<String>,
    /// Whether this manager may take the place of another composer. Only OpenAEV needs this, because it gives the place
    /// away without notice.
    pub take_over: bool,
}

/// A client for one platform. Its calls block their thread, so they are made from blocking tasks.
///
/// Everything that writes takes a [`Permit`], so that `plan` and `check` cannot write by mistake. Calls that can safely
/// happen twice are repeated within the deadline of the pass when the network or the platform fails for a moment.
pub trait Platform: Send + Sync + 'static {
    fn kind(&self) -> PlatformKind;

    /// The URL of the platform, for messages.
    fn url(&self) -> &str;

    /// Asks for the version of the platform. Fails when it is too old for the composer API.
    fn version(&self) -> Result<String, PlatformError>;

    /// When this manager gave its last heartbeat, by the platform's clock. `None` when the platform does not tell.
    fn last_heartbeat(&self) -> Result<Option<Timestamp>, PlatformError> {
        Ok(None)
    }

    /// Sends a heartbeat. `remembered` says whether an earlier pass registered this manager.
    ///
    /// Fails with [`PlatformError::OtherManager`] when another composer has the place and the platform would give it
    /// away without notice. So [`Heartbeat::Unregistered`] means that this manager may register.
    fn heartbeat(&self, permit: Permit, remembered: bool) -> Result<Heartbeat, PlatformError>;

    /// Registers this manager, or updates its registration.
    fn register(&self, permit: Permit) -> Result<(), PlatformError>;

    /// What a registration with this version of the platform would send. When it differs from the last one, the pass
    /// registers again.
    fn registration(&self, version: &str) -> Registration;

    /// Finds out without a write who is registered, for `plan` and `check`.
    fn registrant(&self, remembered: bool) -> Result<Registrant, PlatformError>;

    /// Asks for the list of connectors. Null is an error and never an empty list, for an empty list would remove every
    /// connector.
    fn pull(&self) -> Result<Listing, PlatformError>;

    /// What the token's user may do, for `check`. `None` when the platform does not say.
    fn capabilities(&self) -> Result<Option<Vec<Capability>>, PlatformError>;

    /// What the platform does with log lines that it is sent.
    fn log_delivery(&self) -> LogDelivery;

    /// What an operator should know about asking for the list: OpenCTI issues tokens for connectors that have none.
    fn listing_notice(&self) -> Option<&'static str>;

    /// What an operator should know when the key has changed: OpenAEV keeps the former public key for up to a day.
    fn key_change_notice(&self) -> Option<&'static str>;

    /// Whether the platform gives the list only to the registered manager, so that `plan` cannot see it before the
    /// first pass. This is so for OpenAEV.
    fn lists_for_registered_only(&self) -> bool;

    /// Reports the status of a connector. Both products note each report for auditors, so only changes are reported.
    fn set_status(&self, permit: Permit, id: &ConnectorId, status: CurrentStatus) -> Result<(), PlatformError>;

    /// Reports the health of a connector.
    fn set_health(&self, permit: Permit, id: &ConnectorId, health: &Health) -> Result<(), PlatformError>;

    /// What the platform says of itself, for XTM One. `version` is the one that it runs.
    fn profile(&self, version: &str) -> Result<Profile, PlatformError>;

    /// The users of the platform and their tokens. `None` for a product whose users XTM One gets no keys of.
    fn accounts(&self) -> Option<&dyn Accounts>;

    /// Sends log lines of a connector. [`Platform::log_delivery`] says whether they replace the lines that the platform
    /// has.
    fn set_logs(&self, permit: Permit, id: &ConnectorId, lines: &[String]) -> Result<(), PlatformError>;
}

/// Makes a client for the platform of the settings, without sending anything. Connections are kept open for
/// `concurrency` calls at a time, and `stop` ends the waits between attempts.
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
        /// The version that the platform had when this manager registered. `None` when the platform does not note it.
        /// When its version is another one today, the pass registers again.
        registered_with: Option<String>,
    },
    /// This manager is not registered, and may register.
    Unregistered,
}

/// Who is registered as the manager of a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registrant {
    /// This manager is registered.
    Ours,
    /// Nobody is registered, or only somebody whom a registration does not harm.
    Nobody,
    /// Another manager is registered.
    Other {
        /// Completes "the platform has … already".
        who: String,
        /// Says how to take its place.
        cure: Cure,
    },
    /// It cannot be found out, for this reason. A pass may work all the same.
    Unknown(String),
}

/// One thing that the token's user should be allowed to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// The name of the capability as administrators of the platform see it.
    pub name: &'static str,
    pub granted: bool,
    pub need: Need,
}

/// How much depends on a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// No pass works without it.
    Always,
    /// A pass works without it, but not as well.
    Useful {
        /// What a pass cannot do without it.
        without: &'static str,
    },
}

/// What a platform does with log lines that it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogDelivery {
    /// They replace the lines that it has, so the whole tail is sent each time (OpenCTI).
    Replace,
    /// They are added to the lines that it has, so only new lines are sent (OpenAEV).
    Append,
}

/// The health of one workload that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The number of restarts over the workload's life.
    pub restarts: u64,
    /// The start of the current run.
    pub started_at: Timestamp,
    /// Whether the workload is in a reboot loop.
    pub looping: bool,
}

/// The longest waits for an answer, as configured.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    request: Duration,
    pull: Duration,
}

/// What registering this manager sends, without the platform's version, which is not known yet.
fn registration(manager: &Manager) -> Registration {
    Registration { version: String::new(), key: manager.key.fingerprint.clone(), name: manager.name.clone() }
}
