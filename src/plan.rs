//! What to do: `plan(desired, observed, memory, policy, now) -> Plan`. Pure, and the same for every order of its input.

mod decide;
mod keeper;
mod names;
mod prune;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::desired::{Desired, Rejection};
use crate::memory::Memory;
use crate::model::{ConfigHash, ConnectorId, Handle, Observed, Workload};
use crate::restart_window::{Assessment, LoopRule};

pub use prune::PruneRefusal;

/// What the operator configured that decides between steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// When restarts make a reboot loop.
    pub loop_rule: LoopRule,
    /// What a reboot loop leads to.
    pub loop_action: LoopAction,
    /// The prune guard's limits.
    pub prune: PrunePolicy,
}

/// What to do with a workload in a reboot loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopAction {
    /// Say so on the platform and in the report.
    Report,
    /// Also stop and hold it until its hash changes or it is stopped and started again.
    Stop,
}

/// When removals are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// The operator allowed this pass to remove whatever is not listed.
    pub allow: bool,
    /// Largest share of three or more owned connectors that one pass may remove, in percent.
    pub max_percent: u8,
}

/// Everything that one pass will do, and why it does nothing where it does nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Removals first, then by connector id; several of one connector stand in the order in which they are done.
    pub entries: Vec<Entry>,
    /// Set when the prune guard refused removals.
    pub refusal: Option<PruneRefusal>,
    /// The judgement on each workload that is up.
    pub assessments: BTreeMap<ConnectorId, Assessment>,
    /// The workload of each listed connector that stays, where there is one.
    pub kept: BTreeMap<ConnectorId, Handle>,
    /// What to remember once the plan is done.
    pub memory: Memory,
}

/// One decision about one connector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Whose.
    pub connector: ConnectorId,
    /// Its display name, or the workload's name when it is not listed any more.
    pub title: String,
    /// What was decided.
    #[serde(flatten)]
    pub decision: Decision,
}

/// A step, or the reason for none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Something to do.
    Step(Step),
    /// Nothing to do.
    Skip(Skip),
    /// Something is wrong with this connector.
    Reject(Rejection),
}

/// One change to the orchestrator. Names are complete: carrying a step out decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    /// Create and start a workload.
    Deploy {
        /// The name it gets once complete.
        name: String,
    },
    /// Replace a workload by one with the wanted image and configuration.
    Refresh {
        /// The one to replace.
        old: Handle,
        /// Its name.
        old_name: String,
        /// Whether it is up, or ended by itself as far as the platform knows (a pass that was killed may have stopped it):
        /// then it runs again should there be no new one.
        old_up: bool,
        /// The name that the new one gets once complete.
        name: String,
        /// Whether the new one is started.
        start: bool,
        /// Why.
        reason: RefreshReason,
    },
    /// Take a workload away and make it anew, because it cannot be changed to what it should be.
    Recreate {
        /// The one that goes.
        old: Handle,
        /// Its name.
        old_name: String,
        /// The name of the new one.
        name: String,
        /// Whether the new one is started.
        start: bool,
        /// Why it should be another.
        reason: RefreshReason,
        /// Why it cannot be changed.
        obstacle: Obstacle,
    },
    /// Give a workload its right name; it goes on running.
    Rename {
        /// Which.
        handle: Handle,
        /// Its name now.
        from: String,
        /// Its name then.
        to: String,
    },
    /// Start a workload that exists.
    Start {
        /// Which.
        handle: Handle,
        /// Why.
        reason: StartReason,
    },
    /// Stop a workload and keep it.
    Stop {
        /// Which.
        handle: Handle,
    },
    /// Take a workload away.
    Remove {
        /// Which.
        handle: Handle,
        /// Its name.
        name: String,
        /// Why.
        reason: RemoveReason,
    },
    /// Stop a workload in a reboot loop, and keep it stopped.
    Hold {
        /// Which.
        handle: Handle,
        /// Restarts over its life.
        restarts: u64,
    },
}

/// Why a workload is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RefreshReason {
    /// The platform's hash is another one.
    HashChanged {
        /// The workload's, where it has one that can be read.
        from: Option<ConfigHash>,
        /// The platform's.
        to: ConfigHash,
    },
    /// The engine cannot run it any more.
    Broken,
}

/// Why a workload cannot be changed where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Obstacle {
    /// It selects its pods by labels that are not ours, and a selector can never change.
    Selector,
    /// It has another name, and a name can never change.
    Name,
}

