//! Settings from every source, and everything wrong with them at once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xtm_reconcile::config::{self, DockerSettings, Endpoint, OrchestratorSettings, RestartPolicy, Settings, Ulimit};
use xtm_reconcile::exit;

use crate::support::{Binary, KeyForm, TestKey};
use crate::watch::expect_all;

const TOKEN: &str = "flgrn_octi_tkn_a-token-of-these-tests";

type Variables = BTreeMap<String, String>;

/// Everything that is required.
fn good() -> Variables {
    with(
        Variables::new(),
        &[
            ("MANAGER__ID", "my-manager"),
            ("MANAGER__CREDENTIALS_KEY", &TestKey::rsa(2048, KeyForm::Pkcs8).pem),
            ("OPENCTI__URL", "http://opencti:4000"),
            ("OPENCTI__TOKEN", TOKEN),
            ("OPENCTI__DAEMON__SELECTOR", "docker"),
        ],
    )
}

fn with(mut variables: Variables, more: &[(&str, &str)]) -> Variables {
    variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    variables
}

fn without(mut variables: Variables, name: &str) -> Variables {
    variables.remove(name).unwrap();
    variables
}

#[track_caller]
fn loaded(files: &[PathBuf], variables: Variables) -> Settings {
    config::load(files, variables.into_iter(), false).unwrap_or_else(|error| panic!("{:#?}", error.0))
}

#[track_caller]
fn docker(settings: &Settings) -> &DockerSettings {
    match &settings.orchestrator {
        OrchestratorSettings::Docker(docker) => docker,
        OrchestratorSettings::Kubernetes(_) => panic!("the selector is docker"),
    }
}

/// The problems, one a line.
#[track_caller]
fn problems(files: &[PathBuf], variables: Variables) -> String {
    let error = config::load(files, variables.into_iter(), false).expect_err("this cannot be used");
    error.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The one problem.
#[track_caller]
fn problem(variables: Variables) -> String {
    let text = problems(&[], variables);
    assert_eq!(text.lines().count(), 1, "one problem:\n{text}");
    text
}

fn notices(settings: &Settings) -> String {
    settings.notices.iter().map(|notice| notice.message.as_str()).collect::<Vec<_>>().join("\n")
}

fn file(folder: &Path, name: &str, text: &str, mode: u32) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path.display().to_string()
}

fn fixture(name: &str) -> String {
    fs::read_to_string(crate::support::repository().join("fixtures/keys").join(name)).unwrap()
}

