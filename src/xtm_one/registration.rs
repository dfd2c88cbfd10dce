//! The order of a registration.
//!
//! A key is known only to the answer that made its token, and has to arrive at XTM One. So the ids of the users who are
//! to get tokens are written to the memory first, then the tokens are made, then XTM One is told, and only when it has
//! acknowledged them, the ids are cleared. A pass that finds ids there revokes those tokens, for nobody can know whether
//! their keys arrived, and makes others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::XtmOneSettings;
use super::chat_token;
use super::client::{Registered, XtmOne, XtmOneError};
use super::outcome::{Status, UsersOutcome, XtmOneOutcome};
use super::payload::{Generation, Key, Payload, User};
use super::tokens::{Made, Tokens};
use super::users::{Renewal, Selection, select};
use crate::memory::{FailedRegistrations, XtmOneMemory};
use crate::model::{TokenId, UserId};
use crate::orchestrator::Orchestrator;
use crate::platform::{Account, Platform, PlatformError, Profile};
use crate::secret::Secret;
use crate::stop::Stop;
use crate::stored_memory::StoredMemory;

/// The largest number of tokens that a rotation makes at once. So many ids fit into the memory on every orchestrator.
const ROTATED_MAX: usize = 5000;
/// How long before its end a licence is mentioned.
const LICENCE_ENDS_SOON: SignedDuration = SignedDuration::from_hours(30 * 24);
const TOKEN_CURE: &str = "look into the platform's log at this time; the next pass tries again";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// What every pass does.
    Heartbeat,
    /// New tokens for the users who have some, or only for the user with this address.
    Rotation(Option<&'a str>),
}

/// Registers one platform.
pub(crate) struct Registrar<'a> {
    pub(crate) settings: &'a XtmOneSettings,
    pub(crate) platform: Arc<dyn Platform>,
    /// The version of the platform.
    pub(crate) version: &'a str,
    /// How many requests to the platform run at the same time.
    pub(crate) concurrency: usize,
    pub(crate) stop: &'a Stop,
}

/// A registration on its way: what it found out so far, what it will remember and what it will report.
struct Draft {
    memory: XtmOneMemory,
    outcome: XtmOneOutcome,
    notices: Vec<String>,
}

/// Everything that is decided before the first write.
struct Ready {
    profile: Profile,
    generation: Generation,
    selection: Selection,
    /// Whether the users are known.
    listed: bool,
}

