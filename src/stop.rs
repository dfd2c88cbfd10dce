//! Says when a pass has to end: at its deadline or at a signal. From then on nothing new starts, and what runs may finish
//! within a budget of time that everything shares. Nothing that hangs can keep the process for longer.

use std::future::Future;
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
            Self::LockLost => "the lock was lost: another pass took over the lock, or somebody removed it",
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

/// The largest budget of a pass that lost its lock.
const LOCK_LOST_BUDGET: Duration = Duration::from_secs(15);

/// How much of the budget may be used up when a piece of work has to end. What comes later needs the rest: whatever hangs
/// before it, the record is written and the lock is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Steps that run end, or are given up.
    Steps,
    /// Looks, logs and everything that is published.
    Published,
    /// The pass record is written.
    Remembered,
    /// The lock is given back.
    Unlocked,
}

impl Until {
    fn percent(self) -> u32 {
        match self {
            Self::Steps => 70,
            Self::Published => 85,
            Self::Remembered => 95,
            Self::Unlocked => 100,
        }
    }
}

/// A shared flag that everything asks before it starts something new, and that ends waits.
#[derive(Debug, Clone)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    deadline: Instant,
    /// The time for everything that is left once the pass has to end.
    budget: Duration,
    signal: Mutex<Option<(Cause, Instant)>>,
    changed: Condvar,
    watch: watch::Sender<bool>,
    /// These get every signal as well.
    children: Mutex<Vec<Stop>>,
}

impl Stop {
    /// A new flag, whose deadline is `deadline` from now, after which everything has to end within `budget`.
    #[must_use]
    pub fn after(deadline: Duration, budget: Duration) -> Self {
        Self::until(Instant::now() + deadline, budget)
    }

    fn until(deadline: Instant, budget: Duration) -> Self {
        Self(Arc::new(Inner {
            deadline,
            budget,
            signal: Mutex::new(None),
            changed: Condvar::new(),
            watch: watch::Sender::new(false),
            children: Mutex::new(vec![]),
        }))
    }

    /// A flag that stops when this one does, and that can also stop without it.
    #[must_use]
    pub fn child(&self) -> Self {
        let child = Self::until(self.0.deadline, self.0.budget);
        let mut children = self.children();
        if let Some((cause, _)) = *self.lock() {
            child.signal(cause);
        }
        children.push(child.clone());
        child
    }

    /// Stops for this cause, unless it has stopped already.
    pub fn signal(&self, cause: Cause) {
        let children = self.children();
        self.lock().get_or_insert_with(|| (cause, Instant::now()));
        self.0.changed.notify_all();
        self.0.watch.send_replace(true);
        for child in children.iter() {
            child.signal(cause);
        }
    }

    /// Why nothing new may start. `None` while the pass may go on.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        let signalled = self.lock().map(|(cause, _)| cause);
        signalled.or_else(|| self.remaining().is_zero().then_some(Cause::Deadline))
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

    /// Does `work`, which may finish after the pass has to end, but only as long as the budget allows. `None` when it
    /// did not finish, and was given up.
    pub(crate) async fn within<T>(&self, until: Until, work: impl Future<Output = T>) -> Option<T> {
        let over = async {
            self.stopped().await;
            let signalled = *self.lock();
            let begun = signalled.map_or(self.0.deadline, |(_, at)| at.min(self.0.deadline));
            let budget = match signalled {
                // Another pass may be at work, so that little may still go on.
                Some((Cause::LockLost, _)) => self.0.budget.min(LOCK_LOST_BUDGET),
                _ => self.0.budget,
            };
            let allowed = budget * until.percent() / 100;
            tokio::time::sleep_until((begun + allowed).into()).await;
        };
        tokio::select! {
            biased;
            done = work => Some(done),
            () = over => None,
        }
    }

    fn children(&self) -> MutexGuard<'_, Vec<Stop>> {
        self.0.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Cause, Instant)>> {
        self.0.signal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Cause, Stop, Until};

    #[tokio::test]
    async fn what_hangs_is_given_up_in_time_for_what_comes_after_it() {
        let stop = Stop::after(Duration::from_hours(1), Duration::from_secs(1));
        assert_eq!(stop.within(Until::Steps, async { 1 }).await, Some(1));
        stop.signal(Cause::Terminate);
        let told = Instant::now();
        for (until, ms) in [(Until::Steps, 700), (Until::Published, 850), (Until::Remembered, 950)] {
            assert_eq!(stop.within(until, std::future::pending::<()>()).await, None);
            assert_eq!(stop.within(until, async { 1 }).await, Some(1), "what does not hang is done all the same");
            assert!((ms..ms + 100).contains(&told.elapsed().as_millis()), "{until:?}: {:?}", told.elapsed());
        }
    }

    #[test]
    fn a_signal_reaches_every_lane_and_what_one_lane_lost_stops_that_one_alone() {
        let pass = Stop::after(Duration::from_mins(1), Duration::from_secs(1));
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
