//! Renders the report for people: what changed or is wrong, then a line that sums up.

use super::{Counts, LaneReport, Line, LineResult, Report, TroubleReport, xtm_one};
use crate::model::{ConnectorId, PlatformKind};
use crate::plan::{Decision, Obstacle, RefreshReason, RemoveReason, Skip, StartReason, Step, UpdateReason};

/// The widest that any column but the last can be, in characters.
const WIDTH_MAX: usize = 40;

/// Renders the report as text. Connectors without change are only counted. Each other line names its lane.
#[must_use]
pub(crate) fn table(report: &Report) -> String {
    let mut text = String::new();
    let shown = |lane: &'_ LaneReport| -> Vec<[String; 5]> {
        lane.connectors.iter().filter(|line| is_shown(line)).map(|line| row(lane.lane, line)).collect()
    };
    let rows: Vec<[String; 5]> = report.lanes.iter().flat_map(shown).collect();
    if !rows.is_empty() {
        let head = ["LANE", "CONNECTOR", "ACTION", "RESULT", "DETAIL"].map(str::to_owned);
        text.push_str(&columns(std::iter::once(&head).chain(&rows)));
        text.push('\n');
    }
    for lane in &report.lanes {
        text.push_str(&lines_of(lane));
    }
    for notice in &report.notices {
        text.push_str(&format!("notice: {notice}\n"));
    }
    if report.lanes.len() > 1 {
        for lane in &report.lanes {
            let name = lane.lane.label();
            text.push_str(&summary(
                name,
                report.command,
                &lane.counts,
                lane.errors.is_empty(),
                lane.took_ms,
                lane.exit_code,
            ));
        }
    }
    let no_errors = report.lanes.iter().all(|lane| lane.errors.is_empty());
    text.push_str(&summary(
        report.command,
        report.command,
        &report.counts,
        no_errors,
        report.took_ms,
        report.exit_code,
    ));
    printable(&text)
}

/// The lines of a lane that belong to no row of the table.
fn lines_of(lane: &LaneReport) -> String {
    let name = lane.lane.label();
    let mut text = String::new();
    if let Some(registration) = lane.platform.registration.as_ref().filter(|registration| registration.is_news()) {
        text.push_str(&format!("{name}: {registration}\n"));
    }
    if let Some(refusal) = &lane.prune_refused {
        text.push_str(&format!("{name}: prune guard: {refusal}\n"));
    }
    for fault in &lane.errors {
        let whose = fault.connector.as_ref().map(|id| format!("connector {id}: ")).unwrap_or_default();
        text.push_str(&format!("{name}: error: {whose}{}\n  what to do: {}\n", fault.error, fault.cure));
    }
    if let Some(outcome) = &lane.xtm_one {
        text.push_str(&xtm_one::lines(name, outcome));
    }
    for notice in &lane.notices {
        text.push_str(&format!("{name}: notice: {notice}\n"));
    }
    text
}

/// Replaces control characters, because names and messages from elsewhere must not control the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

fn is_shown(line: &Line) -> bool {
    let quiet = matches!(line.entry.decision, Decision::Skip(Skip::Running | Skip::Stopped | Skip::NotStarted));
    !quiet || line.reboot_loop || !line.troubles.is_empty()
}

fn row(lane: PlatformKind, line: &Line) -> [String; 5] {
    let mut detail = Vec::new();
    match &line.entry.decision {
        Decision::Step(step) => detail.push(step_detail(step)),
        // The troubles below say more than that it runs.
        Decision::Skip(Skip::Running) if !line.troubles.is_empty() => {}
        Decision::Skip(skip) => detail.push(skip_detail(skip, &line.entry.connector)),
        Decision::Reject(_) => {}
    }
    if let Some(until) = line.on_probation_until {
        detail.push(format!("on probation until {until:.0}, what it replaced is kept"));
    }
    detail.extend(line.error.clone());
    detail.extend(line.cure.as_ref().map(|cure| format!("-> {cure}")));
    if line.reboot_loop {
        detail.push(format!("REBOOT LOOP: {} restarts so far", line.restarts.unwrap_or_default()));
    }
    for TroubleReport { trouble, cure } in &line.troubles {
        detail.push(format!("{} ({}) -> {cure}", trouble.what, trouble.detail));
    }
    detail.retain(|part| !part.is_empty());
    let action = match &line.entry.decision {
        Decision::Step(step) => step.word(),
        Decision::Skip(_) => "-",
        Decision::Reject(_) => "reject",
    };
    let result = match line.result {
        LineResult::Done => "done",
        LineResult::Planned => "planned",
        LineResult::Failed => "FAILED",
        LineResult::NotDone => "not done",
        LineResult::Unchanged => "unchanged",
        LineResult::Rejected => "REJECTED",
    };
    let (title, detail) = (on_one_line(&line.entry.title), on_one_line(&detail.join("; ")));
    [lane.label().to_owned(), title, action.to_owned(), result.to_owned(), detail]
}

