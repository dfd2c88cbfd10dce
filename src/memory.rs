//! What one pass remembers for the next, and the one function that computes it. Pure.
//!
//! Each orchestrator stores the memory in its own way.

mod xtm_one;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use serde::{Deserialize, Serialize};

use crate::log_cursor::LogCursor;
use crate::model::{ConfigHash, ConnectorId, Phase, Vitals};
use crate::probation::Failure;
use crate::restart_window::{self, Assessment, LoopRule, Reading, RestartWindow};

pub use xtm_one::{FailedRegistrations, XtmOneMemory};

/// What a pass remembers of one connector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorMemory {
    /// The recent restarts. `None` while there were none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub window: Option<RestartWindow>,
    /// The hash with which it was stopped for a reboot loop. It stays stopped until the hash changes or a stop is
    /// requested.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held: Option<ConfigHash>,
    /// The configuration that did not work while an older one does. `None` when there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<RefusedStart>,
    /// Whether it was deployed when the prune guard refused removals, and the guard still refuses. Earlier versions set
    /// it only for those that were not listed then.
    #[serde(rename = "spared", skip_serializing_if = "std::ops::Not::not", default)]
    pub guarded: bool,
    /// Whether it had ended again when the pass that started it looked at it. The platform then shows it as stopped, so
    /// that only this tells the next start from one that somebody asked for.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub ended: bool,
    /// How far its log was delivered to a platform that appends lines. `None` for a platform that replaces them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log: Option<LogCursor>,
}

impl ConnectorMemory {
    /// Whether there is nothing to store.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { window, held, refused, guarded, ended, log } = self;
        window.is_none() && held.is_none() && refused.is_none() && !guarded && !ended && log.is_none()
    }
}

/// A configuration with which the workload did not start or did not stay up, so that the old one went on. Each attempt
/// interrupts the old one, and therefore the attempts become rarer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStart {
    /// The hash of the configuration that was tried.
    pub hash: ConfigHash,
    /// The number of attempts so far.
    pub times: u32,
    /// The time of the last attempt, as Unix time in seconds.
    pub at: i64,
    /// How the last attempt failed on probation. `None` when it was not even started.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failure: Option<Failure>,
    /// Whether the old workload ran before the attempt, so that it has to run again.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub former_ran: bool,
}

impl RefusedStart {
    /// When to try this configuration again, as Unix time in seconds. The second attempt comes with the next pass,
    /// because the engine may have failed for reasons of its own. The third comes 5 minutes later, and the wait doubles
    /// each time up to an hour.
    #[must_use]
    pub fn next(&self) -> i64 {
        const FIRST_S: i64 = 300;
        const LONGEST_S: i64 = 3600;
        let Some(doublings) = self.times.checked_sub(2) else { return self.at };
        self.at.saturating_add((FIRST_S << doublings.min(10)).min(LONGEST_S))
    }

    /// Counts another attempt. `earlier` counts only when it was made with the same configuration.
    #[must_use]
    pub fn again(
        earlier: Option<&Self>,
        hash: &ConfigHash,
        failure: Option<Failure>,
        former_ran: bool,
        now: Timestamp,
    ) -> Self {
        let earlier = earlier.filter(|refused| refused.hash == *hash);
        let times = earlier.map_or(0, |refused| refused.times).saturating_add(1);
        // A second attempt may have found the old workload down because going back to it failed the first time.
        let former_ran = former_ran || earlier.is_some_and(|refused| refused.former_ran);
        Self { hash: hash.clone(), times, at: now.as_second(), failure, former_ran }
    }
}

/// What the last registration sent. A pass registers again when one of these values has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The platform's version at the time of the registration.
    pub version: String,
    /// The fingerprint of the public key.
    pub key: String,
    /// The name of this manager.
    pub name: String,
}

