//! Makes the settings of the registration with XTM One. All lanes share them, but for a few that are one product's.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::Uri;
use wildmatch::WildMatch;

use super::Notice;
use super::lane::LaneInput;
use super::parse::{self, FieldParser};
use super::variables::ProcessTexts;
use crate::model::PlatformKind;
use crate::orchestrator::OrchestratorSettings;
use crate::platform::Endpoint;
use crate::secret::Secret;
use crate::xtm_one::{ChatTokenPlace, Licence, PayloadChoice, UserRules, XtmOneSettings};

const URL: &str = "XTM__XTM_ONE_URL";
const TOKEN: &str = "XTM__XTM_ONE_TOKEN";
/// The registration token that XTM One has when nobody has set another one (contracts 6).
const PUBLIC_TOKEN: &str = "xtm-default-registration-token";
/// The value of the administrator's key that stands for the manager's own token.
const PLATFORM_TOKEN: &str = "platform-token";
/// The longest name of an object of Kubernetes.
const NAME_MAX: usize = 253;

/// The settings that all lanes share. `None` when the registration is not active. Parts that only one product has are
/// filled in by [`of_lane`].
pub(super) fn settings(process: &ProcessTexts, fields: &mut FieldParser) -> Option<XtmOneSettings> {
    let url = match (process.xtm__xtm_one_url.as_deref(), process.xtm__xtm_one_token.is_some()) {
        (None, false) => return None,
        (None, true) => {
            let cure = format!("set {URL} as well, or unset the token");
            fields.problem(TOKEN, "it is set without the URL of XTM One".to_owned(), &cure);
            return None;
        }
        (Some(_), false) => {
            fields.notices.push(Notice::info(format!(
                "{URL} alone does nothing here, because the chatbot proxy uses it as well: set {TOKEN} to register with XTM One"
            )));
            return None;
        }
        (Some(url), true) => fields.url(URL, Some(url)),
    };
    let allow_insecure = fields.flag("XTM__ALLOW_INSECURE", process.xtm__allow_insecure.as_deref());
    let token = token(process, fields);
    let number = |fields: &mut FieldParser, name: &str, text: &Option<String>, range| {
        fields.number(name, text.as_deref(), range)
    };
    let request = number(fields, "XTM__REQUEST_TIMEOUT", &process.xtm__request_timeout, 1..=3600);
    let connect = number(fields, "XTM__CONNECT_TIMEOUT", &process.xtm__connect_timeout, 1..=3600);
    let max_new_tokens = number(fields, "XTM__MAX_NEW_TOKENS", &process.xtm__max_new_tokens, 0..=5000);
    let force = fields.flag("XTM__FORCE", process.xtm__force.as_deref());
    let payload = payload(process, fields);
    let users = UserRules {
        include: globs("XTM__USERS_INCLUDE", process.xtm__users_include.as_deref(), fields),
        exclude: globs("XTM__USERS_EXCLUDE", process.xtm__users_exclude.as_deref(), fields).unwrap_or_default(),
        service_accounts: fields.flag("XTM__SERVICE_ACCOUNTS", process.xtm__service_accounts.as_deref()),
    };
    let ca = fields.certificates("XTM__CA", process.xtm__ca.as_deref());
    let (proxy, proxy_ca, no_proxy) = proxy(process, url.as_deref().unwrap_or_default(), fields);
    let connect_timeout = Duration::from_secs(connect);
    let url = url.filter(|url| is_safe(url, allow_insecure || (is_loopback(url) && proxy.is_none()), fields));
    // After a fault nothing is made of these settings, but the lanes look at their own parts first.
    let (url, token) = (url.unwrap_or_default(), token.unwrap_or_else(|| Secret::new(String::new())));
    Some(XtmOneSettings {
        endpoint: Endpoint { url, token, insecure: false, ca, proxy_ca, proxy, no_proxy, connect_timeout },
        request_timeout: Duration::from_secs(request),
        force,
        payload,
        platform_url: None,
        licence: None,
        admin_key: None,
        users,
        max_new_tokens: usize::try_from(max_new_tokens).unwrap_or_default(),
        chat_token: ChatTokenPlace::Nowhere,
    })
}

