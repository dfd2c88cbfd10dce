//! A Docker engine as the tests see it: what is there, what is put there by hand, and waiting for a change.

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::events::EventStream;
use super::http::{self, Copy};

/// Labels by which a manager's containers are found: the workloads' and the pass record's.
pub(crate) const MANAGER_LABELS: [&str; 2] = ["opencti-manager", "xtm-reconcile.manager"];

/// How long one engine call may take.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);
/// A state that changes without an event (a log line, an inspect that lags its event) is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// An engine behind a unix socket. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    socket: PathBuf,
}

/// What the engine answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// The body as JSON; `null` when there is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body, or a panic that tells the engine's own words when the call failed.
    #[track_caller]
    pub(crate) fn expect_success(self, what: &str) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        assert!((200..400).contains(&self.status), "{what}: the engine answered {}: {text}", self.status);
        self.json()
    }
}

impl Engine {
    /// The engine that `tests/run` started for all tests.
    #[track_caller]
    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<Engine> = LazyLock::new(|| {
            let host = super::variable("XTM_TEST_DOCKER_HOST");
            Engine::at(host.strip_prefix("unix://").expect("XTM_TEST_DOCKER_HOST is a unix:// address"))
        });
        &SHARED
    }

    /// The engine behind this socket.
    pub(crate) fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The value for `DOCKER_HOST`.
    pub(crate) fn docker_host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The docker client, talking to this engine, with no settings of the person who runs the tests.
    pub(crate) fn cli(&self) -> Command {
        let mut docker = Command::new("docker");
        docker.env_remove("DOCKER_CONTEXT").env("DOCKER_HOST", self.docker_host());
        docker
    }

    /// One API call without body.
    pub(crate) fn call(&self, method: &str, path: &str) -> Reply {
        self.request(method, path, "", &[])
    }

    /// One API call with a JSON body.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, "Content-Type: application/json\r\n", body.to_string().as_bytes())
    }

    /// One API call; `headers` are complete lines. Panics when the engine cannot be reached.
    #[track_caller]
    pub(crate) fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
        self.try_request(method, path, headers, body)
            .unwrap_or_else(|error| panic!("{method} {path} on {}: {error}", self.socket.display()))
    }

    /// One API call, for engines that may be down.
    pub(crate) fn try_request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> std::io::Result<Reply> {
        let mut connection = UnixStream::connect(&self.socket)?;
        connection.set_read_timeout(Some(CALL_TIMEOUT))?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        connection.write_all(head.as_bytes())?;
        connection.write_all(body)?;
        let mut reader = BufReader::new(connection);
        let head = http::read_response(&mut reader, method)?;
        let mut content = Vec::new();
        http::copy_body(&mut reader, head.framing, Copy::Content, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(Reply { status: head.status, body: content })
    }

    pub(crate) fn answers(&self) -> bool {
        self.try_request("GET", "/_ping", "", &[]).is_ok_and(|reply| reply.status == 200)
    }

    // ---- containers ------------------------------------------------------------------------------------------

    /// Every container of a manager, running or not, its pass record included, sorted by name.
    pub(crate) fn containers_of(&self, manager: &str) -> Vec<Container> {
        let mut found = BTreeMap::new();
        for label in MANAGER_LABELS {
            for container in self.containers_labelled(&format!("{label}={manager}")) {
                found.insert(container.name.clone(), container);
            }
        }
        found.into_values().collect()
    }

    /// Every container with this `name` or `name=value` label, sorted by name.
    pub(crate) fn containers_labelled(&self, label: &str) -> Vec<Container> {
        let filters = http::encode(&json!({"label": [label]}).to_string());
        let listing = self.call("GET", &format!("/containers/json?all=1&filters={filters}")).expect_success("list");
        let ids = listing.as_array().expect("a list").iter().filter_map(|entry| entry["Id"].as_str());
        // One that vanishes between list and inspect is not there.
        let mut containers: Vec<_> = ids.filter_map(|id| self.container(id)).collect();
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        containers
    }

    /// The container with this name or id.
    pub(crate) fn container(&self, name: &str) -> Option<Container> {
        let reply = self.call("GET", &format!("/containers/{name}/json"));
        (reply.status != 404).then(|| Container::from_inspect(reply.expect_success("inspect")))
    }

    /// Creates a container by hand; returns its id.
    #[track_caller]
    pub(crate) fn create(&self, new: &NewContainer) -> String {
        let created = self.post(&format!("/containers/create?name={}", new.name), &new.body());
        created.expect_success(&format!("create {}", new.name))["Id"].as_str().expect("an id").to_owned()
    }

    /// Creates and starts a container by hand; returns its id.
    #[track_caller]
    pub(crate) fn run(&self, new: &NewContainer) -> String {
        let id = self.create(new);
        self.start(&id);
        id
    }

    #[track_caller]
    pub(crate) fn start(&self, name: &str) {
        self.call("POST", &format!("/containers/{name}/start")).expect_success("start");
    }

    /// Stops a container, killing it when it has not stopped after two seconds.
    #[track_caller]
    pub(crate) fn stop(&self, name: &str) {
        self.call("POST", &format!("/containers/{name}/stop?t=2")).expect_success("stop");
    }

    #[track_caller]
    pub(crate) fn rename(&self, name: &str, to: &str) {
        self.call("POST", &format!("/containers/{name}/rename?name={to}")).expect_success("rename");
    }

    /// Removes a container, running or not; nothing happens when there is none.
    #[track_caller]
    pub(crate) fn remove(&self, name: &str) {
        let reply = self.call("DELETE", &format!("/containers/{name}?force=1&v=1"));
        // 409: somebody else is removing it already.
        if !matches!(reply.status, 404 | 409) {
            reply.expect_success("remove");
        }
    }

    /// Everything a container printed, stdout and stderr in the order the engine kept.
    pub(crate) fn logs(&self, name: &str) -> String {
        let reply = self.call("GET", &format!("/containers/{name}/logs?stdout=1&stderr=1"));
        let mut rest = reply.body.as_slice();
        let mut text = Vec::new();
        // Frames of a container without a terminal: stream, three zeros, length in four bytes.
        while let Some(([_, 0, 0, 0, length @ ..], tail)) = rest.split_first_chunk::<8>() {
            let length = u32::from_be_bytes(*length) as usize;
            text.extend_from_slice(&tail[..length]);
            rest = &tail[length..];
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until `probe` finds what it looks for, asking again whenever the engine reports a change.
    /// Panics when that takes longer than `timeout`.
    #[track_caller]
    pub(crate) fn wait_for<T>(&self, what: &str, timeout: Duration, mut probe: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + timeout;
        let events = EventStream::open(self);
        loop {
            if let Some(found) = probe(self) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {timeout:?} in vain for: {what}");
            events.next(left.min(LOOK_AGAIN));
        }
    }

    // ---- images ----------------------------------------------------------------------------------------------

    /// Gives an image a further name.
    #[track_caller]
    pub(crate) fn tag(&self, image: &str, name: &str) {
        let (repository, tag) = split_tag(name);
        self.call("POST", &format!("/images/{image}/tag?repo={repository}&tag={tag}")).expect_success("tag");
    }

    /// Takes an image name away, so that the next use must pull it; nothing happens when there is none.
    #[track_caller]
    pub(crate) fn untag(&self, name: &str) {
        let reply = self.call("DELETE", &format!("/images/{name}?force=1"));
        if reply.status != 404 {
            reply.expect_success("untag");
        }
    }

    pub(crate) fn has_image(&self, name: &str) -> bool {
        self.call("GET", &format!("/images/{name}/json")).status == 200
    }

    /// Loads images from a `docker save` archive.
    #[track_caller]
    pub(crate) fn load_images(&self, archive: &Path) {
        let bytes = std::fs::read(archive).expect("the image archive can be read");
        self.request("POST", "/images/load", "Content-Type: application/x-tar\r\n", &bytes).expect_success("load");
    }
}

/// `repository` and `tag` of an image name; a port is not a tag.
pub(crate) fn split_tag(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "latest"),
    }
}

