//! The registration with XTM One, against a real engine for the memory and the stand-in for both other sides.

mod by_hand;
mod failures;
mod kept;
mod killed;
mod secrecy;
mod users;

use serde_json::{Value, json};
use stand_in_platform::{Fault, FaultKind, State, User, XTM_ONE_DEFAULT_TOKEN};
use xtm_reconcile::exit;

use crate::lanes::lane;
use crate::moves::{SOON, set};
use crate::scene::Scene;
use crate::support::Binary;
use crate::support::told::expect_all;

pub(crate) const ADD: &str = "userAdminTokenAdd";
pub(crate) const REVOKE: &str = "userAdminTokenRevoke";
pub(crate) const REGISTER: &str = "xtm-one.register";
/// A version that has tokens with names, sends users, and does not register itself.
const VERSION: &str = "7.260220.0";

/// A platform of that version, with an XTM One beside it.
pub(crate) fn scene(name: &str) -> Scene {
    let scene = Scene::new(name);
    scene.platform.edit(|state| VERSION.clone_into(&mut state.platform_version));
    scene
}

/// The address of one of the people.
pub(crate) fn address(number: usize) -> String {
    format!("person-{number:04}@example.org")
}

impl Scene {
    /// Adds this many ordinary users.
    pub(crate) fn people(&self, count: usize) {
        self.platform.edit(|state| {
            let before = state.users.len() - 1;
            let people =
                (before..before + count).map(|n| User::person(format!("user-{n:04}"), address(n), format!("P {n}")));
            state.users.extend(people);
        });
    }

    /// The program with what it needs for XTM One.
    pub(crate) fn registering(&self) -> Binary {
        self.program()
            .var("XTM__XTM_ONE_URL", self.platform.xtm_one_url())
            .var("XTM__XTM_ONE_TOKEN", XTM_ONE_DEFAULT_TOKEN)
    }

    /// The same, with the report as JSON.
    pub(crate) fn reporting(&self) -> Binary {
        self.registering().args(["--output", "json"])
    }

    /// Makes one pass and returns what it says of XTM One.
    #[track_caller]
    pub(crate) fn register(&self, code: u8) -> Value {
        self.register_with(&[], code)
    }

    #[track_caller]
    pub(crate) fn register_with(&self, settings: &[(&str, &str)], code: u8) -> Value {
        set(self.reporting(), settings).run().expect_code(code.into()).lane()["xtm_one"].clone()
    }

    /// The addresses of the users who have tokens named `XTM One`, once for each token.
    pub(crate) fn holders(&self) -> Vec<String> {
        self.platform.read(|state| {
            let tokens = state.users.iter().flat_map(|user| {
                let named = user.api_tokens.iter().filter(|token| token.name == "XTM One");
                named.map(|_| user.user_email.clone())
            });
            let mut holders: Vec<String> = tokens.collect();
            holders.sort();
            holders
        })
    }

    /// Panics unless these people, and nobody else, have one token each, whose key XTM One has.
    #[track_caller]
    pub(crate) fn all_is_well(&self, people: std::ops::Range<usize>, at: &str) {
        let wanted: Vec<String> = people.map(address).collect();
        assert_eq!(self.holders(), wanted, "{at}: one token each");
        assert_eq!(self.platform.read(State::xtm_one_dead_keys), Vec::<String>::new(), "{at}: dead keys");
        assert_eq!(self.told(), wanted, "{at}: users of XTM One");
    }

    /// The addresses of the users that XTM One has been told about.
    pub(crate) fn told(&self) -> Vec<String> {
        self.platform.read(|state| {
            let platform = state.xtm_one.platforms.get("opencti");
            platform.map(|platform| platform.users.keys().cloned().collect()).unwrap_or_default()
        })
    }

    /// How often XTM One was asked to register.
    pub(crate) fn registrations(&self) -> usize {
        self.platform.calls(REGISTER).len()
    }
}

