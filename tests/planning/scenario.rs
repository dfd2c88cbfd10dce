//! The input format of `fixtures/scenarios/*.json`, and the text of a plan that its golden file holds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Deserialize;
use xtm_reconcile::desired::{self, Desired, Listing, WireConnector, WireVariable};
use xtm_reconcile::memory::{ConnectorMemory, Memory};
use xtm_reconcile::model::{Change, ConfigHash, ConnectorId, Handle, Observed, Phase, PlatformKind, Vitals, Workload};
use xtm_reconcile::plan::{Decision, LoopAction, Plan, Policy, PrunePolicy, plan};
use xtm_reconcile::probation::ProbationRule;
use xtm_reconcile::restart_window::LoopRule;
use xtm_reconcile::secret::Secret;

/// One case. What is left out has the value of a quiet, healthy fleet.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What happened, and what should come of it.
    pub about: String,
    #[serde(default = "noon")]
    now: Timestamp,
    #[serde(default)]
    policy: PolicyInput,
    #[serde(default)]
    desired: Vec<ConnectorInput>,
    #[serde(default)]
    unreadable: Vec<UnreadableInput>,
    #[serde(default)]
    observed: Vec<WorkloadInput>,
    #[serde(default)]
    foreign: BTreeMap<String, String>,
    /// Connectors with a workload that could not be looked at, and why.
    #[serde(default)]
    failed: BTreeMap<ConnectorId, String>,
    #[serde(default)]
    memory: MemoryInput,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyInput {
    window_s: i64,
    limit: u64,
    loop_action: LoopActionInput,
    allow_prune: bool,
    max_removals_percent: u8,
    probation_s: i64,
    release: Option<String>,
}

