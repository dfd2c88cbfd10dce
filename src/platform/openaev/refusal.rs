//! Explains the answers with which OpenAEV refuses a request (contracts 3, errors). Pure.

use serde::Deserialize;
use serde_json::Value;

use crate::model::Cure;
use crate::platform::answer;
use crate::platform::error::PlatformError;
use crate::platform::transport::{Answer, USER_AGENT};

const TOKEN_CURE: Cure = Cure("set P__TOKEN to a valid token of the manager's user in OpenAEV");
const HIDDEN_CURE: Cure = Cure(
    "give the role of the token's user that capability; if it has it, see that P__URL and P__TENANT are right and that the \
     platform is OpenAEV 2.1.0 or later",
);
const GUARD_CURE: Cure = Cure(
    "set P__TENANT to the tenant in which the token's user has its capabilities, and see that no proxy adds a cookie or changes \
     the Authorization header, which makes OpenAEV's CSRF guard refuse writes",
);
const LICENCE_CURE: Cure = Cure("see the state of the Enterprise licence in OpenAEV's settings");
const EVICTED_CURE: Cure = Cure(
    "see which other composer registered with this platform; stop it, or set P__TAKE_OVER=true to take the place back",
);
const GONE_CURE: Cure =
    Cure("nothing: the next pass does not find it in the list any more, and removes what runs of it");
const INVALID_CURE: Cure =
    Cure("compare the platform's version with the ones that the README names; where they fit, report this message");

/// The meaning of such an answer. The texts are the platform's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 401: the token is missing or not a valid one.
    Token,
    /// 400: another composer has the place, or nobody does.
    WrongComposer,
    /// 400: the value of a field is not allowed.
    Invalid(String),
    /// 404 for a whole route, which is the answer to a user who lacks the capability for it.
    Hidden(String),
    /// 404 for one instance, which somebody deleted.
    Gone(String),
    /// 403: the action needs an Enterprise licence.
    Licence,
    /// Any other 403 that comes from OpenAEV itself.
    Guarded(String),
    /// 409: the request conflicts with the state of the platform.
    Conflict(String),
    /// The body does not come from OpenAEV or does not concern this request, so only the status says anything.
    Unexplained,
}

/// The request that was refused, as far as an explanation needs it.
pub(super) struct Setting<'a> {
    pub(super) operation: &'static str,
    pub(super) url: &'a str,
    pub(super) id: &'a str,
    pub(super) hint: &'a str,
    pub(super) origin: &'a str,
    /// The capability that the operation needs.
    pub(super) capability: &'static str,
    /// Whether the request went to the tenant of the settings, like all other calls, and not to the tenant of one
    /// connector.
    pub(super) everywhere: bool,
}

/// The fields of all the bodies that an error can have.
#[derive(Default, Deserialize)]
struct Body {
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    errors: Option<Value>,
    /// A body that has a path and no message comes from the web framework.
    #[serde(default)]
    path: Option<String>,
}

impl Refusal {
    pub(super) fn of(answer: &Answer) -> Self {
        if answer.status == 401 {
            return Self::Token;
        }
        let Ok(body) = serde_json::from_str::<Body>(&answer.body) else { return Self::Unexplained };
        let fields = fields(body.errors.as_ref());
        let message = answer::message(body.message.as_deref().unwrap_or_default());
        let error = body.error.as_deref().map(answer::message);
        match answer.status {
            // Some builds give no reason here. They have no other 400 without a message (contracts 3).
            400 if message.contains("xtm-composer identifier") || (message.is_empty() && body.path.is_some()) => {
                Self::WrongComposer
            }
            400 | 422 => Self::Invalid(together(&words(message, error), &fields)),
            404 if message.starts_with("Element not found: ConnectorInstance") => Self::Gone(message),
            404 => Self::Hidden(words(message, error)),
            403 if message == "LICENSE_RESTRICTION" => Self::Licence,
            403 => Self::Guarded(words(message, error)),
            409 => Self::Conflict(together(&message, &error.into_iter().collect::<Vec<_>>())),
            _ => Self::Unexplained,
        }
    }

    pub(super) fn explain(self, setting: &Setting<'_>, answer: &Answer) -> PlatformError {
        let Setting { operation, url, id, hint, origin, capability, everywhere } = *setting;
        let explained = |message, cure, general| PlatformError::Explained { operation, message, cure, general };
        match self {
            Self::Token => PlatformError::TokenRefused {
                url: url.to_owned(),
                hint: hint.to_owned(),
                agent: USER_AGENT,
                origin: origin.to_owned(),
                cure: TOKEN_CURE,
            },
            Self::WrongComposer => {
                let what =
                    format!("{operation}: {url} does not take {id:?} for its composer: another one has the place");
                PlatformError::OtherManager { what, cure: EVICTED_CURE }
            }
            Self::Invalid(what) => {
                explained(format!("{url} answered HTTP {}: {what}", answer.status), INVALID_CURE, false)
            }
            Self::Hidden(what) => {
                let message = format!(
                    "{url} answered HTTP 404 ({}): the token's user lacks the capability {capability}, or there is no such route",
                    answer::excerpt(&what)
                );
                explained(message, HIDDEN_CURE, everywhere)
            }
            Self::Gone(what) => {
                explained(format!("the connector was deleted on {url} meanwhile: {what}"), GONE_CURE, false)
            }
            Self::Licence => explained(
                format!("{url} answered HTTP 403: LICENSE_RESTRICTION, it takes a licence"),
                LICENCE_CURE,
                false,
            ),
            Self::Guarded(what) => {
                explained(format!("{url} answered HTTP 403: {}", answer::excerpt(&what)), GUARD_CURE, false)
            }
            Self::Conflict(message) => {
                PlatformError::Refused { operation, url: url.to_owned(), code: "HTTP 409".to_owned(), message }
            }
            Self::Unexplained if answer.status == 403 && answer.body.is_empty() => {
                explained(format!("{url} answered HTTP 403: (empty)"), GUARD_CURE, false)
            }
            Self::Unexplained => PlatformError::status(operation, url, answer),
        }
    }
}

