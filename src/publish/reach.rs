//! Whether the platform can still be reached while publications are sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::platform::Platform;

/// Longest wait for the answer to the small request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the publications that are sent side by side know of the platform.
#[derive(Default)]
pub(super) struct Reach {
    gone: AtomicBool,
    /// Whether the pass had to end before an answer came. That says nothing about the platform.
    cut: AtomicBool,
    /// When the platform last answered the small request. The lock is held during that request, so that there is one at
    /// a time, and those who wait for it see what came of it.
    answered: Mutex<Option<Instant>>,
}

impl Reach {
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn lose(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// Whether the platform has answered a small request since `failed`, when some other request found no answer. Asks
    /// for the version unless that is known. When it does not answer, it is gone for all.
    pub(super) async fn answers_since(&self, failed: Instant, platform: &Arc<dyn Platform>) -> bool {
        let mut answered = self.answered.lock().await;
        if self.is_gone() {
            return false;
        }
        if answered.is_some_and(|at| at >= failed) {
            return true;
        }
        let platform = Arc::clone(platform);
        let asking = tokio::task::spawn_blocking(move || platform.version());
        match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(Ok(Err(error))) if error.is_general() => self.lose(),
            Err(_) => self.lose(),
            Ok(_) => *answered = Some(Instant::now()),
        }
        !self.is_gone()
    }
}
