//! Sends requests to the API server: bounded in time, tried again where that is safe, with errors that say what was
//! asked for.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use kube::Client;
use kube::client::{AuthError, Body};
use kube::core::params::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Request, Status};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::model::Cure;
use crate::orchestrator::OrchestratorError;
use crate::secret::SecretJson;
use crate::stop::Stop;

/// The owner of our fields in `managedFields`.
pub(super) const FIELD_MANAGER: &str = "xtm-reconcile";
/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_mins(1);
/// How often one request is tried.
const TRIES: u32 = 5;
/// The wait before the second try. It doubles for each further one.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait that an API server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

pub(super) const CURE_UNREACHABLE: Cure = Cure(
    "see that the API server answers at this address, and that the kubeconfig or the service account's CA fits it",
);
const CURE_UNREADABLE: Cure =
    Cure("see that this is the address of a Kubernetes API server, and that nothing stands between");
const CURE_UNAUTHORIZED: Cure = Cure(
    "the token or certificate is expired or wrong: renew the kubeconfig, or see that the pod's service account exists",
);
const CURE_FORBIDDEN: Cure =
    Cure("grant it: deploy/kubernetes has the Role, and `xtm-reconcile check` lists what is missing");
const CURE_NO_NAMESPACE: Cure = Cure("create the namespace, or mend P__DAEMON__KUBERNETES__NAMESPACE");
const CURE_INVALID: Cure = Cure(
    "mend P__DAEMON__KUBERNETES__BASE_DEPLOYMENT or P__DAEMON__KUBERNETES__IMAGE_RESOURCES, or the policy of the cluster that refuses it",
);
const CURE_BUSY: Cure = Cure("the API server is overloaded or limits this client; the next pass tries again");
const CURE_OTHER: Cure = Cure("look into the API server's audit log at this time; the next pass tries again");

/// A kind of object in the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Deployments,
    Pods,
    Secrets,
    Leases,
}

impl Kind {
    pub(super) fn group(self) -> &'static str {
        match self {
            Self::Deployments => "apps",
            Self::Pods | Self::Secrets => "",
            Self::Leases => "coordination.k8s.io",
        }
    }

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Deployments => "deployments",
            Self::Pods => "pods",
            Self::Secrets => "secrets",
            Self::Leases => "leases",
        }
    }
}

/// Why a request failed.
#[derive(Debug)]
pub(super) struct ApiError {
    /// The verb, kind, name and namespace of the request, for messages.
    what: String,
    place: String,
    pub(super) failure: Failure,
}

#[derive(Debug)]
pub(super) enum Failure {
    /// No answer came, or it broke off.
    Transport(String),
    /// The answer is not one that an API server gives.
    Unreadable(String),
    /// The API server refuses the request.
    Refused(Box<Status>),
    /// The pass had to end before an answer came.
    Stopped,
}

impl ApiError {
    /// The HTTP status of the answer; 0 when no answer came.
    pub(super) fn code(&self) -> u16 {
        match &self.failure {
            Failure::Refused(status) => status.code,
            Failure::Unreadable(_) => 200,
            Failure::Transport(_) | Failure::Stopped => 0,
        }
    }

    /// Whether the object or its namespace does not exist (404).
    pub(super) fn is_absent(&self) -> bool {
        self.code() == 404 && !self.is_namespace_absent()
    }

    /// Whether the object is another one than the request was for. A uid that differs is a conflict, or counts as a
    /// change of something that cannot change.
    pub(super) fn is_another(&self) -> bool {
        self.code() == 409 || (self.code() == 422 && self.message().contains("metadata.uid"))
    }

    fn is_namespace_absent(&self) -> bool {
        let kind = match &self.failure {
            Failure::Refused(status) => status.details.as_ref().map(|details| details.kind.as_str()),
            _ => None,
        };
        kind == Some("namespaces")
    }

