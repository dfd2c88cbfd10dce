//! Says when a pass has to end: at its deadline or at a signal. From then on nothing new starts, and what runs
//! finishes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::exit;

/// Why a pass ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The time of `MANAGER__PASS_DEADLINE` is over.
    Deadline,
    /// The process got SIGINT.
    Interrupt,
    /// The process got SIGTERM.
    Terminate,
    /// The lock was lost, so that another pass may hold it.
    LockLost,
}

impl Cause {
    /// The cause as the reports and the log name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deadline => "the pass deadline is over (MANAGER__PASS_DEADLINE)",
            Self::Interrupt => "SIGINT was received",
            Self::Terminate => "SIGTERM was received",
            Self::LockLost => "another pass took over the lock, which this one could not renew in time",
        }
    }

    /// The exit code of a command that ended early for this cause.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Deadline => exit::CONNECTOR_FAILED,
            Self::Interrupt => exit::INTERRUPTED,
            Self::Terminate => exit::TERMINATED,
            Self::LockLost => exit::LOCKED,
        }
    }
}

/// A shared flag that everything asks before it starts something new, and that ends waits.
#[derive(Debug, Clone)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    deadline: Instant,
    signal: Mutex<Option<Cause>>,
    changed: Condvar,
    watch: watch::Sender<bool>,
    /// These get every signal as well.
    children: Mutex<Vec<Stop>>,
}

impl Stop {
    /// A new flag, whose deadline is `deadline` from now.
    #[must_use]
    pub fn after(deadline: Duration) -> Self {
        Self::until(Instant::now() + deadline)
    }

    fn until(deadline: Instant) -> Self {
        Self(Arc::new(Inner {
            deadline,
            signal: Mutex::new(None),
            changed: Condvar::new(),
            watch: watch::Sender::new(false),
            children: Mutex::new(vec![]),
        }))
    }

    /// A flag that stops when this one does, and that can also stop without it.
    #[must_use]
    pub fn child(&self) -> Self {
        let child = Self::until(self.0.deadline);
        let mut children = self.children();
        if let Some(cause) = *self.lock() {
            child.signal(cause);
        }
        children.push(child.clone());
        child
    }

    /// Stops for this cause, unless it has stopped already.
    pub fn signal(&self, cause: Cause) {
        let children = self.children();
        self.lock().get_or_insert(cause);
        self.0.changed.notify_all();
        self.0.watch.send_replace(true);
        for child in children.iter() {
            child.signal(cause);
        }
    }

    /// Why nothing new may start. `None` while the pass may go on.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        (*self.lock()).or_else(|| self.remaining().is_zero().then_some(Cause::Deadline))
    }

    /// The time until the deadline.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.0.deadline.saturating_duration_since(Instant::now())
    }

    /// Blocks this thread for `time`. Returns false when the pass has to end before that.
    #[must_use]
    pub fn sleep(&self, time: Duration) -> bool {
        if time >= self.remaining() {
            return false;
        }
        let waited = self.0.changed.wait_timeout_while(self.lock(), time, |cause| cause.is_none());
        waited.is_ok_and(|(cause, _)| cause.is_none())
    }

    /// Resolves when nothing new may start any more.
    pub async fn stopped(&self) {
        let mut watch = self.0.watch.subscribe();
        tokio::select! {
            () = tokio::time::sleep(self.remaining()) => {}
            // The sender lives as long as `self`, so this cannot fail before the flag stops.
            _ = watch.wait_for(|stopped| *stopped) => {}
        }
    }

    fn children(&self) -> MutexGuard<'_, Vec<Stop>> {
        self.0.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Cause>> {
        self.0.signal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Cause, Stop};

    #[test]
    fn a_signal_reaches_every_lane_and_what_one_lane_lost_stops_that_one_alone() {
        let pass = Stop::after(Duration::from_mins(1));
        let (one, other) = (pass.child(), pass.child());
        one.signal(Cause::LockLost);
        assert_eq!((one.cause(), other.cause(), pass.cause()), (Some(Cause::LockLost), None, None));
        pass.signal(Cause::Terminate);
        assert_eq!(
            (one.cause(), other.cause()),
            (Some(Cause::LockLost), Some(Cause::Terminate)),
            "the first one counts"
        );
        assert_eq!(pass.child().cause(), Some(Cause::Terminate), "also for a lane that begins after it");
    }
}
