//! The command line as an operator and a script use it, and what none of its output ever shows.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use serde_json::Value;
use stand_in_platform::{Fault, FaultKind, Setting, TokenMode};
use xtm_reconcile::exit;

use crate::scene::Scene;
use crate::support::{Binary, Outcome, Registry};
use crate::watch::expect_all;

fn program() -> Binary {
    Binary::new(env!("CARGO_BIN_EXE_xtm-reconcile"))
}

// Shows what README says under "Commands": "a new RSA key of 4096 bits, PKCS#8 PEM, mode 0600; never overwrites"; and
// under "Exit codes": "Also: `keygen` could not write".
#[test]
fn a_new_key_is_private_never_overwrites_and_is_one_that_the_program_takes() {
    let scene = Scene::new("keygen");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manager.key");
    let keygen = program().arg("keygen").arg("--out").arg(&path);
    let outcome = keygen.run().expect_code(exit::OK.into());
    expect_all(&outcome.stdout, &[path.to_str().unwrap(), "RSA 4096", "fingerprint"], "keygen");
    let pem = fs::read_to_string(&path).unwrap();
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n") && pem.ends_with("-----END PRIVATE KEY-----\n"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(pem.lines().filter(|line| line.len() > 30).all(|line| !outcome.stdout.contains(line)));

    let again = keygen.run().expect_code(exit::CONNECTOR_FAILED.into());
    expect_all(&again.stderr, &["exists and is not overwritten"], "again");
    assert_eq!(fs::read_to_string(&path).unwrap(), pem);
    let nowhere = program().args(["keygen", "--out", "/nowhere/at/all.key"]).run();
    expect_all(&nowhere.expect_code(exit::CONNECTOR_FAILED.into()).stderr, &["cannot write /nowhere"], "nowhere");

    scene.connector_with("a", |connector| connector.secret("SECRET", "of the new key"));
    let with_key = scene.program().var("MANAGER__CREDENTIALS_KEY_FILEPATH", &path);
    let checked = with_key.clone().arg("check").run().expect_code(exit::OK.into());
    let fingerprint = outcome.stdout.split("fingerprint ").nth(1).unwrap().trim_end_matches([')', '\n']);
    expect_all(&checked.stdout, &["RSA 4096", fingerprint], "check");
    with_key.run().expect_code(exit::OK.into());
    assert_eq!(scene.containers()[0].env["SECRET"], "of the new key");
}

// Shows what README says under "Commands": "a completion script"; and under "Exit codes": "wrong arguments".
#[test]
fn arguments_are_explained_and_wrong_ones_refused() {
    let help = program().arg("--help").run().expect_code(exit::OK.into());
    let told = [
        "run",
        "plan",
        "check",
        "keygen",
        "completions",
        "--config",
        "--allow-prune",
        "--accept-new-key",
        "Exit codes",
        "Examples",
    ];
    expect_all(&help.stdout, &told, "--help");
    assert!(help.stderr.is_empty());
    let version = program().arg("--version").run().expect_code(exit::OK.into());
    expect_all(&version.stdout, &["xtm-reconcile", env!("CARGO_PKG_VERSION"), "rustc"], "--version");
    for (shell, word) in [("bash", "complete"), ("zsh", "#compdef"), ("fish", "complete -c xtm-reconcile")] {
        let script = program().args(["completions", shell]).run().expect_code(exit::OK.into());
        expect_all(&script.stdout, &[word, "detailed-exitcode"], shell);
    }
    for wrong in [
        &["--nonsense"][..],
        &["destroy"],
        &["run", "now"],
        &["run", "--detailed-exitcode"],
        &["keygen"],
        &["completions", "basic"],
        &["--output", "xml"],
        &["--config"],
    ] {
        let outcome = program().args(wrong).run().expect_code(exit::USAGE.into());
        assert!(outcome.stdout.is_empty() && outcome.stderr.contains("--help"), "{wrong:?}: {}", outcome.stderr);
    }
}

