//! One validated value from everything the operator set. Nothing reads the environment after this.

mod docker;
mod kubernetes;
mod parse;
mod source;
pub mod variables;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::key::{KeyError, ManagerKey};
use crate::manager::Manager;
use crate::model::{ManagerId, PlatformKind};
use crate::orchestrator::OrchestratorSettings;
use crate::pass::Limits;
use crate::pass::lane::LaneSettings;
use crate::plan::{LoopAction, Policy, PrunePolicy};
use crate::platform::PlatformSettings;
use crate::render::{ConnectorProxy, Registry};
use crate::restart_window::LoopRule;
use crate::secret::Secret;
use crate::telemetry::Logging;

use parse::Funnel;
use variables::Raw;

/// Everything that the commands need to know.
#[derive(Debug)]
pub struct Settings {
    /// This manager's identity.
    pub manager: Manager,
    /// Bounds of a pass.
    pub limits: Limits,
    /// One for each enabled platform, in the order of [`PlatformKind::ALL`]; at least one.
    pub lanes: Vec<LaneSettings>,
    /// How to log.
    pub logging: Logging,
    /// What the operator should know, though it is no fault.
    pub notices: Vec<Notice>,
}

/// Something worth knowing about the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Deserves a look.
    pub warning: bool,
    /// What.
    pub message: String,
}

impl Notice {
    fn warning(message: String) -> Self {
        Self { warning: true, message }
    }

    fn info(message: String) -> Self {
        Self { warning: false, message }
    }
}

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which variable or option.
    pub variable: String,
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub cure: String,
}

impl Problem {
    fn new(variable: &str, what: String, cure: &str) -> Self {
        Self { variable: variable.to_owned(), what, cure: cure.to_owned() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.variable, self.what, self.cure)
    }
}

/// Everything wrong with the configuration, at once.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} problem(s)", .0.len())]
pub struct ConfigError(pub Vec<Problem>);

/// Reads `files` and `environment` into settings.
///
/// `allow_prune` is the command line's; it adds to the variable.
pub fn load(
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
    allow_prune: bool,
) -> Result<Settings, ConfigError> {
    let source = source::read(files, environment);
    let mut funnel = Funnel { problems: source.problems, notices: source.notices };
    let settings = settle(&source.raw, &mut funnel, allow_prune);
    match settings {
        Some(settings) if funnel.problems.is_empty() => Ok(settings),
        _ => Err(ConfigError(funnel.problems)),
    }
}

fn settle(raw: &Raw, funnel: &mut Funnel, allow_prune: bool) -> Option<Settings> {
    let logging = logging(raw, funnel);
    platforms(raw, funnel);
    let limits = limits(raw, funnel);
    let policy = policy(raw, funnel, allow_prune);
    let manager = manager(raw, funnel);
    let registry = registry(raw, funnel);
    let orchestrator = orchestrator(raw, funnel);
    let connector_proxy = connector_proxy(raw, funnel);
    let opencti = opencti(raw, connector_proxy.as_ref(), funnel);
    let lane = LaneSettings { platform: opencti?, connector_proxy, registry, orchestrator: orchestrator?, policy };
    Some(Settings {
        manager: manager?,
        limits,
        lanes: vec![lane],
        logging,
        notices: std::mem::take(&mut funnel.notices),
    })
}

fn logging(raw: &Raw, funnel: &mut Funnel) -> Logging {
    let levels = ["trace", "debug", "info", "warn", "error"];
    let level = raw.manager__logger__level.as_deref().unwrap_or("info").trim().to_ascii_lowercase();
    if !levels.contains(&level.as_str()) {
        funnel.problem(
            "MANAGER__LOGGER__LEVEL",
            format!("{level:?} is no level"),
            "use trace, debug, info, warn or error",
        );
    }
    let json = match raw.manager__logger__format.as_deref().map(str::trim) {
        None => None,
        Some("json") => Some(true),
        Some("pretty") => Some(false),
        Some(other) => {
            funnel.problem("MANAGER__LOGGER__FORMAT", format!("{other:?} is no format"), "use json or pretty");
            None
        }
    };
    // The libraries' own chatter says nothing to an operator.
    let filter = raw.rust_log.clone().unwrap_or_else(|| format!("warn,kube_client=off,xtm_reconcile={level}"));
    Logging { filter, json }
}

