//! A key that is not the registered one: when it is registered, when it is refused, and that a refusal leaves the way
//! back open.

use std::path::PathBuf;

use serde_json::{Value, json};
use stand_in_platform::{Connector, Setting, TokenMode, envelope};
use xtm_reconcile::exit;

use crate::scene::Scene;
use crate::support::{Binary, Container, Outcome};
use crate::watch::{Watch, expect_all, faults};

const REGISTER: &str = "registerConnectorsManager";
const HEALTH: &str = "updateConnectorHealth";

/// A scene with a connector that has a secret, and that runs. Its manager is registered.
fn registered(name: &str) -> Scene {
    let scene = Scene::new(name);
    scene.connector_with("a", |connector| connector.secret("API_KEY", "hunter2"));
    scene.pass_ends(exit::OK);
    scene.platform.clear_journal();
    scene
}

fn other_key(name: &str) -> PathBuf {
    crate::support::repository().join("fixtures/platform/keys").join(name)
}

/// The program with a key that is not the scene's.
fn with_other_key(scene: &Scene) -> Binary {
    scene.program().var("MANAGER__CREDENTIALS_KEY_FILEPATH", other_key("rsa-3072.pem"))
}

/// The fingerprint of the program's key.
fn fingerprint(program: Binary) -> String {
    let table = program.arg("check").run().stdout;
    let after = table.split("fingerprint ").nth(1).unwrap_or_else(|| panic!("no fingerprint in {table}"));
    after.split_whitespace().next().unwrap().to_owned()
}

fn public_key(scene: &Scene) -> String {
    scene.platform.read(|state| state.managers[0].public_key.clone())
}

/// The part of the record that remembers the registration.
fn remembered(scene: &Scene) -> String {
    scene.records()[0].label("xtm-reconcile.registration").to_owned()
}

fn in_json(program: Binary, command: &str) -> Outcome {
    program.args([command, "--output", "json"]).run()
}

#[track_caller]
fn registration(outcome: Outcome, code: u8) -> (String, Value) {
    let report = outcome.expect_code(code.into()).lane();
    (report["platform"]["registration"].as_str().unwrap_or_default().to_owned(), report)
}

/// Passes and plans with the other key are refused in the same words, and nothing is written but signs of life.
#[track_caller]
fn expect_refused(scene: &Scene, why: &str, told: &[&str]) {
    let before = (public_key(scene), scene.records());
    let watch = Watch::new(scene);
    scene.platform.clear_journal();
    let (planned, plan) = registration(in_json(with_other_key(scene), "plan"), exit::PLATFORM);
    let writes = scene.platform.journal().into_iter().filter(|call| call.kind == stand_in_platform::Kind::Mutation);
    assert_eq!(writes.count(), 0, "a plan writes nothing");

    let (done, report) = registration(in_json(with_other_key(scene), "run"), exit::PLATFORM);
    assert_eq!(scene.platform.calls(HEALTH).len(), 1, "what runs must not look dead: {report:#}");
    watch.expect_untouched(why);
    assert_eq!(scene.platform.calls(REGISTER), [], "{report:#}");
    let after = (public_key(scene), scene.records());
    let ids = |records: &[Container]| records.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
    assert_eq!((after.0, ids(&after.1)), (before.0, ids(&before.1)), "key and record are as they were");

    assert_eq!((&done, &planned), (&format!("not registered: {why}"), &done));
    assert_eq!(faults(&report), faults(&plan));
    expect_all(&faults(&report), told, why);
    expect_all(&faults(&report), &["wrong key", "--accept-new-key", "MANAGER__ACCEPT_NEW_KEY=true"], why);

    let table = with_other_key(scene).arg("run").run().expect_code(exit::PLATFORM.into()).stdout;
    expect_all(&table, &[&format!("opencti: not registered: {why}\n"), "opencti: error: the key of this manager"], why);
}

// Shows what README says under "Exit codes": "or this manager's key opens nothing of what it lists"; and under "What a
// pass does": "one that opens none of them is not registered: the pass ends with 3, names both fingerprints".
#[test]
fn a_key_that_opens_nothing_is_refused_with_both_fingerprints_and_the_former_one_goes_on_quietly() {
    let scene = registered("wrong-key");
    let (former, other) = (fingerprint(scene.program()), fingerprint(with_other_key(&scene)));
    assert_ne!(former, other);
    let told = [former.as_str(), other.as_str(), "opens none", "(1)", &scene.platform.url()];
    expect_refused(&scene, "this manager has another key", &told);
    scene.pass_is_quiet();

    // Another version of the platform, which is a reason to register as well, changes nothing about it.
    scene.platform.edit(|state| "7.261101.0".clone_into(&mut state.platform_version));
    expect_refused(&scene, "this manager has another key", &told);
}

