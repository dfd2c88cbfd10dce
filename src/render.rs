//! Makes the spec of a connector's workload, which is the same for every orchestrator: labels, environment, image.
//! Pure.

pub mod docker;
pub mod kubernetes;

use std::collections::BTreeMap;

use crate::desired::Rejection;
use crate::model::{ConfigHash, Connector, ConnectorId, ManagerId, PlatformKind, VariableValue, WorkloadName};
use crate::platform::envelope::EnvelopeError;
use crate::secret::Secret;

/// The label with the id of the manager that owns a workload.
pub(crate) const LABEL_MANAGER: &str = "opencti-manager";
/// The label with the id of the connector that a workload runs.
pub(crate) const LABEL_CONNECTOR: &str = "opencti-connector-id";
/// The label with the platform of that connector.
pub(crate) const LABEL_PLATFORM: &str = "opencti-platform";
/// The label with the hash of the configuration that a workload was made with.
pub(crate) const LABEL_HASH: &str = "opencti-config-hash";
/// The variable with the same hash, which is the only place where the daemon writes it.
pub(crate) const VARIABLE_HASH: &str = "OPENCTI_CONFIG_HASH";
/// The path of the proxy's CA in each container, without the leading slash (config-keys, `https_proxy_ca`).
pub(crate) const CA_PATH: &str = "etc/ssl/certs/xtm-proxy-ca.crt";
/// The variables that point programs to that file.
const CA_VARIABLES: [&str; 4] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE"];

/// What connectors get of the proxy: variables, and the proxy's CA.
#[derive(Debug)]
pub struct ConnectorProxy {
    /// The value of `HTTP_PROXY`.
    pub http: Option<Secret>,
    /// The value of `HTTPS_PROXY`.
    pub https: Option<Secret>,
    pub(crate) no_proxy: Option<String>,
    /// The proxy's CA certificates as one PEM text, which is copied into each container.
    pub ca: Option<String>,
    /// Whether Node connectors check certificates. Python connectors ignore it.
    pub(crate) reject_unauthorized: bool,
}

/// The registry that images come from, and the login for it.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// Goes before each image that names no registry. `None` leaves such images to Docker Hub.
    pub server: Option<String>,
    /// Without it there is no login.
    pub username: Option<String>,
    /// Without it there is no login.
    pub password: Option<Secret>,
    /// A few registries ask for it with the login.
    pub(crate) email: Option<String>,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Before each container that is made, even if the engine has the image.
    Always,
    /// Only when the engine does not have the image.
    IfNotPresent,
    /// Not at all. The step fails when the engine does not have the image.
    Never,
}

impl PullPolicy {
    /// The word that Kubernetes uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Everything an orchestrator needs to make one connector's workload. Building a spec can fail, using it cannot.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) connector: ConnectorId,
    /// The final name that the connector asks for. The plan may give the workload another one while that name is taken.
    pub(crate) name: WorkloadName,
    /// The full image reference, with the registry.
    pub(crate) image: String,
    pub(crate) hash: ConfigHash,
    /// The labels that say to whom the workload belongs.
    pub(crate) labels: BTreeMap<String, String>,
    /// Ordered as the platform orders them. Names are unique.
    pub(crate) environment: Vec<EnvVar>,
    /// The PEM text to write to [`CA_PATH`]. `None` when there is no such file to write.
    pub(crate) ca: Option<String>,
}

/// One environment variable of a workload.
#[derive(Debug, Clone)]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    pub(crate) value: Secret,
    /// Whether it was encrypted, is named like a secret, or is the URL of a proxy, which may hold a password.
    pub(crate) sensitive: bool,
}

/// What all workloads of a lane have in common.
#[derive(Debug)]
pub(crate) struct Common<'a> {
    pub(crate) manager: &'a ManagerId,
    pub(crate) platform: PlatformKind,
    /// The platform's URL as the connectors get it.
    pub(crate) url: &'a str,
    /// `None` when connectors use no proxy.
    pub(crate) proxy: Option<&'a ConnectorProxy>,
    /// Goes before each image that names no registry.
    pub(crate) registry: Option<&'a str>,
}

/// Builds the spec of one connector. `open` returns the clear text of an envelope.
pub(crate) fn spec(
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

/// Variables in order. A later value of the same name replaces the earlier one in its place.
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

/// Whether a variable of this name holds a secret, or may hold one, even if the platform does not encrypt it. Older
/// platforms send the token in clear, and all of them send the proxy's URL in clear, which may hold a password
/// (contracts 1.2).
#[must_use]
pub(crate) fn names_a_secret(name: &str) -> bool {
    const WORDS: [&str; 7] = ["TOKEN", "PASSWORD", "PASSWD", "SECRET", "API_KEY", "APIKEY", "CREDENTIAL"];
    const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let upper = name.to_ascii_uppercase();
    WORDS.iter().any(|word| upper.contains(word)) || upper.ends_with("_KEY") || PROXIES.contains(&upper.as_str())
}

/// The image with the configured registry before it, unless it names a registry itself.
#[must_use]
pub(crate) fn image(image: &str, registry: Option<&str>) -> String {
    match registry {
        Some(registry) if registry_of(image).is_none() => format!("{registry}/{image}"),
        _ => image.to_owned(),
    }
}

/// The registry that an image reference names: its first part, provided that it looks like a host. This is the rule of
/// the docker client.
#[must_use]
pub(crate) fn registry_of(image: &str) -> Option<&str> {
    let (first, _) = image.split_once('/')?;
    (first.contains(['.', ':']) || first == "localhost").then_some(first)
}

/// Whether an image has a tag that moves from one image to another: `latest`, `rolling`, or no tag at all. A digest
/// does not move.
#[must_use]
pub(crate) fn has_moving_tag(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    matches!(last.split_once(':').map(|(_, tag)| tag), None | Some("latest" | "rolling"))
}
