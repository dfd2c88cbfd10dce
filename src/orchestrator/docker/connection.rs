//! Connects to an engine: agrees with it on a version of the API, puts that version into the path of every request, and
//! trusts the certificates that the settings name.
//!
//! The client library takes a version and then leaves it out of nearly every path, because it joins an absolute path to
//! the prefix (its issue 736). An engine answers such a request in the newest version that it knows, so that its upgrade
//! could change the meaning of a request. So the version is put into the path here, whatever the library does.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as EngineError;
use bollard::models::SystemVersion;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker as Engine};
use bytes::Bytes;
use http::Uri;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyperlocal::UnixConnector;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::{ENGINE_TIMEOUT_S, Endpoint, TlsFiles, UNREACHABLE, place, words};
use crate::model::Cure;
use crate::orchestrator::OrchestratorError;

/// Longest wait for the engine's first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection without a request is kept. It is short, so that what stands before an engine rarely closes one first.
const KEPT_IDLE: Duration = Duration::from_secs(1);
/// The oldest version that has everything that is used here. Docker 20.10 speaks it.
const OLDEST: ApiVersion = ApiVersion { major: 1, minor: 41 };
/// The newest version that the tests have seen a real engine speak, which is Docker 28. Newer engines speak it as well.
const NEWEST: ApiVersion = ApiVersion { major: 1, minor: 51 };
const ENGINE_TOO_OLD: Cure = Cure("upgrade the engine to Docker 20.10 or later");
const ENGINE_TOO_NEW: Cure = Cure("upgrade this program");
const NO_ENGINE: Cure = Cure("see that DOCKER_HOST names a Docker engine");
const CERTIFICATES: Cure =
    Cure("put the engine's ca.pem and a matching pair of cert.pem and key.pem there, in PEM form");

/// A version of the engine's API. The derived order compares `major` first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ApiVersion {
    major: u16,
    minor: u16,
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl ApiVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// Connects and agrees on a version with one request. Also returns the description of the engine, with that version.
pub(super) async fn connect(endpoint: &Endpoint) -> Result<(Engine, String), OrchestratorError> {
    let unreachable = |why: String| OrchestratorError::Unreachable { place: place(endpoint), why, cure: UNREACHABLE };
    let engine = client(endpoint)?;
    // Every engine answers this request without a version, also one that has given up all versions known here.
    let asking = engine.clone().with_request_modifier(|request| with_version(request, None));
    let found = match tokio::time::timeout(CONNECT_TIMEOUT, asking.version()).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(unreachable(words(&error))),
        Err(_) => return Err(unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))),
    };
    let version = agree(&found).map_err(|(why, cure)| {
        let place = place(endpoint);
        OrchestratorError::Version { place, why, cure }
    })?;
    let description = format!("{}, API {version}", name(&found));
    Ok((engine.with_request_modifier(move |request| with_version(request, Some(version))), description))
}

fn name(found: &SystemVersion) -> String {
    format!("Docker {}", found.version.as_deref().unwrap_or("of an unknown version"))
}

/// The newest version that both sides speak, or why there is none and what to do about it.
fn agree(found: &SystemVersion) -> Result<ApiVersion, (String, Cure)> {
    let newest = found.api_version.as_deref().unwrap_or_default();
    let Some(newest) = ApiVersion::parse(newest) else {
        return Err((format!("it does not say which versions it speaks, but {newest:?}"), NO_ENGINE));
    };
    if newest < OLDEST {
        let why = format!("{} speaks {newest} at most, and {OLDEST} is needed", name(found));
        return Err((why, ENGINE_TOO_OLD));
    }
    match found.min_api_version.as_deref().and_then(ApiVersion::parse) {
        Some(oldest) if oldest > NEWEST => {
            let why =
                format!("{} speaks {oldest} and later, and {NEWEST} is the newest that is known here", name(found));
            Err((why, ENGINE_TOO_NEW))
        }
        _ => Ok(newest.min(NEWEST)),
    }
}

/// The request with this version in its path, or with none. A version that it has already is replaced.
fn with_version(mut request: BollardRequest, version: Option<ApiVersion>) -> BollardRequest {
    let uri = request.uri();
    let path = without_version(uri.path_and_query().map_or("/", |path| path.as_str()));
    let prefix = version.map(|version| format!("/v{version}")).unwrap_or_default();
    let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", |it| it.as_str()));
    // Only a path that is too long for a URI can fail here. The default is a URI that the client refuses to send, so that
    // nothing goes out without the version.
    *request.uri_mut() = format!("{scheme}://{authority}{prefix}{path}").parse::<Uri>().unwrap_or_default();
    request
}

