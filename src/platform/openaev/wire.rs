//! The JSON that OpenAEV sends and accepts, and its conversion. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::desired::{Listing, WireConnector, WireVariable};
use crate::platform::answer::{excerpt, shape_fault};
use crate::platform::error::PlatformError;
use crate::platform::{Health, Profile, version};
use crate::secret::Secret;

/// The variable with which a multi-tenant platform tells an instance its tenant.
const TENANT_VARIABLE: &str = "OPENAEV_TENANT_ID";
/// Characters of the longest text that counts as a version.
const VERSION_MAX: usize = 64;
/// Characters of the longest text that counts as the id of a tenant.
const TENANT_MAX: usize = 64;

/// The answer to a registration and to a heartbeat.
#[derive(Debug, Deserialize)]
pub(super) struct Composer {
    /// The version that the platform had when the composer registered (contracts 3).
    pub(super) xtm_composer_version: Option<String>,
}

/// The part of the settings that XTM One is told (contracts 3).
#[derive(Deserialize)]
pub(super) struct Settings {
    #[serde(rename = "platform_id")]
    id: String,
    #[serde(rename = "platform_name", default)]
    name: Option<String>,
    #[serde(rename = "platform_base_url", default)]
    base_url: Option<String>,
    #[serde(rename = "platform_license", default)]
    licence: Option<Licence>,
    #[serde(rename = "platform_xtm_one_configured", default)]
    xtm_one_configured: Option<bool>,
}

#[derive(Deserialize)]
struct Licence {
    #[serde(rename = "license_is_validated", default)]
    validated: Option<bool>,
    #[serde(rename = "license_type", default)]
    kind: Option<String>,
}

impl From<Settings> for Profile {
    fn from(settings: Settings) -> Self {
        let licence = settings.licence.filter(|licence| licence.validated == Some(true));
        let itself = "OpenAEV registers itself with XTM One (platform_xtm_one_configured), and what is sent from outside may \
                      overwrite what it sends";
        Self {
            id: settings.id,
            title: settings.name.filter(|name| !name.trim().is_empty()),
            url: settings.base_url.unwrap_or_default(),
            licence_type: licence.and_then(|licence| licence.kind),
            registers_itself: (settings.xtm_one_configured == Some(true)).then_some(itself),
        }
    }
}

/// One entry of the list. The platform leaves out fields that are null. Unknown keys are ignored.
#[derive(Deserialize)]
struct Instance {
    #[serde(rename = "connector_instance_id")]
    id: String,
    #[serde(rename = "connector_instance_name")]
    name: String,
    #[serde(rename = "connector_instance_hash")]
    hash: String,
    #[serde(rename = "connector_image", default)]
    image: Option<String>,
    #[serde(rename = "connector_instance_current_status", default)]
    current: Option<String>,
    #[serde(rename = "connector_instance_requested_status")]
    requested: String,
    /// Required, because an instance has at least a token and an id and must not be deployed without them.
    #[serde(rename = "connector_instance_configurations")]
    configurations: Vec<Configuration>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(rename = "configuration_key")]
    key: String,
    #[serde(rename = "configuration_value", default)]
    value: Option<Secret>,
    #[serde(rename = "configuration_is_encrypted", default)]
    encrypted: Option<bool>,
}

/// Reads the list, and the tenant of each instance that names one. A malformed entry does no harm to the others.
pub(super) fn listing(entries: &[&RawValue]) -> (Listing, BTreeMap<String, String>) {
    #[derive(Deserialize)]
    struct OnlyId {
        connector_instance_id: String,
    }
    let mut listing = Listing::default();
    let mut tenants = BTreeMap::new();
    for entry in entries {
        match serde_json::from_str::<Instance>(entry.get()) {
            Ok(instance) => {
                tenants.extend(tenant(&instance).map(|tenant| (instance.id.clone(), tenant)));
                listing.connectors.push(connector(instance));
            }
            Err(error) => {
                let id = serde_json::from_str::<OnlyId>(entry.get()).ok().map(|only| only.connector_instance_id);
                listing.unreadable.push((id, shape_fault(&error)));
            }
        }
    }
    (listing, tenants)
}

