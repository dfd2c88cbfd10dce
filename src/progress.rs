//! Shows the progress of long pulls on a terminal. Nothing of it goes to a log.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar moves while there is no news of the pull.
const TICK: Duration = Duration::from_millis(100);

/// The place where progress is shown. Holds `None` when it is shown nowhere.
pub struct Progress(Option<MultiProgress>);

impl Progress {
    /// Shows progress on standard error when that is a terminal.
    #[must_use]
    pub fn on_terminal() -> Self {
        let shown = std::io::stderr().is_terminal();
        Self(shown.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr())))
    }

    /// Shows no progress.
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
            // Registries can be silent for long, so the bar moves by itself to show that the pull goes on.
            bar.enable_steady_tick(TICK);
            bar
        });
        PullBar { bar, layers: Mutex::default() }
    }

    /// Runs `write` without the bars in its way, so that its output is above them.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(all) => all.suspend(write),
            None => write(),
        }
    }
}

/// The bar of one pull. It vanishes when it is dropped.
pub struct PullBar {
    bar: Option<ProgressBar>,
    layers: Mutex<HashMap<String, (u64, u64)>>,
}

impl PullBar {
    /// Notes how many bytes of one layer have been downloaded so far.
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
