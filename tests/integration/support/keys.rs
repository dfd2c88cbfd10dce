//! The test-only RSA keys of `fixtures/keys`.

use std::path::PathBuf;

/// How a private key is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyForm {
    /// `BEGIN PRIVATE KEY`
    Pkcs8,
    /// `BEGIN RSA PRIVATE KEY`
    Pkcs1,
}

/// A private key that tests may show to anybody; there is one of 2048, 3072 and 4096 bits.
#[derive(Clone, Debug)]
pub(crate) struct TestKey {
    pub(crate) path: PathBuf,
    pub(crate) pem: String,
}

impl TestKey {
    #[track_caller]
    pub(crate) fn rsa(bits: u32, form: KeyForm) -> Self {
        let form = match form {
            KeyForm::Pkcs8 => "pkcs8",
            KeyForm::Pkcs1 => "pkcs1",
        };
        let path = super::repository().join(format!("fixtures/keys/test-only-rsa-{bits}.{form}.pem"));
        let pem = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, pem }
    }
}
