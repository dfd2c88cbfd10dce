//! Builds what is sent to XTM One (contracts 4). Pure.

use serde::Serialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{PayloadChoice, XtmOneSettings};
use crate::model::PlatformKind;
use crate::platform::{Profile, version};
use crate::secret::Secret;

/// The first date, as it stands in version numbers, from which platforms send intents instead of users.
const INTENTS_FROM: u64 = 260_401;
/// How many bytes one user takes beside its texts.
const USER_BYTES: usize = 64;
/// How many bytes the payload takes beside its users and certificates.
const FIXED_BYTES: usize = 8192;

/// The generation of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Generation {
    Users,
    Intents,
}

impl Generation {
    /// The generation to send for a platform of this version. One that cannot be read is of a development build and gets
    /// the newest.
    pub(super) fn of(choice: PayloadChoice, platform_version: &str) -> Self {
        match choice {
            PayloadChoice::Users => Self::Users,
            PayloadChoice::Intents => Self::Intents,
            PayloadChoice::ByVersion => match version::parse(platform_version) {
                // The second number is a date from OpenCTI 7 and OpenAEV 3 on. A small one is of an older version.
                Some((_, minor, _)) if minor < INTENTS_FROM => Self::Users,
                _ => Self::Intents,
            },
        }
    }
}

/// The key of a user.
#[derive(Debug, Clone, Copy)]
pub(super) enum Key<'a> {
    /// XTM One has it and keeps it.
    Known,
    New(&'a Secret),
    /// The key that a pass would make. `plan` alone shows it.
    ToMake,
}

/// A user as XTM One is told about it.
#[derive(Debug)]
pub(super) struct User<'a> {
    pub(super) email: &'a str,
    pub(super) name: &'a str,
    pub(super) key: Key<'a>,
}

/// Everything that one registration says.
#[derive(Debug)]
pub(super) struct Payload<'a> {
    pub(super) settings: &'a XtmOneSettings,
    pub(super) platform: PlatformKind,
    pub(super) version: &'a str,
    pub(super) profile: &'a Profile,
    pub(super) generation: Generation,
    pub(super) users: Vec<User<'a>>,
}

#[derive(Serialize)]
struct Wire<'a> {
    platform_identifier: &'a str,
    platform_url: &'a str,
    platform_title: &'a str,
    platform_version: &'a str,
    platform_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    enterprise_license_pem: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_api_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    users: Option<Vec<WireUser<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    business_vertical: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    intents: Option<Vec<WireIntent>>,
}

#[derive(Serialize)]
struct WireUser<'a> {
    email: &'a str,
    display_name: &'a str,
    api_key: &'a str,
}

#[derive(Serialize)]
struct WireIntent {
    name: &'static str,
    description: &'static str,
}

/// Whether secrets are in the clear.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrets {
    Clear,
    Hidden,
}

impl Payload<'_> {
    /// The JSON to send. It is wiped in the end.
    pub(super) fn body(&self) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
        let pem = self.settings.licence.as_ref().map_or(0, |licence| licence.pem.expose().len() * 2);
        let users = self.users.iter().map(|user| {
            let key = if let Key::New(key) = user.key { key.expose().len() } else { 0 };
            // An escaped character takes up to six bytes.
            (user.email.len() + user.name.len()) * 6 + key + USER_BYTES
        });
        // A body that outgrows its first place in memory would leave a copy there, which is not wiped.
        let mut body = Zeroizing::new(Vec::with_capacity(FIXED_BYTES + pem + users.sum::<usize>()));
        serde_json::to_writer(&mut *body, &self.wire(Secrets::Clear))?;
        Ok(body)
    }

    /// What is sent, without the secrets.
    pub(super) fn shown(&self) -> Value {
        serde_json::to_value(self.wire(Secrets::Hidden)).unwrap_or_default()
    }

    /// Everything in the payload that nobody else may see.
    pub(super) fn secrets(&self) -> Vec<&Secret> {
        let settings = self.settings;
        let keys = self.users.iter().filter_map(|user| if let Key::New(key) = user.key { Some(key) } else { None });
        let pem = settings.licence.as_ref().map(|licence| &licence.pem);
        keys.chain(settings.admin_key.as_ref()).chain(pem).chain([&settings.endpoint.token]).collect()
    }

    fn wire(&self, secrets: Secrets) -> Wire<'_> {
        let clear = secrets == Secrets::Clear;
        let opencti = self.platform == PlatformKind::OpenCti;
        let with_users = self.generation == Generation::Users && opencti;
        let with_intents = self.generation == Generation::Intents;
        let title = if opencti { "OpenCTI Platform" } else { "OpenAEV Platform" };
        let licence = self.settings.licence.as_ref();
        let admin_key = self.settings.admin_key.as_ref().filter(|_| with_users);
        let users = self.users.iter().map(|user| WireUser {
            email: user.email,
            display_name: if user.name.trim().is_empty() { user.email } else { user.name },
            api_key: match user.key {
                Key::New(key) if clear => key.expose(),
                Key::New(_) | Key::ToMake => "[new token]",
                Key::Known => "",
            },
        });
        Wire {
            platform_identifier: self.platform.label(),
            platform_url: self.settings.platform_url.as_deref().unwrap_or(&self.profile.url),
            platform_title: self.profile.title.as_deref().unwrap_or(title),
            platform_version: self.version,
            platform_id: &self.profile.id,
            enterprise_license_pem: licence.map(|it| if clear { it.pem.expose() } else { "[certificate]" }),
            license_type: self.profile.licence_type.as_deref(),
            admin_api_key: admin_key.map(|key| if clear { key.expose() } else { "[secret]" }),
            users: with_users.then(|| users.collect()),
            business_vertical: with_intents.then_some(if opencti { "cti" } else { "aev" }),
            intents: with_intents.then(|| if opencti { intents() } else { vec![] }),
        }
    }
}

/// What OpenCTI asks agents for (contracts 6).
fn intents() -> Vec<WireIntent> {
    const INTENTS: [(&str, &str); 20] = [
        ("global.assistant", "Answers questions of any kind"),
        ("global.make_it_shorter", "Makes a text shorter"),
        ("global.make_it_longer", "Makes a text longer"),
        ("global.fix_spelling", "Corrects spelling and grammar"),
        ("global.change_tone", "Rewrites a text in another tone"),
        ("global.summarize", "Sums up a text"),
        ("global.explain", "Explains a text in plain words"),
        ("cti.container_summary", "Sums up a report, grouping or case of OpenCTI"),
        ("cti.container_report", "Writes a report about a report, grouping or case of OpenCTI"),
        ("cti.containers_digest", "Sums up the reports, groupings and cases about one entity"),
        ("cti.entity_activity", "Describes how the activity of an entity develops"),
        ("cti.entity_forecast", "Forecasts the activity of an entity"),
        ("cti.entity_history", "Sums up what OpenCTI knows of the history of an entity"),
        ("cti.nlq_search", "Makes an OpenCTI filter of a question in plain language"),
        ("cti.stix_harvester", "Extracts STIX 2.1 from a document"),
        ("cti.stix_transformer", "Changes STIX 2.1 and returns STIX 2.1"),
        ("cti.stix_consumer", "Takes STIX 2.1 at the end of a playbook"),
        ("cti.curation_adjudicate", "Decides on an unclear proposal of a merge or an alias"),
        ("cti.hunt_hypothesis", "Plans a hunt: a hypothesis, a rule and what should be seen"),
        ("cti.hunt_triage", "Judges the evidence of a hunt"),
    ];
    INTENTS.map(|(name, description)| WireIntent { name, description }).into()
}
