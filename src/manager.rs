//! The identity of this program towards the platforms.

use crate::key::ManagerKey;
use crate::model::ManagerId;

/// The manager as which this program registers.
#[derive(Debug)]
pub struct Manager {
    pub id: ManagerId,
    pub name: String,
    /// The key pair with which the platforms encrypt secrets for this manager.
    pub key: ManagerKey,
    /// Whether the operator says that a key is meant to replace the registered one, so that it need not open any value
    /// that is listed.
    pub(crate) accept_new_key: bool,
}
