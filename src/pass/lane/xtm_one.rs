//! The part of a lane that is about XTM One. In a pass it runs beside everything else. Only the release of the lock and
//! the report wait for both.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{End, Lane, LaneSettings};
use crate::memory::XtmOneMemory;
use crate::orchestrator::Orchestrator;
use crate::pass::XtmOneCommand;
use crate::platform::Platform;
use crate::stop::{Stop, Until};
use crate::stored_memory::StoredMemory;
use crate::xtm_one::{self, Registrar, Revocation, Status, Wanted, XtmOneOutcome, XtmOneSettings};

/// What came of it, and what the operator should know besides.
type Outcome = (XtmOneOutcome, Vec<String>);

/// What this part of a lane needs of the rest.
pub(super) struct XtmOneLane {
    settings: Arc<LaneSettings>,
    platform: Arc<dyn Platform>,
    concurrency: usize,
    stop: Stop,
}

impl XtmOneLane {
    /// Registers the platform. `None` when the registration is not active.
    pub(super) async fn register<O: Orchestrator>(
        &self,
        version: &str,
        store: &StoredMemory<'_, O>,
        memory: &XtmOneMemory,
    ) -> Option<Outcome> {
        Some(self.registered(self.registrar(self.active()?, version), store, memory, Wanted::Heartbeat).await)
    }

    /// Reports what [`Self::register`] would do.
    pub(super) async fn foresee(&self, version: &str, memory: &XtmOneMemory) -> Option<Outcome> {
        Some(self.registrar(self.active()?, version).foresee(memory, Wanted::Heartbeat).await)
    }

    /// Registers, and gives up when the pass has to end before that is done.
    async fn registered<O: Orchestrator>(
        &self,
        registrar: Registrar<'_>,
        store: &StoredMemory<'_, O>,
        memory: &XtmOneMemory,
        wanted: Wanted<'_>,
    ) -> Outcome {
        let done = self.stop.within(Until::Published, registrar.register(store, memory, wanted)).await;
        done.unwrap_or_else(|| xtm_one::cut(&registrar.settings.endpoint.url))
    }

    fn active(&self) -> Option<&XtmOneSettings> {
        self.settings.xtm_one.as_ref()
    }

    fn registrar<'a>(&'a self, settings: &'a XtmOneSettings, version: &'a str) -> Registrar<'a> {
        let (platform, concurrency) = (Arc::clone(&self.platform), self.concurrency);
        Registrar { settings, platform, version, concurrency, stop: &self.stop }
    }

    fn revocation(&self) -> Revocation<'_> {
        let url = self.active().map_or("", |settings| settings.endpoint.url.as_str());
        let (platform, concurrency) = (Arc::clone(&self.platform), self.concurrency);
        Revocation { platform, concurrency, stop: &self.stop, url }
    }
}

impl Lane<'_> {
    pub(super) fn xtm_one(&self) -> XtmOneLane {
        XtmOneLane {
            settings: Arc::clone(&self.settings),
            platform: Arc::clone(&self.platform),
            // The connectors have the other half of the requests to the platform.
            concurrency: self.pass.concurrency.div_ceil(2),
            stop: self.stop.clone(),
        }
    }

    /// Reports the outcome. True when the pass had to stop before it was complete.
    pub(super) fn report_xtm_one(&mut self, outcome: Option<Outcome>) -> bool {
        let Some((outcome, notices)) = outcome else { return false };
        for fault in &outcome.faults {
            tracing::warn!(error = fault.error, cure = fault.cure, user = fault.user, "XTM One");
        }
        self.notice(&notices);
        let interrupted = outcome.status == Status::Interrupted;
        self.report.xtm_one(outcome);
        interrupted
    }

    pub(super) fn unless_interrupted(&self, interrupted: bool) -> Result<(), End> {
        match self.stop.cause().filter(|_| interrupted) {
            Some(cause) => Err(End::Stopped(cause)),
            None => Ok(()),
        }
    }

    /// Does what the command says, under the lock.
    pub(super) async fn by_hand<O: Orchestrator>(
        &mut self,
        command: &XtmOneCommand,
        version: &str,
        store: &StoredMemory<'_, O>,
        memory: &XtmOneMemory,
    ) -> Result<(), End> {
        let xtm_one = self.xtm_one();
        match command {
            XtmOneCommand::Rotate { user, .. } => {
                let wanted = Wanted::Rotation(user.as_deref());
                let outcome = match xtm_one.active() {
                    Some(settings) => {
                        xtm_one.registered(xtm_one.registrar(settings, version), store, memory, wanted).await
                    }
                    None => xtm_one::not_active(),
                };
                self.report_xtm_one(Some(outcome));
            }
            XtmOneCommand::Revoke { .. } => {
                let (outcome, none_left) = xtm_one.revocation().revoke(Some(store.permit())).await;
                self.report_xtm_one(Some((outcome, vec![xtm_one::REVOKED_NOTICE.to_owned()])));
                if none_left {
                    let (unsent, replaced) = (BTreeSet::new(), BTreeSet::new());
                    store.write_xtm_one(XtmOneMemory { unsent, replaced, ..memory.clone() }).await?;
                }
            }
            // It needs no lock, so it does not come here.
            XtmOneCommand::Status => self.foresee_by_hand(command, version, memory).await?,
        }
        match self.stop.cause() {
            Some(cause) => Err(End::Stopped(cause)),
            None => Ok(()),
        }
    }

    /// Reports what the command would do, or what it is asked to show.
    pub(super) async fn foresee_by_hand(
        &mut self,
        command: &XtmOneCommand,
        version: &str,
        memory: &XtmOneMemory,
    ) -> Result<(), End> {
        let xtm_one = self.xtm_one();
        let outcome = match command {
            XtmOneCommand::Rotate { user, .. } => match xtm_one.active() {
                Some(settings) => {
                    let wanted = Wanted::Rotation(user.as_deref());
                    self.until_stopped(xtm_one.registrar(settings, version).foresee(memory, wanted)).await?
                }
                None => xtm_one::not_active(),
            },
            XtmOneCommand::Revoke { .. } => {
                let (outcome, _) = self.until_stopped(xtm_one.revocation().revoke(None)).await?;
                (outcome, vec![])
            }
            XtmOneCommand::Status => {
                let XtmOneLane { platform, concurrency, stop, .. } = &xtm_one;
                let status =
                    xtm_one::status(xtm_one.active(), Arc::clone(platform), version, memory, *concurrency, stop);
                self.until_stopped(status).await?
            }
        };
        self.report_xtm_one(Some(outcome));
        Ok(())
    }
}
