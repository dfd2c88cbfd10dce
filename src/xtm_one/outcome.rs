//! What the report says of a registration with XTM One.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::licence::Licence;
use super::payload::Generation;
use super::users::{LeftOut, Selection};

/// How many users are named for one reason.
const NAMED_MAX: usize = 20;

/// The part of a lane's report that is about XTM One.
#[derive(Debug, Serialize)]
pub(crate) struct XtmOneOutcome {
    /// The address of XTM One. Empty when none is set.
    pub(crate) url: String,
    pub(crate) status: Status,
    /// The status that XTM One answered.
    pub(crate) answered: Option<String>,
    pub(crate) payload: Option<Generation>,
    pub(crate) ee_enabled: Option<bool>,
    pub(crate) user_integrations: Option<u64>,
    /// The number of intents in XTM One's catalogue.
    pub(crate) intents: Option<usize>,
    pub(crate) version: Option<String>,
    pub(crate) users: UsersOutcome,
    /// When the licence in the payload expires.
    pub(crate) licence_expires: Option<Licence>,
    /// What became of the token for the chat.
    pub(crate) chat_web_token: Option<&'static str>,
    /// When the next registration is tried. `None` when the next pass tries.
    pub(crate) next_attempt: Option<Timestamp>,
    /// What `plan` would send, without the secrets.
    pub(crate) planned: Option<Value>,
    /// What went wrong, each with its cure. Each of them ends in exit code 1.
    pub(crate) faults: Vec<XtmOneFault>,
}

/// The result of a registration in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    Registered,
    Failed,
    /// Earlier passes failed, so that this one did not try.
    HeldOff,
    /// The platform registers itself.
    LeftAlone,
    /// The pass had to stop before it was registered.
    Interrupted,
    /// `plan` or a dry run only shows it.
    Planned,
    /// The command does not register.
    NotAsked,
}

/// One thing that went wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct XtmOneFault {
    /// The e-mail address of the user that it is about. `None` when it is about all.
    pub(crate) user: Option<String>,
    pub(crate) error: String,
    pub(crate) cure: String,
}

/// What became of the users.
#[derive(Debug, Default, Serialize)]
pub(crate) struct UsersOutcome {
    /// How many users XTM One was told about.
    pub(crate) sent: usize,
    /// Tokens that were made, or would be in a plan.
    pub(crate) tokens_made: usize,
    /// Tokens that were revoked, or would be in a plan.
    pub(crate) tokens_revoked: usize,
    /// Users whose token waits for a later pass (`XTM__MAX_NEW_TOKENS`).
    pub(crate) waiting: usize,
    pub(crate) skipped: Vec<SkippedUsers>,
    /// The users whose tokens a plan would make. Only the first are named.
    pub(crate) to_make: Vec<String>,
}

/// The users that are left out for one reason.
#[derive(Debug, Serialize)]
pub(crate) struct SkippedUsers {
    pub(crate) reason: LeftOut,
    pub(crate) count: usize,
    /// The first of them.
    pub(crate) users: Vec<String>,
}

impl UsersOutcome {
    pub(super) fn of(selection: &Selection) -> Self {
        let skipped = selection.left_out.iter().map(|(why, names)| {
            let users = names.iter().take(NAMED_MAX).cloned().collect();
            SkippedUsers { reason: *why, count: names.len(), users }
        });
        Self { waiting: selection.waiting, skipped: skipped.collect(), ..Self::default() }
    }

    pub(super) fn name_to_make<'a>(&mut self, emails: impl Iterator<Item = &'a str>) {
        self.to_make = emails.take(NAMED_MAX).map(str::to_owned).collect();
    }
}

impl XtmOneOutcome {
    pub(super) fn new(url: &str, status: Status) -> Self {
        Self {
            url: url.to_owned(),
            status,
            answered: None,
            payload: None,
            ee_enabled: None,
            user_integrations: None,
            intents: None,
            version: None,
            users: UsersOutcome::default(),
            licence_expires: None,
            chat_web_token: None,
            next_attempt: None,
            planned: None,
            faults: vec![],
        }
    }

    pub(super) fn fault(&mut self, user: Option<&str>, error: String, cure: impl Into<String>) {
        self.faults.push(XtmOneFault { user: user.map(str::to_owned), error, cure: cure.into() });
    }

    /// Adds a fault of several users, who are named as far as there is room.
    pub(super) fn fault_of(&mut self, users: &[String], error: &str, cure: &str) {
        match users {
            [user] => self.fault(Some(user), error.to_owned(), cure),
            users => {
                let named = users.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
                let more = users.len().saturating_sub(NAMED_MAX);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                self.fault(None, format!("{error} (users {named}{more})"), cure);
            }
        }
    }

    /// Whether tokens would be made or revoked.
    pub(crate) fn has_changes(&self) -> bool {
        self.status == Status::Planned && self.users.tokens_made + self.users.tokens_revoked > 0
    }
}
