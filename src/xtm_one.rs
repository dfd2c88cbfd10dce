//! Registers a platform with XTM One (contracts 4 to 6): the work of OpenCTI's own registration manager, once in a pass.
//!
//! A registration is an upsert, and a heartbeat as well. It tells XTM One what the platform is and, for versions that
//! want it, which users there are, each with a token of its own when it is made. The files: `users` and `payload` decide
//! and are pure; `client` speaks to XTM One, `tokens` to the platform; `registration` is the order of it all, and
//! `by_hand` has the commands; `outcome` is what the report says.

mod by_hand;
mod chat_token;
mod client;
mod licence;
mod outcome;
mod payload;
mod registration;
mod tokens;
mod users;

use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::model::short_hash;
use crate::platform::Endpoint;
use crate::secret::Secret;

pub(crate) use by_hand::{REVOKED_NOTICE, Revocation, cut, not_active, status};
pub(crate) use client::{Probe, XtmOne};
pub(crate) use licence::Licence;
pub(crate) use outcome::{Status, UsersOutcome, XtmOneOutcome};
pub(crate) use registration::{Registrar, Wanted};
pub(crate) use users::{LeftOut, UserRules};

/// How a lane registers with XTM One.
#[derive(Debug, Clone)]
pub struct XtmOneSettings {
    pub(crate) endpoint: Endpoint,
    pub(crate) request_timeout: Duration,
    /// Whether a platform that registers itself is registered all the same.
    pub(crate) force: bool,
    pub(crate) payload: PayloadChoice,
    /// The URL to tell XTM One instead of the one that the platform answers.
    pub(crate) platform_url: Option<String>,
    pub(crate) licence: Option<Licence>,
    /// The key with which XTM One calls the platform back. `None` sends none.
    pub(crate) admin_key: Option<Secret>,
    pub(crate) users: UserRules,
    /// The largest number of tokens that one pass makes.
    pub(crate) max_new_tokens: usize,
    pub(crate) chat_token: ChatTokenPlace,
}

impl XtmOneSettings {
    /// A fingerprint of everything that XTM One may refuse a registration for. It is too short to guess a token from.
    pub(crate) fn fingerprint(&self) -> String {
        let Self { endpoint, payload, platform_url, licence, admin_key, .. } = self;
        let secrets = [Some(&endpoint.token), licence.as_ref().map(|licence| &licence.pem), admin_key.as_ref()];
        let secrets = secrets.map(|secret| Zeroizing::new(short_hash(secret.map_or("", Secret::expose), 64)));
        let secrets = secrets.iter().map(|hash| hash.as_str()).collect::<Vec<_>>().join("\n");
        short_hash(&format!("{}\n{payload:?}\n{platform_url:?}\n{secrets}", endpoint.url), 4)
    }
}

/// Which generation of XTM One's registration is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PayloadChoice {
    /// Users and keys.
    Users,
    /// The business vertical and intents, neither users nor keys.
    Intents,
    /// The one that the platform's version would send itself.
    ByVersion,
}

/// Where the token for the chat of XTM One is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChatTokenPlace {
    Nowhere,
    /// A Secret of this name in the namespace of the connectors.
    Secret(String),
    File(PathBuf),
}
