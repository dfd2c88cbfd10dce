//! The engine without the program: the same creates and starts, made as fast as it takes them, and clearing up.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::runtime::Runtime;

/// Labels by which everything that the program makes is found.
const OWNER_LABELS: [&str; 2] = ["opencti-manager", "xtm-reconcile.manager"];
/// Longest wait for one answer, in seconds.
const TIMEOUT_S: u64 = 120;

/// The engine, for one manager's containers, several at a time.
pub(crate) struct Direct {
    engine: Docker,
    runtime: Runtime,
    manager: String,
    concurrency: usize,
}

/// A container to create, under its name.
pub(crate) type New = (String, ContainerCreateBody);

impl Direct {
    pub(crate) fn new(socket: &Path, manager: &str, concurrency: usize) -> Self {
        let socket = socket.to_str().expect("a path in UTF-8");
        let engine = Docker::connect_with_unix(socket, TIMEOUT_S, API_DEFAULT_VERSION).expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let engine = runtime.block_on(engine.negotiate_version()).expect("the engine answers");
        Self { engine, runtime, manager: manager.to_owned(), concurrency }
    }

    /// The connectors' containers as they are, to be made again just so.
    pub(crate) fn copies(&self) -> Vec<New> {
        self.runtime.block_on(async {
            let mut copies = Vec::new();
            for id in self.ids(OWNER_LABELS[0]).await {
                let found = self.engine.inspect_container(&id, None::<InspectContainerOptions>).await;
                let found = found.expect("the container is there");
                let (config, host) = (found.config.expect("a config"), found.host_config.expect("a host config"));
                let host_config = HostConfig { restart_policy: host.restart_policy, ..HostConfig::default() };
                let body = ContainerCreateBody {
                    image: config.image,
                    env: config.env,
                    labels: config.labels,
                    host_config: Some(host_config),
                    ..ContainerCreateBody::default()
                };
                copies.push((found.name.expect("a name").trim_start_matches('/').to_owned(), body));
            }
            copies
        })
    }

    /// Creates them, and starts them if told to. Gives how long that took.
    pub(crate) fn make(&self, new: &[New], start: bool) -> Duration {
        let begun = Instant::now();
        self.each(new, async |(name, body)| {
            let options = CreateContainerOptionsBuilder::default().name(name).build();
            let created = self.engine.create_container(Some(options), body.clone()).await?;
            if start {
                self.engine.start_container(&created.id, None::<StartContainerOptions>).await?;
            }
            Ok(())
        });
        begun.elapsed()
    }

    /// Removes everything of this manager.
    pub(crate) fn clear(&self) {
        for label in OWNER_LABELS {
            let ids = self.runtime.block_on(self.ids(label));
            self.remove(&ids);
        }
    }

    /// Removes the containers of these names.
    pub(crate) fn remove(&self, names: &[String]) {
        self.each(names, async |name| {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            self.engine.remove_container(name, Some(options)).await
        });
    }

    async fn ids(&self, label: &str) -> Vec<String> {
        let filters = HashMap::from([("label", vec![format!("{label}={}", self.manager)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.engine.list_containers(Some(options)).await.expect("a list");
        listed.into_iter().filter_map(|container| container.id).collect()
    }

    fn each<'a, T>(&self, all: &'a [T], work: impl AsyncFn(&'a T) -> Result<(), bollard::errors::Error>) {
        let work = &work;
        let running = futures_util::stream::iter(all.iter().map(|one| work(one)));
        let done = running.buffer_unordered(self.concurrency).try_collect::<Vec<()>>();
        self.block(done).expect("the engine does as it is told");
    }

    fn block<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}
