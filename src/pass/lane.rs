//! Runs one platform's part of a pass: registration check -> pull -> observe -> plan -> apply -> health -> logs ->
//! report.

mod applying;
mod notices;
mod probation;
mod publishing;
mod registration;
mod settled;
mod xtm_one;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Command, Pass, millis};
use crate::access::Permit;
use crate::after_apply::{self, WorkloadsAfter};
use crate::apply::Outcomes;
use crate::desired::{self, Desired};
use crate::holder;
use crate::memory::{self, Findings, Memory};
use crate::model::{ConnectorId, Trouble};
use crate::orchestrator::bounded::Bounded;
use crate::orchestrator::docker::Docker;
use crate::orchestrator::kubernetes::Kubernetes;
use crate::orchestrator::{Observation, Orchestrator, OrchestratorError, OrchestratorSettings, Owner, Recalled};
use crate::plan::{self, Plan, Policy};
use crate::platform::{self, Platform, PlatformError, PlatformSettings};
use crate::prepare::{self, Prepared};
use crate::render::{Common, ConnectorProxy, Registry};
use crate::report::{LaneReport, PlanReport, Stage};
use crate::restart_window::Assessment;
use crate::stop::{Cause, Stop};
use crate::stored_memory::StoredMemory;
use crate::xtm_one::XtmOneSettings;
use settled::{Early, Settled};

/// Added to the pass deadline, so that the lock outlives the steps that finish after it.
const LOCK_GRACE: Duration = Duration::from_mins(4);

/// The settings of one lane.
#[derive(Debug)]
pub struct LaneSettings {
    /// How to reach the platform.
    pub platform: PlatformSettings,
    /// What connectors get of the proxy. `None` when they do not use it.
    pub connector_proxy: Option<ConnectorProxy>,
    /// The registry that images come from, with its login.
    pub registry: Registry,
    /// The orchestrator on which the connectors run, and what every workload gets there.
    pub orchestrator: OrchestratorSettings,
    /// How to register the platform with XTM One. `None` when that is not active.
    pub(crate) xtm_one: Option<XtmOneSettings>,
    /// The part of the configuration that the decisions depend on.
    pub policy: Policy,
}

/// Why a lane ends early.
enum End {
    Platform(PlatformError),
    Orchestrator(OrchestratorError),
    Stopped(Cause),
}

impl From<PlatformError> for End {
    fn from(error: PlatformError) -> Self {
        Self::Platform(error)
    }
}

impl From<OrchestratorError> for End {
    fn from(error: OrchestratorError) -> Self {
        Self::Orchestrator(error)
    }
}

struct Lane<'a> {
    pass: &'a Pass,
    settings: Arc<LaneSettings>,
    platform: Arc<dyn Platform>,
    stop: Stop,
    report: LaneReport,
    /// When the last pass gave its heartbeat, for an orchestrator that does not remember when that pass was.
    last_heartbeat: Option<Timestamp>,
}

/// What the platform wants, what the lane plans to do for it, and the specs that this needs, which are made meanwhile.
struct Look {
    desired: Arc<Desired>,
    plan: Arc<Plan>,
    /// When the plan was made.
    at: Timestamp,
    prepared: Prepared,
}

/// What the last pass left, and what this one adds to it.
struct Known {
    recalled: Memory,
    findings: Findings,
    settled: Settled,
}

/// Runs one lane to its end.
pub(super) async fn run(pass: &Pass, settings: LaneSettings) -> LaneReport {
    let begun = Instant::now();
    // When this lane loses its lock, the other lane must go on.
    let stop = pass.stop.child();
    let platform = platform::connect(&settings.platform, &pass.manager, pass.concurrency, stop.clone());
    let report = LaneReport::new(platform.kind(), platform.url(), &settings.orchestrator.place());
    let mut lane = Lane { pass, settings: Arc::new(settings), platform, stop, report, last_heartbeat: None };
    if let Err(end) = lane.stages().await {
        lane.ended(&end);
    }
    lane.report.finish(millis(begun.elapsed()), pass.pending_code());
    lane.report
}