#[test]
fn everything_wrong_is_told_at_once_with_a_cure_and_nothing_is_begun() {
    let wrong = [
        ("MANAGER__ID", "default-manager-id", "placeholder"),
        ("MANAGER__NAME", "x", "fewer than 2 characters"),
        ("MANAGER__CREDENTIALS_KEY", "garbage", "not a PKCS#8 or PKCS#1 PEM private key"),
        ("MANAGER__PASS_DEADLINE", "soon", "out of range"),
        ("MANAGER__CONCURRENCY", "0", "from 1 to 64"),
        ("MANAGER__MAX_REMOVALS_PERCENT", "101", "from 0 to 100"),
        ("MANAGER__ALLOW_PRUNE", "perhaps", "neither true nor false"),
        ("MANAGER__REBOOT_LOOP__ACTION", "panic", "use report or stop"),
        ("MANAGER__LOGS_TAIL", "-1", "from 0 to 10000"),
        ("MANAGER__LOGGER__LEVEL", "loud", "no level"),
        ("MANAGER__LOGGER__FORMAT", "xml", "use json or pretty"),
        ("OPENCTI__URL", "opencti.example.org", "no URL that can be used here"),
        ("OPENCTI__TOKEN", "ChangeMe", "placeholder"),
        ("OPENCTI__DAEMON__SELECTOR", "nonsense", "no orchestrator"),
        ("OPENCTI__DAEMON__REGISTRY__USERNAME", "reader", "set both"),
        ("OPENCTI__DAEMON__DOCKER__MEMORY_LIMIT", "much", "no size"),
        ("OPENCTI__DAEMON__DOCKER__CPU_LIMIT", "-1", "no number of cores"),
        ("OPENCTI__DAEMON__DOCKER__SYSCTLS", "{broken", "no map"),
        ("OPENCTI__DAEMON__DOCKER__ULIMITS", "nofile", "no list of limits"),
        ("OPENCTI__DAEMON__DOCKER__DNS", "[broken", "not a JSON list"),
        ("OPENCTI__DAEMON__DOCKER__RESTART_POLICY", "sometimes", "no restart policy"),
        ("OPENCTI__DAEMON__DOCKER__IMAGE_PULL_POLICY", "Sometimes", "Always, IfNotPresent or Never"),
        ("OPENAEV__ENABLE", "true", "not supported by this version"),
        ("DOCKER_HOST", "ssh://root@host", "forward the socket"),
    ];
    for command in ["run", "plan", "check"] {
        let program = Binary::new(env!("CARGO_BIN_EXE_xtm-reconcile")).arg(command);
        let program = wrong.iter().fold(program, |program, (name, value, _)| program.var(name, value));
        let outcome = program.run().expect_code(exit::CONFIG.into());
        // A check prints a table; the others have no report to print.
        let told = if command == "check" { &outcome.stdout } else { &outcome.stderr };
        for (name, _, why) in wrong {
            // Of user and password it is the missing one that is named.
            let name = name.replace("USERNAME", "PASSWORD");
            let line = told.lines().find(|line| line.contains(&format!("{name}: ")));
            let line = line.unwrap_or_else(|| panic!("{command}: {name} is missing in:\n{told}"));
            assert!(line.contains(why) && line.contains("; "), "{command}: {why:?} in {line:?}");
        }
        assert!(command == "check" || outcome.stdout.is_empty(), "{command}: {}", outcome.stdout);
    }
}

#[test]
fn a_manager_needs_an_id_that_can_be_a_label() {
    for (id, why) in [
        ("", "not set"),
        ("  ", "not set"),
        ("default-manager-id", "placeholder"),
        ("has space", "cannot be a label"),
        ("-dash", "cannot be a label"),
        ("dot.", "cannot be a label"),
        ("über", "cannot be a label"),
        ("a=b", "cannot be a label"),
        (&"x".repeat(64), "64 characters"),
    ] {
        expect_all(&problem(with(good(), &[("MANAGER__ID", id)])), &["MANAGER__ID: ", why], id);
    }
    for id in ["a", "A_b-c.9", &"x".repeat(63)] {
        assert_eq!(loaded(&[], with(good(), &[("MANAGER__ID", id)])).manager.id.as_str(), id);
    }
}

