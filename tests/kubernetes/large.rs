//! Thousands of connectors.

use serde_json::{Value, json};
use stand_in_platform::Connector;

use crate::scene::Scene;

const MANY: usize = 5_000;

/// On a real API server: more than one page, and not more than it makes in reasonable time.
const SOME: usize = 600;

/// Deployments that were deployed and stopped are many, and there are no pods of them.
// Shows what README says under "On Kubernetes": "A pass asks for one paged list of Deployments and one of pods", "a
// quiet one writes nothing but its Lease".
#[test]
fn a_quiet_pass_over_5000_connectors_takes_under_12_lists_and_writes_nothing_but_the_lease() {
    let scene = Scene::new("large");
    let count = if scene.cluster.stand_in().is_some() { MANY } else { SOME };
    scene.platform.edit(|state| {
        for index in 0..count {
            let mut connector =
                Connector::new(format!("id-{index}"), format!("connector-{index}"), "i:1").requested("stopping");
            connector.hash = Some("aaaa1111".to_owned());
            connector.current_status = Some("stopped".to_owned());
            state.connectors.push(connector);
        }
    });
    let deployments: Vec<Value> = (0..count).map(|index| deployment(&scene, index)).collect();
    match scene.cluster.stand_in() {
        Some(stand_in) => stand_in.seed(deployments).unwrap(),
        None => scene.cluster.create_all(&scene.cluster.path("apis/apps/v1", "deployments"), &deployments),
    }
    scene.cluster.tap.take_calls();
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(report["counts"]["unchanged"], count, "{}", report["counts"]);
    let calls = scene.cluster.tap.take_calls();
    let lists = calls.iter().filter(|call| call.method == "GET" && call.query.contains("limit=500")).count();
    assert_eq!(lists, count.div_ceil(500) + 1, "pages of Deployments, and one of pods");
    assert!(lists < 12);
    let writes: Vec<_> = calls.iter().filter(|call| call.is_write() && !call.path.contains("/leases")).collect();
    assert!(writes.is_empty(), "{writes:#?}");
}

fn deployment(scene: &Scene, index: usize) -> Value {
    let (id, name) = (format!("id-{index}"), format!("connector-{index}"));
    let labels = json!({ "opencti-manager": scene.manager, "opencti-connector-id": id, "opencti-platform": "opencti" });
    let variable = |n: usize| json!({ "name": format!("VARIABLE_{n}"), "value": "some value of some length" });
    let env: Vec<Value> = (0..15).map(variable).collect();
    let pod = json!({ "containers": [{ "name": "connector", "image": "i:1", "env": env }] });
    let selector = json!({ "matchLabels": { "opencti-manager": scene.manager, "opencti-connector-id": id } });
    let annotations = json!({ "OPENCTI_CONFIG_HASH": "aaaa1111" });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "namespace": scene.cluster.namespace, "labels": labels, "annotations": annotations },
        "spec": { "replicas": 0, "selector": selector, "template": { "metadata": { "labels": labels }, "spec": pod } },
    })
}
