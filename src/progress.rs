//! Progress of long pulls, on a terminal alone: which image, how far. Never in a log.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
    /// Notes how many bytes of one layer have come so far.
    pub fn layer(&self, id: &str, done: u64, total: u64) {
        let Some(bar) = &self.bar else { return };
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.insert(id.to_owned(), (done, total));
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
