//! REST over the transport: the status decides, and a body may be JSON, bare text or nothing.

use std::time::Duration;

use serde::Deserialize;

use super::PlatformSettings;
use super::error::PlatformError;
use super::retry::{self, Retry};
use super::transport::{Answer, Method, Request, Transport};
use crate::stop::Stop;

/// Bare text is sent as JSON by some servers and as text by others.
const ACCEPT: &str = "application/json, text/plain;q=0.9, */*;q=0.8";

pub(crate) struct Rest {
    transport: Transport,
    stop: Stop,
    url: String,
}

/// One request, as its caller wants it made.
pub(crate) struct Call<'a> {
    pub(crate) operation: &'static str,
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) body: Option<&'a serde_json::Value>,
    pub(crate) timeout: Duration,
    pub(crate) retry: Retry,
}

/// What came back.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The body of an answer that says yes, which may be empty.
    Done(String),
    /// Anything else, for the product to explain.
    Refused(Answer),
}

impl Rest {
    pub(crate) fn new(settings: &PlatformSettings, concurrency: usize, stop: Stop) -> Self {
        Self { transport: Transport::new(settings, concurrency), stop, url: settings.url.clone() }
    }

    /// Makes a call. A page for people is an error whatever its status says: no route of an API answers with one.
    pub(crate) fn send(&self, call: &Call<'_>) -> Result<Reply, PlatformError> {
        let operation = call.operation;
        let body = call.body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| PlatformError::Abandoned { operation, why: error.to_string() })?;
        let (method, path, timeout) = (call.method, call.path, call.timeout);
        let request = Request { method, path, body: body.as_deref(), accept: ACCEPT, timeout };
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

    /// Reads a body that must be JSON of this shape.
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

    /// Checks the body of a write, of which nothing is needed: empty, or any JSON.
    pub(crate) fn read_nothing(&self, operation: &'static str, body: &str) -> Result<(), PlatformError> {
        if body.trim().is_empty() {
            return Ok(());
        }
        self.read::<serde::de::IgnoredAny>(operation, body).map(drop)
    }
}

/// A text as one segment of a path: what could end it or mean something is escaped.
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
