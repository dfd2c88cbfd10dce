//! What a pass remembers, and the one function that makes the next memory. Pure.
//!
//! Where it is kept is each orchestrator's own matter.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use serde::{Deserialize, Serialize};

use crate::log_cursor::LogCursor;
use crate::model::{ConfigHash, ConnectorId, Vitals};
use crate::restart_window::{self, Assessment, LoopRule, Reading, RestartWindow};

/// What a pass remembers of one connector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorMemory {
    /// Recent restarts; absent while there were none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window: Option<RestartWindow>,
    /// Held for a reboot loop with this hash: stays stopped until the hash changes or a stop is requested.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held: Option<ConfigHash>,
    /// A configuration whose workload could not be started, while an older one works.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<RefusedStart>,
    /// Not listed any more, and kept by the prune guard: stays until it is listed again or its removal is allowed.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub spared: bool,
    /// How far its log was delivered to a platform that appends. Absent for others.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log: Option<LogCursor>,
}

impl ConnectorMemory {
    /// Nothing worth writing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.window.is_none() && self.held.is_none() && self.refused.is_none() && !self.spared && self.log.is_none()
    }
}

/// A workload that did not start in place of one that works. Each attempt interrupts the one that works, so that they
/// become rarer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStart {
    /// The configuration that was tried.
    pub hash: ConfigHash,
    /// Attempts so far.
    pub times: u32,
    /// The last one, Unix time in seconds.
    pub at: i64,
}

impl RefusedStart {
    /// When to try this configuration again, Unix time in seconds: at once after the first attempt, for the engine may have
    /// failed for reasons of its own; after 5 minutes then, and twice as long each time, an hour at most.
    #[must_use]
    pub fn next(&self) -> i64 {
        const FIRST_S: i64 = 300;
        const LONGEST_S: i64 = 3600;
        let Some(doublings) = self.times.checked_sub(2) else { return self.at };
        self.at.saturating_add((FIRST_S << doublings.min(10)).min(LONGEST_S))
    }
}

/// What was registered with a platform, so that a change is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The platform's version at that time.
    pub version: String,
    /// Fingerprint of the public key that was sent.
    pub key: String,
    /// The name that was sent.
    pub name: String,
}

/// What one pass leaves for the next. Empty parts are not written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The last registration.
    pub registration: Option<Registration>,
    /// By connector.
    pub connectors: BTreeMap<ConnectorId, ConnectorMemory>,
    /// Hashes of workloads that carry no hash label, by engine id: read once, so that later passes need not look again.
    pub adopted: BTreeMap<String, ConfigHash>,
}

/// What became of a connector's steps when they were not all done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undone {
    /// It is as it was: whatever the plan wanted remembered of it does not hold.
    AsBefore,
    /// The same, and the workload with this configuration did not start in place of one that works.
    RefusedStart(ConfigHash),
}

/// What the look after the steps says of a workload that they were for. Its counters may have begun anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastLook {
    /// What the counters belong to.
    pub generation: String,
    pub(crate) created: Timestamp,
    pub(crate) vitals: Vitals,
}

/// Everything that a pass found out and that its successor has to know. It grows while the pass goes on; what is still empty
/// changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// What is registered now.
    pub registration: Option<Registration>,
    /// What the plan wants remembered once it is carried out.
    pub planned: Option<BTreeMap<ConnectorId, ConnectorMemory>>,
    /// Hashes of the workloads without a hash label that are there.
    pub adopted: Option<BTreeMap<String, ConfigHash>>,
    /// Engine ids of workloads that the plan takes away.
    pub gone: BTreeSet<String>,
    /// Connectors whose steps were not all done, or were rejected after the plan was made.
    pub undone: BTreeMap<ConnectorId, Undone>,
    /// Workloads that were looked at after the steps.
    pub looks: BTreeMap<ConnectorId, LastLook>,
    /// How far logs were delivered in this pass.
    pub delivered: BTreeMap<ConnectorId, LogCursor>,
}

/// What the next pass shall know, and the judgement on each workload of [`Findings::looks`].
///
/// The order counts. What the plan wants holds only where its steps were done; the last look goes on from there, for a workload
/// that was replaced has a counter that begins at zero while its history does not; and logs are delivered last, whatever
/// became of the steps.
#[must_use]
pub fn next(
    recalled: &Memory,
    findings: &Findings,
    rule: LoopRule,
    now: Timestamp,
) -> (Memory, BTreeMap<ConnectorId, Assessment>) {
    let mut connectors = findings.planned.clone().unwrap_or_else(|| recalled.connectors.clone());
    for (id, undone) in &findings.undone {
        let mut before = recalled.connectors.get(id).cloned().unwrap_or_default();
        if let Undone::RefusedStart(hash) = undone {
            before.refused = Some(another_refusal(before.refused.as_ref(), hash, now));
        }
        connectors.insert(id.clone(), before);
    }
    let mut assessments = BTreeMap::new();
    for (id, look) in &findings.looks {
        let connector = connectors.entry(id.clone()).or_default();
        let Vitals { restarts: counter, backing_off, .. } = look.vitals;
        let reading = Reading { counter, generation: &look.generation, created: look.created, backing_off };
        let (window, assessment) = restart_window::observe(connector.window.as_ref(), reading, 0, rule, now);
        connector.window = window;
        assessments.insert(id.clone(), assessment);
    }
    for (id, cursor) in &findings.delivered {
        connectors.entry(id.clone()).or_default().log = Some(cursor.clone());
    }
    connectors.retain(|_, connector| !connector.is_empty());
    let mut adopted = findings.adopted.clone().unwrap_or_else(|| recalled.adopted.clone());
    adopted.retain(|handle, _| !findings.gone.contains(handle));
    let registration = findings.registration.clone().or_else(|| recalled.registration.clone());
    (Memory { registration, connectors, adopted }, assessments)
}

