//! Decides what to do: `plan(desired, observed, memory, policy, now) -> Plan`. Pure, and the same for every order of
//! its input.

mod decide;
mod keeper;
mod names;
mod prune;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use crate::desired::{Desired, Rejection};
use crate::memory::Memory;
use crate::model::{ConfigHash, ConnectorId, Handle, Observed, Workload};
use crate::probation::{Failure, ProbationRule, Verdict};
use crate::restart_window::{Assessment, LoopRule, RestartWindow};

pub use prune::PruneRefusal;

/// The part of the configuration that the decisions depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// When restarts count as a reboot loop.
    pub loop_rule: LoopRule,
    /// What a reboot loop leads to.
    pub loop_action: LoopAction,
    /// The limits of the prune guard.
    pub prune: PrunePolicy,
    /// How long a refreshed workload has to stay up before what it replaced is removed.
    pub probation: ProbationRule,
    /// The connector that the operator releases if it is held: its id, its title, or the name of its workload.
    pub release: Option<String>,
}

/// What to do with a workload in a reboot loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopAction {
    /// Report it on the platform and in the report.
    Report,
    /// Also stop it, and hold it until its hash changes, a pass sees that the platform wants it stopped, or the operator
    /// releases it.
    Stop,
}

/// When the prune guard refuses removals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// Whether the operator allows this pass to remove everything that is not listed.
    pub allow: bool,
    /// The largest share of the owned connectors that one pass may remove, in percent. It counts from three connectors
    /// on.
    pub max_percent: u8,
}

/// Everything that one pass will do, and why it does nothing where it does nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The removals first, then the other decisions by connector id. Several entries of one connector are in the order
    /// in which they are carried out.
    pub entries: Vec<Entry>,
    /// Why the prune guard refuses removals. `None` when it does not.
    pub refusal: Option<PruneRefusal>,
    /// The judgement on the restarts of each workload that is up.
    pub assessments: BTreeMap<ConnectorId, Assessment>,
    /// For each listed connector, the workload that stays, if it has one.
    pub kept: BTreeMap<ConnectorId, Handle>,
    /// What to remember once the plan is carried out.
    pub memory: Memory,
    /// The restarts so far, by connector, which are to be remembered even when the plan is not carried out.
    pub seen: BTreeMap<ConnectorId, RestartWindow>,
    /// The connectors that were held and are released because the operator asked for it.
    pub released: BTreeSet<ConnectorId>,
}

/// One decision about one connector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The connector that the decision is about.
    pub connector: ConnectorId,
    /// The connector's display name, or the name of the workload when the connector is not listed any more.
    pub title: String,
    /// What to do about it.
    #[serde(flatten)]
    pub decision: Decision,
}

/// Either a step or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// There is something to do.
    Step(Step),
    /// There is nothing to do.
    Skip(Skip),
    /// Something is wrong with this connector.
    Reject(Rejection),
}

/// One change to the orchestrator. A step names everything that it needs, so that nothing is decided while it is
/// carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    /// Create and start a workload.
    Deploy {
        /// The name that the workload gets once it is complete.
        name: String,
    },
    /// Replace a workload by one with the wanted image and configuration.
    Refresh {
        /// The workload to replace.
        old: Handle,
        /// The name that it has now.
        old_name: String,
        /// Whether the old workload runs again when there is no new one. True when it is up, and when it is down
        /// although the platform shows it as started, because a pass that was killed may have stopped it.
        old_up: bool,
        /// The name that the new workload gets once it is complete.
        name: String,
        /// Whether the new workload is started.
        start: bool,
        /// The workload that runs again when the new one fails on probation. It is either the old one, which then is
        /// kept, or one that was kept before because the old one has not proved itself either. `None` when the old one
        /// did not work, or cannot be kept.
        fallback: Option<Former>,
        /// Why the workload is replaced.
        reason: RefreshReason,
    },
    /// Remove a workload that failed on probation, and start the one that it replaced.
    RollBack {
        /// The workload that failed.
        failed: Handle,
        /// The workload that it replaced.
        former: Former,
        /// The name that the former workload gets back.
        name: String,
        /// The configuration that failed. `None` when the workload has no hash that can be read.
        hash: Option<ConfigHash>,
        /// What the failed workload did.
        failure: Failure,
    },
    /// Delete a workload and make it anew, because it cannot be changed in place to what it should be.
    Recreate {
        /// The workload to delete.
        old: Handle,
        /// The name that it has now.
        old_name: String,
        /// The name of the new workload.
        name: String,
        /// Whether the new workload is started.
        start: bool,
        /// Why the workload has to change.
        reason: RefreshReason,
        /// Why it cannot be changed in place.
        obstacle: Obstacle,
    },
    /// Give a workload its right name while it goes on running.
    Rename {
        /// The workload to rename.
        handle: Handle,
        /// The name that it has now.
        from: String,
        /// The name that it gets.
        to: String,
    },
    /// Start a workload that exists.
    Start {
        /// The workload to start.
        handle: Handle,
        /// Why it is started.
        reason: StartReason,
    },
    /// Stop a workload and keep it.
    Stop {
        /// The workload to stop.
        handle: Handle,
    },
    /// Give a workload a setting that it lacks while it goes on running.
    Update {
        /// The workload to change.
        handle: Handle,
        /// What it lacks.
        reason: UpdateReason,
    },
    /// Delete a workload.
    Remove {
        /// The workload to delete.
        handle: Handle,
        /// The name that it has now.
        name: String,
        /// Why it is deleted.
        reason: RemoveReason,
    },
    /// Stop a workload in a reboot loop, and keep it stopped.
    Hold {
        /// The workload to stop.
        handle: Handle,
        /// The number of restarts over the workload's life.
        restarts: u64,
    },
}

