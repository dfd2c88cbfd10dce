//! Speaks to XTM One (contracts 4). No message holds a secret: what XTM One answers is masked before it is quoted.

use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

use super::XtmOneSettings;
use crate::log_lines;
use crate::platform::answer;
use crate::platform::retry::{self, Retry};
use crate::platform::transport::{Answer, Method, Request, Transport, TransportError, USER_AGENT};
use crate::secret::Secret;
use crate::stop::Stop;

const REGISTER: &str = "/api/v1/platform/register";
const METADATA: &str = "/xtm/auth/metadata";
const JSON: &str = "application/json";
/// The longest `status` that is passed on, in characters.
const STATUS_MAX: usize = 60;
/// How much of a message is looked at, in characters.
const QUOTED_MAX: usize = 65_536;
/// The beginning of every token of OpenCTI (contracts 5).
const TOKEN_PREFIX: &str = "flgrn_octi_tkn_";

/// Why XTM One could not be used. `url` is its address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum XtmOneError {
    #[error("XTM One: {0}")]
    Transport(#[from] TransportError),
    #[error(
        "XTM One at {url} refused the token {hint} with HTTP {status} (user agent {agent}, sent from {origin}){told}"
    )]
    TokenRefused {
        url: String,
        status: u16,
        /// The first characters of the token.
        hint: String,
        agent: &'static str,
        /// The machine that sent it, and the proxy that it went through.
        origin: String,
        /// XTM One's own words after a colon. Empty when it has none.
        told: String,
    },
    #[error("XTM One at {url} answered HTTP {status}: {message}")]
    Refused { url: String, status: u16, message: String, retry_after: Option<Duration> },
    /// The answer has the status of success and is not what the protocol prescribes.
    #[error("XTM One at {url} answered with {what}")]
    NotProtocol { url: String, what: String },
    /// A fault of this program: the request could not be written, or its task was lost.
    #[error("the registration was abandoned: {0}")]
    Abandoned(String),
}

/// A registration that was sent, with what came back.
pub(super) struct SentOff {
    answer: Result<Answer, TransportError>,
    /// Whether XTM One may have taken what was sent, in any of the attempts.
    may_be_done: bool,
}

/// Why a registration failed.
pub(super) struct Unregistered {
    pub(super) error: Box<XtmOneError>,
    /// Whether XTM One may have taken what was sent, in any of the attempts.
    pub(super) may_be_done: bool,
}

impl XtmOneError {
    /// The wait that XTM One asks for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(crate) fn cure(&self) -> &'static str {
        const PROXY: &str = "see that XTM__HTTP_PROXY or XTM__HTTPS_PROXY is right and allows CONNECT to XTM One";
        const ADDRESS: &str = "see that XTM__XTM_ONE_URL is XTM One itself, and not a login page or proxy before it";
        const LOG: &str = "look into XTM One's log at this time";
        match self {
            Self::Transport(error) => match error {
                TransportError::Unreachable { .. } | TransportError::ConnectTimeout { .. } => {
                    "see that XTM One is up, and that XTM__XTM_ONE_URL and the proxy settings are right"
                }
                TransportError::Timeout { .. } => "see why XTM One is slow, or raise XTM__REQUEST_TIMEOUT",
                TransportError::Proxy { .. } => PROXY,
                TransportError::Tls { .. } => "set XTM__CA to the CA that signed XTM One's certificate",
                TransportError::Truncated { .. } => LOG,
            },
            Self::TokenRefused { .. } => "set XTM__XTM_ONE_TOKEN to XTM One's PLATFORM_REGISTRATION_TOKEN",
            Self::Refused { status: 300..=399, .. } => "set XTM__XTM_ONE_URL to where it redirects",
            Self::Refused { status: 400 | 422, .. } => {
                "XTM One wants another generation of the registration: set XTM__PAYLOAD to users or intents"
            }
            Self::Refused { status: 404 | 405, .. } | Self::NotProtocol { .. } => ADDRESS,
            Self::Refused { status: 413, .. } => {
                "let XTM One and the proxy before it take larger requests, or name fewer users in XTM__USERS_INCLUDE"
            }
            Self::Refused { status: 429, .. } => "let fewer platforms register at a time",
            Self::Refused { .. } => LOG,
            Self::Abandoned(_) => "report it, with the log",
        }
    }
}

