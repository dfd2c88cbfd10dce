//! Settings from every source, and everything wrong with them at once.

mod lanes;
mod layers;
mod orchestrators;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use xtm_reconcile::config::{self, Allowed, Settings};
use xtm_reconcile::exit;
use xtm_reconcile::orchestrator::OrchestratorSettings;
use xtm_reconcile::orchestrator::docker::DockerSettings;

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
    config::load(files, variables.into_iter(), Allowed::default(), &[]).unwrap_or_else(|error| panic!("{:#?}", error.0))
}

#[track_caller]
fn docker(settings: &Settings) -> &DockerSettings {
    match &settings.lanes[0].orchestrator {
        OrchestratorSettings::Docker(docker) => docker,
        OrchestratorSettings::Kubernetes(_) => panic!("the selector is docker"),
    }
}

/// The problems, one a line.
#[track_caller]
fn problems(files: &[PathBuf], variables: Variables) -> String {
    let error = config::load(files, variables.into_iter(), Allowed::default(), &[]).expect_err("this cannot be used");
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

// Shows what README says under "Exit codes": "invalid configuration; all problems are listed at once".
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
        ("MANAGER__ACCEPT_NEW_KEY", "perhaps", "neither true nor false"),
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
        ("OPENAEV__ENABLE", "maybe", "neither true nor false"),
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
        assert_eq!(loaded(&[], with(good(), &[("OPENCTI__URL", url)])).lanes[0].platform.endpoint.url, taken);
    }
}

// Shows what README says under "xtm-reconcile": "Swarm and Portainer are refused with a message that says so.".
#[test]
fn what_this_version_does_not_support_is_refused_by_name() {
    for selector in ["swarm", "portainer", "Swarm"] {
        let told = problem(with(good(), &[("OPENCTI__DAEMON__SELECTOR", selector)]));
        let name = selector.to_lowercase();
        let parts = [&format!("{name} is not supported by this version"), "set it to kubernetes or docker"];
        expect_all(&told, &parts, selector);
    }
}

// Shows what README says under "Configuration": "Unknown `MANAGER__`, `OPENCTI__` and `OPENAEV__` variables are
// reported with the nearest known name.".
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
                ("MANAGER__PING_ALIVE_SCHEDULE", "60"),
                ("MANAGER__LOGGER__DIRECTORY", "true"),
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
    let named = ["EXECUTE_SCHEDULE", "PING_ALIVE_SCHEDULE", "LOGGER__DIRECTORY", "OPENCTI__LOGS_SCHEDULE"];
    expect_all(meaningless[0], &named, "meaningless");
    assert_eq!(told.lines().count(), 5, "nothing else is noted:\n{told}");
    assert!(!told.contains("hunter2"));
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
            assert_eq!(
                loaded(&[], with(good(), &proxied)).lanes[0].platform.endpoint.proxy.as_ref().unwrap().expose(),
                proxy
            );
        }
    }
    // Off, the process's own variables have no say.
    let off = with(good(), &[("HTTP_PROXY", "http://proxy:3128"), ("OPENCTI__HTTP_PROXY", "http://proxy:3128")]);
    assert!(loaded(&[], off).lanes[0].platform.endpoint.proxy.is_none());
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