fn platforms(raw: &Raw, funnel: &mut Funnel) {
    if !funnel.flag("OPENCTI__ENABLE", raw.opencti__enable.as_deref()) {
        funnel.problem("OPENCTI__ENABLE", "no platform is enabled".to_owned(), "set it to true");
    }
    if funnel.flag("OPENAEV__ENABLE", raw.openaev__enable.as_deref()) {
        funnel.problem("OPENAEV__ENABLE", "OpenAEV is not supported by this version".to_owned(), "set it to false");
    }
}

fn orchestrator(raw: &Raw, funnel: &mut Funnel) -> Option<OrchestratorSettings> {
    let selector = raw.opencti__daemon__selector.as_deref().unwrap_or_default().trim().to_ascii_lowercase();
    match selector.as_str() {
        "docker" => return docker::settle(raw, funnel).map(Box::new).map(OrchestratorSettings::Docker),
        "kubernetes" => return kubernetes::settle(raw, funnel).map(Box::new).map(OrchestratorSettings::Kubernetes),
        // All problems come at once, also those of what may have been meant.
        _ => drop(docker::settle(raw, funnel)),
    }
    let what = match selector.as_str() {
        "portainer" | "swarm" => format!("{selector} is not supported by this version"),
        other => format!("{other:?} is no orchestrator"),
    };
    funnel.problem("OPENCTI__DAEMON__SELECTOR", what, "set it to kubernetes or docker, which this version supports");
    None
}

fn limits(raw: &Raw, funnel: &mut Funnel) -> Limits {
    let deadline = funnel.number("MANAGER__PASS_DEADLINE", raw.manager__pass_deadline.as_deref(), 1..=86_400);
    let concurrency = funnel.number("MANAGER__CONCURRENCY", raw.manager__concurrency.as_deref(), 1..=64);
    let tail = funnel.number("MANAGER__LOGS_TAIL", raw.manager__logs_tail.as_deref(), 0..=10_000);
    Limits {
        deadline: Duration::from_secs(deadline),
        concurrency: usize::try_from(concurrency).unwrap_or(1),
        logs_tail: u32::try_from(tail).unwrap_or(0),
    }
}

fn policy(raw: &Raw, funnel: &mut Funnel, allow_prune: bool) -> Policy {
    let action = raw.manager__reboot_loop__action.as_deref().unwrap_or("report").trim();
    let loop_action = match action {
        "report" => LoopAction::Report,
        "stop" => LoopAction::Stop,
        other => {
            funnel.problem("MANAGER__REBOOT_LOOP__ACTION", format!("{other:?} is no action"), "use report or stop");
            LoopAction::Report
        }
    };
    let window =
        funnel.number("MANAGER__REBOOT_LOOP__WINDOW", raw.manager__reboot_loop__window.as_deref(), 1..=604_800);
    let limit = funnel.number("MANAGER__REBOOT_LOOP__LIMIT", raw.manager__reboot_loop__limit.as_deref(), 0..=10_000);
    let percent = funnel.number("MANAGER__MAX_REMOVALS_PERCENT", raw.manager__max_removals_percent.as_deref(), 0..=100);
    let allowed = funnel.flag("MANAGER__ALLOW_PRUNE", raw.manager__allow_prune.as_deref());
    Policy {
        loop_rule: LoopRule { window_s: i64::try_from(window).unwrap_or(300), limit },
        loop_action,
        prune: PrunePolicy { allow: allow_prune || allowed, max_percent: u8::try_from(percent).unwrap_or(50) },
    }
}