/// XTM One's answer to a registration.
#[derive(Debug, Default)]
pub(super) struct Registered {
    pub(super) status: String,
    pub(super) ee_enabled: Option<bool>,
    pub(super) user_integrations: Option<u64>,
    /// How many intents the catalogue has. `None` in generations without one.
    pub(super) intents: Option<usize>,
    pub(super) version: Option<String>,
    pub(super) chat_web_token: Option<Secret>,
}

/// What XTM One's endpoint of metadata says.
#[derive(Debug)]
pub(crate) enum Probe {
    Issuer(String),
    /// The endpoint does not exist: an older build, or another server.
    NoMetadata,
}

/// A client for XTM One.
pub(crate) struct XtmOne {
    transport: Transport,
    url: String,
    hint: String,
    origin: String,
    timeout: Duration,
    stop: Stop,
}

impl XtmOne {
    /// Makes the client without sending anything.
    pub(crate) fn new(settings: &XtmOneSettings, stop: Stop) -> Self {
        let endpoint = &settings.endpoint;
        Self {
            transport: Transport::new(endpoint, 1),
            url: endpoint.url.clone(),
            hint: endpoint.token.hint(""),
            origin: endpoint.origin(),
            timeout: settings.request_timeout,
            stop,
        }
    }

    /// Sends a registration. Sending the same one twice does no harm, so it is repeated as long as the pass allows.
    /// Blocks its thread.
    pub(super) fn send(&self, body: &Zeroizing<Vec<u8>>) -> SentOff {
        let request = Request {
            method: Method::Post,
            path: REGISTER,
            body: Some(body),
            accept: JSON,
            authorized: true,
            timeout: self.timeout,
        };
        let mut may_be_done = false;
        let answer =
            retry::send_watched(&self.transport, &self.stop, Retry::IdempotentAndPatient, &request, |result| {
                may_be_done |= match result {
                    Ok(answer) => matches!(answer.status, 200..=299 | 408 | 500..=599),
                    Err(error) => error.may_be_done(),
                };
            });
        SentOff { answer, may_be_done }
    }

    /// Reads the answer to a registration. `secrets` are those that were sent, which are masked in what is quoted.
    pub(super) fn read(&self, sent: SentOff, secrets: &[&Secret]) -> Result<Registered, Unregistered> {
        let SentOff { answer, may_be_done } = sent;
        let registered = match answer {
            Ok(answer) if answer.is_success() => self.registered(&answer, secrets),
            Ok(answer) => Err(self.refused(&answer, secrets)),
            Err(error) => Err(error.into()),
        };
        registered.map_err(|error| Unregistered { error: Box::new(error), may_be_done })
    }

    /// Asks for the metadata, which needs no token and changes nothing.
    pub(crate) fn probe(&self) -> Result<Probe, XtmOneError> {
        let request = Request {
            method: Method::Get,
            path: METADATA,
            body: None,
            accept: JSON,
            authorized: false,
            timeout: self.timeout,
        };
        let answer = retry::send(&self.transport, &self.stop, Retry::Idempotent, &request)?;
        match answer.status {
            404 => Ok(Probe::NoMetadata),
            200..=299 => {
                let value: Option<Value> = serde_json::from_str(&answer.body).ok();
                let issuer = value.as_ref().and_then(|value| value.get("issuer")?.as_str());
                let issuer = issuer.map(|issuer| Probe::Issuer(shown(issuer, &[])));
                issuer.ok_or_else(|| self.not_protocol(&answer, "metadata without an issuer"))
            }
            // No token was sent, so none was refused.
            status => Err(XtmOneError::Refused {
                url: self.url.clone(),
                status,
                message: shown(&message(&answer), &[]),
                retry_after: answer.retry_after,
            }),
        }
    }

