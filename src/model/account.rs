//! Ids of users and of their tokens, as the platform gives them.

use serde::{Deserialize, Serialize};

/// The platform's id of a user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub(crate) String);

/// The platform's id of a token. It opens nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub(crate) String);
