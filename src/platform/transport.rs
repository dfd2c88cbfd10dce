//! Sends HTTP requests to a platform or to XTM One. Every answer counts as one, whatever its status. Cookies are not kept
//! and redirects are not followed.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use ureq::RequestBuilder;
use ureq::http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use zeroize::Zeroizing;

use super::resolver::BelievingResolver;
use crate::holder;
use crate::model::Cure;
use crate::secret::Secret;

/// The user agent of every request.
pub(crate) const USER_AGENT: &str = concat!("xtm-reconcile/", env!("CARGO_PKG_VERSION"));
/// The largest answer that is read, in bytes. 5,000 connectors with large values fit into it.
const ANSWER_MAX: u64 = 256 * 1024 * 1024;

/// One server, and how to reach it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// It has no trailing slash.
    pub url: String,
    pub token: Secret,
    /// Whether any certificate is accepted.
    pub insecure: bool,
    /// PEM texts of the CAs to trust instead of the public ones. Empty trusts the public ones.
    pub ca: Vec<String>,
    /// PEM text of the proxy's CA, which is trusted in addition.
    pub proxy_ca: Option<String>,
    /// The URL of the proxy to go through. `None` goes directly.
    pub proxy: Option<Secret>,
    /// The hosts that are reached without the proxy.
    pub no_proxy: Vec<String>,
    pub connect_timeout: Duration,
}

impl Endpoint {
    /// Where requests come from, so that an operator finds a refused one in the server's log: this machine, and the
    /// proxy when there is one.
    pub(crate) fn origin(&self) -> String {
        let host = holder::host();
        match proxy(self) {
            Some(proxy) => format!("{host} through the proxy {}:{}", proxy.host(), proxy.port()),
            None => host,
        }
    }
}

/// A client for one server. It sends each request once. The module `retry` repeats requests.
pub(crate) struct Transport {
    agent: ureq::Agent,
    resolver: BelievingResolver,
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
    /// The path below the platform's URL. It begins with a slash, and its segments are escaped.
    pub(crate) path: &'a str,
    /// The JSON to send. A GET sends none.
    pub(crate) body: Option<&'a [u8]>,
    /// Whether the server gets the token. A probe that needs none sends none.
    pub(crate) authorized: bool,
    /// The header `Accept`: the content types that the caller understands.
    pub(crate) accept: &'static str,
    /// The longest time for the whole request, from connecting to the last byte of the answer.
    pub(crate) timeout: Duration,
}

#[derive(Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) location: String,
    /// The wait that the server asks for before the next request. `None` when it asks for none.
    pub(crate) retry_after: Option<Duration>,
    /// Bytes that are not UTF-8 are replaced. Empty when the answer is a refusal and its body was not received. It is
    /// wiped in the end, because it may hold a new token.
    pub(crate) body: Zeroizing<String>,
}

impl fmt::Debug for Answer {
    /// Leaves out the body, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, content_type, location, .. } = self;
        write!(f, "HTTP {status} {content_type} {location}")
    }
}

/// Why a request got no answer. `url` names the platform, and `why` has the words of the library or the proxy.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection could be made, or it broke before an answer began.
    #[error("{url} cannot be reached: {why}")]
    Unreachable { url: String, why: String },
    /// The name could not be resolved or the connection made in time.
    #[error("{url} cannot be reached: connecting took too long")]
    ConnectTimeout { url: String },
    /// The proxy refuses to connect to the platform.
    #[error("the proxy does not connect to {url}: {why}")]
    Proxy { url: String, why: String },
    /// The answer did not end in time.
    #[error("{url} did not answer within {} s", .after.as_secs_f32())]
    Timeout { url: String, after: Duration },
    /// The server's certificate is not trusted, or the server does not speak TLS.
    #[error("TLS with {url} failed: {why}")]
    Tls {
        url: String,
        why: String,
        /// Whether it failed before the request was sent.
        before_request: bool,
    },
    /// The connection ended before the answer was complete.
    #[error("the answer of {url} was cut off: {why}")]
    Truncated { url: String, why: String },
}

