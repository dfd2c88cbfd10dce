//! What a platform says of itself and of its users, for the registration with XTM One (contracts 4 and 5).

use super::error::PlatformError;
use crate::access::Permit;
use crate::model::{TokenId, UserId};
use crate::secret::Secret;

/// The name of every token that is made for XTM One. The platform does not keep names unique.
pub(crate) const TOKEN_NAME: &str = "XTM One";

/// What a platform says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub(crate) id: String,
    /// `None` when the platform has none.
    pub(crate) title: Option<String>,
    /// May be an internal address, because OpenCTI computes it from the request (contracts 5). May be empty.
    pub(crate) url: String,
    /// `None` unless the platform has validated its licence: without one it still names a type (contracts 5).
    pub(crate) licence_type: Option<String>,
    /// What a registration from outside means for a platform that registers itself. `None` for one that does not.
    pub(crate) registers_itself: Option<&'static str>,
}

/// One user of a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub(crate) id: UserId,
    pub(crate) email: String,
    pub(crate) name: String,
    /// Whether the user may log in. A token of a user who may not is refused.
    pub(crate) active: bool,
    /// Whether it stands for a program.
    pub(crate) service: bool,
    /// The user's tokens whose name is [`TOKEN_NAME`].
    pub(crate) tokens: Vec<TokenId>,
}

/// A part of the list of users.
#[derive(Debug)]
pub struct AccountPage {
    pub(crate) accounts: Vec<Account>,
    /// Where the next page begins. `None` for the last page.
    pub(crate) next: Option<String>,
}

/// A token that was just made. Only this answer ever has its key.
#[derive(Debug)]
pub struct NewToken {
    pub(crate) id: TokenId,
    pub(crate) key: Secret,
}

/// The users of a platform and their tokens. The calls block their thread.
pub trait Accounts {
    /// Asks for a page of all users. `after` is where it begins; `None` asks for the first one.
    ///
    /// Fails with [`PlatformError::NotSupported`] on platforms that have no tokens with names.
    fn page(&self, after: Option<&str>) -> Result<AccountPage, PlatformError>;

    /// Makes a token without an end of validity. When [`PlatformError::may_be_done`] says so, it may exist although
    /// this fails, and its key is lost.
    fn add_token(&self, permit: Permit, user: &UserId) -> Result<NewToken, PlatformError>;

    /// Takes a token back. One that does not exist any more counts as taken back.
    fn revoke_token(&self, permit: Permit, user: &UserId, token: &TokenId) -> Result<(), PlatformError>;
}
