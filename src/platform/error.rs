//! How a platform fails. What only one product says is explained in that product's file and comes here as text.

use super::transport::TransportError;
use crate::model::Cure;

/// Why a platform could not be used, or why it did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// No answer came.
    #[error("{operation}: {source}")]
    Transport {
        /// What was asked.
        operation: &'static str,
        /// How it failed.
        source: TransportError,
    },
    /// A status other than success, which the product's own file does not explain.
    #[error("{operation}: {url} answered HTTP {status}: {excerpt}")]
    Status {
        /// What was asked.
        operation: &'static str,
        /// The platform.
        url: String,
        /// The status.
        status: u16,
        /// How the body begins, or where it redirects.
        excerpt: String,
    },
    /// An answer that is not what the protocol says.
    #[error("{operation}: {url} answered with {kind} instead of {wanted}: {excerpt}")]
    NotProtocol {
        /// What was asked.
        operation: &'static str,
        /// The platform.
        url: String,
        /// What came.
        kind: &'static str,
        /// What should have come.
        wanted: &'static str,
        /// How it begins, or what the parser said; never a value of JSON.
        excerpt: String,
    },
    /// The token is not one that the platform accepts.
    #[error("{url} refused the token {hint} (user agent {agent})")]
    TokenRefused {
        /// The platform.
        url: String,
        /// First characters of the token.
        hint: String,
        /// As sent.
        agent: &'static str,
        /// Which token this product wants.
        cure: Cure,
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
    /// Another manager has the place that this one wants.
    #[error("{what}")]
    OtherManager {
        /// Who has it, on which platform, and what that means there.
        what: String,
        /// How this product lets it be taken.
        cure: Cure,
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
    /// An answer that only one product gives, explained by it.
    #[error("{operation}: {message}")]
    Explained {
        /// What was asked.
        operation: &'static str,
        /// What the answer means; names the platform.
        message: String,
        /// What to do about it.
        cure: Cure,
        /// Whether other requests would be answered likewise.
        general: bool,
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
            Self::Status { status, .. } => !matches!(status, 400 | 403 | 409 | 413 | 422 | 500),
            Self::Transport { .. } | Self::TokenRefused { .. } | Self::TooOld { .. } | Self::OtherManager { .. } => {
                true
            }
            Self::Explained { general, .. } => *general,
            Self::NotProtocol { .. }
            | Self::Forbidden { .. }
            | Self::NotSupported { .. }
            | Self::Refused { .. }
            | Self::Null { .. }
            | Self::Abandoned { .. } => false,
        }
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn cure(&self) -> Cure {
        match self {
            Self::Transport { source, .. } => source.cure(),
            Self::Status { status, .. } => Cure(status_cure(*status)),
            Self::NotProtocol { .. } => Cure(WRONG_ADDRESS),
            Self::TokenRefused { cure, .. } | Self::OtherManager { cure, .. } | Self::Explained { cure, .. } => *cure,
            Self::Forbidden { .. } => {
                Cure("give the user's role that capability, or use a token of the manager's own user")
            }
            Self::TooOld { .. } => Cure("upgrade the platform"),
            Self::NotSupported { .. } => Cure("compare the platform's version with the ones that the README names"),
            Self::Refused { .. } | Self::Null { .. } | Self::Abandoned { .. } => {
                Cure("look into the platform's log at this time; the next pass tries again")
            }
        }
    }
}

const WRONG_ADDRESS: &str = "see that P__URL is the platform itself, with its base path, and not a login page or proxy";

fn status_cure(status: u16) -> &'static str {
    match status {
        300..=399 => "set P__URL to where it redirects",
        404 => WRONG_ADDRESS,
        403 | 407 => "see what refuses it: a proxy or firewall before the platform answers so",
        413 => "lower MANAGER__LOGS_TAIL, or let the proxy before the platform take larger requests",
        _ => "look into the log of the platform and of any proxy before it; the next pass tries again",
    }
}
