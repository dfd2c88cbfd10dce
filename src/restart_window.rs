//! Remembers recent restarts and judges from them whether a workload is in a reboot loop (design: Restart window).
//! Pure.
//!
//! A pass knows the engine's counter at the times of passes only, so the rule is about passes. Let `c` of a pass be the
//! number of restarts over the workload's life at that pass; the creation of the workload counts as a pass with 0.
//!
//! - It **is** looping when `c` has grown by more than the limit since some pass within the window, when the last pass
//!   is longer ago than the window and the rate since then, taken over the window, exceeds the limit, or when the engine
//!   itself says so after more restarts than the limit.
//! - It **is not** looping when `c` has grown by no more than the limit since the newest pass that is at least a window
//!   ago, unless the engine says otherwise.
//! - Between the two it stays what it was, so that the judgement does not flap.
//!
//! A pass in which nothing happened writes nothing, so most passes are not remembered. That loses nothing, for during
//! such passes `c` stays the same: to judge any later pass, the first and the last pass with each value of `c` are
//! enough. The first is written when `c` changes. The last is known when `c` changes the next time, because the time of
//! the last pass is known from elsewhere (the lock or the Lease), and is written then. Whether the workload was looping
//! is written as well, when `c` changes; whether the second condition has come to hold since then follows from the rest.
//!
//! Of the values that exceed the limit already, only the newest can still decide anything. So at most
//! `2 * limit + 2` samples are kept, and never more than [`SAMPLES_MAX`], from which on they are thinned out evenly.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The largest number of samples that is stored of one workload, whatever the limit is.
pub const SAMPLES_MAX: usize = 64;

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
    /// Whether it was looping when this was written. It may have ended since, which [`observe`] finds out. Earlier
    /// versions did not write it.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub looping: bool,
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
/// `extra` counts restarts that are not in the engine's counter, because a pass made them itself. `last_pass` is when
/// a pass last brought this history up to date, whether or not that changed it; `None` when that is not known, and then
/// only the passes that changed it count. Returns the history to remember (`None` while there was never a restart) and
/// the judgement. The history does not change when nothing happened, so that nothing is written for connectors without
/// restarts.
#[must_use]
pub fn observe(
    known: Option<&RestartWindow>,
    reading: Reading<'_>,
    extra: u64,
    rule: LoopRule,
    last_pass: Option<Timestamp>,
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
    let mut passes = known_passes(known, reading.created, last_pass, now_s);
    let calm = is_calm(&passes, total, rule, now_s);
    let lasts = known.is_some_and(|window| window.looping)
        && !passes.last().is_some_and(|last| is_calm(&passes, before, rule, last.0));
    let engine_says_so = reading.backing_off && reading.counter > rule.limit;
    let looping = engine_says_so || is_loop(&passes, total, rule, now_s) || (lasts && !calm);
    let assessment = Assessment { total, looping };

    // Once it is calm, a judgement of the engine alone lasts no longer than the engine says so.
    let looping = looping && !calm;
    let reset = known.is_some_and(|w| w.generation == reading.generation && reading.counter < w.counter);
    let begins = looping && known.is_some_and(|window| !window.looping);
    if total == before && !reset && !begins {
        return (known.cloned(), assessment);
    }
    let samples = if total == before {
        known.map_or_else(Vec::new, |window| window.samples.clone())
    } else {
        passes.push(Sample(now_s, total));
        kept(passes, total, rule, now_s)
    };
    let generation = reading.generation.to_owned();
    (Some(RestartWindow { total, counter: reading.counter, generation, samples, looping }), assessment)
}

impl RestartWindow {
    /// Ignores all restarts so far in later judgements, because their cause is gone: the configuration changed, or
    /// somebody stopped the connector. The total stays.
    pub fn start_anew(&mut self) {
        let older = self.samples.len().saturating_sub(1);
        self.samples.drain(..older);
        self.looping = false;
    }
}

/// The passes that are known, the oldest first. A time that is still to come was written while a clock was wrong, and
/// does not count.
fn known_passes(
    known: Option<&RestartWindow>,
    created: Timestamp,
    last_pass: Option<Timestamp>,
    now_s: i64,
) -> Vec<Sample> {
    let (mut passes, before) = match known {
        Some(window) => (window.samples.clone(), window.total),
        // The engine's clock may be ahead of this one.
        None => (vec![Sample(created.as_second().min(now_s), 0)], 0),
    };
    passes.retain(|pass| pass.0 <= now_s);
    let last_pass = last_pass.map(Timestamp::as_second).filter(|last| *last <= now_s);
    if let Some(last) = last_pass.filter(|last| passes.last().is_none_or(|pass| pass.0 < *last)) {
        passes.push(Sample(last, before));
    }
    passes
}

/// The first condition of the rule, without what the engine says. The rate counts since the newest pass that is at least
/// a window ago, which is the last pass when that one is so long ago. Between the two conditions either is right, and a
/// rate beyond the limit is a loop there as well.
fn is_loop(passes: &[Sample], total: u64, rule: LoopRule, now_s: i64) -> bool {
    let age = |pass: &Sample| now_s.saturating_sub(pass.0);
    let grown = |pass: &Sample| total.saturating_sub(pass.1);
    let recent = |pass: &Sample| age(pass) <= rule.window_s && grown(pass) > rule.limit;
    let fast = |pass: &Sample| {
        let restarts = u128::from(grown(pass)) * u128::from(rule.window_s.unsigned_abs());
        restarts > u128::from(rule.limit) * u128::from(age(pass).unsigned_abs())
    };
    passes.iter().any(recent) || newest_old(passes, rule, now_s).is_some_and(fast)
}

/// The second condition of the rule, at any time from the newest of `passes` on.
fn is_calm(passes: &[Sample], total: u64, rule: LoopRule, now_s: i64) -> bool {
    newest_old(passes, rule, now_s).is_some_and(|pass| total.saturating_sub(pass.1) <= rule.limit)
}

/// The newest pass that is at least a window ago.
fn newest_old(passes: &[Sample], rule: LoopRule, now_s: i64) -> Option<&Sample> {
    passes.iter().rfind(|pass| now_s.saturating_sub(pass.0) >= rule.window_s)
}

/// The passes that can still decide something. From what is older than the newest pass that is at least a window ago
/// nothing follows any more, nor from what is older than the newest pass since which the limit is exceeded.
fn kept(mut passes: Vec<Sample>, total: u64, rule: LoopRule, now_s: i64) -> Vec<Sample> {
    let newest = |holds: &dyn Fn(&Sample) -> bool| passes.iter().rposition(holds).unwrap_or_default();
    let old = newest(&|pass| now_s.saturating_sub(pass.0) >= rule.window_s);
    let exceeded = newest(&|pass| total.saturating_sub(pass.1) > rule.limit);
    passes.drain(..old.max(exceeded));
    while passes.len() > SAMPLES_MAX {
        // The one whose neighbours are closest together says the least.
        let gaps = passes.windows(3).map(|three| match three {
            [before, _, after] => after.0.saturating_sub(before.0),
            _ => i64::MAX,
        });
        let least = gaps.enumerate().min_by_key(|(_, gap)| *gap).map_or(0, |(place, _)| place + 1);
        passes.remove(least);
    }
    passes
}
