//! What happens between our requests: controllers, people, lost answers, pods that do not end.

use serde_json::{Value, json};
use stand_in_platform::Connector;

use crate::cluster::values;
use crate::deploy::plain_deployment;
use crate::scene::{Scene, expect_all, faults, line, steps};
use crate::support::Signal;
use crate::tap::Fault;

#[test]
fn a_controller_that_writes_status_between_our_requests_is_no_conflict() {
    let scene = Scene::new("controller");
    scene.connector_with("alpha", |connector| connector.secret("API_PASSWORD", "x"));
    // The take-over names the version that the create gave; the controller has written by then.
    let gate = scene.cluster.tap.hold("PATCH", "/deployments/alpha", 0);
    let running = scene.program().args(["run", "--output", "json"]).spawn();
    gate.wait();
    let path = format!("{}/status", scene.cluster.deployment_path("alpha"));
    let status = json!({ "status": { "observedGeneration": 1 } });
    scene.cluster.ask("PATCH", &path, "application/merge-patch+json", Some(&status));
    gate.open();
    let report = running.wait().expect_code(0).lane();
    assert_eq!(line(&report, "alpha")["result"], "done", "{report:#}");
    assert_eq!(scene.cluster.deployment("alpha")["spec"]["replicas"], 1);
}

#[test]
fn an_apply_that_landed_and_was_answered_with_an_error_loses_no_value() {
    let scene = Scene::running("landed", &["alpha"]);
    scene.change("alpha", |connector| *connector = connector.clone().secret("API_PASSWORD", "s3cr3t-value"));
    let late = r#"{"kind":"Status","status":"Failure","reason":"InternalError","message":"etcdserver: request timed out","code":500}"#;
    scene.cluster.tap.fault("PATCH", "/deployments/alpha", 1, Fault::AnswerAfter(500, late.to_owned()));
    let report = scene.pass().expect_code(1).lane();
    expect_all(&line(&report, "alpha").to_string(), &["etcdserver: request timed out"], "told");
    let deployment = scene.cluster.deployment("alpha").to_string();
    let secrets = scene.cluster.secrets();
    assert!(secrets.iter().any(|secret| deployment.contains(secret["metadata"]["name"].as_str().unwrap())));
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 5);
    scene.pass().expect_code(0);
    scene.expect_quiet("afterwards");
}

#[test]
fn a_secret_that_a_base_deployment_names_is_never_ours() {
    let scene = Scene::new("named");
    let theirs = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "prod-env-a" }, "stringData": { "k": "v" } });
    scene.cluster.expect("POST", &scene.cluster.path("api/v1", "secrets"), Some(&theirs));
    let env = json!([{ "name": "PROD", "valueFrom": { "secretKeyRef": { "name": "prod-env-a", "key": "k" } } }]);
    let base =
        json!({ "spec": { "template": { "spec": { "schedulerName": "nobody", "containers": [{ "env": env }] } } } });
    let pass = || {
        scene
            .pass_with(|p| p.var("OPENCTI__DAEMON__KUBERNETES__BASE_DEPLOYMENT_JSON", base.to_string()))
            .expect_code(0);
    };
    for value in ["first", "second", "third"] {
        let connector = Connector::new("id-alpha", "alpha", "i:1").requested("starting").secret("API_PASSWORD", value);
        scene.platform.edit(|state| state.connectors = vec![connector]);
        pass();
        scene.cluster.control();
        scene.cluster.running("alpha", 0, 5);
        pass();
        let secrets = scene.cluster.secrets();
        let named = |name: &str| secrets.iter().find(|secret| secret["metadata"]["name"] == name);
        assert_eq!(values(named("prod-env-a").expect("theirs stays"))["k"], "v");
    }
}

#[test]
fn a_misspelt_base_deployment_is_found_before_a_recreate_takes_anything_away() {
    let scene = Scene::new("trial");
    scene.connector_with("alpha", |mut connector| {
        connector.hash = Some("bbbb2222".to_owned());
        connector
    });
    let labels =
        json!({ "opencti-manager": scene.manager, "opencti-connector-id": "id-alpha", "opencti-platform": "opencti" });
    let made = scene.cluster.create_deployment(&plain_deployment("alpha", &labels), "xtm-composer");
    let base = r#"{"spec":{"template":{"spec":{"schedulerName":"nobody","nodeSelecter":{"disk":"fast"}}}}}"#;
    for _ in 0..2 {
        let outcome = scene.pass_with(|p| p.var("OPENCTI__DAEMON__KUBERNETES__BASE_DEPLOYMENT_JSON", base));
        let report = outcome.expect_code(1).lane();
        expect_all(&line(&report, "alpha").to_string(), &["nodeSelecter", "BASE_DEPLOYMENT"], "told");
        let still = scene.cluster.deployment("alpha");
        assert_eq!((&still["metadata"]["uid"], &still["spec"]["replicas"]), (&made["metadata"]["uid"], &json!(1)));
    }
}

