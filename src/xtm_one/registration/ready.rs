//! Decides what a registration has to do, with reads alone.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::{Draft, Registrar, Wanted};
use crate::memory::XtmOneMemory;
use crate::model::UserId;
use crate::platform::{Account, PlatformError, Profile};
use crate::xtm_one::outcome::{Status, UsersOutcome};
use crate::xtm_one::payload::Generation;
use crate::xtm_one::users::{Renewal, Selection, select};

/// How long before its end a licence is mentioned.
const LICENCE_ENDS_SOON: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Everything that is decided before the first write.
pub(super) struct Ready {
    pub(super) profile: Profile,
    pub(super) generation: Generation,
    pub(super) selection: Selection,
    /// The addresses of the users whose keys may never have arrived, for messages.
    pub(super) unsent: BTreeMap<UserId, String>,
    /// Whether the users are known.
    pub(super) listed: bool,
}

impl Ready {
    /// The address of a user whose tokens are made or revoked, or the id when it is not known.
    pub(super) fn address<'a>(&'a self, user: &'a UserId) -> &'a str {
        let new = || self.selection.new.iter().find(|account| account.id == *user).map(|account| &account.email);
        self.unsent.get(user).or_else(new).unwrap_or(&user.0)
    }
}

impl Registrar<'_> {
    /// Decides what is to be done, with reads alone. `None` when nothing is. `done` are the users whose tokens a rotation
    /// has replaced already, and `rotated` bounds those that it replaces now.
    pub(super) async fn prepare(
        &self,
        wanted: Wanted<'_>,
        done: &BTreeSet<UserId>,
        rotated: usize,
        draft: &mut Draft,
    ) -> Option<Ready> {
        let now = Timestamp::now();
        if wanted == Wanted::Heartbeat && self.holds_off(now, draft) {
            return None;
        }
        let version = self.version.to_owned();
        let profile = match self.ask(move |platform| platform.profile(&version)).await {
            Ok(profile) => profile,
            Err(error) => {
                let what = format!("without the platform's settings there is no registration: {error}");
                self.platform_fault(draft, what, &error);
                return None;
            }
        };
        if let Some(itself) = profile.registers_itself.filter(|_| !self.settings.force) {
            leave_alone(itself, wanted, draft);
            return None;
        }
        self.look_at_licence(now, draft);
        let generation = Generation::of(self.settings.payload, self.version);
        draft.outcome.payload = Some(generation);
        let (renewal, bound) = match (generation, wanted) {
            (Generation::Intents, Wanted::Heartbeat) => (Renewal::None, 0),
            (Generation::Users, Wanted::Heartbeat) => (Renewal::Missing, self.settings.max_new_tokens),
            (Generation::Users, Wanted::Rotation(only)) => (Renewal::Existing { only, done }, rotated),
            (Generation::Intents, Wanted::Rotation(_)) => {
                let error = "there is nothing to rotate: this generation of the registration holds no keys".to_owned();
                draft.outcome.fault(None, error, "set XTM__PAYLOAD=users if XTM One still takes them");
                return None;
            }
        };
        let accounts = self.accounts(renewal, wanted, draft).await;
        let listed = accounts.is_some();
        if !listed && wanted != Wanted::Heartbeat {
            return None;
        }
        let mut accounts = accounts.unwrap_or_default();
        let XtmOneMemory { unsent, replaced, .. } = &draft.memory;
        let mut unsent_addresses = BTreeMap::new();
        for account in &mut accounts {
            account.tokens.retain(|token| !replaced.contains(&(account.id.clone(), token.clone())));
            if unsent.contains(&account.id) {
                unsent_addresses.insert(account.id.clone(), account.email.clone());
            }
        }
        let selection = select(accounts, unsent, &self.settings.users, renewal, bound);
        if let Wanted::Rotation(Some(email)) = wanted
            && !selection.new.iter().any(|account| account.email.trim().eq_ignore_ascii_case(email.trim()))
        {
            let error = format!("no user who may have a key has the address {email}");
            draft.outcome.fault(None, error, "see the address on the platform, and XTM__USERS_INCLUDE and _EXCLUDE");
            return None;
        }
        let UsersOutcome { tokens_made, tokens_revoked, .. } = draft.outcome.users;
        draft.outcome.users = UsersOutcome { tokens_made, tokens_revoked, ..UsersOutcome::of(&selection) };
        Some(Ready { profile, generation, selection, unsent: unsent_addresses, listed })
    }

    /// Whether earlier passes failed and it is too early to try again.
    fn holds_off(&self, now: Timestamp, draft: &mut Draft) -> bool {
        let Some(failed) = &draft.memory.failed else { return false };
        let Some(until) = failed.holds_until(&self.settings.fingerprint(), now) else { return false };
        let error =
            format!("{} passes in a row could not register; the next attempt is due at {until:.0}", failed.times);
        draft.outcome.status = Status::HeldOff;
        draft.outcome.next_attempt = Some(until);
        draft.outcome.fault(
            None,
            error,
            "see the report of the last pass that tried, or change the settings to try at once",
        );
        true
    }

    /// The users of the platform. `None` when they are not needed or cannot be had.
    async fn accounts(&self, renewal: Renewal<'_>, wanted: Wanted<'_>, draft: &mut Draft) -> Option<Vec<Account>> {
        self.platform.accounts()?;
        let by_hand = wanted != Wanted::Heartbeat;
        let told = draft.memory.without_named_tokens.as_deref() == Some(self.version);
        let needed = renewal != Renewal::None && (by_hand || !told);
        if !needed && draft.memory.unsent.is_empty() {
            return None;
        }
        match self.tokens().list().await {
            Ok(accounts) => Some(accounts),
            Err(PlatformError::NotSupported { message, .. }) if message.contains("api_tokens") => {
                let what = format!(
                    "{} {} has no tokens with names, which XTM One's keys need: it is registered without users until it is upgraded",
                    self.platform.kind().title(),
                    self.version
                );
                if by_hand {
                    draft.outcome.fault(None, what, "upgrade the platform");
                } else if !told {
                    draft.notices.push(what);
                }
                draft.memory.without_named_tokens = Some(self.version.to_owned());
                None
            }
            Err(error) => {
                let done = if by_hand { "nothing was done" } else { "registered without users" };
                self.platform_fault(draft, format!("{done}, because the users cannot be listed: {error}"), &error);
                None
            }
        }
    }

    fn look_at_licence(&self, now: Timestamp, draft: &mut Draft) {
        let Some(licence) = &self.settings.licence else { return };
        if draft.outcome.licence_expires.is_none() && licence.expires.duration_since(now) < LICENCE_ENDS_SOON {
            let word = if licence.expires <= now { "expired" } else { "expires" };
            draft.notices.push(format!("the licence in XTM__LICENSE_PEM {word} at {:.0}", licence.expires));
        }
        draft.outcome.licence_expires = Some(licence.clone());
    }
}

fn leave_alone(itself: &str, wanted: Wanted<'_>, draft: &mut Draft) {
    draft.outcome.status = Status::LeftAlone;
    let cure = "XTM__FORCE=true registers it all the same";
    let told = format!("not registered with XTM One: {itself}");
    match wanted {
        Wanted::Heartbeat => draft.notices.push(format!("{told}; {cure}")),
        Wanted::Rotation(_) => draft.outcome.fault(None, told, cure),
    }
}
