//! The restart window against a model that forgets no pass and holds the design's three conditions word by word.

use jiff::Timestamp;
use proptest::prelude::*;
use xtm_reconcile::restart_window::{Assessment, LoopRule, Reading, RestartWindow, SAMPLES_MAX, Sample, observe};

use crate::generate::check;

const RULE: LoopRule = LoopRule { window_s: 300, limit: 3 };

/// What happens between two passes.
#[derive(Debug, Clone, Copy)]
enum Between {
    /// The engine restarts it so many times.
    Restarts(u64),
    /// It is replaced, and the new one is restarted so many times.
    Replaced(u64),
    /// It is stopped and started by hand, which resets the counter, and then restarted so many times.
    Reset(u64),
    /// Its restarts are forgiven, as when a hold is released.
    Released,
}

#[derive(Debug, Clone, Copy)]
struct Pass {
    after_s: i64,
    event: Between,
    /// Restarts that the pass makes itself.
    extra: u64,
    /// Whether the engine says that it crashes again and again.
    backing_off: bool,
    /// Whether the pass is killed before it leaves its time, although after it has written what changed.
    killed: bool,
}

fn passes() -> impl Strategy<Value = Vec<Pass>> {
    let interval = prop_oneof![6 => 30..200_i64, 2 => Just(300_i64), 3 => 200..900_i64, 2 => 900..3600_i64, 1 => 3600..200_000_i64];
    let few = prop_oneof![3 => Just(0_u64), 3 => 1..4_u64, 1 => 4..60_u64];
    let event = (few, 0..16_u8).prop_map(|(count, kind)| match kind {
        0 => Between::Replaced(count),
        1 => Between::Reset(count),
        2 => Between::Released,
        _ => Between::Restarts(count),
    });
    let extra = prop_oneof![8 => Just(0_u64), 1 => Just(1_u64)];
    let flags = (prop::bool::weighted(0.1), prop::bool::weighted(0.05));
    let pass = (interval, event, extra, flags).prop_map(|(after_s, event, extra, (backing_off, killed))| Pass {
        after_s,
        event,
        extra,
        backing_off,
        killed,
    });
    prop::collection::vec(pass, 1..60)
}

/// All passes, the creation as the first of them, each with its time and the restarts over the workload's life.
struct Model {
    rule: LoopRule,
    passes: Vec<(i64, u64)>,
    /// Whether it was looping, and the second condition has not held since.
    bound: bool,
}

impl Model {
    fn must_be(&self, engine_says_so: bool) -> bool {
        let ((now, total), earlier) = self.passes.split_last().unwrap();
        let window = self.rule.window_s;
        let grown = |q: &(i64, u64)| total - q.1;
        let within = earlier.iter().any(|q| now - q.0 <= window && grown(q) > self.rule.limit);
        let apart = earlier.last().is_some_and(|q| {
            let rate = i128::from(grown(q)) * i128::from(window);
            now - q.0 > window && rate > i128::from(self.rule.limit) * i128::from(now - q.0)
        });
        within || apart || engine_says_so
    }

    fn must_not_be(&self) -> bool {
        let ((now, total), earlier) = self.passes.split_last().unwrap();
        let newest_old = earlier.iter().rfind(|q| now - q.0 >= self.rule.window_s);
        newest_old.is_some_and(|q| total - q.1 <= self.rule.limit)
    }

