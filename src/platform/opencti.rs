//! OpenCTI over GraphQL (contracts 1). Each operation is a document of its own, because a platform refuses a whole
//! document for a single field that it does not know. The documents are checked against the schema beside them at build
//! time.

mod accounts;

use graphql_client::GraphQLQuery;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::answer::shape_fault;
use super::error::PlatformError;
use super::graphql::{Call, Fault, GraphQl};
use super::retry::Retry;
use super::transport::USER_AGENT;
use super::{
    Accounts, Capability, Health, Heartbeat, LogDelivery, Need, Platform, PlatformSettings, Profile, Registrant,
    Timeouts, version,
};
use crate::access::Permit;
use crate::desired::{Listing, WireConnector, WireVariable};
use crate::manager::Manager;
use crate::memory::Registration;
use crate::model::{ConnectorId, Cure, CurrentStatus, PlatformKind};
use crate::secret::Secret;
use crate::stop::Stop;

/// The first version with the composer API outside a feature flag (contracts 0).
const FIRST_VERSION: (u64, u64, u64) = (6, 8, 0);
const FIRST_VERSION_TEXT: &str = "6.8.0";
/// The beginning of every token (contracts 5). It may be shown, because it is the same for all.
const TOKEN_PREFIX: &str = "flgrn_octi_tkn_";

/// The query that names the registered manager.
const MANAGERS: &str = "connectorManagers";
const LIST: &str = "connectorsForManagers";

const TOKEN_CURE: Cure =
    Cure("set P__TOKEN to a valid token of a user who may use tokens (capability APIACCESS_USETOKEN)");
const OTHER_MANAGER_CURE: Cure =
    Cure("set MANAGER__ID to the registered id to take its place, after stopping whatever else runs under it");

/// The capabilities that the token's user needs (contracts 1.3), except for the one without which `check` cannot even
/// ask.
const CAPABILITIES: [(&str, Need); 3] = [
    ("CONNECTORAPI", Need::Always),
    ("SETTINGS_SETACCESSES", Need::Always),
    ("MODULES", Need::Useful { without: "the registered manager cannot be named; a pass works without" }),
];

/// The scalar `DateTime` of the schema, in RFC 3339.
type DateTime = String;

macro_rules! operations {
    ($($name:ident $document:tt),+ $(,)?) => {
        /// The code that `graphql_client` generates from the operations.
        mod operations {
            #![allow(missing_docs, clippy::pedantic, reason = "generated")]
            use super::DateTime;
            use graphql_client::GraphQLQuery;
            $(
                #[derive(GraphQLQuery)]
                #[graphql(schema_path = "src/platform/opencti/schema.graphql", query_path = $document)]
                pub struct $name;
            )+
        }
    };
}
operations! {
    Version "src/platform/opencti/operations/version.graphql",
    Capabilities "src/platform/opencti/operations/capabilities.graphql",
    Managers "src/platform/opencti/operations/managers.graphql",
    Connectors "src/platform/opencti/operations/connectors.graphql",
    Heartbeat "src/platform/opencti/operations/heartbeat.graphql",
    Register "src/platform/opencti/operations/register.graphql",
    SetStatus "src/platform/opencti/operations/set_status.graphql",
    SetHealth "src/platform/opencti/operations/set_health.graphql",
    SetLogs "src/platform/opencti/operations/set_logs.graphql",
    Settings "src/platform/opencti/operations/settings.graphql",
    SettingsWithoutLicence "src/platform/opencti/operations/settings_without_licence.graphql",
    Users "src/platform/opencti/operations/users.graphql",
    TokenAdd "src/platform/opencti/operations/token_add.graphql",
    TokenRevoke "src/platform/opencti/operations/token_revoke.graphql",
}
use operations as op;

/// A client for one OpenCTI platform.
pub(crate) struct OpenCti {
    graphql: GraphQl,
    url: String,
    token_hint: String,
    origin: String,
    timeouts: Timeouts,
    manager: Registration,
    manager_id: String,
    public_pem: String,
}

/// The list with unparsed entries, so that a malformed entry does no harm to the others.
#[derive(Deserialize)]
struct RawConnectors<'a> {
    #[serde(borrow, rename = "connectorsForManagers")]
    list: Option<Vec<&'a RawValue>>,
}

impl OpenCti {
    /// Makes the client without sending anything.
    pub(crate) fn new(settings: &PlatformSettings, manager: &Manager, concurrency: usize, stop: Stop) -> Self {
        Self {
            graphql: GraphQl::new(&settings.endpoint, concurrency, stop),
            url: settings.endpoint.url.clone(),
            token_hint: settings.endpoint.token.hint(TOKEN_PREFIX),
            origin: settings.endpoint.origin(),
            timeouts: Timeouts { request: settings.request_timeout, pull: settings.pull_timeout },
            manager: super::registration(manager),
            manager_id: manager.id.to_string(),
            public_pem: manager.key.public_pem.clone(),
        }
    }

