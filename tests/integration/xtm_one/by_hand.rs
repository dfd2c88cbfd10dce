//! `xtm-one status`, `rotate` and `revoke`.

use serde_json::{Value, json};
use stand_in_platform::{Call, Fault, FaultKind, State};
use xtm_reconcile::exit;

use super::{ADD, REGISTER, REVOKE, address, errors, scene};
use crate::moves::SOON;
use crate::scene::Scene;
use crate::support::Signal;
use crate::support::told::expect_all;

#[track_caller]
fn by_hand(scene: &Scene, arguments: &[&str], code: u8) -> (Value, String) {
    let lane = scene.reporting().arg("xtm-one").args(arguments).run().expect_code(code.into()).lane();
    (lane["xtm_one"].clone(), lane["notices"].to_string())
}

fn keys(scene: &Scene) -> Vec<String> {
    scene
        .platform
        .read(|state| state.xtm_one.platforms["opencti"].users.values().map(|user| user.api_key.clone()).collect())
}

// Shows what README says under "Commands": "each with `--dry-run`"; and under "Tokens": "another token for one user, or
// for all without --user".
#[test]
fn a_rotation_replaces_every_token_or_that_of_one_user() {
    let scene = scene("rotate");
    scene.people(3);
    scene.register(exit::OK);
    scene.people(1);
    let before = keys(&scene);
    let (dry, _) = by_hand(&scene, &["rotate", "--dry-run"], exit::OK);
    let users = &dry["users"];
    assert_eq!((&users["tokens_made"], &users["tokens_revoked"], &users["sent"]), (&json!(3), &json!(3), &json!(3)));
    assert_eq!(keys(&scene), before, "a dry run changes nothing");
    let (outcome, _) = by_hand(&scene, &["rotate", "--user", &address(1).to_uppercase()], exit::OK);
    assert_eq!((&outcome["users"]["tokens_made"], &outcome["users"]["tokens_revoked"]), (&json!(1), &json!(1)));
    let after = keys(&scene);
    assert!(after[0] == before[0] && after[1] != before[1] && after[2] == before[2]);
    scene.all_is_well(0..3, "one");
    by_hand(&scene, &["rotate"], exit::OK);
    assert!(keys(&scene).iter().all(|key| !before.contains(key) && !after.contains(key)));
    scene.all_is_well(0..3, "all; the fourth, who had none, waits for a pass");
    let (outcome, _) = by_hand(&scene, &["rotate", "--user", "who@example.org"], exit::CONNECTOR_FAILED);
    expect_all(&errors(&outcome), &["who@example.org", "XTM__USERS_INCLUDE"], "an unknown user");
}

// Shows what README says under "Tokens": "for 500 users at a time".
#[test]
fn a_rotation_of_many_goes_in_parts_and_one_that_is_killed_leaves_nobody_without_a_key() {
    let scene = scene("rotate-many");
    scene.people(1200);
    scene.register_with(&[("XTM__MAX_NEW_TOKENS", "5000")], exit::OK);
    let before = keys(&scene);
    let asked = scene.registrations();
    let (outcome, _) = by_hand(&scene, &["rotate"], exit::OK);
    assert_eq!((&outcome["users"]["tokens_made"], &outcome["users"]["tokens_revoked"]), (&json!(1200), &json!(1200)));
    assert_eq!(scene.registrations(), asked + 3, "500, 500 and 200");
    assert!(keys(&scene).iter().all(|key| !before.contains(key)));
    scene.all_is_well(0..1200, "all");

    // The second part is on its way when it is killed. What was noted is more than a pass makes for others.
    scene.platform.fault(Fault::on(REGISTER, FaultKind::SlowBody { ms: 600_000 }).skip(1).times(1));
    let running = scene.reporting().args(["xtm-one", "rotate"]).spawn();
    let stuck = |_: &State, calls: &[Call]| calls.iter().any(|call| call.outcome == "fault:slow_body");
    assert!(scene.platform.wait_for(SOON, stuck));
    running.signal(Signal::KILL);
    running.wait();
    let outcome = scene.register_with(&[("XTM__MAX_NEW_TOKENS", "0")], exit::OK);
    assert_eq!(outcome["users"]["tokens_made"], 500, "{outcome:#}");
    scene.all_is_well(0..1200, "after the kill");
}