/// Everything that one pass remembers for the next. Empty parts are not stored.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// `None` when this manager was never registered.
    pub registration: Option<Registration>,
    /// What is remembered of each connector. Connectors of which nothing is remembered are absent.
    pub connectors: BTreeMap<ConnectorId, ConnectorMemory>,
    /// The hashes of workloads that carry no hash label, by engine id, so that later passes need not look at them
    /// again.
    pub adopted: BTreeMap<String, ConfigHash>,
    /// What is remembered of the registration with XTM One, which is written apart from the rest.
    pub xtm_one: XtmOneMemory,
    /// When the last pass looked at the workloads and remembered what it saw. `None` when that is not known. A pass
    /// that could not look leaves it as it was. Orchestrators keep it with what each pass writes anyway when it gives the
    /// lock back. Two memories that differ only in it are equal, so that it never causes a write.
    pub last_pass: Option<Timestamp>,
    /// Whether passes since the last look at the workloads gave the platform a heartbeat, so that its time says nothing
    /// about that look.
    pub blind: bool,
    /// Whether there is no record that could be read, so that everything above is empty. It is no part of what is stored
    /// either.
    pub no_record: bool,
}

impl PartialEq for Memory {
    fn eq(&self, other: &Self) -> bool {
        let Self { registration, connectors, adopted, xtm_one, blind, last_pass: _, no_record: _ } = self;
        *registration == other.registration
            && *connectors == other.connectors
            && *adopted == other.adopted
            && *xtm_one == other.xtm_one
            && *blind == other.blind
    }
}

impl Eq for Memory {}

/// What it means for the memory that not all steps of a connector were done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undone {
    /// The connector is as it was, so that what the plan wanted remembered of it does not hold.
    AsBefore,
    /// The same, and a workload with this configuration did not work, so that the old one went on.
    RefusedStart {
        hash: ConfigHash,
        failure: Option<Failure>,
        /// Whether the old one ran before.
        former_ran: bool,
    },
}

/// The counters of a workload that steps were for, as they are after the steps. They may have begun at zero again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastLook {
    /// What the counters belong to: a container's id or a pod's uid.
    pub(crate) generation: String,
    pub(crate) created: Timestamp,
    pub(crate) vitals: Vitals,
    pub(crate) phase: Phase,
    /// Whether it has ended although a step was to start it.
    pub(crate) ended: bool,
}

/// What a pass has found out so far and the next one has to know. It grows while the pass goes on, and a part that is
/// still empty leaves that part of the memory as it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    pub(crate) registration: Option<Registration>,
    /// Whether the platform has another registration now than what was recalled, and one that must not count as the last
    /// good one. [`Self::registration`] wins.
    pub(crate) registration_in_doubt: bool,
    /// What the plan wants remembered once it is carried out.
    pub(crate) planned: Option<BTreeMap<ConnectorId, ConnectorMemory>>,
    /// The hashes of the existing workloads that carry no hash label, by engine id.
    pub(crate) adopted: Option<BTreeMap<String, ConfigHash>>,
    /// The engine ids of the workloads that the plan removes.
    pub(crate) gone: BTreeSet<String>,
    /// When the plan was made, which is when the workloads were looked at.
    pub(crate) looked_at: Option<Timestamp>,
    /// The restarts that the plan saw, by connector. They hold even for connectors whose steps are not done.
    pub(crate) seen: BTreeMap<ConnectorId, RestartWindow>,
    /// The connectors whose steps were not all done, or that were rejected after the plan was made.
    pub(crate) undone: BTreeMap<ConnectorId, Undone>,
    /// The workloads that were looked at after the steps.
    pub(crate) looks: BTreeMap<ConnectorId, LastLook>,
    /// How far logs were delivered in this pass.
    pub(crate) delivered: BTreeMap<ConnectorId, LogCursor>,
}

