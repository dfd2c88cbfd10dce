//! Looks up the address of a server once for many requests.
//!
//! The client library looks it up for every request, even for one that goes out on a connection that is open already, and
//! starts a thread for each look-up. In a pass over 100 connectors these were 200 threads, and as many questions to the
//! name server.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::http::uri::{Authority, Scheme};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How long an address is believed. After that, a server that has moved is found by the same pass as well.
const BELIEVED: Duration = Duration::from_secs(5);

/// The library's own resolver, whose answers are believed for a few seconds. Failures are not remembered.
#[derive(Debug, Default)]
pub(crate) struct BelievingResolver {
    resolver: DefaultResolver,
    /// When each server was asked for, and what the answer was.
    answers: Mutex<HashMap<Server, (Instant, ResolvedSocketAddrs)>>,
}

type Server = (Option<Scheme>, Option<Authority>);

impl Resolver for BelievingResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let server = (uri.scheme().cloned(), uri.authority().cloned());
        let answers = || self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, addresses)) = answers().get(&server).filter(|(asked, _)| asked.elapsed() < BELIEVED) {
            return Ok(addresses.clone());
        }
        let asked = Instant::now();
        let addresses = self.resolver.resolve(uri, config, timeout)?;
        answers().insert(server, (asked, addresses.clone()));
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use ureq::config::Config;
    use ureq::http::Uri;
    use ureq::unversioned::resolver::Resolver as _;
    use ureq::unversioned::transport::NextTimeout;

    use super::{BELIEVED, BelievingResolver};

    /// A name that is too long for any name server to be asked for it.
    fn nowhere() -> String {
        "x".repeat(64)
    }

    /// What a resolver says that got this address for a name that does not exist, at this time.
    fn later(asked: Instant) -> Option<SocketAddr> {
        let uri: Uri = format!("https://{}:8443/graphql", nowhere()).parse().unwrap();
        let resolver = BelievingResolver::default();
        let mut addresses = resolver.resolver.empty();
        addresses.push("192.0.2.7:8443".parse().unwrap());
        let server = (uri.scheme().cloned(), uri.authority().cloned());
        resolver.answers.lock().unwrap().insert(server, (asked, addresses));
        let resolved = resolver.resolve(&uri, &Config::default(), NextTimeout::default());
        resolved.ok().map(|addresses| addresses[0])
    }

    #[test]
    fn an_address_is_asked_for_again_only_after_a_while() {
        let now = Instant::now();
        assert_eq!(later(now), Some("192.0.2.7:8443".parse().unwrap()));
        assert_eq!(later(now.checked_sub(BELIEVED).unwrap()), None, "the name is looked up, and does not exist");
    }

    #[test]
    fn what_was_found_is_remembered_and_what_was_not_found_is_not() {
        let resolver = BelievingResolver::default();
        let ask = |url: &str| {
            let uri: Uri = url.parse().unwrap();
            resolver.resolve(&uri, &Config::default(), NextTimeout::default()).is_ok()
        };
        assert!(ask("http://127.0.0.1:1/") && ask("http://127.0.0.1:1/other"));
        assert!(!ask(&format!("http://{}/", nowhere())));
        let known: Vec<_> = resolver.answers.lock().unwrap().keys().cloned().collect();
        assert_eq!(known.len(), 1, "{known:?}");
    }
}
