//! Two platforms in one pass: what happens in one lane changes nothing in the other.

use std::time::Duration;

use serde_json::{Value, json};
use stand_in_platform::{Fault, FaultKind, Instance};
use xtm_reconcile::exit;

use crate::moves::SOON;
use crate::scene::{IMAGE, Scene};
use crate::support::{ApiTap, Binary, Container, NewContainer, Signal};

const OPENCTI: &str = "opencti";
const OPENAEV: &str = "openaev";

impl Scene {
    /// Adds an OpenAEV instance that should run, named so that no other test's container has the name. Gives that name.
    pub(crate) fn instance(&self, name: &str) -> String {
        let full = self.manager.connector_name(name);
        let instance = Instance::new(format!("id-{name}"), &full, IMAGE).requested("starting");
        self.platform.edit(|state| state.openaev.instances.push(instance));
        full
    }

    /// The program with both platforms.
    pub(crate) fn both(&self) -> Binary {
        self.with_openaev(self.program()).args(["--output", "json"])
    }

    #[track_caller]
    fn pass_of_both(&self, code: u8) -> Value {
        self.both().run().expect_code(code.into()).json()
    }

    /// The container of one platform's connector.
    #[track_caller]
    fn on(&self, platform: &str, id: &str) -> Container {
        let mut found = self.containers().into_iter().filter(|container| {
            container.label("opencti-platform") == platform && container.label("opencti-connector-id") == id
        });
        let one = found.next().unwrap_or_else(|| panic!("no container of {id} on {platform}"));
        assert!(found.next().is_none(), "two containers of {id} on {platform}");
        one
    }

    /// The containers of this manager that hold locks and records, by their names.
    fn markers(&self) -> Vec<String> {
        let all = self.engine.containers_labelled(&format!("xtm-reconcile.manager={}", &*self.manager));
        all.into_iter().map(|container| container.name).collect()
    }
}

/// The part of a report about one lane.
#[track_caller]
pub(crate) fn lane<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut lanes = report["lanes"].as_array().expect("a report has lanes").iter();
    lanes.find(|lane| lane["lane"] == name).unwrap_or_else(|| panic!("no lane {name} in {report:#}"))
}

#[track_caller]
fn result<'a>(report: &'a Value, platform: &str, id: &str) -> &'a Value {
    let mut lines = lane(report, platform)["connectors"].as_array().expect("connectors").iter();
    lines.find(|line| line["connector"] == id).unwrap_or_else(|| panic!("{id} is not in {report:#}"))
}

// Shows what README says under "Commands": "Each line of the report names its lane"; and under "What a pass does": "A
// lane has its own platform, engine or cluster, registry, proxy, lock, memory and plan"; and under "What it leaves on a
// Docker engine": "Besides the connectors' containers, for each platform: one container".
#[test]
fn both_platforms_are_served_in_one_pass_with_locks_records_and_reports_of_their_own() {
    let scene = Scene::new("lanes");
    let (cti, aev) = (scene.connector("a"), scene.instance("b"));
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({"deploy": 2}), "the sum: {report:#}");
    for (name, id, full) in [(OPENCTI, "id-a", cti), (OPENAEV, "id-b", aev)] {
        assert_eq!(lane(&report, name)["counts"]["steps"], json!({"deploy": 1}), "{report:#}");
        let container = scene.on(name, id);
        assert!(container.running() && container.name == full, "{container:?}");
        let urls = ["OPENCTI_URL", "OPENAEV_URL"].map(|variable| container.env.contains_key(variable));
        assert_eq!(urls, [name == OPENCTI, name == OPENAEV], "the URL of its own platform alone: {container:?}");
    }
    let markers = scene.markers();
    for name in [OPENCTI, OPENAEV] {
        let record = format!("xtm-reconcile-record-{}-{name}-", &*scene.manager);
        assert_eq!(markers.iter().filter(|marker| marker.starts_with(&record)).count(), 1, "{markers:?}");
    }
    assert_eq!(markers.len(), 2, "the locks were given back: {markers:?}");
    let report = scene.pass_of_both(exit::OK);
    assert_eq!((&report["counts"]["steps"], &report["counts"]["unchanged"]), (&json!({}), &json!(2)), "{report:#}");
    for name in [OPENCTI, OPENAEV] {
        assert_eq!(lane(&report, name)["platform"]["registration"], "known", "{report:#}");
    }
    let table = scene.both().args(["--output", "table"]);
    let printed = table.run();
    assert!(printed.code == Some(64), "an option of one value is given once: {printed:?}");
}

