//! Everything that a platform can do wrong: the exit code, what the operator is told, and that no container pays for it.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;
use stand_in_platform::{AutoUpgrade, Call, Connector, Fault, FaultKind, Kind, Setting};
use xtm_reconcile::exit;

use crate::scene::{IMAGE, Scene};
use crate::support::{Binary, Outcome, Running, Signal};
use crate::watch::{Watch, expect_all, expect_unlocked, faults, line};

const LIST: &str = "connectorsForManagers";
const SOON: Duration = Duration::from_secs(30);

/// A scene with three connectors that run, and work for the next pass: one to refresh, one to remove.
fn with_work_waiting(name: &str) -> Scene {
    let scene = Scene::new(name);
    for connector in ["keep", "change", "gone"] {
        scene.connector(connector);
    }
    scene.pass().expect_code(exit::OK.into());
    scene.platform.edit(|state| {
        state.connectors.retain(|connector| connector.id != "id-gone");
        let change = state.connector_mut("id-change").unwrap();
        change.configuration.push(Setting { key: "NEW".to_owned(), value: Some("1".to_owned()), encrypted: None });
    });
    scene.platform.clear_journal();
    scene
}

/// The work that was waiting is done now.
#[track_caller]
fn expect_work_done(scene: &Scene, outcome: Outcome) {
    let report = outcome.expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"], json!({"refresh": 1, "remove": 1}), "{report:#}");
    assert_eq!(scene.containers().len(), 2);
    expect_unlocked(scene, "after the work");
}

fn mutations(calls: &[Call], operation: &str) -> usize {
    calls.iter().filter(|call| call.kind == Kind::Mutation && call.is(operation)).count()
}

fn graphql(code: &str, message: &str) -> FaultKind {
    FaultKind::GraphqlError { code: code.to_owned(), message: message.to_owned(), data: json!({}) }
}

// Shows what README says under "Exit codes": "the platform could not be used: unreachable, refused the token or the
// registration, too old"; and under "What a pass does": "A failed or partial list removes nothing.".
#[test]
fn a_list_that_cannot_be_used_ends_the_pass_says_what_to_do_and_touches_nothing() {
    let scene = with_work_waiting("list-faults");
    let redirect = FaultKind::Redirect { location: "https://sso.example.org/login".to_owned() };
    let url_cure = "see that OPENCTI__URL is the platform itself";
    let log_cure = "look into the log of the platform and of any proxy before it";
    let token_cure = "set OPENCTI__TOKEN to a valid token of a user who may use tokens (capability APIACCESS_USETOKEN)";
    let agent = concat!("xtm-reconcile/", env!("CARGO_PKG_VERSION"));
    let upgrade = "Managed connector auto-upgrade timed out";
    let cases: [(FaultKind, &[&str], usize); 17] = [
        (FaultKind::BrokenJson, &["broken JSON", url_cure], 1),
        (FaultKind::Html, &["an HTML page instead of JSON", url_cure], 1),
        (FaultKind::EmptyBody, &["answered with nothing", url_cure], 1),
        (FaultKind::Truncate, &["was cut off", log_cure], 4),
        (FaultKind::Drop, &["cannot be reached", "see that the platform is up"], 4),
        (FaultKind::NullData, &["answered null, without an error", "look into the platform's log"], 1),
        (graphql("FUNCTIONAL_ERROR", upgrade), &["FUNCTIONAL_ERROR", upgrade, "the next pass tries again"], 1),
        (FaultKind::status(500), &["HTTP 500", log_cure], 4),
        (FaultKind::status(502), &["HTTP 502", log_cure], 4),
        (FaultKind::status(503), &["HTTP 503", log_cure], 4),
        (FaultKind::status(504), &["HTTP 504", log_cure], 4),
        (FaultKind::status(404), &["HTTP 404", url_cure], 1),
        (redirect, &["HTTP 302", "https://sso.example.org/login", "set OPENCTI__URL to where it redirects"], 1),
        (FaultKind::status(401), &["refused the token flgrn_octi_tkn_", agent, token_cure], 1),
        (FaultKind::RefusedToken, &["refused the token flgrn_octi_tkn_", agent, token_cure], 1),
        (FaultKind::status(403), &["HTTP 403", "proxy or firewall"], 1),
        (graphql("FORBIDDEN_ACCESS", "no"), &["lacks the capability SETTINGS_SETACCESSES", "give the user's role"], 1),
    ];
    for (kind, told, attempts) in cases {
        let what = format!("{kind:?}");
        scene.platform.fault(Fault::on(LIST, kind));
        let watch = Watch::new(&scene);
        let outcome = scene.pass().expect_code(exit::PLATFORM.into());
        watch.expect_untouched(&what);
        let faults = faults(&outcome.lane());
        expect_all(&faults, told, &what);
        expect_all(&faults, &[&scene.platform.url()], &what);
        assert!(faults.contains(LIST) || faults.contains("token"), "{what}: {faults}");
        expect_all(&outcome.stderr, &["\"level\":\"ERROR\"", "\"cure\""], &what);
        assert_eq!(scene.platform.calls(LIST).len(), attempts, "{what}: attempts");
        scene.platform.clear_faults();
        scene.platform.clear_journal();
    }
    expect_work_done(&scene, scene.pass());
}

// Shows what README says under "xtm-reconcile": "OpenCTI 6.8.0 and later"; and under "First use": "The user of the
// OpenCTI token needs the capabilities".
#[test]
fn a_platform_that_is_not_what_it_should_be_ends_the_pass_and_touches_nothing() {
    let scene = with_work_waiting("wrong-platform");
    let check = |what: &str, program: Binary, told: &[&str]| {
        let watch = Watch::new(&scene);
        let outcome = program.args(["run", "--output", "json"]).run().expect_code(exit::PLATFORM.into());
        watch.expect_untouched(what);
        expect_all(&faults(&outcome.lane()), told, what);
    };
    let version = scene.platform.edit(|state| std::mem::replace(&mut state.platform_version, "6.7.19".to_owned()));
    check("too old", scene.program(), &["6.7.19", "too old", "6.8.0", "upgrade the platform"]);
    scene.platform.edit(|state| state.platform_version = version);

    scene.platform.edit(|state| state.lts_unlicensed = true);
    check("no licence", scene.program(), &["LTS build without an activated licence", "activate the licence"]);
    scene.platform.edit(|state| state.lts_unlicensed = false);

    scene.platform.edit(|state| state.connector_mut("id-keep").unwrap().broken = true);
    let named = ["of the list", "manager_contract_", "id id-keep", LIST, "look into the platform's log"];
    check("null and an error", scene.program(), &named);
    scene.platform.edit(|state| state.connector_mut("id-keep").unwrap().broken = false);

    let all = scene.platform.edit(|state| state.users[0].capabilities.clone());
    for (missing, told) in [
        ("CONNECTORAPI", "lacks the capability CONNECTORAPI"),
        ("SETTINGS_SETACCESSES", "lacks the capability SETTINGS_SETACCESSES"),
        ("APIACCESS_USETOKEN", "capability APIACCESS_USETOKEN"),
    ] {
        scene.platform.edit(|state| state.users[0].capabilities.retain(|name| name != missing));
        check(missing, scene.program(), &[told]);
        scene.platform.edit(|state| state.users[0].capabilities.clone_from(&all));
    }

    let wrong = scene.program().var("OPENCTI__TOKEN", "11112222-3333-4444-5555-666677778888");
    check("wrong token", wrong, &["refused the token 1111…", "user agent xtm-reconcile/", "sent from"]);

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = scene.program().var("OPENCTI__URL", format!("http://{closed}/octi"));
    check("nobody there", nobody, &["cannot be reached", &closed.to_string(), "refused", "OPENCTI__URL"]);

    // A socket that takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let waits = scene.program().var("OPENCTI__URL", format!("http://{address}")).var("OPENCTI__REQUEST_TIMEOUT", "1");
    check("silence", waits, &["did not answer within 1 s", "OPENCTI__REQUEST_TIMEOUT"]);

    scene.platform.fault(Fault::on(LIST, FaultKind::SlowBody { ms: 20_000 }));
    let impatient = scene.program().var("OPENCTI__PULL_TIMEOUT", "1");
    check("a slow body", impatient, &["did not answer within 1 s", "OPENCTI__PULL_TIMEOUT"]);
    scene.platform.clear_faults();

    expect_work_done(&scene, scene.pass());
}

#[test]
fn what_passes_by_itself_is_asked_again_as_the_platform_wishes() {
    let scene = Scene::new("retries");
    scene.connector("a");
    let later = FaultKind::Status { code: 429, retry_after: Some("1".to_owned()), body: None };
    scene.platform.fault(Fault::on(LIST, later).times(1));
    for (operation, kind) in [
        ("about", FaultKind::status(503)),
        ("updateConnectorManagerStatus", FaultKind::Drop),
        ("registerConnectorsManager", FaultKind::DropAnswer),
        ("updateConnectorHealth", FaultKind::status(502)),
        ("updateConnectorCurrentStatus", FaultKind::Truncate),
        ("updateConnectorLogs", FaultKind::status(504)),
    ] {
        scene.platform.fault(Fault::on(operation, kind).times(1));
    }
    let outcome = scene.pass().expect_code(exit::OK.into());
    assert!(outcome.took >= Duration::from_secs(1), "Retry-After was obeyed: {:?}", outcome.took);
    assert_eq!(scene.platform.faults(), [], "every fault came about");
    let connector = scene.platform.read(|state| state.connectors[0].clone());
    assert_eq!(connector.current_status.as_deref(), Some("started"));
    assert!(!connector.logs.is_empty() && connector.health.is_some(), "{connector:?}");

    // A wait that is longer than any pass would take is not begun.
    let much_later = FaultKind::Status { code: 429, retry_after: Some("86400".to_owned()), body: None };
    scene.platform.fault(Fault::on(LIST, much_later));
    let outcome = scene.pass().expect_code(exit::PLATFORM.into());
    expect_all(&faults(&outcome.lane()), &["HTTP 429"], "a long wait");
}

// Shows what README says under "Configuration": "Seconds to wait for the list of connectors".
#[test]
fn a_list_that_the_platform_holds_back_is_waited_for() {
    let scene = Scene::new("held-list");
    scene.connector("a");
    scene.platform.edit(|state| state.auto_upgrade = AutoUpgrade { hold_ms: 2500, times_out: false });
    let program = scene.program().var("OPENCTI__REQUEST_TIMEOUT", "1").args(["run", "--output", "json"]);
    let report = program.run().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"]["deploy"], 1, "only other requests have the short timeout: {report:#}");
    scene.platform.edit(|state| state.auto_upgrade = AutoUpgrade { hold_ms: 10, times_out: true });
    let outcome = scene.pass().expect_code(exit::PLATFORM.into());
    expect_all(&faults(&outcome.lane()), &["auto-upgrade timed out"], "a hold that fails");
}

// Shows what README says under "What a pass does": "**One connector's fault stays its own.**", "A failed or partial
// list removes nothing.".
#[test]
fn one_malformed_connector_among_good_ones_is_named_and_the_others_are_served() {
    let scene = Scene::new("malformed");
    for name in ["good", "odd", "gone"] {
        scene.connector(name);
    }
    scene.pass().expect_code(exit::OK.into());
    let odd = scene.containers().into_iter().find(|c| c.label("opencti-connector-id") == "id-odd").unwrap();
    scene.connector("late");
    scene.platform.edit(|state| {
        state.connector_mut("id-odd").unwrap().raw_override = Some(json!({"manager_contract_image": null}));
    });
    scene.platform.clear_journal();
    for _ in 0..2 {
        let report = scene.pass().expect_code(exit::CONNECTOR_FAILED.into()).lane();
        let odd_line = line(&report, "id-odd");
        assert_eq!(odd_line["result"], "rejected", "{report:#}");
        expect_all(odd_line["error"].as_str().unwrap(), &["cannot be read"], "odd");
        let still = scene.engine.container(&odd.name).unwrap();
        assert!(still.id == odd.id && still.running(), "its container runs on");
        assert_eq!(line(&report, "id-good")["result"], "unchanged");
    }
    let statuses = scene.platform.calls("updateConnectorCurrentStatus");
    let about: Vec<_> = statuses.iter().map(|call| call.variables["input"]["id"].as_str().unwrap()).collect();
    assert_eq!(about, ["id-late"], "what the platform shows of the odd one is not known, so nothing is sent about it");
    assert!(scene.platform.calls("updateConnectorHealth").len() > 4, "every running one has health");

    // An entry without an id could be any connector: nothing is removed while it is there.
    scene.platform.edit(|state| {
        state.connectors.retain(|connector| connector.id != "id-gone");
        state.connector_mut("id-odd").unwrap().raw_override = Some(json!(null));
    });
    scene.connector("later");
    let report = scene.pass().expect_code(exit::GUARD.into()).lane();
    assert_eq!(line(&report, "id-later")["result"], "done", "{report:#}");
    assert_eq!(line(&report, "id-gone")["skip"]["kind"], "prune-refused");
    assert_eq!(scene.containers().len(), 5, "both are still there");
    let pruning = scene.program().args(["run", "--allow-prune"]).run();
    pruning.expect_code(exit::GUARD.into());
    assert_eq!(scene.containers().len(), 5, "not even when told to prune");
}

#[test]
fn duplicate_names_and_ids_never_put_one_connector_over_another() {
    let scene = Scene::new("duplicates");
    let name = scene.connector("first");
    scene.pass().expect_code(exit::OK.into());
    let first = scene.containers().remove(0);
    // A smaller id, but the name is taken already; written otherwise, but the same once made valid.
    let shouting = name.to_uppercase().replace('-', " ");
    scene.connector_with("usurper", |c| Connector { id: "a-smaller-id".to_owned(), name: shouting, ..c });
    let report = scene.pass().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    expect_all(line(&report, "a-smaller-id")["error"].as_str().unwrap(), &["id-first", &name, "rename"], "usurper");
    assert_eq!(scene.containers().iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), [first.id.as_str()]);

    // The same id twice: equal entries are one, different ones reject the id, and what runs of it stays.
    scene.platform.edit(|state| {
        state.connectors.truncate(1);
        state.connectors.push(state.connectors[0].clone());
    });
    scene.pass().expect_code(exit::OK.into());
    scene.platform.edit(|state| state.connectors[1].image = "xtm-fixture/connector:2".to_owned());
    scene.platform.clear_journal();
    for _ in 0..2 {
        let report = scene.pass().expect_code(exit::CONNECTOR_FAILED.into()).lane();
        expect_all(line(&report, "id-first")["error"].as_str().unwrap(), &["twice"], "ids");
    }
    let still = scene.containers().remove(0);
    assert!(still.id == first.id && still.running() && still.image == IMAGE);
    assert_eq!(mutations(&scene.platform.journal(), "updateConnectorCurrentStatus"), 0);
}

// Shows what README says under "Exit codes": "the prune guard refused"; and under "What a pass does": "An empty list
// while two or more connectors are deployed", "removes nothing and exits with 5, unless you say `--allow-prune`".
#[test]
fn a_list_that_shrinks_too_much_removes_nothing_unless_told_to() {
    let scene = Scene::new("prune");
    for name in ["a", "b", "c", "d"] {
        scene.connector(name);
    }
    scene.pass().expect_code(exit::OK.into());
    // Half is not more than half.
    scene.platform.edit(|state| state.connectors.truncate(2));
    let report = scene.pass().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"], json!({"remove": 2}), "{report:#}");
    scene.connector("e");
    scene.connector("f");
    scene.pass().expect_code(exit::OK.into());

    // Three of four would go; a new one comes. The rest of the pass is done.
    scene.platform.edit(|state| state.connectors.truncate(1));
    scene.connector("new");
    let report = scene.pass().expect_code(exit::GUARD.into()).lane();
    assert_eq!(report["prune_refused"]["kind"], "too-many", "{report:#}");
    assert_eq!(report["counts"]["steps"], json!({"deploy": 1}), "{report:#}");
    assert_eq!(scene.containers().len(), 5);

    scene.platform.edit(|state| state.connectors.clear());
    let watch = Watch::new(&scene);
    let report = scene.pass().expect_code(exit::GUARD.into()).lane();
    watch.expect_untouched("an empty list");
    assert_eq!(report["prune_refused"]["kind"], "empty-listing", "{report:#}");
    let outcome = scene.program().run().expect_code(exit::GUARD.into());
    expect_all(&outcome.stdout, &["prune guard", "--allow-prune"], "table");

    scene.platform.edit(|state| state.connectors.clear());
    scene.program().args(["run", "--allow-prune"]).run().expect_code(exit::OK.into());
    assert_eq!(scene.containers().len(), 0);
}

// Shows what README says under "xtm-reconcile": "OpenCTI 6.8.0 and later".
#[test]
fn the_first_version_with_the_api_is_served() {
    let scene = Scene::new("oldest");
    scene.platform.edit(|state| state.platform_version = "6.8.0".to_owned());
    scene.connector("a");
    let report = scene.pass().expect_code(exit::OK.into()).lane();
    assert_eq!(report["platform"]["version"], "6.8.0");
    scene.program().arg("check").run().expect_code(exit::OK.into());
    scene.program().arg("plan").run().expect_code(exit::OK.into());
    assert!(scene.containers()[0].running());
}

// Shows what README says under "What a pass does": "**Register** when the platform does not know this manager"; and
// under "What it leaves on a Docker engine": "A lost record costs one registration".
#[test]
fn it_registers_when_something_changed_and_only_then() {
    let scene = Scene::new("register");
    scene.connector("a");
    let registers = |program: Binary, why: &str| {
        scene.platform.clear_journal();
        let report = program.args(["run", "--output", "json"]).run().expect_code(exit::OK.into()).lane();
        let told = report["platform"]["registration"].as_str().unwrap_or_default().to_owned();
        let count = mutations(&scene.platform.journal(), "registerConnectorsManager");
        assert_eq!(count, usize::from(told != "known"), "{told}");
        assert!(told.contains(why), "{told:?} should tell {why:?}");
        let registered = scene.platform.read(|state| state.managers.clone());
        assert_eq!(registered.len(), 1);
        assert!(registered[0].public_key.starts_with("-----BEGIN PUBLIC KEY-----"), "{registered:?}");
        registered[0].clone()
    };
    let first = registers(scene.program(), "did not know this manager");
    assert_eq!(first.id, &*scene.manager);
    registers(scene.program(), "known");
    scene.platform.edit(|state| state.platform_version = "7.261101.0".to_owned());
    registers(scene.program(), "another version");
    registers(scene.program(), "known");
    let renamed = || scene.program().var("MANAGER__NAME", "Überwacher");
    assert_eq!(registers(renamed(), "another name").name, "Überwacher");
    let other = crate::support::TestKey::rsa(3072, crate::support::KeyForm::Pkcs1);
    let rekeyed = || renamed().var("MANAGER__CREDENTIALS_KEY_FILEPATH", &other.path);
    let second = registers(rekeyed(), "another key");
    assert_ne!(first.public_key, second.public_key);
    registers(rekeyed(), "known");
    // Somebody restored an old backup of the platform.
    scene.platform.edit(|state| state.managers.clear());
    registers(rekeyed(), "did not know this manager");
    // Somebody removed the pass record.
    for container in scene.engine.containers_labelled(&format!("xtm-reconcile.manager={}", scene.manager)) {
        scene.engine.remove(&container.id);
    }
    registers(rekeyed(), "no memory");
}

// Shows what README says under "Coming from the daemon": "there another `MANAGER__ID` is refused".
#[test]
fn a_platform_that_has_another_manager_names_it_and_nothing_is_done() {
    let scene = Scene::new("other-manager");
    scene.connector("a");
    scene.platform.edit(|state| {
        let manager =
            stand_in_platform::Manager { id: "the-old-one".to_owned(), name: "Old".to_owned(), ..Default::default() };
        state.managers.push(manager);
    });
    let outcome = scene.pass().expect_code(exit::PLATFORM.into());
    let told = ["\"Old\" (id the-old-one)", "accepts one connector manager only", "set MANAGER__ID"];
    expect_all(&faults(&outcome.lane()), &told, "refusal");
    assert!(scene.containers().is_empty() && scene.platform.calls(LIST).is_empty());
    expect_unlocked(&scene, "refused");
}

#[test]
fn a_platform_that_dies_after_the_pull_gets_its_steps_done_and_the_reports_with_the_next_pass() {
    let scene = Scene::new("dies");
    for name in ["a", "b", "c"] {
        scene.connector(name);
    }
    for operation in ["updateConnectorHealth", "updateConnectorLogs", "updateConnectorCurrentStatus"] {
        scene.platform.fault(Fault::on(operation, FaultKind::Drop));
    }
    let report = scene.pass().expect_code(exit::PLATFORM.into()).lane();
    assert_eq!(report["counts"]["steps"]["deploy"], 3, "{report:#}");
    assert!(scene.containers().iter().all(crate::support::Container::running));
    expect_all(&faults(&report), &["was not published", "cannot be reached", "the next pass sends it"], "publish");
    expect_unlocked(&scene, "after the platform died");
    scene.platform.clear_faults();
    let report = scene.pass().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["unchanged"], 3);
    assert_eq!(report["platform"]["sent"], json!({"status": 3, "health": 3, "logs": 3}));
    assert_eq!(report["platform"]["registration"], "known", "the record of the broken pass was written");
}

#[test]
fn what_the_platform_refuses_of_one_connector_does_not_keep_the_others_from_being_published() {
    let scene = Scene::new("one-refused");
    for name in ["a", "b", "c", "d", "e"] {
        scene.connector(name);
    }
    let too_large = FaultKind::Status { code: 413, retry_after: None, body: None };
    scene.platform.fault(Fault::on("updateConnectorLogs", too_large).about("id-a"));
    scene.platform.fault(Fault::on("updateConnectorHealth", graphql("FUNCTIONAL_ERROR", "Cant find it")).about("id-b"));
    let program = scene.program().var("MANAGER__CONCURRENCY", "1").args(["run", "--output", "json"]);
    let report = program.run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    assert_eq!(report["platform"]["sent"], json!({"status": 5, "health": 4, "logs": 4}), "{report:#}");
    expect_all(&faults(&report), &["HTTP 413", "MANAGER__LOGS_TAIL", "Cant find it"], "refusals");
}

#[test]
fn requests_are_single_named_and_without_cookies() {
    let scene = Scene::new("manners");
    scene.connector("a");
    scene.connector("b");
    for command in ["run", "plan", "check"] {
        scene.program().arg(command).run().expect_code(exit::OK.into());
    }
    let journal = scene.platform.journal();
    assert!(journal.len() > 12, "{}", journal.len());
    for call in journal.iter().filter(|call| call.kind != Kind::Event) {
        assert!(!call.operation.contains(','), "one field per document: {call:?}");
        assert_eq!(call.user_agent, concat!("xtm-reconcile/", env!("CARGO_PKG_VERSION")), "{call:?}");
        assert!(!call.cookies, "{call:?}");
        assert!(call.authorization.starts_with("Bearer "), "{call:?}");
    }
}

/// Sends a signal once `reached` holds, and expects a clean end.
#[track_caller]
fn interrupted(scene: &Scene, signal: Signal, code: u8, reached: impl Fn(&Running)) -> Outcome {
    let running = scene.program().args(["run", "--output", "json"]).spawn();
    reached(&running);
    running.signal(signal);
    let outcome = running.wait().expect_code(code.into());
    expect_unlocked(scene, "after a signal");
    expect_all(&faults(&outcome.lane()), &["ended early", "the next pass goes on"], "after a signal");
    outcome
}

// Shows what README says under "What a pass does": "or on SIGTERM or SIGINT, nothing new starts".
#[test]
fn a_signal_while_the_list_is_held_ends_the_pass_at_once_and_cleanly() {
    let scene = with_work_waiting("signal-list");
    for (signal, code) in [(Signal::TERM, exit::TERMINATED), (Signal::INT, exit::INTERRUPTED)] {
        scene.platform.fault(Fault::on(LIST, FaultKind::Delay { ms: 60_000 }));
        scene.platform.clear_journal();
        let watch = Watch::new(&scene);
        // The heartbeat is answered and there is one request more: the list. It is in the journal only once answered.
        let outcome = interrupted(&scene, signal, code, |_| {
            let beaten = |calls: &[Call]| calls.iter().any(|call| call.is("updateConnectorManagerStatus"));
            assert!(scene.platform.wait_for(SOON, |_, calls| beaten(calls)));
        });
        watch.expect_untouched("a signal while the list is held");
        assert!(outcome.took < Duration::from_secs(20), "{:?}", outcome.took);
        scene.platform.clear_faults();
    }
    expect_work_done(&scene, scene.pass());
}

// Shows what README says under "Exit codes": "running steps finished or were rolled back, the record was written"; and
// under "What a pass does": "an engine or a platform that does not answer is given up then".
#[test]
fn a_signal_while_publishing_ends_the_pass_soon_with_its_steps_and_record_done() {
    let scene = Scene::new("signal-publish");
    scene.connector("a");
    scene.connector("b");
    scene.platform.fault(Fault::on("updateConnectorLogs", FaultKind::Delay { ms: 60_000 }));
    let outcome = interrupted(&scene, Signal::TERM, exit::TERMINATED, |_| {
        // Logs go out when health was taken.
        let taken = |calls: &[Call]| calls.iter().filter(|call| call.is("updateConnectorHealth")).count() == 2;
        assert!(scene.platform.wait_for(SOON, |_, calls| taken(calls)));
    });
    assert!(outcome.took < Duration::from_secs(15), "a hanging platform does not hold up the end: {:?}", outcome.took);
    let report = outcome.lane();
    assert_eq!(report["counts"]["steps"]["deploy"], 2, "{report:#}");
    scene.platform.clear_faults();
    let report = scene.pass().expect_code(exit::OK.into()).lane();
    assert_eq!(report["platform"]["registration"], "known", "the record was written: {report:#}");
    assert_eq!(report["counts"]["unchanged"], 2);
    assert_eq!(scene.platform.read(|state| state.connectors[0].current_status.clone()).as_deref(), Some("started"));
}

#[test]
fn the_deadline_ends_a_pass_that_waits_for_the_platform_and_the_next_one_goes_on() {
    let scene = with_work_waiting("deadline");
    scene.platform.fault(Fault::on(LIST, FaultKind::Delay { ms: 60_000 }));
    let watch = Watch::new(&scene);
    let program = scene.program().var("MANAGER__PASS_DEADLINE", "2").args(["run", "--output", "json"]);
    let outcome = program.run().expect_code(exit::CONNECTOR_FAILED.into());
    watch.expect_untouched("the deadline");
    assert!(outcome.took < Duration::from_secs(15), "{:?}", outcome.took);
    expect_all(&faults(&outcome.lane()), &["MANAGER__PASS_DEADLINE", "the next pass goes on"], "deadline");
    scene.platform.clear_faults();
    expect_work_done(&scene, scene.pass());
}