impl TransportError {
    /// Whether the server may have got the whole request.
    pub(crate) fn may_be_done(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Truncated { .. } => true,
            Self::Tls { before_request, .. } => !before_request,
            Self::ConnectTimeout { .. } | Self::Proxy { .. } => false,
        }
    }

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
    /// Makes the client without sending anything. Connections are kept open for `concurrency` requests at a time.
    pub(crate) fn new(settings: &Endpoint, concurrency: usize) -> Self {
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
            .build();
        let resolver = BelievingResolver::default();
        let agent = ureq::Agent::with_parts(agent, DefaultConnector::default(), resolver.clone());
        let authorization = Secret::new(format!("Bearer {}", settings.token.expose()));
        Self { agent, resolver, url: settings.url.clone(), authorization }
    }

    /// Sends a request once. Any status is an answer. It fails only when no answer comes.
    pub(crate) fn send(&self, request: &Request<'_>) -> Result<Answer, TransportError> {
        let url = format!("{}{}", self.url, request.path);
        let sent = match request.method {
            Method::Get => self.dressed(self.agent.get(url), request).call(),
            Method::Put => with_body(self.dressed(self.agent.put(url), request), request.body),
            Method::Post => with_body(self.dressed(self.agent.post(url), request), request.body),
        };
        let response = sent.map_err(|error| {
            self.resolver.forget();
            self.error(error, request.timeout, false)
        })?;
        self.answer(response, request.timeout)
    }

    fn dressed<B>(&self, builder: RequestBuilder<B>, request: &Request<'_>) -> RequestBuilder<B> {
        let builder = builder.config().timeout_global(Some(request.timeout)).build();
        let builder = builder.header("Accept", request.accept);
        if request.authorized { builder.header("Authorization", self.authorization.expose()) } else { builder }
    }

    fn answer(&self, mut response: Response<ureq::Body>, timeout: Duration) -> Result<Answer, TransportError> {
        let status = response.status();
        let (location, content_type) = (header(response.headers(), LOCATION), header(response.headers(), CONTENT_TYPE));
        let retry_after = wait(&header(response.headers(), RETRY_AFTER), Timestamp::now());
        let read = response.body_mut().with_config().limit(ANSWER_MAX).lossy_utf8(true).read_to_string();
        let body = match read {
            Ok(body) => body,
            Err(error) if status.is_success() => return Err(self.error(error, timeout, true)),
            // The status of a refusal says enough even without its body.
            Err(_) => String::new(),
        };
        Ok(Answer { status: status.as_u16(), content_type, location, retry_after, body: Zeroizing::new(body) })
    }

    fn error(&self, error: ureq::Error, after: Duration, within_answer: bool) -> TransportError {
        let url = self.url.clone();
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                TransportError::ConnectTimeout { url }
            }
            ureq::Error::ConnectProxyFailed(why) => TransportError::Proxy { url, why },
            ureq::Error::Timeout(_) => TransportError::Timeout { url, after },
            ureq::Error::Rustls(error) => {
                TransportError::Tls { url, why: error.to_string(), before_request: is_handshake(&error) }
            }
            ureq::Error::Tls(why) => TransportError::Tls { url, why: why.to_owned(), before_request: true },
            // An error of rustls may also be inside an I/O error.
            ureq::Error::Io(error) if tls(&error).is_some() => {
                let before_request = tls(&error).is_some_and(is_handshake);
                TransportError::Tls { url, why: error.to_string(), before_request }
            }
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

/// Reads the header `Retry-After`, which has seconds or a date (RFC 9110, section 10.2.3).
fn wait(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

fn tls(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether this error ends a handshake, before the request is sent.
fn is_handshake(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(_)
            | rustls::Error::InvalidMessage(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::UnsupportedNameType
            | rustls::Error::PeerIncompatible(_)
    )
}

/// The CAs to trust. `None` means only the public ones.
fn roots(settings: &Endpoint) -> Option<Vec<Certificate<'static>>> {
    let proxy = certificates(settings.proxy_ca.as_slice());
    let mut roots = certificates(&settings.ca);
    if roots.is_empty() {
        if proxy.is_empty() {
            return None;
        }
        // The proxy may decrypt this connection or pass it on unchanged, so the public CAs are needed too.
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

/// The proxy of the settings, whose URL the configuration has checked. Without one, the proxy variables of the process
/// are ignored, as the daemon does.
fn proxy(settings: &Endpoint) -> Option<ureq::Proxy> {
    let parsed = ureq::Proxy::new(settings.proxy.as_ref()?.expose()).ok()?;
    let mut builder = ureq::Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(user) = parsed.username() {
        builder = builder.username(user);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    for host in &settings.no_proxy {
        // A name also stands for all hosts below it, as in curl and in Python's requests, which connectors use.
        builder = builder.no_proxy(host);
        if !host.starts_with(['.', '*']) {
            builder = builder.no_proxy(&format!(".{host}"));
        }
    }
    builder.build().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Endpoint, Method, Request, Transport, TransportError, wait};
    use crate::secret::Secret;

    #[test]
    fn a_server_that_does_not_answer_is_looked_up_again() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let endpoint = Endpoint {
            url: format!("http://{closed}"),
            token: Secret::new("token".to_owned()),
            insecure: false,
            ca: vec![],
            proxy_ca: None,
            proxy: None,
            no_proxy: vec![],
            connect_timeout: Duration::from_secs(5),
        };
        let transport = Transport::new(&endpoint, 1);
        let timeout = Duration::from_secs(5);
        let request = Request { method: Method::Get, path: "/", body: None, authorized: false, accept: "*/*", timeout };
        let result = transport.send(&request);
        assert!(matches!(result, Err(TransportError::Unreachable { .. })), "{result:?}");
        assert!(transport.resolver.answers().is_empty());
    }

    #[test]
    fn a_server_asks_for_a_wait_in_seconds_or_until_a_date() {
        let now = "2026-11-25T10:00:00Z".parse().unwrap();
        assert_eq!(wait("7", now), Some(Duration::from_secs(7)));
        assert_eq!(wait("Wed, 25 Nov 2026 10:01:30 GMT", now), Some(Duration::from_secs(90)));
        assert_eq!(wait("Wed, 25 Nov 2026 09:00:00 GMT", now), Some(Duration::ZERO), "the date has passed");
        assert_eq!(wait("soon", now), None);
    }
}
