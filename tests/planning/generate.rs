//! Random cases: small pools of ids and names, so that they collide, and every phase and fault there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use xtm_reconcile::desired::{Listing, WireConnector};
use xtm_reconcile::memory::{ConnectorMemory, Memory, RefusedStart};
use xtm_reconcile::model::{
    Change, ConfigHash, ConnectorId, FORMER_SUFFIX, Handle, Observed, Phase, PlatformKind, Vitals, Workload,
    WorkloadName, former_name,
};
use xtm_reconcile::plan::{LoopAction, Plan, Policy, PrunePolicy, plan};
use xtm_reconcile::probation::ProbationRule;
use xtm_reconcile::restart_window::{LoopRule, RestartWindow, Sample};

use crate::scenario::turn;

/// Checks a property over the same cases every time.
pub fn check<S: Strategy>(cases: u32, strategy: S, property: impl Fn(S::Value) -> TestCaseResult)
where
    S::Value: Debug,
{
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    if let Err(failure) = runner.run(&strategy, property) {
        panic!("{failure}");
    }
}

/// One entry of the platform's list, in a form that can be made twice.
#[derive(Debug, Clone)]
pub struct Listed {
    id: String,
    name: &'static str,
    hash: String,
    requested: &'static str,
    current: Option<&'static str>,
    image: &'static str,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub listed: Vec<Listed>,
    pub unreadable: Vec<(Option<String>, String)>,
    pub observed: Observed,
    pub memory: Memory,
    pub policy: Policy,
}

pub fn now() -> Timestamp {
    Timestamp::from_second(1_772_366_400).unwrap()
}

impl Case {
    pub fn desired(&self) -> xtm_reconcile::desired::Desired {
        let wire = |listed: &Listed| WireConnector {
            id: listed.id.clone(),
            name: listed.name.to_owned(),
            image: listed.image.to_owned(),
            hash: listed.hash.clone(),
            requested: listed.requested.to_owned(),
            current: listed.current.map(str::to_owned),
            configuration: vec![],
        };
        xtm_reconcile::desired::read(Listing {
            connectors: self.listed.iter().map(wire).collect(),
            unreadable: self.unreadable.clone(),
        })
    }

    pub fn plan(&self) -> Plan {
        plan(&self.desired(), &self.observed, &self.memory, &self.policy, now())
    }

    /// The same with every list in another order.
    pub fn reordered(&self, by: usize) -> Self {
        let mut other = self.clone();
        turn(&mut other.listed, by);
        turn(&mut other.unreadable, by / 2);
        turn(&mut other.observed.workloads, by / 3);
        other
    }
}

const NAMES: [&str; 8] = ["Alpha", "alpha!", "Beta", "Beta Two", "Gamma", "γ", "x", "Delta"];

/// Ids begin with a letter of their own, and so do hashes: a platform's hash covers the connector's id.
fn id() -> impl Strategy<Value = String> {
    (0..7_usize).prop_map(|index| format!("c{index}"))
}

fn hash(id: &str, version: u8) -> String {
    format!("{}{version}aaaaaa", id.trim_start_matches('c'))
}

fn listed() -> impl Strategy<Value = Listed> {
    let requested =
        prop_oneof![6 => Just("starting"), 2 => Just("stopping"), 2 => Just("stopped"), 1 => Just("dancing")];
    let current = prop_oneof![Just(None), Just(Some("started")), Just(Some("stopped")), Just(Some("odd"))];
    let image = prop_oneof![10 => Just("registry/image:1"), 1 => Just("")];
    (id(), prop::sample::select(&NAMES[..]), 0..2_u8, requested, current, image).prop_map(
        |(id, name, version, requested, current, image)| {
            let hash = hash(&id, version);
            Listed { id, name, hash, requested, current, image }
        },
    )
}

