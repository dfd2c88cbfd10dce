//! An API server that fails, refuses, or is not there.

use serde_json::{Value, json};

use crate::cluster::shipped_rules;
use crate::scene::{Scene, expect_all, faults, line, steps};
use crate::tap::Fault;

fn status(code: u16, reason: &str, message: &str) -> String {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code }).to_string()
}

/// The state of everything but the Lease.
fn state(scene: &Scene) -> Value {
    json!([scene.cluster.deployments(), scene.cluster.secrets(), scene.cluster.pods()])
}

// Shows what README says under "What a pass does": "A failed or partial list removes nothing.".
#[test]
fn a_listing_that_fails_ends_the_pass_and_touches_nothing() {
    let scene = Scene::running("listing", &["alpha", "beta"]);
    // Were it read as "nothing there", everything would be deployed anew.
    let before = state(&scene);
    let answers = [
        (500, status(500, "InternalError", "etcdserver: request timed out"), "etcdserver: request timed out"),
        (401, status(401, "Unauthorized", "Unauthorized"), "does not accept who we are"),
        (403, status(403, "Forbidden", "deployments.apps is forbidden"), "deployments.apps is forbidden"),
        (200, "<html>sign in</html>".to_owned(), "the answer cannot be read"),
        (200, "{\"items\":[{\"metadata\":".to_owned(), "the answer cannot be read"),
        (200, "{}".to_owned(), "items"),
    ];
    for resource in ["/deployments", "/pods"] {
        for (code, body, told) in &answers {
            scene.cluster.tap.fault("GET", resource, 1, Fault::Answer(*code, None, body.clone()));
            let outcome = scene.pass();
            let report = outcome.expect_code(4).lane();
            expect_all(&faults(&report), &[told, "list", &scene.cluster.namespace], &format!("{resource} {code}"));
            assert_eq!(scene.cluster.tap.clear_faults(), 0);
            assert_eq!(state(&scene), before, "{resource} {code}");
            assert_eq!(scene.cluster.leases()[0]["spec"]["holderIdentity"], Value::Null, "the lock is given back");
        }
    }
}

#[test]
fn an_api_server_that_throttles_or_drops_connections_is_asked_again() {
    let scene = Scene::new("throttle");
    for name in ["alpha", "beta"] {
        scene.connector_with(name, |connector| connector.secret("API_PASSWORD", "s3cr3t-value"));
    }
    let busy = Fault::Answer(429, Some(1), "Too many requests, please try again later.\n".to_owned());
    for (method, part) in
        [("GET", "/deployments"), ("POST", "/deployments"), ("PATCH", "/secrets/"), ("GET", "/leases/")]
    {
        scene.cluster.tap.fault(method, part, 2, busy.clone());
    }
    scene.cluster.tap.fault("GET", "/pods", 1, Fault::Drop);
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(report["counts"]["steps"], json!({ "deploy": 2 }), "{report:#}");
    assert_eq!(scene.cluster.tap.clear_faults(), 0, "all of it happened");

    // For ever: the pass gives up, and says so.
    scene.cluster.tap.fault("GET", "/deployments", 1000, busy);
    let report = scene.pass().expect_code(4).lane();
    expect_all(&faults(&report), &["Too many requests", "overloaded"], "for ever");
}

#[test]
fn an_answer_that_is_lost_leads_to_the_same_state() {
    for (method, part) in [
        ("POST", "/deployments"),
        ("PATCH", "/deployments/"),
        ("PATCH", "/secrets/"),
        ("PATCH", "/scale"),
        ("DELETE", "/deployments/"),
    ] {
        let scene = Scene::running("lostanswer", &["beta", "gamma"]);
        scene.connector_with("alpha", |connector| connector.secret("API_PASSWORD", "s3cr3t-value"));
        scene.change("beta", |connector| "stopping".clone_into(&mut connector.requested_status));
        scene.platform.edit(|state| state.connectors.retain(|connector| connector.name != "gamma"));
        scene.cluster.tap.fault(method, part, 1, Fault::DropAfter);
        let report = scene.pass().lane();
        assert_eq!(scene.cluster.tap.clear_faults(), 0, "{method} {part} happened");
        scene.pass();
        let alpha = scene.cluster.deployment("alpha");
        assert_eq!(alpha["spec"]["replicas"], 1, "{method} {part}: {report:#}");
        assert_eq!(scene.cluster.deployment("beta")["spec"]["replicas"], 0, "{method} {part}");
        assert!(!scene.cluster.has_deployment("gamma"), "{method} {part}");
        assert_eq!(scene.cluster.secrets().len(), 1, "{method} {part}");
        scene.cluster.control();
        scene.cluster.running("alpha", 0, 5);
        scene.pass().expect_code(0);
        scene.expect_quiet(&format!("{method} {part}"));
    }
}