/// Renamed, with a history of restarts.
fn renamed(name: &str) -> Scene {
    let scene = Scene::running(name, &["alpha"]);
    scene.cluster.running("alpha", 9, 400);
    scene.pass().expect_code(0);
    scene.change("alpha", |connector| "omega".clone_into(&mut connector.name));
    scene
}

fn total(scene: &Scene, deployment: &str) -> Value {
    let memory = scene.cluster.deployment(deployment)["metadata"]["annotations"]["xtm-reconcile/memory"].clone();
    let memory: Value = serde_json::from_str(memory.as_str().unwrap_or("{}")).unwrap();
    memory["window"]["total"].clone()
}

/// Pods of a connector that have not ended.
fn live(scene: &Scene) -> usize {
    scene
        .cluster
        .pods()
        .iter()
        .filter(|pod| !matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")))
        .count()
}

// Shows what README says under "On Kubernetes": "two instances never run at once".
#[test]
fn a_rename_that_is_killed_while_the_old_pod_ends_never_runs_two_and_keeps_the_history() {
    let scene = renamed("renamekill");
    let running = scene.program().args(["run", "--output", "json"]).spawn();
    scene.cluster.wait_for("the old one to be stopped", |cluster| {
        (cluster.deployment("alpha")["spec"]["replicas"] == 0).then_some(())
    });
    running.signal(Signal::KILL);
    running.wait();
    let lease = scene.cluster.leases()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let path = format!("{}/{lease}", scene.cluster.path("apis/coordination.k8s.io/v1", "leases"));
    scene.cluster.edit(&path, "test", &json!({ "spec": { "holderIdentity": null } }));

    // The next pass finds both, and the old pod still there: it waits for it, too.
    let second = scene.program().args(["run", "--output", "json"]).spawn();
    scene.cluster.tap.take_calls();
    scene.cluster.wait_for("it to look for the pod a few times", |cluster| {
        let looks = cluster.tap.take_calls().iter().filter(|call| call.path.ends_with("/pods")).count();
        (looks > 0 && cluster.deployment("omega")["spec"]["replicas"] == 0).then_some(())
    });
    assert_eq!((live(&scene), &scene.cluster.deployment("omega")["spec"]["replicas"]), (1, &json!(0)));
    scene.cluster.control();
    let report = second.wait().expect_code(0).lane();
    assert!(!scene.cluster.has_deployment("alpha"), "{report:#}");
    assert_eq!(scene.cluster.deployment("omega")["spec"]["replicas"], 1, "{report:#}");
    scene.cluster.running("omega", 0, 5);
    scene.pass().expect_code(0);
    assert_eq!((live(&scene), total(&scene, "omega")), (1, json!(9)));
    scene.expect_quiet("renamed");
}

#[test]
fn a_rename_keeps_the_history_of_restarts() {
    let scene = renamed("renametotal");
    let running = scene.program().args(["run", "--output", "json"]).spawn();
    scene.cluster.wait_for("the old one to be stopped", |cluster| {
        let old = cluster.ask("GET", &cluster.deployment_path("alpha"), "application/json", None);
        (old.0 == 404 || old.1["spec"]["replicas"] == 0).then_some(())
    });
    scene.cluster.control();
    running.wait().expect_code(0);
    assert_eq!(total(&scene, "omega"), 9);
}

// Shows what README says under "On Kubernetes": "a connector whose last pod has not ended is not started".
#[test]
fn a_connector_is_not_started_while_its_last_pod_has_not_ended() {
    let scene = Scene::running("ending", &["alpha"]);
    scene.change("alpha", |connector| "stopping".clone_into(&mut connector.requested_status));
    scene.pass().expect_code(0);
    // Its pod takes its time: stopped on the platform, and started again meanwhile.
    scene.change("alpha", |connector| "starting".clone_into(&mut connector.requested_status));
    let report = scene.pass().expect_code(0).lane();
    assert_eq!((&line(&report, "alpha")["skip"]["kind"], steps(&report)), (&json!("pending"), vec![]), "{report:#}");
    scene.cluster.control();
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "start".to_owned())], "{report:#}");
}

#[test]
fn a_pod_that_outlives_its_deployment_keeps_another_instance_away() {
    let scene = Scene::running("outlives", &["alpha", "beta"]);
    scene.cluster.delete(&format!("{}?propagationPolicy=Orphan", scene.cluster.deployment_path("alpha")));
    let report = scene.pass().expect_code(1).lane();
    expect_all(&line(&report, "alpha")["error"].to_string(), &["still runs without a Deployment"], "told");
    assert!(!scene.cluster.has_deployment("alpha"));
    scene.cluster.control();
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "deploy".to_owned())], "{report:#}");
}

