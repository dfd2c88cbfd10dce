//! A search for every token ever made, through everything that a pass leaves or prints.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use stand_in_platform::{Fault, FaultKind};
use xtm_reconcile::exit;

use super::{ADD, REGISTER, scene};
use crate::moves::set;
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

// Shows what README says under "What an attacker gains": "The process makes no core dump, and other processes of its user
// may not look into it".
#[test]
fn the_process_cannot_be_dumped() {
    let scene = scene("undumpable");
    scene.platform.fault(Fault::on(REGISTER, FaultKind::Delay { ms: 600_000 }));
    let running = scene.reporting().spawn();
    let waiting =
        |_: &_, calls: &[stand_in_platform::Call]| calls.iter().any(|call| call.is("updateConnectorManagerStatus"));
    assert!(scene.platform.wait_for(crate::moves::SOON, waiting));
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    running.signal(crate::support::Signal::KILL);
    running.wait();

    // As somebody who is not root, for whom an engine is played that takes the connection and says nothing.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("xtm-reconcile");
    fs::copy(env!("CARGO_BIN_EXE_xtm-reconcile"), &program).unwrap();
    for path in [folder.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let before = scene.platform.journal().len();
    let as_nobody = Binary::new("/usr/bin/setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let running = as_nobody
        .clone()
        .arg(&program)
        .var("MANAGER__ID", &*scene.manager)
        .var("MANAGER__CREDENTIALS_KEY", &scene.key.pem)
        .var("OPENCTI__URL", scene.platform.url())
        .var("OPENCTI__TOKEN", stand_in_platform::DEFAULT_TOKEN)
        .var("OPENCTI__DAEMON__SELECTOR", "docker")
        .var("DOCKER_HOST", format!("tcp://{}", engine.local_addr().unwrap()))
        .var("MANAGER__PASS_DEADLINE", "30")
        .spawn();
    assert!(scene.platform.wait_for(crate::moves::SOON, |_, calls| calls.len() > before), "it is at work");
    let process = format!("/proc/{}", running.pid());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    assert!(status.contains("\nUid:\t65534\t65534\t65534\t65534\n"), "{status}");
    for file in ["environ", "mem", "maps"] {
        let look = as_nobody.clone().args(["head", "-c1", &format!("{process}/{file}")]).run();
        assert!(look.code != Some(0) && look.stderr.contains("Permission denied"), "{file}: {}", look.stderr);
    }
    // Any other process of the same user may be looked into.
    let script = "sleep 60 & head -c1 /proc/$!/environ; seen=$?; kill $!; exit $seen";
    as_nobody.args(["sh", "-c", script]).var("PATH", "/usr/bin:/bin").run().expect_code(0);
    running.signal(crate::support::Signal::KILL);
    running.wait();
}
