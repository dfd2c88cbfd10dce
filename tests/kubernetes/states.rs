//! What pods and people do to connectors between passes, and what a pass says and does about it.

use serde_json::{Value, json};

use crate::cluster::ago;
use crate::scene::{Scene, expect_all, line, steps};

fn health(scene: &Scene, name: &str) -> (i64, bool) {
    let shown = scene.shown(name);
    let health = &shown["health"];
    (health["restart_count"].as_i64().unwrap_or(-1), health["is_in_reboot_loop"].as_bool().unwrap_or(false))
}

// Shows what README says under "On Kubernetes": "**What keeps a pod from running** (image, settings, quota, scheduling)
// reaches the report".
#[test]
fn every_trouble_of_a_pod_reaches_the_report_in_plain_words_with_its_cure() {
    let scene = Scene::running("trouble", &["alpha"]);
    for (reason, message, what, cure) in [
        ("ImagePullBackOff", "Back-off pulling image \"x\"", "its image cannot be pulled", "IMAGE_PULL_SECRETS"),
        ("ErrImagePull", "401 Unauthorized", "its image cannot be pulled", "see that the image exists"),
        ("InvalidImageName", "couldn't parse image name", "its image cannot be pulled", "image exists"),
        (
            "CreateContainerConfigError",
            "configmap \"feeds\" not found",
            "something that is not there",
            "create what is missing",
        ),
        ("CreateContainerError", "no command specified", "cannot start its container", "fit this node"),
    ] {
        scene.cluster.waiting("alpha", reason, message);
        let outcome = scene.pass().expect_code(1);
        let report = outcome.lane();
        let seen = line(&report, "alpha");
        assert_eq!((&seen["skip"]["kind"], &seen["result"]), (&json!("pending"), &json!("failed")), "{seen:#}");
        assert!(seen["troubles"][0]["detail"].as_str().unwrap().contains(message), "{seen:#}");
        assert_eq!(scene.shown("alpha")["current_status"], "stopped", "{reason}");
        let text = scene.cluster.under_rules(None, || scene.program().arg("plan").run()).stdout;
        expect_all(&text, &[reason, message, what, cure], reason);
    }

    let unscheduled = json!({ "phase": "Pending", "containerStatuses": null, "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient memory." }] });
    scene.cluster.set_status(&scene.cluster.pod("alpha"), &unscheduled);
    let report = scene.pass().expect_code(1).lane();
    assert_eq!(line(&report, "alpha")["troubles"][0]["kind"], "unschedulable", "{report:#}");
    expect_all(&report.to_string(), &["Insufficient memory"], "unschedulable");

    // Told to stop, none of this matters any more.
    scene.change("alpha", |connector| "stopping".clone_into(&mut connector.requested_status));
    scene.pass().expect_code(0);
    scene.expect_quiet("stopped");
}

// Shows what README says under "On Kubernetes": "**What keeps a pod from running** (image, settings, quota, scheduling)
// reaches the report".
#[test]
fn a_pod_that_is_being_made_is_waited_for() {
    let scene = Scene::new("pending");
    scene.connector("alpha");
    scene.pass().expect_code(0);
    for state in [None, Some("ContainerCreating")] {
        if let Some(reason) = state {
            scene.cluster.waiting("alpha", reason, "");
        }
        let report = scene.pass().expect_code(0).lane();
        assert_eq!(
            (&line(&report, "alpha")["skip"]["kind"], steps(&report)),
            (&json!("pending"), vec![]),
            "{report:#}"
        );
        assert_eq!(scene.shown("alpha")["current_status"], "stopped");
    }
    let message = "pods \"alpha-1\" is forbidden: exceeded quota: small";
    let condition = json!({ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message });
    let path = format!("{}/status", scene.cluster.deployment_path("alpha"));
    scene.cluster.ask(
        "PATCH",
        &path,
        "application/merge-patch+json",
        Some(&json!({ "status": { "conditions": [condition] } })),
    );
    let report = scene.pass().expect_code(1).lane();
    assert_eq!(line(&report, "alpha")["troubles"][0]["kind"], "not-admitted", "{report:#}");
    expect_all(&report.to_string(), &["exceeded quota"], "quota");
}

