//! Observes the namespace with one paged list of Deployments and one of pods, whatever the number of connectors.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kube::core::params::ListParams;
use serde::de::DeserializeOwned;

use super::api::{ApiError, Failure, Kind};
use super::condition::{Condition, LogSource, condition, own_troubles};
use super::objects::{Deployment, Owner, Page, Pod};
use super::{ANNOTATION_APPLIED, ANNOTATION_MEMORY, Applied, Known, Kubernetes, handle, ownership};
use crate::desired::Desired;
use crate::memory::ConnectorMemory;
use crate::model::{
    Change, ConfigHash, ConnectorId, Cure, CurrentStatus, Handle, Phase, PlatformKind, Trouble, TroubleKind, Vitals,
    Workload,
};
use crate::orchestrator::versioned::decode;
use crate::orchestrator::{Look, Observation, OrchestratorError};
use crate::render::kubernetes::{ANNOTATION_HASH, CONTAINER};
use crate::render::{LABEL_CONNECTOR, LABEL_MANAGER, LABEL_PLATFORM, VARIABLE_HASH};
use crate::secret::Secret;

/// Objects in one page of a list.
const PAGE: u32 = 500;
/// How often a list is begun in all. The API server may drop the next page of a list, so that it has to begin again.
const LIST_TRIES: u32 = 3;

impl Kubernetes {
    pub(super) async fn observe_all(&self, desired: &Desired) -> Result<Observation, OrchestratorError> {
        let mut observation = Observation::default();
        let mut seen = Vec::new();
        let selector = format!("{LABEL_MANAGER}={}", self.owner.manager);
        let mut labelled = true;
        let read = |listed: Listed<Deployment>| match listed {
            Listed::Begun => {
                observation = Observation::default();
                (seen, labelled) = (Vec::new(), true);
            }
            Listed::Item(deployment) => {
                // The pods of an older daemon carry only the label with the connector's id.
                labelled &= deployment.spec.template.metadata.labels.contains_key(LABEL_MANAGER);
                seen.extend(self.read(&mut observation, deployment, desired));
            }
        };
        self.list_all(Kind::Deployments, &selector, read).await?;
        let selector = if labelled { selector } else { LABEL_CONNECTOR.to_owned() };
        let mut pods_of: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
        let sort = |listed: Listed<Pod>| match listed {
            Listed::Begun => pods_of.clear(),
            Listed::Item(pod) => {
                if let Some(connector) = pod.metadata.labels.get(LABEL_CONNECTOR)
                    && !self.is_other_platforms(&pod)
                {
                    pods_of.entry(connector.clone()).or_default().push(pod);
                }
            }
        };
        self.list_all(Kind::Pods, &selector, sort).await?;
        let now = Timestamp::now();
        for one in seen {
            let pods = pods_of.get(one.connector.as_str()).map(Vec::as_slice).unwrap_or_default();
            self.add(&mut observation, one, pods, now);
        }
        self.add_left(&mut observation, &pods_of, desired);
        Ok(observation)
    }

    /// Marks the listed connectors that have a pod but no Deployment as failed, because a second instance must not run
    /// beside that pod.
    fn add_left(&self, observation: &mut Observation, pods_of: &BTreeMap<String, Vec<Pod>>, desired: &Desired) {
        let known: BTreeSet<ConnectorId> =
            observation.observed.workloads.iter().map(|workload| workload.connector.clone()).collect();
        for (connector, pods) in pods_of {
            let Ok(connector) = ConnectorId::new(connector) else { continue };
            let left = pods.iter().find(|pod| self.is_left(pod));
            if let Some(pod) = left.filter(|_| !known.contains(&connector) && desired.lists(&connector)) {
                observation.observed.failed.entry(connector).or_insert_with(|| left_words(pod));
            }
        }
    }

