//! Passes at the same time, and passes that have to end early.

use std::time::Duration;

use serde_json::{Value, json};
use stand_in_platform::{Fault as PlatformFault, FaultKind};
use xtm_reconcile::exit;

use crate::moves::{SOON, complaints, line};
use crate::scene::Scene;
use crate::support::{ApiTap, Fault, Registry, Signal, unique};

/// A scene with a connector that runs, a record and the image that locks are made from.
fn begun(name: &str) -> Scene {
    let scene = Scene::new(name);
    scene.connector("a");
    scene.pass_ends(exit::OK);
    scene
}

/// Puts a lock there by hand. `label` is what it says; nothing when empty.
fn put_lock(scene: &Scene, label: &str) -> String {
    let mut labels = json!({"xtm-reconcile.manager": &*scene.manager, "xtm-reconcile.platform": "opencti"});
    if !label.is_empty() {
        labels["xtm-reconcile.lock"] = Value::from(label);
    }
    let body = json!({"Image": "xtm-reconcile/empty:1", "Cmd": ["never-started"], "Labels": labels});
    let path = format!("/containers/create?name=xtm-reconcile-lock-{}-opencti", &*scene.manager);
    scene.engine.post(&path, &body).expect_success("a lock")["Id"].as_str().unwrap().to_owned()
}

fn lock_of(holder: &Value, until: &str) -> String {
    json!({"v": 1, "holder": holder, "since": "2026-01-02T03:04:05Z", "until": until}).to_string()
}

// Shows what README says under "Exit codes": "another pass holds the lock"; and under "What a pass does": "**One pass
// at a time.**".
#[test]
fn of_two_passes_one_works_and_the_other_names_it_and_touches_nothing() {
    let scene = begun("two");
    scene.edit("id-a", |connector| "xtm-fixture/connector:2".clone_into(&mut connector.image));
    let first_tap = ApiTap::new(scene.engine);
    let gate = first_tap.hold("GET /containers/json", 1);
    let first = scene.tapped(&first_tap).spawn();
    gate.wait(SOON);

    scene.platform.clear_journal();
    let tap = ApiTap::new(scene.engine);
    let report = scene.tapped(&tap).run().expect_code(exit::LOCKED.into()).lane();
    let said = complaints(&report);
    assert!(said.contains(&format!("process {} on ", first.pid())) && said.contains("since 20"), "{said}");
    let writes: Vec<String> = tap.writes().iter().map(|request| request.query.clone()).collect();
    assert!(writes.len() == 1 && writes[0].contains("xtm-reconcile-lock"), "{writes:?}");
    let mutations: Vec<_> =
        scene.platform.journal().into_iter().filter(|call| call.kind == stand_in_platform::Kind::Mutation).collect();
    assert!(mutations.is_empty(), "{mutations:?}");
    assert_eq!(scene.locks().len(), 1, "the first one's lock is still there");

    gate.release();
    first.wait().expect_code(exit::OK.into());
    scene.is_settled(&["id-a"]);
}

// Shows what README says under "What a pass does": "**One pass at a time.**".
#[test]
fn passes_that_begin_together_never_work_together() {
    let scene = begun("race");
    for round in 0..4 {
        scene.edit("id-a", |c| c.image = format!("xtm-fixture/connector:{}", round % 2 + 1));
        // An expired lock on top: several see it, one takes it over.
        put_lock(&scene, &lock_of(&json!({"pass": "p", "host": "elsewhere", "pid": 1}), "2026-01-02T04:00:00Z"));
        let passes: Vec<_> = (0..3).map(|_| scene.program().args(["run", "--output", "json"]).spawn()).collect();
        let ended: Vec<_> = passes.into_iter().map(|pass| pass.wait()).collect();
        let codes: Vec<_> = ended.iter().map(|outcome| outcome.code.unwrap_or(-1)).collect();
        let known = [exit::OK, exit::LOCKED].map(i32::from);
        let said: Vec<_> = ended.iter().map(|outcome| complaints(&outcome.lane())).collect();
        assert!(codes.iter().all(|code| known.contains(code)), "{codes:?}: {said:#?}");
        assert!(codes.contains(&exit::OK.into()), "{codes:?}: {said:#?}");
        scene.is_settled(&["id-a"]);
        scene.pass_is_quiet();
    }
}

