//! Everything that OpenAEV can answer but should not: the exit code, what the operator is told, and that no container pays.

use std::time::Duration;

use serde_json::json;
use stand_in_platform::openaev::{Capability, OpenAevUser};
use stand_in_platform::{Fault, FaultKind, OPENAEV_DEFAULT_TOKEN, Setting};
use xtm_reconcile::exit;

use super::{Aev, HEALTH, HEARTBEAT, LIST, LOGS, REGISTER, STATUS, VERSION};
use crate::moves::{SOON, line};
use crate::support::{ApiTap, Binary};
use crate::watch::{Watch, expect_all, faults};

const URL_CURE: &str = "see that OPENAEV__URL is the platform itself";
const LOG_CURE: &str = "look into the log of the platform and of any proxy before it";
const TOKEN_CURE: &str = "set OPENAEV__TOKEN to a valid token of the manager's user in OpenAEV";

/// A scene with three instances that run, and work for the next pass: one to refresh, one to remove.
fn with_work_waiting(name: &str) -> Aev {
    let scene = Aev::new(name);
    for instance in ["keep", "change", "gone"] {
        scene.instance(instance);
    }
    scene.pass(exit::OK);
    scene.delete("id-gone");
    scene.change("id-change", |instance| {
        instance.configuration.push(Setting { key: "NEW".to_owned(), value: Some("1".to_owned()), encrypted: None });
    });
    scene.platform.clear_journal();
    scene
}

/// The work that was waiting is done now.
#[track_caller]
fn expect_work_done(scene: &Aev) {
    let report = scene.pass(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({"refresh": 1, "remove": 1}), "{report:#}");
    assert_eq!(scene.containers().len(), 2);
    assert!(scene.locks().is_empty());
}

/// A pass that the platform's answers end: it says so and touches nothing.
#[track_caller]
fn expect_ended(scene: &Aev, what: &str, program: &Binary, told: &[&str]) {
    let watch = Watch::new(scene);
    let outcome = program.run().expect_code(exit::PLATFORM.into());
    watch.expect_untouched(what);
    assert!(scene.locks().is_empty(), "{what}: the lock was given back");
    let faults = faults(&outcome.lane());
    expect_all(&faults, told, what);
    assert!(!faults.contains("OPENCTI") && !faults.contains("P__"), "{what}: {faults}");
    assert!(!outcome.stdout.contains(OPENAEV_DEFAULT_TOKEN) && !outcome.stderr.contains(OPENAEV_DEFAULT_TOKEN));
    expect_all(&outcome.stderr, &["\"level\":\"ERROR\"", "\"cure\""], what);
}

fn with_body(code: u16, body: &str) -> FaultKind {
    FaultKind::Status { code, retry_after: None, body: Some(body.to_owned()) }
}

// Shows what README says under "What a pass does": "A failed or partial list removes nothing.".
#[test]
fn a_list_that_cannot_be_used_ends_the_pass_says_what_to_do_and_touches_nothing() {
    let scene = with_work_waiting("list");
    let redirect = FaultKind::Redirect { location: "https://sso.example.org/login".to_owned() };
    let later = |seconds: &str| FaultKind::Status { code: 429, retry_after: Some(seconds.to_owned()), body: None };
    let agent = concat!("(user agent xtm-reconcile/", env!("CARGO_PKG_VERSION"));
    let words =
        |message: &str| FaultKind::GraphqlError { code: String::new(), message: message.to_owned(), data: json!(0) };
    let licence = r#"{"code":403,"message":"LICENSE_RESTRICTION","errors":{"children":{"message":{"errors":["x"]}}}}"#;
    let blank =
        r#"{"code":400,"message":"Validation Failed","errors":{"children":{"name":{"errors":["must not be blank"]}}}}"#;
    let conflict = r#"{"type":"T","message":"in the way","error":"e"}"#;
    let cases: [(FaultKind, &[&str], usize); 22] = [
        (FaultKind::BrokenJson, &["broken JSON", URL_CURE], 1),
        (FaultKind::Html, &["an HTML page instead of the API's own answer", URL_CURE], 1),
        (FaultKind::EmptyBody, &["answered with nothing", URL_CURE], 1),
        (FaultKind::Truncate, &["was cut off", LOG_CURE], 4),
        (FaultKind::Drop, &["cannot be reached", "see that the platform is up", "OPENAEV__URL"], 4),
        (FaultKind::DropAnswer, &["cannot be reached"], 4),
        (FaultKind::NullData, &["answered null, without an error", "look into the platform's log"], 1),
        (FaultKind::status(500), &["HTTP 500", LOG_CURE], 4),
        (FaultKind::status(502), &["HTTP 502", LOG_CURE], 4),
        (FaultKind::status(503), &["HTTP 503", LOG_CURE], 4),
        (FaultKind::status(504), &["HTTP 504", LOG_CURE], 4),
        (FaultKind::status(429), &["HTTP 429", LOG_CURE], 4),
        (later("86400"), &["HTTP 429"], 1),
        (FaultKind::status(404), &["HTTP 404", URL_CURE], 1),
        (FaultKind::status(403), &["HTTP 403", "proxy or firewall"], 1),
        (redirect, &["HTTP 302", "https://sso.example.org/login", "set OPENAEV__URL to where it redirects"], 1),
        (FaultKind::RefusedToken, &["refused the token 7d1f…", agent, TOKEN_CURE], 1),
        (with_body(403, licence), &["LICENSE_RESTRICTION", "Enterprise licence"], 1),
        (with_body(400, blank), &["HTTP 400", "name: must not be blank", "README"], 1),
        (with_body(409, conflict), &["HTTP 409", "in the way (e)", "the platform's log"], 1),
        (words("Malformed or unreadable request body"), &["HTTP 400: Malformed or unreadable", "README"], 1),
        (words("Invalid xtm-composer identifier"), &["another one has the place", "OPENAEV__TAKE_OVER"], 1),
    ];
    for (kind, told, attempts) in cases {
        let what = format!("{kind:?}");
        scene.platform.fault(Fault::on(LIST, kind));
        expect_ended(&scene, &what, &scene.program(), told);
        expect_ended(&scene, &what, &scene.program(), &[&scene.platform.url()]);
        assert_eq!(scene.platform.calls(LIST).len(), 2 * attempts, "{what}: attempts");
        assert!(scene.platform.calls(STATUS).is_empty() && scene.platform.calls(LOGS).is_empty(), "{what}");
        scene.platform.clear_faults();
        scene.platform.clear_journal();
    }
    expect_work_done(&scene);
}