fn without_version(path: &str) -> &str {
    let Some((version, _)) = path.strip_prefix("/v").and_then(|rest| rest.split_once('/')) else { return path };
    match ApiVersion::parse(version) {
        Some(_) => path.get("/v".len() + version.len()..).unwrap_or(path),
        None => path,
    }
}

fn client(endpoint: &Endpoint) -> Result<Engine, OrchestratorError> {
    let unusable = |why: String, cure| OrchestratorError::Unreachable { place: place(endpoint), why, cure };
    let made = match endpoint {
        Endpoint::Unix(path) if !Path::new(path).exists() => Err(EngineError::SocketNotFoundError(path.clone())),
        Endpoint::Unix(path) => {
            over(UnixConnector, Uri::from(hyperlocal::Uri::new(path, "")).to_string().trim_end_matches('/'))
        }
        Endpoint::Tcp(address, None) => over(HttpConnector::new(), &format!("http://{address}")),
        Endpoint::Tcp(address, Some(files)) => {
            let tls = tls(files).map_err(|why| unusable(why, CERTIFICATES))?;
            let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
            over(connector, &format!("https://{address}"))
        }
    };
    made.map_err(|error| unusable(words(&error), UNREACHABLE))
}

/// Sends requests over this connector.
///
/// Reads share connections that are kept from one to the next, because a pass makes hundreds of them. A read whose connection
/// breaks before the answer may have met one that was being closed, so it is made once more. Whatever changes something has a
/// connection of its own, because nobody would know whether it was carried out.
fn over<C>(connector: C, base: &str) -> Result<Engine, EngineError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let kept = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(KEPT_IDLE)
        .build(connector.clone());
    let own = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let send = move |request: BollardRequest| {
        let (kept, own) = (kept.clone(), own.clone());
        async move {
            if !request.method().is_safe() {
                return Ok(own.request(request).await?);
            }
            let again = without_body(&request);
            match kept.request(request).await {
                Err(error) if !error.is_connect() => Ok(own.request(again).await?),
                answer => Ok(answer?),
            }
        }
    };
    // The library wants a version as well. `with_version` replaces it, should the library come to use it.
    Engine::connect_with_custom_transport(send, Some(base), ENGINE_TIMEOUT_S, API_DEFAULT_VERSION)
}

/// The same request without its body, of which a read has none.
fn without_body(request: &BollardRequest) -> BollardRequest {
    let mut copy = BollardRequest::new(bollard::body_full(Bytes::new()));
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    request.headers().clone_into(copy.headers_mut());
    copy
}

/// Trusts the CAs of `ca.pem` and no others. The client library would trust those of the machine as well, so that
/// whoever gets a certificate from any of them could play the engine.
fn tls(files: &TlsFiles) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(&files.ca)?);
    if added == 0 {
        return Err(format!("{} has no certificate that can be used", files.ca.display()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| format!("{} has no private key that can be used: {error}", files.key.display()))?;
    let unusable = |error: rustls::Error| format!("{} cannot be used: {error}", files.cert.display());
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&files.cert)?, key)
        .map_err(unusable)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error| format!("{} cannot be read: {error}", path.display());
    CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use bollard::BollardRequest;
    use bytes::Bytes;

    use super::{ApiVersion, with_version};

    fn sent(uri: &str, version: Option<ApiVersion>) -> String {
        let mut request = BollardRequest::new(bollard::body_full(Bytes::new()));
        *request.uri_mut() = uri.parse().unwrap();
        with_version(request, version).uri().to_string()
    }

    #[test]
    fn a_path_gets_the_version_whether_the_library_gave_it_one_or_not() {
        let version = Some(ApiVersion { major: 1, minor: 41 });
        for (given, versioned, bare) in [
            ("unix://2f72:0/info?a=%7B", "unix://2f72:0/v1.41/info?a=%7B", "unix://2f72:0/info?a=%7B"),
            ("http://h:1/v1.53/info?a=b", "http://h:1/v1.41/info?a=b", "http://h:1/info?a=b"),
            ("https://[::1]:2/version", "https://[::1]:2/v1.41/version", "https://[::1]:2/version"),
            ("http://h/volumes/v1.2/x", "http://h/v1.41/volumes/v1.2/x", "http://h/volumes/v1.2/x"),
            ("http://h/vx/y", "http://h/v1.41/vx/y", "http://h/vx/y"),
        ] {
            assert_eq!(sent(given, version), versioned);
            assert_eq!(sent(given, None), bare);
        }
    }

    #[test]
    fn nothing_goes_out_without_the_version_when_the_path_leaves_no_room_for_it() {
        let long = format!("http://h/{}", "x".repeat(65_520));
        let uri = sent(&long, Some(ApiVersion { major: 1, minor: 41 }));
        assert_eq!(uri, "/", "a URI without a host, which the client refuses");
    }
}
