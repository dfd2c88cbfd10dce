//! Reads the logs of pods: the last lines, or everything that was written since the last delivery.

use jiff::Timestamp;

use super::Kubernetes;
use super::condition::LogSource;
use crate::log_cursor::{Follower, LogCursor, LogPart, Start, split_time};
use crate::log_lines::{Assembler, Stream};
use crate::model::Handle;
use crate::orchestrator::{LogRead, LogRequest, OrchestratorError, StepContext};

/// The largest number of bytes to read of one log. The API server cuts the end of a longer answer, so such a log is
/// asked for again with fewer lines.
const LOG_BYTES: usize = 2 << 20;

/// The source of a log whose pod does not exist yet.
const NO_POD: &str = "";

impl Kubernetes {
    pub(super) async fn read_log(
        &self,
        handle: &Handle,
        request: &LogRequest<'_>,
    ) -> Result<LogRead, OrchestratorError> {
        let Some(source) = self.log_source(handle) else {
            // There is no pod yet, so everything that it will write is new.
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
                        // The next run must not continue the last line of this one.
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
                // Either the node rotated the log or the cursor names a time that is wrong. Begin anew.
                let (anew, _) = self.follow(&source, request, Start::Last(first)).await?;
                // After a rotation the log is empty until the next line comes, and that line is newer than the cursor.
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

    /// Reads the log that a step is about to end. What the connector writes while it ends is lost with its pod.
    pub(super) async fn read_last_log(&self, old: &Handle, context: StepContext<'_>) {
        if let Some(last_log) = context.last_log {
            last_log.read(self, old).await;
        }
    }

    /// Reads the lines of a pod behind `start`, including those of the run before. Also returns whether the cursor is
    /// lost, which means that the log holds nothing as new as the cursor.
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
        // The request has whole seconds only. `Follower` drops the lines of the cursor's own second that were
        // delivered.
        let since_second = since.and_then(|since| Timestamp::from_second(since.as_second()).ok());
        let since_query = since_second.map(|since| format!("&sinceTime={since}")).unwrap_or_default();
        let timed = format!("&timestamps=true{since_query}");
        let mut lines = Assembler::new(usize::try_from(most).unwrap_or(usize::MAX));
        let mut follower = Follower::new(&source.pod_uid, start);
        // The end of a run is noted in whole seconds as well.
        let before = source.ended_at.is_some_and(|ended| since_second.is_none_or(|since| ended >= since));
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

    /// Reads the last lines of one run. `options` are further parameters of the query, each beginning with `&`.
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
                // The answer is cut, and its newest lines are missing.
                Ok(bytes) if bytes.len() >= LOG_BYTES && tail > 1 => tail /= 2,
                Ok(bytes) => return Ok(bytes.to_vec()),
                // The container has not started, the pod is gone, or the log of the run before was deleted. There is no
                // log then, and that is no fault.
                Err(error) if error.is_absent() || error.code() == 400 => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
