//! A connector's spec as a Docker container. Pure.

use bollard::models::{ContainerCreateBody, HostConfig, ResourcesUlimits, RestartPolicyNameEnum};

use crate::config::{ContainerDefaults, RestartPolicy};
use crate::render::Spec;

/// The body that creates the container.
#[must_use]
pub fn container(spec: &Spec, defaults: &ContainerDefaults) -> ContainerCreateBody {
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
            let limit = |limit: crate::config::Ulimit| ResourcesUlimits {
                name: Some(limit.name),
                soft: Some(limit.soft),
                hard: Some(limit.hard),
            };
            limits.into_iter().map(limit).collect()
        }),
        ..Default::default()
    }
}

fn restart_policy(policy: RestartPolicy) -> bollard::models::RestartPolicy {
    let (name, count) = match policy {
        RestartPolicy::No => (RestartPolicyNameEnum::NO, None),
        RestartPolicy::Always => (RestartPolicyNameEnum::ALWAYS, None),
        RestartPolicy::UnlessStopped => (RestartPolicyNameEnum::UNLESS_STOPPED, None),
        RestartPolicy::OnFailure(count) => (RestartPolicyNameEnum::ON_FAILURE, Some(count)),
    };
    bollard::models::RestartPolicy { name: Some(name), maximum_retry_count: count }
}
