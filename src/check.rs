//! The command `check`, which finds out whether a pass can work. Its table has green and red lines for every lane. It
//! writes nothing anywhere.

mod xtm_one;

use std::io::IsTerminal;
use std::sync::Arc;

use serde::Serialize;

use crate::cli::Output;
use crate::config::{ConfigError, Settings};
use crate::desired::{self, Desired};
use crate::exit;
use crate::manager::Manager;
use crate::memory::Memory;
use crate::model::{PlatformKind, VariableValue};
use crate::orchestrator::docker::Docker;
use crate::orchestrator::kubernetes::Kubernetes;
use crate::orchestrator::{Orchestrator, OrchestratorError, OrchestratorSettings, Owner};
use crate::pass::lane::LaneSettings;
use crate::platform::{self, Capability, Need, Platform, PlatformError, Registrant, envelope};
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, columns, on_one_line, printable};
use crate::stop::{Cause, Stop};

/// The result of one check.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// `None` for a check that concerns all lanes.
    lane: Option<PlatformKind>,
    verdict: Verdict,
    what: &'static str,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Bad,
    /// The result is unknown, or an operator should look at it.
    Open,
}

/// The lines about one lane or about all, and the exit codes that a pass would have for the bad ones.
struct Lines {
    lane: Option<PlatformKind>,
    said: Vec<Line>,
    codes: Vec<u8>,
}

impl Lines {
    fn about(lane: Option<PlatformKind>) -> Self {
        Self { lane, said: vec![], codes: vec![] }
    }

    fn push(&mut self, verdict: Verdict, what: &'static str, detail: String) {
        self.said.push(Line { lane: self.lane, verdict, what, detail });
    }

    fn good(&mut self, what: &'static str, detail: impl Into<String>) {
        self.push(Verdict::Good, what, detail.into());
    }

    fn open(&mut self, what: &'static str, detail: impl Into<String>) {
        self.push(Verdict::Open, what, detail.into());
    }

    fn bad(&mut self, what: &'static str, code: u8, detail: String) {
        self.push(Verdict::Bad, what, detail);
        self.codes.push(code);
    }

    fn orchestrator(&mut self, what: &'static str, error: &OrchestratorError) {
        let cure = self.lane.map(|lane| error.cure().on(lane)).unwrap_or_default();
        self.bad(what, exit::ORCHESTRATOR, format!("{error}; {cure}"));
    }

    fn platform(&mut self, what: &'static str, error: &PlatformError) {
        let cure = self.lane.map(|lane| error.cure().on(lane)).unwrap_or_default();
        self.bad(what, exit::PLATFORM, format!("{error}; {cure}"));
    }

    fn extend(&mut self, other: Self) {
        self.said.extend(other.said);
        self.codes.extend(other.codes);
    }
}

/// The lines for a configuration that cannot be used.
pub(crate) fn configuration_problems(error: &ConfigError) -> Vec<Line> {
    let mut lines = Lines::about(None);
    for problem in &error.0 {
        lines.push(Verdict::Bad, "configuration", problem.to_string());
    }
    lines.said
}

/// Checks everything that a pass needs. Returns the lines and the gravest of the exit codes that a pass would have for
/// them.
pub(crate) async fn check(settings: Settings, stop: &Stop) -> (Vec<Line>, u8) {
    let Settings { manager, limits, lanes, notices, .. } = settings;
    let mut lines = Lines::about(None);
    lines.good("configuration", format!("manager {} ({})", manager.id, manager.name));
    for notice in notices {
        lines.open("configuration", notice.message);
    }
    let key = &manager.key;
    lines.good("key", format!("RSA {}, fingerprint {}", key.modulus_bytes() * 8, key.fingerprint));
    let manager = Arc::new(manager);
    let looking = lanes.into_iter().map(|settings| lane(Arc::clone(&manager), settings, limits.concurrency, stop));
    for looked in futures_util::future::join_all(looking).await {
        lines.extend(looked);
    }
    let code = exit::worst(lines.codes.iter().copied());
    (lines.said, code)
}

async fn lane(manager: Arc<Manager>, settings: LaneSettings, concurrency: usize, stop: &Stop) -> Lines {
    let kind = settings.platform.kind;
    let mut lines = Lines::about(Some(kind));
    tokio::select! {
        biased;
        () = both_sides(&manager, &settings, concurrency, stop, &mut lines) => {}
        () = stop.stopped() => {
            let cause = stop.cause().unwrap_or(Cause::Deadline);
            lines.bad("check", cause.exit_code(), format!("ended early: {}", cause.as_str()));
        }
    }
    lines
}