    /// Hands every object of a list to `take`, page by page, so that only one page is in memory at a time. Begins again
    /// when the API server has dropped the next page.
    async fn list_all<T: DeserializeOwned>(
        &self,
        kind: Kind,
        selector: &str,
        mut take: impl FnMut(Listed<T>),
    ) -> Result<(), ApiError> {
        let mut next: Option<String> = None;
        let mut tries = 1;
        take(Listed::Begun);
        loop {
            let mut params = ListParams::default().labels(selector).limit(PAGE);
            if let Some(token) = &next {
                params = params.continue_token(token);
            }
            let page = match self.api.list::<Page<T>>(kind, &params).await {
                Err(error) if error.code() == 410 && tries < LIST_TRIES => {
                    tries += 1;
                    next = None;
                    take(Listed::Begun);
                    continue;
                }
                page => page?,
            };
            page.items.into_iter().for_each(|item| take(Listed::Item(item)));
            next = page.metadata.next.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(());
            }
        }
    }

    /// Whether a pod is the other platform's, where the same id may name another connector.
    pub(super) fn is_other_platforms(&self, pod: &Pod) -> bool {
        let platform = pod.metadata.labels.get(LABEL_PLATFORM);
        platform.is_some_and(|platform| platform != self.owner.platform.label())
    }

    /// Whether a pod belongs to this manager and platform and has not ended.
    fn is_left(&self, pod: &Pod) -> bool {
        let label = |name: &str| pod.metadata.labels.get(name).map(String::as_str);
        label(LABEL_MANAGER) == Some(self.owner.manager.as_str())
            && label(LABEL_PLATFORM).is_none_or(|platform| platform == self.owner.platform.label())
            && !pod.has_ended()
    }

    /// Reads what matters of a Deployment. `None` when it belongs to somebody else or is being deleted.
    fn read(&self, observation: &mut Observation, deployment: Deployment, desired: &Desired) -> Option<Seen> {
        let meta = &deployment.metadata;
        let label = |name: &str| meta.labels.get(name).map(String::as_str);
        let owner = match (label(LABEL_CONNECTOR).map(ConnectorId::new), label(LABEL_PLATFORM)) {
            (Some(Ok(connector)), None) => Ok((connector, None)),
            (Some(Ok(connector)), Some(platform)) if platform == self.owner.platform.label() => {
                Ok((connector, Some(self.owner.platform)))
            }
            (Some(Ok(_)), Some(other)) => Err(format!("a connector of the platform {other}")),
            _ => Err(format!("a Deployment of this manager without a usable {LABEL_CONNECTOR} label")),
        };
        let (connector, platform) = match owner {
            Ok(owner) => owner,
            Err(owner) => {
                observation.observed.foreign.insert(meta.name.clone(), owner);
                return None;
            }
        };
        if meta.deletion_timestamp.is_some() {
            let why = format!("its Deployment {} is being deleted, and is not gone yet", meta.name);
            if desired.lists(&connector) {
                observation.observed.failed.insert(connector, why);
            }
            return None;
        }
        if platform.is_none() && !desired.lists(&connector) {
            let owner = "a Deployment of an older manager, whose platform is not known".to_owned();
            observation.observed.foreign.insert(meta.name.clone(), owner);
        }
        match memory(&deployment) {
            Ok(Some(memory)) => {
                observation.remembered.insert(connector.clone(), memory);
            }
            Ok(None) => {}
            Err(why) => observation.notices.push(format!(
                "{ANNOTATION_MEMORY} of Deployment {} cannot be read and counts as empty: {why}",
                meta.name
            )),
        }
        // The environment is read to mask its secrets in the log. The platform already has the last log of a connector
        // that is stopped there and here.
        let told = desired.shown(&connector) == Some(CurrentStatus::Stopped);
        let needs_environment = deployment.spec.replicas != Some(0) || !told;
        Some(Seen::of(deployment, connector, platform, needs_environment))
    }

    fn add(&self, observation: &mut Observation, seen: Seen, pods: &[Pod], now: Timestamp) {
        let its: Vec<&Pod> = pods.iter().filter(|pod| pod.is_of(&seen.name)).collect();
        let Condition { phase, vitals, mut troubles, log } =
            condition(seen.replicas, seen.own, &its, seen.secret.as_deref(), now);
        troubles.extend(seen.drift);
        let handle = handle(&seen.name, &seen.uid);
        if !seen.environment.is_empty() {
            observation.environments.insert(handle.clone(), seen.environment);
        }
        // The retired Secret is still in use when somebody rolled back to it or when pods that were made with it are
        // left.
        let outlived = seen.applied.filter(|applied| {
            let named =
                |secret: &str| its.iter().any(|pod| !pod.has_ended() && pod.spec.secrets().any(|it| it == secret));
            applied.retired.as_ref().is_some_and(|retired| seen.secret.as_ref() != Some(retired) && !named(retired))
        });
        let connector = seen.connector.clone();
        self.know(handle.clone(), Known { connector, log, memory: seen.memory, outlived });
        observation.observed.workloads.push(Workload {
            handle,
            name: seen.name,
            connector: seen.connector,
            platform: seen.platform,
            hash: seen.hash,
            phase,
            created: seen.created,
            vitals: vitals.filter(|_| phase.is_up()),
            change: seen.change,
            troubles,
        });
    }

    /// Reads the current state of one Deployment and its pods.
    pub(super) async fn look_at(&self, handle: &Handle) -> Result<Option<Look>, OrchestratorError> {
        let Some((name, uid)) = handle.0.split_once('/') else { return Ok(None) };
        let deployment = match self.api.get::<Deployment>(Kind::Deployments, name).await {
            Ok(deployment) if deployment.metadata.uid == uid && deployment.metadata.deletion_timestamp.is_none() => {
                deployment
            }
            Ok(_) => return Ok(None),
            Err(error) if error.is_absent() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let connector = deployment.metadata.labels.get(LABEL_CONNECTOR).cloned().unwrap_or_default();
        let mut its: Vec<Pod> = Vec::new();
        let take = |listed: Listed<Pod>| match listed {
            Listed::Begun => its.clear(),
            Listed::Item(pod) => its.extend((pod.is_of(name) && !self.is_other_platforms(&pod)).then_some(pod)),
        };
        self.list_all(Kind::Pods, &format!("{LABEL_CONNECTOR}={connector}"), take).await?;
        let connector = ConnectorId::new(&connector).map_err(|invalid| OrchestratorError::Refused {
            what: format!("looking at Deployment {name}"),
            place: self.api.place.clone(),
            why: format!("its {LABEL_CONNECTOR} label cannot be used: {invalid}"),
            cure: Cure("somebody changed its labels: put them back, or delete it"),
        })?;
        let seen = Seen::of(deployment, connector, Some(self.owner.platform), true);
        let its: Vec<&Pod> = its.iter().collect();
        let Condition { phase, vitals, troubles, log } =
            condition(seen.replicas, seen.own, &its, seen.secret.as_deref(), Timestamp::now());
        let (connector, memory) = (seen.connector, seen.memory);
        self.know(handle.clone(), Known { connector, log, memory, outlived: None });
        let unseen = || Vitals { generation: Some(String::new()), ..Vitals::default() };
        let vitals = vitals.unwrap_or_else(unseen);
        Ok(Some(Look { phase, created: seen.created, vitals, environment: seen.environment, troubles }))
    }

    fn know(&self, handle: Handle, known: Known) {
        self.known().insert(handle, known);
    }

    /// Where the log of a workload is. `None` when the last look at the workload found no log.
    pub(super) fn log_source(&self, handle: &Handle) -> Option<LogSource> {
        self.known().get(handle)?.log.clone()
    }
}

