//! One lane for each enabled platform, from keys that are the same under two prefixes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use xtm_reconcile::config::variables::{declared, markdown};
use xtm_reconcile::config::{self, Allowed, Settings};
use xtm_reconcile::exit;
use xtm_reconcile::model::PlatformKind::{self, OpenAev, OpenCti};
use xtm_reconcile::orchestrator::OrchestratorSettings;
use xtm_reconcile::pass::lane::LaneSettings;

use super::{Variables, file, good, loaded, notices, problems, with};
use crate::support::{Binary, KeyForm, TestKey};
use crate::watch::expect_all;

/// Everything that is required of both platforms.
fn both() -> Variables {
    with(
        good(),
        &[
            ("OPENAEV__ENABLE", "true"),
            ("OPENAEV__URL", "https://openaev:8443/base/"),
            ("OPENAEV__TOKEN", "11112222-3333-4444-5555-666677778888"),
            ("OPENAEV__DAEMON__SELECTOR", "docker"),
        ],
    )
}

fn key(platform: PlatformKind, key: &str) -> String {
    format!("{}{key}", platform.prefix())
}

fn other(platform: PlatformKind) -> PlatformKind {
    if platform == OpenCti { OpenAev } else { OpenCti }
}

fn kinds(settings: &Settings) -> Vec<PlatformKind> {
    settings.lanes.iter().map(|lane| lane.platform.kind).collect()
}

#[track_caller]
fn lane(settings: &Settings, platform: PlatformKind) -> &LaneSettings {
    settings.lanes.iter().find(|lane| lane.platform.kind == platform).expect("this platform has a lane")
}

