//! What the program may do, and what it does.

use std::collections::BTreeSet;

use serde_json::json;
use xtm_reconcile::orchestrator::kubernetes::PERMISSIONS;

use crate::cluster::shipped_rules;
use crate::scene::{Scene, expect_all};
use crate::tap::{Access, Call, Fault};

fn used(calls: &[Call]) -> BTreeSet<Access> {
    calls.iter().filter_map(Call::access).flatten().collect()
}

/// Every way of a pass, its requests recorded.
fn everything() -> Vec<Call> {
    let mut calls = Vec::new();
    let scene = Scene::new("everything");
    let mut done = |scene: &Scene| calls.extend(scene.cluster.tap.take_calls());
    // First a plan where there is nothing yet, then deployed with login and secrets, and refused once by the server.
    scene.plan().expect_code(0);
    for name in ["alpha", "beta", "gamma"] {
        scene.connector_with(name, |connector| connector.secret("API_PASSWORD", "x"));
    }
    let login = |p: crate::support::Binary| {
        p.var("OPENCTI__DAEMON__REGISTRY__SERVER", "registry.internal:5000")
            .var("OPENCTI__DAEMON__REGISTRY__USERNAME", "u")
            .var("OPENCTI__DAEMON__REGISTRY__PASSWORD", "p")
    };
    scene.pass_with(login).expect_code(0);
    for name in ["alpha", "beta"] {
        let pod = scene.cluster.running(name, 1, 100);
        scene.cluster.set_log(&pod, false, "a line\n");
    }
    scene.pass().expect_code(0);
    // Changed, stopped, removed; renamed, which recreates.
    scene.change("alpha", |connector| *connector = connector.clone().secret("API_PASSWORD", "y"));
    scene.change("beta", |connector| "stopping".clone_into(&mut connector.requested_status));
    scene.platform.edit(|state| state.connectors.retain(|connector| connector.name != "gamma"));
    scene.pass().expect_code(0);
    scene.change("beta", |connector| {
        "starting".clone_into(&mut connector.requested_status);
    });
    scene.pass().expect_code(0);
    scene.change("beta", |connector| "omega".clone_into(&mut connector.name));
    let running = scene.program().spawn();
    scene.cluster.wait_for("the old one to be stopped", |cluster| {
        let old = cluster.ask("GET", &cluster.deployment_path("beta"), "application/json", None);
        (old.0 == 404 || old.1["spec"]["replicas"] == 0).then_some(())
    });
    scene.cluster.control();
    running.wait().expect_code(0);
    scene.program().arg("check").run().expect_code(0);
    done(&scene);
    calls
}

// Shows what README says under "What a pass does": "On Kubernetes the Secret is never read"; and what
// deploy/kubernetes/README.md says under "What the Role grants": "One namespace, fifteen permissions, no cluster
// role.", "It never reads a Secret: it has neither get nor list.".
#[test]
fn the_role_grants_exactly_what_is_used_and_what_check_asks_for() {
    let calls = everything();
    let used = used(&calls);
    let rules = shipped_rules();
    let mut granted: BTreeSet<Access> = BTreeSet::new();
    for rule in &rules {
        assert_eq!(rule.resource_names, [] as [String; 0], "a Role for any manager's names");
        for (group, resource) in rule.api_groups.iter().flat_map(|group| rule.resources.iter().map(move |r| (group, r)))
        {
            for verb in &rule.verbs {
                assert!(granted.insert((group.clone(), resource.clone(), verb.clone())), "{verb} {resource} twice");
            }
        }
    }
    let text = |set: BTreeSet<Access>| set.into_iter().map(|(g, r, v)| format!("{v} {r}.{g}")).collect::<Vec<_>>();
    let less: BTreeSet<Access> = used.difference(&granted).cloned().collect();
    let more: BTreeSet<Access> = granted.difference(&used).cloned().collect();
    assert_eq!((text(less), text(more)), (vec![], vec![]), "(used and not granted, granted and not used)");
    let asked: BTreeSet<Access> =
        PERMISSIONS.iter().map(|(g, r, v)| ((*g).to_owned(), (*r).to_owned(), (*v).to_owned())).collect();
    assert_eq!(text(asked), text(granted));
}

// Shows what README says under "Commands": "pulls and observes as a pass does, shows the steps, writes nothing".
#[test]
fn a_plan_and_a_check_write_nothing_whatever_there_is_to_do() {
    let scene = Scene::running("readonly", &["alpha", "beta"]);
    scene.connector_with("gamma", |connector| connector.secret("API_PASSWORD", "x"));
    scene.change("alpha", |connector| "registry.example/connector:2".clone_into(&mut connector.image));
    scene.platform.edit(|state| state.connectors.retain(|connector| connector.name != "beta"));
    let before = json!([scene.cluster.deployments(), scene.cluster.secrets(), scene.cluster.leases()]);
    scene.cluster.tap.take_calls();
    let report = scene.plan().expect_code(0).lane();
    assert_eq!(report["counts"]["steps"], json!({ "deploy": 1, "refresh": 1, "remove": 1 }), "{report:#}");
    scene.program().args(["plan", "--detailed-exitcode"]).run().expect_code(2);
    let told = scene.program().arg("check").run().expect_code(0).stdout;
    expect_all(&told, &["all 15 that a pass needs", "Kubernetes v", "2 Deployments of this manager"], "check");
    assert_eq!(scene.writes(), [] as [String; 0]);
    assert_eq!(json!([scene.cluster.deployments(), scene.cluster.secrets(), scene.cluster.leases()]), before);
}

