//! OpenCTI over GraphQL (contracts 1). Operations are checked against the schema beside this file at build time.

use std::time::Duration;

use graphql_client::GraphQLQuery;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::PlatformSettings;
use super::http::{Http, USER_AGENT, shape_fault};
use super::{Health, HttpError, Platform, PlatformError, Timeouts};
use crate::access::Permit;
use crate::desired::{Listing, WireConnector, WireVariable};
use crate::manager::Manager;
use crate::memory::Registration;
use crate::model::{ConnectorId, CurrentStatus, PlatformKind};
use crate::secret::Secret;
use crate::stop::Stop;

/// First version with the composer API outside a feature flag (contracts 0).
const FIRST_VERSION: (u64, u64, u64) = (6, 8, 0);
const FIRST_VERSION_TEXT: &str = "6.8.0";

/// Characters of a platform's own message that are passed on.
const MESSAGE_MAX: usize = 500;

/// The schema's scalar, RFC 3339.
type DateTime = String;

macro_rules! operations {
    ($($name:ident),+) => {
        /// What graphql_client makes of the operations.
        mod operations {
            #![allow(missing_docs, clippy::pedantic, reason = "generated")]
            use super::DateTime;
            use graphql_client::GraphQLQuery;
            $(
                #[derive(GraphQLQuery)]
                #[graphql(
                    schema_path = "src/platform/opencti/schema.graphql",
                    query_path = "src/platform/opencti/operations.graphql"
                )]
                pub struct $name;
            )+
        }
    };
}
operations!(Version, Capabilities, Managers, Connectors, Heartbeat, Register, SetStatus, SetHealth, SetLogs);
use operations as op;

/// One OpenCTI platform.
pub struct OpenCti {
    http: Http,
    url: String,
    token_hint: String,
    timeouts: Timeouts,
    manager: Registration,
    manager_id: String,
    public_pem: String,
}

#[derive(Deserialize)]
struct Answer<'a> {
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
    extensions: Option<Extensions>,
}

#[derive(Deserialize)]
struct Extensions {
    #[serde(default)]
    code: Option<String>,
}

/// The list, each entry as it came: a malformed one must not spoil the others.
#[derive(Deserialize)]
struct RawConnectors<'a> {
    #[serde(borrow, rename = "connectorsForManagers")]
    list: Option<Vec<&'a RawValue>>,
}

impl OpenCti {
    /// A client; nothing is sent yet.
    #[must_use]
    pub fn new(settings: &PlatformSettings, manager: &Manager, concurrency: usize, stop: Stop) -> Self {
        Self {
            http: Http::new(settings, concurrency, stop),
            url: settings.url.clone(),
            token_hint: settings.token.hint(),
            timeouts: Timeouts { request: settings.request_timeout, pull: settings.pull_timeout },
            manager: Registration {
                version: String::new(),
                key: manager.key.fingerprint.clone(),
                name: manager.name.clone(),
            },
            manager_id: manager.id.to_string(),
            public_pem: manager.key.public_pem.clone(),
        }
    }

    /// Runs an operation and gives what `read` makes of its data.
    fn call<Q: GraphQLQuery, T>(
        &self,
        operation: &'static str,
        variables: Q::Variables,
        timeout: Duration,
        read: impl FnOnce(&RawValue) -> Result<T, serde_json::Error>,
    ) -> Result<T, PlatformError> {
        let http = |source| PlatformError::Http { operation, source };
        let body = serde_json::to_vec(&Q::build_query(variables))
            .map_err(|error| PlatformError::Abandoned { operation, why: error.to_string() })?;
        let text = match self.http.post("/graphql", &body, timeout) {
            Ok(text) => text,
            Err(source) => return Err(self.refusal(&source).unwrap_or_else(|| http(source))),
        };
        let answer: Answer = serde_json::from_str(&text).map_err(|error| http(self.http.unparsable(&text, &error)))?;
        if let Some(error) = answer.errors.unwrap_or_default().into_iter().next() {
            return Err(self.error(operation, error));
        }
        let data = answer.data.ok_or_else(|| self.null(operation))?;
        read(data).map_err(|error| http(self.http.unexpected(&error)))
    }

