//! Progress of long pulls, on a terminal alone: which image, how far. Never in a log.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::models::CreateImageInfo;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar moves while nothing is heard.
const TICK: Duration = Duration::from_millis(100);

/// Where progress is shown, if anywhere.
pub struct Progress(Option<MultiProgress>);

impl Progress {
    /// On standard error, when that is a terminal.
    #[must_use]
    pub fn on_terminal() -> Self {
        let shown = std::io::stderr().is_terminal();
        Self(shown.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr())))
    }

    /// Nowhere.
    #[must_use]
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// Begins to show the pull of one image.
    #[must_use]
    pub fn pull(&self, image: &str) -> PullBar {
        let bar = self.0.as_ref().map(|all| {
            let bar = all.add(ProgressBar::new(0));
            let style = ProgressStyle::with_template("{spinner} pulling {msg} {wide_bar} {bytes}/{total_bytes}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(image.to_owned());
            // Registries can be silent for long: it must show that something is under way.
            bar.enable_steady_tick(TICK);
            bar
        });
        PullBar { bar, layers: Mutex::default() }
    }

    /// Writes a line above the bars, or plainly where there are none.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(all) => all.suspend(write),
            None => write(),
        }
    }
}

/// Progress of one pull; gone when dropped.
pub struct PullBar {
    bar: Option<ProgressBar>,
    layers: Mutex<HashMap<String, (u64, u64)>>,
}

impl PullBar {
    /// Takes one message of the engine.
    pub fn layer(&self, info: &CreateImageInfo) {
        let (Some(bar), Some(id), Some(detail)) = (&self.bar, &info.id, &info.progress_detail) else { return };
        let bytes = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
        let (Some(current), Some(total)) = (bytes(detail.current), bytes(detail.total)) else { return };
        // Extraction counts again from zero: only the way down is shown.
        if info.status.as_deref() != Some("Downloading") {
            return;
        }
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.insert(id.clone(), (current, total));
        let (done, all) = layers.values().fold((0, 0), |(done, all), (current, total)| (done + current, all + total));
        bar.set_length(all);
        bar.set_position(done);
    }
}

impl Drop for PullBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
