//! Deployments and their Secrets: made, changed, started, stopped, removed.

use serde_json::{Value, json};
use stand_in_platform::Connector;

use crate::cluster::values;
use crate::scene::{Scene, line, steps};

fn container(deployment: &Value) -> &Value {
    &deployment["spec"]["template"]["spec"]["containers"][0]
}

fn variable<'a>(deployment: &'a Value, name: &str) -> &'a Value {
    let variables = container(deployment)["env"].as_array().unwrap();
    variables.iter().find(|variable| variable["name"] == name).unwrap_or(&Value::Null)
}

/// The Secret that a variable refers to.
fn secret_of(deployment: &Value, name: &str) -> String {
    variable(deployment, name)["valueFrom"]["secretKeyRef"]["name"].as_str().unwrap_or_default().to_owned()
}

// Shows what README says under "On Kubernetes": "One Deployment per connector, of one replica or none, with the
// strategy `Recreate`", "are in a Secret that it owns, never in the Deployment".
#[test]
fn a_connector_is_deployed_with_its_secrets_and_then_left_alone() {
    let scene = Scene::new("deploy");
    let odd = "quote\" back\\slash = ä\nnext $(HOME) $$ line";
    scene.connector_with("alpha", |connector| {
        connector.setting("PLAIN", odd).setting("OLD_API_KEY", "clear-key").secret("API_PASSWORD", "s3cr3t-value")
    });
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "deploy".to_owned())], "{report:#}");

    let deployment = scene.cluster.deployment("alpha");
    let spec = &deployment["spec"];
    assert_eq!((&spec["replicas"], &spec["strategy"]), (&json!(1), &json!({ "type": "Recreate" })));
    let hash = variable(&deployment, "OPENCTI_CONFIG_HASH")["value"].as_str().unwrap().to_owned();
    assert_eq!(hash.len(), 8, "{hash}");
    let annotation = |object: &Value| object["metadata"]["annotations"]["OPENCTI_CONFIG_HASH"].clone();
    assert_eq!((annotation(&deployment), annotation(&spec["template"])), (json!(hash), json!(hash)));
    let owned =
        json!({ "opencti-connector-id": "id-alpha", "opencti-manager": scene.manager, "opencti-platform": "opencti" });
    assert_eq!(deployment["metadata"]["labels"], owned);
    assert_eq!(spec["template"]["metadata"]["labels"], owned);
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["enableServiceLinks"], false);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(container(&deployment)["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container(&deployment)["imagePullPolicy"], "IfNotPresent");
    // The kubelet makes `$` of `$$` and takes `$(NAME)` for a reference.
    assert_eq!(variable(&deployment, "PLAIN")["value"], odd.replace('$', "$$"));
    assert_eq!(variable(&deployment, "OPENCTI_URL")["value"], scene.platform.url());

    let secrets = scene.cluster.secrets();
    assert_eq!(secrets.len(), 1, "{secrets:#?}");
    let expected = [("API_PASSWORD", "s3cr3t-value"), ("OLD_API_KEY", "clear-key")];
    assert_eq!(values(&secrets[0]), expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    for (name, _) in expected {
        assert_eq!(secret_of(&deployment, name), secrets[0]["metadata"]["name"].as_str().unwrap());
    }
    let owner = &secrets[0]["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Deployment"), &deployment["metadata"]["uid"]));
    let text = deployment.to_string();
    assert!(!text.contains("s3cr3t") && !text.contains("clear-key"), "no value is in the Deployment");

    scene.cluster.running("alpha", 0, 60);
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(line(&report, "alpha")["skip"]["kind"], "running", "{report:#}");
    assert_eq!(scene.shown("alpha")["current_status"], "started");
    scene.expect_quiet("the third pass");
    assert_eq!(scene.cluster.deployment("alpha"), scene.cluster.deployment("alpha"));
}