fn left_words(pod: &Pod) -> String {
    let name = &pod.metadata.name;
    match (pod.metadata.deletion_timestamp, pod.metadata.owner_references.first()) {
        (Some(_), _) => format!("the pod {name} of a Deployment that is gone has not ended yet"),
        (None, Some(Owner { kind, name: owner })) => {
            format!("the pod {name} still runs without a Deployment: delete its {kind} {owner}")
        }
        (None, None) => format!("the pod {name} runs without a Deployment: delete it"),
    }
}

/// What [`Kubernetes::list_all`] hands over.
enum Listed<T> {
    /// The list begins, perhaps again. Everything that was handed over before does not count any more.
    Begun,
    Item(T),
}

/// What matters of a Deployment itself, without its pods.
struct Seen {
    name: String,
    uid: String,
    connector: ConnectorId,
    platform: Option<PlatformKind>,
    hash: Option<ConfigHash>,
    created: Timestamp,
    replicas: i64,
    change: Change,
    secret: Option<String>,
    own: Vec<Trouble>,
    drift: Option<Trouble>,
    memory: Option<String>,
    applied: Option<Applied>,
    environment: Vec<(String, Secret)>,
}

impl Seen {
    fn of(
        mut deployment: Deployment,
        connector: ConnectorId,
        platform: Option<PlatformKind>,
        needs_environment: bool,
    ) -> Self {
        let hash = hash(&deployment);
        let replicas = deployment.spec.replicas.unwrap_or(1);
        let applied = deployment.metadata.annotations.get(ANNOTATION_APPLIED).and_then(|text| decode(text).ok());
        Self {
            connector,
            platform,
            created: deployment.metadata.creation_timestamp.unwrap_or_default(),
            replicas,
            change: change(&deployment),
            secret: super::write::secret_in(&deployment),
            own: own_troubles(&deployment),
            drift: applied.as_ref().and_then(|applied| drift(&deployment, hash.as_ref(), applied)),
            environment: if needs_environment { environment(&deployment) } else { vec![] },
            applied,
            memory: deployment.metadata.annotations.remove(ANNOTATION_MEMORY),
            hash,
            name: deployment.metadata.name,
            uid: deployment.metadata.uid,
        }
    }
}

