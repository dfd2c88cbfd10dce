//! Decides about each connector, one at a time.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::desired::{Rejected, Rejection};
use crate::memory::{ConnectorMemory, Memory, RefusedStart};
use crate::model::{Change, Connector, ConnectorId, CurrentStatus, Phase, Requested, Workload, former_name};
use crate::plan::names::Names;
use crate::plan::{
    Decision, Entry, Former, Kept, LoopAction, Obstacle, Plan, Policy, PruneRefusal, RefreshReason, Skip, StartReason,
    Step, UpdateReason,
};
use crate::probation::{Failure, Verdict};
use crate::restart_window::{self, Assessment, Reading, RestartWindow};

/// When going back failed, what worked is started before another attempt is made, as long as the last attempt is not
/// longer ago than this, in seconds. Later the attempt comes first: what does not start either must not keep it away for
/// ever.
const REPAIR_S: i64 = 600;

/// The decisions so far, and what is to be remembered because of them.
pub(super) struct Decided<'a> {
    policy: &'a Policy,
    now: Timestamp,
    before: &'a Memory,
    record_lost: bool,
    entries: Vec<Entry>,
    assessments: BTreeMap<ConnectorId, Assessment>,
    connectors: BTreeMap<ConnectorId, ConnectorMemory>,
    /// The restarts that were seen, without those that the plan itself will make.
    seen: BTreeMap<ConnectorId, RestartWindow>,
    /// The connectors that were held until the operator's word.
    released: BTreeSet<ConnectorId>,
}

impl<'a> Decided<'a> {
    pub(super) fn new(before: &'a Memory, record_lost: bool, policy: &'a Policy, now: Timestamp) -> Self {
        let (assessments, connectors, seen) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (entries, released) = (vec![], BTreeSet::new());
        Self { policy, now, before, record_lost, entries, assessments, connectors, seen, released }
    }

    /// Decides about a listed connector that can be used. `former` is what its workload replaced, and what probation has
    /// shown so far.
    pub(super) fn connector(
        &mut self,
        connector: &Connector,
        workload: Option<&Workload>,
        former: Option<(&Workload, Verdict)>,
        names: &Names<'_>,
    ) {
        if let Some(reason) = names.rejection(connector) {
            let (id, title) = (connector.id.clone(), connector.title.clone());
            return self.rejected(&Rejected { id, title, reason, shown: connector.shown }, workload);
        }
        let final_name = names.final_name(connector);
        let Some(workload) = workload else {
            self.push(&connector.id, &connector.title, absent(connector, final_name));
            return;
        };
        if let Some((former, Verdict::Failed(failure))) = former {
            return self.roll_back(connector, workload, former, failure, &final_name);
        }
        let held = self.held(connector, workload);
        let refused = self.refused(connector, workload);
        if let Some(refused) = refused.as_ref().filter(|refused| self.waits(refused, workload)) {
            return self.wait_with_former(connector, workload, refused, &final_name);
        }
        let refresh_reason = refresh_reason(connector, workload);
        let ended = !held && refresh_reason.is_none() && self.has_ended(connector, workload);
        let assessment = self.remember(&connector.id, Some(workload), u64::from(ended));
        self.keep_or_release(connector, workload, held);
        // What was kept and is alone is replaced once it is to run again, and not before: it is the one that worked.
        let is_kept = workload.is_former()
            && connector.requested == Requested::Stop
            && matches!(workload.phase, Phase::Created | Phase::Exited);
        if let Some(reason) = refresh_reason.filter(|_| !is_kept) {
            let former_ran = refused.is_some_and(|refused| refused.former_ran);
            let fallback = self.fallback(connector, workload, former, former_ran);
            if fallback.is_some() {
                self.remember_refusal(connector);
            }
            let step = replace(connector, workload, final_name, reason, held, former_ran, fallback);
            return self.push(&connector.id, &connector.title, Decision::Step(step));
        }
        if former.is_some_and(|(_, verdict)| verdict != Verdict::Passed) {
            self.remember_refusal(connector);
        }
        let rename = rename(connector, workload, &final_name).filter(|_| !is_kept);
        let holds = self.policy.loop_action == LoopAction::Stop && !self.released.contains(&connector.id);
        let hold = assessment.filter(|assessment| assessment.looping && holds);
        let decision = match connector.requested {
            Requested::Run if held => Decision::Skip(Skip::Held),
            Requested::Run => match (self.keep_running(connector, workload, hold, ended, &final_name), former) {
                (Decision::Skip(Skip::Running), Some((_, Verdict::Until(until)))) => {
                    Decision::Skip(Skip::OnProbation { until })
                }
                (decision, _) => decision,
            },
            Requested::Stop => stop(workload),
        };
        let update = lacks_restart_policy(workload, &decision).then(|| {
            let handle = workload.handle.clone();
            Decision::Step(Step::Update { handle, reason: UpdateReason::RestartPolicy })
        });
        // The name of a former workload says that it has to run, so it keeps that name until it does.
        let (first, last) = if workload.is_former() { (None, rename) } else { (rename, None) };
        for decision in first.into_iter().chain([decision]).chain(last).chain(update) {
            self.push(&connector.id, &connector.title, decision);
        }
    }