/// One container as `inspect` shows it.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    /// The image's name as it was given at creation.
    pub(crate) image: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) env: BTreeMap<String, String>,
    /// `created`, `running`, `exited`, `restarting`, ...
    pub(crate) state: String,
    pub(crate) exit_code: i64,
    pub(crate) restarts: u64,
    /// Everything else.
    pub(crate) json: Value,
}

impl Container {
    fn from_inspect(json: Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let labels = json["Config"]["Labels"].as_object().into_iter().flatten();
        let env = json["Config"]["Env"].as_array().into_iter().flatten().filter_map(Value::as_str);
        Self {
            id: text(&json["Id"]),
            name: text(&json["Name"]).trim_start_matches('/').to_owned(),
            image: text(&json["Config"]["Image"]),
            labels: labels.map(|(name, value)| (name.clone(), text(value))).collect(),
            env: env
                .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            state: text(&json["State"]["Status"]),
            exit_code: json["State"]["ExitCode"].as_i64().unwrap_or_default(),
            restarts: json["RestartCount"].as_u64().unwrap_or_default(),
            json,
        }
    }

    pub(crate) fn running(&self) -> bool {
        self.state == "running"
    }

    /// The value of a label; empty when it has none.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// A container that a test puts there itself: foreign, or as the daemon would have left it.
#[derive(Clone, Debug)]
pub(crate) struct NewContainer {
    name: String,
    image: String,
    env: Vec<String>,
    labels: BTreeMap<String, String>,
    restart: &'static str,
}

impl NewContainer {
    /// The fixture connector under this name, without labels: foreign to every manager.
    pub(crate) fn foreign(name: &str) -> Self {
        let image = "xtm-fixture/connector:1".to_owned();
        Self { name: name.to_owned(), image, env: Vec::new(), labels: BTreeMap::new(), restart: "" }
    }

    /// What the XTM Composer daemon leaves: two labels, the hash in the environment only, no restart policy.
    pub(crate) fn of_daemon(name: &str, manager: &str, connector_id: &str, hash: &str) -> Self {
        Self::foreign(name)
            .label("opencti-manager", manager)
            .label("opencti-connector-id", connector_id)
            .env("OPENCTI_CONFIG_HASH", hash)
    }

    pub(crate) fn image(mut self, image: &str) -> Self {
        image.clone_into(&mut self.image);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    pub(crate) fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A restart policy: `unless-stopped`, `always`, `on-failure`.
    pub(crate) fn restart(mut self, policy: &'static str) -> Self {
        self.restart = policy;
        self
    }

    fn body(&self) -> Value {
        json!({
            "Image": self.image,
            "Env": self.env,
            "Labels": self.labels,
            "HostConfig": {"RestartPolicy": {"Name": self.restart}},
        })
    }
}
