//! Settings of the orchestrators: the cluster, the engine, and what every workload gets.

use std::path::PathBuf;

use xtm_reconcile::orchestrator::OrchestratorSettings;
use xtm_reconcile::orchestrator::docker::Endpoint;
use xtm_reconcile::render::docker::{RestartPolicy, Ulimit};

use super::{docker, file, good, loaded, problem, problems, with, without};
use crate::watch::expect_all;

/// A kubeconfig with two contexts.
pub(super) const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'https://one:6443'}}, {name: d, cluster: {server: 'https://two:6443'}}]
users: [{name: u, user: {token: the-token}}]
contexts: [{name: one, context: {cluster: c, user: u}}, {name: two, context: {cluster: d, user: u, namespace: feeds}}]
current-context: one
";

// Shows what README says under "On Kubernetes": "Which cluster: `KUBECONFIG`; else the service account of the pod it
// runs in; else `~/.kube/config`."; and under "Configuration": "required where `~/.kube/config` alone does".
#[test]
fn a_cluster_comes_from_a_kubeconfig_the_pod_or_the_home_folder() {
    let folder = tempfile::tempdir().unwrap();
    // The daemon's default selector is kubernetes.
    let bare = without(good(), "OPENCTI__DAEMON__SELECTOR");
    let told = problem(bare.clone());
    expect_all(&told, &["KUBECONFIG: no cluster is configured", "service account", "SELECTOR=docker"], "nothing there");
    let place = |more: &[(&str, &str)]| loaded(&[], with(bare.clone(), more)).lanes[0].orchestrator.place();
    assert_eq!(place(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]), "the cluster of this pod");
    let path = file(folder.path(), "config", KUBECONFIG, 0o600);
    assert_eq!(
        place(&[("KUBECONFIG", &path), ("KUBERNETES_SERVICE_HOST", "10.0.0.1")]),
        format!("the cluster of {path}")
    );
    let second = [("KUBECONFIG", path.as_str()), ("OPENCTI__DAEMON__KUBERNETES__CONTEXT", "two")];
    assert_eq!(place(&second), format!("the cluster of context two in {path}"));
    std::fs::create_dir(folder.path().join(".kube")).unwrap();
    let home = file(&folder.path().join(".kube"), "config", KUBECONFIG, 0o600);
    let at_home = [("HOME", folder.path().to_str().unwrap())];
    let chosen = [at_home[0], ("OPENCTI__DAEMON__SELECTOR", "kubernetes")];
    assert_eq!(place(&chosen), format!("the cluster of {home}"));
    // Nothing says that the connectors belong there, and an operator of a Docker engine may have forgotten a file.
    for selector in ["", " "] {
        let forgotten = with(bare.clone(), &[at_home[0], ("OPENCTI__DAEMON__SELECTOR", selector)]);
        let told = problem(forgotten);
        expect_all(
            &told,
            &["OPENCTI__DAEMON__SELECTOR: it is not set", &home, "set it to docker, or to kubernetes"],
            "home",
        );
    }
    // A list, as kubectl takes it: what is not there is left out, unless nothing is.
    assert_eq!(place(&[("KUBECONFIG", &format!("/not/there:{path}"))]), format!("the cluster of {path}"));

    let told = problem(with(bare.clone(), &[("KUBECONFIG", "/not/there")]));
    expect_all(&told, &["KUBECONFIG: cannot read /not/there"], "not there");
    let broken = file(folder.path(), "broken", "clusters: [{name: the-token", 0o600);
    let told = problem(with(bare.clone(), &[("KUBECONFIG", &broken)]));
    assert!(told.contains("is no kubeconfig") && !told.contains("the-token"), "{told}");
    let told = problem(with(bare, &[("KUBECONFIG", &path), ("OPENCTI__DAEMON__KUBERNETES__CONTEXT", "three")]));
    expect_all(&told, &["no context three", "use one of: one, two"], "context");
}

