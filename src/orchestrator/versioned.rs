//! Encodes what a pass remembers as text for a label or an annotation: small JSON with the version of its format.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of the format. Text of any other version is not read.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    #[serde(flatten)]
    value: T,
}

/// Encodes a value as text.
pub(super) fn encode<T: Serialize>(value: T) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Versioned { v: VERSION, value })
}

/// Decodes the value of a text. The error says why the text cannot be read.
pub(super) fn decode<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Head {
        v: u32,
    }
    let head: Head = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if head.v != VERSION {
        return Err(format!("it has version {}, this program reads {VERSION}", head.v));
    }
    let versioned: Versioned<T> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(versioned.value)
}
