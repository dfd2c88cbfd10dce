//! `check`: can a pass work? A table of green and red lines; nothing is written anywhere.

use std::io::IsTerminal;
use std::sync::Arc;

use crate::cli::Output;
use crate::config::{ConfigError, Settings};
use crate::desired::{self, Desired};
use crate::exit;
use crate::memory::Memory;
use crate::model::{PlatformKind, VariableValue};
use crate::orchestrator::docker::Docker;
use crate::orchestrator::kubernetes::Kubernetes;
use crate::orchestrator::{Orchestrator, OrchestratorError, OrchestratorSettings};
use crate::platform::{Need, Platform, PlatformError, Registrant, connect, envelope};
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, on_one_line, printable};
use crate::stop::{Cause, Stop};
use serde::Serialize;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    verdict: Verdict,
    what: &'static str,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Bad,
    /// Could not be told, or deserves a look.
    Open,
}

#[derive(Default)]
struct Lines(Vec<Line>, Vec<u8>);

impl Lines {
    fn good(&mut self, what: &'static str, detail: impl Into<String>) {
        self.0.push(Line { verdict: Verdict::Good, what, detail: detail.into() });
    }

    fn open(&mut self, what: &'static str, detail: impl Into<String>) {
        self.0.push(Line { verdict: Verdict::Open, what, detail: detail.into() });
    }

    fn bad(&mut self, what: &'static str, code: u8, detail: String) {
        self.0.push(Line { verdict: Verdict::Bad, what, detail });
        self.1.push(code);
    }

    fn orchestrator(&mut self, what: &'static str, error: &OrchestratorError) {
        self.bad(what, exit::ORCHESTRATOR, format!("{error}; {}", error.cure()));
    }

    fn platform(&mut self, what: &'static str, kind: PlatformKind, error: &PlatformError) {
        self.bad(what, exit::PLATFORM, format!("{error}; {}", error.cure().on(kind)));
    }
}

/// The lines for a configuration that cannot be used.
pub(crate) fn configuration_problems(error: &ConfigError) -> Vec<Line> {
    let line = |problem: &crate::config::Problem| Line {
        verdict: Verdict::Bad,
        what: "configuration",
        detail: problem.to_string(),
    };
    error.0.iter().map(line).collect()
}

/// Looks at everything that a pass needs. Gives the lines and the exit code that a pass would have for the gravest.
pub(crate) async fn check(settings: Arc<Settings>, stop: &Stop) -> (Vec<Line>, u8) {
    let mut lines = Lines::default();
    lines.good("configuration", format!("manager {} ({})", settings.manager.id, settings.manager.name));
    for notice in &settings.notices {
        lines.open("configuration", notice.message.clone());
    }
    let key = &settings.manager.key;
    lines.good("key", format!("RSA {}, fingerprint {}", key.modulus_bytes() * 8, key.fingerprint));
    tokio::select! {
        biased;
        () = both_sides(&settings, stop, &mut lines) => {}
        () = stop.stopped() => {
            let cause = stop.cause().unwrap_or(Cause::Deadline);
            lines.bad("check", cause.exit_code(), format!("ended early: {}", cause.as_str()));
        }
    }
    let code = exit::worst(lines.1.iter().copied());
    (lines.0, code)
}

async fn both_sides(settings: &Arc<Settings>, stop: &Stop, lines: &mut Lines) {
    let platform = connect(&settings.lanes[0].platform, &settings.manager, 1, stop.clone());
    let asked = tokio::task::spawn_blocking({
        let settings = Arc::clone(settings);
        move || ask(platform.as_ref(), &settings)
    });
    let mut desired = Desired::default();
    match asked.await {
        Ok((asked, listed)) => {
            lines.0.extend(asked.0);
            lines.1.extend(asked.1);
            desired = listed;
        }
        Err(lost) => lines.bad("platform", exit::PLATFORM, lost.to_string()),
    }
    orchestrator(settings, &desired, stop, lines).await;
}

/// Everything about the platform. Blocks its thread.
fn ask(platform: &dyn Platform, settings: &Settings) -> (Lines, Desired) {
    let mut lines = Lines::default();
    match platform.version() {
        Ok(version) => {
            lines.good("platform", format!("{} version {version}", platform.url()));
            lines.good("token", "accepted");
        }
        Err(error) => {
            let what = if matches!(error, PlatformError::TokenRefused { .. }) { "token" } else { "platform" };
            lines.platform(what, platform.kind(), &error);
            return (lines, Desired::default());
        }
    }
    capabilities(platform, &mut lines);
    registration(platform, &mut lines);
    let desired = match platform.pull() {
        Ok(listing) => desired::read(listing),
        Err(error) => {
            lines.platform("connectors", platform.kind(), &error);
            return (lines, Desired::default());
        }
    };
    let notice = platform.listing_notice().map_or(String::new(), |notice| format!(" ({notice})"));
    lines.good("connectors", format!("{} listed{notice}", desired.listed()));
    for rejected in desired.rejected.values() {
        let detail = format!("{} ({}): {}", rejected.title, rejected.id, rejected.reason);
        lines.bad("connectors", exit::CONNECTOR_FAILED, detail);
    }
    for why in &desired.unidentified {
        lines.bad("connectors", exit::CONNECTOR_FAILED, why.clone());
    }
    decryption(&desired, settings, &mut lines);
    (lines, desired)
}

