//! What the program prints as JSON, against the schemas that scripts rely on.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

/// Of the report of a pass or a plan.
pub(crate) const REPORT: &str = include_str!("../../../fixtures/schemas/report.v2.schema.json");
/// Of what `check` found, and of a configuration that was refused.
pub(crate) const CHECK: &str = include_str!("../../../fixtures/schemas/check.v2.schema.json");

/// Reads one document of the program. Panics when it is not as its schema says.
#[track_caller]
pub(crate) fn read(text: &str) -> Value {
    static VALIDATORS: LazyLock<[Validator; 2]> = LazyLock::new(|| [REPORT, CHECK].map(validator));
    let document: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in stdout:\n{text}"));
    let [report, check] = &*VALIDATORS;
    let schema = if document.get("checks").is_some() { check } else { report };
    let errors: Vec<String> =
        schema.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "not as the schema says:\n{}\n{document:#}", errors.join("\n"));
    document
}

/// The one lane of a report. Panics when there are others.
#[track_caller]
pub(crate) fn only_lane(document: &Value) -> Value {
    match document["lanes"].as_array().map(Vec::as_slice) {
        Some([lane]) => lane.clone(),
        _ => panic!("a report with one lane is expected: {document:#}"),
    }
}

fn validator(schema: &str) -> Validator {
    let schema: Value = serde_json::from_str(schema).expect("a schema is JSON");
    jsonschema::draft202012::new(&schema).unwrap_or_else(|error| panic!("{error}"))
}
