//! Looks up the address of a server once for many requests.
//!
//! The client library looks it up for every request, even for one that goes out on a connection that is open already, and
//! starts a thread for each look-up. In a pass over 100 connectors these were 200 threads, and as many questions to the
//! name server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How long an address is believed at most.
const BELIEVED: Duration = Duration::from_secs(5);

/// The library's own resolver, whose answers are believed for a few seconds. Failures are not remembered. Its clones share
/// what they know.
#[derive(Debug, Clone, Default)]
pub(crate) struct BelievingResolver {
    /// By `host:port`: when the answer came, and what it was.
    answers: Arc<Mutex<HashMap<String, (Instant, ResolvedSocketAddrs)>>>,
}

impl BelievingResolver {
    /// Has each name looked up again, because a server that does not answer may have moved.
    pub(crate) fn forget(&self) {
        self.answers().clear();
    }

    pub(super) fn answers(&self) -> MutexGuard<'_, HashMap<String, (Instant, ResolvedSocketAddrs)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver for BelievingResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let server = uri.scheme().zip(uri.authority());
        let server = server.and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let known = server.as_ref().and_then(|server| self.answers().get(server).cloned());
        if let Some((_, addresses)) = known.filter(|(came, _)| came.elapsed() < BELIEVED) {
            return Ok(addresses);
        }
        let addresses = DefaultResolver::default().resolve(uri, config, timeout)?;
        if let Some(server) = server {
            self.answers().insert(server, (Instant::now(), addresses.clone()));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// A name that is too long for any name server to be asked for it.
    fn nowhere() -> String {
        format!("{}:8443", "x".repeat(64))
    }

    fn ask(resolver: &BelievingResolver, server: &str) -> Option<SocketAddr> {
        let uri: Uri = format!("https://user:password@{server}/graphql").parse().unwrap();
        let resolved = resolver.resolve(&uri, &Config::default(), NextTimeout::default());
        resolved.ok().map(|addresses| addresses[0])
    }

    #[test]
    fn an_answer_is_believed_for_a_while_and_until_it_is_to_be_forgotten() {
        let address = "192.0.2.7:8443".parse().unwrap();
        let now = Instant::now();
        let after = |came: Instant| {
            let resolver = BelievingResolver::default();
            let mut addresses = resolver.empty();
            addresses.push(address);
            resolver.answers().insert(nowhere(), (came, addresses));
            resolver
        };
        let resolver = after(now);
        assert_eq!(ask(&resolver, &nowhere()), Some(address));
        resolver.clone().forget();
        assert_eq!(ask(&resolver, &nowhere()), None, "the name is looked up, and does not exist");
        assert_eq!(ask(&after(now.checked_sub(BELIEVED).unwrap()), &nowhere()), None);
    }

    #[test]
    fn what_was_found_is_remembered_without_a_login_and_what_was_not_found_is_not() {
        let resolver = BelievingResolver::default();
        assert!(ask(&resolver, "127.0.0.1:1").is_some() && ask(&resolver, &nowhere()).is_none());
        let known: Vec<_> = resolver.answers().keys().cloned().collect();
        assert_eq!(known, ["127.0.0.1:1"]);
    }
}