fn capabilities(platform: &dyn Platform, lines: &mut Lines) {
    match platform.capabilities() {
        Ok(Some(capabilities)) => {
            for capability in capabilities {
                let name = capability.name;
                match capability.need {
                    _ if capability.granted => lines.good("capability", name),
                    Need::Useful { without } => lines.open("capability", format!("{name} is missing: {without}")),
                    Need::Always => {
                        let detail = format!("{name} is missing; give it to the role of the token's user");
                        lines.bad("capability", exit::PLATFORM, detail);
                    }
                }
            }
        }
        Ok(None) => lines.open("capability", "this platform does not tell the capabilities of the token's user"),
        Err(error) => lines.platform("capability", platform.kind(), &error),
    }
}

fn registration(platform: &dyn Platform, lines: &mut Lines) {
    // `check` reads no memory, so it speaks as a manager that was never registered.
    match platform.registrant(false) {
        Ok(Registrant::Nobody) => lines.good("registration", "no manager yet; the first pass registers"),
        Ok(Registrant::Ours) => lines.good("registration", "this manager is registered"),
        Ok(Registrant::Other(other)) => {
            let cure = "set MANAGER__ID to its id to take its place";
            lines.bad("registration", exit::PLATFORM, format!("the platform has {other} already; {cure}"));
        }
        Ok(Registrant::Unknown(why)) => lines.open("registration", why),
        Err(error) => lines.platform("registration", platform.kind(), &error),
    }
}

/// Opens one envelope, the first there is.
fn decryption(desired: &Desired, settings: &Settings, lines: &mut Lines) {
    let mut envelopes = desired.connectors.values().flat_map(|connector| {
        connector.variables.iter().filter_map(move |variable| match &variable.value {
            VariableValue::Encrypted(envelope) => Some((connector, &variable.name, envelope)),
            VariableValue::Clear(_) => None,
        })
    });
    let Some((connector, name, envelope)) = envelopes.next() else {
        lines.open("decryption", "no connector has a secret yet, so there is nothing to try the key on");
        return;
    };
    match envelope::open(&settings.manager.key, envelope) {
        Ok(_) => lines.good("decryption", format!("{name} of {} opens with this key", connector.title)),
        Err(error) => {
            let detail = format!("{name} of {}: {error}", connector.title);
            lines.bad("decryption", exit::CONNECTOR_FAILED, detail);
        }
    }
}

async fn orchestrator(settings: &Settings, desired: &Desired, stop: &Stop, lines: &mut Lines) {
    let owner = crate::orchestrator::Owner {
        manager: settings.manager.id.clone(),
        platform: crate::model::PlatformKind::OpenCti,
    };
    match &settings.lanes[0].orchestrator {
        OrchestratorSettings::Docker(docker) => {
            let connecting = Docker::connect(
                docker,
                owner,
                &settings.lanes[0].registry,
                settings.limits.concurrency,
                Arc::new(Progress::nowhere()),
            );
            look_around("engine", "containers", connecting.await, settings, desired, lines).await;
        }
        OrchestratorSettings::Kubernetes(kubernetes) => {
            let connecting =
                Kubernetes::connect(kubernetes, owner, &settings.lanes[0].registry, settings.limits.concurrency, stop);
            look_around("cluster", "Deployments", connecting.await, settings, desired, lines).await;
        }
    }
}

async fn look_around<O: Orchestrator>(
    what: &'static str,
    workloads: &str,
    connected: Result<O, OrchestratorError>,
    settings: &Settings,
    desired: &Desired,
    lines: &mut Lines,
) {
    let orchestrator = match connected {
        Ok(orchestrator) => orchestrator,
        Err(error) => return lines.orchestrator(what, &error),
    };
    lines.good(what, format!("{} at {}", orchestrator.description(), settings.lanes[0].orchestrator.place()));
    match orchestrator.permissions().await {
        Ok(permissions) => {
            let (granted, missing): (Vec<_>, Vec<_>) =
                permissions.into_iter().partition(|permission| permission.granted);
            for permission in &missing {
                let detail = format!("may not {}; the Role in deploy/kubernetes grants it", permission.what);
                lines.bad("permission", exit::ORCHESTRATOR, detail);
            }
            if missing.is_empty() && !granted.is_empty() {
                lines.good("permission", format!("all {} that a pass needs", granted.len()));
            }
        }
        Err(error) => lines.orchestrator("permission", &error),
    }
    if let Err(error) = orchestrator.recall().await {
        return lines.orchestrator(what, &error);
    }
    match orchestrator.observe(desired, &Memory::default()).await {
        Ok(seen) => lines.good(what, format!("{} {workloads} of this manager", seen.observed.workloads.len())),
        Err(error) => lines.orchestrator(what, &error),
    }
}

/// The lines as a table or as one JSON document.
pub(crate) fn render(lines: &[Line], command: &str, code: u8, output: Output) -> String {
    match output {
        Output::Table => table(lines),
        Output::Json => {
            let document = serde_json::json!({ "schema_version": SCHEMA_VERSION, "command": command, "exit_code": code, "checks": lines });
            format!("{document:#}\n")
        }
    }
}

/// Coloured on a terminal.
fn table(lines: &[Line]) -> String {
    let colour = std::io::stdout().is_terminal();
    let mut text = String::new();
    for line in lines {
        let (word, code) = match line.verdict {
            Verdict::Good => ("ok  ", 32),
            Verdict::Bad => ("FAIL", 31),
            Verdict::Open => ("note", 33),
        };
        let word = if colour { format!("\u{1b}[{code}m{word}\u{1b}[0m") } else { word.to_owned() };
        text.push_str(&format!("{word}  {:<13}  {}\n", line.what, printable(&on_one_line(&line.detail))));
    }
    text
}