/// The faults of an outcome, one a line.
pub(crate) fn errors(outcome: &Value) -> String {
    let faults = outcome["faults"].as_array().expect("an outcome has faults").iter();
    let text = |fault: &Value| format!("{} {} -> {}", fault["user"], fault["error"], fault["cure"]);
    faults.map(text).collect::<Vec<_>>().join("\n")
}

// Shows what README says under "XTM One": "Each pass sends one registration per platform, which is a heartbeat as
// well."; and under "What is sent, and to whom": "which product, its URL (`XTM__PLATFORM_URL` of OpenCTI), title,
// version and id".
#[test]
fn a_pass_registers_the_platform_and_a_later_one_is_a_heartbeat() {
    let scene = scene("xtm-one");
    scene.connector("a");
    scene.platform.edit(|state| {
        state.settings.platform_title = Some("Threat room".to_owned());
        state.xtm_one.ee_enabled = true;
    });
    let outcome = scene.register(exit::OK);
    assert_eq!(outcome["status"], "registered", "{outcome:#}");
    assert_eq!(outcome["ee_enabled"], true);
    assert_eq!(outcome["payload"], "users");
    assert!(outcome["next_attempt"].is_null());
    scene.platform.read(|state| {
        let registered = &state.xtm_one.platforms["opencti"];
        assert_eq!(registered.title, "Threat room");
        assert_eq!(registered.version, VERSION);
        assert_eq!(registered.id, state.settings.id);
        assert!(registered.url.contains("127.0.0.1"), "what the platform answers: {}", registered.url);
        assert!(registered.users.is_empty(), "the manager's own address ends in .invalid");
    });
    let records = scene.records();
    scene.register_with(&[("XTM__PLATFORM_URL", "https://octi.example.org/base/")], exit::OK);
    scene.platform.read(|state| {
        assert_eq!(state.xtm_one.platforms["opencti"].url, "https://octi.example.org/base");
        assert_eq!(state.xtm_one.platforms["opencti"].registrations, 2);
    });
    assert_eq!(scene.records()[0].id, records[0].id, "a heartbeat writes nothing to the engine");
}

// Shows what README says under "XTM One": "once it is given both the URL and the registration token".
#[test]
fn it_is_active_only_with_both_address_and_token() {
    let scene = scene("xtm-one-inactive");
    let address = scene.platform.xtm_one_url();
    let report =
        scene.program().args(["--output", "json"]).var("XTM__XTM_ONE_URL", &address).run().expect_code(0).json();
    assert!(report["lanes"][0]["xtm_one"].is_null());
    assert!(report["notices"].to_string().contains("chatbot proxy"), "{}", report["notices"]);
    let refused = scene.program().var("XTM__XTM_ONE_TOKEN", "abc").run().expect_code(exit::CONFIG.into());
    expect_all(&refused.stderr, &["XTM__XTM_ONE_TOKEN", "XTM__XTM_ONE_URL"], "the token alone");
    assert_eq!(scene.registrations(), 0);
}

// Shows what README says under "XTM One": "What fails there is in the report, and the exit code is then 1 at least.".
#[test]
fn what_fails_at_xtm_one_changes_nothing_for_the_connectors() {
    let scene = scene("xtm-one-down");
    scene.connector("a");
    scene.people(3);
    scene.platform.fault(Fault::on(REGISTER, FaultKind::status(401)));
    let report = scene.reporting().run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    assert_eq!(report["counts"]["steps"]["deploy"], 1, "{report:#}");
    assert!(report["errors"].as_array().unwrap().is_empty() && report["xtm_one"]["status"] == "failed");
    assert!(scene.only().running());
    let told = errors(&report["xtm_one"]);
    expect_all(
        &told,
        &["HTTP 401", "stan…", "xtm-reconcile/", "sent from", "PLATFORM_REGISTRATION_TOKEN"],
        "a refused token",
    );
    assert!(scene.holders().is_empty(), "the tokens of that pass were revoked");
}

