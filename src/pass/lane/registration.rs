//! The registration check of a lane: finds out whether this manager is registered, and registers it when that is
//! needed.

use super::{End, Lane};
use crate::access::Permit;
use crate::memory::Registration;
use crate::platform::{Heartbeat, Registrant};

impl Lane<'_> {
    /// Sends a heartbeat, and registers when anything that the registration depends on has changed. Returns what is
    /// registered now.
    pub(super) async fn register(
        &mut self,
        permit: Permit,
        version: &str,
        remembered: Option<&Registration>,
    ) -> Result<Registration, End> {
        let begun = std::time::Instant::now();
        let known = remembered.is_some();
        let heartbeat = self.ask("the heartbeat", move |platform| platform.heartbeat(permit, known)).await?;
        let wanted = self.platform.registration(version);
        let reason = reason_to_register(&heartbeat, remembered, &wanted);
        if let Some(why) = reason {
            tracing::info!(why, "registering");
            self.ask("the registration", move |platform| platform.register(permit)).await?;
            let another_key = remembered.is_some_and(|remembered| remembered.key != wanted.key);
            if let Some(notice) = self.platform.key_change_notice().filter(|_| another_key) {
                self.notice(&[notice.to_owned()]);
            }
        }
        let told = reason.map_or("known".to_owned(), |why| format!("registered: {why}"));
        self.report.platform.registration = Some(told);
        self.stage("register", begun);
        Ok(wanted)
    }

    /// Reports what [`Self::register`] would do, without a write. False when the platform gives no list before a pass
    /// has registered.
    pub(super) async fn foresee_registration(
        &mut self,
        version: &str,
        remembered: Option<&Registration>,
    ) -> Result<bool, End> {
        let known = remembered.is_some();
        let wanted = self.platform.registration(version);
        let registrant = self.ask("who is registered", move |platform| platform.registrant(known)).await?;
        let nobody = matches!(registrant, Registrant::Nobody);
        let told = match registrant {
            Registrant::Ours => {
                let heartbeat = Heartbeat::Known { registered_with: None };
                let reason = reason_to_register(&heartbeat, remembered, &wanted);
                reason.map_or("known".to_owned(), |why| format!("to register: {why}"))
            }
            Registrant::Nobody => "to register: the platform does not know this manager".to_owned(),
            Registrant::Other { who, .. } => format!("to register; the platform has {who} already and may refuse"),
            // A pass does not need this information.
            Registrant::Unknown(why) => format!("cannot be told: {why}"),
        };
        self.report.platform.registration = Some(told);
        if nobody && self.platform.lists_for_registered_only() {
            let title = self.platform.kind().title();
            self.report.notices.push(format!(
                "{title} gives its list to the registered composer alone: make one pass, which registers; then a plan can be made"
            ));
            return Ok(false);
        }
        if let Some(notice) = self.platform.listing_notice() {
            self.report.notices.push(format!("nothing was changed here; but {notice}"));
        }
        Ok(true)
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
        Some(known) if known.version != wanted.version => Some("the platform has another version"),
        Some(known) if known.key != wanted.key => Some("this manager has another key"),
        Some(known) if known.name != wanted.name => Some("this manager has another name"),
        Some(_) if registered_with.is_some_and(|version| *version != wanted.version) => {
            Some("the platform noted another version of itself at the last registration")
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(version: &str, key: &str, name: &str) -> Registration {
        Registration { version: version.to_owned(), key: key.to_owned(), name: name.to_owned() }
    }

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
            (known(None), Some(registration("2", "k", "x")), "another name"),
            (known(Some("1")), Some(wanted.clone()), "noted another version"),
        ] {
            let why = reason(&heartbeat, remembered);
            assert!(why.contains(said), "{said}: {why}");
        }
    }
}
