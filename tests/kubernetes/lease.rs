//! The Lease: lock and pass record.

use serde_json::{Value, json};
use stand_in_platform::{Fault, FaultKind};

use crate::cluster::ago;
use crate::scene::{Scene, expect_all, faults, line, steps};
use crate::support::Signal;
use crate::tap::Fault as ClusterFault;

fn lease(scene: &Scene) -> Value {
    let leases = scene.cluster.leases();
    assert_eq!(leases.len(), 1, "{leases:#?}");
    leases[0].clone()
}

fn lease_path(scene: &Scene) -> String {
    let name = lease(scene)["metadata"]["name"].as_str().unwrap().to_owned();
    format!("{}/{name}", scene.cluster.path("apis/coordination.k8s.io/v1", "leases"))
}

fn edit(scene: &Scene, patch: &Value) {
    let path = lease_path(scene);
    let (code, answer) = scene.cluster.ask("PATCH", &path, "application/merge-patch+json", Some(patch));
    assert!(code < 300, "{answer:#}");
}

// Shows what README says under "On Kubernetes": "which is the lock (held for a minute at a time and renewed"; and what
// deploy/kubernetes/README.md says under "Why the CronJob is as it is": "a second pass would find the lock taken and
// exit with 6".
#[test]
fn a_pass_holds_the_lease_and_gives_it_back_with_what_it_remembers() {
    let scene = Scene::new("lease");
    scene.connector("alpha");
    let gate = scene.cluster.tap.hold("POST", "/deployments", 0);
    let running = scene.program().args(["run", "--output", "json"]).spawn();
    gate.wait();
    let held = lease(&scene);
    assert_eq!(held["metadata"]["name"], format!("xtm-reconcile-{}-opencti", scene.manager));
    assert_eq!(held["metadata"]["labels"]["opencti-manager"], scene.manager);
    assert!(held["spec"]["holderIdentity"].as_str().unwrap().contains('_'), "{held:#}");

    // A second pass says by whom it is held and since when, and touches nothing.
    scene.cluster.tap.take_calls();
    let second = scene.program().args(["run", "--output", "json"]).run().expect_code(6).lane();
    expect_all(
        &faults(&second),
        &["another pass holds the lock", "(process ", "since ", "expires a minute after"],
        "locked",
    );
    assert_eq!(scene.writes(), [] as [String; 0]);

    gate.open();
    running.wait().expect_code(0);
    let free = lease(&scene);
    assert_eq!(free["spec"]["holderIdentity"], Value::Null, "{free:#}");
    let registration = free["metadata"]["annotations"]["xtm-reconcile/registration"].as_str().unwrap();
    let registration: Value = serde_json::from_str(registration).unwrap();
    assert_eq!(registration["v"], 1, "{registration:#}");
    scene.pass().expect_code(0);
    assert_eq!(lease(&scene)["spec"]["leaseTransitions"], 1);
}

// Shows what README says under "On Kubernetes": "one of a killed pass expires a minute after its last sign of life".
#[test]
fn a_lease_that_expired_is_taken_over_and_one_that_did_not_is_not() {
    let scene = Scene::running("expired", &["alpha"]);
    let held = |age: i64| json!({ "spec": { "holderIdentity": "0badcafe_a-pod_7", "leaseDurationSeconds": 60, "acquireTime": format!("{}", micro(age)), "renewTime": micro(age) } });
    edit(&scene, &held(20));
    let report = scene.pass().expect_code(6).lane();
    expect_all(&faults(&report), &["pass 0badcafe (process 7 on a-pod)"], "held");
    edit(&scene, &held(61));
    scene.pass().expect_code(0);
    assert_eq!(lease(&scene)["spec"]["holderIdentity"], Value::Null);
}

fn micro(seconds: i64) -> String {
    ago(seconds).replace('Z', ".000000Z")
}

#[test]
fn of_two_passes_that_both_see_it_free_one_gets_it() {
    let scene = Scene::running("race", &["alpha"]);
    // Both have looked; then both take.
    let gates = [scene.cluster.tap.hold("PATCH", "/leases/", 0), scene.cluster.tap.hold("PATCH", "/leases/", 0)];
    let running: Vec<_> = gates.iter().map(|_| scene.program().args(["run", "--output", "json"]).spawn()).collect();
    for gate in &gates {
        gate.wait();
    }
    // The one that wins is kept in its pass, so that the other one sees it held.
    let kept = scene.cluster.tap.hold("GET", "/deployments", 0);
    for gate in &gates {
        gate.open();
    }
    kept.wait();
    scene.cluster.wait_for("one of them to end", |_| running.iter().any(|pass| !pass.is_running()).then_some(()));
    kept.open();
    let mut codes: Vec<_> = running.into_iter().map(|pass| pass.wait().code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(6)]);
}

#[test]
fn a_pass_that_lost_its_lease_starts_nothing_more() {
    let scene = Scene::new("lost");
    for name in ["alpha", "beta", "gamma"] {
        scene.connector(name);
    }
    // Another pass takes over while this one waits for an answer, longer than it may go without renewing.
    let gate = scene.cluster.tap.hold("POST", "/deployments", 0);
    let running = scene.program().var("MANAGER__CONCURRENCY", "1").args(["run", "--output", "json"]).spawn();
    gate.wait();
    edit(&scene, &json!({ "spec": { "holderIdentity": "another_one_1", "renewTime": micro(0) } }));
    scene.cluster.wait_for("the program to see it", |cluster| {
        let lost = cluster
            .tap
            .take_calls()
            .iter()
            .any(|call| call.method == "GET" && call.path.contains("/leases/") && call.code == 200);
        lost.then_some(())
    });
    gate.open();
    let report = running.wait().expect_code(6).lane();
    expect_all(&faults(&report), &["another pass took over the lock"], "lost");
    assert!(!scene.cluster.has_deployment("gamma"), "{report:#}");
    assert_eq!(lease(&scene)["spec"]["holderIdentity"], "another_one_1", "it is not given back");
}

