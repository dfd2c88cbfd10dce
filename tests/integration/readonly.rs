//! `plan` and `check`: they tell everything and write nothing, neither here nor there.

use serde_json::{Value, json};
use stand_in_platform::{Fault, FaultKind, Kind, Setting, TokenMode};
use xtm_reconcile::exit;

use crate::scene::Scene;
use crate::support::{ApiTap, Binary, Outcome, Signal};
use crate::watch::{Watch, expect_all, expect_unlocked};

/// A scene in which a pass has a step of every kind to do.
fn with_every_step(name: &str) -> Scene {
    let scene = Scene::new(name);
    scene.platform.edit(|state| state.opencti_token = TokenMode::Encrypted);
    for connector in ["keep", "refresh", "rename", "start", "stop", "gone"] {
        scene.connector(connector);
    }
    let start = scene.platform.read(|state| state.connector("id-start").unwrap().name.clone());
    scene.pass().expect_code(exit::OK.into());
    scene.engine.stop(&start);
    scene.connector("deploy");
    let renamed = scene.manager.connector_name("renamed");
    scene.platform.edit(move |state| {
        state.connectors.retain(|connector| connector.id != "id-gone");
        let change = state.connector_mut("id-refresh").unwrap();
        change.configuration.push(Setting { key: "NEW".to_owned(), value: Some("1".to_owned()), encrypted: None });
        "stopping".clone_into(&mut state.connector_mut("id-stop").unwrap().requested_status);
        // The hash stays, as when the platform's own name of it is what changed.
        state.connector_mut("id-rename").unwrap().name = renamed;
    });
    let rename = scene.containers().into_iter().find(|c| c.label("opencti-connector-id") == "id-rename").unwrap();
    let hash = rename.label("opencti-config-hash").to_owned();
    scene.platform.edit(|state| state.connector_mut("id-rename").unwrap().hash = Some(hash));
    scene.platform.clear_journal();
    scene
}

/// Every step with its connector and its words, in order.
fn steps(report: &Value) -> Vec<String> {
    let lines = report["connectors"].as_array().unwrap().iter().filter(|line| line.get("step").is_some());
    lines.map(|line| format!("{} {}", line["connector"], line["step"])).collect()
}

/// Runs a command that must not write, and sees that it did not.
#[track_caller]
fn without_a_write(scene: &Scene, what: &str, program: impl FnOnce(&ApiTap) -> Binary) -> Outcome {
    let tap = ApiTap::new(scene.engine);
    let watch = Watch::new(scene);
    let states = || {
        let all = scene.engine.containers_of(&scene.manager).into_iter().map(|c| (c.name, c.id, c.state));
        (all.collect::<Vec<_>>(), scene.platform.read(|state| (state.managers.clone(), statuses(&state.connectors))))
    };
    let before = states();
    scene.platform.clear_journal();
    let outcome = program(&tap).run();
    watch.expect_untouched(what);
    assert_eq!(states(), before, "{what}: record, registration and statuses stay");
    assert_eq!(tap.writes(), [], "{what}: the engine was asked to change nothing");
    assert!(what.contains("no engine") || !tap.requests().is_empty(), "{what} went through the tap");
    let journal = scene.platform.journal();
    assert!(journal.iter().all(|call| call.kind != Kind::Mutation), "{what}: {journal:#?}");
    outcome
}

fn statuses(connectors: &[stand_in_platform::Connector]) -> Vec<Option<String>> {
    connectors.iter().map(|connector| connector.current_status.clone()).collect()
}

// Shows what README says under "Commands": "pulls and observes as a pass does, shows the steps, writes nothing"; and
// under "Exit codes": "`plan --detailed-exitcode`: changes are pending".
#[test]
fn a_plan_writes_nothing_and_the_pass_after_it_does_just_that() {
    let scene = with_every_step("plan");
    let plan = |arguments: &[&str]| {
        without_a_write(&scene, &format!("plan {arguments:?}"), |tap| {
            scene.program_on(&tap.docker_host()).arg("plan").args(arguments)
        })
    };
    let outcome = plan(&["--output", "json"]).expect_code(exit::OK.into());
    assert_eq!(outcome.json()["command"], "plan");
    let planned = outcome.lane();
    let wanted = json!({"deploy": 1, "refresh": 1, "rename": 1, "start": 1, "stop": 1, "remove": 1});
    assert_eq!(planned["counts"]["steps"], wanted, "{planned:#}");
    assert!(planned["notices"].to_string().contains("OpenCTI issues tokens"), "{planned:#}");
    assert_eq!(planned["platform"]["registration"], "known");
    plan(&["--detailed-exitcode"]).expect_code(exit::CHANGES_PENDING.into());
    let table = plan(&[]).expect_code(exit::OK.into()).stdout;
    expect_all(&table, &["planned", "1 to deploy", "1 to remove", "OpenCTI issues tokens"], "table");

    let done = scene.pass().expect_code(exit::OK.into()).lane();
    assert_eq!(steps(&done), steps(&planned));
    assert_eq!(done["counts"]["steps"], wanted);
    let after = plan(&["--detailed-exitcode", "--output", "json"]).expect_code(exit::OK.into()).lane();
    assert_eq!(steps(&after), [""; 0], "nothing is left to do");
}

