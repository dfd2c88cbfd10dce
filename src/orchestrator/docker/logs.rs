//! Reads the logs of containers: the last lines, or everything that was written since the last delivery.

use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::query_parameters::{LogsOptions, LogsOptionsBuilder};
use futures_util::StreamExt;

use super::{Docker, status};
use crate::log_cursor::{Follower, LogPart, Start, split_time};
use crate::log_lines::{Assembler, Stream};
use crate::model::Handle;
use crate::orchestrator::{LogRead, LogRequest, OrchestratorError};

impl Docker {
    pub(super) async fn read_log(
        &self,
        handle: &Handle,
        request: &LogRequest<'_>,
    ) -> Result<LogRead, OrchestratorError> {
        let start = request.part.start(&handle.0);
        let (read, lost) = self.read_from(handle, request, start).await?;
        let LogPart::New { after: Some(_), first, .. } = request.part else { return Ok(read) };
        if !lost {
            return Ok(read);
        }
        // Either the log was emptied or the cursor names a time that is wrong. Begin anew, as with a log that nobody
        // read yet.
        let (anew, _) = self.read_from(handle, request, Start::Last(first)).await?;
        if anew.cursor.as_ref().is_none_or(|cursor| cursor.lines == 0) {
            return Ok(LogRead { lines: vec![], ..read });
        }
        tracing::warn!(container = %handle, "the log holds nothing as new as what was delivered last; its last lines are sent");
        Ok(anew)
    }

    /// Reads from `start`. Also returns whether the cursor is lost, which means that the log holds nothing as new as
    /// the cursor.
    async fn read_from(
        &self,
        handle: &Handle,
        request: &LogRequest<'_>,
        start: Start<'_>,
    ) -> Result<(LogRead, bool), OrchestratorError> {
        let timed = request.part.needs_times();
        let (options, most) = options(start, timed);
        let mut pieces = self.engine.logs(&handle.0, Some(options));
        let mut lines = Assembler::new(most);
        let mut follower = Follower::new(&handle.0, start);
        while let Some(piece) = pieces.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) if has_no_log(&error) => break,
                Err(error) => return Err(self.refused(format!("reading the log of container {handle}"))(error)),
            };
            let stream = if matches!(piece, LogOutput::StdErr { .. }) { Stream::Err } else { Stream::Out };
            let bytes = piece.into_bytes();
            // The engine sends each message in a piece of its own and puts the time before it.
            match split_time(&bytes).filter(|_| timed) {
                Some((at, text)) if follower.is_new(at) => lines.push(stream, text),
                Some(_) => {}
                None => lines.push(stream, &bytes),
            }
        }
        let cursor = timed.then(|| follower.cursor());
        Ok((LogRead { lines: lines.finish(request.secrets), cursor }, follower.is_lost()))
    }
}

/// The request to the engine, and the largest number of lines to keep of its answer.
fn options(start: Start<'_>, timed: bool) -> (LogsOptions, usize) {
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).timestamps(timed);
    let (most, options) = match start {
        Start::Last(lines) => (lines, options),
        // The engine takes whole seconds only. `Follower` drops the lines of the cursor's own second that were
        // delivered.
        Start::Behind(cursor, lines) => (lines, options.since(i32::try_from(cursor.at.as_second()).unwrap_or(0))),
    };
    (options.tail(&most.to_string()).build(), usize::try_from(most).unwrap_or(usize::MAX))
}

/// Whether the container is gone, is being removed, or has a logging driver that cannot be read. Then there is no log
/// to read, and that is no fault.
fn has_no_log(error: &EngineError) -> bool {
    matches!(status(error), Some(404 | 409 | 501))
}
