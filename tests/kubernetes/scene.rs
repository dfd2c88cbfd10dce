//! A scene: one manager, one stand-in platform, one namespace, and the program with the right environment.

use serde_json::{Value, json};
use stand_in_platform::{Connector, DEFAULT_TOKEN, StandIn, State};

use crate::cluster::{Cluster, shipped_rules};
pub(crate) use crate::support::told::{expect_all, faults};
use crate::support::{Binary, KeyForm, Outcome, TestKey, unique};

/// The image that connectors run unless a test says otherwise. Nobody pulls it.
pub(crate) const IMAGE: &str = "registry.example/connector:1";
/// What every test gives of a base deployment: on a real cluster no node must take the pods.
pub(crate) const NOBODY: &str = r#"{"spec":{"template":{"spec":{"schedulerName":"nobody"}}}}"#;

/// Everything that one test plays with.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) manager: String,
    pub(crate) platform: StandIn,
    pub(crate) key: TestKey,
}

impl Scene {
    /// A platform without connectors, and an empty namespace.
    pub(crate) fn new(name: &str) -> Self {
        let platform = StandIn::start(State::default()).unwrap();
        let key = TestKey::rsa(2048, KeyForm::Pkcs8);
        Self { cluster: Cluster::new(name), manager: unique("manager"), platform, key }
    }

    /// The same with these connectors, deployed and running.
    pub(crate) fn running(name: &str, connectors: &[&str]) -> Self {
        let scene = Self::new(name);
        for connector in connectors {
            scene.connector(connector);
        }
        scene.pass().expect_code(0);
        for connector in connectors {
            scene.cluster.running(connector, 0, 600);
        }
        scene.pass().expect_code(0);
        scene
    }

    /// Adds a connector that should run.
    pub(crate) fn connector(&self, name: &str) {
        self.connector_with(name, |connector| connector);
    }

    /// The same, with changes.
    pub(crate) fn connector_with(&self, name: &str, change: impl FnOnce(Connector) -> Connector) {
        let connector = change(Connector::new(format!("id-{name}"), name, IMAGE).requested("starting"));
        self.platform.edit(|state| state.connectors.push(connector));
    }

    /// Changes a connector on the platform. A change of its contract gives it another hash, as there.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Connector)) {
        let id = format!("id-{name}");
        self.platform.edit(|state| {
            let connector = state.connectors.iter_mut().find(|connector| connector.id == id);
            change(connector.expect("a connector of that name"));
        });
    }

    /// What the platform shows of a connector.
    pub(crate) fn shown(&self, name: &str) -> Value {
        let id = format!("id-{name}");
        self.platform.read(|state| {
            let connector = state.connectors.iter().find(|connector| connector.id == id);
            serde_json::to_value(connector.expect("a connector of that name")).unwrap()
        })
    }

    /// The program with a complete environment.
    pub(crate) fn program(&self) -> Binary {
        Binary::new(env!("CARGO_BIN_EXE_xtm-reconcile"))
            .var("MANAGER__ID", &self.manager)
            .var("MANAGER__CREDENTIALS_KEY_FILEPATH", self.key.path.display().to_string())
            .var("OPENCTI__URL", self.platform.url())
            .var("OPENCTI__TOKEN", DEFAULT_TOKEN)
            .var("OPENCTI__DAEMON__KUBERNETES__BASE_DEPLOYMENT_JSON", NOBODY)
            .var("KUBECONFIG", self.cluster.kubeconfig())
    }

    /// One pass with the report as JSON, with the rights that the shipped Role grants.
    pub(crate) fn pass(&self) -> Outcome {
        self.pass_with(|program| program)
    }

    /// The same in another environment.
    pub(crate) fn pass_with(&self, change: impl FnOnce(Binary) -> Binary) -> Outcome {
        let program = change(self.program()).args(["run", "--output", "json"]);
        self.cluster.under_rules(Some(shipped_rules()), || program.run())
    }

    /// `plan`, likewise.
    pub(crate) fn plan(&self) -> Outcome {
        let program = self.program().args(["plan", "--output", "json"]);
        self.cluster.under_rules(Some(shipped_rules()), || program.run())
    }

    /// A pass that must do nothing and write nothing but the Lease.
    #[track_caller]
    pub(crate) fn expect_quiet(&self, what: &str) {
        self.cluster.tap.take_calls();
        let report = self.pass().expect_code(0).lane();
        assert_eq!(report["counts"]["steps"], json!({}), "{what}: {report:#}");
        let writes: Vec<String> = self.writes();
        assert!(writes.iter().all(|write| write.contains("/leases/")), "{what}: {writes:#?}");
    }

    /// The writes since the last look, `METHOD path`.
    pub(crate) fn writes(&self) -> Vec<String> {
        let calls = self.cluster.tap.take_calls().into_iter().filter(crate::tap::Call::is_write);
        calls.map(|call| format!("{} {}", call.method, call.path)).collect()
    }
}

/// The line of a report about one connector.
#[track_caller]
pub(crate) fn line<'a>(report: &'a Value, name: &str) -> &'a Value {
    let id = format!("id-{name}");
    let mut lines = report["connectors"].as_array().expect("a report has connectors").iter();
    lines.find(|line| line["connector"] == id.as_str()).unwrap_or_else(|| panic!("{id} is not in {report:#}"))
}

/// The steps of a report: connector and word.
pub(crate) fn steps(report: &Value) -> Vec<(String, String)> {
    let lines = report["connectors"].as_array().into_iter().flatten();
    let step = |line: &Value| Some((line["connector"].as_str()?.to_owned(), line["step"]["do"].as_str()?.to_owned()));
    lines.filter_map(step).collect()
}
