//! OpenCTI's settings, users and tokens (contracts 5).

use super::op;
use super::{OpenCti, version};
use crate::access::Permit;
use crate::model::{TokenId, UserId};
use crate::platform::error::PlatformError;
use crate::platform::retry::Retry;
use crate::platform::{Account, AccountPage, Accounts, NewToken, Profile, TOKEN_NAME};
use crate::secret::Secret;

pub(super) const USERS: &str = "users";
pub(super) const TOKEN_ADD: &str = "userAdminTokenAdd";
pub(super) const TOKEN_REVOKE: &str = "userAdminTokenRevoke";
const SETTINGS: &str = "settings";

/// How many users one page has. The platform allows 5,000 (contracts 5), but a page has to be answered in time.
const PAGE: i64 = 500;
/// The first version that registers itself with XTM One when it is configured to (contracts 6).
const REGISTERS_ITSELF_FROM: (u64, u64, u64) = (7, 260_306, 0);
const REGISTERS_ITSELF: &str = "OpenCTI registers itself with XTM One from 7.260306 on, when xtm:xtm_one_url and \
    xtm:xtm_one_token are set there; a registration from outside cannot give it the Enterprise Edition, and may \
    overwrite fields that it sent";
/// The states of a user who cannot log in. The platform has others for users who can.
const INACTIVE: [&str; 3] = ["inactive", "locked", "expired"];

impl OpenCti {
    /// Asks for the settings. A platform that does not know the fields of the licence is asked without them.
    pub(super) fn read_profile(&self, platform_version: &str) -> Result<Profile, PlatformError> {
        let known = version::parse(platform_version);
        let registers_itself = known.is_none_or(|version| version >= REGISTERS_ITSELF_FROM).then_some(REGISTERS_ITSELF);
        let profile = |id: String, title: Option<String>, url: Option<String>, licence_type: Option<String>| Profile {
            id,
            title: title.filter(|title| !title.trim().is_empty()),
            url: url.unwrap_or_default(),
            licence_type,
            registers_itself,
        };
        match self.query::<op::Settings>(SETTINGS, op::settings::Variables {}) {
            Ok(op::settings::ResponseData { settings }) => {
                let licence = settings.platform_enterprise_edition;
                let licence_type = licence.license_validated.then_some(licence.license_type);
                Ok(profile(settings.id, settings.platform_title, settings.platform_url, licence_type))
            }
            Err(PlatformError::NotSupported { .. }) => {
                let variables = op::settings_without_licence::Variables {};
                let settings = self.query::<op::SettingsWithoutLicence>(SETTINGS, variables)?.settings;
                Ok(profile(settings.id, settings.platform_title, settings.platform_url, None))
            }
            Err(error) => Err(error),
        }
    }
}

impl Accounts for OpenCti {
    fn page(&self, after: Option<&str>) -> Result<AccountPage, PlatformError> {
        let variables = op::users::Variables { first: Some(PAGE), after: after.map(str::to_owned) };
        let users = self.query::<op::Users>(USERS, variables)?.users.ok_or_else(|| self.null(USERS))?;
        let edges = users.edges.ok_or_else(|| self.null(USERS))?;
        let next = users.page_info.has_next_page.then_some(users.page_info.end_cursor);
        let accounts = edges.into_iter().map(|edge| {
            let user = edge.node;
            let named = user.api_tokens.into_iter().filter(|token| token.name == TOKEN_NAME);
            Account {
                id: UserId(user.id),
                active: !INACTIVE.contains(&user.account_status.to_ascii_lowercase().as_str()),
                service: user.user_service_account.unwrap_or(false),
                email: user.user_email,
                name: user.name,
                tokens: named.map(|token| TokenId(token.id)).collect(),
            }
        });
        Ok(AccountPage { accounts: accounts.collect(), next })
    }

    fn add_token(&self, _: Permit, user: &UserId) -> Result<NewToken, PlatformError> {
        let variables = op::token_add::Variables { user_id: user.0.clone(), name: TOKEN_NAME.to_owned() };
        let token = self.call::<op::TokenAdd>(TOKEN_ADD, variables, Retry::IfNotCarriedOut).map_err(unquoted)?;
        let token = token.user_admin_token_add;
        // An empty key would tell XTM One to keep the one that it has.
        if token.plaintext_token.trim().is_empty() {
            return Err(self.null(TOKEN_ADD));
        }
        Ok(NewToken { id: TokenId(token.token_id), key: Secret::new(token.plaintext_token) })
    }

    fn revoke_token(&self, _: Permit, user: &UserId, token: &TokenId) -> Result<(), PlatformError> {
        let variables = op::token_revoke::Variables { user_id: user.0.clone(), id: token.0.clone() };
        match self.query::<op::TokenRevoke>(TOKEN_REVOKE, variables) {
            // An earlier attempt revoked it, or the user is gone and the token with it.
            Err(PlatformError::Refused { message, .. }) if is_gone(&message) => Ok(()),
            done => done.map(drop),
        }
    }
}

/// The same error without a quotation of the answer, which may hold a token.
fn unquoted(error: PlatformError) -> PlatformError {
    match error {
        PlatformError::NotProtocol { operation, url, kind, wanted, .. } => {
            PlatformError::NotProtocol { operation, url, kind, wanted, excerpt: "(not shown)".to_owned() }
        }
        other => other,
    }
}

fn is_gone(message: &str) -> bool {
    ["Token not found", "User not found"].iter().any(|gone| message.starts_with(gone))
}