    fn message(&self) -> String {
        match &self.failure {
            Failure::Refused(status) if status.message.trim().is_empty() => format!("HTTP {}", status.code),
            Failure::Refused(status) => status.message.trim().to_owned(),
            Failure::Transport(why) | Failure::Unreadable(why) => why.clone(),
            Failure::Stopped => "the pass ended before it was answered".to_owned(),
        }
    }
}

impl From<ApiError> for OrchestratorError {
    fn from(error: ApiError) -> Self {
        let why = error.message();
        let namespace_absent = error.code() == 404 && error.is_namespace_absent();
        let cure = match error.code() {
            0 => {
                let why = format!("{}: {why}", error.what);
                return Self::Unreachable { place: error.place, why, cure: CURE_UNREACHABLE };
            }
            200 => CURE_UNREADABLE,
            401 => CURE_UNAUTHORIZED,
            // Quotas and admission policies answer with 403 as well.
            403 if !why.contains(" cannot ") => CURE_INVALID,
            403 => CURE_FORBIDDEN,
            404 if namespace_absent => CURE_NO_NAMESPACE,
            400 | 422 => CURE_INVALID,
            // This is the answer to an apply with unknown fields.
            500 if why.contains("typed patch object") || why.contains("quantities must match") => CURE_INVALID,
            429 | 503 | 504 => CURE_BUSY,
            _ => CURE_OTHER,
        };
        let why = if error.code() == 401 { format!("the API server does not accept who we are: {why}") } else { why };
        Self::Refused { what: error.what, place: error.place, why, cure }
    }
}

/// A client of the API server for one namespace.
pub(super) struct Api {
    client: Client,
    pub(super) namespace: String,
    pub(super) place: String,
    stop: Stop,
}

/// The failure to build a request, which only a fault of this program can cause.
fn unbuilt(error: &dyn std::fmt::Display) -> Failure {
    Failure::Transport(format!("the request cannot be made: {error}"))
}

impl Api {
    pub(super) fn new(client: Client, namespace: String, place: String, stop: Stop) -> Self {
        Self { client, namespace, place, stop }
    }

    fn request(&self, kind: Kind) -> Request {
        let (group, plural, namespace) = (kind.group(), kind.plural(), &self.namespace);
        let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/v1") };
        Request::new(format!("{root}/namespaces/{namespace}/{plural}"))
    }

    fn error(&self, what: &str, failure: Failure) -> ApiError {
        ApiError { what: what.to_owned(), place: self.place.clone(), failure }
    }

    /// Adds the namespace to `what`, for messages.
    fn here(&self, what: &str) -> String {
        format!("{what} in namespace {}", self.namespace)
    }

    pub(super) async fn version(&self) -> Result<k8s_openapi::apimachinery::pkg::version::Info, ApiError> {
        self.send("get /version", Request::new("").get("version", &GetParams::default())).await
    }

    /// Reads the namespace object.
    pub(super) async fn get_namespace(&self) -> Result<Value, ApiError> {
        let request = Request::new("/api/v1/namespaces").get(&self.namespace, &GetParams::default());
        self.send(&format!("get the namespace {}", self.namespace), request).await
    }

    pub(super) async fn may(&self, review: &impl Serialize) -> Result<Value, ApiError> {
        let body = serde_json::to_vec(review).unwrap_or_default();
        let request = Request::new("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews");
        self.send("create selfsubjectaccessreviews", request.create(&PostParams::default(), body)).await
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, kind: Kind, name: &str) -> Result<T, ApiError> {
        let what = self.here(&format!("get {} {name}", kind.plural()));
        self.send(&what, self.request(kind).get(name, &GetParams::default())).await
    }

    pub(super) async fn list<T: DeserializeOwned>(&self, kind: Kind, params: &ListParams) -> Result<T, ApiError> {
        self.send(&self.here(&format!("list {}", kind.plural())), self.request(kind).list(params)).await
    }