// Shows what README says under "Commands": "later files win".
#[test]
fn configuration_files_count_on_both_sides_of_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let first = file("first.yaml", "manager: {pass_deadline: nonsense-of-the-first, concurrency: nonsense}\n");
    let second = file("second.yaml", "manager: {pass_deadline: nonsense-of-the-second}\n");
    for arguments in
        [["--config", "FIRST", "check", "--config", "SECOND"], ["check", "--config", "FIRST", "--config", "SECOND"]]
    {
        let arguments = arguments.map(|argument| match argument {
            "FIRST" => first.clone().into_os_string(),
            "SECOND" => second.clone().into_os_string(),
            other => other.into(),
        });
        let outcome = program().args(arguments.clone()).run().expect_code(exit::CONFIG.into());
        let told = ["nonsense-of-the-second", "MANAGER__CONCURRENCY: \"nonsense\""];
        expect_all(&outcome.stdout, &told, &format!("{arguments:?}"));
    }
}

// Shows what README says under "xtm-reconcile": "Each run checks the registration with the platform"; and under
// "Commands": "The report goes to standard output; logs go to standard error, as JSON", "Its form is version 2".
#[test]
fn the_json_report_is_one_document_with_a_version_whatever_happens() {
    let scene = Scene::new("json");
    scene.connector("a");
    let run = |change: &dyn Fn(Binary) -> Binary, code: u8| {
        let outcome = change(scene.program().args(["run", "--output", "json"])).run().expect_code(code.into());
        // Parsing fails when there is anything before or after it.
        let report = outcome.json();
        assert_eq!(report["schema_version"], xtm_reconcile::report::SCHEMA_VERSION);
        assert_eq!(report["exit_code"], code);
        assert_eq!(report["manager"], &*scene.manager);
        let events = outcome.stderr.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
        assert!(events.filter(|event| event["pass"] == report["pass"]).count() >= 2, "log and report name one pass");
        outcome.lane()
    };
    let report = run(&|program| program, exit::OK);
    let stages: Vec<&str> = report["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    let expected = ["connect", "register", "pull", "observe", "plan", "prepare", "apply", "publish", "remember"];
    assert_eq!(stages, expected);
    run(&|program| program.var("OPENCTI__TOKEN", "wrong"), exit::PLATFORM);
    run(&|program| program.var("DOCKER_HOST", "tcp://127.0.0.1:1"), exit::ORCHESTRATOR);
    run(&|program| program.var("RUST_LOG", "this is [no filter"), exit::OK);
    for command in ["run", "plan", "check"] {
        let refused = scene.program().args([command, "--output", "json"]).without_var("OPENCTI__TOKEN").run();
        let document = refused.expect_code(exit::CONFIG.into()).json();
        assert_eq!((&document["command"], &document["exit_code"]), (&command.into(), &exit::CONFIG.into()));
        assert!(document["checks"][0]["detail"].as_str().unwrap().contains("OPENCTI__TOKEN"), "{document:#}");
    }
}

// Shows what README says under "Configuration": "`RUST_LOG` wins".
#[test]
fn the_usual_variable_for_logs_wins_over_the_level() {
    let scene = Scene::new("rust-log");
    let logged = |level: &str, filter: Option<&str>| {
        let program = scene.program().var("MANAGER__LOGGER__LEVEL", level);
        let program = filter.into_iter().fold(program, |program, filter| program.var("RUST_LOG", filter));
        program.run().expect_code(exit::OK.into()).stderr
    };
    assert_eq!(logged("error", None), "");
    assert!(logged("error", Some("info")).contains("INFO"));
    assert_eq!(logged("info", Some("error")), "");
}

/// A pipe whose reader is gone.
fn deaf() -> OwnedFd {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.as_fd().try_clone_to_owned().unwrap()
}

#[test]
fn a_reader_that_goes_away_changes_neither_the_pass_nor_its_exit_code() {
    let scene = Scene::new("deaf");
    scene.connector("a");
    let start = |arguments: &[&str], out: Stdio, err: Stdio, token: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtm-reconcile"));
        command.args(arguments).env_clear().stdin(Stdio::null()).stdout(out).stderr(err);
        for (name, value) in [
            ("MANAGER__ID", &*scene.manager),
            ("MANAGER__CREDENTIALS_KEY", &scene.key.pem),
            ("OPENCTI__URL", &scene.platform.url()),
            ("OPENCTI__TOKEN", token),
            ("OPENCTI__DAEMON__SELECTOR", "docker"),
            ("DOCKER_HOST", &scene.engine.docker_host()),
            ("RUST_LOG", "trace"),
        ] {
            command.env(name, value);
        }
        command.output().unwrap()
    };
    // `2>&1 | head -1`: the log's reader is gone before the first line.
    let outcome = start(&["run"], Stdio::piped(), deaf().into(), stand_in_platform::DEFAULT_TOKEN);
    let told = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert_eq!(outcome.status.code(), Some(exit::OK.into()), "{told}");
    expect_all(&told, &["1 deployed"], "the report is there");
    assert!(scene.containers()[0].running());

    for command in ["run", "plan", "check", "--help", "variables"] {
        let outcome = start(&[command], deaf().into(), Stdio::piped(), stand_in_platform::DEFAULT_TOKEN);
        let told = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(!told.contains("panicked"), "{command}: {told}");
        if command != "--help" {
            assert_eq!(outcome.status.code(), Some(exit::CONNECTOR_FAILED.into()), "{command}: {told}");
            assert!(told.contains("the report cannot be written"), "{command}: {told}");
        }
    }
    let outcome = start(&["run"], deaf().into(), deaf().into(), "wrong-token");
    assert_eq!(outcome.status.code(), Some(exit::PLATFORM.into()), "the graver of two codes");
}

