//! What is measured: a manager, connectors on a stand-in platform, an engine, and passes over them.

use std::path::PathBuf;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig, RestartPolicy, RestartPolicyNameEnum};
use stand_in_platform::{Connector, DEFAULT_TOKEN, State};

use crate::child::Program;
use crate::direct::{Direct, New};
use crate::platform::Platform;
use crate::support::engine::Engine;
use crate::support::tap::ApiTap;
use crate::support::{unique, variable};
use crate::{Arguments, Sample};

const IMAGE: &str = "xtm-fixture/connector:1";
/// More lines than are pushed.
const LOG_LINES: &str = "120";
/// The program's default concurrency: the engine alone is asked for as much at a time.
pub(crate) const CONCURRENCY: usize = 8;
/// The kernel takes a hundred containers' networks apart for a while after the engine says that they are gone.
const SETTLE: Duration = Duration::from_secs(3);

/// Everything that the measurements need.
pub(crate) struct Scene {
    pub(crate) connectors: usize,
    pub(crate) secrets: usize,
    pub(crate) stopped: usize,
    pub(crate) repeat: usize,
    pub(crate) cores: f64,
    pub(crate) direct: Direct,
    engine: Engine,
    platform: Platform,
    manager: String,
    program: PathBuf,
}

/// A state of the platform from which a first deployment can be repeated.
pub(crate) struct Deployed {
    pub(crate) state: State,
    pub(crate) engine_calls: usize,
}

