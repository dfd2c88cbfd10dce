//! Opens the envelopes in which the platforms send secrets (contracts 2): `version ‖ RSA(AES key ‖ IV) ‖ AES-256-GCM
//! ciphertext ‖ tag`.

use aes_gcm::aead::Aead;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rsa::{Oaep, Pkcs1v15Encrypt};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::key::ManagerKey;
use crate::secret::Secret;

/// Bytes of the AES key.
const AES_KEY: usize = 32;
/// Bytes of the AES-GCM nonce.
const IV: usize = 12;
/// Bytes of the AES-GCM tag.
const TAG: usize = 16;

/// Bytes of the smallest envelope, which is that of an empty text for a key of 2048 bits.
const LEAST: usize = 1 + 2048 / 8 + TAG;

/// Why an envelope cannot be opened. Failures with the same cure are not distinguished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The text is not base64.
    #[error("it is not base64: type the value again on the platform")]
    NotBase64,
    /// It is shorter than the smallest envelope.
    #[error(
        "it has {got} bytes, an envelope for this key has at least {least}: it is damaged or was encrypted for another key; type the value again on the platform"
    )]
    TooShort { got: usize, least: usize },
    /// Its version byte is unknown.
    #[error("envelope version {0} is unknown; 1 and 2 are: a newer xtm-reconcile may read it")]
    UnknownVersion(u8),
    /// The RSA part cannot be decrypted.
    #[error(
        "it was encrypted for another key than this one ({0}), or is damaged: type the value again on the platform"
    )]
    WrongKey(String),
    /// The tag does not match the content.
    #[error("it is damaged: type the value again on the platform")]
    Damaged,
    /// The clear text is not UTF-8.
    #[error("its clear text is not UTF-8: type the value again on the platform")]
    NotUtf8,
}

impl EnvelopeError {
    /// Whether the envelope was encrypted for this key, as far as the failure shows it. `None` when it shows nothing.
    #[must_use]
    pub fn was_for_this_key(&self) -> Option<bool> {
        match self {
            // The RSA part was opened, and what it holds is broken.
            Self::Damaged | Self::NotUtf8 => Some(true),
            Self::WrongKey(_) => Some(false),
            // It is long enough for a smaller key.
            Self::TooShort { got, .. } if *got >= LEAST => Some(false),
            Self::TooShort { .. } | Self::NotBase64 | Self::UnknownVersion(_) => None,
        }
    }
}

/// Opens one envelope. This takes about 13 ms of CPU time with a key of 4096 bits.
pub fn open(key: &ManagerKey, text: &str) -> Result<Secret, EnvelopeError> {
    let bytes = STANDARD.decode(text.trim()).map_err(|_| EnvelopeError::NotBase64)?;
    let least = 1 + key.modulus_bytes() + TAG;
    let too_short = EnvelopeError::TooShort { got: bytes.len(), least };
    let Some((version, rest)) = bytes.split_first() else { return Err(too_short) };
    if !matches!(version, 1 | 2) {
        return Err(EnvelopeError::UnknownVersion(*version));
    }
    if bytes.len() < least {
        return Err(too_short);
    }
    let (wrapped, sealed) = rest.split_at_checked(key.modulus_bytes()).ok_or(too_short)?;
    let opened = match version {
        1 => key.private().decrypt(Pkcs1v15Encrypt, wrapped),
        _ => key.private().decrypt(Oaep::new::<Sha256>(), wrapped),
    };
    let wrong_key = || EnvelopeError::WrongKey(key.fingerprint.clone());
    let opened = Zeroizing::new(opened.map_err(|_| wrong_key())?);
    if opened.len() != AES_KEY + IV {
        return Err(wrong_key());
    }
    let (aes_key, iv) = opened.split_at_checked(AES_KEY).ok_or_else(wrong_key)?;
    let cipher = Aes256Gcm::new_from_slice(aes_key).map_err(|_| wrong_key())?;
    let clear = cipher.decrypt(Nonce::from_slice(iv), sealed).map_err(|_| EnvelopeError::Damaged)?;
    String::from_utf8(clear).map(Secret::new).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        EnvelopeError::NotUtf8
    })
}
