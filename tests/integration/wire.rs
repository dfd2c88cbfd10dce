//! The requests that an engine gets, as they are on the wire.

use std::collections::BTreeSet;

use serde_json::json;
use xtm_reconcile::exit;

use crate::moves::{complaints, set, with_proxy_ca};
use crate::scene::Scene;
use crate::support::tap::Request;
use crate::support::{ApiTap, Binary, Engine, Fault, Registry, StubEngine, unique};

/// The newest API version that the program speaks.
const NEWEST: (u16, u16) = (1, 51);

/// Passes that deploy (with a pull and the proxy's CA), refresh, rename, stop, start and remove, and the commands that only
/// look, each of them through the tap.
fn everything(scene: &Scene, engine: &Engine, tap: &ApiTap) {
    let pulled = Registry::open().push(scene.engine, "xtm-fixture/connector:1", &format!("{}:1", unique("wire")));
    let [_, b, _] = ["a", "b", "c"].map(|name| scene.connector(name));
    scene.edit("id-b", |connector| connector.image = pulled);
    let program =
        |command: &str| set(scene.program_on(&tap.docker_host()).args([command, "--output", "json"]), &with_proxy_ca());
    let pass = |steps: serde_json::Value| {
        let report = program("run").run().expect_code(exit::OK.into()).lane();
        assert_eq!(report["counts"]["steps"], steps, "{report:#}");
    };
    program("check").run().expect_code(exit::OK.into());
    program("plan").run().expect_code(exit::OK.into());
    pass(json!({"deploy": 3}));
    scene.edit("id-a", |connector| "xtm-fixture/connector:2".clone_into(&mut connector.image));
    engine.rename(&b, &scene.manager.connector_name("other"));
    scene.edit("id-c", |connector| "stopping".clone_into(&mut connector.requested_status));
    pass(json!({"refresh": 1, "rename": 1, "stop": 1}));
    scene.edit("id-c", |connector| "starting".clone_into(&mut connector.requested_status));
    scene.unlist("id-a");
    pass(json!({"remove": 1, "start": 1}));
}

fn newest_common(engine: &Engine) -> String {
    let version = engine.call("GET", "/version").expect_success("version");
    let text = version["ApiVersion"].as_str().expect("a version").to_owned();
    let (major, minor) = text.split_once('.').expect("two numbers");
    let (major, minor) = (major.parse().expect("a number"), minor.parse().expect("a number")).min(NEWEST);
    format!("{major}.{minor}")
}

// Shows what README says under "xtm-reconcile": "Every request to an engine carries the newest API version that both
// know, up to 1.51".
#[test]
fn every_request_to_an_engine_carries_the_agreed_version_but_the_one_that_asks_for_it() {
    let newer = Engine::private_newer();
    let engines = std::iter::once(Engine::shared()).chain(newer.as_deref());
    for engine in engines {
        let scene = Scene::new("wire");
        let tap = ApiTap::new(engine);
        let version = newest_common(engine);
        everything(&scene, engine, &tap);
        let requests = tap.requests();
        let runs: BTreeSet<i32> = requests.iter().map(|request| request.pid).collect();
        let (asking, working): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.path == "/version");
        assert_eq!(asking.len(), runs.len(), "one request a run agrees on the version: {asking:?}");
        assert!(asking.iter().all(|request| request.target == "/version"), "{asking:?}");
        let prefix = format!("/v{version}/");
        let without: Vec<_> = working.iter().filter(|request| !request.target.starts_with(&prefix)).collect();
        assert!(without.is_empty(), "{} of {} are without {prefix}: {without:#?}", without.len(), working.len());
        for pattern in [
            "GET /containers/json",
            "GET /containers/*/json",
            "GET /containers/*/logs",
            "GET /images/*/json",
            "POST /images/create",
            "POST /containers/create",
            "POST /containers/*/start",
            "POST /containers/*/stop",
            "POST /containers/*/rename",
            "PUT /containers/*/archive",
            "DELETE /containers/*",
        ] {
            assert!(tap.count(pattern) > 0, "{pattern} is among what was asked");
        }
        for container in engine.containers_of(&scene.manager) {
            engine.remove(&container.id);
        }
    }
}

fn on(scene: &Scene, host: &str) -> Binary {
    scene.program_on(host).args(["run", "--output", "json"])
}

