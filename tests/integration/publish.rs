//! What the platform is told of connectors, and what it is spared.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use stand_in_platform::{Call, Connector, Fault, FaultKind};
use xtm_reconcile::exit;

use crate::scene::Scene;
use crate::support::{ApiTap, Container, Fault as ApiFault};
use crate::watch::expect_all;

const SOON: Duration = Duration::from_secs(30);
/// Another version of the image.
const IMAGE_2: &str = "xtm-fixture/connector:2";
const STATUS: &str = "updateConnectorCurrentStatus";
const HEALTH: &str = "updateConnectorHealth";
const LOGS: &str = "updateConnectorLogs";

/// How often each report was sent since the journal was cleared, and clears it.
fn sent(scene: &Scene) -> [usize; 3] {
    let counts = [STATUS, HEALTH, LOGS].map(|operation| scene.platform.calls(operation).len());
    scene.platform.clear_journal();
    counts
}

fn of(scene: &Scene, id: &str) -> Connector {
    scene.platform.read(|state| state.connector(id).unwrap().clone())
}

fn container(scene: &Scene, name: &str) -> Container {
    scene.engine.container(name).unwrap()
}

/// Waits until a container's log contains `needle`.
#[track_caller]
fn printed(scene: &Scene, name: &str, needle: &str) {
    scene.engine.wait_for(needle, SOON, |engine| engine.logs(name).contains(needle).then_some(()));
}

#[test]
fn status_goes_out_on_change_alone_and_health_and_logs_of_what_runs_with_every_pass() {
    let scene = Scene::new("reports");
    let (up, down) = (scene.connector("up"), scene.connector("down"));
    scene.connector_with("never", |connector| connector.requested("stopped"));
    let pass = || scene.pass().expect_code(exit::OK.into()).lane()["platform"]["sent"].clone();

    // The one that was never started has no status on the platform yet.
    assert_eq!(pass(), json!({"status": 3, "health": 2, "logs": 2}));
    assert_eq!(sent(&scene), [3, 2, 2]);
    assert_eq!(of(&scene, "id-never").current_status.as_deref(), Some("stopped"));
    let health = of(&scene, "id-up").health.unwrap();
    let started = container(&scene, &up).json["State"]["StartedAt"].as_str().unwrap().to_owned();
    assert_eq!(health.restart_count, 0);
    assert_eq!(health.started_at.as_millisecond(), started.parse::<jiff::Timestamp>().unwrap().as_millisecond());
    assert!(!health.is_in_reboot_loop);

    printed(&scene, &down, "writes to stderr");
    for _ in 0..2 {
        assert_eq!(pass(), json!({"status": 0, "health": 2, "logs": 2}));
        assert_eq!(sent(&scene), [0, 2, 2], "a quiet pass repeats no status");
    }

    // Stopped: told once, with the last of its log; then nothing more is said of it.
    scene.platform.edit(|state| {
        let down = state.connector_mut("id-down").unwrap();
        down.requested_status = "stopping".to_owned();
        down.logs.clear();
    });
    assert_eq!(pass(), json!({"status": 1, "health": 1, "logs": 2}));
    assert_eq!(sent(&scene), [1, 1, 2]);
    let stopped = of(&scene, "id-down");
    assert_eq!(stopped.current_status.as_deref(), Some("stopped"));
    expect_all(&stopped.logs.join("\n"), &[&format!("connector {down} version 1 started")], "its last log");
    assert_eq!(pass(), json!({"status": 0, "health": 1, "logs": 1}));
    assert_eq!(sent(&scene), [0, 1, 1]);

    // Somebody stopped one by hand: it is started again and the platform need not hear of it.
    scene.engine.stop(&up);
    assert_eq!(pass(), json!({"status": 0, "health": 1, "logs": 1}));
    assert!(container(&scene, &up).running());
    // The platform lost what it knew.
    scene.platform.edit(|state| state.connectors.iter_mut().for_each(|connector| connector.current_status = None));
    assert_eq!(pass(), json!({"status": 3, "health": 1, "logs": 2}));
}

