//! What the scenes on the engine have in common: passes, what is there after them, and what they asked the engine for.

use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use stand_in_platform::Connector;
use xtm_reconcile::exit;

use crate::scene::Scene;
use crate::support::{ApiTap, Binary, Container};

/// Longest wait for something that happens at once.
pub(crate) const SOON: Duration = Duration::from_secs(30);

impl Scene {
    /// Changes one connector on the platform.
    #[track_caller]
    pub(crate) fn edit(&self, id: &str, change: impl FnOnce(&mut Connector)) {
        self.platform.edit(|state| change(state.connector_mut(id).expect("a connector with this id")));
    }

    /// Has the platform list a connector no longer.
    pub(crate) fn unlist(&self, id: &str) {
        self.platform.edit(|state| state.connectors.retain(|connector| connector.id != id));
    }

    /// The program for one pass with a JSON report, through a tap.
    pub(crate) fn tapped(&self, tap: &ApiTap) -> Binary {
        self.program_on(&tap.docker_host()).args(["run", "--output", "json"])
    }

    /// One pass that has to end with this code. Gives its report.
    #[track_caller]
    pub(crate) fn pass_ends(&self, code: u8) -> Value {
        self.pass().expect_code(code.into()).lane()
    }

    /// The one container of this manager's connectors.
    #[track_caller]
    pub(crate) fn only(&self) -> Container {
        let mut all = self.containers();
        assert_eq!(all.len(), 1, "one container is expected: {}", names(&all));
        all.remove(0)
    }

    /// The container of one connector.
    #[track_caller]
    pub(crate) fn container_of(&self, id: &str) -> Container {
        let mut all = self.containers();
        all.retain(|container| container.label("opencti-connector-id") == id);
        assert_eq!(all.len(), 1, "one container of {id} is expected: {}", names(&all));
        all.remove(0)
    }

    /// Containers that are a pass record.
    pub(crate) fn records(&self) -> Vec<Container> {
        self.marked("xtm-reconcile.record")
    }

    /// Containers that are the lock.
    pub(crate) fn locks(&self) -> Vec<Container> {
        self.marked("xtm-reconcile.lock")
    }

    fn marked(&self, label: &str) -> Vec<Container> {
        let all = self.engine.containers_of(&self.manager);
        all.into_iter().filter(|container| !container.label(label).is_empty()).collect()
    }

    /// One pass that finds everything in order and leaves it alone: nothing is written but the lock, taken and given back.
    #[track_caller]
    pub(crate) fn pass_is_quiet(&self) {
        self.pass_is_quiet_with(&[]);
    }

    /// The same with further settings.
    #[track_caller]
    pub(crate) fn pass_is_quiet_with(&self, settings: &[(&str, &str)]) {
        let tap = ApiTap::new(self.engine);
        let outcome = set(self.tapped(&tap), settings).run().expect_code(exit::OK.into());
        let writes: Vec<String> = tap.writes().iter().map(|r| format!("{} {}?{}", r.method, r.path, r.query)).collect();
        let [taken, given_back] = writes.as_slice() else {
            panic!("a quiet pass wrote {writes:#?}\n{}", outcome.stdout)
        };
        assert!(taken.starts_with("POST /containers/create?") && taken.contains("xtm-reconcile-lock"), "{taken}");
        assert!(given_back.starts_with("DELETE /containers/"), "{given_back}");
        assert_eq!(outcome.lane()["counts"]["steps"], serde_json::json!({}), "{}", outcome.stdout);
    }

    /// What has to be true whenever no pass runs and the last one had nobody against it: each listed connector has exactly
    /// one container, under its name, with its hash, up or down as wanted; there is one record, and no lock.
    #[track_caller]
    pub(crate) fn is_settled(&self, ids: &[&str]) {
        let all = self.containers();
        assert_eq!(all.len(), ids.len(), "{}", names(&all));
        for id in ids {
            let container = self.container_of(id);
            let (name, wanted) = self.platform.read(|state| {
                let connector = state.connector(id).expect("a connector with this id");
                (connector.name.clone(), connector.requested_status.clone())
            });
            assert_eq!(container.name, name);
            assert_eq!(container.running(), wanted == "starting", "{} is {}", container.name, container.state);
        }
        assert_eq!(self.records().len(), 1, "{}", names(&self.records()));
        assert!(self.locks().is_empty(), "{}", names(&self.locks()));
    }
}

/// The program with further settings.
pub(crate) fn set(program: Binary, settings: &[(&str, &str)]) -> Binary {
    settings.iter().fold(program, |program, (name, value)| program.var(name, value))
}

/// A certificate as a proxy's CA would be.
pub(crate) fn proxy_ca() -> &'static str {
    static CA: LazyLock<String> = LazyLock::new(|| {
        let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=proxy -keyout /dev/null";
        let made = Command::new("openssl").args(arguments.split(' ')).output().expect("openssl runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).expect("PEM is text")
    });
    &CA
}

/// The settings by which connectors get a proxy's CA, and nothing else of it.
pub(crate) fn with_proxy_ca() -> [(&'static str, &'static str); 2] {
    [("OPENCTI__WITH_PROXY", "true"), ("OPENCTI__HTTPS_PROXY_CA", proxy_ca())]
}

/// A file in a container, running or not; `None` when it is not there.
pub(crate) fn file_in(scene: &Scene, container: &str, path: &str) -> Option<String> {
    let reply = scene.engine.call("GET", &format!("/containers/{container}/archive?path={path}"));
    if reply.status == 404 {
        return None;
    }
    // A tar archive of one file: a header of 512 bytes, its size in octal digits at 124, then the content.
    let size = std::str::from_utf8(reply.body.get(124..135)?).ok()?;
    let size = usize::from_str_radix(size, 8).ok()?;
    Some(String::from_utf8_lossy(reply.body.get(512..512 + size)?).into_owned())
}

/// Names and states, for messages.
pub(crate) fn names(containers: &[Container]) -> String {
    let one = |container: &Container| format!("{} ({})", container.name, container.state);
    containers.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The last line of a report about one connector.
#[track_caller]
pub(crate) fn line<'a>(report: &'a Value, id: &str) -> &'a Value {
    let mut lines = report["connectors"].as_array().expect("a list of connectors").iter().rev();
    lines.find(|line| line["connector"] == id).unwrap_or_else(|| panic!("nothing about {id} in {report:#}"))
}

/// When a container began its present run.
pub(crate) fn started_at(container: &Container) -> String {
    container.json["State"]["StartedAt"].as_str().unwrap_or_default().to_owned()
}

/// The words of everything that failed in a report: pass and connectors.
pub(crate) fn complaints(report: &Value) -> String {
    let of = |list: &str| -> Vec<String> {
        let lines = report[list].as_array().into_iter().flatten();
        lines
            .filter_map(|line| Some(format!("{} ({})", line["error"].as_str()?, line["cure"].as_str().unwrap_or(""))))
            .collect()
    };
    [of("errors"), of("connectors")].concat().join("\n")
}

/// Kills the program of a container, as lack of memory would, and waits until the engine runs it again.
pub(crate) fn crash(scene: &Scene, name: &str) {
    let before = scene.engine.container(name).expect("a container with this name");
    let pid = before.json["State"]["Pid"].to_string();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().expect("kill runs").success());
    let again = |container: &Container| container.restarts > before.restarts && container.running();
    scene.engine.wait_for("a restart", SOON, |engine| engine.container(name).filter(again));
}
