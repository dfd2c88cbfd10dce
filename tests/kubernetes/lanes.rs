//! Two platforms in one namespace: what is one lane's is foreign to the other, and what `OpenAEV` gets of a log.

mod logs;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stand_in_platform::{Connector, Instance, OPENAEV_DEFAULT_TOKEN};
use xtm_reconcile::exit;

use crate::cluster::{ago, shipped_rules, values};
use crate::scene::{IMAGE, NOBODY, Scene, expect_all, faults};
use crate::support::{Binary, Outcome};

const OPENCTI: &str = "opencti";
const OPENAEV: &str = "openaev";
const BOTH: [&str; 2] = [OPENCTI, OPENAEV];
const LEASES: &str = "apis/coordination.k8s.io/v1";
const REGISTRATION: &str = "xtm-reconcile/registration";

impl Scene {
    /// Adds an instance of `OpenAEV` that should run.
    fn instance(&self, id: &str, title: &str) {
        self.instance_with(id, title, |instance| instance);
    }

    fn instance_with(&self, id: &str, title: &str, change: impl FnOnce(Instance) -> Instance) {
        let instance = change(Instance::new(id, title, IMAGE).requested("starting"));
        self.platform.edit(|state| state.openaev.instances.push(instance));
    }

    fn change_instance(&self, id: &str, change: impl FnOnce(&mut Instance)) {
        self.platform.edit(|state| change(state.openaev.instance_mut(id).expect("an instance of that id")));
    }

    /// A pass over both platforms, with the rights that the shipped Role grants.
    #[track_caller]
    fn pass_of_both(&self, code: u8) -> Value {
        self.pass_with(|program| self.and_openaev(program)).expect_code(code.into()).json()
    }

    fn and_openaev(&self, program: Binary) -> Binary {
        program
            .var("OPENAEV__ENABLE", "true")
            .var("OPENAEV__URL", self.platform.url())
            .var("OPENAEV__TOKEN", OPENAEV_DEFAULT_TOKEN)
            .var("OPENAEV__DAEMON__KUBERNETES__BASE_DEPLOYMENT_JSON", NOBODY)
    }

    /// A pass of both that does nothing, and writes nothing but the Leases.
    #[track_caller]
    fn expect_both_quiet(&self, what: &str) -> Value {
        self.cluster.tap.take_calls();
        let report = self.pass_of_both(exit::OK);
        assert_eq!(report["counts"]["steps"], json!({}), "{what}: {report:#}");
        let writes = self.writes();
        assert!(writes.iter().all(|write| write.contains("/leases/")), "{what}: {writes:#?}");
        report
    }

    fn lease_path(&self, end: &str) -> String {
        format!("{}/xtm-reconcile-{}{end}", self.cluster.path(LEASES, "leases"), self.manager)
    }

    #[track_caller]
    fn lease(&self, end: &str) -> Value {
        self.cluster.expect("GET", &self.lease_path(end), None)
    }

    /// The Lease as version 0.1 left it.
    #[track_caller]
    fn former_lease(&self, registration: &Value, spec: &Value) -> Value {
        let labels = json!({ "opencti-manager": self.manager });
        let name = format!("xtm-reconcile-{}", self.manager);
        let metadata = json!({ "name": name, "labels": labels, "annotations": { REGISTRATION: registration } });
        let lease =
            json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec });
        self.cluster.expect("POST", &self.cluster.path(LEASES, "leases"), Some(&lease))
    }

    /// The texts of the log calls to `OpenAEV` since the last look, one entry a call.
    #[track_caller]
    fn logs_sent(&self) -> Vec<String> {
        let calls = self.platform.calls("openaev.logs");
        self.platform.clear_journal();
        let text = |call: &stand_in_platform::Call| {
            assert!(call.is_ok(), "{call:?}");
            let strings = call.variables["connector_instance_logs"].as_array().expect("a list").clone();
            assert_eq!(strings.len(), 1, "one string: {strings:?}");
            strings[0].as_str().expect("a text").to_owned()
        };
        calls.iter().map(text).collect()
    }

    /// What a pass sends of logs.
    #[track_caller]
    fn pass_sends(&self) -> Vec<String> {
        self.platform.clear_journal();
        self.pass_of_both(exit::OK);
        self.logs_sent()
    }

    /// The log of a pod's current run after a rotation took so many lines from its beginning.
    fn set_rotated(&self, pod: &Value, lines: u64, left: &str) {
        let path = format!("{}/{}", self.cluster.path("api/v1", "pods"), pod["metadata"]["name"].as_str().unwrap());
        let annotations = json!({ "stand-in/log": left, "stand-in/log-rotated": lines.to_string() });
        self.cluster.edit(&path, "kubelet", &json!({ "metadata": { "annotations": annotations } }));
    }

    /// One instance `alpha` of `OpenAEV`, running; gives its pod.
    fn with_instance(name: &str) -> (Self, Value) {
        let scene = Self::new(name);
        scene.instance("id-alpha", "Alpha");
        scene.pass_of_both(exit::OK);
        let pod = scene.cluster.running("alpha", 0, 600);
        scene.pass_of_both(exit::OK);
        scene.platform.clear_journal();
        (scene, pod)
    }
}