// Shows what README says under "On Kubernetes": "one of a killed pass expires a minute after its last sign of life";
// and what deploy/kubernetes/README.md says under "Why the CronJob is as it is": "that one may find the lock, which
// expires within a minute, and exit with 6".
#[test]
fn a_pass_that_was_killed_is_followed_once_its_lease_has_expired() {
    let scene = Scene::new("killed");
    scene.connector_with("alpha", |connector| connector.secret("API_PASSWORD", "s3cr3t-value"));
    let gate = scene.cluster.tap.hold("PATCH", "/secrets/", 0);
    let running = scene.program().args(["run", "--output", "json"]).spawn();
    gate.wait();
    running.signal(Signal::KILL);
    running.wait();
    gate.open();
    scene.pass().expect_code(6);
    edit(&scene, &json!({ "spec": { "renewTime": micro(61) } }));
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "refresh".to_owned())], "{report:#}");
    assert_eq!(scene.cluster.deployment("alpha")["spec"]["replicas"], 1);
}

#[test]
fn what_cannot_be_read_of_the_memory_is_told_and_counts_as_empty() {
    let scene = Scene::running("memory", &["alpha"]);
    let broken = [("{", "EOF"), (r#"{"v":99}"#, "version 99"), (r#"{"v":1,"window":7}"#, "invalid type")];
    for (text, why) in broken {
        let annotation = json!({ "metadata": { "annotations": { "xtm-reconcile/memory": text } } });
        scene.cluster.edit(&scene.cluster.deployment_path("alpha"), "somebody", &annotation);
        edit(&scene, &json!({ "metadata": { "annotations": { "xtm-reconcile/registration": text } } }));
        let report = scene.pass().expect_code(0).lane();
        let told = report["notices"].to_string();
        expect_all(
            &told,
            &["xtm-reconcile/memory of Deployment alpha cannot be read", "xtm-reconcile/registration of the Lease"],
            text,
        );
        if text != r#"{"v":1,"window":7}"# {
            expect_all(&told, &[why], text);
        }
        assert_eq!(line(&report, "alpha")["skip"]["kind"], "running");
        expect_all(&report["platform"].to_string(), &["there is no memory"], "registered again");
    }
}

#[test]
fn a_lease_of_somebody_else_is_left_alone() {
    let scene = Scene::new("foreign");
    let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": format!("xtm-reconcile-{}-opencti", scene.manager) } });
    scene.cluster.expect("POST", &scene.cluster.path("apis/coordination.k8s.io/v1", "leases"), Some(&lease));
    let report = scene.pass().expect_code(4).lane();
    expect_all(&faults(&report), &["somebody else's", "delete or rename that Lease"], "foreign");
}

#[test]
fn a_lease_request_whose_answer_is_lost_does_not_lock_us_out() {
    let scene = Scene::running("lostanswer", &["alpha"]);
    for place in 0..2 {
        scene.cluster.tap.fault_after("PATCH", "/leases/", place, 1, ClusterFault::DropAfter);
        scene.pass().expect_code(0);
        assert_eq!(scene.cluster.tap.clear_faults(), 0);
        assert_eq!(lease(&scene)["spec"]["holderIdentity"], Value::Null, "it was given back");
    }
    let scene = Scene::new("lostfirst");
    scene.cluster.tap.fault("POST", "/leases", 1, ClusterFault::DropAfter);
    scene.pass().expect_code(0);
}

#[test]
fn the_lease_keeps_when_a_pass_last_looked_so_that_a_loop_after_a_quiet_day_is_seen_at_once() {
    let scene = Scene::running("last-pass", &["alpha"]);
    let last_pass = || {
        let text = lease(&scene)["metadata"]["annotations"]["xtm-reconcile/last-pass"].clone();
        let last: Value = serde_json::from_str(text.as_str().expect("the Lease has the time")).unwrap();
        last["at"].as_i64().unwrap()
    };
    let before = last_pass();
    scene.platform.fault(Fault::on("connectorsForManagers", FaultKind::NullData).times(1));
    scene.pass().expect_code(3);
    assert_eq!(last_pass(), before, "a pass that got no list has not looked");
    scene.expect_quiet("the time is written with what gives the Lease back");

    let pod = scene.cluster.pod("alpha")["metadata"]["uid"].clone();
    let yesterday = before - 86_400;
    let window = json!({ "total": 1, "counter": 1, "generation": pod, "samples": [[yesterday, 1]] });
    let memory = json!({ "v": 1, "window": window }).to_string();
    let patch = json!({ "metadata": { "annotations": { "xtm-reconcile/memory": memory } } });
    let path = format!("{}/alpha", scene.cluster.path("apis/apps/v1", "deployments"));
    let (code, answer) = scene.cluster.ask("PATCH", &path, "application/merge-patch+json", Some(&patch));
    assert!(code < 300, "{answer:#}");
    scene.cluster.running("alpha", 5, 10);
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(line(&report, "alpha")["restarts"], 5, "{report:#}");
    assert_eq!(line(&report, "alpha")["reboot_loop"], true, "four since the last pass: {report:#}");
}
