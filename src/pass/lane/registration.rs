//! The registration check of a lane: finds out whether this manager is registered, and registers it when that is
//! needed and its key can be the right one. The list is pulled here as well, because the key is tried on it.

use std::sync::Arc;
use std::time::Instant;

use super::{End, Known, Lane};
use crate::access::Permit;
use crate::desired::Desired;
use crate::memory::{Memory, Registration};
use crate::orchestrator::Orchestrator;
use crate::platform::{Heartbeat, PlatformError, Registrant};
use crate::prepare::{self, KeyTrial};
use crate::report::RegistrationReport;
use crate::stop::Cause;

/// Whether the key has to show that it is the right one, by opening a value that the platform lists for this manager.
///
/// A registration replaces the public key for which the platform encrypts everything that is typed from then on. With a
/// key that belongs elsewhere, nobody here could open those values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// The key is the one that was registered last, or the operator accepts it, or there is no key that it would
    /// replace. Nothing is decrypted.
    NotNeeded,
    BeforeRegistering,
    /// The platform gives its list to the registered manager alone, and this manager is not registered.
    AfterRegistering,
}

/// What a pass has to do about the registration.
struct Intent {
    remembered: Option<Registration>,
    wanted: Registration,
    /// Why this manager has to be registered. `None` when it does not.
    why: Option<String>,
    trial: Trial,
}

