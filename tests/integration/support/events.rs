//! The engine's event stream: to wait for a change, and to know afterwards what was done.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::engine::{Engine, MANAGER_LABELS};
use super::http::{self, Copy};

/// How long the marker that ends a log may take to come through.
const MARKER_TIMEOUT: Duration = Duration::from_secs(30);

/// One thing that happened on the engine.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// `container`, `image`, `network`, `volume`, ...
    pub(crate) kind: String,
    /// `create`, `start`, `die`, `destroy`, `rename`, `pull`, `tag`, ...
    pub(crate) action: String,
    /// The container's name, or the image's.
    pub(crate) name: String,
    pub(crate) id: String,
    /// Labels among them, for a container.
    pub(crate) attributes: BTreeMap<String, String>,
}

impl Event {
    fn from_json(json: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let id = text(&json["Actor"]["ID"]);
        let attributes = json["Actor"]["Attributes"].as_object().into_iter().flatten();
        let attributes: BTreeMap<_, _> = attributes.map(|(name, value)| (name.clone(), text(value))).collect();
        let name = if json["Type"] == "image" { Some(&id) } else { attributes.get("name") };
        Self {
            kind: text(&json["Type"]),
            action: text(&json["Action"]),
            name: name.unwrap_or(&id).clone(),
            id,
            attributes,
        }
    }

    /// Whether it happened to a container of this manager.
    pub(crate) fn is_of(&self, manager: &str) -> bool {
        MANAGER_LABELS.iter().any(|label| self.attributes.get(*label).is_some_and(|value| value == manager))
    }
}

/// `container create my-connector`.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kind, self.action, self.name)
    }
}

/// Events as they come, from the moment it was opened.
#[derive(Debug)]
pub(crate) struct EventStream {
    connection: UnixStream,
    events: Receiver<Event>,
}

impl EventStream {
    #[track_caller]
    pub(crate) fn open(engine: &Engine) -> Self {
        // `since` closes the gap between the answer's head and the subscription.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
        let since = format!("{}.{:09}", since.as_secs(), since.subsec_nanos());
        let mut connection = UnixStream::connect(engine.socket()).expect("the engine can be reached");
        let request = format!("GET /events?since={since} HTTP/1.1\r\nHost: docker\r\n\r\n");
        connection.write_all(request.as_bytes()).expect("the request for events is sent");
        let mut reader = BufReader::new(connection.try_clone().expect("a second handle"));
        let head = http::read_response(&mut reader, "GET").expect("the engine answers the request for events");
        assert_eq!(head.status, 200, "GET /events");

        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            let mut pending = Vec::new();
            // Ends with the connection: there is nobody left to tell about an error.
            let _ = http::copy_body(&mut reader, head.framing, Copy::Content, &mut |bytes| {
                pending.extend_from_slice(bytes);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    if let Ok(json) = serde_json::from_slice(&line) {
                        let _ = sender.send(Event::from_json(&json));
                    }
                }
                Ok(())
            });
        });
        Self { connection, events }
    }

    /// The next event, if one comes in time.
    pub(crate) fn next(&self, timeout: Duration) -> Option<Event> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                // The engine went away; do not spin until it is back.
                thread::sleep(timeout);
                None
            }
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let _ = self.connection.shutdown(Shutdown::Both);
    }
}

/// Everything that happens on an engine between `start` and `finish`, complete even while other tests are busy there.
#[derive(Debug)]
pub(crate) struct EventLog {
    engine: Engine,
    stream: EventStream,
}

impl EventLog {
    #[track_caller]
    pub(crate) fn start(engine: &Engine) -> Self {
        Self { engine: engine.clone(), stream: EventStream::open(engine) }
    }

    /// Ends the log. A marker event of our own tells when everything before it has arrived.
    #[track_caller]
    pub(crate) fn finish(self) -> Vec<Event> {
        let marker = super::unique("event-log-end");
        self.engine.post("/volumes/create", &serde_json::json!({"Name": marker})).expect_success("marker");
        let deadline = Instant::now() + MARKER_TIMEOUT;
        let mut events = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.stream.next(left).expect("the marker event comes through");
            if event.kind == "volume" && event.id == marker {
                break;
            }
            events.push(event);
        }
        self.engine.call("DELETE", &format!("/volumes/{marker}")).expect_success("remove the marker");
        events
    }

    /// Ends the log and keeps what happened to one manager's containers, as `container create my-connector`.
    #[track_caller]
    pub(crate) fn finish_for(self, manager: &str) -> Vec<String> {
        self.finish().iter().filter(|event| event.is_of(manager)).map(ToString::to_string).collect()
    }
}
