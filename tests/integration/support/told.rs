//! What a report or a message says.

use serde_json::Value;

/// Error and cure of every fault of a report, one a line.
pub(crate) fn faults(report: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let faults = report["errors"].as_array().into_iter().flatten();
    let lines = faults.map(|fault| format!("{} -> {}", text(&fault["error"]), text(&fault["cure"])));
    lines.collect::<Vec<_>>().join("\n")
}

/// Panics when one of `parts` is missing in `text`.
#[track_caller]
pub(crate) fn expect_all(text: &str, parts: &[&str], what: &str) {
    for part in parts {
        assert!(text.contains(part), "{what}: {part:?} is missing in:\n{text}");
    }
}