// Shows what README says under "On Kubernetes": "a crash loop or a lack of memory is told and goes on".
#[test]
fn a_crash_loop_is_reported_with_its_restarts_and_a_memory_limit_by_name() {
    let scene = Scene::running("crash", &["alpha", "beta"]);
    scene.cluster.crashing("alpha", 5, "Error", 3);
    scene.cluster.crashing("beta", 2, "OOMKilled", 137);
    let report = scene.pass().expect_code(0).lane();
    let (alpha, beta) = (line(&report, "alpha"), line(&report, "beta"));
    assert_eq!((&alpha["reboot_loop"], &alpha["restarts"]), (&json!(true), &json!(5)), "{alpha:#}");
    assert_eq!(alpha["troubles"][0]["kind"], "crash-loop");
    expect_all(&alpha["troubles"].to_string(), &["exit code 3"], "why");
    assert_eq!(beta["reboot_loop"], false, "{beta:#}");
    expect_all(&beta["troubles"].to_string(), &["crash-loop", "out-of-memory", "exit code 137"], "memory");
    assert_eq!((health(&scene, "alpha"), health(&scene, "beta")), ((5, true), (2, false)));
    assert_eq!(scene.shown("alpha")["current_status"], "started");
}

// Shows what README says under "On Kubernetes": "restart histories in annotations of the Deployments"; and under "What
// a pass does": "counted over the connector's life, across refreshes".
#[test]
fn restarts_are_counted_on_when_a_pod_is_replaced_or_evicted() {
    let scene = Scene::running("total", &["alpha"]);
    scene.cluster.running("alpha", 2, 400);
    scene.pass().expect_code(0);
    assert_eq!(health(&scene, "alpha").0, 2);
    // Deleted: another pod takes its place, and counts from zero.
    scene.cluster.delete_pod(&scene.cluster.pod("alpha"));
    scene.cluster.running("alpha", 1, 100);
    scene.pass().expect_code(0);
    assert_eq!(health(&scene, "alpha").0, 3);
    // Evicted: it stays as a failed one beside the new.
    let evicted = scene.cluster.pod("alpha");
    let why = "The node was low on resource: memory.";
    scene.cluster.set_status(
        &evicted,
        &json!({ "phase": "Failed", "reason": "Evicted", "message": why, "containerStatuses": null }),
    );
    let report = scene.pass().expect_code(0).lane();
    expect_all(&line(&report, "alpha")["troubles"].to_string(), &["evicted", why], "evicted");
    let mut second = json!({ "apiVersion": "v1", "kind": "Pod" });
    second["spec"] = evicted["spec"].clone();
    let meta = &evicted["metadata"];
    second["metadata"] =
        json!({ "name": "alpha-second", "labels": meta["labels"], "ownerReferences": meta["ownerReferences"] });
    second["spec"].as_object_mut().unwrap().remove("nodeName");
    let path = scene.cluster.path("api/v1", "pods");
    let second = scene.cluster.expect("POST", &path, Some(&second));
    let own = &second["spec"]["containers"][0];
    let state = json!({ "running": { "startedAt": ago(5) } });
    let container = json!({ "name": own["name"], "image": own["image"], "imageID": "", "ready": true, "restartCount": 1, "state": state, "lastState": {} });
    scene.cluster.set_status(&second, &json!({ "phase": "Running", "containerStatuses": [container] }));
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(line(&report, "alpha")["troubles"], json!([]), "{report:#}");
    assert_eq!(health(&scene, "alpha").0, 4);
    let memory = scene.cluster.deployment("alpha")["metadata"]["annotations"]["xtm-reconcile/memory"].clone();
    let memory: Value = serde_json::from_str(memory.as_str().expect("the history is an annotation")).unwrap();
    assert_eq!((&memory["v"], &memory["window"]["total"]), (&json!(1), &json!(4)), "{memory:#}");
    scene.expect_quiet("nothing new");
}