#[test]
fn a_pod_whose_rollout_is_paused_or_that_hangs_is_told_of() {
    let scene = Scene::running("hangs", &["alpha"]);
    scene.cluster.edit(&scene.cluster.deployment_path("alpha"), "kubectl", &json!({ "spec": { "paused": true } }));
    let report = scene.pass().expect_code(0).lane();
    expect_all(&line(&report, "alpha")["troubles"].to_string(), &["paused"], "paused");
}

// Shows what README says under "On Kubernetes": "a `proxy-url` does not, and `HTTPS_PROXY` of the process is the
// platform's alone".
#[test]
fn the_environments_proxy_is_not_the_api_servers_and_its_password_is_not_shown() {
    let scene = Scene::running("envproxy", &["alpha"]);
    let proxy = "http://bob:pa55word@127.0.0.1:1";
    let report = scene.pass_with(|p| p.var("HTTPS_PROXY", proxy).var("HTTP_PROXY", proxy).var("NO_PROXY", "a,,b"));
    let report = report.expect_code(0);
    assert!(!format!("{}{}", report.stdout, report.stderr).contains("pa55word"));
    let kubeconfig = std::fs::read_to_string(scene.cluster.kubeconfig()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    std::fs::write(
        &path,
        kubeconfig.replace("cluster: {server:", "cluster: {proxy-url: 'http://bob:pa55word@p:1', server:"),
    )
    .unwrap();
    let outcome = scene.pass_with(|p| p.var("KUBECONFIG", &path)).expect_code(78);
    expect_all(&format!("{}{}", outcome.stdout, outcome.stderr), &["KUBECONFIG", "proxy-url"], "refused");
    assert!(!outcome.stdout.contains("pa55word") && !outcome.stderr.contains("pa55word"));
}

// Shows what README says under "On Kubernetes": "Credential plugins work".
#[test]
fn a_credentials_plugin_that_fails_shows_neither_its_variables_nor_what_it_prints() {
    let scene = Scene::new("plugin");
    let kubeconfig = std::fs::read_to_string(scene.cluster.kubeconfig()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (path, plugin) = (folder.path().join("kubeconfig"), folder.path().join("plugin"));
    let write_plugin = |text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(&plugin, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let exec = format!(
        "user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, args: [{}], interactiveMode: Never, env: [{{name: VAULT, value: env-s3cr3t}}]}}}}",
        plugin.display()
    );
    std::fs::write(&path, kubeconfig.replace("user: {token: the-programs-token}", &exec)).unwrap();
    write_plugin("echo printed-s3cr3t; echo printed-s3cr3t >&2; exit 3");
    let outcome = scene.pass_with(|p| p.var("KUBECONFIG", &path).var("RUST_LOG", "trace")).expect_code(4);
    expect_all(&faults(&outcome.lane()), &["credentials plugin", "exit status: 3"], "told");
    assert!(!format!("{}{}", outcome.stdout, outcome.stderr).contains("s3cr3t"), "{outcome:?}");
    // And one that works is used.
    let token = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"from-the-plugin"}}"#;
    write_plugin(&format!("echo '{token}'"));
    scene.pass_with(|p| p.var("KUBECONFIG", &path)).expect_code(0);
}

// Shows what README says under "On Kubernetes": "proxy URLs and the proxy's CA".
#[test]
fn proxies_that_the_platform_gives_stay_out_of_the_deployment() {
    let scene = Scene::new("platformproxy");
    scene.platform.edit(|state| {
        state.proxy.http_proxy = Some("http://user:hunter2@proxy:3128".to_owned());
        state.proxy.https_proxy = Some("http://user:hunter2@proxy:3128".to_owned());
    });
    scene.connector("alpha");
    scene.pass().expect_code(0);
    assert!(!scene.cluster.deployment("alpha").to_string().contains("hunter2"));
    assert_eq!(values(&scene.cluster.secrets()[0])["HTTP_PROXY"], "http://user:hunter2@proxy:3128");
}

/// Of three configurations the third uses the first one's Secret again; somebody goes back to what was; a note is lost.
#[test]
fn a_secret_that_is_in_use_again_is_not_taken_away() {
    let scene = Scene::new("again");
    let configure = |value: &str| {
        let connector = Connector::new("id-alpha", "alpha", "i:1").requested("starting").secret("API_PASSWORD", value);
        scene.platform.edit(|state| state.connectors = vec![connector]);
        scene.pass().expect_code(0);
    };
    let in_use = || {
        let deployment = scene.cluster.deployment("alpha").to_string();
        let secrets = scene.cluster.secrets();
        let used = secrets.iter().filter(|secret| deployment.contains(secret["metadata"]["name"].as_str().unwrap()));
        used.map(|secret| values(secret)["API_PASSWORD"].clone()).collect::<Vec<_>>()
    };
    configure("first");
    scene.cluster.running("alpha", 0, 60);
    let first = scene.cluster.deployment("alpha");
    configure("second");
    // As `kubectl rollout undo` does: the template before, before the next pass.
    let (code, _) = scene.cluster.ask(
        "PATCH",
        &format!("{}?fieldManager=kubectl-rollout", scene.cluster.deployment_path("alpha")),
        "application/json-patch+json",
        Some(&json!([{ "op": "replace", "path": "/spec/template", "value": first["spec"]["template"] }])),
    );
    assert_eq!(code, 200);
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 60);
    scene.pass();
    assert_eq!(in_use(), ["first"], "what was gone back to has its values");

    // The note of the third is lost: the second's still names the first one's Secret.
    configure("third");
    let note = scene.cluster.deployment("alpha")["metadata"]["annotations"]["xtm-reconcile/applied"].clone();
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 5);
    configure("fourth");
    let path = scene.cluster.deployment_path("alpha");
    scene.cluster.edit(&path, "test", &json!({ "metadata": { "annotations": { "xtm-reconcile/applied": note } } }));
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 5);
    scene.pass();
    assert_eq!(in_use(), ["fourth"]);
}

