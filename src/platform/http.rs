//! HTTP to a platform: one agent, no cookies, retries of idempotent requests inside the pass deadline.

use std::time::Duration;

use ureq::http::StatusCode;
use ureq::http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

use super::PlatformSettings;
use crate::secret::Secret;
use crate::stop::Stop;

/// As every request names us.
pub const USER_AGENT: &str = concat!("xtm-reconcile/", env!("CARGO_PKG_VERSION"));
/// Attempts in all, for an idempotent request.
const ATTEMPTS: u32 = 4;
/// Wait before the second attempt; doubles with each one.
const BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait that a server may ask for with Retry-After.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);
/// Largest answer that is read, in bytes: 5,000 connectors with large values fit.
const ANSWER_MAX: u64 = 256 * 1024 * 1024;
/// Characters of an unexpected answer that are shown.
const EXCERPT: usize = 120;

/// A client for one platform.
pub struct Http {
    agent: ureq::Agent,
    url: String,
    authorization: Secret,
    stop: Stop,
}

/// Why no usable answer came.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection, or it broke.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// Whom.
        url: String,
        /// The transport's words.
        why: String,
    },
    /// The proxy does not let it through.
    #[error("the proxy does not connect to {url}: {why}")]
    Proxy {
        /// Whom.
        url: String,
        /// The proxy's words.
        why: String,
    },
    /// Too slow.
    #[error("{url} did not answer within {} s", .after.as_secs_f32())]
    Timeout {
        /// Whom.
        url: String,
        /// The limit.
        after: Duration,
    },
    /// The server's certificate is not trusted, or there is no TLS.
    #[error("TLS with {url} failed: {why}")]
    Tls {
        /// Whom.
        url: String,
        /// The library's words.
        why: String,
    },
    /// A status other than success.
    #[error("{url} answered HTTP {status}: {excerpt}")]
    Status {
        /// Whom.
        url: String,
        /// The status.
        status: u16,
        /// How the body begins, or where it redirects.
        excerpt: String,
    },
    /// The connection ended within the answer.
    #[error("the answer of {url} was cut off: {why}")]
    Truncated {
        /// Whom.
        url: String,
        /// The transport's words.
        why: String,
    },
    /// Not what the protocol says.
    #[error("{url} answered with {kind} instead of JSON: {excerpt}")]
    NotJson {
        /// Whom.
        url: String,
        /// What came.
        kind: &'static str,
        /// How it begins, or what the parser said.
        excerpt: String,
    },
}

impl HttpError {
    /// What the operator can do about it.
    #[must_use]
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => {
                "see that the platform is up, and that OPENCTI__URL and the proxy settings are right"
            }
            Self::Timeout { .. } => {
                "see why the platform is slow, or raise OPENCTI__REQUEST_TIMEOUT or OPENCTI__PULL_TIMEOUT"
            }
            Self::Proxy { .. } => {
                "see that OPENCTI__HTTP_PROXY or OPENCTI__HTTPS_PROXY has the right login, and that the proxy allows CONNECT to the platform's port"
            }
            Self::Tls { .. } => "set OPENCTI__CA to the CA that signed the platform's certificate",
            Self::Status { status: 300..=399, .. } => "set OPENCTI__URL to where it redirects",
            Self::Status { status: 404, .. } | Self::NotJson { .. } => {
                "see that OPENCTI__URL is the platform itself, with its base path, and not a login page or proxy"
            }
            Self::Status { status: 403 | 407, .. } => {
                "see what refuses it: a proxy or firewall before the platform, for the platform itself never answers so"
            }
            Self::Status { status: 413, .. } => {
                "lower MANAGER__LOGS_TAIL, or let the proxy before the platform take larger requests"
            }
            Self::Status { .. } | Self::Truncated { .. } => {
                "look into the log of the platform and of any proxy before it; the next pass tries again"
            }
        }
    }

    /// Whether asking again may help.
    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Truncated { .. } => true,
            Self::Status { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            // Asking a proxy again with a wrong login could lock the account.
            Self::Timeout { .. } | Self::Tls { .. } | Self::NotJson { .. } | Self::Proxy { .. } => false,
        }
    }
}

