//! Publishes what a lane has found and done, at each point where there is something to publish.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::{End, Lane};
use crate::access::Permit;
use crate::after_apply::{self, WorkloadsAfter};
use crate::apply::Outcomes;
use crate::desired::Desired;
use crate::memory::Memory;
use crate::model::ConnectorId;
use crate::orchestrator::{LogRequest, Orchestrator};
use crate::plan::{Entry, Plan, Step};
use crate::platform::LogDelivery;
use crate::publish::{self, Published, Publisher};
use crate::restart_window::Assessment;
use crate::secret::Secret;
use crate::stop::Stop;

/// How many log lines of a workload that failed on probation are read when none are sent to the platform.
const LINES_OF_FAILED: u32 = 10;

impl Lane<'_> {
    /// The values to mask in the logs that end with a step. A platform that appends gets all of these logs; for the
    /// others the log of the new workload replaces them. The report shows the end of the log of what failed on probation.
    pub(super) fn secrets_of_last_logs(
        &self,
        plan: &Plan,
        desired: &Desired,
        after: &WorkloadsAfter,
    ) -> BTreeMap<ConnectorId, Vec<Secret>> {
        let appends = self.platform.log_delivery() == LogDelivery::Append && self.pass.limits.logs_tail > 0;
        let wanted = plan.steps().filter(|(_, step)| appends || matches!(step, Step::RollBack { .. }));
        let theirs = wanted.filter_map(|(Entry { connector: id, .. }, _)| {
            // Without the environment of the workload it is unknown what to mask.
            let environment = &after.workloads.get(id).filter(|one| !one.environment.is_empty())?.environment;
            let connector = desired.connectors.get(id)?;
            Some((id.clone(), publish::secrets(self.platform.kind(), Some(connector), environment)))
        });
        theirs.collect()
    }

    pub(super) fn last_logs<'b>(
        &self,
        secrets: &'b BTreeMap<ConnectorId, Vec<Secret>>,
        recalled: &'b Memory,
    ) -> BTreeMap<ConnectorId, LogRequest<'b>> {
        let tail = match self.pass.limits.logs_tail {
            0 => LINES_OF_FAILED,
            tail => tail,
        };
        let request = |(id, secrets): (&ConnectorId, &'b Vec<Secret>)| {
            let delivered = recalled.connectors.get(id).and_then(|connector| connector.log.as_ref());
            let part = publish::log_part(self.platform.log_delivery(), delivered, tail);
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
        for (place, outcome) in outcomes {
            let (Some(entry), Some(last_log)) = (plan.entries.get(*place), outcome.last_log.take()) else { continue };
            match rest.iter_mut().find(|one| one.connector == entry.connector) {
                Some(one) => one.last_log = Some(last_log),
                // Nothing else is known of it now, but these lines cannot be had again.
                None => rest.push(publish::Publication::of_last_log(entry.connector.clone(), last_log)),
            }
        }
        self.publisher(orchestrator, permit).publish(rest).await
    }

    /// Publishes health alone after the platform failed to give the list, provided that it still answers.
    pub(super) async fn publish_health_alone<O: Orchestrator>(
        &mut self,
        orchestrator: &O,
        permit: Permit,
        recalled: &mut Memory,
        end: &End,
    ) {
        let End::Platform(error) = end else { return };
        if error.is_general() {
            return;
        }
        let nothing = Desired::default();
        match self.until_stopped(orchestrator.observe(&nothing, recalled, &|_, _| ())).await {
            Ok(Ok(observation)) => {
                // Without this, the memory that is written at the end would lack what is stored on the workloads.
                recalled.connectors.extend(observation.remembered);
                let rule = self.settings.policy.loop_rule;
                let health = publish::health_alone(&observation.observed, recalled, rule, Timestamp::now());
                let published = self.publisher(orchestrator, permit).publish(health).await;
                self.report_published(&published);
            }
            Ok(Err(error)) => self.report.orchestrator_failed(&error),
            // The report says elsewhere that the pass had to stop.
            Err(_) => {}
        }
    }

    pub(super) fn publisher<'b, O: Orchestrator>(&'b self, orchestrator: &'b O, permit: Permit) -> Publisher<'b, O> {
        self.publisher_until(&self.stop, orchestrator, permit)
    }

    pub(super) fn publisher_until<'b, O: Orchestrator>(
        &self,
        stop: &'b Stop,
        orchestrator: &'b O,
        permit: Permit,
    ) -> Publisher<'b, O> {
        Publisher {
            orchestrator,
            platform: Arc::clone(&self.platform),
            permit,
            tail: self.pass.limits.logs_tail,
            concurrency: self.pass.concurrency,
            stop,
        }
    }

    pub(super) fn report_published(&mut self, published: &Published) {
        self.report.platform.sent = self.report.platform.sent.and(published.sent);
        for failure in &published.failures {
            self.report.publish_failed(failure);
        }
    }
}
