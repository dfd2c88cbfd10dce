//! A tap before an API server, stand-in or real: it writes down every request of the program, and makes faults on demand.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::runtime::Handle;
use ureq::http::Request;

/// One request of the program.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) content_type: String,
    /// The answer's status; 0: none was given.
    pub(crate) code: u16,
}

/// What the API server is asked to allow for a request: group, resource with subresource, verb.
pub(crate) type Access = (String, String, String);

impl Call {
    pub(crate) fn is_write(&self) -> bool {
        self.method != "GET" && !self.path.ends_with("/selfsubjectaccessreviews")
    }

    /// `None` for what everybody may ask: versions, and what one is allowed.
    pub(crate) fn access(&self) -> Option<Vec<Access>> {
        let parts: Vec<&str> = self.path.trim_start_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (resource, name) = match rest {
            ["namespaces", _] => ("namespaces".to_owned(), true),
            [resource] | ["namespaces", _, resource] => ((*resource).to_owned(), false),
            ["namespaces", _, resource, _] => ((*resource).to_owned(), true),
            ["namespaces", _, resource, _, subresource] => (format!("{resource}/{subresource}"), true),
            other => panic!("what is {other:?}?"),
        };
        if group == "authorization.k8s.io" {
            return None;
        }
        let verb = match self.method.as_str() {
            "GET" if name => "get",
            "GET" => "list",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" => "delete",
            other => panic!("what is {other}?"),
        };
        let access = |verb: &str| (group.to_owned(), resource.clone(), verb.to_owned());
        let mut accesses = vec![access(verb)];
        // Applying what is not there creates it, and needs both.
        if self.content_type.contains("apply-patch") && self.code == 201 {
            accesses.push(access("create"));
        }
        Some(accesses)
    }
}

type Headers = Vec<(String, String)>;

/// What to do with a request instead of handing it on.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Answer so: status, seconds in Retry-After, body.
    Answer(u16, Option<u64>, String),
    /// Answer this after the server did its work.
    AnswerAfter(u16, String),
    /// Close the connection before the server hears of it.
    Drop,
    /// Close the connection after the server did its work.
    DropAfter,
    /// Wait until the gate is opened, then hand it on.
    Hold(Gate),
}

/// Where a held request waits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    reached: bool,
    open: bool,
    /// The server has done what it was asked.
    done: bool,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a request has come to the gate.
    #[track_caller]
    pub(crate) fn wait(&self) {
        let waited = self.0.1.wait_timeout_while(self.state(), Duration::from_secs(30), |state| !state.reached);
        assert!(waited.unwrap_or_else(PoisonError::into_inner).0.reached, "no request came to the gate");
    }

    /// Lets the request go on, and waits until the server has done it: whoever asked may be gone by then.
    pub(crate) fn open(&self) {
        self.state().open = true;
        self.0.1.notify_all();
        drop(self.0.1.wait_timeout_while(self.state(), Duration::from_secs(30), |state| !state.done));
    }

    fn done(&self) {
        self.state().done = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        self.state().reached = true;
        self.0.1.notify_all();
        drop(self.0.1.wait_timeout_while(self.state(), Duration::from_mins(1), |state| !state.open));
    }
}

struct Planned {
    method: String,
    part: String,
    skip: usize,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    faults: Vec<Planned>,
    /// Answers to requests for logs, where there is no kubelet: by pod and whether it is the run before.
    logs: Option<Vec<(String, bool, String)>>,
}

/// A listening tap. It ends with the test.
pub(crate) struct Tap {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Tap {
    pub(crate) fn before(client: Client, runtime: Handle) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (client, runtime, state) = (client.clone(), runtime.clone(), Arc::clone(&shared));
                std::thread::spawn(move || serve(connection, &client, &runtime, &state));
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything since the last time.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.lock().calls)
    }

    /// The next `times` requests of that method whose path or content type contains `part`.
    pub(crate) fn fault(&self, method: &str, part: &str, times: usize, fault: Fault) {
        self.fault_after(method, part, 0, times, fault);
    }

    /// The same, after `skip` such requests.
    pub(crate) fn fault_after(&self, method: &str, part: &str, skip: usize, times: usize, fault: Fault) {
        let (method, part) = (method.to_owned(), part.to_owned());
        self.lock().faults.push(Planned { method, part, skip, times, fault });
    }

    /// Forgets the faults that are left. Gives how many requests they still waited for.
    pub(crate) fn clear_faults(&self) -> usize {
        self.lock().faults.drain(..).map(|planned| planned.times).sum()
    }

    /// Answers requests for logs itself from now on.
    pub(crate) fn answer_logs(&self) {
        self.lock().logs = Some(Vec::new());
    }

    /// The log of a pod's run, where this tap answers for the kubelet.
    pub(crate) fn set_log(&self, pod: &str, previous: bool, text: &str) {
        if let Some(logs) = &mut self.lock().logs {
            logs.retain(|(known, run, _)| (known.as_str(), *run) != (pod, previous));
            logs.push((pod.to_owned(), previous, text.to_owned()));
        }
    }

    /// Holds the next such request.
    pub(crate) fn hold(&self, method: &str, part: &str, skip: usize) -> Gate {
        let gate = Gate::default();
        self.fault_after(method, part, skip, 1, Fault::Hold(gate.clone()));
        gate
    }
}

