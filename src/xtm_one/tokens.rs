//! Makes and revokes the tokens of users on the platform.
//!
//! Names of tokens are not unique and making one is not idempotent. So a token whose answer was lost is looked for before
//! another one is made, and since nobody knows its key, it is revoked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::access::Permit;
use crate::model::{TokenId, UserId};
use crate::platform::transport::TransportError;
use crate::platform::{Account, Accounts, NewToken, Platform, PlatformError};
use crate::stop::Stop;

/// After so many failures in a row, no more tokens are tried.
const FAILURES_MAX: u32 = 10;

/// The platform's users and tokens, asked for on threads that may block.
pub(super) struct Tokens {
    pub(super) platform: Arc<dyn Platform>,
    /// How many requests run at the same time.
    pub(super) concurrency: usize,
    pub(super) stop: Stop,
}

/// A token that could not be revoked, and why.
pub(super) type Unrevoked = (UserId, TokenId, PlatformError);

/// What making tokens came to.
#[derive(Default)]
pub(super) struct Made {
    pub(super) tokens: BTreeMap<UserId, NewToken>,
    pub(super) failed: Vec<(UserId, PlatformError)>,
    /// Users for whom a token may exist whose key nobody knows.
    pub(super) unknown: BTreeSet<UserId>,
    /// How many tokens whose answers were lost were found and revoked.
    pub(super) revoked: usize,
    /// Whether some users had no turn, because the pass had to stop or the platform refuses all.
    pub(super) ended_early: bool,
}

impl Tokens {
    /// Asks for all users, page by page. A user that appears on two pages, because others came between, counts once.
    pub(super) async fn list(&self) -> Result<Vec<Account>, PlatformError> {
        let (mut accounts, mut seen) = (Vec::new(), BTreeSet::new());
        let mut after: Option<String> = None;
        loop {
            self.go_on()?;
            let (before, asked) = (accounts.len(), after.clone());
            let page = self.ask(move |accounts| accounts.page(asked.as_deref())).await?;
            accounts.extend(page.accounts.into_iter().filter(|account| seen.insert(account.id.clone())));
            match page.next {
                // A platform that gives the same users again and again would be asked for ever.
                Some(_) if accounts.len() == before => {
                    return Err(abandoned("a page of the list of users has nobody new, and yet there are more"));
                }
                next @ Some(_) => after = next,
                None => return Ok(accounts),
            }
        }
    }

    /// Makes a token for each of these users.
    pub(super) async fn make(&self, permit: Permit, users: &[Account]) -> Made {
        let mut made = Made::default();
        self.make_once(permit, users.iter().collect(), &mut made).await;
        if made.unknown.is_empty() || made.ended_early {
            return made;
        }
        // A token whose request timed out may appear later than it is looked for. The next pass looks again.
        let late: BTreeSet<&UserId> =
            made.failed.iter().filter(|(_, error)| is_timeout(error)).map(|(id, _)| id).collect();
        let is_lost = |user: &&Account| made.unknown.contains(&user.id) && !late.contains(&user.id);
        let lost: Vec<&Account> = users.iter().filter(is_lost).collect();
        if lost.is_empty() {
            return made;
        }
        match self.revoke_unknown(permit, &lost, &mut made).await {
            Ok(clean) => {
                let again: Vec<&Account> = lost.into_iter().filter(|user| clean.contains(&user.id)).collect();
                made.failed.retain(|(id, _)| !clean.contains(id));
                self.make_once(permit, again, &mut made).await;
            }
            Err(error) => tracing::warn!(%error, "tokens whose answers were lost cannot be looked for"),
        }
        made
    }

