//! Decides which connector may have which workload name.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{Desired, Rejection};
use crate::model::{Connector, ConnectorId, Handle, Observed};
use crate::plan::{Decision, Entry, Step};

/// Which connector has a claim to which name, whatever becomes of the workloads.
pub(super) struct Claims<'a> {
    foreign: &'a BTreeMap<String, String>,
    failed: &'a BTreeMap<ConnectorId, String>,
    /// For each name, the connector that may have it.
    winners: BTreeMap<&'a str, &'a ConnectorId>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        let owners: BTreeSet<(&str, &ConnectorId)> =
            observed.workloads.iter().map(|workload| (workload.name.as_str(), &workload.connector)).collect();
        let mut winners: BTreeMap<&str, &ConnectorId> = BTreeMap::new();
        for (id, connector) in &desired.connectors {
            let name = connector.name.as_str();
            // Ids come in ascending order, so the smallest id wins unless a later one has the workload of that name.
            if owners.contains(&(name, id)) || !winners.contains_key(name) {
                winners.insert(name, id);
            }
        }
        Self { foreign: &observed.foreign, failed: &observed.failed, winners }
    }

    /// Why this connector cannot be planned. `None` when it can.
    pub(super) fn rejection(&self, connector: &Connector) -> Option<Rejection> {
        let name = connector.name.as_str();
        if let Some(why) = self.failed.get(&connector.id) {
            return Some(Rejection::Unobservable { why: why.clone() });
        }
        if let Some(owner) = self.foreign.get(name) {
            return Some(Rejection::NameTaken { name: name.to_owned(), owner: owner.clone() });
        }
        let winner = *self.winners.get(name)?;
        (*winner != connector.id).then(|| Rejection::NameCollision { name: name.to_owned(), other: winner.clone() })
    }

    /// Whether a workload of this connector could not be looked at. Then it is unknown which of its workloads should
    /// stay.
    pub(super) fn is_unobservable(&self, id: &ConnectorId) -> bool {
        self.failed.contains_key(id)
    }
}

/// The names that connectors can have while this plan is carried out.
pub(super) struct Names<'a> {
    claims: Claims<'a>,
    /// The names of the workloads that stay, each with its connector.
    held: BTreeMap<&'a str, &'a ConnectorId>,
}

impl<'a> Names<'a> {
    pub(super) fn new(claims: Claims<'a>, observed: &'a Observed, removals: &[Entry]) -> Self {
        let gone: BTreeSet<&Handle> = removals
            .iter()
            .filter_map(|entry| match &entry.decision {
                Decision::Step(Step::Remove { handle, .. }) => Some(handle),
                _ => None,
            })
            .collect();
        let stay = observed.workloads.iter().filter(|workload| !gone.contains(&workload.handle));
        let held = stay.map(|workload| (workload.name.as_str(), &workload.connector)).collect();
        Self { claims, held }
    }

    /// Why this connector cannot be planned. `None` when it can.
    pub(super) fn rejection(&self, connector: &Connector) -> Option<Rejection> {
        self.claims.rejection(connector)
    }

    /// The name that the workload of this connector can have now: its own name, or a temporary one while the workload
    /// of another connector still has that name.
    pub(super) fn final_name(&self, connector: &Connector) -> String {
        match self.held.get(connector.name.as_str()) {
            Some(holder) if **holder != connector.id => connector.name.staged(&connector.hash),
            _ => connector.name.as_str().to_owned(),
        }
    }
}