// Shows what README says under "What a pass does": "`--platform` leaves the other lanes out, so that each platform can
// have its own timer.".
#[test]
fn a_pass_of_one_platform_leaves_the_other_alone_and_takes_its_own_lock() {
    let scene = Scene::new("select");
    scene.connector("a");
    scene.instance("b");
    let report = scene.both().args(["--platform", OPENAEV]).run().expect_code(exit::OK.into()).json();
    assert_eq!(report["lanes"].as_array().unwrap().len(), 1, "{report:#}");
    assert_eq!(lane(&report, OPENAEV)["counts"]["steps"], json!({"deploy": 1}), "{report:#}");
    assert!(scene.platform.calls("connectorsForManagers").is_empty(), "OpenCTI was not asked");
    assert_eq!(scene.containers().len(), 1);
    // Two timers, one per platform, at the same time.
    scene.platform.fault(Fault::on("openaev.connector-instances", FaultKind::Delay { ms: 3_000 }).times(1));
    let other = scene.both().args(["--platform", OPENAEV]).spawn();
    assert!(scene.platform.wait_for(SOON, |_, journal| {
        journal.iter().filter(|call| call.is("openaev.refresh-connectivity")).count() >= 2
    }));
    let report = scene.both().run().expect_code(exit::LOCKED.into()).json();
    assert_eq!(lane(&report, OPENAEV)["exit_code"], exit::LOCKED, "{report:#}");
    assert_eq!(lane(&report, OPENCTI)["exit_code"], exit::OK, "{report:#}");
    assert!(scene.on(OPENCTI, "id-a").running(), "the lock of one lane keeps the other from nothing");
    other.wait().expect_code(exit::OK.into());
}

// Shows what README says under "What a pass does": "A pass runs one **lane** per enabled platform, side by side.", "An
// outage of one platform or engine neither stops nor delays the other lane", "the exit code is the gravest of both", "The
// pass ends with its slower lane".
#[test]
fn whatever_fails_in_one_lane_neither_stops_nor_delays_the_other() {
    // The fault, the code, what the other lane says of it, and whether it takes long.
    let slow = || FaultKind::Delay { ms: 6_000 };
    let cases = [
        ("down", FaultKind::status(503), exit::PLATFORM, "HTTP 503"),
        ("refusing", FaultKind::RefusedToken, exit::PLATFORM, "refused the token"),
        ("a login page", FaultKind::Html, exit::PLATFORM, "HTML page"),
        ("slow", slow(), exit::OK, ""),
    ];
    let sides = [(OPENAEV, OPENCTI, "openaev.connector-instances"), (OPENCTI, OPENAEV, "connectorsForManagers")];
    for (broken, healthy, list) in sides {
        let scene = Scene::new("fault");
        let ids = [(OPENCTI, "id-a"), (OPENAEV, "id-x")];
        scene.connector("a");
        scene.instance("x");
        for (name, kind, code, said) in cases.clone() {
            scene.platform.clear_faults();
            let what = if name == "slow" { list.to_owned() } else { format!("{broken}.*") };
            scene.platform.fault(Fault::on(what, kind));
            scene.platform.edit(|state| {
                state.connectors[0].current_status = None;
                "stopped".clone_into(&mut state.openaev.instances[0].current_status);
            });
            let report = scene.pass_of_both(code);
            let (bad, good) = (lane(&report, broken), lane(&report, healthy));
            assert_eq!(good["exit_code"], exit::OK, "{broken} is {name}: {report:#}");
            assert_eq!(good["platform"]["sent"]["status"], 1, "{broken} is {name}: {report:#}");
            let (_, id) = ids.into_iter().find(|(lane, _)| *lane == healthy).unwrap();
            assert!(scene.on(healthy, id).running());
            assert!(bad["errors"].to_string().contains(said), "{broken} is {name}: {report:#}");
            assert!(good["errors"].as_array().unwrap().is_empty(), "{report:#}");
            if name == "slow" {
                let took = |lane: &Value| lane["took_ms"].as_u64().unwrap();
                assert!(took(bad) >= 6_000 && took(good) < 5_000, "{report:#}");
                // Side by side, not one after the other.
                assert!((took(bad)..took(bad) + took(good)).contains(&took(&report)), "{report:#}");
            }
        }
        scene.platform.clear_faults();
    }
}

