//! The platform: registration, pull, publish. What every product's implementation offers, and how it fails.

pub mod envelope;
mod http;
mod opencti;

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::access::Permit;
use crate::desired::Listing;
use crate::memory::Registration;
use crate::model::{ConnectorId, CurrentStatus, PlatformKind};
use crate::secret::Secret;

pub use http::HttpError;
pub use opencti::OpenCti;

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
pub trait Platform: Send + Sync + 'static {
    /// Which product.
    fn kind(&self) -> PlatformKind;

    /// Its URL, for messages.
    fn url(&self) -> &str;

    /// Its version. Fails when it is too old for the composer API.
    fn version(&self) -> Result<String, PlatformError>;

    /// The heartbeat: whether the platform knows this manager.
    fn heartbeat(&self, permit: Permit) -> Result<bool, PlatformError>;

    /// Registers this manager; an upsert.
    fn register(&self, permit: Permit) -> Result<(), PlatformError>;

    /// What a registration of this manager with this version would send: when it differs, register again.
    fn registration(&self, version: &str) -> Registration;

    /// Every managed connector. Null or an error is an error, never an empty list.
    fn pull(&self) -> Result<Listing, PlatformError>;

    /// Capabilities of the token's user, where the platform tells; for `check`.
    fn capabilities(&self) -> Result<Option<Vec<String>>, PlatformError>;

    /// Whether this manager is registered, and who is if not; for `plan` and `check`.
    fn managers(&self) -> Result<Vec<String>, PlatformError>;

    /// Reports the status.
    fn set_status(&self, permit: Permit, id: &ConnectorId, status: CurrentStatus) -> Result<(), PlatformError>;

    /// Reports health.
    fn set_health(&self, permit: Permit, id: &ConnectorId, health: &Health) -> Result<(), PlatformError>;

    /// Replaces the log that the platform shows.
    fn set_logs(&self, permit: Permit, id: &ConnectorId, lines: &[String]) -> Result<(), PlatformError>;
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

/// Why a platform could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// The transport failed, or the answer is not the protocol's.
    #[error("{operation}: {source}")]
    Http {
        /// What was asked.
        operation: &'static str,
        /// How it failed.
        source: HttpError,
    },
    /// The token is unknown, expired or revoked, or its user lacks `APIACCESS_USETOKEN` (contracts 1.3).
    #[error("{url} refused the token {hint} (user agent {agent})")]
    TokenRefused {
        /// The platform.
        url: String,
        /// First characters of the token.
        hint: String,
        /// As sent.
        agent: &'static str,
    },
    /// The token's user may not do this.
    #[error("{operation}: the token's user on {url} lacks the capability {capability}")]
    Forbidden {
        /// What was asked.
        operation: &'static str,
        /// The platform.
        url: String,
        /// What it takes.
        capability: &'static str,
    },
    /// An LTS build without licence.
    #[error("{url} is an LTS build without an activated licence")]
    Licence {
        /// The platform.
        url: String,
    },
    /// Older than the composer API.
    #[error("{url} runs version {version}, which is too old for the composer API: it exists from {least} on")]
    TooOld {
        /// The platform.
        url: String,
        /// As it says.
        version: String,
        /// First version that has it.
        least: &'static str,
    },
    /// Another manager is registered already.
    #[error("{url} accepts one connector manager only, and has {registered} already")]
    OtherManager {
        /// The platform.
        url: String,
        /// The one that is registered, with its id.
        registered: String,
    },
    /// The operation is not in the platform's schema.
    #[error("{operation}: {url} does not know this: {message}")]
    NotSupported {
        /// What was asked.
        operation: &'static str,
        /// The platform.
        url: String,
        /// The platform's words.
        message: String,
    },
    /// Any other error of the platform's own.
    #[error("{operation}: {url} answered {code}: {message}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// The platform.
        url: String,
        /// The platform's code.
        code: String,
        /// The platform's words.
        message: String,
    },
    /// No value and no error.
    #[error("{operation}: {url} answered null, without an error")]
    Null {
        /// What was asked.
        operation: &'static str,
        /// The platform.
        url: String,
    },
    /// The task that made the call was lost.
    #[error("{operation}: the call was abandoned: {why}")]
    Abandoned {
        /// What was asked.
        operation: &'static str,
        /// How.
        why: String,
    },
}

impl PlatformError {
    /// Whether other requests would fail like this one: the platform as a whole cannot be used.
    #[must_use]
    pub fn is_general(&self) -> bool {
        match self {
            // About what was sent: too large, or refused or choked on by something that looks into it.
            Self::Http { source: HttpError::Status { status: 400 | 403 | 413 | 422 | 500, .. }, .. }
            | Self::Http { source: HttpError::NotJson { .. }, .. } => false,
            Self::Http { .. } | Self::TokenRefused { .. } => true,
            _ => false,
        }
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Http { source, .. } => source.cure(),
            Self::TokenRefused { .. } => {
                "set OPENCTI__TOKEN to a valid token of a user who may use tokens (capability APIACCESS_USETOKEN)"
            }
            Self::Forbidden { .. } => "give the user's role that capability, or use a token of the manager's own user",
            Self::Licence { .. } => "activate the licence in the platform's settings",
            Self::TooOld { .. } => "upgrade the platform",
            Self::OtherManager { .. } => {
                "set MANAGER__ID to the registered id to take its place, after stopping whatever else runs under it"
            }
            Self::NotSupported { .. } => "compare the platform's version with the ones that the README names",
            Self::Refused { .. } | Self::Null { .. } | Self::Abandoned { .. } => {
                "look into the platform's log at this time; the next pass tries again"
            }
        }
    }
}

/// Longest wait for an answer, from configuration.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    request: Duration,
    pull: Duration,
}