#[test]
fn a_rotation_whose_first_answer_was_lost_and_whose_second_is_a_refusal_is_mended_by_the_next_pass() {
    let scene = scene("rotate-lost");
    scene.people(2);
    scene.register(exit::OK);
    scene.platform.fault(Fault::on(REGISTER, FaultKind::DropAnswer).times(1));
    scene.platform.fault(Fault::on(REGISTER, FaultKind::status(403)).times(1));
    by_hand(&scene, &["rotate"], exit::CONNECTOR_FAILED);
    let localhost = scene.platform.xtm_one_url().replace("127.0.0.1", "localhost");
    scene.register_with(&[("XTM__XTM_ONE_URL", &localhost)], exit::OK);
    scene.all_is_well(0..2, "XTM One had taken the keys that were then revoked");
}

// Shows what README says under "Tokens": "**Replaced tokens** are noted until they are revoked".
#[test]
fn a_replaced_token_that_cannot_be_revoked_is_revoked_by_the_next_pass_and_costs_no_key() {
    let scene = scene("rotate-replaced");
    scene.people(2);
    scene.register(exit::OK);
    scene.platform.fault(Fault::on(REVOKE, FaultKind::status(403)).times(1));
    by_hand(&scene, &["rotate"], exit::CONNECTOR_FAILED);
    let rotated = keys(&scene);
    assert_eq!(scene.holders().len(), 3);
    let outcome = scene.register(exit::OK);
    assert_eq!((&outcome["users"]["tokens_made"], &outcome["users"]["tokens_revoked"]), (&json!(0), &json!(1)));
    assert_eq!(keys(&scene), rotated);
    scene.all_is_well(0..2, "the next pass");
}

// Shows what README says under "Tokens": "A rotation makes new tokens, tells XTM One, and revokes the former ones only
// then".
#[test]
fn a_rotation_that_xtm_one_does_not_take_keeps_the_keys_that_work() {
    let scene = scene("rotate-refused");
    scene.people(2);
    scene.register(exit::OK);
    let before = keys(&scene);
    scene.platform.fault(Fault::on(REGISTER, FaultKind::status(403)).times(1));
    by_hand(&scene, &["rotate"], exit::CONNECTOR_FAILED);
    assert_eq!(keys(&scene), before);
    scene.all_is_well(0..2, "refused");
    // XTM One took the new keys, and its answers were lost: the keys are revoked, and the next pass makes others.
    scene.platform.fault(Fault::on(REGISTER, FaultKind::DropAnswer).times(4));
    by_hand(&scene, &["rotate"], exit::CONNECTOR_FAILED);
    let localhost = scene.platform.xtm_one_url().replace("127.0.0.1", "localhost");
    scene.register_with(&[("XTM__XTM_ONE_URL", &localhost)], exit::OK);
    scene.all_is_well(0..2, "lost");
}

// Shows what README says under "What an attacker gains": "`xtm-one revoke --all` ends the first".
#[test]
fn everything_can_be_taken_back_even_when_the_registration_is_not_active_any_more() {
    let scene = scene("revoke");
    scene.people(3);
    scene.register(exit::OK);
    let inactive = |arguments: &[&str]| {
        scene.program().args(["--output", "json", "xtm-one"]).args(arguments).run().expect_code(0).lane()
    };
    let dry = inactive(&["revoke", "--all", "--dry-run"]);
    assert_eq!(dry["xtm_one"]["users"]["tokens_revoked"], 3, "{dry:#}");
    assert_eq!(scene.holders().len(), 3);
    let status = inactive(&["status"]);
    expect_all(&status["notices"].to_string(), &["not active", "3 tokens"], "status");
    let done = inactive(&["revoke", "--all"]);
    assert_eq!(done["xtm_one"]["users"]["tokens_revoked"], 3);
    assert!(done["notices"].to_string().contains("XTM One still has the keys"), "{done:#}");
    assert!(scene.holders().is_empty());
    // The confirmation is not optional.
    scene.program().args(["xtm-one", "revoke"]).run().expect_code(exit::USAGE.into());
    // While the registration is active, the next pass makes others.
    scene.register(exit::OK);
    scene.all_is_well(0..3, "again");
}

