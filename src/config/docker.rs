//! Settings of the Docker engine and of every container on it.

use std::path::PathBuf;

use serde::Deserialize;

use super::parse::Funnel;
use super::variables::Raw;

/// Everything about the engine.
#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// Where it is.
    pub endpoint: Endpoint,
    /// When images are pulled; `None`: by the image's tag.
    pub pull_policy: Option<PullPolicy>,
    /// What every container gets.
    pub container: ContainerDefaults,
}

/// How to reach the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Path of a Unix socket.
    Unix(String),
    /// `host:port`, with TLS when files are given.
    Tcp(String, Option<TlsFiles>),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Tcp(address, None) => write!(f, "tcp://{address}"),
            Self::Tcp(address, Some(_)) => write!(f, "tcp://{address} with TLS"),
        }
    }
}

/// Certificates as the docker client names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// `ca.pem`
    pub ca: PathBuf,
    /// `cert.pem`
    pub cert: PathBuf,
    /// `key.pem`
    pub key: PathBuf,
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
    pub(super) fn read(variable: &str, text: Option<&str>, funnel: &mut Funnel) -> Option<Self> {
        match text?.trim().to_ascii_lowercase().as_str() {
            "always" => Some(Self::Always),
            "ifnotpresent" => Some(Self::IfNotPresent),
            "never" => Some(Self::Never),
            other => {
                funnel.problem(variable, format!("{other:?} is no policy"), "use Always, IfNotPresent or Never");
                None
            }
        }
    }

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

/// What the engine does when a container ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Nothing.
    No,
    /// Restart it always.
    Always,
    /// Restart it unless it was stopped.
    UnlessStopped,
    /// Restart it after a failure, at most so often; 0: without limit.
    OnFailure(i64),
}

/// One resource limit of a process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ulimit {
    /// `nofile`, `nproc`, ...
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// What every container gets: the daemon's docker keys, documented where the variables are declared.
/// `None`: the engine's default.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented where the variables are declared")]
pub struct ContainerDefaults {
    pub restart_policy: RestartPolicy,
    pub memory_limit: Option<i64>,
    /// In billionths of a core.
    pub cpu_limit: Option<i64>,
    pub network_mode: Option<String>,
    pub extra_hosts: Option<Vec<String>>,
    pub dns: Option<Vec<String>>,
    pub dns_search: Option<Vec<String>>,
    pub privileged: Option<bool>,
    pub cap_add: Option<Vec<String>>,
    pub cap_drop: Option<Vec<String>>,
    pub security_opt: Option<Vec<String>>,
    pub userns_mode: Option<String>,
    pub pid_mode: Option<String>,
    pub ipc_mode: Option<String>,
    pub uts_mode: Option<String>,
    pub runtime: Option<String>,
    pub shm_size: Option<i64>,
    pub sysctls: Option<Vec<(String, String)>>,
    pub ulimits: Option<Vec<Ulimit>>,
}

const PREFIX: &str = "OPENCTI__DAEMON__DOCKER__";

pub(super) fn settle(raw: &Raw, funnel: &mut Funnel) -> Option<DockerSettings> {
    let endpoint = endpoint(raw, funnel);
    let policy = raw.opencti__daemon__docker__image_pull_policy.as_deref();
    let pull_policy = PullPolicy::read(&format!("{PREFIX}IMAGE_PULL_POLICY"), policy, funnel);
    let container = container(raw, funnel);
    Some(DockerSettings { endpoint: endpoint?, pull_policy, container })
}

