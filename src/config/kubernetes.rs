//! Settings of the cluster and of every Deployment in it.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::config::Kubeconfig;
use serde_json::{Map, Value};

use super::docker::pull_policy;
use super::lane::LaneInput;
use super::parse::FieldParser;
use crate::orchestrator::kubernetes::{ClusterAccess, KubernetesSettings};
use crate::render::kubernetes::{self as render, WorkloadDefaults};

const GROUP: &str = "DAEMON__KUBERNETES__";

pub(super) fn settle(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<KubernetesSettings> {
    let access = access(lane, fields);
    let namespace = lane.texts.daemon__kubernetes__namespace.as_deref().map(|text| text.trim().to_owned());
    if let Some(namespace) = namespace.as_deref().filter(|namespace| !is_dns_label(namespace)) {
        let cure = "use lower-case letters, digits and '-', at most 63";
        fields.problem(&lane.name(GROUP, "NAMESPACE"), format!("{namespace:?} can be no namespace"), cure);
    }
    let pull_policy = pull_policy(
        &lane.name(GROUP, "IMAGE_PULL_POLICY"),
        lane.texts.daemon__kubernetes__image_pull_policy.as_deref(),
        fields,
    );
    let pull_secrets = fields
        .list(&lane.name(GROUP, "IMAGE_PULL_SECRETS"), lane.texts.daemon__kubernetes__image_pull_secrets.as_deref());
    let subdomain = |name: &String| name.split('.').all(is_dns_label);
    if let Some(wrong) = pull_secrets.iter().flatten().find(|name| !subdomain(name)) {
        let cure = "use names of Secrets, comma-separated";
        fields.problem(&lane.name(GROUP, "IMAGE_PULL_SECRETS"), format!("{wrong:?} can be no Secret's name"), cure);
    }
    let workload = WorkloadDefaults {
        base: base(lane, fields),
        pull_policy,
        pull_secrets: pull_secrets.unwrap_or_default(),
        resources: resources(lane, fields),
    };
    if let Err(why) = render::check(&workload) {
        let cure = "mend it: `kubectl explain deployment.spec` tells its fields";
        fields.problem(&lane.name(GROUP, "BASE_DEPLOYMENT"), format!("it makes no Deployment: {why}"), cure);
    }
    Some(KubernetesSettings { access: access?, namespace, workload })
}

/// How to reach the cluster: with the kubeconfig that is named, else with the service account of the pod, else with the
/// user's own kubeconfig, provided that the selector says that there is a cluster at all.
fn access(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<ClusterAccess> {
    let home = || {
        lane.process.home.as_deref().map(|home| PathBuf::from(home).join(".kube/config")).filter(|path| path.exists())
    };
    let paths: Vec<PathBuf> = match &lane.process.kubeconfig {
        // As with kubectl, this is a list of files, and some of them may be missing.
        Some(paths) => {
            let all: Vec<PathBuf> = paths.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
            let there: Vec<PathBuf> = all.iter().filter(|path| path.exists()).cloned().collect();
            if there.is_empty() { all } else { there }
        }
        None if lane.process.kubernetes_service_host.is_some() => return Some(ClusterAccess::InCluster),
        None => {
            let home = home();
            if let (Some(path), None) = (&home, &lane.texts.daemon__selector) {
                // A machine with a Docker engine often has such a file for something else, and everything that runs on
                // the engine would be deployed a second time there.
                let what = format!(
                    "it is not set, and only {} names a cluster, which may be there for other use",
                    path.display()
                );
                let cure = "set it to docker, or to kubernetes if that is the cluster for the connectors";
                fields.problem(&lane.name("DAEMON__", "SELECTOR"), what, cure);
                return None;
            }
            home.into_iter().collect()
        }
    };
    let mut config: Option<Kubeconfig> = None;
    for path in &paths {
        let merged = Kubeconfig::read_from(path).and_then(|read| match config.take() {
            Some(earlier) => earlier.merge(read),
            None => Ok(read),
        });
        match merged {
            Ok(merged) => config = Some(merged),
            // The library's message could quote the file, which holds secrets.
            Err(error) => {
                let why = match error {
                    kube::config::KubeconfigError::ReadConfig(error, _) => error.to_string(),
                    _ => "it is no kubeconfig".to_owned(),
                };
                let what = format!("cannot read {}: {why}", path.display());
                fields.problem("KUBECONFIG", what, "name a readable kubeconfig");
                return None;
            }
        }
    }
    let Some(mut config) = config else {
        let selector = lane.name("DAEMON__", "SELECTOR");
        let cure = format!(
            "set KUBECONFIG, or run in a pod with a service account; for a Docker engine set {selector}=docker"
        );
        fields.problem("KUBECONFIG", "no cluster is configured".to_owned(), &cure);
        return None;
    };
    let context = lane.texts.daemon__kubernetes__context.as_deref().map(|text| text.trim().to_owned());
    if let Some(context) = context.as_ref().filter(|name| !config.contexts.iter().any(|known| known.name == **name)) {
        let known: Vec<&str> = config.contexts.iter().map(|context| context.name.as_str()).collect();
        let cure = format!("use one of: {}", known.join(", "));
        fields.problem(&lane.name(GROUP, "CONTEXT"), format!("the kubeconfig has no context {context}"), &cure);
    }
    if !without_proxy(&mut config, context.as_deref()) {
        let what = "its cluster has a proxy-url, which is not supported".to_owned();
        fields.problem("KUBECONFIG", what, "name an address at which the API server is reached directly");
    }
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    Some(ClusterAccess::Kubeconfig { config: Box::new(config), context, paths: paths.join(":") })
}

/// Makes sure that the cluster of a context is reached without a proxy, and returns whether it is. The library would
/// use the proxy of the environment, which is meant for the platform. A proxy URL in the kubeconfig keeps it from
/// looking there.
fn without_proxy(config: &mut Kubeconfig, context: Option<&str>) -> bool {
    let current = context.or(config.current_context.as_deref());
    let named = config.contexts.iter().find(|known| Some(known.name.as_str()) == current);
    let cluster = named.and_then(|named| named.context.as_ref()).map(|context| context.cluster.clone());
    let clusters = config.clusters.iter_mut();
    let mut direct = true;
    for (name, cluster_) in clusters.filter_map(|named| Some((&named.name, named.cluster.as_mut()?))) {
        let has_proxy = cluster_.proxy_url.as_deref().is_some_and(|url| !url.is_empty());
        direct &= !(has_proxy && Some(name) == cluster.as_ref());
        cluster_.proxy_url = Some("http://none.invalid".to_owned());
    }
    direct
}

fn base(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Map<String, Value> {
    let given = [
        ("BASE_DEPLOYMENT_JSON", lane.texts.daemon__kubernetes__base_deployment_json.as_deref()),
        ("BASE_DEPLOYMENT", lane.texts.daemon__kubernetes__base_deployment.as_deref()),
    ];
    let Some((key, text)) = given.into_iter().find_map(|(key, text)| Some((key, text?))) else {
        return Map::new();
    };
    match serde_json::from_str(text) {
        Ok(Value::Object(base)) => base,
        Ok(_) => {
            let what = "it is no mapping".to_owned();
            fields.problem(&lane.name(GROUP, key), what, "give a Deployment, such as {\"spec\":{\"template\":{…}}}");
            Map::new()
        }
        Err(error) => {
            let what = format!("it is not JSON: {error}");
            fields.problem(&lane.name(GROUP, key), what, "mend it, or put it into a --config file as YAML");
            Map::new()
        }
    }
}

fn resources(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<Value> {
    let text = lane.texts.daemon__kubernetes__image_resources.as_deref()?;
    let read = serde_json::from_str::<Value>(text)
        .and_then(|value| serde_json::from_value::<ResourceRequirements>(value.clone()).map(|_| value));
    let read = read.map_err(|error| error.to_string()).and_then(|value| match misfit(&value) {
        Some(misfit) => Err(misfit),
        None => Ok(value),
    });
    match read {
        Ok(value) => Some(value),
        Err(error) => {
            let cure = "use such as {\"requests\":{\"memory\":\"256Mi\"},\"limits\":{\"memory\":\"1Gi\"}}";
            fields.problem(&lane.name(GROUP, "IMAGE_RESOURCES"), format!("it is no resources of a pod: {error}"), cure);
            None
        }
    }
}

/// Describes a part of `resources` that is not a quantity or does not belong there. `None` when all is well.
fn misfit(resources: &Value) -> Option<String> {
    const UNITS: [&str; 19] =
        ["", "n", "u", "m", "k", "K", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e", "E"];
    let is_quantity = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        number.parse::<f64>().is_ok() && (UNITS.contains(&unit) || text.parse::<f64>().is_ok())
    };
    for (part, amounts) in resources.as_object()? {
        if part == "claims" {
            continue;
        }
        if part != "limits" && part != "requests" {
            return Some(format!("it has no {part}, but limits and requests"));
        }
        for (name, amount) in amounts.as_object().into_iter().flatten() {
            let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
            if !is_quantity(&text) {
                return Some(format!("{text:?} of {name} is no quantity"));
            }
        }
    }
    None
}

/// Whether the text is an RFC 1123 label.
fn is_dns_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.chars().all(|c| plain(c) || c == '-')
        && text.starts_with(plain)
        && text.ends_with(plain)
}
