//! The memory of a lane as it is stored now. The two halves of a lane, reconciliation and the registration with XTM One,
//! run side by side and both write to it, each its own part.

use std::collections::BTreeMap;

use tokio::sync::Mutex;

use crate::access::Permit;
use crate::memory::{ConnectorMemory, Memory, XtmOneMemory};
use crate::model::ConnectorId;
use crate::orchestrator::{Orchestrator, OrchestratorError};

/// Writes the memory, one write at a time.
pub(crate) struct StoredMemory<'a, O> {
    orchestrator: &'a O,
    permit: Permit,
    stored: Mutex<Stored>,
}

struct Stored {
    memory: Memory,
    /// Whether the memory is stored like this. Otherwise the next write writes everything.
    reliable: bool,
    /// Whether the last write of the part about XTM One failed, so that it is unknown what is stored of it.
    xtm_one_unknown: bool,
}

impl<'a, O: Orchestrator> StoredMemory<'a, O> {
    /// Begins with what was recalled. `reliable` says whether that is what is stored.
    pub(crate) fn new(orchestrator: &'a O, permit: Permit, recalled: Memory, reliable: bool) -> Self {
        Self { orchestrator, permit, stored: Mutex::new(Stored { memory: recalled, reliable, xtm_one_unknown: false }) }
    }

    /// Adds what an observation found stored on the workloads themselves.
    pub(crate) async fn found(&self, connectors: &BTreeMap<ConnectorId, ConnectorMemory>) {
        self.stored.lock().await.memory.connectors.extend(connectors.clone());
    }

    /// Writes everything but the part about XTM One, which stays as it is.
    pub(crate) async fn write_connectors(&self, mut next: Memory) -> Result<(), OrchestratorError> {
        let mut stored = self.stored.lock().await;
        next.xtm_one = stored.memory.xtm_one.clone();
        // A write that fails, or is given up, may have been done all the same.
        let was_reliable = std::mem::replace(&mut stored.reliable, false);
        let before = was_reliable.then_some(&stored.memory);
        self.orchestrator.remember(self.permit, before, &next).await?;
        *stored = Stored { memory: next, reliable: true, xtm_one_unknown: false };
        Ok(())
    }

    /// Writes the part about XTM One, and nothing else where the parts are stored apart.
    pub(crate) async fn write_xtm_one(&self, xtm_one: XtmOneMemory) -> Result<(), OrchestratorError> {
        let mut stored = self.stored.lock().await;
        // The part can have thousands of ids, so it is moved and not copied.
        let mut before = std::mem::take(&mut stored.memory);
        let former = std::mem::take(&mut before.xtm_one);
        let next = Memory { xtm_one, ..before.clone() };
        before.xtm_one = former;
        if stored.xtm_one_unknown {
            // It differs from everything that can be wanted, so that the part is written.
            before.xtm_one.registered_at = Some("unknown".to_owned());
        }
        let written = self.orchestrator.remember(self.permit, Some(&before), &next).await;
        // A write that failed may have been done all the same.
        stored.xtm_one_unknown = written.is_err();
        stored.reliable &= written.is_ok();
        stored.memory = next;
        written
    }

    pub(crate) fn orchestrator(&self) -> &'a O {
        self.orchestrator
    }

    pub(crate) fn permit(&self) -> Permit {
        self.permit
    }
}