fn connector(instance: Instance) -> WireConnector {
    let configuration = instance.configurations.into_iter().map(|entry| WireVariable {
        key: entry.key,
        value: entry.value,
        encrypted: entry.encrypted.unwrap_or(false),
    });
    WireConnector {
        id: instance.id,
        name: instance.name,
        image: instance.image.unwrap_or_default(),
        hash: instance.hash,
        requested: instance.requested,
        current: instance.current,
        configuration: configuration.collect(),
    }
}

/// The tenant of an instance. `None` for a text that cannot be one segment of a path, because it would lead to another
/// route.
fn tenant(instance: &Instance) -> Option<String> {
    let mut configurations = instance.configurations.iter();
    let entry = configurations.find(|entry| entry.key == TENANT_VARIABLE && entry.encrypted != Some(true))?;
    let tenant = entry.value.as_ref()?.expose();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let usable = (1..=TENANT_MAX).contains(&tenant.len()) && tenant.chars().all(plain) && tenant != "null";
    usable.then(|| tenant.to_owned())
}

/// Reads the version from a bare text. Some servers send the text as JSON, so quotes around it are removed.
pub(super) fn version(operation: &'static str, url: &str, body: &str) -> Result<String, PlatformError> {
    let text = body.trim();
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
    if bare.len() <= VERSION_MAX && bare.chars().all(plain) && version::parse(bare).is_some() {
        return Ok(bare.to_owned());
    }
    let (kind, excerpt) = match text.chars().next() {
        None => ("nothing", excerpt("")),
        Some('{' | '[') => ("JSON", "it is no text".to_owned()),
        Some(_) => ("a text that is no version", excerpt(text)),
    };
    Err(PlatformError::NotProtocol { operation, url: url.to_owned(), kind, wanted: "a version", excerpt })
}

