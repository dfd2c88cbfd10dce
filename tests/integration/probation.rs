//! A refresh is on probation: what worked is there to go back to until the new container has proved itself.

use serde_json::Value;
use stand_in_platform::{Connector, Setting};
use xtm_reconcile::exit;

use crate::moves::{complaints, crash, line, names, set};
use crate::scene::Scene;
use crate::support::{ApiTap, Binary, Container, Fault};

/// No pass of these tests waits, and no probation ends while one runs, unless a test says so.
const SETTINGS: [(&str, &str); 2] = [("MANAGER__PROBATION", "600"), ("MANAGER__SETTLE", "0")];

fn pass(scene: &Scene, settings: &[(&str, &str)]) -> Binary {
    set(set(scene.program().args(["run", "--output", "json"]), &SETTINGS), settings)
}

/// A scene with a connector that runs, and what runs of it.
fn begun(name: &str) -> (Scene, Container) {
    let scene = Scene::new(name);
    scene.connector("a");
    scene.pass_ends(exit::OK);
    let container = scene.only();
    (scene, container)
}

fn setting(key: &str, value: &str) -> Setting {
    Setting { key: key.to_owned(), value: Some(value.to_owned()), encrypted: None }
}

/// Gives the connector a configuration with which it ends after a while, as with a wrong password.
fn ends_after(scene: &Scene, ms: &str) {
    scene.edit("id-a", |connector| {
        connector.configuration = vec![setting("STANDIN_CRASH_AFTER_MS", ms), setting("STANDIN_EXIT_CODE", "3")];
    });
}

fn mended(scene: &Scene, colour: &str) {
    scene.edit("id-a", |connector| connector.configuration = vec![setting("COLOUR", colour)]);
}

#[track_caller]
fn is_back(scene: &Scene, before: &Container, at: &str) {
    let all = scene.containers();
    let [only] = all.as_slice() else { panic!("{at}: {}", names(&all)) };
    assert_eq!((&only.id, &only.name, only.running()), (&before.id, &before.name, true), "{at}: {}", names(&all));
}

/// At most one container of the connector runs at a time.
#[track_caller]
fn never_two(scene: &Scene, at: &str) {
    let running = scene.containers().iter().filter(|container| container.running()).count();
    assert!(running <= 1, "{at}: {}", names(&scene.containers()));
}

fn refused_times(scene: &Scene) -> Value {
    let record = scene.records().remove(0);
    let text = record.labels.get("xtm-reconcile.connector.id-a").cloned().unwrap_or_default();
    let memory: Value = serde_json::from_str(&text).unwrap_or_default();
    memory["refused"]["times"].clone()
}