/// One connection of the program: request after request.
fn serve(mut connection: TcpStream, client: &Client, runtime: &Handle, state: &Mutex<State>) {
    let mut buffer: VecDeque<u8> = VecDeque::new();
    while let Some((mut call, headers, body)) = read_request(&mut connection, &mut buffer) {
        let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = take_fault(&mut lock(), &call);
        let log = log_answer(&lock(), &call);
        let answer = match (&fault, log) {
            (Some(Fault::Answer(code, retry, body)), _) => Some(Answer::new(*code, *retry, body.clone().into_bytes())),
            (Some(Fault::Drop), _) => None,
            (_, Some(log)) => Some(log),
            (other, None) => {
                if let Some(Fault::Hold(gate)) = other {
                    gate.pass();
                }
                let answer = runtime.block_on(forward(client, &call, headers, body));
                if let Some(Fault::Hold(gate)) = other {
                    gate.done();
                }
                match other {
                    Some(Fault::DropAfter) => None,
                    Some(Fault::AnswerAfter(code, body)) => Some(Answer::new(*code, None, body.clone().into_bytes())),
                    _ => Some(answer),
                }
            }
        };
        call.code = answer.as_ref().map_or(0, |answer| answer.code);
        lock().calls.push(call);
        let Some(answer) = answer else {
            drop(connection.shutdown(Shutdown::Both));
            return;
        };
        if connection.write_all(&answer.bytes()).is_err() {
            return;
        }
    }
}

struct Answer {
    code: u16,
    retry: Option<u64>,
    kind: String,
    body: Vec<u8>,
}

impl Answer {
    fn new(code: u16, retry: Option<u64>, body: Vec<u8>) -> Self {
        Self { code, retry, kind: "application/json".to_owned(), body }
    }

    fn bytes(&self) -> Vec<u8> {
        let retry = self.retry.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {} Tapped\r\nContent-Type: {}\r\n{retry}Content-Length: {}\r\n\r\n",
            self.code,
            self.kind,
            self.body.len()
        );
        [head.as_bytes(), &self.body].concat()
    }
}

fn take_fault(state: &mut State, call: &Call) -> Option<Fault> {
    let fits = |planned: &Planned| {
        (planned.method == call.method || (planned.method == "ANY-WRITE" && call.is_write()))
            && (call.path.contains(&planned.part) || call.content_type.contains(&planned.part))
    };
    let place = state.faults.iter().position(fits)?;
    let planned = &mut state.faults[place];
    if planned.skip > 0 {
        planned.skip -= 1;
        return None;
    }
    planned.times -= 1;
    let fault = planned.fault.clone();
    if planned.times == 0 {
        state.faults.remove(place);
    }
    Some(fault)
}

fn log_answer(state: &State, call: &Call) -> Option<Answer> {
    let logs = state.logs.as_ref()?;
    let pod = call.path.strip_suffix("/log")?.rsplit('/').next()?;
    let previous = call.query.contains("previous=true");
    let text = logs.iter().find(|(known, run, _)| known == pod && *run == previous).map(|(_, _, text)| text.clone());
    let tail = call.query.split('&').find_map(|pair| pair.strip_prefix("tailLines=")?.parse::<usize>().ok());
    Some(match text {
        Some(text) => {
            let lines: Vec<&str> = text.lines().collect();
            let mut kept = lines[lines.len().saturating_sub(tail.unwrap_or(usize::MAX))..].join("\n");
            let limit = call.query.split('&').find_map(|pair| pair.strip_prefix("limitBytes=")?.parse::<usize>().ok());
            kept.truncate(limit.unwrap_or(usize::MAX));
            Answer { code: 200, retry: None, kind: "text/plain".to_owned(), body: kept.into_bytes() }
        }
        None => {
            let status = json!({ "kind": "Status", "status": "Failure", "reason": "BadRequest", "message": "no such log", "code": 400 });
            Answer::new(400, None, status.to_string().into_bytes())
        }
    })
}

fn read_request(connection: &mut TcpStream, buffer: &mut VecDeque<u8>) -> Option<(Call, Headers, Vec<u8>)> {
    loop {
        let bytes = buffer.make_contiguous();
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        if let Ok(httparse::Status::Complete(head)) = request.parse(bytes) {
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            let named: Headers =
                request.headers.iter().map(|header| (header.name.to_ascii_lowercase(), text(header.value))).collect();
            let find = |name: &str| named.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            let length: usize = find("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
            let (method, target) = (request.method?.to_owned(), request.path?.to_owned());
            if bytes.len() >= head + length {
                let body = bytes[head..head + length].to_vec();
                buffer.drain(..head + length);
                let (path, query) = target.split_once('?').unwrap_or((&target, ""));
                let call = Call {
                    method,
                    path: path.to_owned(),
                    query: query.to_owned(),
                    content_type: find("content-type").unwrap_or_default(),
                    code: 0,
                };
                return Some((call, named, body));
            }
        }
        let mut chunk = [0; 16 * 1024];
        match connection.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(count) => buffer.extend(&chunk[..count]),
        }
    }
}

async fn forward(client: &Client, call: &Call, headers: Headers, body: Vec<u8>) -> Answer {
    let target = if call.query.is_empty() { call.path.clone() } else { format!("{}?{}", call.path, call.query) };
    let mut request = Request::builder().method(call.method.as_str()).uri(target);
    for (name, value) in headers {
        // The tap has its own connection, and says who it is itself.
        if !matches!(name.as_str(), "host" | "content-length" | "connection" | "authorization") {
            request = request.header(name, value);
        }
    }
    let request = request.body(Body::from(body)).expect("a request");
    match client.send(request).await {
        Ok(answer) => {
            let header =
                |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let (code, kind) = (answer.status().as_u16(), header("content-type").unwrap_or_default());
            let retry = header("retry-after").and_then(|value| value.parse().ok());
            let body = answer.into_body().collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
            Answer { code, retry, kind, body }
        }
        Err(error) => Answer::new(502, None, error.to_string().into_bytes()),
    }
}