// Shows what README says under "XTM One": "It runs beside the work on the connectors, which does not wait for it".
#[test]
fn a_slow_xtm_one_does_not_hold_up_the_connectors() {
    let scene = scene("xtm-one-slow");
    scene.connector("a");
    scene.platform.fault(Fault::on(REGISTER, FaultKind::Delay { ms: 600_000 }));
    let running = scene.reporting().spawn();
    let published =
        |_: &_, calls: &[stand_in_platform::Call]| calls.iter().any(|call| call.is("updateConnectorHealth"));
    assert!(scene.platform.wait_for(SOON, published), "the connector is deployed and published meanwhile");
    let remembered = |_: &crate::support::Engine| {
        let record = scene.records().into_iter().next()?;
        (!record.label("xtm-reconcile.registration").is_empty()).then_some(())
    };
    scene.engine.wait_for("the connectors' memory to be written", SOON, remembered);
    assert!(running.is_running());
    running.signal(crate::support::Signal::KILL);
    running.wait();
    assert!(scene.only().running());
}

// Shows what README says under "XTM One": "only the end of the pass does, for 40 seconds and one `XTM__REQUEST_TIMEOUT`
// at most when XTM One hangs, and no longer than the pass may take".
#[test]
fn an_xtm_one_that_hangs_keeps_the_end_of_the_pass_for_four_tries_and_not_beyond_its_deadline() {
    let scene = scene("xtm-one-hangs");
    scene.connector("a");
    scene.platform.fault(Fault::on(REGISTER, FaultKind::Delay { ms: 600_000 }));
    let took = |settings: &[(&str, &str)]| {
        let outcome = set(scene.reporting(), settings).run().expect_code(exit::CONNECTOR_FAILED.into());
        assert!(scene.only().running(), "{}", outcome.stdout);
        outcome.took
    };
    // Four timeouts of a second, and the pauses between them, of which the longest is 1.2 seconds.
    let patient = took(&[("XTM__REQUEST_TIMEOUT", "1")]);
    let (least, most) = (std::time::Duration::from_secs(4), std::time::Duration::from_secs(12));
    assert!((least..most).contains(&patient), "{patient:?}");
    // Other settings, so that it is tried although the last pass failed.
    let settings = [("XTM__REQUEST_TIMEOUT", "600"), ("MANAGER__PASS_DEADLINE", "3"), ("MANAGER__STOP_BUDGET", "4")];
    let localhost = scene.platform.xtm_one_url().replace("127.0.0.1", "localhost");
    let cut = took(&[settings.as_slice(), &[("XTM__XTM_ONE_URL", localhost.as_str())]].concat());
    assert!(cut < std::time::Duration::from_secs(10), "{cut:?}");
}

// Shows what README says under "What an attacker gains": "Plain `http` to another machine is refused unless
// `XTM__ALLOW_INSECURE=true`".
#[test]
fn keys_cross_a_network_only_over_tls_unless_told_otherwise() {
    let scene = scene("xtm-one-plain");
    let proxied = [("XTM__WITH_PROXY", "true"), ("XTM__HTTP_PROXY", "http://proxy.example.org:3128")];
    let refused = |url: &str, settings: &[(&str, &str)]| {
        let program = set(scene.registering().var("XTM__XTM_ONE_URL", url), settings);
        let outcome = program.args(["check"]).run().expect_code(exit::CONFIG.into());
        expect_all(&outcome.stdout, &["XTM__XTM_ONE_URL", "XTM__ALLOW_INSECURE"], url);
    };
    for url in [
        "http://xtm-one.example.org",
        "HTTP://xtm-one.example.org",
        "http://127.0.0.1.example.org",
        "http://10.0.0.1:80",
    ] {
        refused(url, &[]);
    }
    refused("http://localhost:1", &proxied);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("http://{closed}"), format!("HTTP://localhost:{}", closed.port())] {
        let outcome = scene.registering().var("XTM__XTM_ONE_URL", &url).args(["check"]).run();
        expect_all(&outcome.expect_code(exit::CONNECTOR_FAILED.into()).stdout, &["cannot be reached"], &url);
    }
    let told = scene.registering().var("XTM__XTM_ONE_URL", "http://xtm-one.invalid").var("XTM__ALLOW_INSECURE", "true");
    told.args(["check"]).run().expect_code(exit::CONNECTOR_FAILED.into());
}