pub(super) fn health(health: &Health) -> Value {
    json!({
        // The platform reads it into a Java int, which has 32 bits.
        "connector_instance_restart_count": i32::try_from(health.restarts).unwrap_or(i32::MAX),
        "connector_instance_started_at": format!("{:.3}", health.started_at),
        "connector_instance_is_in_reboot_loop": health.looping,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::{health, listing, version};
    use crate::platform::Health;
    use crate::secret::Secret;

    fn told(body: &str) -> Result<String, String> {
        version("settings/version", "https://aev", body).map_err(|error| error.to_string())
    }

    #[test]
    fn a_version_is_bare_text_and_quotes_are_no_part_of_it() {
        for (body, wanted) in [("2.1.0", "2.1.0"), (" 3.261026.1\n", "3.261026.1"), ("\"2.1.0-lts1\"", "2.1.0-lts1")] {
            assert_eq!(told(body).unwrap(), wanted);
        }
        for (body, wanted) in [
            ("", "answered with nothing instead of a version"),
            ("{\"version\": \"2.1.0\"}", "answered with JSON instead of a version: it is no text"),
            ("pong", "answered with a text that is no version instead of a version: pong"),
            ("2.1.0 and more", "a text that is no version"),
            ("\"2.1.0", "a text that is no version"),
        ] {
            let told = told(body).unwrap_err();
            assert!(told.contains(wanted), "{body}: {told}");
        }
    }

    #[test]
    fn an_instance_is_read_as_it_comes() {
        let text = r#"[{"connector_instance_id": "i-1", "connector_instance_name": "Atomic Red Team-9f", "connector_instance_hash": "ab12",
            "connector_image": "openaev/collector:2.1.0", "connector_instance_current_status": "stopped",
            "connector_instance_requested_status": "starting", "listened": true, "connector_instance_configurations": [
              {"configuration_key": "OPENAEV_TOKEN", "configuration_value": "hunter2", "configuration_is_encrypted": false, "encrypted": false},
              {"configuration_key": "EMPTY", "configuration_value": ""}, {"configuration_key": "NULL", "configuration_value": "null"},
              {"configuration_key": "LEFT_OUT"},
              {"configuration_key": "PASSWORD", "configuration_value": "AQ==", "configuration_is_encrypted": true},
              {"configuration_key": "OPENAEV_TENANT_ID", "configuration_value": "2cffad3a-0001"}]}]"#;
        let entries: Vec<&RawValue> = serde_json::from_str(text).unwrap();
        let (listing, tenants) = listing(&entries);
        let connector = &listing.connectors[0];
        assert_eq!(
            (connector.name.as_str(), connector.image.as_str()),
            ("Atomic Red Team-9f", "openaev/collector:2.1.0")
        );
        assert_eq!((connector.requested.as_str(), connector.current.as_deref()), ("starting", Some("stopped")));
        let values = connector.configuration.iter().map(|v| (v.value.as_ref().map(Secret::expose), v.encrypted));
        let wanted =
            [(Some("hunter2"), false), (Some(""), false), (Some("null"), false), (None, false), (Some("AQ=="), true)];
        assert_eq!(values.take(5).collect::<Vec<_>>(), wanted);
        assert_eq!(tenants["i-1"], "2cffad3a-0001");
    }

    #[test]
    fn a_malformed_instance_is_unreadable_alone_and_is_not_quoted() {
        let good = json!({"connector_instance_id": "good", "connector_instance_name": "g", "connector_instance_hash": "a",
            "connector_instance_requested_status": "stopping", "connector_instance_configurations": []});
        let with = |key: &str, value: serde_json::Value| {
            let mut entry = good.clone();
            entry[key] = value;
            entry
        };
        let mut no_configuration = with("connector_instance_id", json!("bare"));
        no_configuration.as_object_mut().unwrap().remove("connector_instance_configurations");
        let list = json!([good, with("connector_instance_configurations", json!("hunter2")), no_configuration, null]);
        let text = list.to_string();
        let entries: Vec<&RawValue> = serde_json::from_str(&text).unwrap();
        let (listing, _) = listing(&entries);
        assert_eq!(listing.connectors.len(), 1);
        assert_eq!(listing.connectors[0].image, "", "what is left out is rejected by its own name later");
        let ids: Vec<_> = listing.unreadable.iter().map(|(id, _)| id.as_deref()).collect();
        assert_eq!(ids, [Some("good"), Some("bare"), None]);
        assert!(!format!("{:?}", listing.unreadable).contains("hunter2"), "{:?}", listing.unreadable);
    }

    #[test]
    fn a_tenant_that_would_leave_its_segment_is_not_used() {
        for tenant in ["../admin", "a/b", "", "null", "ü", "a b"] {
            let text =
                json!([{"connector_instance_id": "i", "connector_instance_name": "g", "connector_instance_hash": "a",
                "connector_instance_requested_status": "stopping", "connector_instance_configurations":
                [{"configuration_key": "OPENAEV_TENANT_ID", "configuration_value": tenant}]}])
                .to_string();
            let entries: Vec<&RawValue> = serde_json::from_str(&text).unwrap();
            assert!(listing(&entries).1.is_empty(), "{tenant}");
        }
    }

    #[test]
    fn health_has_javas_types() {
        let started_at = "2026-11-24T10:00:00.5Z".parse().unwrap();
        let sent = health(&Health { restarts: 5_000_000_000, started_at, looping: true });
        assert_eq!(sent["connector_instance_restart_count"], i32::MAX);
        assert_eq!(sent["connector_instance_started_at"], "2026-11-24T10:00:00.500Z");
        assert_eq!(sent["connector_instance_is_in_reboot_loop"], true);
    }
}
