//! What both protocols have in common in reading answers, and how an answer is quoted without what is secret in it.

use super::error::PlatformError;
use super::transport::Answer;

/// Characters of an unexpected answer that are shown.
const EXCERPT: usize = 120;
/// Characters of a platform's own message that are passed on.
const MESSAGE_MAX: usize = 500;

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether it is a page for people: that of a login, a proxy or a wrong address.
    pub(crate) fn is_html(&self) -> bool {
        let body = self.body.trim_start();
        body.starts_with('<') || (self.content_type.starts_with("text/html") && !body.is_empty())
    }
}

impl PlatformError {
    /// For a status that nothing more is known of.
    pub(crate) fn status(operation: &'static str, url: &str, answer: &Answer) -> Self {
        let excerpt = match answer.status {
            300..=399 => format!("redirects to {}", answer.location),
            _ => excerpt(&answer.body),
        };
        Self::Status { operation, url: url.to_owned(), status: answer.status, excerpt }
    }

    pub(crate) fn html(operation: &'static str, url: &str, wanted: &'static str, answer: &Answer) -> Self {
        let (url, excerpt) = (url.to_owned(), excerpt(&answer.body));
        Self::NotProtocol { operation, url, kind: "an HTML page", wanted, excerpt }
    }

    /// For an answer that is not JSON. What looks like JSON is not quoted: it may hold a connector's values.
    pub(crate) fn unparsable(operation: &'static str, url: &str, text: &str, error: &serde_json::Error) -> Self {
        let (kind, excerpt) = match text.trim_start().chars().next() {
            None => ("nothing", excerpt("")),
            Some('{' | '[' | '"') => ("broken JSON", format!("line {} column {}", error.line(), error.column())),
            Some(_) => ("something else", excerpt(text)),
        };
        Self::NotProtocol { operation, url: url.to_owned(), kind, wanted: "JSON", excerpt }
    }

    /// For JSON that does not have the protocol's shape.
    pub(crate) fn unexpected(operation: &'static str, url: &str, error: &serde_json::Error) -> Self {
        let (url, excerpt) = (url.to_owned(), shape_fault(error));
        Self::NotProtocol { operation, url, kind: "other JSON than the protocol's", wanted: "JSON", excerpt }
    }
}

/// A platform's own message, at a length that a report can hold.
pub(crate) fn message(text: &str) -> String {
    text.chars().take(MESSAGE_MAX).collect()
}

/// The beginning of a text on one line, without control characters.
pub(crate) fn excerpt(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = words.chars().take(EXCERPT).collect();
    if cut.is_empty() { "(empty)".to_owned() } else { cut }
}

/// What is wrong with the shape of a value, without the value: serde's messages quote it, and it may be a secret.
pub(crate) fn shape_fault(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let known = ["missing field", "duplicate field", "unknown field"].iter().any(|start| message.starts_with(start));
    // The last one: the value may hold the word itself.
    match message.rsplit_once("expected ") {
        _ if known => message,
        Some((_, expected)) if expected.starts_with("struct ") => "it is not an object".to_owned(),
        Some((_, expected)) => format!("expected {expected}"),
        None => format!("it does not fit at line {} column {}", error.line(), error.column()),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::{EXCERPT, excerpt, shape_fault};

    #[test]
    fn an_excerpt_is_one_short_printable_line() {
        assert_eq!(excerpt(" <html>\r\n\t<b>\u{1b}[31mno</b>\0 "), "<html> <b> [31mno</b>");
        assert_eq!(excerpt("\n"), "(empty)");
        assert_eq!(excerpt(&"ü".repeat(9999)).chars().count(), EXCERPT);
    }

    #[test]
    fn a_fault_of_shape_is_told_without_the_value_that_has_it() {
        #[derive(Deserialize, Debug)]
        #[expect(dead_code, reason = "read for its errors alone")]
        struct Wire {
            name: String,
            count: u8,
        }
        let fault = |json: &str| shape_fault(&serde_json::from_str::<Wire>(json).unwrap_err());
        assert!(fault(r#"{"name": "a"}"#).starts_with("missing field `count`"));
        for json in [
            r#"{"name": 47114711, "count": 1}"#,
            r#"{"name": "a", "count": "hunter2"}"#,
            r#"{"name": {"x": "hunter2"}, "count": 1}"#,
            r#"{"name": "a", "count": 47114711}"#,
            r#""expected hunter2""#,
        ] {
            let told = fault(json);
            assert!(!told.contains("hunter2") && !told.contains("4711"), "{json}: {told}");
        }
    }
}