    /// Runs an operation. It may be sent twice, because every operation is a read, an upsert or a write that replaces.
    fn query<Q: GraphQLQuery>(
        &self,
        operation: &'static str,
        variables: Q::Variables,
    ) -> Result<Q::ResponseData, PlatformError>
    where
        Q::ResponseData: DeserializeOwned,
    {
        self.call::<Q>(operation, variables, Retry::Idempotent)
    }

    fn call<Q: GraphQLQuery>(
        &self,
        operation: &'static str,
        variables: Q::Variables,
        retry: Retry,
    ) -> Result<Q::ResponseData, PlatformError>
    where
        Q::ResponseData: DeserializeOwned,
    {
        let call = Call { operation, timeout: self.timeouts.request, retry };
        let answer = self.graphql.run::<Q, _>(&call, variables, |data| serde_json::from_str(data.get()));
        answer.map_err(|fault| self.error(operation, fault))
    }

    fn null(&self, operation: &'static str) -> PlatformError {
        PlatformError::Null { operation, url: self.url.clone() }
    }

    fn token_refused(&self) -> PlatformError {
        let (url, hint, origin) = (self.url.clone(), self.token_hint.clone(), self.origin.clone());
        PlatformError::TokenRefused { url, hint, agent: USER_AGENT, origin, cure: TOKEN_CURE }
    }

    /// Explains a fault (contracts 1.4). OpenCTI reports a missing capability as a GraphQL error, so a status of 403
    /// means something else. A status of 401 comes from a proxy that checks tokens.
    fn error(&self, operation: &'static str, fault: Fault) -> PlatformError {
        let url = self.url.clone();
        let (code, message) = match fault {
            Fault::Other(error) => return error,
            Fault::Status(answer) if answer.status == 401 => return self.token_refused(),
            Fault::Status(answer) => return PlatformError::status(operation, &url, &answer),
            Fault::Errors { code, message } => (code, message),
        };
        match code.as_str() {
            "AUTH_REQUIRED" => self.token_refused(),
            "FORBIDDEN_ACCESS" => PlatformError::Forbidden { operation, url, capability: capability(operation) },
            "LTS_REQUIRED_ACTIVATION" => PlatformError::Explained {
                operation,
                message: format!("{url} is an LTS build without an activated licence"),
                cure: Cure("activate the licence in the platform's settings"),
                general: true,
            },
            "GRAPHQL_VALIDATION_FAILED" => PlatformError::NotSupported { operation, url, message },
            _ => PlatformError::Refused { operation, url, code, message },
        }
    }

    /// The registered managers, each with its id and a description for messages. The platform has one place, and older
    /// versions have several (contracts 1.2).
    fn managers(&self) -> Result<Vec<(String, String)>, PlatformError> {
        let data = self.query::<op::Managers>(MANAGERS, op::managers::Variables {})?;
        let managers = data.connector_managers.into_iter();
        Ok(managers.map(|manager| (manager.id.clone(), format!("{:?} (id {})", manager.name, manager.id))).collect())
    }
}

fn names(managers: Vec<(String, String)>) -> String {
    managers.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", ")
}

