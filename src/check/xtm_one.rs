//! Checks what a registration with XTM One needs, without registering.

use super::Lines;
use crate::exit;
use crate::platform::Platform;
use crate::stop::Stop;
use crate::xtm_one::{Probe, XtmOne, XtmOneSettings};

const WHAT: &str = "XTM One";

/// Checks the address, TLS, the form of the token, and what the platform would be registered as. `version` is that of
/// the platform, `None` when it is not known. Blocks its thread.
pub(super) fn check(
    settings: &XtmOneSettings,
    platform: &dyn Platform,
    version: Option<&str>,
    stop: &Stop,
    lines: &mut Lines,
) {
    let url = &settings.endpoint.url;
    match XtmOne::new(settings, stop.clone()).probe() {
        Ok(Probe::Issuer(issuer)) => lines.good(WHAT, format!("{url} answers, as the issuer {issuer}")),
        Ok(Probe::NoMetadata) => {
            lines.open(
                WHAT,
                format!("{url} answers, and has no metadata: an older build of XTM One, or another server"),
            );
        }
        Err(error) => lines.bad(WHAT, exit::CONNECTOR_FAILED, format!("{error}; {}", error.cure())),
    }
    let hint = settings.endpoint.token.hint("");
    lines.good(WHAT, format!("the token {hint} has the form of one; only a registration shows whether it is accepted"));
    let Some(version) = version else { return };
    match platform.profile(version) {
        Ok(profile) => {
            if let Some(itself) = profile.registers_itself {
                let done = if settings.force { "registered all the same (XTM__FORCE)" } else { "left alone" };
                lines.open(WHAT, format!("{done}: {itself}"));
            }
            let told = settings.platform_url.as_deref().unwrap_or(&profile.url);
            lines.good(WHAT, format!("the platform would be registered with the URL {told}, id {}", profile.id));
        }
        Err(error) => lines.bad(
            WHAT,
            exit::CONNECTOR_FAILED,
            format!("the platform's settings cannot be read: {error}; {}", error.cure().on(platform.kind())),
        ),
    }
    if let Some(licence) = &settings.licence {
        lines.open(WHAT, format!("the licence in XTM__LICENSE_PEM ends at {:.0}", licence.expires));
    }
}
