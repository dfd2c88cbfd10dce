//! What a connector's workload is made of, whatever the orchestrator: labels, environment, image. Pure.

pub mod docker;
pub mod kubernetes;

use std::collections::BTreeMap;

use crate::desired::Rejection;
use crate::model::{ConfigHash, Connector, ConnectorId, ManagerId, PlatformKind, VariableValue, WorkloadName};
use crate::platform::envelope::EnvelopeError;
use crate::secret::Secret;

/// Whose a workload is.
pub const LABEL_MANAGER: &str = "opencti-manager";
/// Which connector it runs.
pub const LABEL_CONNECTOR: &str = "opencti-connector-id";
/// Of which platform.
pub const LABEL_PLATFORM: &str = "opencti-platform";
/// The hash it was made with, as a label.
pub const LABEL_HASH: &str = "opencti-config-hash";
/// The same as a variable: where the daemon leaves it.
pub const VARIABLE_HASH: &str = "OPENCTI_CONFIG_HASH";
/// Where the proxy's CA is put in each container (config-keys, `https_proxy_ca`).
pub const CA_PATH: &str = "etc/ssl/certs/xtm-proxy-ca.crt";
/// Variables that point programs to that file.
const CA_VARIABLES: [&str; 4] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE"];

/// The proxy as connectors get it.
#[derive(Debug)]
pub struct ConnectorProxy {
    /// `HTTP_PROXY`.
    pub http: Option<Secret>,
    /// `HTTPS_PROXY`.
    pub https: Option<Secret>,
    /// `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// CA certificates, one PEM text; copied into the container.
    pub ca: Option<String>,
    /// Whether Node connectors check certificates.
    pub reject_unauthorized: bool,
}

/// Where images come from.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// Put before images that name no registry.
    pub server: Option<String>,
    /// User.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// E-mail address.
    pub email: Option<String>,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Before every container that is made.
    Always,
    /// When the engine does not have it.
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// Kubernetes' word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Everything an orchestrator needs to make one connector's workload. Building it can fail, using it cannot.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Whose.
    pub connector: ConnectorId,
    /// What it is called once complete, as far as the connector goes; the plan may say otherwise for now.
    pub name: WorkloadName,
    /// Full image reference.
    pub image: String,
    /// The hash it is made with.
    pub hash: ConfigHash,
    /// Ownership.
    pub labels: BTreeMap<String, String>,
    /// In order; names are unique.
    pub environment: Vec<EnvVar>,
    /// Certificates to put at [`CA_PATH`].
    pub ca: Option<String>,
}

/// One environment variable of a workload.
#[derive(Debug, Clone)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Secret,
    /// Whether it was encrypted, is named like a secret, or is a proxy's URL, which may hold a password.
    pub sensitive: bool,
}

/// What every workload of a pass has in common.
#[derive(Debug)]
pub struct Common<'a> {
    /// Whose workloads these are.
    pub manager: &'a ManagerId,
    /// Of which platform.
    pub platform: PlatformKind,
    /// The platform's URL, for connectors.
    pub url: &'a str,
    /// The proxy, when connectors use it.
    pub proxy: Option<&'a ConnectorProxy>,
    /// Put before images that name no registry.
    pub registry: Option<&'a str>,
}

/// Builds the spec of one connector. `open` gives the clear text of an envelope.
pub fn spec(
    connector: &Connector,
    common: &Common<'_>,
    open: impl Fn(&str) -> Result<Secret, EnvelopeError>,
) -> Result<Spec, Rejection> {
    let mut environment = Environment::default();
    for variable in &connector.variables {
        let name = variable.name.clone();
        let encrypted = matches!(variable.value, VariableValue::Encrypted(_));
        let value = match &variable.value {
            VariableValue::Clear(clear) => clear.clone(),
            VariableValue::Encrypted(envelope) => {
                let value = open(envelope)
                    .map_err(|error| Rejection::Undecryptable { name: name.clone(), why: error.to_string() })?;
                check_opened(&name, value)?
            }
        };
        let sensitive = encrypted || names_a_secret(&name);
        environment.set(EnvVar { name, value, sensitive });
    }
    environment.set_plain(common.platform.url_variable(), Secret::new(common.url.to_owned()));
    environment.set_plain(VARIABLE_HASH, Secret::new(connector.hash.to_string()));
    if let Some(proxy) = common.proxy {
        environment.set_proxy(proxy);
    }
    Ok(Spec {
        connector: connector.id.clone(),
        name: connector.name.clone(),
        image: image(&connector.image, common.registry),
        hash: connector.hash.clone(),
        labels: labels(connector, common),
        environment: environment.0,
        ca: common.proxy.and_then(|proxy| proxy.ca.clone()),
    })
}

