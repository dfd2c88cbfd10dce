//! One measured run of the program, with its report.

use serde_json::Value;

use crate::child::Usage;
use crate::support::schema;

/// One measured run of the program.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) usage: Usage,
    /// Of the one lane that there is.
    pub(crate) report: Value,
    pub(crate) platform_calls: usize,
}

impl Sample {
    /// With what the program printed.
    pub(crate) fn new(usage: Usage, printed: &str, platform_calls: usize) -> Self {
        Self { usage, report: schema::only_lane(&schema::read(printed)), platform_calls }
    }

    /// A stage's time in milliseconds.
    pub(crate) fn stage(&self, name: &str) -> f64 {
        let stages = self.report["stages"].as_array().expect("stages");
        let stage = stages.iter().find(|stage| stage["name"] == name).expect("the stage was reached");
        stage["ms"].as_f64().expect("milliseconds")
    }

    /// All stages and their times in milliseconds.
    pub(crate) fn stages(&self) -> String {
        let stages = self.report["stages"].as_array().expect("stages").iter();
        let told = stages.map(|stage| format!("{} {}", stage["name"].as_str().unwrap_or_default(), stage["ms"]));
        told.collect::<Vec<_>>().join(", ")
    }
}
