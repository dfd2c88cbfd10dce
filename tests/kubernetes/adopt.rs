//! Deployments that the daemon made.

use serde_json::{Value, json};
use stand_in_platform::Connector;

use crate::cluster::values;
use crate::scene::{Scene, line, steps};

const FIRST: &str = "aaaa1111";
const SECOND: &str = "bbbb2222";

fn hashed(mut connector: Connector, hash: &str) -> Connector {
    connector.hash = Some(hash.to_owned());
    connector
}

/// As the daemon makes them: plain values, its own container name, `RollingUpdate`.
fn daemons(scene: &Scene, name: &str, hash: &str, change: impl FnOnce(&mut Value)) -> Value {
    let labels = json!({ "opencti-manager": scene.manager, "opencti-connector-id": format!("id-{name}") });
    let env = json!([
        { "name": "OPENCTI_URL", "value": "http://old" },
        { "name": "API_PASSWORD", "value": "in-the-clear" },
        { "name": "ONLY_OLD", "value": "x" },
    ]);
    let pod = json!({ "schedulerName": "nobody", "containers": [{ "name": name, "image": "registry.example/connector:0", "env": env }] });
    let mut deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "labels": labels, "annotations": { "OPENCTI_CONFIG_HASH": hash } },
        "spec": { "replicas": 1, "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod } },
    });
    change(&mut deployment);
    scene.cluster.create_deployment(&deployment, "xtm-composer")
}

// Shows what README says under "On Kubernetes": "**The daemon's Deployments** are adopted as they are and converted
// when their hash changes.".
#[test]
fn a_deployment_of_the_daemon_is_adopted_as_it_is_and_converted_when_its_hash_changes() {
    let scene = Scene::new("adopt");
    scene.connector_with("alpha", |connector| hashed(connector, FIRST).secret("API_PASSWORD", "s3cr3t-value"));
    let made = daemons(&scene, "alpha", FIRST, |_| {});
    assert_eq!(made["spec"]["strategy"]["type"], "RollingUpdate");
    scene.cluster.running("alpha", 0, 600);
    scene.pass().expect_code(0);
    scene.expect_quiet("adopted");
    let adopted = scene.cluster.deployment("alpha");
    assert_eq!(adopted["spec"], made["spec"]);
    assert_eq!(scene.shown("alpha")["current_status"], "started");

    // An operator's own part survives the conversion.
    let theirs = json!({ "metadata": { "annotations": { "team": "blue" } }, "spec": { "template": { "spec": { "nodeSelector": { "disk": "fast" } } } } });
    scene.cluster.edit(&scene.cluster.deployment_path("alpha"), "kubectl-edit", &theirs);
    scene.change("alpha", |connector| {
        "registry.example/connector:2".clone_into(&mut connector.image);
        connector.hash = Some(SECOND.to_owned());
    });
    scene.cluster.tap.take_calls();
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "refresh".to_owned())], "{report:#}");
    let after = scene.cluster.deployment("alpha");
    assert_eq!(after["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(after["spec"]["strategy"], json!({ "type": "Recreate" }));
    let containers = after["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{containers:#?}");
    assert_eq!(
        (&containers[0]["name"], &containers[0]["image"]),
        (&json!("connector"), &json!("registry.example/connector:2"))
    );
    assert!(!after.to_string().contains("in-the-clear") && !after.to_string().contains("ONLY_OLD"));
    assert_eq!(after["metadata"]["annotations"]["team"], "blue");
    assert_eq!(after["spec"]["template"]["spec"]["nodeSelector"], json!({ "disk": "fast" }));
    assert_eq!(values(&scene.cluster.secrets()[0])["API_PASSWORD"], "s3cr3t-value");
    // No write but the last changes the pod's template: there is no moment in which a value is missing.
    let generation = |deployment: &Value| deployment["metadata"]["generation"].as_i64().unwrap();
    assert_eq!(generation(&after), generation(&adopted) + 2, "the operator's change and one of ours");
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 60);
    scene.pass().expect_code(0);
    scene.expect_quiet("converted");
}