// Shows what README says under "On Kubernetes": "so that fields of others survive".
#[test]
fn a_changed_connector_is_changed_in_place_and_its_old_values_go() {
    let scene = Scene::new("refresh");
    scene.connector_with("alpha", |c| c.setting("GOES", "x").secret("API_PASSWORD", "first").secret("ALSO_GOES", "y"));
    scene.pass().expect_code(0);
    let before = scene.cluster.deployment("alpha");
    // Somebody else's own fields.
    let theirs = json!({ "metadata": { "annotations": { "team": "blue" } }, "spec": { "template": { "spec": { "priority": null, "nodeSelector": { "disk": "fast" } } } } });
    scene.cluster.edit(&scene.cluster.deployment_path("alpha"), "kubectl-edit", &theirs);
    scene.change("alpha", |connector| {
        *connector = Connector::new("id-alpha", "alpha", "registry.example/connector:2")
            .requested("starting")
            .setting("COMES", "z")
            .secret("API_PASSWORD", "second");
    });
    scene.cluster.tap.take_calls();
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-alpha".to_owned(), "refresh".to_owned())], "{report:#}");

    let after = scene.cluster.deployment("alpha");
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"], "it is still the same");
    assert_eq!(container(&after)["image"], "registry.example/connector:2");
    assert_eq!(variable(&after, "COMES")["value"], "z");
    for gone in ["GOES", "ALSO_GOES"] {
        assert_eq!(variable(&after, gone), &Value::Null, "{gone}");
    }
    assert_eq!(after["metadata"]["annotations"]["team"], "blue");
    assert_eq!(after["spec"]["template"]["spec"]["nodeSelector"], json!({ "disk": "fast" }));
    assert_ne!(secret_of(&before, "API_PASSWORD"), secret_of(&after, "API_PASSWORD"));
    let secrets = scene.cluster.secrets();
    let new = secrets.iter().find(|secret| secret["metadata"]["name"] == secret_of(&after, "API_PASSWORD").as_str());
    assert_eq!(values(new.expect("the new Secret")), [("API_PASSWORD".to_owned(), "second".to_owned())].into());

    // First what the new one needs, then the new one; what the old pod may read again stays until it is gone.
    let writes = scene.writes();
    let place = |part: &str| writes.iter().position(|w| w.starts_with("PATCH") && w.contains(part)).unwrap();
    assert!(place("/secrets/") < place("/deployments/"), "{writes:#?}");
    assert!(!writes.iter().any(|write| write.starts_with("DELETE")), "{writes:#?}");
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 5);
    scene.pass().expect_code(0);
    let secrets = scene.cluster.secrets();
    assert_eq!(secrets.len(), 1, "{secrets:#?}");
    assert_eq!(secret_of(&after, "API_PASSWORD"), secrets[0]["metadata"]["name"].as_str().unwrap());
    scene.expect_quiet("afterwards");
}

// Shows what README says under "On Kubernetes": "The Secret of the pods before stays until the last of them is gone.".
#[test]
fn the_values_of_a_pod_stay_as_long_as_it_does() {
    let scene = Scene::new("retired");
    scene.connector_with("alpha", |connector| connector.secret("API_PASSWORD", "first"));
    scene.pass().expect_code(0);
    let old = scene.cluster.running("alpha", 0, 60);
    scene.change("alpha", |connector| *connector = connector.clone().secret("API_PASSWORD", "second"));
    scene.pass().expect_code(0);
    // Its rollout hangs: the old pod still runs, and is restarted in place.
    for _ in 0..2 {
        scene.pass();
        let values: Vec<String> =
            scene.cluster.secrets().iter().map(|secret| values(secret)["API_PASSWORD"].clone()).collect();
        assert_eq!(values.len(), 2, "{values:?}");
    }
    scene.cluster.delete_pod(&old);
    scene.cluster.control();
    scene.cluster.running("alpha", 0, 5);
    scene.pass().expect_code(0);
    let secrets = scene.cluster.secrets();
    assert_eq!(secrets.len(), 1);
    assert_eq!(values(&secrets[0])["API_PASSWORD"], "second");
    scene.expect_quiet("retired");
}

#[test]
fn a_connector_without_secrets_has_no_secret_and_gets_or_loses_one_with_its_configuration() {
    let scene = Scene::new("nosecret");
    scene.connector("alpha");
    scene.pass().expect_code(0);
    assert_eq!(scene.cluster.secrets(), [] as [Value; 0]);
    scene.change("alpha", |c| *c = Connector::new("id-alpha", "alpha", "i:2").requested("starting").secret("A", "b"));
    scene.pass().expect_code(0);
    assert_eq!(scene.cluster.secrets().len(), 1);
    scene.change("alpha", |c| *c = Connector::new("id-alpha", "alpha", "i:3").requested("starting"));
    scene.pass().expect_code(0);
    scene.pass().expect_code(0);
    assert_eq!(scene.cluster.secrets(), [] as [Value; 0]);
}

