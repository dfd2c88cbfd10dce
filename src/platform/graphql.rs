//! GraphQL over HTTP. Each request has one document, and an answer may have status 200 and still be an error.

use std::time::Duration;

use graphql_client::GraphQLQuery;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::answer;
use super::error::PlatformError;
use super::retry::{self, Retry};
use super::transport::{Answer, Endpoint, Method, Request, Transport};
use crate::stop::Stop;

/// How many broken entries of a list one message names.
const PLACES_MAX: usize = 5;

pub(crate) struct GraphQl {
    transport: Transport,
    stop: Stop,
    url: String,
}

/// Why an operation returned no data.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The platform itself reports errors. The product knows what the code means.
    Errors {
        code: String,
        /// The message of the first error, with the entry of the list that it is about.
        message: String,
    },
    /// The status is not success. The product explains it.
    Status(Answer),
    Other(PlatformError),
}

/// How a request is to be made.
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    pub(crate) timeout: Duration,
    pub(crate) retry: Retry,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    errors: Option<Vec<WireError>>,
}

#[derive(Deserialize)]
struct WireError {
    #[serde(default)]
    message: String,
    #[serde(default)]
    path: Option<Vec<Value>>,
    #[serde(default)]
    extensions: Option<Extensions>,
}

#[derive(Deserialize)]
struct Extensions {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    data: Option<Value>,
}

impl GraphQl {
    pub(crate) fn new(endpoint: &Endpoint, concurrency: usize, stop: Stop) -> Self {
        Self { transport: Transport::new(endpoint, concurrency), stop, url: endpoint.url.clone() }
    }

    /// Runs an operation and returns what `read` makes of its data. Any error in the answer fails the whole call, even
    /// when there is data as well, because a part of a list must not be taken for the list.
    pub(crate) fn run<Q: GraphQLQuery, T>(
        &self,
        call: &Call,
        variables: Q::Variables,
        read: impl FnOnce(&RawValue) -> Result<T, serde_json::Error>,
    ) -> Result<T, Fault> {
        let operation = call.operation;
        let body = serde_json::to_vec(&Q::build_query(variables))
            .map_err(|error| Fault::Other(PlatformError::Abandoned { operation, why: error.to_string() }))?;
        let request = Request {
            method: Method::Post,
            path: "/graphql",
            body: Some(&body),
            accept: "application/json",
            authorized: true,
            timeout: call.timeout,
        };
        let answer = retry::send(&self.transport, &self.stop, call.retry, &request)
            .map_err(|source| Fault::Other(PlatformError::Transport { operation, source }))?;
        if !answer.is_success() {
            return Err(Fault::Status(answer));
        }
        if answer.is_html() {
            return Err(Fault::Other(PlatformError::html(operation, &self.url, "JSON", &answer)));
        }
        self.data(operation, &answer.body, read)
    }

    fn data<T>(
        &self,
        operation: &'static str,
        body: &str,
        read: impl FnOnce(&RawValue) -> Result<T, serde_json::Error>,
    ) -> Result<T, Fault> {
        let envelope: Envelope<'_> = serde_json::from_str(body)
            .map_err(|error| Fault::Other(PlatformError::unparsable(operation, &self.url, body, &error)))?;
        if let Some(fault) = envelope.errors.and_then(fault) {
            return Err(fault);
        }
        let null = || Fault::Other(PlatformError::Null { operation, url: self.url.clone() });
        let data = envelope.data.ok_or_else(null)?;
        read(data).map_err(|error| Fault::Other(PlatformError::unexpected(operation, &self.url, &error)))
    }
}

/// Makes a fault of the errors. The first one decides, and the others add which further entries of a list are broken.
fn fault(errors: Vec<WireError>) -> Option<Fault> {
    let mut places: Vec<String> = Vec::new();
    for place in errors.iter().filter_map(WireError::place) {
        if places.len() < PLACES_MAX && !places.contains(&place) {
            places.push(place);
        }
    }
    let first = errors.into_iter().next()?;
    let mut message = answer::message(&first.message);
    if !places.is_empty() {
        message.push_str(&format!(" ({})", places.join("; ")));
    }
    let code = first.extensions.and_then(|extensions| extensions.code).unwrap_or_default();
    Some(Fault::Errors { code, message })
}

impl WireError {
    /// The entry of a list that the error is about. The platform returns null for the whole list when a single entry is
    /// broken.
    fn place(&self) -> Option<String> {
        let path = self.path.as_deref().unwrap_or_default();
        let index = path.iter().position(Value::is_u64)?;
        let place = path.get(index).and_then(Value::as_u64)?;
        let mut told = format!("entry at place {place} of the list, counted from 0");
        let fields = path.iter().skip(index + 1).map(|part| part.as_str().map_or(part.to_string(), ToOwned::to_owned));
        let fields = fields.collect::<Vec<_>>().join(".");
        if !fields.is_empty() {
            told.push_str(&format!(", field {}", answer::excerpt(&fields)));
        }
        let data = self.extensions.as_ref().and_then(|extensions| extensions.data.as_ref()).and_then(Value::as_object);
        for (key, value) in data.into_iter().flatten().filter(|(key, _)| identifies(key)) {
            if let Some(value) = value.as_str() {
                told.push_str(&format!(", {key} {}", answer::excerpt(value)));
            }
        }
        Some(told)
    }
}

/// Whether this key of an error's data identifies an entry. Other keys are not shown, because their values may be
/// secret.
fn identifies(key: &str) -> bool {
    key == "id" || key.ends_with("_id") || key.ends_with("Id") || matches!(key, "name" | "slug" | "image")
}

#[cfg(test)]
mod tests {
    use super::{Envelope, Fault, fault};

    fn told(body: &str) -> (String, String) {
        let envelope: Envelope<'_> = serde_json::from_str(body).unwrap();
        match fault(envelope.errors.unwrap()) {
            Some(Fault::Errors { code, message }) => (code, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_connector_that_spoils_a_list_is_named() {
        let (code, message) = told(
            r#"{"data": {"connectorsForManagers": null}, "errors": [
                {"message": "Invalid manager contract snapshot", "path": ["connectorsForManagers", 3, "manager_contract_image"],
                 "extensions": {"code": "FUNCTIONAL_ERROR", "data": {"http_status": 400, "genre": "BUSINESS", "id": "c-3", "password": "hunter2"}}},
                {"message": "Cannot return null", "path": ["connectorsForManagers", 5, "manager_contract_configuration", 0, "key"]}]}"#,
        );
        assert_eq!(code, "FUNCTIONAL_ERROR");
        let wanted = "Invalid manager contract snapshot (entry at place 3 of the list, counted from 0, \
            field manager_contract_image, id c-3; entry at place 5 of the list, counted from 0, \
            field manager_contract_configuration.0.key)";
        assert_eq!(message, wanted);
    }

    #[test]
    fn an_error_that_is_about_no_entry_is_told_as_it_is() {
        let about = r#"{"data": {"about": null}, "errors": [{"message": "You must be logged in to do this.",
            "path": ["about"], "extensions": {"code": "AUTH_REQUIRED", "data": {"http_status": 401}}, "name": "AUTH_REQUIRED"}]}"#;
        assert_eq!(told(about), ("AUTH_REQUIRED".to_owned(), "You must be logged in to do this.".to_owned()));
        assert_eq!(told(r#"{"errors": [{}]}"#), (String::new(), String::new()));
    }
}