    /// Goes back to what worked. The restarts of the failed workload do not count, because its configuration goes with
    /// it.
    fn roll_back(&mut self, connector: &Connector, failed: &Workload, former: &Workload, failure: Failure, name: &str) {
        let before = self.before.connectors.get(&connector.id);
        let (window, log) = before.map_or((None, None), |memory| (memory.window.clone(), memory.log.clone()));
        let earlier = before.and_then(|memory| memory.refused.as_ref());
        let refused =
            failed.hash.as_ref().map(|hash| RefusedStart::again(earlier, hash, Some(failure), true, self.now));
        let memory = ConnectorMemory { window, refused, log, ..ConnectorMemory::default() };
        self.connectors.insert(connector.id.clone(), memory);
        let step = Step::RollBack {
            failed: failed.handle.clone(),
            former: Former { handle: former.handle.clone(), name: former.name.clone() },
            name: name_for(connector, former, name).to_owned(),
            hash: failed.hash.clone(),
            failure,
        };
        self.push(&connector.id, &connector.title, Decision::Step(step));
    }

    /// Leaves the connector with what worked while its new configuration is not tried again yet. What worked is started
    /// when a roll-back before did not get that far, and only then gets its name back, because the name of a former
    /// workload says that it has to run.
    fn wait_with_former(&mut self, connector: &Connector, workload: &Workload, refused: &RefusedStart, name: &str) {
        match connector.requested {
            Requested::Run if !workload.phase.is_up() => {
                let start = Step::Start { handle: workload.handle.clone(), reason: StartReason::RolledBack };
                self.push(&connector.id, &connector.title, Decision::Step(start));
            }
            Requested::Stop if must_stop(workload) => {
                self.push(&connector.id, &connector.title, stop(workload));
            }
            Requested::Run | Requested::Stop => {}
        }
        let keeps_mark = workload.is_former() && connector.requested == Requested::Stop;
        if let Some(rename) = rename(connector, workload, name).filter(|_| !keeps_mark) {
            self.push(&connector.id, &connector.title, rename);
        }
        let after = Timestamp::from_second(refused.next()).unwrap_or(Timestamp::MAX).max(self.now);
        let reason = Rejection::WontStart { times: refused.times, failure: refused.failure, after };
        let (id, title) = (connector.id.clone(), connector.title.clone());
        self.rejected(&Rejected { id, title, reason, shown: connector.shown }, Some(workload));
    }

    /// Keeps the count of failed attempts while another one is on its way.
    fn remember_refusal(&mut self, connector: &Connector) {
        let refused = self.before.connectors.get(&connector.id).and_then(|memory| memory.refused.clone());
        if let Some(refused) = refused.filter(|refused| refused.hash == connector.hash) {
            self.connectors.entry(connector.id.clone()).or_default().refused = Some(refused);
        }
    }

    /// The workload that runs again when the one that replaces `old` fails on probation, even when that is started only
    /// later, because the connector is to be stopped now. `former_ran` says that `old` ran before an attempt that failed.
    fn fallback(
        &self,
        connector: &Connector,
        old: &Workload,
        former: Option<(&Workload, Verdict)>,
        former_ran: bool,
    ) -> Option<Former> {
        if self.policy.probation.length_s == 0 || old.change != Change::Replaced {
            return None;
        }
        if let Some((former, Verdict::Until(_) | Verdict::Down)) = former {
            return Some(Former { handle: former.handle.clone(), name: former.name.clone() });
        }
        let worked = match old.phase {
            Phase::Running | Phase::Paused => true,
            Phase::Created | Phase::Exited => old.is_former() || former_ran,
            _ => false,
        };
        let name = if old.is_former() { old.name.clone() } else { former_name(&connector.name, &old.handle) };
        worked.then(|| Former { handle: old.handle.clone(), name })
    }

