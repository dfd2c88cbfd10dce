//! OpenAEV over REST (contracts 3 and 6).
//!
//! OpenAEV has one place for a composer and gives it to whoever registers, without notice to the composer that had it.
//! So this client finds out before a registration whether another composer has the place, and reports that instead of
//! taking the place.

mod refusal;
mod wire;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::error::PlatformError;
use super::rest::{Call, Reply, Rest, segment};
use super::retry::Retry;
use super::transport::{Answer, Method};
use super::{
    Accounts, Capability, Health, Heartbeat, LogDelivery, Need, Platform, PlatformSettings, Profile, Registrant,
    Timeouts, version,
};
use crate::access::Permit;
use crate::desired::Listing;
use crate::manager::Manager;
use crate::memory::Registration;
use crate::model::{ConnectorId, Cure, CurrentStatus, PlatformKind};
use crate::stop::Stop;
use refusal::{Refusal, Setting};

/// The first version with the composer API (contracts 0).
const FIRST_VERSION: (u64, u64, u64) = (2, 1, 0);
const FIRST_VERSION_TEXT: &str = "2.1.0";

const VERSION: &str = "settings/version";
const SETTINGS: &str = "settings";
const HEARTBEAT: &str = "refresh-connectivity";
const LIST: &str = "connector-instances";

const PLACE_CURE: Cure =
    Cure("stop the other composer or set MANAGER__ID to its id, or set P__TAKE_OVER=true to let this one evict it");

const CATALOG_READ: &str = "catalog read";
const CATALOG_WRITE: &str = "catalog write";
const SETTINGS_READ: &str = "platform settings read";

/// A client for one OpenAEV platform.
pub(crate) struct OpenAev {
    rest: Rest,
    url: String,
    token_hint: String,
    origin: String,
    timeouts: Timeouts,
    manager: Registration,
    manager_id: String,
    public_pem: String,
    tenant: Option<String>,
    take_over: bool,
    /// The tenant of each listed instance that names one. Logs are sent to that tenant's route (contracts 6).
    tenants: Mutex<BTreeMap<String, String>>,
}

impl OpenAev {
    /// Makes the client without sending anything.
    pub(crate) fn new(settings: &PlatformSettings, manager: &Manager, concurrency: usize, stop: Stop) -> Self {
        Self {
            rest: Rest::new(&settings.endpoint, concurrency, stop),
            url: settings.endpoint.url.clone(),
            token_hint: settings.endpoint.token.hint(""),
            origin: settings.endpoint.origin(),
            timeouts: Timeouts { request: settings.request_timeout, pull: settings.pull_timeout },
            manager: super::registration(manager),
            manager_id: manager.id.to_string(),
            public_pem: manager.key.public_pem.clone(),
            tenant: settings.tenant.clone(),
            take_over: settings.take_over,
            tenants: Mutex::default(),
        }
    }

    /// A route of the composer API, in the tenant of the settings.
    fn route(&self, below: &str) -> String {
        route(self.tenant.as_deref(), below)
    }

    /// A route below this composer's id.
    fn own(&self, below: &str) -> String {
        self.route(&format!("/{}{below}", segment(&self.manager_id)))
    }

    fn get(&self, operation: &'static str, path: &str) -> Result<Reply, PlatformError> {
        let timeout = if operation == LIST { self.timeouts.pull } else { self.timeouts.request };
        self.rest.send(&Call { operation, method: Method::Get, path, body: None, timeout, retry: Retry::Idempotent })
    }

    /// Sends a write that may happen twice. This is so for all writes except the logs.
    fn put(&self, operation: &'static str, path: &str, body: Option<&Value>) -> Result<Reply, PlatformError> {
        let timeout = self.timeouts.request;
        self.rest.send(&Call { operation, method: Method::Put, path, body, timeout, retry: Retry::Idempotent })
    }

    fn refused(&self, operation: &'static str, capability: &'static str, answer: &Answer) -> PlatformError {
        self.refused_in(operation, capability, answer, self.tenant.as_deref())
    }