    /// Compares the judgement on the newest pass with the three conditions.
    fn judge(&mut self, said: bool, engine_says_so: bool) -> Result<(), String> {
        let (must, must_not) = (self.must_be(engine_says_so), self.must_not_be());
        let wrong = if must && !said {
            "it must be looping"
        } else if must_not && !engine_says_so && said {
            "it must not be looping"
        } else if self.bound && !must_not && !said {
            "it flaps"
        } else {
            self.bound = said && !must_not;
            return Ok(());
        };
        Err(format!("{wrong} after {:?}", self.passes))
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn stored(window: Option<&RestartWindow>) -> Option<RestartWindow> {
    window.map(|window| serde_json::from_str(&serde_json::to_string(window).unwrap()).unwrap())
}

fn run(passes: Vec<Pass>, rule: LoopRule) -> Result<(), TestCaseError> {
    let created = 1_772_000_000_i64;
    let (mut now, mut counter, mut generation, mut total) = (created, 0, 0, 0);
    let mut before: Option<(u64, u64)> = None;
    let mut model = Model { rule, passes: vec![(created, 0)], bound: false };
    let (mut window, mut last_pass): (Option<RestartWindow>, _) = (None, None);
    for pass in passes {
        now += pass.after_s;
        match pass.event {
            Between::Restarts(count) => counter += count,
            Between::Replaced(count) => (generation, counter) = (generation + 1, count),
            Between::Reset(count) => counter = count,
            Between::Released => {}
        }
        let known = before.filter(|&(of, counted)| of == generation && counted <= counter);
        let more = counter - known.map_or(0, |(_, counted)| counted) + pass.extra;
        total += more;
        before = Some((generation, counter));

        let id = format!("generation-{generation}");
        let Pass { extra, backing_off, .. } = pass;
        let reading = Reading { counter, generation: &id, created: at(created), backing_off };
        let (next, said) = observe(window.as_ref(), reading, extra, rule, last_pass.map(at), at(now));
        prop_assert_eq!(said.total, total);
        let engine_says_so = backing_off && counter > rule.limit;
        let (known_passes, bound) = (model.passes.len(), model.bound);
        model.passes.push((now, total));
        let calm = model.must_not_be();
        model.judge(said.looping, engine_says_so).map_err(TestCaseError::fail)?;
        if pass.killed && more == 0 {
            // Nobody knows of it.
            model.passes.truncate(known_passes);
            model.bound = bound;
        }
        let samples = next.as_ref().map_or(0, |window| window.samples.len());
        prop_assert!(samples <= usize::try_from(2 * rule.limit + 2).unwrap(), "{samples} samples");
        let by_engine_alone = engine_says_so && !calm;
        if more == 0 && !matches!(pass.event, Between::Reset(_)) && !by_engine_alone {
            prop_assert_eq!(&next, &window, "nothing happened, so nothing is to be written");
        }
        prop_assert_eq!(next.is_none(), total == 0);
        window = stored(next.as_ref());
        if !pass.killed {
            last_pass = Some(now);
        }
        if let (Between::Released, Some(window)) = (pass.event, &mut window) {
            window.start_anew();
            let begins = model.passes.iter().position(|(_, then)| *then == total).unwrap();
            model.passes.drain(..begins);
            model.bound = false;
        }
    }
    Ok(())
}

// Shows what README says under "What a pass does": "**Reboot loops**: more than 3 restarts within 300 seconds".
#[test]
fn it_keeps_the_three_conditions_over_any_history() {
    let rules = (prop_oneof![2 => Just(300_i64), 1 => 30..1000_i64], prop_oneof![2 => Just(3_u64), 1 => 0..6_u64]);
    check(4096, (passes(), rules), |(passes, (window_s, limit))| run(passes, LoopRule { window_s, limit }));
}

/// A workload from its creation on, with a pass at every `interval`. `restarts` tells how many there were by then.
fn judged(interval: i64, passes: i64, restarts: impl Fn(i64) -> u64) -> Vec<Assessment> {
    let (mut window, mut last_pass) = (None, None);
    let pass = |number: i64| {
        let now = number * interval;
        let reading = Reading { counter: restarts(now), generation: "a", created: at(0), backing_off: false };
        let (next, said) = observe(window.as_ref(), reading, 0, RULE, last_pass, at(now));
        (window, last_pass) = (next, Some(at(now)));
        said
    };
    (1..=passes).map(pass).collect()
}

/// The restarts that Docker makes of what ends as soon as it is started: it waits twice as long each time, up to a
/// minute.
fn instant_crash(by_s: i64) -> u64 {
    let (mut time_ms, mut wait_ms, mut count) = (0, 100, 0);
    loop {
        time_ms += wait_ms;
        if time_ms > by_s * 1000 {
            return count;
        }
        count += 1;
        wait_ms = (wait_ms * 2).min(60_000);
    }
}

#[test]
fn an_instant_crash_is_a_loop_from_its_first_pass_on_however_often_passes_come() {
    for interval in [5, 30, 60, 120, 250] {
        let said = judged(interval, 100, instant_crash);
        assert!(said.iter().all(|said| said.looping), "a pass every {interval} s: {said:?}");
    }
}

#[test]
fn a_loop_that_begins_after_a_quiet_day_is_seen_by_the_first_pass_that_can_know_it() {
    let day = 86_400;
    let said = judged(120, 730, |now| u64::try_from((now - day).max(0) / 30).unwrap());
    let first = said.iter().position(|said| said.looping);
    // The day ends with pass 720. Four restarts in two minutes are more than three within five.
    assert_eq!(first, Some(720), "{:?}", &said[715..]);
    assert!(said[720..].iter().all(|said| said.looping));
}

#[test]
fn a_loop_is_seen_by_a_pass_every_minute_and_by_one_every_hour() {
    for interval in [60, 120, 600, 3600] {
        let said = judged(interval, 20, |now| u64::try_from(now / 60).unwrap());
        assert!(said[5..].iter().all(|said| said.looping), "one restart a minute, a pass every {interval} s: {said:?}");
    }
}

#[test]
fn a_loop_that_has_ended_is_none_any_more_when_the_window_has_passed() {
    let said = judged(60, 30, |now| u64::try_from(now.min(600) / 60).unwrap());
    assert!(said[9].looping && said[10].looping);
    assert!(said[16..].iter().all(|said| !said.looping), "{said:?}");
}

#[test]
fn without_the_time_of_the_last_pass_those_count_that_changed_something() {
    let mut window = None;
    let mut looping = vec![];
    for pass in 1..20 {
        let (now, counter) = (pass * 60, u64::try_from(pass).unwrap());
        let reading = Reading { counter, generation: "a", created: at(0), backing_off: false };
        let (next, said) = observe(window.as_ref(), reading, 0, RULE, None, at(now));
        looping.push(said.looping);
        window = next;
    }
    assert!(looping[4..].iter().all(|looping| *looping), "{looping:?}");
}

#[test]
fn a_history_that_an_earlier_version_stored_goes_on() {
    let text = r#"{"total":5,"counter":5,"generation":"a","samples":[[1000,4],[1100,5]]}"#;
    let window: RestartWindow = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&window).unwrap(), text, "an earlier version can read it again");
    let look = |counter, now| {
        let reading = Reading { counter, generation: "a", created: at(0), backing_off: false };
        observe(Some(&window), reading, 0, RULE, None, at(now)).1
    };
    assert_eq!(look(7, 1200), Assessment { total: 7, looping: false });
    assert_eq!(look(8, 1200), Assessment { total: 8, looping: true });
}

