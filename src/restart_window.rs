//! The memory of recent restarts from which a reboot loop is judged (design: Restart window). Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// When more than `limit` restarts within `window_s` seconds make a reboot loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopRule {
    /// Seconds, at least 1.
    pub window_s: i64,
    /// Restarts that are still fine.
    pub limit: u64,
}

/// One point of a restart history. On the wire: `[seconds, total]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample(
    /// Unix time in seconds.
    pub i64,
    /// Restarts over the workload's life until then.
    pub u64,
);

/// What the engine says of a workload's restarts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The engine's counter.
    pub counter: u64,
    /// What the counter belongs to: container id or pod uid. A new one starts at zero.
    pub generation: &'a str,
    /// When the workload was made: the start of a history without samples.
    pub created: Timestamp,
    /// Whether the engine itself takes it for a reboot loop.
    pub backing_off: bool,
}

/// Restarts of one workload over its life, across replacement of its container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartWindow {
    /// Restarts over the workload's life. The engine's counter resets, this does not.
    pub total: u64,
    /// The engine's counter when `total` was last brought up to date.
    pub counter: u64,
    /// What that counter belonged to.
    pub generation: String,
    /// Oldest first.
    pub samples: Vec<Sample>,
}

/// What a restart history says at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assessment {
    /// Restarts over the workload's life.
    pub total: u64,
    /// Whether that is a reboot loop.
    pub looping: bool,
}

/// Brings the history up to date with what the engine says, and judges it.
///
/// `extra` counts restarts that the engine's counter does not hold: those which a pass made itself.
/// Gives the history to remember (`None` while there was never a restart) and the judgement. The history is unchanged
/// when nothing happened, so that a quiet fleet is not written.
#[must_use]
pub fn observe(
    known: Option<&RestartWindow>,
    reading: Reading<'_>,
    extra: u64,
    rule: LoopRule,
    now: Timestamp,
) -> (Option<RestartWindow>, Assessment) {
    let now_s = now.as_second();
    let before = known.map_or(0, |window| window.total);
    let counted = match known {
        // A manual stop and start resets the counter of the same container.
        Some(window) if window.generation == reading.generation && reading.counter >= window.counter => {
            reading.counter - window.counter
        }
        _ => reading.counter,
    };
    let total = before.saturating_add(counted).saturating_add(extra);
    let samples = known.map_or(&[][..], |window| &window.samples);
    let base = base(samples, reading.created, rule, now_s);
    let elapsed = now_s.saturating_sub(base.0).max(rule.window_s).max(1);
    let recent = u128::from(total.saturating_sub(base.1)) * u128::from(rule.window_s.unsigned_abs());
    let engine_says_so = reading.backing_off && reading.counter > rule.limit;
    let looping = engine_says_so || recent > u128::from(rule.limit) * u128::from(elapsed.unsigned_abs());
    let assessment = Assessment { total, looping };

    let reset = known.is_some_and(|w| w.generation == reading.generation && reading.counter < w.counter);
    if total == before && !reset {
        return (known.cloned(), assessment);
    }
    let mut kept: Vec<Sample> = samples.iter().copied().filter(|sample| sample.0 >= base.0).collect();
    if total != before {
        kept.push(Sample(now_s, total));
    }
    let window =
        RestartWindow { total, counter: reading.counter, generation: reading.generation.to_owned(), samples: kept };
    (Some(window), assessment)
}

impl RestartWindow {
    /// Lets no restart so far count any more, for its cause was dealt with: another configuration, or a stop that was
    /// asked for. The total stays.
    pub fn start_anew(&mut self) {
        let older = self.samples.len().saturating_sub(1);
        self.samples.drain(..older);
    }
}

/// The newest sample at least one window old, else the oldest one, else the workload's creation with none.
fn base(samples: &[Sample], created: Timestamp, rule: LoopRule, now_s: i64) -> Sample {
    samples
        .iter()
        .rev()
        .find(|sample| now_s.saturating_sub(sample.0) >= rule.window_s)
        .or_else(|| samples.first())
        .copied()
        .unwrap_or(Sample(created.as_second(), 0))
}
