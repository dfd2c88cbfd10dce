//! The log: tracing to standard error, JSON unless that is a terminal.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::progress::Progress;

/// How to log.
#[derive(Debug, Clone)]
pub struct Logging {
    /// Filter in tracing's syntax.
    pub filter: String,
    /// JSON or for people; `None`: by whether standard error is a terminal.
    pub json: Option<bool>,
}

/// Standard error, written around the progress bars.
#[derive(Clone)]
struct Around(Arc<Progress>);

impl Write for Around {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        // A reader that went away must not end a pass in the middle, and there is nobody left to tell.
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

/// Begins to log. A filter that cannot be read is said, and the default used.
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
