//! The benchmark on Kubernetes: what quiet passes take, against the limits that they have to keep. Run by `tests/bench
//! kubernetes`, against whatever API server it is given.
//!
//! The program, the stand-in platform and the stand-in API server are release builds and run as processes of their own.
//! Requests are counted in passes of their own, through the tests' tap, which would cost time.
#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a benchmark that cannot go on ends")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a table is all it is for")]

mod child;
#[path = "../kubernetes/cluster.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod cluster;
mod platform;
#[expect(dead_code, reason = "the other benchmark uses the rest of it")]
mod sample;
#[path = "../kubernetes/support.rs"]
#[expect(unused_imports, reason = "the tests use the rest of it")]
mod support;
mod table;
#[path = "../kubernetes/tap.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod tap;

use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use stand_in_platform::{Connector, DEFAULT_TOKEN, State};

use child::Program;
use cluster::Cluster;
use platform::Platform;
use sample::Sample;
use table::{Limit, Row, median};
use tap::Call;

/// A quiet pass over the connectors: wall and CPU time in seconds.
const QUIET: (f64, f64) = (0.5, 0.25);
/// A quiet pass over very many: wall time in seconds, memory in MB, lists.
const MANY: (f64, f64, usize) = (4.0, 80.0, 11);

/// Measures quiet passes on Kubernetes against the limits that they have to keep.
#[derive(Parser, Clone, Debug, PartialEq, Eq)]
#[command(name = "tests/bench kubernetes")]
struct Arguments {
    /// Connectors that are deployed
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connectors: u32,
    /// Encrypted values of each of them
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    secrets: u32,
    /// Connectors in the large namespace, all stopped
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    many: u32,
    /// Times that each pass is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A variable of `tests/bench`.
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the benchmark with tests/bench kubernetes"))
}

/// A manager, its namespace, and the platform.
struct Scene {
    cluster: Cluster,
    platform: Platform,
    manager: String,
    repeat: u32,
}

impl Scene {
    fn new(name: &str, repeat: u32) -> Self {
        let platform = Platform::start(variable("XTM_BENCH_STAND_IN").as_ref());
        Self { cluster: Cluster::new(name), platform, manager: support::unique("bench"), repeat }
    }

    fn program(&self, kubeconfig: String) -> Program {
        let key = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/keys/test-only-rsa-4096.pkcs8.pem");
        let variables = [
            ("MANAGER__ID", self.manager.clone()),
            ("MANAGER__CREDENTIALS_KEY_FILEPATH", key.to_owned()),
            ("OPENCTI__URL", self.platform.url.clone()),
            ("OPENCTI__TOKEN", DEFAULT_TOKEN.to_owned()),
            ("OPENCTI__DAEMON__KUBERNETES__NAMESPACE", self.cluster.namespace.clone()),
            (
                "OPENCTI__DAEMON__KUBERNETES__BASE_DEPLOYMENT_JSON",
                r#"{"spec":{"template":{"spec":{"schedulerName":"nobody"}}}}"#.to_owned(),
            ),
            ("KUBECONFIG", kubeconfig),
        ];
        Program {
            path: variable("XTM_BENCH_PROGRAM").into(),
            arguments: ["run", "--output", "json"].map(str::to_owned).to_vec(),
            variables: variables.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        }
    }

    fn pass_through(&self, kubeconfig: String) -> Sample {
        self.platform.forget_calls();
        let (usage, printed) = self.program(kubeconfig).run();
        Sample::new(usage, &printed, self.platform.calls())
    }

    /// A pass straight to the API server.
    fn pass(&self) -> Sample {
        self.pass_through(variable("XTM_TEST_KUBECONFIG"))
    }

    /// A pass with its requests.
    fn counted(&self) -> (Sample, Vec<Call>) {
        self.cluster.tap.take_calls();
        let sample = self.pass_through(self.cluster.kubeconfig().display().to_string());
        (sample, self.cluster.tap.take_calls())
    }

    /// Passes that do nothing to `unchanged` connectors, and the requests of one more.
    fn quiet(&self, unchanged: usize) -> (Vec<Sample>, Vec<Call>) {
        // The first pass writes what is new to it.
        self.pass();
        let samples: Vec<Sample> = (0..self.repeat).map(|_| self.pass()).collect();
        let (last, calls) = self.counted();
        for sample in samples.iter().chain([&last]) {
            let counts = &sample.report["counts"];
            assert_eq!((&counts["steps"], &counts["unchanged"]), (&json!({}), &json!(unchanged)), "{counts:#}");
        }
        (samples, calls)
    }