// Shows what README says under "On Kubernetes": "starting and stopping patch the scale alone".
#[test]
fn starting_and_stopping_scale_and_change_nothing_else() {
    let scene = Scene::running("scale", &["alpha"]);
    let before = scene.cluster.deployment("alpha");
    for (requested, replicas, word) in [("stopping", 0, "stop"), ("starting", 1, "start")] {
        scene.change("alpha", |connector| requested.clone_into(&mut connector.requested_status));
        scene.cluster.tap.take_calls();
        let report = scene.pass().expect_code(0).lane();
        assert_eq!(steps(&report), [("id-alpha".to_owned(), word.to_owned())], "{report:#}");
        let writes: Vec<String> = scene.writes().into_iter().filter(|write| !write.contains("/leases/")).collect();
        assert_eq!(writes, [format!("PATCH {}/scale", scene.cluster.deployment_path("alpha"))]);
        let after = scene.cluster.deployment("alpha");
        assert_eq!(after["spec"]["replicas"], replicas);
        assert_eq!(after["spec"]["template"], before["spec"]["template"]);
        scene.cluster.control();
        let shown = if replicas == 0 { "stopped" } else { "started" };
        if replicas == 1 {
            scene.cluster.running("alpha", 0, 5);
        }
        scene.pass().expect_code(0);
        assert_eq!(scene.shown("alpha")["current_status"], shown);
        scene.expect_quiet(word);
    }
}

// Shows what README says under "What a pass does": "**Foreign workloads are never touched**", "An empty list while two
// or more connectors are deployed"; and what deploy/kubernetes/README.md says under "Remove": "The connectors' Secrets
// go with their Deployments".
#[test]
fn a_connector_that_is_gone_goes_with_its_secret_and_nobody_elses_do() {
    let scene = Scene::new("remove");
    for name in ["alpha", "beta", "gamma"] {
        scene.connector_with(name, |connector| connector.secret("API_PASSWORD", name));
    }
    scene.pass().expect_code(0);
    let strangers = [
        (
            "another-manager",
            json!({ "opencti-manager": "somebody-else", "opencti-connector-id": "id-x", "opencti-platform": "opencti" }),
        ),
        (
            "another-platform",
            json!({ "opencti-manager": scene.manager, "opencti-connector-id": "id-y", "opencti-platform": "openaev" }),
        ),
        ("an-older-one", json!({ "opencti-manager": scene.manager, "opencti-connector-id": "id-z" })),
        ("not-a-connector", json!({ "app": "web" })),
    ];
    for (name, labels) in &strangers {
        scene.cluster.create_deployment(&plain_deployment(name, labels), "somebody");
    }
    scene.platform.edit(|state| state.connectors.retain(|connector| connector.name != "gamma"));
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(steps(&report), [("id-gamma".to_owned(), "remove".to_owned())], "{report:#}");
    assert!(!scene.cluster.has_deployment("gamma"));
    if scene.cluster.stand_in().is_some() {
        scene.cluster.wait_for("its Secret to go", |cluster| (cluster.secrets().len() == 2).then_some(()));
    }
    for (name, _) in &strangers {
        assert_eq!(scene.cluster.deployment(name)["metadata"]["generation"], 1, "{name}");
    }

    // The guard: an empty list removes nothing.
    scene.platform.edit(|state| state.connectors.clear());
    let report = scene.pass().expect_code(5).lane();
    assert_eq!(steps(&report), [], "{report:#}");
    assert!(scene.cluster.has_deployment("alpha") && scene.cluster.has_deployment("beta"));
    scene.pass_with(|program| program.var("MANAGER__ALLOW_PRUNE", "true")).expect_code(0);
    assert!(!scene.cluster.has_deployment("alpha") && !scene.cluster.has_deployment("beta"));
    for (name, _) in &strangers {
        assert!(scene.cluster.has_deployment(name), "{name}");
    }
}

/// A Deployment with some labels, as anybody could make it.
pub(crate) fn plain_deployment(name: &str, labels: &Value) -> Value {
    let pod = json!({ "schedulerName": "nobody", "containers": [{ "name": "c", "image": "somebodys:1" }] });
    let selector = json!({ "matchLabels": { "app": name } });
    let mut template = labels.clone();
    template["app"] = name.into();
    let spec =
        json!({ "replicas": 1, "selector": selector, "template": { "metadata": { "labels": template }, "spec": pod } });
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name, "labels": labels }, "spec": spec })
}

