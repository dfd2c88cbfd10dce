//! The support itself does what the tests rely on.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{
    ApiTap, Binary, Container, Engine, EventLog, Fault, KeyForm, Manager, NewContainer, Outcome, Registry, Running,
    Signal, TestKey,
};

const SOON: Duration = Duration::from_secs(30);

fn connector(manager: &Manager, name: &str) -> NewContainer {
    NewContainer::of_daemon(&manager.connector_name(name), manager, "connector-1", "hash-1")
}

/// The docker client as the process that a tap watches.
fn docker(tap: &ApiTap, arguments: &[&str]) -> Outcome {
    docker_started(tap, arguments).wait()
}

fn docker_started(tap: &ApiTap, arguments: &[&str]) -> Running {
    let mut client = Command::new("docker");
    client.env("DOCKER_HOST", tap.docker_host()).env_remove("DOCKER_CONTEXT").args(arguments);
    Running::start(&mut client, Duration::from_mins(1))
}

fn create_arguments<'a>(name: &'a str, label: &'a str) -> Vec<&'a str> {
    vec!["create", "--name", name, "--label", label, "xtm-fixture/connector:1"]
}

#[test]
fn containers_are_listed_inspected_and_removed_with_their_manager() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "containers");
    let (running, created) = (manager.connector_name("running"), manager.connector_name("created"));
    engine.run(&connector(&manager, "running").env("A", "b=c"));
    engine.create(&NewContainer::foreign(&created).label("xtm-reconcile.manager", &manager));

    let found = engine.containers_of(&manager);
    assert_eq!(found.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), [&created, &running]);
    assert_eq!(found[0].state, "created");
    assert!(found[1].running());
    assert_eq!(found[1].label("opencti-connector-id"), "connector-1");
    assert_eq!(found[1].env["OPENCTI_CONFIG_HASH"], "hash-1");
    assert_eq!(found[1].env["A"], "b=c");
    assert_eq!(found[1].image, "xtm-fixture/connector:1");
    assert_eq!(found[1].json["HostConfig"]["RestartPolicy"]["Name"], "", "as the daemon leaves it");

    let foreign = manager.connector_name("foreign");
    engine.create(&NewContainer::foreign(&foreign));
    let id = manager.to_string();
    drop(manager);
    assert!(engine.containers_of(&id).is_empty());
    assert!(engine.container(&foreign).is_some(), "only the manager's own go");
    engine.remove(&foreign);
}

#[test]
fn the_fixture_connector_ends_at_once_when_told_and_crashes_when_told() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "fixture");
    let name = manager.connector_name("stops");
    engine.run(&connector(&manager, "stops").env("STANDIN_LINES", "3").env("STANDIN_BINARY", "1"));
    engine.wait_for("the last line", SOON, |engine| engine.logs(&name).contains("\nabcdef").then_some(()));
    let logs = engine.logs(&name);
    assert!(logs.contains("line 3\n") && logs.contains("writes to stderr") && logs.contains("\u{1b}[31mred"), "{logs}");
    engine.stop(&name);
    assert_eq!(engine.container(&name).map(|c| c.exit_code), Some(0), "not killed");

    let name = manager.connector_name("crashes");
    engine.run(&connector(&manager, "crashes").env("STANDIN_CRASH_AFTER_MS", "20").restart("always"));
    engine.wait_for("two restarts", SOON, |engine| engine.container(&name).filter(|c| c.restarts >= 2));

    let name = manager.connector_name("noentry");
    engine.create(&connector(&manager, "noentry").image("xtm-fixture/noentry:1"));
    assert_eq!(engine.call("POST", &format!("/containers/{name}/start")).status, 400);
}

#[test]
fn an_event_log_is_complete_and_keeps_to_its_manager() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "events");
    let other = Manager::new(engine, "events-other");
    let (old, new) = (manager.connector_name("old"), manager.connector_name("new"));

    let log = EventLog::start(engine);
    engine.run(&connector(&manager, "old"));
    engine.create(&connector(&other, "other"));
    engine.rename(&old, &new);
    engine.stop(&new);
    engine.remove(&new);
    let events = log.finish_for(&manager);

    let happened: Vec<&str> = events.iter().map(|event| event.rsplit_once(' ').expect("a name").0).collect();
    let wanted =
        ["create", "start", "rename", "kill", "die", "stop", "destroy"].map(|action| format!("container {action}"));
    assert_eq!(happened, wanted, "{events:?}");
    assert_eq!(events[0], format!("container create {old}"));
    assert_eq!(events[6], format!("container destroy {new}"));
    assert!(EventLog::start(engine).finish_for(&manager).is_empty());
}

