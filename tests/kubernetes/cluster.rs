//! One namespace of an API server: the stand-in, or a real one that `tests/run kubernetes --kubeconfig FILE` names.
//!
//! On both the tests play the kubelet: they write the status of pods. Where nothing makes pods of Deployments, they play that
//! controller too. On a real cluster no node takes the pods, for their scheduler's name is nobody's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use stand_in_kubernetes::{Options, PolicyRule, StandIn};
use tokio::runtime::Runtime;
use ureq::http::Request;

use crate::support::{repository, unique};
use crate::tap::Tap;

/// Longest wait for something that another process does.
const SOON: Duration = Duration::from_secs(45);
const DEPLOYMENTS: &str = "apis/apps/v1";

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        drop(rustls::crypto::ring::default_provider().install_default());
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
    })
}

/// A namespace of one test alone, with a tap before the API server.
pub(crate) struct Cluster {
    stand_in: Option<StandIn>,
    client: Client,
    pub(crate) namespace: String,
    pub(crate) tap: Tap,
    folder: tempfile::TempDir,
    /// Whether something else makes pods of Deployments.
    controllers: bool,
}

/// The rules of the Role that the project ships.
pub(crate) fn shipped_rules() -> Vec<PolicyRule> {
    let path = repository().join("deploy/kubernetes/role.yaml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    PolicyRule::from_role_yaml(&text).expect("the Role can be read")
}

impl Cluster {
    pub(crate) fn new(name: &str) -> Self {
        let namespace = unique(&format!("xtm-{name}"));
        let (stand_in, config) = match std::env::var("XTM_TEST_KUBECONFIG") {
            Ok(path) => (None, runtime().block_on(config(Kubeconfig::read_from(path).expect("a kubeconfig")))),
            Err(_) => {
                let options = Options { namespaces: vec![namespace.clone()], ..Options::default() };
                let stand_in = StandIn::start(options).expect("the stand-in starts");
                let kubeconfig = Kubeconfig::from_yaml(&stand_in.kubeconfig(&namespace)).expect("a kubeconfig");
                (Some(stand_in), runtime().block_on(config(kubeconfig)))
            }
        };
        let _inside = runtime().enter();
        let client = Client::try_from(config).expect("a client");
        let tap = Tap::before(client.clone(), runtime().handle().clone());
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = Self { stand_in, client, namespace, tap, folder, controllers: false };
        cluster.write_kubeconfig();
        cluster.prepare()
    }

    fn prepare(mut self) -> Self {
        static CONTROLLERS: OnceLock<bool> = OnceLock::new();
        if self.stand_in.is_none() {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": self.namespace } });
            self.expect("POST", "/api/v1/namespaces", Some(&namespace));
            self.tap.answer_logs();
            self.controllers = *CONTROLLERS.get_or_init(|| has_controllers(&self));
        }
        self
    }

    /// Requests straight to the API server, many at a time: for what is measured, not tested.
    pub(crate) fn create_all(&self, path: &str, objects: &[Value]) {
        use futures_util::{StreamExt as _, TryStreamExt as _};
        let creating = objects.iter().map(|object| async move {
            let request = Request::post(path).header("content-type", "application/json");
            let request = request.body(Body::from(object.to_string().into_bytes())).expect("a request");
            self.client.send(request).await.map(|answer| assert!(answer.status().is_success(), "{}", answer.status()))
        });
        let all = futures_util::stream::iter(creating).buffer_unordered(16).try_collect::<Vec<()>>();
        runtime().block_on(all).expect("the API server answers");
    }

    pub(crate) fn stand_in(&self) -> Option<&StandIn> {
        self.stand_in.as_ref()
    }

    /// The kubeconfig for the program: it leads through the tap.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn write_kubeconfig(&self) {
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: '{}'}}}}]\nusers: [{{name: u, user: {{token: the-programs-token}}}}]\ncontexts: [{{name: here, context: {{cluster: c, user: u, namespace: {}}}}}]\ncurrent-context: here\n",
            self.tap.url(),
            self.namespace
        );
        std::fs::write(self.kubeconfig(), text).expect("the kubeconfig can be written");
    }

    /// Does `work` while the program may do no more than the shipped Role grants. Only the stand-in can tell.
    pub(crate) fn under_rules<T>(&self, rules: Option<Vec<PolicyRule>>, work: impl FnOnce() -> T) -> T {
        if let Some(stand_in) = &self.stand_in {
            stand_in.set_rules(rules);
        }
        let done = work();
        if let Some(stand_in) = &self.stand_in {
            stand_in.set_rules(None);
        }
        done
    }

    /// A request past the tap.
    pub(crate) fn ask(&self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> (u16, Value) {
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(Body::from(bytes)).expect("a request");
        runtime().block_on(async {
            let answer = self.client.send(request).await.expect("the API server answers");
            let code = answer.status().as_u16();
            let body = answer.into_body().collect().await.expect("a body").to_bytes();
            (code, serde_json::from_slice(&body).unwrap_or_default())
        })
    }

    #[track_caller]
    pub(crate) fn expect(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (code, answer) = self.ask(method, path, "application/json", body);
        assert!(code < 300, "{method} {path}: {code} {answer:#}");
        answer
    }

    pub(crate) fn path(&self, group: &str, resource: &str) -> String {
        format!("/{group}/namespaces/{}/{resource}", self.namespace)
    }

    fn deployments_path(&self) -> String {
        self.path(DEPLOYMENTS, "deployments")
    }

    pub(crate) fn deployment_path(&self, name: &str) -> String {
        format!("{}/{name}", self.deployments_path())
    }

    fn list(&self, path: &str) -> Vec<Value> {
        self.expect("GET", path, None)["items"].as_array().cloned().unwrap_or_default()
    }

    pub(crate) fn deployments(&self) -> Vec<Value> {
        self.list(&self.deployments_path())
    }

    pub(crate) fn secrets(&self) -> Vec<Value> {
        let all = self.list(&self.path("api/v1", "secrets"));
        // A real cluster may put secrets of its own into a namespace.
        all.into_iter().filter(|secret| secret["type"] != "kubernetes.io/service-account-token").collect()
    }

    pub(crate) fn pods(&self) -> Vec<Value> {
        self.list(&self.path("api/v1", "pods"))
    }

    pub(crate) fn leases(&self) -> Vec<Value> {
        self.list(&self.path("apis/coordination.k8s.io/v1", "leases"))
    }

    /// The Deployment of that name.
    #[track_caller]
    pub(crate) fn deployment(&self, name: &str) -> Value {
        self.expect("GET", &self.deployment_path(name), None)
    }

    pub(crate) fn has_deployment(&self, name: &str) -> bool {
        self.ask("GET", &self.deployment_path(name), "application/json", None).0 == 200
    }

    #[track_caller]
    pub(crate) fn create_deployment(&self, deployment: &Value, manager: &str) -> Value {
        self.expect("POST", &format!("{}?fieldManager={manager}", self.deployments_path()), Some(deployment))
    }

    /// What somebody does by hand.
    #[track_caller]
    pub(crate) fn edit(&self, path: &str, manager: &str, patch: &Value) -> Value {
        let kind = "application/strategic-merge-patch+json";
        let (code, answer) = self.ask("PATCH", &format!("{path}?fieldManager={manager}"), kind, Some(patch));
        assert!(code < 300, "{path}: {code} {answer:#}");
        answer
    }

    #[track_caller]
    pub(crate) fn delete(&self, path: &str) {
        self.expect("DELETE", path, None);
    }

    /// Waits until something holds.
    #[track_caller]
    pub(crate) fn wait_for<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            // A poll: an API server has watches, but a bare one has nobody who would end one.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Does what a Deployment's controller does, where there is none: as many pods as replicas, of the present template.
    pub(crate) fn control(&self) {
        if self.controllers {
            return;
        }
        for deployment in self.deployments() {
            let name = deployment["metadata"]["name"].as_str().expect("a name").to_owned();
            let template = deployment["spec"]["template"].clone();
            let set = format!("{name}-{}", short(&template));
            let wanted = usize::try_from(deployment["spec"]["replicas"].as_u64().unwrap_or(1)).expect("few");
            let (current, old): (Vec<Value>, Vec<Value>) =
                self.pods_of(&name).into_iter().partition(|pod| pod["metadata"]["ownerReferences"][0]["name"] == set);
            for pod in old.iter().chain(current.iter().skip(wanted)) {
                self.delete_pod(pod);
            }
            for _ in current.len()..wanted {
                let mut labels = template["metadata"]["labels"].clone();
                labels["pod-template-hash"] = "stands-for-a-hash".into();
                let owner = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": uid_of(&set), "controller": true });
                let metadata = json!({ "generateName": format!("{set}-"), "labels": labels, "annotations": template["metadata"]["annotations"], "ownerReferences": [owner] });
                let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] });
                self.expect("POST", &self.path("api/v1", "pods"), Some(&pod));
            }
        }
        // Pods of Deployments that are gone.
        for pod in self.pods() {
            let name = pod["metadata"]["ownerReferences"][0]["name"].as_str().unwrap_or_default();
            let deployment = name.rsplit_once('-').map_or(name, |(deployment, _)| deployment);
            if !self.has_deployment(deployment) {
                self.delete_pod(&pod);
            }
        }
    }

    pub(crate) fn delete_pod(&self, pod: &Value) {
        let path = format!("{}/{}", self.path("api/v1", "pods"), pod["metadata"]["name"].as_str().expect("a name"));
        self.expect("DELETE", &path, Some(&json!({ "gracePeriodSeconds": 0 })));
    }

    pub(crate) fn pods_of(&self, deployment: &str) -> Vec<Value> {
        let of = |pod: &Value| {
            let set = pod["metadata"]["ownerReferences"][0]["name"].as_str().unwrap_or_default();
            set.rsplit_once('-').is_some_and(|(name, _)| name == deployment)
                && pod["metadata"]["deletionTimestamp"].is_null()
        };
        self.pods().into_iter().filter(of).collect()
    }

    /// The one pod of a Deployment.
    #[track_caller]
    pub(crate) fn pod(&self, deployment: &str) -> Value {
        self.control();
        self.wait_for(&format!("one pod of {deployment}"), |cluster| {
            let mut pods = cluster.pods_of(deployment);
            if pods.len() == 1 { pods.pop() } else { None }
        })
    }

    /// What a kubelet says of the pod of a Deployment. `status` is laid over that of a container `connector`.
    #[track_caller]
    pub(crate) fn report(&self, deployment: &str, phase: &str, container: Option<&Value>) -> Value {
        let pod = self.pod(deployment);
        let mut status = json!({ "phase": phase });
        if let Some(container) = container {
            let own = &pod["spec"]["containers"][0];
            let mut full = json!({
                "name": own["name"], "image": own["image"], "imageID": "", "ready": phase == "Running", "restartCount": 0,
                "state": {}, "lastState": {},
            });
            for (key, value) in container.as_object().expect("an object") {
                full[key] = value.clone();
            }
            status["containerStatuses"] = json!([full]);
        }
        self.set_status(&pod, &status);
        pod
    }

    #[track_caller]
    pub(crate) fn set_status(&self, pod: &Value, status: &Value) {
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let path = format!("{}/{name}/status", self.path("api/v1", "pods"));
        let (code, answer) =
            self.ask("PATCH", &path, "application/merge-patch+json", Some(&json!({ "status": status })));
        assert!(code < 300, "{path}: {code} {answer:#}");
    }

    /// It runs since some seconds, restarted so many times.
    #[track_caller]
    pub(crate) fn running(&self, deployment: &str, restarts: u64, since_s: i64) -> Value {
        let state = json!({ "running": { "startedAt": ago(since_s) } });
        self.report(deployment, "Running", Some(&json!({ "restartCount": restarts, "state": state })))
    }

    /// It waits for a reason.
    #[track_caller]
    pub(crate) fn waiting(&self, deployment: &str, reason: &str, message: &str) -> Value {
        let state = json!({ "waiting": { "reason": reason, "message": message } });
        self.report(deployment, "Pending", Some(&json!({ "state": state })))
    }

    /// It crashed so many times and waits for its next run.
    #[track_caller]
    pub(crate) fn crashing(&self, deployment: &str, restarts: u64, reason: &str, exit_code: i64) -> Value {
        let state = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container" } });
        let end = json!({ "exitCode": exit_code, "reason": reason, "startedAt": ago(60), "finishedAt": ago(50) });
        let container = json!({ "restartCount": restarts, "state": state, "lastState": { "terminated": end } });
        self.report(deployment, "Running", Some(&container))
    }

    /// The log of a pod's present run, or of the one before.
    pub(crate) fn set_log(&self, pod: &Value, previous: bool, text: &str) {
        let name = pod["metadata"]["name"].as_str().expect("a name");
        if self.stand_in.is_some() {
            let key = if previous { "stand-in/previous-log" } else { "stand-in/log" };
            let path = format!("{}/{name}", self.path("api/v1", "pods"));
            let patch = json!({ "metadata": { "annotations": { key: text } } });
            self.edit(&path, "kubelet", &patch);
        } else {
            self.tap.set_log(name, previous, text);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.stand_in.is_none() {
            self.ask("DELETE", &format!("/api/v1/namespaces/{}", self.namespace), "application/json", None);
        }
    }
}

