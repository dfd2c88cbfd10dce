//! The restart window against a model that forgets nothing and computes the design's formula in rationals.

use jiff::Timestamp;
use proptest::prelude::*;
use xtm_reconcile::restart_window::{LoopRule, Reading, RestartWindow, observe};

use crate::generate::check;

/// What happens between two passes.
#[derive(Debug, Clone, Copy)]
enum Between {
    /// The engine restarts it so many times.
    Restarts(u64),
    /// It is replaced, and the new one is restarted so many times.
    Replaced(u64),
    /// It is stopped and started by hand, which resets the counter, and then restarted so many times.
    Reset(u64),
}

#[derive(Debug, Clone, Copy)]
struct Pass {
    after_s: i64,
    event: Between,
    /// Restarts that the pass makes itself.
    extra: u64,
}

fn passes() -> impl Strategy<Value = Vec<Pass>> {
    let interval = prop_oneof![6 => 10..120_i64, 3 => 120..900_i64, 1 => 900..20_000_i64];
    let few = prop_oneof![3 => Just(0_u64), 3 => 1..4_u64, 1 => 4..60_u64];
    let event = (few, 0..10_u8).prop_map(|(count, kind)| match kind {
        0 => Between::Replaced(count),
        1 => Between::Reset(count),
        _ => Between::Restarts(count),
    });
    let extra = prop_oneof![8 => Just(0_u64), 1 => Just(1_u64)];
    let pass = (interval, event, extra).prop_map(|(after_s, event, extra)| Pass { after_s, event, extra });
    prop::collection::vec(pass, 1..60)
}

/// All that an engine ever said, oldest first: (time, counter, generation, extra).
#[derive(Default)]
struct History(Vec<(i64, u64, u64, u64)>);

impl History {
    /// Restarts until the reading `upto`, that one included.
    fn total(&self, upto: usize) -> u64 {
        let mut previous: Option<(u64, u64)> = None;
        let mut total = 0;
        for &(_, counter, generation, extra) in &self.0[..=upto] {
            let known = previous.filter(|&(of, before)| of == generation && before <= counter);
            total += counter - known.map_or(0, |(_, before)| before) + extra;
            previous = Some((generation, counter));
        }
        total
    }

    /// Whether the last reading tells of a reboot loop.
    fn looping(&self, created: i64, rule: LoopRule) -> bool {
        let last = self.0.len() - 1;
        let (now, total) = (self.0[last].0, self.total(last));
        let changed = |&index: &usize| self.total(index) != if index == 0 { 0 } else { self.total(index - 1) };
        let samples: Vec<(i64, u64)> =
            (0..last).filter(changed).map(|index| (self.0[index].0, self.total(index))).collect();
        let old_enough = samples.iter().filter(|(time, _)| now - time >= rule.window_s).max();
        let base = old_enough.or(samples.first()).copied().unwrap_or((created, 0));
        let elapsed = (now - base.0).max(rule.window_s);
        i128::from(total - base.1) * i128::from(rule.window_s) > i128::from(rule.limit) * i128::from(elapsed)
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

#[test]
fn it_agrees_with_a_model_that_keeps_the_whole_history() {
    let rules = (prop_oneof![Just(300_i64), 30..1000_i64], 0..6_u64);
    check(512, (passes(), rules), |(passes, (window_s, limit))| {
        let rule = LoopRule { window_s, limit };
        let created = 1_772_000_000_i64;
        let (mut now, mut counter, mut generation) = (created, 0, 0);
        let mut history = History::default();
        let mut window: Option<RestartWindow> = None;
        for pass in passes {
            now += pass.after_s;
            match pass.event {
                Between::Restarts(count) => counter += count,
                Between::Replaced(count) => (generation, counter) = (generation + 1, count),
                Between::Reset(count) => counter = count,
            }
            history.0.push((now, counter, generation, pass.extra));
            let id = format!("generation-{generation}");
            let reading = Reading { counter, generation: &id, created: at(created), backing_off: false };
            let (next, said) = observe(window.as_ref(), reading, pass.extra, rule, at(now));
            let last = history.0.len() - 1;
            let before = if last == 0 { 0 } else { history.total(last - 1) };
            prop_assert_eq!(said.total, history.total(last));
            prop_assert_eq!(said.looping, history.looping(created, rule), "at {}", now);
            let samples = next.as_ref().map_or(0, |window| window.samples.len());
            prop_assert!(samples <= usize::try_from(window_s / 10 + 2).unwrap(), "{samples} samples");
            let reset = matches!(pass.event, Between::Reset(_));
            if said.total == before && !reset {
                prop_assert_eq!(&next, &window, "nothing happened, so nothing is to be written");
            }
            prop_assert_eq!(next.is_none(), said.total == 0);
            window = next;
        }
        Ok(())
    });
}

#[test]
fn a_clock_that_was_wrong_once_breaks_nothing() {
    let rule = LoopRule { window_s: 300, limit: 3 };
    let mut window = None;
    for (now, counter) in [(5_000, 1), (9_000_000, 2), (5_060, 3), (5_120, 4), (5_500, 5)] {
        let reading = Reading { counter, generation: "a", created: at(4_000), backing_off: false };
        let (next, said) = observe(window.as_ref(), reading, 0, rule, at(now));
        assert_eq!((said.total, said.looping), (counter, false), "at {now}");
        window = next;
    }
}

#[test]
fn a_loop_is_seen_by_a_pass_every_minute_and_by_one_every_hour() {
    let rule = LoopRule { window_s: 300, limit: 3 };
    for interval in [60, 600, 3600] {
        let mut window = None;
        let mut looping = vec![];
        for pass in 1..20 {
            let (now, counter) = (pass * interval, u64::try_from(pass * interval / 60).unwrap());
            let reading = Reading { counter, generation: "a", created: at(0), backing_off: false };
            let (next, said) = observe(window.as_ref(), reading, 0, rule, at(now));
            looping.push(said.looping);
            window = next;
        }
        assert!(looping[8..].iter().all(|looping| *looping), "one restart a minute, a pass every {interval} s");
    }
}