#[test]
fn a_plan_before_anything_was_registered_says_so_and_one_that_fails_has_the_codes_of_a_pass() {
    let scene = Scene::new("plan-first");
    scene.connector_with("a", |connector| connector.secret("KEY", "value"));
    let plan = |what: &str, change: &dyn Fn(Binary) -> Binary| {
        without_a_write(&scene, what, |tap| {
            change(scene.program_on(&tap.docker_host()).args(["plan", "--detailed-exitcode", "--output", "json"]))
        })
    };
    let report = plan("first", &|program| program).expect_code(exit::CHANGES_PENDING.into()).lane();
    let registration = report["platform"]["registration"].as_str().unwrap();
    expect_all(registration, &["to register", "does not know this manager"], "first");
    assert_eq!(report["counts"]["steps"], json!({"deploy": 1}));

    // While another pass works.
    let lock = format!("xtm-reconcile-lock-{}-opencti", scene.manager);
    scene.engine.create(&crate::support::NewContainer::foreign(&lock));
    let report = scene.program().args(["plan", "--output", "json"]).run().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"], json!({"deploy": 1}), "a lock does not keep anybody from looking");
    scene.engine.remove(&lock);

    scene.platform.edit(|state| state.connectors[0].image.clear());
    plan("rejected", &|program| program).expect_code(exit::CONNECTOR_FAILED.into());
    scene.platform.fault(Fault::on("connectorsForManagers", FaultKind::NullData));
    plan("null", &|program| program).expect_code(exit::PLATFORM.into());
    let nowhere = |program: Binary| program.var("DOCKER_HOST", "unix:///nowhere/docker.sock");
    plan("no engine", &nowhere).expect_code(exit::ORCHESTRATOR.into());
    let both = |program: Binary| nowhere(program).var("OPENCTI__TOKEN", "wrong-token");
    let report = plan("no engine, no token", &both).expect_code(exit::PLATFORM.into()).lane();
    assert_eq!(report["errors"].as_array().unwrap().len(), 2, "both are told: {report:#}");
}

