//! Names, values and envelopes as strange as a platform can send them: what arrives, what is refused, and who pays.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use stand_in_platform::envelope::{self, Padding, Parts};
use stand_in_platform::{Connector, Setting};
use xtm_reconcile::exit;

use crate::scene::{IMAGE, Scene};
use crate::support::{Container, KeyForm, NewContainer, Outcome, TestKey};
use crate::watch::{expect_all, line};

fn setting(key: &str, value: Option<&str>, encrypted: Option<bool>) -> Setting {
    Setting { key: key.to_owned(), value: value.map(str::to_owned), encrypted }
}

/// The container of a connector.
#[track_caller]
fn container_of(scene: &Scene, connector: &str) -> Container {
    let found = scene.containers().into_iter().find(|c| c.label("opencti-connector-id") == connector);
    found.unwrap_or_else(|| panic!("{connector} has a container"))
}

fn nothing_shown(outcome: &Outcome, secrets: &[&str]) {
    for secret in secrets {
        assert!(!outcome.stdout.contains(secret), "{secret} is on stdout:\n{}", outcome.stdout);
        assert!(!outcome.stderr.contains(secret), "{secret} is on stderr:\n{}", outcome.stderr);
    }
}

// Shows what README says under "What a pass does": "They leave the program in the container's environment".
#[test]
fn values_arrive_as_the_platform_has_them_in_clear_and_in_both_envelopes_of_every_key_size() {
    let long = "0123456789abcdef".repeat(6400); // 102,400 bytes
    let values = BTreeMap::from([
        ("EQUALS", "a=b=c=="),
        ("LINES", "one\ntwo\r\n\tthree\n"),
        ("QUOTES", r#"'single' "double" `back` \slash $HOME ${X} %s"#),
        ("UNICODE", "Ünïcödé — 日本語 🦀 \u{202e}rtl"),
        ("SPACES", "  outer spaces  "),
        ("JSON", r#"{"a":["b",1,null]}"#),
        ("LONG", long.as_str()),
        ("dotted.name-with_dash", "lower case"),
    ]);
    for (bits, form) in [(2048, KeyForm::Pkcs1), (3072, KeyForm::Pkcs8), (4096, KeyForm::Pkcs1)] {
        for version in [1, 2] {
            let mut scene = Scene::new("values");
            scene.key = TestKey::rsa(bits, form);
            scene.platform.edit(|state| state.envelope_version = version);
            scene.connector_with("clear", |connector| {
                let connector = values.iter().fold(connector, |c, (name, value)| c.setting(*name, *value));
                connector.setting("EMPTY", "")
            });
            scene.connector_with("sealed", |connector| {
                values.iter().fold(connector, |c, (name, value)| c.secret(*name, *value))
            });
            scene.connector_with("null", |mut connector| {
                connector.configuration.push(setting("NULL", None, None));
                connector.setting("TWICE", "first").setting("TWICE", "second")
            });
            let outcome = scene.pass().expect_code(exit::OK.into());
            nothing_shown(&outcome, &["a=b=c==", "outer spaces", &long[..64], "日本語"]);
            let named = format!(
                "null) for variables that are therefore not set, so that the connector's own defaults hold: {} (NULL)",
                scene.manager.connector_name("null")
            );
            assert!(outcome.lane()["notices"].to_string().contains(&named), "{named}: {outcome:?}");
            for id in ["id-clear", "id-sealed"] {
                let container = container_of(&scene, id);
                for (name, value) in &values {
                    assert!(container.env[*name] == *value, "{name} of {id}, RSA {bits}, version {version}");
                }
                assert_eq!(container.env["OPENCTI_URL"], scene.platform.url());
                assert_eq!(container.env["OPENCTI_CONFIG_HASH"], container.label("opencti-config-hash"));
            }
            assert_eq!(container_of(&scene, "id-clear").env["EMPTY"], "");
            let null = container_of(&scene, "id-null");
            assert!(!null.env.contains_key("NULL"), "a null is left to the connector's own default");
            assert_eq!(null.env["TWICE"], "second");
        }
    }
}

/// An envelope with one byte changed, counted from the front or, when negative, from the back.
fn flipped(envelope: &str, place: isize) -> String {
    let mut bytes = STANDARD.decode(envelope).unwrap();
    let at = if place < 0 { bytes.len() - place.unsigned_abs() } else { place.unsigned_abs() };
    bytes[at] ^= 1;
    STANDARD.encode(bytes)
}

/// A name, what makes the connector unusable, and what the report has to tell.
type BadInput = (&'static str, Box<dyn Fn(&mut Connector)>, Vec<&'static str>);

/// Everything that makes a connector unusable.
fn bad_inputs(public_key: &str) -> Vec<BadInput> {
    let key = envelope::public_key(public_key).unwrap();
    let v2 = envelope::encrypt_v2(public_key, "hunter2-clear").unwrap();
    let v1 = envelope::encrypt_v1(public_key, "hunter2-clear").unwrap();
    let other = std::fs::read_to_string(crate::support::repository().join("fixtures/platform/keys/rsa-2048.pub.pem"));
    let foreign = envelope::encrypt_v2(&other.unwrap(), "hunter2-clear").unwrap();
    let version = |byte| {
        let parts = Parts { version: byte, padding: Padding::OaepSha256, rsa_plaintext: None };
        envelope::encrypt_with(&key, &parts, b"hunter2-clear").unwrap()
    };
    let short_key = Parts { version: 2, padding: Padding::OaepSha256, rsa_plaintext: Some(vec![7; 32]) };
    let short_key = envelope::encrypt_with(&key, &short_key, b"hunter2-clear").unwrap();
    let not_utf8 = envelope::encrypt_version(&key, 2, b"hunter2\xff").unwrap();
    let with_nul = envelope::encrypt_v2(public_key, "hunter2\0clear").unwrap();
    let empty = envelope::encrypt_v2(public_key, "").unwrap();
    // The padding of the other version.
    let mixed = Parts { version: 1, padding: Padding::OaepSha256, rsa_plaintext: None };
    let mixed = envelope::encrypt_with(&key, &mixed, b"hunter2-clear").unwrap();
    let mut cases: Vec<BadInput> = Vec::new();
    let sealed: Vec<(&'static str, Option<String>, Vec<&'static str>)> = vec![
        ("sealed-null", None, vec!["SECRET_X is empty", "type it again"]),
        ("sealed-empty", Some(String::new()), vec!["SECRET_X is empty"]),
        ("sealed-blank", Some(" \n".to_owned()), vec!["SECRET_X is empty"]),
        ("sealed-of-nothing", Some(empty), vec!["SECRET_X is empty"]),
        ("no-base64", Some("hunter2 is no base64!".to_owned()), vec!["SECRET_X", "not base64"]),
        ("url-base64", Some("hunter2__--".to_owned()), vec!["SECRET_X", "not base64"]),
        ("one-byte", Some(STANDARD.encode([2])), vec!["SECRET_X", "it has 1 bytes", "at least 273"]),
        ("a-version-only", Some(STANDARD.encode([0])), vec!["SECRET_X", "version 0 is unknown"]),
        ("short", Some(STANDARD.encode([2; 272])), vec!["SECRET_X", "it has 272 bytes"]),
        ("noise", Some(STANDARD.encode([2; 512])), vec!["SECRET_X", "another key"]),
        ("version-0", Some(version(0)), vec!["SECRET_X", "version 0 is unknown"]),
        ("version-9", Some(version(9)), vec!["SECRET_X", "version 9 is unknown", "newer xtm-reconcile"]),
        ("rsa-v1", Some(flipped(&v1, 40)), vec!["SECRET_X", "another key"]),
        ("rsa-v2", Some(flipped(&v2, 40)), vec!["SECRET_X", "another key"]),
        ("ciphertext", Some(flipped(&v2, -17)), vec!["SECRET_X", "it is damaged"]),
        ("tag", Some(flipped(&v1, -1)), vec!["SECRET_X", "it is damaged"]),
        ("foreign-key", Some(foreign), vec!["SECRET_X", "another key"]),
        ("mixed-padding", Some(mixed), vec!["SECRET_X", "another key"]),
        ("short-aes-key", Some(short_key), vec!["SECRET_X", "another key"]),
        ("not-utf8", Some(not_utf8), vec!["SECRET_X", "not UTF-8"]),
        ("sealed-nul", Some(with_nul), vec!["SECRET_X", "NUL byte"]),
    ];
    for (name, envelope, told) in sealed {
        let change = move |connector: &mut Connector| {
            connector.configuration.push(setting("SECRET_X", envelope.as_deref(), Some(true)));
        };
        cases.push((name, Box::new(change), told));
    }
    for (name, variable) in [
        ("empty-name", ""),
        ("digit-name", "1ST"),
        ("equals-name", "A=B"),
        ("space-name", "A B"),
        ("nul-name", "A\0B"),
        ("unicode-name", "ÄB"),
        ("line-name", "A\nB"),
    ] {
        let change = move |connector: &mut Connector| {
            connector.configuration.push(setting(variable, Some("hunter2-clear"), None));
        };
        cases.push((name, Box::new(change), vec!["cannot be the name of an environment variable"]));
    }
    let nul = |connector: &mut Connector| connector.configuration.push(setting("VALUE_X", Some("hunter2\0x"), None));
    cases.push(("nul", Box::new(nul), vec!["VALUE_X holds a NUL byte"]));
    for (name, image, told) in [
        ("no-image", "", "sent no image"),
        ("blank-image", "  ", "sent no image"),
        ("odd-image", "xtm fixture:1", "not an image reference"),
        ("tag-only", ":1", "not an image reference"),
    ] {
        let change = move |connector: &mut Connector| image.clone_into(&mut connector.image);
        cases.push((name, Box::new(change), vec![told]));
    }
    let raw = |value: Value| move |connector: &mut Connector| connector.raw_override = Some(value.clone());
    cases.push((
        "status",
        Box::new(raw(json!({"manager_requested_status": "dancing"}))),
        vec!["\"dancing\" is unknown"],
    ));
    cases.push((
        "no-hash",
        Box::new(raw(json!({"manager_contract_hash": ""}))),
        vec!["configuration hash cannot be used"],
    ));
    let odd_hash = raw(json!({"manager_contract_hash": "a b"}));
    cases.push(("odd-hash", Box::new(odd_hash), vec!["configuration hash cannot be used"]));
    let no_configuration = raw(json!({"manager_contract_configuration": null}));
    cases.push(("no-configuration", Box::new(no_configuration), vec!["cannot be read"]));
    cases
}

// Shows what README says under "What a pass does": "**One connector's fault stays its own.**"; and under "Exit codes":
// "at least one connector failed or was rejected".
#[test]
fn each_bad_input_rejects_its_own_connector_alone_and_what_runs_of_it_runs_on() {
    let scene = Scene::new("bad-inputs");
    scene.connector("good");
    scene.pass().expect_code(exit::OK.into());
    let public_key = scene.platform.read(|state| state.managers[0].public_key.clone());
    let cases = bad_inputs(&public_key);
    for (name, ..) in &cases {
        scene.connector(name);
    }
    scene.pass().expect_code(exit::OK.into());
    let before: BTreeMap<String, String> =
        scene.containers().into_iter().map(|c| (c.label("opencti-connector-id").to_owned(), c.id)).collect();
    assert_eq!(before.len(), cases.len() + 1);

    scene.platform.edit(|state| {
        for (name, change, _) in &cases {
            change(state.connector_mut(&format!("id-{name}")).unwrap());
        }
        state.connector_mut("id-good").unwrap().configuration.push(setting("NEW", Some("1"), None));
    });
    let outcome = scene.program().args(["run", "--output", "json"]).var("RUST_LOG", "trace").run();
    let outcome = outcome.expect_code(exit::CONNECTOR_FAILED.into());
    nothing_shown(&outcome, &["hunter2"]);
    let report = outcome.lane();
    assert_eq!(report["counts"]["rejected"], cases.len(), "{report:#}");
    assert_eq!(report["counts"]["steps"], json!({"refresh": 1}), "{report:#}");
    for (name, _, told) in &cases {
        let id = format!("id-{name}");
        let line = line(&report, &id);
        assert_eq!(line["result"], "rejected", "{line:#}");
        expect_all(line["error"].as_str().unwrap(), told, name);
        let still = container_of(&scene, &id);
        assert!(still.running() && still.id == before[&id], "{name}: its container runs on");
    }
    assert_ne!(container_of(&scene, "id-good").id, before["id-good"]);

    // What was rejected at once gets better by itself; statuses are told once.
    scene.platform.clear_journal();
    scene.pass().expect_code(exit::CONNECTOR_FAILED.into());
    assert_eq!(scene.platform.calls("updateConnectorCurrentStatus"), []);
    // The same without a container: nothing is deployed.
    for container in scene.containers() {
        scene.engine.remove(&container.id);
    }
    scene.pass().expect_code(exit::CONNECTOR_FAILED.into());
    assert_eq!(scene.containers().len(), 1, "only the good one");
}

#[test]
fn names_of_every_kind_become_valid_names_of_their_own() {
    let scene = Scene::new("names");
    // Names that lose everything get the id's hash, so the ids have to be of this test alone.
    let id = |name: &str| scene.manager.connector_name(name);
    let names = [
        ("one", "x".to_owned()),
        ("symbols", "!!! ??? ///".to_owned()),
        ("cyrillic", "Коннектор".to_owned()),
        ("empty", String::new()),
        ("long", format!("{}-{}", "Very Long Name ".repeat(13), scene.manager)),
        ("escape", format!("\u{1b}[2J\u{1b}[31mred\r\nnext {}", scene.manager)),
        ("dotted", format!("A.B_C {}", scene.manager)),
    ];
    scene.platform.edit(|state| {
        for (name, title) in &names {
            state.connectors.push(Connector::new(id(name), title, IMAGE).requested("starting"));
        }
    });
    let outcome = scene.program().run().expect_code(exit::OK.into());
    assert!(!outcome.stdout.contains(['\u{1b}', '\r']), "a name cannot move the cursor: {:?}", outcome.stdout);
    assert_eq!(outcome.stdout.lines().filter(|line| line.contains("deploy") && line.contains("done")).count(), 7);
    let containers = scene.containers();
    let of = |name: &str| &containers.iter().find(|c| c.label("opencti-connector-id") == id(name)).unwrap().name;
    for container in &containers {
        let name = &container.name;
        assert!(container.running() && (2..=63).contains(&name.len()), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
        assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
    }
    assert!(of("one").starts_with("x-") && of("symbols").starts_with("connector-"));
    assert!(of("cyrillic").starts_with("connector-") && of("cyrillic") != of("symbols"));
    assert!(of("dotted").starts_with("a-b-c-"));
    assert!(of("long").starts_with("very-long-name-very"));
    let report = scene.pass().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["unchanged"], 7, "the names stay: {report:#}");
}

// Shows what README says under "What a pass does": "**Foreign workloads are never touched**", "A connector whose name
// one of them has is rejected.".
#[test]
fn a_name_that_belongs_to_somebody_else_rejects_the_connector_and_leaves_theirs_alone() {
    let scene = Scene::new("foreign");
    let names = ["by-hand", "other-manager", "other-platform", "no-id"].map(|name| (name, scene.connector(name)));
    let mine = &*scene.manager;
    let full = |n: usize| names[n].1.as_str();
    let theirs = [
        NewContainer::foreign(full(0)),
        NewContainer::of_daemon(full(1), "somebody-else", "id-other-manager", "x"),
        NewContainer::of_daemon(full(2), mine, "id-other-platform", "x").label("opencti-platform", "openaev"),
        NewContainer::foreign(full(3)).label("opencti-manager", mine),
    ];
    let ids: Vec<String> = theirs.iter().map(|new| scene.engine.run(new)).collect();
    scene.connector("fine");
    let report = scene.pass().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    for ((name, full), id) in names.iter().zip(&ids) {
        let error = line(&report, &format!("id-{name}"))["error"].as_str().unwrap().to_owned();
        expect_all(&error, &[&format!("the name {full} is taken by"), "rename that one or the connector"], name);
        let still = scene.engine.container(full).unwrap();
        assert!(still.id == *id && still.running(), "{name}: theirs is as it was");
    }
    assert_eq!(line(&report, "id-fine")["result"], "done");
    // Not listed any more, and told to prune: still not ours.
    scene.platform.edit(|state| state.connectors.clear());
    scene.program().args(["run", "--allow-prune"]).run().expect_code(exit::OK.into());
    for ((_, full), id) in names.iter().zip(&ids) {
        assert_eq!(scene.engine.container(full).unwrap().id, *id);
        scene.engine.remove(full);
    }
}