#[test]
fn a_tap_counts_requests_and_tells_which_of_them_write() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "counts");
    let (tap, name) = (ApiTap::new(engine), manager.connector_name("a"));
    docker(&tap, &create_arguments(&name, &format!("opencti-manager={manager}"))).expect_code(0);
    docker(&tap, &["start", &name]).expect_code(0);
    docker(&tap, &["ps", "--all", "--quiet"]).expect_code(0);

    let writes: Vec<String> = tap.writes().iter().map(ToString::to_string).collect();
    assert_eq!(writes, ["POST /containers/create".to_owned(), format!("POST /containers/{name}/start")]);
    assert_eq!(tap.writes()[0].query, format!("name={name}"));
    assert_eq!(tap.count("GET /containers/json"), 1);
    assert_eq!(tap.count("* /_ping"), 3);
    assert_eq!(tap.count("WRITE *"), 2);
    let clients: BTreeSet<i32> = tap.requests().iter().map(|request| request.pid).collect();
    assert_eq!(clients.len(), 3, "each request is known by its process");
    tap.clear();
    assert!(tap.requests().is_empty());
}

#[test]
fn a_tap_tells_requests_on_one_connection_apart_whatever_their_bodies() {
    let engine = Engine::shared();
    let tap = ApiTap::new(engine);
    let mut connection = UnixStream::connect(tap.socket()).expect("the tap listens");
    let volume = super::unique("tap-volume");
    // Bodies of both framings, each of which looks like a request itself.
    let body = format!("{{\"Name\":\"{volume}\",\"Labels\":{{\"x\":\"GET /trap HTTP/1.1\"}}}}");
    let chunks: String = body.as_bytes().chunks(7).fold(String::new(), |text, chunk| {
        format!("{text}{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk))
    });
    let head = "POST /v1.41/volumes/create HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n";
    let requests = [
        "GET /v1.41/containers/json?all=1 HTTP/1.1\r\nHost: docker\r\n\r\n".to_owned(),
        format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"),
        format!("DELETE /v1.41/volumes/{volume} HTTP/1.1\r\nHost: docker\r\n\r\n"),
    ];
    let mut reader = std::io::BufReader::new(connection.try_clone().expect("a second handle"));
    let mut statuses = Vec::new();
    for request in requests {
        connection.write_all(request.as_bytes()).expect("the tap reads");
        let answer = super::http::read_response(&mut reader, "POST").expect("the tap answers");
        super::http::copy_body(&mut reader, answer.framing, super::http::Copy::Content, &mut |_| Ok(()))
            .expect("a body");
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [200, 201, 201, 204]);
    let seen: Vec<String> = tap.requests().iter().map(|request| request.path.clone()).collect();
    assert_eq!(
        seen,
        [
            "/containers/json".to_owned(),
            "/volumes/create".into(),
            "/volumes/create".into(),
            format!("/volumes/{volume}")
        ]
    );
}

#[test]
fn a_tap_passes_uploads_and_raw_streams_through() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "streams");
    let tap = ApiTap::new(engine);
    docker(&tap, &["load", "--quiet", "--input", &super::variable("XTM_TEST_IMAGES")]).expect_code(0);
    // `docker run` attaches by a protocol upgrade, and waits on another connection.
    let label = format!("opencti-manager={manager}");
    let ends = ["--env", "STANDIN_CRASH_AFTER_MS=50", "--env", "STANDIN_EXIT_CODE=7", "--env", "STANDIN_BINARY=1"];
    let run = [&["run", "--label", &label][..], &ends, &["xtm-fixture/connector:1"]].concat();
    let outcome = docker(&tap, &run).expect_code(7);
    assert!(outcome.stdout.len() > 200_000, "all of {} bytes", outcome.stdout.len());
    assert!(outcome.stderr.contains("crashes as told"), "{}", outcome.stderr);
    assert_eq!(tap.count("POST /containers/*/attach"), 1);
}

#[test]
fn a_client_killed_before_a_request_leaves_the_engine_unchanged() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "kill-before");
    let (tap, name) = (ApiTap::new(engine), manager.connector_name("a"));
    tap.inject("POST /containers/create", 1, Fault::KillBefore);
    let outcome = docker(&tap, &create_arguments(&name, &format!("opencti-manager={manager}")));
    assert_eq!(outcome.signal, Some(9), "{outcome:?}");
    assert_eq!(tap.faults(), 1);
    assert!(engine.container(&name).is_none());
}