/// The part of a report about one lane.
#[track_caller]
fn lane<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut lanes = report["lanes"].as_array().expect("a report has lanes").iter();
    lanes.find(|lane| lane["lane"] == name).unwrap_or_else(|| panic!("no lane {name} in {report:#}"))
}

#[track_caller]
fn result<'a>(report: &'a Value, platform: &str, id: &str) -> &'a Value {
    let mut lines = lane(report, platform)["connectors"].as_array().expect("connectors").iter();
    lines.find(|line| line["connector"] == id).unwrap_or_else(|| panic!("{id} is not in {report:#}"))
}

fn platform_of(deployment: &Value) -> &Value {
    &deployment["metadata"]["labels"]["opencti-platform"]
}

/// A time as an API server writes those of Leases.
fn micro(seconds_ago: i64) -> String {
    ago(seconds_ago).replace('Z', ".000000Z")
}

/// A Deployment as an older daemon made it: without a platform.
fn older(scene: &Scene, name: &str, id: &str, hash: &str) -> Value {
    let labels = json!({ "opencti-manager": scene.manager, "opencti-connector-id": id });
    let env = json!([{ "name": "A_SETTING", "value": "of-old" }]);
    let pod = json!({ "schedulerName": "nobody", "containers": [{ "name": name, "image": IMAGE, "env": env }] });
    let template = json!({ "metadata": { "labels": labels }, "spec": pod });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "labels": labels, "annotations": { "OPENCTI_CONFIG_HASH": hash } },
        "spec": { "replicas": 1, "selector": { "matchLabels": labels }, "template": template },
    });
    scene.cluster.create_deployment(&deployment, "xtm-composer")
}

/// A pod that is left of a Deployment, or that never had one.
fn left_pod(scene: &Scene, name: &str, id: &str, platform: &str, owner: Option<&str>) {
    let labels = json!({ "opencti-manager": scene.manager, "opencti-connector-id": id, "opencti-platform": platform });
    let owners: Vec<Value> = owner
        .map(|set| {
            let uid = "00000000-0000-4000-8000-000000000001";
            json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": uid, "controller": true })
        })
        .into_iter()
        .collect();
    let spec = json!({ "schedulerName": "nobody", "containers": [{ "name": "connector", "image": IMAGE }] });
    let metadata = json!({ "name": name, "labels": labels, "ownerReferences": owners });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
    let pod = scene.cluster.expect("POST", &scene.cluster.path("api/v1", "pods"), Some(&pod));
    let state = json!({ "running": { "startedAt": ago(5) } });
    let container = json!({
        "name": "connector", "image": IMAGE, "imageID": "", "ready": true, "restartCount": 41, "state": state, "lastState": {},
    });
    scene.cluster.set_status(&pod, &json!({ "phase": "Running", "containerStatuses": [container] }));
}

