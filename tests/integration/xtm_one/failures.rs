//! XTM One and the platform fail in every way: nothing is lost, nothing is there twice, and later passes hold off.

use serde_json::{Value, json};
use stand_in_platform::{Fault, FaultKind};
use xtm_reconcile::exit;

use super::{ADD, REGISTER, REVOKE, address, errors, scene};
use crate::scene::Scene;
use crate::support::Signal;
use crate::support::told::expect_all;

/// The settings with which a pass tries at once, although earlier ones failed: their fingerprint is another one.
fn at_once(scene: &Scene) -> [(String, String); 1] {
    [("XTM__XTM_ONE_URL".to_owned(), format!("{}/", scene.platform.xtm_one_url()).replace("127.0.0.1", "localhost"))]
}

#[track_caller]
fn register_at_once(scene: &Scene, code: u8) -> Value {
    let settings = at_once(scene);
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    scene.register_with(&settings, code)
}

// Shows what README says under "Tokens": "When the registration fails, the tokens of that pass are revoked."; and under
// "What an attacker gains": "redirects are not followed".
#[test]
fn a_registration_that_finally_fails_leaves_no_token_and_the_next_that_succeeds_makes_others() {
    let status = |code: u16, body: &str| FaultKind::Status { code, retry_after: None, body: Some(body.to_owned()) };
    let faults = [
        ("401", status(401, r#"{"detail":"Invalid registration token"}"#), "Invalid registration token", 1),
        (
            "422",
            status(422, r#"{"detail":[{"loc":["body","users",0],"msg":"no","input":"x"}]}"#),
            "body.users.0: no",
            1,
        ),
        ("429", FaultKind::Status { code: 429, retry_after: Some("3600".to_owned()), body: None }, "HTTP 429", 1),
        ("500", FaultKind::status(500), "HTTP 500", 4),
        ("redirect", FaultKind::Redirect { location: "https://login.example.org/".to_owned() }, "redirects", 1),
        ("drop", FaultKind::Drop, "cannot be reached", 4),
        ("read and closed", FaultKind::DropAnswer, "cannot be reached", 4),
        ("half", FaultKind::Truncate, "cut off", 4),
        ("broken", FaultKind::BrokenJson, "something else", 1),
        ("page", FaultKind::Html, "HTML", 1),
        ("nothing", FaultKind::EmptyBody, "nothing", 1),
        ("null", FaultKind::NullData, "something else", 1),
        ("late", FaultKind::Delay { ms: 2500 }, "did not answer", 4),
    ];
    for (name, kind, told, tries) in faults {
        let scene = scene("fails");
        scene.people(3);
        scene.platform.fault(Fault::on(REGISTER, kind));
        let outcome = scene.register_with(&[("XTM__REQUEST_TIMEOUT", "1")], exit::CONNECTOR_FAILED);
        assert_eq!(outcome["status"], "failed", "{name}: {outcome:#}");
        expect_all(&errors(&outcome), &[told], name);
        assert_eq!(scene.holders(), Vec::<String>::new(), "{name}: the tokens were revoked");
        assert_eq!(scene.platform.read(|state| state.tokens_ever.len()), 3, "{name}");
        assert!(outcome["next_attempt"].is_string(), "{name}");
        if name != "late" {
            assert_eq!(scene.registrations(), tries, "{name}");
        }
        scene.platform.clear_faults();
        let held = scene.register(exit::CONNECTOR_FAILED);
        assert_eq!((&held["status"], &held["next_attempt"]), (&json!("held-off"), &outcome["next_attempt"]), "{name}");
        let outcome = register_at_once(&scene, exit::OK);
        assert_eq!(outcome["users"]["tokens_made"], 3, "{name}: {outcome:#}");
        scene.all_is_well(0..3, name);
    }
}

#[test]
fn what_passes_by_itself_is_tried_again_in_the_same_pass() {
    let slow_down = FaultKind::Status { code: 429, retry_after: Some("1".to_owned()), body: None };
    for kind in [FaultKind::status(503), slow_down, FaultKind::status(408), FaultKind::DropAnswer, FaultKind::Drop] {
        let scene = scene("again");
        scene.people(2);
        scene.platform.fault(Fault::on(REGISTER, kind.clone()).times(2));
        let begun = std::time::Instant::now();
        scene.register(exit::OK);
        if matches!(kind, FaultKind::Status { code: 429, .. }) {
            assert!(begun.elapsed().as_secs() >= 2, "Retry-After is honoured");
        }
        scene.all_is_well(0..2, kind.name());
        assert_eq!(scene.registrations(), 3, "{}", kind.name());
    }
}

// Shows what README says under "XTM One": "After a failed registration later passes hold off for 5, 10, 20 and 40
// minutes", "other settings are tried at once, and so is a rotation".
#[test]
fn passes_that_fail_hold_off_longer_each_time() {
    let scene = scene("holds-off");
    scene.platform.fault(Fault::on(REGISTER, FaultKind::status(400)));
    let now = jiff::Timestamp::now().as_second();
    let until = |outcome: &Value| {
        let at: jiff::Timestamp = outcome["next_attempt"].as_str().unwrap().parse().unwrap();
        (at.as_second() - now) / 60
    };
    let outcome = scene.register(exit::CONNECTOR_FAILED);
    assert!((5..7).contains(&until(&outcome)), "{outcome:#}");
    let asked = scene.registrations();
    let outcome = scene.register(exit::CONNECTOR_FAILED);
    assert_eq!(scene.registrations(), asked, "it is not even asked");
    expect_all(&errors(&outcome), &["1 passes in a row", "next attempt"], "it says until when");
    // By hand it is tried at once, and counts.
    let rotate = scene.reporting().args(["xtm-one", "rotate"]).run().expect_code(exit::CONNECTOR_FAILED.into());
    assert!((10..12).contains(&until(&rotate.lane()["xtm_one"])), "{}", rotate.stdout);
    let asked_for = FaultKind::Status { code: 429, retry_after: Some("7200".to_owned()), body: None };
    scene.platform.clear_faults();
    scene.platform.fault(Fault::on(REGISTER, asked_for));
    let outcome = register_at_once(&scene, exit::CONNECTOR_FAILED);
    assert!((120..122).contains(&until(&outcome)), "as long as XTM One asks for: {outcome:#}");
}

// Shows what README says under "Tokens": "A token whose answer was lost is looked for, revoked and made again.".
#[test]
fn a_token_whose_answer_was_lost_is_looked_for_and_never_made_twice() {
    for kind in
        [FaultKind::DropAnswer, FaultKind::Truncate, FaultKind::status(504), FaultKind::Drop, FaultKind::EmptyBody]
    {
        let scene = scene("lost");
        scene.people(4);
        scene.platform.fault(Fault::on(ADD, kind.clone()).times(2));
        let outcome = scene.register(exit::OK);
        assert_eq!(outcome["users"]["tokens_made"], 4, "{}: {outcome:#}", kind.name());
        scene.all_is_well(0..4, kind.name());
    }
}

#[test]
fn a_token_that_is_lost_again_and_again_waits_for_the_next_pass() {
    let scene = scene("lost-again");
    scene.people(2);
    scene.platform.fault(Fault::on(ADD, FaultKind::DropAnswer));
    let outcome = scene.register(exit::CONNECTOR_FAILED);
    assert_eq!((&outcome["status"], &outcome["users"]["sent"]), (&json!("registered"), &json!(0)), "{outcome:#}");
    expect_all(&errors(&outcome), &[&address(0), &address(1)], "each by name");
    scene.platform.clear_faults();
    scene.register(exit::OK);
    scene.all_is_well(0..2, "the next pass revokes what is left and makes others");
}

#[test]
fn a_token_whose_request_timed_out_may_appear_later_and_is_found_by_the_next_pass() {
    let scene = scene("late");
    scene.people(2);
    scene.platform.fault(Fault::on(ADD, FaultKind::SlowBody { ms: 600_000 }).times(1));
    let timeout = [("OPENCTI__REQUEST_TIMEOUT", "2")];
    let outcome = scene.register_with(&timeout, exit::CONNECTOR_FAILED);
    assert_eq!((&outcome["status"], &outcome["users"]["sent"]), (&json!("registered"), &json!(1)), "{outcome:#}");
    assert_eq!(scene.holders().len(), 2, "it was made, and nobody knows its key");
    let outcome = scene.register(exit::OK);
    assert_eq!((&outcome["users"]["tokens_made"], &outcome["users"]["tokens_revoked"]), (&json!(1), &json!(1)));
    scene.all_is_well(0..2, "the next pass");
}

#[test]
fn an_error_of_which_it_is_unknown_when_it_came_up_counts_as_a_lost_answer() {
    let scene = scene("unclear");
    scene.people(2);
    let unclear = FaultKind::GraphqlError {
        code: "DATABASE_ERROR".to_owned(),
        message: "Engine is not available".to_owned(),
        data: Value::Null,
    };
    scene.platform.fault(Fault::on(ADD, unclear).times(1));
    scene.register(exit::OK);
    scene.all_is_well(0..2, "looked for, and made");
}

#[test]
fn tokens_whose_keys_never_arrived_are_revoked_even_when_the_platform_registers_itself_by_then() {
    let scene = scene("upgraded");
    scene.people(3);
    scene.platform.fault(Fault::on(REGISTER, FaultKind::SlowBody { ms: 600_000 }).times(1));
    let running = scene.reporting().spawn();
    let stuck = |_: &_, calls: &[stand_in_platform::Call]| calls.iter().any(|call| call.outcome == "fault:slow_body");
    assert!(scene.platform.wait_for(crate::moves::SOON, stuck));
    running.signal(Signal::KILL);
    running.wait();
    scene.platform.edit(|state| "7.260310.0".clone_into(&mut state.platform_version));
    let outcome = scene.register(exit::OK);
    assert_eq!((&outcome["status"], &outcome["users"]["tokens_revoked"]), (&json!("left-alone"), &json!(3)));
    assert!(scene.holders().is_empty());
    assert_eq!(scene.register(exit::OK)["users"]["tokens_revoked"], 0);
}

#[test]
fn a_rate_limit_of_the_platform_is_waited_for() {
    let scene = scene("rate");
    scene.people(3);
    let slow_down = FaultKind::Status { code: 429, retry_after: Some("1".to_owned()), body: None };
    scene.platform.fault(Fault::on(ADD, slow_down).times(3));
    scene.register(exit::OK);
    scene.all_is_well(0..3, "429 was not carried out, so it may be sent again");
    assert_eq!(scene.platform.read(|state| state.tokens_ever.len()), 3);
}

#[test]
fn tokens_that_cannot_be_revoked_after_a_failure_are_revoked_by_the_next_pass() {
    let scene = scene("unrevoked");
    scene.people(3);
    scene.platform.fault(Fault::on(REGISTER, FaultKind::status(403)));
    scene.platform.fault(Fault::on(REVOKE, FaultKind::status(403)).times(2));
    let outcome = scene.register(exit::CONNECTOR_FAILED);
    expect_all(&errors(&outcome), &["cannot be revoked"], "it says so");
    assert_eq!(scene.holders().len(), 2);
    scene.platform.clear_faults();
    let outcome = register_at_once(&scene, exit::OK);
    assert_eq!(outcome["users"]["tokens_revoked"], 2, "{outcome:#}");
    scene.all_is_well(0..3, "the next pass");
}

// Shows what README says under "Tokens": "Before the first token is made, the ids of its users are written to the
// memory.".
#[test]
fn without_the_note_no_token_is_made() {
    let scene = scene("unnoted");
    scene.people(3);
    scene.register_with(&[("XTM__MAX_NEW_TOKENS", "1")], exit::OK);
    let tap = crate::support::ApiTap::new(scene.engine);
    for nth in 1..=3 {
        tap.inject("POST /containers/create", nth, crate::support::Fault::Status(500));
    }
    let program = scene.reporting().var("DOCKER_HOST", tap.docker_host());
    let report = program.run();
    let lane = report.lane();
    // The lock is the first of them; without it nothing happens at all.
    if lane["xtm_one"].is_null() {
        assert_eq!(report.code, Some(exit::ORCHESTRATOR.into()), "{lane:#}");
    } else {
        expect_all(&errors(&lane["xtm_one"]), &["cannot be written"], "the note");
    }
    assert_eq!(scene.holders().len(), 1, "{lane:#}");
    scene.register(exit::OK);
    scene.all_is_well(0..3, "later");
}

#[test]
fn a_pass_that_is_told_to_end_makes_no_more_tokens_and_the_next_one_goes_on() {
    let scene = scene("told-to-end");
    scene.people(60);
    scene.platform.fault(Fault::on(ADD, FaultKind::Delay { ms: 100 }));
    let running = scene.reporting().spawn();
    let some = |_: &_, calls: &[stand_in_platform::Call]| calls.iter().filter(|call| call.is(ADD)).count() > 8;
    assert!(scene.platform.wait_for(crate::moves::SOON, some));
    running.signal(Signal::TERM);
    let outcome = running.wait().expect_code(exit::TERMINATED.into());
    assert_eq!(outcome.lane()["xtm_one"]["status"], "interrupted", "{}", outcome.stdout);
    assert!(scene.holders().len() < 60 && scene.registrations() == 0);
    let noted = scene.records()[0].label("xtm-reconcile.xtm-one").matches("user-").count();
    assert!((1..60).contains(&noted), "only those whose tokens were made are noted: {noted}");
    scene.platform.clear_faults();
    scene.register(exit::OK);
    scene.all_is_well(0..60, "the next pass");
}

// Shows what README says under "Tokens": "These commands take the lock of a pass, so they end with 6 while one runs.".
#[test]
fn two_passes_at_once_make_no_token_twice() {
    let scene = scene("at-once");
    scene.people(30);
    scene.platform.fault(Fault::on(ADD, FaultKind::Delay { ms: 100 }));
    let first = scene.reporting().spawn();
    let some = |_: &_, calls: &[stand_in_platform::Call]| calls.iter().any(|call| call.is(ADD));
    assert!(scene.platform.wait_for(crate::moves::SOON, some));
    scene.reporting().run().expect_code(exit::LOCKED.into());
    scene.reporting().args(["xtm-one", "revoke", "--all"]).run().expect_code(exit::LOCKED.into());
    first.wait().expect_code(0);
    scene.all_is_well(0..30, "the second one did nothing");
}
