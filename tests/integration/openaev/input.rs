//! Values and envelopes as strange as OpenAEV can send them: what is refused, who pays, and lists that shrink.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use stand_in_platform::envelope::{self, Padding, Parts};
use stand_in_platform::{Instance, Setting};
use xtm_reconcile::exit;

use super::{Aev, STATUS};
use crate::moves::line;
use crate::watch::{Watch, expect_all};

fn setting(key: &str, value: Option<&str>, encrypted: Option<bool>) -> Setting {
    Setting { key: key.to_owned(), value: value.map(str::to_owned), encrypted }
}

/// What a secret is made of on the platform, and what the report has to tell.
fn bad_secrets(public_key: &str) -> Vec<(&'static str, Option<String>, Vec<&'static str>)> {
    let key = envelope::public_key(public_key).unwrap();
    let [v1, v2] =
        [envelope::encrypt_v1, envelope::encrypt_v2].map(|encrypt| encrypt(public_key, "hunter2-clear").unwrap());
    let with = |version, padding| {
        let parts = Parts { version, padding, rsa_plaintext: None };
        envelope::encrypt_with(&key, &parts, b"hunter2-clear").unwrap()
    };
    let damaged = |envelope: &str| {
        let mut bytes = STANDARD.decode(envelope).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        STANDARD.encode(bytes)
    };
    let other = std::fs::read_to_string(crate::support::repository().join("fixtures/platform/keys/rsa-2048.pub.pem"));
    vec![
        ("sealed-null", None, vec!["SECRET_X is empty", "type it again"]),
        ("sealed-empty", Some(String::new()), vec!["SECRET_X is empty"]),
        ("sealed-nothing", Some(envelope::encrypt_v1(public_key, "").unwrap()), vec!["SECRET_X is empty"]),
        // What the platform makes of a JSON null.
        ("sealed-null-text", Some("null".to_owned()), vec!["SECRET_X"]),
        ("no-base64", Some("hunter2 is no base64!".to_owned()), vec!["SECRET_X", "not base64"]),
        ("short", Some(STANDARD.encode([1; 200])), vec!["SECRET_X", "it has 200 bytes"]),
        ("noise", Some(STANDARD.encode([1; 512])), vec!["SECRET_X", "another key"]),
        ("version-0", Some(with(0, Padding::OaepSha256)), vec!["SECRET_X", "version 0 is unknown"]),
        ("version-9", Some(with(9, Padding::OaepSha256)), vec!["version 9 is unknown", "newer xtm-reconcile"]),
        ("mixed-padding", Some(with(1, Padding::OaepSha256)), vec!["SECRET_X", "another key"]),
        ("damaged-v1", Some(damaged(&v1)), vec!["SECRET_X", "it is damaged"]),
        ("damaged-v2", Some(damaged(&v2)), vec!["SECRET_X", "it is damaged"]),
        ("foreign-key", Some(envelope::encrypt_v2(&other.unwrap(), "hunter2-clear").unwrap()), vec!["another key"]),
        ("not-utf8", Some(envelope::encrypt_version(&key, 1, b"hunter2\xff").unwrap()), vec!["SECRET_X", "not UTF-8"]),
        ("sealed-nul", Some(envelope::encrypt_v1(public_key, "hunter2\0x").unwrap()), vec!["SECRET_X", "NUL byte"]),
    ]
}

/// A name, what makes the instance unusable, and what the report has to tell.
type BadInput = (&'static str, Box<dyn Fn(&mut Instance)>, Vec<&'static str>);