#[test]
fn what_runs_as_it_should_is_published_while_others_are_still_looked_at() {
    let scene = Scene::new("early");
    let names = ["a", "b", "c"].map(|name| scene.connector(name));
    scene.pass().expect_code(exit::OK.into());
    for name in &names {
        printed(&scene, name, "started");
    }
    scene.pass().expect_code(exit::OK.into());
    sent(&scene);

    // Of one container the engine gives nothing yet; that one is to be replaced, which waits for the plan.
    scene.edit("id-a", |connector| IMAGE_2.clone_into(&mut connector.image));
    let slow = container(&scene, &names[0]).id;
    let tap = ApiTap::new(scene.engine);
    let gate = tap.hold(&format!("GET /containers/{slow}/json"), 1);
    let pass = scene.tapped(&tap).spawn();
    gate.wait(SOON);
    let told = |journal: &[Call], operation: &str, id: &str| {
        journal.iter().any(|call| call.is(operation) && call.variables["input"]["id"] == id)
    };
    let both = scene.platform.wait_for(SOON, |_, journal| {
        ["id-b", "id-c"].iter().all(|id| told(journal, HEALTH, id) && told(journal, LOGS, id))
    });
    assert!(both, "{:?}", scene.platform.calls(HEALTH));
    assert!(!told(&scene.platform.calls(HEALTH), HEALTH, "id-a"));
    assert_eq!(tap.writes().len(), 1, "the lock is all that was written: {:?}", tap.writes());
    drop(gate);
    let report = pass.wait().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"], json!({"refresh": 1}), "{report:#}");
    assert_eq!(report["platform"]["sent"], json!({"status": 0, "health": 3, "logs": 3}), "each of them once");
    assert_eq!(sent(&scene), [0, 3, 3]);
}

#[test]
fn an_engine_that_goes_away_while_it_is_looked_at_changes_nothing_of_what_was_published() {
    let scene = Scene::new("early-lost");
    let names = ["a", "b", "c"].map(|name| scene.connector(name));
    scene.pass().expect_code(exit::OK.into());
    let slow = container(&scene, &names[0]).id;
    sent(&scene);
    let tap = ApiTap::new(scene.engine);
    let pattern = format!("GET /containers/{slow}/json");
    tap.inject(&pattern, 1, ApiFault::DropWithRepeat);
    let ended = scene.tapped(&tap).run();
    let report = ended.expect_code(exit::ORCHESTRATOR.into()).lane();
    assert_eq!(report["counts"]["steps"], json!({}), "nothing was planned: {report:#}");
    let [status, health, logs] = sent(&scene);
    assert_eq!(report["platform"]["sent"], json!({"status": status, "health": health, "logs": logs}));
    assert!(
        health <= 2 && scene.containers().len() == 3,
        "nothing is said of what was not seen, and nothing is touched"
    );
}

// Shows what README says under "What a pass does": "OpenCTI gets the last `MANAGER__LOGS_TAIL` lines of each connector
// in place of those it has."; and under "Configuration": "0 to 10000; 0 pushes none".
#[test]
fn logs_are_the_last_lines_replace_what_was_there_and_are_as_many_as_told() {
    let scene = Scene::new("tail");
    let name = scene.connector_with("a", |connector| connector.setting("STANDIN_LINES", "250"));
    let pass = |tail: &str| {
        scene.program().var("MANAGER__LOGS_TAIL", tail).run().expect_code(exit::OK.into());
        of(&scene, "id-a").logs
    };
    // Where the one line on stderr comes to stand among the others is the engine's affair.
    let numbers = |logs: &[String]| -> Vec<u32> {
        logs.iter().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect()
    };
    pass("100");
    printed(&scene, &name, "line 250");
    let hundred = pass("100");
    assert_eq!(hundred.len(), 100);
    assert_eq!(numbers(&hundred).last(), Some(&250));
    let seven = pass("7");
    assert_eq!(seven.len(), 7, "replaced, not appended");
    assert!(numbers(&seven).ends_with(&[245, 246, 247, 248, 249, 250]), "{seven:?}");
    scene.platform.clear_journal();
    assert_eq!(pass("0"), seven, "0 sends none");
    assert_eq!(scene.platform.calls(LOGS), []);
    assert_eq!(pass("10000").len(), 252);
}

// Shows what README says under "What a pass does": "in the connector logs that are pushed the values of the workload's
// sensitive variables are masked".
#[test]
fn logs_are_made_fit_to_be_shown_and_hold_no_secret() {
    let scene = Scene::new("masked");
    let secrets = [
        ("sealed", "PLAIN_NAME", "sealed-hunter2", true),
        ("token", "MY_TOKEN", "clear-hunter2", false),
        ("password", "db_password", "p=ss word \"hunter2\"", false),
        ("lines", "SIGNING_SECRET", "first-hunter2\nsecond-hunter2", true),
        ("proxy", "HTTPS_PROXY", "http://user:hunter2@proxy:3128", false),
    ];
    for (name, variable, value, sealed) in secrets {
        scene.connector_with(name, |connector| {
            let connector = connector.setting("STANDIN_PRINT", variable);
            if sealed { connector.secret(variable, value) } else { connector.setting(variable, value) }
        });
    }
    let shown =
        scene.connector_with("shown", |c| c.setting("STANDIN_PRINT", "INTERVAL").setting("INTERVAL", "sevenish"));
    let binary = scene.connector_with("binary", |connector| connector.setting("STANDIN_BINARY", "1"));
    scene.pass().expect_code(exit::OK.into());
    for (name, variable, ..) in secrets {
        printed(&scene, &scene.manager.connector_name(name), &format!("{variable}="));
    }
    printed(&scene, &shown, "sevenish");
    printed(&scene, &binary, "progress 100%");
    scene.engine.wait_for("the long line", SOON, |engine| (engine.logs(&binary).len() > 200_000).then_some(()));
    scene.pass().expect_code(exit::OK.into());
    // Once more as a rejected one, of which nothing can be decrypted.
    for (name, variable, ..) in secrets {
        let logs = of(&scene, &format!("id-{name}")).logs.join("\n");
        expect_all(&logs, &[variable, "[masked]"], name);
        assert!(!logs.contains("hunter2"), "{name}: {logs}");
    }
    expect_all(&of(&scene, "id-shown").logs.join("\n"), &["INTERVAL=sevenish"], "no secret");
    let logs = of(&scene, "id-binary").logs;
    for line in &logs {
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        assert!(line.chars().count() <= 4200, "{}", line.len());
    }
    expect_all(&logs.join("\n"), &["invalid utf-8 <\u{fffd}", "ansi <red> <> end", "… [cut]"], "binary");

    scene.platform.edit(|state| {
        for connector in &mut state.connectors {
            connector.logs.clear();
            connector.raw_override = Some(json!({"manager_requested_status": "dancing"}));
        }
    });
    scene.pass().expect_code(exit::CONNECTOR_FAILED.into());
    for (name, _, _, sealed) in secrets {
        let logs = of(&scene, &format!("id-{name}")).logs.join("\n");
        let told_by_name = name != "sealed" || !sealed;
        assert!(!logs.is_empty() && (!told_by_name || !logs.contains("hunter2")), "{name}, rejected: {logs}");
    }
}

// Shows what README says under "What a pass does": "in the connector logs that are pushed the values of the workload's
// sensitive variables are masked".
#[test]
fn the_log_of_a_container_that_ended_meanwhile_is_masked_as_well() {
    let scene = Scene::new("ended");
    let change =
        |connector: Connector| connector.secret("ODD_NAME", "hunter2-hunter2").setting("STANDIN_PRINT", "ODD_NAME");
    let name = scene.connector_with("a", change);
    scene.pass().expect_code(exit::OK.into());
    printed(&scene, &name, "hunter2-hunter2");
    // Stopped by hand and not wanted any more: no step is left, but the platform does not know yet.
    scene.engine.stop(&name);
    scene.platform.edit(|state| {
        let connector = state.connector_mut("id-a").unwrap();
        connector.requested_status = "stopping".to_owned();
        connector.logs.clear();
    });
    let report = scene.pass().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"], json!({}), "{report:#}");
    let logs = of(&scene, "id-a").logs.join("\n");
    assert!(logs.contains("[masked]") && !logs.contains("hunter2"), "{logs}");
}

// Shows what README says under "What a pass does": "**What is masked** is a value as it is, escaped in JSON,
// percent-encoded, and in Base64", "of a value with several lines also each line".
#[test]
fn a_secret_reaches_the_platform_in_none_of_the_forms_that_programs_write_it_in() {
    let scene = Scene::new("forms");
    let (password, login) = ("pä\"ss/w\\ö rd+2026", "s3cret-of-somebody");
    let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIGtleWtleWtl\neWtleWtleWtleWtleWtleWtleWs=\n-----END PRIVATE KEY-----\n";
    let [json, json_key] = [password, key].map(|text| serde_json::to_string(text).unwrap());
    let ascii = r#"p\u00e4\"ss\/w\\\u00f6 rd+2026"#;
    let url = "p%C3%A4%22ss%2Fw%5C%C3%B6%20rd%2B2026";
    let form = "p%c3%a4%22ss%2fw%5c%c3%b6+rd%2b2026";
    let [basic, bare, encoded_key] = ["user:s3cret-of-somebody", login, key].map(|text| STANDARD.encode(text));
    let says = [
        format!("json {{\"password\": {json}}}"),
        format!("json {{\"key\": {json_key}}}"),
        format!("ascii \"{ascii}\""),
        format!("url https://host/?password={url}&more"),
        format!("form {form}"),
        format!("Authorization: Basic {basic}."),
        format!("bare {bare}"),
        format!("key {encoded_key}"),
        "coloured s3cret\x1b[1m-of-\x1b[0msomebody".to_owned(),
        "\x1b]0;a title\x1b\\after the title".to_owned(),
        format!("raw {key}the end"),
    ];
    let name = scene.connector_with("a", |connector| {
        let connector = connector.secret("ODD_NAME", password).secret("OTHER_NAME", login).secret("SIGNING", key);
        connector.setting("STANDIN_PRINT", "NOTE").setting("NOTE", says.join("\n"))
    });
    scene.pass().expect_code(exit::OK.into());
    printed(&scene, &name, "the end");
    let written = scene.engine.logs(&name);
    for form in [
        &json,
        &json_key,
        ascii,
        url,
        form,
        &basic,
        &bare,
        &encoded_key,
        "MC4CAQAwBQYDK2VwBCIEIGtleWtleWtl",
        "\x1b]0;a title\x1b\\",
    ] {
        assert!(written.contains(form), "the test itself: {form} is not in {written}");
    }
    scene.pass().expect_code(exit::OK.into());
    let logs = of(&scene, "id-a").logs;
    let wanted = [
        r#"json {"password": "[masked]"}"#,
        r#"json {"key": "[masked]"}"#,
        r#"ascii "[masked]""#,
        "url https://host/?password=[masked]&more",
        "form [masked]",
        "Authorization: Basic dXNlcj[masked]=.",
        "bare [masked]",
        "key [masked]=",
        "coloured [masked]",
        "after the title",
        "raw [masked]",
        "[masked]",
        "[masked]",
        "[masked]",
        "the end",
    ];
    // The one line on stderr may stand anywhere.
    let shown = logs.iter().filter(|line| !line.ends_with("writes to stderr"));
    let shown: Vec<&str> = shown.map(|line| line.trim_start_matches("NOTE=")).collect();
    let begin = shown.iter().position(|line| line.starts_with("json ")).unwrap();
    assert_eq!(shown[begin..], wanted);
}

#[test]
fn a_slow_pull_of_one_connector_does_not_keep_health_and_logs_of_the_others_back() {
    let scene = Scene::new("slow");
    scene.connector("a");
    scene.pass().expect_code(exit::OK.into());
    let registry = crate::support::Registry::open();
    let image =
        registry.push(scene.engine, "xtm-fixture/connector:1", &format!("{}:1", crate::support::unique("slow")));
    scene.connector_with("b", |mut connector| {
        connector.image = image;
        connector
    });
    scene.platform.clear_journal();
    let tap = crate::support::ApiTap::new(scene.engine);
    let gate = tap.hold("POST /images/create", 1);
    let running = scene.program_on(&tap.docker_host()).spawn();
    let told = scene.platform.wait_for(Duration::from_secs(30), |_, journal| {
        let about_a =
            |field: &str| journal.iter().any(|call| call.is(field) && call.variables.to_string().contains("id-a"));
        about_a("updateConnectorHealth") && about_a("updateConnectorLogs")
    });
    assert!(told && running.is_running(), "while the image is still being pulled");
    gate.release();
    running.wait().expect_code(exit::OK.into());
    assert_eq!(scene.containers().len(), 2);
}

const VERSION: &str = "about";

// Shows what README says under "What a pass does": "**A log that does not get through**".
#[test]
fn a_log_that_does_not_get_through_is_its_connectors_fault_alone() {
    let scene = Scene::new("log-fault");
    for name in ["a", "b", "c", "d", "e", "f"] {
        scene.connector(name);
    }
    scene.pass().expect_code(exit::OK.into());
    let faults = [
        ("id-a", FaultKind::Drop, ["cannot be reached", "the platform answers other requests"]),
        ("id-b", FaultKind::Truncate, ["was cut off", "the platform answers other requests"]),
        ("id-c", FaultKind::status(413), ["HTTP 413", "lower MANAGER__LOGS_TAIL"]),
        ("id-d", FaultKind::status(400), ["HTTP 400", "look into the log of the platform"]),
        ("id-e", FaultKind::status(422), ["HTTP 422", "look into the log of the platform"]),
    ];
    for (id, kind, _) in &faults {
        scene.platform.fault(Fault::on(LOGS, kind.clone()).about(*id));
    }
    for concurrency in ["1", "8"] {
        scene.platform.edit(|state| state.connectors.iter_mut().for_each(|connector| connector.current_status = None));
        scene.platform.clear_journal();
        let program = scene.program().var("MANAGER__CONCURRENCY", concurrency).args(["run", "--output", "json"]);
        let report = program.run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
        assert_eq!(report["platform"]["sent"], json!({"status": 6, "health": 6, "logs": 1}), "{report:#}");
        let errors = report["errors"].as_array().unwrap();
        assert_eq!(errors.len(), faults.len(), "{report:#}");
        for (id, _, told) in &faults {
            let error = errors.iter().find(|error| error["connector"] == *id).unwrap();
            expect_all(&error.to_string(), told, id);
        }
        let asked = scene.platform.calls(VERSION).len();
        assert!((2..=3).contains(&asked), "once at the start, and once for each broken connection at most: {asked}");
    }
}

// Shows what README says under "What a pass does": "After a broken connection the platform is asked for its version".
#[test]
fn logs_that_fail_while_the_platform_is_asked_whether_it_answers_share_its_answer() {
    let scene = Scene::new("shared-check");
    for name in ["a", "b", "c", "d", "e"] {
        scene.connector(name);
    }
    scene.pass().expect_code(exit::OK.into());
    scene.platform.clear_journal();
    scene.platform.fault(Fault::on(LOGS, FaultKind::Drop));
    // Longer than the attempts of the slowest log can last beyond those of the fastest.
    scene.platform.fault(Fault::on(VERSION, FaultKind::Delay { ms: 3000 }).skip(1));
    let report = scene.pass().expect_code(exit::CONNECTOR_FAILED.into()).lane();
    assert_eq!(report["platform"]["sent"], json!({"status": 0, "health": 5, "logs": 0}), "{report:#}");
    assert_eq!(scene.platform.calls(VERSION).len(), 2, "at the start, and for all logs");
}

// Shows what README says under "What a pass does": "only when it does not answer that either does it count as gone".
#[test]
fn a_platform_that_hangs_is_found_out_with_one_log_and_one_small_request() {
    let scene = Scene::new("hangs");
    for name in ["a", "b", "c", "d", "e"] {
        scene.connector(name);
    }
    scene.pass().expect_code(exit::OK.into());
    scene.platform.fault(Fault::on(LOGS, FaultKind::Delay { ms: 60_000 }));
    scene.platform.fault(Fault::on(VERSION, FaultKind::Delay { ms: 60_000 }).skip(1));
    let timeout = Duration::from_secs(3);
    let program = scene.program().var("MANAGER__CONCURRENCY", "1").var("OPENCTI__REQUEST_TIMEOUT", "3");
    let outcome = program.args(["run", "--output", "json"]).run().expect_code(exit::PLATFORM.into());
    let report = outcome.lane();
    assert_eq!(report["platform"]["sent"], json!({"status": 0, "health": 1, "logs": 0}), "{report:#}");
    assert!(outcome.took < 4 * timeout, "two timeouts and not one for each connector: {:?}", outcome.took);
    let told = report["errors"].to_string();
    assert_eq!(told.matches("not sent: the platform went away").count(), 8, "health and logs of the others: {told}");
}
