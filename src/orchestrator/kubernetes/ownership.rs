//! `managedFields`: whose each field of a Deployment is (server-side apply). Pure.
//!
//! A Deployment that the daemon made belongs to the daemon's way of writing. Before the first apply over it, those fields are
//! written down as ours: what the apply does not name is then taken away, in the same moment in which it brings what is new.

use serde_json::{Map, Value};

use super::api::FIELD_MANAGER;
use super::objects::ManagedFields;
use crate::model::short_hash;
use crate::render::LABEL_MANAGER;
use crate::render::kubernetes::CONTAINER;

const APPLY: &str = "Apply";
/// Parts in which two ways of writing cannot stand side by side: a value and a reference, two strategies.
const EXCLUSIVE: [&[&str]; 2] = [&["f:spec", "f:strategy"], &["f:spec", "f:template", "f:spec", "f:containers"]];

/// What to take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takeover {
    /// All fields of whoever made it.
    Maker,
    /// Also what others wrote where only one may write.
    Exclusive,
}

/// Whether something was applied to it by this program.
pub(super) fn is_applied(managed: &[ManagedFields]) -> bool {
    managed.iter().any(is_ours)
}

fn is_ours(fields: &ManagedFields) -> bool {
    fields.manager == FIELD_MANAGER && fields.operation == APPLY && fields.subresource.is_empty()
}

/// `managedFields` with the fields to be taken over as ours.
pub(super) fn taken_over(managed: &[Value], takeover: Takeover) -> Vec<Value> {
    let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut ours, mut others) = (Value::Object(Map::new()), Vec::new());
    let mut model = None;
    for entry in managed {
        let mut entry = entry.clone();
        let direct = text(&entry, "subresource").is_empty();
        let applied = text(&entry, "manager") == FIELD_MANAGER && text(&entry, "operation") == APPLY;
        let made = text(&entry, "operation") != APPLY
            && entry
                .pointer("/fieldsV1/f:metadata/f:labels")
                .is_some_and(|labels| labels.get(format!("f:{LABEL_MANAGER}")).is_some());
        if direct && (applied || made) {
            union(&mut ours, entry.get("fieldsV1").cloned().unwrap_or_default());
            model.get_or_insert(entry);
            continue;
        }
        if let (Takeover::Exclusive, true, Some(fields)) = (takeover, direct, entry.get_mut("fieldsV1")) {
            for path in EXCLUSIVE {
                if let Some(taken) = take(fields, path) {
                    union(&mut ours, nest(path, taken));
                }
            }
        }
        others.push(entry);
    }
    if let Some(Value::Object(mut entry)) = model {
        entry.insert("manager".to_owned(), FIELD_MANAGER.into());
        entry.insert("operation".to_owned(), APPLY.into());
        entry.insert("fieldsV1".to_owned(), ours);
        others.push(Value::Object(entry));
    }
    others
}

/// What tells whether the fields that were applied are all still ours: when somebody else changes or removes one, it leaves
/// the set. Scaling is no such change. `None`: nothing was applied.
pub(super) fn fingerprint(managed: &[ManagedFields]) -> Option<String> {
    let ours = managed.iter().find(|fields| is_ours(fields))?;
    let mut spec = ours.fields().get_mut("f:spec")?.take();
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("f:replicas");
    }
    Some(short_hash(&sorted(&spec), 16))
}

/// Who else wrote into the spec.
pub(super) fn other_writers(managed: &[ManagedFields]) -> Vec<&str> {
    let others = managed.iter().filter(|fields| fields.manager != FIELD_MANAGER && fields.subresource.is_empty());
    others.filter(|fields| fields.fields().get("f:spec").is_some()).map(|fields| fields.manager.as_str()).collect()
}

/// The text of a value with its keys in order.
fn sorted(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            let parts: Vec<String> = keys
                .iter()
                .map(|key| format!("{key:?}:{}", fields.get(*key).map(sorted).unwrap_or_default()))
                .collect();
            format!("{{{}}}", parts.join(","))
        }
        other => other.to_string(),
    }
}

fn union(into: &mut Value, from: Value) {
    let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) else { return };
    for (key, value) in from {
        match into.get_mut(&key) {
            Some(known) => union(known, value),
            None => {
                into.insert(key, value);
            }
        }
    }
}

/// Takes the fields below a path out. Of containers only the connector's.
fn take(fields: &mut Value, path: &[&str]) -> Option<Value> {
    match path.split_first() {
        None => Some(fields.take()),
        Some((key, rest)) => {
            let below = fields.as_object_mut()?.get_mut(*key)?;
            if rest.is_empty() && *key == "f:containers" {
                let item = format!("k:{{\"name\":\"{CONTAINER}\"}}");
                let taken = below.as_object_mut()?.remove(&item)?;
                return Some(Value::Object([(item, taken)].into_iter().collect()));
            }
            if rest.is_empty() {
                return fields.as_object_mut()?.remove(*key);
            }
            take(below, rest)
        }
    }
}

fn nest(path: &[&str], inner: Value) -> Value {
    path.iter().rev().fold(inner, |inner, key| Value::Object([((*key).to_owned(), inner)].into_iter().collect()))
}