// Shows what README says under "What a pass does": "A lane has its own platform, engine or cluster, registry, proxy,
// lock, memory and plan"; and what deploy/kubernetes/README.md says under "Install": "Each platform has its own Lease;
// the Role is the same.".
#[test]
fn both_platforms_share_a_namespace_and_each_has_its_lease_and_its_deployments() {
    let scene = Scene::new("lanes");
    scene.connector_with("alpha", |connector| connector.secret("API_PASSWORD", "of-opencti"));
    scene.instance_with("id-beta", "Beta Two", |instance| instance.secret("BETA_KEY", "of-openaev"));
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({ "deploy": 2 }), "{report:#}");
    for (platform, id, name) in [(OPENCTI, "id-alpha", "alpha"), (OPENAEV, "id-beta", "beta-two")] {
        assert_eq!(lane(&report, platform)["counts"]["steps"], json!({ "deploy": 1 }), "{report:#}");
        let deployment = scene.cluster.deployment(name);
        let owned =
            json!({ "opencti-connector-id": id, "opencti-manager": scene.manager, "opencti-platform": platform });
        assert_eq!(deployment["metadata"]["labels"], owned);
        assert_eq!(deployment["spec"]["template"]["metadata"]["labels"], owned);
        let lease = scene.lease(&format!("-{platform}"));
        assert_eq!(platform_of(&lease), platform, "{lease:#}");
        assert_eq!(lease["spec"]["holderIdentity"], Value::Null, "it was given back: {lease:#}");
        assert!(lease["metadata"]["annotations"][REGISTRATION].is_string(), "{lease:#}");
    }
    assert_eq!(scene.cluster.leases().len(), 2, "{:#?}", scene.cluster.leases());
    for name in ["alpha", "beta-two"] {
        scene.cluster.running(name, 0, 60);
    }
    scene.pass_of_both(exit::OK);
    let report = scene.expect_both_quiet("the third pass");
    for (platform, id) in [(OPENCTI, "id-alpha"), (OPENAEV, "id-beta")] {
        assert_eq!(lane(&report, platform)["platform"]["registration"], "known", "{report:#}");
        assert_eq!(result(&report, platform, id)["skip"]["kind"], "running", "{report:#}");
        assert_eq!(lane(&report, platform)["connectors"].as_array().unwrap().len(), 1, "{report:#}");
    }
    // What leaves one platform goes in the same pass, and takes nothing of the other along.
    scene.platform.edit(|state| state.openaev.instances.clear());
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(lane(&report, OPENAEV)["counts"]["steps"], json!({ "remove": 1 }), "{report:#}");
    assert!(scene.cluster.has_deployment("alpha") && !scene.cluster.has_deployment("beta-two"));
}

// Shows what README says under "What a pass does": "a name that both want goes to one of them".
#[test]
fn one_name_on_both_platforms_goes_to_one_and_the_winner_is_not_touched() {
    let scene = Scene::new("name");
    scene.connector_with("same", |connector| connector.secret("API_PASSWORD", OPENCTI));
    scene.instance_with("id-same", "Same", |instance| instance.secret("API_PASSWORD", OPENAEV));
    // Both lanes have planned to deploy before either does.
    let gates = [(); 2].map(|()| scene.cluster.tap.hold("POST", "/deployments", 0));
    let ended: Outcome = scene.cluster.under_rules(Some(shipped_rules()), || {
        let running = scene.and_openaev(scene.program()).args(["run", "--output", "json"]).spawn();
        gates.iter().for_each(crate::tap::Gate::wait);
        gates.iter().for_each(crate::tap::Gate::open);
        running.wait()
    });
    let first = ended.expect_code(exit::CONNECTOR_FAILED.into()).json();
    let won = scene.cluster.deployment("same");
    expect_one_winner(&scene, &first, platform_of(&won).as_str().unwrap());
    scene.cluster.tap.take_calls();
    let second = scene.pass_of_both(exit::CONNECTOR_FAILED);
    expect_one_winner(&scene, &second, platform_of(&won).as_str().unwrap());
    expect_leases_alone(&scene);
    assert_eq!(scene.cluster.deployment("same"), won, "nothing of the winner is touched");
}

#[test]
fn a_name_that_the_other_platform_has_already_is_rejected_whichever_it_is() {
    for winner in BOTH {
        let scene = Scene::new("name");
        scene.connector_with("same", |connector| connector.secret("API_PASSWORD", OPENCTI));
        scene.instance_with("id-same", "Same", |instance| instance.secret("API_PASSWORD", OPENAEV));
        let alone = scene.pass_with(|program| scene.and_openaev(program).args(["--platform", winner]));
        alone.expect_code(exit::OK.into());
        let won = scene.cluster.deployment("same");
        for _ in 0..2 {
            scene.cluster.tap.take_calls();
            let report = scene.pass_of_both(exit::CONNECTOR_FAILED);
            expect_one_winner(&scene, &report, winner);
            expect_leases_alone(&scene);
            assert_eq!(scene.cluster.deployment("same"), won, "nothing of the winner is touched");
        }
    }
}