#[test]
fn a_pod_that_does_not_end_and_one_that_nobody_owns_are_named() {
    let scene = Scene::running("hung", &["alpha", "beta"]);
    // On its way out for long: on a node that is gone.
    let pod = scene.cluster.pod("alpha");
    let name = pod["metadata"]["name"].as_str().unwrap();
    let path = format!("{}/{name}", scene.cluster.path("api/v1", "pods"));
    if let Some(stand_in) = scene.cluster.stand_in() {
        let mut hung = pod.clone();
        hung["apiVersion"] = "v1".into();
        hung["kind"] = "Pod".into();
        hung["metadata"]["name"] = "alpha-hung".into();
        hung["metadata"]["namespace"] = scene.cluster.namespace.clone().into();
        hung["metadata"]["deletionTimestamp"] = crate::cluster::ago(3600).into();
        hung["metadata"]["finalizers"] = json!(["example.org/keep"]);
        hung["metadata"].as_object_mut().unwrap().remove("uid");
        stand_in.seed(vec![hung]).unwrap();
        scene.cluster.delete(&path);
        scene.change("alpha", |connector| "stopping".clone_into(&mut connector.requested_status));
        scene.pass();
        scene.change("alpha", |connector| "starting".clone_into(&mut connector.requested_status));
        let report = scene.pass().expect_code(1).lane();
        let parts = ["alpha-hung has not ended in 10 minutes", "its node may be gone"];
        expect_all(&line(&report, "alpha")["troubles"].to_string(), &parts, "hung");
        assert_eq!(steps(&report), [], "{report:#}");
    }
    scene.cluster.delete(&format!("{}?propagationPolicy=Orphan", scene.cluster.deployment_path("beta")));
    let report = scene.pass().expect_code(1).lane();
    expect_all(&line(&report, "beta")["error"].to_string(), &["delete its ReplicaSet beta-"], "orphan");
}

#[test]
fn an_initial_container_that_crashes_keeps_the_connector_from_running() {
    let scene = Scene::running("init", &["alpha"]);
    let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
    let own = json!({ "waiting": { "reason": "PodInitializing", "message": "" } });
    let status = |name: &str, state: &Value, restarts: u64| json!({ "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": {} });
    let pod = scene.cluster.pod("alpha");
    scene.cluster.set_status(
        &pod,
        &json!({ "phase": "Pending", "initContainerStatuses": [status("prepare", &waiting, 4)], "containerStatuses": [status("connector", &own, 0)] }),
    );
    let report = scene.pass().expect_code(1).lane();
    assert_eq!(line(&report, "alpha")["troubles"][0]["kind"], "wont-start", "{report:#}");
}

#[test]
fn an_address_that_is_none_and_one_that_is_no_api_server_are_told_as_such() {
    let scene = Scene::new("address");
    let kubeconfig = std::fs::read_to_string(scene.cluster.kubeconfig()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.replace(&scene.cluster.tap.url(), "not-a-url")).unwrap();
    let outcome = scene.pass_with(|p| p.var("KUBECONFIG", &path)).expect_code(4);
    expect_all(&faults(&outcome.lane()), &["not-a-url", "is no URL"], "no URL");
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    scene.cluster.tap.fault("GET", "/version", 1, Fault::Answer(200, None, "<html>hello</html>".to_owned()));
    let outcome = scene.pass().expect_code(4);
    expect_all(&faults(&outcome.lane()), &["cannot be read", "address of a Kubernetes API server"], "a web page");
}