impl Lane<'_> {
    async fn stages(&mut self) -> Result<(), End> {
        let settings = Arc::clone(&self.settings);
        let owner = Owner { manager: self.pass.manager.id.clone(), platform: self.platform.kind() };
        let (registry, concurrency) = (&settings.registry, self.pass.concurrency);
        match &settings.orchestrator {
            OrchestratorSettings::Docker(docker) => {
                let (progress, stop) = (Arc::clone(&self.pass.progress), self.stop.clone());
                let connecting = Docker::connect(docker, owner, registry, concurrency, progress, &stop);
                Box::pin(self.stages_on(connecting)).await
            }
            OrchestratorSettings::Kubernetes(kubernetes) => {
                let stop = self.stop.clone();
                let connecting = Kubernetes::connect(kubernetes, owner, registry, concurrency, &stop);
                Box::pin(self.stages_on(connecting)).await
            }
        }
    }

    async fn stages_on<O: Orchestrator>(
        &mut self,
        connecting: impl Future<Output = Result<O, OrchestratorError>>,
    ) -> Result<(), End> {
        let begun = Instant::now();
        let connected = self.connect(connecting).await;
        self.stage("connect", begun);
        let (orchestrator, version) = connected?;
        let orchestrator = Bounded::new(orchestrator, self.stop.clone());
        match self.pass.command.access().permit() {
            None => self.foresee(&orchestrator, &version).await,
            Some(permit) => self.with_lock(&orchestrator, permit, &version).await,
        }
    }

    /// Connects to the platform and the orchestrator at the same time. When neither can be reached, the report has both
    /// errors.
    async fn connect<O: Orchestrator>(
        &mut self,
        connecting: impl Future<Output = Result<O, OrchestratorError>>,
    ) -> Result<(O, String), End> {
        // Docker keeps nothing of a quiet pass. The platform knows when it was, until the next heartbeat.
        let asks = matches!(self.settings.orchestrator, OrchestratorSettings::Docker(_));
        let version = self.ask("the version", move |platform| {
            let version = platform.version()?;
            let last_heartbeat = if asks { platform.last_heartbeat().ok().flatten() } else { None };
            Ok((version, last_heartbeat))
        });
        let (orchestrator, version) = self.until_stopped(async { tokio::join!(connecting, version) }).await?;
        let version = match (version, &orchestrator) {
            (Ok((version, last_heartbeat)), _) => {
                self.last_heartbeat = last_heartbeat;
                version
            }
            (Err(end), Err(error)) => {
                self.report.orchestrator_failed(error);
                return Err(end);
            }
            (Err(end), Ok(_)) => return Err(end),
        };
        let orchestrator = orchestrator?;
        self.report.platform.version = Some(version.clone());
        self.report.orchestrator.description = Some(orchestrator.description().to_owned());
        Ok((orchestrator, version))
    }

    /// Reports what [`Self::with_lock`] would do, without a write.
    async fn foresee<O: Orchestrator>(&mut self, orchestrator: &O, version: &str) -> Result<(), End> {
        let recalled = self.recall(orchestrator).await?.memory;
        if let Command::XtmOne(command) = &self.pass.command {
            return self.foresee_by_hand(command, version, &recalled.xtm_one).await;
        }
        let (xtm_one, remembered) = (self.xtm_one(), recalled.xtm_one.clone());
        let connectors = self.foresee_connectors(orchestrator, version, recalled);
        let (foreseen, done) = tokio::join!(xtm_one.foresee(version, &remembered), connectors);
        self.report_xtm_one(foreseen);
        done
    }

    async fn foresee_connectors<O: Orchestrator>(
        &mut self,
        orchestrator: &O,
        version: &str,
        mut recalled: Memory,
    ) -> Result<(), End> {
        let Some(desired) = self.foresee_registration_and_pull(version, recalled.registration.as_ref()).await? else {
            return Ok(());
        };
        let (look, observation) = self.observe_and_plan(orchestrator, desired, &mut recalled, None).await?;
        self.prepared(&look.prepared).await?;
        let troubles = troubles(&look.plan, &observation);
        self.report.plan(PlanReport {
            plan: &look.plan,
            rejected: &look.prepared.rejected(),
            outcomes: None,
            assessments: &look.plan.assessments,
            troubles: &troubles,
            probation: &BTreeMap::new(),
        });
        Ok(())
    }

    async fn with_lock<O: Orchestrator>(&mut self, orchestrator: &O, permit: Permit, version: &str) -> Result<(), End> {
        let holder = holder::this_process(&self.pass.id);
        // A signal must not cut this short, because a lock that is taken must be known to be released.
        let lock = orchestrator.lock(permit, &holder, self.stop.remaining() + LOCK_GRACE).await?;
        let done = self.locked(orchestrator, permit, version).await;
        if let Err(error) = orchestrator.unlock(permit, lock).await {
            self.report.orchestrator_failed(&error);
        }
        done
    }

    /// Does everything that happens while the lock is held. However that ends, what the lane found out is remembered.
    async fn locked<O: Orchestrator>(&mut self, orchestrator: &O, permit: Permit, version: &str) -> Result<(), End> {
        let Recalled { memory, stale, locked, .. } = self.recall(orchestrator).await?;
        if let Some(locked) = locked {
            return Err(locked.into());
        }
        let store = StoredMemory::new(orchestrator, permit, memory.clone(), !stale);
        if let Command::XtmOne(command) = &self.pass.command {
            return self.by_hand(command, version, &store, &memory.xtm_one).await;
        }
        let (xtm_one, remembered) = (self.xtm_one(), memory.xtm_one.clone());
        let mut known = Known { recalled: memory, findings: Findings::default(), settled: Settled::default() };
        // What the connectors need is remembered without waiting for XTM One.
        let reconciling = async {
            let done = self.reconcile(&store, version, &mut known).await;
            let begun = Instant::now();
            let (memory, _) = self.next_memory(&known);
            if let Err(error) = store.write_connectors(memory).await {
                self.report.orchestrator_failed(&error);
            }
            self.stage("remember", begun);
            done
        };
        let (registered, done) = tokio::join!(xtm_one.register(version, &store, &remembered), reconciling);
        let interrupted = self.report_xtm_one(registered);
        done.and_then(|()| self.unless_interrupted(interrupted))
    }

    async fn reconcile<O: Orchestrator>(
        &mut self,
        store: &StoredMemory<'_, O>,
        version: &str,
        known: &mut Known,
    ) -> Result<(), End> {
        let (orchestrator, permit) = (store.orchestrator(), store.permit());
        let desired = self.register_and_pull(orchestrator, permit, version, known).await?;
        let stop = self.stop.clone();
        let publisher = self.publisher_until(&stop, orchestrator, permit);
        let (early, publications) = settled::channel();
        // A platform that is slow to take these keeps neither the looks nor the steps from going on.
        let publishing = publisher.publish_as_they_come(publications);
        let (published, done) = tokio::join!(publishing, self.converge(store, desired, known, early));
        self.report_published(&published);
        done
    }

    /// Makes the workloads what the platform wants, and publishes what came of it.
    async fn converge<O: Orchestrator>(
        &mut self,
        store: &StoredMemory<'_, O>,
        desired: Arc<Desired>,
        known: &mut Known,
        early: Early,
    ) -> Result<(), End> {
        let (orchestrator, permit) = (store.orchestrator(), store.permit());
        let Known { recalled, settled, .. } = known;
        let (look, observation) =
            self.observe_and_plan(orchestrator, desired, recalled, Some((early, settled))).await?;
        store.found(&observation.remembered).await;
        if let Some(cause) = self.stop.cause() {
            return Err(End::Stopped(cause));
        }
        let gone = look.plan.steps().filter_map(|(_, step)| step.removes());
        known.findings.gone = gone.map(|handle| handle.0.clone()).collect();
        known.findings.planned = Some(look.plan.memory.connectors.clone());
        known.findings.looked_at = Some(look.at);
        known.findings.seen = look.plan.seen.clone();
        known.findings.adopted = Some(observation.adopted.clone());
        self.before_apply(store, &look.plan, &observation, known).await?;
        let concurrency = self.pass.concurrency;
        let mut after =
            after_apply::before_steps(orchestrator, &look.desired, &look.plan, observation, concurrency).await;
        let (mut outcomes, mut published) = self.apply(orchestrator, permit, &look, &after, known).await;

        let probation = self.settle(store, &look, &mut outcomes, &mut after, known).await;

        let begun = Instant::now();
        known.findings.undone = after_apply::undone(&look.plan, &outcomes, &look.prepared.rejected());
        known.findings.looks = after.last_looks(&look.plan);
        let (memory, judged) = self.next_memory(known);
        let assessments: BTreeMap<_, _> = look.plan.assessments.clone().into_iter().chain(judged).collect();
        self.report_plan(&look, &outcomes, &assessments, &after, &probation);
        let state = self.publish_state(&look.desired, &after, &assessments, &memory);
        let rest = self.publish_rest(orchestrator, permit, &look.plan, state, &mut outcomes).await;
        published.add(rest);
        self.report_published(&published);
        known.findings.delivered = published.delivered;
        self.stage("publish", begun);
        match self.stop.cause() {
            Some(cause) => Err(End::Stopped(cause)),
            None => Ok(()),
        }
    }

    async fn recall<O: Orchestrator>(&mut self, orchestrator: &O) -> Result<Recalled, End> {
        let mut recalled = self.until_stopped(orchestrator.recall()).await??;
        self.notice(&recalled.notices);
        if !recalled.notices.is_empty() {
            // What the last pass saw is lost in part, so it does not help to know when that was.
            recalled.memory.last_pass = None;
        } else if !recalled.memory.no_record && !recalled.memory.blind {
            recalled.memory.last_pass = recalled.memory.last_pass.or(self.last_heartbeat);
        }
        Ok(recalled)
    }

    async fn pull(&mut self) -> Result<Arc<Desired>, End> {
        let begun = Instant::now();
        let listing = self.ask("the list of connectors", <dyn Platform>::pull).await?;
        let desired = Arc::new(desired::read(listing));
        self.report.platform.listed = Some(desired.listed());
        for why in &desired.unidentified {
            self.report.unidentified(why);
        }
        self.notice(&notices::of_list(&desired, self.settings.registry.server.as_deref()));
        self.stage("pull", begun);
        Ok(desired)
    }

    /// Does the part that `plan` and a real pass have in common. Also adds what is stored on the workloads to
    /// `recalled`.
    async fn observe_and_plan<O: Orchestrator>(
        &mut self,
        orchestrator: &O,
        desired: Arc<Desired>,
        recalled: &mut Memory,
        early: Option<(Early, &mut Settled)>,
    ) -> Result<(Look, Observation), End> {
        let begun = Instant::now();
        let observation = self.observe(orchestrator, &desired, recalled, early).await?;
        self.report.orchestrator.workloads = Some(observation.observed.workloads.len());
        self.notice(&observation.notices);
        recalled.connectors.extend(observation.remembered.clone());
        if !observation.notices.is_empty() {
            recalled.last_pass = None;
        }
        self.stage("observe", begun);

        let begun = Instant::now();
        let (policy, at) = (&self.settings.policy, Timestamp::now());
        let plan = Arc::new(plan::plan(&desired, &observation.observed, recalled, policy, at));
        self.stage("plan", begun);

        let prepared = self.prepare(&plan, &desired);
        Ok((Look { desired, plan, at, prepared }, observation))
    }

    /// Begins to make the specs that the plan needs.
    fn prepare(&self, plan: &Plan, desired: &Arc<Desired>) -> Prepared {
        let (desired, settings) = (Arc::clone(desired), Arc::clone(&self.settings));
        let (manager, platform) = (Arc::clone(&self.pass.manager), Arc::clone(&self.platform));
        let (decryptors, stop) = (self.pass.decryptors.clone(), self.stop.clone());
        let (prepared, preparer) = prepare::begin(plan);
        tokio::task::spawn_blocking(move || {
            let common = Common {
                manager: &manager.id,
                platform: platform.kind(),
                url: platform.url(),
                proxy: settings.connector_proxy.as_ref(),
                registry: settings.registry.server.as_deref(),
            };
            preparer.run(&desired, &manager.key, &common, &decryptors, &stop);
        });
        prepared
    }

    /// Waits until all specs are made, or the pass has to stop.
    async fn prepared(&mut self, prepared: &Prepared) -> Result<(), PlatformError> {
        let is_complete = prepared.is_complete().await;
        self.report.stages.push(Stage { name: "prepare", ms: millis(prepared.took()) });
        if is_complete || self.stop.cause().is_some() {
            return Ok(());
        }
        Err(PlatformError::Abandoned { operation: "decrypting", why: "its thread was lost".to_owned() })
    }

    fn report_plan(
        &mut self,
        look: &Look,
        outcomes: &Outcomes,
        assessments: &BTreeMap<ConnectorId, Assessment>,
        after: &WorkloadsAfter,
        probation: &BTreeMap<ConnectorId, Timestamp>,
    ) {
        for (id, error) in &after.lost {
            self.report.not_seen(id, error);
        }
        self.report.plan(PlanReport {
            plan: &look.plan,
            rejected: &look.prepared.rejected(),
            outcomes: Some(outcomes),
            assessments,
            troubles: &after.troubles(),
            probation,
        });
    }

    fn next_memory(&self, known: &Known) -> (Memory, BTreeMap<ConnectorId, Assessment>) {
        memory::next(&known.recalled, &known.findings, self.settings.policy.loop_rule, Timestamp::now())
    }

    fn notice(&mut self, notices: &[String]) {
        for notice in notices {
            tracing::warn!("{notice}");
            self.report.notices.push(notice.clone());
        }
    }

    /// Calls the platform on a thread that may block.
    async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&dyn Platform) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, End> {
        let platform = Arc::clone(&self.platform);
        let answer = tokio::task::spawn_blocking(move || call(platform.as_ref()));
        match self.until_stopped(answer).await? {
            Ok(answer) => Ok(answer?),
            Err(lost) => Err(PlatformError::Abandoned { operation: what, why: lost.to_string() }.into()),
        }
    }

    async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.stop.stopped() => Err(End::Stopped(self.stop.cause().unwrap_or(Cause::Deadline))),
        }
    }

    fn stage(&mut self, name: &'static str, begun: Instant) {
        self.report.stages.push(Stage { name, ms: millis(begun.elapsed()) });
    }

    fn ended(&mut self, end: &End) {
        let kind = self.platform.kind();
        match end {
            End::Platform(error) => {
                tracing::error!(%error, cure = error.cure().on(kind), "the platform cannot be used");
                self.report.platform_failed(error);
            }
            End::Orchestrator(error) => {
                tracing::error!(%error, cure = error.cure().on(kind), "the orchestrator cannot be used");
                self.report.orchestrator_failed(error);
            }
            End::Stopped(cause) => {
                tracing::warn!(cause = cause.as_str(), "ended early");
                self.report.stopped(*cause);
            }
        }
    }
}

/// The troubles of the workloads that stay.
fn troubles(plan: &Plan, observation: &Observation) -> BTreeMap<ConnectorId, Vec<Trouble>> {
    let workloads = observation.observed.workloads.iter();
    let kept = workloads.filter(|workload| plan.kept.get(&workload.connector) == Some(&workload.handle));
    let troubled = kept.filter(|workload| !workload.troubles.is_empty());
    troubled.map(|workload| (workload.connector.clone(), workload.troubles.clone())).collect()
}
