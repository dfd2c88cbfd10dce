//! What the registration check led to, in words.

use std::fmt;

use serde::{Serialize, Serializer};

/// What became of the registration with the platform. The texts say why.
#[derive(Debug)]
pub(crate) enum RegistrationReport {
    /// There is nothing to register.
    Known,
    Registered(String),
    /// The registration was due, and the key was refused.
    Refused(String),
    /// A pass would register. The text follows without a space, because it does not begin with a reason in every case.
    Planned(String),
    /// The platform does not say who is registered.
    Unknown(String),
}

impl RegistrationReport {
    /// Whether the table shows it.
    pub(super) fn is_news(&self) -> bool {
        matches!(self, Self::Registered(_) | Self::Refused(_) | Self::Planned(_))
    }
}

impl fmt::Display for RegistrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known => f.write_str("known"),
            Self::Registered(why) => write!(f, "registered: {why}"),
            Self::Refused(why) => write!(f, "not registered: {why}"),
            Self::Planned(text) => write!(f, "to register{text}"),
            Self::Unknown(why) => write!(f, "cannot be told: {why}"),
        }
    }
}

impl Serialize for RegistrationReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