    /// Creates an object that must not exist yet. A 409 may also mean that an earlier request made it and its answer
    /// was lost.
    pub(super) async fn create<T: DeserializeOwned>(&self, kind: Kind, object: &Value) -> Result<T, ApiError> {
        let params = PostParams { dry_run: false, field_manager: Some(FIELD_MANAGER.to_owned()) };
        let what = self.here(&format!("create {} {}", kind.plural(), name_of(object)));
        let request = self.request(kind).create(&params, object.to_string().into_bytes());
        self.send(&what, request).await
    }

    /// Applies an object on the server, and undoes what others changed of the fields in it.
    pub(super) async fn apply<T: DeserializeOwned>(&self, kind: Kind, object: &Value) -> Result<T, ApiError> {
        let params = PatchParams::apply(FIELD_MANAGER).force().validation_strict();
        self.patch(kind, name_of(object), None, &params, &Patch::Apply(object)).await
    }

    /// Applies a Secret. The answer, which repeats it, is not read.
    pub(super) async fn apply_secret(&self, secret: &SecretJson) -> Result<(), ApiError> {
        self.apply::<IgnoredAny>(Kind::Secrets, secret).await.map(drop)
    }

    /// Fails when an apply would be refused. Changes nothing.
    pub(super) async fn try_apply(&self, kind: Kind, object: &Value) -> Result<(), ApiError> {
        let params = PatchParams::apply(FIELD_MANAGER).force().validation_strict().dry_run();
        self.patch::<Value>(kind, name_of(object), None, &params, &Patch::Apply(object)).await.map(drop)
    }

    /// Sends a JSON merge patch.
    pub(super) async fn merge<T: DeserializeOwned>(
        &self,
        kind: Kind,
        name: &str,
        subresource: Option<&str>,
        patch: &Value,
    ) -> Result<T, ApiError> {
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        self.patch(kind, name, subresource, &params, &Patch::Merge(patch)).await
    }

    async fn patch<T: DeserializeOwned>(
        &self,
        kind: Kind,
        name: &str,
        subresource: Option<&str>,
        params: &PatchParams,
        patch: &Patch<&Value>,
    ) -> Result<T, ApiError> {
        let below = subresource.map(|subresource| format!("/{subresource}")).unwrap_or_default();
        let what = self.here(&format!("patch {}{below} {name}", kind.plural()));
        let request = match subresource {
            Some(subresource) => self.request(kind).patch_subresource(subresource, name, params, patch),
            None => self.request(kind).patch(name, params, patch),
        };
        // When the first try was carried out and its answer lost, the second one is answered with 409, because the
        // resourceVersion has changed. The caller sees that.
        self.send(&what, request).await
    }

