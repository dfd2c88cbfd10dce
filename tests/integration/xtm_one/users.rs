//! Which users get keys, page by page, and each only once.

use stand_in_platform::{Fault, FaultKind, State, User};
use xtm_reconcile::exit;

use super::{ADD, address, errors, scene};
use crate::moves::SOON;
use crate::support::told::expect_all;

// Shows what README says under "What is sent, and to whom": "the key once, later an empty one"; and under "Tokens":
// "without an end of validity".
#[test]
fn every_user_gets_one_token_and_its_key_is_sent_once() {
    let scene = scene("users-once");
    scene.people(3);
    let outcome = scene.register(exit::OK);
    assert_eq!(
        (&outcome["users"]["tokens_made"], &outcome["user_integrations"]),
        (&3.into(), &3.into()),
        "{outcome:#}"
    );
    scene.all_is_well(0..3, "first");
    let made = scene.platform.calls(ADD).len();
    let outcome = scene.register(exit::OK);
    assert_eq!((&outcome["users"]["tokens_made"], &outcome["users"]["sent"]), (&0.into(), &3.into()));
    assert_eq!(scene.platform.calls(ADD).len(), made);
    let body = scene.platform.read(|state| state.xtm_one.platforms["opencti"].last_body.clone());
    assert!(body["users"].as_array().unwrap().iter().all(|user| user["api_key"] == ""), "{body:#}");
    scene.all_is_well(0..3, "second");
    // Unlimited, and with the name that OpenCTI's own manager gives.
    scene.platform.read(|state| {
        let token = &state.users[1].api_tokens[0];
        assert!(token.name == "XTM One" && token.expires_at.is_none());
    });
}

// Shows what README says under "What is sent, and to whom": "A pass makes at most `XTM__MAX_NEW_TOKENS` tokens and says
// how many users wait for theirs.".
#[test]
fn five_thousand_users_take_their_turns_over_many_pages() {
    let scene = scene("users-5000");
    scene.people(5000);
    let outcome = scene.register_with(&[("XTM__MAX_NEW_TOKENS", "300")], exit::OK);
    let users = &outcome["users"];
    assert_eq!((&users["tokens_made"], &users["waiting"], &users["sent"]), (&300.into(), &4700.into(), &300.into()));
    scene.all_is_well(0..300, "the first 300");
    let outcome = scene.register_with(&[("XTM__MAX_NEW_TOKENS", "5000")], exit::OK);
    assert_eq!(outcome["users"]["tokens_made"], 4700);
    scene.all_is_well(0..5000, "all");
    // Without XTM One a quiet pass makes some calls to the platform; with it, at most a page for every 500 users more.
    let calls = |registering: bool| {
        scene.platform.clear_journal();
        let program = if registering { scene.reporting() } else { scene.program().args(["--output", "json"]) };
        program.run().expect_code(0);
        let journal = scene.platform.journal();
        journal.iter().filter(|call| !call.operation.starts_with("xtm-one")).count()
    };
    let (without, with) = (calls(false), calls(true));
    assert!(with <= without + 5000 / 500 + 3, "{with} calls, {without} without XTM One");
}

