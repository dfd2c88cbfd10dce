//! Decides whether and when a request is sent again. The caller chooses, because only it knows what sending it twice
//! would do.

use std::time::{Duration, Instant};

use super::transport::{Answer, Request, Transport, TransportError};
use crate::stop::Stop;

/// The number of attempts in all.
const ATTEMPTS: u32 = 4;
/// The wait before the second attempt. It doubles with each further one.
const BACKOFF: Duration = Duration::from_millis(200);
/// The longest `Retry-After` that is waited for. When a server asks for more, its answer is the last.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);
/// After this time, [`Retry::IdempotentAndPatient`] tries no more, because the pass holds its lock meanwhile.
const PATIENCE: Duration = Duration::from_secs(40);
/// The longest `Retry-After` that it waits for.
const PATIENT_RETRY_AFTER_MAX: Duration = Duration::from_secs(15);
/// How long a request may take once the pass is over, whose last calls still report what it did.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// For reads and for writes that may happen twice. They are sent again after a fault that may pass by itself.
    Idempotent,
    /// The same, and also after a timeout, but for [`PATIENCE`] in all. For XTM One, on which the work on the connectors
    /// does not depend.
    IdempotentAndPatient,
    /// For calls that add something. They are sent again only when the first one was certainly not carried out, because
    /// no connection was made or the server turned it away for its rate limit.
    IfNotCarriedOut,
    /// For calls that add something to a server that may be sent only once. After a lost answer it is unknown whether
    /// the call was carried out, so it is not repeated.
    Never,
}

/// Sends a request as often as `retry` and the pass's deadline allow, and returns the last answer.
pub(crate) fn send(
    transport: &Transport,
    stop: &Stop,
    retry: Retry,
    request: &Request<'_>,
) -> Result<Answer, TransportError> {
    send_watched(transport, stop, retry, request, |_| ())
}

/// The same. `watch` sees the result of every attempt.
pub(crate) fn send_watched(
    transport: &Transport,
    stop: &Stop,
    retry: Retry,
    request: &Request<'_>,
    mut watch: impl FnMut(&Result<Answer, TransportError>),
) -> Result<Answer, TransportError> {
    let begun = Instant::now();
    let (mut wait, mut attempt) = (BACKOFF, 1);
    loop {
        let timeout = request.timeout.min(stop.remaining().max(LAST_WORDS));
        let result = transport.send(&Request { timeout, ..*request });
        watch(&result);
        let pause = pause(&result, wait.mul_f64(0.5 + fastrand::f64()));
        let again = retry.again(&result) && attempt < ATTEMPTS && pause <= retry.longest_pause(begun.elapsed());
        if !again || !stop.sleep(pause) {
            return result;
        }
        tracing::debug!(attempt, path = request.path, "asking again");
        attempt += 1;
        wait *= 2;
    }
}

impl Retry {
    /// The longest pause that may come after so much time.
    fn longest_pause(self, since_begun: Duration) -> Duration {
        match self {
            Self::IdempotentAndPatient => PATIENT_RETRY_AFTER_MAX.min(PATIENCE.saturating_sub(since_begun)),
            _ => RETRY_AFTER_MAX,
        }
    }

    /// Whether the request should be sent again after this result.
    fn again(self, result: &Result<Answer, TransportError>) -> bool {
        match (self, result) {
            (Self::IdempotentAndPatient, Err(TransportError::Timeout { .. }))
            | (Self::IfNotCarriedOut, Err(TransportError::ConnectTimeout { .. })) => true,
            (Self::Idempotent | Self::IdempotentAndPatient, _) => may_pass(result),
            (Self::IfNotCarriedOut, Ok(answer)) => answer.status == 429,
            (Self::IfNotCarriedOut | Self::Never, _) => false,
        }
    }
}

/// Whether the same request may succeed a moment later.
fn may_pass(result: &Result<Answer, TransportError>) -> bool {
    match result {
        Ok(answer) => matches!(answer.status, 408 | 429 | 500 | 502 | 503 | 504),
        Err(
            TransportError::Unreachable { .. }
            | TransportError::ConnectTimeout { .. }
            | TransportError::Truncated { .. },
        ) => true,
        // Repeating a wrong login could lock the account on the proxy. A timeout has used up its time already.
        Err(TransportError::Timeout { .. } | TransportError::Tls { .. } | TransportError::Proxy { .. }) => false,
    }
}

/// The wait before the next attempt: ours, or the longer one that the server asks for.
fn pause(result: &Result<Answer, TransportError>, ours: Duration) -> Duration {
    match result {
        Ok(Answer { status: 429 | 503, retry_after: Some(asked), .. }) => ours.max(*asked),
        _ => ours,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Answer, Retry, TransportError, may_pass, pause};

    fn answer(status: u16, retry_after: Option<u64>) -> Answer {
        Answer { status, retry_after: retry_after.map(Duration::from_secs), ..Answer::default() }
    }

    #[test]
    fn only_what_may_pass_by_itself_is_asked_again() {
        let again: Vec<u16> = (200..600).filter(|status| may_pass(&Ok(answer(*status, None)))).collect();
        assert_eq!(again, [408, 429, 500, 502, 503, 504]);
        let url = String::new;
        assert!(may_pass(&Err(TransportError::Truncated { url: url(), why: String::new() })));
        assert!(!may_pass(&Err(TransportError::Proxy { url: url(), why: String::new() })));
    }

    #[test]
    fn what_adds_something_is_sent_again_only_when_it_was_not_carried_out() {
        let again: Vec<u16> =
            (200..600).filter(|status| Retry::IfNotCarriedOut.again(&Ok(answer(*status, None)))).collect();
        assert_eq!(again, [429]);
        let url = String::new;
        assert!(Retry::IfNotCarriedOut.again(&Err(TransportError::ConnectTimeout { url: url() })));
        let lost = || Err(TransportError::Truncated { url: url(), why: String::new() });
        assert!(!Retry::IfNotCarriedOut.again(&lost()) && Retry::Idempotent.again(&lost()));
        let late = Err(TransportError::Timeout { url: url(), after: Duration::from_secs(1) });
        assert!(Retry::IdempotentAndPatient.again(&late) && !Retry::Idempotent.again(&late));
    }

    // Shows what README says under "XTM One": "for less than a minute when XTM One hangs".
    #[test]
    fn a_server_that_hangs_costs_the_patient_less_than_a_minute() {
        // The default of XTM__REQUEST_TIMEOUT, and the longest pauses after the first tries.
        let (timeout, mut pause, mut passed) = (Duration::from_secs(15), super::BACKOFF.mul_f64(1.5), Duration::ZERO);
        for attempt in 1.. {
            passed += timeout;
            if attempt == super::ATTEMPTS || pause > Retry::IdempotentAndPatient.longest_pause(passed) {
                break;
            }
            (passed, pause) = (passed + pause, pause * 2);
        }
        assert!((30..60).contains(&passed.as_secs()), "{passed:?}");
    }

    #[test]
    fn the_server_may_lengthen_the_wait_and_never_shorten_it() {
        let ours = Duration::from_secs(2);
        assert_eq!(pause(&Ok(answer(429, Some(5))), ours), Duration::from_secs(5));
        assert_eq!(pause(&Ok(answer(503, Some(1))), ours), ours);
        assert_eq!(pause(&Ok(answer(500, Some(5))), ours), ours, "of no meaning there");
    }
}