impl Lane<'_> {
    /// Sends a heartbeat, registers when anything that the registration depends on has changed, and pulls the list.
    ///
    /// A key that is not known to be the registered one is tried on the list first, and the lane ends without
    /// registering it when it opens none of the values there.
    pub(super) async fn register_and_pull<O: Orchestrator>(
        &mut self,
        orchestrator: &O,
        permit: Permit,
        version: &str,
        known: &mut Known,
    ) -> Result<Arc<Desired>, End> {
        let mut begun = Instant::now();
        let remembered = known.recalled.registration.clone();
        let was_registered = remembered.is_some();
        let heartbeat = self.ask("the heartbeat", move |platform| platform.heartbeat(permit, was_registered)).await?;
        let intent = self.intent(&heartbeat, version, remembered);
        let mut listed = None;
        if intent.trial == Trial::BeforeRegistering {
            listed = Some(self.pull_or_publish_health(orchestrator, permit, &mut known.recalled, &intent).await?);
            // The time of the list must not count twice.
            begun = Instant::now();
        }
        // With a key that was not tried yet in the memory, the next pass would take it for the right one. With the former
        // one there, a pass that has that key again would not register it.
        known.findings.registration_in_doubt = intent.trial == Trial::AfterRegistering;
        self.register(permit, &intent).await?;
        self.stage("register", begun);
        if !known.findings.registration_in_doubt {
            known.findings.registration = Some(intent.wanted.clone());
        }
        if let Some(desired) = listed {
            return Ok(desired);
        }
        let desired = self.pull_or_publish_health(orchestrator, permit, &mut known.recalled, &intent).await?;
        known.findings.registration = Some(intent.wanted);
        Ok(desired)
    }

    async fn register(&mut self, permit: Permit, intent: &Intent) -> Result<(), End> {
        let Some(why) = &intent.why else {
            self.report.platform.registration = Some(RegistrationReport::Known);
            return Ok(());
        };
        tracing::info!(why, "registering");
        self.ask("the registration", move |platform| platform.register(permit)).await?;
        let another_key = intent.remembered.as_ref().is_some_and(|remembered| remembered.key != intent.wanted.key);
        if let Some(notice) = self.platform.key_change_notice().filter(|_| another_key) {
            self.notice(&[notice.to_owned()]);
        }
        self.report.platform.registration = Some(RegistrationReport::Registered(why.clone()));
        Ok(())
    }

    /// Pulls the list without a write, as a pass would. Reports what [`Self::register_and_pull`] would do, and fails
    /// where that would refuse the key. `None` when the platform gives no list before a pass has registered.
    pub(super) async fn foresee_registration_and_pull(
        &mut self,
        version: &str,
        remembered: Option<&Registration>,
    ) -> Result<Option<Arc<Desired>>, End> {
        let known = remembered.is_some();
        let registrant = self.ask("who is registered", move |platform| platform.registrant(known)).await?;
        let heartbeat = match registrant {
            Registrant::Nobody | Registrant::Other { .. } => Heartbeat::Unregistered,
            Registrant::Ours | Registrant::Unknown(_) => Heartbeat::Known { registered_with: None },
        };
        let intent = self.intent(&heartbeat, version, remembered.cloned());
        let nobody = matches!(registrant, Registrant::Nobody);
        self.report.platform.registration = Some(match registrant {
            Registrant::Ours => intent
                .why
                .clone()
                .map_or(RegistrationReport::Known, |why| RegistrationReport::Planned(format!(": {why}"))),
            Registrant::Nobody => RegistrationReport::Planned(": the platform does not know this manager".to_owned()),
            Registrant::Other { who, .. } => {
                RegistrationReport::Planned(format!("; the platform has {who} already and may refuse"))
            }
            // A pass does not need this information.
            Registrant::Unknown(why) => RegistrationReport::Unknown(why),
        });
        if nobody && self.platform.lists_for_registered_only() {
            let title = self.platform.kind().title();
            self.report.notices.push(format!(
                "{title} gives its list to the registered composer alone: make one pass, which registers; then a plan can be made"
            ));
            return Ok(None);
        }
        if let Some(notice) = self.platform.listing_notice() {
            self.report.notices.push(format!("nothing was changed here; but {notice}"));
        }
        self.pull_and_try_key(&intent).await.map(Some)
    }

    fn intent(&self, heartbeat: &Heartbeat, version: &str, remembered: Option<Registration>) -> Intent {
        let wanted = self.platform.registration(version);
        let why = reason_to_register(heartbeat, remembered.as_ref(), &wanted).map(str::to_owned);
        let trial = trial(heartbeat, remembered.as_ref(), &wanted, self.platform.lists_for_registered_only());
        if trial == Trial::NotNeeded || !self.pass.manager.accept_new_key {
            return Intent { remembered, wanted, why, trial };
        }
        let why = why.map(|why| format!("{why}, and --accept-new-key accepts the key {} untried", wanted.key));
        Intent { remembered, wanted, why, trial: Trial::NotNeeded }
    }

    /// Pulls the list and tries the key on it where that is due. When either fails, health alone is published, so that
    /// the connectors do not look dead on the platform meanwhile.
    async fn pull_or_publish_health<O: Orchestrator>(
        &mut self,
        orchestrator: &O,
        permit: Permit,
        recalled: &mut Memory,
        intent: &Intent,
    ) -> Result<Arc<Desired>, End> {
        let pulled = self.pull_and_try_key(intent).await;
        if let Err(end) = &pulled {
            self.publish_health_alone(orchestrator, permit, recalled, end).await;
        }
        pulled
    }

    async fn pull_and_try_key(&mut self, intent: &Intent) -> Result<Arc<Desired>, End> {
        let desired = self.pull().await?;
        if intent.trial != Trial::NotNeeded {
            self.try_key(&desired, intent).await?;
        }
        Ok(desired)
    }

    /// Fails when there are encrypted values and the key opens none of them.
    async fn try_key(&mut self, desired: &Arc<Desired>, intent: &Intent) -> Result<(), End> {
        let begun = Instant::now();
        let (desired, manager) = (Arc::clone(desired), Arc::clone(&self.pass.manager));
        let (decryptors, stop) = (self.pass.decryptors.clone(), self.stop.clone());
        let work = move || prepare::try_key(&desired, &manager.key, &decryptors, &stop);
        let tried = tokio::task::spawn_blocking(work).await;
        let tried = tried
            .map_err(|lost| PlatformError::Abandoned { operation: "trying the key", why: lost.to_string() })?
            .ok_or_else(|| End::Stopped(self.stop.cause().unwrap_or(Cause::Deadline)))?;
        self.stage("try-key", begun);
        match tried {
            KeyTrial::Opens => Ok(()),
            KeyTrial::NothingToTry => {
                // A platform that knows neither this manager nor a value for it is a new one, and needs no notice.
                if intent.trial == Trial::BeforeRegistering || intent.remembered.is_some() {
                    self.notice(&[intent.untried()]);
                }
                Ok(())
            }
            KeyTrial::OpensNone { values } => {
                if let (Trial::BeforeRegistering, Some(why)) = (intent.trial, &intent.why) {
                    self.report.platform.registration = Some(RegistrationReport::Refused(why.clone()));
                }
                Err(PlatformError::WrongKey { what: intent.refusal(values, self.platform.url()) }.into())
            }
        }
    }
}

impl Intent {
    fn former_key(&self) -> String {
        match &self.remembered {
            Some(registration) => format!("the one that was registered last has the fingerprint {}", registration.key),
            None => "the fingerprint of the one that was registered last is not remembered".to_owned(),
        }
    }

    /// The notice for a list in which nothing is encrypted.
    fn untried(&self) -> String {
        format!(
            "the key with the fingerprint {} could not be tried, because no encrypted value is listed; {}",
            self.wanted.key,
            self.former_key()
        )
    }

    /// The error for a key that opens nothing.
    fn refusal(&self, values: usize, url: &str) -> String {
        let consequence = match self.trial {
            Trial::AfterRegistering => {
                "it had to be registered before it could be tried, because the list is given to the registered composer alone: \
                 everything that is typed there from now on is encrypted for it, and that is the wrong key unless a new one is meant"
            }
            Trial::BeforeRegistering | Trial::NotNeeded => {
                "so this pass does not register it: everything that is typed there from then on would be encrypted for it, and \
                 that is the wrong key unless a new one is meant"
            }
        };
        format!(
            "the key of this manager, with the fingerprint {}, opens none of the encrypted values that {url} lists ({values}); {}; \
             {consequence}",
            self.wanted.key,
            self.former_key()
        )
    }
}

