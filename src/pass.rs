//! One pass, stage by stage: registration check -> pull -> observe -> plan -> apply -> health -> logs -> report.

pub mod lane;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::access::{Access, Permit};
use crate::apply::Applier;
use crate::config::Settings;
use crate::desired::{self, Desired};
use crate::exit;
use crate::holder;
use crate::memory::Memory;
use crate::model::{ConnectorId, PlatformKind, Trouble};
use crate::orchestrator::docker::Docker;
use crate::orchestrator::kubernetes::Kubernetes;
use crate::orchestrator::{Observation, Orchestrator, OrchestratorError, OrchestratorSettings, Recalled};
use crate::plan::{self, Plan, Step};
use crate::platform::{self, Heartbeat, Platform, PlatformError, Registrant};
use crate::prepare::{self, Prepared};
use crate::progress::Progress;
use crate::publish::{self, Publisher};
use crate::render::Common;
use crate::report::{Learned, PlatformReport, Report, Stage};
use crate::settle;
use crate::stop::{Cause, Stop};

/// Added to the pass deadline, so that the lock outlives the steps that finish after it.
const LOCK_GRACE: Duration = Duration::from_mins(4);

/// Bounds of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// After this, nothing new starts.
    pub deadline: Duration,
    /// Connectors worked on at the same time.
    pub concurrency: usize,
    /// Log lines per connector.
    pub logs_tail: u32,
}

/// What to do in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Everything.
    Run,
    /// Everything up to apply, without a write anywhere.
    Plan {
        /// Exit with 2 when there are steps.
        detailed_exitcode: bool,
    },
}

impl Command {
    /// The command's word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Plan { .. } => "plan",
        }
    }
}

/// Why a pass went no further. Each is in the report already, or goes there.
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

/// Makes one pass, and tells all about it.
pub async fn pass(settings: Arc<Settings>, command: Command, stop: &Stop, progress: Arc<Progress>) -> Report {
    let begun = Instant::now();
    let id = format!("{:08x}", fastrand::u32(..));
    let name = command.name();
    let concurrency = settings.limits.concurrency;
    let platform: Arc<dyn Platform> =
        platform::connect(&settings.lanes[0].platform, &settings.manager, concurrency, stop.clone());
    let platform_report = PlatformReport {
        kind: platform.kind(),
        url: platform.url().to_owned(),
        version: None,
        registration: None,
        listed: None,
        sent: publish::Sent::default(),
    };
    let place = settings.lanes[0].orchestrator.place();
    let report = Report::new(name, &id, settings.manager.id.as_str(), platform_report, &place);
    let access = if command == Command::Run { Access::ReadWrite } else { Access::ReadOnly };
    let mut pass = Pass { settings, platform, access, stop, report };
    tracing::info!(pass = id, command = name, "begins");
    if let Err(end) = Box::pin(pass.stages(&id, progress)).await {
        pass.ended(&end);
    }
    pass.report.notices.extend(pass.settings.notices.iter().map(|notice| notice.message.clone()));
    let pending = match command {
        Command::Plan { detailed_exitcode: true } => Some(exit::CHANGES_PENDING),
        _ => None,
    };
    pass.report.finish(millis(begun.elapsed()), pending);
    tracing::info!(pass = id, exit_code = pass.report.exit_code, ms = pass.report.took_ms, "ends");
    pass.report
}

struct Pass<'a> {
    settings: Arc<Settings>,
    platform: Arc<dyn Platform>,
    access: Access,
    stop: &'a Stop,
    report: Report,
}