    async fn make_once(&self, permit: Permit, users: Vec<&Account>, made: &mut Made) {
        let (ended, mut failures) = (AtomicBool::new(false), 0);
        let mut making = stream::iter(users)
            .map(|user| (user, &ended))
            .map(|(user, ended)| async move {
                if self.stop.cause().is_some() || ended.load(Ordering::Relaxed) {
                    return (user, None);
                }
                let id = user.id.clone();
                (user, Some(self.ask(move |accounts| accounts.add_token(permit, &id)).await))
            })
            .buffer_unordered(self.concurrency);
        while let Some((user, result)) = making.next().await {
            match result {
                None => made.ended_early = true,
                Some(Ok(token)) => {
                    failures = 0;
                    made.unknown.remove(&user.id);
                    made.tokens.insert(user.id.clone(), token);
                }
                Some(Err(error)) => {
                    if error.may_be_done() {
                        made.unknown.insert(user.id.clone());
                    }
                    failures += 1;
                    ended.fetch_or(would_be_the_same(&error) || failures >= FAILURES_MAX, Ordering::Relaxed);
                    made.failed.push((user.id.clone(), error));
                }
            }
        }
    }

    /// Looks for tokens whose answers were lost and revokes them. Returns the users for whom none is left.
    async fn revoke_unknown(
        &self,
        permit: Permit,
        users: &[&Account],
        made: &mut Made,
    ) -> Result<BTreeSet<UserId>, PlatformError> {
        let now: BTreeMap<UserId, Vec<TokenId>> =
            self.list().await?.into_iter().map(|account| (account.id, account.tokens)).collect();
        let mut clean: BTreeSet<UserId> = users.iter().map(|user| user.id.clone()).collect();
        let new = users.iter().flat_map(|user| {
            let tokens = now.get(&user.id).map(Vec::as_slice).unwrap_or_default();
            let new = tokens.iter().filter(|token| !user.tokens.contains(token));
            new.map(|token| (user.id.clone(), token.clone()))
        });
        let new: Vec<_> = new.collect();
        made.revoked += new.len();
        for (user, _, error) in self.revoke(permit, new).await {
            tracing::warn!(%error, "a token whose answer was lost cannot be revoked");
            made.revoked -= 1;
            clean.remove(&user);
        }
        made.unknown.retain(|user| !clean.contains(user));
        Ok(clean)
    }

    /// Revokes tokens. Returns those that could not be revoked.
    pub(super) async fn revoke(&self, permit: Permit, tokens: Vec<(UserId, TokenId)>) -> Vec<Unrevoked> {
        let revoking = stream::iter(tokens).map(|(user, token)| async move {
            if let Err(stopped) = self.go_on() {
                return Some((user, token, stopped));
            }
            let (of, it) = (user.clone(), token.clone());
            let done = self.ask(move |accounts| accounts.revoke_token(permit, &of, &it)).await;
            done.err().map(|error| (user, token, error))
        });
        revoking.buffer_unordered(self.concurrency).filter_map(|failed| async move { failed }).collect().await
    }

    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Accounts) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, PlatformError> {
        let platform = Arc::clone(&self.platform);
        let asked = tokio::task::spawn_blocking(move || match platform.accounts() {
            Some(accounts) => call(accounts),
            None => Err(abandoned("this product gives XTM One no keys")),
        });
        asked.await.unwrap_or_else(|panic| Err(abandoned(&panic.to_string())))
    }

    fn go_on(&self) -> Result<(), PlatformError> {
        match self.stop.cause() {
            Some(cause) => Err(abandoned(&format!("the pass had to stop: {}", cause.as_str()))),
            None => Ok(()),
        }
    }
}

/// Whether making a token for any other user would fail in the same way.
fn would_be_the_same(error: &PlatformError) -> bool {
    match error {
        PlatformError::Forbidden { .. } | PlatformError::TokenRefused { .. } | PlatformError::NotSupported { .. } => {
            true
        }
        PlatformError::Explained { general, .. } => *general,
        PlatformError::Transport { source, .. } => !source.may_be_done(),
        _ => false,
    }
}

fn is_timeout(error: &PlatformError) -> bool {
    matches!(error, PlatformError::Transport { source: TransportError::Timeout { .. }, .. })
}

fn abandoned(why: &str) -> PlatformError {
    PlatformError::Abandoned { operation: "users", why: why.to_owned() }
}