fn manager(raw: &Raw, funnel: &mut Funnel) -> Option<Manager> {
    let id = manager_id(raw, funnel);
    let name = raw.manager__name.clone().unwrap_or_default().trim().to_owned();
    if name.chars().count() < 2 {
        funnel.problem("MANAGER__NAME", "it has fewer than 2 characters".to_owned(), "give this manager a name");
    }
    let key = manager_key(raw, funnel);
    Some(Manager { id: id?, name, key: key? })
}

fn manager_id(raw: &Raw, funnel: &mut Funnel) -> Option<ManagerId> {
    let variable = "MANAGER__ID";
    let Some(text) = raw.manager__id.as_deref().map(str::trim) else {
        funnel.problem(variable, "it is not set".to_owned(), "choose an id for this manager and never change it");
        return None;
    };
    if text == "default-manager-id" {
        let what = "it still is the daemon's placeholder".to_owned();
        funnel.problem(variable, what, "choose an id of your own for this manager");
        return None;
    }
    ManagerId::new(text)
        .map_err(|invalid| {
            funnel.problem(variable, format!("{text:?} cannot be a label: {invalid}"), "choose another id");
        })
        .ok()
}

fn manager_key(raw: &Raw, funnel: &mut Funnel) -> Option<ManagerKey> {
    let inline = raw.manager__credentials_key.as_ref();
    let (variable, pem) = match raw.manager__credentials_key_filepath.as_deref().map(str::trim) {
        Some(path) => {
            let variable = "MANAGER__CREDENTIALS_KEY_FILEPATH";
            if inline.is_some() {
                let message = format!("{variable} wins over MANAGER__CREDENTIALS_KEY, which is set as well");
                funnel.notices.push(Notice::warning(message));
            }
            match source::read_secret(Path::new(path), variable, &mut funnel.notices) {
                Ok(pem) => (variable, Secret::new(pem)),
                Err(error) => {
                    funnel.problems.push(source::unreadable_secret(variable, path, &error));
                    return None;
                }
            }
        }
        None => match inline {
            Some(pem) => ("MANAGER__CREDENTIALS_KEY", pem.clone()),
            None => {
                let what = "no key is set".to_owned();
                let cure = "make one with `xtm-reconcile keygen --out FILE` and set MANAGER__CREDENTIALS_KEY_FILEPATH";
                funnel.problem("MANAGER__CREDENTIALS_KEY", what, cure);
                return None;
            }
        },
    };
    ManagerKey::from_pem(&pem).map_err(|error: KeyError| funnel.problem(variable, error.to_string(), error.cure())).ok()
}

fn registry(raw: &Raw, funnel: &mut Funnel) -> Registry {
    let prefix = "OPENCTI__DAEMON__REGISTRY__";
    let server = raw.opencti__daemon__registry__server.as_deref().map(|text| {
        let text = text.trim();
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        bare.trim_end_matches('/').to_owned()
    });
    if server.as_deref().is_some_and(|s| s.is_empty() || s.chars().any(char::is_whitespace)) {
        funnel.problem(&format!("{prefix}SERVER"), "it is no registry".to_owned(), "use HOST or HOST:PORT");
    }
    if let Some(server) = &server
        && crate::render::registry_of(&format!("{server}/image")).is_none()
    {
        let what = format!("the engine takes {server} for a user of Docker Hub, not for a registry");
        funnel.problem(&format!("{prefix}SERVER"), what, "use HOST.DOMAIN, HOST:PORT or localhost");
    }
    let username = raw.opencti__daemon__registry__username.clone();
    let password = raw.opencti__daemon__registry__password.clone();
    if username.is_some() != password.is_some() {
        let missing = if username.is_some() { "PASSWORD" } else { "USERNAME" };
        funnel.problem(&format!("{prefix}{missing}"), "only one of user and password is set".to_owned(), "set both");
    }
    Registry { server, username, password, email: raw.opencti__daemon__registry__email.clone() }
}

