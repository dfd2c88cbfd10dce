//! The table that the benchmark prints, and whether every limit holds.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::Sample;

/// One line of the table. Times in seconds, memory in MB of a million bytes.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) wall: Vec<f64>,
    pub(crate) cpu: Vec<f64>,
    pub(crate) peak: Vec<f64>,
    pub(crate) platform_calls: Option<usize>,
    pub(crate) engine_calls: Option<usize>,
    pub(crate) limits: Vec<Limit>,
}

/// What a figure may be at most, or must be at least.
#[derive(Clone)]
pub(crate) struct Limit {
    what: String,
    got: String,
    pub(crate) held: bool,
}

impl Limit {
    /// `got` may be at most `most`.
    pub(crate) fn most(what: &str, unit: &str, got: f64, most: f64) -> Self {
        Self { what: format!("{what} ≤ {most}{unit}"), got: format!("{}{unit}", figure(got)), held: got <= most }
    }

    /// Two counts must be the same.
    pub(crate) fn same(what: &str, got: usize, wanted: usize) -> Self {
        Self { what: format!("{what} = {wanted}"), got: got.to_string(), held: got == wanted }
    }

    fn verdict(&self) -> String {
        let Self { got, .. } = self;
        if self.held { format!("ok ({got})") } else { format!("**OVER ({got})**") }
    }
}

impl Row {
    /// A row without figures.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let (wall, cpu, peak, limits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { what: what.into(), wall, cpu, peak, platform_calls: None, engine_calls: None, limits }
    }

    /// Of several runs of the program.
    pub(crate) fn of(what: impl Into<String>, samples: &[Sample]) -> Self {
        Self {
            wall: samples.iter().map(|sample| sample.usage.wall.as_secs_f64()).collect(),
            cpu: samples.iter().map(|sample| sample.usage.cpu.as_secs_f64()).collect(),
            peak: samples.iter().map(|sample| megabytes(sample.usage.peak)).collect(),
            platform_calls: samples.last().map(|sample| sample.platform_calls),
            ..Self::new(what)
        }
    }

    /// The highest peak of all runs.
    pub(crate) fn highest_peak(&self) -> f64 {
        self.peak.iter().copied().fold(0.0, f64::max)
    }

    fn cells(&self) -> [String; 8] {
        let count = |calls: Option<usize>| calls.map_or("–".to_owned(), |calls| calls.to_string());
        let limits: Vec<_> = self.limits.iter().map(|limit| limit.what.clone()).collect();
        let verdicts: Vec<_> = self.limits.iter().map(Limit::verdict).collect();
        [
            self.what.clone(),
            spread(&self.wall),
            spread(&self.cpu),
            if self.peak.is_empty() { "–".to_owned() } else { format!("{:.1}", self.highest_peak()) },
            count(self.platform_calls),
            count(self.engine_calls),
            limits.join("<br>"),
            verdicts.join("<br>"),
        ]
    }
}

/// The table in Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| what | wall, s | user+sys CPU, s | peak RSS, MB | platform calls | engine calls | limit | verdict |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let _ = writeln!(text, "| {} |", row.cells().join(" | "));
    }
    text
}

/// A limit that does not hold is a failure, with the default arguments.
pub(crate) fn verdict(rows: &[Row], is_default: bool) -> ExitCode {
    let over = rows.iter().flat_map(|row| &row.limits).any(|limit| !limit.held);
    match (over, is_default) {
        (false, _) => ExitCode::SUCCESS,
        (true, true) => ExitCode::FAILURE,
        (true, false) => {
            println!("Limits are for the default arguments: that some do not hold is no failure here.");
            ExitCode::SUCCESS
        }
    }
}

/// The middle value; the mean of the two middle ones when their number is even.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// Bytes in MB.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// `median (lowest – highest)`.
fn spread(values: &[f64]) -> String {
    if values.is_empty() {
        return "–".to_owned();
    }
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(0.0, f64::max);
    format!("{} ({} – {})", figure(median(values)), figure(lowest), figure(highest))
}

/// Small figures with more decimals than large ones.
fn figure(value: f64) -> String {
    match value {
        value if value < 0.01 => format!("{value:.4}"),
        value if value < 1.0 => format!("{value:.3}"),
        value if value < 10.0 => format!("{value:.2}"),
        value => format!("{value:.1}"),
    }
}
