//! The errors of a platform. Answers that only one product gives are explained in that product's file and come here as
//! text.

use super::transport::TransportError;
use crate::model::Cure;

/// Why a platform could not be used, or why it did not do what it was asked for. `operation` names the request, `url`
/// the platform, and `message` has the platform's words.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// The request got no answer.
    #[error("{operation}: {source}")]
    Transport { operation: &'static str, source: TransportError },
    /// The status is not success, and the product's own file does not explain it.
    #[error("{operation}: {url} answered HTTP {status}: {excerpt}")]
    Status {
        operation: &'static str,
        url: String,
        status: u16,
        /// How the body begins, or where it redirects.
        excerpt: String,
    },
    /// The answer is not what the protocol prescribes.
    #[error("{operation}: {url} answered with {kind} instead of {wanted}: {excerpt}")]
    NotProtocol {
        operation: &'static str,
        url: String,
        kind: &'static str,
        wanted: &'static str,
        /// How the answer begins, or what the parser said. It holds no value of JSON, which may be secret.
        excerpt: String,
    },
    /// The platform does not accept the token.
    #[error("{url} refused the token {hint} (user agent {agent}, sent from {origin})")]
    TokenRefused {
        url: String,
        /// The first characters of the token.
        hint: String,
        /// The user agent that was sent.
        agent: &'static str,
        /// The machine that sent it, and the proxy that it went through.
        origin: String,
        /// Says which token this product wants.
        cure: Cure,
    },
    /// The token's user may not do this.
    #[error("{operation}: the token's user on {url} lacks the capability {capability}")]
    Forbidden {
        operation: &'static str,
        url: String,
        /// The capability that the request needs.
        capability: &'static str,
    },
    /// The platform is older than the composer API.
    #[error("{url} runs version {version}, which is too old for the composer API: it exists from {least} on")]
    TooOld {
        url: String,
        version: String,
        /// The first version that has the API.
        least: &'static str,
    },
    /// Another manager has the place that this one wants.
    #[error("{what}")]
    OtherManager {
        /// Says who has it, on which platform, and what that means there.
        what: String,
        /// Says how to take the place from another manager of this product.
        cure: Cure,
    },
    /// This manager's key opens none of the values that the platform lists for it.
    #[error("{what}")]
    WrongKey {
        /// Names the fingerprints, and says whether the key was registered.
        what: String,
    },
    /// The operation is not in the platform's schema.
    #[error("{operation}: {url} does not know this: {message}")]
    NotSupported { operation: &'static str, url: String, message: String },
    /// The answer is one that only this product gives, and the product's own file explains it.
    #[error("{operation}: {message}")]
    Explained {
        operation: &'static str,
        /// Says what the answer means, and names the platform.
        message: String,
        cure: Cure,
        /// Whether other requests would be answered in the same way.
        general: bool,
    },
    /// The platform reports any other error, with a code.
    #[error("{operation}: {url} answered {code}: {message}")]
    Refused { operation: &'static str, url: String, code: String, message: String },
    /// The answer has neither a value nor an error.
    #[error("{operation}: {url} answered null, without an error")]
    Null { operation: &'static str, url: String },
    /// The task that made the request was lost, which is a fault of this program.
    #[error("{operation}: the call was abandoned: {why}")]
    Abandoned { operation: &'static str, why: String },
}

impl PlatformError {
    /// Whether other requests would fail like this one, because the platform as a whole cannot be used.
    #[must_use]
    pub fn is_general(&self) -> bool {
        match self {
            // These are about the content of the request: it is too large, or something that looks into it refuses it.
            Self::Status { status, .. } => !matches!(status, 400 | 403 | 409 | 413 | 422 | 500),
            Self::Transport { .. } | Self::TokenRefused { .. } | Self::TooOld { .. } | Self::OtherManager { .. } => {
                true
            }
            Self::Explained { general, .. } => *general,
            Self::NotProtocol { .. }
            | Self::WrongKey { .. }
            | Self::Forbidden { .. }
            | Self::NotSupported { .. }
            | Self::Refused { .. }
            | Self::Null { .. }
            | Self::Abandoned { .. } => false,
        }
    }

    /// Whether a write may have been carried out although it failed, because the answer was lost or says nothing about
    /// it.
    #[must_use]
    pub(crate) fn may_be_done(&self) -> bool {
        match self {
            Self::Transport { source, .. } => source.may_be_done(),
            Self::Status { status, .. } => matches!(status, 200..=299 | 408 | 500..=599),
            // The platform has other codes as well for faults that come after the work was done.
            Self::Refused { code, .. } => !REFUSED_BEFORE.contains(&code.as_str()),
            Self::NotProtocol { .. } | Self::Null { .. } | Self::Abandoned { .. } => true,
            Self::TokenRefused { .. }
            | Self::Forbidden { .. }
            | Self::TooOld { .. }
            | Self::OtherManager { .. }
            | Self::WrongKey { .. }
            | Self::NotSupported { .. }
            | Self::Explained { .. } => false,
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
            Self::WrongKey { .. } => Cure(WRONG_KEY),
            Self::NotSupported { .. } => Cure("compare the platform's version with the ones that the README names"),
            Self::Refused { .. } | Self::Null { .. } | Self::Abandoned { .. } => {
                Cure("look into the platform's log at this time; the next pass tries again")
            }
        }
    }
}

/// The codes of errors that the platform finds before it does anything.
const REFUSED_BEFORE: [&str; 4] = ["FUNCTIONAL_ERROR", "BAD_USER_INPUT", "VALIDATION_ERROR", "UNSUPPORTED_ERROR"];

const WRONG_ADDRESS: &str = "see that P__URL is the platform itself, with its base path, and not a login page or proxy";

const WRONG_KEY: &str = "give this manager its former key in MANAGER__CREDENTIALS_KEY_FILEPATH (`check` shows the fingerprint of a \
    key); or, if the new one is meant, make one pass with --accept-new-key or MANAGER__ACCEPT_NEW_KEY=true, and type every secret \
    again on the platform";

fn status_cure(status: u16) -> &'static str {
    match status {
        300..=399 => "set P__URL to where it redirects",
        404 => WRONG_ADDRESS,
        403 | 407 => "see what refuses it: a proxy or firewall before the platform answers so",
        413 => "lower MANAGER__LOGS_TAIL, or let the proxy before the platform take larger requests",
        _ => "look into the log of the platform and of any proxy before it; the next pass tries again",
    }
}
