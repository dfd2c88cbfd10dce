//! Observes the containers: one list of all of them, and a closer look only at those of which the list does not say
//! enough.

use std::collections::{BTreeMap, HashMap};

use bollard::errors::Error as EngineError;
use bollard::models::{ContainerInspectResponse, ContainerSummary, HostConfig, RestartPolicyNameEnum};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};
use futures_util::StreamExt;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{Docker, status};
use crate::desired::Desired;
use crate::memory::Memory;
use crate::model::{Change, ConfigHash, ConnectorId, Handle, Phase, PlatformKind, Vitals, Workload};
use crate::orchestrator::{Look, Observation, OnLook, OrchestratorError};
use crate::render::docker::RestartPolicy;
use crate::render::{LABEL_CONNECTOR, LABEL_HASH, LABEL_MANAGER, LABEL_PLATFORM, VARIABLE_HASH};
use crate::secret::Secret;

const RECORD_LOST: &str = "there is no memory of earlier passes, although containers that they made are here: restart \
    histories begin anew, a connector that is down after more restarts than MANAGER__REBOOT_LOOP__LIMIT counts as held if \
    loops are stopped, and removals beyond MANAGER__MAX_REMOVALS_PERCENT wait for --allow-prune. `docker system prune` and \
    `docker container prune` remove it, unless they are given `--filter label!=xtm-reconcile.manager`";

impl Docker {
    /// Lists the containers that match, in whatever state they are.
    pub(super) async fn list(
        &self,
        filters: &HashMap<&str, Vec<String>>,
    ) -> Result<Vec<ContainerSummary>, OrchestratorError> {
        let options = ListContainersOptionsBuilder::default().all(true).filters(filters).build();
        self.engine.list_containers(Some(options)).await.map_err(self.refused("listing the containers"))
    }

    pub(super) async fn observe_all(
        &self,
        desired: &Desired,
        memory: &Memory,
        on_look: &OnLook<'_>,
    ) -> Result<Observation, OrchestratorError> {
        let mut observation = Observation::default();
        let mut open = Vec::new();
        // The list includes foreign containers, because their names are taken.
        for summary in self.list(&HashMap::new()).await? {
            match self.workload(&summary) {
                Ok(workload) if workload.platform.is_none() && !desired.lists(&workload.connector) => {
                    // An older manager made it and noted no platform. It is reported and left alone, and its name is
                    // taken.
                    let owner = "a container of an older manager, whose platform is not known".to_owned();
                    observation.observed.foreign.insert(workload.name.clone(), owner);
                    observation.observed.workloads.push(workload);
                }
                Ok(mut workload) => {
                    let known = memory.adopted.get(&workload.handle.0);
                    let adopted = workload.hash.is_none();
                    observation.observed.record_lost |= memory.no_record && !adopted;
                    if let (true, Some(hash)) = (adopted, known) {
                        observation.adopted.insert(workload.handle.0.clone(), hash.clone());
                        workload.hash = Some(hash.clone());
                    }
                    // A container that ended although it should run may have restarted before, so its counter is
                    // needed. One that was replaced is not to run.
                    let ended = workload.phase == Phase::Exited
                        && !workload.is_former()
                        && desired.wants_running(&workload.connector);
                    if workload.phase.is_up() || ended || workload.hash.is_none() {
                        open.push((workload, adopted));
                    } else {
                        observation.observed.workloads.push(workload);
                    }
                }
                Err(owner) => {
                    for name in names(&summary) {
                        observation.observed.foreign.insert(name.to_owned(), owner.clone());
                    }
                }
            }
        }
        if observation.observed.record_lost {
            observation.notices.push(RECORD_LOST.to_owned());
        }
        let mut count: BTreeMap<ConnectorId, usize> = BTreeMap::new();
        for workload in observation.observed.workloads.iter().chain(open.iter().map(|(workload, _)| workload)) {
            *count.entry(workload.connector.clone()).or_default() += 1;
        }
        let looks = futures_util::stream::iter(open.into_iter().map(|(workload, adopted)| async move {
            let look = self.look_at(&workload.handle).await;
            (workload, adopted, look)
        }));
        let mut looks = looks.buffer_unordered(self.concurrency);
        while let Some((workload, adopted, look)) = looks.next().await {
            match look {
                Err(error @ OrchestratorError::Unreachable { .. }) => return Err(error),
                look => {
                    let only = count.get(&workload.connector) == Some(&1);
                    let seen = complete(&mut observation, workload, adopted, look);
                    if let (true, true, Some(workload)) = (seen, only, observation.observed.workloads.last()) {
                        on_look(workload, observation.environments.get(&workload.handle).map_or(&[], Vec::as_slice));
                    }
                }
            }
        }
        Ok(observation)
    }