#[test]
fn a_key_that_cannot_be_used_is_refused_with_the_right_reason_and_never_shown() {
    let good_key = TestKey::rsa(2048, KeyForm::Pkcs8).pem;
    let public = loaded(&[], good()).manager.key.public_pem;
    let (half, _) = good_key.split_at(good_key.len() / 2);
    let body = good_key.lines().nth(3).unwrap();
    for (pem, why) in [
        (public.as_str(), "it holds a public key, not an RSA private key"),
        (&fixture("test-only-ec.sec1.pem"), "it holds a ec private key, not an RSA private key"),
        (&fixture("test-only-ec.pkcs8.pem"), "key of another algorithm"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "it holds a certificate"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----", "openssh private key"),
        ("garbage", "not a PKCS#8 or PKCS#1 PEM private key"),
        (half, "not a PKCS#8 or PKCS#1 PEM private key"),
        (&good_key.replace(body, &body.replace('A', "!")), "not a PKCS#8 or PKCS#1 PEM private key"),
        (&fixture("test-only-rsa-2048.passphrase.pkcs8.pem"), "protected with a pass phrase"),
        (&fixture("test-only-rsa-2048.passphrase.pkcs1.pem"), "protected with a pass phrase"),
        (&fixture("test-only-rsa-1024.pkcs8.pem"), "the key has 1024 bits, fewer than 2048"),
    ] {
        let told = problem(with(good(), &[("MANAGER__CREDENTIALS_KEY", pem)]));
        expect_all(&told, &["MANAGER__CREDENTIALS_KEY: ", why], pem);
        assert!(
            pem.lines().filter(|line| line.len() > 30 && !line.starts_with("---")).all(|line| !told.contains(line))
        );
    }
    expect_all(&problem(without(good(), "MANAGER__CREDENTIALS_KEY")), &["no key is set", "keygen"], "no key");
}

#[test]
fn keys_of_every_size_and_form_are_taken_inline_with_escaped_lines_and_from_files() {
    let folder = tempfile::tempdir().unwrap();
    for bits in [2048, 3072, 4096] {
        let mut fingerprints = Vec::new();
        for form in [KeyForm::Pkcs8, KeyForm::Pkcs1] {
            let pem = TestKey::rsa(bits, form).pem;
            let path = file(folder.path(), "key", &pem, 0o600);
            let bare = without(good(), "MANAGER__CREDENTIALS_KEY");
            for (name, value) in [
                ("MANAGER__CREDENTIALS_KEY", pem.as_str()),
                ("MANAGER__CREDENTIALS_KEY", &pem.replace('\n', "\\n")),
                ("MANAGER__CREDENTIALS_KEY", &pem.replace('\n', "\r\n")),
                ("MANAGER__CREDENTIALS_KEY_FILE", &path),
                ("MANAGER__CREDENTIALS_KEY_FILEPATH", &path),
            ] {
                let settings = loaded(&[], with(bare.clone(), &[(name, value)]));
                assert_eq!(settings.manager.key.modulus_bytes() * 8, bits as usize);
                assert_eq!(notices(&settings), "", "{name}");
                fingerprints.push(settings.manager.key.fingerprint);
            }
        }
        fingerprints.dedup();
        assert_eq!(fingerprints.len(), 1, "one key, however it is given");
    }
}

#[test]
fn every_secret_can_come_from_a_file_and_not_from_two_places() {
    let folder = tempfile::tempdir().unwrap();
    let secret = |name: &str, text: &str| file(folder.path(), name, text, 0o600);
    let key = TestKey::rsa(3072, KeyForm::Pkcs8).pem;
    let files = [
        ("MANAGER__CREDENTIALS_KEY_FILE", secret("key", &key)),
        ("OPENCTI__TOKEN_FILE", secret("token", &format!("{TOKEN}\r\n"))),
        ("OPENCTI__DAEMON__REGISTRY__PASSWORD_FILE", secret("password", " pass word \n")),
        ("OPENCTI__HTTP_PROXY_FILE", secret("http", "http://u:p@proxy:1\n")),
        ("OPENCTI__HTTPS_PROXY_FILE", secret("https", "http://u:p@proxy:2\n")),
    ];
    let mut variables = without(without(good(), "MANAGER__CREDENTIALS_KEY"), "OPENCTI__TOKEN");
    variables.extend(files.iter().map(|(name, path)| ((*name).to_owned(), path.clone())));
    let more = [("OPENCTI__WITH_PROXY", "true"), ("OPENCTI__DAEMON__REGISTRY__USERNAME", "reader")];
    let variables = with(variables, &more);
    let settings = loaded(&[], variables.clone());
    assert_eq!(settings.opencti.token.expose(), TOKEN);
    assert_eq!(settings.manager.key.modulus_bytes(), 384);
    assert_eq!(settings.registry.password.as_ref().unwrap().expose(), " pass word ", "only line ends are cut");
    let proxy = settings.connector_proxy.as_ref().unwrap();
    assert_eq!(proxy.http.as_ref().unwrap().expose(), "http://u:p@proxy:1");
    assert_eq!(proxy.https.as_ref().unwrap().expose(), "http://u:p@proxy:2");
    assert_eq!(notices(&settings), "");
    let shown = format!("{settings:?}");
    for secret in [TOKEN, "pass word", "u:p@", "PRIVATE KEY"] {
        assert!(!shown.contains(secret), "{secret} is in the debug form");
    }

    for (name, _) in &files {
        let inline = name.strip_suffix("_FILE").unwrap();
        let both = with(variables.clone(), &[(inline, "something")]);
        expect_all(&problems(&[], both), &[name, &format!("{inline} is set as well"), "keep one"], name);
        let missing = with(variables.clone(), &[(name, "/nowhere/at/all")]);
        expect_all(&problems(&[], missing), &[name, "cannot read /nowhere/at/all", "readable file"], name);
    }
}

#[test]
fn a_secret_given_where_a_path_belongs_is_not_shown() {
    let pem = TestKey::rsa(2048, KeyForm::Pkcs8).pem;
    for (name, secret) in [
        ("MANAGER__CREDENTIALS_KEY_FILEPATH", pem.as_str()),
        ("MANAGER__CREDENTIALS_KEY_FILE", &pem.replace('\n', "\\n")),
        ("OPENCTI__TOKEN_FILE", TOKEN),
        ("OPENCTI__TOKEN_FILE", "11112222-3333-4444-5555-666677778888"),
        ("OPENCTI__DAEMON__REGISTRY__PASSWORD_FILE", "hunter2/hunter2"),
        ("OPENCTI__HTTPS_PROXY_FILE", "http://user:hunter2@proxy:3128"),
    ] {
        let told = problems(&[], with(without(good(), "OPENCTI__TOKEN"), &[(name, secret)]));
        assert!(told.contains(name), "{told}");
        for part in secret.split(['\n', '/', ':']).filter(|part| part.len() > 6 && !part.contains("PRIVATE")) {
            assert!(!told.contains(part), "{name} shows {part:?}:\n{told}");
        }
    }
}

#[test]
fn a_secret_that_everybody_may_read_is_a_warning_and_the_key_of_the_daemon_wins_over_the_inline_one() {
    let folder = tempfile::tempdir().unwrap();
    let key = file(folder.path(), "key", &TestKey::rsa(3072, KeyForm::Pkcs8).pem, 0o644);
    let settings = loaded(&[], with(good(), &[("MANAGER__CREDENTIALS_KEY_FILEPATH", &key)]));
    assert_eq!(settings.manager.key.modulus_bytes(), 384);
    let told = ["everybody on this machine may read", &key, "chmod 600", "wins over MANAGER__CREDENTIALS_KEY"];
    expect_all(&notices(&settings), &told, "two notices");
    assert!(settings.notices.iter().all(|notice| notice.warning));
}

#[test]
fn only_a_plain_http_url_is_taken_for_the_platform() {
    for url in [
        "opencti",
        "ftp://opencti",
        "http://",
        "https:///path",
        "http://user:hunter2@opencti",
        "http://opencti?x=hunter2",
        "http://opencti#hunter2",
        "http://open cti",
        "http://opencti:port",
        "http://opencti:99999",
    ] {
        let told = problem(with(good(), &[("OPENCTI__URL", url)]));
        expect_all(&told, &["OPENCTI__URL: it is no URL", "use http://HOST or https://HOST"], url);
        assert!(!told.contains("hunter2"), "{told}");
    }
    for (url, taken) in [
        ("http://opencti:4000", "http://opencti:4000"),
        (" https://opencti.example.org/ ", "https://opencti.example.org"),
        ("https://opencti.example.org/base/path//", "https://opencti.example.org/base/path"),
        ("http://[::1]:4000", "http://[::1]:4000"),
    ] {
        assert_eq!(loaded(&[], with(good(), &[("OPENCTI__URL", url)])).opencti.url, taken);
    }
}

#[test]
fn what_this_version_does_not_support_is_refused_by_name() {
    for selector in ["swarm", "portainer", "Swarm"] {
        let told = problem(with(good(), &[("OPENCTI__DAEMON__SELECTOR", selector)]));
        let name = selector.to_lowercase();
        let parts = [&format!("{name} is not supported by this version"), "set it to kubernetes or docker"];
        expect_all(&told, &parts, selector);
    }
    expect_all(&problem(with(good(), &[("OPENCTI__ENABLE", "false")])), &["no platform is enabled"], "off");
    expect_all(&problem(with(good(), &[("OPENAEV__ENABLE", "true")])), &["OpenAEV is not supported"], "OpenAEV");
}

/// A kubeconfig with two contexts.
const KUBECONFIG: &str = "\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: 'https://one:6443'}}, {name: d, cluster: {server: 'https://two:6443'}}]
users: [{name: u, user: {token: the-token}}]
contexts: [{name: one, context: {cluster: c, user: u}}, {name: two, context: {cluster: d, user: u, namespace: feeds}}]
current-context: one
";

#[test]
fn a_cluster_comes_from_a_kubeconfig_the_pod_or_the_home_folder() {
    let folder = tempfile::tempdir().unwrap();
    // The daemon's default selector is kubernetes.
    let bare = without(good(), "OPENCTI__DAEMON__SELECTOR");
    let told = problem(bare.clone());
    expect_all(&told, &["KUBECONFIG: no cluster is configured", "service account", "SELECTOR=docker"], "nothing there");
    let place = |more: &[(&str, &str)]| loaded(&[], with(bare.clone(), more)).orchestrator.place();
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
    assert_eq!(place(&[("HOME", folder.path().to_str().unwrap())]), format!("the cluster of {home}"));
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
    let OrchestratorSettings::Kubernetes(kubernetes) = &settings.orchestrator else { panic!("kubernetes") };
    assert_eq!(kubernetes.workload.base["spec"]["template"]["spec"]["nodeSelector"]["disk"], "fast");
    assert_eq!(kubernetes.workload.resources.as_ref().unwrap()["limits"]["memory"], "1Gi");
    assert_eq!(kubernetes.workload.pull_policy.unwrap().as_str(), "Always");
}

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

    let folder = tempfile::tempdir().unwrap();
    let (path, json) = (file(folder.path(), "ca", &first, 0o644), serde_json::json!([first, second]).to_string());
    let proxy = |more: &[(&str, &str)]| {
        let variables = with(good(), &[("OPENCTI__WITH_PROXY", "true"), ("HTTPS_PROXY", "http://proxy:3128")]);
        loaded(&[], with(variables, more)).connector_proxy.unwrap().ca.unwrap()
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
fn framed_certificate(name: &str) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(name.repeat(20));
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

/// The daemon's `default.yaml`, as its image has it.
const DAEMON_YAML: &str = "\
manager:
  id: default-manager-id
  name: Filigran connector manager
  execute_schedule: 10
  ping_alive_schedule: 60
  logger:
    level: info
    format: json
    directory: true
    console: true
  debug:
    show_env_vars: false
    show_sensitive_env_vars: false
opencti:
  enable: true
  url: http://host.docker.internal:4000
  token: ChangeMe
  unsecured_certificate: false
  with_proxy: false
  logs_schedule: 10
  request_timeout: 30
  connect_timeout: 10
  daemon:
    selector: kubernetes
    registry:
      server: registry.example.org
    kubernetes:
      image_pull_policy: IfNotPresent
      base_deployment:
        spec: {replicas: 1}
    portainer:
      api: https://host.docker.internal:9443
      api_key: ChangeMe
      env_id: \"3\"
    docker:
      network_mode: bridge
      extra_hosts: [\"host.docker.internal:host-gateway\"]
      privileged: false
      shm_size: 67108864
      sysctls: {net.core.somaxconn: 1024}
      ulimits:
        - {name: nofile, soft: 1024, hard: 2048}
openaev:
  enable: false
  url: http://host.docker.internal:4000
  token: ChangeMe
  unsecured_certificate: false
  with_proxy: false
  daemon:
    selector: kubernetes
    portainer:
      stack: opencti-dev
";

#[test]
fn the_daemons_file_is_read_as_it_is_and_the_environment_wins() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| PathBuf::from(file(folder.path(), name, text, 0o600));
    let daemon = path("default.yaml", DAEMON_YAML);
    let only_key: Variables =
        with(Variables::new(), &[("MANAGER__CREDENTIALS_KEY", &TestKey::rsa(2048, KeyForm::Pkcs8).pem)]);
    let told = problems(std::slice::from_ref(&daemon), only_key.clone());
    expect_all(&told, &["MANAGER__ID: it still is", "OPENCTI__TOKEN: it still is", "KUBECONFIG: no cluster"], "raw");
    assert_eq!(told.lines().count(), 3, "{told}");

    let settings = loaded(std::slice::from_ref(&daemon), good());
    assert_eq!(settings.opencti.url, "http://opencti:4000", "the environment's");
    assert_eq!(settings.manager.name, "Filigran connector manager");
    assert_eq!(settings.registry.server.as_deref(), Some("registry.example.org"));
    let container = &docker(&settings).container;
    assert_eq!(container.network_mode.as_deref(), Some("bridge"));
    assert_eq!(container.extra_hosts.as_deref().unwrap(), ["host.docker.internal:host-gateway"]);
    assert_eq!(container.privileged, Some(false));
    assert_eq!(container.shm_size, Some(64 << 20));
    assert_eq!(container.sysctls.as_deref().unwrap(), [("net.core.somaxconn".to_owned(), "1024".to_owned())]);
    assert_eq!(container.ulimits.as_deref().unwrap()[0].hard, 2048);
    assert_eq!(settings.limits.deadline, Duration::from_mins(10));
    let told = notices(&settings);
    assert!(
        !told.contains("did you mean") && !told.contains("no variable"),
        "every key of the daemon is known:\n{told}"
    );

    // Several files: the later wins, a whole list at a time; what it does not name stays.
    let site = path("site.yaml", "opencti:\n  url: http://site:1\n  daemon:\n    docker:\n      extra_hosts: []\n");
    let last = path("last.yaml", "manager: {name: Last}\nopencti:\n  url: http://last:1\n");
    let empty = path("empty.yaml", "# nothing\n");
    let files = [daemon, site, last, empty];
    let settings = loaded(&files, without(good(), "OPENCTI__URL"));
    assert_eq!(settings.opencti.url, "http://last:1");
    assert_eq!(settings.manager.name, "Last");
    assert_eq!(docker(&settings).container.extra_hosts.as_deref().unwrap(), [""; 0]);
    assert_eq!(settings.registry.server.as_deref(), Some("registry.example.org"));
}

#[test]
fn a_secret_of_the_environment_wins_over_every_form_of_it_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let key = file(folder.path(), "key", &TestKey::rsa(3072, KeyForm::Pkcs8).pem, 0o600);
    let token = file(folder.path(), "token", "of-the-file", 0o600);
    let yaml = format!("manager:\n  credentials_key_filepath: {key}\nopencti:\n  token_file: {token}\n");
    let yaml = PathBuf::from(file(folder.path(), "default.yaml", &yaml, 0o600));
    let settings = loaded(std::slice::from_ref(&yaml), good());
    assert_eq!(settings.opencti.token.expose(), TOKEN);
    assert_eq!(settings.manager.key.modulus_bytes(), 256, "the environment's inline key, not the file's path");
    let bare = without(without(good(), "OPENCTI__TOKEN"), "MANAGER__CREDENTIALS_KEY");
    let settings = loaded(&[yaml], bare);
    assert_eq!(settings.opencti.token.expose(), "of-the-file");
    assert_eq!(settings.manager.key.modulus_bytes(), 384);
}

#[test]
fn broken_yaml_is_told_with_its_place_and_without_its_content() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("indent", "opencti:\n  token: hunter2-hunter2\n   url: x\n"),
        ("quote", "opencti:\n  token: \"hunter2-hunter2\n  url: x\n"),
        ("tab", "opencti:\n\ttoken: hunter2-hunter2\n"),
        ("list", "- hunter2-hunter2\n"),
        ("text", "hunter2-hunter2"),
        ("twice", "opencti:\n  token: hunter2-hunter2\n  token: hunter2-hunter3\n"),
        ("binary", "opencti:\n  token: hunter2-hunter2\u{0}\n"),
        ("alias", "opencti:\n  token: *hunter2-hunter2\n"),
    ] {
        let path = file(folder.path(), name, text, 0o600);
        let told = problems(&[PathBuf::from(&path)], good());
        expect_all(&told, &["--config", &path], name);
        assert!(!told.contains("hunter"), "{name} shows the secret:\n{told}");
    }
    let missing = [PathBuf::from("/nowhere/default.yaml")];
    expect_all(&problems(&missing, good()), &["--config", "cannot read /nowhere/default.yaml"], "missing");
}