fn bad_inputs(public_key: &str) -> Vec<BadInput> {
    let mut cases: Vec<BadInput> = Vec::new();
    for (name, envelope, told) in bad_secrets(public_key) {
        let change = move |instance: &mut Instance| {
            instance.configuration.push(setting("SECRET_X", envelope.as_deref(), Some(true)));
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
        let change = move |instance: &mut Instance| {
            instance.configuration.push(setting(variable, Some("hunter2-clear"), None));
        };
        cases.push((name, Box::new(change), vec!["cannot be the name of an environment variable"]));
    }
    let nul = |instance: &mut Instance| instance.configuration.push(setting("VALUE_X", Some("hunter2\0x"), None));
    cases.push(("nul", Box::new(nul), vec!["VALUE_X holds a NUL byte"]));
    for (name, image, told) in [
        ("no-image", "", "sent no image"),
        ("blank-image", "  ", "sent no image"),
        ("odd-image", "xtm fixture:1", "not an image reference"),
        ("tag-only", ":1", "not an image reference"),
    ] {
        let change = move |instance: &mut Instance| image.clone_into(&mut instance.image);
        cases.push((name, Box::new(change), vec![told]));
    }
    for (name, fields, told) in [
        ("status", json!({"connector_instance_requested_status": "dancing"}), "\"dancing\" is unknown"),
        ("case", json!({"connector_instance_requested_status": "STARTING"}), "\"STARTING\" is unknown"),
        ("null-image", json!({"connector_image": null}), "sent no image"),
        ("no-hash", json!({"connector_instance_hash": ""}), "configuration hash cannot be used"),
        ("odd-hash", json!({"connector_instance_hash": "a b"}), "configuration hash cannot be used"),
        ("null-hash", json!({"connector_instance_hash": null}), "cannot be read"),
        ("no-configuration", json!({"connector_instance_configurations": null}), "cannot be read"),
    ] {
        let change = move |instance: &mut Instance| instance.raw_override = Some(fields.clone());
        cases.push((name, Box::new(change), vec![told]));
    }
    cases
}

// Shows what README says under "What a pass does": "**One connector's fault stays its own.**".
#[test]
fn each_bad_input_rejects_its_own_instance_alone_and_what_runs_of_it_runs_on() {
    let scene = Aev::new("bad-inputs");
    scene.instance("good");
    scene.pass(exit::OK);
    let public_key = scene.platform.read(|state| state.openaev.composer.clone().unwrap().public_key);
    let cases = bad_inputs(&public_key);
    for (name, ..) in &cases {
        scene.instance(name);
    }
    scene.pass(exit::OK);
    let containers = || -> BTreeMap<String, String> {
        let all = scene.containers().into_iter().filter(crate::support::Container::running);
        all.map(|container| (container.label("opencti-connector-id").to_owned(), container.id)).collect()
    };
    let before = containers();
    assert_eq!(before.len(), cases.len() + 1);

    for (name, change, _) in &cases {
        scene.change(&format!("id-{name}"), |instance| change(instance));
    }
    scene.change("id-good", |instance| instance.configuration.push(setting("NEW", Some("1"), None)));
    let outcome = scene.program().var("RUST_LOG", "trace").run().expect_code(exit::CONNECTOR_FAILED.into());
    for printed in [&outcome.stdout, &outcome.stderr] {
        assert!(!printed.contains("hunter2"), "{printed}");
    }
    let report = outcome.lane();
    assert_eq!(report["counts"]["rejected"], cases.len(), "{report:#}");
    assert_eq!(report["counts"]["steps"], json!({"refresh": 1}), "{report:#}");
    let after = containers();
    for (name, _, told) in &cases {
        let id = format!("id-{name}");
        let line = line(&report, &id);
        assert_eq!(line["result"], "rejected", "{line:#}");
        expect_all(line["error"].as_str().unwrap(), told, name);
        assert_eq!(after.get(&id), before.get(&id), "{name}: its container runs on");
    }
    assert_ne!(after["id-good"], before["id-good"]);

    // Nothing new in the next pass; statuses, which are audited, are not told again.
    scene.platform.clear_journal();
    scene.pass(exit::CONNECTOR_FAILED);
    assert_eq!(scene.platform.calls(STATUS), []);
    // The same without a container: nothing is deployed.
    for container in scene.containers() {
        scene.engine.remove(&container.id);
    }
    scene.pass(exit::CONNECTOR_FAILED);
    assert_eq!(scene.only().label("opencti-connector-id"), "id-good");
}

#[test]
fn odd_values_that_are_no_mistake_arrive_as_they_come() {
    let scene = Aev::new("values");
    let long = "0123456789abcdef".repeat(6400);
    let values: [(&str, &str); 9] = [
        ("EQUALS", "a=b=c=="),
        ("LINES", "one\ntwo\r\n\tthree\n"),
        ("QUOTES", r#"'single' "double" `back` \slash $HOME ${X} %s"#),
        ("UNICODE", "Ünïcödé — 日本語 🦀 \u{202e}rtl"),
        ("SPACES", "  outer spaces  "),
        ("NULL", "null"),
        ("BOOLEAN", "false"),
        ("LONG", &long),
        ("dotted.name-with_dash", "lower case"),
    ];
    scene.instance_with("clear", |mut instance| {
        instance.configuration.push(setting("LEFT_OUT", None, None));
        values.iter().fold(instance, |instance, (name, value)| instance.setting(*name, *value)).setting("EMPTY", "")
    });
    scene.instance_with("sealed", |instance| values.iter().fold(instance, |i, (name, value)| i.secret(*name, *value)));
    // Keys that newer builds may add, and what the platform marks as encrypted in words of its own.
    scene.instance_with("more", |instance| Instance {
        raw_override: Some(
            json!({"listened": true, "connector_instance_tags": ["a"], "connector_instance_current_status": null}),
        ),
        ..instance
    });
    let outcome = scene.program().run().expect_code(exit::OK.into());
    for shown in ["a=b=c==", "outer spaces", &long[..64]] {
        assert!(!outcome.stdout.contains(shown) && !outcome.stderr.contains(shown), "{shown}");
    }
    for id in ["id-clear", "id-sealed"] {
        let container = scene.container_of(id);
        for (name, value) in values {
            assert!(container.env.get(name).is_some_and(|found| found == value), "{name} of {id}");
        }
    }
    let clear = scene.container_of("id-clear").env;
    assert!(clear["EMPTY"].is_empty() && !clear.contains_key("LEFT_OUT"), "{:?}", clear.keys());
    assert!(scene.container_of("id-more").running());
    let report = scene.pass(exit::OK);
    assert_eq!(report["counts"]["unchanged"], 3, "an order that means nothing changes nothing: {report:#}");
}

// Shows what README says under "What a pass does": "removes nothing and exits with 5, unless you say `--allow-prune`".
#[test]
fn a_list_that_is_empty_or_shrinks_too_much_removes_nothing_unless_told_to() {
    let scene = Aev::new("prune");
    for name in ["a", "b", "c", "d"] {
        scene.instance(name);
    }
    scene.pass(exit::OK);
    let refused = |what: &str, kind: &str, left: usize| {
        let watch = Watch::new(&scene);
        let report = scene.pass(exit::GUARD);
        watch.expect_untouched(what);
        assert_eq!(report["prune_refused"]["kind"], kind, "{report:#}");
        assert_eq!(scene.containers().len(), left, "{what}");
        assert!(scene.locks().is_empty(), "{what}");
    };
    let all: Vec<Instance> = scene.platform.read(|state| state.openaev.instances.clone());
    scene.platform.edit(|state| state.openaev.instances.clear());
    refused("an empty list", "empty-listing", 4);
    refused("still empty", "empty-listing", 4);
    scene.platform.edit(|state| state.openaev.instances = all[..1].to_vec());
    refused("three of four", "too-many", 4);
    // A page of the list, as a proxy that cuts might give it, is not what the platform has: nothing is lost by then.
    scene.platform.edit(|state| state.openaev.instances = all.clone());
    let report = scene.pass(exit::OK);
    assert_eq!((&report["counts"]["unchanged"], &report["prune_refused"]), (&json!(4), &Value::Null), "{report:#}");
    scene.platform.edit(|state| state.openaev.instances = all[..2].to_vec());
    let report = scene.pass(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({"remove": 2}), "half is not more than half: {report:#}");
    scene.platform.edit(|state| state.openaev.instances.clear());
    let report = scene.program().arg("--allow-prune").run().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"], json!({"remove": 2}), "{report:#}");
    assert_eq!(scene.containers().len(), 0);
}
