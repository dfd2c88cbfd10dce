//! Decides which users XTM One is told about and which of them get a token. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;
use wildmatch::WildMatch;

use crate::model::{TokenId, UserId};
use crate::platform::Account;

/// Which users may get keys.
#[derive(Debug, Clone)]
pub(crate) struct UserRules {
    /// `None` includes all.
    pub(crate) include: Option<Vec<WildMatch>>,
    pub(crate) exclude: Vec<WildMatch>,
    /// Whether service accounts and addresses that end in `.invalid` are users like the others.
    pub(crate) service_accounts: bool,
}

/// Why a user is left out by the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LeftOut {
    NoAddress,
    /// Another user has the same address, so XTM One could not tell them apart.
    SameAddress,
    ServiceAccount,
    /// The address ends in `.invalid`: no person has it.
    InvalidAddress,
    /// The user may not log in.
    Inactive,
    Excluded,
    NotIncluded,
}

impl UserRules {
    fn judge(&self, account: &Account) -> Option<LeftOut> {
        let email = account.email.trim();
        let matches = |globs: &[WildMatch]| globs.iter().any(|glob| glob.matches(email));
        let invalid = email.to_ascii_lowercase().ends_with(".invalid");
        match () {
            () if email.is_empty() => Some(LeftOut::NoAddress),
            () if account.service && !self.service_accounts => Some(LeftOut::ServiceAccount),
            () if invalid && !self.service_accounts => Some(LeftOut::InvalidAddress),
            () if !account.active => Some(LeftOut::Inactive),
            () if matches(&self.exclude) => Some(LeftOut::Excluded),
            () if self.include.as_deref().is_some_and(|include| !matches(include)) => Some(LeftOut::NotIncluded),
            () => None,
        }
    }
}

/// Which users get a new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal<'a> {
    /// Those who have none.
    Missing,
    /// Those who have one, or only the user with this address. Their tokens are replaced. `done` are the users whose
    /// tokens this command has replaced already.
    Existing { only: Option<&'a str>, done: &'a BTreeSet<UserId> },
    /// Nobody gets one.
    None,
}

/// What becomes of each user.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// The users whose key XTM One has already.
    pub(crate) known: Vec<Account>,
    /// The users who get a new token. It replaces the tokens that they have.
    pub(crate) new: Vec<Account>,
    /// Tokens of users whose keys may never have arrived. They are revoked before anything else.
    pub(crate) lost: Vec<(UserId, TokenId)>,
    /// How many users would get a token but for the bound.
    pub(crate) waiting: usize,
    pub(crate) left_out: BTreeMap<LeftOut, Vec<String>>,
}

