//! Runs every scenario of `fixtures/scenarios` and compares its plan with the golden one beside it.
//!
//! `UPDATE_GOLDEN=1` rewrites the golden files. Read each change against the design before it is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use crate::scenario::{Scenario, render};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/scenarios")
}

/// File contents by name without the ending.
fn files(ending: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder()).expect("fixtures/scenarios can be listed") {
        let path = entry.expect("fixtures/scenarios can be listed").path();
        if path.extension().is_some_and(|extension| extension == ending) {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            found.insert(name, fs::read_to_string(&path).expect("a scenario file can be read"));
        }
    }
    found
}

fn scenarios() -> BTreeMap<String, Scenario> {
    let parse = |(name, text): (String, String)| {
        let scenario = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}.json: {error}"));
        (name, scenario)
    };
    files("json").into_iter().map(parse).collect()
}

// Shows what README says under "What a pass does": "A single restart is forgiven once the new one has been up for as
// long as the reboot-loop window.", "Whatever did not work is tried again in the next pass".
#[test]
fn every_scenario_gives_its_golden_plan() {
    let scenarios = scenarios();
    assert!(scenarios.len() >= 28, "only {} scenarios were found", scenarios.len());
    let actual: BTreeMap<_, _> = scenarios
        .iter()
        .map(|(name, scenario)| (name.clone(), render(&scenario.about, &scenario.plan(), &scenario.memory())))
        .collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        rewrite(&actual);
    }
    let golden = files("golden");
    let names: BTreeSet<_> = actual.keys().chain(golden.keys()).collect();
    let problems: Vec<String> = names
        .into_iter()
        .filter_map(|name| match (golden.get(name), actual.get(name)) {
            (Some(wanted), Some(got)) if wanted == got => None,
            (Some(wanted), Some(got)) => Some(format!("{name}:\n{}", difference(wanted, got))),
            (None, Some(got)) => Some(format!("{name}: no golden file. The plan is\n{got}")),
            (_, None) => Some(format!("{name}: a golden file without a scenario")),
        })
        .collect();
    assert!(problems.is_empty(), "\n{}\n(UPDATE_GOLDEN=1 rewrites golden files)", problems.join("\n"));
}

#[test]
fn the_order_of_a_scenarios_input_does_not_matter() {
    for (name, scenario) in scenarios() {
        let plan = scenario.plan();
        for by in 1..8 {
            assert_eq!(plan, scenario.reordered(by).plan(), "{name}, lists turned by {by}");
        }
    }
}

// Shows what README says under "Commands": "NAME is its id, its name on the platform or that of its workload".
#[test]
fn a_held_connector_is_released_by_its_id_its_title_and_the_name_of_its_workload_and_by_no_other() {
    let held = scenarios().remove("held-released").unwrap();
    let word = |name: &str| {
        let plan = held.clone().with_release(name).plan();
        plan.steps().map(|(_, step)| step.word()).collect::<Vec<_>>()
    };
    for name in ["c1", "Alpha", "alpha"] {
        assert_eq!(word(name), ["start"], "{name}");
    }
    for name in ["ALPHA", "alph", "h1", ""] {
        assert_eq!(word(name), [""; 0], "{name:?}");
    }
}

fn rewrite(actual: &BTreeMap<String, String>) {
    for name in files("golden").keys().filter(|name| !actual.contains_key(*name)) {
        fs::remove_file(folder().join(format!("{name}.golden"))).unwrap();
    }
    for (name, text) in actual {
        fs::write(folder().join(format!("{name}.golden")), text).unwrap();
    }
}

/// Lines that only one of the two has; both keep their order.
fn difference(wanted: &str, got: &str) -> String {
    let (wanted, got): (Vec<_>, Vec<_>) = (wanted.lines().collect(), got.lines().collect());
    let missing = wanted.iter().filter(|line| !got.contains(line)).map(|line| format!("  - {line}"));
    let extra = got.iter().filter(|line| !wanted.contains(line)).map(|line| format!("  + {line}"));
    let lines: Vec<_> = missing.chain(extra).collect();
    if lines.is_empty() { "  the same lines in another order".to_owned() } else { lines.join("\n") }
}