/// The settings of one lane. `token` is that of the lane's platform.
pub(super) fn of_lane(
    lane: &LaneInput<'_>,
    token: Option<&Secret>,
    orchestrator: Option<&OrchestratorSettings>,
    fields: &mut FieldParser,
) -> Option<XtmOneSettings> {
    let shared = lane.xtm_one?.clone();
    let is_opencti = lane.platform == PlatformKind::OpenCti;
    let chat_token = chat_token_place(lane, orchestrator, fields);
    if !is_opencti {
        return Some(XtmOneSettings { chat_token, ..shared });
    }
    let platform_url = lane.process.xtm__platform_url.as_deref();
    let platform_url = platform_url.and_then(|text| fields.url("XTM__PLATFORM_URL", Some(text)));
    let licence = lane.process.xtm__license_pem.as_ref().and_then(|pem| licence(pem, fields));
    let admin_key = lane.process.xtm__admin_api_key.as_ref().and_then(|key| admin_key(key, token, fields));
    Some(XtmOneSettings { platform_url, licence, admin_key, chat_token, ..shared })
}

/// Refuses plain HTTP to another machine, because every key would cross the network in clear.
fn is_safe(url: &str, plain_allowed: bool, fields: &mut FieldParser) -> bool {
    if url.starts_with("https:") || plain_allowed {
        return true;
    }
    let cure = "use https, or set XTM__ALLOW_INSECURE=true when nobody can listen on that network";
    fields.problem(URL, "plain http to another machine would show every key on the network".to_owned(), cure);
    false
}