// Shows what README says under "What a pass does": "logs, reports and errors never show one".
#[test]
fn no_secret_is_shown_anywhere() {
    let scene = Scene::new("redacted");
    scene.connector_with("alpha", |connector| connector.secret("API_PASSWORD", "s3cr3t-value"));
    let program = || {
        scene
            .program()
            .var("RUST_LOG", "trace")
            .var("OPENCTI__DAEMON__REGISTRY__SERVER", "registry.internal:5000")
            .var("OPENCTI__DAEMON__REGISTRY__USERNAME", "u")
            .var("OPENCTI__DAEMON__REGISTRY__PASSWORD", "pu11-s3cr3t")
            .args(["run", "--output", "json"])
    };
    let refused = r#"{"kind":"Status","status":"Failure","reason":"Invalid","message":"no","code":422}"#;
    scene.cluster.tap.fault("PATCH", "/secrets/", 1, Fault::Answer(422, None, refused.to_owned()));
    let encoded = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    for outcome in [program().run(), program().run()] {
        let printed = format!("{}{}", outcome.stdout, outcome.stderr);
        for secret in ["s3cr3t-value", "pu11-s3cr3t", "the-programs-token"] {
            assert!(!printed.contains(secret) && !printed.contains(&encoded(secret)), "{secret}");
        }
    }
}

/// The manifests are read with the API's own types, and what they promise each other holds.
// Shows what deploy/kubernetes/README.md says under "Why the CronJob is as it is": "every 2 minutes"; and under "Install":
// "the values that `configmap.yaml` and `secret.yaml` come with are refused with exit code 78".
#[test]
fn the_shipped_manifests_are_what_they_say() {
    use k8s_openapi::api::batch::v1::CronJob;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
    use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
    fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
        let path = crate::support::repository().join("deploy/kubernetes").join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
    let (job, settings): (CronJob, ConfigMap) = (read("cronjob.yaml"), read("configmap.yaml"));
    let (account, role, binding): (ServiceAccount, Role, RoleBinding) =
        (read("serviceaccount.yaml"), read("role.yaml"), read("rolebinding.yaml"));
    let secret: Secret = read("secret.yaml");
    let spec = job.spec.unwrap();
    assert_eq!((spec.schedule.as_str(), spec.concurrency_policy.as_deref()), ("*/2 * * * *", Some("Forbid")));
    let job = spec.job_template.spec.unwrap();
    assert_eq!(job.backoff_limit, Some(0));
    let settings = settings.data.unwrap();
    let deadline: i64 = settings["MANAGER__PASS_DEADLINE"].parse().unwrap();
    assert!(job.active_deadline_seconds.unwrap() > deadline);
    assert_eq!(settings["OPENCTI__DAEMON__SELECTOR"], "kubernetes");
    let declared = xtm_reconcile::config::variables::declared;
    assert!(settings.keys().all(|name| declared(name).is_some()), "{settings:#?}");
    let policy = job.pod_failure_policy.unwrap();
    let codes =
        policy.rules.iter().filter_map(|rule| rule.on_exit_codes.as_ref()).flat_map(|codes| codes.values.clone());
    let ends: BTreeSet<i32> = codes.collect();
    assert_eq!(ends, [5, 64, 78].into());
    let pod = job.template.spec.unwrap();
    assert_eq!(pod.service_account_name, account.metadata.name);
    assert_eq!(pod.security_context.unwrap().run_as_non_root, Some(true));
    let container = &pod.containers[0];
    assert_eq!(container.security_context.as_ref().unwrap().read_only_root_filesystem, Some(true));
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    assert_eq!(Some(binding.subjects.unwrap()[0].name.clone()), account.metadata.name);

    // What an operator has to fill in is refused as it stands, all at once.
    let scene = Scene::new("placeholders");
    let mut program = scene.program();
    for (name, value) in &settings {
        program = program.var(name, value);
    }
    let told = program.arg("check").run().expect_code(78).stdout;
    expect_all(&told, &["MANAGER__ID", "OPENCTI__URL"], "placeholders");

    // So is each value of the Secret by itself, in the file that it is mounted as.
    let folder = tempfile::tempdir().unwrap();
    let template = secret.string_data.unwrap();
    assert_eq!(template.keys().collect::<Vec<_>>(), ["key.pem", "token"]);
    for (name, variable) in [("token", "OPENCTI__TOKEN_FILE"), ("key.pem", "MANAGER__CREDENTIALS_KEY_FILEPATH")] {
        let path = folder.path().join(name);
        std::fs::write(&path, &template[name]).unwrap();
        let mut program = scene.program();
        if variable == "OPENCTI__TOKEN_FILE" {
            program = program.without_var("OPENCTI__TOKEN");
        }
        let told = program.var(variable, &path).arg("check").run().expect_code(78).stdout;
        expect_all(&told, &[variable.trim_end_matches("_FILE").trim_end_matches("_FILEPATH")], name);
    }
}