/// Why this manager has to be registered. `None` when it does not. Pure.
fn reason_to_register(
    heartbeat: &Heartbeat,
    remembered: Option<&Registration>,
    wanted: &Registration,
) -> Option<&'static str> {
    let registered_with = match heartbeat {
        Heartbeat::Unregistered => return Some("the platform did not know this manager"),
        Heartbeat::Known { registered_with } => registered_with.as_ref(),
    };
    match remembered {
        None => Some("there is no memory of an earlier registration"),
        Some(known) if known.key != wanted.key => Some("this manager has another key"),
        Some(known) if known.version != wanted.version => Some("the platform has another version"),
        Some(known) if known.name != wanted.name => Some("this manager has another name"),
        Some(_) if registered_with.is_some_and(|version| *version != wanted.version) => {
            Some("the platform noted another version of itself at the last registration")
        }
        Some(_) => None,
    }
}

/// Whether the key has to be tried. Pure.
fn trial(
    heartbeat: &Heartbeat,
    remembered: Option<&Registration>,
    wanted: &Registration,
    lists_for_registered_only: bool,
) -> Trial {
    match (heartbeat, remembered) {
        (_, Some(remembered)) if remembered.key == wanted.key => Trial::NotNeeded,
        (Heartbeat::Unregistered, _) if lists_for_registered_only => Trial::AfterRegistering,
        (Heartbeat::Known { .. }, _) | (Heartbeat::Unregistered, Some(_)) => Trial::BeforeRegistering,
        // Neither side has seen this manager before. On a platform with another manager, asking for the list would have
        // tokens of that manager's connectors issued.
        (Heartbeat::Unregistered, None) => Trial::NotNeeded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(version: &str, key: &str, name: &str) -> Registration {
        Registration { version: version.to_owned(), key: key.to_owned(), name: name.to_owned() }
    }

    // Shows what README says under "What a pass does": "or when the key, the name or the platform's version has
    // changed".
    #[test]
    fn a_manager_registers_again_when_anything_that_it_depends_on_has_changed_and_else_not() {
        let known = |with: Option<&str>| Heartbeat::Known { registered_with: with.map(str::to_owned) };
        let wanted = registration("2", "k", "n");
        let reason = |heartbeat: &Heartbeat, remembered: Option<Registration>| {
            reason_to_register(heartbeat, remembered.as_ref(), &wanted).unwrap_or("none")
        };
        assert_eq!(reason(&known(None), Some(wanted.clone())), "none");
        assert_eq!(reason(&known(Some("2")), Some(wanted.clone())), "none");
        for (heartbeat, remembered, said) in [
            (Heartbeat::Unregistered, Some(wanted.clone()), "did not know"),
            (known(None), None, "no memory"),
            (known(None), Some(registration("1", "k", "n")), "another version"),
            (known(None), Some(registration("2", "x", "n")), "another key"),
            (known(None), Some(registration("1", "x", "n")), "another key"),
            (known(None), Some(registration("2", "k", "x")), "another name"),
            (known(Some("1")), Some(wanted.clone()), "noted another version"),
        ] {
            let why = reason(&heartbeat, remembered);
            assert!(why.contains(said), "{said}: {why}");
        }
    }

    // Shows what README says under "What a pass does": "So a key that is not known to be the registered one is tried on
    // the listed values first".
    #[test]
    fn a_key_is_tried_when_it_would_replace_one_that_may_be_another_and_else_nothing_is_decrypted() {
        let known = || Heartbeat::Known { registered_with: None };
        let (same, other) = (registration("1", "k", "x"), registration("2", "x", "n"));
        let wanted = registration("2", "k", "n");
        for (heartbeat, remembered, list_for_registered_only, tried) in [
            (known(), Some(&same), false, Trial::NotNeeded),
            (Heartbeat::Unregistered, Some(&same), true, Trial::NotNeeded),
            (known(), Some(&other), false, Trial::BeforeRegistering),
            (known(), Some(&other), true, Trial::BeforeRegistering),
            (known(), None, false, Trial::BeforeRegistering),
            (Heartbeat::Unregistered, Some(&other), false, Trial::BeforeRegistering),
            (Heartbeat::Unregistered, Some(&other), true, Trial::AfterRegistering),
            (Heartbeat::Unregistered, None, true, Trial::AfterRegistering),
            (Heartbeat::Unregistered, None, false, Trial::NotNeeded),
        ] {
            let what = format!("{heartbeat:?} {remembered:?} {list_for_registered_only}");
            assert_eq!(trial(&heartbeat, remembered, &wanted, list_for_registered_only), tried, "{what}");
        }
    }
}
