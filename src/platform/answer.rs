//! Reads answers as far as both protocols have it in common, and quotes them without showing secrets.

use super::error::PlatformError;
use super::transport::Answer;

/// How many characters of an unexpected answer are shown.
const EXCERPT: usize = 120;
/// How many characters of a platform's own message are passed on.
const MESSAGE_MAX: usize = 500;

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the answer is an HTML page, which comes from a login, a proxy or a wrong address.
    pub(crate) fn is_html(&self) -> bool {
        let body = self.body.trim_start();
        body.starts_with('<') || (self.content_type.starts_with("text/html") && !body.is_empty())
    }
}

impl PlatformError {
    /// The error for a status of which nothing more is known.
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

    /// The error for an answer that is not JSON. Text that looks like JSON is not quoted, because it may hold a
    /// connector's values.
    pub(crate) fn unparsable(operation: &'static str, url: &str, text: &str, error: &serde_json::Error) -> Self {
        let (kind, excerpt) = match text.trim_start().chars().next() {
            None => ("nothing", excerpt("")),
            Some('{' | '[' | '"') => ("broken JSON", format!("line {} column {}", error.line(), error.column())),
            Some(_) => ("something else", excerpt(text)),
        };
        Self::NotProtocol { operation, url: url.to_owned(), kind, wanted: "JSON", excerpt }
    }

    /// The error for JSON that does not have the shape that the protocol prescribes.
    pub(crate) fn unexpected(operation: &'static str, url: &str, error: &serde_json::Error) -> Self {
        let (url, excerpt) = (url.to_owned(), shape_fault(error));
        Self::NotProtocol { operation, url, kind: "other JSON than the protocol's", wanted: "JSON", excerpt }
    }
}

/// A platform's own message, cut to a length that fits into a report.
pub(crate) fn message(text: &str) -> String {
    text.chars().take(MESSAGE_MAX).collect()
}

/// A text on one line, without control characters.
pub(crate) fn on_one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The beginning of a text on one line, without control characters.
pub(crate) fn excerpt(text: &str) -> String {
    let cut: String = on_one_line(text).chars().take(EXCERPT).collect();
    if cut.is_empty() { "(empty)".to_owned() } else { cut }
}

/// Says what is wrong with the shape of a value without quoting it. The messages of serde quote the value, which may be
/// a secret.
pub(crate) fn shape_fault(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let known = ["missing field", "duplicate field", "unknown field"].iter().any(|start| message.starts_with(start));
    // The last "expected" is that of serde. A value before it may hold the same word.
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