// Shows what README says under "What an attacker gains": "`xtm-default-registration-token` is public: a pass warns of
// it".
#[test]
fn bad_settings_are_all_named_at_once_and_the_public_token_is_a_warning() {
    let scene = scene("xtm-one-settings");
    let bad = [
        ("XTM__PAYLOAD", "everything"),
        ("XTM__MAX_NEW_TOKENS", "5001"),
        ("XTM__FORCE", "perhaps"),
        ("XTM__USERS_INCLUDE", " , "),
        ("XTM__ADMIN_API_KEY", stand_in_platform::DEFAULT_TOKEN),
        ("XTM__PLATFORM_URL", "octi.example.org"),
        ("XTM__CHAT_WEB_TOKEN_SECRET", "chat"),
        ("XTM__CA", "/no/such/file"),
        ("XTM__REQUEST_TIMEOUT", "0"),
    ];
    let outcome = set(scene.registering(), &bad).run().expect_code(exit::CONFIG.into());
    let names: Vec<&str> = bad.iter().map(|(name, _)| *name).collect();
    expect_all(&outcome.stderr, &names, "every one of them");
    assert!(!outcome.stderr.contains(stand_in_platform::DEFAULT_TOKEN), "{}", outcome.stderr);
    let public = scene.registering().var("XTM__XTM_ONE_TOKEN", "xtm-default-registration-token").args(["check"]).run();
    expect_all(&public.stdout, &["public default", "PLATFORM_REGISTRATION_TOKEN"], "a warning");
    let mistyped = scene.registering().var("XTM__XTM_ONE_TOKN", "x").var("XTM__XTM_HUB_URL", "x").args(["check"]).run();
    expect_all(&mistyped.stdout, &["XTM__XTM_ONE_TOKN", "did you mean XTM__XTM_ONE_TOKEN?"], "mistyped");
    assert!(!mistyped.stdout.contains("XTM__XTM_HUB_URL"), "OpenCTI's own: {}", mistyped.stdout);
}

// Shows what README says under "Tokens": "Another XTM One, or one that counts fewer users than it is told of, is noticed;
// a rotation gives it new keys."
#[test]
fn another_xtm_one_that_lacks_the_keys_is_noticed() {
    let scene = scene("xtm-one-another");
    scene.people(2);
    scene.register(exit::OK);
    let notices =
        |settings: &[(&str, &str)]| set(scene.reporting(), settings).run().expect_code(0).lane()["notices"].to_string();
    assert!(!notices(&[]).contains("may lack keys"));
    let localhost = scene.platform.xtm_one_url().replace("127.0.0.1", "localhost");
    assert!(notices(&[("XTM__XTM_ONE_URL", &localhost)]).contains("`xtm-one rotate` gives every user a new one"));
    assert!(!notices(&[("XTM__XTM_ONE_URL", &localhost)]).contains("may lack keys"), "another address is said once");
    // One under the same address that does not know everybody.
    let answer = json!({ "status": "registered", "platform_identifier": "opencti", "ee_enabled": false, "user_integrations": 1 });
    let fewer = FaultKind::Status { code: 200, retry_after: None, body: Some(answer.to_string()) };
    scene.platform.fault(Fault::on(REGISTER, fewer).times(1));
    assert!(notices(&[("XTM__XTM_ONE_URL", &localhost)]).contains("may lack keys"), "it counts one of two");
    // One that was set up anew.
    scene.platform.edit(|state| state.xtm_one.platforms.clear());
    let told = notices(&[("XTM__XTM_ONE_URL", &localhost)]);
    assert_eq!(scene.platform.read(State::xtm_one_dead_keys).len(), 2, "{told}");
    scene.reporting().args(["xtm-one", "rotate"]).run().expect_code(0);
    scene.all_is_well(0..2, "after a rotation");
}