// Shows what README says under "What is sent, and to whom": "Users without an address, service accounts, addresses that
// end in `.invalid` and users who may not log in are left out.".
#[test]
fn rules_decide_who_gets_a_key_and_the_report_says_why_not() {
    let scene = scene("users-rules");
    scene.people(4);
    scene.platform.edit(|state| {
        state.users[2].service_account = true;
        state.users[3].account_status = "Locked".to_owned();
        state.users.push(User::person("robot", "automatic+1@opencti.invalid", "robot"));
        state.users.push(User::person("other", "other@elsewhere.example", "other"));
        state.users.push(User::person("nobody", "", "without an address"));
    });
    let settings = [("XTM__USERS_INCLUDE", "*@EXAMPLE.org"), ("XTM__USERS_EXCLUDE", "person-0003@*, nobody@*")];
    let outcome = scene.register_with(&settings, exit::OK);
    scene.all_is_well(0..1, "one is left");
    let skipped = |reason: &str| {
        let mut all = outcome["users"]["skipped"].as_array().unwrap().iter();
        all.find(|skipped| skipped["reason"] == reason).unwrap_or_else(|| panic!("{reason} in {outcome:#}"))
    };
    assert_eq!(skipped("service-account")["users"][0], address(1));
    assert_eq!(skipped("inactive")["users"][0], address(2));
    assert_eq!(skipped("excluded")["users"][0], address(3));
    assert_eq!(skipped("not-included")["users"][0], "other@elsewhere.example");
    assert_eq!(skipped("no-address")["count"], 1);
    assert_eq!(skipped("invalid-address")["count"], 2, "the robot and the manager");
    scene.register_with(
        &[("XTM__SERVICE_ACCOUNTS", "true"), ("XTM__USERS_INCLUDE", "*.invalid,person-0001@*")],
        exit::OK,
    );
    assert_eq!(scene.holders(), ["automatic+1@opencti.invalid", "manager@opencti.invalid", &address(0), &address(1)]);
}

#[test]
fn users_who_come_and_go_between_pages_neither_repeat_nor_hide_others() {
    let scene = scene("users-pages");
    scene.people(1200);
    scene.platform.fault(Fault::on("users", FaultKind::Delay { ms: 1500 }).skip(1).times(1));
    let running = scene.reporting().var("XTM__MAX_NEW_TOKENS", "5000").spawn();
    assert!(scene.platform.wait_for(SOON, |_, calls| calls.iter().any(|call| call.is("users"))), "the first page");
    // One of the first page goes, one before it comes, one in the last page goes.
    scene.platform.edit(|state| {
        state.users.retain(|user| user.user_email != address(7) && user.user_email != address(1100));
        state.users.push(User::person("early", "aaa@example.org", "early"));
        state.users.push(User::person("late", "zzz@example.org", "late"));
    });
    let outcome = running.wait();
    let report = outcome.lane();
    // The one of the first page is gone, so that no token can be made.
    expect_all(&errors(&report["xtm_one"]), &[&address(7), "User not found"], "a user who is gone");
    let told = scene.told();
    assert_eq!(told.len(), 1199, "everybody but the two who are gone and the early one");
    assert!(told.contains(&"zzz@example.org".to_owned()) && !told.contains(&"aaa@example.org".to_owned()));
    scene.register_with(&[("XTM__MAX_NEW_TOKENS", "5000")], exit::OK);
    assert_eq!(scene.told().len(), 1200);
    assert_eq!(scene.holders().len(), 1200);
    assert!(scene.platform.read(State::xtm_one_dead_keys).is_empty());
}

// Shows what README says under "Tokens": "**A user whose token cannot be made** is named, and the others are served.".
#[test]
fn a_user_whose_token_cannot_be_made_is_named_and_the_others_are_served() {
    let scene = scene("users-refused");
    scene.people(3);
    let refused = FaultKind::GraphqlError {
        code: "FUNCTIONAL_ERROR".to_owned(),
        message: "Too many tokens".to_owned(),
        data: serde_json::Value::Null,
    };
    scene.platform.fault(Fault::on(ADD, refused).times(1));
    let outcome = scene.register(exit::CONNECTOR_FAILED);
    assert_eq!((&outcome["status"], &outcome["users"]["sent"]), (&"registered".into(), &2.into()), "{outcome:#}");
    expect_all(&errors(&outcome), &["person-000", "Too many tokens"], "by name");
    assert!(scene.platform.read(State::xtm_one_dead_keys).is_empty());
    scene.register(exit::OK);
    scene.all_is_well(0..3, "the next pass");
}