    fn refused_in(
        &self,
        operation: &'static str,
        capability: &'static str,
        answer: &Answer,
        tenant: Option<&str>,
    ) -> PlatformError {
        let setting = Setting {
            operation,
            url: &self.url,
            id: &self.manager_id,
            hint: &self.token_hint,
            origin: &self.origin,
            capability,
            everywhere: tenant == self.tenant.as_deref(),
        };
        Refusal::of(answer).explain(&setting, answer)
    }

    /// Checks the answer to a write about one connector.
    fn written(&self, operation: &'static str, reply: Reply, tenant: Option<&str>) -> Result<(), PlatformError> {
        match reply {
            Reply::Done(body) => self.rest.read_nothing(operation, &body),
            Reply::Refused(answer) => Err(self.refused_in(operation, CATALOG_WRITE, &answer, tenant)),
        }
    }

    /// Whether the composer that has the place was in contact within the last two hours. False when nobody has the
    /// place.
    fn reachable(&self) -> Result<bool, PlatformError> {
        let operation = "reachable";
        match self.get(operation, &self.route("/reachable"))? {
            Reply::Done(body) => self.rest.read(operation, &body),
            Reply::Refused(answer) => Err(self.refused(operation, CATALOG_READ, &answer)),
        }
    }

    /// Describes who has the place when the platform does not accept this manager as its composer. `None` when this
    /// manager may take the place.
    ///
    /// A manager that was registered before has lost its place to another composer, even if that one was not in contact
    /// lately. For a manager that was never registered, a composer without contact for two hours counts as gone. The
    /// platform does not distinguish it from an empty place.
    fn occupant(&self, remembered: bool) -> Result<Option<String>, PlatformError> {
        if self.take_over {
            return Ok(None);
        }
        let contact = match self.reachable() {
            Ok(true) => "which was in contact within the last two hours",
            Ok(false) if remembered => "or none: nobody was in contact within the last two hours",
            Ok(false) => return Ok(None),
            Err(_) if remembered => "and the platform does not tell when it was last in contact",
            Err(error) => return Err(error),
        };
        Ok(Some(format!("another composer, {contact}")))
    }

    /// Calls [`Self::occupant`] when the answer says that the platform does not accept this manager. Any other answer
    /// is an error.
    fn occupant_for(
        &self,
        operation: &'static str,
        capability: &'static str,
        answer: &Answer,
        remembered: bool,
    ) -> Result<Option<String>, PlatformError> {
        match Refusal::of(answer) {
            Refusal::WrongComposer => self.occupant(remembered),
            // Builds that do not check the id yet fail like this when nobody is registered.
            _ if answer.status == 500 && matches!(self.reachable(), Ok(false)) => Ok(None),
            _ => Err(self.refused(operation, capability, answer)),
        }
    }

    fn other_composer(&self, other: &str) -> PlatformError {
        let what = format!(
            "{} does not take {:?} for its composer, for it has {other}; registering would evict that one without a word",
            self.url, self.manager_id
        );
        PlatformError::OtherManager { what, cure: PLACE_CURE }
    }

    fn version_reply(&self) -> Result<Reply, PlatformError> {
        self.get(VERSION, "/api/settings/version")
    }

    fn list_reply(&self) -> Result<Reply, PlatformError> {
        self.get(LIST, &self.own("/connector-instances"))
    }

    fn remember_tenants(&self, tenants: BTreeMap<String, String>) {
        *self.tenants.lock().unwrap_or_else(PoisonError::into_inner) = tenants;
    }

    fn tenant_of(&self, id: &ConnectorId) -> Option<String> {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.get(id.as_str()).cloned().or_else(|| self.tenant.clone())
    }
}

