//! The one type that carries a secret.
//!
//! Its `Debug` and `Display` redact and its memory is wiped on drop. The value leaves through [`Secret::expose`] alone,
//! so that searching for that word shows every place where one does.

use std::fmt;

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// A value that must never be shown: a token, a password, a decrypted or sensitive variable.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of `value`; the caller keeps no copy.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The clear value, for the one call that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first characters of a token, as an operator needs them to tell which token was refused:
    /// at most four, and never more than a quarter of it. `known_prefix` is what every token of that product begins with:
    /// it tells nothing, and is shown as it is.
    #[must_use]
    pub fn hint(&self, known_prefix: &str) -> String {
        let (prefix, rest) = match self.0.strip_prefix(known_prefix) {
            Some(rest) => (known_prefix, rest),
            None => ("", self.0.as_str()),
        };
        let shown: String = rest.chars().take((rest.chars().count() / 4).min(4)).collect();
        format!("{prefix}{shown}…")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn neither_debug_nor_display_shows_the_value() {
        let secret = Secret::new("hunter2-hunter2".to_owned());
        assert!(!format!("{secret:?} {secret} {:#?}", Some(&secret)).contains("hunter2"));
    }

    #[test]
    fn a_hint_shows_at_most_a_quarter_of_a_token() {
        assert_eq!(Secret::new("abc".to_owned()).hint(""), "…");
        assert_eq!(Secret::new("abcdefgh".to_owned()).hint(""), "ab…");
        assert_eq!(Secret::new("12345678-1234-1234-1234-123456789abc".to_owned()).hint(""), "1234…");
        assert_eq!(
            Secret::new("flgrn_octi_tkn_abcdefghijklmnop".to_owned()).hint("flgrn_octi_tkn_"),
            "flgrn_octi_tkn_abcd…"
        );
    }
}
