//! An orchestrator in memory, written from the words of the design and not from the planner: it carries out a plan
//! step by step and refuses whatever a real engine would refuse, or the design forbids.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use xtm_reconcile::desired::Desired;
use xtm_reconcile::model::{Change, Connector, ConnectorId, Handle, Observed, Phase, PlatformKind, Vitals, Workload};
use xtm_reconcile::plan::{Former, Plan, Step, UpdateReason};

use crate::scenario::turn;

/// What an engine holds, and what it was told to do.
#[derive(Debug, Clone)]
pub struct World {
    pub observed: Observed,
    made: usize,
    removed: BTreeSet<Handle>,
    /// What a new workload becomes: a container is replaced, a Deployment changed in place.
    change: Change,
}

/// What went wrong when a plan was carried out.
pub type Refused = String;

impl World {
    pub fn new(observed: Observed) -> Self {
        let deployments = observed.workloads.iter().any(|workload| workload.change != Change::Replaced);
        let change = if deployments { Change::InPlace } else { Change::Replaced };
        Self { observed, made: 0, removed: BTreeSet::new(), change }
    }

    /// Carries a plan out in its order.
    pub fn apply(&mut self, plan: &Plan, desired: &Desired, now: Timestamp) -> Result<(), Refused> {
        self.apply_turned(plan, desired, now, 0)
    }

    /// Carries a plan out with its connectors in another order: after the removals, they do not wait for each other.
    pub fn apply_turned(&mut self, plan: &Plan, desired: &Desired, now: Timestamp, by: usize) -> Result<(), Refused> {
        let steps: Vec<_> = plan.steps().collect();
        let first_other = steps.iter().position(|(_, step)| !is_removal(step)).unwrap_or(steps.len());
        let (removals, others) = steps.split_at(first_other);
        if let Some((late, _)) = others.iter().find(|(_, step)| is_removal(step)) {
            return Err(format!("{late:?} comes after a step that is no removal"));
        }
        let mut connectors: Vec<_> = others.chunk_by(|(a, _), (b, _)| a.connector == b.connector).collect();
        turn(&mut connectors, by);
        for (entry, step) in removals.iter().chain(connectors.into_iter().flatten()) {
            self.step(&entry.connector, step, desired, now).map_err(|why| format!("{entry:?}: {why}"))?;
            self.names_are_unique()?;
        }
        Ok(())
    }

    fn step(&mut self, id: &ConnectorId, step: &Step, desired: &Desired, now: Timestamp) -> Result<(), Refused> {
        match step {
            Step::Deploy { name } => {
                let connector = listed(id, desired)?;
                if self.observed.workloads.iter().any(|workload| workload.connector == *id) {
                    return Err("it has a workload already".to_owned());
                }
                self.make(connector, name, true, None, now)
            }
            Step::Refresh { old, old_name, old_up, name, start, fallback, .. } => {
                let connector = listed(id, desired)?;
                let before = self.of(id, old)?.clone();
                if before.name != *old_name || before.phase.is_up() && !*old_up {
                    return Err(format!("the old one is {before:?}"));
                }
                let kept = fallback.as_ref().filter(|former| former.handle == *old);
                if let (Some(former), None) = (fallback, kept) {
                    // What was kept before goes on being kept.
                    let former = self.of(id, &former.handle)?;
                    if former.phase.is_up() || !former.is_former() {
                        return Err(format!("what is kept is {former:?}"));
                    }
                }
                match before.change {
                    Change::Replaced if let Some(former) = kept => {
                        if former.name != before.name {
                            self.free(&former.name, None)?;
                        }
                        let stopped = self.stopped();
                        let workload = self.of(id, old)?;
                        (workload.phase, workload.vitals) = (stopped, None);
                        workload.name.clone_from(&former.name);
                        self.make(connector, name, *start, None, now)
                    }
                    Change::Replaced => self.make(connector, name, *start, Some(old), now),
                    Change::InPlace if name == old_name => {
                        let (phase, vitals) = self.begun(*start, now);
                        let workload = self.of(id, old)?;
                        workload.hash = Some(connector.hash.clone());
                        (workload.phase, workload.vitals) = (phase, vitals);
                        Ok(())
                    }
                    Change::InPlace => Err("a Deployment cannot be renamed".to_owned()),
                    Change::Recreated => Err("its selector cannot be changed".to_owned()),
                }
            }
            Step::Recreate { old, old_name, name, start, .. } => {
                let connector = listed(id, desired)?;
                let before = self.of(id, old)?.clone();
                if before.name != *old_name || before.change == Change::Replaced {
                    return Err(format!("the old one is {before:?}"));
                }
                self.make(connector, name, *start, Some(old), now)
            }
            Step::RollBack { failed, former, name, .. } => self.roll_back(id, failed, former, name, now),
            Step::Rename { handle, from, to } => {
                let workload = self.of(id, handle)?;
                if workload.name != *from || workload.change != Change::Replaced {
                    return Err("it has another name, or one that cannot be changed".to_owned());
                }
                self.free(to, None)?;
                self.of(id, handle)?.name.clone_from(to);
                Ok(())
            }
            Step::Start { handle, .. } => {
                let workload = self.of(id, handle)?;
                let up = workload.phase.is_up() && workload.phase != Phase::Multiplied;
                if up || matches!(workload.phase, Phase::Broken | Phase::Pending) {
                    return Err(format!("a workload that is {:?} cannot be started", workload.phase));
                }
                workload.phase = Phase::Running;
                workload.vitals = Some(Vitals { restarts: 0, started_at: Some(now), ..Vitals::default() });
                Ok(())
            }
            Step::Stop { handle } => {
                let stopped = self.stopped();
                let workload = self.of(id, handle)?;
                if !workload.phase.is_up() && !matches!(workload.phase, Phase::Paused | Phase::Pending) {
                    return Err(format!("a workload that is {:?} cannot be stopped", workload.phase));
                }
                (workload.phase, workload.vitals) = (stopped, None);
                Ok(())
            }
            Step::Update { handle, reason: UpdateReason::RestartPolicy } => {
                let vitals = self.of(id, handle)?.vitals.as_mut();
                let vitals = vitals.ok_or_else(|| "what does not run is not updated".to_owned())?;
                vitals.unattended = false;
                Ok(())
            }
            Step::Hold { handle, .. } => {
                let stopped = self.stopped();
                let workload = self.of(id, handle)?;
                (workload.phase, workload.vitals) = (stopped, None);
                Ok(())
            }
            Step::Remove { handle, name, .. } => {
                if self.of(id, handle)?.name != *name {
                    return Err("it has another name".to_owned());
                }
                self.take(handle)
            }
        }
    }

