//! Logs to standard error, in JSON unless that is a terminal.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::progress::Progress;

/// What is logged, and in which form.
#[derive(Debug, Clone)]
pub struct Logging {
    /// The filter, in the syntax of `tracing`.
    pub filter: String,
    /// Whether to log in JSON. `None` does so unless standard error is a terminal.
    pub json: Option<bool>,
}

/// Writes to standard error without disturbing the progress bars.
#[derive(Clone)]
struct Around(Arc<Progress>);

impl Write for Around {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        // When the reader of the log is gone, the pass must go on, and there is no way left to report it.
        drop(self.0.suspend(|| std::io::stderr().write_all(text)));
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Around {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Begins to log. A filter that cannot be parsed is reported, and the default is used instead.
pub fn start(logging: &Logging, progress: Arc<Progress>) {
    let terminal = std::io::stderr().is_terminal();
    let (filter, bad) = match EnvFilter::try_new(&logging.filter) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Around(progress)).with_ansi(terminal);
    if logging.json.unwrap_or(!terminal) {
        builder.json().flatten_event(true).init();
    } else {
        builder.compact().init();
    }
    if let Some(error) = bad {
        tracing::warn!(%error, "RUST_LOG cannot be read, info is used");
    }
}