/// What the other platform has is known before anything is tried.
#[track_caller]
fn expect_leases_alone(scene: &Scene) {
    let writes = scene.writes();
    assert!(writes.iter().all(|write| write.contains("/leases")), "{writes:#?}");
}

#[track_caller]
fn expect_one_winner(scene: &Scene, report: &Value, winner: &str) {
    let loser = if winner == OPENCTI { OPENAEV } else { OPENCTI };
    let rejected = result(report, loser, "id-same");
    assert_eq!((&rejected["result"], &rejected["reject"]["kind"]), (&json!("rejected"), &json!("name-taken")));
    let said = rejected["error"].as_str().unwrap();
    expect_all(said, &["the name same is taken by a connector of the platform", winner], "rejected");
    assert_eq!(lane(report, winner)["exit_code"], exit::OK, "{report:#}");
    assert_eq!(scene.cluster.deployments().len(), 1);
    let deployment = scene.cluster.deployment("same");
    assert_eq!((platform_of(&deployment), &deployment["spec"]["replicas"]), (&json!(winner), &json!(1)));
    let secrets = scene.cluster.secrets();
    assert_eq!(secrets.len(), 1, "{secrets:#?}");
    assert_eq!(values(&secrets[0])["API_PASSWORD"], winner);
}

// Shows what README says under "What a pass does": "there each lane sees the other's workloads as foreign".
#[test]
fn one_id_on_both_platforms_names_two_deployments_whose_pods_are_kept_apart() {
    let scene = Scene::new("id");
    scene.connector("one");
    scene.instance("id-one", "Two");
    scene.pass_of_both(exit::OK);
    scene.cluster.running("one", 0, 600);
    scene.cluster.waiting("two", "ImagePullBackOff", "no such image");
    let report = scene.pass_of_both(exit::CONNECTOR_FAILED);
    assert_eq!(lane(&report, OPENCTI)["exit_code"], exit::OK, "{report:#}");
    expect_all(&result(&report, OPENAEV, "id-one")["troubles"].to_string(), &["image-pull"], "its own");
    scene.cluster.running("two", 2, 600);
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({}), "{report:#}");
    let restarts = BOTH.map(|platform| result(&report, platform, "id-one")["restarts"].clone());
    assert_eq!(restarts, [json!(0), json!(2)], "{report:#}");

    scene.change("one", |connector| "stopping".clone_into(&mut connector.requested_status));
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({ "stop": 1 }), "{report:#}");
    let replicas = ["one", "two"].map(|name| scene.cluster.deployment(name)["spec"]["replicas"].clone());
    assert_eq!(replicas, [json!(0), json!(1)]);
    scene.cluster.control();
    // The pod of the other is none of its own that has not ended.
    let report = scene.expect_both_quiet("stopped");
    assert_eq!(result(&report, OPENCTI, "id-one")["skip"]["kind"], "stopped", "{report:#}");

    scene.platform.edit(|state| state.openaev.instances.clear());
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(lane(&report, OPENAEV)["counts"]["steps"], json!({ "remove": 1 }), "{report:#}");
    assert!(scene.cluster.has_deployment("one") && !scene.cluster.has_deployment("two"));
}

#[test]
fn a_pod_that_the_other_platform_left_over_is_nobodys_trouble_here() {
    for owner in [Some("gone-abcdef"), None] {
        for (theirs, ours) in [(OPENAEV, OPENCTI), (OPENCTI, OPENAEV)] {
            let scene = Scene::new("left");
            scene.connector("one");
            scene.instance("id-one", "Two");
            left_pod(&scene, "left-over", "id-one", theirs, owner);
            let report = scene.pass_of_both(exit::CONNECTOR_FAILED);
            assert_eq!(lane(&report, ours)["counts"]["steps"], json!({ "deploy": 1 }), "{owner:?}: {report:#}");
            let said = result(&report, theirs, "id-one")["error"].to_string();
            expect_all(&said, &["left-over", "without a Deployment"], "its own platform is told");
            assert_eq!(scene.cluster.deployments().len(), 1);
            // Nor does it count once there is a Deployment: it runs since 5 s, restarted 41 times.
            let name = if ours == OPENCTI { "one" } else { "two" };
            let template = scene.cluster.deployment(name)["spec"]["template"].clone();
            assert_eq!(template["metadata"]["labels"]["opencti-platform"], ours);
            let report = scene.pass_of_both(exit::CONNECTOR_FAILED);
            let line = result(&report, ours, "id-one");
            assert_eq!(line["skip"]["kind"], "pending", "{owner:?}: {line:#}");
            assert_ne!(line["restarts"], 41, "{owner:?}: {line:#}");
        }
    }
}

