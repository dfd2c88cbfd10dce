//! Processes: the binary under test, and signals.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

pub(crate) use rustix::process::Signal;

use super::schema;

/// How long a pass may take before a test gives up on it.
const RUN_TIMEOUT: Duration = Duration::from_mins(2);
/// How long a process that was told to end may take.
const DEATH_TIMEOUT: Duration = Duration::from_secs(30);

/// The process at the other end of a unix socket.
pub(super) fn peer(socket: &UnixStream) -> std::io::Result<i32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.pid.as_raw_nonzero().get())
}

/// Sends a signal; a process that is gone already is no error.
pub(super) fn signal(pid: i32, signal: Signal) {
    assert_ne!(
        pid.unsigned_abs(),
        std::process::id(),
        "a fault of the tap would hit the test itself: use a child process"
    );
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Kills a process and comes back when it runs no more, so that it cannot see what happens next.
pub(super) fn kill_and_wait(pid: i32) {
    end_and_wait(pid, Signal::KILL);
}

/// Asks a process to end and comes back when it has.
pub(super) fn terminate_and_wait(pid: i32) {
    end_and_wait(pid, Signal::TERM);
}

fn end_and_wait(pid: i32, how: Signal) {
    let handle = Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    signal(pid, how);
    if let Some(handle) = handle {
        assert!(ended_within(&handle, DEATH_TIMEOUT), "process {pid} outlives signal {}", how.as_raw());
    }
}

fn ended_within(handle: &OwnedFd, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a short time");
        let mut descriptors = [PollFd::new(handle, PollFlags::IN)];
        match rustix::event::poll(&mut descriptors, Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll on a process: {error}"),
        }
    }
}

/// A program to run with a clean environment.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: BTreeMap<OsString, OsString>,
    timeout: Duration,
}

/// How a process ended and what it printed.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Outcome {
    /// Panics, with everything that was printed, when it ended otherwise.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        let Self { stdout, stderr, .. } = &self;
        assert_eq!(self.code, Some(code), "exit code\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        self
    }

    /// stdout as one document of the program under test. Panics when it is not as its schema says.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        schema::read(&self.stdout)
    }

    /// The one lane of the report on stdout. Panics when there are others.
    #[track_caller]
    pub(crate) fn lane(&self) -> serde_json::Value {
        schema::only_lane(&self.json())
    }
}

impl Binary {
    /// For the binary under test: `Binary::new(env!("CARGO_BIN_EXE_xtm-reconcile"))`.
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), variables: BTreeMap::new(), timeout: RUN_TIMEOUT }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub(crate) fn var(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    pub(crate) fn without_var(mut self, name: impl AsRef<OsStr>) -> Self {
        self.variables.remove(name.as_ref());
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it on a terminal of its own, without arguments: what it prints there comes on standard output, together.
    pub(crate) fn on_terminal(mut self) -> Self {
        let program = std::mem::replace(&mut self.program, "/usr/bin/script".into());
        self.arguments = ["--quiet", "--return", "--command"].map(OsString::from).into();
        self.arguments.extend([program.into_os_string(), "/dev/null".into()]);
        self.var("TERM", "xterm")
    }

    /// Runs it to its end. Panics, with what was printed, when that takes longer than the timeout.
    #[track_caller]
    pub(crate) fn run(&self) -> Outcome {
        self.spawn().wait()
    }

    #[track_caller]
    pub(crate) fn spawn(&self) -> Running {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(&self.variables);
        Running::start(&mut command, self.timeout)
    }
}

/// A process under way. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    handle: OwnedFd,
    ended: Option<ExitStatus>,
    started: Instant,
    timeout: Duration,
    stdout: Printed,
    stderr: Printed,
}

impl Running {
    /// Starts any command, for those that are not the binary under test.
    #[track_caller]
    pub(crate) fn start(command: &mut Command, timeout: Duration) -> Self {
        let program = command.get_program().to_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let pid = Pid::from_child(&child);
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).expect("a handle on the process");
        let stdout = Printed::read(child.stdout.take().expect("stdout is piped"));
        let stderr = Printed::read(child.stderr.take().expect("stderr is piped"));
        Self { child, handle, ended: None, started: Instant::now(), timeout, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; a process that has ended already is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.handle, signal);
    }

    pub(crate) fn is_running(&self) -> bool {
        !ended_within(&self.handle, Duration::ZERO)
    }

    /// Waits until stderr contains `needle`. Panics when it does not come in time.
    #[track_caller]
    pub(crate) fn wait_for_stderr(&self, needle: &str, timeout: Duration) {
        self.stderr.wait_for(needle, timeout);
    }

    /// Waits until stdout contains `needle`. Panics when it does not come in time.
    #[track_caller]
    pub(crate) fn wait_for_stdout(&self, needle: &str, timeout: Duration) {
        self.stdout.wait_for(needle, timeout);
    }

    /// Waits for the end. Panics, with what was printed, when that takes longer than the timeout.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Outcome {
        let left = self.timeout.saturating_sub(self.started.elapsed());
        let in_time = ended_within(&self.handle, left);
        let took = self.started.elapsed();
        let status = self.end();
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        assert!(in_time, "did not end within {:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", self.timeout);
        Outcome { code: status.code(), signal: status.signal(), stdout, stderr, took }
    }

    fn end(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        if self.is_running() {
            self.signal(Signal::KILL);
        }
        let status = self.child.wait().expect("the process can be waited for");
        self.ended = Some(status);
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a process prints to one of its outputs, read while it runs.
#[derive(Debug)]
struct Printed {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    text: Mutex<Text>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    complete: bool,
}

impl Text {
    fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Printed {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut text = ours.lock();
                text.bytes.extend_from_slice(&buffer[..count]);
                text.complete = count == 0;
                ours.changed.notify_all();
                if text.complete {
                    return;
                }
            }
        });
        Self { shared, reader: Some(reader) }
    }

    #[track_caller]
    fn wait_for(&self, needle: &str, timeout: Duration) {
        let missing = |text: &mut Text| !text.complete && !text.to_text().contains(needle);
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), timeout, missing);
        let printed = waited.unwrap_or_else(PoisonError::into_inner).0.to_text();
        assert!(printed.contains(needle), "waited {timeout:?} in vain for {needle:?} in:\n{printed}");
    }

    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.shared.lock().to_text()
    }
}