// Shows what README says under "What a pass does": "the connector is also stopped and held".
#[test]
fn a_reboot_loop_is_held_when_told_so_until_it_is_stopped_and_started() {
    let scene = Scene::running("hold", &["alpha"]);
    let pass = |code| scene.pass_with(|p| p.var("MANAGER__REBOOT_LOOP__ACTION", "stop")).expect_code(code).lane();
    scene.cluster.crashing("alpha", 6, "Error", 1);
    let report = pass(0);
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "hold".to_owned())], "{report:#}");
    assert_eq!(scene.cluster.deployment("alpha")["spec"]["replicas"], 0);
    scene.cluster.control();
    let report = pass(0);
    assert_eq!(line(&report, "alpha")["skip"]["kind"], "held", "{report:#}");
    for (requested, word) in [("stopping", None), ("starting", Some("start"))] {
        scene.change("alpha", |connector| requested.clone_into(&mut connector.requested_status));
        let report = pass(0);
        assert_eq!(steps(&report).first().map(|(_, step)| step.as_str()), word, "{report:#}");
    }
    scene.cluster.running("alpha", 0, 5);
    assert_eq!(line(&pass(0), "alpha")["skip"]["kind"], "running");
}

// Shows what README says under "On Kubernetes": "A scale is put right at once".
#[test]
fn what_was_scaled_by_hand_is_put_right() {
    let scene = Scene::running("byhand", &["alpha", "beta"]);
    scene.cluster.edit(&scene.cluster.deployment_path("alpha"), "kubectl-scale", &json!({ "spec": { "replicas": 0 } }));
    scene.cluster.edit(&scene.cluster.deployment_path("beta"), "kubectl-scale", &json!({ "spec": { "replicas": 3 } }));
    scene.cluster.control();
    let report = scene.pass().expect_code(0).lane();
    let expected = [("id-alpha".to_owned(), "start".to_owned()), ("id-beta".to_owned(), "start".to_owned())];
    assert_eq!(steps(&report), expected, "{report:#}");
    for name in ["alpha", "beta"] {
        assert_eq!(scene.cluster.deployment(name)["spec"]["replicas"], 1, "{name}");
        scene.cluster.running(name, 0, 5);
    }
    scene.pass().expect_code(0);
    scene.expect_quiet("put right");
}

