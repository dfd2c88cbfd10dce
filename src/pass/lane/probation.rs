//! Waits a few seconds for the refreshed workloads of a lane, and rolls back at once what has failed by then.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;

use super::{Known, Lane, Look};
use crate::after_apply::{self, WorkloadsAfter};
use crate::apply::Outcomes;
use crate::memory::Undone;
use crate::model::ConnectorId;
use crate::orchestrator::Orchestrator;
use crate::plan::{Plan, Step};
use crate::probation::Verdict;
use crate::settle;
use crate::stored_memory::StoredMemory;

impl Lane<'_> {
    /// Looks at the workloads that the steps were for, after a while when refreshed ones are among them. What failed
    /// meanwhile is rolled back. Returns until when the others are on probation.
    pub(super) async fn settle<O: Orchestrator>(
        &mut self,
        store: &StoredMemory<'_, O>,
        look: &Look,
        outcomes: &mut Outcomes,
        after: &mut WorkloadsAfter,
        known: &mut Known,
    ) -> BTreeMap<ConnectorId, Timestamp> {
        let begun = Instant::now();
        let refreshed = settle::on_probation(&look.plan, outcomes);
        if !refreshed.is_empty() {
            // A pass that has to stop leaves the verdict to the next one.
            drop(self.until_stopped(tokio::time::sleep(self.pass.limits.settle)).await);
        }
        let concurrency = self.pass.concurrency;
        after_apply::look_again(store.orchestrator(), &look.plan, outcomes, concurrency, after).await;
        let verdicts = settle::verdicts(&refreshed, after, self.settings.policy.probation, Timestamp::now());
        if self.stop.cause().is_none() {
            let (plan, places) = settle::roll_backs(&refreshed, after, &verdicts);
            if !places.is_empty() {
                let rolled_back = self.roll_back(store, look, outcomes, &plan, after, known).await;
                settle::put_in_place(outcomes, rolled_back, &places);
            }
        }
        if !refreshed.is_empty() {
            self.stage("settle", begun);
        }
        let until = verdicts.into_iter().filter_map(|(id, verdict)| match verdict {
            Verdict::Until(until) => Some((id, until)),
            _ => None,
        });
        until.collect()
    }

    /// Carries out the roll-backs and looks at what runs again.
    async fn roll_back<O: Orchestrator>(
        &mut self,
        store: &StoredMemory<'_, O>,
        look: &Look,
        outcomes: &Outcomes,
        plan: &Plan,
        after: &mut WorkloadsAfter,
        known: &mut Known,
    ) -> Outcomes {
        let mut formers = BTreeMap::new();
        known.findings.undone = after_apply::undone(&look.plan, outcomes, &look.prepared.rejected());
        for (entry, step) in plan.steps() {
            let Step::RollBack { former, hash, failure, .. } = step else { continue };
            tracing::warn!(connector = %entry.connector, %failure, "going back to the former workload");
            formers.insert(entry.connector.clone(), former.handle.clone());
            if let Some(hash) = hash.clone() {
                let refused = Undone::RefusedStart { hash, failure: Some(*failure), former_ran: true };
                known.findings.undone.insert(entry.connector.clone(), refused);
            }
        }
        // Stored before the steps: if the pass were killed in between, the next one would try the same again.
        let (memory, _) = self.next_memory(known);
        if let Err(error) = store.write_connectors(memory).await {
            // What worked has to come back all the same.
            self.report.orchestrator_failed(&error);
        }
        let secrets = self.secrets_of_last_logs(plan, &look.desired, after);
        let last_logs = self.last_logs(&secrets, &known.recalled);
        let applier = self.applier(store.orchestrator(), store.permit(), &look.prepared, &last_logs);
        let outcomes = applier.apply(plan).await;
        for id in formers.keys() {
            after.workloads.remove(id);
        }
        after_apply::look(store.orchestrator(), formers, true, self.pass.concurrency, after).await;
        outcomes
    }
}
