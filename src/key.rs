//! The manager's RSA key pair: reading, checking, making.

use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use rsa::traits::PublicKeyParts;
use rsa::{RsaPrivateKey, RsaPublicKey};

use crate::model::short_hash;
use crate::secret::Secret;

/// Smallest modulus accepted, in bits.
const MIN_BITS: usize = 2048;

/// The private key, with what the platform gets of it.
pub struct ManagerKey {
    private: RsaPrivateKey,
    /// SPKI PEM: the form that OpenCTI and OpenAEV both take (contracts 2).
    pub public_pem: String,
    /// Tells one key from another.
    pub fingerprint: String,
}

impl std::fmt::Debug for ManagerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ManagerKey({})", self.fingerprint)
    }
}

/// Why a text is not a key that can be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A public key or a certificate, or a key of another algorithm.
    #[error("it holds a {0}, not an RSA private key")]
    WrongKind(String),
    /// Protected with a pass phrase.
    #[error("the key is protected with a pass phrase")]
    Encrypted,
    /// Not PEM at all, or damaged.
    #[error("it is not a PKCS#8 or PKCS#1 PEM private key")]
    NotPem,
    /// Not safe.
    #[error("the key has {0} bits, fewer than {MIN_BITS}")]
    TooSmall(usize),
    /// A number of the key is wrong.
    #[error("the key is not a valid RSA key")]
    Invalid,
}

impl KeyError {
    /// What to do about it.
    #[must_use]
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Encrypted => "remove the pass phrase with `openssl pkcs8 -in OLD -out NEW` and chmod 600 it",
            _ => "make one with `xtm-reconcile keygen --out FILE`",
        }
    }
}

impl ManagerKey {
    /// Reads a PEM text; line ends may be written as `\n`, as some environment files do.
    pub fn from_pem(pem: &Secret) -> Result<Self, KeyError> {
        let text = Secret::new(pem.expose().replace("\\n", "\n").trim().to_owned());
        let text = text.expose();
        let kind = text.split("-----BEGIN ").nth(1).and_then(|rest| rest.split("-----").next()).unwrap_or_default();
        let private = match kind {
            "PRIVATE KEY" => RsaPrivateKey::from_pkcs8_pem(text).map_err(|error| match error {
                rsa::pkcs8::Error::PublicKey(rsa::pkcs8::spki::Error::OidUnknown { oid }) => {
                    KeyError::WrongKind(format!("key of another algorithm ({oid})"))
                }
                _ => KeyError::NotPem,
            })?,
            "RSA PRIVATE KEY" if text.contains("ENCRYPTED") => return Err(KeyError::Encrypted),
            "RSA PRIVATE KEY" => RsaPrivateKey::from_pkcs1_pem(text).map_err(|_| KeyError::NotPem)?,
            "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
            "" => return Err(KeyError::NotPem),
            other => return Err(KeyError::WrongKind(other.to_ascii_lowercase())),
        };
        let bits = private.n().bits();
        if bits < MIN_BITS {
            return Err(KeyError::TooSmall(bits));
        }
        Self::new(private)
    }

    /// Makes a new pair. Takes seconds for 4096 bits.
    pub fn generate(bits: usize) -> Result<Self, KeyError> {
        RsaPrivateKey::new(&mut rsa::rand_core::OsRng, bits).map_err(|_| KeyError::Invalid).and_then(Self::new)
    }

    fn new(private: RsaPrivateKey) -> Result<Self, KeyError> {
        let public_pem =
            RsaPublicKey::from(&private).to_public_key_pem(LineEnding::LF).map_err(|_| KeyError::Invalid)?;
        let fingerprint = short_hash(&public_pem, 16);
        Ok(Self { private, public_pem, fingerprint })
    }

    /// PKCS#8 PEM.
    pub fn private_pem(&self) -> Result<Secret, KeyError> {
        let pem = self.private.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Invalid)?;
        Ok(Secret::new(pem.as_str().to_owned()))
    }

    /// For opening envelopes.
    #[must_use]
    pub fn private(&self) -> &RsaPrivateKey {
        &self.private
    }

    /// Size of the modulus in bytes: the length of the RSA part of an envelope.
    #[must_use]
    pub fn modulus_bytes(&self) -> usize {
        self.private.size()
    }
}
