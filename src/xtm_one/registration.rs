//! The order of a registration.
//!
//! A key is known only to the answer that made its token, and has to arrive at XTM One. So the ids of the users who are
//! to get tokens are written to the memory first, then the tokens are made, then XTM One is told, and when it has
//! acknowledged them, the ids are cleared. A pass that finds ids there revokes those tokens, for nobody can know whether
//! their keys arrived, and makes others. Tokens that were replaced are revoked last, and noted until then.

mod ready;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::XtmOneSettings;
use super::chat_token;
use super::client::{Registered, Unregistered, XtmOne, XtmOneError};
use super::outcome::{Status, XtmOneOutcome};
use super::payload::{Key, Payload, User};
use super::tokens::{Made, Tokens};
use super::users::Selection;
use crate::memory::{FailedRegistrations, XtmOneMemory};
use crate::model::{TokenId, UserId, short_hash};
use crate::orchestrator::Orchestrator;
use crate::platform::{Account, Platform, PlatformError};
use crate::stop::{Stop, Until};
use crate::stored_memory::StoredMemory;
use ready::Ready;

/// How many tokens a rotation replaces before it tells XTM One. When it is killed, so many users at most have to get
/// another key.
const ROTATED_AT_ONCE: usize = 500;
const TOKEN_CURE: &str = "look into the platform's log at this time; the next pass tries again";
const INTERRUPTED: &str = "the pass had to stop before XTM One had acknowledged the registration";

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

/// What came of telling XTM One.
enum Sent {
    Registered(Registered),
    Failed(Unregistered),
    /// The pass had to stop, so it is unknown what came of it.
    Unknown,
}

