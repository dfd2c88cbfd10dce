//! The way to the platform: TLS with a private CA in front of it, and proxies, for the manager and for its connectors.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use xtm_reconcile::exit;

use crate::scene::Scene;
use crate::support::{Binary, Running};
use crate::watch::{expect_all, faults};

const SOON: Duration = Duration::from_secs(30);

/// A private CA, and a certificate of it for the loopback.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let openssl = |arguments: &str| {
            let mut command = Command::new("openssl");
            command.args(arguments.split(' ')).current_dir(folder.path());
            Running::start(&mut command, SOON).wait().expect_code(0);
        };
        fs::write(folder.path().join("leaf.ext"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=private-ca -days 2"));
        openssl(&format!("req {key} -keyout leaf.key -out leaf.csr -subj /CN=opencti"));
        openssl(
            "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem",
        );
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn ca(&self) -> String {
        self.path("ca.pem").display().to_string()
    }
}

/// A real nginx with TLS in front of a platform. It listens on a socket of its own folder, so that no port is fought for.
struct Front {
    _nginx: Running,
    address: SocketAddr,
}

impl Front {
    fn new(certificates: &Certificates, platform: SocketAddr) -> Self {
        let folder = certificates.0.path().display().to_string();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
            .concat();
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log stderr notice;\nevents {{}}\nhttp {{\n\
             access_log off;\n{temporary}server {{\nlisten unix:{folder}/tls.sock ssl;\n\
             ssl_certificate {folder}/leaf.pem;\nssl_certificate_key {folder}/leaf.key;\n\
             location / {{ proxy_pass http://{platform}; }}\n}}\n}}\n"
        );
        fs::write(certificates.path("nginx.conf"), configuration).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(&folder).args(["-e", "stderr", "-c", "nginx.conf"]);
        let nginx = Running::start(&mut command, Duration::from_mins(10));
        // It says which kernel it runs on once its sockets listen.
        nginx.wait_for_stderr("OS: ", SOON);
        let socket = certificates.path("tls.sock");
        let address = listen(move |client| {
            if let Ok(nginx) = UnixStream::connect(&socket) {
                both_ways(
                    (client.try_clone().unwrap(), client),
                    (nginx.try_clone().unwrap(), nginx),
                    |client| drop(client.shutdown(Shutdown::Write)),
                    |nginx| drop(nginx.shutdown(Shutdown::Write)),
                );
            }
        });
        Self { _nginx: nginx, address }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

/// Serves every connection on a thread of its own, on a free port, for as long as the tests run.
fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(client));
        }
    });
    address
}

/// Copies both directions until both are closed.
fn both_ways<A: io::Read + io::Write + Send, B: io::Read + io::Write + Send>(
    (mut from_a, mut to_a): (A, A),
    (mut from_b, mut to_b): (B, B),
    close_a: impl FnOnce(&A) + Send,
    close_b: impl FnOnce(&B) + Send,
) {
    thread::scope(|scope| {
        scope.spawn(move || {
            drop(io::copy(&mut from_a, &mut to_b));
            close_b(&to_b);
        });
        drop(io::copy(&mut from_b, &mut to_a));
        close_a(&to_a);
    });
}

/// A forward proxy that notes whom it is asked for, and may want a login.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn new(login: Option<&'static str>) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let address = listen(move |client| drop(serve_proxy(client, login, &noted)));
        Self { address, asked }
    }

    /// `METHOD TARGET` of every request so far, and forgets them.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn serve_proxy(mut client: TcpStream, login: Option<&str>, noted: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let request = head.first().cloned().unwrap_or_default();
    let words: Vec<&str> = request.split(' ').take(2).collect();
    noted.lock().unwrap_or_else(PoisonError::into_inner).push(words.join(" "));
    if let Some(login) = login {
        let wanted = format!("basic {}", STANDARD.encode(login));
        let given = head
            .iter()
            .find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case("proxy-authorization")));
        if given.is_none_or(|(_, value)| !value.eq_ignore_ascii_case(&wanted)) {
            return client.write_all(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    }
    let ["CONNECT", target] = words[..] else {
        return client.write_all(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let server = TcpStream::connect(target)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    // What the reader has taken off the wire already belongs to the server.
    (&server).write_all(reader.buffer())?;
    both_ways(
        (client.try_clone()?, client),
        (server.try_clone()?, server),
        |client| drop(client.shutdown(Shutdown::Write)),
        |server| drop(server.shutdown(Shutdown::Write)),
    );
    Ok(())
}

#[track_caller]
fn refused(what: &str, program: Binary, told: &[&str]) {
    let outcome = program.args(["run", "--output", "json"]).run().expect_code(exit::PLATFORM.into());
    expect_all(&faults(&outcome.lane()), told, what);
    assert!(!outcome.stdout.contains("hunter2") && !outcome.stderr.contains("hunter2"), "{what}: {}", outcome.stderr);
}

// Shows what README says under "Configuration": "`true` accepts any certificate of the platform.", "Private CA of the
// platform: paths or PEM texts".
#[test]
fn a_platform_with_a_private_certificate_is_trusted_when_told_to_and_only_then() {
    let scene = Scene::new("tls");
    scene.connector("a");
    let certificates = Certificates::new();
    let front = Front::new(&certificates, scene.platform.address());
    let program = || scene.program().var("OPENCTI__URL", front.url());

    refused("no CA", program(), &["TLS with https://127.0.0.1", "UnknownIssuer", "set OPENCTI__CA to the CA"]);
    let other = Certificates::new();
    refused("another CA", program().var("OPENCTI__CA", other.ca()), &["TLS with", "OPENCTI__CA"]);
    let leaf_for_name = front.url().replace("127.0.0.1", "localhost");
    let other_name = program().var("OPENCTI__URL", leaf_for_name).var("OPENCTI__CA", certificates.ca());
    refused("another name", other_name, &["TLS with https://localhost", "not valid for name"]);
    let plain = front.url().replace("https:", "http:");
    refused("no TLS", program().var("OPENCTI__URL", plain), &["HTTP 400", "HTTPS port"]);
    let to_plain = scene.platform.url().replace("http:", "https:");
    refused("TLS to a plain port", program().var("OPENCTI__URL", to_plain), &["TLS with"]);
    assert!(scene.containers().is_empty());

    let pem = fs::read_to_string(certificates.path("ca.pem")).unwrap();
    for ca in
        [certificates.ca(), pem.clone(), pem.replace('\n', "\\n"), format!("{},{}", other.ca(), certificates.ca())]
    {
        let outcome = program().var("OPENCTI__CA", ca).run().expect_code(exit::OK.into());
        assert!(!outcome.stdout.contains("127.0.0.1 cannot"), "{}", outcome.stdout);
    }
    let insecure = program().var("OPENCTI__UNSECURED_CERTIFICATE", "true");
    insecure.clone().run().expect_code(exit::OK.into());
    insecure.arg("check").run().expect_code(exit::OK.into());
    assert_eq!(scene.containers()[0].env["OPENCTI_URL"], front.url());
}

// Shows what README says under "Configuration": "`true` reaches the platform through the proxy below and gives it to
// the connectors.", "Hosts that are reached directly, comma-separated".
#[test]
fn with_proxy_the_platform_is_reached_through_it_and_connectors_are_given_it() {
    let scene = Scene::new("proxy");
    scene.connector("a");
    let proxy = Proxy::new(None);
    let url = format!("http://{}", proxy.address);
    let target = scene.platform.address().to_string();
    let pass = |program: Binary| {
        program.run().expect_code(exit::OK.into());
        proxy.asked()
    };
    let through = || scene.program().var("OPENCTI__WITH_PROXY", "true").var("OPENCTI__HTTP_PROXY", &url);

    // Off, no variable of the process counts.
    assert_eq!(pass(scene.program().var("HTTP_PROXY", &url).var("OPENCTI__HTTP_PROXY", &url)), [""; 0]);
    let plain = scene.containers().remove(0);
    assert!(!plain.env.contains_key("HTTP_PROXY"));
    scene.engine.remove(&plain.id);

    let asked = pass(through().var("OPENCTI__NO_PROXY", "internal.example.org"));
    assert!(!asked.is_empty() && asked.iter().all(|request| request.ends_with(&target)), "{asked:?}");
    let env = scene.containers().remove(0).env;
    assert_eq!((env["HTTP_PROXY"].as_str(), env["NO_PROXY"].as_str()), (url.as_str(), "internal.example.org"));
    // The process's own are the default.
    assert!(!pass(scene.program().var("OPENCTI__WITH_PROXY", "true").var("HTTP_PROXY", &url)).is_empty());
    for no_proxy in ["127.0.0.1", "example.org, 127.0.0.1", "*"] {
        assert_eq!(pass(through().var("NO_PROXY", no_proxy)), [""; 0], "{no_proxy}");
    }
    for no_proxy in ["27.0.0.1", "127.0.0.10"] {
        assert!(!pass(through().var("NO_PROXY", no_proxy)).is_empty(), "{no_proxy}");
    }

    let guarded = Proxy::new(Some("user:p@ss:hunter2"));
    let with_login = |login: &str| through().var("OPENCTI__HTTP_PROXY", format!("http://{login}@{}", guarded.address));
    with_login("user:p%40ss%3Ahunter2").run().expect_code(exit::OK.into());
    assert!(!guarded.asked().is_empty());
    let before = guarded.asked().len();
    refused("a wrong login", with_login("user:hunter2-wrong"), &["proxy does not connect", "407", "right login"]);
    assert_eq!(guarded.asked().len(), before + 1, "a wrong login is not tried again and again");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = through().var("OPENCTI__HTTP_PROXY", format!("http://user:hunter2@{gone}"));
    refused("no proxy there", nobody, &["cannot be reached", "proxy settings"]);
}

// Shows what README says under "Configuration": "Copied into each connector's container, and trusted for the platform".
#[test]
fn a_proxy_with_a_ca_of_its_own_is_trusted_and_the_ca_is_in_the_connectors_container() {
    let scene = Scene::new("proxy-ca");
    let name = scene.connector("a");
    let certificates = Certificates::new();
    let front = Front::new(&certificates, scene.platform.address());
    let proxy = Proxy::new(None);
    let program = scene
        .program()
        .var("OPENCTI__URL", front.url())
        .var("OPENCTI__WITH_PROXY", "true")
        .var("OPENCTI__HTTPS_PROXY", format!("http://{}", proxy.address))
        .var("OPENCTI__HTTPS_PROXY_CA__0", certificates.ca())
        .var("OPENCTI__HTTPS_PROXY_REJECT_UNAUTHORIZED", "false");
    program.run().expect_code(exit::OK.into());
    let asked = proxy.asked();
    let connect = format!("CONNECT {}", front.address);
    assert!(!asked.is_empty() && asked.iter().all(|request| *request == connect), "{asked:?}");

    let container = scene.containers().remove(0);
    assert_eq!(container.env["HTTPS_PROXY"], format!("http://{}", proxy.address));
    assert_eq!(container.env["NODE_TLS_REJECT_UNAUTHORIZED"], "0");
    let path = "/etc/ssl/certs/xtm-proxy-ca.crt";
    for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE"] {
        assert_eq!(container.env[variable], path);
    }
    let archive = scene.engine.call("GET", &format!("/containers/{name}/archive?path={path}"));
    assert_eq!(archive.status, 200);
    let mut archive = tar::Archive::new(archive.body.as_slice());
    let mut file = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(file.header().mode().unwrap() & 0o777, 0o644, "whoever the connector runs as may read it");
    let mut pem = String::new();
    file.read_to_string(&mut pem).unwrap();
    assert_eq!(pem.trim(), fs::read_to_string(Path::new(&certificates.ca())).unwrap().trim());
}

/// As a pod does: the service account's files at their place, in a mount namespace of its own, and the API server over TLS.
// Shows what README says under "On Kubernetes": "else the service account of the pod it runs in".
#[test]
fn in_a_pod_the_cluster_is_reached_with_the_service_account() {
    use stand_in_kubernetes::{Options, StandIn};
    let options =
        Options { namespaces: vec!["feeds".to_owned()], token: Some("pods-token".to_owned()), ..Options::default() };
    let api_server = StandIn::start(options).unwrap();
    let address = api_server.url().strip_prefix("http://").unwrap().parse().unwrap();
    let certificates = Certificates::new();
    let front = Front::new(&certificates, address);
    let scene = Scene::new("pod");
    let name = scene.connector("a");
    let folder = certificates.0.path();
    let pass = |token: &str, ca: &Path| {
        fs::write(folder.join("token"), token).unwrap();
        let script = format!(
            "mount -t tmpfs none /run; cd /run; mkdir -p secrets/kubernetes.io/serviceaccount; cd secrets/kubernetes.io/serviceaccount; \
             cp {token} token; cp {ca} ca.crt; printf feeds >namespace; exec {program} run --output json",
            token = folder.join("token").display(),
            ca = ca.display(),
            program = env!("CARGO_BIN_EXE_xtm-reconcile"),
        );
        Binary::new("/usr/bin/unshare")
            .args(["--mount", "/bin/sh", "-ceu", &script])
            .var("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .var("MANAGER__ID", &*scene.manager)
            .var("MANAGER__CREDENTIALS_KEY_FILEPATH", scene.key.path.display().to_string())
            .var("OPENCTI__URL", scene.platform.url())
            .var("OPENCTI__TOKEN", stand_in_platform::DEFAULT_TOKEN)
            .var("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .var("KUBERNETES_SERVICE_PORT", front.address.port().to_string())
            .run()
    };
    let report = pass("pods-token", &certificates.path("ca.pem")).expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"], serde_json::json!({ "deploy": 1 }), "{report:#}");
    assert!(report["orchestrator"]["description"].as_str().unwrap().ends_with("namespace feeds"), "{report:#}");
    assert!(api_server.dump().to_string().contains(&name));

    let told = pass("another-token", &certificates.path("ca.pem")).expect_code(exit::ORCHESTRATOR.into());
    expect_all(&faults(&told.lane()), &["Unauthorized", "expired or wrong"], "another token");
    let other = Certificates::new();
    let told = pass("pods-token", &other.path("ca.pem")).expect_code(exit::ORCHESTRATOR.into());
    expect_all(&faults(&told.lane()), &["cannot be reached", "invalid peer certificate"], "another CA");
}