    /// Reads the answer of any generation. Fields that are missing or of another type are unknown, but without a status
    /// it is not XTM One that answered.
    fn registered(&self, answer: &Answer, secrets: &[&Secret]) -> Result<Registered, XtmOneError> {
        let Ok(Value::Object(mut fields)) = serde_json::from_str(&answer.body) else {
            return Err(self.not_protocol(answer, "something else than a JSON object"));
        };
        let chat_web_token = match fields.remove("chat_web_token") {
            Some(Value::String(token)) if !token.trim().is_empty() => Some(Secret::new(token)),
            _ => None,
        };
        let Some(status) = fields.get("status").and_then(Value::as_str) else {
            return Err(self.not_protocol(answer, "JSON that has no status"));
        };
        Ok(Registered {
            status: shown(status, secrets).chars().take(STATUS_MAX).collect(),
            ee_enabled: fields.get("ee_enabled").and_then(Value::as_bool),
            user_integrations: fields.get("user_integrations").and_then(Value::as_u64),
            intents: fields.get("intent_catalog").and_then(Value::as_array).map(Vec::len),
            version: fields.get("version").and_then(Value::as_str).map(|version| shown(version, secrets)),
            chat_web_token,
        })
    }

    fn not_protocol(&self, answer: &Answer, what: &str) -> XtmOneError {
        let what = match () {
            () if answer.is_html() => "an HTML page".to_owned(),
            () if answer.body.trim().is_empty() => "nothing".to_owned(),
            () => what.to_owned(),
        };
        XtmOneError::NotProtocol { url: self.url.clone(), what }
    }

    fn refused(&self, answer: &Answer, secrets: &[&Secret]) -> XtmOneError {
        let message = match answer.status {
            300..=399 => format!("it redirects to {}", shown(&answer.location, secrets)),
            _ => shown(&message(answer), secrets),
        };
        let (url, status) = (self.url.clone(), answer.status);
        if matches!(status, 401 | 403) {
            let told = if message.is_empty() { message } else { format!(": {message}") };
            let (hint, origin) = (self.hint.clone(), self.origin.clone());
            return XtmOneError::TokenRefused { url, status, hint, agent: USER_AGENT, origin, told };
        }
        XtmOneError::Refused { url, status, message, retry_after: answer.retry_after }
    }
}

/// The words of a refusal. A validation error names the place and the rule, and not the value that it also quotes, which
/// may be a key.
fn message(answer: &Answer) -> String {
    if answer.is_html() {
        return "an HTML page".to_owned();
    }
    let Ok(body) = serde_json::from_str::<Value>(&answer.body) else {
        return answer.body.chars().take(QUOTED_MAX).collect();
    };
    let told = ["detail", "message", "error"].iter().find_map(|field| body.get(field));
    let text = match told {
        Some(Value::Array(faults)) => faults.iter().filter_map(fault).collect::<Vec<_>>().join("; "),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(fields)) => {
            fields.get("message").or(fields.get("msg")).and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        _ => String::new(),
    };
    text.chars().take(QUOTED_MAX).collect()
}

/// What may be shown of a message. Secrets are masked before it is cut, because the cut could leave a part of one.
fn shown(message: &str, secrets: &[&Secret]) -> String {
    let masked = log_lines::masked(&answer::on_one_line(message), secrets.iter().copied());
    // XTM One may quote a part of a key, or a key of an earlier registration.
    let mut parts = masked.split(TOKEN_PREFIX);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        text.push_str(log_lines::MASK);
        text.push_str(rest);
    }
    answer::message(&text)
}

/// One fault of a validation error: where it is and what the rule is.
fn fault(fault: &Value) -> Option<String> {
    let place = fault.get("loc").and_then(Value::as_array).map(|place| {
        let parts = place.iter().map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned));
        parts.collect::<Vec<_>>().join(".")
    });
    let rule = fault.get("msg").and_then(Value::as_str)?;
    Some(place.map_or_else(|| rule.to_owned(), |place| format!("{place}: {rule}")))
}