    fn query<Q: GraphQLQuery>(
        &self,
        operation: &'static str,
        variables: Q::Variables,
    ) -> Result<Q::ResponseData, PlatformError>
    where
        Q::ResponseData: DeserializeOwned,
    {
        self.call::<Q, _>(operation, variables, self.timeouts.request, |data| serde_json::from_str(data.get()))
    }

    /// Some proxies answer a refused token themselves. A 403 is never about a capability: the platform tells that in a
    /// GraphQL error (contracts 1.4).
    fn refusal(&self, source: &HttpError) -> Option<PlatformError> {
        matches!(source, HttpError::Status { status: 401, .. }).then(|| self.token_refused())
    }

    fn null(&self, operation: &'static str) -> PlatformError {
        PlatformError::Null { operation, url: self.url.clone() }
    }

    fn token_refused(&self) -> PlatformError {
        PlatformError::TokenRefused { url: self.url.clone(), hint: self.token_hint.clone(), agent: USER_AGENT }
    }

    /// The first error decides (contracts 1.4).
    fn error(&self, operation: &'static str, error: WireError) -> PlatformError {
        let error = WireError { message: error.message.chars().take(MESSAGE_MAX).collect(), ..error };
        let code = error.extensions.and_then(|extensions| extensions.code).unwrap_or_default();
        let url = self.url.clone();
        match code.as_str() {
            "AUTH_REQUIRED" => self.token_refused(),
            "FORBIDDEN_ACCESS" => PlatformError::Forbidden { operation, url, capability: capability(operation) },
            "LTS_REQUIRED_ACTIVATION" => PlatformError::Licence { url },
            "GRAPHQL_VALIDATION_FAILED" => PlatformError::NotSupported { operation, url, message: error.message },
            _ => PlatformError::Refused { operation, url, code, message: error.message },
        }
    }
}

/// What an operation takes (contracts 1.1).
fn capability(operation: &str) -> &'static str {
    match operation {
        "connectorsForManagers" => "SETTINGS_SETACCESSES",
        "connectorManagers" => "MODULES",
        _ => "CONNECTORAPI",
    }
}

/// `major.minor.patch` of a version that may have more to it; `None` for development builds that name none.
fn parse_version(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || parts.next()?.ok();
    let (major, minor) = (next()?, next()?);
    Some((major, minor, next().unwrap_or(0)))
}