impl Registrar<'_> {
    /// Reports what [`Self::register`] would do, and does nothing of it.
    pub(crate) async fn foresee(&self, memory: &XtmOneMemory, wanted: Wanted<'_>) -> (XtmOneOutcome, Vec<String>) {
        let mut draft = self.draft(memory);
        if let Some(ready) = self.prepare(wanted, &mut draft).await {
            let Selection { known, new, lost, .. } = &ready.selection;
            let known = known.iter().map(|account| user(account, Key::Known));
            let users: Vec<_> = known.chain(new.iter().map(|account| user(account, Key::ToMake))).collect();
            let outcome = &mut draft.outcome;
            outcome.status = Status::Planned;
            outcome.users.sent = users.len();
            outcome.users.tokens_made = new.len();
            outcome.users.tokens_revoked = lost.len() + new.iter().map(|account| account.tokens.len()).sum::<usize>();
            outcome.users.name_to_make(new.iter().map(|account| account.email.as_str()));
            outcome.planned = Some(self.payload(&ready, users).shown());
        }
        (draft.outcome, draft.notices)
    }

    /// Registers. Whatever fails is in the outcome.
    pub(crate) async fn register<O: Orchestrator>(
        &self,
        store: &StoredMemory<'_, O>,
        memory: &XtmOneMemory,
        wanted: Wanted<'_>,
    ) -> (XtmOneOutcome, Vec<String>) {
        let mut draft = self.draft(memory);
        if let Some(ready) = self.prepare(wanted, &mut draft).await {
            self.carry_out(store, memory, ready, &mut draft).await;
        } else if draft.memory != *memory {
            self.write(store, &mut draft).await;
        }
        (draft.outcome, draft.notices)
    }

    fn draft(&self, memory: &XtmOneMemory) -> Draft {
        let outcome = XtmOneOutcome::new(&self.settings.endpoint.url, Status::Failed);
        Draft { memory: memory.clone(), outcome, notices: vec![] }
    }

    /// Decides what is to be done, with reads alone. `None` when nothing is.
    async fn prepare(&self, wanted: Wanted<'_>, draft: &mut Draft) -> Option<Ready> {
        let now = Timestamp::now();
        let failed = draft.memory.failed.as_ref().filter(|_| wanted == Wanted::Heartbeat);
        if let Some(failed) = failed
            && let Some(until) = failed.holds_until(&self.settings.fingerprint(), now)
        {
            let error =
                format!("{} passes in a row could not register; the next attempt is due at {until:.0}", failed.times);
            draft.outcome.status = Status::HeldOff;
            draft.outcome.next_attempt = Some(until);
            draft.outcome.fault(
                None,
                error,
                "see the report of the last pass that tried, or change the settings to try at once",
            );
            return None;
        }
        let version = self.version.to_owned();
        let profile = match self.ask(move |platform| platform.profile(&version)).await {
            Ok(profile) => profile,
            Err(error) => {
                self.platform_fault(
                    draft,
                    &format!("without the platform's settings there is no registration: {error}"),
                    &error,
                );
                return None;
            }
        };
        if let Some(itself) = profile.registers_itself.filter(|_| !self.settings.force) {
            draft.outcome.status = Status::LeftAlone;
            draft
                .notices
                .push(format!("not registered with XTM One: {itself}; XTM__FORCE=true registers it all the same"));
            return None;
        }
        self.look_at_licence(now, draft);
        let generation = Generation::of(self.settings.payload, self.version);
        draft.outcome.payload = Some(generation);
        let renewal = match (generation, wanted) {
            (Generation::Intents, Wanted::Heartbeat) => Renewal::None,
            (Generation::Users, Wanted::Heartbeat) => Renewal::Missing,
            (Generation::Users, Wanted::Rotation(user)) => Renewal::Existing(user),
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
        let bound = if wanted == Wanted::Heartbeat { self.settings.max_new_tokens } else { ROTATED_MAX };
        let accounts = accounts.unwrap_or_default();
        let selection = select(accounts, &draft.memory.unsent, &self.settings.users, renewal, bound);
        if let Wanted::Rotation(Some(email)) = wanted
            && selection.new.is_empty()
        {
            let error = format!("no user who may have a key has the address {email}");
            draft.outcome.fault(None, error, "see the address on the platform, and XTM__USERS_INCLUDE and _EXCLUDE");
            return None;
        }
        draft.outcome.users = UsersOutcome::of(&selection);
        Some(Ready { profile, generation, selection, listed })
    }

    /// The users of the platform. `None` when they are not needed or cannot be had.
    async fn accounts(&self, renewal: Renewal<'_>, wanted: Wanted<'_>, draft: &mut Draft) -> Option<Vec<Account>> {
        self.platform.accounts()?;
        let told = draft.memory.told_tokenless.as_deref() == Some(self.version);
        let needed = renewal != Renewal::None && !(told && wanted == Wanted::Heartbeat);
        if !needed && draft.memory.unsent.is_empty() {
            return None;
        }
        match self.tokens().list().await {
            Ok(accounts) => Some(accounts),
            Err(PlatformError::NotSupported { .. }) => {
                if !told || wanted != Wanted::Heartbeat {
                    draft.notices.push(format!(
                        "{} {} has no tokens with names, which XTM One's keys need: it is registered without users until it is upgraded",
                        self.platform.kind().title(),
                        self.version
                    ));
                }
                draft.memory.told_tokenless = Some(self.version.to_owned());
                None
            }
            Err(error) => {
                self.platform_fault(
                    draft,
                    &format!("registered without users, because they cannot be listed: {error}"),
                    &error,
                );
                None
            }
        }
    }

    fn look_at_licence(&self, now: Timestamp, draft: &mut Draft) {
        let Some(licence) = &self.settings.licence else { return };
        if licence.expires <= now {
            draft.notices.push(format!("the licence in XTM__LICENSE_PEM expired at {:.0}", licence.expires));
        } else if licence.expires.duration_since(now) < LICENCE_ENDS_SOON {
            draft.notices.push(format!("the licence in XTM__LICENSE_PEM expires at {:.0}", licence.expires));
        }
        draft.outcome.licence_expires = Some(licence.clone());
    }

    async fn carry_out<O: Orchestrator>(
        &self,
        store: &StoredMemory<'_, O>,
        before: &XtmOneMemory,
        mut ready: Ready,
        draft: &mut Draft,
    ) {
        let noted = before.unsent.iter().cloned().chain(ready.selection.new.iter().map(|account| account.id.clone()));
        draft.memory.unsent = noted.collect();
        if draft.memory.unsent != before.unsent && !self.write(store, draft).await {
            // Without the note no token may be made.
            draft.memory.unsent.clone_from(&before.unsent);
            let kept = std::mem::take(&mut ready.selection.new);
            ready.selection.waiting += kept.len();
            ready.selection.known.extend(kept.into_iter().filter(|account| !account.tokens.is_empty()));
        }
        // From here on, these are the users about whose keys nobody knows.
        let mut unsent = if ready.listed { BTreeSet::new() } else { before.unsent.clone() };
        let permit = store.permit();
        let lost = std::mem::take(&mut ready.selection.lost);
        let lost_count = lost.len();
        let failed = self.tokens().revoke(permit, lost).await;
        draft.outcome.users.tokens_revoked += lost_count - failed.len();
        for (id, error) in failed {
            draft.outcome.fault(
                None,
                format!("a token whose key never arrived cannot be revoked: {error}"),
                TOKEN_CURE,
            );
            ready.selection.new.retain(|account| account.id != id);
            unsent.insert(id);
        }
        let new = std::mem::take(&mut ready.selection.new);
        let made = self.tokens().make(permit, &new).await;
        self.report_made(&made, &new, draft);
        draft.outcome.users.waiting = ready.selection.waiting;
        unsent.extend(made.unknown.iter().cloned());
        if self.stop.cause().is_some() {
            draft.outcome.status = Status::Interrupted;
            let error = "the pass had to stop before XTM One was told".to_owned();
            draft.outcome.fault(None, error, "the next pass revokes the tokens that this one made, and makes others");
            return;
        }
        let result = self.send(&ready, &new, &made, draft).await;
        let tokens = |id: &UserId| made.tokens.get(id).map(|token| (id.clone(), token.id.clone()));
        match result {
            Ok(registered) => {
                let replaced = new.iter().filter(|account| made.tokens.contains_key(&account.id));
                let replaced =
                    replaced.flat_map(|account| account.tokens.iter().map(|token| (account.id.clone(), token.clone())));
                unsent.extend(self.revoke(store, replaced.collect(), "a token that was replaced", draft).await);
                draft.memory.failed = None;
                draft.memory.unsent = unsent;
                // The keys have arrived, so the note is cleared before anything else can go wrong.
                if draft.memory != *before || !new.is_empty() {
                    self.write(store, draft).await;
                }
                self.registered(store, registered, draft).await;
            }
            Err(error) => {
                let own = new.iter().filter_map(|account| tokens(&account.id)).collect();
                unsent.extend(self.revoke(store, own, "a token whose key did not arrive", draft).await);
                if error.may_be_done() {
                    // XTM One may have replaced a key that worked by one that is revoked now.
                    unsent.extend(
                        new.iter().filter(|account| !account.tokens.is_empty()).map(|account| account.id.clone()),
                    );
                }
                draft.memory.unsent = unsent;
                self.failed(&error, draft);
                self.write(store, draft).await;
            }
        }
    }

    fn report_made(&self, made: &Made, new: &[Account], draft: &mut Draft) {
        let emails: BTreeMap<&UserId, &str> = new.iter().map(|account| (&account.id, account.email.as_str())).collect();
        let users = &mut draft.outcome.users;
        users.tokens_made = made.tokens.len();
        users.tokens_revoked += made.revoked;
        for (id, error) in &made.failed {
            let email = emails.get(id).copied();
            draft.outcome.fault(
                email,
                format!("no token could be made: {error}"),
                error.cure().on(self.platform.kind()),
            );
        }
        if made.ended_early && !made.failed.is_empty() {
            draft.notices.push("no more tokens are tried, because it would be the same for every user".to_owned());
        }
    }

    /// Sends the registration. Users for whom no token was made are left out, unless an earlier one of theirs works.
    async fn send(
        &self,
        ready: &Ready,
        new: &[Account],
        made: &Made,
        draft: &mut Draft,
    ) -> Result<Registered, XtmOneError> {
        let known = ready.selection.known.iter().map(|account| user(account, Key::Known));
        let new = new.iter().filter_map(|account| match made.tokens.get(&account.id) {
            Some(token) => Some(user(account, Key::New(&token.key))),
            None => (!account.tokens.is_empty()).then(|| user(account, Key::Known)),
        });
        let users: Vec<_> = known.chain(new).collect();
        draft.outcome.users.sent = users.len();
        let payload = self.payload(ready, users);
        let url = || self.settings.endpoint.url.clone();
        let abandoned = |what: String| XtmOneError::NotProtocol { url: url(), what };
        let body = payload.body().map_err(|error| abandoned(format!("no request: it cannot be written: {error}")))?;
        let secrets: Vec<Secret> = payload.secrets().into_iter().cloned().collect();
        let client = XtmOne::new(self.settings, self.stop.clone());
        let sending = tokio::task::spawn_blocking(move || client.register(&body, &secrets.iter().collect::<Vec<_>>()));
        sending.await.unwrap_or_else(|panic| Err(abandoned(format!("a lost request: {panic}"))))
    }

    async fn registered<O: Orchestrator>(&self, store: &StoredMemory<'_, O>, answer: Registered, draft: &mut Draft) {
        let Registered { status, ee_enabled, user_integrations, intents, version, chat_web_token } = answer;
        let outcome = &mut draft.outcome;
        outcome.status = Status::Registered;
        outcome.answered = Some(status);
        (outcome.ee_enabled, outcome.user_integrations) = (ee_enabled, user_integrations);
        (outcome.intents, outcome.version) = (intents, version);
        // An answer without the token leaves what is kept.
        let Some(token) = chat_web_token else { return };
        let remembered = draft.memory.chat_token.as_deref();
        match chat_token::keep(&self.settings.chat_token, token, remembered, store).await {
            Ok(kept) => {
                outcome.chat_web_token = Some(kept.what);
                draft.notices.extend(kept.notice);
                if remembered != Some(kept.fingerprint.as_str()) {
                    draft.memory.chat_token = Some(kept.fingerprint);
                    self.write(store, draft).await;
                }
            }
            Err(why) => {
                outcome.chat_web_token = Some("not kept");
                outcome.fault(
                    None,
                    why,
                    "see XTM__CHAT_WEB_TOKEN_SECRET and XTM__CHAT_WEB_TOKEN_FILE; the next pass tries again",
                );
            }
        }
    }

    fn failed(&self, error: &XtmOneError, draft: &mut Draft) {
        let earlier = draft.memory.failed.as_ref();
        let now = Timestamp::now();
        let failed = FailedRegistrations::another(earlier, &self.settings.fingerprint(), error.retry_after(), now);
        draft.outcome.status = Status::Failed;
        draft.outcome.next_attempt = Timestamp::from_second(failed.until).ok();
        draft.outcome.fault(None, error.to_string(), error.cure());
        draft.memory.failed = Some(failed);
    }

    /// Revokes tokens and reports those that cannot be revoked. Returns their users.
    async fn revoke<O>(
        &self,
        store: &StoredMemory<'_, O>,
        tokens: Vec<(UserId, TokenId)>,
        what: &str,
        draft: &mut Draft,
    ) -> Vec<UserId>
    where
        O: Orchestrator,
    {
        let count = tokens.len();
        let failed = self.tokens().revoke(store.permit(), tokens).await;
        draft.outcome.users.tokens_revoked += count - failed.len();
        let user = |(id, error): (UserId, PlatformError)| {
            draft.outcome.fault(None, format!("{what} cannot be revoked: {error}"), TOKEN_CURE);
            id
        };
        failed.into_iter().map(user).collect()
    }

    /// Writes the memory, and reports when that fails.
    async fn write<O: Orchestrator>(&self, store: &StoredMemory<'_, O>, draft: &mut Draft) -> bool {
        match store.write_xtm_one(draft.memory.clone()).await {
            Ok(()) => true,
            Err(error) => {
                let what = format!("what the registration has to remember cannot be written: {error}");
                draft.outcome.fault(None, what, error.cure().on(self.platform.kind()));
                false
            }
        }
    }

    fn payload<'b>(&'b self, ready: &'b Ready, users: Vec<User<'b>>) -> Payload<'b> {
        Payload {
            settings: self.settings,
            platform: self.platform.kind(),
            version: self.version,
            profile: &ready.profile,
            generation: ready.generation,
            users,
        }
    }

    fn platform_fault(&self, draft: &mut Draft, what: &str, error: &PlatformError) {
        draft.outcome.fault(None, what.to_owned(), error.cure().on(self.platform.kind()));
    }

    fn tokens(&self) -> Tokens {
        Tokens { platform: Arc::clone(&self.platform), concurrency: self.concurrency, stop: self.stop.clone() }
    }

    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Platform) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, PlatformError> {
        let platform = Arc::clone(&self.platform);
        let asked = tokio::task::spawn_blocking(move || call(platform.as_ref()));
        let lost =
            |panic: tokio::task::JoinError| PlatformError::Abandoned { operation: "settings", why: panic.to_string() };
        asked.await.unwrap_or_else(|panic| Err(lost(panic)))
    }
}

fn user<'a>(account: &'a Account, key: Key<'a>) -> User<'a> {
    User { email: account.email.trim(), name: &account.name, key }
}
