//! Stories of several passes: a refresh that is killed at any point, a reboot loop from its first restart to its cure.

use jiff::Timestamp;
use xtm_reconcile::desired::{self, Desired, Listing, WireConnector};
use xtm_reconcile::memory::Memory;
use xtm_reconcile::model::{Change, ConfigHash, ConnectorId, Handle, Observed, Phase, PlatformKind, Vitals, Workload};
use xtm_reconcile::plan::{Decision, LoopAction, Plan, Policy, PrunePolicy, Skip, Step, plan};
use xtm_reconcile::probation::ProbationRule;
use xtm_reconcile::restart_window::LoopRule;

use crate::generate::now;
use crate::simulator::{World, later};

const POLICY: Policy = Policy {
    loop_rule: LoopRule { window_s: 300, limit: 3 },
    loop_action: LoopAction::Stop,
    prune: PrunePolicy { allow: false, max_percent: 50 },
    probation: ProbationRule { length_s: 60, after_restart_s: 300 },
    release: None,
};

fn wanted(hash: &str, requested: &str, current: &str) -> Desired {
    let connector = WireConnector {
        id: "c1".to_owned(),
        name: "Alpha".to_owned(),
        image: "image:1".to_owned(),
        hash: hash.to_owned(),
        requested: requested.to_owned(),
        current: Some(current.to_owned()),
        configuration: vec![],
    };
    desired::read(Listing { connectors: vec![connector], unreadable: vec![] })
}

fn workload(handle: &str, name: &str, hash: &str, phase: Phase) -> Workload {
    Workload {
        handle: Handle(handle.to_owned()),
        name: name.to_owned(),
        connector: ConnectorId::new("c1").unwrap(),
        platform: Some(PlatformKind::OpenCti),
        hash: Some(ConfigHash::new(hash).unwrap()),
        phase,
        created: later(now(), -100_000),
        vitals: phase.is_up().then_some(Vitals { restarts: 0, started_at: None, ..Vitals::default() }),
        change: Change::Replaced,
        troubles: vec![],
    }
}

/// Every state that a refresh goes through, and those that taking it back goes through. `kept` is for a refresh that keeps
/// what it replaces.
fn killed_refreshes(was_up: bool, start: bool, kept: bool) -> Vec<(&'static str, Vec<Workload>)> {
    let before = if was_up { Phase::Running } else { Phase::Exited };
    let old = |phase| workload("h-old", "alpha", "aaaa1111", phase);
    let former = |phase| workload("h-old", "alpha.hold.xtm-former", "aaaa1111", phase);
    let new = |name: &str, phase| workload("h-new", name, "bbbb2222", phase);
    let staged = "alpha.bbbb2222.xtm-next";
    let started = if start { Phase::Running } else { Phase::Created };
    let mut states =
        vec![("before anything", vec![old(before)]), ("after create", vec![old(before), new(staged, Phase::Created)])];
    if kept {
        states.push(("after rename old", vec![former(Phase::Running), new(staged, Phase::Created)]));
        states.push(("after stop old", vec![former(Phase::Exited), new(staged, Phase::Created)]));
        states.push(("after start new", vec![former(Phase::Exited), new(staged, Phase::Running)]));
        states.push(("after rename new", vec![former(Phase::Exited), new("alpha", Phase::Running)]));
        states.push(("after removing new again", vec![former(Phase::Exited)]));
        states.push(("after starting old again", vec![former(Phase::Running)]));
        return states;
    }
    states.push(("after stop old", vec![old(Phase::Exited), new(staged, Phase::Created)]));
    states.push(("after remove old", vec![new(staged, started)]));
    states.push(("after rename", vec![new("alpha", started)]));
    if start {
        states.push(("after start new", vec![old(Phase::Exited), new(staged, Phase::Running)]));
        states.push(("new ended before remove old", vec![old(Phase::Exited), new(staged, Phase::Exited)]));
        states.push(("new ended after remove old", vec![new(staged, Phase::Exited)]));
        states.push(("old started again", vec![old(Phase::Running), new(staged, Phase::Exited)]));
    }
    states
}

