//! Two lanes beside one: the same number of connectors, of one platform or of both, on one engine.
//!
//! The fleets are deployed in turn, each alone on the engine, and that several times, so that what disturbs one disturbs the other.

use stand_in_platform::{Connector, Instance, OPENAEV_DEFAULT_TOKEN, OpenAev, State};

use crate::child::Program;
use crate::direct::Direct;
use crate::platform::Platform;
use crate::scene::{CONCURRENCY, Scene};
use crate::support::{schema, unique, variable};
use crate::table::{Limit, Row, median};

/// Wall and CPU time of a pass over two lanes, as a multiple of one over one lane of as many connectors.
const TWO_LANES: (f64, f64) = (1.3, 1.1);

/// A manager with a platform of its own and connectors that run.
pub(crate) struct Fleet {
    pub(crate) platform: Platform,
    direct: Direct,
    pub(crate) program: Program,
    pub(crate) connectors: usize,
}

/// A quiet pass over one lane of twice as many connectors, and one over two lanes.
pub(crate) fn rows(scene: &Scene) -> Vec<Row> {
    let half = scene.connectors;
    let (mut single, mut double) = (Vec::new(), Vec::new());
    let mut calls = [0, 0];
    for round in 0..scene.repeat.min(ROUNDS_MAX) {
        // Each comes first in turn.
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let fleet =
                if which == 0 { Fleet::deployed(scene, 2 * half, 0) } else { Fleet::deployed(scene, half, half) };
            let samples = if which == 0 { &mut single } else { &mut double };
            samples.extend((0..PASSES).map(|_| fleet.quiet()));
            calls[which] = fleet.platform.calls();
        }
    }
    let row = |what: String, samples: &[(f64, f64, f64)], calls: usize| Row {
        wall: samples.iter().map(|sample| sample.0).collect(),
        cpu: samples.iter().map(|sample| sample.1).collect(),
        peak: samples.iter().map(|sample| sample.2).collect(),
        platform_calls: Some(calls),
        ..Row::new(what)
    };
    let alone = row(format!("quiet pass, one lane of {} running", 2 * half), &single, calls[0]);
    let mut both = row(format!("quiet pass, two lanes of {half} running each"), &double, calls[1]);
    let ratio = |part: fn(&Row) -> &Vec<f64>| median(part(&both)) / median(part(&alone));
    let (wall, cpu) = (ratio(|row| &row.wall), ratio(|row| &row.cpu));
    both.limits.push(Limit::most("wall", " × one lane", wall, TWO_LANES.0));
    both.limits.push(Limit::most("CPU", " × one lane", cpu, TWO_LANES.1));
    vec![alone, both]
}

/// Deployments of each fleet at most: two hundred containers take a while.
const ROUNDS_MAX: usize = 3;
/// Quiet passes over each deployment.
const PASSES: usize = 5;

impl Fleet {
    pub(crate) fn deployed(scene: &Scene, connectors: usize, instances: usize) -> Self {
        let manager = unique("bench-lanes");
        let platform = Platform::start(variable("XTM_BENCH_STAND_IN").as_ref());
        let openaev = OpenAev {
            instances: (1..=instances).map(|number| instance(&manager, number)).collect(),
            ..OpenAev::default()
        };
        let connectors = (1..=connectors).map(|number| connector(&manager, number)).collect();
        let state = State { connectors, openaev, ..State::default() };
        platform.set(&state);
        let connectors = state.connectors.len();
        let mut program = scene.program(scene.docker_host());
        let set = [("MANAGER__ID", manager.as_str()), ("OPENCTI__URL", &platform.url)];
        let aev = [
            ("OPENAEV__ENABLE", "true"),
            ("OPENAEV__URL", &platform.url),
            ("OPENAEV__TOKEN", OPENAEV_DEFAULT_TOKEN),
            ("OPENAEV__DAEMON__SELECTOR", "docker"),
        ];
        for (name, value) in set.into_iter().chain(aev.into_iter().filter(|_| instances > 0)) {
            program.variables.retain(|(known, _)| known != name);
            program.variables.push((name.to_owned(), value.to_owned()));
        }
        let direct = Direct::new(scene.socket(), &manager, CONCURRENCY);
        let fleet = Self { platform, direct, program, connectors: connectors + instances };
        eprintln!("deploying {connectors} connectors of OpenCTI and {instances} of OpenAEV");
        let (_, printed) = fleet.program.run();
        let deployed = &schema::read(&printed)["counts"]["steps"]["deploy"];
        assert_eq!(*deployed, fleet.connectors, "{printed}");
        // The first ones still have something to deliver and to write.
        fleet.quiet();
        fleet.quiet();
        fleet
    }

    /// Wall and CPU time in seconds, memory in MB.
    pub(crate) fn quiet(&self) -> (f64, f64, f64) {
        self.platform.forget_calls();
        let (usage, printed) = self.program.run();
        let report = schema::read(&printed);
        assert_eq!(report["counts"]["steps"], serde_json::json!({}), "{report:#}");
        assert_eq!(report["counts"]["unchanged"], self.connectors, "{report:#}");
        (usage.wall.as_secs_f64(), usage.cpu.as_secs_f64(), crate::table::megabytes(usage.peak))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.direct.clear();
        }
    }
}

fn connector(manager: &str, number: usize) -> Connector {
    crate::scene::connector(manager, number, 0).requested("starting")
}

fn instance(manager: &str, number: usize) -> Instance {
    let Connector { image, configuration, .. } = crate::scene::connector(manager, number, 0);
    let instance = Instance::new(format!("aev-{number}"), format!("{manager} Collector {number}"), image);
    Instance { configuration, ..instance.requested("starting") }
}