fn another_refusal(earlier: Option<&RefusedStart>, hash: &ConfigHash, now: Timestamp) -> RefusedStart {
    let times = earlier.filter(|refused| refused.hash == *hash).map_or(0, |refused| refused.times);
    RefusedStart { hash: hash.clone(), times: times.saturating_add(1), at: now.as_second() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: LoopRule = LoopRule { window_s: 300, limit: 3 };

    fn id(text: &str) -> ConnectorId {
        ConnectorId::new(text).unwrap()
    }

    fn hash(text: &str) -> ConfigHash {
        ConfigHash::new(text).unwrap()
    }

    fn noon() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().unwrap()
    }

    fn held(text: &str) -> ConnectorMemory {
        ConnectorMemory { held: Some(hash(text)), ..ConnectorMemory::default() }
    }

    fn recalled() -> Memory {
        let registration = Registration { version: "1".to_owned(), key: "k".to_owned(), name: "n".to_owned() };
        Memory {
            registration: Some(registration),
            connectors: [(id("a"), held("aaaa")), (id("b"), held("bbbb"))].into(),
            adopted: [("h1".to_owned(), hash("1111")), ("h2".to_owned(), hash("2222"))].into(),
        }
    }

    #[test]
    fn a_pass_that_found_nothing_out_changes_nothing() {
        let (memory, assessments) = next(&recalled(), &Findings::default(), RULE, noon());
        assert_eq!(memory, recalled());
        assert!(assessments.is_empty());
    }

    #[test]
    fn a_registration_is_kept_even_when_the_pass_ends_right_after_it() {
        let registration = Registration { version: "2".to_owned(), key: "k".to_owned(), name: "n".to_owned() };
        let findings = Findings { registration: Some(registration.clone()), ..Findings::default() };
        let (memory, _) = next(&recalled(), &findings, RULE, noon());
        assert_eq!(memory, Memory { registration: Some(registration), ..recalled() });
    }

    #[test]
    fn what_the_plan_wants_holds_only_where_its_steps_were_done() {
        let planned = [(id("a"), held("cccc")), (id("c"), held("dddd")), (id("d"), held("eeee"))].into();
        let undone = [(id("a"), Undone::AsBefore), (id("d"), Undone::AsBefore)].into();
        let findings = Findings { planned: Some(planned), undone, ..Findings::default() };
        let (memory, _) = next(&recalled(), &findings, RULE, noon());
        // b is not in the plan's memory any more, a is as it was, d was never remembered before.
        assert_eq!(memory.connectors, [(id("a"), held("aaaa")), (id("c"), held("dddd"))].into());
    }

    #[test]
    fn refused_starts_are_counted_for_one_configuration_and_begin_anew_for_another() {
        let refuse = |before: &Memory, text: &str| {
            let undone = [(id("a"), Undone::RefusedStart(hash(text)))].into();
            next(before, &Findings { undone, ..Findings::default() }, RULE, noon()).0
        };
        let times = |memory: &Memory| memory.connectors[&id("a")].refused.as_ref().unwrap().times;
        let first = refuse(&recalled(), "1234");
        let second = refuse(&first, "1234");
        let other = refuse(&second, "5678");
        assert_eq!([times(&first), times(&second), times(&other)], [1, 2, 1]);
        assert_eq!(second.connectors[&id("a")].held, Some(hash("aaaa")), "the rest is as it was");
    }

    #[test]
    fn restarts_go_on_across_a_replaced_workload_and_are_judged_on_what_the_plan_left() {
        let window = RestartWindow { total: 9, counter: 9, generation: "old".to_owned(), samples: vec![] };
        let planned = ConnectorMemory { window: Some(window), ..ConnectorMemory::default() };
        let look = |restarts| LastLook {
            generation: "new".to_owned(),
            created: noon(),
            vitals: Vitals { restarts, ..Vitals::default() },
        };
        let findings = Findings {
            planned: Some([(id("a"), planned)].into()),
            looks: [(id("a"), look(2)), (id("b"), look(0))].into(),
            ..Findings::default()
        };
        let (memory, assessments) = next(&recalled(), &findings, RULE, noon());
        assert_eq!(assessments[&id("a")].total, 11);
        assert_eq!(memory.connectors[&id("a")].window.as_ref().unwrap().total, 11);
        assert!(!memory.connectors.contains_key(&id("b")), "never restarted: nothing to write");
    }

    #[test]
    fn delivered_logs_are_remembered_even_when_the_steps_failed_and_workloads_that_go_are_forgotten() {
        let cursor = LogCursor { source: "s".to_owned(), at: noon(), lines: 1 };
        let findings = Findings {
            undone: [(id("a"), Undone::AsBefore)].into(),
            delivered: [(id("a"), cursor.clone())].into(),
            gone: ["h1".to_owned()].into(),
            ..Findings::default()
        };
        let (memory, _) = next(&recalled(), &findings, RULE, noon());
        assert_eq!(memory.connectors[&id("a")], ConnectorMemory { log: Some(cursor), ..held("aaaa") });
        assert_eq!(memory.adopted.keys().collect::<Vec<_>>(), ["h2"]);
    }
}
