//! The registries that `tests/run` started: one wants a login, one does not.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Value, json};

use super::engine::{Engine, Reply, split_tag};

/// A user of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// A real registry on the loopback.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    /// Whom it lets in; `None` when everybody.
    pub(crate) login: Option<Login>,
}

impl Registry {
    /// The registry that refuses reading and writing without login.
    #[track_caller]
    pub(crate) fn with_login() -> Self {
        let user = super::variable("XTM_TEST_REGISTRY_USER");
        let password = super::variable("XTM_TEST_REGISTRY_PASSWORD");
        Self { address: super::variable("XTM_TEST_REGISTRY"), login: Some(Login { user, password }) }
    }

    /// The registry for everybody.
    #[track_caller]
    pub(crate) fn open() -> Self {
        Self { address: super::variable("XTM_TEST_REGISTRY_OPEN"), login: None }
    }

    /// The full name of an image here: `127.0.0.1:PORT/NAME`.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Puts an image of the engine here as `name` (`repository:tag`) and takes that name from the engine again, so
    /// that its next use must pull. Returns the full name.
    #[track_caller]
    pub(crate) fn push(&self, engine: &Engine, image: &str, name: &str) -> String {
        let reference = self.reference(name);
        engine.tag(image, &reference);
        let (repository, tag) = split_tag(&reference);
        let auth = auth_header(self.login.as_ref(), &self.address);
        let reply = engine.request("POST", &format!("/images/{repository}/push?tag={tag}"), &auth, &[]);
        progress_result(&reply).unwrap_or_else(|error| panic!("push {reference}: {error}"));
        engine.untag(&reference);
        reference
    }
}

impl Engine {
    /// Pulls an image by hand, with a login or without.
    pub(crate) fn pull(&self, reference: &str, login: Option<&Login>) -> Result<(), String> {
        let (image, tag) = split_tag(reference);
        let address = image.split('/').next().unwrap_or_default();
        let path = format!("/images/create?fromImage={image}&tag={tag}");
        progress_result(&self.request("POST", &path, &auth_header(login, address), &[]))
    }
}

fn auth_header(login: Option<&Login>, address: &str) -> String {
    let auth = login.map_or_else(
        || json!({}),
        |login| json!({"username": login.user, "password": login.password, "serveraddress": address}),
    );
    format!("X-Registry-Auth: {}\r\n", URL_SAFE.encode(auth.to_string()))
}

/// A pull or a push answers 200 and reports its failure in a line of its progress.
fn progress_result(reply: &Reply) -> Result<(), String> {
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    if reply.status != 200 {
        return Err(text);
    }
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find_map(|line| line["error"].as_str().map(str::to_owned)).map_or(Ok(()), Err)
}
