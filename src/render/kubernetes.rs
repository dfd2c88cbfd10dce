//! Turns a connector's spec into a Deployment and a Secret. Pure.
//!
//! There are four layers, each over the one before: safe defaults, the operator's base deployment, the operator's
//! variables, and what this program insists on. Maps are merged key by key, and lists of named things item by item. Any
//! other list replaces the one below it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::model::{ConfigHash, ConnectorId, ManagerId, WorkloadName};
use crate::render::{CA_PATH, EnvVar, LABEL_HASH, LABEL_MANAGER, PullPolicy, Registry, Spec, VARIABLE_HASH};
use crate::secret::{Secret, SecretJson};

/// The name of the connector's container in its pod.
pub(crate) const CONTAINER: &str = "connector";
/// The annotation of a Deployment and of its pods with the hash that it was made with (design: Ownership and names).
pub(crate) const ANNOTATION_HASH: &str = VARIABLE_HASH;
/// The registry of images that name none.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// The key of the proxy's CA in the Secret.
const CA_KEY: &str = "xtm-proxy-ca.crt";
const CA_VOLUME: &str = "xtm-proxy-ca";

/// What every Deployment gets, whichever connector it runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkloadDefaults {
    /// The operator's base deployment, which is merged under each Deployment. Empty when there is none.
    pub base: Map<String, Value>,
    /// `None` leaves it to the base, and otherwise to `IfNotPresent`.
    pub pull_policy: Option<PullPolicy>,
    /// Names of pull secrets that exist in the namespace.
    pub(crate) pull_secrets: Vec<String>,
    /// The resources of each connector's container. `None` leaves them to the base.
    pub resources: Option<Value>,
}

/// What a step decides about a Deployment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape<'a> {
    pub(crate) name: &'a str,
    /// The Secret to which the container refers when the spec has sensitive values.
    pub(crate) secret: &'a str,
    /// The pull secret that this program made. `None` when there is none.
    pub(crate) pull_secret: Option<&'a str>,
    /// Whether it has one instance instead of none.
    pub(crate) start: bool,
    /// Whether it gets its hash. Without the hash it is paused and counts as out of date.
    pub(crate) complete: bool,
}

/// Renders the Deployment of a connector.
#[must_use]
pub(crate) fn deployment(spec: &Spec, defaults: &WorkloadDefaults, shape: Shape<'_>) -> Value {
    let mut deployment = safe_defaults();
    merge(&mut deployment, Value::Object(prepared_base(&defaults.base, spec.name.as_str())));
    merge(&mut deployment, ours(spec, defaults, shape));
    set_exactly(&mut deployment, spec, shape);
    deployment
}

/// Renders the Secret with a connector's sensitive values, owned by its Deployment. `None` when it has no such values.
#[must_use]
pub(crate) fn secret(spec: &Spec, name: &str, owner_name: &str, owner_uid: &str) -> Option<SecretJson> {
    let encode = |text: &str| Value::from(STANDARD.encode(text));
    let sensitive = spec.environment.iter().filter(|variable| variable.sensitive);
    let mut data: Map<String, Value> = sensitive.map(|v| (v.name.clone(), encode(v.value.expose()))).collect();
    if let Some(ca) = &spec.ca {
        data.insert(CA_KEY.to_owned(), encode(ca));
    }
    let owner = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": owner_name, "uid": owner_uid });
    let metadata = json!({ "name": name, "labels": labels(spec), "ownerReferences": [owner] });
    (!data.is_empty()).then(|| secret_object("Opaque", &metadata, data))
}

/// Renders the pull secret for the configured registry, owned by the manager's Lease. `None` without a login.
#[must_use]
pub(crate) fn pull_secret(
    registry: &Registry,
    name: &str,
    manager: &ManagerId,
    owner: (&str, &str),
) -> Option<SecretJson> {
    let (username, password) = (registry.username.as_deref()?, registry.password.as_ref()?);
    let server = registry.server.as_deref().unwrap_or(DOCKER_HUB);
    let auth = Zeroizing::new(format!("{username}:{}", password.expose()));
    let auth = Zeroizing::new(STANDARD.encode(auth.as_str()));
    let mut login = json!({ "username": username, "password": password.expose(), "auth": *auth });
    if let (Some(email), Some(fields)) = (&registry.email, login.as_object_mut()) {
        fields.insert("email".to_owned(), email.as_str().into());
    }
    let auths: Map<String, Value> = [(server.to_owned(), login)].into_iter().collect();
    // The macro would copy the values.
    let config: Map<String, Value> = [("auths".to_owned(), auths.into())].into_iter().collect();
    let config = Zeroizing::new(SecretJson::new(config.into()).to_string());
    let owner = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "name": owner.0, "uid": owner.1 });
    let mut labels = Map::new();
    labels.insert(LABEL_MANAGER.to_owned(), manager.as_str().into());
    let metadata = json!({ "name": name, "labels": labels, "ownerReferences": [owner] });
    let data = [(".dockerconfigjson".to_owned(), STANDARD.encode(config.as_str()).into())].into_iter().collect();
    Some(secret_object("kubernetes.io/dockerconfigjson", &metadata, data))
}