impl Default for PolicyInput {
    fn default() -> Self {
        Self {
            window_s: 300,
            limit: 3,
            loop_action: LoopActionInput::Report,
            allow_prune: false,
            max_removals_percent: 50,
            probation_s: 60,
            release: None,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LoopActionInput {
    Report,
    Stop,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectorInput {
    id: String,
    name: String,
    #[serde(default = "image")]
    image: String,
    #[serde(default = "hash")]
    hash: String,
    #[serde(default = "starting")]
    requested: String,
    #[serde(default)]
    current: Option<String>,
    #[serde(default)]
    configuration: Vec<VariableInput>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct VariableInput {
    key: String,
    value: Option<String>,
    #[serde(default)]
    encrypted: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnreadableInput {
    id: Option<String>,
    why: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadInput {
    handle: String,
    name: String,
    connector: String,
    #[serde(default = "labelled")]
    platform_label: bool,
    /// `null`: it carries none that can be read.
    #[serde(default = "some_hash")]
    hash: Option<String>,
    phase: PhaseInput,
    #[serde(default = "midnight")]
    created: Timestamp,
    #[serde(default)]
    restarts: u64,
    /// When its current run began, or the last one.
    #[serde(default)]
    started: Option<Timestamp>,
    #[serde(default)]
    exit_code: Option<i64>,
    /// The engine itself takes it for a loop.
    #[serde(default)]
    backing_off: bool,
    /// The engine does not start it again when it ends.
    #[serde(default)]
    unattended: bool,
    #[serde(default)]
    change: ChangeInput,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ChangeInput {
    #[default]
    Replaced,
    InPlace,
    Recreated,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PhaseInput {
    Created,
    Exited,
    Stopped,
    Paused,
    Pending,
    Restarting,
    Running,
    Multiplied,
    Broken,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MemoryInput {
    connectors: BTreeMap<ConnectorId, ConnectorMemory>,
    adopted: BTreeMap<String, ConfigHash>,
}

fn noon() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn midnight() -> Timestamp {
    "2026-03-01T00:00:00Z".parse().unwrap()
}

fn image() -> String {
    "opencti/connector:6.9".to_owned()
}

fn hash() -> String {
    "aaaa1111".to_owned()
}

#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn some_hash() -> Option<String> {
    Some(hash())
}

fn starting() -> String {
    "starting".to_owned()
}

fn labelled() -> bool {
    true
}

impl Scenario {
    /// The same case with every list turned by `by` places and, when odd, reversed.
    pub fn reordered(&self, by: usize) -> Self {
        let mut other = self.clone();
        turn(&mut other.desired, by);
        turn(&mut other.unreadable, by);
        turn(&mut other.observed, by);
        other
    }

    /// The same case with the operator's word for this name.
    pub fn with_release(mut self, name: &str) -> Self {
        self.policy.release = Some(name.to_owned());
        self
    }

    pub fn desired(&self) -> Desired {
        let connectors = self.desired.iter().map(ConnectorInput::wire).collect();
        let unreadable = self.unreadable.iter().map(|entry| (entry.id.clone(), entry.why.clone())).collect();
        desired::read(Listing { connectors, unreadable })
    }

    pub fn memory(&self) -> Memory {
        Memory { connectors: self.memory.connectors.clone(), adopted: self.memory.adopted.clone(), ..Memory::default() }
    }

    pub fn plan(&self) -> Plan {
        let observed = Observed {
            workloads: self.observed.iter().map(WorkloadInput::workload).collect(),
            foreign: self.foreign.clone(),
            failed: self.failed.clone(),
            record_lost: false,
        };
        let policy = Policy {
            loop_rule: LoopRule { window_s: self.policy.window_s, limit: self.policy.limit },
            loop_action: match self.policy.loop_action {
                LoopActionInput::Report => LoopAction::Report,
                LoopActionInput::Stop => LoopAction::Stop,
            },
            prune: PrunePolicy { allow: self.policy.allow_prune, max_percent: self.policy.max_removals_percent },
            probation: ProbationRule { length_s: self.policy.probation_s, after_restart_s: self.policy.window_s },
            release: self.policy.release.clone(),
        };
        plan(&self.desired(), &observed, &self.memory(), &policy, self.now)
    }
}

/// Turns a list by some places, and reverses it for odd ones.
pub fn turn<T>(list: &mut [T], by: usize) {
    if !list.is_empty() {
        list.rotate_left(by % list.len());
    }
    if by % 2 == 1 {
        list.reverse();
    }
}

impl ConnectorInput {
    fn wire(&self) -> WireConnector {
        let variable = |entry: &VariableInput| WireVariable {
            key: entry.key.clone(),
            value: entry.value.clone().map(Secret::new),
            encrypted: entry.encrypted,
        };
        WireConnector {
            id: self.id.clone(),
            name: self.name.clone(),
            image: self.image.clone(),
            hash: self.hash.clone(),
            requested: self.requested.clone(),
            current: self.current.clone(),
            configuration: self.configuration.iter().map(variable).collect(),
        }
    }
}

impl WorkloadInput {
    fn workload(&self) -> Workload {
        let phase = match self.phase {
            PhaseInput::Created => Phase::Created,
            PhaseInput::Exited => Phase::Exited,
            PhaseInput::Stopped => Phase::Stopped,
            PhaseInput::Paused => Phase::Paused,
            PhaseInput::Pending => Phase::Pending,
            PhaseInput::Multiplied => Phase::Multiplied,
            PhaseInput::Restarting => Phase::Restarting,
            PhaseInput::Running => Phase::Running,
            PhaseInput::Broken => Phase::Broken,
        };
        Workload {
            handle: Handle(self.handle.clone()),
            name: self.name.clone(),
            connector: ConnectorId::new(&self.connector).unwrap(),
            platform: self.platform_label.then_some(PlatformKind::OpenCti),
            hash: self.hash.as_deref().map(|hash| ConfigHash::new(hash).unwrap()),
            phase,
            created: self.created,
            vitals: (phase.is_up() || self.exit_code.is_some() || self.restarts > 0).then_some(Vitals {
                restarts: self.restarts,
                backing_off: self.backing_off,
                started_at: self.started,
                exit_code: self.exit_code,
                unattended: self.unattended,
                ..Vitals::default()
            }),
            change: match self.change {
                ChangeInput::Replaced => Change::Replaced,
                ChangeInput::InPlace => Change::InPlace,
                ChangeInput::Recreated => Change::Recreated,
            },
            troubles: vec![],
        }
    }
}

/// The plan as its golden file holds it.
pub fn render(about: &str, plan: &Plan, before: &Memory) -> String {
    let mut text = format!("# {about}\n");
    for entry in &plan.entries {
        let (word, detail) = match &entry.decision {
            Decision::Step(step) => (step.word(), json(step)),
            Decision::Skip(skip) => ("skip", json(skip)),
            Decision::Reject(reason) => ("reject", format!("{} = {reason}", json(reason))),
        };
        writeln!(text, "{word:<7} {} {:?} {detail}", entry.connector, entry.title).unwrap();
    }
    if let Some(refusal) = &plan.refusal {
        writeln!(text, "refusal {} = {refusal}", json(refusal)).unwrap();
    }
    for (id, assessment) in &plan.assessments {
        let looping = if assessment.looping { "in a reboot loop" } else { "fine" };
        if assessment.total > 0 {
            writeln!(text, "judge   {id} {} restarts, {looping}", assessment.total).unwrap();
        }
    }
    render_memory(&mut text, before, &plan.memory);
    text
}

fn render_memory(text: &mut String, before: &Memory, after: &Memory) {
    if before == after {
        text.push_str("memory  unchanged\n");
        return;
    }
    let ids: std::collections::BTreeSet<_> = before.connectors.keys().chain(after.connectors.keys()).collect();
    for id in ids {
        let (old, new) = (before.connectors.get(id), after.connectors.get(id));
        if old != new {
            let show = |memory: Option<&ConnectorMemory>| memory.map_or_else(|| "nothing".to_owned(), json);
            writeln!(text, "memory  {id} {} -> {}", show(old), show(new)).unwrap();
        }
    }
    if before.adopted != after.adopted {
        writeln!(text, "memory  adopted {} -> {}", json(&before.adopted), json(&after.adopted)).unwrap();
    }
    assert_eq!(before.registration, after.registration, "a plan has nothing to say about the registration");
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap()
}