fn unreadable() -> impl Strategy<Value = (Option<String>, String)> {
    (prop::option::of(id()), prop::sample::select(&["no name", "no status"][..]))
        .prop_map(|(id, why)| (id, why.to_owned()))
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        6 => Just(Phase::Running),
        2 => Just(Phase::Exited),
        1 => Just(Phase::Created),
        1 => Just(Phase::Paused),
        1 => Just(Phase::Restarting),
        1 => Just(Phase::Broken),
    ]
}

/// What the name of a workload says of it.
#[derive(Debug, Clone, Copy)]
enum Named {
    Finally,
    Staged,
    Former,
}

fn workload() -> impl Strategy<Value = Workload> {
    let named = prop_oneof![6 => Just(Named::Finally), 2 => Just(Named::Staged), 2 => Just(Named::Former)];
    let name = (prop::sample::select(&NAMES[..]), named);
    let hash_version = prop_oneof![9 => (0..2_u8).prop_map(Some), 1 => Just(None)];
    let runs = prop_oneof![Just(None), (0..200_i64).prop_map(Some)];
    let times = (0..100_000_i64, prop_oneof![Just(0_u64), 0..30_u64], runs);
    (id(), name, hash_version, phase(), times, prop::bool::weighted(0.9)).prop_map(
        |(id, (name, named), version, phase, (age, restarts, runs), labelled)| {
            let connector = ConnectorId::new(&id).unwrap();
            let name = WorkloadName::of(name, &connector);
            let hash = version.map(|version| ConfigHash::new(&hash(&id, version)).unwrap());
            let name = match (&hash, named) {
                (Some(hash), Named::Staged) => name.staged(hash),
                (_, Named::Former) => former_name(&name, &Handle(format!("{age}"))),
                _ => name.as_str().to_owned(),
            };
            let started_at = runs.map(|seconds| Timestamp::from_second(now().as_second() - seconds).unwrap());
            Workload {
                handle: Handle(String::new()),
                name,
                connector,
                platform: labelled.then_some(PlatformKind::OpenCti),
                hash,
                phase,
                created: Timestamp::from_second(now().as_second() - age).unwrap(),
                vitals: phase.is_up().then_some(Vitals {
                    restarts,
                    started_at,
                    unattended: restarts % 5 == 1,
                    ..Vitals::default()
                }),
                change: Change::Replaced,
                troubles: vec![],
            }
        },
    )
}

/// The same workload as a Deployment.
fn as_deployment(mut workload: Workload, recreated: bool) -> Workload {
    // What a Deployment ran before is not an object of its own.
    workload.name = workload.name.replace(FORMER_SUFFIX, "-former");
    workload.phase = match workload.phase {
        Phase::Exited | Phase::Created => Phase::Stopped,
        Phase::Paused => Phase::Pending,
        Phase::Restarting if recreated => Phase::Multiplied,
        other => other,
    };
    let restarts = workload.vitals.as_ref().map_or(0, |vitals| vitals.restarts);
    let backing_off = workload.phase == Phase::Restarting;
    let generation = Some(format!("pod-of-{}", workload.name));
    workload.vitals =
        workload.phase.is_up().then_some(Vitals { restarts, generation, backing_off, ..Vitals::default() });
    workload.change = if recreated { Change::Recreated } else { Change::InPlace };
    workload
}

/// Containers, or Deployments. Names are unique, as an engine makes them.
fn observed() -> impl Strategy<Value = Observed> {
    let recreated = prop::collection::vec(prop::bool::weighted(0.2), 9);
    (containers(), any::<bool>(), recreated).prop_map(|(mut observed, deployments, recreated)| {
        if deployments {
            let workloads = std::mem::take(&mut observed.workloads).into_iter().zip(recreated);
            observed.workloads = workloads.map(|(workload, recreated)| as_deployment(workload, recreated)).collect();
        }
        observed
    })
}

