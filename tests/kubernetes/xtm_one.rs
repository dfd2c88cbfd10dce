//! The registration with XTM One on Kubernetes: its memory is in the Lease, and the token for the chat in a Secret.

use std::time::Duration;

use serde_json::{Value, json};
use stand_in_platform::{Call, Fault, FaultKind, State, User, XTM_ONE_DEFAULT_TOKEN};

use crate::cluster::values;
use crate::scene::Scene;
use crate::support::{Binary, Signal};

const ANNOTATION: &str = "xtm-reconcile/xtm-one";
const SOON: Duration = Duration::from_secs(30);

fn scene(name: &str) -> Scene {
    let scene = Scene::new(name);
    scene.platform.edit(|state| {
        "7.260220.0".clone_into(&mut state.platform_version);
        state.users.extend((0..3).map(|n| User::person(format!("user-{n}"), format!("p{n}@example.org"), "")));
    });
    scene
}

fn registering(scene: &Scene, program: Binary) -> Binary {
    program
        .var("XTM__XTM_ONE_URL", scene.platform.xtm_one_url())
        .var("XTM__XTM_ONE_TOKEN", XTM_ONE_DEFAULT_TOKEN)
        .var("XTM__CHAT_WEB_TOKEN_SECRET", "xtm-one-chat")
}

/// Makes a pass with the rights of the shipped Role, and returns what it says of XTM One.
#[track_caller]
fn register(scene: &Scene, code: i32) -> Value {
    scene.pass_with(|program| registering(scene, program)).expect_code(code).lane()["xtm_one"].clone()
}

fn note(scene: &Scene) -> Option<String> {
    let lease = scene.cluster.leases().into_iter().next()?;
    Some(lease["metadata"]["annotations"][ANNOTATION].as_str()?.to_owned())
}

fn secret_writes(scene: &Scene) -> usize {
    scene.writes().iter().filter(|write| write.contains("/secrets/")).count()
}

// Shows what README says under "Tokens": "`chat_web_token` stands under that key in the Secret"; and under "What is
// sent, and to whom": "when it changed, if `XTM__CHAT_WEB_TOKEN_SECRET` or `_FILE` is set".
#[test]
fn the_chat_token_is_in_a_secret_which_is_written_only_when_it_changes() {
    let scene = scene("chat");
    let answer = |token: &str| {
        scene.platform.edit(|state| {
            state.xtm_one.chat_web_token = Some(token.to_owned());
            state.xtm_one.send_chat_web_token = true;
        });
    };
    answer("chat-token-one");
    assert_eq!(register(&scene, 0)["chat_web_token"], "written");
    let secret = || scene.cluster.secrets().into_iter().find(|secret| secret["metadata"]["name"] == "xtm-one-chat");
    let kept = || values(&secret().expect("the Secret"))["chat_web_token"].clone();
    assert_eq!(kept(), "chat-token-one");
    scene.cluster.tap.take_calls();
    assert_eq!(register(&scene, 0)["chat_web_token"], "unchanged");
    assert_eq!(secret_writes(&scene), 0);
    scene.platform.edit(|state| state.xtm_one.send_chat_web_token = false);
    assert!(register(&scene, 0)["chat_web_token"].is_null());
    assert_eq!((kept().as_str(), secret_writes(&scene)), ("chat-token-one", 0), "an answer without one");
    answer("chat-token-two");
    assert_eq!(register(&scene, 0)["chat_web_token"], "written");
    assert_eq!((kept().as_str(), secret_writes(&scene)), ("chat-token-two", 1));
    // What others keep in the same Secret stays.
    let path = format!("{}/xtm-one-chat", scene.cluster.path("api/v1", "secrets"));
    scene.cluster.edit(&path, "somebody", &json!({ "stringData": { "theirs": "x" } }));
    answer("chat-token-three");
    register(&scene, 0);
    let all = values(&secret().expect("the Secret"));
    assert_eq!((all["theirs"].as_str(), all["chat_web_token"].as_str()), ("x", "chat-token-three"));
    let lease = scene.cluster.leases()[0].to_string();
    let secrets = scene.platform.read(|state| state.tokens_ever.clone());
    assert!(secrets.iter().all(|secret| !lease.contains(secret.as_str())) && !lease.contains("chat-token"), "{lease}");
}