impl Platform for OpenCti {
    fn kind(&self) -> PlatformKind {
        PlatformKind::OpenCti
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn version(&self) -> Result<String, PlatformError> {
        let operation = "about";
        let data = self.query::<op::Version>(operation, op::version::Variables {})?;
        let version = data.about.ok_or_else(|| self.null(operation))?.version;
        if parse_version(&version).is_some_and(|version| version < FIRST_VERSION) {
            return Err(PlatformError::TooOld { url: self.url.clone(), version, least: FIRST_VERSION_TEXT });
        }
        Ok(version)
    }

    fn heartbeat(&self, _: Permit) -> Result<bool, PlatformError> {
        let input = op::heartbeat::UpdateConnectorManagerStatusInput { id: self.manager_id.clone() };
        let operation = "updateConnectorManagerStatus";
        match self.query::<op::Heartbeat>(operation, op::heartbeat::Variables { input }) {
            Ok(data) => Ok(data.update_connector_manager_status.is_some()),
            // "Cant find element to update" (contracts 1.2).
            Err(PlatformError::Refused { code, .. }) if code == "FUNCTIONAL_ERROR" => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn register(&self, _: Permit) -> Result<(), PlatformError> {
        let input = op::register::RegisterConnectorsManagerInput {
            id: self.manager_id.clone(),
            name: self.manager.name.clone(),
            public_key: self.public_pem.clone(),
        };
        let operation = "registerConnectorsManager";
        match self.query::<op::Register>(operation, op::register::Variables { input }) {
            Ok(data) if data.register_connectors_manager.is_some() => Ok(()),
            Ok(_) => Err(self.null(operation)),
            Err(PlatformError::Refused { code, message, .. }) if code == "UNSUPPORTED_ERROR" => {
                let registered = self.managers().map_or(message, |managers| managers.join(", "));
                Err(PlatformError::OtherManager { url: self.url.clone(), registered })
            }
            Err(error) => Err(error),
        }
    }

    fn registration(&self, version: &str) -> Registration {
        Registration { version: version.to_owned(), ..self.manager.clone() }
    }

    fn pull(&self) -> Result<Listing, PlatformError> {
        let operation = "connectorsForManagers";
        let listing =
            self.call::<op::Connectors, _>(operation, op::connectors::Variables {}, self.timeouts.pull, |data| {
                let raw: RawConnectors = serde_json::from_str(data.get())?;
                Ok(raw.list.map(|list| listing(&list)))
            })?;
        listing.ok_or_else(|| self.null(operation))
    }

    fn capabilities(&self) -> Result<Option<Vec<String>>, PlatformError> {
        match self.query::<op::Capabilities>("me", op::capabilities::Variables {}) {
            Ok(data) => Ok(data.me.map(|me| me.capabilities.into_iter().map(|capability| capability.name).collect())),
            Err(PlatformError::NotSupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn managers(&self) -> Result<Vec<String>, PlatformError> {
        let data = self.query::<op::Managers>("connectorManagers", op::managers::Variables {})?;
        Ok(data
            .connector_managers
            .into_iter()
            .map(|manager| format!("{:?} (id {})", manager.name, manager.id))
            .collect())
    }

    fn set_status(&self, _: Permit, id: &ConnectorId, status: CurrentStatus) -> Result<(), PlatformError> {
        use op::set_status::{ConnectorCurrentStatus, CurrentConnectorStatusInput, Variables};
        let status = match status {
            CurrentStatus::Started => ConnectorCurrentStatus::started,
            CurrentStatus::Stopped => ConnectorCurrentStatus::stopped,
        };
        let input = CurrentConnectorStatusInput { id: id.to_string(), status };
        self.query::<op::SetStatus>("updateConnectorCurrentStatus", Variables { input }).map(drop)
    }

    fn set_health(&self, _: Permit, id: &ConnectorId, health: &Health) -> Result<(), PlatformError> {
        let input = op::set_health::HealthConnectorStatusInput {
            id: id.to_string(),
            // GraphQL's Int has 32 bits.
            restart_count: i64::from(i32::try_from(health.restarts).unwrap_or(i32::MAX)),
            started_at: format!("{:.3}", health.started_at),
            is_in_reboot_loop: health.looping,
        };
        self.query::<op::SetHealth>("updateConnectorHealth", op::set_health::Variables { input }).map(drop)
    }

    fn set_logs(&self, _: Permit, id: &ConnectorId, lines: &[String]) -> Result<(), PlatformError> {
        let input = op::set_logs::LogsConnectorStatusInput { id: id.to_string(), logs: lines.to_vec() };
        self.query::<op::SetLogs>("updateConnectorLogs", op::set_logs::Variables { input }).map(drop)
    }
}

fn listing(entries: &[&RawValue]) -> Listing {
    #[derive(Deserialize)]
    struct OnlyId {
        id: String,
    }
    let mut listing = Listing::default();
    for entry in entries {
        match serde_json::from_str::<op::connectors::ConnectorsConnectorsForManagers>(entry.get()) {
            Ok(connector) => listing.connectors.push(wire(connector)),
            Err(error) => {
                let id = serde_json::from_str::<OnlyId>(entry.get()).ok().map(|only| only.id);
                listing.unreadable.push((id, shape_fault(&error)));
            }
        }
    }
    listing
}

fn wire(connector: op::connectors::ConnectorsConnectorsForManagers) -> WireConnector {
    let configuration = connector.manager_contract_configuration.into_iter().map(|entry| WireVariable {
        key: entry.key,
        value: entry.value.map(Secret::new),
        encrypted: entry.encrypted.unwrap_or(false),
    });
    WireConnector {
        id: connector.id,
        name: connector.name,
        image: connector.manager_contract_image,
        hash: connector.manager_contract_hash,
        requested: connector.manager_requested_status,
        current: connector.manager_current_status,
        configuration: configuration.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn a_version_is_read_as_far_as_it_is_one() {
        assert_eq!(parse_version("6.8.0"), Some((6, 8, 0)));
        assert_eq!(parse_version("7.261026.0-lts.2"), Some((7, 261_026, 0)));
        assert_eq!(parse_version("6.10"), Some((6, 10, 0)));
        assert!(parse_version("6.10.1") > parse_version("6.9.17"), "by number, not by text");
        for development in ["", "master", "6", "v6.8.0", ".8.0"] {
            assert_eq!(parse_version(development), None, "{development}: nothing is known of it, so it is tried");
        }
    }
}
