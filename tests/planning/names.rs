//! Workload names: whatever a platform sends, an engine takes the result.

use proptest::prelude::*;
use xtm_reconcile::model::{ConfigHash, ConnectorId, WorkloadName};

use crate::generate::check;

fn is_rfc1123_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.chars().all(|c| plain(c) || c == '-')
        && text.starts_with(plain)
        && text.ends_with(plain)
}

#[test]
fn every_name_is_a_valid_label_without_a_dot() {
    let texts = prop_oneof![
        any::<String>(),
        "[ -~]{0,80}",
        "[a-zA-Z0-9 _.-]{55,75}",
        "-{0,5}[a-z0-9]{0,2}-{0,70}[a-z]{0,2}-{0,5}",
        "\\p{Cyrillic}{0,30}",
    ];
    check(1024, (texts, "[a-z0-9]{1,36}"), |(text, id)| {
        let name = WorkloadName::of(&text, &ConnectorId::new(&id).unwrap());
        prop_assert!(is_rfc1123_label(name.as_str()), "{name} of {text:?}");
        prop_assert!(name.as_str().len() >= 2, "{name} of {text:?}");
        Ok(())
    });
}

#[test]
fn a_valid_name_stays_as_it_is() {
    check(256, ("[a-z0-9][a-z0-9-]{0,61}[a-z0-9]", "[a-z0-9]{1,36}"), |(text, id)| {
        let name = WorkloadName::of(&text, &ConnectorId::new(&id).unwrap());
        prop_assert_eq!(name.as_str(), text);
        Ok(())
    });
}

#[test]
fn names_that_had_to_be_cut_or_made_up_differ_between_connectors() {
    let (one, two) = (ConnectorId::new("one").unwrap(), ConnectorId::new("two").unwrap());
    for text in ["", "x", "!!", "Коннектор", &"long ".repeat(40)] {
        assert_ne!(WorkloadName::of(text, &one), WorkloadName::of(text, &two), "{text:?}");
    }
}

#[test]
fn a_staged_name_is_nobodys_name_and_fits_a_container_name() {
    let id = ConnectorId::new("one").unwrap();
    let hash = ConfigHash::new(&"ab12".repeat(16)).unwrap();
    let staged = WorkloadName::of(&"x".repeat(200), &id).staged(&hash);
    assert_eq!(staged, format!("{}.ab12ab12.xtm-next", WorkloadName::of(&"x".repeat(200), &id)));
    assert!(WorkloadName::of(&staged, &id).as_str() != staged, "it holds a dot, which no name does");
}