#[test]
fn a_clock_that_was_wrong_once_breaks_nothing() {
    let mut window = None;
    for (now, counter) in [(5_000, 1), (9_000_000, 2), (5_060, 3), (5_120, 4), (5_500, 5)] {
        let reading = Reading { counter, generation: "a", created: at(4_000), backing_off: false };
        let last_pass = window.as_ref().map(|_| at(9_000_000));
        let (next, said) = observe(window.as_ref(), reading, 0, RULE, last_pass, at(now));
        assert_eq!((said.total, said.looping), (counter, false), "at {now}");
        window = next;
    }
}

/// With a limit in the thousands, what is stored is no longer exact, but it stays small and close.
#[test]
fn a_large_limit_is_judged_closely_from_few_samples() {
    let rule = LoopRule { window_s: 604_800, limit: 5000 };
    let per_week = rule.window_s / 120;
    for (share, loops) in [(100, true), (95, false)] {
        let mut window: Option<RestartWindow> = None;
        let (mut last_pass, mut first) = (None, None);
        for pass in 1..=3 * per_week {
            let counter = u64::try_from(pass * share / 100).unwrap();
            let reading = Reading { counter, generation: "a", created: at(0), backing_off: false };
            let (next, said) = observe(window.as_ref(), reading, 0, rule, last_pass, at(pass * 120));
            first = first.or(said.looping.then_some(pass));
            (window, last_pass) = (next, Some(at(pass * 120)));
            assert!(window.as_ref().is_none_or(|window| window.samples.len() <= SAMPLES_MAX));
        }
        let oldest = window.and_then(|window| window.samples.first().copied());
        assert!(oldest.is_some_and(|Sample(time, _)| time < 2 * rule.window_s), "it looks back a whole window");
        assert_eq!(first.is_some(), loops, "{share} % of the passes");
        assert!(first.is_none_or(|pass| pass < per_week * 21 / 20), "seen only at pass {first:?} of {per_week} a week");
    }
}