async fn both_sides(
    manager: &Arc<Manager>,
    settings: &LaneSettings,
    concurrency: usize,
    stop: &Stop,
    lines: &mut Lines,
) {
    let owner = Owner { manager: manager.id.clone(), platform: settings.platform.kind };
    let registry = &settings.registry;
    match &settings.orchestrator {
        OrchestratorSettings::Docker(docker) => {
            let progress = Arc::new(Progress::nowhere());
            let connected = Docker::connect(docker, owner, registry, concurrency, progress, stop).await;
            sides_on(("engine", "containers"), connected, manager, settings, stop, lines).await;
        }
        OrchestratorSettings::Kubernetes(kubernetes) => {
            let connected = Kubernetes::connect(kubernetes, owner, registry, concurrency, stop).await;
            sides_on(("cluster", "Deployments"), connected, manager, settings, stop, lines).await;
        }
    }
}

async fn sides_on<O: Orchestrator>(
    words: (&'static str, &'static str),
    connected: Result<O, OrchestratorError>,
    manager: &Arc<Manager>,
    settings: &LaneSettings,
    stop: &Stop,
    lines: &mut Lines,
) {
    // Whether the last pass registered decides what another manager's place means, as it does in a pass.
    let recalled = match &connected {
        Ok(orchestrator) => orchestrator.recall().await.ok(),
        Err(_) => None,
    };
    let remembered = recalled.is_some_and(|recalled| recalled.memory.registration.is_some());
    let platform = platform::connect(&settings.platform, manager, 1, stop.clone());
    let asked = tokio::task::spawn_blocking({
        let (manager, stop, registration) = (Arc::clone(manager), stop.clone(), settings.xtm_one.clone());
        move || {
            let (mut lines, version, desired) = ask(platform.as_ref(), &manager, remembered);
            if let Some(settings) = registration {
                xtm_one::check(&settings, platform.as_ref(), version.as_deref(), &stop, &mut lines);
            }
            (lines, desired)
        }
    });
    let mut desired = Desired::default();
    match asked.await {
        Ok((asked, listed)) => {
            lines.extend(asked);
            desired = listed;
        }
        Err(lost) => lines.bad("platform", exit::PLATFORM, lost.to_string()),
    }
    look_around(words, connected, &settings.orchestrator.place(), &desired, lines).await;
}

/// Checks everything about the platform. Blocks its thread.
fn ask(platform: &dyn Platform, manager: &Manager, remembered: bool) -> (Lines, Option<String>, Desired) {
    let mut lines = Lines::about(Some(platform.kind()));
    let version = match platform.version() {
        Ok(version) => {
            lines.good("platform", format!("{} version {version}", platform.url()));
            lines.good("token", "accepted");
            version
        }
        Err(error) => {
            let what = if matches!(error, PlatformError::TokenRefused { .. }) { "token" } else { "platform" };
            lines.platform(what, &error);
            return (lines, None, Desired::default());
        }
    };
    let desired = connectors(platform, manager, remembered, &mut lines);
    (lines, Some(version), desired)
}

/// Checks everything that leads to the list of connectors.
fn connectors(platform: &dyn Platform, manager: &Manager, remembered: bool, lines: &mut Lines) -> Desired {
    capabilities(platform, lines);
    if !registration(platform, remembered, lines) {
        return Desired::default();
    }
    let desired = match platform.pull() {
        Ok(listing) => desired::read(listing),
        Err(error) => {
            lines.platform("connectors", &error);
            return Desired::default();
        }
    };
    let notice = platform.listing_notice().map(|notice| format!(" ({notice})")).unwrap_or_default();
    lines.good("connectors", format!("{} listed{notice}", desired.listed()));
    for rejected in desired.rejected.values() {
        let detail = format!("{} ({}): {}", rejected.title, rejected.id, rejected.reason);
        lines.bad("connectors", exit::CONNECTOR_FAILED, detail);
    }
    for why in &desired.unidentified {
        lines.bad("connectors", exit::CONNECTOR_FAILED, why.clone());
    }
    decryption(&desired, manager, lines);
    desired
}

