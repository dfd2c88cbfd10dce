//! The engine: how it is reached, what containers get of it, and what happens when it goes away.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use xtm_reconcile::exit;

use crate::moves::{SOON, complaints, file_in, proxy_ca, set, with_proxy_ca};
use crate::scene::Scene;
use crate::support::{ApiTap, Binary, Engine};

// Shows what README says under "Configuration": "Memory limit of each connector".
#[test]
fn every_setting_of_containers_reaches_them() {
    let scene = Scene::new("settings");
    scene.connector("a");
    let settings = [
        ("RESTART_POLICY", "on-failure:3"),
        ("MEMORY_LIMIT", "64m"),
        ("CPU_LIMIT", "0.5"),
        ("NETWORK_MODE", "none"),
        ("EXTRA_HOSTS", "one:10.0.0.1,two:10.0.0.2"),
        ("DNS", r#"["10.0.0.3"]"#),
        ("DNS_SEARCH", "example.org, example.net"),
        ("PRIVILEGED", "true"),
        ("CAP_ADD", "NET_ADMIN,SYS_TIME"),
        ("CAP_DROP", "MKNOD"),
        ("SECURITY_OPT", "no-new-privileges"),
        ("USERNS_MODE", "host"),
        ("PID_MODE", "host"),
        ("IPC_MODE", "private"),
        ("UTS_MODE", "host"),
        ("RUNTIME", "runc"),
        ("SHM_SIZE", "32m"),
        ("SYSCTLS", "net.ipv4.ip_unprivileged_port_start=0"),
        ("ULIMITS", "nofile=1024:2048,nproc=512"),
    ]
    .map(|(name, value)| (format!("OPENCTI__DAEMON__DOCKER__{name}"), value));
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    // Created through the tap and looked at: whether a sandboxed kernel lets it start is another matter.
    let tap = ApiTap::new(scene.engine);
    let gate = tap.hold("POST /containers/*/start", 1);
    let pass = set(scene.tapped(&tap), &settings).spawn();
    gate.wait(SOON);
    let host = scene.only().json["HostConfig"].clone();
    drop(gate);
    pass.wait();
    let expected = [
        ("RestartPolicy", json!({"Name": "on-failure", "MaximumRetryCount": 3})),
        ("Memory", json!(64 << 20)),
        ("NanoCpus", json!(500_000_000)),
        ("NetworkMode", json!("none")),
        ("ExtraHosts", json!(["one:10.0.0.1", "two:10.0.0.2"])),
        ("Dns", json!(["10.0.0.3"])),
        ("DnsSearch", json!(["example.org", "example.net"])),
        ("Privileged", json!(true)),
        ("CapAdd", json!(["CAP_NET_ADMIN", "CAP_SYS_TIME"])),
        ("CapDrop", json!(["CAP_MKNOD"])),
        ("SecurityOpt", json!(["no-new-privileges", "label=disable"])),
        ("UsernsMode", json!("host")),
        ("PidMode", json!("host")),
        ("IpcMode", json!("private")),
        ("UTSMode", json!("host")),
        ("Runtime", json!("runc")),
        ("ShmSize", json!(32 << 20)),
        ("Sysctls", json!({"net.ipv4.ip_unprivileged_port_start": "0"})),
        (
            "Ulimits",
            json!([{"Name": "nofile", "Soft": 1024, "Hard": 2048}, {"Name": "nproc", "Soft": 512, "Hard": 512}]),
        ),
    ];
    for (name, value) in expected {
        // The engine adds to some lists, and writes capabilities in two ways.
        let holds = match (&host[name], &value) {
            (Value::Array(found), Value::Array(wanted)) if name.starts_with("Cap") => wanted.iter().all(|cap| {
                let cap = cap.as_str().unwrap().trim_start_matches("CAP_");
                found.iter().any(|found| found.as_str().unwrap().trim_start_matches("CAP_") == cap)
            }),
            (Value::Array(found), Value::Array(wanted)) if name == "SecurityOpt" => found.contains(&wanted[0]),
            (found, wanted) => found == wanted,
        };
        assert!(holds, "{name}: {} instead of {value}", host[name]);
    }
}

// Shows what README says under "What a pass does": "All other settings of containers reach the existing ones at their
// next refresh only.".
#[test]
fn the_proxys_ca_is_in_every_container_that_is_made_and_variables_point_to_it() {
    let scene = Scene::new("ca");
    scene.connector("a");
    let proxy = [
        ("OPENCTI__HTTPS_PROXY", "http://proxy.example.org:3128"),
        ("OPENCTI__NO_PROXY", "127.0.0.1"),
        ("OPENCTI__HTTPS_PROXY_REJECT_UNAUTHORIZED", "false"),
    ];
    let settings = [&with_proxy_ca()[..], &proxy].concat();
    for image in ["xtm-fixture/connector:1", "xtm-fixture/connector:2"] {
        scene.edit("id-a", |connector| image.clone_into(&mut connector.image));
        set(scene.program().arg("run"), &settings).run().expect_code(exit::OK.into());
        let container = scene.only();
        assert!(container.running() && container.image == image);
        let path = "/etc/ssl/certs/xtm-proxy-ca.crt";
        assert_eq!(file_in(&scene, &container.id, path).as_deref().map(str::trim), Some(proxy_ca().trim()));
        for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE"] {
            assert_eq!(container.env[name], path);
        }
        assert_eq!(container.env["HTTPS_PROXY"], proxy[0].1);
        assert_eq!(container.env["NO_PROXY"], proxy[1].1);
        assert_eq!(container.env["NODE_TLS_REJECT_UNAUTHORIZED"], "0");
        scene.pass_is_quiet_with(&settings);
    }
    // Not asked for any more, but what runs is not made anew for it.
    scene.pass_is_quiet();
}

