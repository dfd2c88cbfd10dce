//! A scene: one manager, one stand-in platform, the shared engine, and the program with the right environment.

use stand_in_platform::{Connector, DEFAULT_TOKEN, OPENAEV_DEFAULT_TOKEN, StandIn, State};

use crate::support::{Binary, Container, Engine, KeyForm, Manager, Outcome, TestKey};

/// Everything that one test plays with. What it made on the engine goes when it is dropped.
pub(crate) struct Scene {
    /// The engine.
    pub(crate) engine: &'static Engine,
    /// The manager's id, unique.
    pub(crate) manager: Manager,
    /// The platform.
    pub(crate) platform: StandIn,
    /// The manager's key.
    pub(crate) key: TestKey,
}

/// The image that connectors run unless a test says otherwise.
pub(crate) const IMAGE: &str = "xtm-fixture/connector:1";

impl Scene {
    /// A platform without connectors.
    pub(crate) fn new(name: &str) -> Self {
        let engine = Engine::shared();
        let manager = Manager::new(engine, name);
        let platform = StandIn::start(State::default()).unwrap();
        Self { engine, manager, platform, key: TestKey::rsa(2048, KeyForm::Pkcs8) }
    }

    /// Adds a connector that should run, named so that no other test's container has the name. Gives that name.
    pub(crate) fn connector(&self, name: &str) -> String {
        self.connector_with(name, |connector| connector)
    }

    /// The same, with changes.
    pub(crate) fn connector_with(&self, name: &str, change: impl FnOnce(Connector) -> Connector) -> String {
        let full = self.manager.connector_name(name);
        let connector = change(Connector::new(format!("id-{name}"), &full, IMAGE).requested("starting"));
        self.platform.edit(|state| state.connectors.push(connector));
        full
    }

    /// The program with a complete environment.
    pub(crate) fn program(&self) -> Binary {
        self.program_on(&self.engine.docker_host())
    }

    /// The same on another engine address.
    pub(crate) fn program_on(&self, docker_host: &str) -> Binary {
        Binary::new(env!("CARGO_BIN_EXE_xtm-reconcile"))
            .var("MANAGER__ID", &*self.manager)
            .var("MANAGER__CREDENTIALS_KEY_FILEPATH", self.key.path.display().to_string())
            .var("OPENCTI__URL", self.platform.url())
            .var("OPENCTI__TOKEN", DEFAULT_TOKEN)
            .var("OPENCTI__DAEMON__SELECTOR", "docker")
            .var("DOCKER_HOST", docker_host)
            // Tests of other things should not have to wait until a refresh has proved itself.
            .var("MANAGER__PROBATION", "0")
    }

    /// A program that serves OpenAEV as well, which the stand-in has beside OpenCTI.
    pub(crate) fn with_openaev(&self, program: Binary) -> Binary {
        program
            .var("OPENAEV__ENABLE", "true")
            .var("OPENAEV__URL", self.platform.url())
            .var("OPENAEV__TOKEN", OPENAEV_DEFAULT_TOKEN)
            .var("OPENAEV__DAEMON__SELECTOR", "docker")
    }

    /// One pass, with the report as JSON.
    pub(crate) fn pass(&self) -> Outcome {
        self.program().args(["run", "--output", "json"]).run()
    }

    /// The containers of this manager's connectors: no record, no lock.
    pub(crate) fn containers(&self) -> Vec<Container> {
        let all = self.engine.containers_of(&self.manager);
        all.into_iter().filter(|container| !container.label("opencti-manager").is_empty()).collect()
    }
}

mod tests {
    use super::Scene;

    #[test]
    fn a_first_pass_deploys_and_a_second_changes_nothing() {
        let scene = Scene::new("smoke");
        let name = scene.connector("a");
        let report = scene.pass().expect_code(0).lane();
        assert_eq!(report["counts"]["steps"]["deploy"], 1, "{report:#}");
        let first = scene.containers();
        assert_eq!(first.len(), 1);
        assert!(first[0].running() && first[0].name == name, "{first:?}");
        let report = scene.pass().expect_code(0).lane();
        assert_eq!(report["counts"]["unchanged"], 1, "{report:#}");
        assert_eq!(scene.containers()[0].id, first[0].id);
    }
}