// Shows what deploy/kubernetes/README.md says under "What the Role grants": "names those that are missing".
#[test]
fn a_verb_that_is_not_granted_is_named_with_its_resource_and_namespace() {
    let scene = Scene::running("forbidden", &["alpha"]);
    if scene.cluster.stand_in().is_none() {
        // A real cluster has rules of its own; the words are the API server's, and stand below as faults.
        return by_answer(&scene);
    }
    scene.connector_with("beta", |connector| connector.secret("API_PASSWORD", "s3cr3t-value"));
    let without = |resource: &str, verb: &str| {
        let mut rules = shipped_rules();
        for rule in rules.iter_mut().filter(|rule| rule.resources.iter().any(|known| known == resource)) {
            rule.verbs.retain(|known| known != verb);
        }
        rules
    };
    for (resource, verb, code) in [
        ("leases", "get", 4),
        ("leases", "patch", 4),
        ("deployments", "list", 4),
        ("pods", "list", 4),
        ("deployments", "create", 1),
        ("secrets", "create", 1),
        ("pods/log", "get", 1),
    ] {
        let program = scene.program().args(["run", "--output", "json"]);
        let outcome = scene.cluster.under_rules(Some(without(resource, verb)), || program.run());
        let report = outcome.expect_code(code).lane();
        let text = report.to_string();
        let cannot = format!("cannot {verb} resource \\\"{resource}\\\"");
        let parts = [cannot.as_str(), &scene.cluster.namespace, "deploy/kubernetes has the Role"];
        expect_all(&text, &parts, &format!("{verb} {resource}"));

        // `check` finds it without a pass, and nothing but it.
        let check = scene.program().arg("check");
        let told = scene.cluster.under_rules(Some(without(resource, verb)), || check.run()).stdout;
        expect_all(&told, &[&format!("may not {verb} {resource} of ")], "check");
        assert_eq!(told.matches("may not ").count(), 1, "{told}");
    }
    scene.pass().expect_code(0);
}

fn by_answer(scene: &Scene) {
    let message = "pods is forbidden: User \"x\" cannot list resource \"pods\"";
    scene.cluster.tap.fault("GET", "/pods", 1, Fault::Answer(403, None, status(403, "Forbidden", message)));
    let report = scene.pass().expect_code(4).lane();
    expect_all(&faults(&report), &[message, &scene.cluster.namespace, "deploy/kubernetes has the Role"], "forbidden");
}

#[test]
fn a_namespace_that_does_not_exist_is_named_and_never_read_as_empty() {
    let scene = Scene::new("nowhere");
    scene.connector("alpha");
    for command in ["run", "plan", "check"] {
        let program = scene.program().var("OPENCTI__DAEMON__KUBERNETES__NAMESPACE", "nowhere-at-all");
        let outcome = program.args([command, "--output", "json"]).run().expect_code(4);
        expect_all(&outcome.stdout, &["namespaces \\\"nowhere-at-all\\\" not found", "create the namespace"], command);
    }
}

#[test]
fn a_token_that_expired_is_told_as_such() {
    let scene = Scene::running("expired", &["alpha"]);
    let refused = Fault::Answer(401, None, status(401, "Unauthorized", "Unauthorized"));
    // From the first request, and in the middle of a pass.
    for part in ["/version", "/leases/", "/pods"] {
        scene.cluster.tap.fault("GET", part, 1, refused.clone());
        let report = scene.pass().expect_code(4).lane();
        expect_all(&faults(&report), &["Unauthorized", "is expired or wrong"], part);
    }
}