/// One run that cannot use the engine; what it says.
#[track_caller]
fn refused(program: &Binary, code: u8) -> String {
    let outcome = program.run().expect_code(code.into());
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    outcome.stdout + &outcome.stderr
}

// Shows what README says under "Exit codes": "the engine or the cluster could not be used".
#[test]
fn an_engine_that_cannot_be_used_is_told_with_what_to_do() {
    let scene = Scene::new("unusable");
    scene.connector("a");
    let on = |host: &str| scene.program_on(host).args(["run", "--output", "json"]);
    let directory = tempfile::tempdir().expect("a directory");

    let missing = format!("unix://{}", directory.path().join("none.sock").display());
    let said = refused(&on(&missing), exit::ORCHESTRATOR);
    assert!(said.contains(&missing) && said.contains("DOCKER_HOST") && said.contains("Socket not found"), "{said}");

    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let said = refused(&on(&format!("tcp://{free}")), exit::ORCHESTRATOR);
    assert!(said.contains(&free.to_string()) && said.contains("refused"), "{said}");

    let said = refused(&on("ssh://root@example.org"), exit::CONFIG);
    assert!(said.contains("DOCKER_HOST") && said.contains("ssh -L"), "{said}");

    // A file that is no socket, and what answers without being an engine.
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let said = refused(&on(&format!("unix://{}", file.display())), exit::ORCHESTRATOR);
    assert!(said.contains("cannot be reached"), "{said}");
    let said = refused(&on(&scene.platform.origin().replace("http://", "tcp://")), exit::ORCHESTRATOR);
    assert!(said.contains("DOCKER_HOST"), "{said}");
    assert!(
        scene.platform.journal().iter().all(|call| call.kind != stand_in_platform::Kind::Mutation),
        "nothing was begun"
    );
}

