//! Exit codes (design: Exit codes). Asserted by name in tests.

/// The pass converged, or there was nothing to say.
pub const OK: u8 = 0;
/// At least one connector failed or was rejected; all others were done.
pub const CONNECTOR_FAILED: u8 = 1;
/// `plan --detailed-exitcode`: changes are pending.
pub const CHANGES_PENDING: u8 = 2;
/// A platform could not be used: unreachable, refused the token or the registration, too old.
pub const PLATFORM: u8 = 3;
/// An orchestrator could not be used.
pub const ORCHESTRATOR: u8 = 4;
/// A guard refused.
pub const GUARD: u8 = 5;
/// Another pass holds the lock.
pub const LOCKED: u8 = 6;
/// Wrong arguments.
pub const USAGE: u8 = 64;
/// Invalid configuration.
pub const CONFIG: u8 = 78;
/// Stopped by SIGINT.
pub const INTERRUPTED: u8 = 130;
/// Stopped by SIGTERM.
pub const TERMINATED: u8 = 143;

/// The one code of several: 78 > 3 > 4 > 6 > 5 > 1 > 2 > 0; a signal's code stands above all but 78.
#[must_use]
pub fn worst(codes: impl IntoIterator<Item = u8>) -> u8 {
    const ORDER: [u8; 10] =
        [CONFIG, INTERRUPTED, TERMINATED, PLATFORM, ORCHESTRATOR, LOCKED, GUARD, CONNECTOR_FAILED, CHANGES_PENDING, OK];
    let place = |code: &u8| ORDER.iter().position(|known| known == code).unwrap_or(0);
    codes.into_iter().min_by_key(place).unwrap_or(OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows what README says under "Exit codes": "Of several the gravest counts: 78, then a signal's, 3, 4, 6, 5, 1.".
    #[test]
    fn of_several_codes_the_gravest_counts() {
        assert_eq!(worst([CONNECTOR_FAILED, GUARD, ORCHESTRATOR, PLATFORM]), PLATFORM);
        assert_eq!(worst([CONNECTOR_FAILED, GUARD, ORCHESTRATOR]), ORCHESTRATOR);
        assert_eq!(worst([CONNECTOR_FAILED, GUARD]), GUARD);
        assert_eq!(worst([OK, CONNECTOR_FAILED]), CONNECTOR_FAILED);
        assert_eq!(worst([PLATFORM, CONFIG]), CONFIG);
        assert_eq!(worst([]), OK);
    }
}