// Shows what README says under "Tokens": "When the users cannot be listed, the platform is registered without them.".
#[test]
fn users_that_cannot_be_listed_leave_the_platform_registered_without_them() {
    let scene = scene("users-unlisted");
    scene.people(2);
    scene.platform.fault(Fault::on("users", FaultKind::NullData));
    let outcome = scene.register(exit::CONNECTOR_FAILED);
    assert_eq!(outcome["status"], "registered");
    expect_all(&errors(&outcome), &["registered without users"], "it says so");
    let body = scene.platform.read(|state| state.xtm_one.platforms["opencti"].last_body.clone());
    assert_eq!(body["users"], serde_json::json!([]));
    scene.platform.clear_faults();
    scene.register(exit::OK);
    scene.all_is_well(0..2, "later");
}

// Shows what README says under "What is sent, and to whom": "OpenCTI versions without `api_tokens` are registered
// without users.".
#[test]
fn a_platform_without_named_tokens_is_registered_without_users_and_that_is_said_once() {
    let scene = scene("users-older");
    scene.people(2);
    scene.platform.edit(|state| "7.0.0".clone_into(&mut state.platform_version));
    let pass = || scene.reporting().run().expect_code(0).lane();
    let said = |report: &serde_json::Value| report["notices"].to_string().contains("without users");
    let first = pass();
    assert_eq!(first["xtm_one"]["status"], "registered", "{first:#}");
    assert!(said(&first), "{first:#}");
    let asked = scene.platform.journal().len();
    let second = pass();
    assert!(!said(&second) && second["xtm_one"]["status"] == "registered", "{second:#}");
    assert!(scene.platform.journal()[asked..].iter().all(|call| !call.is("users")), "it is not asked again");
    scene.platform.edit(|state| super::VERSION.clone_into(&mut state.platform_version));
    pass();
    scene.all_is_well(0..2, "after an upgrade");
}

#[test]
fn without_the_right_to_make_tokens_one_refusal_is_enough() {
    let scene = scene("users-forbidden");
    scene.people(40);
    let forbidden = FaultKind::GraphqlError {
        code: "FORBIDDEN_ACCESS".to_owned(),
        message: "You are not allowed to do this.".to_owned(),
        data: serde_json::Value::Null,
    };
    scene.platform.fault(Fault::on(ADD, forbidden));
    let outcome = scene.register(exit::CONNECTOR_FAILED);
    expect_all(&errors(&outcome), &["SETTINGS_SETACCESSES"], "the capability");
    assert_eq!(outcome["status"], "registered");
    // As many as run at the same time may have been under way.
    assert!(scene.platform.calls(ADD).len() <= 16, "{}", scene.platform.calls(ADD).len());
}

// Shows what README says under "Tokens": "After ten failures in a row no more are tried.".
#[test]
fn after_ten_failures_in_a_row_no_more_tokens_are_tried_and_a_success_counts_anew() {
    let refused = || FaultKind::GraphqlError {
        code: "FUNCTIONAL_ERROR".to_owned(),
        message: "Too many tokens".to_owned(),
        data: serde_json::Value::Null,
    };
    let scene = scene("users-ten");
    scene.people(60);
    scene.platform.fault(Fault::on(ADD, refused()));
    let outcome = scene.register(exit::CONNECTOR_FAILED);
    assert_eq!((&outcome["status"], &outcome["users"]["sent"]), (&"registered".into(), &0.into()), "{outcome:#}");
    // As many as run at the same time may have been under way.
    let tried = scene.platform.calls(ADD).len();
    assert!((10..=10 + 4).contains(&tried), "{tried} calls");

    // Twice nine, with some that work in between.
    scene.platform.clear_faults();
    scene.platform.fault(Fault::on(ADD, refused()).times(9));
    scene.platform.fault(Fault::on(ADD, refused()).skip(20).times(9));
    let outcome = scene.register(exit::CONNECTOR_FAILED);
    assert_eq!((&outcome["users"]["tokens_made"], &outcome["users"]["sent"]), (&42.into(), &42.into()), "{outcome:#}");
    assert_eq!(scene.platform.calls(ADD).len(), tried + 60, "everybody had a turn");
    scene.platform.clear_faults();
    scene.register(exit::OK);
    scene.all_is_well(0..60, "the next pass");
}
