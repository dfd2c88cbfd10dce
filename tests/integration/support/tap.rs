//! A unix socket in front of an engine's: it notes every request, and at a chosen one it makes something go wrong.
//!
//! Bodies are copied unread. A request and its answer are followed to their ends, so that requests on a kept-alive
//! connection are told apart, and a raw stream after a protocol upgrade is passed through in both directions.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::http::{self, Copy, Framing, RequestHead, ResponseHead};
use super::process::{self, Signal};

/// One request that came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query as they came.
    pub(crate) target: String,
    /// Without the API version and without the query: `/containers/create`.
    pub(crate) path: String,
    /// Still percent-encoded; empty when there is none.
    pub(crate) query: String,
    /// The process that sent it.
    pub(crate) pid: i32,
    /// Counts the connections to the tap. Requests with the same number came on the same one.
    pub(crate) connection: usize,
}

impl Request {
    fn new(head: &RequestHead, pid: i32, connection: usize) -> Self {
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let (target, query) = (head.target.clone(), query.to_owned());
        Self { method: head.method.clone(), target, path: without_version(path).to_owned(), query, pid, connection }
    }

    /// Whether it changes the engine's state.
    pub(crate) fn is_write(&self) -> bool {
        let asks_only = matches!(self.method.as_str(), "GET" | "HEAD")
            || self.path == "/auth"
            || self.path.starts_with("/containers/") && self.path.ends_with("/wait");
        !asks_only
    }

    /// Whether it is described by `pattern`: `METHOD PATH`, where `*` in the path stands for anything, `*` as method
    /// for every method and `WRITE` for every request that changes something.
    pub(crate) fn matches(&self, pattern: &str) -> bool {
        let (method, path) = pattern.split_once(' ').expect("a pattern is METHOD PATH");
        let method_fits = match method {
            "*" => true,
            "WRITE" => self.is_write(),
            method => method == self.method,
        };
        method_fits && glob(path, &self.path)
    }
}

/// `POST /containers/create`.
impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

fn without_version(path: &str) -> &str {
    let versioned = path.strip_prefix("/v").and_then(|rest| rest.split_once('/'));
    match versioned {
        Some((version, _)) if version.chars().all(|c| c.is_ascii_digit() || c == '.') => &path[version.len() + 2..],
        _ => path,
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|tail| {
            tail.char_indices().map(|(at, _)| at).chain([tail.len()]).any(|at| glob(rest, &tail[at..]))
        }),
    }
}

/// What goes wrong at a chosen request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The client is killed before the engine hears of the request.
    KillBefore,
    /// The engine did it and answered in full; the client is killed before it hears of that.
    KillAfter,
    /// The client gets a signal before the request is passed on, as if nothing else had happened.
    SignalBefore(Signal),
    /// The client gets a signal after the engine's answer, just before it is passed on.
    SignalAfter(Signal),
    /// The engine never hears of the request; the client gets this status.
    Status(u16),
    /// The engine did it; the client gets this status all the same.
    StatusAfter(u16),
    /// The engine never hears of the request; the connection is closed.
    Drop,
    /// The same, and once more when the request is a read, because the program makes it again.
    DropWithRepeat,
    /// The engine did it; the connection is closed without an answer.
    DropAfter,
    /// This request and all that come later get no answer, and the engine never hears of them.
    HangFromHere,
    /// This request gets the beginning of an answer and no more.
    HangInBody,
}

enum Action {
    Fault(Fault),
    Hold { arrived: Sender<()>, release: Receiver<()> },
}

struct Rule {
    pattern: String,
    /// Matching requests still to be let through before this one.
    skip: usize,
    action: Action,
}

#[derive(Default)]
struct State {
    requests: Vec<Request>,
    rules: Vec<Rule>,
    faults: usize,
    hangs: bool,
    turns: Option<Arc<Turns>>,
    connections: usize,
    closes: bool,
}