// Shows what README says under "What a pass does": "An outage of one platform or engine neither stops nor delays the
// other lane".
#[test]
fn a_platform_that_is_not_there_at_all_is_no_trouble_of_the_other() {
    let scene = Scene::new("gone");
    scene.connector("a");
    scene.instance("b");
    // A port of which the system has just said that it is free, and that nobody listens on any more.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (gone, healthy, id) in [("OPENAEV__URL", OPENCTI, "id-a"), ("OPENCTI__URL", OPENAEV, "id-b")] {
        let program = scene.both().var(gone, format!("http://127.0.0.1:{port}"));
        let report = program.run().expect_code(exit::PLATFORM.into()).json();
        let other = if healthy == OPENCTI { OPENAEV } else { OPENCTI };
        assert_eq!(lane(&report, healthy)["exit_code"], exit::OK, "{report:#}");
        assert!(scene.on(healthy, id).running(), "{report:#}");
        let said = lane(&report, other)["errors"].to_string();
        assert!(said.contains("cannot be reached") && said.contains(gone), "{said}");
    }
}

// Shows what README says under "What a pass does": "An outage of one platform or engine neither stops nor delays the
// other lane".
#[test]
fn an_engine_that_one_lane_cannot_use_is_no_trouble_of_the_other() {
    let scene = Scene::new("engine");
    scene.connector("a");
    scene.instance("b");
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        kubeconfig.path(),
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
         clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\nusers: [{name: u, user: {}}]\n",
    )
    .unwrap();
    let program = scene.both().var("OPENAEV__DAEMON__SELECTOR", "kubernetes").var("KUBECONFIG", kubeconfig.path());
    let report = program.run().expect_code(exit::ORCHESTRATOR.into()).json();
    assert_eq!(lane(&report, OPENAEV)["exit_code"], exit::ORCHESTRATOR, "{report:#}");
    assert_eq!(lane(&report, OPENCTI)["counts"]["steps"], json!({"deploy": 1}), "{report:#}");
    assert_eq!(lane(&report, OPENCTI)["exit_code"], exit::OK, "{report:#}");
}

#[test]
fn a_guard_that_refuses_in_one_lane_lets_the_other_remove_what_is_gone() {
    let scene = Scene::new("guard");
    for (connector, instance) in [("a", "x"), ("b", "y")] {
        scene.connector(connector);
        scene.instance(instance);
    }
    scene.pass_of_both(exit::OK);
    scene.platform.edit(|state| {
        state.connectors.clear();
        state.openaev.instances.pop();
    });
    let report = scene.pass_of_both(exit::GUARD);
    assert_eq!(lane(&report, OPENCTI)["prune_refused"]["kind"], "empty-listing", "{report:#}");
    assert_eq!(lane(&report, OPENAEV)["counts"]["steps"], json!({"remove": 1}), "{report:#}");
    assert_eq!(scene.containers().len(), 3);
}

// Shows what README says under "What a pass does": "the bound on connectors that are worked on at the same time (each
// has half of it, and one at least".
#[test]
fn each_lane_works_on_half_as_many_connectors_as_the_bound_says_and_on_one_at_least() {
    for (bound, each) in [("1", 1), ("4", 2), ("5", 2)] {
        let scene = Scene::new("bound");
        // A first pass writes the records, so that the creations below are those of connectors.
        scene.pass_of_both(exit::OK);
        for number in 0..4 {
            scene.connector(&format!("left{number}"));
            scene.instance(&format!("right{number}"));
        }
        let tap = ApiTap::new(scene.engine);
        // Each lane makes its lock first.
        let mut gates: Vec<_> = (3..=10).map(|nth| tap.hold("POST /containers/create", nth)).collect();
        let program = scene.both().var("DOCKER_HOST", tap.docker_host()).var("MANAGER__CONCURRENCY", bound);
        let running = program.spawn();
        let creations = |part: &str| {
            let all = tap.requests().into_iter().filter(|request| request.path == "/containers/create");
            all.filter(|request| request.query.contains(part)).count()
        };
        let mut arrived = 0;
        for released in 0..=8 - 2 * each {
            while arrived < 2 * each + released {
                gates[arrived - released].wait(SOON);
                arrived += 1;
            }
            let (left, right) = (creations("left"), creations("right"));
            assert_eq!(left + right, arrived, "bound {bound}, {released} let go: {left} and {right}");
            if released == 0 {
                assert_eq!((left, right), (each, each), "bound {bound}: each lane has its own half");
            }
            gates.remove(0).release();
        }
        drop(gates);
        running.wait().expect_code(exit::OK.into());
        assert_eq!(scene.containers().iter().filter(|container| container.running()).count(), 8);
    }
}