// Shows what README says under "On Kubernetes": "**A name that somebody else's Deployment has** is found out when the
// connector is deployed, not by `plan`".
#[test]
fn a_name_that_is_taken_by_somebody_else_rejects_that_connector_alone() {
    let scene = Scene::new("taken");
    scene.cluster.create_deployment(&plain_deployment("alpha", &json!({ "app": "web" })), "somebody");
    let before = scene.cluster.deployment("alpha");
    scene.connector("alpha");
    scene.connector("beta");
    let planned = scene.plan().expect_code(0).lane();
    assert_eq!(line(&planned, "alpha")["step"]["do"], "deploy", "{planned:#}");
    let report = scene.pass().expect_code(1).lane();
    let rejected = line(&report, "alpha");
    assert_eq!((&rejected["result"], &rejected["reject"]["kind"]), (&json!("rejected"), &json!("name-taken")));
    let told = rejected["error"].as_str().unwrap();
    assert!(told.contains("the name alpha is taken by a Deployment"), "{told}");
    assert_eq!(line(&report, "beta")["result"], "done");
    assert_eq!(scene.cluster.deployment("alpha"), before);
    assert_eq!(scene.cluster.secrets(), [] as [Value; 0]);
}

#[test]
fn odd_names_become_valid_ones() {
    let scene = Scene::new("names");
    let long = "n".repeat(200);
    let names = ["Ünïcode Feed", "коннектор", "!!!", "x", &long, "Two  Words"];
    for (index, name) in names.iter().enumerate() {
        let connector = Connector::new(format!("id-{index}"), *name, "i:1").requested("starting").secret("A", "b");
        scene.platform.edit(|state| state.connectors.push(connector));
    }
    let report = scene.pass().expect_code(0).lane();
    assert_eq!(report["counts"]["steps"], json!({ "deploy": 6 }), "{report:#}");
    scene.expect_quiet("afterwards");
}

