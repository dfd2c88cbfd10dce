//! Stories of the prune guard over several passes: what it refuses, how long, and that it heals by itself.

use std::collections::BTreeSet;

use proptest::prelude::*;
use xtm_reconcile::desired::{self, Desired, Listing, WireConnector};
use xtm_reconcile::memory::Memory;
use xtm_reconcile::model::Observed;
use xtm_reconcile::plan::{LoopAction, Plan, Policy, PrunePolicy, PruneRefusal, RemoveReason, Step, plan};
use xtm_reconcile::probation::ProbationRule;
use xtm_reconcile::restart_window::LoopRule;

use crate::generate::{check, now};
use crate::simulator::{World, later};

const POLICY: Policy = Policy {
    loop_rule: LoopRule { window_s: 300, limit: 3 },
    loop_action: LoopAction::Report,
    prune: PrunePolicy { allow: false, max_percent: 50 },
    probation: ProbationRule { length_s: 60, after_restart_s: 300 },
    release: None,
};

type Ids = BTreeSet<usize>;

fn listing(ids: &Ids) -> Desired {
    let wire = |id: &usize| WireConnector {
        id: format!("c{id}"),
        name: format!("Worker {id}"),
        image: "image:1".to_owned(),
        hash: format!("aaaa{id}"),
        requested: "starting".to_owned(),
        current: None,
        configuration: vec![],
    };
    desired::read(Listing { connectors: ids.iter().map(wire).collect(), unreadable: vec![] })
}

/// A fleet, its passes and what they remember.
struct Fleet {
    world: World,
    memory: Memory,
    passes: i64,
}

impl Fleet {
    fn of(ids: impl IntoIterator<Item = usize>) -> Self {
        let mut fleet = Self { world: World::new(Observed::default()), memory: Memory::default(), passes: 0 };
        fleet.pass(ids);
        fleet
    }

    fn pass(&mut self, ids: impl IntoIterator<Item = usize>) -> Plan {
        self.pass_with(&ids.into_iter().collect(), &POLICY)
    }

    fn pass_with(&mut self, ids: &Ids, policy: &Policy) -> Plan {
        self.passes += 1;
        let (desired, time) = (listing(ids), later(now(), 60 * self.passes));
        let plan = plan(&desired, &self.world.observed, &self.memory, policy, time);
        self.world.apply(&plan, &desired, time).unwrap();
        self.memory = plan.memory.clone();
        plan
    }

    fn owned(&self) -> Ids {
        let workloads = self.world.observed.workloads.iter();
        workloads.map(|workload| workload.connector.as_str()[1..].parse().unwrap()).collect()
    }
}

// Shows what README says under "What a pass does": "Once a list is plausible for them again, it removes what is still
// missing and the guard is as before.".
#[test]
fn after_an_empty_list_a_plausible_one_removes_the_orphan_and_forgets_the_refusal() {
    let mut fleet = Fleet::of([1, 2, 3]);
    assert_eq!(fleet.pass([]).refusal, Some(PruneRefusal::EmptyListing { owned: 3 }));
    assert_eq!(fleet.pass([1]).refusal, Some(PruneRefusal::TooMany { removals: 2, owned: 3, max_percent: 50 }));
    assert_eq!(fleet.owned(), [1, 2, 3].into());
    assert_eq!(fleet.pass([1, 2]).refusal, None);
    assert_eq!(fleet.owned(), [1, 2].into());
    assert_eq!(fleet.memory, Memory::default());
}