#[test]
fn a_refresh_that_was_killed_anywhere_is_mended_by_the_next_pass() {
    for (was_up, requested, kept) in [
        (true, "starting", true),
        (true, "starting", false),
        (false, "starting", false),
        (true, "stopped", false),
        (false, "stopped", false),
    ] {
        let start = requested == "starting";
        let desired = wanted("bbbb2222", requested, if was_up { "started" } else { "stopped" });
        for (state, mut workloads) in killed_refreshes(was_up, start, kept) {
            let story = format!("{requested}, up before: {was_up}, kept: {kept}, killed {state}");
            for vitals in workloads.iter_mut().filter_map(|w| w.vitals.as_mut()) {
                vitals.started_at = Some(now());
            }
            let running = |w: &&Workload| w.phase == Phase::Running;
            let runs = workloads.iter().find(running).map(|w| w.handle.clone());
            let mut world = World::new(Observed { workloads, ..Observed::default() });
            let first = plan(&desired, &world.observed, &Memory::default(), &POLICY, now());
            if start {
                let removed = first
                    .steps()
                    .any(|(_, step)| matches!(step, Step::Remove { handle, .. } if Some(handle) == runs.as_ref()));
                assert!(!removed, "{story}: what works is removed before something else does: {first:#?}");
            }
            world.apply(&first, &desired, now()).unwrap_or_else(|why| panic!("{story}: {why}"));
            // On probation, nothing changes.
            let second = plan(&desired, &world.observed, &first.memory, &POLICY, later(now(), 30));
            assert!(!second.has_steps(), "{story}: {second:#?}");
            let third = plan(&desired, &world.observed, &second.memory, &POLICY, later(now(), 60));
            world.apply(&third, &desired, later(now(), 60)).unwrap_or_else(|why| panic!("{story}: {why}"));
            let fourth = plan(&desired, &world.observed, &third.memory, &POLICY, later(now(), 120));
            assert!(!fourth.has_steps(), "{story}: {fourth:#?}");
            // What worked before a stop is kept until its replacement is started.
            world.observed.workloads.retain(|w| !(w.is_former() && was_up && !start && w.phase == Phase::Exited));
            let left: Vec<_> = world.observed.workloads.iter().map(|w| (w.name.as_str(), w.phase)).collect();
            match (start, left.as_slice()) {
                (true, [("alpha", Phase::Running)]) | (false, [("alpha", Phase::Created | Phase::Exited)] | []) => {}
                _ => panic!("{story}: {left:?} are left"),
            }
            let hashes = world.observed.workloads.iter().map(|w| w.hash.as_ref().unwrap().as_str());
            assert!(hashes.into_iter().all(|hash| hash == "bbbb2222"), "{story}: the old one is left");
        }
    }
}

/// A fleet of one whose passes come every minute.
struct Story {
    world: World,
    memory: Memory,
    time: Timestamp,
}

impl Story {
    fn new() -> Self {
        let workloads = vec![workload("h1", "alpha", "aaaa1111", Phase::Running)];
        let world = World::new(Observed { workloads, ..Observed::default() });
        Self { world, memory: Memory::default(), time: now() }
    }

    /// One pass after the engine restarted what is up so many times.
    fn pass(&mut self, desired: &Desired, restarts: u64) -> Plan {
        self.time = later(self.time, 60);
        for vitals in self.world.observed.workloads.iter_mut().filter_map(|w| w.vitals.as_mut()) {
            vitals.restarts += restarts;
        }
        let plan = plan(desired, &self.world.observed, &self.memory, &POLICY, self.time);
        self.world.apply(&plan, desired, self.time).unwrap();
        self.memory = plan.memory.clone();
        plan
    }

    /// Passes until the loop is seen and the workload held.
    fn held() -> Self {
        let mut story = Self::new();
        let desired = wanted("aaaa1111", "starting", "started");
        for _ in 0..10 {
            let plan = story.pass(&desired, 2);
            if plan.steps().any(|(_, step)| matches!(step, Step::Hold { .. })) {
                return story;
            }
        }
        panic!("two restarts a minute are never held");
    }

    fn phase(&self) -> Phase {
        self.world.observed.workloads[0].phase
    }
}

fn words(plan: &Plan) -> Vec<&'static str> {
    plan.steps().map(|(_, step)| step.word()).collect()
}

// Shows what README says under "What a pass does": "the connector is also stopped and held".
#[test]
fn a_held_connector_stays_stopped_and_nothing_is_written() {
    let mut story = Story::held();
    for _ in 0..20 {
        let before = story.memory.clone();
        let plan = story.pass(&wanted("aaaa1111", "starting", "stopped"), 0);
        assert_eq!(plan.entries[0].decision, Decision::Skip(Skip::Held));
        assert_eq!((story.phase(), &before), (Phase::Exited, &story.memory));
    }
}

#[test]
fn a_held_connector_with_a_new_configuration_gets_a_fresh_chance() {
    let mut story = Story::held();
    let mended = wanted("bbbb2222", "starting", "stopped");
    assert_eq!(words(&story.pass(&mended, 0)), ["refresh"]);
    for minute in 0..10 {
        assert_eq!(words(&story.pass(&mended, 0)), [""; 0], "{minute} minutes after it was mended");
        assert_eq!(story.phase(), Phase::Running);
    }
}