#[test]
fn unknown_names_are_told_with_the_nearest_known_one_and_meaningless_ones_once() {
    let settings = loaded(
        &[],
        with(
            good(),
            &[
                ("MANAGER__PASS_DEADLIEN", "5"),
                ("OPENCTI__TOKENN", "hunter2-hunter2"),
                ("OPENCTI__DAEMON__DOCKER__NETWORK", "x"),
                ("MANAGER__SOMETHING_ELSE_ALTOGETHER", "x"),
                ("MANAGER__EXECUTE_SCHEDULE", "10"),
                ("OPENCTI__LOGS_SCHEDULE", "10"),
                ("OPENAEV__URL", "http://openaev"),
                ("OPENCTI__DAEMON__KUBERNETES__IMAGE_PULL_POLICY", "Always"),
                ("PATH", "/bin"),
                ("OPENCTI_URL", "http://a-connectors-own"),
            ],
        ),
    );
    let told = notices(&settings);
    for (name, nearest) in [
        ("MANAGER__PASS_DEADLIEN", "did you mean MANAGER__PASS_DEADLINE?"),
        ("OPENCTI__TOKENN", "did you mean OPENCTI__TOKEN?"),
        ("OPENCTI__DAEMON__DOCKER__NETWORK ", "did you mean OPENCTI__DAEMON__DOCKER__NETWORK_MODE?"),
        ("MANAGER__SOMETHING_ELSE_ALTOGETHER", "the README lists all variables"),
    ] {
        let line = told.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {told}"));
        assert!(line.contains(nearest), "{line}");
    }
    let meaningless: Vec<&str> = told.lines().filter(|line| line.contains("without meaning")).collect();
    assert_eq!(meaningless.len(), 1, "{told}");
    expect_all(meaningless[0], &["MANAGER__EXECUTE_SCHEDULE", "OPENCTI__LOGS_SCHEDULE"], "meaningless");
    assert_eq!(told.lines().count(), 5, "nothing else is noted:\n{told}");
    assert!(!told.contains("hunter2"));
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

#[test]
fn a_proxy_that_cannot_be_used_is_refused_by_its_own_name_and_not_shown() {
    for (url, name) in [("http://opencti", "OPENCTI__HTTP_PROXY"), ("https://opencti", "OPENCTI__HTTPS_PROXY")] {
        for proxy in ["ftp://user:hunter2@proxy:21", "http://user:hunter2@", "socks5://user:hunter2@proxy:1080"] {
            let told = problem(with(good(), &[("OPENCTI__URL", url), ("OPENCTI__WITH_PROXY", "true"), (name, proxy)]));
            expect_all(&told, &[&format!("{name}: it is no URL of a proxy"), "http://HOST:PORT"], proxy);
            assert!(!told.contains("hunter2"), "{told}");
        }
        for proxy in ["http://proxy:3128", "proxy:3128", "http://user:p%40ss@proxy:3128"] {
            let proxied = [("OPENCTI__URL", url), ("OPENCTI__WITH_PROXY", "true"), (name, proxy)];
            assert_eq!(loaded(&[], with(good(), &proxied)).opencti.proxy.unwrap().expose(), proxy);
        }
    }
    // Off, the process's own variables have no say.
    let off = with(good(), &[("HTTP_PROXY", "http://proxy:3128"), ("OPENCTI__HTTP_PROXY", "http://proxy:3128")]);
    assert!(loaded(&[], off).opencti.proxy.is_none());
}

#[test]
fn the_table_of_variables_in_the_readme_is_the_programs() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("<!-- variables:begin -->").expect("README.md has <!-- variables:begin -->");
    let (table, _) = rest.split_once("<!-- variables:end -->").expect("README.md has <!-- variables:end -->");
    let printed = Binary::new(env!("CARGO_BIN_EXE_xtm-reconcile")).arg("variables").run().expect_code(exit::OK.into());
    assert!(
        table.trim() == printed.stdout.trim(),
        "the table between the markers in README.md is out of date: put the output of `xtm-reconcile variables` there"
    );
    assert!(printed.stdout.contains("`MANAGER__ID`"));
}
