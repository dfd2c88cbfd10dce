//! Makes validated settings from everything that the operator set. Nothing reads the environment after this.
//!
//! A setting takes this way: [`variables`] declares it, `source` finds its text in the files and the environment, and
//! `parse` makes a value of the text. This file (for the process), `lane`, `docker`, `kubernetes` and `xtm_one` check the
//! value and put it where it is used.

mod docker;
mod kubernetes;
mod lane;
mod parse;
mod source;
pub mod variables;
mod xtm_one;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::key::{KeyError, ManagerKey};
use crate::manager::Manager;
use crate::model::{ManagerId, PlatformKind};
use crate::pass::Limits;
use crate::pass::lane::LaneSettings;
use crate::plan::{LoopAction, Policy, PrunePolicy};
use crate::probation::ProbationRule;
use crate::restart_window::LoopRule;
use crate::secret::Secret;
use crate::telemetry::Logging;

use lane::LaneInput;
use parse::FieldParser;
use source::Source;
use variables::ProcessTexts;

/// The settings of all commands.
#[derive(Debug)]
pub struct Settings {
    /// The identity that all lanes share.
    pub manager: Manager,
    /// The bounds that all lanes share.
    pub limits: Limits,
    /// One for each enabled platform, in the order of [`PlatformKind::ALL`]. There is at least one.
    pub lanes: Vec<LaneSettings>,
    /// How the process logs.
    pub logging: Logging,
    /// What the operator should know although it is no fault.
    pub notices: Vec<Notice>,
}

/// Something worth knowing about the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether it is logged as a warning instead of as information.
    pub warning: bool,
    /// Names the variables that it is about. Does not show the value of a secret.
    pub message: String,
}

impl Notice {
    fn warning(message: String) -> Self {
        Self { warning: true, message }
    }

    fn info(message: String) -> Self {
        Self { warning: false, message }
    }
}

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The full name of the variable, or the option of the command line.
    pub(crate) variable: String,
    pub(crate) what: String,
    pub(crate) cure: String,
}

impl Problem {
    fn new(variable: &str, what: String, cure: &str) -> Self {
        Self { variable: variable.to_owned(), what, cure: cure.to_owned() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.variable, self.what, self.cure)
    }
}

/// Everything wrong with the configuration, at once.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} problem(s)", .0.len())]
pub struct ConfigError(pub Vec<Problem>);

/// What the command line allows a pass to do for once. Each has the same effect as the variable of that name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed {
    /// Removes what is not listed, whatever the share.
    pub prune: bool,
    /// Registers a key that opens none of the listed values.
    pub new_key: bool,
}

/// Reads `files` and `environment` into settings.
///
/// `allowed` and `platforms` come from the command line. The latter leaves out the lanes of all other platforms, unless it
/// is empty.
pub fn load(
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
    allowed: Allowed,
    platforms: &[PlatformKind],
) -> Result<Settings, ConfigError> {
    let mut source = Source::read(files, environment);
    let mut fields = FieldParser { problems: Vec::new(), notices: Vec::new() };
    let process = source.process();
    let enabled = enabled(&source, platforms, &mut fields);
    let lanes: Vec<_> = enabled.into_iter().map(|platform| (platform, source.lane(platform))).collect();
    let shared_before = lane::notice_of_options_that_were_shared(&source, &lanes);
    fields.problems.extend(source.problems);
    fields.notices.extend(source.notices.into_iter().chain(shared_before));

    let logging = logging(&process, &mut fields);
    let limits = limits(&process, &mut fields);
    let policy = policy(&process, &mut fields, allowed.prune);
    let manager = manager(&process, &mut fields, allowed.new_key);
    let xtm_one = xtm_one::settings(&process, &mut fields);
    let lanes = lanes.iter().filter_map(|(platform, texts)| {
        let input = LaneInput { platform: *platform, texts, process: &process, xtm_one: xtm_one.as_ref() };
        lane::settings(&input, policy.clone(), &mut fields)
    });
    let lanes = lanes.collect();
    match manager {
        Some(manager) if fields.problems.is_empty() => {
            Ok(Settings { manager, limits, lanes, logging, notices: fields.notices })
        }
        _ => Err(ConfigError(fields.problems)),
    }
}

