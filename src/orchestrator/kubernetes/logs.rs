//! Logs of pods: the last lines of one, or what was written since they were read last.

use jiff::Timestamp;

use super::Kubernetes;
use super::condition::LogSource;
use crate::log_cursor::{Follower, LogCursor, LogPart, Start, split_time};
use crate::log_lines::{Assembler, Stream};
use crate::model::Handle;
use crate::orchestrator::{LogRead, LogRequest, OrchestratorError, StepContext};

/// Most bytes that are read of one log. The API server keeps the first of them, so that a log that is longer is asked for
/// again, from further on.
const LOG_BYTES: usize = 2 << 20;

/// Stands for the pod that is not there yet.
const NO_POD: &str = "";

impl Kubernetes {
    pub(super) async fn read_log(
        &self,
        handle: &Handle,
        request: &LogRequest<'_>,
    ) -> Result<LogRead, OrchestratorError> {
        let Some(source) = self.log_source(handle) else {
            // Whatever its pod will write is new.
            let cursor = match request.part {
                LogPart::New { after: None, .. } => Some(LogCursor::before_any_line_of(NO_POD)),
                _ => None,
            };
            return Ok(LogRead { lines: vec![], cursor });
        };
        match request.part {
            LogPart::Last(tail) => {
                let mut lines = Assembler::new(usize::try_from(tail).unwrap_or(usize::MAX));
                for (wanted, previous) in [(source.previous, true), (source.current, false)] {
                    if wanted {
                        let bytes = self.fetch(&source, previous, tail, "").await?;
                        lines.push(Stream::Out, &bytes);
                        // The next run begins a line of its own.
                        lines.push(Stream::Out, if bytes.is_empty() || bytes.ends_with(b"\n") { b"" } else { b"\n" });
                    }
                }
                Ok(LogRead { lines: lines.finish(request.secrets), cursor: None })
            }
            LogPart::New { after, first, .. } => {
                let (read, lost) = self.follow(&source, request, request.part.start(&source.pod_uid)).await?;
                if !lost || after.is_none() {
                    return Ok(read);
                }
                // The node rotated the log, or the cursor names a time that never was: begin anew.
                let (anew, _) = self.follow(&source, request, Start::Last(first)).await?;
                // After a rotation nothing is there until the next line comes, which is then newer than the cursor.
                if anew.cursor.as_ref().is_none_or(|cursor| cursor.lines == 0) {
                    return Ok(LogRead { lines: vec![], ..read });
                }
                tracing::warn!(
                    pod = source.pod,
                    "the log holds nothing as new as what was delivered last; its last lines are sent"
                );
                Ok(anew)
            }
        }
    }

    /// The log that a step is about to end. What the connector writes while it ends is lost with its pod.
    pub(super) async fn last_log(
        &self,
        old: &Handle,
        context: StepContext<'_>,
    ) -> Option<Result<LogRead, OrchestratorError>> {
        Some(self.read_log(old, context.last_log?).await)
    }

    /// The lines of a pod behind `start`, those of the run before included; also whether nothing is as new as the cursor.
    async fn follow(
        &self,
        source: &LogSource,
        request: &LogRequest<'_>,
        start: Start<'_>,
    ) -> Result<(LogRead, bool), OrchestratorError> {
        let (most, since) = match start {
            Start::Last(lines) => (lines, None),
            Start::Behind(cursor, lines) => (lines, Some(cursor.at)),
        };
        // Whole seconds: the lines of the cursor's own second are sorted here.
        let since_second = since.and_then(|since| Timestamp::from_second(since.as_second()).ok());
        let since_query = since_second.map(|since| format!("&sinceTime={since}")).unwrap_or_default();
        let timed = format!("&timestamps=true{since_query}");
        let mut lines = Assembler::new(usize::try_from(most).unwrap_or(usize::MAX));
        let mut follower = Follower::new(&source.pod_uid, start);
        let before = source.ended_at.is_some_and(|ended| since.is_none_or(|since| ended >= since));
        for (wanted, previous) in [(before, true), (source.current, false)] {
            if !wanted {
                continue;
            }
            let bytes = self.fetch(source, previous, most, &timed).await?;
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                if let Some((at, text)) = split_time(line)
                    && follower.is_new(at)
                {
                    lines.push(Stream::Out, text);
                    lines.push(Stream::Out, if text.ends_with(b"\n") { b"" } else { b"\n" });
                }
            }
        }
        let lost = follower.is_lost();
        Ok((LogRead { lines: lines.finish(request.secrets), cursor: Some(follower.cursor()) }, lost))
    }

    /// The last lines of one run. `options` are more of the query's.
    async fn fetch(
        &self,
        source: &LogSource,
        previous: bool,
        tail: u32,
        options: &str,
    ) -> Result<Vec<u8>, OrchestratorError> {
        let (pod, container) = (&source.pod, &source.container);
        let mut tail = tail;
        loop {
            let query =
                format!("container={container}&previous={previous}&tailLines={tail}&limitBytes={LOG_BYTES}{options}");
            match self.api.log(pod, &query).await {
                // Cut, and it is the newest that is missing.
                Ok(bytes) if bytes.len() >= LOG_BYTES && tail > 1 => tail /= 2,
                Ok(bytes) => return Ok(bytes.to_vec()),
                // Not started yet, gone, or the run before was already cleaned away: there is no log, and no fault either.
                Err(error) if error.is_absent() || error.code() == 400 => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
