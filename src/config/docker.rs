//! Settings of the Docker engine and of every container on it.

use std::path::PathBuf;

use super::Notice;
use super::lane::LaneInput;
use super::parse::FieldParser;
use crate::orchestrator::docker::{DockerSettings, Endpoint, TlsFiles};
use crate::render::PullPolicy;
use crate::render::docker::{ContainerDefaults, RestartPolicy, Ulimit};

const GROUP: &str = "DAEMON__DOCKER__";

pub(super) fn settle(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<DockerSettings> {
    let endpoint = endpoint(lane, fields);
    let policy = lane.texts.daemon__docker__image_pull_policy.as_deref();
    let pull_policy = pull_policy(&lane.name(GROUP, "IMAGE_PULL_POLICY"), policy, fields);
    let container = container(lane, fields);
    Some(DockerSettings { endpoint: endpoint?, pull_policy, container })
}

fn endpoint(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<Endpoint> {
    let text = lane.process.docker_host.as_deref().unwrap_or_default().trim();
    if let Some(path) = text.strip_prefix("unix://") {
        return Some(Endpoint::Unix(path.to_owned()));
    }
    let address = ["tcp://", "http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let Some(address) = address.map(|address| address.trim_end_matches('/')).filter(|address| !address.is_empty())
    else {
        let cure = "use unix://PATH, tcp://HOST:PORT or http://HOST:PORT; over SSH, forward the socket first (ssh -L)";
        fields.problem("DOCKER_HOST", format!("{text:?} cannot be used"), cure);
        return None;
    };
    if lane.process.docker_tls_verify.is_none() && !text.starts_with("https://") {
        return Some(Endpoint::Tcp(address.to_owned(), None));
    }
    let Some(folder) = lane.process.docker_cert_path.as_deref().map(PathBuf::from) else {
        fields.problem("DOCKER_CERT_PATH", "TLS is on and it is not set".to_owned(), "name the certificates' folder");
        return None;
    };
    let files = TlsFiles { ca: folder.join("ca.pem"), cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    for file in [&files.ca, &files.cert, &files.key] {
        if let Err(error) = std::fs::File::open(file) {
            let what = format!("cannot read {}: {error}", file.display());
            fields.problem("DOCKER_CERT_PATH", what, "put ca.pem, cert.pem and key.pem there");
        }
    }
    Some(Endpoint::Tcp(address.to_owned(), Some(files)))
}

fn container(lane: &LaneInput<'_>, fields: &mut FieldParser) -> ContainerDefaults {
    let name = |key: &str| lane.name(GROUP, key);
    let text = |value: &Option<String>| value.as_deref().map(|value| value.trim().to_owned());
    ContainerDefaults {
        restart_policy: restart_policy(lane, fields),
        memory_limit: fields.bytes(&name("MEMORY_LIMIT"), lane.texts.daemon__docker__memory_limit.as_deref()),
        cpu_limit: cpu_limit(lane, fields),
        network_mode: text(&lane.texts.daemon__docker__network_mode),
        extra_hosts: fields.list(&name("EXTRA_HOSTS"), lane.texts.daemon__docker__extra_hosts.as_deref()),
        dns: fields.list(&name("DNS"), lane.texts.daemon__docker__dns.as_deref()),
        dns_search: fields.list(&name("DNS_SEARCH"), lane.texts.daemon__docker__dns_search.as_deref()),
        privileged: lane
            .texts
            .daemon__docker__privileged
            .as_deref()
            .map(|text| fields.flag(&name("PRIVILEGED"), Some(text))),
        cap_add: fields.list(&name("CAP_ADD"), lane.texts.daemon__docker__cap_add.as_deref()),
        cap_drop: fields.list(&name("CAP_DROP"), lane.texts.daemon__docker__cap_drop.as_deref()),
        security_opt: fields.list(&name("SECURITY_OPT"), lane.texts.daemon__docker__security_opt.as_deref()),
        userns_mode: text(&lane.texts.daemon__docker__userns_mode),
        pid_mode: text(&lane.texts.daemon__docker__pid_mode),
        ipc_mode: text(&lane.texts.daemon__docker__ipc_mode),
        uts_mode: text(&lane.texts.daemon__docker__uts_mode),
        runtime: text(&lane.texts.daemon__docker__runtime),
        shm_size: fields.bytes(&name("SHM_SIZE"), lane.texts.daemon__docker__shm_size.as_deref()),
        sysctls: fields.map(&name("SYSCTLS"), lane.texts.daemon__docker__sysctls.as_deref()),
        ulimits: ulimits(lane, fields),
    }
}

fn restart_policy(lane: &LaneInput<'_>, fields: &mut FieldParser) -> RestartPolicy {
    let text = lane.texts.daemon__docker__restart_policy.as_deref().unwrap_or_default().trim();
    let policy = match text {
        "no" => Some(RestartPolicy::No),
        "always" => {
            let message = format!(
                "{}=always counts as unless-stopped: with always, the engine would start a container that a pass has stopped when the engine itself restarts, so that two of one connector could run",
                lane.name(GROUP, "RESTART_POLICY")
            );
            fields.notices.push(Notice::info(message));
            Some(RestartPolicy::UnlessStopped)
        }
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
        fields.problem(&lane.name(GROUP, "RESTART_POLICY"), format!("{text:?} is no restart policy"), cure);
        RestartPolicy::UnlessStopped
    })
}

/// The CPU limit, converted from cores to billionths of a core.
fn cpu_limit(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<i64> {
    let text = lane.texts.daemon__docker__cpu_limit.as_deref()?.trim();
    match text.parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the range")]
        Ok(cores) if (0.001..=1024.0).contains(&cores) => Some((cores * 1e9).round() as i64),
        _ => {
            fields.problem(
                &lane.name(GROUP, "CPU_LIMIT"),
                format!("{text:?} is no number of cores"),
                "use such as 0.5",
            );
            None
        }
    }
}

fn ulimits(lane: &LaneInput<'_>, fields: &mut FieldParser) -> Option<Vec<Ulimit>> {
    let text = lane.texts.daemon__docker__ulimits.as_deref()?.trim();
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
        fields.problem(&lane.name(GROUP, "ULIMITS"), "it is no list of limits".to_owned(), cure);
    }
    limits
}

pub(super) fn pull_policy(variable: &str, text: Option<&str>, fields: &mut FieldParser) -> Option<PullPolicy> {
    match text?.trim().to_ascii_lowercase().as_str() {
        "always" => Some(PullPolicy::Always),
        "ifnotpresent" => Some(PullPolicy::IfNotPresent),
        "never" => Some(PullPolicy::Never),
        other => {
            fields.problem(variable, format!("{other:?} is no policy"), "use Always, IfNotPresent or Never");
            None
        }
    }
}
