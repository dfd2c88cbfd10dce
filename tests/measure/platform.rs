//! The stand-in platform as a process of its own, so that what it uses is not counted with the program.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::de::DeserializeOwned;
use stand_in_platform::{Call, Kind, State};

/// Largest answer that is read, in bytes: a journal with the logs of thousands of connectors.
const ANSWER_MAX: u64 = 1 << 30;

/// A running stand-in; ended when dropped.
pub(crate) struct Platform {
    child: Child,
    pub(crate) url: String,
}

impl Platform {
    /// Starts it on a free port.
    pub(crate) fn start(program: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(["--listen", "127.0.0.1:0"]).env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut line);
        read.expect("the stand-in says where it listens");
        let url = line.trim().strip_prefix("listening on ").expect("an address").to_owned();
        Self { child, url }
    }

    /// Replaces everything that the platform knows.
    pub(crate) fn set(&self, state: &State) {
        let body = serde_json::to_vec(state).expect("JSON");
        ureq::put(self.control("state")).send(&body[..]).expect("the stand-in takes the state");
    }

    /// Everything that the platform knows.
    pub(crate) fn state(&self) -> State {
        self.get("state")
    }

    /// Forgets the calls so far.
    pub(crate) fn forget_calls(&self) {
        ureq::delete(self.control("journal")).call().expect("the stand-in clears its journal");
    }

    /// HTTP requests since they were forgotten.
    pub(crate) fn calls(&self) -> usize {
        self.get::<Vec<Call>>("journal").iter().filter(|call| call.kind != Kind::Event).count()
    }

    fn get<T: DeserializeOwned>(&self, what: &str) -> T {
        let mut response = ureq::get(self.control(what)).call().expect("the stand-in answers");
        let body = response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec().expect("a whole answer");
        serde_json::from_slice(&body).expect("JSON")
    }

    fn control(&self, what: &str) -> String {
        format!("{}/_control/{what}", self.url)
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