#[test]
fn a_client_killed_after_a_request_leaves_the_engine_changed() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "kill-after");
    let (tap, name) = (ApiTap::new(engine), manager.connector_name("a"));
    tap.inject("WRITE *", 1, Fault::KillAfter);
    let outcome = docker(&tap, &create_arguments(&name, &format!("opencti-manager={manager}")));
    assert_eq!(outcome.signal, Some(9), "{outcome:?}");
    assert_eq!(outcome.stdout, "", "it never learned the id");
    assert!(engine.container(&name).is_some());
}

#[test]
fn a_fault_hits_the_nth_matching_request_once() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "nth");
    let tap = ApiTap::new(engine);
    tap.inject("POST /containers/*/start", 2, Fault::Status(500));
    let names = ["a", "b", "c"].map(|name| {
        engine.create(&connector(&manager, name));
        manager.connector_name(name)
    });
    let codes = names.each_ref().map(|name| docker(&tap, &["start", name]).code);
    assert_eq!(codes, [Some(0), Some(1), Some(0)]);
    let running = names.map(|name| engine.container(&name).is_some_and(|c| c.running()));
    assert_eq!(running, [true, false, true]);
}

#[test]
fn an_answer_can_be_lost_or_replaced_after_the_engine_did_its_work() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "lost");
    let (tap, label) = (ApiTap::new(engine), format!("opencti-manager={manager}"));
    for (name, fault, done) in [
        ("drop", Fault::Drop, false),
        ("drop-after", Fault::DropAfter, true),
        ("status", Fault::Status(500), false),
        ("status-after", Fault::StatusAfter(500), true),
    ] {
        let name = manager.connector_name(name);
        tap.inject("POST /containers/create", 1, fault);
        let outcome = docker(&tap, &create_arguments(&name, &label)).expect_code(1);
        assert_ne!(outcome.stderr, "");
        assert_eq!(engine.container(&name).is_some(), done, "{fault:?}");
    }
}

#[test]
fn a_request_can_be_held_and_let_go() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "hold");
    let (tap, name) = (ApiTap::new(engine), manager.connector_name("a"));
    let gate = tap.hold("POST /containers/create", 1);
    let client = docker_started(&tap, &create_arguments(&name, &format!("opencti-manager={manager}")));
    gate.wait(SOON);
    assert!(client.is_running());
    assert!(engine.container(&name).is_none(), "the engine has not heard of it");
    gate.release();
    client.wait().expect_code(0);
    assert!(engine.container(&name).is_some());
}

#[test]
fn a_client_can_be_told_to_stop_at_a_chosen_request() {
    let engine = Engine::shared();
    let manager = Manager::new(engine, "signal");
    let tap = ApiTap::new(engine);
    engine.run(&connector(&manager, "a"));
    // A client that would wait for ever, were it not for the signal: that it ends is the proof. With which code is the client's
    // affair: 130, or 0 if it sees its stream end first.
    tap.inject("GET /events", 1, Fault::SignalBefore(Signal::INT));
    docker(&tap, &["events"]);
    // A client that could still say what it did.
    let name = manager.connector_name("b");
    tap.inject("POST /containers/create", 1, Fault::SignalAfter(Signal::TERM));
    docker(&tap, &create_arguments(&name, &format!("opencti-manager={manager}")));
    assert!(engine.container(&name).is_some());
    assert_eq!(tap.faults(), 2);
}

#[test]
fn a_private_engine_stops_dies_and_comes_back_with_its_containers() {
    let engine = Engine::private();
    engine.run(&NewContainer::foreign("kept").restart("always"));
    engine.stop_daemon();
    assert!(!engine.answers());
    engine.start_daemon();
    engine.wait_for("the container to run again", SOON, |engine| engine.container("kept").filter(Container::running));
    engine.kill_daemon();
    assert!(!engine.answers());
    engine.start_daemon();
    engine.wait_for("the container to run again", SOON, |engine| engine.container("kept").filter(Container::running));

    engine.stop("kept");
    engine.start("kept");
    let directory = engine.socket().parent().expect("a directory").to_owned();
    drop(engine);
    assert!(!directory.exists(), "nothing is left behind");
}

#[test]
fn a_registry_with_login_refuses_everybody_else() {
    let engine = Engine::shared();
    let (closed, open) = (Registry::with_login(), Registry::open());
    let name = format!("{}:1", super::unique("team/connector"));
    let (wants_login, for_all) =
        (closed.push(engine, "xtm-fixture/connector:1", &name), open.push(engine, "xtm-fixture/connector:2", &name));
    assert!(!engine.has_image(&wants_login) && !engine.has_image(&for_all), "the next use must pull");

    let refusal = engine.pull(&wants_login, None).expect_err("no login");
    assert!(refusal.contains("no basic auth credentials"), "{refusal}");
    let mut wrong = closed.login.clone().expect("a login");
    wrong.password.push('x');
    engine.pull(&wants_login, Some(&wrong)).expect_err("a wrong password");
    assert!(!engine.has_image(&wants_login));
    engine.pull(&wants_login, closed.login.as_ref()).expect("a login");
    engine.pull(&for_all, None).expect("open to all");
    assert!(engine.has_image(&wants_login) && engine.has_image(&for_all));
    engine.untag(&wants_login);
    engine.untag(&for_all);
    engine.pull(&open.reference("no/such:1"), None).expect_err("no such image");
}