// Shows what README says under "xtm-reconcile": "OpenAEV 2.1.0 and later"; and under "Exit codes": "the platform could
// not be used: unreachable, refused the token or the registration, too old".
#[test]
fn a_version_or_a_heartbeat_that_cannot_be_had_ends_the_pass_before_anything_is_asked() {
    let scene = with_work_waiting("contact");
    let redirect = || FaultKind::Redirect { location: "https://sso.example.org/login".to_owned() };
    let cases: [(&str, FaultKind, &[&str]); 13] = [
        (VERSION, FaultKind::RefusedToken, &["refused the token 7d1f…", TOKEN_CURE]),
        (VERSION, FaultKind::Html, &["an HTML page", URL_CURE]),
        (VERSION, FaultKind::EmptyBody, &["nothing instead of a version", URL_CURE]),
        (VERSION, FaultKind::NullData, &["a text that is no version", "null"]),
        (VERSION, redirect(), &["HTTP 302", "set OPENAEV__URL"]),
        (VERSION, FaultKind::status(502), &["HTTP 502", LOG_CURE]),
        (VERSION, FaultKind::Drop, &["cannot be reached"]),
        (HEARTBEAT, FaultKind::RefusedToken, &["refused the token 7d1f…", TOKEN_CURE]),
        (HEARTBEAT, FaultKind::Html, &["an HTML page", URL_CURE]),
        (HEARTBEAT, FaultKind::BrokenJson, &["broken JSON", URL_CURE]),
        (HEARTBEAT, FaultKind::NullData, &["other JSON than the protocol's"]),
        (HEARTBEAT, FaultKind::status(500), &["HTTP 500", LOG_CURE]),
        (HEARTBEAT, redirect(), &["HTTP 302", "set OPENAEV__URL"]),
    ];
    for (operation, kind, told) in cases {
        let what = format!("{operation} {kind:?}");
        scene.platform.fault(Fault::on(operation, kind));
        expect_ended(&scene, &what, &scene.program(), told);
        assert!(scene.platform.calls(LIST).is_empty() && scene.platform.calls(REGISTER).is_empty(), "{what}");
        scene.platform.clear_faults();
        scene.platform.clear_journal();
    }
    let wrong = scene.program().var("OPENAEV__TOKEN", "11112222-3333-4444-5555-666677778888");
    expect_ended(&scene, "wrong token", &wrong, &["refused the token 1111…", "user agent xtm-reconcile/", TOKEN_CURE]);
    let impatient = scene.program().var("OPENAEV__PULL_TIMEOUT", "1");
    scene.platform.fault(Fault::on(LIST, FaultKind::SlowBody { ms: 20_000 }));
    expect_ended(&scene, "a slow list", &impatient, &["did not answer within 1 s", "OPENAEV__PULL_TIMEOUT"]);
    scene.platform.clear_faults();
    scene.platform.edit(|state| "2.0.9".clone_into(&mut state.openaev.platform_version));
    expect_ended(&scene, "too old", &scene.program(), &["2.0.9", "too old", "2.1.0", "upgrade the platform"]);
    scene.platform.edit(|state| "3.261026.0".clone_into(&mut state.openaev.platform_version));
    expect_work_done(&scene);
}

