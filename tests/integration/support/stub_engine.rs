//! What says of itself that it is an engine of some version, and can do nothing.

use std::io::{self, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::Value;

use super::http;

/// Answers `GET /version`, and everything else with an error.
pub(crate) struct StubEngine {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

impl StubEngine {
    /// Listens on a socket of its own for as long as the tests run.
    pub(crate) fn new(version: &Value) -> Self {
        let directory = tempfile::Builder::new().prefix("stub").tempdir().expect("a directory for the socket");
        let listener = UnixListener::bind(directory.path().join("docker.sock")).expect("a socket can be bound");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (noted, version) = (Arc::clone(&asked), version.to_string());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // An error is a client that went away.
                drop(serve(client, &version, &noted));
            }
        });
        Self { directory, asked }
    }

    /// The value for `DOCKER_HOST`.
    pub(crate) fn docker_host(&self) -> String {
        format!("unix://{}", self.directory.path().join("docker.sock").display())
    }

    /// `METHOD TARGET` of every request so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(mut client: UnixStream, version: &str, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let Some(head) = http::read_request(&mut reader)? else { return Ok(()) };
    http::copy_body(&mut reader, head.framing, http::Copy::Content, &mut |_| Ok(()))?;
    let request = format!("{} {}", head.method, head.target);
    let (status, body) = match request.as_str() {
        "GET /version" => ("200 OK", version),
        _ => ("500 Stub", r#"{"message":"a stub can do nothing"}"#),
    };
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    client.write_all((head + body).as_bytes())
}