#[test]
fn a_base_deployment_that_makes_none_and_other_faults_of_kubernetes_come_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "config", KUBECONFIG, 0o600);
    let cluster = with(good(), &[("OPENCTI__DAEMON__SELECTOR", "kubernetes"), ("KUBECONFIG", &path)]);
    let prefix = "OPENCTI__DAEMON__KUBERNETES__";
    let set = |name: &str, text: &str| problem(with(cluster.clone(), &[(&format!("{prefix}{name}"), text)]));
    for (name, text, told) in [
        ("BASE_DEPLOYMENT_JSON", "{", "it is not JSON"),
        ("BASE_DEPLOYMENT_JSON", "[]", "it is no mapping"),
        ("BASE_DEPLOYMENT_JSON", r#"{"spec":{"template":{"spec":{"hostNetwork":"x"}}}}"#, "it makes no Deployment"),
        (
            "BASE_DEPLOYMENT_JSON",
            r#"{"spec":{"template":{"spec":{"tolerations":[{"key":1}]}}}}"#,
            "it makes no Deployment",
        ),
        ("IMAGE_RESOURCES", r#"{"limits":{"memory":[]}}"#, "it is no resources"),
        ("IMAGE_RESOURCES", r#"{"limits":{"memory":"lots"}}"#, "is no quantity"),
        ("IMAGE_RESOURCES", r#"{"limit":{"memory":"1Gi"}}"#, "it has no limit, but limits"),
        ("IMAGE_PULL_SECRETS", "good,B!", "can be no Secret's name"),
        ("BASE_DEPLOYMENT_JSON", r#"{"spec":{"template":{"spec":{"containers":{"a":1}}}}}"#, "is no list"),
        ("IMAGE_PULL_POLICY", "sometimes", "is no policy"),
        ("NAMESPACE", "Not_A_Name", "can be no namespace"),
    ] {
        expect_all(&set(name, text), &[told], text);
    }
    let all = with(
        cluster.clone(),
        &[("OPENCTI__DAEMON__KUBERNETES__NAMESPACE", "-"), ("OPENCTI__DAEMON__KUBERNETES__IMAGE_RESOURCES", "x")],
    );
    assert_eq!(problems(&[], all).lines().count(), 2);

    // In a file it is a mapping, as the daemon has it.
    let yaml = "opencti:\n  daemon:\n    selector: kubernetes\n    kubernetes:\n      image_pull_policy: Always\n      base_deployment:\n        spec:\n          template:\n            spec:\n              nodeSelector: {disk: fast}\n      image_resources: {limits: {memory: 1Gi}}\n";
    let config = PathBuf::from(file(folder.path(), "production.yaml", yaml, 0o600));
    let settings = loaded(std::slice::from_ref(&config), without(cluster, "OPENCTI__DAEMON__SELECTOR"));
    let OrchestratorSettings::Kubernetes(kubernetes) = &settings.lanes[0].orchestrator else { panic!("kubernetes") };
    assert_eq!(kubernetes.workload.base["spec"]["template"]["spec"]["nodeSelector"]["disk"], "fast");
    assert_eq!(kubernetes.workload.resources.as_ref().unwrap()["limits"]["memory"], "1Gi");
    assert_eq!(kubernetes.workload.pull_policy.unwrap().as_str(), "Always");
}

// Shows what README says under "Configuration": "The same; wins over it.".
#[test]
fn of_two_base_deployments_the_one_with_json_in_its_name_wins() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "config", KUBECONFIG, 0o600);
    let base = |revisions: u8, key: &str| format!(r#"{{"spec":{{"revisionHistoryLimit":{revisions},"{key}":1}}}}"#);
    let (other, json) = (base(3, "minReadySeconds"), base(5, "progressDeadlineSeconds"));
    let settings = [
        ("OPENCTI__DAEMON__SELECTOR", "kubernetes"),
        ("KUBECONFIG", path.as_str()),
        ("OPENCTI__DAEMON__KUBERNETES__BASE_DEPLOYMENT", other.as_str()),
    ];
    let read = |more: &[(&str, &str)]| {
        let settings = loaded(&[], with(with(good(), &settings), more));
        let OrchestratorSettings::Kubernetes(kubernetes) = &settings.lanes[0].orchestrator else {
            panic!("kubernetes")
        };
        serde_json::Value::from(kubernetes.workload.base.clone()).to_string()
    };
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap().to_string();
    assert_eq!(read(&[]), value(&other));
    let both = read(&[("OPENCTI__DAEMON__KUBERNETES__BASE_DEPLOYMENT_JSON", &json)]);
    assert_eq!(both, value(&json), "the whole of it: the two are not merged");
}

// Shows what README says under "Configuration": "Lists and maps: comma-separated or JSON.", "`always` counts as
// `unless-stopped`".
#[test]
fn lists_and_maps_come_by_comma_json_and_index() {
    let ca = |name: &str| {
        let key = framed_certificate(name);
        key.replace('\r', "")
    };
    let (first, second) = (ca("one"), ca("two"));
    let prefix = "OPENCTI__DAEMON__DOCKER__";
    let set = |pairs: &[(&str, &str)]| {
        let named: Vec<(String, &str)> =
            pairs.iter().map(|(name, value)| (format!("{prefix}{name}"), *value)).collect();
        let named: Vec<(&str, &str)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        docker(&loaded(&[], with(good(), &named))).container.clone()
    };
    let expected = Some(vec!["1.1.1.1".to_owned(), "9.9.9.9".to_owned()]);
    assert_eq!(set(&[("DNS", "1.1.1.1, 9.9.9.9,")]).dns, expected);
    assert_eq!(set(&[("DNS", r#"["1.1.1.1","9.9.9.9"]"#)]).dns, expected);
    assert_eq!(set(&[("DNS__0", "1.1.1.1"), ("DNS__1", "9.9.9.9")]).dns, expected);
    let many: Vec<(String, String)> = (0..12).map(|n| (format!("DNS__{n}"), n.to_string())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let in_order: Vec<String> = (0..12).map(|n| n.to_string()).collect();
    assert_eq!(set(&many).dns.unwrap(), in_order, "by number, not by text");

    let sysctls = Some(vec![("net.core.somaxconn".to_owned(), "1024".to_owned())]);
    assert_eq!(set(&[("SYSCTLS", "net.core.somaxconn=1024")]).sysctls, sysctls);
    assert_eq!(set(&[("SYSCTLS", r#"{"net.core.somaxconn": 1024}"#)]).sysctls, sysctls);
    let nofile = |soft, hard| Some(vec![Ulimit { name: "nofile".to_owned(), soft, hard }]);
    assert_eq!(set(&[("ULIMITS", "nofile=1024:2048")]).ulimits, nofile(1024, 2048));
    assert_eq!(set(&[("ULIMITS", "nofile=7")]).ulimits, nofile(7, 7));
    assert_eq!(set(&[("ULIMITS", r#"[{"name":"nofile","soft":1,"hard":2}]"#)]).ulimits, nofile(1, 2));
    assert_eq!(set(&[("SHM_SIZE", "64MiB")]).shm_size, Some(64 << 20));
    assert_eq!(set(&[("MEMORY_LIMIT", "512m"), ("CPU_LIMIT", "0.5")]).cpu_limit, Some(500_000_000));
    assert_eq!(set(&[("RESTART_POLICY", "on-failure:3")]).restart_policy, RestartPolicy::OnFailure(3));
    assert_eq!(set(&[("RESTART_POLICY", "always")]).restart_policy, RestartPolicy::UnlessStopped);
    let always = loaded(&[], with(good(), &[("OPENCTI__DAEMON__DOCKER__RESTART_POLICY", "always")]));
    assert!(always.notices.iter().any(|notice| notice.message.contains("RESTART_POLICY=always")), "it is said");

    let folder = tempfile::tempdir().unwrap();
    let (path, json) = (file(folder.path(), "ca", &first, 0o644), serde_json::json!([first, second]).to_string());
    let proxy = |more: &[(&str, &str)]| {
        let variables = with(good(), &[("OPENCTI__WITH_PROXY", "true"), ("HTTPS_PROXY", "http://proxy:3128")]);
        loaded(&[], with(variables, more)).lanes.remove(0).connector_proxy.unwrap().ca.unwrap()
    };
    let count = |pem: &str| pem.matches("BEGIN CERTIFICATE").count();
    assert_eq!(count(&proxy(&[("OPENCTI__HTTPS_PROXY_CA", &json)])), 2);
    assert_eq!(count(&proxy(&[("OPENCTI__HTTPS_PROXY_CA__0", &first), ("OPENCTI__HTTPS_PROXY_CA__1", &path)])), 2);
    assert_eq!(count(&proxy(&[("OPENCTI__HTTPS_PROXY_CA", &format!("{path},{path}"))])), 2);
    assert_eq!(count(&proxy(&[("OPENCTI__HTTPS_PROXY_CA", &first.replace('\n', "\\n"))])), 1);
    let commented = format!("# Subject: C=FR, O=Test, CN=one\n{first}# C=FR, O=Test\n{second}");
    assert_eq!(count(&proxy(&[("OPENCTI__HTTPS_PROXY_CA", &commented)])), 2, "bundles have comments with commas");
    let none = with(good(), &[("OPENCTI__CA", "/nowhere.pem")]);
    expect_all(&problem(none), &["OPENCTI__CA: cannot read /nowhere.pem", "readable PEM file"], "no file");
    let empty = with(good(), &[("OPENCTI__CA", "-----BEGIN CERTIFICATE-----")]);
    expect_all(&problem(empty), &["OPENCTI__CA: it holds no PEM certificate"], "no certificate");
}

/// PEM of a certificate that nobody parses: the settings look at the frame alone.
pub(super) fn framed_certificate(name: &str) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(name.repeat(20));
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

#[test]
fn the_engine_is_named_as_the_docker_client_names_it() {
    let endpoint = |more: &[(&str, &str)]| docker(&loaded(&[], with(good(), more))).endpoint.clone();
    assert_eq!(endpoint(&[]), Endpoint::Unix("/var/run/docker.sock".to_owned()));
    assert_eq!(
        endpoint(&[("DOCKER_HOST", "unix:///run/user/1000/docker.sock")]).to_string(),
        "unix:///run/user/1000/docker.sock"
    );
    assert_eq!(endpoint(&[("DOCKER_HOST", "tcp://host:2375/")]), Endpoint::Tcp("host:2375".to_owned(), None));
    let tls = [("DOCKER_HOST", "tcp://host:2376"), ("DOCKER_TLS_VERIFY", "1")];
    expect_all(&problem(with(good(), &tls)), &["DOCKER_CERT_PATH: TLS is on and it is not set"], "no path");
    let folder = tempfile::tempdir().unwrap();
    let mut variables = with(good(), &tls);
    variables.insert("DOCKER_CERT_PATH".to_owned(), folder.path().display().to_string());
    let told = problems(&[], variables.clone());
    expect_all(&told, &["ca.pem", "cert.pem", "key.pem"], "no files");
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        file(folder.path(), name, "", 0o600);
    }
    assert!(matches!(docker(&loaded(&[], variables)).endpoint, Endpoint::Tcp(_, Some(_))));
}