/// The platforms that get a lane. These are the enabled ones among those that the command line names, or among all when
/// it names none.
fn enabled(source: &Source, named: &[PlatformKind], fields: &mut FieldParser) -> Vec<PlatformKind> {
    let variable = |platform: PlatformKind| format!("{}ENABLE", platform.prefix());
    let asked = |platform: &PlatformKind| named.is_empty() || named.contains(platform);
    let (enabled, disabled): (Vec<_>, Vec<_>) = PlatformKind::ALL
        .into_iter()
        .filter(asked)
        // A value that is neither true nor false is a problem already. The platform counts as enabled, so that its
        // other problems are found as well.
        .partition(|platform| fields.choice(&variable(*platform), source.enable(*platform)).unwrap_or(true));
    if !named.is_empty() {
        for platform in disabled {
            let cure = format!("set {}=true, or leave the option out", variable(platform));
            fields.problem("--platform", format!("{} is not enabled", platform.title()), &cure);
        }
    } else if enabled.is_empty() {
        let all = PlatformKind::ALL.map(variable).join(" or ");
        fields.problem(&all, "no platform is enabled".to_owned(), "set one of them to true");
    }
    enabled
}

fn logging(process: &ProcessTexts, fields: &mut FieldParser) -> Logging {
    let levels = ["trace", "debug", "info", "warn", "error"];
    let level = process.manager__logger__level.as_deref().unwrap_or("info").trim().to_ascii_lowercase();
    if !levels.contains(&level.as_str()) {
        fields.problem(
            "MANAGER__LOGGER__LEVEL",
            format!("{level:?} is no level"),
            "use trace, debug, info, warn or error",
        );
    }
    let json = match process.manager__logger__format.as_deref().map(str::trim) {
        None => None,
        Some("json") => Some(true),
        Some("pretty") => Some(false),
        Some(other) => {
            fields.problem("MANAGER__LOGGER__FORMAT", format!("{other:?} is no format"), "use json or pretty");
            None
        }
    };
    // An operator has no use for what the libraries log below warnings.
    let filter = process.rust_log.clone().unwrap_or_else(|| format!("warn,kube_client=off,xtm_reconcile={level}"));
    Logging { filter, json }
}

fn limits(process: &ProcessTexts, fields: &mut FieldParser) -> Limits {
    let deadline = fields.number("MANAGER__PASS_DEADLINE", process.manager__pass_deadline.as_deref(), 1..=86_400);
    let concurrency = fields.number("MANAGER__CONCURRENCY", process.manager__concurrency.as_deref(), 1..=64);
    let budget = fields.number("MANAGER__STOP_BUDGET", process.manager__stop_budget.as_deref(), 1..=3600);
    let settle = fields.number("MANAGER__SETTLE", process.manager__settle.as_deref(), 0..=60);
    let tail = fields.number("MANAGER__LOGS_TAIL", process.manager__logs_tail.as_deref(), 0..=10_000);
    Limits {
        deadline: Duration::from_secs(deadline),
        stop_budget: Duration::from_secs(budget),
        settle: Duration::from_secs(settle),
        concurrency: usize::try_from(concurrency).unwrap_or(1),
        logs_tail: u32::try_from(tail).unwrap_or(0),
    }
}