/// The proxy. Several clients may use it at once; its counts run over all of them.
pub(crate) struct ApiTap {
    directory: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

/// A request that is kept waiting. Dropping the gate lets it go on.
pub(crate) struct Gate {
    arrived: Receiver<()>,
    release: Sender<()>,
}

impl Gate {
    /// Waits until the request is there. Panics when it does not come in time.
    #[track_caller]
    pub(crate) fn wait(&self, timeout: Duration) {
        self.arrived.recv_timeout(timeout).expect("the request to hold arrives in time");
    }

    /// Lets the request go on to the engine.
    pub(crate) fn release(self) {
        let _ = self.release.send(());
    }
}

impl ApiTap {
    /// Listens on a socket of its own in front of `engine`.
    pub(crate) fn new(engine: &Engine) -> Self {
        let directory = tempfile::Builder::new().prefix("tap").tempdir().expect("a directory for the socket");
        let listener = UnixListener::bind(directory.path().join("docker.sock")).expect("a socket can be bound");
        let state = Arc::new(Mutex::new(State::default()));
        let (engine, shared) = (engine.socket().to_owned(), Arc::downgrade(&state));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Some(state)) = (client, shared.upgrade()) else { return };
                let engine = engine.clone();
                thread::spawn(move || serve(&client, &engine, &state));
            }
        });
        Self { directory, state }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// The value for `DOCKER_HOST`.
    pub(crate) fn docker_host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Everything asked since the start or the last `clear`, in order of arrival.
    pub(crate) fn requests(&self) -> Vec<Request> {
        lock(&self.state).requests.clone()
    }

    /// The requests among them that change something.
    pub(crate) fn writes(&self) -> Vec<Request> {
        self.requests().into_iter().filter(Request::is_write).collect()
    }

    /// How many of them are described by `pattern` (see [`Request::matches`]).
    pub(crate) fn count(&self, pattern: &str) -> usize {
        lock(&self.state).requests.iter().filter(|request| request.matches(pattern)).count()
    }

    /// Forgets the requests and the rules that have not come true.
    pub(crate) fn clear(&self) {
        *lock(&self.state) = State::default();
    }

    /// Lets `fault` happen at the `nth` (from 1) request from now on that is described by `pattern`, once.
    pub(crate) fn inject(&self, pattern: &str, nth: usize, fault: Fault) {
        self.add(pattern, nth, Action::Fault(fault));
    }

    /// Keeps the `nth` (from 1) request from now on that is described by `pattern` until the gate is released.
    pub(crate) fn hold(&self, pattern: &str, nth: usize) -> Gate {
        let (arrived_sender, arrived) = mpsc::channel();
        let (release, release_receiver) = mpsc::channel();
        self.add(pattern, nth, Action::Hold { arrived: arrived_sender, release: release_receiver });
        Gate { arrived, release }
    }

    /// Lets the requests through one at a time, in the order that `turns` draws.
    pub(crate) fn take_turns(&self, turns: &Arc<Turns>) {
        lock(&self.state).turns = Some(Arc::clone(turns));
    }

    /// Closes each connection after its first answer, without saying so in that answer.
    pub(crate) fn close_after_each_answer(&self) {
        lock(&self.state).closes = true;
    }

    /// How many faults have happened: none means that the nth request never came.
    pub(crate) fn faults(&self) -> usize {
        lock(&self.state).faults
    }

    fn add(&self, pattern: &str, nth: usize, action: Action) {
        assert!(nth > 0, "requests are counted from 1");
        lock(&self.state).rules.push(Rule { pattern: pattern.to_owned(), skip: nth - 1, action });
    }
}

/// Draws which of several waiting requests comes next, so that two programs meet in every order.
pub(crate) struct Turns {
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    waiting: Vec<u64>,
    tickets: u64,
    /// The request whose turn it is.
    turn: Option<u64>,
    last_change: Instant,
    random: u64,
}