/// Every secret that the program meets in this scene.
const SECRETS: [&str; 9] = [
    "token-hunter2-aaaa-bbbb-cccc",
    "registry-hunter2-password",
    "proxyuser-hunter2",
    "proxypass-hunter2",
    "sealed-hunter2-value",
    "clear-hunter2-token",
    "setting-hunter2-value",
    "platform-hunter2-answer",
    "http-proxy-hunter2",
];

#[track_caller]
fn expect_silence(scene: &Scene, what: &str, outcome: &Outcome) {
    let key: Vec<&str> = scene.key.pem.lines().filter(|line| line.len() > 40).collect();
    let envelopes = scene.platform.read(|state| {
        let sealed = state.connectors.iter().flat_map(|connector| connector.envelopes.values());
        sealed.map(|sealed| sealed.envelope.clone()).filter(|envelope| !envelope.is_empty()).collect::<Vec<_>>()
    });
    for (stream, text) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
        assert!(!text.contains("panicked"), "{what}: {text}");
        for secret in SECRETS.into_iter().chain(key.iter().copied()).chain(envelopes.iter().map(String::as_str)) {
            assert!(!text.contains(secret), "{what} shows {secret} on {stream}:\n{text}");
        }
        assert!(!text.contains("hunter2-aaaa"), "{what}: at most the beginning of a token:\n{text}");
    }
}

