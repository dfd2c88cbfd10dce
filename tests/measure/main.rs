//! The benchmark: what a pass takes, against the limits that it has to keep. Run by `tests/bench`.
//!
//! The program and the stand-in platform are release builds and run as processes of their own, so that neither counts
//! with the other. Engine calls are counted in passes of their own, through the tests' tap, which would cost time.
//! Deployments are measured in rounds with the engine alone, so that what disturbs one disturbs the other.
#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a benchmark that cannot go on ends")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a table is all it is for")]

mod bare;
mod child;
mod direct;
mod lanes;
mod platform;
mod quiet;
mod recorder;
mod sample;
mod scene;
mod support;
mod table;
mod xtm_one;

use std::process::ExitCode;

use clap::Parser;

use child::{Program, Usage};
use sample::Sample;
use scene::Scene;
use table::{Limit, Row, median, megabytes};

/// A quiet pass over the running connectors: wall and CPU time in seconds, memory in MB.
const QUIET: (f64, f64, f64) = (1.0, 0.30, 25.0);
/// Longest median of the prepare stage, in milliseconds, that shows that nothing was decrypted: one takes 13.
const NO_RSA_MS: f64 = 10.0;
/// A first deployment, as a multiple of what the engine needs.
const DEPLOY: f64 = 1.1;
/// The same with encrypted values.
const DEPLOY_ENCRYPTED: f64 = 1.05;
/// A quiet pass over stopped connectors: wall time in seconds, memory in MB.
const STOPPED: (f64, f64) = (2.0, 40.0);
/// `--version`, in milliseconds.
const VERSION_MS: f64 = 10.0;
/// The program's file, in MB.
const FILE: f64 = 15.0;
/// Runs of `--version` per repetition.
const VERSION_RUNS: usize = 10;

/// Measures a pass against the limits that it has to keep.
#[derive(Parser, Clone, Debug, PartialEq, Eq)]
#[command(name = "tests/bench")]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
struct Arguments {
    /// Connectors that run
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connectors: u32,
    /// Encrypted values of each connector
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    secrets: u32,
    /// Connectors that are stopped
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    stopped: u32,
    /// Times that each pass is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Measure nothing but quiet passes beside a bare client
    #[arg(long)]
    quiet_alone: bool,
    /// Measure nothing but two lanes beside one
    #[arg(long)]
    lanes_alone: bool,
    /// Measure nothing but the registration with XTM One
    #[arg(long)]
    xtm_one_alone: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == child::ALONE).is_some() {
        println!("{}", child::alone(arguments));
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let scene = Scene::new(&arguments);
    println!("{}\n", scene.heading());
    scene.warm_up();
    let mut notes = Vec::new();
    let mut rows = Vec::new();
    let (quiet_alone, lanes_alone) = (arguments.quiet_alone, arguments.lanes_alone);
    let all = !quiet_alone && !lanes_alone && !arguments.xtm_one_alone;
    if all {
        rows.extend(running(&scene, &mut notes));
        rows.extend(stopped(&scene));
    }
    if all || quiet_alone {
        rows.extend(quiet::rows(&scene));
    }
    if all || lanes_alone {
        rows.extend(lanes::rows(&scene));
    }
    if all || arguments.xtm_one_alone {
        rows.extend(xtm_one::rows(&scene));
    }
    rows.extend(program(&scene));
    println!("{}", table::table(&rows));
    for note in &notes {
        println!("{note}");
    }
    let defaults = Arguments::parse_from([""; 1]);
    let alone = Arguments { quiet_alone: false, lanes_alone: false, xtm_one_alone: false, ..arguments };
    let given = Arguments { repeat: 0, bench: false, ..alone };
    let is_default = given == Arguments { repeat: 0, ..defaults };
    table::verdict(&rows, is_default)
}

/// First deployments and quiet passes. Leaves the connectors running, with encrypted values.
fn running(scene: &Scene, notes: &mut Vec<String>) -> Vec<Row> {
    let deployments = deployments(scene, notes);
    let count = scene.connectors;
    let (samples, engine_calls) = scene.quiet(count, count);
    let mut quiet = Row::of(format!("quiet pass, {count} running"), &samples);
    quiet.engine_calls = Some(engine_calls);
    quiet.limits.push(Limit::most("wall", " s", median(&quiet.wall), QUIET.0));
    quiet.limits.push(Limit::most("CPU", " s", median(&quiet.cpu), QUIET.1));
    quiet.limits.push(Limit::most("RSS", " MB", quiet.highest_peak(), QUIET.2));
    let prepare = median(&samples.iter().map(|sample| sample.stage("prepare")).collect::<Vec<_>>());
    quiet.limits.push(Limit::most("no RSA: prepare", " ms", prepare, NO_RSA_MS));
    let stages = samples.last().map(Sample::stages).unwrap_or_default();
    notes.push(format!("Stages of the last quiet pass over {count} running, in ms: {stages}."));
    [vec![quiet], deployments].concat()
}

