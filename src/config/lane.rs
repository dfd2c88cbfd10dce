//! Makes the settings of one platform's lane from the keys of that platform.

use std::time::Duration;

use super::parse::{self, FieldParser};
use super::source::Source;
use super::variables::{LaneTexts, ProcessTexts};
use super::{Notice, docker, kubernetes, xtm_one};
use crate::model::PlatformKind;
use crate::orchestrator::OrchestratorSettings;
use crate::pass::lane::LaneSettings;
use crate::plan::Policy;
use crate::platform::{Endpoint, PlatformSettings};
use crate::render::{ConnectorProxy, Registry};
use crate::secret::Secret;
use crate::xtm_one::XtmOneSettings;

/// The daemon's default.
const DEFAULT_SELECTOR: &str = "kubernetes";

/// The texts from which the settings of one lane are made.
pub(super) struct LaneInput<'a> {
    pub(super) platform: PlatformKind,
    pub(super) texts: &'a LaneTexts,
    pub(super) process: &'a ProcessTexts,
    /// What all lanes share of the registration with XTM One. `None` when it is not active.
    pub(super) xtm_one: Option<&'a XtmOneSettings>,
}

impl LaneInput<'_> {
    /// The full name of this platform's variable, for messages.
    pub(super) fn name(&self, group: &str, key: &str) -> String {
        format!("{}{group}{key}", self.platform.prefix())
    }
}

/// Makes the settings of a lane. Looks at every part even after a problem, so that all problems are reported at once.
pub(super) fn settings(lane: &LaneInput<'_>, policy: Policy, fields: &mut FieldParser) -> Option<LaneSettings> {
    let registry = registry(lane, fields);
    let orchestrator = orchestrator(lane, fields);
    let proxy = Proxy::new(lane, fields);
    let platform = platform(lane, proxy.as_ref(), fields);
    let token = platform.as_ref().map(|platform| &platform.endpoint.token);
    let xtm_one = xtm_one::of_lane(lane, token, orchestrator.as_ref(), fields);
    Some(LaneSettings {
        platform: platform?,
        xtm_one,
        connector_proxy: proxy.map(|proxy| proxy.settings),
        registry,
        orchestrator: orchestrator?,
        policy,
    })
}

