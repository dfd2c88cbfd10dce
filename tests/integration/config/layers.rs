//! Settings from files: secrets, the daemon's YAML, and which layer wins.

use std::path::PathBuf;
use std::time::Duration;

use xtm_reconcile::config::{self, Allowed};

use super::{TOKEN, Variables, docker, file, good, loaded, notices, problems, with, without};
use crate::support::{KeyForm, TestKey};
use crate::watch::expect_all;

// Shows what README says under "Configuration": "A secret can be given as a file with `_FILE` appended to its name.".
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
    assert_eq!(settings.lanes[0].platform.endpoint.token.expose(), TOKEN);
    assert_eq!(settings.manager.key.modulus_bytes(), 384);
    assert_eq!(settings.lanes[0].registry.password.as_ref().unwrap().expose(), " pass word ", "only line ends are cut");
    let proxy = settings.lanes[0].connector_proxy.as_ref().unwrap();
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

// Shows what README says under "Configuration": "Wins over `MANAGER__CREDENTIALS_KEY`.".
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

// Shows what README says under "xtm-reconcile": "It does the work of the XTM Composer daemon under the daemon's own
// configuration keys"; and under "Commands": "later files win, the environment wins over all".
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
    assert_eq!(settings.lanes[0].platform.endpoint.url, "http://opencti:4000", "the environment's");
    assert_eq!(settings.manager.name, "Filigran connector manager");
    assert_eq!(settings.lanes[0].registry.server.as_deref(), Some("registry.example.org"));
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
    assert_eq!(settings.lanes[0].platform.endpoint.url, "http://last:1");
    assert_eq!(settings.manager.name, "Last");
    assert_eq!(docker(&settings).container.extra_hosts.as_deref().unwrap(), [""; 0]);
    assert_eq!(settings.lanes[0].registry.server.as_deref(), Some("registry.example.org"));
}

#[test]
fn a_secret_of_the_environment_wins_over_every_form_of_it_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let key = file(folder.path(), "key", &TestKey::rsa(3072, KeyForm::Pkcs8).pem, 0o600);
    let token = file(folder.path(), "token", "of-the-file", 0o600);
    let yaml = format!("manager:\n  credentials_key_filepath: {key}\nopencti:\n  token_file: {token}\n");
    let yaml = PathBuf::from(file(folder.path(), "default.yaml", &yaml, 0o600));
    let settings = loaded(std::slice::from_ref(&yaml), good());
    assert_eq!(settings.lanes[0].platform.endpoint.token.expose(), TOKEN);
    assert_eq!(settings.manager.key.modulus_bytes(), 256, "the environment's inline key, not the file's path");
    let bare = without(without(good(), "OPENCTI__TOKEN"), "MANAGER__CREDENTIALS_KEY");
    let settings = loaded(&[yaml], bare);
    assert_eq!(settings.lanes[0].platform.endpoint.token.expose(), "of-the-file");
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
fn an_empty_variable_does_not_hide_what_a_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let yaml =
        "manager: {name: Of the file}\nopencti:\n  daemon:\n    docker: {dns: [10.0.0.1], network_mode: bridge}\n";
    let yaml = PathBuf::from(file(folder.path(), "default.yaml", yaml, 0o600));
    let token = file(folder.path(), "token", "of-the-file", 0o600);
    let with_token =
        PathBuf::from(file(folder.path(), "token.yaml", &format!("opencti: {{token_file: {token}}}"), 0o600));
    let empty = [
        ("MANAGER__NAME", ""),
        ("OPENCTI__DAEMON__DOCKER__NETWORK_MODE", " "),
        ("OPENCTI__DAEMON__DOCKER__DNS", ""),
        ("OPENCTI__DAEMON__DOCKER__DNS__0", ""),
        ("OPENCTI__TOKEN", ""),
        ("MANAGER__CREDENTIALS_KEY_FILE", ""),
        ("OPENCTI__DAEMON__SELCTOR", ""),
    ];
    let settings = loaded(&[yaml, with_token], with(good(), &empty));
    assert_eq!(settings.manager.name, "Of the file");
    let container = &docker(&settings).container;
    assert_eq!(container.network_mode.as_deref(), Some("bridge"));
    assert_eq!(container.dns.as_deref().unwrap(), ["10.0.0.1"]);
    assert_eq!(settings.lanes[0].platform.endpoint.token.expose(), "of-the-file");
    let told = notices(&settings);
    expect_all(&told, &["OPENCTI__DAEMON__SELCTOR is no variable", "did you mean OPENCTI__DAEMON__SELECTOR?"], "names");
    assert_eq!(told.lines().count(), 1, "{told}");
}

// Shows what README says under "Configuration": "Wins over `http_proxy`, unless it is empty".
#[test]
fn of_two_spellings_the_one_in_capitals_wins_whatever_their_order_unless_it_is_empty() {
    let proxied = [("OPENCTI__WITH_PROXY", "true")];
    let proxy = |given: [(&str, &str); 2]| {
        let own = with(good(), &proxied).into_iter();
        let spelled = given.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned()));
        let settings = config::load(&[], own.chain(spelled), Allowed::default(), &[]).unwrap();
        settings.lanes[0].platform.endpoint.proxy.as_ref().unwrap().expose().to_owned()
    };
    let (upper, lower) = (("HTTP_PROXY", "http://upper:1"), ("http_proxy", "http://lower:1"));
    assert_eq!([proxy([upper, lower]), proxy([lower, upper])], ["http://upper:1", "http://upper:1"]);
    let empty = ("HTTP_PROXY", "");
    assert_eq!([proxy([empty, lower]), proxy([lower, empty])], ["http://lower:1", "http://lower:1"]);
}

#[test]
fn an_environment_of_the_daemon_without_files_is_a_warning_that_names_them() {
    let staging = || with(good(), &[("COMPOSER_ENV", "staging")]);
    let settings = loaded(&[], staging());
    let [warning] = settings.notices.as_slice() else { panic!("one notice: {:?}", settings.notices) };
    assert!(warning.warning);
    let named = ["COMPOSER_ENV=staging", "--config config/default.yaml --config config/staging.yaml", "unset it"];
    expect_all(&warning.message, &named, "without files");

    let folder = tempfile::tempdir().unwrap();
    let yaml = PathBuf::from(file(folder.path(), "staging.yaml", "manager: {name: Of the file}\n", 0o600));
    let settings = loaded(&[yaml], staging());
    assert!(settings.notices.iter().all(|notice| !notice.warning), "{:?}", settings.notices);
    assert_eq!(loaded(&[], with(good(), &[("COMPOSER_ENV", "")])).notices, []);
}