impl Http {
    /// Builds the agent. Connections are kept for `concurrency` requests at a time.
    pub fn new(settings: &PlatformSettings, concurrency: usize, stop: Stop) -> Self {
        let mut tls = TlsConfig::builder().disable_verification(settings.insecure);
        if let Some(roots) = roots(settings) {
            tls = tls.root_certs(RootCerts::new_with_certs(&roots));
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(USER_AGENT)
            .timeout_connect(Some(settings.connect_timeout))
            .tls_config(tls.build())
            .proxy(proxy(settings))
            .max_idle_connections(concurrency)
            .max_idle_connections_per_host(concurrency)
            .build()
            .new_agent();
        let authorization = Secret::new(format!("Bearer {}", settings.token.expose()));
        Self { agent, url: settings.url.clone(), authorization, stop }
    }

    /// POSTs JSON to `path` and gives the answer's body. The request must be idempotent: it may be sent again.
    pub fn post(&self, path: &str, body: &[u8], timeout: Duration) -> Result<String, HttpError> {
        let url = format!("{}{path}", self.url);
        let mut wait = BACKOFF;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (error, asked) = match self.attempt(&url, body, timeout) {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let jittered = wait.mul_f64(0.5 + fastrand::f64());
            let pause = asked.map_or(jittered, |asked| asked.max(jittered));
            if !error.is_transient() || attempt >= ATTEMPTS || pause > RETRY_AFTER_MAX || !self.stop.sleep(pause) {
                return Err(error);
            }
            tracing::debug!(attempt, error = %error, "asking the platform again");
            wait *= 2;
        }
    }

    /// One request; a failure comes with the wait that the server asked for.
    fn attempt(&self, url: &str, body: &[u8], timeout: Duration) -> Result<String, (HttpError, Option<Duration>)> {
        // A pass that is over still says what it did: its last calls get a moment.
        let timeout = timeout.min(self.stop.remaining().max(Duration::from_secs(5)));
        let request = self
            .agent
            .post(url)
            .config()
            .timeout_global(Some(timeout))
            .build()
            .header("Authorization", self.authorization.expose())
            .header("Accept", "application/json")
            .content_type("application/json");
        let failed = |error| (self.transport_error(error, timeout, false), None);
        let mut response = request.send(body).map_err(failed)?;
        let status = response.status();
        let headers = response.headers();
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let (location, kind, retry_after) = (text(LOCATION), text(CONTENT_TYPE), text(RETRY_AFTER));
        let read = response.body_mut().with_config().limit(ANSWER_MAX).lossy_utf8(true).read_to_string();
        let answer = match read {
            Ok(answer) => answer,
            Err(error) if status.is_success() => return Err((self.transport_error(error, timeout, true), None)),
            Err(_) => String::new(),
        };
        if !status.is_success() {
            let excerpt = if status.is_redirection() { format!("redirects to {location}") } else { excerpt(&answer) };
            let error = HttpError::Status { url: self.url.clone(), status: status.as_u16(), excerpt };
            let asked = retry_after.trim().parse().ok().map(Duration::from_secs);
            return Err((error, asked.filter(|_| may_ask(status))));
        }
        if kind.starts_with("text/html") || answer.trim_start().starts_with('<') {
            return Err((self.not_json("an HTML page", &answer), None));
        }
        Ok(answer)
    }

    fn not_json(&self, kind: &'static str, text: &str) -> HttpError {
        HttpError::NotJson { url: self.url.clone(), kind, excerpt: excerpt(text) }
    }

    /// For an answer that does not parse. What looks like JSON is not quoted: it may hold a connector's values.
    pub fn unparsable(&self, text: &str, error: &serde_json::Error) -> HttpError {
        match text.trim_start().chars().next() {
            None => self.not_json("nothing", ""),
            Some('{' | '[' | '"') => {
                self.not_json("broken JSON", &format!("line {} column {}", error.line(), error.column()))
            }
            Some(_) => self.not_json("something else", text),
        }
    }

    /// For JSON that is not what the protocol says.
    pub fn unexpected(&self, error: &serde_json::Error) -> HttpError {
        self.not_json("other JSON than the protocol's", &shape_fault(error))
    }

    fn transport_error(&self, error: ureq::Error, after: Duration, within_answer: bool) -> HttpError {
        let url = self.url.clone();
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                HttpError::Unreachable { url, why: "connecting took too long (OPENCTI__CONNECT_TIMEOUT)".to_owned() }
            }
            ureq::Error::ConnectProxyFailed(why) => HttpError::Proxy { url, why },
            ureq::Error::Timeout(_) => HttpError::Timeout { url, after },
            ureq::Error::Rustls(error) => HttpError::Tls { url, why: error.to_string() },
            ureq::Error::Tls(why) => HttpError::Tls { url, why: why.to_owned() },
            // rustls errors also come wrapped in an I/O error.
            ureq::Error::Io(error) if is_tls(&error) => HttpError::Tls { url, why: error.to_string() },
            other if within_answer => HttpError::Truncated { url, why: other.to_string() },
            other => HttpError::Unreachable { url, why: other.to_string() },
        }
    }
}

fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some()
}

fn may_ask(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// The beginning of a text on one line, without control characters.
fn excerpt(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = words.chars().take(EXCERPT).collect();
    if cut.is_empty() { "(empty)".to_owned() } else { cut }
}

/// What is wrong with the shape of a value, without the value: serde's messages quote it, and it may be a secret.
pub fn shape_fault(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let known = ["missing field", "duplicate field", "unknown field"].iter().any(|start| message.starts_with(start));
    // The last one: the value may hold the word itself.
    match message.rsplit_once("expected ") {
        _ if known => message,
        Some((_, expected)) if expected.starts_with("struct ") => "it is not an object".to_owned(),
        Some((_, expected)) => format!("expected {expected}"),
        None => format!("it does not fit at line {} column {}", error.line(), error.column()),
    }
}

/// What to trust, when that is not the public CAs alone.
fn roots(settings: &PlatformSettings) -> Option<Vec<Certificate<'static>>> {
    let proxy = certificates(settings.proxy_ca.as_slice());
    let mut roots = certificates(&settings.ca);
    if roots.is_empty() {
        if proxy.is_empty() {
            return None;
        }
        // The proxy may open this connection or pass it on.
        roots.extend(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|der| Certificate::from_der(der)));
    }
    roots.extend(proxy);
    Some(roots)
}

fn certificates(texts: &[String]) -> Vec<Certificate<'static>> {
    let items = texts.iter().flat_map(|pem| ureq::tls::parse_pem(pem.as_bytes()).collect::<Vec<_>>());
    items
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

/// The configuration has checked the URL. Without a proxy of ours, the process's variables are ignored, as the daemon does.
fn proxy(settings: &PlatformSettings) -> Option<ureq::Proxy> {
    let parsed = ureq::Proxy::new(settings.proxy.as_ref()?.expose()).ok()?;
    let mut builder = ureq::Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(user) = parsed.username() {
        builder = builder.username(user);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    for host in &settings.no_proxy {
        // As curl and Python's requests have it, which connectors use: a name also stands for what is below it.
        builder = builder.no_proxy(host);
        if !host.starts_with(['.', '*']) {
            builder = builder.no_proxy(&format!(".{host}"));
        }
    }
    builder.build().ok()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::{EXCERPT, excerpt, shape_fault};

    #[test]
    fn an_excerpt_is_one_short_printable_line() {
        assert_eq!(excerpt(" <html>\r\n\t<b>\u{1b}[31mno</b>\0 "), "<html> <b> [31mno</b>");
        assert_eq!(excerpt("\n"), "(empty)");
        assert_eq!(excerpt(&"ü".repeat(9999)).chars().count(), EXCERPT);
    }

    #[test]
    fn a_fault_of_shape_is_told_without_the_value_that_has_it() {
        #[derive(Deserialize, Debug)]
        #[expect(dead_code, reason = "read for its errors alone")]
        struct Wire {
            name: String,
            count: u8,
        }
        let fault = |json: &str| shape_fault(&serde_json::from_str::<Wire>(json).unwrap_err());
        assert!(fault(r#"{"name": "a"}"#).starts_with("missing field `count`"));
        for json in [
            r#"{"name": 47114711, "count": 1}"#,
            r#"{"name": "a", "count": "hunter2"}"#,
            r#"{"name": {"x": "hunter2"}, "count": 1}"#,
            r#"{"name": "a", "count": 47114711}"#,
            r#""expected hunter2""#,
        ] {
            let told = fault(json);
            assert!(!told.contains("hunter2") && !told.contains("4711"), "{json}: {told}");
        }
    }
}