fn connector_proxy(raw: &Raw, funnel: &mut Funnel) -> Option<ConnectorProxy> {
    let with_proxy = funnel.flag("OPENCTI__WITH_PROXY", raw.opencti__with_proxy.as_deref());
    let reject_unauthorized = funnel
        .flag("OPENCTI__HTTPS_PROXY_REJECT_UNAUTHORIZED", raw.opencti__https_proxy_reject_unauthorized.as_deref());
    if !with_proxy {
        return None;
    }
    let ca = funnel.certificates("OPENCTI__HTTPS_PROXY_CA", raw.opencti__https_proxy_ca.as_deref());
    Some(ConnectorProxy {
        http: raw.opencti__http_proxy.clone().or_else(|| raw.http_proxy.clone()),
        https: raw.opencti__https_proxy.clone().or_else(|| raw.https_proxy.clone()),
        no_proxy: raw.opencti__no_proxy.clone().or_else(|| raw.no_proxy.clone()),
        ca: (!ca.is_empty()).then(|| ca.join("\n")),
        reject_unauthorized,
    })
}

fn opencti(raw: &Raw, proxy: Option<&ConnectorProxy>, funnel: &mut Funnel) -> Option<PlatformSettings> {
    let seconds =
        |funnel: &mut Funnel, name: &str, text: Option<&str>| Duration::from_secs(funnel.number(name, text, 1..=3600));
    let request_timeout = seconds(funnel, "OPENCTI__REQUEST_TIMEOUT", raw.opencti__request_timeout.as_deref());
    let connect_timeout = seconds(funnel, "OPENCTI__CONNECT_TIMEOUT", raw.opencti__connect_timeout.as_deref());
    let pull_timeout = seconds(funnel, "OPENCTI__PULL_TIMEOUT", raw.opencti__pull_timeout.as_deref());
    let insecure = funnel.flag("OPENCTI__UNSECURED_CERTIFICATE", raw.opencti__unsecured_certificate.as_deref());
    let ca = funnel.certificates("OPENCTI__CA", raw.opencti__ca.as_deref());
    let url = funnel.url("OPENCTI__URL", raw.opencti__url.as_deref());
    let token = token(raw.opencti__token.as_ref(), funnel);
    let url = url?;
    let (name, via) = if url.starts_with("https:") {
        ("OPENCTI__HTTPS_PROXY", proxy.and_then(|proxy| proxy.https.clone()))
    } else {
        ("OPENCTI__HTTP_PROXY", proxy.and_then(|proxy| proxy.http.clone()))
    };
    if let Some(via) = &via {
        funnel.proxy(name, via);
    }
    let no_proxy = proxy.and_then(|proxy| proxy.no_proxy.as_deref()).unwrap_or_default();
    Some(PlatformSettings {
        kind: PlatformKind::OpenCti,
        tenant: None,
        take_over: false,
        url,
        token: token?,
        insecure,
        ca,
        proxy_ca: proxy.and_then(|proxy| proxy.ca.clone()),
        proxy: via,
        no_proxy: no_proxy.split(',').map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()).collect(),
        request_timeout,
        connect_timeout,
        pull_timeout,
    })
}

fn token(given: Option<&Secret>, funnel: &mut Funnel) -> Option<Secret> {
    let variable = "OPENCTI__TOKEN";
    let make = "make a token for the manager's user in OpenCTI";
    match given.map(|token| token.expose().trim()) {
        None => funnel.problem(variable, "it is not set".to_owned(), make),
        Some("ChangeMe") => funnel.problem(variable, "it still is the daemon's placeholder".to_owned(), make),
        Some(token) if token.chars().any(|c| !c.is_ascii_graphic()) => {
            funnel.problem(variable, "it holds characters that no token has".to_owned(), "copy the token again");
        }
        Some(token) => return Some(Secret::new(token.to_owned())),
    }
    None
}
