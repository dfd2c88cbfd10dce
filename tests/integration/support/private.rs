//! An engine for one test alone, which the test may stop and kill.

use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Command, Output};

use super::engine::Engine;
use super::process;

/// A private engine with the fixture images; gone with everything in it when dropped.
#[derive(Debug)]
pub(crate) struct PrivateEngine {
    engine: Engine,
    directory: PathBuf,
    arguments: Vec<String>,
    /// Where its programs are looked for first. Empty for the installed ones.
    programs: String,
}

impl Engine {
    /// Starts another engine.
    #[track_caller]
    pub(crate) fn private() -> PrivateEngine {
        Self::private_with(&[])
    }

    /// Starts an engine of the newer version that `tests/run` found. `None` when it said that it found none.
    #[track_caller]
    pub(crate) fn private_newer() -> Option<PrivateEngine> {
        let programs = super::variable("XTM_TEST_NEWER_ENGINE");
        (!programs.is_empty()).then(|| Self::private_of(programs, &[]))
    }

    /// Starts another engine, with further arguments of `dockerd`.
    #[track_caller]
    pub(crate) fn private_with(arguments: &[String]) -> PrivateEngine {
        Self::private_of(String::new(), arguments)
    }

    #[track_caller]
    fn private_of(programs: String, arguments: &[String]) -> PrivateEngine {
        // Below the run's own directory, where tests/run finds what a killed test left behind.
        let directory = PathBuf::from(super::variable("XTM_TEST_DIR")).join("private").join(super::unique("e"));
        let engine = Engine::at(directory.join("docker.sock"));
        let private = PrivateEngine { engine, directory, arguments: arguments.to_owned(), programs };
        private.start_daemon();
        private.load_images(&PathBuf::from(super::variable("XTM_TEST_IMAGES")));
        private
    }
}

impl PrivateEngine {
    /// Starts the engine again after `stop_daemon` or `kill_daemon`, on the same data.
    #[track_caller]
    pub(crate) fn start_daemon(&self) {
        let started = self.library("engine_start", &self.arguments);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    }

    /// Stops the engine as a machine's shutdown would. Its containers stop with it.
    #[track_caller]
    pub(crate) fn stop_daemon(&self) {
        process::terminate_and_wait(self.pid());
    }

    /// Kills the engine. Its containers run on, unsupervised, until it is started again or dropped.
    #[track_caller]
    pub(crate) fn kill_daemon(&self) {
        process::kill_and_wait(self.pid());
    }

    #[track_caller]
    fn pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.directory.join("dockerd.pid")).expect("the engine was started");
        text.trim().parse().expect("a pid")
    }

    /// Calls the shell library that knows how an engine comes up and goes down, bridges and mounts included.
    fn library(&self, function: &str, arguments: &[String]) -> Output {
        let library = super::repository().join("deploy/engine.sh");
        let script = r#"set -euo pipefail; . "$1"; shift; "$@""#;
        let mut bash = Command::new("bash");
        if !self.programs.is_empty() {
            bash.env("PATH", format!("{}:{}", self.programs, std::env::var("PATH").unwrap_or_default()));
        }
        bash.args(["-c", script, "bash"]).arg(library).arg(function).arg(&self.directory).args(arguments);
        bash.output().expect("bash runs")
    }
}

impl Deref for PrivateEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for PrivateEngine {
    fn drop(&mut self) {
        let ended = self.library("engine_down", &[]);
        // A test that fails already has something better to say.
        assert!(std::thread::panicking() || ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
}
