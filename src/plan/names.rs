//! Who may have which workload name.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{Desired, Rejection};
use crate::model::{Connector, ConnectorId, Handle, Observed};
use crate::plan::{Decision, Entry, Step};

/// Who may have a name, whatever becomes of the workloads.
pub(super) struct Claims<'a> {
    foreign: &'a BTreeMap<String, String>,
    failed: &'a BTreeMap<ConnectorId, String>,
    /// The connector that may have a name which several want.
    winners: BTreeMap<&'a str, &'a ConnectorId>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        let owners: BTreeSet<(&str, &ConnectorId)> =
            observed.workloads.iter().map(|workload| (workload.name.as_str(), &workload.connector)).collect();
        let mut winners: BTreeMap<&str, &ConnectorId> = BTreeMap::new();
        for (id, connector) in &desired.connectors {
            let name = connector.name.as_str();
            // Ids come in ascending order: the first stays unless a later one owns the workload.
            if owners.contains(&(name, id)) || !winners.contains_key(name) {
                winners.insert(name, id);
            }
        }
        Self { foreign: &observed.foreign, failed: &observed.failed, winners }
    }

    /// Why this connector cannot be planned here, if so.
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

    /// Whether a workload of this connector could not be looked at: then nothing is known of which one should stay.
    pub(super) fn is_unobservable(&self, id: &ConnectorId) -> bool {
        self.failed.contains_key(id)
    }
}

/// What the names lead to, for each connector.
pub(super) struct Names<'a> {
    claims: Claims<'a>,
    /// Names that our workloads have and keep while this plan is carried out.
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

    /// Why this connector cannot be planned here, if so.
    pub(super) fn rejection(&self, connector: &Connector) -> Option<Rejection> {
        self.claims.rejection(connector)
    }

    /// The name its workload can have now: its own, or a temporary one while another connector's workload still has it.
    pub(super) fn final_name(&self, connector: &Connector) -> String {
        match self.held.get(connector.name.as_str()) {
            Some(holder) if **holder != connector.id => connector.name.staged(&connector.hash),
            _ => connector.name.as_str().to_owned(),
        }
    }
}
