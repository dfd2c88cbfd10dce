//! Notes what a pass sends to the engine and to the platform, byte by byte, so that it can be sent again without the pass.

use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::support::http::{self, Copy, Framing};

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Engine,
    Platform,
}

/// One request, as it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) to: To,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) raw: Vec<u8>,
}

/// Stands before an engine and a platform, and passes everything on.
pub(crate) struct Recorder {
    directory: tempfile::TempDir,
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Recorded>>>,
}

trait Wire: Read + Write + Send + Sized + 'static {
    fn twin(&self) -> io::Result<Self>;
}

impl Wire for UnixStream {
    fn twin(&self) -> io::Result<Self> {
        self.try_clone()
    }
}

impl Wire for TcpStream {
    fn twin(&self) -> io::Result<Self> {
        self.try_clone()
    }
}

impl Recorder {
    /// Listens before the engine of this socket and the platform at `address`, which is `host:port`.
    pub(crate) fn new(engine: &Path, address: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("recorder").tempdir().expect("a directory for the socket");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let sockets = UnixListener::bind(directory.path().join("docker.sock")).expect("a socket can be bound");
        let (engine, noted) = (engine.to_owned(), Arc::clone(&requests));
        thread::spawn(move || {
            for client in sockets.incoming().flatten() {
                let upstream = UnixStream::connect(&engine).expect("the engine can be reached");
                let noted = Arc::clone(&noted);
                thread::spawn(move || pass_on(&client, &upstream, To::Engine, &noted));
            }
        });
        let ports = TcpListener::bind("127.0.0.1:0").expect("a port can be bound");
        let url = format!("http://{}", ports.local_addr().expect("an address"));
        let (address, noted) = (address.to_owned(), Arc::clone(&requests));
        thread::spawn(move || {
            for client in ports.incoming().flatten() {
                let upstream = TcpStream::connect(&address).expect("the platform can be reached");
                let noted = Arc::clone(&noted);
                thread::spawn(move || pass_on(&client, &upstream, To::Platform, &noted));
            }
        });
        Self { directory, url, requests }
    }

    /// The value for `DOCKER_HOST`.
    pub(crate) fn docker_host(&self) -> String {
        format!("unix://{}", self.directory.path().join("docker.sock").display())
    }

    /// All requests in the order in which they came, which are forgotten.
    pub(crate) fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves one connection until either side closes it.
fn pass_on<W: Wire>(client: &W, upstream: &W, to: To, noted: &Mutex<Vec<Recorded>>) {
    let served = || -> io::Result<()> {
        let (mut from_client, mut from_upstream) = (BufReader::new(client.twin()?), BufReader::new(upstream.twin()?));
        let (mut client, mut upstream) = (client.twin()?, upstream.twin()?);
        while let Some(head) = http::read_request(&mut from_client)? {
            let mut raw = head.raw;
            http::copy_body(&mut from_client, head.framing, Copy::Verbatim, &mut |bytes| {
                raw.extend_from_slice(bytes);
                Ok(())
            })?;
            upstream.write_all(&raw)?;
            let recorded = Recorded { to, method: head.method.clone(), target: head.target, raw };
            noted.lock().unwrap_or_else(PoisonError::into_inner).push(recorded);
            let answer = http::read_response(&mut from_upstream, &head.method)?;
            client.write_all(&answer.raw)?;
            http::copy_body(&mut from_upstream, answer.framing, Copy::Verbatim, &mut |bytes| client.write_all(bytes))?;
            if answer.framing == Framing::UntilClose {
                break;
            }
        }
        Ok(())
    };
    // An error ends the connection, as it would without this in between.
    drop(served());
}
