//! Bounds every request to an orchestrator once the pass has to end, so that an engine that hangs cannot keep it.

use std::time::Duration;

use super::{
    LogRead, LogRequest, Look, Observation, OnLook, Orchestrator, OrchestratorError, Permission, Recalled, StepContext,
    StepError,
};
use crate::access::Permit;
use crate::desired::Desired;
use crate::holder::Holder;
use crate::memory::Memory;
use crate::model::{Cure, Handle};
use crate::plan::Step;
use crate::secret::Secret;
use crate::stop::{Stop, Until};

const CURE: Cure = Cure(
    "see what keeps the orchestrator from answering; the next pass goes on. MANAGER__STOP_BUDGET is the time that a pass has once it must end",
);

/// An orchestrator whose answers are waited for only as long as the pass may last.
pub(crate) struct Bounded<O> {
    inner: O,
    stop: Stop,
}

impl<O: Orchestrator> Bounded<O> {
    #[must_use]
    pub(crate) fn new(inner: O, stop: Stop) -> Self {
        Self { inner, stop }
    }

    async fn within<T>(
        &self,
        until: Until,
        what: &str,
        work: impl Future<Output = Result<T, OrchestratorError>>,
    ) -> Result<T, OrchestratorError> {
        let done = self.stop.within(until, work).await;
        done.unwrap_or_else(|| Err(OrchestratorError::Cut { what: what.to_owned(), place: self.place(), cure: CURE }))
    }
}

impl<O: Orchestrator> Orchestrator for Bounded<O> {
    type Lock = O::Lock;

    fn place(&self) -> String {
        self.inner.place()
    }

    fn description(&self) -> &str {
        self.inner.description()
    }

    async fn lock(&self, permit: Permit, holder: &Holder, ttl: Duration) -> Result<Self::Lock, OrchestratorError> {
        self.within(Until::Steps, "taking the lock", self.inner.lock(permit, holder, ttl)).await
    }

    async fn unlock(&self, permit: Permit, lock: Self::Lock) -> Result<(), OrchestratorError> {
        self.within(Until::Unlocked, "giving back the lock", self.inner.unlock(permit, lock)).await
    }

    async fn recall(&self) -> Result<Recalled, OrchestratorError> {
        self.within(Until::Steps, "reading the pass record", self.inner.recall()).await
    }

    async fn observe(
        &self,
        desired: &Desired,
        memory: &Memory,
        on_look: &OnLook<'_>,
    ) -> Result<Observation, OrchestratorError> {
        self.within(Until::Steps, "looking at the workloads", self.inner.observe(desired, memory, on_look)).await
    }

    async fn execute(
        &self,
        permit: Permit,
        step: &Step,
        context: StepContext<'_>,
    ) -> Result<Option<Handle>, StepError> {
        let done = self.stop.within(Until::Steps, self.inner.execute(permit, step, context)).await;
        done.unwrap_or_else(|| {
            let what = format!("the step, a {},", step.word());
            Err(OrchestratorError::Cut { what, place: self.place(), cure: CURE }.into())
        })
    }

    async fn look(&self, handle: &Handle) -> Result<Option<Look>, OrchestratorError> {
        self.within(Until::Published, &format!("looking at {handle}"), self.inner.look(handle)).await
    }

    async fn logs(&self, handle: &Handle, request: &LogRequest<'_>) -> Result<LogRead, OrchestratorError> {
        self.within(Until::Published, &format!("reading the log of {handle}"), self.inner.logs(handle, request)).await
    }

    async fn mend(&self, permit: Permit, observation: &Observation) -> Result<(), OrchestratorError> {
        self.within(Until::Steps, "repairing what all workloads need", self.inner.mend(permit, observation)).await
    }

    async fn remember(
        &self,
        permit: Permit,
        before: Option<&Memory>,
        memory: &Memory,
    ) -> Result<(), OrchestratorError> {
        self.within(Until::Remembered, "writing the pass record", self.inner.remember(permit, before, memory)).await
    }

    async fn write_secret(
        &self,
        permit: Permit,
        name: &str,
        key: &str,
        value: &Secret,
    ) -> Result<(), OrchestratorError> {
        let what = format!("writing the Secret {name}");
        self.within(Until::Published, &what, self.inner.write_secret(permit, name, key, value)).await
    }

    async fn permissions(&self) -> Result<Vec<Permission>, OrchestratorError> {
        self.within(Until::Steps, "asking for permissions", self.inner.permissions()).await
    }
}
