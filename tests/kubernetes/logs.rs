//! Logs as the platform gets them.

use serde_json::Value;

use crate::scene::Scene;

fn logs(scene: &Scene, name: &str) -> Vec<String> {
    let shown = scene.shown(name);
    let lines = shown["logs"].as_array().unwrap().iter();
    lines.map(|line| line.as_str().unwrap().to_owned()).collect()
}

// Shows what README says under "What a pass does": "OpenCTI gets the last `MANAGER__LOGS_TAIL` lines of each connector
// in place of those it has.".
#[test]
fn the_last_lines_of_what_runs_are_pushed() {
    let scene = Scene::running("logs", &["alpha"]);
    let pod = scene.cluster.running("alpha", 0, 600);
    let text = (0..500).map(|index| format!("line {index}")).collect::<Vec<_>>().join("\n");
    scene.cluster.set_log(&pod, false, &text);
    scene.cluster.tap.take_calls();
    scene.pass_with(|program| program.var("MANAGER__LOGS_TAIL", "20")).expect_code(0);
    let sent = logs(&scene, "alpha");
    assert_eq!((sent.len(), sent[0].as_str(), sent[19].as_str()), (20, "line 480", "line 499"));
    let calls = scene.cluster.tap.take_calls();
    let asked: Vec<&str> =
        calls.iter().filter(|call| call.path.ends_with("/log")).map(|call| call.query.as_str()).collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(
        asked[0].contains("tailLines=20")
            && asked[0].contains("limitBytes=")
            && asked[0].contains("container=connector"),
        "{asked:?}"
    );
}

// Shows what README says under "On Kubernetes": "The log that is pushed of a crashing connector is that of the run that
// crashed.".
#[test]
fn of_a_crashing_connector_the_run_that_crashed_is_pushed() {
    let scene = Scene::running("crashlog", &["alpha"]);
    let pod = scene.cluster.crashing("alpha", 2, "Error", 1);
    scene.cluster.set_log(&pod, true, "starting\npanic: no such host\n");
    scene.pass().expect_code(0);
    assert_eq!(logs(&scene, "alpha"), ["starting", "panic: no such host"]);
    // Just started again: both runs, the older first.
    let container = serde_json::json!({
        "restartCount": 3,
        "state": { "running": { "startedAt": crate::cluster::ago(2) } },
        "lastState": { "terminated": { "exitCode": 1, "reason": "Error", "startedAt": crate::cluster::ago(60), "finishedAt": crate::cluster::ago(30) } },
    });
    let pod = scene.cluster.report("alpha", "Running", Some(&container));
    scene.cluster.set_log(&pod, false, "once more\n");
    scene.pass().expect_code(0);
    assert_eq!(logs(&scene, "alpha"), ["starting", "panic: no such host", "once more"]);
    // And what has run for long has nothing to do with an old crash.
    let container = serde_json::json!({
        "restartCount": 3,
        "state": { "running": { "startedAt": crate::cluster::ago(3600) } },
        "lastState": { "terminated": { "exitCode": 1, "reason": "Error", "startedAt": crate::cluster::ago(3700), "finishedAt": crate::cluster::ago(3650) } },
    });
    scene.cluster.report("alpha", "Running", Some(&container));
    scene.pass().expect_code(0);
    assert_eq!(logs(&scene, "alpha"), ["once more"]);
}

#[test]
fn a_pod_without_a_log_is_no_fault_and_a_log_beyond_all_bounds_keeps_its_newest_lines() {
    let scene = Scene::running("nolog", &["alpha", "beta"]);
    // Long lines: their number alone does not bound the bytes.
    let pod = scene.cluster.pod("beta");
    let long = "x".repeat(30_000);
    let text = (0..200).map(|index| format!("{index} {long}")).collect::<Vec<_>>().join("\n");
    // More than an API server stores in an annotation.
    scene.cluster.tap.answer_logs();
    scene.cluster.tap.set_log(pod["metadata"]["name"].as_str().unwrap(), false, &text);
    scene.pass_with(|program| program.var("MANAGER__LOGS_TAIL", "200")).expect_code(0);
    assert_eq!(scene.shown("alpha")["logs"], Value::Array(vec![]));
    let sent = logs(&scene, "beta");
    assert!(sent.last().unwrap().starts_with("199 "), "the newest line is there");
    assert!(sent.len() >= 50, "{}", sent.len());
}

// Shows what README says under "What a pass does": "only values which stand in the Deployment".
#[test]
fn values_that_stand_in_a_deployment_are_masked_in_its_log() {
    let scene = Scene::new("mask");
    // As the daemon leaves them.
    scene.connector_with("alpha", |mut connector| {
        connector.hash = Some("aaaa1111".to_owned());
        connector.secret("API_PASSWORD", "hunter2-hunter2")
    });
    let labels = serde_json::json!({ "opencti-manager": scene.manager, "opencti-connector-id": "id-alpha" });
    let env = serde_json::json!([{ "name": "API_PASSWORD", "value": "hunter2-hunter2" }]);
    let pod = serde_json::json!({ "schedulerName": "nobody", "containers": [{ "name": "alpha", "image": "i:1", "env": env }] });
    let deployment = serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "alpha", "labels": labels, "annotations": { "OPENCTI_CONFIG_HASH": "aaaa1111" } },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod } },
    });
    scene.cluster.create_deployment(&deployment, "xtm-composer");
    let pod = scene.cluster.running("alpha", 0, 60);
    scene.cluster.set_log(&pod, false, "login with hunter2-hunter2 failed\n");
    scene.pass().expect_code(0);
    let sent = logs(&scene, "alpha");
    assert_eq!(sent.len(), 1);
    assert!(!sent[0].contains("hunter2") && sent[0].contains("failed"), "{sent:?}");
}

// Shows what README says under "What a pass does": "or come in clear from the platform now are masked there: a value that
// was changed is not masked any more in lines that were written with it", "A value of the Secret that the
// platform encrypts is not masked there".
#[test]
fn clear_values_of_the_platform_are_masked_until_they_change_and_encrypted_ones_are_not() {
    let scene = Scene::new("mask-clear");
    scene.connector_with("alpha", |connector| {
        connector.setting("OLD_API_KEY", "clear-key-0815").secret("API_PASSWORD", "hunter2-hunter2")
    });
    scene.pass().expect_code(0);
    assert!(!scene.cluster.deployment("alpha").to_string().contains("clear-key-0815"), "it is in the Secret");
    let line = "clear-key-0815 and hunter2-hunter2 were refused";
    let sent = || {
        let pod = scene.cluster.running("alpha", 0, 60);
        scene.cluster.set_log(&pod, false, &format!("{line}\n"));
        scene.pass().expect_code(0);
        logs(&scene, "alpha")
    };
    assert_eq!(sent(), ["[masked] and hunter2-hunter2 were refused"]);
    // The last lines of before stand in the log still, or the connector prints the former value again.
    scene.change("alpha", |connector| connector.configuration[0].value = Some("another-key-4711".to_owned()));
    scene.pass().expect_code(0);
    assert_eq!(sent(), [line]);
}
