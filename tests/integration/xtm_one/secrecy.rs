//! A search for every token ever made, through everything that a pass leaves or prints.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use stand_in_platform::{Fault, FaultKind};
use xtm_reconcile::exit;

use super::{ADD, REGISTER, scene};
use crate::moves::{SOON, set};
use crate::support::{Binary, Outcome};

const ADMIN_KEY: &str = "an-administrators-key-4711";
const CHAT_TOKEN: &str = "chat-token-0815-0815";

// Shows what README says under "What a pass does": "logs, reports and errors never show one"; and under "What an
// attacker gains": "and fingerprints; no key".
#[test]
fn no_token_or_key_is_in_any_output_container_record_or_file() {
    let scene = scene("secrecy");
    scene.connector("a");
    scene.people(3);
    let folder = tempfile::tempdir().unwrap();
    scene.platform.edit(|state| {
        state.xtm_one.chat_web_token = Some(CHAT_TOKEN.to_owned());
        state.xtm_one.send_chat_web_token = true;
    });
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let settings = [
        ("XTM__ADMIN_API_KEY", ADMIN_KEY),
        ("XTM__LICENSE_PEM", crate::moves::proxy_ca()),
        ("RUST_LOG", "trace"),
        ("TMPDIR", temporary.to_str().unwrap()),
        ("XTM__REQUEST_TIMEOUT", "2"),
    ];
    let mut said = String::new();
    let mut run = |arguments: &[&str]| {
        let Outcome { stdout, stderr, code, .. } = set(scene.registering(), &settings).args(arguments).run();
        assert!(matches!(code, Some(0 | 1)), "{arguments:?}: {code:?}\n{stderr}");
        said.push_str(&stdout);
        said.push_str(&stderr);
    };
    // XTM One's refusal quotes what it was sent, as validation errors do.
    let quote =
        scene.platform.read(|_| format!("bad token {} and key {ADMIN_KEY}", stand_in_platform::XTM_ONE_DEFAULT_TOKEN));
    let quoting = FaultKind::Status {
        code: 422,
        retry_after: None,
        body: Some(serde_json::json!({ "detail": quote }).to_string()),
    };
    scene.platform.fault(Fault::on(REGISTER, quoting).times(1));
    run(&["run", "--output", "json"]);
    run(&["xtm-one", "rotate", "--output", "json"]);
    run(&["run"]);
    scene.platform.fault(Fault::on(ADD, FaultKind::DropAnswer).times(1));
    scene.people(2);
    run(&["xtm-one", "status"]);
    run(&["plan"]);
    run(&["check"]);
    set(scene.reporting(), &[("XTM__XTM_ONE_URL", &scene.platform.xtm_one_url().replace("127.0.0.1", "localhost"))])
        .run()
        .expect_code(exit::OK.into());
    run(&["xtm-one", "revoke", "--all"]);
    run(&["run", "--output", "json"]);
    let containers = scene.engine.call("GET", "/containers/json?all=1").json();
    let ids = containers.as_array().unwrap().iter().map(|container| container["Id"].as_str().unwrap().to_owned());
    let left = ids.map(|id| scene.engine.call("GET", &format!("/containers/{id}/json")).json().to_string());
    let left = left.collect::<Vec<_>>().join("\n");
    let files: Vec<_> = fs::read_dir(&temporary).unwrap().collect();
    assert!(files.is_empty(), "{files:?}");

    let mut secrets = scene.platform.read(|state| state.tokens_ever.clone());
    assert!(secrets.len() > 8, "tokens were made: {}", secrets.len());
    secrets.extend([ADMIN_KEY, CHAT_TOKEN, stand_in_platform::XTM_ONE_DEFAULT_TOKEN].map(str::to_owned));
    secrets.push(crate::moves::proxy_ca().lines().nth(3).unwrap().to_owned());
    for secret in &secrets {
        assert!(!said.contains(secret.as_str()), "{secret} was printed");
        assert!(!left.contains(secret.as_str()), "{secret} is on the engine");
        // Not a long part of it either.
        let part = &secret[secret.len() / 2..];
        assert!(!said.contains(part) && !left.contains(part), "{part}");
    }
    assert!(said.contains("[masked]"), "XTM One's words are shown, without what they quote");
}

// Shows what README says under "What an attacker gains": "The process makes no core dump, and other processes of its
// user may not look into it".
#[test]
fn the_process_cannot_be_dumped_and_not_be_read_by_its_own_user() {
    let scene = scene("undumpable");
    let folder = tempfile::tempdir().unwrap();
    // The program where another user can run it.
    let program = folder.path().join("xtm-reconcile");
    fs::copy(env!("CARGO_BIN_EXE_xtm-reconcile"), &program).unwrap();
    for path in [folder.path(), program.as_path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // An engine that takes the connection and says nothing, so that the pass waits for it.
    let socket = folder.path().join("docker.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    let as_nobody = |command: &[&str]| {
        Binary::new("/usr/bin/setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(command)
    };
    let running = as_nobody(&[program.to_str().unwrap(), "run"])
        .var("MANAGER__ID", &*scene.manager)
        .var("MANAGER__CREDENTIALS_KEY", &scene.key.pem)
        .var("OPENCTI__URL", scene.platform.url())
        .var("OPENCTI__TOKEN", stand_in_platform::DEFAULT_TOKEN)
        .var("OPENCTI__DAEMON__SELECTOR", "docker")
        .var("DOCKER_HOST", format!("unix://{}", socket.display()))
        .spawn();
    let _connection = scene.engine.wait_for("the pass to ask the engine", SOON, |_| listener.accept().ok());
    // Another process of that user, which may be looked into, shows that it is not the user who may not.
    let other = as_nobody(&["/usr/bin/tail", "-f", "/dev/null"]).spawn();
    scene.engine.wait_for("the other process", SOON, |_| {
        let name = fs::read_to_string(format!("/proc/{}/comm", other.pid())).ok()?;
        (name.trim() == "tail").then_some(())
    });
    for (pid, is_open) in [(other.pid(), true), (running.pid(), false)] {
        for file in ["environ", "maps"] {
            let path = format!("/proc/{pid}/{file}");
            let opened = as_nobody(&["/usr/bin/dd", "status=none", "count=0", &format!("if={path}")]).run();
            assert_eq!(opened.code == Some(0), is_open, "{path}: {}", opened.stderr);
            let user = fs::metadata(&path).unwrap().uid();
            assert_eq!(user == 65534, is_open, "{path} belongs to {user}");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    running.signal(crate::support::Signal::KILL);
    running.wait();
}