// Shows what README says under "First use": "That of the OpenAEV token needs to read and manage the catalogue and to
// read the platform settings.".
#[test]
fn each_capability_that_is_missing_is_named_with_its_cure() {
    let scene = with_work_waiting("capability");
    for (missing, told) in [
        (Capability::PlatformSettingRead, "lacks the capability platform settings read"),
        (Capability::CatalogWrite, "lacks the capability catalog write"),
        (Capability::CatalogRead, "lacks the capability catalog read"),
    ] {
        let mut user = OpenAevUser::default();
        user.capabilities.retain(|capability| *capability != missing);
        scene.platform.edit(|state| state.openaev.users = vec![user]);
        let cure = ["HTTP 404 (Not Found)", told, &scene.platform.url(), "give the role", "OPENAEV__TENANT"];
        expect_ended(&scene, told, &scene.program(), &cure);
    }
    scene.platform.edit(|state| state.openaev.users = vec![OpenAevUser::default()]);
    expect_work_done(&scene);
}

#[test]
fn what_passes_by_itself_is_asked_again_as_the_platform_wishes() {
    let scene = Aev::new("retries");
    scene.instance("a");
    let later = FaultKind::Status { code: 429, retry_after: Some("1".to_owned()), body: None };
    scene.platform.fault(Fault::on(LIST, later).times(1));
    for (operation, kind) in [
        (VERSION, FaultKind::status(503)),
        (HEARTBEAT, FaultKind::Drop),
        (REGISTER, FaultKind::DropAnswer),
        (HEALTH, FaultKind::status(502)),
        (STATUS, FaultKind::Truncate),
        (STATUS, FaultKind::status(500)),
    ] {
        scene.platform.fault(Fault::on(operation, kind).times(1));
    }
    let outcome = scene.program().run().expect_code(exit::OK.into());
    assert!(outcome.took >= Duration::from_secs(1), "Retry-After was obeyed: {:?}", outcome.took);
    assert_eq!(scene.platform.faults(), [], "every fault came about");
    let instance = scene.of("id-a");
    assert!(instance.current_status == "started" && instance.health.is_some(), "{instance:?}");
}

