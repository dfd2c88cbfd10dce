//! Remembers recent restarts and judges from them whether a workload is in a reboot loop (design: Restart window).
//! Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// More than `limit` restarts within `window_s` seconds are a reboot loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopRule {
    /// The length of the window in seconds, at least 1.
    pub window_s: i64,
    /// The number of restarts that is still no loop.
    pub limit: u64,
}

/// One point of a restart history. It is stored as `[seconds, total]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample(
    /// The time, as Unix time in seconds.
    pub i64,
    /// The number of restarts over the workload's life until that time.
    pub u64,
);

/// What the engine says of a workload's restarts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The engine's restart counter.
    pub counter: u64,
    /// What the counter belongs to: the id of a container or the uid of a pod. The counter of a new one begins at zero.
    pub generation: &'a str,
    /// When the workload was made, which is where a history without samples begins.
    pub created: Timestamp,
    /// Whether the engine delays restarts because the workload crashes again and again.
    pub backing_off: bool,
}

/// The restarts of one workload over its life, even when its container is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartWindow {
    /// The number of restarts over the workload's life. It goes on when the engine's counter begins at zero again.
    pub total: u64,
    /// The engine's counter at the time of the last update.
    pub counter: u64,
    /// What that counter belonged to: the id of a container or the uid of a pod.
    pub generation: String,
    /// The points of the history, the oldest first.
    pub samples: Vec<Sample>,
}

/// The judgement on a restart history at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assessment {
    /// The number of restarts over the workload's life so far.
    pub total: u64,
    /// Whether the workload is in a reboot loop.
    pub looping: bool,
}

/// Brings the history up to date with a reading of the engine, and judges it.
///
/// `extra` counts restarts that are not in the engine's counter, because a pass made them itself. Returns the history
/// to remember (`None` while there was never a restart) and the judgement. The history does not change when nothing
/// happened, so that nothing is written for connectors without restarts.
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
        // When somebody stops and starts a container, its counter begins at zero again, although it is the same
        // container.
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
    /// Ignores all restarts so far in later judgements, because their cause is gone: the configuration changed, or
    /// somebody stopped the connector. The total stays.
    pub fn start_anew(&mut self) {
        let older = self.samples.len().saturating_sub(1);
        self.samples.drain(..older);
    }
}

/// The sample from which restarts are counted: the newest one that is at least a window old, else the oldest one, else
/// the creation of the workload with no restart.
fn base(samples: &[Sample], created: Timestamp, rule: LoopRule, now_s: i64) -> Sample {
    samples
        .iter()
        .rev()
        .find(|sample| now_s.saturating_sub(sample.0) >= rule.window_s)
        .or_else(|| samples.first())
        .copied()
        .unwrap_or(Sample(created.as_second(), 0))
}
