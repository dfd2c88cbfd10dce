//! Thousands of connectors.

use serde_json::json;
use stand_in_platform::Connector;

use crate::scene::Scene;

const MANY: usize = 5_000;

/// Deployments that were deployed and stopped are many, and there are no pods of them.
#[test]
fn a_quiet_pass_over_5000_connectors_takes_under_12_lists_and_writes_nothing_but_the_lease() {
    let scene = Scene::new("large");
    let Some(stand_in) = scene.cluster.stand_in() else {
        // A real API server gets as many as it can be asked for in reasonable time.
        return smaller(&scene);
    };
    scene.platform.edit(|state| {
        for index in 0..MANY {
            let mut connector =
                Connector::new(format!("id-{index}"), format!("connector-{index}"), "i:1").requested("stopping");
            connector.hash = Some("aaaa1111".to_owned());
            connector.current_status = Some("stopped".to_owned());
            state.connectors.push(connector);
        }
    });
    let objects = (0..MANY).map(|index| {
        let labels = json!({ "opencti-manager": scene.manager, "opencti-connector-id": format!("id-{index}"), "opencti-platform": "opencti" });
        let env: Vec<_> = (0..15).map(|n| json!({ "name": format!("VARIABLE_{n}"), "value": "some value of some length" })).collect();
        let pod = json!({ "containers": [{ "name": "connector", "image": "i:1", "env": env }] });
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": format!("connector-{index}"), "namespace": scene.cluster.namespace, "labels": labels, "annotations": { "OPENCTI_CONFIG_HASH": "aaaa1111" } },
            "spec": { "replicas": 0, "selector": { "matchLabels": { "opencti-manager": scene.manager, "opencti-connector-id": format!("id-{index}") } }, "template": { "metadata": { "labels": labels }, "spec": pod } },
        })
    });
    stand_in.seed(objects.collect()).unwrap();
    scene.cluster.tap.take_calls();
    let report = scene.pass().expect_code(0).json();
    assert_eq!(report["counts"]["unchanged"], MANY, "{}", report["counts"]);
    let calls = scene.cluster.tap.take_calls();
    let lists = calls.iter().filter(|call| call.method == "GET" && call.query.contains("limit=500"));
    assert!((10..12).contains(&lists.clone().count()), "{} lists", lists.count());
    let writes: Vec<_> = calls.iter().filter(|call| call.is_write() && !call.path.contains("/leases")).collect();
    assert!(writes.is_empty(), "{writes:#?}");
    println!("{}", report["stages"]);
}

fn smaller(scene: &Scene) {
    for index in 0..40 {
        scene.connector(&format!("connector-{index}"));
    }
    scene.pass().expect_code(0);
    scene.expect_quiet("forty");
}