// Shows what README says under "What a pass does": "a name that both want goes to one of them".
#[test]
fn one_name_on_both_platforms_goes_to_one_and_rejects_the_other_by_name_in_this_pass_and_the_next() {
    let scene = Scene::new("name");
    scene.pass_of_both(exit::OK);
    let name = scene.connector("same");
    scene.instance("same");
    // Each lane makes its lock first. Both have planned to deploy before either does.
    let tap = ApiTap::new(scene.engine);
    let gates = [3, 4].map(|nth| tap.hold("POST /containers/create", nth));
    let running = scene.both().var("DOCKER_HOST", tap.docker_host()).spawn();
    for gate in &gates {
        gate.wait(SOON);
    }
    for gate in gates {
        gate.release();
    }
    let mut reports = vec![running.wait().expect_code(exit::CONNECTOR_FAILED.into()).json()];
    reports.push(scene.pass_of_both(exit::CONNECTOR_FAILED));
    for report in &reports {
        let results = [OPENCTI, OPENAEV].map(|platform| result(report, platform, "id-same"));
        let rejected: Vec<_> = results.iter().filter(|line| line["result"] == "rejected").collect();
        assert_eq!(rejected.len(), 1, "{report:#}");
        let said = rejected[0]["error"].as_str().unwrap();
        assert!(said.contains(&name) && said.contains("a connector of the platform"), "{said}");
    }
    assert_eq!(scene.containers().len(), 1, "one of them runs, once");
    let loser = |report: &Value| result(report, OPENCTI, "id-same")["result"] == "rejected";
    assert_eq!(loser(&reports[0]), loser(&reports[1]), "who has the name keeps it");
}

// Shows what README says under "What a pass does": "there each lane sees the other's workloads as foreign".
#[test]
fn one_id_on_both_platforms_names_two_workloads_that_do_not_touch_each_other() {
    let scene = Scene::new("id");
    scene.connector("one");
    let id = "id-one".to_owned();
    let name = scene.manager.connector_name("two");
    scene.platform.edit(|state| {
        state.openaev.instances.push(Instance::new(&id, &name, IMAGE).requested("starting"));
    });
    scene.pass_of_both(exit::OK);
    let before = [OPENCTI, OPENAEV].map(|platform| scene.on(platform, &id).id);
    scene.platform.edit(|state| "stopping".clone_into(&mut state.connectors[0].requested_status));
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({"stop": 1}), "{report:#}");
    let after = [OPENCTI, OPENAEV].map(|platform| scene.on(platform, &id));
    assert_eq!(after.each_ref().map(|container| container.id.clone()), before);
    assert_eq!(after.each_ref().map(Container::running), [false, true]);
    scene.platform.edit(|state| state.openaev.instances.clear());
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(lane(&report, OPENAEV)["counts"]["steps"], json!({"remove": 1}), "{report:#}");
    assert_eq!(scene.on(OPENCTI, &id).id, before[0]);
}

#[test]
fn workloads_of_an_older_daemon_without_a_platform_go_to_the_lane_whose_list_has_them() {
    let scene = Scene::new("adopt");
    let (cti, aev) = (scene.connector("a"), scene.instance("b"));
    let nobody = scene.manager.connector_name("c");
    let hashes = ["aaaa1111", "bbbb2222", "cccc3333"];
    scene.platform.edit(|state| {
        state.connectors[0].hash = Some(hashes[0].to_owned());
        state.openaev.instances[0].hash = Some(hashes[1].to_owned());
    });
    for ((name, id), hash) in [(&cti, "id-a"), (&aev, "id-b"), (&nobody, "id-c")].into_iter().zip(hashes) {
        scene.engine.run(&NewContainer::of_daemon(name, &scene.manager, id, hash));
    }
    let before: Vec<String> = scene.containers().into_iter().map(|container| container.id).collect();
    for steps in [json!({"update": 2}), json!({})] {
        let report = scene.pass_of_both(exit::OK);
        assert_eq!(report["counts"]["steps"], steps, "they get the restart policy: {report:#}");
        for (platform, id) in [(OPENCTI, "id-a"), (OPENAEV, "id-b")] {
            let here = lane(&report, platform)["connectors"].as_array().unwrap();
            let running = here.iter().find(|line| line["connector"] == id).unwrap();
            assert_eq!(running["skip"]["kind"], "running", "{report:#}");
        }
    }
    let mut after: Vec<String> = scene.containers().into_iter().map(|container| container.id).collect();
    let mut before = before;
    before.sort();
    after.sort();
    assert_eq!(before, after, "nothing was restarted, and what nobody lists was left alone");
}

