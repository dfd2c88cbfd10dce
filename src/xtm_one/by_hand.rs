//! What an operator does by hand: looks at the tokens, and takes them all back.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::XtmOneSettings;
use super::outcome::{Status, UsersOutcome, XtmOneOutcome};
use super::payload::Generation;
use super::tokens::Tokens;
use super::users::{Renewal, UserRules, select};
use crate::access::Permit;
use crate::memory::XtmOneMemory;
use crate::model::{TokenId, UserId};
use crate::platform::{Platform, PlatformError};
use crate::stop::Stop;

/// What an operator should know after all tokens were revoked.
pub(crate) const REVOKED_NOTICE: &str = "XTM One still has the keys, which open nothing now; while XTM__XTM_ONE_TOKEN is \
    set, later passes make new ones";

/// The outcome of a command that needs the registration to be active, when it is not.
pub(crate) fn not_active() -> (XtmOneOutcome, Vec<String>) {
    let mut outcome = XtmOneOutcome::new("", Status::Failed);
    let error = "the registration with XTM One is not active".to_owned();
    outcome.fault(None, error, "set both XTM__XTM_ONE_URL and XTM__XTM_ONE_TOKEN");
    (outcome, vec![])
}

/// The outcome of a registration that was given up because the pass had to end. The next pass goes on from the notes that
/// it made on the way.
pub(crate) fn cut(url: &str) -> (XtmOneOutcome, Vec<String>) {
    let mut outcome = XtmOneOutcome::new(url, Status::Interrupted);
    let error = "the pass had to end while the registration with XTM One went on".to_owned();
    outcome.fault(None, error, "see what keeps the platform or XTM One from answering; the next pass goes on");
    (outcome, vec![])
}

/// Takes back every token that was made for XTM One, whoever made it.
pub(crate) struct Revocation<'a> {
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) concurrency: usize,
    pub(crate) stop: &'a Stop,
    /// The address of XTM One for the report. Empty when it is not set.
    pub(crate) url: &'a str,
}

impl Revocation<'_> {
    /// Counts the tokens, and revokes them unless `permit` is `None`. The second value says whether none is left.
    pub(crate) async fn revoke(&self, permit: Option<Permit>) -> (XtmOneOutcome, bool) {
        let status = if permit.is_some() { Status::NotAsked } else { Status::Planned };
        let mut outcome = XtmOneOutcome::new(self.url, status);
        let (concurrency, stop) = (self.concurrency, self.stop.clone());
        let tokens = Tokens { platform: Arc::clone(&self.platform), concurrency, stop };
        let accounts = match tokens.list().await {
            Ok(accounts) => accounts,
            Err(error) => {
                self.fault(&mut outcome, "the users cannot be listed", &error);
                return (outcome, false);
            }
        };
        let with_tokens = accounts.iter().filter(|account| !account.tokens.is_empty());
        let emails: BTreeMap<UserId, String> =
            with_tokens.map(|account| (account.id.clone(), account.email.clone())).collect();
        let all: Vec<(UserId, TokenId)> = accounts
            .into_iter()
            .flat_map(|account| account.tokens.into_iter().map(move |token| (account.id.clone(), token)))
            .collect();
        outcome.users.tokens_revoked = all.len();
        let Some(permit) = permit else { return (outcome, true) };
        let failed = tokens.revoke(permit, all).await;
        outcome.users.tokens_revoked -= failed.len();
        let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (user, _, error) in &failed {
            groups.entry(error.to_string()).or_default().push(emails.get(user).unwrap_or(&user.0).clone());
        }
        for (error, users) in groups {
            let cure = "look into the platform's log at this time, and run the command again";
            outcome.fault_of(&users, &format!("a token cannot be revoked: {error}"), cure);
        }
        (outcome, failed.is_empty())
    }

    fn fault(&self, outcome: &mut XtmOneOutcome, what: &str, error: &PlatformError) {
        outcome.fault(None, format!("{what}: {error}"), error.cure().on(self.platform.kind()));
    }
}

/// Reports how things stand, with reads alone. `settings` are `None` when the registration is not active.
pub(crate) async fn status(
    settings: Option<&XtmOneSettings>,
    platform: Arc<dyn Platform>,
    version: &str,
    memory: &XtmOneMemory,
    concurrency: usize,
    stop: &Stop,
) -> (XtmOneOutcome, Vec<String>) {
    let url = settings.map_or("", |settings| settings.endpoint.url.as_str());
    let mut outcome = XtmOneOutcome::new(url, Status::NotAsked);
    let mut notices = Vec::new();
    if settings.is_none() {
        notices.push("not active: XTM__XTM_ONE_URL and XTM__XTM_ONE_TOKEN are not both set".to_owned());
    }
    if !memory.unsent.is_empty() {
        let count = memory.unsent.len();
        notices.push(format!("the keys of {count} users may never have arrived; the next registration makes new ones"));
    }
    if let (Some(settings), Some(failed)) = (settings, &memory.failed) {
        outcome.next_attempt = failed.holds_until(&settings.fingerprint(), Timestamp::now());
        notices.push(format!("{} passes in a row could not register", failed.times));
    }
    if platform.accounts().is_none() {
        return (outcome, notices);
    }
    let kind = platform.kind();
    let all = UserRules { include: None, exclude: vec![], service_accounts: false };
    match (Tokens { platform, concurrency, stop: stop.clone() }).list().await {
        Ok(accounts) => {
            let tokens: usize = accounts.iter().map(|account| account.tokens.len()).sum();
            let rules = settings.map_or(&all, |settings| &settings.users);
            let generation = settings.map(|settings| Generation::of(settings.payload, version));
            let renewal = if generation == Some(Generation::Intents) { Renewal::None } else { Renewal::Missing };
            let selection = select(accounts, &memory.unsent, rules, renewal, 0);
            outcome.users = UsersOutcome::of(&selection);
            outcome.users.sent = selection.known.len();
            outcome.users.waiting += selection.new.len();
            notices.push(format!("{tokens} tokens named XTM One are on the platform"));
        }
        Err(error) => outcome.fault(None, format!("the users cannot be listed: {error}"), error.cure().on(kind)),
    }
    (outcome, notices)
}