#[test]
fn deployments_of_an_older_daemon_go_to_the_lane_whose_list_has_them() {
    let scene = Scene::new("older");
    scene.connector_with("alpha", |connector| Connector { hash: Some("aaaa1111".to_owned()), ..connector });
    scene.instance_with("id-beta", "Beta", |instance| Instance { hash: Some("bbbb2222".to_owned()), ..instance });
    let made = [("alpha", "aaaa1111"), ("beta", "bbbb2222"), ("gamma", "cccc3333")];
    let made = made.map(|(name, hash)| {
        let deployment = older(&scene, name, &format!("id-{name}"), hash);
        scene.cluster.running(name, 0, 600);
        deployment
    });
    scene.pass_of_both(exit::OK);
    let report = scene.expect_both_quiet("adopted");
    for (platform, id) in [(OPENCTI, "id-alpha"), (OPENAEV, "id-beta")] {
        assert_eq!(result(&report, platform, id)["skip"]["kind"], "running", "{report:#}");
    }
    for before in &made {
        let name = before["metadata"]["name"].as_str().unwrap();
        let now = scene.cluster.deployment(name);
        let same = |deployment: &Value| {
            (deployment["metadata"]["uid"].clone(), deployment["spec"].clone(), platform_of(deployment).clone())
        };
        assert_eq!(same(&now), same(before), "{name}");
    }
    // A change makes each its lane's own for good, and what nobody lists stays as it is.
    scene.change("alpha", |connector| connector.hash = Some("aaaa1112".to_owned()));
    scene.change_instance("id-beta", |instance| instance.hash = Some("bbbb2223".to_owned()));
    let report = scene.pass_of_both(exit::OK);
    for platform in BOTH {
        assert_eq!(lane(&report, platform)["counts"]["steps"], json!({ "refresh": 1 }), "{report:#}");
    }
    for (name, platform) in [("alpha", OPENCTI), ("beta", OPENAEV)] {
        assert_eq!(platform_of(&scene.cluster.deployment(name)), platform);
    }
    assert_eq!(scene.cluster.deployment("gamma")["metadata"]["generation"], 1);
}

// Shows what README says under "On Kubernetes": "The Lease `xtm-reconcile-MANAGER` of earlier versions is read once and
// stays".
#[test]
fn the_lease_of_the_version_before_lanes_is_opencti_s_and_is_read_and_left() {
    let scene = Scene::new("former");
    scene.connector("alpha");
    scene.instance("id-beta", "Beta");
    scene.pass_of_both(exit::OK);
    let registration = scene.lease("-opencti")["metadata"]["annotations"][REGISTRATION].clone();
    let delete = |end: &str| scene.cluster.delete(&scene.lease_path(end));
    for platform in BOTH {
        delete(&format!("-{platform}"));
    }
    let former = scene.former_lease(&registration, &json!({}));
    scene.platform.clear_journal();
    let report = scene.pass_of_both(exit::OK);
    let told = |report: &Value, platform: &str| lane(report, platform)["platform"]["registration"].clone();
    assert_eq!(told(&report, OPENCTI), "known", "{report:#}");
    assert_eq!(scene.platform.calls("registerConnectorsManager").len(), 0, "{report:#}");
    expect_all(&told(&report, OPENAEV).to_string(), &["there is no memory"], "it knew OpenCTI alone");
    assert_eq!(scene.platform.calls("openaev.register").len(), 1, "{report:#}");
    assert_eq!(scene.lease("-opencti")["metadata"]["annotations"][REGISTRATION], registration, "written anew");
    assert_eq!(scene.lease(""), former, "the old one is left as it is");
    // From then on the old one is not needed, nor asked for.
    scene.cluster.tap.take_calls();
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(told(&report, OPENCTI), "known", "{report:#}");
    let asked = scene.cluster.tap.take_calls().into_iter().any(|call| call.path == scene.lease_path(""));
    assert!(!asked, "the old one is not asked for");
    delete("");
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(BOTH.map(|platform| told(&report, platform)), [json!("known"), json!("known")], "{report:#}");
}

