//! Renders what came of a registration with XTM One for people.

use serde_json::Value;

use super::table::on_one_line;
use crate::xtm_one::{LeftOut, Status, UsersOutcome, XtmOneOutcome};

/// How many users that are left out the table names for one reason. The JSON report names more.
const LEFT_OUT_NAMED: usize = 3;

/// The lines of one lane about XTM One: one that sums up, the payload of a plan, and each fault with its cure.
pub(super) fn lines(lane: &str, outcome: &XtmOneOutcome) -> String {
    let mut text = format!("{lane}: XTM One: {}\n", on_one_line(&summary(outcome).join("; ")));
    if let Some(planned) = &outcome.planned {
        text.push_str(&payload(planned));
    }
    for fault in &outcome.faults {
        let whose = fault.user.as_ref().map(|email| format!("user {email}: ")).unwrap_or_default();
        let error = on_one_line(&fault.error);
        text.push_str(&format!("{lane}: XTM One: error: {whose}{error}\n  what to do: {}\n", fault.cure));
    }
    text
}

fn summary(outcome: &XtmOneOutcome) -> Vec<String> {
    let word = match outcome.status {
        Status::Registered => "registered",
        Status::Failed => "FAILED",
        Status::HeldOff => "HELD OFF after failed passes",
        Status::LeftAlone => "left alone, because the platform registers itself",
        Status::Interrupted => "NOT DONE",
        Status::Planned => "planned",
        Status::NotAsked => "not asked to register",
    };
    let mut parts = vec![word.to_owned()];
    match &outcome.answered {
        Some(answered) if answered != "registered" => parts.push(format!("it answered {answered:?}")),
        _ => {}
    }
    match outcome.ee_enabled {
        Some(true) => parts.push("Enterprise Edition".to_owned()),
        Some(false) => parts.push("no Enterprise Edition".to_owned()),
        None => {}
    }
    parts.extend(outcome.user_integrations.map(|count| format!("{count} user integrations")));
    parts.extend(outcome.intents.map(|count| format!("{count} intents")));
    parts.extend(outcome.version.as_ref().map(|version| format!("version {version}")));
    parts.extend(users(&outcome.users, outcome.status == Status::Planned));
    parts.extend(outcome.chat_web_token.map(|kept| format!("chat token {kept}")));
    parts.extend(outcome.next_attempt.map(|at| format!("next attempt at {at:.0}")));
    parts
}

fn users(users: &UsersOutcome, planned: bool) -> Vec<String> {
    let mut parts = Vec::new();
    let mut say = |count: usize, text: String| {
        if count > 0 {
            parts.push(text);
        }
    };
    say(users.sent, format!("{} users with a key", users.sent));
    let (made, revoked) = if planned { ("to make", "to revoke") } else { ("made", "revoked") };
    let named = users.to_make.join(", ");
    let more = users.tokens_made.saturating_sub(users.to_make.len());
    let names = match (named.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!(" ({named})"),
        (false, more) => format!(" ({named} and {more} more)"),
    };
    say(users.tokens_made, format!("{} tokens {made}{names}", users.tokens_made));
    say(users.tokens_revoked, format!("{} tokens {revoked}", users.tokens_revoked));
    say(users.waiting, format!("{} users wait for a token (XTM__MAX_NEW_TOKENS)", users.waiting));
    for skipped in &users.skipped {
        let named: Vec<&str> = skipped.users.iter().take(LEFT_OUT_NAMED).map(String::as_str).collect();
        let more = skipped.count.saturating_sub(named.len());
        let named = named.join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        parts.push(format!("left out: {} {} ({named}{more})", skipped.count, reason(skipped.reason)));
    }
    parts
}

fn reason(why: LeftOut) -> &'static str {
    match why {
        LeftOut::NoAddress => "without an e-mail address",
        LeftOut::SameAddress => "with the address of another user",
        LeftOut::ServiceAccount => "that are service accounts",
        LeftOut::InvalidAddress => "whose address ends in .invalid",
        LeftOut::Inactive => "who may not log in",
        LeftOut::Excluded => "by XTM__USERS_EXCLUDE",
        LeftOut::NotIncluded => "not in XTM__USERS_INCLUDE",
    }
}

/// The fields of a planned payload. Lists are only counted, because the JSON report has them whole.
fn payload(planned: &Value) -> String {
    let fields = planned.as_object().into_iter().flatten();
    let line = |(name, value): (&String, &Value)| {
        let shown = match value {
            Value::Array(items) => format!("{} of them", items.len()),
            Value::String(text) => on_one_line(text),
            other => other.to_string(),
        };
        format!("  {name}: {shown}\n")
    };
    fields.map(line).collect()
}
