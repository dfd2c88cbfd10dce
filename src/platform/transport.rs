//! HTTP to a platform: one agent, one request, one answer, whatever its status. No cookies, no redirects.

use std::time::Duration;

use ureq::RequestBuilder;
use ureq::http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

use super::PlatformSettings;
use crate::model::Cure;
use crate::secret::Secret;

/// As every request names us.
pub(crate) const USER_AGENT: &str = concat!("xtm-reconcile/", env!("CARGO_PKG_VERSION"));
/// Largest answer that is read, in bytes: 5,000 connectors with large values fit.
const ANSWER_MAX: u64 = 256 * 1024 * 1024;

/// A client for one platform. It sends each request once; `retry` sends it again.
pub(crate) struct Transport {
    agent: ureq::Agent,
    url: String,
    authorization: Secret,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Put,
    Post,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    /// Appended to the platform's URL; begins with a slash, and its segments are safe.
    pub(crate) path: &'a str,
    /// JSON; a GET sends none.
    pub(crate) body: Option<&'a [u8]>,
    /// Content types that are understood, as the header `Accept` has them.
    pub(crate) accept: &'static str,
    /// For the whole request, from connecting to the last byte of the answer.
    pub(crate) timeout: Duration,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) location: String,
    /// The wait that the server asks for before the next request.
    pub(crate) retry_after: Option<Duration>,
    /// What is not UTF-8 in it is replaced. Empty when the answer is a refusal whose body did not come.
    pub(crate) body: String,
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// There is no connection, or it broke before an answer began.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// The platform.
        url: String,
        /// The transport's words.
        why: String,
    },
    /// The name was not resolved, or the connection not made, in time.
    #[error("{url} cannot be reached: connecting took too long")]
    ConnectTimeout {
        /// The platform.
        url: String,
    },
    /// The proxy refuses to connect to the platform.
    #[error("the proxy does not connect to {url}: {why}")]
    Proxy {
        /// The platform.
        url: String,
        /// The proxy's words.
        why: String,
    },
    /// The answer did not end in time.
    #[error("{url} did not answer within {} s", .after.as_secs_f32())]
    Timeout {
        /// The platform.
        url: String,
        /// The limit.
        after: Duration,
    },
    /// The server's certificate is not trusted, or the server does not speak TLS.
    #[error("TLS with {url} failed: {why}")]
    Tls {
        /// The platform.
        url: String,
        /// The library's words.
        why: String,
    },
    /// The connection ended within the answer.
    #[error("the answer of {url} was cut off: {why}")]
    Truncated {
        /// The platform.
        url: String,
        /// The transport's words.
        why: String,
    },
}

impl TransportError {
    /// What the operator can do about it.
    #[must_use]
    pub fn cure(&self) -> Cure {
        Cure(match self {
            Self::Unreachable { .. } => "see that the platform is up, and that P__URL and the proxy settings are right",
            Self::ConnectTimeout { .. } => {
                "see that the platform is up, and that P__URL and the proxy settings are right, or raise P__CONNECT_TIMEOUT"
            }
            Self::Timeout { .. } => "see why the platform is slow, or raise P__REQUEST_TIMEOUT or P__PULL_TIMEOUT",
            Self::Proxy { .. } => {
                "see that P__HTTP_PROXY or P__HTTPS_PROXY has the right login, and that the proxy allows CONNECT to the platform's port"
            }
            Self::Tls { .. } => "set P__CA to the CA that signed the platform's certificate",
            Self::Truncated { .. } => {
                "look into the log of the platform and of any proxy before it; the next pass tries again"
            }
        })
    }
}

impl Transport {
    /// Builds the agent; nothing is sent yet. Connections are kept for `concurrency` requests at a time.
    pub(crate) fn new(settings: &PlatformSettings, concurrency: usize) -> Self {
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
        Self { agent, url: settings.url.clone(), authorization }
    }

    /// Sends one request, once. Any status is an answer; only what keeps an answer from coming is an error.
    pub(crate) fn send(&self, request: &Request<'_>) -> Result<Answer, TransportError> {
        let url = format!("{}{}", self.url, request.path);
        let sent = match request.method {
            Method::Get => self.dressed(self.agent.get(url), request).call(),
            Method::Put => with_body(self.dressed(self.agent.put(url), request), request.body),
            Method::Post => with_body(self.dressed(self.agent.post(url), request), request.body),
        };
        let response = sent.map_err(|error| self.error(error, request.timeout, false))?;
        self.answer(response, request.timeout)
    }

    fn dressed<B>(&self, builder: RequestBuilder<B>, request: &Request<'_>) -> RequestBuilder<B> {
        let builder = builder.config().timeout_global(Some(request.timeout)).build();
        builder.header("Authorization", self.authorization.expose()).header("Accept", request.accept)
    }

    fn answer(&self, mut response: Response<ureq::Body>, timeout: Duration) -> Result<Answer, TransportError> {
        let status = response.status();
        let (location, content_type) = (header(response.headers(), LOCATION), header(response.headers(), CONTENT_TYPE));
        let retry_after = header(response.headers(), RETRY_AFTER).trim().parse().ok().map(Duration::from_secs);
        let read = response.body_mut().with_config().limit(ANSWER_MAX).lossy_utf8(true).read_to_string();
        let body = match read {
            Ok(body) => body,
            Err(error) if status.is_success() => return Err(self.error(error, timeout, true)),
            // The status says enough.
            Err(_) => String::new(),
        };
        Ok(Answer { status: status.as_u16(), content_type, location, retry_after, body })
    }

    fn error(&self, error: ureq::Error, after: Duration, within_answer: bool) -> TransportError {
        let url = self.url.clone();
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                TransportError::ConnectTimeout { url }
            }
            ureq::Error::ConnectProxyFailed(why) => TransportError::Proxy { url, why },
            ureq::Error::Timeout(_) => TransportError::Timeout { url, after },
            ureq::Error::Rustls(error) => TransportError::Tls { url, why: error.to_string() },
            ureq::Error::Tls(why) => TransportError::Tls { url, why: why.to_owned() },
            // rustls errors also come wrapped in an I/O error.
            ureq::Error::Io(error) if is_tls(&error) => TransportError::Tls { url, why: error.to_string() },
            other if within_answer => TransportError::Truncated { url, why: other.to_string() },
            other => TransportError::Unreachable { url, why: other.to_string() },
        }
    }
}

fn with_body(
    builder: RequestBuilder<ureq::typestate::WithBody>,
    body: Option<&[u8]>,
) -> Result<Response<ureq::Body>, ureq::Error> {
    match body {
        Some(body) => builder.content_type("application/json").send(body),
        None => builder.send_empty(),
    }
}

fn header(headers: &HeaderMap, name: HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some()
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
