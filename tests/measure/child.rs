//! One process at a time: its wall time, its CPU time and its peak memory, as the kernel counts them at its end.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// First argument of this program that makes it run and measure another one.
pub(crate) const ALONE: &str = "alone";

/// What a process used.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// From before its start until after its end.
    pub(crate) wall: Duration,
    /// User and system, of all its threads.
    pub(crate) cpu: Duration,
    /// Peak resident memory, in bytes.
    pub(crate) peak: u64,
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
}

/// A program to measure, with a clean environment.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
}

impl Program {
    /// Runs it to its end; gives what it used and what it printed to stdout.
    ///
    /// It is started by a small process made for this one run: between fork and exec a child counts its parent's
    /// memory as its own, and this process's grows with what it keeps.
    pub(crate) fn run(&self) -> (Usage, String) {
        let directory = tempfile::tempdir().expect("a directory for what it prints");
        let (out, err) = (directory.path().join("out"), directory.path().join("err"));
        let mut alone = Command::new(std::env::current_exe().expect("this program's path"));
        alone.arg(ALONE).arg(&out).arg(&err).arg(&self.path).args(&self.arguments);
        alone.env_clear().envs(self.variables.iter().map(|(name, value)| (name, value)));
        let measured = alone.stdin(Stdio::null()).output().expect("this program can be started again");
        let usage: Usage = serde_json::from_slice(&measured.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&measured.stderr)));
        let printed = std::fs::read_to_string(out).expect("what it printed");
        let said = std::fs::read_to_string(err).expect("what it said");
        assert_eq!(usage.code, Some(0), "exit code\n--- stdout\n{printed}\n--- stderr\n{said}");
        (usage, printed)
    }
}

/// The small process: `alone STDOUT STDERR PROGRAM ARGUMENTS...`; gives the usage as JSON.
pub(crate) fn alone(mut arguments: impl Iterator<Item = OsString>) -> String {
    let mut next = || arguments.next().expect("alone STDOUT STDERR PROGRAM ARGUMENTS...");
    let out = File::create(next()).expect("a file for stdout");
    let err = File::create(next()).expect("a file for stderr");
    let mut command = Command::new(next());
    command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err);
    let begun = Instant::now();
    let used = command.spawn().and_then(wait4::Wait4::wait4).expect("the program runs");
    let wall = begun.elapsed();
    let (cpu, peak) = (used.rusage.utime + used.rusage.stime, used.rusage.maxrss);
    serde_json::to_string(&Usage { wall, cpu, peak, code: used.status.code() }).expect("JSON")
}