// Shows what README says under "On Kubernetes": "it lies over safe defaults", "containers with other names are added
// beside it".
#[test]
fn the_base_deployment_lies_under_ours_and_containers_without_a_name_are_the_connectors() {
    let scene = Scene::new("base");
    scene.connector_with("alpha", |connector| connector.setting("MINE", "ours").secret("API_PASSWORD", "x"));
    let base = json!({
        "metadata": { "annotations": { "team": "blue", "OPENCTI_CONFIG_HASH": "wrong" }, "labels": { "tier": "feeds" }, "namespace": "elsewhere" },
        "spec": {
            "replicas": 7,
            "revisionHistoryLimit": 2,
            "selector": { "matchLabels": { "wrong": "one" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } },
            "template": {
                "metadata": { "annotations": { "scrape": "no" } },
                "spec": {
                    "schedulerName": "nobody",
                    "automountServiceAccountToken": true,
                    "serviceAccountName": "feeds",
                    "tolerations": [{ "key": "feeds", "operator": "Exists" }],
                    "volumes": [{ "name": "scratch", "emptyDir": {} }],
                    "imagePullSecrets": [{ "name": "from-base" }],
                    "containers": [
                        {
                            "securityContext": { "runAsNonRoot": true, "allowPrivilegeEscalation": true },
                            "volumeMounts": [{ "name": "scratch", "mountPath": "/tmp" }],
                            "env": [{ "name": "MINE", "value": "the base's" }, { "name": "EXTRA", "value": "from the base" }],
                        },
                        { "name": "sidecar", "image": "side:1" },
                    ],
                },
            },
        },
    });
    let resources = r#"{"limits":{"memory":"1Gi"},"requests":{"cpu":"100m"}}"#;
    let with = |program: crate::support::Binary| {
        program
            .var("OPENCTI__DAEMON__KUBERNETES__BASE_DEPLOYMENT_JSON", base.to_string())
            .var("OPENCTI__DAEMON__KUBERNETES__IMAGE_PULL_POLICY", "Always")
            .var("OPENCTI__DAEMON__KUBERNETES__IMAGE_RESOURCES", resources)
            .var("OPENCTI__DAEMON__KUBERNETES__IMAGE_PULL_SECRETS", "one, two")
            .var("OPENCTI__DAEMON__REGISTRY__SERVER", "registry.internal:5000")
            .var("OPENCTI__DAEMON__REGISTRY__USERNAME", "puller")
            .var("OPENCTI__DAEMON__REGISTRY__PASSWORD", "pu11-s3cr3t")
    };
    scene.pass_with(with).expect_code(0);
    let deployment = scene.cluster.deployment("alpha");
    let (spec, pod) = (&deployment["spec"], &deployment["spec"]["template"]["spec"]);
    assert_eq!((&spec["replicas"], &spec["revisionHistoryLimit"]), (&json!(1), &json!(2)));
    assert_eq!(spec["strategy"], json!({ "type": "Recreate" }));
    assert_eq!(spec["selector"]["matchLabels"].as_object().unwrap().len(), 2);
    assert_eq!(deployment["metadata"]["annotations"]["team"], "blue");
    assert_eq!(deployment["metadata"]["labels"]["tier"], "feeds");
    assert_eq!(spec["template"]["metadata"]["annotations"]["scrape"], "no");
    assert_eq!(pod["automountServiceAccountToken"], true);
    assert_eq!(pod["serviceAccountName"], "feeds");
    assert_eq!(pod["tolerations"][0]["key"], "feeds");
    let names = |list: &Value| {
        list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let made = format!("xtm-reconcile-{}-registry", scene.manager);
    assert_eq!(names(&pod["imagePullSecrets"]), ["from-base", "one", "two", &made]);
    assert_eq!(names(&pod["containers"]), ["connector", "sidecar"]);
    let connector = container(&deployment);
    assert_eq!(connector["securityContext"], json!({ "runAsNonRoot": true, "allowPrivilegeEscalation": true }));
    assert_eq!(connector["volumeMounts"][0]["mountPath"], "/tmp");
    assert_eq!(connector["imagePullPolicy"], "Always");
    assert_eq!(connector["resources"], serde_json::from_str::<Value>(resources).unwrap());
    assert_eq!(variable(&deployment, "MINE"), &json!({ "name": "MINE", "value": "ours" }));
    assert_eq!(variable(&deployment, "EXTRA")["value"], "from the base");

    let secrets = scene.cluster.secrets();
    let pull = secrets.iter().find(|secret| secret["metadata"]["name"] == made.as_str()).expect("a pull secret");
    assert_eq!(pull["type"], "kubernetes.io/dockerconfigjson");
    let config: Value = serde_json::from_str(&values(pull)[".dockerconfigjson"]).unwrap();
    assert_eq!(config["auths"]["registry.internal:5000"]["password"], "pu11-s3cr3t");
    assert_eq!(pull["metadata"]["ownerReferences"][0]["kind"], "Lease");

    // A password that was changed reaches the pods whose images cannot be pulled, though nothing else changes.
    scene.cluster.waiting("alpha", "ImagePullBackOff", "401 Unauthorized");
    let report = scene
        .pass_with(|program| with(program).var("OPENCTI__DAEMON__REGISTRY__PASSWORD", "n3w"))
        .expect_code(1)
        .lane();
    assert_eq!(steps(&report), [], "{report:#}");
    let secrets = scene.cluster.secrets();
    let pull = secrets.iter().find(|secret| secret["metadata"]["name"] == made.as_str()).unwrap();
    assert!(values(pull)[".dockerconfigjson"].contains("n3w"));
}

// Shows what README says under "Configuration": "without a server, of Docker Hub".
#[test]
fn a_login_without_a_server_is_one_of_docker_hub() {
    let scene = Scene::new("hub");
    scene.connector("alpha");
    let login = [("OPENCTI__DAEMON__REGISTRY__USERNAME", "puller"), ("OPENCTI__DAEMON__REGISTRY__PASSWORD", "pu11")];
    scene.pass_with(|p| login.into_iter().fold(p, |p, (name, value)| p.var(name, value))).expect_code(0);
    let secrets = scene.cluster.secrets();
    let pull = secrets.iter().find(|secret| secret["type"] == "kubernetes.io/dockerconfigjson").expect("a pull secret");
    let config: Value = serde_json::from_str(&values(pull)[".dockerconfigjson"]).unwrap();
    let auths = config["auths"].as_object().unwrap();
    // The key under which the kubelet looks for the login of images without a registry.
    assert_eq!(auths.keys().collect::<Vec<_>>(), ["https://index.docker.io/v1/"]);
    assert_eq!(auths["https://index.docker.io/v1/"]["username"], "puller");
}

// Shows what README says under "On Kubernetes": "are in a Secret that it owns, never in the Deployment".
#[test]
fn proxy_urls_and_the_proxys_ca_come_by_secret() {
    let scene = Scene::new("proxy");
    scene.connector("alpha");
    let ca = "-----BEGIN CERTIFICATE-----\nTWljaGFlbA==\n-----END CERTIFICATE-----\n";
    let outcome = scene.pass_with(|program| {
        program
            .var("OPENCTI__WITH_PROXY", "true")
            .var("OPENCTI__HTTPS_PROXY", "http://user:pr0xy-pass@proxy:3128")
            .var("OPENCTI__NO_PROXY", "127.0.0.1,localhost")
            .var("OPENCTI__HTTPS_PROXY_CA", serde_json::to_string(&[ca]).unwrap())
    });
    outcome.expect_code(0);
    let deployment = scene.cluster.deployment("alpha");
    let secret = &scene.cluster.secrets()[0];
    assert_eq!(values(secret)["HTTPS_PROXY"], "http://user:pr0xy-pass@proxy:3128");
    assert_eq!(values(secret)["xtm-proxy-ca.crt"].trim(), ca.trim());
    assert!(!deployment.to_string().contains("pr0xy-pass"));
    assert_eq!(variable(&deployment, "NO_PROXY")["value"], "127.0.0.1,localhost");
    assert_eq!(variable(&deployment, "SSL_CERT_FILE")["value"], "/etc/ssl/certs/xtm-proxy-ca.crt");
    let mount = &container(&deployment)["volumeMounts"][0];
    assert_eq!(
        (&mount["mountPath"], &mount["subPath"]),
        (&json!("/etc/ssl/certs/xtm-proxy-ca.crt"), &json!("xtm-proxy-ca.crt"))
    );
    let volume = &deployment["spec"]["template"]["spec"]["volumes"][0];
    assert_eq!(volume["secret"]["secretName"], secret["metadata"]["name"]);
}

// Shows what README says under "On Kubernetes": "what the API server itself refuses changes nothing".
#[test]
fn what_the_api_server_refuses_fails_that_connector_and_leaves_the_old_one_and_its_values() {
    let scene = Scene::new("refused");
    scene.connector_with("alpha", |connector| connector.secret("API_PASSWORD", "first"));
    scene.pass().expect_code(0);
    let (before, secrets) = (scene.cluster.deployment("alpha"), scene.cluster.secrets());
    scene.change("alpha", |c| {
        *c = Connector::new("id-alpha", "alpha", "i:2").requested("starting").secret("API_PASSWORD", "second");
    });
    // A volume mount without its volume, and a field that does not exist.
    for (base, told) in [
        (
            r#"{"spec":{"template":{"spec":{"containers":[{"volumeMounts":[{"name":"no","mountPath":"/x"}]}]}}}}"#,
            "volumeMounts",
        ),
        (r#"{"spec":{"template":{"spec":{"tolerationz":[]}}}}"#, "tolerationz"),
    ] {
        let outcome =
            scene.pass_with(|p| p.var("OPENCTI__DAEMON__KUBERNETES__BASE_DEPLOYMENT_JSON", base)).expect_code(1);
        let report = outcome.lane();
        let failed = line(&report, "alpha");
        assert_eq!(failed["result"], "failed");
        assert!(failed["error"].as_str().unwrap().contains(told), "{failed:#}");
        assert!(failed["cure"].as_str().unwrap().contains("BASE_DEPLOYMENT"), "{failed:#}");
        assert_eq!(scene.cluster.deployment("alpha")["spec"], before["spec"]);
        let now = scene.cluster.secrets();
        assert!(now.contains(&secrets[0]), "the old values are there: {now:#?}");
    }
    scene.pass().expect_code(0);
    let used = secret_of(&scene.cluster.deployment("alpha"), "API_PASSWORD");
    let secrets = scene.cluster.secrets();
    let used = secrets.iter().find(|secret| secret["metadata"]["name"] == used.as_str()).unwrap();
    assert_eq!(values(used)["API_PASSWORD"], "second");
}
