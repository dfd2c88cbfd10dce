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
}