#[test]
fn a_revocation_that_fails_in_part_names_it_and_can_be_repeated() {
    let scene = scene("revoke-part");
    scene.people(3);
    scene.register(exit::OK);
    scene.platform.fault(Fault::on(REVOKE, FaultKind::status(403)).times(1));
    let (outcome, _) = by_hand(&scene, &["revoke", "--all"], exit::CONNECTOR_FAILED);
    expect_all(&errors(&outcome), &["person-000", "cannot be revoked"], "which");
    assert_eq!(scene.holders().len(), 1);
    by_hand(&scene, &["revoke", "--all"], exit::OK);
    assert!(scene.holders().is_empty());
}

// Shows what README says under "Tokens": "who has a token, who waits, what is remembered".
#[test]
fn status_says_how_things_stand_and_changes_nothing() {
    let scene = scene("status");
    scene.people(3);
    scene.register_with(&[("XTM__MAX_NEW_TOKENS", "2")], exit::OK);
    let before = scene.platform.revision();
    let (outcome, notices) = by_hand(&scene, &["status", "--dry-run"], exit::OK);
    assert_eq!((&outcome["users"]["sent"], &outcome["users"]["waiting"]), (&json!(2), &json!(1)), "{outcome:#}");
    expect_all(&notices, &["2 tokens named XTM One"], "the tokens");
    scene.platform.fault(Fault::on(ADD, FaultKind::DropAnswer));
    scene.platform.fault(Fault::on(REGISTER, FaultKind::status(400)));
    scene.register(exit::CONNECTOR_FAILED);
    let (outcome, notices) = by_hand(&scene, &["status"], exit::OK);
    expect_all(&notices, &["the keys of 1 users may never have arrived", "1 passes in a row"], "what is remembered");
    assert!(outcome["next_attempt"].is_string());
    assert_ne!(scene.platform.revision(), before);
}

#[test]
fn commands_about_keys_need_opencti_and_an_active_registration() {
    let scene = scene("by-hand-config");
    let rotate = scene.program().args(["--output", "json", "xtm-one", "rotate"]).run();
    let told = errors(&rotate.expect_code(exit::CONNECTOR_FAILED.into()).lane()["xtm_one"]);
    expect_all(&told, &["not active", "XTM__XTM_ONE_TOKEN"], "inactive");
    let aev = scene.with_openaev(scene.reporting()).args(["--platform", "openaev", "xtm-one", "revoke", "--all"]);
    let refused = aev.run().expect_code(exit::CONFIG.into());
    expect_all(&refused.stderr, &["only OpenCTI"], "OpenAEV has no keys");
    let both = scene.with_openaev(scene.reporting()).args(["xtm-one", "status"]).run().expect_code(0).json();
    assert_eq!(both["lanes"].as_array().unwrap().len(), 2);
    scene.reporting().args(["xtm-one", "rotate"]).var("XTM__PAYLOAD", "intents").run().expect_code(1);
    scene.platform.edit(|state| "7.260309.0".clone_into(&mut state.platform_version));
    let alone = scene.reporting().args(["xtm-one", "rotate"]).run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    expect_all(
        &errors(&alone["xtm_one"]),
        &["registers itself", "XTM__FORCE"],
        "nothing was rotated, and that is said",
    );
}