fn policy(process: &ProcessTexts, fields: &mut FieldParser, allow_prune: bool) -> Policy {
    let action = process.manager__reboot_loop__action.as_deref().unwrap_or("report").trim();
    let loop_action = match action {
        "report" => LoopAction::Report,
        "stop" => LoopAction::Stop,
        other => {
            fields.problem("MANAGER__REBOOT_LOOP__ACTION", format!("{other:?} is no action"), "use report or stop");
            LoopAction::Report
        }
    };
    let window =
        fields.number("MANAGER__REBOOT_LOOP__WINDOW", process.manager__reboot_loop__window.as_deref(), 1..=604_800);
    let limit =
        fields.number("MANAGER__REBOOT_LOOP__LIMIT", process.manager__reboot_loop__limit.as_deref(), 0..=10_000);
    let percent =
        fields.number("MANAGER__MAX_REMOVALS_PERCENT", process.manager__max_removals_percent.as_deref(), 0..=100);
    let probation = fields.number("MANAGER__PROBATION", process.manager__probation.as_deref(), 0..=86_400);
    let allowed = fields.flag("MANAGER__ALLOW_PRUNE", process.manager__allow_prune.as_deref());
    let window_s = i64::try_from(window).unwrap_or(300);
    let length_s = i64::try_from(probation).unwrap_or(60);
    Policy {
        loop_rule: LoopRule { window_s, limit },
        // A restart that is too old to be part of a reboot loop is forgiven.
        probation: ProbationRule { length_s, after_restart_s: window_s },
        loop_action,
        release: None,
        prune: PrunePolicy { allow: allow_prune || allowed, max_percent: u8::try_from(percent).unwrap_or(50) },
    }
}

fn manager(process: &ProcessTexts, fields: &mut FieldParser, accept_new_key: bool) -> Option<Manager> {
    let id = manager_id(process, fields);
    let name = process.manager__name.clone().unwrap_or_default().trim().to_owned();
    if name.chars().count() < 2 {
        fields.problem("MANAGER__NAME", "it has fewer than 2 characters".to_owned(), "give this manager a name");
    }
    let key = manager_key(process, fields);
    let accepted = fields.flag("MANAGER__ACCEPT_NEW_KEY", process.manager__accept_new_key.as_deref());
    Some(Manager { id: id?, name, key: key?, accept_new_key: accept_new_key || accepted })
}

fn manager_id(process: &ProcessTexts, fields: &mut FieldParser) -> Option<ManagerId> {
    let variable = "MANAGER__ID";
    let Some(text) = process.manager__id.as_deref().map(str::trim) else {
        fields.problem(variable, "it is not set".to_owned(), "choose an id for this manager and never change it");
        return None;
    };
    if text == "default-manager-id" {
        let what = "it still is the daemon's placeholder".to_owned();
        fields.problem(variable, what, "choose an id of your own for this manager");
        return None;
    }
    ManagerId::new(text)
        .map_err(|invalid| {
            fields.problem(variable, format!("{text:?} cannot be a label: {invalid}"), "choose another id");
        })
        .ok()
}

fn manager_key(process: &ProcessTexts, fields: &mut FieldParser) -> Option<ManagerKey> {
    let inline = process.manager__credentials_key.as_ref();
    let (variable, pem) = match process.manager__credentials_key_filepath.as_deref().map(str::trim) {
        Some(path) => {
            let variable = "MANAGER__CREDENTIALS_KEY_FILEPATH";
            if inline.is_some() {
                let message = format!("{variable} wins over MANAGER__CREDENTIALS_KEY, which is set as well");
                fields.notices.push(Notice::warning(message));
            }
            match source::read_secret(Path::new(path), variable, &mut fields.notices) {
                Ok(pem) => (variable, Secret::new(pem)),
                Err(error) => {
                    fields.problems.push(source::unreadable_secret(variable, path, &error));
                    return None;
                }
            }
        }
        None => match inline {
            Some(pem) => ("MANAGER__CREDENTIALS_KEY", pem.clone()),
            None => {
                let what = "no key is set".to_owned();
                let cure = "make one with `xtm-reconcile keygen --out FILE` and set MANAGER__CREDENTIALS_KEY_FILEPATH";
                fields.problem("MANAGER__CREDENTIALS_KEY", what, cure);
                return None;
            }
        },
    };
    ManagerKey::from_pem(&pem).map_err(|error: KeyError| fields.problem(variable, error.to_string(), error.cure())).ok()
}