impl Scene {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let manager = unique("bench");
        let host = variable("XTM_BENCH_DOCKER_HOST");
        let engine = Engine::at(host.strip_prefix("unix://").expect("XTM_BENCH_DOCKER_HOST is a unix:// address"));
        let number = |number: u32| usize::try_from(number).expect("a small number");
        let cores = std::thread::available_parallelism().expect("a number of cores").get();
        Self {
            connectors: number(arguments.connectors),
            secrets: number(arguments.secrets),
            stopped: number(arguments.stopped),
            repeat: number(arguments.repeat),
            cores: f64::from(u32::try_from(cores).expect("a small number")),
            direct: Direct::new(engine.socket(), &manager, CONCURRENCY),
            engine,
            platform: Platform::start(variable("XTM_BENCH_STAND_IN").as_ref()),
            manager,
            program: variable("XTM_BENCH_PROGRAM").into(),
        }
    }

    /// Where and on what this was measured.
    pub(crate) fn heading(&self) -> String {
        let engine = self.engine.call("GET", "/version").expect_success("version");
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default();
        let (_, version) = Program { arguments: vec!["--version".to_owned()], ..self.program(String::new()) }.run();
        let engine = engine["Version"].as_str().unwrap_or_default();
        let runs = self.repeat;
        format!(
            "{}, Docker {engine}, {} cores, load average {load} at the start; {runs} runs: median (lowest – highest)",
            version.lines().next().unwrap_or_default(),
            self.cores,
        )
    }

    pub(crate) fn docker_host(&self) -> String {
        self.engine.docker_host()
    }

    pub(crate) fn socket(&self) -> &std::path::Path {
        self.engine.socket()
    }

    /// The program with a complete environment.
    pub(crate) fn program(&self, docker_host: String) -> Program {
        let key = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/keys/test-only-rsa-4096.pkcs8.pem");
        let variables = [
            ("MANAGER__ID", self.manager.clone()),
            ("MANAGER__CREDENTIALS_KEY_FILEPATH", key.to_owned()),
            ("OPENCTI__URL", self.platform.url.clone()),
            ("OPENCTI__TOKEN", DEFAULT_TOKEN.to_owned()),
            ("OPENCTI__DAEMON__SELECTOR", "docker".to_owned()),
            ("DOCKER_HOST", docker_host),
        ];
        Program {
            path: self.program.clone(),
            arguments: ["run", "--output", "json"].map(str::to_owned).to_vec(),
            variables: variables.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        }
    }

    fn pass_on(&self, docker_host: String) -> Sample {
        self.platform.forget_calls();
        let (usage, printed) = self.program(docker_host).run();
        Sample::new(usage, &printed, self.platform.calls())
    }

    fn pass(&self) -> Sample {
        self.pass_on(self.engine.docker_host())
    }

    /// A pass over nothing: the first one ever on an engine makes the image that locks and records are made of.
    pub(crate) fn warm_up(&self) {
        self.pass();
    }

    /// A pass, and how many requests it made to the engine.
    fn counted(&self) -> (Sample, usize) {
        let tap = ApiTap::new(&self.engine);
        let sample = self.pass_on(tap.docker_host());
        (sample, tap.requests().len())
    }

    /// Deploys connectors with so many encrypted values for the first time: registers, and has the platform encrypt.
    pub(crate) fn deployed_once(&self, secrets: usize) -> Deployed {
        self.direct.clear();
        let connectors = (1..=self.connectors).map(|number| connector("up", number, secrets).requested("starting"));
        let managers = self.platform.state().managers;
        self.platform.set(&State { connectors: connectors.collect(), managers, ..State::default() });
        let (sample, engine_calls) = self.counted();
        self.check_deployed(&sample);
        let mut state = self.platform.state();
        for connector in &mut state.connectors {
            assert_eq!(connector.envelopes.len(), secrets, "encrypted values of {}", connector.id);
            (connector.current_status, connector.health, connector.logs) = (None, None, Vec::new());
        }
        Deployed { state, engine_calls }
    }

    /// Has the engine alone make containers where there are none.
    pub(crate) fn make(&self, containers: &[New]) -> Duration {
        self.clear();
        self.direct.make(containers, true)
    }

    fn clear(&self) {
        self.direct.clear();
        std::thread::sleep(SETTLE);
    }

    /// A first deployment on an engine where nothing of it is left.
    pub(crate) fn deploy(&self, state: &State) -> Sample {
        self.clear();
        self.platform.set(state);
        let sample = self.pass();
        self.check_deployed(&sample);
        sample
    }

    fn check_deployed(&self, sample: &Sample) {
        let report = &sample.report;
        assert_eq!(report["counts"]["steps"]["deploy"], self.connectors, "{report:#}");
        assert_eq!(report["platform"]["sent"]["status"], self.connectors, "{report:#}");
    }

    /// Quiet passes over `listed` connectors of which `running` run, and how many engine calls one makes.
    pub(crate) fn quiet(&self, listed: usize, running: usize) -> (Vec<Sample>, usize) {
        eprintln!("quiet pass, {listed} connectors, {running} of them running");
        let check = |sample: &Sample| {
            let (report, sent) = (&sample.report, &sample.report["platform"]["sent"]);
            assert_eq!(report["counts"]["steps"], serde_json::json!({}), "{report:#}");
            assert_eq!(report["counts"]["unchanged"], listed, "{report:#}");
            assert_eq!((&sent["health"], &sent["logs"]), (&running.into(), &running.into()), "{report:#}");
        };
        // The first one may still have something to write.
        check(&self.pass());
        let samples: Vec<_> = (0..self.repeat).map(|_| self.pass()).collect();
        samples.iter().for_each(check);
        let (sample, engine_calls) = self.counted();
        check(&sample);
        (samples, engine_calls)
    }

    /// Names of the containers of the connectors that run.
    pub(crate) fn running_names(&self) -> Vec<String> {
        self.platform.state().connectors.into_iter().map(|connector| connector.name).collect()
    }

    /// Adds stopped connectors to the platform, and their containers to the engine as a pass would have left them. Gives
    /// their names.
    pub(crate) fn add_stopped(&self) -> Vec<String> {
        let mut state = self.platform.state();
        let stopped: Vec<Connector> = (1..=self.stopped)
            .map(|number| Connector {
                hash: Some(format!("{number:064x}")),
                current_status: Some("stopped".to_owned()),
                ..connector("down", number, self.secrets).requested("stopping")
            })
            .collect();
        let containers: Vec<New> = stopped.iter().map(|connector| self.container(connector)).collect();
        state.connectors.extend(stopped);
        self.platform.set(&state);
        self.direct.make(&containers, false);
        containers.into_iter().map(|(name, _)| name).collect()
    }

    fn container(&self, connector: &Connector) -> New {
        let hash = connector.hash.clone().unwrap_or_default();
        let secrets = connector.secrets.iter().map(|(name, clear)| format!("{name}={clear}"));
        let labels = [
            ("opencti-manager", self.manager.clone()),
            ("opencti-connector-id", connector.id.clone()),
            ("opencti-platform", "opencti".to_owned()),
            ("opencti-config-hash", hash.clone()),
        ];
        let policy = RestartPolicy { name: Some(RestartPolicyNameEnum::UNLESS_STOPPED), maximum_retry_count: None };
        let body = ContainerCreateBody {
            image: Some(connector.image.clone()),
            env: Some(secrets.chain([format!("OPENCTI_CONFIG_HASH={hash}")]).collect()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
            host_config: Some(HostConfig { restart_policy: Some(policy), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        (connector.name.clone(), body)
    }

    /// Takes the connectors of these names off the platform, and their containers off the engine.
    pub(crate) fn forget_running(&self, names: &[String]) {
        let mut state = self.platform.state();
        state.connectors.retain(|connector| !names.contains(&connector.name));
        self.platform.set(&state);
        self.direct.remove(names);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.direct.clear();
        }
    }
}

/// A connector with some plain values and so many that the platform encrypts.
pub(crate) fn connector(name: &str, number: usize, secrets: usize) -> Connector {
    let connector = Connector::new(format!("{name}-{number}"), format!("bench-{name}-{number}"), IMAGE)
        .setting("CONNECTOR_LOG_LEVEL", "info")
        .setting("CONNECTOR_SCOPE", "identity,attack-pattern,course-of-action,intrusion-set,campaign,malware,tool")
        .setting("CONNECTOR_DURATION_PERIOD", "P7D")
        .setting("STANDIN_LINES", LOG_LINES);
    (1..=secrets).fold(connector, |connector, value| {
        connector
            .secret(format!("SERVICE_{value}_API_KEY"), format!("{name}-{number}-{value}-0123456789abcdef01234567"))
    })
}
