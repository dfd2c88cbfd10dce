//! The enterprise licence of a platform, as the operator gives it. Pure.

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use x509_cert::Certificate;
use x509_cert::der::DecodePem as _;

use crate::secret::Secret;

const BEGIN: &str = "-----BEGIN ";
const CERTIFICATE: &str = "CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A licence, which is an X.509 certificate.
#[derive(Debug, Clone)]
pub(crate) struct Licence {
    pub(crate) pem: Secret,
    pub(crate) expires: Timestamp,
}

impl Licence {
    /// Reads a licence and keeps its certificates alone. Fails with what is wrong, without quoting the text: a text that
    /// also holds something else, such as a private key, was not meant to be sent.
    pub(crate) fn read(text: &Secret) -> Result<Self, &'static str> {
        let text = text.expose().replace("\\n", "\n");
        let (mut blocks, mut first) = (String::new(), None);
        let mut rest = text.as_str();
        while let Some((_, begun)) = rest.split_once(BEGIN) {
            if !begun.starts_with(CERTIFICATE) {
                return Err("it holds something else beside a certificate, which must not leave this machine");
            }
            let (body, after) = begun.split_once(END).ok_or("its certificate has no end")?;
            let block = format!("{BEGIN}{body}{END}\n");
            let certificate = Certificate::from_pem(&block).map_err(|_| "it holds no certificate that can be read")?;
            first.get_or_insert(certificate);
            blocks.push_str(&block);
            rest = after;
        }
        let first = first.ok_or("it holds no PEM certificate")?;
        let expires = first.tbs_certificate.validity.not_after.to_unix_duration();
        let expires = i64::try_from(expires.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok());
        let expires = expires.ok_or("its certificate has a date that cannot be")?;
        Ok(Self { pem: Secret::new(blocks.trim_end().to_owned()), expires })
    }
}

impl Serialize for Licence {
    /// Shows when it expires, and not the certificate.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.expires.serialize(serializer)
    }
}