/// Decides about every user. `unsent` are those whose keys may never have arrived: their tokens are lost, and they get new
/// ones. Of the others, at most `bound` users get a token.
#[must_use]
pub(crate) fn select(
    accounts: impl IntoIterator<Item = Account>,
    unsent: &BTreeSet<UserId>,
    rules: &UserRules,
    renewal: Renewal<'_>,
    bound: usize,
) -> Selection {
    let mut selection = Selection::default();
    let mut addresses = HashSet::new();
    let mut others = Vec::new();
    for mut account in accounts {
        let is_unsent = unsent.contains(&account.id);
        if is_unsent {
            let lost = std::mem::take(&mut account.tokens);
            selection.lost.extend(lost.into_iter().map(|token| (account.id.clone(), token)));
        }
        let left_out = rules.judge(&account);
        let mut twice = || !addresses.insert(account.email.trim().to_lowercase());
        if let Some(why) = left_out.or_else(|| twice().then_some(LeftOut::SameAddress)) {
            let name = if account.email.trim().is_empty() { account.name } else { account.email };
            selection.left_out.entry(why).or_default().push(name);
            continue;
        }
        let wanted = match renewal {
            Renewal::Missing => account.tokens.is_empty(),
            Renewal::Existing { done, .. } if done.contains(&account.id) => false,
            Renewal::Existing { only: None, .. } => !account.tokens.is_empty(),
            Renewal::Existing { only: Some(email), .. } => account.email.trim().eq_ignore_ascii_case(email.trim()),
            Renewal::None => false,
        };
        match (is_unsent, wanted) {
            (true, _) if renewal != Renewal::None => selection.new.push(account),
            (_, true) => others.push(account),
            (_, false) if account.tokens.is_empty() => {}
            (_, false) => selection.known.push(account),
        }
    }
    selection.waiting = others.len().saturating_sub(bound);
    // Users whose present token works go on with it until their turn comes.
    let kept = others.split_off(others.len() - selection.waiting);
    selection.known.extend(kept.into_iter().filter(|account| !account.tokens.is_empty()));
    selection.new.append(&mut others);
    selection
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str, tokens: &[&str]) -> Account {
        Account {
            id: UserId(id.to_owned()),
            email: format!("{id}@example.org"),
            name: id.to_owned(),
            active: true,
            service: false,
            tokens: tokens.iter().map(|token| TokenId((*token).to_owned())).collect(),
        }
    }

    fn rules() -> UserRules {
        UserRules { include: None, exclude: vec![], service_accounts: false }
    }

    fn globs(globs: &[&str]) -> Vec<WildMatch> {
        globs.iter().map(|glob| WildMatch::new_case_insensitive(glob)).collect()
    }

    fn ids(accounts: &[Account]) -> Vec<&str> {
        accounts.iter().map(|account| account.id.0.as_str()).collect()
    }

    #[test]
    fn a_user_gets_one_token_and_those_whose_keys_were_lost_get_one_whatever_the_bound() {
        let accounts = [account("a", &[]), account("b", &["t"]), account("c", &[]), account("d", &["lost1", "lost2"])];
        let unsent = [UserId("d".to_owned()), UserId("gone".to_owned())].into();
        let selection = select(accounts, &unsent, &rules(), Renewal::Missing, 1);
        assert_eq!(ids(&selection.new), ["d", "a"]);
        assert_eq!(ids(&selection.known), ["b"]);
        assert_eq!(selection.lost.iter().map(|(_, token)| token.0.as_str()).collect::<Vec<_>>(), ["lost1", "lost2"]);
        assert_eq!(selection.waiting, 1);
        assert!(selection.new.iter().all(|account| account.tokens.is_empty()));
    }

    #[test]
    fn the_rules_leave_users_out_and_say_why() {
        let mut accounts: Vec<Account> =
            ["a", "b", "c", "d", "e", "f", "g"].iter().map(|id| account(id, &[])).collect();
        accounts[0].email = " ".to_owned();
        accounts[1].service = true;
        accounts[2].email = "automatic+1@opencti.INVALID".to_owned();
        accounts[3].active = false;
        accounts[5].email = "E@Example.org".to_owned();
        let rules = UserRules { include: Some(globs(&["*@example.org"])), exclude: globs(&["G@*"]), ..rules() };
        let selection = select(accounts, &BTreeSet::new(), &rules, Renewal::Missing, 100);
        assert_eq!(ids(&selection.new), ["e"]);
        let why: Vec<LeftOut> = selection.left_out.keys().copied().collect();
        assert_eq!(
            why,
            [
                LeftOut::NoAddress,
                LeftOut::SameAddress,
                LeftOut::ServiceAccount,
                LeftOut::InvalidAddress,
                LeftOut::Inactive,
                LeftOut::Excluded
            ]
        );
    }

    #[test]
    fn service_accounts_can_be_let_in_and_includes_match_the_whole_address() {
        let mut robot = account("robot", &[]);
        robot.service = true;
        let accounts = [robot, account("a", &[]), account("ab", &[])];
        let include = Some(globs(&["a@example.org", "robot@*"]));
        let rules = UserRules { include, service_accounts: true, ..rules() };
        let selection = select(accounts, &BTreeSet::new(), &rules, Renewal::Missing, 100);
        assert_eq!(ids(&selection.new), ["robot", "a"]);
        assert_eq!(selection.left_out[&LeftOut::NotIncluded], ["ab@example.org"]);
    }

    #[test]
    fn a_rotation_replaces_tokens_and_gives_none_to_users_without() {
        let accounts = || [account("a", &["t"]), account("b", &[]), account("c", &["u"])];
        let existing = |only, done| Renewal::Existing { only, done };
        let none = BTreeSet::new();
        let all = select(accounts(), &none, &rules(), existing(None, &none), 100);
        assert_eq!(ids(&all.new), ["a", "c"]);
        assert!(all.known.is_empty() && all.lost.is_empty());
        let one = select(accounts(), &none, &rules(), existing(Some("C@example.org"), &none), 100);
        assert_eq!((ids(&one.new), ids(&one.known)), (vec!["c"], vec!["a"]));
        let bounded = select(accounts(), &none, &rules(), existing(None, &none), 1);
        assert_eq!((ids(&bounded.new), ids(&bounded.known), bounded.waiting), (vec!["a"], vec!["c"], 1));
        let done = [UserId("a".to_owned())].into();
        let rest = select(accounts(), &none, &rules(), existing(None, &done), 1);
        assert_eq!((ids(&rest.new), ids(&rest.known), rest.waiting), (vec!["c"], vec!["a"], 0));
    }

    #[test]
    fn a_payload_without_users_makes_no_token_and_still_revokes_lost_ones() {
        let accounts = [account("a", &["lost"]), account("b", &[])];
        let selection = select(accounts, &[UserId("a".to_owned())].into(), &rules(), Renewal::None, 100);
        assert!(selection.new.is_empty() && selection.waiting == 0);
        assert_eq!(selection.lost.len(), 1);
    }
}