    /// Decides about a listed connector that cannot be used. A workload that it has keeps running.
    pub(super) fn rejected(&mut self, rejected: &Rejected, workload: Option<&Workload>) {
        self.remember(&rejected.id, workload, 0);
        if let Some(before) = self.before.connectors.get(&rejected.id) {
            let memory = self.connectors.entry(rejected.id.clone()).or_default();
            memory.held.clone_from(&before.held);
            memory.refused.clone_from(&before.refused);
            memory.ended = before.ended;
        }
        self.push(&rejected.id, &rejected.title, Decision::Reject(rejected.reason.clone()));
    }

    /// Decides about the workloads that stay of a connector that is not listed any more. Its removals are entries
    /// already.
    pub(super) fn unlisted(&mut self, id: &ConnectorId, workloads: &[&Workload], refused: bool) {
        let mut stays = false;
        for workload in workloads {
            let skip = match workload.platform {
                None => Skip::UnknownPlatform,
                Some(_) if refused => Skip::PruneRefused,
                Some(_) => continue,
            };
            stays = true;
            self.push(id, &workload.name, Decision::Skip(skip));
        }
        if stays {
            let before = self.before.connectors.get(id).cloned().unwrap_or_default();
            self.connectors.insert(id.clone(), ConnectorMemory { guarded: false, ..before });
        }
    }

    /// Remembers the connectors by which the prune guard judges the next list.
    pub(super) fn guarded(&mut self, guarded: BTreeSet<&ConnectorId>) {
        for id in guarded {
            self.connectors.entry(id.clone()).or_default().guarded = true;
        }
    }

    /// Returns the plan that consists of these decisions, after `removals`.
    pub(super) fn finish(self, removals: Vec<Entry>, refusal: Option<PruneRefusal>, kept: &Kept<'_>) -> Plan {
        let Self { before, entries: mut rest, assessments, connectors, seen, released, .. } = self;
        rest.sort_by(|a, b| a.connector.cmp(&b.connector));
        let mut entries = removals;
        entries.append(&mut rest);
        let connectors = connectors.into_iter().filter(|(_, memory)| !memory.is_empty()).collect();
        let memory = Memory { connectors, ..before.clone() };
        let kept = kept.iter().map(|(id, workload)| ((*id).clone(), workload.handle.clone())).collect();
        Plan { entries, refusal, assessments, kept, memory, seen, released }
    }

    fn push(&mut self, id: &ConnectorId, title: &str, decision: Decision) {
        self.entries.push(Entry { connector: id.clone(), title: title.to_owned(), decision });
    }

    /// Whether the connector is held with this configuration and nobody has released it since.
    fn held(&self, connector: &Connector, workload: &Workload) -> bool {
        let noted = self.before.connectors.get(&connector.id).and_then(|memory| memory.held.as_ref());
        connector.requested == Requested::Run
            && (noted == Some(&connector.hash) || self.was_perhaps_held(connector, workload))
            && workload.hash.as_ref() == Some(&connector.hash)
            && !workload.phase.is_up()
            && !self.is_released(connector)
    }

    /// Whether it looks like a connector that was held, while the note of holds is lost: it is down after too many
    /// restarts, and the platform knows that it is down. Starting it could begin a loop again that was stopped already.
    fn was_perhaps_held(&self, connector: &Connector, workload: &Workload) -> bool {
        let restarts = workload.vitals.as_ref().map_or(0, |vitals| vitals.restarts);
        self.record_lost
            && self.policy.loop_action == LoopAction::Stop
            && workload.phase == Phase::Exited
            && connector.shown != Some(CurrentStatus::Started)
            && restarts > self.policy.loop_rule.limit
    }

    /// Whether the operator releases this connector.
    fn is_released(&self, connector: &Connector) -> bool {
        let name = self.policy.release.as_deref();
        [connector.id.as_str(), &connector.title, connector.name.as_str()].map(Some).contains(&name)
    }