/// Ends the turn of a request when it is dropped.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    /// How long nothing has to happen before the next request is drawn: a program that is about to ask needs the time.
    const QUIET: Duration = Duration::from_millis(4);

    /// The same seed draws the same order from the same requests.
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let queue = Queue { waiting: vec![], tickets: 0, turn: None, last_change: Instant::now(), random };
        Arc::new(Self { queue: Mutex::new(queue), changed: Condvar::new() })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wait(&self) -> Turn<'_> {
        let mut queue = self.queue();
        queue.tickets += 1;
        let own = queue.tickets;
        queue.waiting.push(own);
        queue.last_change = Instant::now();
        loop {
            if queue.turn.is_none() && queue.last_change.elapsed() >= Self::QUIET {
                // xorshift64
                queue.random ^= queue.random << 13;
                queue.random ^= queue.random >> 7;
                queue.random ^= queue.random << 17;
                let drawn = usize::try_from(queue.random % queue.waiting.len() as u64).expect("an index");
                queue.turn = Some(queue.waiting.swap_remove(drawn));
                self.changed.notify_all();
            }
            if queue.turn == Some(own) {
                return Turn(self);
            }
            let waited = self.changed.wait_timeout(queue, Self::QUIET);
            queue = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        (queue.turn, queue.last_change) = (None, Instant::now());
        self.0.changed.notify_all();
    }
}

impl Drop for ApiTap {
    fn drop(&mut self) {
        // Wakes the listening thread, which then finds nobody to listen for.
        let socket = self.socket();
        self.state = Arc::default();
        let _ = UnixStream::connect(socket);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Notes a request and takes out the rule that it makes come true.
fn note(state: &Mutex<State>, request: &Request) -> Option<Action> {
    let mut state = lock(state);
    state.requests.push(request.clone());
    let mut due = None;
    for (index, rule) in state.rules.iter_mut().enumerate() {
        if request.matches(&rule.pattern) {
            if rule.skip == 0 && due.is_none() {
                due = Some(index);
            }
            rule.skip = rule.skip.saturating_sub(1);
        }
    }
    let mut action = due.map(|index| state.rules.remove(index).action);
    if matches!(action, Some(Action::Fault(Fault::DropWithRepeat))) && !request.is_write() {
        state.rules.push(Rule { pattern: request.to_string(), skip: 0, action: Action::Fault(Fault::Drop) });
    }
    state.hangs |= matches!(action, Some(Action::Fault(Fault::HangFromHere)));
    if state.hangs {
        action = Some(Action::Fault(Fault::HangFromHere));
    }
    if matches!(action, Some(Action::Fault(_))) {
        state.faults += 1;
    }
    action
}

/// Serves one client connection until either side closes it. Errors end the connection, as an engine's would.
fn serve(client: &UnixStream, engine: &Path, state: &Mutex<State>) {
    let Ok(pid) = process::peer(client) else { return };
    let Ok(upstream) = UnixStream::connect(engine) else { return };
    let number = {
        let mut state = lock(state);
        state.connections += 1;
        state.connections
    };
    let served = Connection::new(client, &upstream).and_then(|mut connection| {
        while let Some(head) = http::read_request(&mut connection.from_client)? {
            let request = Request::new(&head, pid, number);
            let action = note(state, &request);
            let turns = lock(state).turns.clone();
            let _turn = turns.as_ref().map(|turns| turns.wait());
            if !connection.exchange(&head, &request, action)? || lock(state).closes {
                break;
            }
        }
        Ok(())
    });
    drop::<io::Result<()>>(served);
    let _ = client.shutdown(Shutdown::Both);
    let _ = upstream.shutdown(Shutdown::Both);
}

struct Connection<'a> {
    client: &'a UnixStream,
    engine: &'a UnixStream,
    from_client: BufReader<UnixStream>,
    from_engine: BufReader<UnixStream>,
}

impl<'a> Connection<'a> {
    fn new(client: &'a UnixStream, engine: &'a UnixStream) -> io::Result<Self> {
        let from_client = BufReader::new(client.try_clone()?);
        let from_engine = BufReader::new(engine.try_clone()?);
        Ok(Self { client, engine, from_client, from_engine })
    }