// Shows what README says under "XTM One": "A platform that registers itself is left alone with a notice".
#[test]
fn a_platform_that_registers_itself_is_left_alone_unless_forced() {
    let scene = scene("xtm-one-itself");
    scene.people(1);
    scene.platform.edit(|state| "7.260309.0-lts1".clone_into(&mut state.platform_version));
    let report = scene.reporting().run().expect_code(0).lane();
    assert_eq!(report["xtm_one"]["status"], "left-alone");
    expect_all(&report["notices"].to_string(), &["Enterprise Edition", "overwrite", "XTM__FORCE=true"], "the notice");
    assert_eq!((scene.registrations(), scene.holders().len()), (0, 0));
    let outcome = scene.register_with(&[("XTM__FORCE", "true")], exit::OK);
    assert_eq!((&outcome["status"], &outcome["payload"]), (&json!("registered"), &json!("users")));
    scene.all_is_well(0..1, "forced");

    scene.platform.edit(|state| state.openaev.settings = json!({ "platform_xtm_one_configured": true }));
    let both = scene.with_openaev(scene.reporting());
    let report = both.run().expect_code(0).json();
    assert_eq!(lane(&report, "openaev")["xtm_one"]["status"], "left-alone");
}

// Shows what README says under "What is sent, and to whom": "`XTM__PAYLOAD=auto` sends what the platform's version
// would send itself.", "only with `XTM__ADMIN_API_KEY`, payload `users`".
#[test]
fn each_generation_gets_what_it_knows() {
    use stand_in_platform::xtm_one::Generation;
    let scene = scene("xtm-one-generations");
    scene.people(1);
    let key = ("XTM__ADMIN_API_KEY", "an-administrators-key");
    scene.platform.edit(|state| state.xtm_one.generation = Generation::Users);
    scene.register_with(&[key], exit::OK);
    scene.platform.read(|state| {
        let registered = &state.xtm_one.platforms["opencti"];
        assert_eq!(registered.admin_api_key.as_deref(), Some("an-administrators-key"));
        assert!(registered.business_vertical.is_none());
    });
    scene.register_with(&[("XTM__ADMIN_API_KEY", "platform-token")], exit::OK);
    scene.platform.read(|state| {
        let sent = state.xtm_one.platforms["opencti"].admin_api_key.as_deref();
        assert_eq!(sent, Some(stand_in_platform::DEFAULT_TOKEN));
    });

    scene.platform.edit(|state| state.xtm_one.generation = Generation::Intents);
    let outcome = scene.register_with(&[key], exit::CONNECTOR_FAILED);
    expect_all(&errors(&outcome), &["HTTP 422", "body", "XTM__PAYLOAD"], "the other generation is wanted");
    let outcome = scene.register_with(&[key, ("XTM__PAYLOAD", "intents"), ("XTM__REQUEST_TIMEOUT", "14")], exit::OK);
    assert_eq!(outcome["payload"], "intents", "{outcome:#}");
    let sent = scene.platform.read(|state| state.xtm_one.platforms["opencti"].last_body.clone());
    assert_eq!(sent["business_vertical"], "cti");
    assert_eq!(sent["intents"].as_array().unwrap().len(), 20);
    assert!(sent.get("users").is_none() && sent.get("admin_api_key").is_none(), "{sent:#}");

    // The version decides by itself.
    scene.platform.edit(|state| "7.261026.0".clone_into(&mut state.platform_version));
    let outcome = scene.register_with(&[("XTM__FORCE", "true")], exit::OK);
    assert_eq!(outcome["payload"], "intents");
}