/// A workload that was replaced and is kept, stopped, until its replacement has proved itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Former {
    /// The engine's id of it.
    pub handle: Handle,
    /// The name under which it is kept.
    pub name: String,
}

/// Why a workload is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RefreshReason {
    /// The platform's hash differs from that of the workload.
    HashChanged {
        /// The hash of the workload. `None` when it has none that can be read.
        from: Option<ConfigHash>,
        /// The hash that the platform sent.
        to: ConfigHash,
    },
    /// The orchestrator cannot run the workload any more.
    Broken,
}

/// Why a workload cannot be changed in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Obstacle {
    /// It selects its pods by other labels than ours, and the selector of a Deployment can never change.
    Selector,
    /// It has another name, and the name of a Deployment can never change.
    Name,
}

/// Why a workload is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartReason {
    /// The platform wants it to run.
    Requested,
    /// It ended by itself although it should run.
    Ended,
    /// Somebody paused it.
    Paused,
    /// Somebody scaled it to several instances, and only one may run.
    Multiplied,
    /// Its replacement failed, and an earlier pass could not start it again.
    RolledBack,
}

/// What a workload gets in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateReason {
    /// The engine does not start it again when it ends.
    RestartPolicy,
}

/// Why a workload is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemoveReason {
    /// The platform does not list its connector any more.
    NotListed,
    /// Another workload of the same connector stays.
    Duplicate,
    /// An earlier pass was cut off before the workload was complete.
    Incomplete,
    /// The workload that replaced it has stayed up for the time of probation.
    Replaced,
}

/// Why nothing is done about a connector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Skip {
    /// It runs, as it should.
    Running,
    /// It runs, as it should, and what it replaced is kept until then.
    OnProbation {
        /// The earliest time at which it has proved itself.
        until: Timestamp,
    },
    /// It should run, and the orchestrator is trying to run it.
    Pending,
    /// It exists and is stopped, as it should be.
    Stopped,
    /// It should not run and does not exist. It is deployed when it is first started on the platform.
    NotStarted,
    /// It was stopped for a reboot loop and stays stopped with this configuration.
    Held,
    /// It runs under a temporary name, because another workload still has its own.
    NameBusy {
        /// The name that it waits for.
        name: String,
    },
    /// It is not listed any more, and the prune guard keeps it.
    PruneRefused,
    /// An older daemon made it and it is not in the list, so it may belong to the other platform.
    UnknownPlatform,
}

/// Makes the plan of one pass. `now` decides how old restarts and refused starts are.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed, memory: &Memory, policy: &Policy, now: Timestamp) -> Plan {
    let groups = keeper::group(observed);
    let kept = keeper::choose(desired, &groups);
    let formers = keeper::formers(desired, &groups, &kept, memory, policy.probation, now);
    let prune::Verdict { refusal, guarded } = prune::judge(desired, observed, &groups, memory, policy.prune);
    let claims = names::Claims::new(desired, observed);
    let removals = keeper::removals(desired, &groups, &kept, &formers, &claims, refusal.is_some());
    let names = names::Names::new(claims, observed, &removals);

    let mut decided = decide::Decided::new(memory, observed.record_lost, policy, now);
    for (id, connector) in &desired.connectors {
        decided.connector(connector, kept.get(id).copied(), formers.get(id).copied(), &names);
    }
    for rejected in desired.rejected.values() {
        decided.rejected(rejected, kept.get(&rejected.id).copied());
    }
    for (id, workloads) in groups.iter().filter(|(id, _)| !desired.lists(id)) {
        decided.unlisted(id, workloads, refusal.is_some());
    }
    decided.guarded(guarded);
    decided.finish(removals, refusal, &kept)
}