// Shows what README says under "First use": "The user of the OpenCTI token needs the capabilities"; and under
// "Commands": "one decryption; read-only".
#[test]
fn a_check_tells_what_is_good_and_what_is_bad_and_writes_nothing() {
    let scene = Scene::new("check");
    scene.connector_with("a", |connector| connector.secret("API_KEY", "clear-hunter2"));
    let check = |what: &str, code: u8, change: &dyn Fn(Binary) -> Binary, told: &[&str]| {
        let outcome = without_a_write(&scene, what, |tap| change(scene.program_on(&tap.docker_host()).arg("check")));
        let outcome = outcome.expect_code(code.into());
        expect_all(&outcome.stdout, told, what);
        assert!(!outcome.stdout.contains("hunter2"), "{what}: {}", outcome.stdout);
        let failures = outcome.stdout.lines().filter(|line| line.starts_with("FAIL")).count();
        assert_eq!(failures > 0, code != exit::OK, "{what}: {}", outcome.stdout);
        let document =
            change(scene.program().args(["check", "--output", "json"])).run().expect_code(code.into()).json();
        let bad = document["checks"].as_array().unwrap().iter().filter(|check| check["verdict"] == "bad").count();
        assert_eq!((&document["exit_code"], bad), (&json!(code), failures), "{what}: {document:#}");
        outcome.stdout
    };
    let as_is = |program: Binary| program;
    let fresh =
        check("fresh", exit::OK, &as_is, &["no manager yet; the first pass registers", "nothing to try the key on"]);
    expect_all(&fresh, &["RSA 2048, fingerprint", "token          accepted", "OpenCTI issues tokens"], "fresh");
    scene.pass().expect_code(exit::OK.into());
    let good = ["this manager is registered", "API_KEY of", "opens with this key", "1 containers of this manager"];
    let table = check("good", exit::OK, &as_is, &good);
    expect_all(&table, &["CONNECTORAPI", "SETTINGS_SETACCESSES", "MODULES", "version 7.261026.0", "Docker "], "good");

    let wrong = |program: Binary| program.var("OPENCTI__TOKEN", "hunter2-hunter2-hunter2");
    check("wrong token", exit::PLATFORM, &wrong, &["FAIL  opencti  token", "refused the token", "OPENCTI__TOKEN"]);
    let nowhere = |program: Binary| program.var("DOCKER_HOST", "unix:///nowhere/docker.sock");
    check("no engine", exit::ORCHESTRATOR, &nowhere, &["FAIL  opencti  engine", "/nowhere/docker.sock", "DOCKER_HOST"]);
    let nobody = |program: Binary| nowhere(program).var("OPENCTI__URL", "http://127.0.0.1:1");
    check(
        "no engine and no platform",
        exit::PLATFORM,
        &nobody,
        &["FAIL  opencti  platform", "FAIL  opencti  engine", "cannot be reached"],
    );
    let id = |program: Binary| program.var("MANAGER__ID", "another-manager");
    check("another id", exit::PLATFORM, &id, &["FAIL  opencti  registration", &scene.manager, "set MANAGER__ID"]);
    let other = crate::support::TestKey::rsa(3072, crate::support::KeyForm::Pkcs8);
    let key = |program: Binary| program.var("MANAGER__CREDENTIALS_KEY_FILEPATH", &other.path);
    check(
        "another key",
        exit::CONNECTOR_FAILED,
        &key,
        &["FAIL  opencti  decryption", "API_KEY of", "type the value again"],
    );
    let bad = |program: Binary| program.var("MANAGER__ID", "").var("OPENCTI__URL", "x");
    check("no engine: configuration", exit::CONFIG, &bad, &["FAIL  -  configuration  MANAGER__ID", "OPENCTI__URL"]);

    let all = scene.platform.edit(|state| state.users[0].capabilities.clone());
    for missing in ["CONNECTORAPI", "MODULES", "SETTINGS_SETACCESSES"] {
        scene.platform.edit(|state| state.users[0].capabilities.retain(|name| name != missing));
        if missing == "MODULES" {
            // A pass needs it only to name another manager.
            check(missing, exit::OK, &as_is, &["MODULES is missing: the registered manager cannot be named"]);
        } else {
            check(missing, exit::PLATFORM, &as_is, &[&format!("{missing} is missing; give it to the role")]);
        }
        scene.platform.edit(|state| state.users[0].capabilities.clone_from(&all));
    }
    scene.platform.edit(|state| state.users[0].capabilities = vec!["BYPASS".to_owned()]);
    check("bypass", exit::OK, &as_is, &["CONNECTORAPI", "MODULES"]);
    scene.platform.edit(|state| state.users[0].capabilities.clone_from(&all));

    scene.platform.edit(|state| state.platform_version = "6.7.0".to_owned());
    check("too old", exit::PLATFORM, &as_is, &["FAIL  opencti  platform", "too old"]);
    scene.platform.edit(|state| state.platform_version = "7.261026.0".to_owned());
    scene.connector_with("no-image", |connector| stand_in_platform::Connector { image: String::new(), ..connector });
    check("rejected", exit::CONNECTOR_FAILED, &as_is, &["FAIL  opencti  connectors", "id-no-image", "sent no image"]);
    scene.platform.fault(Fault::on("connectorsForManagers", FaultKind::Html));
    check("html", exit::PLATFORM, &as_is, &["FAIL  opencti  connectors", "HTML page", "OPENCTI__URL"]);
}

#[test]
fn a_signal_ends_a_check_and_a_plan_that_wait_for_the_platform() {
    let scene = Scene::new("check-signal");
    scene.connector("a");
    scene.platform.fault(Fault::on("connectorsForManagers", FaultKind::Delay { ms: 60_000 }));
    for command in ["check", "plan"] {
        for (signal, code) in [(Signal::INT, exit::INTERRUPTED), (Signal::TERM, exit::TERMINATED)] {
            scene.platform.clear_journal();
            let running = scene.program().arg(command).spawn();
            let managers = |calls: &[stand_in_platform::Call]| calls.iter().any(|call| call.is("connectorManagers"));
            let soon = std::time::Duration::from_secs(30);
            assert!(scene.platform.wait_for(soon, |_, calls| managers(calls)), "{command} gets that far");
            running.signal(signal);
            let outcome = running.wait().expect_code(code.into());
            assert!(outcome.took < std::time::Duration::from_secs(20), "{command}: {:?}", outcome.took);
            assert!(!outcome.stdout.is_empty(), "{command} says what it knows");
            expect_unlocked(&scene, command);
        }
    }
}
