//! Carries out the plan of a lane, and shows the platform meanwhile that this manager and its connectors are alive.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{End, Known, Lane, Look};
use crate::access::Permit;
use crate::after_apply::{self, WorkloadsAfter};
use crate::apply::{Applier, Outcomes};
use crate::model::ConnectorId;
use crate::orchestrator::{LogRequest, Observation, Orchestrator};
use crate::plan::{Plan, Step};
use crate::prepare::Prepared;
use crate::publish::{self, Publication, Published};
use crate::stored_memory::StoredMemory;

/// The time between two signs of life while steps go on. OpenCTI shows a manager as inactive after 5 minutes without one,
/// and drops the health of a connector (contracts 1).
const SIGN_OF_LIFE: Duration = Duration::from_mins(1);

impl Lane<'_> {
    pub(super) async fn before_apply<O: Orchestrator>(
        &mut self,
        store: &StoredMemory<'_, O>,
        plan: &Plan,
        observation: &Observation,
        known: &mut Known,
    ) -> Result<(), End> {
        if plan.steps().any(|(_, step)| matches!(step, Step::Hold { .. } | Step::RollBack { .. })) {
            // A hold is stored before its step, and so is the configuration that a roll-back refuses. If the pass were
            // killed between the step and storing it, the next pass would start the connector, or that configuration,
            // again.
            let (memory, _) = self.next_memory(known);
            if let Err(error) = store.write_connectors(memory).await {
                // Nothing of the plan is carried out, so nothing of it may be remembered.
                known.findings.planned = None;
                return Err(error.into());
            }
        }
        if let Err(error) = store.orchestrator().mend(store.permit(), observation).await {
            self.report.orchestrator_failed(&error);
        }
        Ok(())
    }

    /// Carries out the plan. Publishes connectors without steps meanwhile, because a slow step for one connector must
    /// not make the others look dead on the platform.
    pub(super) async fn apply<O: Orchestrator>(
        &mut self,
        orchestrator: &O,
        permit: Permit,
        look: &Look,
        after: &WorkloadsAfter,
        known: &Known,
    ) -> (Outcomes, Published) {
        let begun = Instant::now();
        let with_steps = after_apply::connectors_with_steps(&look.plan);
        let secrets = self.secrets_of_last_logs(&look.plan, &look.desired, after);
        let last_logs = self.last_logs(&secrets, &known.recalled);
        let applier = self.applier(orchestrator, permit, &look.prepared, &last_logs);
        let (memory, _) = self.next_memory(known);
        let state = self.publish_state(&look.desired, after, &look.plan.assessments, &memory);
        let publisher = self.publisher(orchestrator, permit);
        let is_applied = Notify::new();
        let applying = async {
            let outcomes = applier.apply(&look.plan).await;
            is_applied.notify_one();
            outcomes
        };
        let publishing = async {
            let all = || publish::publications(state, |id| !with_steps.contains(id));
            let mut published = publisher.publish(known.settled.not_among(all())).await;
            let mut failures = vec![];
            while tokio::time::timeout(SIGN_OF_LIFE, is_applied.notified()).await.is_err() {
                self.give_sign_of_life(permit).await;
                let again = all().into_iter().map(Publication::without_logs).collect();
                // Of all rounds, the last one tells how things stand.
                failures = publisher.publish(again).await.failures;
            }
            published.failures.extend(failures);
            published
        };
        let done = tokio::join!(applying, publishing);
        if let Err(error) = self.prepared(&look.prepared).await {
            self.report.platform_failed(&error);
        }
        self.stage("apply", begun);
        done
    }

    /// Tells the platform that this manager is at work. When that fails, the publications that follow say so.
    async fn give_sign_of_life(&self, permit: Permit) {
        if let Err(End::Platform(error)) =
            self.ask("the heartbeat", move |platform| platform.heartbeat(permit, true)).await
        {
            tracing::warn!(%error, "no sign of life could be given");
        }
    }

    pub(super) fn applier<'b, O: Orchestrator>(
        &'b self,
        orchestrator: &'b O,
        permit: Permit,
        prepared: &'b Prepared,
        last_logs: &'b BTreeMap<ConnectorId, LogRequest<'b>>,
    ) -> Applier<'b, O> {
        let (platform, stop, concurrency) = (self.platform.kind(), &self.stop, self.pass.concurrency);
        Applier { orchestrator, platform, permit, prepared, last_logs, stop, concurrency }
    }
}