// Shows what README says under "What a pass does": "It goes on refusing while more than half of the connectors that
// were deployed then are missing".
#[test]
fn connectors_deployed_since_do_not_make_a_refused_removal_small_enough() {
    let mut fleet = Fleet::of(1..=4);
    fleet.pass([1]);
    for more in 5..30 {
        let refused = fleet.pass([1].into_iter().chain(5..=more)).refusal;
        let refused = refused.unwrap_or_else(|| panic!("removed once {more} were deployed"));
        let before = PruneRefusal::RefusedBefore { removals: 3, spared: 3, owned: 4, max_percent: 50 };
        assert!(refused == before || matches!(refused, PruneRefusal::TooMany { .. }), "{refused:?}");
    }
    assert_eq!(fleet.pass([1, 2].into_iter().chain(5..=30)).refusal, None, "half of those four is listed again");
    assert_eq!(fleet.owned(), [1, 2].into_iter().chain(5..=30).collect());
}

#[test]
fn the_operators_word_ends_a_refusal() {
    let mut fleet = Fleet::of(1..=4);
    fleet.pass([]);
    let allowed = Policy { prune: PrunePolicy { allow: true, ..POLICY.prune }, ..POLICY };
    assert_eq!(fleet.pass_with(&[1].into(), &allowed).refusal, None);
    assert_eq!(fleet.owned(), [1].into());
    assert_eq!(fleet.memory, Memory::default());
}

// Shows what README says under "What it leaves on a Docker engine": "It removes nothing beyond
// `MANAGER__MAX_REMOVALS_PERCENT`, however few connectors there are".
#[test]
fn when_the_record_is_lost_more_than_the_share_waits_however_few_there_are() {
    let mut fleet = Fleet::of([1, 2]);
    fleet.world.observed.record_lost = true;
    assert_eq!(fleet.pass([1]).refusal, None, "half of them is not more than half");
    let refused = fleet.pass([7]).refusal;
    assert_eq!(refused, Some(PruneRefusal::NoRecord { removals: 1, owned: 1, max_percent: 50 }));
    fleet.world.observed.record_lost = false;
    let refused = fleet.pass([7]).refusal;
    let before = PruneRefusal::RefusedBefore { removals: 1, spared: 1, owned: 1, max_percent: 50 };
    assert_eq!(refused, Some(before), "it waits on when there is a record again");
    assert_eq!(fleet.pass([1, 7]).refusal, None);
    assert_eq!(fleet.owned(), [1, 7].into());
}

/// The rule of the design, with the whole set of what was owned when removals were refused.
#[derive(Default)]
struct Model {
    refused_with: Option<Ids>,
}

impl Model {
    fn refuses(&mut self, owned: &Ids, listed: &Ids) -> bool {
        let unlisted: Ids = owned - listed;
        let too_many = |of: &Ids| (of & &unlisted).len() * 2 > of.len();
        if unlisted.is_empty() {
            self.refused_with = None;
            return false;
        }
        if let Some(then) = &self.refused_with
            && too_many(&(then & owned))
        {
            return true;
        }
        let refused = (listed.is_empty() && owned.len() >= 2) || (owned.len() >= 3 && too_many(owned));
        self.refused_with = refused.then(|| owned.clone());
        refused
    }
}

// Shows what README says under "What a pass does": "It goes on refusing while more than half of the connectors that
// were deployed then are missing", "Once a list is plausible for them again".
#[test]
fn over_any_sequence_of_lists_it_refuses_and_heals_as_the_design_says() {
    let list = prop_oneof![1 => Just(Ids::new()), 8 => prop::collection::btree_set(0..9_usize, 0..9)];
    check(1024, prop::collection::vec(list, 1..20), |lists| {
        let (mut fleet, mut model) = (Fleet::of([]), Model::default());
        for listed in lists {
            let owned = fleet.owned();
            let refuses = model.refuses(&owned, &listed);
            let plan = fleet.pass_with(&listed, &POLICY);
            prop_assert_eq!(plan.refusal.is_some(), refuses, "{:?} of {:?}", listed, owned);
            let removed = |step: &Step| matches!(step, Step::Remove { reason: RemoveReason::NotListed, .. });
            let removals = plan.steps().filter(|(_, step)| removed(step)).count();
            prop_assert_eq!(removals, if refuses { 0 } else { (&owned - &listed).len() });
        }
        Ok(())
    });
}