    fn roll_back(
        &mut self,
        id: &ConnectorId,
        failed: &Handle,
        former: &Former,
        name: &str,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let gone = self.of(id, failed)?.clone();
        let back = self.of(id, &former.handle)?.clone();
        if back.name != former.name || back.phase == Phase::Broken || gone.change != Change::Replaced {
            return Err(format!("{back:?} cannot come back for {gone:?}"));
        }
        self.take(failed)?;
        self.free(name, Some(&former.handle))?;
        let vitals = self.begun(true, now).1;
        let workload = self.of(id, &former.handle)?;
        (workload.phase, workload.vitals) = (Phase::Running, vitals);
        name.clone_into(&mut workload.name);
        Ok(())
    }

    /// A new workload is complete before it gets its name, and only then the old one goes.
    fn make(
        &mut self,
        connector: &Connector,
        name: &str,
        start: bool,
        old: Option<&Handle>,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let staged = connector.name.staged(&connector.hash);
        self.free(&staged, None)?;
        self.free(name, old)?;
        if let Some(old) = old {
            self.take(old)?;
        }
        self.made += 1;
        let (phase, vitals) = self.begun(start, now);
        self.observed.workloads.push(Workload {
            handle: Handle(format!("made-{}", self.made)),
            name: name.to_owned(),
            connector: connector.id.clone(),
            platform: Some(PlatformKind::OpenCti),
            hash: Some(connector.hash.clone()),
            phase,
            created: now,
            vitals,
            change: self.change,
            troubles: vec![],
        });
        Ok(())
    }

    /// What a workload is that was just made or changed.
    fn begun(&self, start: bool, now: Timestamp) -> (Phase, Option<Vitals>) {
        let at_rest = if self.change == Change::Replaced { Phase::Created } else { Phase::Stopped };
        let vitals = start.then_some(Vitals { restarts: 0, started_at: Some(now), ..Vitals::default() });
        (if start { Phase::Running } else { at_rest }, vitals)
    }

    fn stopped(&self) -> Phase {
        if self.change == Change::Replaced { Phase::Exited } else { Phase::Stopped }
    }

    fn take(&mut self, handle: &Handle) -> Result<(), Refused> {
        if !self.removed.insert(handle.clone()) {
            return Err("it was removed before".to_owned());
        }
        self.observed.workloads.retain(|workload| workload.handle != *handle);
        Ok(())
    }

    fn of(&mut self, id: &ConnectorId, handle: &Handle) -> Result<&mut Workload, Refused> {
        let found = self.observed.workloads.iter_mut().find(|workload| workload.handle == *handle);
        match found {
            Some(workload) if workload.connector == *id => Ok(workload),
            Some(workload) => Err(format!("{handle} belongs to {}", workload.connector)),
            None => Err(format!("there is no {handle}")),
        }
    }

    fn free(&self, name: &str, except: Option<&Handle>) -> Result<(), Refused> {
        let taken = self.observed.workloads.iter().any(|w| w.name == name && Some(&w.handle) != except);
        if taken || self.observed.foreign.contains_key(name) {
            return Err(format!("the name {name} is taken"));
        }
        Ok(())
    }

    fn names_are_unique(&self) -> Result<(), Refused> {
        let mut seen: BTreeSet<&str> = self.observed.foreign.keys().map(String::as_str).collect();
        match self.observed.workloads.iter().find(|workload| !seen.insert(&workload.name)) {
            Some(twice) => Err(format!("two workloads are named {}", twice.name)),
            None => Ok(()),
        }
    }
}

fn is_removal(step: &Step) -> bool {
    matches!(step, Step::Remove { .. })
}

fn listed<'a>(id: &ConnectorId, desired: &'a Desired) -> Result<&'a Connector, Refused> {
    desired.connectors.get(id).ok_or_else(|| "only a usable connector can be deployed".to_owned())
}

/// The next pass, a minute later.
pub fn later(now: Timestamp, seconds: i64) -> Timestamp {
    now + SignedDuration::from_secs(seconds)
}