// Shows what README says under "Tokens": "which is written when the token or the name has changed", "one that somebody
// deleted is written again with the next token only".
#[test]
fn another_name_for_the_secret_writes_it_and_a_deleted_one_waits_for_the_next_token() {
    let scene = scene("chat-name");
    let answer = |token: &str| {
        scene.platform.edit(|state| {
            state.xtm_one.chat_web_token = Some(token.to_owned());
            state.xtm_one.send_chat_web_token = true;
        });
    };
    let named = |name: &str| scene.cluster.secrets().into_iter().find(|secret| secret["metadata"]["name"] == name);
    let another = || {
        let program = |p| registering(&scene, p).var("XTM__CHAT_WEB_TOKEN_SECRET", "another-name");
        scene.pass_with(program).expect_code(0).lane()["xtm_one"]["chat_web_token"].clone()
    };
    answer("chat-token-one");
    assert_eq!(register(&scene, 0)["chat_web_token"], "written");
    assert!(named("another-name").is_none());
    assert_eq!((another(), another()), (json!("written"), json!("unchanged")));
    assert_eq!(values(&named("another-name").expect("the Secret"))["chat_web_token"], "chat-token-one");
    scene.cluster.delete(&format!("{}/another-name", scene.cluster.path("api/v1", "secrets")));
    scene.cluster.tap.take_calls();
    assert_eq!((another(), secret_writes(&scene)), (json!("unchanged"), 0));
    assert!(named("another-name").is_none(), "nobody may see that it is gone");
    answer("chat-token-two");
    assert_eq!(another(), "written");
    assert_eq!(values(&named("another-name").expect("the Secret"))["chat_web_token"], "chat-token-two");
}

// Shows what README says under "Tokens": "They are cleared when XTM One has acknowledged the keys.".
#[test]
fn the_lease_knows_whose_keys_never_arrived_and_forgets_it_when_they_have() {
    let scene = scene("note");
    let stuck = |_: &State, calls: &[Call]| calls.iter().any(|call| call.outcome == "fault:slow_body");
    // The registration is carried out, and the pass is killed before it hears of it.
    scene.platform.fault(Fault::on("xtm-one.register", FaultKind::SlowBody { ms: 600_000 }).times(1));
    let running = registering(&scene, scene.program()).spawn();
    assert!(scene.platform.wait_for(SOON, stuck));
    running.signal(Signal::KILL);
    running.wait();
    let noted = note(&scene).expect("a note");
    assert!((0..3).all(|n| noted.contains(&format!("user-{n}"))), "{noted}");
    let lease = scene.cluster.leases()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let path = format!("{}/{lease}", scene.cluster.path("apis/coordination.k8s.io/v1", "leases"));
    scene.cluster.edit(&path, "test", &json!({ "spec": { "holderIdentity": null } }));
    let outcome = register(&scene, 0);
    let users = &outcome["users"];
    assert_eq!((&users["tokens_made"], &users["tokens_revoked"]), (&json!(3), &json!(3)), "{outcome:#}");
    assert!(scene.platform.read(State::xtm_one_dead_keys).is_empty());
    assert!(note(&scene).is_none_or(|note| !note.contains("user-")), "{:?}", note(&scene));
    scene.expect_quiet("after it");
}

// Shows what README says under "Tokens": "Before the first token is made, the ids of its users are written to the
// memory.".
#[test]
fn without_the_lease_no_token_is_made() {
    let scene = scene("lost");
    // The note is the first patch of the Lease that has the annotation.
    let gate = scene.cluster.tap.hold("PATCH", "/leases/", 0);
    let running = registering(&scene, scene.program()).args(["--output", "json"]).spawn();
    gate.wait();
    let lease = scene.cluster.leases()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let path = format!("{}/{lease}", scene.cluster.path("apis/coordination.k8s.io/v1", "leases"));
    scene.cluster.edit(&path, "test", &json!({ "spec": { "holderIdentity": "another_pass_1" } }));
    gate.open();
    let report = running.wait().lane();
    let told = report["xtm_one"]["faults"].to_string();
    assert!(told.contains("cannot be written") && told.contains("lost"), "{report:#}");
    assert!(scene.platform.read(|state| state.tokens_ever.is_empty()), "{report:#}");
}