    /// Whether it ended by itself, as far as the platform or the pass that started it knows.
    fn has_ended(&self, connector: &Connector, workload: &Workload) -> bool {
        let at_once = self.before.connectors.get(&connector.id).is_some_and(|memory| memory.ended);
        has_ended(connector, workload)
            || (at_once && connector.requested == Requested::Run && workload.phase == Phase::Exited)
    }

    /// What is remembered of earlier attempts with the configuration that the workload lacks. `None` when there were
    /// none.
    fn refused(&self, connector: &Connector, workload: &Workload) -> Option<RefusedStart> {
        let refused = self.before.connectors.get(&connector.id)?.refused.as_ref()?;
        let applies = refused.hash == connector.hash && workload.hash.as_ref() != Some(&connector.hash);
        applies.then(|| refused.clone())
    }

    /// Whether another attempt would come too soon. Each one interrupts what works.
    fn waits(&self, refused: &RefusedStart, workload: &Workload) -> bool {
        let now_s = self.now.as_second();
        if now_s < refused.at {
            // The clock was wrong then, or is now.
            return false;
        }
        if workload.phase.is_up() {
            return now_s < refused.next();
        }
        let can_start = matches!(workload.phase, Phase::Created | Phase::Exited);
        refused.former_ran && can_start && now_s < refused.next().max(refused.at.saturating_add(REPAIR_S))
    }

    /// Remembers a hold that lasts. A release also forgets the restarts that led to the hold, because otherwise they
    /// would lead to the next one at once.
    fn keep_or_release(&mut self, connector: &Connector, workload: &Workload, held: bool) {
        let was_held = self.before.connectors.get(&connector.id).is_some_and(|memory| memory.held.is_some());
        let changed = workload.hash.as_ref() != Some(&connector.hash);
        let stopped = connector.requested == Requested::Stop && (was_held || must_stop(workload));
        let released = was_held && self.is_released(connector);
        if released {
            self.released.insert(connector.id.clone());
        }
        if held {
            self.connectors.entry(connector.id.clone()).or_default().held = Some(connector.hash.clone());
        } else if let (true, Some(memory)) = (changed || stopped || released, self.connectors.get_mut(&connector.id))
            && let Some(window) = &mut memory.window
        {
            window.start_anew();
        }
    }

    /// Brings the restart history up to date. `extra` counts restarts that this plan makes itself.
    fn remember(&mut self, id: &ConnectorId, workload: Option<&Workload>, extra: u64) -> Option<Assessment> {
        let known = self.before.connectors.get(id).and_then(|memory| memory.window.as_ref());
        let reading = workload.and_then(|workload| {
            let counter = match (&workload.vitals, extra) {
                (Some(vitals), _) => vitals.restarts,
                (None, 0) => return None,
                // Nobody looked at the counter of a workload that is down, so the last known one counts.
                (None, _) => known.filter(|w| w.generation == workload.handle.0).map_or(0, |w| w.counter),
            };
            let vitals = workload.vitals.as_ref();
            let generation = vitals.and_then(|vitals| vitals.generation.as_deref()).unwrap_or(&workload.handle.0);
            let backing_off = vitals.is_some_and(|vitals| vitals.backing_off);
            Some(Reading { counter, generation, created: workload.created, backing_off })
        });
        let (window, assessment) = match reading {
            Some(reading) => {
                let (rule, last_pass) = (self.policy.loop_rule, self.before.last_pass);
                let observe = |extra| restart_window::observe(known, reading, extra, rule, last_pass, self.now);
                self.seen.extend(observe(0).0.map(|window| (id.clone(), window)));
                let (window, assessment) = observe(extra);
                (window, Some(assessment))
            }
            None => (known.cloned(), None),
        };
        if window.is_some() {
            self.connectors.entry(id.clone()).or_default().window = window;
        }
        // How far the log was delivered does not depend on any decision.
        if let Some(log) = self.before.connectors.get(id).and_then(|memory| memory.log.clone()) {
            self.connectors.entry(id.clone()).or_default().log = Some(log);
        }
        if let Some(assessment) = assessment {
            self.assessments.insert(id.clone(), assessment);
        }
        assessment
    }