fn deployments(scene: &Scene, notes: &mut Vec<String>) -> Vec<Row> {
    let count = scene.connectors;
    let plain = scene.deployed_once(0);
    let copies = scene.direct.copies();
    assert_eq!(copies.len(), count, "containers after a first deployment");
    let encrypted = scene.deployed_once(scene.secrets);

    let (mut engine, mut without, mut with) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..scene.repeat {
        // Each comes first, second and third in turn: where it stands must not favour any.
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 => engine.push(scene.make(&copies).as_secs_f64()),
                1 => without.push(scene.deploy(&plain.state)),
                _ => with.push(scene.deploy(&encrypted.state)),
            }
        }
        let program = [&without[round], &with[round]].map(|sample| sample.usage.wall.as_secs_f64());
        eprintln!(
            "first deployment, round {} of {}: engine alone {:.1} s, program {:.1} s, with encrypted values {:.1} s",
            round + 1,
            scene.repeat,
            engine[round],
            program[0],
            program[1],
        );
    }
    scene.deploy(&encrypted.state);

    let alone = Row { wall: engine.clone(), ..Row::new(format!("the engine alone: {count} creates and starts")) };
    let ratio = |row: &Row| {
        let ratios: Vec<f64> = row.wall.iter().zip(&engine).map(|(wall, engine)| wall / engine).collect();
        median(&ratios)
    };
    let mut first = Row::of(format!("first deployment of {count}, no encrypted values"), &without);
    first.engine_calls = Some(plain.engine_calls);
    first.limits.push(Limit::most("wall", " × engine alone", ratio(&first), DEPLOY));
    let mut second = Row::of(format!("first deployment of {count}, {} encrypted values each", scene.secrets), &with);
    second.engine_calls = Some(encrypted.engine_calls);
    second.limits.push(Limit::most("wall", " × engine alone", ratio(&second), DEPLOY_ENCRYPTED));

    let rsa = median(&second.cpu) - median(&first.cpu);
    let prepare: Vec<f64> = with.iter().map(|sample| sample.stage("prepare") / 1e3).collect();
    let values = count * scene.secrets;
    notes.push(format!(
        "Decrypting {values} values took {rsa:.2} s of CPU time, {:.1} ms each; the last was decrypted {:.2} s after the plan was made.",
        rsa * 1e3 / f64::from(u32::try_from(values).expect("a small number")),
        median(&prepare),
    ));
    vec![alone, first, second]
}

/// Quiet passes with many connectors that are stopped: beside the running ones, alone, and never deployed.
fn stopped(scene: &Scene) -> Vec<Row> {
    let (running, count) = (scene.connectors, scene.stopped);
    let names = scene.running_names();
    let (_, before) = scene.quiet(running, running);
    eprintln!("creating {count} stopped containers");
    let made = scene.add_stopped();
    let (samples, beside) = scene.quiet(running + count, running);
    let mut mixed = Row::of(format!("quiet pass, {running} running and {count} stopped"), &samples);
    mixed.engine_calls = Some(beside);
    mixed.limits.push(Limit::same("engine calls", beside, before));

    scene.forget_running(&names);
    let (samples, with) = scene.quiet(count, 0);
    let mut exist = Row::of(format!("quiet pass, {count} stopped"), &samples);
    exist.engine_calls = Some(with);
    exist.limits.push(Limit::most("wall", " s", median(&exist.wall), STOPPED.0));
    exist.limits.push(Limit::most("RSS", " MB", exist.highest_peak(), STOPPED.1));

    scene.direct.remove(&made);
    let (samples, without) = scene.quiet(count, 0);
    let mut never = Row::of(format!("quiet pass, {count} never deployed"), &samples);
    never.engine_calls = Some(without);
    never.limits.push(Limit::most("wall", " s", median(&never.wall), STOPPED.0));
    never.limits.push(Limit::most("RSS", " MB", never.highest_peak(), STOPPED.1));
    exist.limits.push(Limit::same("engine calls", with, without));
    vec![mixed, exist, never]
}

/// The program by itself.
fn program(scene: &Scene) -> Vec<Row> {
    let program = Program { arguments: vec!["--version".to_owned()], ..scene.program(String::new()) };
    let runs: Vec<Usage> = (0..scene.repeat * VERSION_RUNS).map(|_| program.run().0).collect();
    let mut version = Row {
        wall: runs.iter().map(|usage| usage.wall.as_secs_f64()).collect(),
        cpu: runs.iter().map(|usage| usage.cpu.as_secs_f64()).collect(),
        peak: runs.iter().map(|usage| megabytes(usage.peak)).collect(),
        ..Row::new("`--version`")
    };
    version.limits.push(Limit::most("wall", " ms", median(&version.wall) * 1e3, VERSION_MS));
    let size = std::fs::metadata(&program.path).expect("the program's file").len();
    let mut file = Row::new("the program's file");
    file.limits.push(Limit::most("size", " MB", megabytes(size), FILE));
    vec![version, file]
}