/// The hash of a Deployment, from our annotation or from the variable that the daemon sets. An incomplete Deployment
/// has an empty one, which counts as none.
fn hash(deployment: &Deployment) -> Option<ConfigHash> {
    let annotations = [&deployment.metadata, &deployment.spec.template.metadata].map(|meta| &meta.annotations);
    let variables = deployment.spec.template.spec.containers.iter().flat_map(|container| &container.env);
    let variable = || variables.clone().find(|env| env.name == VARIABLE_HASH).and_then(|env| env.value.as_ref());
    let annotation = annotations.iter().find_map(|annotations| annotations.get(ANNOTATION_HASH));
    let text = annotation.map(String::as_str).or_else(|| variable().map(Secret::expose))?;
    ConfigHash::new(text).ok()
}

/// How a Deployment can be changed. Its selector can never change, so one that does not select its pods by exactly our
/// labels has to be made anew.
fn change(deployment: &Deployment) -> Change {
    let selector = &deployment.spec.selector;
    let ours = [LABEL_MANAGER, LABEL_CONNECTOR];
    let labels = &deployment.metadata.labels;
    let exact = selector.match_expressions.is_empty()
        && selector.match_labels.len() == ours.len()
        && ours
            .iter()
            .all(|name| selector.match_labels.get(*name).is_some_and(|value| labels.get(*name) == Some(value)));
    if exact { Change::InPlace } else { Change::Recreated }
}

fn drift(deployment: &Deployment, hash: Option<&ConfigHash>, applied: &Applied) -> Option<Trouble> {
    let meta = &deployment.metadata;
    // After a pass that was cut off, the note may be about another configuration and cannot be compared.
    let same = hash.is_some_and(|hash| hash.as_str() == applied.hash);
    let now = ownership::fingerprint(&meta.managed_fields)?;
    (same && now != applied.fields).then(|| {
        let mut who = ownership::other_writers(&meta.managed_fields);
        who.sort_unstable();
        who.dedup();
        let who = if who.is_empty() { "fields were removed".to_owned() } else { format!("by {}", who.join(", ")) };
        super::trouble::trouble(TroubleKind::Drifted, who)
    })
}

fn memory(deployment: &Deployment) -> Result<Option<ConnectorMemory>, String> {
    deployment.metadata.annotations.get(ANNOTATION_MEMORY).map(|text| decode(text)).transpose()
}

/// The variables whose values are in the Deployment itself. The values in its Secret are not read.
fn environment(deployment: &Deployment) -> Vec<(String, Secret)> {
    let containers = &deployment.spec.template.spec.containers;
    let container = containers.iter().find(|container| container.name == CONTAINER).or_else(|| containers.first());
    let variables = container.map(|container| container.env.as_slice()).unwrap_or_default();
    let clear = |env: &super::objects::Env| {
        let value = env.value.as_ref().map(Secret::expose).filter(|_| env.value_from.is_none())?;
        Some((env.name.clone(), Secret::new(value.replace("$$", "$"))))
    };
    variables.iter().filter_map(clear).collect()
}

impl From<ApiError> for crate::orchestrator::StepError {
    fn from(error: ApiError) -> Self {
        match error.failure {
            Failure::Stopped => Self::Stopped("the pass ended before the API server answered"),
            _ => Self::Request(error.into()),
        }
    }
}

impl Kubernetes {
    /// Whether the image of a workload that should run cannot be pulled. Then the pull secret may be out of date.
    pub(super) fn has_pull_trouble(observation: &Observation) -> bool {
        let workloads = observation.observed.workloads.iter().filter(|workload| workload.phase != Phase::Stopped);
        workloads.flat_map(|workload| &workload.troubles).any(|trouble| trouble.kind == TroubleKind::ImagePull)
    }
}