impl Platform for OpenAev {
    fn kind(&self) -> PlatformKind {
        PlatformKind::OpenAev
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn version(&self) -> Result<String, PlatformError> {
        let body = match self.version_reply()? {
            Reply::Done(body) => body,
            Reply::Refused(answer) => return Err(self.refused(VERSION, SETTINGS_READ, &answer)),
        };
        let version = wire::version(VERSION, &self.url, &body)?;
        if version::parse(&version).is_some_and(|version| version < FIRST_VERSION) {
            return Err(PlatformError::TooOld { url: self.url.clone(), version, least: FIRST_VERSION_TEXT });
        }
        Ok(version)
    }

    fn heartbeat(&self, _: Permit, remembered: bool) -> Result<Heartbeat, PlatformError> {
        match self.put(HEARTBEAT, &self.own("/refresh-connectivity"), None)? {
            Reply::Done(body) if body.trim().is_empty() => Ok(Heartbeat::Known { registered_with: None }),
            Reply::Done(body) => {
                let composer: wire::Composer = self.rest.read(HEARTBEAT, &body)?;
                Ok(Heartbeat::Known { registered_with: composer.xtm_composer_version })
            }
            Reply::Refused(answer) => match self.occupant_for(HEARTBEAT, CATALOG_WRITE, &answer, remembered)? {
                Some(other) => Err(self.other_composer(&other)),
                None => Ok(Heartbeat::Unregistered),
            },
        }
    }

    fn register(&self, _: Permit) -> Result<(), PlatformError> {
        let operation = "register";
        let body = json!({ "id": self.manager_id, "name": self.manager.name, "public_key": self.public_pem });
        let (path, timeout) = (self.route("/register"), self.timeouts.request);
        // The registration is an upsert by id, so it may be sent twice.
        let retry = Retry::Idempotent;
        let call = Call { operation, method: Method::Post, path: &path, body: Some(&body), timeout, retry };
        match self.rest.send(&call)? {
            // A registration takes the place from whoever has it, so this refusal cannot be about another composer.
            Reply::Refused(answer) if Refusal::of(&answer) == Refusal::WrongComposer => {
                Err(PlatformError::status(operation, &self.url, &answer))
            }
            reply => self.written(operation, reply, self.tenant.as_deref()),
        }
    }

    fn registration(&self, version: &str) -> Registration {
        Registration { version: version.to_owned(), ..self.manager.clone() }
    }

    /// Asks for the list, which only the composer that has the place gets.
    fn registrant(&self, remembered: bool) -> Result<Registrant, PlatformError> {
        match self.list_reply()? {
            Reply::Done(_) => Ok(Registrant::Ours),
            Reply::Refused(answer) => {
                let occupant = self.occupant_for(LIST, CATALOG_READ, &answer, remembered)?;
                let other = |who| Registrant::Other { who, cure: PLACE_CURE };
                Ok(occupant.map_or(Registrant::Nobody, other))
            }
        }
    }

    fn pull(&self) -> Result<Listing, PlatformError> {
        let body = match self.list_reply()? {
            Reply::Done(body) => body,
            Reply::Refused(answer) => return Err(self.refused(LIST, CATALOG_READ, &answer)),
        };
        let entries: Option<Vec<&RawValue>> = self.rest.read(LIST, &body)?;
        let entries = entries.ok_or_else(|| PlatformError::Null { operation: LIST, url: self.url.clone() })?;
        let (listing, tenants) = wire::listing(&entries);
        self.remember_tenants(tenants);
        Ok(listing)
    }

    /// Tries the reads of a pass. Without a write it is impossible to find out whether the user may write.
    fn capabilities(&self) -> Result<Option<Vec<Capability>>, PlatformError> {
        let granted = |operation, capability, reply| match reply {
            Reply::Done(_) => Ok(true),
            Reply::Refused(answer) => match Refusal::of(&answer) {
                // The platform checks the capability before the composer's id, so the user has the capability.
                Refusal::WrongComposer => Ok(true),
                Refusal::Hidden(_) => Ok(false),
                _ => Err(self.refused(operation, capability, &answer)),
            },
        };
        let of = |name, granted| Capability { name, granted, need: Need::Always };
        Ok(Some(vec![
            of(SETTINGS_READ, granted(VERSION, SETTINGS_READ, self.version_reply()?)?),
            of(CATALOG_READ, granted(LIST, CATALOG_READ, self.list_reply()?)?),
        ]))
    }

    fn log_delivery(&self) -> LogDelivery {
        LogDelivery::Append
    }

    fn listing_notice(&self) -> Option<&'static str> {
        None
    }