impl Pass<'_> {
    async fn stages(&mut self, id: &str, progress: Arc<Progress>) -> Result<(), End> {
        let settings = Arc::clone(&self.settings);
        let owner =
            crate::orchestrator::Owner { manager: settings.manager.id.clone(), platform: PlatformKind::OpenCti };
        match &settings.lanes[0].orchestrator {
            OrchestratorSettings::Docker(docker) => {
                self.stages_on(
                    id,
                    Docker::connect(docker, owner, &settings.lanes[0].registry, settings.limits.concurrency, progress),
                )
                .await
            }
            OrchestratorSettings::Kubernetes(kubernetes) => {
                Box::pin(self.stages_on(
                    id,
                    Kubernetes::connect(
                        kubernetes,
                        owner,
                        &settings.lanes[0].registry,
                        settings.limits.concurrency,
                        self.stop,
                    ),
                ))
                .await
            }
        }
    }

    async fn stages_on<O: Orchestrator>(
        &mut self,
        id: &str,
        connecting: impl Future<Output = Result<O, OrchestratorError>>,
    ) -> Result<(), End> {
        let begun = Instant::now();
        let connected = self.connect(connecting).await;
        self.stage("connect", begun);
        let (orchestrator, version) = connected?;
        let Some(permit) = self.access.permit() else {
            let memory = self.recall(&orchestrator).await?.memory;
            self.foretell_registration(&version, &memory).await?;
            self.look_and_plan(&orchestrator, memory).await?;
            return Ok(());
        };
        let holder = holder::this_process(id);
        // Not cut short by a signal: a lock that is taken must be known, to be given back.
        let lock = orchestrator.lock(permit, &holder, self.lock_ttl()).await?;
        let done = self.locked(&orchestrator, permit, &version).await;
        if let Err(error) = orchestrator.unlock(permit, lock).await {
            self.report.orchestrator_failed(&error);
        }
        done
    }

    /// Everything that happens while the lock is held.
    async fn locked<O: Orchestrator>(&mut self, orchestrator: &O, permit: Permit, version: &str) -> Result<(), End> {
        let Recalled { memory: mut recalled, stale, .. } = self.recall(orchestrator).await?;
        let begun = Instant::now();
        let mut memory = recalled.clone();
        memory.registration = Some(self.register(permit, version, &recalled).await?);
        self.stage("register", begun);
        let result = self.reconcile(orchestrator, permit, &mut recalled, &mut memory).await;
        let begun = Instant::now();
        let before = (!stale).then_some(&recalled);
        if let Err(error) = orchestrator.remember(permit, before, &memory).await {
            self.report.orchestrator_failed(&error);
        }
        self.stage("remember", begun);
        result
    }

    async fn reconcile<O: Orchestrator>(
        &mut self,
        orchestrator: &O,
        permit: Permit,
        recalled: &mut Memory,
        memory: &mut Memory,
    ) -> Result<(), End> {
        let (desired, plan, prepared, observation) = self.look_and_plan(orchestrator, memory.clone()).await?;
        recalled.connectors.extend(observation.remembered.clone());
        let registration = memory.registration.take();
        *memory = Memory { registration: registration.clone(), ..recalled.clone() };
        if let Some(cause) = self.stop.cause() {
            return Err(End::Stopped(cause));
        }
        *memory = plan.memory.clone();
        memory.adopted.clone_from(&observation.adopted);
        for handle in plan.steps().filter_map(|(_, step)| step.takes_away()) {
            memory.adopted.remove(&handle.0);
        }
        memory.registration = registration;
        if plan.steps().any(|(_, step)| matches!(step, Step::Hold { .. })) {
            // Killed between the stop and the record, the next pass would start what is to be held.
            orchestrator.remember(permit, Some(&*recalled), memory).await?;
        }
        if let Err(error) = orchestrator.mend(permit, &observation).await {
            self.report.orchestrator_failed(&error);
        }
        let begun = Instant::now();
        let applier = Applier {
            orchestrator,
            permit,
            prepared: &prepared,
            stop: self.stop,
            concurrency: self.settings.limits.concurrency,
        };
        let concurrency = self.settings.limits.concurrency;
        let mut afters = settle::observed(orchestrator, &desired, &plan, observation, concurrency).await;
        let busy = settle::busy(&plan);
        let publisher = Publisher {
            orchestrator,
            platform: Arc::clone(&self.platform),
            permit,
            tail: self.settings.limits.logs_tail,
            concurrency,
            stop: self.stop,
        };
        // A slow step of one connector must not make the others look dead on the platform.
        let now = Timestamp::now();
        let quiet = publish::jobs(&desired, &afters, &plan.assessments, memory, now, |id| !busy.contains(id));
        let (outcomes, (sent_meanwhile, mut failures)) = tokio::join!(applier.apply(&plan), publisher.publish(quiet));
        self.stage("apply", begun);

        let begun = Instant::now();
        settle::take_back(&plan, &outcomes, &prepared.rejected, recalled, memory, Timestamp::now());
        settle::look_again(orchestrator, &plan, &outcomes, concurrency, &mut afters).await;
        for (id, why) in &afters.lost {
            self.report.connector_fault(id, why.to_string(), why.cure());
        }
        let now = Timestamp::now();
        let mut assessments = plan.assessments.clone();
        settle::reassess(&afters, memory, &mut assessments, self.settings.lanes[0].policy.loop_rule, now);
        self.report.plan(
            &plan,
            Learned {
                rejected: &prepared.rejected,
                outcomes: Some(&outcomes),
                assessments: &assessments,
                troubles: &afters.troubles(),
            },
        );
        let rest = publish::jobs(&desired, &afters, &assessments, memory, now, |id| busy.contains(id));
        let (sent, more_failures) = publisher.publish(rest).await;
        failures.extend(more_failures);
        self.report.platform(|platform| platform.sent = sent.and(sent_meanwhile));
        for failure in &failures {
            self.report.publish_failed(failure);
        }
        self.stage("publish", begun);
        match self.stop.cause() {
            Some(cause) => Err(End::Stopped(cause)),
            None => Ok(()),
        }
    }

    /// Reaches both sides at once. When neither can be, both are told.
    async fn connect<O: Orchestrator>(
        &mut self,
        connecting: impl Future<Output = Result<O, OrchestratorError>>,
    ) -> Result<(O, String), End> {
        let version = self.ask("about", Platform::version);
        let (orchestrator, version) = self.until_stopped(async { tokio::join!(connecting, version) }).await?;
        let version = match (version, &orchestrator) {
            (Ok(version), _) => version,
            (Err(end), Err(error)) => {
                self.report.orchestrator_failed(error);
                return Err(end);
            }
            (Err(end), Ok(_)) => return Err(end),
        };
        let orchestrator = orchestrator?;
        self.report.platform(|platform| platform.version = Some(version.clone()));
        self.report.orchestrator.description = Some(orchestrator.description().to_owned());
        Ok((orchestrator, version))
    }

    async fn recall<O: Orchestrator>(&mut self, orchestrator: &O) -> Result<Recalled, End> {
        let recalled = self.until_stopped(orchestrator.recall()).await??;
        self.notice(&recalled.notices);
        Ok(recalled)
    }

    fn notice(&mut self, notices: &[String]) {
        for notice in notices {
            tracing::warn!("{notice}");
            self.report.notices.push(notice.clone());
        }
    }

    /// The registration check: a heartbeat, and a registration when anything that it depends on has changed.
    async fn register(
        &mut self,
        permit: Permit,
        version: &str,
        memory: &Memory,
    ) -> Result<crate::memory::Registration, End> {
        let remembered = memory.registration.is_some();
        let heartbeat = self.ask("heartbeat", move |platform| platform.heartbeat(permit, remembered)).await?;
        let wanted = self.platform.registration(version);
        let why = match heartbeat {
            Heartbeat::Unregistered => Some("the platform did not know this manager"),
            Heartbeat::Known { registered_with: Some(noted) } if noted != version => {
                Some("the platform notes another version")
            }
            Heartbeat::Known { .. } => registration_change(memory, &wanted),
        };
        if let Some(why) = why {
            tracing::info!(why, "registering");
            self.ask("register", move |platform| platform.register(permit)).await?;
        }
        let told = why.map_or("known".to_owned(), |why| format!("registered: {why}"));
        self.report.platform(|platform| platform.registration = Some(told));
        Ok(wanted)
    }

    /// What [`Self::register`] would find, without a write.
    async fn foretell_registration(&mut self, version: &str, memory: &Memory) -> Result<(), End> {
        let wanted = self.platform.registration(version);
        let remembered = memory.registration.is_some();
        let told = match self.ask("registrant", move |platform| platform.registrant(remembered)).await? {
            Registrant::Ours => {
                registration_change(memory, &wanted).map_or("known".to_owned(), |why| format!("to register: {why}"))
            }
            Registrant::Other(other) => format!("to register; the platform has {other} already and may refuse"),
            Registrant::Nobody => "to register: the platform does not know this manager".to_owned(),
            Registrant::Unknown(why) => format!("cannot be told: {why}"),
        };
        self.report.platform(|platform| platform.registration = Some(told));
        if let Some(notice) = self.platform.listing_notice() {
            self.report.notices.push(format!("nothing was changed here; but {notice}"));
        }
        Ok(())
    }

    /// Pull, observe, plan, and make ready: the part that `plan` and a real pass share.
    async fn look_and_plan<O: Orchestrator>(
        &mut self,
        orchestrator: &O,
        mut memory: Memory,
    ) -> Result<(Arc<Desired>, Arc<Plan>, Prepared, Observation), End> {
        let begun = Instant::now();
        let listing = self.ask("connectorsForManagers", Platform::pull).await?;
        let desired = Arc::new(desired::read(listing));
        self.report.platform(|platform| platform.listed = Some(desired.listed()));
        for why in &desired.unidentified {
            self.report.unidentified(why);
        }
        self.stage("pull", begun);

        let begun = Instant::now();
        let observation = self.until_stopped(orchestrator.observe(&desired, &memory)).await??;
        self.report.orchestrator.workloads = Some(observation.observed.workloads.len());
        self.notice(&observation.notices);
        memory.connectors.extend(observation.remembered.clone());
        self.stage("observe", begun);

        let begun = Instant::now();
        let plan = Arc::new(plan::plan(
            &desired,
            &observation.observed,
            &memory,
            &self.settings.lanes[0].policy,
            Timestamp::now(),
        ));
        self.stage("plan", begun);

        let begun = Instant::now();
        let prepared = self.prepare(&plan, &desired).await?;
        self.stage("prepare", begun);
        if self.access == Access::ReadOnly {
            let troubles = troubles(&plan, &observation);
            let (rejected, assessments) = (&prepared.rejected, &plan.assessments);
            self.report.plan(&plan, Learned { rejected, outcomes: None, assessments, troubles: &troubles });
        }
        Ok((desired, plan, prepared, observation))
    }

    async fn prepare(&self, plan: &Arc<Plan>, desired: &Arc<Desired>) -> Result<Prepared, End> {
        let (plan, desired, settings) = (Arc::clone(plan), Arc::clone(desired), Arc::clone(&self.settings));
        let (url, stop) = (self.platform.url().to_owned(), self.stop.clone());
        let work = move || {
            let common = Common {
                manager: &settings.manager.id,
                platform: PlatformKind::OpenCti,
                url: &url,
                proxy: settings.lanes[0].connector_proxy.as_ref(),
                registry: settings.lanes[0].registry.server.as_deref(),
            };
            prepare::prepare(&plan, &desired, &settings.manager.key, &common, &stop)
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|lost| PlatformError::Abandoned { operation: "decrypting", why: lost.to_string() }.into())
    }

    /// A call to the platform, on a thread that may block.
    async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        call: impl FnOnce(&dyn Platform) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, End> {
        let platform = Arc::clone(&self.platform);
        let answer = tokio::task::spawn_blocking(move || call(platform.as_ref()));
        match self.until_stopped(answer).await? {
            Ok(answer) => Ok(answer?),
            Err(lost) => Err(PlatformError::Abandoned { operation, why: lost.to_string() }.into()),
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

    fn lock_ttl(&self) -> Duration {
        self.stop.remaining() + LOCK_GRACE
    }

    fn ended(&mut self, end: &End) {
        match end {
            End::Platform(error) => {
                tracing::error!(%error, cure = error.cure().on(self.platform.kind()), "the platform cannot be used");
                self.report.platform_failed(error);
            }
            End::Orchestrator(error) => {
                tracing::error!(%error, cure = error.cure(), "the orchestrator cannot be used");
                self.report.orchestrator_failed(error);
            }
            End::Stopped(cause) => {
                tracing::warn!(cause = cause.as_str(), "ended early");
                self.report.stopped(*cause);
            }
        }
    }
}

/// What is wrong with the workloads that stay.
fn troubles(plan: &Plan, observation: &Observation) -> BTreeMap<ConnectorId, Vec<Trouble>> {
    let workloads = observation.observed.workloads.iter();
    let kept = workloads.filter(|workload| plan.kept.get(&workload.connector) == Some(&workload.handle));
    let troubled = kept.filter(|workload| !workload.troubles.is_empty());
    troubled.map(|workload| (workload.connector.clone(), workload.troubles.clone())).collect()
}

/// What of a registration differs from the last one.
fn registration_change(memory: &Memory, wanted: &crate::memory::Registration) -> Option<&'static str> {
    match &memory.registration {
        None => Some("there is no memory of an earlier registration"),
        Some(known) if known.version != wanted.version => Some("the platform has another version"),
        Some(known) if known.key != wanted.key => Some("this manager has another key"),
        Some(known) if known.name != wanted.name => Some("this manager has another name"),
        Some(_) => None,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