    /// One request and its answer. False when the connection is over.
    fn exchange(&mut self, head: &RequestHead, request: &Request, action: Option<Action>) -> io::Result<bool> {
        let fault = match action {
            None => None,
            Some(Action::Fault(fault)) => Some(fault),
            Some(Action::Hold { arrived, release }) => {
                let _ = arrived.send(());
                let _ = release.recv(); // an error means that the gate was dropped
                None
            }
        };
        match fault {
            Some(Fault::KillBefore) => {
                process::kill_and_wait(request.pid);
                return Ok(false);
            }
            Some(Fault::Drop | Fault::DropWithRepeat) => return Ok(false),
            Some(fault @ (Fault::HangFromHere | Fault::HangInBody)) => {
                if matches!(fault, Fault::HangInBody) {
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n[";
                    (&*self.client).write_all(head.as_bytes())?;
                }
                // Until the client gives up.
                io::copy(&mut self.from_client, &mut io::sink())?;
                return Ok(false);
            }
            Some(Fault::SignalBefore(signal)) => process::signal(request.pid, signal),
            Some(Fault::Status(status)) => {
                // The body is taken off the wire, so that the connection can be used on.
                http::copy_body(&mut self.from_client, head.framing, Copy::Verbatim, &mut |_| Ok(()))?;
                return self.answer(request, status);
            }
            _ => {}
        }
        let response = self.forward(head)?;
        let after =
            matches!(fault, Some(Fault::KillAfter | Fault::SignalAfter(_) | Fault::StatusAfter(_) | Fault::DropAfter));
        if !after {
            return self.pass_back(&response);
        }
        let mut answer = response.raw.clone();
        http::copy_body(&mut self.from_engine, response.framing, Copy::Verbatim, &mut |bytes| {
            answer.extend_from_slice(bytes);
            Ok(())
        })?;
        match fault {
            Some(Fault::KillAfter) => {
                process::kill_and_wait(request.pid);
                Ok(false)
            }
            Some(Fault::StatusAfter(status)) => self.answer(request, status),
            Some(Fault::SignalAfter(signal)) => {
                process::signal(request.pid, signal);
                (&*self.client).write_all(&answer)?;
                Ok(response.framing != Framing::UntilClose)
            }
            _ => Ok(false),
        }
    }

    /// Sends the request on and reads the head of its answer. The body goes in a thread of its own, because an
    /// engine may answer before it has read everything.
    fn forward(&mut self, head: &RequestHead) -> io::Result<ResponseHead> {
        let (mut engine, from_client, from_engine) = (self.engine, &mut self.from_client, &mut self.from_engine);
        engine.write_all(&head.raw)?;
        if head.framing == Framing::Length(0) {
            return http::read_response(from_engine, &head.method);
        }
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut engine_reads = true;
                http::copy_body(from_client, head.framing, Copy::Verbatim, &mut |bytes| {
                    // Once the engine has had enough, the rest is only taken off the wire.
                    engine_reads = engine_reads && engine.write_all(bytes).is_ok();
                    Ok(())
                })
            });
            http::read_response(from_engine, &head.method)
        })
    }

    /// Passes an answer back while it comes. False when it has no end but the connection's.
    fn pass_back(&mut self, response: &ResponseHead) -> io::Result<bool> {
        let mut client = self.client;
        client.write_all(&response.raw)?;
        if response.framing != Framing::UntilClose {
            http::copy_body(&mut self.from_engine, response.framing, Copy::Verbatim, &mut |b| client.write_all(b))?;
            return Ok(true);
        }
        // A raw stream: both directions, each closed when its sender is done.
        let (mut engine, from_client, from_engine) = (self.engine, &mut self.from_client, &mut self.from_engine);
        thread::scope(|scope| {
            scope.spawn(move || {
                let _ = io::copy(from_client, &mut engine);
                let _ = engine.shutdown(Shutdown::Write);
            });
            let copied = io::copy(&mut from_engine.by_ref(), &mut client);
            let _ = client.shutdown(Shutdown::Both);
            copied
        })?;
        Ok(false)
    }

    fn answer(&mut self, request: &Request, status: u16) -> io::Result<bool> {
        let body = format!("{{\"message\":\"the tap answers {status} to {request}\"}}");
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status} Injected\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        (&*self.client).write_all((head + &body).as_bytes())?;
        Ok(true)
    }
}