    fn row(&self, what: String, unchanged: usize) -> (Row, Vec<Call>) {
        let (samples, calls) = self.quiet(unchanged);
        eprintln!("{what}: {}", samples.last().map(Sample::stages).unwrap_or_default());
        let mut row = Row::of(what, &samples);
        row.engine_calls = Some(calls.len());
        let writes = calls.iter().filter(|call| call.is_write() && !call.path.contains("/leases")).count();
        row.limits.push(Limit::same("writes beside the Lease", writes, 0));
        (row, calls)
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == child::ALONE).is_some() {
        println!("{}", child::alone(arguments));
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let number = |number: u32| usize::try_from(number).expect("a small number");
    let (mut rows, template) = deployed(number(arguments.connectors), number(arguments.secrets), arguments.repeat);
    rows.push(many(number(arguments.many), &template, arguments.repeat));
    println!("{}\n", heading(arguments.repeat));
    println!("{}", table::table(&rows).replace("engine calls", "API server calls"));
    let defaults = Arguments::parse_from([""; 1]);
    let is_default = Arguments { repeat: 0, bench: false, ..arguments } == Arguments { repeat: 0, ..defaults };
    table::verdict(&rows, is_default)
}

fn heading(repeat: u32) -> String {
    let cores = std::thread::available_parallelism().expect("a number of cores");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let server = variable("XTM_BENCH_API_SERVER");
    format!("{server}, {cores} cores, load average {load} at the end; {repeat} runs: median (lowest – highest)")
}

/// A first deployment, then quiet passes over what runs and over what is stopped. Gives one of the Deployments.
fn deployed(count: usize, secrets: usize, repeat: u32) -> (Vec<Row>, Value) {
    let scene = Scene::new("bench", repeat);
    let connector = |index: usize| {
        let connector = Connector::new(format!("id-{index}"), format!("connector-{index}"), "registry.example/c:1");
        (0..secrets)
            .fold(connector.requested("starting"), |c, n| c.secret(format!("SECRET_{n}"), format!("{index}-{n}")))
    };
    let mut state = State { connectors: (0..count).map(connector).collect(), ..State::default() };
    scene.platform.set(&state);
    let first = scene.pass();
    eprintln!("first deployment: {}", first.stages());
    let first = Row::of(format!("first deployment of {count}, {secrets} encrypted values each"), &[first]);

    let log = (0..100).map(|line| format!("a line of some length, the {line}th")).collect::<Vec<_>>().join("\n");
    for index in 0..count {
        let name = format!("connector-{index}");
        // The stand-in keeps a pod's log in its annotation.
        let pod = scene.cluster.running(&name, 0, 600);
        let path =
            format!("{}/{}", scene.cluster.path("api/v1", "pods"), pod["metadata"]["name"].as_str().expect("a name"));
        scene.cluster.edit(&path, "bench", &json!({ "metadata": { "annotations": { "stand-in/log": log } } }));
    }
    let limits = |row: &mut Row| {
        row.limits.push(Limit::most("wall", " s", median(&row.wall), QUIET.0));
        row.limits.push(Limit::most("CPU", " s", median(&row.cpu), QUIET.1));
    };
    let (mut running, _) = scene.row(format!("quiet pass, {count} running, health and logs of all pushed"), count);
    limits(&mut running);

    state = scene.platform.state();
    for connector in &mut state.connectors {
        "stopping".clone_into(&mut connector.requested_status);
    }
    scene.platform.set(&state);
    scene.pass();
    let (mut stopped, _) = scene.row(format!("quiet pass, {count} stopped, {secrets} encrypted values each"), count);
    limits(&mut stopped);
    (vec![first, running, stopped], scene.cluster.deployment("connector-0"))
}

/// Quiet passes over very many connectors, all stopped.
fn many(count: usize, template: &Value, repeat: u32) -> Row {
    let scene = Scene::new("many", repeat);
    let connector = |index: usize| {
        let mut connector = Connector::new(format!("id-{index}"), format!("connector-{index}"), "registry.example/c:1");
        connector.hash = Some("aaaa1111".to_owned());
        connector.current_status = Some("stopped".to_owned());
        connector.requested("stopping")
    };
    scene.platform.set(&State { connectors: (0..count).map(connector).collect(), ..State::default() });
    eprintln!("creating {count} Deployments");
    let deployments: Vec<Value> = (0..count).map(|index| copy(template, index, &scene.manager)).collect();
    scene.cluster.create_all(&scene.cluster.path("apis/apps/v1", "deployments"), &deployments);
    let (mut row, calls) = scene.row(format!("quiet pass, {count} stopped"), count);
    row.limits.push(Limit::most("wall", " s", median(&row.wall), MANY.0));
    row.limits.push(Limit::most("RSS", " MB", row.highest_peak(), MANY.1));
    if count == 5_000 {
        let lists = calls.iter().filter(|call| call.query.contains("limit=")).count();
        let enough = u32::try_from(lists).map(f64::from).expect("few");
        row.limits.push(Limit::most("lists", "", enough, u32::try_from(MANY.2).map(f64::from).expect("few")));
    }
    row
}

/// A Deployment as the program made it, for another connector.
fn copy(template: &Value, index: usize, manager: &str) -> Value {
    let id = format!("id-{index}");
    let labels = json!({ "opencti-manager": manager, "opencti-connector-id": id, "opencti-platform": "opencti" });
    let mut spec = template["spec"].clone();
    spec["replicas"] = 0.into();
    spec["selector"] = json!({ "matchLabels": { "opencti-manager": manager, "opencti-connector-id": id } });
    spec["template"]["metadata"]["labels"] = labels.clone();
    let name = format!("connector-{index}");
    let annotations = json!({ "OPENCTI_CONFIG_HASH": "aaaa1111" });
    let metadata = json!({ "name": name, "labels": labels, "annotations": annotations });
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec })
}