    fn keep_running(
        &mut self,
        connector: &Connector,
        workload: &Workload,
        hold: Option<Assessment>,
        ended: bool,
        final_name: &str,
    ) -> Decision {
        if let Some(assessment) = hold {
            self.connectors.entry(connector.id.clone()).or_default().held = Some(connector.hash.clone());
            return Decision::Step(Step::Hold { handle: workload.handle.clone(), restarts: assessment.total });
        }
        let reason = match workload.phase {
            Phase::Running | Phase::Restarting
                if final_name != connector.name.as_str() && workload.change == Change::Replaced =>
            {
                return Decision::Skip(Skip::NameBusy { name: connector.name.as_str().to_owned() });
            }
            Phase::Running | Phase::Restarting => return Decision::Skip(Skip::Running),
            Phase::Pending | Phase::Ending => return Decision::Skip(Skip::Pending),
            Phase::Paused => StartReason::Paused,
            Phase::Multiplied => StartReason::Multiplied,
            _ if ended => StartReason::Ended,
            _ => StartReason::Requested,
        };
        Decision::Step(Step::Start { handle: workload.handle.clone(), reason })
    }
}

/// The name that a workload gets now. One that was kept keeps its name while its own is not free, because a temporary name
/// would say that it was never complete.
fn name_for<'a>(connector: &Connector, workload: &'a Workload, final_name: &'a str) -> &'a str {
    if workload.is_former() && final_name != connector.name.as_str() { &workload.name } else { final_name }
}

/// The step by which a workload gets its name. `None` when it has it, or can never get it.
fn rename(connector: &Connector, workload: &Workload, final_name: &str) -> Option<Decision> {
    let to = name_for(connector, workload, final_name);
    let differs = workload.name != to && workload.change == Change::Replaced;
    differs.then(|| {
        let (handle, from, to) = (workload.handle.clone(), workload.name.clone(), to.to_owned());
        Decision::Step(Step::Rename { handle, from, to })
    })
}

/// Whether a workload that runs, or is started, would not be started again by the engine when it ends.
fn lacks_restart_policy(workload: &Workload, decision: &Decision) -> bool {
    let runs =
        matches!(decision, Decision::Skip(Skip::Running | Skip::NameBusy { .. }) | Decision::Step(Step::Start { .. }));
    runs && workload.vitals.as_ref().is_some_and(|vitals| vitals.unattended)
}

fn absent(connector: &Connector, name: String) -> Decision {
    match connector.requested {
        Requested::Run => Decision::Step(Step::Deploy { name }),
        Requested::Stop => Decision::Skip(Skip::NotStarted),
    }
}

fn stop(workload: &Workload) -> Decision {
    if must_stop(workload) {
        Decision::Step(Step::Stop { handle: workload.handle.clone() })
    } else {
        Decision::Skip(Skip::Stopped)
    }
}

/// Whether the workload does anything that has to be stopped.
fn must_stop(workload: &Workload) -> bool {
    match workload.phase {
        Phase::Running | Phase::Restarting | Phase::Multiplied | Phase::Pending | Phase::Paused => true,
        Phase::Created | Phase::Exited | Phase::Stopped | Phase::Ending | Phase::Broken => false,
    }
}

/// Whether the workload ended by itself: it should run, the platform shows that it does, and it does not.
fn has_ended(connector: &Connector, workload: &Workload) -> bool {
    connector.requested == Requested::Run
        && connector.shown == Some(CurrentStatus::Started)
        && workload.phase == Phase::Exited
        && !workload.is_former()
}

fn refresh_reason(connector: &Connector, workload: &Workload) -> Option<RefreshReason> {
    if workload.hash.as_ref() != Some(&connector.hash) {
        return Some(RefreshReason::HashChanged { from: workload.hash.clone(), to: connector.hash.clone() });
    }
    (workload.phase == Phase::Broken).then_some(RefreshReason::Broken)
}

fn replace(
    connector: &Connector,
    workload: &Workload,
    name: String,
    reason: RefreshReason,
    held: bool,
    former_ran: bool,
    fallback: Option<Former>,
) -> Step {
    let (old, old_name) = (workload.handle.clone(), workload.name.clone());
    let start = connector.requested == Requested::Run && !held;
    let obstacle = match workload.change {
        Change::Recreated => Some(Obstacle::Selector),
        Change::InPlace if workload.name != name => Some(Obstacle::Name),
        Change::InPlace | Change::Replaced => None,
    };
    match obstacle {
        Some(obstacle) => Step::Recreate { old, old_name, name, start, reason, obstacle },
        None => {
            let old_up = workload.phase.is_up() || has_ended(connector, workload) || workload.is_former() || former_ran;
            Step::Refresh { old, old_name, old_up, name, start, fallback, reason }
        }
    }
}
