//! Whatever hangs, a pass ends within the time that it has once it must.

use std::time::Duration;

use stand_in_platform::{Fault as PlatformFault, FaultKind};
use xtm_reconcile::exit;

use crate::moves::{SOON, complaints, line};
use crate::scene::Scene;
use crate::support::{ApiTap, Fault, Signal};

/// More than a pass may take after its deadline or a signal with the budget of these tests.
const BUDGET: (&str, &str) = ("MANAGER__STOP_BUDGET", "4");
const SLACK: Duration = Duration::from_secs(3);

// Shows what README says under "What a pass does": "all within `MANAGER__STOP_BUDGET` seconds: an engine or a platform
// that does not answer is given up then".
#[test]
fn an_engine_that_hangs_keeps_no_pass_beyond_its_deadline_and_its_budget() {
    // Wherever it begins to hang; the first is what somebody saw.
    let places =
        ["POST /containers/*/start", "GET /containers/json", "GET /containers/*/json", "GET /containers/*/logs"];
    for (pattern, fault) in places.map(|place| (place, Fault::HangFromHere)).into_iter().chain([
        ("GET /containers/*/json", Fault::HangInBody),
        ("POST /containers/create", Fault::HangInBody),
        ("DELETE /containers/*", Fault::HangFromHere),
    ]) {
        let scene = Scene::new("engine-hangs");
        for name in ["a", "b"] {
            scene.connector(name);
        }
        let tap = ApiTap::new(scene.engine);
        tap.inject(pattern, 1, fault);
        let program = scene.tapped(&tap).var("MANAGER__PASS_DEADLINE", "3").var(BUDGET.0, BUDGET.1);
        let outcome = program.timeout(SOON).run();
        let at = format!("{fault:?} at {pattern}");
        assert_eq!(outcome.code, Some(exit::CONNECTOR_FAILED.into()), "{at}: {}\n{}", outcome.stdout, outcome.stderr);
        assert!(outcome.took < Duration::from_secs(7) + SLACK, "{at}: {:?}", outcome.took);
        let said = complaints(&outcome.lane());
        assert!(said.contains("MANAGER__PASS_DEADLINE") || said.contains("MANAGER__STOP_BUDGET"), "{at}: {said}");
        scene.pass_ends(exit::OK);
        scene.is_settled(&["id-a", "id-b"]);
    }
}

// Shows what README says under "What a pass does": "an engine or a platform that does not answer is given up then",
// "the record is written and the lock given back".
#[test]
fn a_platform_that_hangs_costs_neither_the_record_nor_the_lock_and_ends_in_exit_code_1() {
    let scene = Scene::new("platform-hangs");
    for name in ["a", "b"] {
        scene.connector(name);
    }
    scene.pass_ends(exit::OK);
    scene.edit("id-a", |connector| "xtm-fixture/connector:2".clone_into(&mut connector.image));
    for operation in ["updateConnectorLogs", "updateConnectorHealth", "updateConnectorCurrentStatus"] {
        scene.platform.fault(PlatformFault::on(operation, FaultKind::Delay { ms: 40_000 }));
    }
    let pass =
        scene.program().args(["run", "--output", "json"]).var("MANAGER__PASS_DEADLINE", "3").var(BUDGET.0, BUDGET.1);
    let outcome = pass.run().expect_code(exit::CONNECTOR_FAILED.into());
    assert!(outcome.took < Duration::from_secs(7) + SLACK, "{:?}", outcome.took);
    assert!(scene.locks().is_empty(), "the lock is given back");
    assert_eq!(scene.records().len(), 1);
    let report = outcome.lane();
    assert_eq!(line(&report, "id-a")["result"], "done", "{report:#}");
    scene.platform.clear_faults();
    scene.pass_ends(exit::OK);
    scene.is_settled(&["id-a", "id-b"]);
}

// Shows what README says under "What a pass does": "or on SIGTERM or SIGINT, nothing new starts".
#[test]
fn a_signal_while_everything_hangs_ends_the_pass_within_its_budget() {
    let scene = Scene::new("signal-hangs");
    scene.connector("a");
    let tap = ApiTap::new(scene.engine);
    tap.inject("POST /containers/*/start", 1, Fault::HangFromHere);
    let pass = scene.tapped(&tap).var(BUDGET.0, BUDGET.1).timeout(SOON).spawn();
    scene.engine.wait_for("the start", SOON, |_| (tap.faults() > 0).then_some(()));
    let told = std::time::Instant::now();
    pass.signal(Signal::TERM);
    pass.wait().expect_code(exit::TERMINATED.into());
    assert!(told.elapsed() < Duration::from_secs(4) + SLACK, "{:?}", told.elapsed());
}

// Shows what README says under "What a pass does": "While steps take long, the platform gets a heartbeat".
#[test]
fn while_one_connector_takes_minutes_the_others_and_the_manager_look_alive() {
    let scene = Scene::new("long-pass");
    scene.connector("quiet");
    scene.pass_ends(exit::OK);
    scene.connector("slow");
    scene.platform.clear_journal();
    let tap = ApiTap::new(scene.engine);
    // The first creation is that of the lock.
    let gate = tap.hold("POST /containers/create", 2);
    let pass = scene.tapped(&tap).spawn();
    gate.wait(SOON);
    let alive = scene.platform.wait_for(Duration::from_secs(75), |_, journal| {
        let count = |operation: &str| journal.iter().filter(|call| call.is(operation)).count();
        count("updateConnectorManagerStatus") >= 2 && count("updateConnectorHealth") >= 2
    });
    assert!(
        alive,
        "a minute later: {:?}",
        scene.platform.journal().iter().map(|call| &call.operation).collect::<Vec<_>>()
    );
    gate.release();
    pass.wait().expect_code(exit::OK.into());
    scene.is_settled(&["id-quiet", "id-slow"]);
}
