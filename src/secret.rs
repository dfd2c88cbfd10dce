//! The one type that carries a secret.
//!
//! Its `Debug` and `Display` redact, and its memory is wiped on drop. The value is readable only through
//! [`Secret::expose`], so that a search for that word shows every place that reads one.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

/// A value that must not be shown: a token, a password, a decrypted or sensitive variable.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of `value`, so that the caller keeps no copy.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The clear value, for the one call that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the value is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first characters of a token, with which an operator can find out which token was refused. These are at most
    /// four, and at most a quarter of the token. `known_prefix` is the beginning of every token of that product; it is
    /// shown in addition, because it is no secret.
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

/// JSON with secrets in it. All its texts are wiped on drop.
pub(crate) struct SecretJson(Value);

impl SecretJson {
    pub(crate) fn new(value: Value) -> Self {
        Self(value)
    }
}

impl Deref for SecretJson {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

impl Drop for SecretJson {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
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
    use serde_json::json;

    use super::{Secret, wipe};

    #[test]
    fn all_texts_of_json_with_secrets_are_wiped() {
        let mut value = json!({ "data": { "a": "hunter2" }, "list": [{ "b": "hunter2" }, "hunter2"], "number": 1 });
        wipe(&mut value);
        assert_eq!(value, json!({ "data": { "a": "" }, "list": [{ "b": "" }, ""], "number": 1 }));
    }

    #[test]
    fn neither_debug_nor_display_shows_the_value() {
        let secret = Secret::new("hunter2-hunter2".to_owned());
        assert!(!format!("{secret:?} {secret} {:#?}", Some(&secret)).contains("hunter2"));
    }

    // Shows what README says under "What an attacker gains": "the first characters of a refused token".
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
