//! The registration with XTM One: a first run, and what it adds to a quiet pass. There are no connectors, so that nothing
//! else counts.

use stand_in_platform::{State, User, XTM_ONE_DEFAULT_TOKEN};

use crate::child::Program;
use crate::platform::Platform;
use crate::sample::Sample;
use crate::scene::Scene;
use crate::support::{unique, variable};
use crate::table::{Limit, Row, median};

/// Users of the first run and of the quiet pass.
const USERS: usize = 1000;
/// Users of the passes whose memory is compared.
const MANY: usize = 5000;
/// A first run over [`USERS`], in seconds.
const FIRST_S: f64 = 15.0;
/// What the registration adds to a quiet pass over [`USERS`], in milliseconds.
const ADDED_MS: f64 = 50.0;
/// What it adds to the memory of a pass over [`MANY`], in MB.
const ADDED_MB: f64 = 10.0;
/// Quiet passes in each round, with and without the registration in turn.
const PASSES: usize = 10;

/// A manager with a platform of its own that has users.
struct Office {
    platform: Platform,
    program: Program,
}

pub(crate) fn rows(scene: &Scene) -> Vec<Row> {
    let (mut first, mut with, mut without) = (vec![], vec![], vec![]);
    for _ in 0..scene.repeat {
        let office = Office::new(scene, USERS);
        first.push(office.pass(true));
        for _ in 0..PASSES {
            with.push(office.pass(true));
            without.push(office.pass(false));
        }
    }
    let many = Office::new(scene, MANY);
    let begun = many.pass(true);
    let (with_many, without_many) = (many.pass(true), many.pass(false));

    let mut first = Row::of(format!("XTM One, first run on {USERS} users"), &first);
    first.limits.push(Limit::most("wall", " s", median(&first.wall), FIRST_S));
    let without = Row::of("quiet pass without XTM One", &without);
    let mut with = Row::of(format!("quiet pass with XTM One, {USERS} users"), &with);
    let added_ms = (median(&with.wall) - median(&without.wall)) * 1000.0;
    with.limits.push(Limit::most("wall", " ms more", added_ms, ADDED_MS));
    let calls = |row: &Row| f64::from(u32::try_from(row.platform_calls.unwrap_or_default()).expect("few calls"));
    // One call more is the registration itself, which goes to XTM One.
    let pages = f64::from(u32::try_from(USERS / 500 + 3 + 1).expect("a small number"));
    with.limits.push(Limit::most("calls", " more", calls(&with) - calls(&without), pages));
    let mut first_many = Row::of(format!("XTM One, first run on {MANY} users"), &[begun]);
    let base = Row::of("", &[without_many]).highest_peak();
    first_many.limits.push(Limit::most("RSS", " MB more", first_many.highest_peak() - base, ADDED_MB));
    let mut with_many = Row::of(format!("quiet pass with XTM One, {MANY} users"), &[with_many]);
    with_many.limits.push(Limit::most("RSS", " MB more", with_many.highest_peak() - base, ADDED_MB));
    vec![first, without, with, first_many, with_many]
}

impl Office {
    fn new(scene: &Scene, users: usize) -> Self {
        let platform = Platform::start(variable("XTM_BENCH_STAND_IN").as_ref());
        let mut state = State { platform_version: "7.260220.0".to_owned(), ..State::default() };
        let person = |n| {
            User::person(
                format!("88ec0c6a-13ce-4e39-b486-{n:012}"),
                format!("person-{n:05}@example.org"),
                format!("Person {n}"),
            )
        };
        state.users.extend((0..users).map(person));
        platform.set(&state);
        let mut program = scene.program(scene.docker_host());
        for (name, value) in [("MANAGER__ID", unique("bench-xtm")), ("OPENCTI__URL", platform.url.clone())] {
            program.variables.retain(|(known, _)| known != name);
            program.variables.push((name.to_owned(), value));
        }
        Self { platform, program }
    }

    fn pass(&self, registering: bool) -> Sample {
        let mut program = self.program.clone();
        if registering {
            let url = format!("{}/xtm-one", self.platform.url);
            for (name, value) in [
                ("XTM__XTM_ONE_URL", url.as_str()),
                ("XTM__XTM_ONE_TOKEN", XTM_ONE_DEFAULT_TOKEN),
                ("XTM__MAX_NEW_TOKENS", "5000"),
            ] {
                program.variables.push((name.to_owned(), value.to_owned()));
            }
        }
        self.platform.forget_calls();
        let (usage, printed) = program.run();
        Sample::new(usage, &printed, self.platform.calls())
    }
}