#[test]
fn a_pass_of_the_version_before_lanes_keeps_opencti_alone_waiting() {
    let scene = Scene::new("formerheld");
    scene.connector("alpha");
    scene.instance("id-beta", "Beta");
    let held = json!({
        "holderIdentity": "0badcafe_a-pod_7", "leaseDurationSeconds": 60, "acquireTime": micro(5), "renewTime": micro(5),
    });
    let former = scene.former_lease(&Value::Null, &held);
    let report = scene.pass_of_both(exit::LOCKED);
    let codes = BOTH.map(|platform| lane(&report, platform)["exit_code"].clone());
    assert_eq!(codes, [json!(exit::LOCKED), json!(exit::OK)], "{report:#}");
    expect_all(&faults(lane(&report, OPENCTI)), &["pass 0badcafe (process 7 on a-pod)"], "held");
    assert_eq!(lane(&report, OPENAEV)["counts"]["steps"], json!({ "deploy": 1 }), "{report:#}");
    assert!(!scene.cluster.has_deployment("alpha") && scene.cluster.has_deployment("beta"));
    assert_eq!(scene.lease(""), former);
    let leases = scene.cluster.leases();
    assert_eq!(leases.len(), 2, "none is made while the former one is held: {leases:#?}");
    // Left by a pass that was killed: it expires.
    let path = scene.lease_path("");
    scene.cluster.ask(
        "PATCH",
        &path,
        "application/merge-patch+json",
        Some(&json!({ "spec": { "renewTime": micro(61) } })),
    );
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(lane(&report, OPENCTI)["counts"]["steps"], json!({ "deploy": 1 }), "{report:#}");
}

#[test]
fn a_lease_that_one_lane_finds_held_keeps_the_other_from_nothing() {
    for held in BOTH {
        let scene = Scene::new("held");
        scene.connector("alpha");
        scene.instance("id-beta", "Beta");
        scene.pass_of_both(exit::OK);
        let spec = json!({
            "holderIdentity": "0badcafe_a-pod_7", "leaseDurationSeconds": 60, "acquireTime": micro(5), "renewTime": micro(5),
        });
        let path = scene.lease_path(&format!("-{held}"));
        scene.cluster.ask("PATCH", &path, "application/merge-patch+json", Some(&json!({ "spec": spec })));
        scene.connector("gamma");
        scene.instance("id-delta", "Delta");
        let report = scene.pass_of_both(exit::LOCKED);
        for platform in BOTH {
            let expected = if platform == held { exit::LOCKED } else { exit::OK };
            assert_eq!(lane(&report, platform)["exit_code"], expected, "{report:#}");
        }
        assert_eq!(scene.cluster.has_deployment("gamma"), held == OPENAEV);
        assert_eq!(scene.cluster.has_deployment("delta"), held == OPENCTI);
        let lease = scene.cluster.expect("GET", &path, None);
        assert_eq!(lease["spec"]["holderIdentity"], "0badcafe_a-pod_7", "it is not given back");
    }
}

