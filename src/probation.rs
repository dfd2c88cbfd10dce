//! Judges a workload that has replaced another one: whether it has proved itself, needs more time or has failed. Pure.
//!
//! An orchestrator accepts a configuration long before it is known to work: a container with a wrong password starts, and
//! ends a moment later. So what was replaced is kept, stopped, until the replacement has stayed up for a while.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::model::{CurrentStatus, Phase, Vitals};

/// How long a replacement is on probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbationRule {
    /// The time for which it has to stay up, in seconds. 0 switches probation off.
    pub length_s: i64,
    /// The time for which one that was restarted has to stay up, in seconds: a crash at the start may be an accident,
    /// but only a long run afterwards shows that.
    pub after_restart_s: i64,
}

/// What probation has shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has stayed up for long enough.
    Passed,
    /// It has not failed, and may have proved itself at this time.
    Until(Timestamp),
    /// It does not run, and it is unknown whether it would: somebody stopped it, or it was never started.
    Down,
    /// It does not work.
    Failed(Failure),
}

/// How a workload on probation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// How often the engine started it again.
    pub restarts: u64,
    /// The exit code of its last run. `None` when it is not known.
    pub exit_code: Option<i64>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exit_code {
            Some(code) => write!(f, "exit code {code}")?,
            None => f.write_str("it ended")?,
        }
        match self.restarts {
            0 => Ok(()),
            1 => f.write_str(" after 1 restart"),
            more => write!(f, " after {more} restarts"),
        }
    }
}

impl ProbationRule {
    /// Judges a workload that has replaced another one and should run. `shown` is the status that the platform shows.
    #[must_use]
    pub fn judge(self, phase: Phase, vitals: Option<&Vitals>, shown: Option<CurrentStatus>, now: Timestamp) -> Verdict {
        if self.length_s == 0 {
            return Verdict::Passed;
        }
        let restarts = vitals.map_or(0, |vitals| vitals.restarts);
        let failed = Verdict::Failed(Failure { restarts, exit_code: vitals.and_then(|vitals| vitals.exit_code) });
        match phase {
            Phase::Running => {
                let length_s = if restarts == 0 { self.length_s } else { self.length_s.max(self.after_restart_s) };
                let started = vitals.and_then(|vitals| vitals.started_at).unwrap_or(now);
                let until = started.saturating_add(SignedDuration::from_secs(length_s)).unwrap_or(Timestamp::MAX);
                if until <= now {
                    Verdict::Passed
                } else if restarts == 0 {
                    Verdict::Until(until)
                } else {
                    failed
                }
            }
            // An earlier pass stopped it on request; after that the platform shows it as stopped.
            Phase::Exited if shown == Some(CurrentStatus::Stopped) => Verdict::Down,
            Phase::Restarting | Phase::Broken | Phase::Exited => failed,
            Phase::Created | Phase::Stopped | Phase::Paused | Phase::Ending | Phase::Pending | Phase::Multiplied => {
                Verdict::Down
            }
        }
    }
}
