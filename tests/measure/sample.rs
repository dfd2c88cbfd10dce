//! One measured run of the program, with its report.

use crate::child::Usage;

/// One measured run of the program.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) usage: Usage,
    pub(crate) report: serde_json::Value,
    pub(crate) platform_calls: usize,
}

impl Sample {
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