    /// The connector of a container that belongs to this manager and platform, and the platform that its label names
    /// (older managers wrote none). The error describes the owner of a foreign container.
    pub(super) fn ownership(
        &self,
        labels: &HashMap<String, String>,
    ) -> Result<(ConnectorId, Option<PlatformKind>), String> {
        let label = |name: &str| labels.get(name).map(String::as_str);
        match label(LABEL_MANAGER) {
            Some(manager) if manager == self.owner.manager.as_str() => {}
            Some(other) => return Err(format!("a container of the manager {other}")),
            None => return Err("a container that no connector manager made".to_owned()),
        }
        let connector = label(LABEL_CONNECTOR)
            .and_then(|id| ConnectorId::new(id).ok())
            .ok_or_else(|| format!("a container of this manager without a usable {LABEL_CONNECTOR} label"))?;
        match label(LABEL_PLATFORM) {
            None => Ok((connector, None)),
            Some(label) if label == self.owner.platform.label() => Ok((connector, Some(self.owner.platform))),
            Some(other) => Err(format!("a connector of the platform {other}")),
        }
    }

    /// The workload that a container is. The error describes the owner of a foreign container.
    fn workload(&self, summary: &ContainerSummary) -> Result<Workload, String> {
        let none = HashMap::new();
        let labels = summary.labels.as_ref().unwrap_or(&none);
        let (connector, platform) = self.ownership(labels)?;
        let label = |name: &str| labels.get(name).map(String::as_str);
        let name = names(summary).next().unwrap_or_default().to_owned();
        Ok(Workload {
            handle: Handle(summary.id.clone().unwrap_or_default()),
            name,
            connector,
            platform,
            hash: label(LABEL_HASH).and_then(|hash| ConfigHash::new(hash).ok()),
            phase: summary.state.map_or(Phase::Broken, |state| phase(state.as_ref())),
            created: summary.created.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_default(),
            vitals: None,
            change: Change::Replaced,
            troubles: vec![],
        })
    }

    /// Inspects a container. Its environment comes apart from the rest, because it holds secrets in clear: the entries
    /// are wiped, and their values go on as secrets.
    pub(super) async fn inspect(
        &self,
        name: &str,
    ) -> Result<(ContainerInspectResponse, Vec<(String, Secret)>), EngineError> {
        let mut inspected = self.engine.inspect_container(name, None::<InspectContainerOptions>).await?;
        let entries = inspected.config.as_mut().and_then(|config| config.env.take()).unwrap_or_default();
        let environment = entries.into_iter().map(Zeroizing::new).filter_map(|entry| variable(&entry)).collect();
        Ok((inspected, environment))
    }

    pub(super) async fn look_at(&self, handle: &Handle) -> Result<Option<Look>, OrchestratorError> {
        match self.inspect(&handle.0).await {
            Ok((inspected, environment)) => {
                Ok(Some(look(inspected, environment, self.settings.container.restart_policy)))
            }
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.refused(format!("looking at container {handle}"))(error)),
        }
    }
}