/// Why a workload is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartReason {
    /// The platform wants it to run.
    Requested,
    /// It ran, and ended by itself.
    Ended,
    /// It is paused.
    Paused,
    /// It was scaled to several instances.
    Multiplied,
}

/// Why a workload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemoveReason {
    /// Its connector is not in the platform's list any more.
    NotListed,
    /// Another workload of the same connector stays.
    Duplicate,
    /// An earlier pass was cut off before it was complete.
    Incomplete,
}

/// Why nothing is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Skip {
    /// It runs as wanted.
    Running,
    /// It should run, and the orchestrator is about to run it, or tries to.
    Pending,
    /// It exists and is stopped, as wanted.
    Stopped,
    /// It is not wanted and does not exist: it is deployed when first started.
    NotStarted,
    /// It was stopped for a reboot loop and stays so with this configuration.
    Held,
    /// It runs under a temporary name, because another workload still has its own.
    NameBusy {
        /// The name it waits for.
        name: String,
    },
    /// The prune guard keeps it.
    PruneRefused,
    /// Made by an older daemon and not in the list: it could be the other platform's.
    UnknownPlatform,
}

/// Makes the plan. See the module.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed, memory: &Memory, policy: &Policy, now: Timestamp) -> Plan {
    let groups = keeper::group(observed);
    let kept = keeper::choose(desired, &groups);
    let refusal = prune::judge(desired, &groups, memory, policy.prune);
    let claims = names::Claims::new(desired, observed);
    let removals = keeper::removals(desired, &groups, &kept, &claims, refusal.is_some());
    let names = names::Names::new(claims, observed, &removals);

    let mut decided = decide::Decided::new(memory, policy, now);
    for (id, connector) in &desired.connectors {
        decided.connector(connector, kept.get(id).copied(), &names);
    }
    for rejected in desired.rejected.values() {
        decided.rejected(rejected, kept.get(&rejected.id).copied());
    }
    for (id, workloads) in groups.iter().filter(|(id, _)| !desired.lists(id)) {
        decided.unlisted(id, workloads, refusal.as_ref());
    }
    let (mut rest, assessments, memory) = decided.finish();
    rest.sort_by(|a, b| a.connector.cmp(&b.connector));
    let mut entries = removals;
    entries.append(&mut rest);
    let kept = kept.into_iter().map(|(id, workload)| (id.clone(), workload.handle.clone())).collect();
    Plan { entries, refusal, assessments, kept, memory }
}

impl Plan {
    /// The steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = (&Entry, &Step)> {
        self.entries.iter().filter_map(|entry| match &entry.decision {
            Decision::Step(step) => Some((entry, step)),
            Decision::Skip(_) | Decision::Reject(_) => None,
        })
    }

    /// Whether carrying it out would change anything.
    #[must_use]
    pub fn has_steps(&self) -> bool {
        self.steps().next().is_some()
    }
}

impl Step {
    /// The step's word, as design.md lists them.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Deploy { .. } => "deploy",
            Self::Refresh { .. } => "refresh",
            Self::Recreate { .. } => "recreate",
            Self::Rename { .. } => "rename",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Remove { .. } => "remove",
            Self::Hold { .. } => "hold",
        }
    }

    /// The workload that is changed; a deploy has none yet.
    #[must_use]
    pub fn handle(&self) -> Option<&Handle> {
        match self {
            Self::Deploy { .. } => None,
            Self::Refresh { old: handle, .. }
            | Self::Recreate { old: handle, .. }
            | Self::Rename { handle, .. }
            | Self::Start { handle, .. }
            | Self::Stop { handle }
            | Self::Remove { handle, .. }
            | Self::Hold { handle, .. } => Some(handle),
        }
    }

    /// The workload that is gone once the step is done.
    #[must_use]
    pub fn takes_away(&self) -> Option<&Handle> {
        match self {
            Self::Refresh { old: handle, .. } | Self::Recreate { old: handle, .. } | Self::Remove { handle, .. } => {
                Some(handle)
            }
            _ => None,
        }
    }

    /// Whether a container has to be made for it, and so its values have to be decrypted.
    #[must_use]
    pub fn makes_workload(&self) -> bool {
        matches!(self, Self::Deploy { .. } | Self::Refresh { .. } | Self::Recreate { .. })
    }
}

/// Workloads by connector, in an order of their own.
type Groups<'a> = BTreeMap<&'a ConnectorId, Vec<&'a Workload>>;
/// The one workload of each connector that stays.
type Kept<'a> = BTreeMap<&'a ConnectorId, &'a Workload>;