// Shows what README says under "What a pass does": "logs, reports and errors never show one".
#[test]
fn no_output_ever_shows_a_secret_whatever_goes_wrong() {
    use exit::{CONFIG, CONNECTOR_FAILED, GUARD, OK, PLATFORM};
    let scene = Scene::new("secrets");
    scene.platform.edit(|state| {
        state.users[0].token = SECRETS[0].to_owned();
        state.opencti_token = TokenMode::Encrypted;
    });
    let registry = Registry::with_login();
    scene.connector_with("sealed", |connector| {
        connector.secret("SEALED", SECRETS[4]).setting("OPENCTI_TOKEN", SECRETS[5]).setting("SETTING", SECRETS[6])
    });
    let program = |command: &str, output: &str| {
        scene
            .program()
            .args([command, "--output", output])
            .var("RUST_LOG", "trace")
            .var("OPENCTI__TOKEN", SECRETS[0])
            .without_var("MANAGER__CREDENTIALS_KEY_FILEPATH")
            .var("MANAGER__CREDENTIALS_KEY", &scene.key.pem)
            .var("OPENCTI__DAEMON__REGISTRY__SERVER", &registry.address)
            .var("OPENCTI__DAEMON__REGISTRY__USERNAME", "reader")
            .var("OPENCTI__DAEMON__REGISTRY__PASSWORD", SECRETS[1])
    };
    let all = |what: &str, change: &dyn Fn(Binary) -> Binary, codes: [u8; 3]| {
        for (command, code) in ["plan", "check", "run"].into_iter().zip(codes) {
            for output in ["json", "table"] {
                let outcome = change(program(command, output)).run();
                expect_silence(&scene, &format!("{what}: {command} {output}"), &outcome);
                outcome.expect_code(code.into());
            }
        }
    };
    // The registry refuses its password; the image has no registry of its own, so the configured one is asked.
    all("refused login", &|program| program, [OK, OK, CONNECTOR_FAILED]);
    let fine = |program: Binary| program.without_var("OPENCTI__DAEMON__REGISTRY__SERVER");
    all("all is well", &fine, [OK, OK, OK]);
    let deployed = scene.containers().remove(0);
    assert_eq!(deployed.env["SEALED"], SECRETS[4]);

    let proxy = format!("http://{}:{}@127.0.0.1:1", SECRETS[2], SECRETS[3]);
    let proxied = |program: Binary| {
        fine(program).var("OPENCTI__WITH_PROXY", "true").var("OPENCTI__HTTP_PROXY", &proxy).var("HTTPS_PROXY", &proxy)
    };
    all("no proxy there", &proxied, [PLATFORM; 3]);
    let bad_proxy = format!("gopher://{}:{}@127.0.0.1:1", SECRETS[2], SECRETS[3]);
    let misproxied = |program: Binary| proxied(program).var("OPENCTI__HTTP_PROXY", &bad_proxy);
    all("no such proxy", &misproxied, [CONFIG; 3]);
    let in_url = format!("http://user:{}@127.0.0.1:1/", SECRETS[8]);
    all("a password in the URL", &|program| fine(program).var("OPENCTI__URL", &in_url), [CONFIG; 3]);
    let wrong = |program: Binary| fine(program).var("OPENCTI__TOKEN", format!("x{}", SECRETS[0]));
    all("a wrong token", &wrong, [PLATFORM; 3]);
    let cut = scene.key.pem.replace("-----END", "-----");
    let broken_key = |program: Binary| fine(program).var("MANAGER__CREDENTIALS_KEY", &cut);
    all("a broken key", &broken_key, [CONFIG; 3]);

    let list = "connectorsForManagers";
    let body = |text: String| FaultKind::Status { code: 200, retry_after: None, body: Some(text) };
    for (what, kind) in [
        ("half the list", FaultKind::BrokenJson),
        ("a list cut off", FaultKind::Truncate),
        ("a secret instead of JSON", body(format!("{{\"data\": \"{}", SECRETS[7]))),
        (
            "a secret of the wrong type",
            body(format!("{{\"data\": {{\"connectorsForManagers\": \"{}\"}}}}", SECRETS[7])),
        ),
        ("a secret as an error", body(format!("{{\"errors\": [\"{}\"]}}", SECRETS[7]))),
    ] {
        scene.platform.fault(Fault::on(list, kind));
        all(what, &fine, [PLATFORM; 3]);
        scene.platform.clear_faults();
    }
    // Odd values in a connector of the list.
    for raw in [
        serde_json::json!({"manager_contract_configuration": SECRETS[7]}),
        serde_json::json!({"manager_contract_configuration": [{"key": "K", "value": {"x": SECRETS[7]}}]}),
        serde_json::json!({"manager_contract_configuration": [{"key": "K", "value": SECRETS[7], "encrypted": SECRETS[7]}]}),
    ] {
        scene.platform.edit(|state| state.connectors[0].raw_override = Some(raw.clone()));
        all("an odd connector", &fine, [CONNECTOR_FAILED; 3]);
    }
    scene.platform.edit(|state| state.connectors[0].raw_override = Some(serde_json::json!(SECRETS[7])));
    all("no connector at all", &fine, [GUARD, CONNECTOR_FAILED, GUARD]);
    scene.platform.edit(|state| state.connectors[0].raw_override = None);
    // A value in clear that claims to be sealed, and one that no environment can hold.
    for (value, encrypted) in [(SECRETS[6].to_owned(), true), (format!("{}\0", SECRETS[6]), false)] {
        scene.platform.edit(|state| {
            state.connectors[0].configuration.retain(|setting| setting.key != "ODD");
            let odd = Setting { key: "ODD".to_owned(), value: Some(value.clone()), encrypted: Some(encrypted) };
            state.connectors[0].configuration.push(odd);
        });
        all("an odd value", &fine, [CONNECTOR_FAILED; 3]);
    }
    assert_eq!(scene.containers().remove(0).id, deployed.id);
}