// Shows what README says under "What a pass does": "and reports `rolled back` with the exit code and the last log
// lines", "rolls back at once what failed by then", "Whatever did not work is tried again in the next pass".
#[test]
fn what_ends_at_once_is_rolled_back_in_the_same_pass_and_tried_less_and_less_often() {
    let (scene, before) = begun("ends-at-once");
    ends_after(&scene, "50");
    for attempt in [1, 2] {
        let report = pass(&scene, &[("MANAGER__SETTLE", "1")]).run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
        let said = complaints(&report);
        for words in
            ["rolled back: exit code 3", "last log lines: ", "connector crashes as told", "the former one runs"]
        {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert_eq!(line(&report, "id-a")["result"], "failed", "{report:#}");
        is_back(&scene, &before, "after the roll-back");
        assert_eq!(refused_times(&scene), attempt);
        let shown = scene.platform.read(|state| state.connector("id-a").unwrap().current_status.clone());
        assert_eq!(shown.as_deref(), Some("started"));
    }
    // The third attempt has to wait. Nothing happens until then, and the report says why.
    let started = scene.only().json["State"]["StartedAt"].clone();
    let report = pass(&scene, &[]).run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    let said = complaints(&report);
    assert!(said.contains("did not stay up: exit code 3") && said.contains("(2 attempts)"), "{said}");
    assert_eq!(scene.only().json["State"]["StartedAt"], started);

    mended(&scene, "green");
    let report = pass(&scene, &[("MANAGER__SETTLE", "1")]).run().expect_code(exit::OK.into()).lane();
    assert_eq!(line(&report, "id-a")["step"]["do"], "refresh", "another configuration is tried at once: {report:#}");
    assert!(line(&report, "id-a")["on_probation_until"].is_string(), "{report:#}");
    pass(&scene, &[("MANAGER__PROBATION", "0")]).run().expect_code(exit::OK.into());
    assert_eq!(scene.only().env["COLOUR"], "green");
    scene.pass_is_quiet();
}

// Shows what README says under "What a pass does": "one that finds that the new one ended or restarted meanwhile
// removes that, starts the old one".
#[test]
fn what_ends_after_the_pass_is_rolled_back_by_the_next() {
    let (scene, before) = begun("ends-later");
    mended(&scene, "green");
    let table = set(scene.program().arg("run"), &SETTINGS).run().expect_code(exit::OK.into());
    assert!(table.stdout.contains("on probation until 20"), "{}", table.stdout);
    crash(&scene, &before.name);
    let report = pass(&scene, &[]).run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    let said = complaints(&report);
    assert!(said.contains("rolled back: exit code 137 after 1 restart"), "{said}");
    assert_eq!(line(&report, "id-a")["step"]["do"], "roll-back");
    assert_eq!(line(&report, "id-a")["reboot_loop"], false, "what works again is not blamed for it: {report:#}");
    is_back(&scene, &before, "after the roll-back");
    assert_eq!(refused_times(&scene), 1);
}

// Shows what README says under "What a pass does": "So the old one is kept, stopped, under a name that ends in
// `.xtm-former`", "A pass that finds it so removes the old one".
#[test]
fn what_stays_up_costs_no_further_request_and_then_takes_over() {
    let (scene, before) = begun("stays-up");
    let requests = || {
        let tap = ApiTap::new(scene.engine);
        let report = set(scene.tapped(&tap), &SETTINGS).run().expect_code(exit::OK.into()).lane();
        (tap.requests().len(), report)
    };
    let (quiet, _) = requests();
    mended(&scene, "green");
    pass(&scene, &[]).run().expect_code(exit::OK.into());
    let all = scene.containers();
    let former = all.iter().find(|container| container.id == before.id).expect("the old one is kept");
    assert!(former.name.ends_with(".xtm-former") && former.state == "exited", "{}", names(&all));
    never_two(&scene, "on probation");

    let (on_probation, report) = requests();
    assert_eq!(line(&report, "id-a")["skip"]["kind"], "on-probation", "{report:#}");
    assert_eq!(on_probation, quiet, "requests of a pass");

    // Probation of a second is over for what has been up for a second.
    let new = all.iter().find(|container| container.id != before.id).expect("a new one");
    let started: jiff::Timestamp = new.json["State"]["StartedAt"].as_str().unwrap().parse().unwrap();
    let over = started + jiff::SignedDuration::from_secs(1);
    std::thread::sleep(over.duration_since(jiff::Timestamp::now()).try_into().unwrap_or_default());
    let report = pass(&scene, &[("MANAGER__PROBATION", "1")]).run().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"]["remove"], 1, "{report:#}");
    assert_eq!((scene.only().id, scene.only().name), (new.id.clone(), before.name.clone()));
    scene.pass_is_quiet();
}

// Shows what README says under "What a pass does": "A pass with refreshes waits `MANAGER__SETTLE` seconds, once for all
// of them".
#[test]
fn several_refreshes_are_waited_for_together() {
    let scene = Scene::new("together");
    for name in ["a", "b", "c"] {
        scene.connector(name);
    }
    scene.pass_ends(exit::OK);
    for id in ["id-a", "id-b", "id-c"] {
        scene.edit(id, |connector| connector.configuration = vec![setting("COLOUR", "green")]);
    }
    let report = pass(&scene, &[("MANAGER__SETTLE", "3"), ("MANAGER__CONCURRENCY", "1")]).run();
    let report = report.expect_code(exit::OK.into()).lane();
    let stages = report["stages"].as_array().unwrap();
    let settle = stages.iter().find(|stage| stage["name"] == "settle").unwrap()["ms"].as_u64().unwrap();
    assert!((3000..6000).contains(&settle), "{settle} ms: {report:#}");
}

// Shows what README says under "What a pass does": "and so it does when somebody removed either container".
#[test]
fn either_container_can_be_removed_by_hand_on_probation() {
    let (scene, before) = begun("removed-by-hand");
    mended(&scene, "green");
    pass(&scene, &[]).run().expect_code(exit::OK.into());
    scene.engine.remove(&before.name);
    pass(&scene, &[]).run().expect_code(exit::OK.into());
    let all = scene.containers();
    let new = all.iter().find(|container| container.running()).expect("a new one");
    assert!(all.len() == 2 && new.name == before.name && new.env["COLOUR"] == "green", "{}", names(&all));
    assert!(all.iter().any(|container| container.id == before.id), "what worked is still kept: {}", names(&all));

    scene.engine.remove(&before.id);
    pass(&scene, &[]).run().expect_code(exit::OK.into());
    assert_eq!(scene.only().id, new.id);
    assert!(scene.only().running());
    scene.pass_is_quiet();
}

#[test]
fn a_roll_back_that_fails_is_made_good_by_the_next_pass() {
    let (scene, before) = begun("roll-back-fails");
    ends_after(&scene, "50");
    let tap = ApiTap::new(scene.engine);
    // The first start is that of the new container, the second that of the old one.
    tap.inject("POST /containers/*/start", 2, Fault::Status(500));
    let settings = [("MANAGER__PROBATION", "600"), ("MANAGER__SETTLE", "1")];
    let report = set(scene.tapped(&tap), &settings).run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    let said = complaints(&report);
    assert!(said.contains("going back failed as well") && said.contains("exit code 3"), "{said}");
    let shown = scene.platform.read(|state| state.connector("id-a").unwrap().current_status.clone());
    assert_eq!(shown.as_deref(), Some("stopped"), "the platform knows that nothing runs");

    // What is to run is not read off that status.
    let report = pass(&scene, &[]).run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    assert!(complaints(&report).contains("did not stay up: exit code 3"), "{report:#}");
    is_back(&scene, &before, "the pass after");
}

// Shows what README says under "What a pass does": "if the new one does not start, it is removed and the old one runs
// again".
#[test]
fn what_cannot_even_be_started_gives_the_old_container_its_name_back() {
    let (scene, before) = begun("not-started");
    scene.edit("id-a", |connector| "xtm-fixture/noentry:1".clone_into(&mut connector.image));
    let report = pass(&scene, &[]).run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    assert!(complaints(&report).contains("/missing"), "{report:#}");
    is_back(&scene, &before, "after the attempt");
    assert_eq!(refused_times(&scene), 1);
}

#[test]
fn a_stop_gives_away_nothing_that_worked() {
    let (scene, before) = begun("stopped-meanwhile");
    // A new configuration comes with the stop, and turns out to end at once when it is started.
    ends_after(&scene, "50");
    scene.edit("id-a", |connector| "stopping".clone_into(&mut connector.requested_status));
    pass(&scene, &[]).run().expect_code(exit::OK.into());
    never_two(&scene, "stopped");
    assert!(scene.containers().iter().all(|container| !container.running()), "{}", names(&scene.containers()));
    scene.edit("id-a", |connector| "starting".clone_into(&mut connector.requested_status));
    pass(&scene, &[]).run();
    let code = pass(&scene, &[]).run().code;
    assert_eq!(code, Some(exit::CONNECTOR_FAILED.into()), "{}", names(&scene.containers()));
    is_back(&scene, &before, "the new one has failed");
}

/// Plays a pass once for each of its writes to the engine, killed before or after that write. `ends` brings the story to
/// its end, whatever the killed pass has left.
fn killed_at_each_write(name: &str, begin: impl Fn(&Scene, &Container), ends: impl Fn(&Scene, &Container, &str)) {
    for fault in [Fault::KillBefore, Fault::KillAfter] {
        for nth in 1.. {
            let (scene, before) = begun(name);
            begin(&scene, &before);
            let tap = ApiTap::new(scene.engine);
            tap.inject("WRITE *", nth, fault);
            let outcome = set(scene.tapped(&tap), &SETTINGS).run();
            let at = format!("{name}: {fault:?} at write {nth}");
            if tap.faults() == 0 {
                assert!(nth > 5, "{at}: the pass made only so many writes");
                break;
            }
            assert_eq!(outcome.signal, Some(9), "{at}");
            never_two(&scene, &at);
            ends(&scene, &before, &at);
        }
    }
}

// Shows what README says under "What a pass does": "Only one of them runs at any time.", "Killed at any point, the next
// pass finds its way out".
#[test]
fn a_refresh_on_probation_can_be_killed_at_any_point() {
    killed_at_each_write(
        "kill-refresh",
        |scene, _| mended(scene, "green"),
        |scene, before, at| {
            pass(scene, &[]).run().expect_code(exit::OK.into());
            let all = scene.containers();
            never_two(scene, at);
            let new =
                all.iter().find(|container| container.running()).unwrap_or_else(|| panic!("{at}: {}", names(&all)));
            assert_eq!((new.name.as_str(), new.env["COLOUR"].as_str()), (before.name.as_str(), "green"), "{at}");
            assert!(
                all.iter().any(|container| container.id == before.id),
                "{at}: the old one is kept: {}",
                names(&all)
            );
            scene.pass_ends(exit::OK);
            scene.is_settled(&["id-a"]);
            scene.pass_is_quiet();
        },
    );
}

// Shows what README says under "What a pass does": "Killed at any point, the next pass finds its way out".
#[test]
fn a_roll_back_can_be_killed_at_any_point() {
    let begin = |scene: &Scene, before: &Container| {
        mended(scene, "green");
        pass(scene, &[]).run().expect_code(exit::OK.into());
        crash(scene, &before.name);
    };
    killed_at_each_write("kill-roll-back", begin, |scene, before, at| {
        // What worked runs again, or is kept while the configuration is tried for the second time.
        let code = pass(scene, &[]).run().code.unwrap_or(-1);
        never_two(scene, at);
        match u8::try_from(code) {
            Ok(exit::CONNECTOR_FAILED) => is_back(scene, before, at),
            Ok(exit::OK) => {
                let all = scene.containers();
                let up = all.iter().find(|c| c.running()).unwrap_or_else(|| panic!("{at}: {}", names(&all)));
                assert_eq!((&up.name, up.env["COLOUR"].as_str()), (&before.name, "green"), "{at}");
                assert!(all.iter().any(|container| container.id == before.id), "{at}: {}", names(&all));
            }
            _ => panic!("{at}: exit code {code}"),
        }
    });
}

#[test]
fn a_refresh_that_is_killed_and_then_fails_goes_back_to_what_worked() {
    let (scene, before) = begun("killed-then-ends");
    ends_after(&scene, "50");
    let tap = ApiTap::new(scene.engine);
    tap.inject("POST /containers/*/start", 1, Fault::KillBefore);
    assert_eq!(set(scene.tapped(&tap), &SETTINGS).run().signal, Some(9));
    // The platform may show anything: an operator restored a backup, or another manager wrote there.
    scene.edit("id-a", |connector| connector.current_status = Some("stopped".to_owned()));
    let report = pass(&scene, &[("MANAGER__SETTLE", "1")]).run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    assert!(complaints(&report).contains("rolled back: exit code 3"), "{report:#}");
    is_back(&scene, &before, "the pass after");
}

#[test]
fn the_restarts_of_what_failed_are_not_those_of_what_runs_again() {
    let (scene, before) = begun("blameless");
    mended(&scene, "green");
    let settings = [("MANAGER__REBOOT_LOOP__ACTION", "stop"), ("MANAGER__REBOOT_LOOP__LIMIT", "0")];
    pass(&scene, &settings).run().expect_code(exit::OK.into());
    crash(&scene, &before.name);
    pass(&scene, &settings).run().expect_code(exit::CONNECTOR_FAILED.into());
    scene.edit("id-a", |connector: &mut Connector| connector.configuration = vec![]);
    let report = pass(&scene, &settings).run().expect_code(exit::OK.into()).lane();
    assert_eq!(line(&report, "id-a")["skip"]["kind"], "running", "{report:#}");
    is_back(&scene, &before, "the configuration is that of before again");
}
