//! What an operator should know about the list although it is no fault: one sentence for all connectors that it is
//! about, in every pass, for a report must not grow with the fleet. Pure.

use crate::desired::Desired;
use crate::model::{Connector, Requested};
use crate::render;

/// How many connectors, and variables of each, a sentence names.
const NAMED: usize = 3;

/// `registry` is the configured one, which goes before images that name none.
pub(super) fn of_list(desired: &Desired, registry: Option<&str>) -> Vec<String> {
    let notices = [of_unset_variables(desired), registry.and_then(|registry| of_other_registries(desired, registry))];
    notices.into_iter().flatten().collect()
}

fn of_unset_variables(desired: &Desired) -> Option<String> {
    let concerned = running(desired).filter_map(|connector| {
        let names = desired.unset.get(&connector.id)?.iter().cloned().collect();
        Some(format!("{} ({})", connector.title, some_of(names)))
    });
    let concerned: Vec<String> = concerned.collect();
    (!concerned.is_empty()).then(|| {
        let who = some_of(concerned);
        format!(
            "the platform gives no value (null) for variables that are therefore not set, so that the connector's own \
             defaults hold: {who}"
        )
    })
}

fn of_other_registries(desired: &Desired, registry: &str) -> Option<String> {
    let of_registry = |image: &str| image.strip_prefix(registry).is_some_and(|rest| rest.starts_with('/'));
    let elsewhere = running(desired)
        .filter(|connector| render::registry_of(&connector.image).is_some() && !of_registry(&connector.image));
    let concerned: Vec<String> =
        elsewhere.map(|connector| format!("{} ({})", connector.title, connector.image)).collect();
    (!concerned.is_empty()).then(|| {
        let who = some_of(concerned);
        format!("images that name a registry themselves come from there and not from {registry}: {who}")
    })
}

/// The connectors that have or get a workload.
fn running(desired: &Desired) -> impl Iterator<Item = &Connector> {
    desired.connectors.values().filter(|connector| connector.requested == Requested::Run)
}

/// The first few, and the number of the others.
fn some_of(mut all: Vec<String>) -> String {
    all.sort();
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    let named = all.join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{self, Listing, WireConnector, WireVariable};

    fn wire(id: &str, image: &str, requested: &str, nulls: &[&str]) -> WireConnector {
        let null = |key: &&str| WireVariable { key: (*key).to_owned(), value: None, encrypted: false };
        WireConnector {
            id: id.to_owned(),
            name: format!("feed-{id}"),
            image: image.to_owned(),
            hash: "cafe".to_owned(),
            requested: requested.to_owned(),
            current: None,
            configuration: nulls.iter().map(null).collect(),
        }
    }

    fn notices(connectors: Vec<WireConnector>, registry: Option<&str>) -> Vec<String> {
        of_list(&desired::read(Listing { connectors, unreadable: vec![] }), registry)
    }

    #[test]
    fn a_sentence_names_a_few_connectors_and_counts_the_others() {
        let all = |count: usize, image: &str, nulls: &[&str]| {
            (0..count).map(|number| wire(&number.to_string(), image, "starting", nulls)).collect::<Vec<_>>()
        };
        let told = notices(all(5, "x:1", &["A", "B", "C", "D"]), None);
        assert_eq!(told.len(), 1, "{told:?}");
        let named = "feed-0 (A, B, C and 1 more), feed-1 (A, B, C and 1 more), feed-2 (A, B, C and 1 more) and 2 more";
        assert!(told[0].ends_with(named), "{told:?}");
        let told = notices(all(2, "ghcr.io/x:1", &[]), Some("mirror.local:5000"));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].ends_with("from mirror.local:5000: feed-0 (ghcr.io/x:1), feed-1 (ghcr.io/x:1)"), "{told:?}");
    }

    #[test]
    fn what_is_as_expected_or_does_not_run_is_not_mentioned() {
        let quiet = [
            wire("mirrored", "opencti/x:1", "starting", &[]),
            wire("same", "mirror.local:5000/x:1", "starting", &[]),
            wire("stopped", "ghcr.io/x:1", "stopped", &["A"]),
        ];
        assert_eq!(notices(quiet.into(), Some("mirror.local:5000")), Vec::<String>::new());
        // Without a registry there is none that would be passed by.
        assert_eq!(notices(vec![wire("a", "ghcr.io/x:1", "starting", &[])], None), Vec::<String>::new());
    }
}
