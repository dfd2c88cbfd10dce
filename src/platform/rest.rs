//! REST over HTTP. The status decides whether a call succeeded, and a body may be JSON, bare text or empty.

use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::PlatformError;
use super::retry::{self, Retry};
use super::transport::{Answer, Endpoint, Method, Request, Transport};
use crate::stop::Stop;

/// Some servers send bare text as JSON and others as text.
const ACCEPT: &str = "application/json, text/plain;q=0.9, */*;q=0.8";

pub(crate) struct Rest {
    transport: Transport,
    stop: Stop,
    url: String,
}

/// How a request is to be made.
pub(crate) struct Call<'a> {
    pub(crate) operation: &'static str,
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) body: Option<&'a serde_json::Value>,
    pub(crate) timeout: Duration,
    pub(crate) retry: Retry,
}

/// The answer to a call.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The call succeeded, with this body, which may be empty.
    Done(Zeroizing<String>),
    /// The platform refuses the call. The product explains the answer.
    Refused(Answer),
}

impl Rest {
    pub(crate) fn new(endpoint: &Endpoint, concurrency: usize, stop: Stop) -> Self {
        Self { transport: Transport::new(endpoint, concurrency), stop, url: endpoint.url.clone() }
    }

    /// Makes a call. An HTML page is an error whatever its status, because no route of the API answers with one.
    pub(crate) fn send(&self, call: &Call<'_>) -> Result<Reply, PlatformError> {
        let operation = call.operation;
        let body = call.body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| PlatformError::Abandoned { operation, why: error.to_string() })?;
        let (method, path, timeout) = (call.method, call.path, call.timeout);
        let request = Request { method, path, body: body.as_deref(), accept: ACCEPT, authorized: true, timeout };
        let answer = retry::send(&self.transport, &self.stop, call.retry, &request)
            .map_err(|source| PlatformError::Transport { operation, source })?;
        if !answer.is_success() {
            return Ok(Reply::Refused(answer));
        }
        if answer.is_html() {
            return Err(PlatformError::html(operation, &self.url, "the API's own answer", &answer));
        }
        Ok(Reply::Done(answer.body))
    }

    /// Reads a body, which must be JSON of the type `T`.
    pub(crate) fn read<'a, T: Deserialize<'a>>(
        &self,
        operation: &'static str,
        body: &'a str,
    ) -> Result<T, PlatformError> {
        serde_json::from_str(body).map_err(|error| {
            if error.is_data() {
                PlatformError::unexpected(operation, &self.url, &error)
            } else {
                PlatformError::unparsable(operation, &self.url, body, &error)
            }
        })
    }

    /// Checks the body of a write. It must be empty or JSON, and is not used.
    pub(crate) fn read_nothing(&self, operation: &'static str, body: &str) -> Result<(), PlatformError> {
        if body.trim().is_empty() {
            return Ok(());
        }
        self.read::<serde::de::IgnoredAny>(operation, body).map(drop)
    }
}

/// Makes one segment of a path from a text. Characters that could end the segment or have a meaning in a URL are
/// escaped.
pub(crate) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn a_segment_stays_one() {
        assert_eq!(segment("2cffad3a-0001-4078-b0e2-ef74274022c3"), "2cffad3a-0001-4078-b0e2-ef74274022c3");
        assert_eq!(segment("a/b?c#d é"), "a%2Fb%3Fc%23d%20%C3%A9");
    }
}
