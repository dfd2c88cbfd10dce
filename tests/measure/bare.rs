//! A client that makes the requests of a quiet pass and nothing else: it plans nothing, and reads answers without a look
//! at them. It makes them as two streams side by side: while one inspects the containers, the other reads the logs of those
//! inspected and sends health and logs. Each stream works on as many connectors at a time as a pass does.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::recorder::{Recorded, To};
use crate::support::http::{self, Copy};

/// The requests of one pass, in the order in which the client makes them.
pub(crate) struct Bare {
    engine: PathBuf,
    /// `host:port`.
    platform: String,
    concurrency: usize,
    before: Vec<Recorded>,
    inspections: Vec<Recorded>,
    publications: Vec<Publication>,
    after: Vec<Recorded>,
}

/// What is asked and sent for one connector once it was inspected.
struct Publication {
    log: Recorded,
    health: Recorded,
    logs: Recorded,
}

impl Bare {
    /// The client for what a pass over `connectors` running ones sent.
    pub(crate) fn new(
        engine: &Path,
        platform: &str,
        concurrency: usize,
        recorded: Vec<Recorded>,
        connectors: usize,
    ) -> Self {
        let mut bare = Self {
            engine: engine.to_owned(),
            platform: platform.to_owned(),
            concurrency,
            before: vec![],
            inspections: vec![],
            publications: vec![],
            after: vec![],
        };
        let (mut log, mut health, mut logs) = (BTreeMap::new(), vec![], vec![]);
        let mut lock = None;
        for mut request in recorded {
            let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
            if let Some(id) = container(path, "/json") {
                log.entry(id.to_owned()).or_insert_with(Vec::new);
                bare.inspections.push(request);
            } else if let Some(id) = container(path, "/logs") {
                log.entry(id.to_owned()).or_insert_with(Vec::new).push(request);
            } else if request.mentions("updateConnectorHealth") {
                health.push(request);
            } else if request.mentions("updateConnectorLogs") {
                logs.push(request);
            } else {
                let name = query.split('&').find_map(|pair| pair.strip_prefix("name="));
                if let Some(name) = name.filter(|_| path.ends_with("/containers/create")) {
                    lock = Some(name.to_owned());
                }
                if let (Some(name), "DELETE") = (&lock, request.method.as_str()) {
                    // The pass knows the id from the answer, which this client does not read.
                    let id = path.rsplit('/').next().unwrap_or_default().to_owned();
                    request.replace(&id, name);
                }
                let early = bare.inspections.is_empty();
                if early { &mut bare.before } else { &mut bare.after }.push(request);
            }
        }
        let ids: Vec<_> = bare.inspections.iter().filter_map(|one| container(&one.target, "/json")).collect();
        for ((id, health), logs) in ids.into_iter().zip(health).zip(logs) {
            let log = log.get_mut(id).and_then(Vec::pop).expect("the log of each is read");
            bare.publications.push(Publication { log, health, logs });
        }
        assert_eq!((bare.inspections.len(), bare.publications.len()), (connectors, connectors), "requests of a pass");
        bare
    }

    /// Makes all requests. Gives how long that took.
    pub(crate) fn run(&self) -> Duration {
        let begun = Instant::now();
        let (mut engine, mut platform) = (None, None);
        self.before.iter().for_each(|request| self.send(request, &mut engine, &mut platform));
        let (next, published) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (inspected, waiting) = mpsc::channel();
        let waiting = Mutex::new(waiting);
        thread::scope(|scope| {
            for _ in 0..self.concurrency {
                let (inspected, next) = (inspected.clone(), &next);
                scope.spawn(move || {
                    let mut engine = None;
                    while let Some(request) = self.inspections.get(next.fetch_add(1, Ordering::Relaxed)) {
                        self.ask_engine(request, &mut engine);
                        let _ = inspected.send(());
                    }
                });
            }
            drop(inspected);
            for _ in 0..self.concurrency {
                scope.spawn(|| {
                    let (mut engine, mut platform) = (None, None);
                    let ready = || waiting.lock().expect("nobody panicked").recv();
                    while ready().is_ok() {
                        let one = &self.publications[published.fetch_add(1, Ordering::Relaxed)];
                        self.ask_engine(&one.log, &mut engine);
                        self.ask_platform(&one.health, &mut platform);
                        self.ask_platform(&one.logs, &mut platform);
                    }
                });
            }
        });
        self.after.iter().for_each(|request| self.send(request, &mut engine, &mut platform));
        begun.elapsed()
    }

    fn send(&self, request: &Recorded, engine: &mut Kept<UnixStream>, platform: &mut Kept<TcpStream>) {
        match request.to {
            To::Engine => self.ask_engine(request, engine),
            To::Platform => self.ask_platform(request, platform),
        }
    }

    /// Asks the engine on a connection that stays open for reads. As in a pass, everything else has one of its own.
    fn ask_engine(&self, request: &Recorded, kept: &mut Kept<UnixStream>) {
        let connect = || UnixStream::connect(&self.engine).expect("the engine can be reached");
        let mut own = None;
        let connection = if request.method == "GET" { kept } else { &mut own };
        exchange(request, connection.get_or_insert_with(|| BufReader::new(connect())));
    }

    /// Asks the platform on a connection that stays open.
    fn ask_platform(&self, request: &Recorded, kept: &mut Kept<TcpStream>) {
        let connection = kept.get_or_insert_with(|| {
            let stream = TcpStream::connect(&self.platform).expect("the platform can be reached");
            stream.set_nodelay(true).expect("a connected stream");
            BufReader::new(stream)
        });
        exchange(request, connection);
    }
}

/// A connection that stays open after its first use.
type Kept<S> = Option<BufReader<S>>;

/// Sends the request and reads the whole answer, of which nothing is kept.
fn exchange<S: Read + Write>(request: &Recorded, connection: &mut BufReader<S>) {
    connection.get_mut().write_all(&request.raw).expect("the request is taken");
    let answer = http::read_response(connection, &request.method).expect("an answer");
    assert!((200..300).contains(&answer.status), "{}: {}", request.target, answer.status);
    http::copy_body(connection, answer.framing, Copy::Content, &mut |_| Ok(())).expect("the whole answer");
}

/// The id of the container that a path like `/v1.41/containers/ID/json` is about.
fn container<'a>(target: &'a str, end: &str) -> Option<&'a str> {
    let path = target.split('?').next()?;
    path.strip_suffix(end)?.rsplit_once("/containers/").map(|(_, id)| id)
}

impl Recorded {
    fn mentions(&self, what: &str) -> bool {
        self.to == To::Platform && self.raw.windows(what.len()).any(|part| part == what.as_bytes())
    }

    /// Puts `by` in the place of `what`, wherever it is in the request.
    fn replace(&mut self, what: &str, by: &str) {
        self.target = self.target.replace(what, by);
        let text = String::from_utf8(std::mem::take(&mut self.raw)).expect("a request in UTF-8");
        self.raw = text.replace(what, by).into_bytes();
    }
}
