//! What a pass asks of the engine when nothing changed, what it remembers from one pass to the next, and reboot loops.

use serde_json::{Value, json};
use stand_in_platform::{Connector, Fault as PlatformFault, FaultKind};
use xtm_reconcile::exit;

use crate::moves::{SOON, crash, line, set};
use crate::scene::Scene;
use crate::support::{ApiTap, Container, Engine, Fault, NewContainer};

/// Restarts beyond this within the window are a loop; the window is long, so that a slow machine makes no difference.
const LOOP: [(&str, &str); 2] = [("MANAGER__REBOOT_LOOP__LIMIT", "2"), ("MANAGER__REBOOT_LOOP__WINDOW", "600")];
const LOOP_STOP: [(&str, &str); 3] = [LOOP[0], LOOP[1], ("MANAGER__REBOOT_LOOP__ACTION", "stop")];

#[track_caller]
fn pass(scene: &Scene, settings: &[(&str, &str)]) -> Value {
    let program = set(scene.program().args(["run", "--output", "json"]), settings);
    program.run().expect_code(exit::OK.into()).lane()
}

fn crashing(connector: Connector) -> Connector {
    connector.setting("STANDIN_CRASH_AFTER_MS", "1")
}

/// Waits until the engine has restarted the only container so often.
fn restarted(scene: &Scene, times: u64) -> Container {
    let id = scene.only().id;
    scene.engine.wait_for("restarts", SOON, |engine| engine.container(&id).filter(|c| c.restarts >= times))
}

fn health(scene: &Scene, id: &str) -> (bool, u64) {
    scene.platform.read(|state| {
        let health = state.connector(id).and_then(|connector| connector.health.clone()).expect("a health report");
        (health.is_in_reboot_loop, u64::try_from(health.restart_count).unwrap())
    })
}

// Shows what README says under "What a pass does": "On Docker the lock is a container that is never started.".
#[test]
fn a_quiet_pass_asks_the_engine_for_little_and_no_more_for_stopped_connectors() {
    let scene = Scene::new("calls");
    for name in ["a", "b"] {
        scene.connector(name);
    }
    let mut counts = Vec::new();
    for more in [1, 6] {
        // Stopped ones that exist.
        for number in 0..more {
            scene.connector(&format!("s{more}-{number}"));
        }
        scene.pass_ends(exit::OK);
        scene.platform.edit(|state| {
            for connector in state.connectors.iter_mut().filter(|connector| connector.id.starts_with("id-s")) {
                "stopping".clone_into(&mut connector.requested_status);
            }
        });
        scene.pass_ends(exit::OK);
        scene.pass_ends(exit::OK);

        let tap = ApiTap::new(scene.engine);
        scene.tapped(&tap).run().expect_code(exit::OK.into());
        let requests = tap.requests();
        let of_running: Vec<String> = ["id-a", "id-b"].map(|id| scene.container_of(id).id).into();
        for request in &requests {
            let part = request.path.split('/').nth(2).unwrap_or_default();
            let known = match (request.method.as_str(), request.path.rsplit('/').next().unwrap_or_default()) {
                ("GET", "version") | ("DELETE", _) => true,
                ("GET", "json") if request.path == "/containers/json" => true,
                ("GET", "json" | "logs") => of_running.iter().any(|id| id == part),
                ("POST", "create") => request.query.contains("xtm-reconcile-lock"),
                _ => false,
            };
            assert!(known, "{request}?{}", request.query);
        }
        assert_eq!(tap.count("GET /containers/json"), 2, "everything, and the record: {requests:#?}");
        assert_eq!(tap.count("GET /containers/*/json"), of_running.len());
        assert_eq!(tap.writes().len(), 2, "the lock alone");
        counts.push(requests.len());
    }
    assert_eq!(counts[0], counts[1]);
}