// Shows what README says under "What a pass does": "lanes share the deadline, signals".
#[test]
fn a_signal_ends_a_lane_that_waits_and_lets_one_that_works_finish_its_step() {
    let scene = Scene::new("signal");
    scene.connector("a");
    scene.instance("b");
    scene.platform.fault(Fault::on("openaev.connector-instances", FaultKind::Delay { ms: 60_000 }));
    let tap = ApiTap::new(scene.engine);
    let gate = tap.hold("POST /containers/*/start", 1);
    let running = scene.both().var("DOCKER_HOST", tap.docker_host()).spawn();
    gate.wait(SOON);
    assert!(
        scene
            .platform
            .wait_for(SOON, |_, journal| { journal.iter().any(|call| call.is("openaev.refresh-connectivity")) })
    );
    running.signal(Signal::TERM);
    running.wait_for_stderr("SIGTERM was received", SOON);
    gate.release();
    let ended = running.wait().expect_code(exit::TERMINATED.into());
    assert!(ended.took < Duration::from_secs(30), "{:?}", ended.took);
    let report = ended.json();
    assert_eq!(result(&report, OPENCTI, "id-a")["result"], "done", "{report:#}");
    assert_eq!(lane(&report, OPENAEV)["connectors"], json!([]), "{report:#}");
    for name in [OPENCTI, OPENAEV] {
        assert_eq!(lane(&report, name)["exit_code"], exit::TERMINATED, "{report:#}");
    }
    assert!(scene.markers().iter().all(|name| name.contains("record")), "{:?}", scene.markers());
    scene.platform.clear_faults();
    scene.pass_of_both(exit::OK);
    assert!(scene.on(OPENCTI, "id-a").running() && scene.on(OPENAEV, "id-b").running());
}

#[test]
fn a_record_of_the_version_before_lanes_is_read_renamed_and_loses_nothing() {
    let scene = Scene::new("former");
    scene.connector("a");
    scene.instance("b");
    scene.pass_of_both(exit::OK);
    let record = |platform: &str| {
        let start = format!("xtm-reconcile-record-{}-{platform}-", &*scene.manager);
        let all = scene.engine.containers_labelled(&format!("xtm-reconcile.manager={}", &*scene.manager));
        all.into_iter().find(|container| container.name.starts_with(&start))
    };
    // As version 0.1 left it: another name, no platform, and a history beside the registration.
    let now = record(OPENCTI).expect("a record");
    let window = r#"{"v":1,"window":{"total":7,"counter":0,"generation":"g","samples":[[1,7]]}}"#;
    let labels = json!({
        "xtm-reconcile.manager": &*scene.manager,
        "xtm-reconcile.record": r#"{"v":1,"seq":9}"#,
        "xtm-reconcile.registration": now.label("xtm-reconcile.registration"),
        "xtm-reconcile.connector.id-a": window,
    });
    scene.engine.remove(&now.id);
    let body = json!({"Image": "xtm-reconcile/empty:1", "Cmd": ["never-started"], "Labels": labels});
    let former = format!("xtm-reconcile-record-{}-9-0badcafe", &*scene.manager);
    scene.engine.post(&format!("/containers/create?name={former}"), &body).expect_success("a former record");
    let aev_before = record(OPENAEV).expect("a record of OpenAEV").id;

    let report = scene.pass_of_both(exit::OK);
    for name in [OPENCTI, OPENAEV] {
        assert_eq!(lane(&report, name)["platform"]["registration"], "known", "{report:#}");
        assert_eq!(lane(&report, name)["notices"], json!([]), "{report:#}");
    }
    assert_eq!(result(&report, OPENCTI, "id-a")["restarts"], 7, "the history goes on: {report:#}");
    assert!(scene.engine.container(&former).is_none(), "{:?}", scene.markers());
    let renamed = record(OPENCTI).expect("the record under its new name");
    assert!(renamed.label("xtm-reconcile.connector.id-a").contains("\"total\":7"), "{renamed:?}");
    assert_eq!(renamed.label("xtm-reconcile.platform"), OPENCTI);
    assert_eq!(record(OPENAEV).expect("still there").id, aev_before, "the other lane's record is not touched");
}