// Shows what README says under "On Kubernetes": "with a registry login, the pull secret
// `xtm-reconcile-MANAGER-registry`"; and what deploy/kubernetes/README.md says under "Remove": "the pull secret with
// the Lease".
#[test]
fn each_platform_has_a_pull_secret_of_its_own_and_opencti_s_keeps_its_name() {
    let scene = Scene::new("pull");
    scene.connector("alpha");
    scene.instance("id-beta", "Beta");
    let login = |program: Binary| {
        BOTH.into_iter().fold(scene.and_openaev(program), |program, platform| {
            let name = |key: &str| format!("{}__DAEMON__REGISTRY__{key}", platform.to_uppercase());
            program
                .var(name("SERVER"), format!("{platform}.registry:5000"))
                .var(name("USERNAME"), platform)
                .var(name("PASSWORD"), format!("pass-of-{platform}"))
        })
    };
    scene.pass_with(login).expect_code(exit::OK.into());
    let end = |platform: &str| if platform == OPENCTI { "" } else { "-openaev" };
    for (platform, deployment) in [(OPENCTI, "alpha"), (OPENAEV, "beta")] {
        let name = format!("xtm-reconcile-{}{}-registry", scene.manager, end(platform));
        let pod = &scene.cluster.deployment(deployment)["spec"]["template"]["spec"];
        assert_eq!(pod["imagePullSecrets"], json!([{ "name": name }]), "{platform}");
        let secrets = scene.cluster.secrets();
        let secret = secrets.iter().find(|secret| secret["metadata"]["name"] == name.as_str()).expect("a pull secret");
        let config: Value = serde_json::from_str(&values(secret)[".dockerconfigjson"]).unwrap();
        let auths = config["auths"].as_object().unwrap();
        assert_eq!(auths.keys().collect::<Vec<_>>(), [&format!("{platform}.registry:5000")]);
        assert_eq!(auths[&format!("{platform}.registry:5000")]["password"], format!("pass-of-{platform}"));
        let lease = scene.lease(&format!("-{platform}"));
        let owner = &secret["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["name"], &owner["uid"]), (&lease["metadata"]["name"], &lease["metadata"]["uid"]));
    }
    let pull = |secret: &Value| secret["type"] == "kubernetes.io/dockerconfigjson";
    assert_eq!(scene.cluster.secrets().iter().filter(|secret| pull(secret)).count(), 2);
}

#[test]
fn long_hashes_and_odd_titles_of_openaev_work() {
    let scene = Scene::new("titles");
    let hash = "0123456789abcdef".repeat(4);
    let long = "A Very Long Title ".repeat(12).chars().take(200).collect::<String>();
    let titles = ["Plain", &long, "🚀🔥 🧨", "Émile & Söhne (v2)"];
    for (index, title) in titles.iter().enumerate() {
        let with_hash = |instance: Instance| Instance { hash: Some(hash.clone()), ..instance };
        scene.instance_with(&format!("id-{index}"), title, |instance| with_hash(instance).secret("A_KEY", "b"));
    }
    let report = scene.pass_of_both(exit::OK);
    assert_eq!(lane(&report, OPENAEV)["counts"]["steps"], json!({ "deploy": 4 }), "{report:#}");
    let deployments = scene.cluster.deployments();
    assert_eq!(deployments.len(), 4);
    for deployment in &deployments {
        let name = deployment["metadata"]["name"].as_str().unwrap();
        assert!(!name.is_empty() && name.len() <= 63, "{name}");
        assert_eq!(deployment["metadata"]["annotations"]["OPENCTI_CONFIG_HASH"], hash);
        scene.cluster.running(name, 0, 60);
    }
    scene.pass_of_both(exit::OK);
    let report = scene.expect_both_quiet("titles");
    for index in 0..titles.len() {
        let line = result(&report, OPENAEV, &format!("id-{index}"));
        assert_eq!(line["skip"]["kind"], "running", "{line:#}");
    }
}

// Shows what README says under "What a pass does": "A lane has its own platform, engine or cluster, registry, proxy,
// lock, memory and plan".
#[test]
fn a_lease_that_one_lane_loses_stops_that_lane_alone() {
    let scene = Scene::new("lostone");
    for name in ["alpha", "beta", "gamma"] {
        scene.connector(name);
    }
    scene.instance("id-delta", "Delta");
    let held = |call: &crate::tap::Call| call.path == scene.lease_path("-opencti") && call.method == "GET";
    let fault = stand_in_platform::Fault::on("openaev.*", stand_in_platform::FaultKind::Delay { ms: 100 });
    scene.platform.fault(fault);
    let gate = scene.cluster.tap.hold("POST", "/deployments", 0);
    let running =
        scene.and_openaev(scene.program()).var("MANAGER__CONCURRENCY", "2").args(["run", "--output", "json"]).spawn();
    gate.wait();
    let another = json!({ "spec": { "holderIdentity": "another_one_1", "renewTime": micro(0) } });
    let path = scene.lease_path("-opencti");
    scene.cluster.ask("PATCH", &path, "application/merge-patch+json", Some(&another));
    scene.cluster.tap.take_calls();
    scene.cluster.wait_for("the lane to see it", |cluster| cluster.tap.take_calls().iter().any(held).then_some(()));
    gate.open();
    let report = running.wait().expect_code(exit::LOCKED.into()).json();
    let codes = BOTH.map(|platform| lane(&report, platform)["exit_code"].clone());
    assert_eq!(codes, [json!(exit::LOCKED), json!(exit::OK)], "{report:#}");
    assert!(scene.cluster.has_deployment("delta") && !scene.cluster.has_deployment("gamma"), "{report:#}");
    expect_all(&faults(lane(&report, OPENCTI)), &["another pass took over the lock"], "lost");
    assert_eq!(scene.lease("-opencti")["spec"]["holderIdentity"], "another_one_1", "it is not given back");
    assert_eq!(scene.lease("-openaev")["spec"]["holderIdentity"], Value::Null, "it is given back");
}