// Shows what README says under "XTM One": "Each pass sends one registration per platform"; and under "What is sent, and
// to whom": "its type when the platform has validated it".
#[test]
fn both_lanes_register_and_openaev_has_no_users() {
    let scene = scene("xtm-one-lanes");
    scene.people(2);
    let licence = json!({ "license_is_validated": true, "license_type": "nfr" });
    scene.platform.edit(|state| state.openaev.settings = json!({ "platform_license": licence }));
    let report = scene.with_openaev(scene.reporting()).run().expect_code(0).json();
    for name in ["opencti", "openaev"] {
        assert_eq!(lane(&report, name)["xtm_one"]["status"], "registered", "{report:#}");
    }
    scene.all_is_well(0..2, "both");
    scene.platform.read(|state| {
        let registered = &state.xtm_one.platforms["openaev"];
        assert_eq!(registered.license_type.as_deref(), Some("nfr"));
        assert!(registered.users.is_empty() && registered.admin_api_key.is_none());
        assert!(state.xtm_one.platforms["opencti"].license_type.is_none(), "not validated");
    });
    let quiet = scene.with_openaev(scene.reporting()).run().expect_code(0).json();
    assert_eq!(lane(&quiet, "opencti")["xtm_one"]["users"]["tokens_made"], 0);
}

// Shows what README says under "Exit codes": "changes are pending, tokens for XTM One included"; and under "XTM One":
// "also shows what XTM One would be told, and the tokens that would be made".
#[test]
fn a_plan_shows_what_would_be_sent_and_makes_no_token() {
    let scene = scene("xtm-one-plan");
    scene.people(2);
    scene.register(exit::OK);
    scene.people(1);
    let before = scene.platform.revision();
    let plan =
        scene.reporting().args(["plan", "--detailed-exitcode"]).var("XTM__ADMIN_API_KEY", "an-administrators-key");
    let outcome = plan.run().expect_code(exit::CHANGES_PENDING.into());
    let told = &outcome.lane()["xtm_one"];
    assert_eq!((&told["status"], &told["users"]["tokens_made"]), (&json!("planned"), &json!(1)), "{told:#}");
    let key = |number| {
        let users = told["planned"]["users"].as_array().unwrap();
        let user = users.iter().find(|user| user["email"] == address(number).as_str()).unwrap();
        user["api_key"].clone()
    };
    assert_eq!([key(0), key(2)], ["", "[new token]"]);
    assert_eq!(told["planned"]["admin_api_key"], "[secret]");
    assert!(!outcome.stdout.contains("an-administrators-key"));
    assert_eq!(scene.platform.revision(), before, "nothing was changed");
    assert_eq!(scene.registrations(), 1);
    let shown = scene.registering().args(["plan"]).run().expect_code(0).stdout;
    expect_all(&shown, &["1 tokens to make (person-0002@example.org)", "platform_identifier: opencti"], "the table");
}

// Shows what README says under "XTM One": "also asks XTM One for its metadata; registers nothing".
#[test]
fn check_asks_for_the_metadata_and_registers_nothing() {
    let scene = scene("xtm-one-check");
    let check = |settings: &[(&str, &str)], code: u8| {
        let program = set(scene.reporting(), settings).args(["check"]);
        let lines = program.run().expect_code(code.into()).json()["checks"].clone();
        let lines = lines.as_array().unwrap().iter().filter(|line| line["what"] == "XTM One").cloned();
        Value::from(lines.collect::<Vec<_>>()).to_string()
    };
    expect_all(&check(&[], exit::OK), &["issuer", "stan…", "would be registered with the URL"], "a good one");
    scene.platform.edit(|state| state.xtm_one.has_metadata = false);
    expect_all(&check(&[], exit::OK), &["older build"], "without metadata");
    let probe = scene.platform.calls("xtm-one.metadata");
    assert!(!probe.is_empty() && probe.iter().all(|call| call.authorization.is_empty()), "the token is not sent");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = check(&[("XTM__XTM_ONE_URL", &format!("http://{closed}"))], exit::CONNECTOR_FAILED);
    expect_all(&nobody, &["cannot be reached"], "nobody listens");
    let plain = check(&[("XTM__XTM_ONE_URL", &scene.platform.xtm_one_url().replace("http:", "https:"))], 1);
    expect_all(&plain, &["TLS"], "no TLS there");
    assert_eq!(scene.registrations(), 0);
}
