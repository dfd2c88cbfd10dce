//! One pass of connector reconciliation, then exit.
//!
//! The data flows through these stages: `config -> platform pull -> desired -> observe -> plan -> apply -> report ->
//! publish`. [`pass`] runs them in order. The modules that decide ([`desired`], [`plan`], [`render`], [`report`]) do no
//! I/O.
//!
//! Public is only what the tests and `main` use.

mod access;
mod after_apply;
mod apply;
mod check;
mod cli;
pub mod config;
pub mod desired;
pub mod exit;
mod holder;
mod key;
mod log_cursor;
mod log_lines;
mod manager;
pub mod memory;
pub mod model;
pub mod orchestrator;
pub mod pass;
pub mod plan;
mod platform;
mod prepare;
pub mod probation;
mod progress;
mod publish;
pub mod render;
pub mod report;
pub mod restart_window;
pub mod secret;
mod settle;
mod stop;
mod stored_memory;
mod telemetry;
mod xtm_one;

use std::fs::OpenOptions;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};

use cli::{Cli, Command, Output, PassArgs, XtmOne};
use config::{Allowed, ConfigError, Settings};
use key::ManagerKey;
use model::PlatformKind;
use pass::XtmOneCommand;
use progress::Progress;
use report::Report;
use stop::{Cause, Stop};

/// The size of a new key, in bits.
const KEYGEN_BITS: usize = 4096;
/// How long the process waits, once its work is done, for threads that still wait for an answer.
const GOODBYE: Duration = Duration::from_millis(100);

/// Runs the program with the arguments and the environment of the process, and returns its exit code.
#[must_use]
pub fn run() -> u8 {
    // Sets the TLS provider for all libraries that use the process's default. It fails only when it is set already, and
    // only this program sets it.
    drop(rustls::crypto::ring::default_provider().install_default());
    keep_memory_private();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { exit::OK };
            // When printing fails, there is no way left to report anything.
            drop(error.print());
            return code;
        }
    };
    let Cli { command, pass } = cli;
    let args = pass.with_all_repeated(&std::env::args_os().collect::<Vec<_>>());
    match command.unwrap_or(Command::Run) {
        Command::Run => run_pass(&args, pass::Command::Run),
        Command::Plan { detailed_exitcode } => run_pass(&args, pass::Command::Plan { detailed_exitcode }),
        Command::Release { connector } => run_pass(&args, pass::Command::Release { connector }),
        Command::Check => run_check(&args),
        Command::XtmOne(XtmOne::Rotate { user, dry_run }) => {
            run_pass(&args, pass::Command::XtmOne(XtmOneCommand::Rotate { user, dry_run }))
        }
        Command::XtmOne(XtmOne::Status { .. }) => run_pass(&args, pass::Command::XtmOne(XtmOneCommand::Status)),
        Command::XtmOne(XtmOne::Revoke { dry_run, .. }) => {
            run_pass(&args, pass::Command::XtmOne(XtmOneCommand::Revoke { dry_run }))
        }
        Command::Keygen { out } => keygen(&out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "xtm-reconcile", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Variables => print(&config::variables::markdown()),
    }
}

/// Keeps the memory of this process, which holds tokens and keys, out of core dumps and away from debuggers of the same
/// user. Where the system does not allow it, the program works all the same.
fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

fn load(args: &PassArgs) -> Result<Settings, ConfigError> {
    // A variable that is not UTF-8 cannot be one of ours.
    let environment =
        std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
    let allowed = Allowed { prune: args.allow_prune, new_key: args.accept_new_key };
    config::load(&args.config, environment, allowed, &args.platform)
}

fn run_pass(args: &PassArgs, command: pass::Command) -> u8 {
    let settings = match load(args) {
        Ok(settings) => settings,
        Err(error) => return refuse_configuration(&error, &command, args.output),
    };
    let progress = Arc::new(Progress::on_terminal());
    telemetry::start(&settings.logging, Arc::clone(&progress));
    for notice in &settings.notices {
        if notice.warning {
            tracing::warn!("{}", notice.message);
        } else {
            tracing::info!("{}", notice.message);
        }
    }
    let Settings { manager, limits, mut lanes, notices, .. } = settings;
    if matches!(&command, pass::Command::XtmOne(command) if command.is_about_keys()) {
        lanes.retain(|lane| lane.platform.kind == PlatformKind::OpenCti);
        if lanes.is_empty() {
            return complain(
                "xtm-reconcile: only OpenCTI's users have keys for XTM One, and OpenCTI is not served",
                exit::CONFIG,
            );
        }
    }
    if let pass::Command::Release { connector } = &command {
        for lane in &mut lanes {
            lane.policy.release = Some(connector.clone());
        }
    }
    let stop = Stop::after(limits.deadline, limits.stop_budget);
    let mut report = match with_runtime(&stop, pass::pass(manager, limits, lanes, command, &stop, progress)) {
        Ok(report) => report,
        Err(error) => return complain(&format!("the runtime cannot be started: {error}"), exit::ORCHESTRATOR),
    };
    report.notices.extend(notices.into_iter().map(|notice| notice.message));
    exit::worst([report.exit_code, print(&render(&report, args.output))])
}