fn selected(variables: Variables, platforms: &[PlatformKind]) -> Result<Settings, String> {
    config::load(&[], variables.into_iter(), Allowed::default(), platforms)
        .map_err(|error| error.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

// Shows what README says under "Configuration": "`OPENCTI__ENABLE` and `OPENAEV__ENABLE` say which platforms a pass
// serves".
#[test]
fn each_enabled_platform_has_a_lane_and_opencti_is_the_default() {
    assert_eq!(kinds(&loaded(&[], good())), [OpenCti]);
    assert_eq!(kinds(&loaded(&[], both())), [OpenCti, OpenAev]);
    assert_eq!(kinds(&loaded(&[], with(both(), &[("OPENCTI__ENABLE", "false")]))), [OpenAev]);
    let told = problems(&[], with(good(), &[("OPENCTI__ENABLE", "false")]));
    assert_eq!(told, "OPENCTI__ENABLE or OPENAEV__ENABLE: no platform is enabled; set one of them to true");

    let settings = loaded(&[], both());
    let (opencti, openaev) = (&settings.lanes[0], &settings.lanes[1]);
    assert_eq!(opencti.platform.endpoint.url, "http://opencti:4000");
    assert_eq!(openaev.platform.endpoint.url, "https://openaev:8443/base");
    assert_eq!(opencti.platform.endpoint.token.expose(), super::TOKEN);
    assert_eq!(openaev.platform.endpoint.token.expose(), "11112222-3333-4444-5555-666677778888");
    assert_eq!(opencti.policy, openaev.policy);
    assert_eq!(notices(&settings), "");
}

/// Every key of a lane has its effect under its own prefix, and none on the other lane.
// Shows what README says under "Configuration": "Here `OPENAEV__DAEMON__*` has its own effect and nothing is taken from
// `OPENCTI__*`".
#[test]
fn a_key_reaches_the_lane_of_its_own_prefix_alone() {
    let folder = tempfile::tempdir().unwrap();
    let password = file(folder.path(), "password", "of-a-file\n", 0o600);
    let ca = file(folder.path(), "ca.pem", &super::orchestrators::framed_certificate("ca"), 0o644);
    let kubeconfig = file(folder.path(), "kubeconfig", super::orchestrators::KUBECONFIG, 0o600);
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("UNSECURED_CERTIFICATE", "true")], "insecure: true"),
        (&[("CA", &ca)], "BEGIN CERTIFICATE"),
        (&[("REQUEST_TIMEOUT", "31")], "request_timeout: 31s"),
        (&[("CONNECT_TIMEOUT", "11")], "connect_timeout: 11s"),
        (&[("PULL_TIMEOUT", "121")], "pull_timeout: 121s"),
        (&[("WITH_PROXY", "true"), ("NO_PROXY", "a.example.org")], "a.example.org"),
        (&[("WITH_PROXY", "1"), ("HTTPS_PROXY_REJECT_UNAUTHORIZED", "false")], "reject_unauthorized: false"),
        (&[("DAEMON__REGISTRY__SERVER", "registry.example.org")], "registry.example.org"),
        (
            &[("DAEMON__REGISTRY__USERNAME", "reader"), ("DAEMON__REGISTRY__PASSWORD_FILE", &password)],
            "username: Some(\"reader\") password: Some(true)",
        ),
        (&[("DAEMON__DOCKER__DNS__0", "1.1.1.1"), ("DAEMON__DOCKER__DNS__1", "9.9.9.9")], r#"["1.1.1.1", "9.9.9.9"]"#),
        (&[("DAEMON__DOCKER__RESTART_POLICY", "on-failure:4")], "OnFailure(4)"),
        (&[("DAEMON__DOCKER__IMAGE_PULL_POLICY", "Never")], "pull_policy: Some(Never)"),
        (&[("DAEMON__DOCKER__SYSCTLS", "net.core.somaxconn=7")], "net.core.somaxconn"),
        (
            &[("DAEMON__SELECTOR", "kubernetes"), ("DAEMON__KUBERNETES__NAMESPACE", "feeds")],
            "namespace: Some(\"feeds\")",
        ),
        (
            &[
                ("DAEMON__SELECTOR", "kubernetes"),
                ("DAEMON__KUBERNETES__BASE_DEPLOYMENT", r#"{"spec":{"paused":true}}"#),
            ],
            "paused",
        ),
    ];
    for platform in [OpenCti, OpenAev] {
        for (keys, shown) in cases {
            let keys: Vec<(String, &str)> = keys.iter().map(|(name, text)| (key(platform, name), *text)).collect();
            let mut variables = with(both(), &[("KUBECONFIG", &kubeconfig)]);
            variables.extend(keys.iter().map(|(name, text)| (name.clone(), (*text).to_owned())));
            let settings = loaded(&[], variables);
            let debug = |platform| self::shown(lane(&settings, platform));
            assert!(debug(platform).contains(shown), "{keys:?}: {shown:?} is missing in {}", debug(platform));
            let foreign = debug(other(platform));
            assert!(!foreign.contains(shown), "{keys:?}: {shown:?} is in the other lane: {foreign}");
        }
    }
}

/// A lane's parts, without the kubeconfig, which both lanes share.
fn shown(lane: &LaneSettings) -> String {
    let orchestrator = match &lane.orchestrator {
        OrchestratorSettings::Docker(docker) => format!("{docker:?}"),
        OrchestratorSettings::Kubernetes(cluster) => {
            format!("namespace: {:?} {:?}", cluster.namespace, cluster.workload)
        }
    };
    let registry = &lane.registry;
    let password = registry.password.as_ref().map(|password| password.expose() == "of-a-file");
    format!(
        "{:?} {:?} server: {:?} username: {:?} password: {password:?} {orchestrator}",
        lane.platform, lane.connector_proxy, registry.server, registry.username
    )
}

#[test]
fn problems_of_all_lanes_come_at_once_each_under_its_own_name() {
    let wrong = [
        ("URL", "nothing", "no URL"),
        ("TOKEN", "ChangeMe", "make a token for the manager's user in P"),
        ("REQUEST_TIMEOUT", "0", "from 1 to 3600"),
        ("CONNECT_TIMEOUT", "x", "from 1 to 3600"),
        ("PULL_TIMEOUT", "3601", "from 1 to 3600"),
        ("UNSECURED_CERTIFICATE", "maybe", "neither true nor false"),
        ("WITH_PROXY", "maybe", "neither true nor false"),
        ("CA", "/nowhere.pem", "cannot read /nowhere.pem"),
        ("DAEMON__SELECTOR", "swarm", "swarm is not supported"),
        ("DAEMON__REGISTRY__SERVER", "user", "a user of Docker Hub"),
        ("DAEMON__REGISTRY__PASSWORD_FILE", "/nowhere", "cannot read /nowhere"),
        ("DAEMON__DOCKER__MEMORY_LIMIT", "much", "no size"),
        ("DAEMON__DOCKER__ULIMITS", "x", "no list of limits"),
    ];
    let mut variables = with(both(), &[("DOCKER_HOST", "ssh://host")]);
    for platform in [OpenCti, OpenAev] {
        variables.extend(wrong.iter().map(|(name, text, _)| (key(platform, name), (*text).to_owned())));
    }
    let told = problems(&[], variables.clone());
    for platform in [OpenCti, OpenAev] {
        for (name, _, why) in wrong {
            let line = format!("{}: ", key(platform, name));
            let line =
                told.lines().find(|told| told.starts_with(&line)).unwrap_or_else(|| panic!("{line} in:\n{told}"));
            let why = why.replace(" in P", &format!(" in {}", platform.title()));
            assert!(line.contains(&why), "{why:?} in {line:?}");
        }
        let only = selected(variables.clone(), &[platform]).expect_err("wrong as well");
        assert!(!only.contains(other(platform).prefix()), "the other's keys are not looked at:\n{only}");
        assert_eq!(only.lines().count(), wrong.len() + 1, "{only}");
    }
    assert_eq!(told.lines().count(), 2 * wrong.len() + 1, "what both lanes share is said once:\n{told}");
}

#[test]
fn openaev_enabled_and_nothing_else_names_every_missing_key_at_once() {
    for command in ["run", "check"] {
        let program = Binary::new(env!("CARGO_BIN_EXE_xtm-reconcile")).var("OPENAEV__ENABLE", "true").arg(command);
        let outcome = program.run().expect_code(exit::CONFIG.into());
        let told = format!("{}{}", outcome.stdout, outcome.stderr);
        for name in [
            "MANAGER__ID",
            "MANAGER__CREDENTIALS_KEY",
            "OPENCTI__URL",
            "OPENCTI__TOKEN",
            "OPENAEV__URL",
            "OPENAEV__TOKEN",
            "KUBECONFIG",
        ] {
            assert!(told.contains(&format!("{name}: ")), "{command}: {name} is missing in:\n{told}");
        }
        for name in ["OPENCTI__DAEMON__SELECTOR=docker", "OPENAEV__DAEMON__SELECTOR=docker"] {
            assert!(told.contains(name), "{command}: the cure for a machine without a cluster, {name}:\n{told}");
        }
    }
}

// Shows what README says under "Configuration": "the values of the others are not checked".
#[test]
fn keys_of_a_platform_without_a_lane_are_not_looked_at() {
    let wrong = [
        ("URL", "nothing"),
        ("TOKEN_FILE", "/nowhere"),
        ("REQUEST_TIMEOUT", "soon"),
        ("CA", "/nowhere.pem"),
        ("DAEMON__SELECTOR", "nonsense"),
        ("DAEMON__REGISTRY__USERNAME", "alone"),
        ("DAEMON__DOCKER__DNS", "[broken"),
    ];
    for platform in [OpenCti, OpenAev] {
        let mut variables = both();
        variables.extend(wrong.iter().map(|(name, text)| (key(platform, name), (*text).to_owned())));
        let disabled = with(variables.clone(), &[(&key(platform, "ENABLE"), "false")]);
        assert_eq!(kinds(&loaded(&[], disabled)), [other(platform)]);
        let unclear = with(variables.clone(), &[(&key(platform, "ENABLE"), "perhaps")]);
        let settings = selected(unclear, &[other(platform)]).expect("the option leaves it out");
        assert_eq!(kinds(&settings), [other(platform)]);
        assert!(problems(&[], variables).lines().count() >= wrong.len(), "with a lane they are");
    }
}

// Shows what README says under "Commands": "only these platforms, which must be enabled".
#[test]
fn the_option_runs_only_the_lanes_that_it_names() {
    for (platforms, lanes) in [
        (&[][..], &[OpenCti, OpenAev][..]),
        (&[OpenCti], &[OpenCti]),
        (&[OpenAev], &[OpenAev]),
        (&[OpenAev, OpenCti, OpenAev], &[OpenCti, OpenAev]),
    ] {
        assert_eq!(kinds(&selected(both(), platforms).unwrap()), lanes, "{platforms:?}");
    }
    let told = selected(good(), &[OpenAev]).unwrap_err();
    assert_eq!(told, "--platform: OpenAEV is not enabled; set OPENAEV__ENABLE=true, or leave the option out");
    let told = selected(with(both(), &[("OPENCTI__ENABLE", "false")]), &[OpenCti, OpenAev]).unwrap_err();
    assert_eq!(told, "--platform: OpenCTI is not enabled; set OPENCTI__ENABLE=true, or leave the option out");

    // On the command line: wherever it stands, and only with known names.
    let program = || Binary::new(env!("CARGO_BIN_EXE_xtm-reconcile")).var("OPENAEV__ENABLE", "true");
    for (arguments, opencti, openaev) in [
        (&["check"][..], true, true),
        (&["check", "--platform", "openaev"], false, true),
        (&["--platform=opencti", "check"], true, false),
        (&["--platform", "opencti", "check", "--platform=openaev"], true, true),
    ] {
        let told = program().args(arguments).run().expect_code(exit::CONFIG.into()).stdout;
        assert_eq!(told.contains("OPENCTI__URL: "), opencti, "{arguments:?}:\n{told}");
        assert_eq!(told.contains("OPENAEV__URL: "), openaev, "{arguments:?}:\n{told}");
    }
    let outcome = program().args(["check", "--platform", "openbas"]).run().expect_code(exit::USAGE.into());
    expect_all(&outcome.stderr, &["openbas", "opencti", "openaev"], "an unknown platform");
}

// Shows what README says under "Configuration": "OpenAEV alone has a use for it. Tenant whose routes are used".
#[test]
fn tenant_and_take_over_are_openaevs_and_ignored_with_a_notice_elsewhere() {
    let platform = |more: &[(&str, &str)]| loaded(&[], with(both(), more)).lanes.remove(1).platform;
    assert_eq!((platform(&[]).tenant, platform(&[]).take_over), (None, false));
    for tenant in ["a", "2cffad3a-0001-4078-b0e2-ef74274022c3", "A_b-9", &"x".repeat(63)] {
        assert_eq!(platform(&[("OPENAEV__TENANT", tenant)]).tenant.as_deref(), Some(tenant));
    }
    assert!(platform(&[("OPENAEV__TAKE_OVER", "true")]).take_over);
    for tenant in ["a/b", "..", "a b", "ü", "a%2F", "a?b", &"x".repeat(64)] {
        let told = problems(&[], with(both(), &[("OPENAEV__TENANT", tenant)]));
        expect_all(&told, &["OPENAEV__TENANT: ", "can be no tenant; use letters, digits"], tenant);
    }
    let told = problems(&[], with(both(), &[("OPENAEV__TAKE_OVER", "perhaps")]));
    expect_all(&told, &["OPENAEV__TAKE_OVER: ", "neither true nor false"], "take over");

    let settings = loaded(&[], with(both(), &[("OPENCTI__TENANT", "../.."), ("OPENCTI__TAKE_OVER", "true")]));
    let opencti = &lane(&settings, OpenCti).platform;
    assert_eq!((&opencti.tenant, opencti.take_over), (&None, false));
    let told = notices(&settings);
    for name in ["OPENCTI__TENANT", "OPENCTI__TAKE_OVER"] {
        assert!(told.contains(&format!("{name} is ignored: OpenAEV alone has a use for it")), "{told}");
    }
    assert!(settings.notices.iter().all(|notice| !notice.warning));
}

// Shows what README says under "Configuration": "a notice lists the options that OpenAEV's connectors would have had
// from the daemon".
#[test]
fn options_that_the_daemon_took_from_opencti_for_both_are_told_of() {
    let registry = ("OPENCTI__DAEMON__REGISTRY__SERVER", "registry.example.org");
    let network = ("OPENCTI__DAEMON__DOCKER__NETWORK_MODE", "feeds");
    for (more, told_of) in [
        (&[][..], &[][..]),
        (&[registry, network], &[registry.0, network.0]),
        (&[registry, network, ("OPENAEV__DAEMON__REGISTRY__SERVER", "other.example.org")], &[network.0]),
        (&[registry, network, ("OPENAEV__DAEMON__DOCKER__DNS", "1.1.1.1")], &[registry.0]),
        (&[registry, ("OPENAEV__DAEMON__REGISTRY__SERVER", "")], &[registry.0]),
        (&[network, ("OPENAEV__DAEMON__SELECTOR", "kubernetes"), ("KUBERNETES_SERVICE_HOST", "x")], &[]),
        (&[registry, network, ("OPENAEV__ENABLE", "false")], &[]),
        (&[("OPENAEV__DAEMON__REGISTRY__SERVER", "other.example.org")], &[]),
    ] {
        let settings = loaded(&[], with(both(), more));
        let told = notices(&settings);
        assert_eq!(
            told.contains("the daemon used OpenCTI's registry and Docker options for both"),
            !told_of.is_empty()
        );
        for name in [registry.0, network.0] {
            assert_eq!(told.contains(name), told_of.contains(&name), "{more:?}: {name} in {told:?}");
        }
    }
}

// Shows what README says under "Configuration": "Default: `HTTPS_PROXY` of the process.".
#[test]
fn proxies_of_the_process_are_the_default_of_every_lane() {
    let process = [
        ("HTTP_PROXY", "http://process:1"),
        ("HTTPS_PROXY", "http://process:2"),
        ("NO_PROXY", "process.example.org"),
        ("OPENCTI__WITH_PROXY", "true"),
        ("OPENAEV__WITH_PROXY", "true"),
    ];
    let settings = loaded(&[], with(both(), &process));
    for (lane, via) in settings.lanes.iter().zip(["http://process:1", "http://process:2"]) {
        assert_eq!(lane.platform.endpoint.proxy.as_ref().unwrap().expose(), via);
        assert_eq!(lane.platform.endpoint.no_proxy, ["process.example.org"]);
    }
    let own = [("OPENAEV__HTTPS_PROXY", "http://own:3"), ("OPENAEV__NO_PROXY", "own.example.org")];
    let settings = loaded(&[], with(with(both(), &process), &own));
    assert_eq!(lane(&settings, OpenAev).platform.endpoint.proxy.as_ref().unwrap().expose(), "http://own:3");
    assert_eq!(lane(&settings, OpenAev).platform.endpoint.no_proxy, ["own.example.org"]);
    assert_eq!(lane(&settings, OpenCti).platform.endpoint.no_proxy, ["process.example.org"]);
    assert_eq!(
        lane(&settings, OpenCti).connector_proxy.as_ref().unwrap().https.as_ref().unwrap().expose(),
        "http://process:2"
    );

    let told = problems(&[], with(with(both(), &process), &[("HTTPS_PROXY", "ftp://process")]));
    expect_all(&told, &["HTTPS_PROXY: it is no URL of a proxy"], "the variable that it comes from");
    assert!(!told.contains("OPENAEV__HTTPS_PROXY"), "{told}");
}

// Shows what README says under "Configuration": "are accepted and ignored".
#[test]
fn both_platforms_come_from_one_file_and_names_are_judged_under_both_prefixes() {
    let folder = tempfile::tempdir().unwrap();
    let token = file(folder.path(), "token", "of-a-file\n", 0o600);
    let yaml = format!(
        "manager: {{id: m}}\n\
         opencti: {{url: 'http://a', token: t, daemon: {{selector: docker, swarm: {{network: n}}}}}}\n\
         openaev:\n  enable: true\n  url: http://b\n  token_file: {token}\n  tokn: x\n  logs_schedule: 10\n  daemon:\n    \
         selector: kubernetes\n    portainer: {{api: x}}\n    kubernetes:\n      base_deployment: {{spec: {{paused: true}}}}\n    \
         docker: {{extra_hosts: ['a:1'], network: x}}\n"
    );
    let yaml = PathBuf::from(file(folder.path(), "default.yaml", &yaml, 0o600));
    let pem = TestKey::rsa(2048, KeyForm::Pkcs8).pem;
    let environment = [("MANAGER__CREDENTIALS_KEY", pem.as_str()), ("KUBERNETES_SERVICE_HOST", "x")];
    let settings = loaded(std::slice::from_ref(&yaml), with(Variables::new(), &environment));
    let openaev = lane(&settings, OpenAev);
    assert_eq!(openaev.platform.endpoint.token.expose(), "of-a-file");
    let OrchestratorSettings::Kubernetes(cluster) = &openaev.orchestrator else { panic!("kubernetes") };
    assert_eq!(cluster.workload.base["spec"]["paused"], true);
    let told = notices(&settings);
    for line in [
        "OPENAEV__TOKN is no variable that is known: did you mean OPENAEV__TOKEN?",
        "OPENAEV__DAEMON__DOCKER__NETWORK is no variable that is known: did you mean OPENAEV__DAEMON__DOCKER__NETWORK_MODE?",
        "without meaning for a single pass, and ignored: OPENAEV__LOGS_SCHEDULE",
    ] {
        assert!(told.lines().any(|told| told == line), "{line} in:\n{told}");
    }
    assert_eq!(told.lines().count(), 3, "Portainer's and Swarm's keys are accepted:\n{told}");

    // The environment's token wins over the file's `_FILE` form under either prefix.
    let environment = with(with(Variables::new(), &environment), &[("OPENAEV__TOKEN", "of-the-environment")]);
    assert_eq!(lane(&loaded(&[yaml], environment), OpenAev).platform.endpoint.token.expose(), "of-the-environment");
}

// Shows what README says under "Configuration": "Each platform has the same keys under its own prefix.".
#[test]
fn a_key_of_a_lane_is_documented_once_for_both_prefixes() {
    for name in ["MANAGER__ID", "OPENCTI__URL", "openaev__url", "OPENAEV__DAEMON__KUBERNETES__CONTEXT", "KUBECONFIG"] {
        assert!(declared(name).is_some(), "{name}");
    }
    for name in ["URL", "ENABLE", "OPENCTI__MANAGER__ID", "OPENAEV__KUBECONFIG", "OPENCTI__", ""] {
        assert!(declared(name).is_none(), "{name}");
    }
    let table = markdown();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    let names: Vec<&str> = rows.iter().filter_map(|row| row.split(" | ").next()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), rows.len(), "each once");
    for name in &names {
        let pair = name.split_once("<br>");
        let swapped = pair.map(|(opencti, openaev)| (opencti.replace("OPENCTI__", "OPENAEV__"), openaev));
        assert!(swapped.is_none_or(|(left, right)| right.contains(left.trim_start_matches("| "))), "{name}");
        assert_eq!(name.contains("OPENCTI__"), pair.is_some(), "{name}");
    }
    assert!(table.starts_with("`P__` stands for either prefix"), "texts use P__, which is explained first");
    for row in [
        "| `OPENCTI__ENABLE`<br>`OPENAEV__ENABLE` | `true` / `false` | ",
        "| `OPENCTI__TOKEN`<br>`OPENAEV__TOKEN` (secret) |  | ",
        "| `OPENCTI__TENANT`<br>`OPENAEV__TENANT` |  | OpenAEV alone has a use for it. ",
        "| `OPENCTI__TAKE_OVER`<br>`OPENAEV__TAKE_OVER` | `false` | OpenAEV alone has a use for it. ",
        "| `OPENCTI__REQUEST_TIMEOUT`<br>`OPENAEV__REQUEST_TIMEOUT` | `30` | ",
    ] {
        assert!(rows.iter().any(|line| line.starts_with(row)), "{row} in:\n{table}");
    }
    let texts = rows.iter().filter_map(|row| row.rsplit_once(" | "));
    assert!(texts.clone().all(|(_, text)| !text.contains("OPENCTI__") && !text.contains("OPENAEV__")), "{table}");
    assert!(texts.clone().any(|(_, text)| text.contains("`P__CA`")));
}
