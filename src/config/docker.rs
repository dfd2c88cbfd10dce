//! Settings of the Docker engine and of every container on it.

use std::path::PathBuf;

use super::parse::Funnel;
use super::variables::Raw;
use crate::orchestrator::docker::{DockerSettings, Endpoint, TlsFiles};
use crate::render::PullPolicy;
use crate::render::docker::{ContainerDefaults, RestartPolicy, Ulimit};

const PREFIX: &str = "OPENCTI__DAEMON__DOCKER__";

pub(super) fn settle(raw: &Raw, funnel: &mut Funnel) -> Option<DockerSettings> {
    let endpoint = endpoint(raw, funnel);
    let policy = raw.opencti__daemon__docker__image_pull_policy.as_deref();
    let pull_policy = pull_policy(&format!("{PREFIX}IMAGE_PULL_POLICY"), policy, funnel);
    let container = container(raw, funnel);
    Some(DockerSettings { endpoint: endpoint?, pull_policy, container })
}

fn endpoint(raw: &Raw, funnel: &mut Funnel) -> Option<Endpoint> {
    let text = raw.docker_host.as_deref().unwrap_or_default().trim();
    if let Some(path) = text.strip_prefix("unix://") {
        return Some(Endpoint::Unix(path.to_owned()));
    }
    let address = ["tcp://", "http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(address) = address.map(|address| address.trim_end_matches('/')).filter(|address| !address.is_empty())
    else {
        let cure = "use unix://PATH, tcp://HOST:PORT or http://HOST:PORT; over SSH, forward the socket first (ssh -L)";
        funnel.problem("DOCKER_HOST", format!("{text:?} cannot be used"), cure);
        return None;
    };
    if raw.docker_tls_verify.is_none() && !text.starts_with("https://") {
        return Some(Endpoint::Tcp(address.to_owned(), None));
    }
    let Some(folder) = raw.docker_cert_path.as_deref().map(PathBuf::from) else {
        funnel.problem("DOCKER_CERT_PATH", "TLS is on and it is not set".to_owned(), "name the certificates' folder");
        return None;
    };
    let files = TlsFiles { ca: folder.join("ca.pem"), cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    for file in [&files.ca, &files.cert, &files.key] {
        if let Err(error) = std::fs::File::open(file) {
            let what = format!("cannot read {}: {error}", file.display());
            funnel.problem("DOCKER_CERT_PATH", what, "put ca.pem, cert.pem and key.pem there");
        }
    }
    Some(Endpoint::Tcp(address.to_owned(), Some(files)))
}

fn container(raw: &Raw, funnel: &mut Funnel) -> ContainerDefaults {
    let name = |key: &str| format!("{PREFIX}{key}");
    let text = |value: &Option<String>| value.as_deref().map(|value| value.trim().to_owned());
    ContainerDefaults {
        restart_policy: restart_policy(raw, funnel),
        memory_limit: funnel.bytes(&name("MEMORY_LIMIT"), raw.opencti__daemon__docker__memory_limit.as_deref()),
        cpu_limit: cpu_limit(raw, funnel),
        network_mode: text(&raw.opencti__daemon__docker__network_mode),
        extra_hosts: funnel.list(&name("EXTRA_HOSTS"), raw.opencti__daemon__docker__extra_hosts.as_deref()),
        dns: funnel.list(&name("DNS"), raw.opencti__daemon__docker__dns.as_deref()),
        dns_search: funnel.list(&name("DNS_SEARCH"), raw.opencti__daemon__docker__dns_search.as_deref()),
        privileged: raw
            .opencti__daemon__docker__privileged
            .as_deref()
            .map(|text| funnel.flag(&name("PRIVILEGED"), Some(text))),
        cap_add: funnel.list(&name("CAP_ADD"), raw.opencti__daemon__docker__cap_add.as_deref()),
        cap_drop: funnel.list(&name("CAP_DROP"), raw.opencti__daemon__docker__cap_drop.as_deref()),
        security_opt: funnel.list(&name("SECURITY_OPT"), raw.opencti__daemon__docker__security_opt.as_deref()),
        userns_mode: text(&raw.opencti__daemon__docker__userns_mode),
        pid_mode: text(&raw.opencti__daemon__docker__pid_mode),
        ipc_mode: text(&raw.opencti__daemon__docker__ipc_mode),
        uts_mode: text(&raw.opencti__daemon__docker__uts_mode),
        runtime: text(&raw.opencti__daemon__docker__runtime),
        shm_size: funnel.bytes(&name("SHM_SIZE"), raw.opencti__daemon__docker__shm_size.as_deref()),
        sysctls: funnel.map(&name("SYSCTLS"), raw.opencti__daemon__docker__sysctls.as_deref()),
        ulimits: ulimits(raw, funnel),
    }
}

fn restart_policy(raw: &Raw, funnel: &mut Funnel) -> RestartPolicy {
    let text = raw.opencti__daemon__docker__restart_policy.as_deref().unwrap_or_default().trim();
    let policy = match text {
        "no" => Some(RestartPolicy::No),
        "always" => Some(RestartPolicy::Always),
        "unless-stopped" => Some(RestartPolicy::UnlessStopped),
        "on-failure" => Some(RestartPolicy::OnFailure(0)),
        other => other
            .strip_prefix("on-failure:")
            .and_then(|count| count.parse().ok())
            .filter(|count| *count >= 0)
            .map(RestartPolicy::OnFailure),
    };
    policy.unwrap_or_else(|| {
        let cure = "use no, always, unless-stopped, on-failure or on-failure:N";
        funnel.problem(&format!("{PREFIX}RESTART_POLICY"), format!("{text:?} is no restart policy"), cure);
        RestartPolicy::UnlessStopped
    })
}

/// Cores to billionths of a core.
fn cpu_limit(raw: &Raw, funnel: &mut Funnel) -> Option<i64> {
    let text = raw.opencti__daemon__docker__cpu_limit.as_deref()?.trim();
    match text.parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the range")]
        Ok(cores) if (0.001..=1024.0).contains(&cores) => Some((cores * 1e9).round() as i64),
        _ => {
            funnel.problem(&format!("{PREFIX}CPU_LIMIT"), format!("{text:?} is no number of cores"), "use such as 0.5");
            None
        }
    }
}

fn ulimits(raw: &Raw, funnel: &mut Funnel) -> Option<Vec<Ulimit>> {
    let text = raw.opencti__daemon__docker__ulimits.as_deref()?.trim();
    let limits: Option<Vec<Ulimit>> = if text.starts_with('[') {
        serde_json::from_str(text).ok()
    } else {
        let one = |item: &str| {
            let (name, values) = item.trim().split_once('=')?;
            let (soft, hard) = values.split_once(':').unwrap_or((values, values));
            Some(Ulimit {
                name: name.trim().to_owned(),
                soft: soft.trim().parse().ok()?,
                hard: hard.trim().parse().ok()?,
            })
        };
        text.split(',').map(one).collect()
    };
    if limits.is_none() {
        let cure = "use nofile=1024:2048 or [{\"name\":\"nofile\",\"soft\":1024,\"hard\":2048}]";
        funnel.problem(&format!("{PREFIX}ULIMITS"), "it is no list of limits".to_owned(), cure);
    }
    limits
}

pub(super) fn pull_policy(variable: &str, text: Option<&str>, funnel: &mut Funnel) -> Option<PullPolicy> {
    match text?.trim().to_ascii_lowercase().as_str() {
        "always" => Some(PullPolicy::Always),
        "ifnotpresent" => Some(PullPolicy::IfNotPresent),
        "never" => Some(PullPolicy::Never),
        other => {
            funnel.problem(variable, format!("{other:?} is no policy"), "use Always, IfNotPresent or Never");
            None
        }
    }
}
