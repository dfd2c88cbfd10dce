//! Values are decrypted while earlier connectors are deployed, and none of a connector's steps runs ahead of its values.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stand_in_platform::{Connector, Setting};
use xtm_reconcile::exit;

use crate::moves::{SOON, line};
use crate::scene::Scene;
use crate::support::{ApiTap, Fault, KeyForm, NewContainer, Signal, TestKey};

/// Values that take seconds to decrypt, while an engine creates a container in much less.
const MANY: usize = 200;

/// Gives a connector a value that no key opens.
fn damage(connector: &mut Connector) {
    let value = Some(STANDARD.encode([2; 600]));
    connector.configuration.push(Setting { key: "BROKEN".to_owned(), value, encrypted: Some(true) });
}

// Shows what README says under "What a pass does": "**Secrets** are decrypted for a deploy or refresh, while earlier
// connectors are being deployed".
#[test]
fn the_first_container_is_created_before_the_last_value_is_decrypted() {
    let mut scene = Scene::new("decrypting");
    scene.key = TestKey::rsa(4096, KeyForm::Pkcs8);
    scene.connector_with("a", |connector| connector.secret("FIRST", "one"));
    scene.connector_with("b", |connector| {
        (0..MANY).fold(connector, |connector, n| connector.secret(format!("SECRET_{n}"), format!("value {n}")))
    });
    scene.connector_with("c", |mut connector| {
        damage(&mut connector);
        connector
    });
    let tap = ApiTap::new(scene.engine);
    // The first container is that of the lock.
    tap.inject("POST /containers/create", 2, Fault::SignalBefore(Signal::TERM));
    let report = scene.tapped(&tap).run().expect_code(exit::TERMINATED.into()).lane();
    assert_eq!(line(&report, "id-a")["result"], "done", "{report:#}");
    for id in ["id-b", "id-c"] {
        let line = line(&report, id);
        assert_eq!(line["result"], "not-done", "its values were not decrypted yet: {report:#}");
        assert!(line["error"].as_str().unwrap().contains("SIGTERM"), "{line:#}");
    }
    assert_eq!(scene.containers().len(), 1);

    let report = scene.pass_ends(exit::CONNECTOR_FAILED);
    assert_eq!(line(&report, "id-b")["result"], "done", "{report:#}");
    assert_eq!(line(&report, "id-c")["result"], "rejected", "{report:#}");
    let made = scene.container_of("id-b");
    for n in 0..MANY {
        assert_eq!(made.env[&format!("SECRET_{n}")], format!("value {n}"));
    }
}

// Shows what README says under "What a pass does": "**One connector's fault stays its own.**".
#[test]
fn a_connector_whose_new_values_cannot_be_used_keeps_all_it_has_while_the_others_are_deployed() {
    let scene = Scene::new("undecryptable");
    let name = scene.connector("b");
    scene.pass_ends(exit::OK);
    let kept = scene.container_of("id-b");
    // One too many, which a refresh would remove first.
    let hash = kept.label("opencti-config-hash");
    let second = NewContainer::of_daemon(&format!("{name}-second"), &scene.manager, "id-b", hash);
    let second = scene.engine.run(&second.label("opencti-platform", "opencti"));
    scene.edit("id-b", damage);
    for name in ["a", "c"] {
        scene.connector_with(name, |connector| connector.secret("API_KEY", "hush-hush"));
    }

    let planned = scene.program().args(["plan", "--output", "json"]).run();
    for report in [planned.expect_code(exit::CONNECTOR_FAILED.into()).lane(), scene.pass_ends(exit::CONNECTOR_FAILED)] {
        let lines = report["connectors"].as_array().unwrap();
        let theirs: Vec<_> = lines.iter().filter(|line| line["connector"] == "id-b").collect();
        assert_eq!(theirs.len(), 1, "one line instead of its steps: {report:#}");
        assert_eq!(theirs[0]["result"], "rejected", "{report:#}");
        assert!(theirs[0]["error"].as_str().unwrap().contains("BROKEN"), "{report:#}");
    }
    for name in ["a", "c"] {
        let made = scene.container_of(&format!("id-{name}"));
        assert!(made.running() && made.env["API_KEY"] == "hush-hush", "{made:?}");
    }
    for id in [&kept.id, &second] {
        assert!(scene.containers().iter().any(|container| container.id == *id && container.running()), "{id}");
    }
}

/// Everything that a process may write to: its heap, its stacks, its data, and its environment. Needs root.
fn memory_of(pid: u32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        // What went away in between cannot hold anything.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            all.extend(bytes);
        }
    }
    all
}

// Shows what README says under "What a pass does": "Wiped after use are the values that the program decrypts"; "Not wiped
// are its own environment".
#[test]
fn what_was_decrypted_and_is_not_needed_any_more_is_not_in_memory() {
    let scene = Scene::new("wiped");
    // In many pieces, because memory that is used again would hide the beginning or the end of one that is not wiped.
    let mark = format!("{:016x}", fastrand::u64(..));
    let value = (0..200).map(|n| format!("{n:03}-{mark}")).collect::<Vec<_>>().join(" ");
    scene.connector_with("a", |connector| {
        let mut connector = connector.secret("LONG", value);
        damage(&mut connector);
        connector
    });
    let tap = ApiTap::new(scene.engine);
    // The lock, and then the memory of a pass that has done everything else.
    let gate = tap.hold("POST /containers/create", 2);
    let running = scene.tapped(&tap).spawn();
    gate.wait(SOON);
    let memory = memory_of(running.pid());
    let times = |text: &str| memory.windows(text.len()).filter(|window| *window == text.as_bytes()).count();
    assert!(times(stand_in_platform::DEFAULT_TOKEN) > 0, "what is there is found");
    // README admits what libraries copied, which is a short part of it at times. A copy of ours would hold all 200 pieces.
    assert!(times(&mark) < 50, "{} of 200 pieces of the value in {} bytes", times(&mark), memory.len());
    gate.release();
    let report = running.wait().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    assert_eq!(line(&report, "id-a")["result"], "rejected", "its other value was opened: {report:#}");
}