fn run_check(args: &PassArgs) -> u8 {
    let loaded = load(args);
    let Ok(settings) = loaded else {
        let lines = loaded.err().map(|error| check::configuration_problems(&error)).unwrap_or_default();
        return exit::worst([exit::CONFIG, print(&check::render(&lines, "check", exit::CONFIG, args.output))]);
    };
    let stop = Stop::after(settings.limits.deadline, settings.limits.stop_budget);
    match with_runtime(&stop, check::check(settings, &stop)) {
        Ok((lines, code)) => exit::worst([code, print(&check::render(&lines, "check", code, args.output))]),
        Err(error) => complain(&format!("the runtime cannot be started: {error}"), exit::ORCHESTRATOR),
    }
}

/// Runs `work` on this thread and passes signals on to `stop`. Blocking calls run on threads of their own.
fn with_runtime<T>(stop: &Stop, work: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        tokio::spawn(watch_signals(stop.clone()));
        work.await
    });
    // A thread that still waits for a platform must not keep the process from ending.
    runtime.shutdown_timeout(GOODBYE);
    Ok(done)
}

async fn watch_signals(stop: Stop) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("signals cannot be watched: this pass ends at once when it is told to stop");
        return;
    };
    loop {
        let cause = tokio::select! {
            _ = interrupt.recv() => Cause::Interrupt,
            _ = terminate.recv() => Cause::Terminate,
        };
        tracing::warn!(cause = cause.as_str(), "running steps finish, nothing new starts");
        stop.signal(cause);
    }
}

fn render(report: &Report, output: Output) -> String {
    match output {
        Output::Table => report::table(report),
        Output::Json => match serde_json::to_string_pretty(report) {
            Ok(json) => json + "\n",
            Err(error) => format!("{{\"error\":\"the report cannot be written: {error}\"}}\n"),
        },
    }
}

fn refuse_configuration(error: &ConfigError, command: &pass::Command, output: Output) -> u8 {
    let command = command.name();
    if output == Output::Json {
        let lines = check::configuration_problems(error);
        return exit::worst([exit::CONFIG, print(&check::render(&lines, command, exit::CONFIG, output))]);
    }
    let mut text = format!("xtm-reconcile: {error}\n");
    for problem in &error.0 {
        text.push_str(&format!("  {problem}\n"));
    }
    complain(text.trim_end(), exit::CONFIG)
}

fn keygen(out: &Path) -> u8 {
    let key = match ManagerKey::generate(KEYGEN_BITS) {
        Ok(key) => key,
        Err(error) => return complain(&format!("xtm-reconcile: {error}"), exit::CONNECTOR_FAILED),
    };
    match write_key(out, &key) {
        Ok(()) => print(&format!("wrote {} (RSA {KEYGEN_BITS}, fingerprint {})\n", out.display(), key.fingerprint)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            complain(&format!("xtm-reconcile: {} exists and is not overwritten", out.display()), exit::CONNECTOR_FAILED)
        }
        Err(error) => {
            complain(&format!("xtm-reconcile: cannot write {}: {error}", out.display()), exit::CONNECTOR_FAILED)
        }
    }
}

/// Writes the key into a new file that only its owner can read. Deletes the file again when it cannot be written whole.
fn write_key(out: &Path, key: &ManagerKey) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let pem = key.private_pem().map_err(std::io::Error::other)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out)?;
    let written = file.write_all(pem.expose().as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        drop(std::fs::remove_file(out));
    }
    written
}

/// Prints to standard output and returns the exit code, which is another one when the reader of the output is gone.
fn print(text: &str) -> u8 {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => exit::OK,
        Err(error) => {
            complain(&format!("xtm-reconcile: the report cannot be written: {error}"), exit::CONNECTOR_FAILED)
        }
    }
}

/// Prints to standard error and returns `code`.
fn complain(text: &str, code: u8) -> u8 {
    // When this fails, there is no way left to report it.
    drop(writeln!(std::io::stderr(), "{text}"));
    code
}