/// The plan for this workload's connector alone, when nothing is to be done about it whatever the other workloads are
/// like, so that it need not wait until all of them are known. `None` when that cannot be said.
///
/// The workload has to be the only one of its connector. A workload that has its connector's own name keeps it, because an
/// orchestrator gives a name only once.
#[must_use]
pub fn settled(
    desired: &Desired,
    workload: &Workload,
    memory: &Memory,
    policy: &Policy,
    now: Timestamp,
) -> Option<Plan> {
    let connector = desired.connectors.get(&workload.connector)?;
    if workload.name != connector.name.as_str() {
        return None;
    }
    let desired =
        Desired { connectors: BTreeMap::from([(connector.id.clone(), connector.clone())]), ..Desired::default() };
    let observed = Observed { workloads: vec![workload.clone()], ..Observed::default() };
    let known = memory.connectors.get(&connector.id).map(|known| (connector.id.clone(), known.clone()));
    let (connectors, last_pass) = (known.into_iter().collect(), memory.last_pass);
    let plan = plan(&desired, &observed, &Memory { connectors, last_pass, ..Memory::default() }, policy, now);
    let runs = |entry: &Entry| matches!(entry.decision, Decision::Skip(Skip::Running));
    plan.entries.iter().all(runs).then_some(plan)
}

impl Plan {
    /// The steps in the order of the entries, each with its entry.
    pub fn steps(&self) -> impl Iterator<Item = (&Entry, &Step)> {
        self.entries.iter().filter_map(|entry| match &entry.decision {
            Decision::Step(step) => Some((entry, step)),
            Decision::Skip(_) | Decision::Reject(_) => None,
        })
    }

    /// Whether the plan would change anything.
    #[must_use]
    pub fn has_steps(&self) -> bool {
        self.steps().next().is_some()
    }
}

impl Step {
    /// The word for the step in reports and logs, as design.md lists it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Deploy { .. } => "deploy",
            Self::Refresh { .. } => "refresh",
            Self::RollBack { .. } => "roll-back",
            Self::Recreate { .. } => "recreate",
            Self::Rename { .. } => "rename",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Update { .. } => "update",
            Self::Remove { .. } => "remove",
            Self::Hold { .. } => "hold",
        }
    }

    /// The workload that the step changes. `None` for a deploy, which has no workload yet. For a roll-back it is the one
    /// that is to run again.
    #[must_use]
    pub fn handle(&self) -> Option<&Handle> {
        match self {
            Self::Deploy { .. } => None,
            Self::Refresh { old: handle, .. }
            | Self::Recreate { old: handle, .. }
            | Self::RollBack { former: Former { handle, .. }, .. }
            | Self::Rename { handle, .. }
            | Self::Start { handle, .. }
            | Self::Stop { handle }
            | Self::Update { handle, .. }
            | Self::Remove { handle, .. }
            | Self::Hold { handle, .. } => Some(handle),
        }
    }

    /// The workload whose log ends with the step, so that this is the last chance to read it. `None` when the step ends
    /// no log: that of a workload that was kept for a roll-back ended when it was replaced.
    #[must_use]
    pub fn ends_log_of(&self) -> Option<&Handle> {
        match self {
            Self::Remove { reason: RemoveReason::Replaced, .. } => None,
            Self::Refresh { old: handle, .. }
            | Self::Recreate { old: handle, .. }
            | Self::RollBack { failed: handle, .. }
            | Self::Remove { handle, .. } => Some(handle),
            _ => None,
        }
    }

    /// The workload that does not exist any more once the step is done.
    #[must_use]
    pub fn removes(&self) -> Option<&Handle> {
        match self {
            Self::Refresh { old, fallback: Some(former), .. } if former.handle == *old => None,
            Self::Refresh { old: handle, .. }
            | Self::Recreate { old: handle, .. }
            | Self::RollBack { failed: handle, .. }
            | Self::Remove { handle, .. } => Some(handle),
            _ => None,
        }
    }

    /// Whether the workload is to run once the step is done, and may not have run before.
    #[must_use]
    pub(crate) fn starts(&self) -> bool {
        match self {
            Self::Deploy { .. } | Self::Start { .. } => true,
            Self::Refresh { start, .. } | Self::Recreate { start, .. } => *start,
            _ => false,
        }
    }

    /// Whether the step makes a container, so that the values of the connector have to be decrypted.
    #[must_use]
    pub fn makes_workload(&self) -> bool {
        matches!(self, Self::Deploy { .. } | Self::Refresh { .. } | Self::Recreate { .. })
    }
}

/// The workloads of each connector, ordered by engine id.
type Groups<'a> = BTreeMap<&'a ConnectorId, Vec<&'a Workload>>;
/// For each connector, the workload that stays.
type Kept<'a> = BTreeMap<&'a ConnectorId, &'a Workload>;
/// For each connector on probation, the workload that is kept for a roll-back, and what became of its replacement.
type Formers<'a> = BTreeMap<&'a ConnectorId, (&'a Workload, Verdict)>;