// Shows what README says under "On Kubernetes": "**What was changed by hand** is told in the report, and put right when
// that connector changes next.".
#[test]
fn a_change_by_hand_is_reported_and_put_right_when_the_connector_changes_next() {
    let scene = Scene::new("drift");
    scene.connector_with("alpha", |connector| connector.setting("MINE", "ours").secret("API_PASSWORD", "first"));
    scene.pass().expect_code(0);
    scene.cluster.running("alpha", 0, 600);
    scene.pass().expect_code(0);
    scene.expect_quiet("as applied");

    // Somebody's own additions are no drift.
    let path = scene.cluster.deployment_path("alpha");
    scene.cluster.edit(&path, "kubectl-label", &json!({ "metadata": { "labels": { "team": "blue" } }, "spec": { "template": { "spec": { "nodeSelector": { "disk": "fast" } } } } }));
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(line(&report, "alpha")["troubles"], json!([]), "{report:#}");

    let container = json!({ "name": "connector", "image": "by-hand:9", "env": [{ "name": "MINE", "value": "theirs" }, { "name": "API_PASSWORD", "value": "by hand", "valueFrom": null }] });
    let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } });
    scene.cluster.edit(
        &path,
        "kubectl-edit",
        &json!({ "spec": { "strategy": strategy, "template": { "spec": { "containers": [container] } } } }),
    );
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 600);
    let outcome = scene.pass().expect_code(0);
    let report = outcome.lane();
    let seen = line(&report, "alpha");
    assert_eq!((&seen["troubles"][0]["kind"], steps(&report)), (&json!("drifted"), vec![]), "{seen:#}");
    expect_all(&seen["troubles"].to_string(), &["kubectl-edit"], "who");
    let text = scene.cluster.under_rules(None, || scene.program().arg("plan").run()).stdout;
    expect_all(
        &text,
        &["was changed by somebody else", "kubectl-edit", "put right when this connector changes next"],
        "drift",
    );

    scene.change("alpha", |connector| "registry.example/connector:2".clone_into(&mut connector.image));
    scene.pass().expect_code(0);
    let after = scene.cluster.deployment("alpha");
    let pod = &after["spec"]["template"]["spec"];
    let own = &pod["containers"][0];
    assert_eq!(own["image"], "registry.example/connector:2");
    let variable =
        |name: &str| own["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name).unwrap().clone();
    assert_eq!(variable("MINE")["value"], "ours");
    assert!(variable("API_PASSWORD")["valueFrom"]["secretKeyRef"]["name"].is_string(), "{own:#}");
    assert_eq!(after["spec"]["strategy"], json!({ "type": "Recreate" }));
    assert_eq!(pod["nodeSelector"], json!({ "disk": "fast" }), "their own addition stays");
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 5);
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(line(&report, "alpha")["troubles"], json!([]), "{report:#}");
    scene.expect_quiet("put right");
}

// Shows what README says under "On Kubernetes": "a Secret that was deleted as soon as a pod misses it".
#[test]
fn a_secret_that_somebody_deleted_is_made_again() {
    let scene = Scene::new("lost");
    scene.connector_with("alpha", |connector| connector.secret("API_PASSWORD", "s3cr3t-value"));
    scene.pass().expect_code(0);
    scene.cluster.running("alpha", 0, 600);
    scene.pass().expect_code(0);
    let name = scene.cluster.secrets()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    scene.cluster.delete(&format!("{}/{name}", scene.cluster.path("api/v1", "secrets")));
    // What runs has its values; the next pod of it has not.
    scene.expect_quiet("it still runs");
    scene.cluster.waiting("alpha", "CreateContainerConfigError", &format!("secret \"{name}\" not found"));
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "refresh".to_owned())], "{report:#}");
    assert_eq!(line(&report, "alpha")["step"]["reason"]["kind"], "broken");
    let secrets = scene.cluster.secrets();
    let deployment = scene.cluster.deployment("alpha").to_string();
    assert!(deployment.contains(secrets[0]["metadata"]["name"].as_str().unwrap()), "the Deployment refers to it");
    assert_eq!(crate::cluster::values(&secrets[0])["API_PASSWORD"], "s3cr3t-value");
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 5);
    scene.pass().expect_code(0);
    scene.expect_quiet("made again");
}

#[test]
fn a_deployment_that_is_being_deleted_is_waited_for() {
    let scene = Scene::running("deleting", &["alpha", "beta"]);
    let path = scene.cluster.deployment_path("alpha");
    scene.cluster.edit(&path, "keeper", &json!({ "metadata": { "finalizers": ["example.org/keep"] } }));
    scene.cluster.delete(&path);
    let report = scene.pass().expect_code(1).lane();
    let seen = line(&report, "alpha");
    assert_eq!((&seen["result"], steps(&report)), (&json!("rejected"), vec![]), "{seen:#}");
    expect_all(&seen["error"].to_string(), &["is being deleted"], "why");
    scene.cluster.ask(
        "PATCH",
        &path,
        "application/merge-patch+json",
        Some(&json!({ "metadata": { "finalizers": null } })),
    );
    scene.cluster.control();
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "deploy".to_owned())], "{report:#}");
}
