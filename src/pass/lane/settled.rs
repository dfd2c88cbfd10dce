//! Publishes workloads about which nothing is to be done while others are still looked at.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::task::Poll;

use futures_util::Stream;
use jiff::Timestamp;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{End, Lane};
use crate::after_apply;
use crate::desired::Desired;
use crate::memory::Memory;
use crate::model::{ConnectorId, PlatformKind, Workload};
use crate::orchestrator::{Observation, Orchestrator};
use crate::plan::{self, Policy};
use crate::platform::LogDelivery;
use crate::publish::{self, Publication, State};
use crate::secret::Secret;

/// The connectors that were settled, and are published, before the plan was made.
#[derive(Default)]
pub(super) struct Settled(BTreeSet<ConnectorId>);

/// Where publications go while the workloads are looked at.
pub(super) struct Early(UnboundedSender<Publication>);

/// The ends of a channel for publications. The stream ends once the first end is dropped.
pub(super) fn channel() -> (Early, impl Stream<Item = Publication>) {
    let (sender, mut receiver): (_, UnboundedReceiver<Publication>) = unbounded_channel();
    let stream =
        futures_util::stream::poll_fn(move |context| -> Poll<Option<Publication>> { receiver.poll_recv(context) });
    (Early(sender), stream)
}

/// What is known before the workloads are looked at.
#[derive(Clone, Copy)]
pub(super) struct Before<'a> {
    pub(super) platform: PlatformKind,
    pub(super) delivery: LogDelivery,
    pub(super) desired: &'a Desired,
    pub(super) memory: &'a Memory,
    pub(super) policy: &'a Policy,
}

impl Settled {
    /// Those of the publications whose connectors are not published already.
    pub(super) fn not_among(&self, publications: Vec<Publication>) -> Vec<Publication> {
        publications.into_iter().filter(|one| !self.0.contains(&one.connector)).collect()
    }

    pub(super) fn add(&mut self, connector: ConnectorId) {
        self.0.insert(connector);
    }
}

impl Early {
    /// Has the workload published when it is settled, and returns its connector then.
    pub(super) fn publish(
        &self,
        before: Before<'_>,
        workload: &Workload,
        environment: &[(String, Secret)],
    ) -> Option<ConnectorId> {
        let publication = publication(before, workload, environment, Timestamp::now())?;
        let connector = publication.connector.clone();
        self.0.send(publication).is_ok().then_some(connector)
    }
}

impl Lane<'_> {
    /// Looks at the workloads. Those that are settled by what was seen of them go to `early`.
    pub(super) async fn observe<O: Orchestrator>(
        &self,
        orchestrator: &O,
        desired: &Desired,
        memory: &Memory,
        early: Option<(Early, &mut Settled)>,
    ) -> Result<Observation, End> {
        let Some((early, settled)) = early else {
            return Ok(self.until_stopped(orchestrator.observe(desired, memory, &|_, _| ())).await??);
        };
        let (platform, delivery) = (self.platform.kind(), self.platform.log_delivery());
        let before = Before { platform, delivery, desired, memory, policy: &self.settings.policy };
        let settled = Mutex::new(settled);
        let on_look = |workload: &Workload, environment: &[(String, Secret)]| {
            if let (Some(connector), Ok(mut settled)) = (early.publish(before, workload, environment), settled.lock()) {
                settled.add(connector);
            }
        };
        Ok(self.until_stopped(orchestrator.observe(desired, memory, &on_look)).await??)
    }
}

/// What to send for a workload that is settled. `None` when it is not. Pure.
///
/// Where a platform appends what it gets of a log, a cursor has to be remembered for it, and a pass that fails to look at
/// the workloads remembers none. So nothing is settled there.
fn publication(
    before: Before<'_>,
    workload: &Workload,
    environment: &[(String, Secret)],
    now: Timestamp,
) -> Option<Publication> {
    let Before { platform, desired, memory, policy, .. } = before;
    if before.delivery == LogDelivery::Append {
        return None;
    }
    let plan = plan::settled(desired, workload, memory, policy, now)?;
    let after = after_apply::unchanged(workload, environment);
    let state = State { platform, desired, after: &after, assessments: &plan.assessments, memory: &plan.memory, now };
    let connector = desired.connectors.get(&workload.connector)?;
    Some(publish::publication_of(state, connector))
}