async fn config(kubeconfig: Kubeconfig) -> Config {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.expect("a usable kubeconfig")
}

/// Whether a Deployment gets a pod by itself.
fn has_controllers(cluster: &Cluster) -> bool {
    let labels = json!({ "app": "probe" });
    let pod = json!({ "schedulerName": "nobody", "containers": [{ "name": "c", "image": "probe:1" }] });
    let spec =
        json!({ "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod } });
    let probe = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "probe" }, "spec": spec });
    cluster.create_deployment(&probe, "probe");
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut found = false;
    while !found && Instant::now() < deadline {
        found = !cluster.pods_of("probe").is_empty();
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.delete(&cluster.deployment_path("probe"));
    found
}

/// A time so many seconds ago, as the API server writes it.
pub(crate) fn ago(seconds: i64) -> String {
    let time = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds);
    format!("{time:.0}")
}

/// A short text that differs for different templates.
fn short(template: &Value) -> String {
    let hash = template.to_string().bytes().fold(5381_u64, |hash, byte| hash.wrapping_mul(33) ^ u64::from(byte));
    format!("{hash:x}").chars().take(10).collect()
}

fn uid_of(text: &str) -> String {
    let hash = text.bytes().fold(17_u64, |hash, byte| hash.wrapping_mul(1_000_003) ^ u64::from(byte));
    format!("{:08x}-0000-4000-8000-{:012x}", hash >> 32, hash & 0xffff_ffff_ffff)
}

/// The values of a Secret in clear.
pub(crate) fn values(secret: &Value) -> BTreeMap<String, String> {
    use base64::Engine as _;
    let data = secret["data"].as_object().cloned().unwrap_or_default();
    let clear = |value: &Value| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().expect("a text")).expect("base64");
        String::from_utf8(bytes).expect("UTF-8")
    };
    data.iter().map(|(key, value)| (key.clone(), clear(value))).collect()
}