/// The names of a container, without the slash that the engine puts before each.
pub(super) fn names(summary: &ContainerSummary) -> impl Iterator<Item = &str> {
    // A name of two parts is the one that a linked container has within another. Only its own name counts.
    let all = summary.names.as_deref().unwrap_or_default().iter();
    all.map(|name| name.trim_start_matches('/')).filter(|name| !name.contains('/'))
}

/// Adds a workload with the result of the closer look, and returns whether that look succeeded. A workload that is gone
/// by now is left out.
fn complete(
    observation: &mut Observation,
    mut workload: Workload,
    adopted: bool,
    look: Result<Option<Look>, OrchestratorError>,
) -> bool {
    match look {
        Ok(None) => false,
        Ok(Some(look)) => {
            if workload.hash.is_none() {
                workload.hash = hash_in(&look.environment);
            }
            if let (true, Some(hash)) = (adopted, &workload.hash) {
                observation.adopted.insert(workload.handle.0.clone(), hash.clone());
            }
            workload.phase = look.phase;
            workload.created = look.created;
            workload.vitals = (look.phase.is_up() || look.phase == Phase::Exited).then_some(look.vitals);
            observation.environments.insert(workload.handle.clone(), look.environment);
            observation.observed.workloads.push(workload);
            true
        }
        Err(error) => {
            observation.observed.failed.insert(workload.connector.clone(), error.to_string());
            observation.observed.workloads.push(workload);
            false
        }
    }
}

fn hash_in(environment: &[(String, Secret)]) -> Option<ConfigHash> {
    let (_, value) = environment.iter().find(|(name, _)| name == VARIABLE_HASH)?;
    ConfigHash::new(value.expose()).ok()
}

/// Divides an entry of an environment. Only its first `=` counts, because values may hold more of them.
fn variable(entry: &str) -> Option<(String, Secret)> {
    let (name, value) = entry.split_once('=')?;
    Some((name.to_owned(), Secret::new(value.to_owned())))
}

fn look(inspected: ContainerInspectResponse, environment: Vec<(String, Secret)>, wanted: RestartPolicy) -> Look {
    let unattended = wanted != RestartPolicy::No && inspected.host_config.as_ref().is_some_and(has_no_restart_policy);
    let state = inspected.state.unwrap_or_default();
    let phase = state.status.map_or(Phase::Broken, |status| phase(status.as_ref()));
    Look {
        phase,
        created: inspected.created.and_then(|text| text.parse().ok()).unwrap_or_default(),
        vitals: Vitals {
            restarts: inspected.restart_count.and_then(|count| u64::try_from(count).ok()).unwrap_or_default(),
            // For a container that was never started the engine writes the year 1.
            started_at: state
                .started_at
                .and_then(|text| text.parse::<Timestamp>().ok())
                .filter(|started| started.as_second() > 0),
            // While a container runs, the engine gives 0.
            exit_code: state.exit_code.filter(|_| matches!(phase, Phase::Exited | Phase::Restarting | Phase::Broken)),
            unattended,
            ..Vitals::default()
        },
        troubles: vec![],
        environment,
    }
}

/// Whether the engine does not start the container again when it ends, and could be told to: it refuses that for one that
/// it removes when it ends.
fn has_no_restart_policy(host: &HostConfig) -> bool {
    use RestartPolicyNameEnum::{EMPTY, NO};
    let name = host.restart_policy.as_ref().and_then(|policy| policy.name);
    matches!(name, None | Some(EMPTY | NO)) && host.auto_remove != Some(true)
}

/// The phase that the engine's word for a state means. The list and the inspection use the same words but different
/// types.
fn phase(state: &str) -> Phase {
    match state {
        "created" => Phase::Created,
        "running" => Phase::Running,
        "paused" => Phase::Paused,
        "restarting" => Phase::Restarting,
        "exited" => Phase::Exited,
        _ => Phase::Broken,
    }
}