fn capabilities(platform: &dyn Platform, lines: &mut Lines) {
    match platform.capabilities() {
        Ok(Some(capabilities)) => {
            for Capability { name, granted, need } in capabilities {
                match need {
                    _ if granted => lines.good("capability", name),
                    Need::Always => {
                        let cure = "give it to the role of the token's user";
                        lines.bad("capability", exit::PLATFORM, format!("{name} is missing; {cure}"));
                    }
                    Need::Useful { without } => {
                        lines.open("capability", format!("{name} is missing: {without}; a pass works without"));
                    }
                }
            }
        }
        Ok(None) => lines.open("capability", "this platform does not tell the capabilities of the token's user"),
        Err(error) => lines.platform("capability", &error),
    }
}

/// Checks the registration. False when the platform gives no list before a pass has registered.
fn registration(platform: &dyn Platform, remembered: bool, lines: &mut Lines) -> bool {
    match platform.registrant(remembered) {
        Ok(Registrant::Nobody) => {
            lines.good("registration", "no manager yet; the first pass registers");
            return !platform.lists_for_registered_only();
        }
        Ok(Registrant::Ours) => lines.good("registration", "this manager is registered"),
        Ok(Registrant::Other { who, cure }) => {
            let cure = cure.on(platform.kind());
            let detail = format!("the platform has {who} already and accepts one only; {cure}");
            lines.bad("registration", exit::PLATFORM, detail);
            return !platform.lists_for_registered_only();
        }
        Ok(Registrant::Unknown(why)) => lines.open("registration", why),
        Err(error) => {
            lines.platform("registration", &error);
            return !platform.lists_for_registered_only();
        }
    }
    true
}

/// Checks the key by opening the first envelope that there is.
fn decryption(desired: &Desired, manager: &Manager, lines: &mut Lines) {
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
    match envelope::open(&manager.key, envelope) {
        Ok(_) => lines.good("decryption", format!("{name} of {} opens with this key", connector.title)),
        Err(error) => {
            let detail = format!("{name} of {}: {error}", connector.title);
            lines.bad("decryption", exit::CONNECTOR_FAILED, detail);
        }
    }
}

async fn look_around<O: Orchestrator>(
    (what, workloads): (&'static str, &'static str),
    connected: Result<O, OrchestratorError>,
    place: &str,
    desired: &Desired,
    lines: &mut Lines,
) {
    let orchestrator = match connected {
        Ok(orchestrator) => orchestrator,
        Err(error) => return lines.orchestrator(what, &error),
    };
    lines.good(what, format!("{} at {place}", orchestrator.description()));
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
    match orchestrator.observe(desired, &Memory::default(), &|_, _| ()).await {
        Ok(seen) => lines.good(what, format!("{} {workloads} of this manager", seen.observed.workloads.len())),
        Err(error) => lines.orchestrator(what, &error),
    }
}

/// Renders the lines as a table or as one JSON document.
pub(crate) fn render(lines: &[Line], command: &str, code: u8, output: Output) -> String {
    match output {
        Output::Table => table(lines),
        Output::Json => {
            let document = serde_json::json!({ "schema_version": SCHEMA_VERSION, "command": command, "exit_code": code, "checks": lines });
            format!("{document:#}\n")
        }
    }
}

/// Renders the table, in colour on a terminal.
fn table(lines: &[Line]) -> String {
    let rows: Vec<[String; 4]> = lines.iter().map(row).collect();
    let text = printable(&columns(rows.iter()));
    if !std::io::stdout().is_terminal() {
        return text;
    }
    let coloured = lines.iter().zip(text.lines()).map(|(line, text)| {
        let (word, code) = line.verdict.word();
        text.replacen(word, &format!("\u{1b}[{code}m{word}\u{1b}[0m"), 1) + "\n"
    });
    coloured.collect()
}

fn row(line: &Line) -> [String; 4] {
    let lane = line.lane.map_or("-", PlatformKind::label);
    [line.verdict.word().0.to_owned(), lane.to_owned(), line.what.to_owned(), on_one_line(&line.detail)]
}

impl Verdict {
    /// The word for the verdict, and its colour on a terminal.
    fn word(self) -> (&'static str, u8) {
        match self {
            Self::Good => ("ok", 32),
            Self::Bad => ("FAIL", 31),
            Self::Open => ("note", 33),
        }
    }
}