/// Turns `{children: {field: {errors: [..]}}}` into texts of the form `field: what is wrong with it`.
fn fields(errors: Option<&Value>) -> Vec<String> {
    let children = errors.and_then(|errors| errors.get("children")).and_then(Value::as_object);
    let told = children.into_iter().flatten().map(|(field, child)| {
        let errors = child.get("errors").and_then(Value::as_array);
        let errors: Vec<&str> = errors.into_iter().flatten().filter_map(Value::as_str).collect();
        answer::message(&format!("{field}: {}", errors.join(", ")))
    });
    told.collect()
}

fn words(message: String, error: Option<String>) -> String {
    if message.is_empty() { error.unwrap_or_default() } else { message }
}

fn together(message: &str, more: &[String]) -> String {
    if more.is_empty() { message.to_owned() } else { format!("{message} ({})", more.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::{Refusal, Setting};
    use crate::model::PlatformKind;
    use crate::platform::transport::Answer;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, body: body.to_owned().into(), ..Answer::default() }
    }

    const SPRING: &str = r#"{"timestamp":"2026-01-01T00:00:00Z","status":400,"error":"Bad Request","path":"/api/x"}"#;
    const BLANK: &str =
        r#"{"code":400,"message":"Validation Failed","errors":{"children":{"name":{"errors":["must not be blank"]}}}}"#;
    const LICENCE: &str =
        r#"{"code":403,"message":"LICENSE_RESTRICTION","errors":{"children":{"message":{"errors":["no licence"]}}}}"#;

    #[test]
    fn each_odd_answer_has_a_message_a_cure_and_a_reach_of_its_own() {
        let cases: [(u16, &str, &str, &str, bool); 18] = [
            (401, "", "https://aev refused the token abcd… (user agent xtm-reconcile/", "set OPENAEV__TOKEN", true),
            (403, LICENCE, "LICENSE_RESTRICTION", "Enterprise licence", false),
            (403, r#"{"status":403,"error":"Forbidden"}"#, "HTTP 403: Forbidden", "OPENAEV__TENANT", false),
            (403, "", "HTTP 403: (empty)", "cookie", false),
            (403, "<html>blocked</html>", "HTTP 403: <html>blocked", "proxy or firewall", false),
            (
                404,
                r#"{"id":"1","message":"Not Found"}"#,
                "404 (Not Found): the token's user lacks the capability catalog write",
                "OPENAEV__TENANT",
                true,
            ),
            (404, "<html>nginx</html>", "HTTP 404: <html>nginx", "see that OPENAEV__URL", true),
            (
                404,
                r#"{"id":"1","message":"Element not found: ConnectorInstance with id X not found"}"#,
                "deleted",
                "removes",
                false,
            ),
            (
                400,
                r#"{"id":"1","message":"Invalid xtm-composer identifier"}"#,
                "does not take \"me\"",
                "OPENAEV__TAKE_OVER",
                true,
            ),
            (400, SPRING, "another one has the place", "OPENAEV__TAKE_OVER", true),
            (400, BLANK, "HTTP 400: Validation Failed (name: must not be blank)", "README", false),
            (400, r#"{"id":"1","message":"Invalid value 'x' for field 'y'"}"#, "for field 'y'", "README", false),
            (400, "<html>bad</html>", "HTTP 400: <html>bad", "log of the platform", false),
            (400, r#"{"error":"a proxy's"}"#, "HTTP 400: a proxy", "README", false),
            (409, r#"{"type":"T","message":"m","error":"e"}"#, "answered HTTP 409: m (e)", "platform's log", false),
            (429, "", "HTTP 429", "log of the platform", true),
            (500, r#"{"message":"x"}"#, "HTTP 500", "log of the platform", false),
            (503, "", "HTTP 503", "log of the platform", true),
        ];
        for (status, body, message, cure, general) in cases {
            let answer = answer(status, body);
            let setting = Setting {
                operation: "status",
                url: "https://aev",
                id: "me",
                hint: "abcd…",
                origin: "here",
                capability: "catalog write",
                everywhere: true,
            };
            let error = Refusal::of(&answer).explain(&setting, &answer);
            let (told, cured) = (error.to_string(), error.cure().on(PlatformKind::OpenAev));
            assert!(told.contains(message), "{status} {body}: {told}");
            assert!(cured.contains(cure), "{status} {body}: {cured}");
            assert!(!cured.contains("OPENCTI") && !cured.contains("P__"), "{cured}");
            assert_eq!(error.is_general(), general, "{status} {body}");
        }
    }

    #[test]
    fn what_another_tenants_route_hides_is_that_connectors_matter() {
        let answer = answer(404, r#"{"message":"Not Found"}"#);
        let (url, id, hint, origin, capability) = ("u", "me", "h", "o", "c");
        let setting = Setting { operation: "logs", url, id, hint, origin, capability, everywhere: false };
        assert!(!Refusal::of(&answer).explain(&setting, &answer).is_general());
    }
}