// Shows what README says under "What a pass does": "`--accept-new-key` registers it all the same.", "a pass with
// neither decrypts none".
#[test]
fn an_accepted_key_is_registered_untried_and_the_table_says_why() {
    let scene = registered("accepted-key");
    let former = public_key(&scene);
    let flag = |program: Binary| program.arg("--accept-new-key");
    let variable = |program: Binary| program.var("MANAGER__ACCEPT_NEW_KEY", "true");
    let ways: [&dyn Fn(Binary) -> Binary; 2] = [&flag, &variable];
    for accept in ways {
        let (planned, _) = registration(in_json(accept(with_other_key(&scene)), "plan"), exit::OK);
        let table = accept(with_other_key(&scene)).arg("run").run().expect_code(exit::OK.into()).stdout;
        let other = fingerprint(with_other_key(&scene));
        let why = format!("this manager has another key, and --accept-new-key accepts the key {other} untried");
        expect_all(&table, &[&format!("opencti: registered: {why}\n")], "the table");
        assert_eq!(planned, format!("to register: {why}"));
        assert_ne!(public_key(&scene), former);
        assert!(remembered(&scene).contains(&other));

        // The values are those of the former key still, and nothing is decrypted for a key that is registered already.
        let (told, report) = registration(in_json(with_other_key(&scene), "run"), exit::OK);
        assert_eq!((told.as_str(), &report["counts"]["unchanged"]), ("known", &json!(1)), "{report:#}");
        assert!(!report["stages"].to_string().contains("try-key"), "{report:#}");

        // The right key opens them, so that it needs no permission to come back.
        let (told, _) = registration(scene.pass(), exit::OK);
        assert_eq!(told, "registered: this manager has another key");
        assert_eq!(public_key(&scene), former);
        scene.pass_is_quiet();
    }
}

// Shows what README says under "What a pass does": "So a key that is not known to be the registered one is tried on the
// listed values first"; and under "What it leaves on a Docker engine": "A lost record costs one registration".
#[test]
fn a_platform_that_knows_the_manager_gets_no_other_key_when_the_record_is_lost() {
    let scene = registered("lost-record");
    let forget = || scene.records().iter().for_each(|record| scene.engine.remove(&record.id));
    forget();
    let other = fingerprint(with_other_key(&scene));
    let why = "there is no memory of an earlier registration";
    expect_refused(&scene, why, &[&other, "opens none", "is not remembered"]);
    assert!(scene.records().is_empty(), "what was not registered is not remembered");
    let (told, _) = registration(scene.pass(), exit::OK);
    assert_eq!(told, format!("registered: {why}"));
    scene.pass_is_quiet();
}

// Shows what README says under "What a pass does": "One value that it opens is enough, which allows a change of keys
// half way".
#[test]
fn one_value_of_the_new_key_is_enough_and_broken_values_show_nothing() {
    let scene = registered("half-way");
    // What was never started is listed, and no step needs its values.
    let stopped = |connector: Connector| connector.requested("stopped");
    let value = |envelope: String| Setting { key: "SEALED".to_owned(), value: Some(envelope), encrypted: Some(true) };
    for (name, envelope) in
        [("text", "no base64!".to_owned()), ("version", "AA==".to_owned()), ("short", "Ag==".to_owned())]
    {
        scene.connector_with(name, |connector| {
            let mut connector = stopped(connector);
            connector.configuration.push(value(envelope));
            connector
        });
    }
    let told = ["opens none", "(1)"];
    expect_refused(&scene, "this manager has another key", &told);

    let public = std::fs::read_to_string(other_key("rsa-3072.pub.pem")).unwrap();
    let typed_again = envelope::encrypt_v2(&public, "hunter2").unwrap();
    scene.connector_with("new", |connector| {
        let mut connector = stopped(connector);
        connector.configuration.push(value(typed_again));
        connector
    });
    let (told, report) = registration(in_json(with_other_key(&scene), "run"), exit::OK);
    assert_eq!(told, "registered: this manager has another key");
    assert!(!report["notices"].to_string().contains("could not be tried"), "{report:#}");
}

// Shows what README says under "What a pass does": "where nothing is encrypted it is registered with a notice".
#[test]
fn without_an_encrypted_value_a_new_key_is_registered_with_a_notice() {
    let scene = Scene::new("nothing-sealed");
    scene.connector("a");
    scene.pass_ends(exit::OK);
    let (former, other) = (fingerprint(scene.program()), fingerprint(with_other_key(&scene)));
    let (told, report) = registration(in_json(with_other_key(&scene), "run"), exit::OK);
    assert_eq!(told, "registered: this manager has another key");
    let notices = report["notices"].to_string();
    expect_all(&notices, &[&former, &other, "could not be tried", "no encrypted value is listed"], "notice");
    let (told, report) = registration(in_json(with_other_key(&scene), "run"), exit::OK);
    assert_eq!((told.as_str(), &report["notices"]), ("known", &json!([])), "{report:#}");
}

#[test]
fn tokens_that_the_platform_encrypts_are_values_as_well() {
    let scene = Scene::new("token-only");
    scene.platform.edit(|state| state.opencti_token = TokenMode::Encrypted);
    scene.connector("a");
    scene.pass_ends(exit::OK);
    expect_refused(&scene, "this manager has another key", &["opens none", "(1)"]);
}

#[test]
fn a_refused_key_ends_its_own_lane_alone() {
    let scene = registered("two-lanes");
    let instance = stand_in_platform::Instance::new("id-i", scene.manager.connector_name("i"), crate::scene::IMAGE);
    scene.platform.edit(|state| state.openaev.instances.push(instance.requested("starting")));
    let outcome = in_json(scene.with_openaev(with_other_key(&scene)), "run").expect_code(exit::PLATFORM.into());
    let report = outcome.json();
    let codes: Vec<_> = report["lanes"].as_array().unwrap().iter().map(|lane| &lane["exit_code"]).collect();
    assert_eq!(codes, [&json!(exit::PLATFORM), &json!(exit::OK)], "{report:#}");
    assert_eq!(report["lanes"][1]["counts"]["steps"], json!({"deploy": 1}), "{report:#}");
}