impl Registrar<'_> {
    /// Reports what [`Self::register`] would do, and does nothing of it.
    pub(crate) async fn foresee(&self, memory: &XtmOneMemory, wanted: Wanted<'_>) -> (XtmOneOutcome, Vec<String>) {
        let mut draft = self.draft(memory);
        if let Some(ready) = self.prepare(wanted, &BTreeSet::new(), usize::MAX, &mut draft).await {
            let Selection { known, new, lost, .. } = &ready.selection;
            let known = known.iter().map(|account| user(account, Key::Known));
            let users: Vec<_> = known.chain(new.iter().map(|account| user(account, Key::ToMake))).collect();
            let replaced: usize = new.iter().map(|account| account.tokens.len()).sum();
            let outcome = &mut draft.outcome;
            outcome.status = Status::Planned;
            outcome.users.sent = users.len();
            outcome.users.tokens_made = new.len();
            outcome.users.tokens_revoked = lost.len() + replaced + draft.memory.replaced.len();
            outcome.users.name_to_make(new.iter().map(|account| account.email.as_str()));
            outcome.planned = Some(self.payload(&ready, users).shown());
        }
        (draft.outcome, draft.notices)
    }

    /// Registers. Whatever fails is in the outcome. A rotation registers as often as it takes to replace all tokens.
    pub(crate) async fn register<O: Orchestrator>(
        &self,
        store: &StoredMemory<'_, O>,
        memory: &XtmOneMemory,
        wanted: Wanted<'_>,
    ) -> (XtmOneOutcome, Vec<String>) {
        let mut draft = self.draft(memory);
        let mut done = BTreeSet::new();
        while let Some(ready) = self.prepare(wanted, &done, ROTATED_AT_ONCE, &mut draft).await {
            let goes_on = wanted != Wanted::Heartbeat && ready.selection.waiting > 0;
            if goes_on {
                done.extend(ready.selection.new.iter().map(|account| account.id.clone()));
            }
            self.carry_out(store, ready, &mut draft).await;
            if !goes_on || draft.outcome.status != Status::Registered {
                break;
            }
        }
        if draft.outcome.status == Status::LeftAlone && !draft.memory.unsent.is_empty() {
            self.revoke_unsent(store, &mut draft).await;
        }
        self.write(store, &mut draft).await;
        (draft.outcome, draft.notices)
    }

    fn draft(&self, memory: &XtmOneMemory) -> Draft {
        let outcome = XtmOneOutcome::new(&self.settings.endpoint.url, Status::Failed);
        Draft { memory: memory.clone(), outcome, notices: vec![] }
    }

    async fn carry_out<O: Orchestrator>(&self, store: &StoredMemory<'_, O>, mut ready: Ready, draft: &mut Draft) {
        if self.stop.cause().is_some() {
            return interrupted(draft);
        }
        self.note(store, &mut ready.selection, draft).await;
        let unsent = self.revoke_leftovers(store, &mut ready, draft).await;
        let made = self.tokens().make(store.permit(), &ready.selection.new).await;
        let new = &ready.selection.new;
        self.report_made(&made, &ready, draft);
        draft.outcome.users.waiting = ready.selection.waiting;
        // The users about whose keys nobody knows, whatever comes of the rest.
        draft.memory.unsent = unsent.into_iter().chain(made.unknown.iter().cloned()).collect();
        let sent = match self.stop.cause() {
            Some(_) => Sent::Unknown,
            None => self.send(&ready, &made, draft).await,
        };
        match sent {
            Sent::Unknown => {
                draft.memory.unsent.extend(made.tokens.keys().cloned());
                interrupted(draft);
            }
            Sent::Registered(registered) => {
                let of_made = new.iter().filter(|account| made.tokens.contains_key(&account.id));
                let replaced =
                    of_made.flat_map(|account| account.tokens.iter().map(|token| (account.id.clone(), token.clone())));
                draft.memory.replaced.extend(replaced);
                draft.memory.failed = None;
                // The keys have arrived, so the note is cleared before anything else can go wrong.
                self.write(store, draft).await;
                self.revoke_replaced(store, &ready, draft).await;
                self.registered(store, registered, draft).await;
            }
            Sent::Failed(Unregistered { error, may_be_done }) => {
                let own: Vec<_> = made.tokens.iter().map(|(user, token)| (user.clone(), token.id.clone())).collect();
                let left = self.revoke(store, own, "a token whose key did not arrive", &ready, draft).await;
                draft.memory.unsent.extend(left.into_iter().map(|(user, _)| user));
                if may_be_done {
                    // XTM One may have replaced a key that works by one that is revoked now.
                    let rotated = new.iter().filter(|account| !account.tokens.is_empty());
                    draft.memory.unsent.extend(rotated.map(|account| account.id.clone()));
                }
                self.failed(&error, draft);
            }
        }
    }

    /// Writes down whose tokens are about to be made. Where that fails, none is made.
    async fn note<O: Orchestrator>(&self, store: &StoredMemory<'_, O>, selection: &mut Selection, draft: &mut Draft) {
        if selection.new.is_empty() {
            return;
        }
        let before = draft.memory.unsent.clone();
        draft.memory.unsent.extend(selection.new.iter().map(|account| account.id.clone()));
        if self.write(store, draft).await {
            return;
        }
        draft.memory.unsent = before;
        let kept = std::mem::take(&mut selection.new);
        selection.waiting += kept.len();
        selection.known.extend(kept.into_iter().filter(|account| !account.tokens.is_empty()));
    }

    /// Revokes what earlier passes left: tokens whose keys may never have arrived, and tokens that were replaced. Returns
    /// the users of whom some are left. They get no new token now.
    async fn revoke_leftovers<O: Orchestrator>(
        &self,
        store: &StoredMemory<'_, O>,
        ready: &mut Ready,
        draft: &mut Draft,
    ) -> BTreeSet<UserId> {
        self.revoke_replaced(store, ready, draft).await;
        if !ready.listed {
            return draft.memory.unsent.clone();
        }
        let lost = std::mem::take(&mut ready.selection.lost);
        let left = self.revoke(store, lost, "a token whose key may never have arrived", ready, draft).await;
        let left: BTreeSet<UserId> = left.into_iter().map(|(user, _)| user).collect();
        ready.selection.new.retain(|account| !left.contains(&account.id));
        left
    }

    async fn revoke_replaced<O: Orchestrator>(&self, store: &StoredMemory<'_, O>, ready: &Ready, draft: &mut Draft) {
        let replaced: Vec<_> = std::mem::take(&mut draft.memory.replaced).into_iter().collect();
        let left = self.revoke(store, replaced, "a token that was replaced", ready, draft).await;
        draft.memory.replaced = left.into_iter().collect();
    }

    /// Revokes tokens whose keys may never have arrived, without making others.
    async fn revoke_unsent<O: Orchestrator>(&self, store: &StoredMemory<'_, O>, draft: &mut Draft) {
        let accounts = match self.tokens().list().await {
            Ok(accounts) => accounts,
            Err(error) => {
                let what = format!("tokens whose keys may never have arrived cannot be looked for: {error}");
                return self.platform_fault(draft, what, &error);
            }
        };
        let theirs = accounts.into_iter().filter(|account| draft.memory.unsent.contains(&account.id));
        let tokens =
            theirs.flat_map(|account| account.tokens.into_iter().map(move |token| (account.id.clone(), token)));
        let tokens: Vec<_> = tokens.collect();
        let count = tokens.len();
        let left = self.tokens().revoke(store.permit(), tokens).await;
        draft.outcome.users.tokens_revoked += count - left.len();
        draft.memory.unsent = left.iter().map(|(user, _, _)| user.clone()).collect();
        for (user, _, error) in left {
            let what = format!("a token whose key may never have arrived cannot be revoked: {error} (user {})", user.0);
            draft.outcome.fault(None, what, TOKEN_CURE);
        }
    }

    fn report_made(&self, made: &Made, ready: &Ready, draft: &mut Draft) {
        draft.outcome.users.tokens_made += made.tokens.len();
        draft.outcome.users.tokens_revoked += made.revoked;
        let failed = made.failed.iter().map(|(user, error)| (user, error));
        for (error, (users, cure)) in self.grouped(failed, ready) {
            draft.outcome.fault_of(&users, &format!("no token could be made: {error}"), &cure);
        }
        if made.ended_early && !made.failed.is_empty() && self.stop.cause().is_none() {
            draft.notices.push("no more tokens were tried, because others would have failed as well".to_owned());
        }
    }

    /// The users of each error, by its text, and its cure.
    fn grouped<'b>(
        &self,
        failed: impl Iterator<Item = (&'b UserId, &'b PlatformError)>,
        ready: &Ready,
    ) -> BTreeMap<String, (Vec<String>, String)> {
        let mut groups = BTreeMap::new();
        for (user, error) in failed {
            let cure = || (Vec::new(), error.cure().on(self.platform.kind()));
            let (users, _) = groups.entry(error.to_string()).or_insert_with(cure);
            users.push(ready.address(user).to_owned());
        }
        groups
    }

    /// Sends the registration. Users for whom no token was made are left out, unless an earlier one of theirs works.
    async fn send(&self, ready: &Ready, made: &Made, draft: &mut Draft) -> Sent {
        let known = ready.selection.known.iter().map(|account| user(account, Key::Known));
        let new = ready.selection.new.iter().filter_map(|account| match made.tokens.get(&account.id) {
            Some(token) => Some(user(account, Key::New(&token.key))),
            None => (!account.tokens.is_empty()).then(|| user(account, Key::Known)),
        });
        let users: Vec<_> = known.chain(new).collect();
        draft.outcome.users.sent = users.len();
        let payload = self.payload(ready, users);
        let abandoned =
            |why: String, may_be_done| Unregistered { error: Box::new(XtmOneError::Abandoned(why)), may_be_done };
        let body = match payload.body() {
            Ok(body) => body,
            Err(error) => return Sent::Failed(abandoned(error.to_string(), false)),
        };
        let client = Arc::new(XtmOne::new(self.settings, self.stop.clone()));
        let sending = tokio::task::spawn_blocking({
            let client = Arc::clone(&client);
            move || client.send(&body)
        });
        let Some(sent) = self.stop.within(Until::Published, sending).await else { return Sent::Unknown };
        let read = match sent {
            Ok(sent) => client.read(sent, &payload.secrets()),
            Err(panic) => Err(abandoned(panic.to_string(), true)),
        };
        match read {
            Ok(registered) => Sent::Registered(registered),
            // It was cut short, which is no failure of XTM One.
            Err(_) if self.stop.cause().is_some() => Sent::Unknown,
            Err(failed) => Sent::Failed(failed),
        }
    }

    async fn registered<O: Orchestrator>(&self, store: &StoredMemory<'_, O>, answer: Registered, draft: &mut Draft) {
        let Registered { status, ee_enabled, user_integrations, intents, version, chat_web_token } = answer;
        self.compare_integrations(user_integrations, draft);
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
                draft.memory.chat_token = Some(kept.fingerprint);
            }
            Err(why) => {
                outcome.chat_web_token = Some("not kept");
                let cure = "see XTM__CHAT_WEB_TOKEN_SECRET and XTM__CHAT_WEB_TOKEN_FILE; the next pass tries again";
                outcome.fault(None, why, cure);
            }
        }
    }

    /// Mentions when XTM One cannot have the keys of all users, because it is another one or has lost some.
    fn compare_integrations(&self, integrations: Option<u64>, draft: &mut Draft) {
        let address = short_hash(&self.settings.endpoint.url, 4);
        let earlier = draft.memory.registered_at.replace(address);
        let is_another = earlier.is_some() && earlier != draft.memory.registered_at;
        let sent = u64::try_from(draft.outcome.users.sent).unwrap_or(u64::MAX);
        let lacks = integrations.is_some_and(|count| count < sent);
        let keys_of_before = draft.outcome.users.sent > draft.outcome.users.tokens_made;
        if (is_another && keys_of_before) || lacks {
            draft.notices.push(
                "this XTM One may lack keys of users that an earlier one got: `xtm-one rotate` gives every user a new one"
                    .to_owned(),
            );
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

    /// Revokes tokens, and reports and returns those that cannot be revoked.
    async fn revoke<O: Orchestrator>(
        &self,
        store: &StoredMemory<'_, O>,
        tokens: Vec<(UserId, TokenId)>,
        what: &str,
        ready: &Ready,
        draft: &mut Draft,
    ) -> Vec<(UserId, TokenId)> {
        let count = tokens.len();
        let failed = self.tokens().revoke(store.permit(), tokens).await;
        draft.outcome.users.tokens_revoked += count - failed.len();
        for (error, (users, _)) in self.grouped(failed.iter().map(|(user, _, error)| (user, error)), ready) {
            draft.outcome.fault_of(&users, &format!("{what} cannot be revoked: {error}"), TOKEN_CURE);
        }
        failed.into_iter().map(|(user, token, _)| (user, token)).collect()
    }

    /// Writes the memory, and reports when that fails. Writes nothing when it is stored like this.
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

    fn platform_fault(&self, draft: &mut Draft, what: String, error: &PlatformError) {
        draft.outcome.fault(None, what, error.cure().on(self.platform.kind()));
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
        let lost = |why: String| PlatformError::Abandoned { operation: "settings", why };
        asked.await.unwrap_or_else(|panic| Err(lost(panic.to_string())))
    }
}

fn interrupted(draft: &mut Draft) {
    draft.outcome.status = Status::Interrupted;
    let cure = "the next pass goes on; it revokes tokens whose keys may not have arrived, and makes others";
    draft.outcome.fault(None, INTERRUPTED.to_owned(), cure);
}

fn user<'a>(account: &'a Account, key: Key<'a>) -> User<'a> {
    User { email: account.email.trim(), name: &account.name, key }
}