fn secret_object(kind: &str, metadata: &Value, data: Map<String, Value>) -> SecretJson {
    let mut secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind });
    if let Some(fields) = secret.as_object_mut() {
        fields.insert("data".to_owned(), data.into());
    }
    SecretJson::new(secret)
}

/// Fails when the operator's part does not lead to a Deployment: renders one and reads it with the types of the API.
/// Unknown fields are not found here, but the API server reports them.
pub fn check(defaults: &WorkloadDefaults) -> Result<(), String> {
    let invalid = |invalid: crate::model::InvalidValue| invalid.to_string();
    let containers = defaults.base.get("spec").and_then(|spec| spec.pointer("/template/spec/containers"));
    if containers.is_some_and(|containers| !containers.is_array()) {
        return Err("spec.template.spec.containers is no list".to_owned());
    }
    let spec = Spec {
        connector: ConnectorId::new("check").map_err(invalid)?,
        name: WorkloadName::of("check", &ConnectorId::new("check").map_err(invalid)?),
        image: "check".to_owned(),
        hash: ConfigHash::new("0").map_err(invalid)?,
        labels: [(LABEL_MANAGER.to_owned(), "check".to_owned())].into(),
        environment: vec![EnvVar { name: "A".to_owned(), value: Secret::new("b".to_owned()), sensitive: false }],
        ca: None,
    };
    let shape = Shape { name: "check", secret: "check", pull_secret: None, start: true, complete: true };
    let rendered = deployment(&spec, defaults, shape);
    serde_json::from_value::<Deployment>(rendered).map(drop).map_err(|error| error.to_string())
}

/// The labels that say to whom a Deployment belongs. The hash is an annotation instead, because a label is too short
/// for the hash of `OpenAEV` (contracts 3).
fn labels(spec: &Spec) -> Map<String, Value> {
    let labels = spec.labels.iter().filter(|(name, _)| *name != LABEL_HASH);
    labels.map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
}

/// Restrictions that every known connector can live with, because connectors need no right except to reach the network.
fn safe_defaults() -> Value {
    json!({
        "spec": {
            "template": { "spec": {
                "automountServiceAccountToken": false,
                // A connector could take the variables of the namespace's services, such as OPENCTI_PORT, for its own.
                "enableServiceLinks": false,
                "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
                "containers": [{
                    "name": CONTAINER,
                    "imagePullPolicy": "IfNotPresent",
                    "securityContext": { "allowPrivilegeEscalation": false },
                }],
            } },
        },
    })
}

/// The operator's base as it applies to this connector. A container without a name, named `connector` or named as the
/// workload stands for the connector's container. Parts that cannot be a base are left out.
fn prepared_base(base: &Map<String, Value>, name: &str) -> Map<String, Value> {
    let mut base = base.clone();
    base.remove("status");
    if let Some(spec) = base.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("selector");
    }
    let containers = base
        .get_mut("spec")
        .and_then(|spec| spec.pointer_mut("/template/spec/containers"))
        .and_then(Value::as_array_mut);
    if let Some(containers) = containers {
        let mut gathered: Vec<Value> = Vec::new();
        for mut container in std::mem::take(containers) {
            if let Some(fields) = container.as_object_mut() {
                let its = fields.get("name").and_then(Value::as_str);
                if its.is_none_or(|its| its == CONTAINER || its == name) {
                    fields.insert("name".to_owned(), CONTAINER.into());
                }
            }
            merge_list(&mut gathered, vec![container]);
        }
        *containers = gathered;
    }
    base
}

fn ours(spec: &Spec, defaults: &WorkloadDefaults, shape: Shape<'_>) -> Value {
    let labels = labels(spec);
    let mut container = json!({
        "name": CONTAINER,
        "image": spec.image,
        "env": spec.environment.iter().map(|variable| env(variable, shape.secret)).collect::<Vec<_>>(),
    });
    let mut pod = Map::new();
    if let Some(fields) = container.as_object_mut() {
        if let Some(policy) = defaults.pull_policy {
            fields.insert("imagePullPolicy".to_owned(), policy.as_str().into());
        }
        if let Some(resources) = &defaults.resources {
            fields.insert("resources".to_owned(), resources.clone());
        }
        if spec.ca.is_some() {
            let mount =
                json!([{ "name": CA_VOLUME, "mountPath": format!("/{CA_PATH}"), "subPath": CA_KEY, "readOnly": true }]);
            fields.insert("volumeMounts".to_owned(), mount);
            let items = json!([{ "key": CA_KEY, "path": CA_KEY }]);
            // If it were not optional, a pod without its Secret would wait for the volume and give no reason.
            let source = json!({ "secretName": shape.secret, "items": items, "optional": true });
            let volume = json!([{ "name": CA_VOLUME, "secret": source }]);
            pod.insert("volumes".to_owned(), volume);
        }
    }
    let names = defaults.pull_secrets.iter().map(String::as_str).chain(shape.pull_secret);
    let pull_secrets: Vec<Value> = names.map(|name| json!({ "name": name })).collect();
    if !pull_secrets.is_empty() {
        pod.insert("imagePullSecrets".to_owned(), pull_secrets.into());
    }
    pod.insert("containers".to_owned(), json!([container]));
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": shape.name, "labels": labels },
        "spec": { "template": { "metadata": { "labels": labels }, "spec": pod } },
    })
}