#[test]
fn a_new_configuration_that_loops_again_is_held_again() {
    let mut story = Story::held();
    let still_broken = wanted("bbbb2222", "starting", "stopped");
    assert_eq!(words(&story.pass(&still_broken, 0)), ["refresh"]);
    let held = (0..10).any(|_| words(&story.pass(&still_broken, 2)) == ["hold"]);
    assert!(held);
}

#[test]
fn a_held_connector_that_is_stopped_and_started_gets_a_fresh_chance() {
    let mut story = Story::held();
    assert_eq!(words(&story.pass(&wanted("aaaa1111", "stopping", "stopped"), 0)), [""; 0]);
    let started = wanted("aaaa1111", "starting", "stopped");
    assert_eq!(words(&story.pass(&started, 0)), ["start"]);
    for minute in 0..10 {
        assert_eq!(words(&story.pass(&started, 0)), [""; 0], "{minute} minutes after it was started");
        assert_eq!(story.phase(), Phase::Running);
    }
}

#[test]
fn a_looping_connector_that_is_stopped_and_started_before_it_is_held_gets_a_fresh_chance() {
    let mut story = Story::new();
    story.pass(&wanted("aaaa1111", "starting", "started"), 2);
    assert_eq!(words(&story.pass(&wanted("aaaa1111", "stopping", "started"), 9)), ["stop"]);
    assert_eq!(words(&story.pass(&wanted("aaaa1111", "starting", "stopped"), 0)), ["start"]);
    for _ in 0..10 {
        assert_eq!(words(&story.pass(&wanted("aaaa1111", "starting", "started"), 0)), [""; 0]);
    }
}

#[test]
fn a_held_workload_that_breaks_is_mended_but_stays_down() {
    let mut story = Story::held();
    story.world.observed.workloads[0].phase = Phase::Broken;
    for _ in 0..3 {
        story.pass(&wanted("aaaa1111", "starting", "stopped"), 0);
        assert!(!story.phase().is_up(), "nobody released it");
    }
    assert!(story.memory.connectors.values().all(|memory| memory.held.is_some()));
}

#[test]
fn a_workload_that_ends_by_itself_again_and_again_is_a_loop() {
    let mut story = Story::new();
    let desired = wanted("aaaa1111", "starting", "started");
    let mut steps = vec![];
    for _ in 0..12 {
        let workload = &mut story.world.observed.workloads[0];
        (workload.phase, workload.vitals) = (Phase::Exited, None);
        steps.extend(words(&story.pass(&desired, 0)));
    }
    // One restart a minute: five within 300 s is more than three.
    assert_eq!(steps.first(), Some(&"start"));
    assert!(steps.contains(&"hold"), "{steps:?}");
    assert_eq!(steps.last(), Some(&"hold"), "held, it gets no further step");
}

/// What was held is down after many restarts, which the engine still counts.
// Shows what README says under "What it leaves on a Docker engine": "where loops are stopped it holds what is down
// after more restarts".
#[test]
fn a_hold_that_was_lost_with_the_record_is_taken_up_again_instead_of_starting_the_loop() {
    let mut story = Story::held();
    story.memory = Memory::default();
    story.world.observed.record_lost = true;
    story.world.observed.workloads[0].vitals = Some(Vitals { restarts: 8, ..Vitals::default() });
    let desired = wanted("aaaa1111", "starting", "stopped");
    for _ in 0..5 {
        let plan = story.pass(&desired, 0);
        assert_eq!(plan.entries[0].decision, Decision::Skip(Skip::Held));
        story.world.observed.record_lost = false;
    }
    assert_eq!(words(&story.pass(&wanted("aaaa1111", "stopping", "stopped"), 0)), [""; 0]);
    assert_eq!(words(&story.pass(&desired, 0)), ["start"], "it can be released like any other");
}

#[test]
fn without_a_record_what_was_stopped_for_no_loop_is_started() {
    for (restarts, shown) in [(3, "stopped"), (8, "started")] {
        let mut story = Story::new();
        story.world.observed.record_lost = true;
        let workload = &mut story.world.observed.workloads[0];
        workload.phase = Phase::Exited;
        workload.vitals = Some(Vitals { restarts, ..Vitals::default() });
        let steps = story.pass(&wanted("aaaa1111", "starting", shown), 0);
        assert_eq!(words(&steps), ["start"], "{restarts} restarts, shown as {shown}");
    }
}