#[test]
fn a_pass_of_the_version_before_lanes_that_still_works_is_waited_for() {
    let scene = Scene::new("former-lock");
    scene.connector("a");
    scene.instance("b");
    scene.pass_of_both(exit::OK);
    let holder = json!({"pass": "0badcafe", "host": "elsewhere", "pid": 1});
    let lock = json!({"v": 1, "holder": holder, "since": "2026-01-02T03:04:05Z", "until": "2126-01-02T03:04:05Z"});
    let labels = json!({"xtm-reconcile.manager": &*scene.manager, "xtm-reconcile.lock": lock.to_string()});
    let body = json!({"Image": "xtm-reconcile/empty:1", "Cmd": ["never-started"], "Labels": labels});
    let path = format!("/containers/create?name=xtm-reconcile-lock-{}", &*scene.manager);
    scene.engine.post(&path, &body).expect_success("a former lock");
    let report = scene.pass_of_both(exit::LOCKED);
    assert_eq!(lane(&report, OPENCTI)["exit_code"], exit::LOCKED, "{report:#}");
    assert_eq!(lane(&report, OPENAEV)["exit_code"], exit::OK, "it knew OpenCTI alone: {report:#}");
}

#[test]
fn plan_and_check_cover_both_lanes_and_write_nothing() {
    let scene = Scene::new("look");
    scene.connector("a");
    scene.instance("b");
    let plan = scene.both().arg("plan").run().expect_code(exit::OK.into()).json();
    assert_eq!(lane(&plan, OPENCTI)["counts"]["steps"], json!({"deploy": 1}), "{plan:#}");
    assert!(lane(&plan, OPENAEV)["notices"].to_string().contains("registered composer alone"), "{plan:#}");
    let writes: Vec<_> = scene.platform.journal().into_iter().filter(stand_in_platform::Call::writes).collect();
    assert!(writes.is_empty(), "{writes:?}");
    assert!(scene.markers().is_empty());
    scene.pass_of_both(exit::OK);
    scene.instance("c");
    let plan =
        scene.both().arg("plan").arg("--detailed-exitcode").run().expect_code(exit::CHANGES_PENDING.into()).json();
    assert_eq!(lane(&plan, OPENAEV)["counts"]["steps"], json!({"deploy": 1}), "{plan:#}");
    let check = scene.both().arg("check").run().expect_code(exit::OK.into()).json();
    for name in [OPENCTI, OPENAEV] {
        let lines = check["checks"].as_array().unwrap().iter().filter(|line| line["lane"] == name);
        let said: Vec<_> = lines.map(|line| line["what"].as_str().unwrap()).collect();
        for what in ["platform", "token", "capability", "registration", "connectors", "engine"] {
            assert!(said.contains(&what), "{name}: {what} is missing: {check:#}");
        }
    }
}

// Shows what README says under "What a pass does": "**A list that the platform cannot give** because of one broken
// connector names that connector".
#[test]
fn a_list_that_one_broken_connector_spoils_names_it_and_health_is_sent_all_the_same() {
    let scene = Scene::new("spoilt");
    scene.connector("a");
    scene.connector("b");
    scene.instance("c");
    scene.pass_of_both(exit::OK);
    scene.platform.edit(|state| {
        state.connectors[1].broken = true;
        for connector in &mut state.connectors {
            connector.health = None;
        }
    });
    let report = scene.pass_of_both(exit::PLATFORM);
    let cti = lane(&report, OPENCTI);
    let said = cti["errors"].to_string();
    assert!(said.contains("place 2") || said.contains("id-b"), "the connector is named: {said}");
    assert_eq!(cti["platform"]["sent"], json!({"status": 0, "health": 2, "logs": 0}), "{report:#}");
    assert!(scene.platform.read(|state| state.connectors.iter().all(|connector| connector.health.is_some())));
    assert_eq!(lane(&report, OPENAEV)["exit_code"], exit::OK, "{report:#}");
    assert_eq!(scene.containers().len(), 3, "nothing was removed");
}