fn containers() -> impl Strategy<Value = Observed> {
    let foreign = prop::collection::vec(prop::sample::select(&["beta", "gamma", "delta", "elsewhere"][..]), 0..2);
    let failed = prop::collection::btree_map(id(), Just("timeout"), 0..2);
    let failed = prop_oneof![5 => Just(BTreeMap::new()), 1 => failed];
    (prop::collection::vec(workload(), 0..9), foreign, failed).prop_map(|(drawn, foreign, failed)| {
        let foreign: BTreeMap<String, String> =
            foreign.into_iter().map(|name| (name.to_owned(), "somebody".to_owned())).collect();
        let mut seen: BTreeSet<String> = foreign.keys().cloned().collect();
        let mut workloads = vec![];
        for (index, mut workload) in drawn.into_iter().enumerate() {
            // What replaces a workload has another configuration.
            let same = |other: &Workload| {
                other.connector == workload.connector
                    && other.hash == workload.hash
                    && (other.is_former() || workload.is_former())
            };
            if !workloads.iter().any(same) && seen.insert(workload.name.clone()) {
                workload.handle = Handle(format!("h{index}"));
                workloads.push(workload);
            }
        }
        let known = |id: &ConnectorId| workloads.iter().any(|workload| workload.connector == *id);
        let failed = failed.into_iter().map(|(id, why)| (ConnectorId::new(&id).unwrap(), why.to_owned()));
        let failed = failed.filter(|(id, _)| known(id)).collect();
        Observed { workloads, foreign, failed, record_lost: false }
    })
}

fn memory() -> impl Strategy<Value = Memory> {
    let samples = prop::collection::vec((0..4000_i64, 0..6_u64), 1..5).prop_map(|mut drawn| {
        drawn.sort_unstable_by_key(|(age, _)| -age);
        let mut total = 0;
        let add = |(age, more): (i64, u64)| {
            total += more + 1;
            Sample(now().as_second() - age, total)
        };
        drawn.into_iter().map(add).collect::<Vec<_>>()
    });
    let window = (samples, 0..20_u64, 0..9_usize).prop_map(|(samples, counter, of)| RestartWindow {
        total: samples.last().unwrap().1,
        counter,
        generation: format!("h{of}"),
        samples,
        looping: counter % 2 == 1,
    });
    let refused = prop::option::weighted(0.3, (0..2_u8, 1..4_u32, 0..4000_i64, any::<bool>()));
    let one = (id(), prop::option::of(window), prop::option::of(0..2_u8), prop::bool::weighted(0.1), refused);
    let one = one.prop_map(|(id, window, held, guarded, refused)| {
        let held = held.map(|version| ConfigHash::new(&hash(&id, version)).unwrap());
        let ended = window.as_ref().is_some_and(|window: &RestartWindow| window.counter % 3 == 1);
        let refused = refused.map(|(version, times, ago, former_ran)| RefusedStart {
            hash: ConfigHash::new(&hash(&id, version)).unwrap(),
            times,
            at: now().as_second() - ago,
            failure: None,
            former_ran,
        });
        (ConnectorId::new(&id).unwrap(), ConnectorMemory { window, held, guarded, ended, refused, log: None })
    });
    prop::collection::vec(one, 0..5).prop_map(|connectors| Memory {
        connectors: connectors.into_iter().filter(|(_, memory)| !memory.is_empty()).collect(),
        ..Memory::default()
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let length_s = prop_oneof![2 => Just(60), 1 => Just(0)];
    (any::<bool>(), prop::bool::weighted(0.2), prop_oneof![Just(50_u8), 0..=100_u8], length_s).prop_map(
        |(stop, allow, max_percent, length_s)| Policy {
            loop_rule: LoopRule { window_s: 300, limit: 3 },
            loop_action: if stop { LoopAction::Stop } else { LoopAction::Report },
            prune: PrunePolicy { allow, max_percent },
            probation: ProbationRule { length_s, after_restart_s: 300 },
            release: None,
        },
    )
}

pub fn case() -> impl Strategy<Value = Case> {
    let unreadable = prop_oneof![4 => Just(vec![]), 1 => prop::collection::vec(unreadable(), 1..3)];
    (prop::collection::vec(listed(), 0..8), unreadable, observed(), memory(), policy()).prop_map(
        |(listed, unreadable, observed, memory, policy)| Case { listed, unreadable, observed, memory, policy },
    )
}
