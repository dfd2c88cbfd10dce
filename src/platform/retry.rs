//! Whether and when a request is sent again. Each call chooses, for only the call knows what sending it twice would do.

use std::time::Duration;

use super::transport::{Answer, Request, Transport, TransportError};
use crate::stop::Stop;

/// Attempts in all.
const ATTEMPTS: u32 = 4;
/// Wait before the second attempt; doubles with each one.
const BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait that a server may ask for with Retry-After.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);
/// What a request may take when the pass is over: its last calls still say what it did.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Reads, and writes that may happen twice: sent again after what may pass by itself.
    Idempotent,
    /// Calls that create something. A lost answer does not tell whether the call was carried out, so it is not repeated.
    Never,
}

/// Sends a request as often as `retry` and the pass's deadline allow, and gives the last answer.
pub(crate) fn send(
    transport: &Transport,
    stop: &Stop,
    retry: Retry,
    request: &Request<'_>,
) -> Result<Answer, TransportError> {
    let mut wait = BACKOFF;
    let mut attempt = 1;
    loop {
        let timeout = request.timeout.min(stop.remaining().max(LAST_WORDS));
        let result = transport.send(&Request { timeout, ..*request });
        let pause = pause(&result, wait.mul_f64(0.5 + fastrand::f64()));
        let again = retry == Retry::Idempotent && attempt < ATTEMPTS && may_pass(&result) && pause <= RETRY_AFTER_MAX;
        if !again || !stop.sleep(pause) {
            return result;
        }
        tracing::debug!(attempt, path = request.path, "asking the platform again");
        attempt += 1;
        wait *= 2;
    }
}

/// Whether asking again may help.
fn may_pass(result: &Result<Answer, TransportError>) -> bool {
    match result {
        Ok(answer) => matches!(answer.status, 429 | 500 | 502 | 503 | 504),
        Err(
            TransportError::Unreachable { .. }
            | TransportError::ConnectTimeout { .. }
            | TransportError::Truncated { .. },
        ) => true,
        // Asking a proxy again with a wrong login could lock the account; a timeout has taken its time already.
        Err(TransportError::Timeout { .. } | TransportError::Tls { .. } | TransportError::Proxy { .. }) => false,
    }
}

/// Not less than the server asks for.
fn pause(result: &Result<Answer, TransportError>, ours: Duration) -> Duration {
    match result {
        Ok(Answer { status: 429 | 503, retry_after: Some(asked), .. }) => ours.max(*asked),
        _ => ours,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Answer, TransportError, may_pass, pause};

    fn answer(status: u16, retry_after: Option<u64>) -> Result<Answer, TransportError> {
        Ok(Answer { status, retry_after: retry_after.map(Duration::from_secs), ..Answer::default() })
    }

    #[test]
    fn only_what_may_pass_by_itself_is_asked_again() {
        let again: Vec<u16> = (200..600).filter(|status| may_pass(&answer(*status, None))).collect();
        assert_eq!(again, [429, 500, 502, 503, 504]);
        let url = String::new;
        assert!(may_pass(&Err(TransportError::Truncated { url: url(), why: String::new() })));
        assert!(!may_pass(&Err(TransportError::Proxy { url: url(), why: String::new() })));
    }

    #[test]
    fn the_server_may_lengthen_the_wait_and_never_shorten_it() {
        let ours = Duration::from_secs(2);
        assert_eq!(pause(&answer(429, Some(5)), ours), Duration::from_secs(5));
        assert_eq!(pause(&answer(503, Some(1)), ours), ours);
        assert_eq!(pause(&answer(500, Some(5)), ours), ours, "of no meaning there");
    }
}