#[test]
fn an_instance_that_is_deleted_while_a_pass_works_is_that_instances_matter_and_goes_with_the_next() {
    let scene = Aev::new("meanwhile");
    scene.instance("a");
    scene.instance("b");
    scene.pass(exit::OK);
    scene.instance("c");
    scene.change("id-a", |instance| "xtm-fixture/connector:2".clone_into(&mut instance.image));
    let tap = ApiTap::new(scene.engine);
    // The lock is made first; then the list is there, and the steps begin.
    let gate = tap.hold("POST /containers/*/start", 1);
    let running = scene.program_on(&tap.docker_host()).spawn();
    gate.wait(SOON);
    for id in ["id-a", "id-c"] {
        scene.delete(id);
    }
    gate.release();
    let report = running.wait().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    let errors = report["errors"].as_array().unwrap();
    for (id, what) in [("id-a", "health"), ("id-a", "logs"), ("id-c", "health"), ("id-c", "logs"), ("id-c", "status")] {
        let told = errors.iter().find(|error| {
            error["connector"] == id
                && error["error"].as_str().unwrap().starts_with(&format!("{what} was not published"))
        });
        let told = told.unwrap_or_else(|| panic!("{what} of {id} in {report:#}"));
        expect_all(told["error"].as_str().unwrap(), &["was deleted on", "meanwhile", "Element not found"], what);
        expect_all(told["cure"].as_str().unwrap(), &["the next pass", "removes"], what);
    }
    assert!(errors.iter().all(|error| error["connector"] != "id-b"), "{report:#}");
    let report = scene.program().arg("--allow-prune").run().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"], json!({"remove": 2}), "{report:#}");
    assert_eq!(scene.only().label("opencti-connector-id"), "id-b");
}

#[test]
fn what_the_platform_refuses_of_one_instance_does_not_keep_the_others_from_being_published() {
    let scene = Aev::new("one-refused");
    for name in ["a", "b", "c", "d", "e"] {
        scene.instance(name);
    }
    let gone = r#"{"id":"x","message":"Element not found: ConnectorInstance with id X not found"}"#;
    let licence = r#"{"code":403,"message":"LICENSE_RESTRICTION"}"#;
    for (operation, kind, id) in [
        (LOGS, FaultKind::status(413), "id-a"),
        (HEALTH, with_body(404, gone), "id-b"),
        (STATUS, with_body(403, licence), "id-c"),
        (LOGS, with_body(400, r#"{"id":"x","message":"Malformed or unreadable request body"}"#), "id-d"),
        (LOGS, FaultKind::Drop, "id-e"),
    ] {
        scene.platform.fault(Fault::on(operation, kind).about(id));
    }
    let report =
        scene.program().var("MANAGER__CONCURRENCY", "1").run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    let sent = &report["platform"]["sent"];
    assert_eq!((&sent["status"], &sent["health"]), (&json!(4), &json!(4)), "{report:#}");
    let told = faults(&report);
    expect_all(
        &told,
        &[
            "HTTP 413",
            "MANAGER__LOGS_TAIL",
            "was deleted",
            "LICENSE_RESTRICTION",
            "Malformed",
            "answers other requests",
        ],
        "refusals",
    );
    assert_eq!(report["errors"].as_array().unwrap().len(), 5, "{report:#}");
}

#[test]
fn a_platform_that_dies_after_the_list_gets_its_steps_done_and_the_reports_with_the_next_pass() {
    let scene = Aev::new("dies");
    for name in ["a", "b", "c"] {
        scene.instance(name);
    }
    for operation in [HEALTH, LOGS, STATUS] {
        scene.platform.fault(Fault::on(operation, FaultKind::Drop));
    }
    let report = scene.pass(exit::PLATFORM);
    assert_eq!(report["counts"]["steps"]["deploy"], 3, "{report:#}");
    expect_all(&faults(&report), &["was not published", "cannot be reached", "the next pass sends it"], "publish");
    scene.platform.clear_faults();
    let report = scene.pass(exit::OK);
    assert_eq!(report["counts"]["unchanged"], 3);
    assert_eq!(report["platform"]["sent"], json!({"status": 3, "health": 3, "logs": 3}), "{report:#}");
    assert_eq!(report["platform"]["registration"], "known", "the record of the broken pass was written");
}

#[test]
fn one_malformed_entry_among_good_ones_is_named_and_the_others_are_served() {
    let scene = Aev::new("malformed");
    for name in ["good", "odd", "gone"] {
        scene.instance(name);
    }
    scene.pass(exit::OK);
    let odd = scene.container_of("id-odd");
    scene.instance("late");
    let malformed = [
        json!({"connector_instance_configurations": "hunter2"}),
        json!({"connector_instance_configurations": null}),
        json!({"connector_instance_configurations": [{"configuration_value": "hunter2"}]}),
        json!({"connector_instance_configurations": [{"configuration_key": "A", "configuration_value": {"x": "hunter2"}}]}),
        json!({"connector_instance_name": 47_114_711}),
        json!({"connector_instance_hash": null}),
        json!({"connector_instance_requested_status": null}),
        json!({"connector_image": ["hunter2"]}),
    ];
    for (round, entry) in malformed.into_iter().enumerate() {
        scene.change("id-odd", |instance| instance.raw_override = Some(entry.clone()));
        let outcome = scene.program().run().expect_code(exit::CONNECTOR_FAILED.into());
        assert!(!outcome.stdout.contains("hunter2") && !outcome.stderr.contains("hunter2"), "{entry}: {outcome:?}");
        let report = outcome.lane();
        let told = line(&report, "id-odd");
        assert_eq!(told["result"], "rejected", "{entry}: {report:#}");
        expect_all(told["error"].as_str().unwrap(), &["cannot be read"], &entry.to_string());
        let still = scene.container_of("id-odd");
        assert!(still.running() && still.id == odd.id, "{entry}: it runs on");
        assert_eq!(line(&report, "id-late")["result"], if round == 0 { "done" } else { "unchanged" }, "{report:#}");
    }
    assert!(scene.calls_about("id-odd").iter().filter(|call| call.is(STATUS)).count() == 1, "the first pass's alone");

    // An entry without an id could be any instance: nothing is removed while it is there.
    for entry in [json!(null), json!("text"), json!({"connector_instance_id": 7}), json!({"connector_instance_id": ""})]
    {
        scene.delete("id-gone");
        scene.change("id-odd", |instance| instance.raw_override = Some(entry.clone()));
        for prune in [&[][..], &["--allow-prune"]] {
            let report = scene.program().args(prune).run().expect_code(exit::GUARD.into()).lane();
            assert_eq!(line(&report, "id-gone")["skip"]["kind"], "prune-refused", "{entry}: {report:#}");
            assert_eq!(report["prune_refused"]["kind"], "partial-listing", "{entry}: {report:#}");
        }
        assert_eq!(scene.containers().len(), 4, "{entry}");
    }
}