#[test]
fn a_record_that_cannot_be_read_is_said_taken_as_empty_and_replaced() {
    let cases = [
        ("garbage", "xtm-reconcile.record", "garbage"),
        ("newer", "xtm-reconcile.record", r#"{"v":99,"seq":1}"#),
        ("garbage-registration", "xtm-reconcile.registration", "{"),
        ("newer-registration", "xtm-reconcile.registration", r#"{"v":2,"x":1}"#),
        ("garbage-connector", "xtm-reconcile.connector.id-a", r#"{"v":1,"window":[]}"#),
        ("garbage-adopted", "xtm-reconcile.adopted", r#"{"v":1,"hashes":{"x":"not a hash!"}}"#),
    ];
    for (what, label, text) in cases {
        let scene = Scene::new("unreadable");
        scene.connector("a");
        scene.pass_ends(exit::OK);
        let record = scene.records().remove(0);
        scene.engine.remove(&record.id);
        let mut broken = NewContainer::foreign(&record.name).image(&record.image);
        for (name, value) in &record.labels {
            broken = broken.label(name, value);
        }
        let made = scene.engine.post(
            &format!("/containers/create?name={}", record.name),
            &json!({"Image": record.image, "Cmd": ["never-started"], "Labels": labels_with(&record, label, text)}),
        );
        made.expect_success("the broken record");
        let container = scene.only().id;

        let report = scene.pass_ends(exit::OK);
        let notices = report["notices"].to_string();
        assert!(notices.contains("pass record") && notices.contains("cannot be read"), "{what}: {notices}");
        assert_eq!(scene.only().id, container, "{what}");
        let report = scene.pass_ends(exit::OK);
        let notices = report["notices"].to_string();
        assert!(
            !notices.contains("pass record"),
            "{what}: it was replaced, so there is nothing more to say: {notices}"
        );
        scene.is_settled(&["id-a"]);
        scene.pass_is_quiet();
    }
}

fn labels_with(record: &Container, label: &str, text: &str) -> Value {
    let mut labels = record.labels.clone();
    labels.insert(label.to_owned(), text.to_owned());
    json!(labels)
}

#[test]
fn of_several_records_the_newest_readable_one_counts_and_one_is_left() {
    let scene = Scene::new("records");
    scene.connector_with("a", crashing);
    scene.pass_ends(exit::OK);
    restarted(&scene, 3);
    pass(&scene, &LOOP);
    let record = scene.records().remove(0);
    let other = |name: &str, seq: &str, changes: &[(&str, &str)]| {
        let mut labels = record.labels.clone();
        labels.insert("xtm-reconcile.record".to_owned(), seq.to_owned());
        for (label, text) in changes {
            labels.insert((*label).to_owned(), (*text).to_owned());
        }
        let body = json!({"Image": record.image, "Cmd": ["never-started"], "Labels": labels});
        let path = format!("/containers/create?name={}-{name}", record.name);
        scene.engine.post(&path, &body).expect_success("another record");
    };
    let window = |total: u64| {
        format!(r#"{{"v":1,"window":{{"total":{total},"counter":0,"generation":"gone","samples":[[1,{total}]]}}}}"#)
    };
    other("older", r#"{"v":1,"seq":0}"#, &[("xtm-reconcile.connector.id-a", &window(5_000))]);
    other("newest", r#"{"v":1,"seq":70}"#, &[("xtm-reconcile.connector.id-a", &window(1_000))]);
    other("newer-program", r#"{"v":2,"seq":71}"#, &[]);
    let report = pass(&scene, &LOOP);
    let restarts = line(&report, "id-a")["restarts"].as_u64().unwrap();
    assert!((1_001..5_000).contains(&restarts), "counted on from the newest: {restarts}");
    assert_eq!(scene.records().len(), 1);
}

/// Does what `docker container prune` does, to this manager's alone.
fn prune_record(scene: &Scene) {
    prune_labelled(scene, "xtm-reconcile.manager");
}

/// Prunes what carries this label with this manager's id. There is one such container that does not run.
#[track_caller]
fn prune_labelled(scene: &Scene, label: &str) {
    let filters = format!("%7B%22label%22%3A%5B%22{label}%3D{}%22%5D%7D", &*scene.manager);
    let pruned = scene.engine.call("POST", &format!("/containers/prune?filters={filters}")).expect_success("prune");
    assert_eq!(pruned["ContainersDeleted"].as_array().map(Vec::len), Some(1), "{pruned}");
}

// Shows what README says under "What it leaves on a Docker engine": "where loops are stopped it holds what is down
// after more restarts".
#[test]
fn a_hold_outlives_the_record() {
    let scene = Scene::new("hold-lost");
    scene.connector_with("a", crashing);
    pass(&scene, &LOOP_STOP);
    restarted(&scene, 4);
    pass(&scene, &LOOP_STOP);
    prune_record(&scene);
    for _ in 0..2 {
        let report = pass(&scene, &LOOP_STOP);
        assert_eq!(line(&report, "id-a")["skip"]["kind"], "held", "{report:#}");
        assert_eq!(scene.only().state, "exited");
    }
}

// Shows what README says under "What it leaves on a Docker engine": "a held container that was pruned as well is deployed
// anew".
#[test]
fn a_held_connector_whose_container_was_pruned_with_the_record_is_deployed_anew() {
    let scene = Scene::new("hold-pruned");
    scene.connector_with("a", crashing);
    pass(&scene, &LOOP_STOP);
    restarted(&scene, 4);
    pass(&scene, &LOOP_STOP);
    let held = scene.only();
    assert_eq!(held.state, "exited");
    prune_record(&scene);
    prune_labelled(&scene, "opencti-manager");
    let report = pass(&scene, &LOOP_STOP);
    assert_eq!(line(&report, "id-a")["step"]["do"], "deploy", "{report:#}");
    let anew = restarted(&scene, 1);
    assert_ne!(anew.id, held.id, "it runs, and crashes as before");
}

/// Runs `docker system prune` as an operator would, on an engine where nobody else has anything.
#[track_caller]
fn prune_system(engine: &Engine, arguments: &[&str]) {
    let pruned = engine.cli().args(["system", "prune", "--force"]).args(arguments).output().expect("docker runs");
    assert!(pruned.status.success(), "{}", String::from_utf8_lossy(&pruned.stderr));
}

// Shows what README says under "What it leaves on a Docker engine": "`docker system prune` as well; with `--filter
// label!=xtm-reconcile.manager` they leave both", "It also removes what is kept on probation. A pass whose lock is
// removed so begins no other step and exits with 6.".
#[test]
fn a_prune_while_a_pass_runs_takes_its_lock_unless_it_is_told_to_leave_what_has_the_label() {
    let engine = Engine::private();
    let scene = Scene::new("pruned-lock");
    let kept = scene.connector("kept");
    let program = |docker_host: &str| {
        let settings = [("MANAGER__PROBATION", "600"), ("MANAGER__SETTLE", "0")];
        set(scene.program_on(docker_host).args(["run", "--output", "json"]), &settings)
    };
    let names = || engine.containers_of(&scene.manager).into_iter().map(|one| one.name).collect::<Vec<_>>();
    let count = |part: &str| names().iter().filter(|name| name.contains(part)).count();
    program(&engine.docker_host()).run().expect_code(exit::OK.into());
    let filter = ["--filter", "label!=xtm-reconcile.manager"];
    for (round, arguments, code) in [("with", &filter[..], exit::OK), ("without", &[][..], exit::LOCKED)] {
        scene.edit("id-kept", |connector| {
            *connector = connector.clone().setting(format!("PRUNED_{round}").to_uppercase(), "1");
        });
        program(&engine.docker_host()).run().expect_code(exit::OK.into());
        assert_eq!((count(".xtm-former"), count("record")), (1, 1), "{round}: {:?}", names());
        let new = scene.connector(round);
        let tap = ApiTap::new(&engine);
        // The first creation is that of the lock. What is created and not yet started would be pruned as well.
        let gate = tap.hold("POST /containers/create", 2);
        let running = program(&tap.docker_host()).spawn();
        gate.wait(SOON);
        assert_eq!(count("xtm-reconcile-lock"), 1, "{round}: {:?}", names());
        prune_system(&engine, arguments);
        let left = usize::from(code == exit::OK);
        assert_eq!((count("xtm-reconcile-lock"), count("record")), (left, left), "{round}: {:?}", names());
        assert_eq!(count(".xtm-former"), 0, "{round}: {:?}", names());
        assert!(engine.container(&kept).is_some_and(|container| container.running()), "{round}: {:?}", names());
        gate.release();
        running.wait().expect_code(code.into());
        let runs = engine.container(&new).is_some_and(|container| container.running());
        assert_eq!(runs, code == exit::OK, "{round}: {:?}", names());
    }
    program(&engine.docker_host()).run().expect_code(exit::OK.into());
    for name in ["kept", "with", "without"].map(|name| scene.manager.connector_name(name)) {
        assert!(engine.container(&name).is_some_and(|container| container.running()), "{name}: {:?}", names());
    }
}

// Shows what README says under "What it leaves on a Docker engine": "`docker container prune` removes the record", "The
// next pass then says so and starts with an empty memory.".
#[test]
fn a_record_that_was_pruned_is_written_anew() {
    let scene = Scene::new("pruned");
    scene.connector("a");
    let lost = |report: &Value| report["notices"].to_string().contains("no memory of earlier passes");
    assert!(!lost(&scene.pass_ends(exit::OK)), "at first there was none to lose");
    let container = scene.only().id;
    prune_record(&scene);
    assert!(lost(&scene.pass_ends(exit::OK)), "it is said");
    assert!(!lost(&scene.pass_ends(exit::OK)), "and said once");
    assert_eq!(scene.only().id, container);
    scene.is_settled(&["id-a"]);
    scene.pass_is_quiet();
}

#[test]
fn the_marker_image_is_made_again_when_somebody_removed_it() {
    // Removing an image takes it from every test: an engine of its own.
    let engine = Engine::private();
    let scene = Scene::new("image");
    let name = scene.connector("a");
    let run = || scene.program_on(&engine.docker_host()).args(["run", "--output", "json"]).run();
    run().expect_code(exit::OK.into());
    // A prune that leaves what has the label leaves the record.
    let filters = "%7B%22label!%22%3A%5B%22xtm-reconcile.manager%22%5D%7D";
    let before = engine.containers_of(&scene.manager).len();
    engine.call("POST", &format!("/containers/prune?filters={filters}")).expect_success("prune");
    assert_eq!((engine.containers_of(&scene.manager).len(), before), (2, 2));
    engine.containers_of(&scene.manager).iter().filter(|c| c.name != name).for_each(|c| engine.remove(&c.id));
    engine.untag("xtm-reconcile/empty:1");
    run().expect_code(exit::OK.into());
    assert!(engine.has_image("xtm-reconcile/empty:1"));
    assert!(engine.container(&name).is_some_and(|container| container.running()));
}

// Shows what README says under "What a pass does": "**Reboot loops**: more than 3 restarts within 300 seconds",
// "counted over the connector's life, across refreshes".
#[test]
fn a_reboot_loop_is_told_with_all_restarts_and_a_healthy_connector_is_not_in_one() {
    let scene = Scene::new("loop");
    scene.connector_with("a", crashing);
    pass(&scene, &LOOP);
    let first = restarted(&scene, 4);
    let report = pass(&scene, &LOOP);
    assert_eq!(line(&report, "id-a")["reboot_loop"], true, "{report:#}");
    let (looping, before) = health(&scene, "id-a");
    assert!(looping && before >= 4, "{before} restarts");

    // Replaced: the engine counts from zero, the platform is told the sum.
    scene.edit("id-a", |connector| "xtm-fixture/connector:2".clone_into(&mut connector.image));
    pass(&scene, &LOOP);
    let second = restarted(&scene, 1);
    assert_ne!(second.id, first.id);
    pass(&scene, &LOOP);
    let (_, after) = health(&scene, "id-a");
    assert!(after > before, "{after} restarts after {before}");

    let scene = Scene::new("healthy");
    scene.connector("a");
    pass(&scene, &LOOP);
    pass(&scene, &LOOP);
    assert_eq!(health(&scene, "id-a"), (false, 0));
}

// Shows what README says under "Commands": "one pass that starts a connector again which is held for a reboot loop";
// and under "What a pass does": "with `MANAGER__REBOOT_LOOP__ACTION=stop` the connector is also stopped and held".
#[test]
fn a_connector_in_a_reboot_loop_is_held_when_told_to_until_it_changes_is_stopped_and_started_or_is_released() {
    let scene = Scene::new("hold");
    scene.connector_with("a", crashing);
    pass(&scene, &LOOP_STOP);
    let release_by_hand = |name: &str| {
        let program = set(scene.program().args(["release", name, "--output", "json"]), &LOOP_STOP);
        program.run()
    };
    for release in ["a new configuration", "a stop and a start", "the operator's word"] {
        restarted(&scene, 4);
        let report = pass(&scene, &LOOP_STOP);
        assert_eq!(line(&report, "id-a")["step"]["do"], "hold", "{release}: {report:#}");
        assert_eq!(scene.only().state, "exited");
        assert!(health(&scene, "id-a").0, "held is in a loop");
        let held = scene.only();
        for _ in 0..2 {
            let report = pass(&scene, &LOOP_STOP);
            assert_eq!(line(&report, "id-a")["skip"]["kind"], "held", "{release}: {report:#}");
        }
        scene.pass_is_quiet_with(&LOOP_STOP);
        assert_eq!((scene.only().id, scene.only().state.as_str()), (held.id, "exited"), "{release}");

        match release {
            "a new configuration" => {
                scene.edit("id-a", |connector| "xtm-fixture/connector:2".clone_into(&mut connector.image));
            }
            "a stop and a start" => {
                scene.edit("id-a", |connector| "stopping".clone_into(&mut connector.requested_status));
                pass(&scene, &LOOP_STOP);
                scene.edit("id-a", |connector| "starting".clone_into(&mut connector.requested_status));
            }
            _ => {
                let other = release_by_hand("somebody").expect_code(exit::CONNECTOR_FAILED.into());
                assert!(other.json()["notices"].to_string().contains("somebody"), "it says that there is none");
                assert_eq!(scene.only().state, "exited");
                let report = release_by_hand("id-a").expect_code(exit::OK.into()).lane();
                assert_eq!(line(&report, "id-a")["step"]["do"], "start", "{report:#}");
            }
        }
        pass(&scene, &LOOP_STOP);
        // It runs again, and is not held for the restarts before.
        restarted(&scene, 1);
    }
}

#[test]
fn a_hold_counts_when_the_connector_is_down_and_not_when_the_stop_failed() {
    for (fault, is_down) in [(Fault::Status(500), false), (Fault::StatusAfter(500), true)] {
        let scene = Scene::new("hold-fails");
        scene.connector_with("a", crashing);
        pass(&scene, &LOOP_STOP);
        restarted(&scene, 4);
        let tap = ApiTap::new(scene.engine);
        tap.inject("POST /containers/*/stop", 1, fault);
        let program = set(scene.tapped(&tap), &LOOP_STOP);
        let report = program.run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
        assert_eq!(line(&report, "id-a")["result"], "failed", "{report:#}");
        let record = scene.records().remove(0);
        let noted = record.labels["xtm-reconcile.connector.id-a"].contains("held");
        assert_eq!((noted, scene.only().state == "exited"), (is_down, is_down), "{fault:?}");

        let report = pass(&scene, &LOOP_STOP);
        let told = line(&report, "id-a");
        let held = if is_down { &told["skip"]["kind"] == "held" } else { &told["step"]["do"] == "hold" };
        assert!(held, "{fault:?}: {report:#}");
        assert_eq!(scene.only().state, "exited", "{fault:?}");
    }
}

// Shows what README says under "Configuration": "With `no` a reboot loop shows only from one pass to the next.".
#[test]
fn without_a_restart_policy_each_pass_starts_what_ended_and_counts_that() {
    let settings = [LOOP[0], LOOP[1], ("OPENCTI__DAEMON__DOCKER__RESTART_POLICY", "no")];
    // One ends late enough to be told as started, the other before the pass that started it can look at it.
    for life_ms in ["2000", "1"] {
        let scene = Scene::new("policy-no");
        scene.connector_with("a", |connector| connector.setting("STANDIN_CRASH_AFTER_MS", life_ms));
        pass(&scene, &settings);
        let id = scene.only().id;
        let end = || scene.engine.wait_for("its end", SOON, |e| e.container(&id).filter(|c| c.state == "exited"));
        for count in 1..=3_u64 {
            end();
            let report = pass(&scene, &settings);
            let told = line(&report, "id-a");
            assert_eq!(told["step"]["reason"], "ended", "after {life_ms} ms: {report:#}");
            assert_eq!(told["restarts"].as_u64(), Some(count), "after {life_ms} ms: {report:#}");
        }
        end();
        assert_eq!(line(&pass(&scene, &settings), "id-a")["reboot_loop"], true, "after {life_ms} ms");
    }
}

/// What a record says of a connector that restarted often, long ago.
const HISTORY: &str = r#"{"v":1,"window":{"total":500,"counter":0,"generation":"gone","samples":[[1,500]]}}"#;

/// Docker keeps nothing of a quiet pass, so the platform has to know when that was.
#[test]
fn a_loop_that_begins_after_quiet_passes_is_seen_by_the_first_pass_unless_the_last_one_did_not_look() {
    for looked in [true, false] {
        let scene = Scene::new("quiet-then-loop");
        let name = scene.connector("a");
        pass(&scene, &[]);
        let record = scene.records().remove(0);
        let labels = labels_with(&record, "xtm-reconcile.connector.id-a", HISTORY);
        scene.engine.remove(&record.id);
        let body = json!({"Image": record.image, "Cmd": ["never-started"], "Labels": labels});
        scene.engine.post(&format!("/containers/create?name={}", record.name), &body).expect_success("a record");
        pass(&scene, &[]);
        if !looked {
            // It gives its heartbeat, and then gets no list.
            scene.platform.fault(PlatformFault::on("connectorsForManagers", FaultKind::NullData));
            scene.pass_ends(exit::PLATFORM);
            scene.platform.clear_faults();
        }
        for _ in 0..4 {
            crash(&scene, &name);
        }
        let report = pass(&scene, &[]);
        let line = line(&report, "id-a");
        assert_eq!((&line["restarts"], &line["reboot_loop"]), (&json!(504), &json!(looked)), "{report:#}");
    }
}