    /// Deletes an object and everything that it owns, provided that it still has this uid. An object that is gone
    /// counts as deleted.
    pub(super) async fn delete(&self, kind: Kind, name: &str, uid: Option<&str>) -> Result<(), ApiError> {
        let preconditions = uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::background() };
        let what = self.here(&format!("delete {} {name}", kind.plural()));
        match self.send::<Value>(&what, self.request(kind).delete(name, &params)).await {
            Err(error) if error.is_absent() || (uid.is_some() && error.code() == 409) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Reads a part of a log as bytes, because logs need not be UTF-8.
    pub(super) async fn log(&self, pod: &str, query: &str) -> Result<Bytes, ApiError> {
        let what = self.here(&format!("get pods/log {pod}"));
        let request =
            self.request(Kind::Pods).get_subresource("log", pod).map_err(|error| self.error(&what, unbuilt(&error)))?;
        let (mut parts, body) = request.into_parts();
        let path = format!("{}?{query}", parts.uri.path());
        parts.uri = path.parse().map_err(|error: ureq::http::uri::InvalidUri| self.error(&what, unbuilt(&error)))?;
        self.bytes(&what, ureq::http::Request::from_parts(parts, body)).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        what: &str,
        request: Result<ureq::http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, ApiError> {
        let request = request.map_err(|error| self.error(what, unbuilt(&error)))?;
        let bytes = self.bytes(what, request).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| self.error(what, Failure::Unreadable(format!("the answer cannot be read: {error}"))))
    }

    /// Sends a request, and tries it again when it failed or its answer was lost. Every request can be repeated: if the
    /// first try was carried out, the caller sees from the answer to the second one that the object is as wanted
    /// already.
    async fn bytes(&self, what: &str, request: ureq::http::Request<Vec<u8>>) -> Result<Bytes, ApiError> {
        let (parts, body) = request.into_parts();
        let body = Zeroizing::new(body);
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            let request = ureq::http::Request::from_parts(parts.clone(), body.to_vec());
            let (failure, asked) = match self.once(request).await {
                Ok(bytes) => return Ok(bytes),
                Err(refused) => refused,
            };
            let again = match &failure {
                Failure::Refused(status) => matches!(status.code, 429 | 502 | 503 | 504),
                Failure::Transport(_) => true,
                Failure::Unreadable(_) | Failure::Stopped => false,
            };
            let pause = asked.unwrap_or(wait).min(LONGEST_WAIT).mul_f64(fastrand::f64().mul_add(0.5, 1.0));
            if !again || attempt >= TRIES || pause >= self.stop.remaining() {
                return Err(self.error(what, failure));
            }
            tracing::debug!(what, attempt, ?pause, "trying again");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.stopped() => return Err(self.error(what, failure)),
            }
            wait *= 2;
        }
        Err(self.error(what, Failure::Stopped))
    }

    /// Sends a request once. A refusal comes with the wait that the server asks for, if any.
    async fn once(&self, request: ureq::http::Request<Vec<u8>>) -> Result<Bytes, (Failure, Option<Duration>)> {
        let lost = |why: String| (Failure::Transport(why), None);
        let exchange = async {
            let answer = self.client.send(request.map(Body::from)).await.map_err(|error| lost(words(&error)))?;
            let code = answer.status().as_u16();
            let asked = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
            let asked = asked.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            let body = answer.into_body().collect().await.map_err(|error| lost(words(&error)))?.to_bytes();
            if code < 300 {
                return Ok(body);
            }
            let mut status: Status = serde_json::from_slice(&body).unwrap_or_else(|_| {
                let text = String::from_utf8_lossy(&body);
                Status { message: text.trim().chars().take(300).collect(), ..Status::default() }
            });
            status.code = code;
            Err((Failure::Refused(Box::new(status)), asked))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(done) => done,
            Err(_) => Err(lost(format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }
}

fn name_of(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

/// The text of an error with all its causes, each once. For a credentials plugin it says only how the plugin ended,
/// because its command line, its variables and its output hold secrets.
pub(super) fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error {
        error if error.is::<AuthError>() => return error.downcast_ref().map(credentials).unwrap_or_default(),
        error => error.to_string(),
    };
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Auth(error)) => return credentials(error),
        // This layer has no message of its own, so the error within it counts.
        Some(kube::Error::Service(inner)) => return words(inner.as_ref()),
        _ => {}
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<AuthError>() {
            return credentials(error);
        }
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Says why there are no credentials.
fn credentials(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecStart(error) => {
            format!("the credentials plugin of the kubeconfig cannot be started: {error}")
        }
        AuthError::AuthExecRun { out, .. } => {
            format!("the credentials plugin of the kubeconfig failed with {}: run it by hand to see why", out.status)
        }
        AuthError::AuthExecParse(_) | AuthError::ExecPluginFailed => {
            "the credentials plugin of the kubeconfig does not print an ExecCredential".to_owned()
        }
        AuthError::AuthExec(_) => "an auth-provider of the kubeconfig is of a kind that is not supported".to_owned(),
        AuthError::ReadTokenFile(error, path) => format!("the token file {} cannot be read: {error}", path.display()),
        _ => "the credentials of the kubeconfig cannot be used".to_owned(),
    }
}