    fn key_change_notice(&self) -> Option<&'static str> {
        Some(
            "OpenAEV keeps the former public key for up to 24 hours: secrets that are typed until then may be encrypted for the \
             former key, and have to be typed again after that; restarting OpenAEV ends it at once",
        )
    }

    fn lists_for_registered_only(&self) -> bool {
        true
    }

    fn set_status(&self, _: Permit, id: &ConnectorId, status: CurrentStatus) -> Result<(), PlatformError> {
        let operation = "status";
        let body = json!({ "connector_instance_current_status": status.as_str() });
        let path = self.own(&format!("/connector-instances/{}/status", segment(id.as_str())));
        let reply = self.put(operation, &path, Some(&body))?;
        self.written(operation, reply, self.tenant.as_deref())
    }

    fn set_health(&self, _: Permit, id: &ConnectorId, health: &Health) -> Result<(), PlatformError> {
        let operation = "health-check";
        let body = wire::health(health);
        let path = self.own(&format!("/connector-instances/{}/health-check", segment(id.as_str())));
        let reply = self.put(operation, &path, Some(&body))?;
        self.written(operation, reply, self.tenant.as_deref())
    }

    fn profile(&self, _: &str) -> Result<Profile, PlatformError> {
        match self.get(SETTINGS, "/api/settings")? {
            Reply::Done(body) => Ok(self.rest.read::<wire::Settings>(SETTINGS, &body)?.into()),
            Reply::Refused(answer) => Err(self.refused(SETTINGS, SETTINGS_READ, &answer)),
        }
    }

    fn accounts(&self) -> Option<&dyn Accounts> {
        None
    }

    /// Sends all lines as one text. The platform takes several texts for a set, which has no order and drops
    /// duplicates.
    fn set_logs(&self, _: Permit, id: &ConnectorId, lines: &[String]) -> Result<(), PlatformError> {
        if lines.is_empty() {
            return Ok(());
        }
        let operation = "logs";
        let tenant = self.tenant_of(id);
        let (cid, iid) = (segment(&self.manager_id), segment(id.as_str()));
        let path = route(tenant.as_deref(), &format!("/{cid}/connector-instances/{iid}/logs"));
        let body = json!({ "connector_instance_logs": [lines.join("\n")] });
        let timeout = self.timeouts.request;
        // Each call adds lines, so a second one after a lost answer might add the same lines twice.
        let retry = Retry::Never;
        let call = Call { operation, method: Method::Post, path: &path, body: Some(&body), timeout, retry };
        let reply = self.rest.send(&call)?;
        self.written(operation, reply, tenant.as_deref())
    }
}

/// A route of the composer API, in a tenant if there is one. A user's capability may be limited to one tenant, and then
/// only the routes of that tenant work.
fn route(tenant: Option<&str>, below: &str) -> String {
    match tenant {
        None => format!("/api/xtm-composer{below}"),
        Some(tenant) => format!("/api/tenants/{}/xtm-composer{below}", segment(tenant)),
    }
}

#[cfg(test)]
mod tests {
    use super::route;

    #[test]
    fn a_tenant_has_routes_of_its_own() {
        assert_eq!(route(None, "/reachable"), "/api/xtm-composer/reachable");
        assert_eq!(
            route(Some("2cffad3a"), "/x/refresh-connectivity"),
            "/api/tenants/2cffad3a/xtm-composer/x/refresh-connectivity"
        );
        assert_eq!(route(Some("../.."), ""), "/api/tenants/..%2F../xtm-composer");
    }
}