fn endpoint(raw: &Raw, funnel: &mut Funnel) -> Option<Endpoint> {
    let text = raw.docker_host.as_deref().unwrap_or_default().trim();
    if let Some(path) = text.strip_prefix("unix://") {
        return Some(Endpoint::Unix(path.to_owned()));
    }
    let address = ["tcp://", "http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(address) = address.map(|address| address.trim_end_matches('/')).filter(|address| !address.is_empty())
    else {
        let cure = "use unix://PATH, tcp://HOST:PORT or http://HOST:PORT; over SSH, forward the socket first (ssh -L)";
        funnel.problem("DOCKER_HOST", format!("{text:?} cannot be used"), cure);
        return None;
    };
    if raw.docker_tls_verify.is_none() && !text.starts_with("https://") {
        return Some(Endpoint::Tcp(address.to_owned(), None));
    }
    let Some(folder) = raw.docker_cert_path.as_deref().map(PathBuf::from) else {
        funnel.problem("DOCKER_CERT_PATH", "TLS is on and it is not set".to_owned(), "name the certificates' folder");
        return None;
    };
    let files = TlsFiles { ca: folder.join("ca.pem"), cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    for file in [&files.ca, &files.cert, &files.key] {
        if let Err(error) = std::fs::File::open(file) {
            let what = format!("cannot read {}: {error}", file.display());
            funnel.problem("DOCKER_CERT_PATH", what, "put ca.pem, cert.pem and key.pem there");
        }
    }
    Some(Endpoint::Tcp(address.to_owned(), Some(files)))
}

fn container(raw: &Raw, funnel: &mut Funnel) -> ContainerDefaults {
    let name = |key: &str| format!("{PREFIX}{key}");
    let text = |value: &Option<String>| value.as_deref().map(|value| value.trim().to_owned());
    ContainerDefaults {
        restart_policy: restart_policy(raw, funnel),
        memory_limit: funnel.bytes(&name("MEMORY_LIMIT"), raw.opencti__daemon__docker__memory_limit.as_deref()),
        cpu_limit: cpu_limit(raw, funnel),
        network_mode: text(&raw.opencti__daemon__docker__network_mode),
        extra_hosts: funnel.list(&name("EXTRA_HOSTS"), raw.opencti__daemon__docker__extra_hosts.as_deref()),
        dns: funnel.list(&name("DNS"), raw.opencti__daemon__docker__dns.as_deref()),
        dns_search: funnel.list(&name("DNS_SEARCH"), raw.opencti__daemon__docker__dns_search.as_deref()),
        privileged: raw
            .opencti__daemon__docker__privileged
            .as_deref()
            .map(|text| funnel.flag(&name("PRIVILEGED"), Some(text))),
        cap_add: funnel.list(&name("CAP_ADD"), raw.opencti__daemon__docker__cap_add.as_deref()),
        cap_drop: funnel.list(&name("CAP_DROP"), raw.opencti__daemon__docker__cap_drop.as_deref()),
        security_opt: funnel.list(&name("SECURITY_OPT"), raw.opencti__daemon__docker__security_opt.as_deref()),
        userns_mode: text(&raw.opencti__daemon__docker__userns_mode),
        pid_mode: text(&raw.opencti__daemon__docker__pid_mode),
        ipc_mode: text(&raw.opencti__daemon__docker__ipc_mode),
        uts_mode: text(&raw.opencti__daemon__docker__uts_mode),
        runtime: text(&raw.opencti__daemon__docker__runtime),
        shm_size: funnel.bytes(&name("SHM_SIZE"), raw.opencti__daemon__docker__shm_size.as_deref()),
        sysctls: funnel.map(&name("SYSCTLS"), raw.opencti__daemon__docker__sysctls.as_deref()),
        ulimits: ulimits(raw, funnel),
    }
}

fn restart_policy(raw: &Raw, funnel: &mut Funnel) -> RestartPolicy {
    let text = raw.opencti__daemon__docker__restart_policy.as_deref().unwrap_or_default().trim();
    let policy = match text {
        "no" => Some(RestartPolicy::No),
        "always" => Some(RestartPolicy::Always),
        "unless-stopped" => Some(RestartPolicy::UnlessStopped),
        "on-failure" => Some(RestartPolicy::OnFailure(0)),
        other => other
            .strip_prefix("on-failure:")
            .and_then(|count| count.parse().ok())
            .filter(|count| *count >= 0)
            .map(RestartPolicy::OnFailure),
    };
    policy.unwrap_or_else(|| {
        let cure = "use no, always, unless-stopped, on-failure or on-failure:N";
        funnel.problem(&format!("{PREFIX}RESTART_POLICY"), format!("{text:?} is no restart policy"), cure);
        RestartPolicy::UnlessStopped
    })
}

/// Cores to billionths of a core.
fn cpu_limit(raw: &Raw, funnel: &mut Funnel) -> Option<i64> {
    let text = raw.opencti__daemon__docker__cpu_limit.as_deref()?.trim();
    match text.parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the range")]
        Ok(cores) if (0.001..=1024.0).contains(&cores) => Some((cores * 1e9).round() as i64),
        _ => {
            funnel.problem(&format!("{PREFIX}CPU_LIMIT"), format!("{text:?} is no number of cores"), "use such as 0.5");
            None
        }
    }
}

fn ulimits(raw: &Raw, funnel: &mut Funnel) -> Option<Vec<Ulimit>> {
    let text = raw.opencti__daemon__docker__ulimits.as_deref()?.trim();
    let limits: Option<Vec<Ulimit>> = if text.starts_with('[') {
        serde_json::from_str(text).ok()
    } else {
        let one = |item: &str| {
            let (name, values) = item.trim().split_once('=')?;
            let (soft, hard) = values.split_once(':').unwrap_or((values, values));
            Some(Ulimit {
                name: name.trim().to_owned(),
                soft: soft.trim().parse().ok()?,
                hard: hard.trim().parse().ok()?,
            })
        };
        text.split(',').map(one).collect()
    };
    if limits.is_none() {
        let cure = "use nofile=1024:2048 or [{\"name\":\"nofile\",\"soft\":1024,\"hard\":2048}]";
        funnel.problem(&format!("{PREFIX}ULIMITS"), "it is no list of limits".to_owned(), cure);
    }
    limits
}