fn orchestrator(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<OrchestratorSettings> {
    let selector = lane.texts.daemon__selector.as_deref().unwrap_or(DEFAULT_SELECTOR).trim().to_ascii_lowercase();
    match selector.as_str() {
        "docker" => return docker::settle(lane, fields).map(Box::new).map(OrchestratorSettings::Docker),
        "kubernetes" => return kubernetes::settle(lane, fields).map(Box::new).map(OrchestratorSettings::Kubernetes),
        // Docker may have been meant, so its problems are reported together with this one.
        _ => drop(docker::settle(lane, fields)),
    }
    let what = match selector.as_str() {
        "portainer" | "swarm" => format!("{selector} is not supported by this version"),
        other => format!("{other:?} is no orchestrator"),
    };
    let cure = "set it to kubernetes or docker, which this version supports";
    fields.problem(&lane.name("DAEMON__", "SELECTOR"), what, cure);
    None
}

fn registry(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Registry {
    let name = |key: &str| lane.name("DAEMON__REGISTRY__", key);
    let server = lane.texts.daemon__registry__server.as_deref().map(|text| {
        let text = text.trim();
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        bare.trim_end_matches('/').to_owned()
    });
    if server.as_deref().is_some_and(|s| s.is_empty() || s.chars().any(char::is_whitespace)) {
        fields.problem(&name("SERVER"), "it is no registry".to_owned(), "use HOST or HOST:PORT");
    }
    if let Some(server) = &server
        && crate::render::registry_of(&format!("{server}/image")).is_none()
    {
        let what = format!("the engine takes {server} for a user of Docker Hub, not for a registry");
        fields.problem(&name("SERVER"), what, "use HOST.DOMAIN, HOST:PORT or localhost");
    }
    let username = lane.texts.daemon__registry__username.clone();
    let password = lane.texts.daemon__registry__password.clone();
    if username.is_some() != password.is_some() {
        let missing = if username.is_some() { "PASSWORD" } else { "USERNAME" };
        fields.problem(&name(missing), "only one of user and password is set".to_owned(), "set both");
    }
    Registry { server, username, password, email: lane.texts.daemon__registry__email.clone() }
}

/// The proxy of a lane that uses one.
struct Proxy {
    settings: ConnectorProxy,
    /// The variables that the two URLs come from, for messages: the lane's own or those of the process.
    http_variable: String,
    https_variable: String,
}

impl Proxy {
    fn new(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<Self> {
        let (texts, process) = (lane.texts, lane.process);
        let with_proxy = fields.flag(&lane.name("", "WITH_PROXY"), texts.with_proxy.as_deref());
        let reject = texts.https_proxy_reject_unauthorized.as_deref();
        let reject_unauthorized = fields.flag(&lane.name("", "HTTPS_PROXY_REJECT_UNAUTHORIZED"), reject);
        if !with_proxy {
            return None;
        }
        let ca = fields.certificates(&lane.name("", "HTTPS_PROXY_CA"), texts.https_proxy_ca.as_deref());
        let variable =
            |key: &str, own: &Option<Secret>| if own.is_some() { lane.name("", key) } else { key.to_owned() };
        Some(Self {
            http_variable: variable("HTTP_PROXY", &texts.http_proxy),
            https_variable: variable("HTTPS_PROXY", &texts.https_proxy),
            settings: ConnectorProxy {
                http: texts.http_proxy.clone().or_else(|| process.http_proxy.clone()),
                https: texts.https_proxy.clone().or_else(|| process.https_proxy.clone()),
                no_proxy: texts.no_proxy.clone().or_else(|| process.no_proxy.clone()),
                ca: (!ca.is_empty()).then(|| ca.join("\n")),
                reject_unauthorized,
            },
        })
    }

    /// The URL of the proxy to use for a platform, with the variable that it comes from.
    fn towards(&self, platform_url: &str) -> (&str, Option<&Secret>) {
        if platform_url.starts_with("https:") {
            (&self.https_variable, self.settings.https.as_ref())
        } else {
            (&self.http_variable, self.settings.http.as_ref())
        }
    }
}

fn platform(lane: &LaneInput<'_>, proxy: Option<&Proxy>, fields: &mut FieldParser) -> Option<PlatformSettings> {
    let (texts, name) = (lane.texts, |key: &str| lane.name("", key));
    let seconds = |fields: &mut FieldParser, key: &str, text: &Option<String>| {
        Duration::from_secs(fields.number(&name(key), text.as_deref(), 1..=3600))
    };
    let request_timeout = seconds(fields, "REQUEST_TIMEOUT", &texts.request_timeout);
    let connect_timeout = seconds(fields, "CONNECT_TIMEOUT", &texts.connect_timeout);
    let pull_timeout = seconds(fields, "PULL_TIMEOUT", &texts.pull_timeout);
    let insecure = fields.flag(&name("UNSECURED_CERTIFICATE"), texts.unsecured_certificate.as_deref());
    let ca = fields.certificates(&name("CA"), texts.ca.as_deref());
    let tenant = fields.tenant(&name("TENANT"), texts.tenant.as_deref());
    let take_over = fields.flag(&name("TAKE_OVER"), texts.take_over.as_deref());
    let url = fields.url(&name("URL"), texts.url.as_deref());
    let token = token(lane, fields);
    let url = url?;
    let via = proxy.map(|proxy| proxy.towards(&url)).and_then(|(variable, via)| Some((variable, via?)));
    if let Some((variable, via)) = via {
        fields.proxy(variable, via);
    }
    let proxy = proxy.map(|proxy| &proxy.settings);
    let no_proxy = proxy.and_then(|proxy| proxy.no_proxy.as_deref()).unwrap_or_default();
    Some(PlatformSettings {
        kind: lane.platform,
        tenant,
        take_over,
        endpoint: Endpoint {
            proxy: via.map(|(_, via)| via.clone()),
            url,
            token: token?,
            insecure,
            ca,
            proxy_ca: proxy.and_then(|proxy| proxy.ca.clone()),
            no_proxy: parse::hosts(no_proxy),
            connect_timeout,
        },
        request_timeout,
        pull_timeout,
    })
}

fn token(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<Secret> {
    let variable = &lane.name("", "TOKEN");
    let make = &format!("make a token for the manager's user in {}", lane.platform.title());
    match lane.texts.token.as_ref().map(|token| token.expose().trim()) {
        None => fields.problem(variable, "it is not set".to_owned(), make),
        Some("ChangeMe") => fields.problem(variable, "it still is the daemon's placeholder".to_owned(), make),
        Some(token) if token.chars().any(|c| !c.is_ascii_graphic()) => {
            fields.problem(variable, "it holds characters that no token has".to_owned(), "copy the token again");
        }
        Some(token) => return Some(Secret::new(token.to_owned())),
    }
    None
}

/// Reports which options OpenAEV's connectors no longer get. The daemon uses OpenCTI's options for the registry and for
/// Docker with both platforms, while here each platform has its own.
pub(super) fn notice_of_options_that_were_shared(
    source: &Source,
    lanes: &[(PlatformKind, LaneTexts)],
) -> Option<Notice> {
    let [(PlatformKind::OpenCti, _), (PlatformKind::OpenAev, openaev)] = lanes else { return None };
    let selector = openaev.daemon__selector.as_deref().unwrap_or_default().trim();
    let groups = [("DAEMON__REGISTRY__", true), ("DAEMON__DOCKER__", selector.eq_ignore_ascii_case("docker"))];
    let under = |platform: PlatformKind, group: &str| source.names_under(&format!("{}{group}", platform.prefix()));
    let alone = groups.iter().filter(|(group, used)| *used && under(PlatformKind::OpenAev, group).is_empty());
    let names: Vec<&str> = alone.flat_map(|(group, _)| under(PlatformKind::OpenCti, group)).collect();
    (!names.is_empty()).then(|| {
        let names = names.join(", ");
        Notice::info(format!(
            "{names}: for OpenCTI's connectors only; the daemon used OpenCTI's registry and Docker options for both \
             platforms, here those of OpenAEV's connectors are OPENAEV__DAEMON__REGISTRY__* and OPENAEV__DAEMON__DOCKER__*"
        ))
    })
}
