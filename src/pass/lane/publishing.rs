//! What a lane tells its platform: which publications there are at each moment, and what became of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::{End, Lane, Look};
use crate::access::Permit;
use crate::after_apply::{self, WorkloadsAfter};
use crate::apply::Outcomes;
use crate::desired::Desired;
use crate::memory::Memory;
use crate::model::ConnectorId;
use crate::orchestrator::{LogRequest, Orchestrator};
use crate::plan::Plan;
use crate::platform::LogDelivery;
use crate::publish::{self, Published, Publisher};
use crate::restart_window::Assessment;
use crate::secret::Secret;

impl Lane<'_> {
    /// What to mask in the logs of workloads that the plan replaces, for a platform that appends: it must get the last lines
    /// before they are gone.
    pub(super) fn secrets_of_last_logs(
        &self,
        look: &Look,
        after: &WorkloadsAfter,
        with_steps: &BTreeSet<ConnectorId>,
    ) -> BTreeMap<ConnectorId, Vec<Secret>> {
        if self.platform.log_delivery() == LogDelivery::Replace || self.pass.limits.logs_tail == 0 {
            return BTreeMap::new();
        }
        let theirs = with_steps.iter().filter_map(|id| {
            // Without its environment nobody knows what to mask.
            let environment = &after.workloads.get(id).filter(|one| !one.environment.is_empty())?.environment;
            let connector = look.desired.connectors.get(id)?;
            Some((id.clone(), publish::secrets(self.platform.kind(), Some(connector), environment)))
        });
        theirs.collect()
    }

    pub(super) fn last_logs<'b>(
        &self,
        secrets: &'b BTreeMap<ConnectorId, Vec<Secret>>,
        recalled: &'b Memory,
    ) -> BTreeMap<ConnectorId, LogRequest<'b>> {
        let request = |(id, secrets): (&ConnectorId, &'b Vec<Secret>)| {
            let delivered = recalled.connectors.get(id).and_then(|connector| connector.log.as_ref());
            let part = publish::log_part(self.platform.log_delivery(), delivered, self.pass.limits.logs_tail);
            (id.clone(), LogRequest { part, secrets })
        };
        secrets.iter().map(request).collect()
    }

    pub(super) fn publish_state<'b>(
        &self,
        desired: &'b Desired,
        after: &'b WorkloadsAfter,
        assessments: &'b BTreeMap<ConnectorId, Assessment>,
        memory: &'b Memory,
    ) -> publish::State<'b> {
        let (platform, now) = (self.platform.kind(), Timestamp::now());
        publish::State { platform, desired, after, assessments, memory, now }
    }

    pub(super) async fn publish_rest<O: Orchestrator>(
        &self,
        orchestrator: &O,
        permit: Permit,
        plan: &Plan,
        state: publish::State<'_>,
        outcomes: &mut Outcomes,
    ) -> Published {
        let with_steps = after_apply::connectors_with_steps(plan);
        let mut rest = publish::publications(state, |id| with_steps.contains(id));
        for one in &mut rest {
            let places = plan.entries.iter().enumerate().filter(|(_, entry)| entry.connector == one.connector);
            let mut logs = places.filter_map(|(place, _)| outcomes.get_mut(&place)?.last_log.take());
            one.last_log = logs.next();
        }
        self.publisher(orchestrator, permit).publish(rest).await
    }

    /// After a list that the platform could not give although it answers.
    pub(super) async fn publish_health_alone<O: Orchestrator>(
        &mut self,
        orchestrator: &O,
        permit: Permit,
        recalled: &Memory,
        end: &End,
    ) {
        let End::Platform(error) = end else { return };
        if error.is_general() {
            return;
        }
        let nothing = Desired::default();
        match self.until_stopped(orchestrator.observe(&nothing, recalled)).await {
            Ok(Ok(observation)) => {
                let mut memory = recalled.clone();
                memory.connectors.extend(observation.remembered);
                let rule = self.settings.policy.loop_rule;
                let health = publish::health_alone(&observation.observed, &memory, rule, Timestamp::now());
                let published = self.publisher(orchestrator, permit).publish(health).await;
                self.report_published(&published);
            }
            Ok(Err(error)) => self.report.orchestrator_failed(&error),
            // The end of the pass is in the report already, or comes there.
            Err(_) => {}
        }
    }

    pub(super) fn publisher<'b, O: Orchestrator>(&'b self, orchestrator: &'b O, permit: Permit) -> Publisher<'b, O> {
        Publisher {
            orchestrator,
            platform: Arc::clone(&self.platform),
            permit,
            tail: self.pass.limits.logs_tail,
            concurrency: self.pass.concurrency,
            stop: &self.stop,
        }
    }

    pub(super) fn report_published(&mut self, published: &Published) {
        self.report.platform.sent = published.sent;
        for failure in &published.failures {
            self.report.publish_failed(failure);
        }
    }
}
