//! Who this program is to a platform.

use crate::key::ManagerKey;
use crate::model::ManagerId;

/// Who we are.
#[derive(Debug)]
pub struct Manager {
    /// `MANAGER__ID`.
    pub id: ManagerId,
    /// `MANAGER__NAME`.
    pub name: String,
    /// The key pair for secrets.
    pub key: ManagerKey,
}
