//! Deployments and their Secrets.

use serde_json::json;

use crate::cluster::values;
use crate::scene::Scene;

#[test]
fn a_connector_is_deployed_with_its_secrets_and_then_left_alone() {
    let scene = Scene::new("deploy");
    scene.connector_with("alpha", |connector| {
        connector.setting("PLAIN", "a $(HOME) b").secret("API_PASSWORD", "s3cr3t-value")
    });
    let report = scene.pass().expect_code(0).json();
    assert_eq!(report["counts"]["steps"], json!({ "deploy": 1 }), "{report:#}");
    let deployment = scene.cluster.deployment("alpha");
    println!("{deployment:#}");
    let secrets = scene.cluster.secrets();
    assert_eq!(secrets.len(), 1, "{secrets:#?}");
    assert_eq!(values(&secrets[0])["API_PASSWORD"], "s3cr3t-value");
    assert!(!deployment.to_string().contains("s3cr3t"));
    scene.expect_quiet("the second pass");
}