/// Sets the fields that no layer may change or add to.
fn set_exactly(deployment: &mut Value, spec: &Spec, shape: Shape<'_>) {
    let hash = if shape.complete { spec.hash.as_str() } else { "" };
    let selector: Map<String, Value> = selector(spec).collect();
    let exact = [
        ("/metadata/annotations", ANNOTATION_HASH, Value::from(hash)),
        ("/spec/template/metadata/annotations", ANNOTATION_HASH, spec.hash.as_str().into()),
        ("/spec", "replicas", u8::from(shape.start).into()),
        // Two instances of a connector must never run at once.
        ("/spec", "strategy", json!({ "type": "Recreate" })),
        ("/spec", "selector", json!({ "matchLabels": selector })),
        ("/spec/template/spec", "restartPolicy", "Always".into()),
    ];
    for (path, key, value) in exact {
        let empty =
            path.rsplit('/').filter(|part| !part.is_empty()).fold(json!({}), |inner, part| json!({ part: inner }));
        merge(deployment, empty);
        if let Some(fields) = deployment.pointer_mut(path).and_then(Value::as_object_mut) {
            fields.insert(key.to_owned(), value);
        }
    }
    if let Some(fields) = deployment.get_mut("spec").and_then(Value::as_object_mut) {
        fields.remove("paused");
        if !shape.complete {
            // The cluster makes nothing from an incomplete Deployment, not even a ReplicaSet.
            fields.insert("paused".to_owned(), true.into());
        }
    }
    if let Some(metadata) = deployment.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in ["namespace", "uid", "resourceVersion", "managedFields", "ownerReferences", "finalizers"] {
            metadata.remove(key);
        }
    }
}

/// The labels by which a Deployment finds its pods. They must not depend on anything that can change.
pub(crate) fn selector(spec: &Spec) -> impl Iterator<Item = (String, Value)> {
    let wanted = [LABEL_MANAGER, crate::render::LABEL_CONNECTOR];
    let labels = spec.labels.iter().filter(move |(name, _)| wanted.contains(&name.as_str()));
    labels.map(|(name, value)| (name.clone(), Value::from(value.as_str())))
}

fn env(variable: &EnvVar, secret: &str) -> Value {
    if variable.sensitive {
        let reference = json!({ "name": secret, "key": variable.name });
        return json!({ "name": variable.name, "valueFrom": { "secretKeyRef": reference } });
    }
    // The kubelet would replace `$(NAME)` by another variable. `$$` stands for a single `$`.
    json!({ "name": variable.name, "value": variable.value.expose().replace('$', "$$") })
}

/// Merges `over` into `base`.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(&key) {
                    Some(below) => merge(below, value),
                    None => {
                        base.insert(key, value);
                    }
                }
            }
        }
        (Value::Array(base), Value::Array(over)) if is_keyed(base) && is_keyed(&over) => merge_list(base, over),
        (base, over) => *base = over,
    }
}

/// Merges the items of the same key and appends the others.
fn merge_list(base: &mut Vec<Value>, over: Vec<Value>) {
    for item in over {
        match base.iter_mut().find(|known| key(known).is_some() && key(known) == key(&item)) {
            Some(known) => {
                // A variable has either a value or a reference, so the new one replaces both.
                if let (Some(fields), true) = (known.as_object_mut(), has_value(&item)) {
                    fields.retain(|key, _| key != "value" && key != "valueFrom");
                }
                merge(known, item);
            }
            None => base.push(item),
        }
    }
}

fn has_value(item: &Value) -> bool {
    item.get("value").or_else(|| item.get("valueFrom")).is_some()
}

fn is_keyed(list: &[Value]) -> bool {
    list.iter().all(|item| key(item).is_some())
}

/// The key of an item: the path of a mount, the name of anything else. `None` when it has neither.
fn key(item: &Value) -> Option<&str> {
    item.get("mountPath").or_else(|| item.get("name")).and_then(Value::as_str)
}