// Shows what README says under "xtm-reconcile": "Every request to an engine carries the newest API version that both
// know, up to 1.51".
#[test]
fn the_newest_version_that_both_know_is_spoken() {
    let scene = Scene::new("agreed");
    scene.connector("a");
    for (oldest, newest, spoken) in [
        (Some("1.12"), "1.41", "1.41"),
        (None, "1.43", "1.43"),
        (Some("1.24"), "1.44", "1.44"),
        (Some("1.44"), "1.52", "1.51"),
        (Some("1.51"), "1.99", "1.51"),
        (Some("1.44"), "2.0", "1.51"),
    ] {
        let engine =
            StubEngine::new(&json!({"Version": "99.9", "ApiVersion": newest, "MinAPIVersion": oldest, "Os": "linux"}));
        let report = on(&scene, &engine.docker_host()).run().expect_code(exit::ORCHESTRATOR.into()).lane();
        assert_eq!(report["orchestrator"]["description"], format!("Docker 99.9, API {spoken}"), "{report:#}");
        let asked = engine.asked();
        assert_eq!(asked[0], "GET /version");
        let prefix = format!("/v{spoken}/");
        assert!(asked.len() > 1, "{asked:?}");
        for request in &asked[1..] {
            assert!(request.split(' ').nth(1).is_some_and(|target| target.starts_with(&prefix)), "{asked:?}");
        }
    }
}

// Shows what README says under "xtm-reconcile": "Docker Engine 20.10 and later (API 1.41)", "an engine that shares none
// is refused".
#[test]
fn an_engine_that_shares_no_version_is_refused_with_its_own_and_with_what_to_do() {
    let scene = Scene::new("no-version");
    scene.connector("a");
    let version = |version: &str, oldest: &str, newest: &str| json!({"Version": version, "ApiVersion": newest, "MinAPIVersion": oldest, "Os": "linux"});
    for (engine, told) in [
        (version("19.03.15", "1.12", "1.40"), ["Docker 19.03.15", "1.40 at most", "1.41 is needed", "20.10 or later"]),
        (version("1.13.1", "1.9", "1.9"), ["Docker 1.13.1", "1.9 at most", "1.41 is needed", "20.10 or later"]),
        (version("40.0.1", "1.60", "1.70"), ["Docker 40.0.1", "1.60 and later", "1.51", "upgrade this program"]),
        (json!({"Version": "7"}), ["does not say", "\"\"", "accepts none of the API versions", "DOCKER_HOST"]),
        (version("7", "", "latest"), ["does not say", "latest", "accepts none of the API versions", "DOCKER_HOST"]),
    ] {
        let stub = StubEngine::new(&engine);
        for command in ["run", "check", "plan"] {
            let program = scene.program_on(&stub.docker_host()).args([command, "--output", "json"]);
            let outcome = program.run().expect_code(exit::ORCHESTRATOR.into());
            for text in told {
                assert!(outcome.stdout.contains(&text.replace('"', "\\\"")), "{command}: {text}: {}", outcome.stdout);
            }
        }
        assert_eq!(stub.asked(), ["GET /version"; 3], "nothing else is asked");
        let said = complaints(&on(&scene, &stub.docker_host()).run().lane());
        assert!(said.contains("API versions") && said.contains(&stub.docker_host()), "{said}");
    }
}

// Shows what README says under "xtm-reconcile": "Reads share connections to the engine", "whatever changes something has a
// connection of its own".
#[test]
fn reads_share_connections_and_whatever_changes_something_has_one_of_its_own() {
    let scene = Scene::new("connections");
    let tap = ApiTap::new(scene.engine);
    everything(&scene, scene.engine, &tap);
    tap.clear();
    scene.tapped(&tap).run().expect_code(exit::OK.into());
    let requests = tap.requests();
    let (writes, reads): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.is_write());
    let connections = |of: &[&Request]| of.iter().map(|request| request.connection).collect::<BTreeSet<_>>();
    let (for_writes, for_reads) = (connections(&writes), connections(&reads));
    assert_eq!(for_writes.len(), writes.len(), "each write came alone: {writes:#?}");
    assert!(for_writes.is_disjoint(&for_reads), "{requests:#?}");
    assert!(for_reads.len() < reads.len(), "{} connections for {} reads", for_reads.len(), reads.len());
}

// Shows what README says under "xtm-reconcile": "one whose connection breaks before the answer is made once more".
#[test]
fn an_engine_that_closes_each_connection_after_its_answer_is_read_all_the_same() {
    let scene = Scene::new("closes");
    let tap = ApiTap::new(scene.engine);
    tap.close_after_each_answer();
    everything(&scene, scene.engine, &tap);
    for _ in 0..10 {
        scene.tapped(&tap).run().expect_code(exit::OK.into());
    }
    tap.inject("GET /containers/*/json", 1, Fault::Drop);
    scene.tapped(&tap).run().expect_code(exit::OK.into());
    assert_eq!(tap.faults(), 1, "the read failed once");
    let tap = ApiTap::new(scene.engine);
    tap.inject("GET /containers/json", 1, Fault::DropWithRepeat);
    scene.tapped(&tap).run().expect_code(exit::ORCHESTRATOR.into());
    assert_eq!(tap.faults(), 2, "it was made once more, and no third time");
}