#[test]
fn a_binary_runs_with_nothing_but_the_given_variables() {
    let shell = Binary::new("/bin/sh").arg("-c").var("ONLY", "this").var("AWAY", "1").without_var("AWAY");
    let outcome = shell.clone().arg("/usr/bin/env; echo oops >&2; exit 3").run().expect_code(3);
    let names: BTreeSet<&str> = outcome.stdout.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert_eq!(names, BTreeSet::from(["ONLY", "PWD"]), "PWD is the shell's own");
    assert_eq!(outcome.stderr, "oops\n");

    let waits = shell.arg("trap 'exit 143' TERM; echo ready; while :; do /bin/sleep 0.01; done");
    let running = waits.spawn();
    running.wait_for_stdout("ready", SOON);
    running.signal(Signal::TERM);
    let outcome = running.wait().expect_code(143);
    assert!(outcome.took < SOON);

    let running = waits.spawn();
    assert_ne!(running.pid(), std::process::id());
    running.signal(Signal::KILL);
    assert_eq!(running.wait().signal, Some(9));
}

#[test]
fn what_a_binary_prints_is_there_while_it_runs_and_as_json_after() {
    let document = r#"{"schema_version": 2, "command": "run", "exit_code": 78, "checks": []}"#;
    let print = "echo working >&2; /bin/sleep 0.05; echo \"$DOCUMENT\"";
    let running = Binary::new("/bin/sh").args(["-c", print]).var("DOCUMENT", document).spawn();
    running.wait_for_stderr("working", SOON);
    assert_eq!(running.wait().json()["exit_code"], 78);
}

#[test]
#[should_panic(expected = "Additional properties are not allowed ('surprise' was unexpected)")]
fn a_document_that_is_not_as_its_schema_says_fails_its_test() {
    let document = r#"{"schema_version": 2, "command": "run", "exit_code": 78, "checks": [], "surprise": 1}"#;
    Binary::new("/bin/sh").args(["-c", "echo \"$DOCUMENT\""]).var("DOCUMENT", document).run().json();
}

/// Panics unless every object that a schema describes is closed, with a word on each property whether it may be left out.
fn expect_closed(schema: &Value, at: &str) {
    if schema["type"] == "object" {
        assert_eq!(schema["additionalProperties"], false, "{at}");
        let required = schema["required"].as_array().map_or(0, Vec::len);
        // Only the steps that there were are counted, and a line has one of three.
        let optional = match at.rsplit('/').next() {
            Some("steps") => 10,
            Some("line") => 3,
            _ => 0,
        };
        assert_eq!(schema["properties"].as_object().map_or(0, serde_json::Map::len) - required, optional, "{at}");
    }
    for (name, inner) in schema.as_object().into_iter().flatten() {
        expect_closed(inner, &format!("{at}/{name}"));
    }
    for inner in schema.as_array().into_iter().flatten() {
        expect_closed(inner, at);
    }
}

#[test]
fn the_schemas_leave_nothing_open() {
    for (name, schema) in [("report", super::schema::REPORT), ("check", super::schema::CHECK)] {
        let schema: Value = serde_json::from_str(schema).expect("a schema is JSON");
        jsonschema::meta::validate(&schema).expect("a schema is a schema");
        expect_closed(&schema, name);
    }
}

#[test]
#[should_panic(expected = "did not end within")]
fn a_binary_that_never_ends_fails_its_test() {
    Binary::new("/bin/sleep").arg("1000").timeout(Duration::from_millis(50)).run();
}

#[test]
fn test_keys_are_there_in_both_forms_and_are_keys() {
    for bits in [2048, 3072, 4096] {
        for (form, label) in [(KeyForm::Pkcs8, "PRIVATE KEY"), (KeyForm::Pkcs1, "RSA PRIVATE KEY")] {
            let key = TestKey::rsa(bits, form);
            assert!(key.pem.starts_with(&format!("-----BEGIN {label}-----")), "{}", key.path.display());
        }
    }
}

#[test]
fn the_engine_answers_the_docker_client_too() {
    let status = Engine::shared().cli().args(["version"]).stdout(Stdio::null()).status().expect("docker runs");
    assert!(status.success());
}