#[test]
fn a_socket_without_permission_is_told_as_that() {
    let scene = Scene::new("permission");
    let directory = tempfile::tempdir().expect("a directory");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open.clone()).expect("a directory for everybody");
    // The program where another user can run it, and a socket where that user cannot connect.
    let program = directory.path().join("xtm-reconcile");
    std::fs::copy(env!("CARGO_BIN_EXE_xtm-reconcile"), &program).expect("a copy");
    std::fs::set_permissions(&program, open).expect("a program for everybody");
    let socket = directory.path().join("docker.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).expect("a socket of ours");
    let as_nobody = Binary::new("/usr/bin/setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["run", "--output", "json"])
        .var("MANAGER__ID", &*scene.manager)
        .var("MANAGER__CREDENTIALS_KEY", &scene.key.pem)
        .var("OPENCTI__URL", scene.platform.url())
        .var("OPENCTI__TOKEN", stand_in_platform::DEFAULT_TOKEN)
        .var("OPENCTI__DAEMON__SELECTOR", "docker")
        .var("DOCKER_HOST", format!("unix://{}", socket.display()));
    let said = refused(&as_nobody, exit::ORCHESTRATOR);
    assert!(said.contains("Permission denied") && said.contains("may use its socket"), "{said}");
}

fn openssl(directory: &Path, arguments: &str) {
    let made = Command::new("openssl")
        .current_dir(directory)
        .args(arguments.split_whitespace())
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

/// A CA with a certificate for the loopback and one for a client, named as docker names them.
fn certificates(directory: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let ca_extensions = "-addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign";
    std::fs::write(
        directory.join("server.ext"),
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n",
    )
    .unwrap();
    std::fs::write(directory.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    openssl(
        directory,
        &format!("req -x509 {key} -days 2 -subj /CN=test-ca -keyout ca-key.pem -out ca.pem {ca_extensions}"),
    );
    for (name, key_file, file) in [("server", "server-key.pem", "server-cert.pem"), ("client", "key.pem", "cert.pem")] {
        openssl(directory, &format!("req -new {key} -subj /CN={name} -keyout {key_file} -out {name}.csr"));
        openssl(
            directory,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile {name}.ext -out {file}"
            ),
        );
    }
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

// Shows what README says under "Configuration": "the CAs of the machine do not count".
#[test]
fn an_engine_is_reached_over_tcp_with_and_without_tls() {
    let (ours, theirs) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    certificates(ours.path());
    certificates(theirs.path());
    let file = |name: &str| ours.path().join(name).display().to_string();
    let (plain, secured) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let mut scene = Scene::new("tcp");
    let name = scene.connector("a");

    let tls = [
        "--tlsverify".to_owned(),
        format!("--tlscacert={}", file("ca.pem")),
        format!("--tlscert={}", file("server-cert.pem")),
        format!("--tlskey={}", file("server-key.pem")),
        format!("--host=tcp://{secured}"),
    ];
    let engine = Engine::private_with(&tls);
    let program = |certificates: &Path| {
        let program = scene.program_on(&format!("tcp://{secured}")).args(["run", "--output", "json"]);
        program.var("DOCKER_TLS_VERIFY", "1").var("DOCKER_CERT_PATH", certificates)
    };
    let report = program(ours.path()).run().expect_code(exit::OK.into()).lane();
    assert!(report["orchestrator"]["place"].as_str().unwrap().contains("with TLS"), "{report:#}");
    assert!(engine.container(&name).is_some_and(|container| container.running()));

    // A CA that did not make the engine's certificate, though the machine trusts the one that did; a client whom the engine does not know; no TLS at all; no files.
    let our_client = tempfile::tempdir().expect("a directory");
    for (from, name) in [(&theirs, "ca.pem"), (&ours, "cert.pem"), (&ours, "key.pem")] {
        std::fs::copy(from.path().join(name), our_client.path().join(name)).unwrap();
    }
    let machine_trusts_it = program(our_client.path()).var("SSL_CERT_FILE", file("ca.pem"));
    let said = refused(&machine_trusts_it, exit::ORCHESTRATOR);
    assert!(said.contains(&secured) && said.contains("invalid peer certificate") && said.contains("ca.pem"), "{said}");
    std::fs::copy(ours.path().join("ca.pem"), theirs.path().join("ca.pem")).unwrap();
    let said = refused(&program(theirs.path()), exit::ORCHESTRATOR);
    assert!(said.contains(&secured), "{said}");
    for (name, told) in [("ca.pem", "no certificate that can be used"), ("cert.pem", "cert.pem cannot be used")] {
        let broken = tempfile::tempdir().expect("a directory");
        for other in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::copy(ours.path().join(other), broken.path().join(other)).unwrap();
        }
        // A key instead of a CA; a certificate to which the key does not belong.
        let wrong = if name == "ca.pem" { file("key.pem") } else { file("server-cert.pem") };
        std::fs::copy(wrong, broken.path().join(name)).unwrap();
        let said = refused(&program(broken.path()), exit::ORCHESTRATOR);
        assert!(said.contains(told) && said.contains("matching pair"), "{said}");
    }
    let without = scene.program_on(&format!("tcp://{secured}")).args(["run", "--output", "json"]);
    let said = refused(&without, exit::ORCHESTRATOR);
    assert!(said.contains(&secured) && said.contains("DOCKER_TLS_VERIFY"), "{said}");
    let said = refused(&program(&ours.path().join("none")), exit::CONFIG);
    assert!(said.contains("DOCKER_CERT_PATH") && said.contains("ca.pem"), "{said}");
    drop(engine);

    scene.platform = stand_in_platform::StandIn::start(stand_in_platform::State::default()).unwrap();
    let name = scene.connector("b");
    let engine = Engine::private_with(&["--tls=false".to_owned(), format!("--host=tcp://{plain}")]);
    for scheme in ["tcp", "http"] {
        scene.program_on(&format!("{scheme}://{plain}")).arg("run").run().expect_code(exit::OK.into());
    }
    assert!(engine.container(&name).is_some_and(|container| container.running()));
}

#[test]
fn an_engine_that_dies_during_a_pass_is_told_and_the_pass_after_its_return_converges() {
    let engine = Engine::private();
    // The record's listing, the list of all, a step, and the record.
    let points =
        ["GET /containers/json", "POST /containers/*/stop", "POST /containers/*/start", "DELETE /containers/*"];
    for point in points {
        let scene = Scene::new("dies");
        let name = scene.connector("a");
        let run = |host: &str| scene.program_on(host).args(["run", "--output", "json"]).run();
        run(&engine.docker_host()).expect_code(exit::OK.into());
        scene.edit("id-a", |connector| "xtm-fixture/connector:2".clone_into(&mut connector.image));
        let tap = ApiTap::new(&engine);
        let gate = tap.hold(point, 1);
        let pass = scene.tapped(&tap).spawn();
        gate.wait(SOON);
        engine.kill_daemon();
        gate.release();
        let outcome = pass.wait();
        let code = outcome.code.unwrap_or(-1);
        let known = [exit::ORCHESTRATOR, exit::CONNECTOR_FAILED].map(i32::from);
        assert!(known.contains(&code), "{point}: {code}\n{}\n{}", outcome.stdout, outcome.stderr);
        assert!(!complaints(&outcome.lane()).is_empty(), "{point}");

        engine.start_daemon();
        // The lock is still there, of a process that is gone.
        run(&engine.docker_host()).expect_code(exit::OK.into());
        let mut all = engine.containers_of(&scene.manager);
        all.retain(|container| container.label("opencti-manager") == &*scene.manager);
        let found: Vec<_> = all.iter().map(|c| (c.name.as_str(), c.image.as_str(), c.running())).collect();
        assert_eq!(found, [(name.as_str(), "xtm-fixture/connector:2", true)], "{point}");
        assert_eq!(engine.containers_labelled("xtm-reconcile.lock").len(), 0, "{point}");
        engine.containers_of(&scene.manager).iter().for_each(|container| engine.remove(&container.id));
    }
}