#[test]
fn nobody_there_and_somebody_else_there() {
    let scene = Scene::new("nobody");
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = |server: &str| {
        let path = folder.path().join("kubeconfig");
        let text = std::fs::read_to_string(scene.cluster.kubeconfig()).unwrap();
        std::fs::write(&path, text.replace(&scene.cluster.tap.url(), server)).unwrap();
        path
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let report = scene
        .pass_with(|p| p.var("KUBECONFIG", kubeconfig(&closed)).var("MANAGER__PASS_DEADLINE", "20"))
        .expect_code(4)
        .lane();
    expect_all(&faults(&report), &[&closed, "cannot be reached", "Connection refused"], "closed");
    let report = scene.pass_with(|p| p.var("KUBECONFIG", kubeconfig(&scene.platform.url()))).expect_code(4).lane();
    expect_all(&faults(&report), &[&scene.platform.url()], "a platform is no API server");
    let tls = scene.cluster.tap.url().replace("http:", "https:");
    let report = scene
        .pass_with(|p| p.var("KUBECONFIG", kubeconfig(&tls)).var("MANAGER__PASS_DEADLINE", "20"))
        .expect_code(4)
        .lane();
    expect_all(&faults(&report), &["cannot be reached"], "no TLS there");
}

#[test]
fn a_list_whose_next_page_is_gone_is_begun_again() {
    let scene = Scene::running("gone", &["alpha"]);
    let page = scene.cluster.expect("GET", &scene.cluster.path("apis/apps/v1", "deployments"), None);
    let mut first = page.clone();
    first["metadata"]["continue"] = "a-token-that-is-too-old".into();
    scene.cluster.tap.fault("GET", "/deployments", 1, Fault::Answer(200, None, first.to_string()));
    scene.cluster.tap.fault(
        "GET",
        "/deployments",
        1,
        Fault::Answer(410, None, status(410, "Expired", "The provided continue parameter is too old")),
    );
    let report = scene.pass().expect_code(0).lane();
    assert_eq!((steps(&report), &report["orchestrator"]["workloads"]), (vec![], &json!(1)), "{report:#}");
    assert_eq!(scene.cluster.tap.clear_faults(), 0);
}

// Shows what README says under "What a pass does": "**One connector's fault stays its own.**".
#[test]
fn one_connectors_failure_does_not_stop_its_siblings() {
    let scene = Scene::new("siblings");
    for name in ["alpha", "beta", "gamma"] {
        scene.connector(name);
    }
    // Two connectors of one name, one that cannot be decrypted, one that is malformed, and one that the server refuses.
    scene.connector_with("broken", |connector| connector.requested("dancing"));
    scene.platform.edit(|state| {
        let mut twin = state.connectors[0].clone();
        twin.id = "id-twin".to_owned();
        state.connectors.push(twin);
    });
    scene.cluster.tap.fault(
        "POST",
        "/deployments",
        1,
        Fault::Answer(422, None, status(422, "Invalid", "Deployment.apps is invalid: spec: too odd")),
    );
    let report = scene.pass_with(|p| p.var("MANAGER__CONCURRENCY", "1")).expect_code(1).lane();
    assert_eq!(report["counts"]["steps"], json!({ "deploy": 2 }), "{report:#}");
    assert_eq!((&report["counts"]["failed"], &report["counts"]["rejected"]), (&json!(1), &json!(2)), "{report:#}");
    expect_all(&line(&report, "alpha").to_string(), &["too odd"], "refused");
    scene.pass().expect_code(1);
    assert_eq!(scene.cluster.deployments().len(), 3);
}

#[test]
fn a_pass_killed_at_any_write_is_completed_by_the_next() {
    // Which writes there are is learned from a pass that nobody disturbs.
    let prepare = || {
        let scene = Scene::running("killed", &["beta", "gamma", "delta"]);
        scene.connector_with("alpha", |connector| connector.secret("API_PASSWORD", "s3cr3t-value"));
        scene.change("beta", |connector| "stopping".clone_into(&mut connector.requested_status));
        scene.change("delta", |connector| {
            "registry.example/connector:2".clone_into(&mut connector.image);
            *connector = connector.clone().secret("API_PASSWORD", "later");
        });
        scene.platform.edit(|state| state.connectors.retain(|connector| connector.name != "gamma"));
        scene.cluster.tap.take_calls();
        scene
    };
    let one_at_a_time =
        |scene: &Scene| scene.program().var("MANAGER__CONCURRENCY", "1").args(["run", "--output", "json"]);
    let scene = prepare();
    one_at_a_time(&scene).run().expect_code(0);
    let writes = scene.writes();
    assert!(writes.len() >= 12, "{writes:#?}");
    for (place, write) in writes.iter().enumerate() {
        let scene = prepare();
        let gate = scene.cluster.tap.hold("ANY-WRITE", "", place);
        let running = one_at_a_time(&scene).spawn();
        gate.wait();
        running.signal(crate::support::Signal::KILL);
        running.wait();
        gate.open();
        let what = format!("killed at {write}");
        // Its Lease is left and expires.
        let lease = &scene.cluster.leases()[0];
        let path = format!(
            "{}/{}",
            scene.cluster.path("apis/coordination.k8s.io/v1", "leases"),
            lease["metadata"]["name"].as_str().unwrap()
        );
        scene.cluster.ask(
            "PATCH",
            &path,
            "application/merge-patch+json",
            Some(&json!({ "spec": { "holderIdentity": null } })),
        );
        scene.pass().expect_code(0);
        assert_eq!(scene.cluster.deployment("alpha")["spec"]["replicas"], 1, "{what}");
        assert_eq!(scene.cluster.deployment("beta")["spec"]["replicas"], 0, "{what}");
        assert!(!scene.cluster.has_deployment("gamma"), "{what}");
        let delta = scene.cluster.deployment("delta");
        assert_eq!(
            delta["spec"]["template"]["spec"]["containers"][0]["image"], "registry.example/connector:2",
            "{what}"
        );
        let secrets = scene.cluster.secrets();
        for name in ["alpha", "delta"] {
            let deployment = scene.cluster.deployment(name).to_string();
            let used =
                secrets.iter().filter(|secret| deployment.contains(secret["metadata"]["name"].as_str().unwrap()));
            assert_eq!(used.count(), 1, "{what}: {name} has its values");
        }
        scene.cluster.control();
        for name in ["alpha", "delta"] {
            scene.cluster.running(name, 0, 5);
        }
        scene.pass().expect_code(0);
        scene.expect_quiet(&what);
    }
}

// Shows what deploy/kubernetes/README.md says under "Why the CronJob is as it is": "on SIGTERM nothing new starts,
// running steps finish, the lock is given back".
#[test]
fn a_signal_lets_what_runs_finish_and_gives_the_lease_back() {
    let scene = Scene::new("signal");
    for name in ["alpha", "beta", "gamma"] {
        scene.connector_with(name, |connector| connector.secret("API_PASSWORD", "s3cr3t-value"));
    }
    let gate = scene.cluster.tap.hold("POST", "/deployments", 0);
    let running = scene.program().var("MANAGER__CONCURRENCY", "1").args(["run", "--output", "json"]).spawn();
    gate.wait();
    running.signal(crate::support::Signal::TERM);
    running.wait_for_stderr("SIGTERM was received", std::time::Duration::from_secs(10));
    gate.open();
    let report = running.wait().expect_code(143).lane();
    assert_eq!(report["counts"]["steps"], json!({ "deploy": 1 }), "{report:#}");
    assert_eq!(report["counts"]["not_done"], 2, "{report:#}");
    assert_eq!(scene.cluster.deployment("alpha")["spec"]["replicas"], 1, "what was begun is complete");
    assert_eq!(scene.cluster.deployments().len(), 1);
    assert_eq!(scene.cluster.leases()[0]["spec"]["holderIdentity"], Value::Null);
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(report["counts"]["steps"], json!({ "deploy": 2 }), "{report:#}");
}

// Shows what deploy/kubernetes/README.md says under "Why the CronJob is as it is": "`MANAGER__STOP_BUDGET` (20 unless
// set) for what is left then".
#[test]
fn an_api_server_that_hangs_keeps_no_pass_beyond_its_deadline_and_its_budget() {
    let scene = Scene::new("hangs");
    for name in ["alpha", "beta"] {
        scene.connector(name);
    }
    let gate = scene.cluster.tap.hold("POST", "/deployments", 0);
    let limits = |p: crate::support::Binary| p.var("MANAGER__PASS_DEADLINE", "3").var("MANAGER__STOP_BUDGET", "4");
    let outcome = scene.pass_with(limits).expect_code(1);
    // Three seconds of slack for a busy machine.
    assert!(outcome.took < std::time::Duration::from_secs(3 + 4 + 3), "{:?}", outcome.took);
    assert!(outcome.stdout.contains("MANAGER__STOP_BUDGET"), "{}", outcome.stdout);
    assert_eq!(scene.cluster.leases()[0]["spec"]["holderIdentity"], Value::Null, "the lock is given back");
    gate.open();
    scene.pass().expect_code(0);
    assert_eq!(scene.cluster.deployments().len(), 2);
}