/// Computes the memory for the next pass, and the judgement on each workload of [`Findings::looks`].
///
/// The order of the three parts matters. First, what the plan wants holds only for connectors whose steps were done. Of
/// the others only the restarts that were seen are new, because later passes rely on it that this one remembered them.
/// Second, the last look continues from there, because the counter of a workload that was replaced begins at zero while
/// its history does not. Third, how far logs were delivered holds whatever became of the steps. The part about XTM One is
/// not decided here: it stays as it was recalled.
#[must_use]
pub(crate) fn next(
    recalled: &Memory,
    findings: &Findings,
    rule: LoopRule,
    now: Timestamp,
) -> (Memory, BTreeMap<ConnectorId, Assessment>) {
    let mut connectors = findings.planned.clone().unwrap_or_else(|| recalled.connectors.clone());
    for (id, undone) in &findings.undone {
        let mut before = recalled.connectors.get(id).cloned().unwrap_or_default();
        before.window = findings.seen.get(id).cloned().or(before.window);
        // The prune guard judges the list, whatever becomes of the steps. A connector whose removal failed must not be
        // kept by the note of a refusal that is over.
        if let Some(planned) = &findings.planned {
            before.guarded = planned.get(id).is_some_and(|connector| connector.guarded);
        }
        if let Undone::RefusedStart { hash, failure, former_ran } = undone {
            before.refused = Some(RefusedStart::again(before.refused.as_ref(), hash, *failure, *former_ran, now));
        }
        connectors.insert(id.clone(), before);
    }
    let mut assessments = BTreeMap::new();
    for (id, look) in &findings.looks {
        let connector = connectors.entry(id.clone()).or_default();
        let Vitals { restarts: counter, backing_off, .. } = look.vitals;
        let reading = Reading { counter, generation: &look.generation, created: look.created, backing_off };
        let (window, assessment) =
            restart_window::observe(connector.window.as_ref(), reading, 0, rule, recalled.last_pass, now);
        connector.window = window;
        let undone = findings.undone.contains_key(id);
        connector.ended |= look.ended && !undone;
        if undone && matches!(look.phase, Phase::Exited | Phase::Stopped | Phase::Ending) {
            // A stop that failed may have been done all the same, and then the hold that was planned holds.
            let planned = findings.planned.as_ref().and_then(|planned| planned.get(id));
            connector.held = planned.and_then(|planned| planned.held.clone()).or(connector.held.take());
        }
        assessments.insert(id.clone(), assessment);
    }
    for (id, cursor) in &findings.delivered {
        connectors.entry(id.clone()).or_default().log = Some(cursor.clone());
    }
    connectors.retain(|_, connector| !connector.is_empty());
    let mut adopted = findings.adopted.clone().unwrap_or_else(|| recalled.adopted.clone());
    adopted.retain(|handle, _| !findings.gone.contains(handle));
    let earlier = recalled.registration.as_ref().filter(|_| !findings.registration_in_doubt);
    let registration = findings.registration.as_ref().or(earlier).cloned();
    let xtm_one = recalled.xtm_one.clone();
    let last_pass = findings.planned.as_ref().and(findings.looked_at).or(recalled.last_pass);
    // The heartbeat comes right before the registration is known.
    let blind = findings.planned.is_none() && (recalled.blind || findings.registration.is_some());
    (Memory { registration, connectors, adopted, xtm_one, last_pass, blind, no_record: false }, assessments)
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
            xtm_one: XtmOneMemory { without_named_tokens: Some("7.0.0".to_owned()), ..XtmOneMemory::default() },
            last_pass: None,
            blind: false,
            no_record: false,
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
        assert_eq!(memory, Memory { registration: Some(registration), blind: true, ..recalled() });
        let (memory, _) = next(&recalled(), &Findings { registration_in_doubt: true, ..findings }, RULE, noon());
        assert!(memory.registration.is_some(), "what was found out since counts");
    }

    #[test]
    fn a_registration_in_doubt_is_forgotten() {
        let findings = Findings { registration_in_doubt: true, ..Findings::default() };
        let (memory, _) = next(&recalled(), &findings, RULE, noon());
        assert_eq!(memory, Memory { registration: None, ..recalled() });
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
            let refused = Undone::RefusedStart { hash: hash(text), failure: None, former_ran: true };
            let undone = [(id("a"), refused)].into();
            next(before, &Findings { undone, ..Findings::default() }, RULE, noon()).0
        };
        let times = |memory: &Memory| memory.connectors[&id("a")].refused.as_ref().unwrap().times;
        let first = refuse(&recalled(), "1234");
        let second = refuse(&first, "1234");
        let other = refuse(&second, "5678");
        assert_eq!([times(&first), times(&second), times(&other)], [1, 2, 1]);
        assert_eq!(second.connectors[&id("a")].held, Some(hash("aaaa")), "the rest is as it was");
    }

    // Shows what README says under "What a pass does": "Whatever did not work is tried again in the next pass, then after
    // 5 minutes, 10, up to an hour".
    #[test]
    fn attempts_become_rarer_up_to_one_an_hour() {
        let (mut memory, mut waits) = (recalled(), vec![]);
        for _ in 0..40 {
            let refused = Undone::RefusedStart { hash: hash("1234"), failure: None, former_ran: true };
            let undone = [(id("a"), refused)].into();
            memory = next(&memory, &Findings { undone, ..Findings::default() }, RULE, noon()).0;
            let refused = memory.connectors[&id("a")].refused.as_ref().unwrap();
            waits.push((refused.next() - noon().as_second()) / 60);
        }
        assert_eq!(waits[..7], [0, 5, 10, 20, 40, 60, 60]);
        assert!(waits[7..].iter().all(|wait| *wait == 60), "{waits:?}");
    }

    #[test]
    fn restarts_go_on_across_a_replaced_workload_and_are_judged_on_what_the_plan_left() {
        let (generation, samples) = ("old".to_owned(), vec![]);
        let window = RestartWindow { total: 9, counter: 9, generation, samples, looping: false };
        let planned = ConnectorMemory { window: Some(window), ..ConnectorMemory::default() };
        let look = |restarts| LastLook {
            generation: "new".to_owned(),
            created: noon(),
            vitals: Vitals { restarts, ..Vitals::default() },
            phase: Phase::Running,
            ended: false,
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
    fn what_ended_before_it_was_looked_at_is_remembered_unless_its_start_failed() {
        let (generation, vitals) = ("new".to_owned(), Vitals::default());
        let look = LastLook { generation, created: noon(), vitals, phase: Phase::Exited, ended: true };
        let findings = Findings {
            planned: Some(BTreeMap::new()),
            looks: [(id("c"), look.clone()), (id("d"), look)].into(),
            undone: [(id("d"), Undone::AsBefore)].into(),
            ..Findings::default()
        };
        let (memory, _) = next(&recalled(), &findings, RULE, noon());
        let ended = ConnectorMemory { ended: true, ..ConnectorMemory::default() };
        assert_eq!(memory.connectors, [(id("c"), ended)].into());
    }

    /// Later passes take it that this one remembered how many restarts there were, and that it knows of no refusal that
    /// is over.
    #[test]
    fn of_a_connector_whose_steps_failed_the_restarts_that_were_seen_and_the_guards_word_are_new() {
        let window = |total| RestartWindow {
            total,
            counter: total,
            generation: "h".to_owned(),
            samples: vec![],
            looping: false,
        };
        let mut before = recalled();
        let connector = ConnectorMemory { window: Some(window(1)), guarded: true, ..held("aaaa") };
        before.connectors.insert(id("a"), connector);
        let findings = Findings {
            planned: Some(BTreeMap::new()),
            seen: [(id("a"), window(4))].into(),
            undone: [(id("a"), Undone::AsBefore)].into(),
            ..Findings::default()
        };
        let (memory, _) = next(&before, &findings, RULE, noon());
        assert_eq!(memory.connectors[&id("a")], ConnectorMemory { window: Some(window(4)), ..held("aaaa") });
    }

    #[test]
    fn the_last_pass_is_the_last_one_whose_plan_is_remembered() {
        let later: Timestamp = "2026-03-01T12:02:00Z".parse().unwrap();
        let before = Memory { last_pass: Some(noon()), ..recalled() };
        let looked = Findings { looked_at: Some(later), ..Findings::default() };
        let unplanned = next(&before, &looked, RULE, later).0;
        assert_eq!(unplanned.last_pass, Some(noon()));
        let planned = Findings { planned: Some(before.connectors.clone()), ..looked };
        let planned = next(&before, &planned, RULE, later).0;
        assert_eq!(planned.last_pass, Some(later));
        assert_eq!(planned, unplanned, "the time alone is no reason to write");
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