fn step_detail(step: &Step) -> String {
    match step {
        Step::Deploy { name } => format!("as {name}"),
        Step::Refresh { reason, .. } => refresh_reason(reason),
        Step::Recreate { reason, obstacle: Obstacle::Selector, .. } => {
            format!("{}; removed and made anew: its selector is not ours and can never change", refresh_reason(reason))
        }
        Step::Recreate { reason, old_name, name, obstacle: Obstacle::Name, .. } => {
            format!("{}; {old_name} removed and made anew as {name}: a name can never change", refresh_reason(reason))
        }
        // The result says what failed.
        Step::RollBack { .. } => String::new(),
        Step::Rename { from, to, .. } => format!("{from} -> {to}"),
        Step::Start { reason: StartReason::Ended, .. } => "it ended by itself".to_owned(),
        Step::Start { reason: StartReason::RolledBack, .. } => {
            "its replacement failed, and it could not be started again before".to_owned()
        }
        Step::Start { reason: StartReason::Paused, .. } => "it was paused".to_owned(),
        Step::Start { reason: StartReason::Multiplied, .. } => {
            "it was scaled to several instances; only one may run".to_owned()
        }
        Step::Start { reason: StartReason::Requested, .. } | Step::Stop { .. } => "requested".to_owned(),
        Step::Update { reason: UpdateReason::RestartPolicy, .. } => {
            "the engine starts it again from now on when it ends; it went on running".to_owned()
        }
        Step::Remove { name, reason, .. } => match reason {
            RemoveReason::NotListed => "not on the platform any more".to_owned(),
            RemoveReason::Duplicate => format!("{name}: another workload of this connector stays"),
            RemoveReason::Replaced => format!("{name}: its replacement has stayed up"),
            RemoveReason::Incomplete => format!("{name}: an earlier pass was cut off while making it"),
        },
        Step::Hold { restarts, .. } => {
            format!("reboot loop, {restarts} restarts: stopped until its configuration changes or it is released")
        }
    }
}

fn refresh_reason(reason: &RefreshReason) -> String {
    match reason {
        RefreshReason::HashChanged { from, to } => {
            format!("{} -> {to}", from.as_ref().map_or("no hash", |hash| hash.as_str()))
        }
        RefreshReason::Broken => "it cannot be run any more as it is".to_owned(),
    }
}

fn skip_detail(skip: &Skip, connector: &ConnectorId) -> String {
    match skip {
        // The time until when is told as for a refresh.
        Skip::OnProbation { .. } => String::new(),
        Skip::Running => "running".to_owned(),
        Skip::Pending => "told to run, and not running yet".to_owned(),
        Skip::Stopped => "stopped, as requested".to_owned(),
        Skip::NotStarted => "not started yet".to_owned(),
        Skip::Held => format!(
            "held for a reboot loop: change its configuration, or run `xtm-reconcile release {connector}`, or stop it on the platform and start it after the next pass"
        ),
        Skip::NameBusy { name } => format!("waits for the name {name}"),
        Skip::PruneRefused => "not on the platform any more; kept by the prune guard".to_owned(),
        Skip::UnknownPlatform => "made by an older manager for a platform that is not known; left alone".to_owned(),
    }
}

/// The line that sums up the whole pass or one lane.
fn summary(name: &str, command: &str, counts: &Counts, no_errors: bool, took_ms: u64, exit_code: u8) -> String {
    let mut parts: Vec<String> =
        counts.steps.iter().map(|(word, count)| format!("{count} {}", past(word, command))).collect();
    let others = [
        (counts.failed, "failed"),
        (counts.not_done, "not done"),
        (counts.rejected, "rejected"),
        (counts.reboot_loops, "in a reboot loop"),
        (counts.unchanged, "unchanged"),
    ];
    parts.extend(others.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")));
    if parts.is_empty() {
        let nothing = match (command.starts_with("xtm-one"), no_errors) {
            // What such a command did stands in the lines above.
            (true, true) => "see above",
            (false, true) => "nothing to do",
            (_, false) => "nothing done",
        };
        parts.push(nothing.to_owned());
    }
    #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
    let seconds = took_ms as f64 / 1000.0;
    format!("{name}: {} ({seconds:.2} s, exit {exit_code})\n", parts.join(", "))
}

/// `deploy` as "deployed" for a run, as "to deploy" for a plan.
fn past(word: &str, command: &str) -> String {
    if command == "plan" {
        return format!("to {word}");
    }
    match word {
        "stop" => "stopped".to_owned(),
        "hold" => "held".to_owned(),
        "roll-back" => "rolled back".to_owned(),
        word if word.ends_with('e') => format!("{word}d"),
        word => format!("{word}ed"),
    }
}

/// Arranges rows in left-aligned columns, two spaces apart. The last column may have any width.
pub(crate) fn columns<'a, const N: usize>(rows: impl Iterator<Item = &'a [String; N]> + Clone) -> String {
    let mut widths = [0; N];
    for row in rows.clone() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count().min(WIDTH_MAX));
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (place, (cell, width)) in row.iter().zip(widths).enumerate() {
            let shown: String =
                if place + 1 == N || cell.chars().count() <= WIDTH_MAX { cell.clone() } else { shorten(cell) };
            line.push_str(&format!("{shown:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Replaces line breaks by spaces, for a cell of a table.
pub(crate) fn on_one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn shorten(cell: &str) -> String {
    let mut short: String = cell.chars().take(WIDTH_MAX - 1).collect();
    short.push('…');
    short
}