fn check_opened(name: &str, value: Secret) -> Result<Secret, Rejection> {
    if value.is_empty() {
        return Err(Rejection::EmptySecret { name: name.to_owned() });
    }
    if value.expose().contains('\0') {
        return Err(Rejection::InvalidValue { name: name.to_owned() });
    }
    Ok(value)
}

fn labels(connector: &Connector, common: &Common<'_>) -> BTreeMap<String, String> {
    [
        (LABEL_MANAGER, common.manager.as_str()),
        (LABEL_CONNECTOR, connector.id.as_str()),
        (LABEL_PLATFORM, common.platform.label()),
        (LABEL_HASH, connector.hash.as_str()),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// Variables in order; a later value of the same name takes the earlier one's place.
#[derive(Default)]
struct Environment(Vec<EnvVar>);

impl Environment {
    fn set(&mut self, variable: EnvVar) {
        match self.0.iter_mut().find(|known| known.name == variable.name) {
            Some(earlier) => *earlier = variable,
            None => self.0.push(variable),
        }
    }

    fn set_plain(&mut self, name: &str, value: Secret) {
        self.set(EnvVar { name: name.to_owned(), value, sensitive: false });
    }

    fn set_proxy(&mut self, proxy: &ConnectorProxy) {
        let no_proxy = proxy.no_proxy.clone().map(Secret::new);
        let values = [("HTTP_PROXY", &proxy.http), ("HTTPS_PROXY", &proxy.https), ("NO_PROXY", &no_proxy)];
        for (name, value) in values {
            if let Some(value) = value {
                let (name, value, sensitive) = (name.to_owned(), value.clone(), name != "NO_PROXY");
                self.set(EnvVar { name, value, sensitive });
            }
        }
        if proxy.ca.is_some() {
            for name in CA_VARIABLES {
                self.set_plain(name, Secret::new(format!("/{CA_PATH}")));
            }
        }
        if !proxy.reject_unauthorized {
            self.set_plain("NODE_TLS_REJECT_UNAUTHORIZED", Secret::new("0".to_owned()));
        }
    }
}

/// Whether a variable of this name holds a secret, or may hold one, even if the platform does not encrypt it: older ones send
/// the token in clear, and all of them the proxy's URL, which may have a password in it (contracts 1.2).
#[must_use]
pub fn names_a_secret(name: &str) -> bool {
    const WORDS: [&str; 7] = ["TOKEN", "PASSWORD", "PASSWD", "SECRET", "API_KEY", "APIKEY", "CREDENTIAL"];
    const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let upper = name.to_ascii_uppercase();
    WORDS.iter().any(|word| upper.contains(word)) || upper.ends_with("_KEY") || PROXIES.contains(&upper.as_str())
}

/// The image with the configured registry before it, unless it names one itself.
#[must_use]
pub fn image(image: &str, registry: Option<&str>) -> String {
    match registry {
        Some(registry) if registry_of(image).is_none() => format!("{registry}/{image}"),
        _ => image.to_owned(),
    }
}

/// The registry that an image reference names: its first part, if that looks like a host (the docker client's rule).
#[must_use]
pub fn registry_of(image: &str) -> Option<&str> {
    let (first, _) = image.split_once('/')?;
    (first.contains(['.', ':']) || first == "localhost").then_some(first)
}

/// Whether an image's tag is one that moves: none, `latest` or `rolling`. A digest never moves.
#[must_use]
pub fn has_moving_tag(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    matches!(last.split_once(':').map(|(_, tag)| tag), None | Some("latest" | "rolling"))
}