fn is_loopback(url: &str) -> bool {
    let uri = url.parse::<Uri>().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn token(process: &ProcessTexts, fields: &mut FieldParser) -> Option<Secret> {
    let token = process.xtm__xtm_one_token.as_ref().map(|token| token.expose().trim())?;
    if token.chars().any(|c| !c.is_ascii_graphic()) {
        fields.problem(TOKEN, "it holds characters that no token has".to_owned(), "copy the token again");
        return None;
    }
    if token == PUBLIC_TOKEN {
        fields.notices.push(Notice::warning(format!(
            "{TOKEN} is XTM One's public default, with which anybody can register: set another one there \
             (PLATFORM_REGISTRATION_TOKEN) and here"
        )));
    }
    Some(Secret::new(token.to_owned()))
}

/// After a fault it returns the default.
fn payload(process: &ProcessTexts, fields: &mut FieldParser) -> PayloadChoice {
    match process.xtm__payload.as_deref().unwrap_or_default().trim() {
        "auto" => PayloadChoice::ByVersion,
        "users" => PayloadChoice::Users,
        "intents" => PayloadChoice::Intents,
        other => {
            fields.problem("XTM__PAYLOAD", format!("{other:?} is no payload"), "use users, intents or auto");
            PayloadChoice::ByVersion
        }
    }
}

/// Parses globs on e-mail addresses, in which upper and lower case do not differ. `None` when the variable is not set.
fn globs(variable: &str, text: Option<&str>, fields: &mut FieldParser) -> Option<Vec<WildMatch>> {
    let globs = fields.list(variable, Some(text?))?;
    if globs.is_empty() {
        fields.problem(variable, "it holds no glob".to_owned(), "name addresses, such as *@example.org, or unset it");
    }
    Some(globs.iter().map(|glob| WildMatch::new_case_insensitive(glob.trim())).collect())
}

/// The proxy to XTM One, the PEM text of its CA, and the hosts that are reached without it.
fn proxy(process: &ProcessTexts, url: &str, fields: &mut FieldParser) -> (Option<Secret>, Option<String>, Vec<String>) {
    if !fields.flag("XTM__WITH_PROXY", process.xtm__with_proxy.as_deref()) {
        return (None, None, vec![]);
    }
    let (variable, own, shared) = if url.starts_with("https:") {
        ("HTTPS_PROXY", &process.xtm__https_proxy, &process.https_proxy)
    } else {
        ("HTTP_PROXY", &process.xtm__http_proxy, &process.http_proxy)
    };
    let proxy = own.as_ref().or(shared.as_ref()).cloned();
    if let Some(proxy) = &proxy {
        let variable = if own.is_some() { format!("XTM__{variable}") } else { variable.to_owned() };
        fields.proxy(&variable, proxy);
    }
    let ca = fields.certificates("XTM__HTTPS_PROXY_CA", process.xtm__https_proxy_ca.as_deref());
    let no_proxy = process.xtm__no_proxy.as_deref().or(process.no_proxy.as_deref()).unwrap_or_default();
    (proxy, (!ca.is_empty()).then(|| ca.join("\n")), parse::hosts(no_proxy))
}

fn licence(pem: &Secret, fields: &mut FieldParser) -> Option<Licence> {
    let variable = "XTM__LICENSE_PEM";
    match Licence::read(pem) {
        Ok(licence) => Some(licence),
        Err(why) => {
            fields.problem(variable, why.to_owned(), "give the licence's -----BEGIN CERTIFICATE----- block alone");
            None
        }
    }
}

fn admin_key(key: &Secret, platform_token: Option<&Secret>, fields: &mut FieldParser) -> Option<Secret> {
    let variable = "XTM__ADMIN_API_KEY";
    match key.expose().trim() {
        PLATFORM_TOKEN => platform_token.cloned(),
        key if platform_token.is_some_and(|token| token.expose() == key) => {
            let what = "it is the manager's own token".to_owned();
            fields.problem(variable, what, "make a key of its own, or write platform-token to send that one");
            None
        }
        key if key.chars().any(|c| !c.is_ascii_graphic()) => {
            fields.problem(variable, "it holds characters that no key has".to_owned(), "copy the key again");
            None
        }
        key => Some(Secret::new(key.to_owned())),
    }
}

/// Where this lane keeps the `chat_web_token`. Each platform gets one of its own, and OpenAEV's is kept apart from
/// OpenCTI's.
fn chat_token_place(
    lane: &LaneInput<'_>,
    orchestrator: Option<&OrchestratorSettings>,
    fields: &mut FieldParser,
) -> ChatTokenPlace {
    let process = lane.process;
    let secret = process.xtm__chat_web_token_secret.as_deref().map(str::trim);
    let file = process.xtm__chat_web_token_file.as_deref().map(str::trim);
    let own = |name: &str, separator: char| match lane.platform {
        PlatformKind::OpenCti => name.to_owned(),
        PlatformKind::OpenAev => format!("{name}{separator}{}", lane.platform.label()),
    };
    match (orchestrator, secret, file) {
        (Some(OrchestratorSettings::Kubernetes(_)), Some(name), _) => {
            let name = own(name, '-');
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            let usable = name.len() <= NAME_MAX
                && name.starts_with(plain)
                && name.ends_with(plain)
                && name.chars().all(|c| plain(c) || matches!(c, '-' | '.'));
            if !usable {
                let cure = "use lower-case letters, digits, '-' and '.'";
                fields.problem("XTM__CHAT_WEB_TOKEN_SECRET", format!("{name:?} is no name of a Secret"), cure);
            }
            ChatTokenPlace::Secret(name)
        }
        (_, _, Some(path)) => ChatTokenPlace::File(PathBuf::from(own(path, '.'))),
        (Some(OrchestratorSettings::Docker(_)), Some(_), None) => {
            let what = format!("the connectors of {} run on Docker, which has no Secrets", lane.platform.title());
            fields.problem("XTM__CHAT_WEB_TOKEN_SECRET", what, "set XTM__CHAT_WEB_TOKEN_FILE instead");
            ChatTokenPlace::Nowhere
        }
        _ => ChatTokenPlace::Nowhere,
    }
}