#[test]
fn a_lock_is_taken_over_when_it_has_expired_and_not_before() {
    let elsewhere = json!({"pass": "0badcafe", "host": "elsewhere", "pid": 4242});
    let far = "2126-01-02T03:04:05Z";
    let past = "2026-01-02T04:00:00Z";
    let cases = [
        ("expired", lock_of(&elsewhere, past), exit::OK, ""),
        (
            "another host's",
            lock_of(&elsewhere, far),
            exit::LOCKED,
            "pass 0badcafe (process 4242 on elsewhere), since 2026-01-02T03:04:05Z, at most until 2126",
        ),
        ("garbage", "not json".to_owned(), exit::LOCKED, "cannot be read"),
        ("a newer program's", r#"{"v":2,"who":"knows"}"#.to_owned(), exit::LOCKED, "cannot be read"),
        ("unlabelled", String::new(), exit::LOCKED, "cannot be read"),
    ];
    let scene = begun("expiry");
    for (what, label, code, words) in cases {
        let id = put_lock(&scene, &label);
        let report = scene.pass_ends(code);
        let said = complaints(&report);
        assert!(said.contains(words), "{what}: {said}");
        assert_eq!(
            scene.engine.container(&id).is_some(),
            code == exit::LOCKED,
            "{what}: a lock that holds is left alone"
        );
        scene.engine.remove(&id);
    }
    scene.pass_is_quiet();
}

// Shows what README says under "What it leaves on a Docker engine": "the next pass takes it over at once when it can
// see that the process is gone".
#[test]
fn the_lock_of_a_killed_pass_is_taken_over_at_once_even_before_it_is_reaped() {
    let scene = begun("zombie");
    let tap = ApiTap::new(scene.engine);
    tap.inject("GET /containers/json", 1, Fault::KillBefore);
    let killed = scene.tapped(&tap).spawn();
    scene.engine.wait_for("the kill", SOON, |_| (!killed.is_running()).then_some(()));
    assert_eq!(scene.locks().len(), 1);
    // Nobody has waited for it yet: it still is in the process table.
    scene.pass_ends(exit::OK);
    assert_eq!(killed.wait().signal, Some(9));
    scene.is_settled(&["id-a"]);
}

// Shows what README says under "What a pass does": "the record is written and the lock given back".
#[test]
fn the_lock_is_given_back_however_a_pass_fails() {
    type Break<'a> = &'a dyn Fn(&Scene, &ApiTap);
    let on_platform = |operation: &'static str, kind: FaultKind| {
        move |scene: &Scene, _: &ApiTap| scene.platform.fault(PlatformFault::on(operation, kind.clone()))
    };
    let on_engine = |pattern: &'static str, fault: Fault| move |_: &Scene, tap: &ApiTap| tap.inject(pattern, 1, fault);
    let cases: [(&str, Break<'_>, u8); 6] = [
        ("registration refused", &on_platform("updateConnectorManagerStatus", FaultKind::RefusedToken), exit::PLATFORM),
        ("list refused", &on_platform("connectorsForManagers", FaultKind::NullData), exit::PLATFORM),
        ("record not listed", &on_engine("GET /containers/json", Fault::Status(500)), exit::ORCHESTRATOR),
        ("connection lost", &on_engine("GET /containers/json", Fault::DropWithRepeat), exit::ORCHESTRATOR),
        ("told to end", &on_engine("GET /containers/json", Fault::SignalBefore(Signal::TERM)), exit::TERMINATED),
        ("interrupted", &on_engine("GET /containers/*/json", Fault::SignalAfter(Signal::INT)), exit::INTERRUPTED),
    ];
    for (what, breaking, code) in cases {
        let scene = begun("given-back");
        let before = scene.only().id;
        let tap = ApiTap::new(scene.engine);
        breaking(&scene, &tap);
        let outcome = scene.tapped(&tap).run();
        assert_eq!(outcome.code, Some(code.into()), "{what}: {}\n{}", outcome.stdout, outcome.stderr);
        assert!(scene.locks().is_empty(), "{what}");
        assert!(!complaints(&outcome.lane()).is_empty(), "{what}: it says why");
        scene.platform.clear_faults();
        scene.pass_ends(exit::OK);
        assert_eq!(scene.only().id, before, "{what}");
        scene.is_settled(&["id-a"]);
    }
}

#[test]
fn a_signal_while_the_lock_is_being_taken_leaves_no_lock_behind() {
    let scene = begun("lock-signal");
    for fault in [Fault::SignalBefore(Signal::TERM), Fault::SignalAfter(Signal::TERM)] {
        let tap = ApiTap::new(scene.engine);
        tap.inject("POST /containers/create", 1, fault);
        scene.tapped(&tap).run().expect_code(exit::TERMINATED.into());
        assert!(scene.locks().is_empty(), "{fault:?}");
    }
}

/// An image that has to be pulled, as the image of connector `id`.
fn to_pull(scene: &Scene, id: &str) -> String {
    let image = Registry::open().push(scene.engine, "xtm-fixture/connector:2", &format!("{}:1", unique("held")));
    scene.edit(id, |connector| connector.image.clone_from(&image));
    image
}

// Shows what README says under "What a pass does": "or on SIGTERM or SIGINT, nothing new starts".
#[test]
fn a_signal_during_a_pull_ends_the_pass_and_the_next_one_finishes() {
    for (signal, code) in [(Signal::TERM, exit::TERMINATED), (Signal::INT, exit::INTERRUPTED)] {
        let scene = begun("pull-signal");
        let before = scene.only().id;
        to_pull(&scene, "id-a");
        let tap = ApiTap::new(scene.engine);
        let gate = tap.hold("POST /images/create", 1);
        let pass = scene.tapped(&tap).spawn();
        gate.wait(SOON);
        pass.signal(signal);
        let outcome = pass.wait().expect_code(code.into());
        assert!(outcome.took < SOON, "it does not wait for the registry");
        let report = outcome.lane();
        assert_eq!(line(&report, "id-a")["result"], "not-done", "{report:#}");
        drop(gate);
        let container = scene.only();
        assert!(container.running() && container.id == before);
        assert!(scene.locks().is_empty());
        scene.pass_ends(exit::OK);
        scene.is_settled(&["id-a"]);
        scene.pass_is_quiet();
    }
}

// Shows what README says under "Exit codes": "or the deadline cut the pass short; all others were done"; and under
// "What a pass does": "After `MANAGER__PASS_DEADLINE` seconds".
#[test]
fn what_the_deadline_cuts_off_is_told_and_done_by_the_next_pass() {
    let scene = begun("deadline");
    scene.connector("slow");
    scene.connector("quick");
    to_pull(&scene, "id-slow");
    let tap = ApiTap::new(scene.engine);
    let gate = tap.hold("POST /images/create", 1);
    let outcome = scene.tapped(&tap).var("MANAGER__PASS_DEADLINE", "3").run();
    let report = outcome.expect_code(exit::CONNECTOR_FAILED.into()).lane();
    drop(gate);
    assert_eq!(line(&report, "id-slow")["result"], "not-done", "{report:#}");
    assert_eq!(line(&report, "id-quick")["result"], "done", "{report:#}");
    assert!(complaints(&report).contains("MANAGER__PASS_DEADLINE"), "{}", complaints(&report));
    assert!(scene.container_of("id-quick").running());
    assert!(scene.locks().is_empty());
    scene.pass_ends(exit::OK);
    scene.is_settled(&["id-a", "id-quick", "id-slow"]);
    scene.pass_is_quiet();
}

#[test]
fn a_signal_while_the_platform_does_not_answer_ends_the_pass() {
    let scene = begun("deaf-platform");
    scene.platform.fault(PlatformFault::on("connectorsForManagers", FaultKind::Delay { ms: 60_000 }));
    let tap = ApiTap::new(scene.engine);
    let pass = scene.tapped(&tap).spawn();
    // The record is read, then the platform is asked.
    let registered = scene.platform.wait_for(SOON, |_, journal| {
        journal.iter().filter(|call| call.is("updateConnectorManagerStatus")).count() >= 2
    });
    assert!(registered, "the pass gets to the platform");
    pass.signal(Signal::TERM);
    let outcome = pass.wait().expect_code(exit::TERMINATED.into());
    assert!(outcome.took < Duration::from_secs(50), "{:?}", outcome.took);
    assert!(scene.locks().is_empty());
}
