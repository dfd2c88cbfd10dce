//! Pulls images as the policy says, each at most once in a pass, and keeps the registry's own message when a pull
//! fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker as Engine;
use bollard::auth::DockerCredentials;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use tokio::sync::{Mutex, OnceCell};

use super::{FAILED, status, words};
use crate::model::Cure;
use crate::orchestrator::StepError;
use crate::progress::{Progress, PullBar};
use crate::render::{self, PullPolicy, Registry};
use crate::secret::Secret;
use crate::stop::Stop;

/// How long a pull may report no progress before it is given up.
const PULL_SILENCE: Duration = Duration::from_mins(3);

const NO_PULL: Cure = Cure("see that the image exists and that P__DAEMON__REGISTRY__* has a login where one is needed");
const NO_IMAGE: Cure = Cure("load the image, or set P__DAEMON__DOCKER__IMAGE_PULL_POLICY=IfNotPresent");

/// The result for one image in this pass. Every connector that needs the image gets the same result.
type Outcome = Arc<OnceCell<Result<(), Fault>>>;

#[derive(Clone)]
enum Fault {
    Absent,
    Pull(String),
    LookUp(String),
}

/// The images that this pass has looked up or pulled, and the login that pulling needs.
pub(super) struct Images {
    server: Option<String>,
    login: Option<Login>,
    policy: Option<PullPolicy>,
    seen: Mutex<HashMap<String, Outcome>>,
    progress: Arc<Progress>,
}

struct Login {
    username: String,
    password: Secret,
    email: Option<String>,
}

impl Images {
    pub(super) fn new(registry: &Registry, policy: Option<PullPolicy>, progress: Arc<Progress>) -> Self {
        let login = match (&registry.username, &registry.password) {
            (Some(username), Some(password)) => {
                Some(Login { username: username.clone(), password: password.clone(), email: registry.email.clone() })
            }
            _ => None,
        };
        Self { server: registry.server.clone(), login, policy, seen: Mutex::default(), progress }
    }

    /// Makes sure that the engine has `image`, and pulls it when the policy says so.
    pub(super) async fn ensure(&self, engine: &Engine, image: &str, stop: &Stop) -> Result<(), StepError> {
        let outcome = Arc::clone(self.seen.lock().await.entry(image.to_owned()).or_default());
        // A pull that is cut off loses nothing, because the engine keeps the layers that it has.
        let ensured = tokio::select! {
            ensured = outcome.get_or_init(|| self.ensure_once(engine, image)) => ensured,
            () = stop.stopped() => return Err(StepError::Stopped("the pass ended while the image was pulled")),
        };
        let image = image.to_owned();
        ensured.clone().map_err(|fault| match fault {
            Fault::Absent => StepError::NoImage { image, cure: NO_IMAGE },
            Fault::Pull(why) => StepError::Pull { image, why, cure: NO_PULL },
            Fault::LookUp(why) => {
                StepError::Refused { what: format!("the image {image} cannot be looked up"), why, cure: FAILED }
            }
        })
    }

    async fn ensure_once(&self, engine: &Engine, image: &str) -> Result<(), Fault> {
        let policy = self.policy.unwrap_or_else(|| default_policy(image));
        if policy != PullPolicy::Always {
            match engine.inspect_image(image).await {
                Ok(_) => return Ok(()),
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => return Err(Fault::LookUp(words(&error))),
            }
        }
        if policy == PullPolicy::Never {
            return Err(Fault::Absent);
        }
        self.pull(engine, image).await.map_err(Fault::Pull)
    }

    async fn pull(&self, engine: &Engine, image: &str) -> Result<(), String> {
        tracing::info!(image, "pulling");
        let bar = self.progress.pull(image);
        let options = CreateImageOptionsBuilder::default().from_image(&with_tag(image)).build();
        let mut answers = engine.create_image(Some(options), None, self.credentials(image));
        loop {
            match tokio::time::timeout(PULL_SILENCE, answers.next()).await {
                Ok(Some(Ok(info))) => show(&bar, &info),
                Ok(Some(Err(error))) => return Err(words(&error)),
                Ok(None) => return Ok(()),
                Err(_) => return Err(format!("nothing was heard of it for {} s", PULL_SILENCE.as_secs())),
            }
        }
    }

    /// The login for the registry of this image. `None` for any registry other than the configured one, which must not
    /// see it.
    fn credentials(&self, image: &str) -> Option<DockerCredentials> {
        let login = self.login.as_ref()?;
        let host = self.server.as_deref().map(|server| server.split('/').next().unwrap_or(server));
        if render::registry_of(image) != host {
            return None;
        }
        Some(DockerCredentials {
            username: Some(login.username.clone()),
            password: Some(login.password.expose().to_owned()),
            email: login.email.clone(),
            serveraddress: host.map(str::to_owned),
            ..DockerCredentials::default()
        })
    }
}

/// Shows the progress of the download. The engine counts from zero again while it extracts a layer, so that part is not
/// shown.
fn show(bar: &PullBar, info: &CreateImageInfo) {
    let bytes = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
    let detail = info.progress_detail.as_ref().filter(|_| info.status.as_deref() == Some("Downloading"));
    let Some((id, detail)) = info.id.as_ref().zip(detail) else { return };
    if let (Some(done), Some(total)) = (bytes(detail.current), bytes(detail.total)) {
        bar.layer(id, done, total);
    }
}

/// The policy of an image when none is configured, which is the one that Kubernetes uses.
fn default_policy(image: &str) -> PullPolicy {
    if render::has_moving_tag(image) { PullPolicy::Always } else { PullPolicy::IfNotPresent }
}

/// Adds the tag `latest` to an image without a tag, because the engine would pull all tags of it.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}
