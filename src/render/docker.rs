//! Turns a connector's spec into a Docker container. Pure.

use bollard::models::{ContainerCreateBody, HostConfig, ResourcesUlimits, RestartPolicyNameEnum};

use serde::Deserialize;

use crate::render::Spec;

/// What the engine does when a container ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// It is not started again.
    No,
    /// It is started again unless somebody stopped it.
    UnlessStopped,
    /// It is started again after a failure, at most this often; 0 means without limit.
    OnFailure(i64),
}

/// One resource limit of a process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ulimit {
    /// The resource, as in `ulimit`: `nofile`, `nproc` and so on.
    pub name: String,
    /// The limit that applies. The process can raise it up to `hard`.
    pub soft: i64,
    /// The highest limit that the process can set for itself.
    pub hard: i64,
}

/// What every container gets. These are the daemon's docker keys, documented where the variables are declared.
/// `None` means the engine's default.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented where the variables are declared")]
pub struct ContainerDefaults {
    pub restart_policy: RestartPolicy,
    pub memory_limit: Option<i64>,
    /// Billionths of a core.
    pub cpu_limit: Option<i64>,
    pub network_mode: Option<String>,
    pub extra_hosts: Option<Vec<String>>,
    pub dns: Option<Vec<String>>,
    pub dns_search: Option<Vec<String>>,
    pub privileged: Option<bool>,
    pub cap_add: Option<Vec<String>>,
    pub cap_drop: Option<Vec<String>>,
    pub security_opt: Option<Vec<String>>,
    pub userns_mode: Option<String>,
    pub pid_mode: Option<String>,
    pub ipc_mode: Option<String>,
    pub uts_mode: Option<String>,
    pub runtime: Option<String>,
    pub shm_size: Option<i64>,
    pub sysctls: Option<Vec<(String, String)>>,
    pub ulimits: Option<Vec<Ulimit>>,
}

/// The body of the request that creates the container.
#[must_use]
pub(crate) fn container(spec: &Spec, defaults: &ContainerDefaults) -> ContainerCreateBody {
    let environment = spec.environment.iter().map(|variable| format!("{}={}", variable.name, variable.value.expose()));
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        env: Some(environment.collect()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        host_config: Some(host_config(defaults)),
        ..Default::default()
    }
}

fn host_config(defaults: &ContainerDefaults) -> HostConfig {
    let defaults = defaults.clone();
    HostConfig {
        restart_policy: Some(restart_policy(defaults.restart_policy)),
        memory: defaults.memory_limit,
        nano_cpus: defaults.cpu_limit,
        network_mode: defaults.network_mode,
        extra_hosts: defaults.extra_hosts,
        dns: defaults.dns,
        dns_search: defaults.dns_search,
        privileged: defaults.privileged,
        cap_add: defaults.cap_add,
        cap_drop: defaults.cap_drop,
        security_opt: defaults.security_opt,
        userns_mode: defaults.userns_mode,
        pid_mode: defaults.pid_mode,
        ipc_mode: defaults.ipc_mode,
        uts_mode: defaults.uts_mode,
        runtime: defaults.runtime,
        shm_size: defaults.shm_size,
        sysctls: defaults.sysctls.map(|pairs| pairs.into_iter().collect()),
        ulimits: defaults.ulimits.map(|limits| {
            let limit = |limit: Ulimit| ResourcesUlimits {
                name: Some(limit.name),
                soft: Some(limit.soft),
                hard: Some(limit.hard),
            };
            limits.into_iter().map(limit).collect()
        }),
        ..Default::default()
    }
}

/// The policy as the engine wants it.
pub(crate) fn restart_policy(policy: RestartPolicy) -> bollard::models::RestartPolicy {
    let (name, count) = match policy {
        RestartPolicy::No => (RestartPolicyNameEnum::NO, None),
        RestartPolicy::UnlessStopped => (RestartPolicyNameEnum::UNLESS_STOPPED, None),
        RestartPolicy::OnFailure(count) => (RestartPolicyNameEnum::ON_FAILURE, Some(count)),
    };
    bollard::models::RestartPolicy { name: Some(name), maximum_retry_count: count }
}
