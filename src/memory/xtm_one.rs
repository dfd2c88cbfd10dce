//! What one pass remembers for the next of the registration with XTM One. It holds ids and fingerprints, and no secret.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{TokenId, UserId};

/// The wait after the first failed pass, in seconds. It doubles with each further one.
const FIRST_WAIT_S: i64 = 300;
/// How often the wait doubles: 5, 10, 20, 40 minutes.
const DOUBLINGS_MAX: u32 = 3;
/// The longest wait that XTM One can ask for, in seconds. A longer one in the memory comes from a clock that was wrong.
const WAIT_MAX_S: i64 = 86_400;

/// What is remembered of the registration with XTM One.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XtmOneMemory {
    /// The users whose keys may never have arrived at XTM One. This is written before the first of their tokens is made,
    /// and cleared after XTM One has acknowledged the keys or the tokens were revoked.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub(crate) unsent: BTreeSet<UserId>,
    /// Tokens that others have replaced at XTM One and that are still to be revoked.
    #[serde(skip_serializing_if = "BTreeSet::is_empty", default)]
    pub(crate) replaced: BTreeSet<(UserId, TokenId)>,
    /// A fingerprint of the address of the XTM One that has the keys. Another XTM One has none of them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) registered_at: Option<String>,
    /// The failed registrations since the last one that succeeded. `None` when there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) failed: Option<FailedRegistrations>,
    /// A fingerprint of the last `chat_web_token` and of the place where it is kept, so that it is written, or reported
    /// as kept nowhere, only when one of the two changes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) chat_token: Option<String>,
    /// The version of the platform that has no tokens with names, once that was reported.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) without_named_tokens: Option<String>,
}

impl XtmOneMemory {
    /// Whether there is nothing to store.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Registrations that failed, one after the other, with the same settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRegistrations {
    /// The number of passes whose registration failed.
    pub(crate) times: u32,
    /// When to try again, as Unix time in seconds.
    pub(crate) until: i64,
    /// A fingerprint of the settings. With others, a pass tries at once.
    pub(crate) settings: String,
}

impl FailedRegistrations {
    /// Adds a failure to the earlier ones. `asked` is the wait that XTM One asks for.
    #[must_use]
    pub(crate) fn another(earlier: Option<&Self>, settings: &str, asked: Option<Duration>, now: Timestamp) -> Self {
        let before = earlier.filter(|failed| failed.settings == settings).map_or(0, |failed| failed.times);
        let ours = FIRST_WAIT_S << before.min(DOUBLINGS_MAX);
        let asked = asked.and_then(|asked| i64::try_from(asked.as_secs()).ok()).unwrap_or_default();
        let until = now.as_second().saturating_add(ours.max(asked).min(WAIT_MAX_S));
        Self { times: before.saturating_add(1), until, settings: settings.to_owned() }
    }

    /// Until when no registration is tried. `None` when one may be tried now.
    #[must_use]
    pub(crate) fn holds_until(&self, settings: &str, now: Timestamp) -> Option<Timestamp> {
        let wait = self.until.saturating_sub(now.as_second());
        let holds = self.settings == settings && (1..=WAIT_MAX_S).contains(&wait);
        holds.then(|| Timestamp::from_second(self.until).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows what README says under "XTM One": "After a failed registration later passes hold off for 5, 10, 20 and 40
    // minutes".
    #[test]
    fn the_wait_doubles_up_to_40_minutes_and_ends_at_once_with_other_settings() {
        let now: Timestamp = "2026-11-25T10:00:00Z".parse().unwrap();
        let (mut failed, mut waits) = (None, vec![]);
        for _ in 0..6 {
            let next = FailedRegistrations::another(failed.as_ref(), "a", None, now);
            waits.push((next.until - now.as_second()) / 60);
            failed = Some(next);
        }
        assert_eq!(waits, [5, 10, 20, 40, 40, 40]);
        let failed = failed.unwrap();
        assert!(failed.holds_until("a", now).is_some());
        assert!(failed.holds_until("b", now).is_none(), "the settings are others");
        assert!(failed.holds_until("a", now + Duration::from_mins(40)).is_none(), "the wait is over");
        assert!(failed.holds_until("a", now - Duration::from_hours(25)).is_none(), "the clock was wrong");
        assert_eq!(FailedRegistrations::another(Some(&failed), "b", None, now).times, 1);
        let asked = FailedRegistrations::another(None, "a", Some(Duration::from_hours(1)), now);
        assert_eq!(asked.until - now.as_second(), 3600);
    }

    // Shows what README says under "XTM One": "or as long as XTM One asks for (a day at most)".
    #[test]
    fn xtm_one_can_ask_for_a_day_at_most() {
        let now: Timestamp = "2026-11-25T10:00:00Z".parse().unwrap();
        for (asked, wait_s) in [(23, 82_800), (24, 86_400), (100, 86_400)] {
            let failed = FailedRegistrations::another(None, "a", Some(Duration::from_hours(asked)), now);
            assert_eq!(failed.until - now.as_second(), wait_s, "{asked} hours");
            assert!(failed.holds_until("a", now).is_some(), "{asked} hours");
        }
    }
}