/// The capability that an operation needs (contracts 1.1).
fn capability(operation: &str) -> &'static str {
    match operation {
        LIST | accounts::USERS | accounts::TOKEN_ADD | accounts::TOKEN_REVOKE => "SETTINGS_SETACCESSES",
        MANAGERS => "MODULES",
        _ => "CONNECTORAPI",
    }
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
        if version::parse(&version).is_some_and(|version| version < FIRST_VERSION) {
            return Err(PlatformError::TooOld { url: self.url.clone(), version, least: FIRST_VERSION_TEXT });
        }
        Ok(version)
    }

    fn last_heartbeat(&self) -> Result<Option<Timestamp>, PlatformError> {
        let data = self.query::<op::Managers>(MANAGERS, op::managers::Variables {})?;
        let ours = data.connector_managers.into_iter().find(|manager| manager.id == self.manager_id);
        Ok(ours.and_then(|manager| manager.last_sync_execution?.parse().ok()))
    }

    fn heartbeat(&self, _: Permit, _: bool) -> Result<Heartbeat, PlatformError> {
        let input = op::heartbeat::UpdateConnectorManagerStatusInput { id: self.manager_id.clone() };
        let operation = "updateConnectorManagerStatus";
        match self.query::<op::Heartbeat>(operation, op::heartbeat::Variables { input }) {
            Ok(data) if data.update_connector_manager_status.is_some() => {
                Ok(Heartbeat::Known { registered_with: None })
            }
            Ok(_) => Ok(Heartbeat::Unregistered),
            // The message of this error is "Cant find element to update" (contracts 1.2).
            Err(PlatformError::Refused { code, .. }) if code == "FUNCTIONAL_ERROR" => Ok(Heartbeat::Unregistered),
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
                let registered = self.managers().map_or(message, names);
                let what = format!("{} accepts one connector manager only, and has {registered} already", self.url);
                Err(PlatformError::OtherManager { what, cure: OTHER_MANAGER_CURE })
            }
            Err(error) => Err(error),
        }
    }

    fn registration(&self, version: &str) -> Registration {
        Registration { version: version.to_owned(), ..self.manager.clone() }
    }

    fn registrant(&self, _: bool) -> Result<Registrant, PlatformError> {
        match self.managers() {
            Ok(managers) if managers.iter().any(|(id, _)| *id == self.manager_id) => Ok(Registrant::Ours),
            Ok(managers) if managers.is_empty() => Ok(Registrant::Nobody),
            Ok(managers) => Ok(Registrant::Other { who: names(managers), cure: OTHER_MANAGER_CURE }),
            // A pass itself can do without this capability.
            Err(error @ PlatformError::Forbidden { .. }) => Ok(Registrant::Unknown(error.to_string())),
            Err(error) => Err(error),
        }
    }

    fn pull(&self) -> Result<Listing, PlatformError> {
        let call = Call { operation: LIST, timeout: self.timeouts.pull, retry: Retry::Idempotent };
        let answer = self.graphql.run::<op::Connectors, _>(&call, op::connectors::Variables {}, |data| {
            let raw: RawConnectors<'_> = serde_json::from_str(data.get())?;
            Ok(raw.list.map(|list| listing(&list)))
        });
        answer.map_err(|fault| self.error(LIST, fault))?.ok_or_else(|| self.null(LIST))
    }

    /// Older platforms do not know the field, so they do not say.
    fn capabilities(&self) -> Result<Option<Vec<Capability>>, PlatformError> {
        match self.query::<op::Capabilities>("me", op::capabilities::Variables {}) {
            Ok(data) => Ok(data.me.map(|me| {
                let has: Vec<String> = me.capabilities.into_iter().map(|capability| capability.name).collect();
                granted(&has)
            })),
            Err(PlatformError::NotSupported { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn log_delivery(&self) -> LogDelivery {
        LogDelivery::Replace
    }

    fn listing_notice(&self) -> Option<&'static str> {
        Some("being asked for the list, OpenCTI issues tokens for connectors that have none")
    }

    /// There is nothing to know, because OpenCTI uses the key of a registration at once.
    fn key_change_notice(&self) -> Option<&'static str> {
        None
    }

    fn lists_for_registered_only(&self) -> bool {
        false
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

    fn profile(&self, version: &str) -> Result<Profile, PlatformError> {
        self.read_profile(version)
    }

    fn accounts(&self) -> Option<&dyn Accounts> {
        Some(self)
    }

    fn set_logs(&self, _: Permit, id: &ConnectorId, lines: &[String]) -> Result<(), PlatformError> {
        let input = op::set_logs::LogsConnectorStatusInput { id: id.to_string(), logs: lines.to_vec() };
        self.query::<op::SetLogs>("updateConnectorLogs", op::set_logs::Variables { input }).map(drop)
    }
}

/// Which capabilities the user has. The platform itself compares them by substring (contracts 1.3).
fn granted(has: &[String]) -> Vec<Capability> {
    let covers = |name: &str| has.iter().any(|has| has.contains("BYPASS") || has.contains(name));
    CAPABILITIES.map(|(name, need)| Capability { name, granted: covers(name), need }).into()
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
    use super::granted;

    #[test]
    fn a_capability_is_granted_by_a_longer_name_and_all_by_bypass() {
        let granted = |has: &[&str]| {
            let has: Vec<String> = has.iter().map(ToString::to_string).collect();
            granted(&has).into_iter().filter(|capability| capability.granted).map(|it| it.name).collect::<Vec<_>>()
        };
        assert_eq!(granted(&["CONNECTORAPI", "MODULES_MODMANAGE"]), ["CONNECTORAPI", "MODULES"]);
        assert_eq!(granted(&["BYPASS"]), ["CONNECTORAPI", "SETTINGS_SETACCESSES", "MODULES"]);
        assert!(granted(&[]).is_empty());
    }
}