#[test]
fn a_hash_that_the_daemon_left_elsewhere_is_found() {
    let scene = Scene::new("hash");
    for (name, place) in [("alpha", "template"), ("beta", "variable"), ("gamma", "nowhere")] {
        scene.connector_with(name, |connector| hashed(connector, FIRST));
        daemons(&scene, name, FIRST, |deployment| {
            deployment["metadata"].as_object_mut().unwrap().remove("annotations");
            match place {
                "template" => {
                    deployment["spec"]["template"]["metadata"]["annotations"] = json!({ "OPENCTI_CONFIG_HASH": FIRST });
                }
                "variable" => {
                    let variables = &mut deployment["spec"]["template"]["spec"]["containers"][0]["env"];
                    variables.as_array_mut().unwrap().push(json!({ "name": "OPENCTI_CONFIG_HASH", "value": FIRST }));
                }
                _ => {}
            }
        });
        scene.cluster.running(name, 0, 60);
    }
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-gamma".to_owned(), "refresh".to_owned())], "{report:#}");
}

// Shows what README says under "On Kubernetes": "the plan shows `recreate`, the new one is checked with the API server
// first", "two instances never run at once".
#[test]
fn a_selector_that_is_not_ours_is_recreated_at_the_next_change_and_the_plan_says_so() {
    let scene = Scene::new("selector");
    scene.connector_with("alpha", |connector| hashed(connector, FIRST).secret("API_PASSWORD", "s3cr3t-value"));
    let made = daemons(&scene, "alpha", FIRST, |deployment| {
        deployment["spec"]["selector"]["matchLabels"] = json!({ "app": "alpha" });
        deployment["spec"]["template"]["metadata"]["labels"]["app"] = "alpha".into();
    });
    scene.cluster.running("alpha", 0, 600);
    scene.pass().expect_code(0);
    scene.expect_quiet("adopted");
    scene.change("alpha", |connector| {
        "registry.example/connector:2".clone_into(&mut connector.image);
        connector.hash = Some(SECOND.to_owned());
    });
    let report = scene.plan().expect_code(0).lane();
    let planned = &line(&report, "alpha")["step"];
    assert_eq!((&planned["do"], &planned["obstacle"]), (&json!("recreate"), &json!("selector")), "{report:#}");
    let text = scene.cluster.under_rules(None, || scene.program().arg("plan").run()).stdout;
    assert!(text.contains("removed and made anew"), "{text}");
    assert_eq!(scene.cluster.deployment("alpha")["metadata"]["uid"], made["metadata"]["uid"], "a plan changes nothing");

    // What the API server would refuse is found out while the old one still runs.
    let bad = r#"{"spec":{"template":{"spec":{"containers":[{"volumeMounts":[{"name":"no","mountPath":"/x"}]}]}}}}"#;
    scene.pass_with(|p| p.var("OPENCTI__DAEMON__KUBERNETES__BASE_DEPLOYMENT_JSON", bad)).expect_code(1);
    let still = scene.cluster.deployment("alpha");
    assert_eq!((&still["metadata"]["uid"], &still["spec"]["replicas"]), (&made["metadata"]["uid"], &json!(1)));

    // Two must never run at once: the new one waits until the old one's pod has ended.
    let gate = scene.cluster.tap.hold("GET", "/pods", 1);
    let running = scene.program().args(["run", "--output", "json"]).spawn();
    gate.wait();
    let stopped = scene.cluster.deployment("alpha");
    assert_eq!((&stopped["metadata"]["uid"], &stopped["spec"]["replicas"]), (&made["metadata"]["uid"], &json!(0)));
    assert_eq!(scene.cluster.pods_of("alpha").len(), 1, "its pod is still there");
    gate.open();
    scene.cluster.wait_for("the program to look for the pod", |cluster| {
        let calls = cluster.tap.take_calls();
        calls.iter().any(|call| call.path.ends_with("/pods")).then_some(())
    });
    scene.cluster.control();
    let report = running.wait().expect_code(0).lane();
    assert_eq!(line(&report, "alpha")["result"], "done", "{report:#}");
    let after = scene.cluster.deployment("alpha");
    assert_ne!(after["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(after["spec"]["selector"]["matchLabels"]["opencti-connector-id"], "id-alpha");
    assert_eq!(after["spec"]["replicas"], 1);
    assert_eq!(values(&scene.cluster.secrets()[0])["API_PASSWORD"], "s3cr3t-value");
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 60);
    scene.pass().expect_code(0);
    scene.expect_quiet("recreated");
}

#[test]
fn a_renamed_connector_gets_a_deployment_of_its_new_name_and_the_old_one_goes() {
    let scene = Scene::running("rename", &["alpha"]);
    scene.change("alpha", |connector| "omega".clone_into(&mut connector.name));
    let running = scene.program().args(["run", "--output", "json"]).spawn();
    scene.cluster.wait_for("the old one to be stopped", |cluster| {
        let old = cluster.ask("GET", &cluster.deployment_path("alpha"), "application/json", None);
        (old.0 == 404 || old.1["spec"]["replicas"] == 0).then_some(())
    });
    assert!(
        scene.cluster.ask("GET", &scene.cluster.deployment_path("omega"), "application/json", None).1["spec"]["replicas"]
            == 0
    );
    scene.cluster.control();
    let report = running.wait().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "recreate".to_owned())], "{report:#}");
    assert!(!scene.cluster.has_deployment("alpha"));
    assert_eq!(scene.cluster.deployment("omega")["spec"]["replicas"], 1);
}
