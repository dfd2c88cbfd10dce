//! OpenAEV alone: what is deployed of its instances, under which names, and what goes. The rest stands in the files below.

mod answers;
mod input;
mod logs;
mod registration;

use std::ops::Deref;

use serde_json::{Value, json};
use stand_in_platform::openaev::InstanceKind;
use stand_in_platform::{Call, Instance};
use xtm_reconcile::exit;

use crate::moves::line;
use crate::scene::{IMAGE, Scene};
use crate::support::{ApiTap, Binary};
use crate::watch::expect_all;

const REGISTER: &str = "openaev.register";
const HEARTBEAT: &str = "openaev.refresh-connectivity";
const LIST: &str = "openaev.connector-instances";
const STATUS: &str = "openaev.status";
const HEALTH: &str = "openaev.health-check";
const LOGS: &str = "openaev.logs";
const VERSION: &str = "openaev.settings-version";

/// A scene in which there is no OpenCTI. What a [`Scene`] says of connectors, this says of instances.
struct Aev(Scene);

impl Deref for Aev {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.0
    }
}

impl Aev {
    fn new(name: &str) -> Self {
        Self(Scene::new(&format!("aev-{name}")))
    }

    /// Adds an instance that should run, named so that no other test's container has the name. Gives that name.
    fn instance(&self, name: &str) -> String {
        self.instance_with(name, |instance| instance)
    }

    fn instance_with(&self, name: &str, change: impl FnOnce(Instance) -> Instance) -> String {
        let full = self.manager.connector_name(name);
        let instance = change(Instance::new(format!("id-{name}"), &full, IMAGE).requested("starting"));
        self.platform.edit(|state| state.openaev.instances.push(instance));
        full
    }

    /// Changes one instance on the platform.
    #[track_caller]
    fn change(&self, id: &str, change: impl FnOnce(&mut Instance)) {
        self.platform.edit(|state| change(state.openaev.instance_mut(id).expect("an instance with this id")));
    }

    /// Has the platform list an instance no longer.
    fn delete(&self, id: &str) {
        self.platform.edit(|state| state.openaev.instances.retain(|instance| instance.id != id));
    }

    /// One instance as the platform has it.
    #[track_caller]
    fn of(&self, id: &str) -> Instance {
        self.platform.read(|state| state.openaev.instance(id).expect("an instance with this id").clone())
    }

    fn program(&self) -> Binary {
        self.program_on(&self.engine.docker_host())
    }

    fn program_on(&self, docker_host: &str) -> Binary {
        let program = ["OPENCTI__URL", "OPENCTI__TOKEN", "OPENCTI__DAEMON__SELECTOR"]
            .into_iter()
            .fold(self.0.program_on(docker_host), Binary::without_var);
        self.0.with_openaev(program).var("OPENCTI__ENABLE", "false").args(["--output", "json"])
    }

    /// One pass that has to end with this code. Gives what it reports of its lane.
    #[track_caller]
    fn pass(&self, code: u8) -> Value {
        self.program().run().expect_code(code.into()).lane()
    }

    /// How often each report was sent since the journal was cleared, which it is by that.
    fn reports(&self) -> [usize; 3] {
        let counts = [STATUS, HEALTH, LOGS].map(|operation| self.platform.calls(operation).len());
        self.platform.clear_journal();
        counts
    }

    /// The calls about one instance since the journal was cleared.
    fn calls_about(&self, id: &str) -> Vec<Call> {
        let part = format!("/connector-instances/{id}/");
        self.platform.journal().into_iter().filter(|call| call.path.contains(&part)).collect()
    }
}

#[test]
fn a_first_pass_registers_and_deploys_each_kind_and_a_second_changes_nothing_and_tells_no_status() {
    let scene = Aev::new("first");
    let kinds = [
        ("collector", InstanceKind::Collector, "COLLECTOR_ID"),
        ("injector", InstanceKind::Injector, "INJECTOR_ID"),
        ("executor", InstanceKind::Executor, "EXECUTOR_ID"),
    ];
    for (name, kind, _) in kinds {
        scene.instance_with(name, |instance| {
            let instance = instance.of_kind(kind).setting("NULL_VALUE", "null").setting("EMPTY_VALUE", "");
            instance.setting("LOG_LEVEL", "error").secret("FIRST_SECRET", format!("hunter2 of {name}"))
        });
    }
    let outcome = scene.program().run().expect_code(exit::OK.into());
    assert!(!outcome.stdout.contains("hunter2") && !outcome.stderr.contains("hunter2"), "{outcome:?}");
    let report = outcome.lane();
    assert_eq!((&report["lane"], &report["counts"]["steps"]), (&json!("openaev"), &json!({"deploy": 3})), "{report:#}");
    assert_eq!(report["platform"]["version"], "3.261026.0", "{report:#}");
    assert_eq!(report["platform"]["sent"]["status"], 3, "{report:#}");
    let composer = scene.platform.read(|state| state.openaev.composer.clone()).expect("it registered");
    assert_eq!((composer.id.as_str(), composer.version.as_str()), (&*scene.manager, "3.261026.0"));
    assert!(composer.public_key.starts_with("-----BEGIN PUBLIC KEY-----"), "{}", composer.public_key);
    for (name, _, key) in kinds {
        let instance = scene.of(&format!("id-{name}"));
        assert_eq!(instance.current_status, "started");
        let container = scene.container_of(&instance.id);
        assert!(container.running() && container.name == instance.name, "{container:?}");
        assert_eq!(container.label("opencti-platform"), "openaev");
        assert_eq!(container.env["OPENCTI_CONFIG_HASH"], container.label("opencti-config-hash"));
        let url = scene.platform.url();
        let secret = format!("hunter2 of {name}");
        let wanted = [
            ("OPENAEV_URL", url.as_str()),
            (key, instance.id.as_str()),
            ("OPENAEV_TOKEN", instance.token.as_str()),
            ("NULL_VALUE", "null"),
            ("EMPTY_VALUE", ""),
            ("LOG_LEVEL", "error"),
            ("FIRST_SECRET", secret.as_str()),
        ];
        for (variable, value) in wanted {
            assert_eq!(container.env.get(variable).map(String::as_str), Some(value), "{variable} of {name}");
        }
        assert!(!container.env.contains_key("OPENCTI_URL"), "{name}");
        let ids = container.env.keys().filter(|variable| kinds.iter().any(|(.., id_key)| variable == id_key));
        assert_eq!(ids.count(), 1, "{name} has the id of its own kind alone");
    }

    let audited = || scene.platform.read(|state| state.openaev.audited);
    scene.platform.clear_journal();
    let before = audited();
    let report = scene.pass(exit::OK);
    assert_eq!((&report["counts"]["steps"], &report["counts"]["unchanged"]), (&json!({}), &json!(3)), "{report:#}");
    assert_eq!(report["platform"]["registration"], "known", "{report:#}");
    assert_eq!(scene.platform.calls(REGISTER), []);
    assert_eq!(scene.platform.calls(STATUS), []);
    assert_eq!(audited() - before, 3, "health alone is in the audit log");

    // A secret that is typed now is in the other envelope, beside the one that there is.
    scene.platform.edit(|state| state.openaev.envelope_version = 2);
    scene.change("id-injector", |instance| {
        instance.secrets.insert("SECOND_SECRET".to_owned(), "another hunter2".to_owned());
    });
    let report = scene.pass(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({"refresh": 1}), "{report:#}");
    let refreshed = scene.container_of("id-injector");
    let secrets = ["FIRST_SECRET", "SECOND_SECRET"].map(|name| refreshed.env[name].as_str());
    assert_eq!(secrets, ["hunter2 of injector", "another hunter2"]);
}

#[test]
fn status_is_told_on_change_alone_and_a_stopped_instance_is_left_in_peace() {
    let scene = Aev::new("status");
    let name = scene.instance("a");
    scene.instance_with("never", |instance| instance.requested("stopping"));
    scene.pass(exit::OK);
    assert_eq!(scene.reports()[..2], [1, 1], "the one that never ran shows stopped already");
    scene.change("id-a", |instance| "stopping".clone_into(&mut instance.requested_status));
    let report = scene.pass(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({"stop": 1}), "{report:#}");
    assert_eq!(scene.of("id-a").current_status, "stopped");
    assert_eq!(scene.engine.container(&name).unwrap().state, "exited");
    assert_eq!(scene.reports()[..2], [1, 0]);
    scene.pass(exit::OK);
    assert_eq!(scene.reports(), [0, 0, 0], "there is nothing to say of what is down");
}

#[test]
fn titles_of_every_kind_become_names_and_a_title_that_two_have_runs_once_and_rejects_the_other_by_name() {
    let scene = Aev::new("titles");
    // Names that are cut get the hash of the id, so the ids have to be of this test alone.
    let id = |name: &str| scene.manager.connector_name(name);
    let spaced = format!("Microsoft Sentinel (EU) {}", id("s"));
    let long = format!("{:X<200}", format!("Atomic Red Team {} ", id("l")));
    assert_eq!(long.chars().count(), 200);
    let titles = [
        ("spaces", spaced.clone()),
        ("long", long.clone()),
        ("long-again", long.clone()),
        ("emoji", "🦀🚀 🔥".to_owned()),
        ("emoji-again", "🦀🚀 🔥".to_owned()),
        ("b-same", spaced.clone()),
    ];
    scene.platform.edit(|state| {
        for (name, title) in &titles {
            state.openaev.instances.push(Instance::new(id(name), title, IMAGE).requested("starting"));
        }
    });
    let (first, second) = (id("spaces").min(id("b-same")), id("spaces").max(id("b-same")));
    let mut containers = Vec::new();
    for pass in 0..2 {
        let report = scene.pass(exit::CONNECTOR_FAILED);
        let rejected = line(&report, &second);
        assert_eq!(rejected["result"], "rejected", "pass {pass}: {report:#}");
        expect_all(rejected["error"].as_str().unwrap(), &[&first, "same workload name", "microsoft-sentinel"], "same");
        assert_eq!(report["counts"]["rejected"], 1, "{report:#}");
        let now: Vec<_> = scene.containers().into_iter().map(|container| container.id).collect();
        assert_eq!(now.len(), 5);
        assert!(pass == 0 || now == containers, "the names stay: {report:#}");
        containers = now;
    }
    for (name, start) in [("spaces", ""), ("long", "atomic-red-team-"), ("emoji", "connector-")] {
        let owner = if name == "spaces" { first.clone() } else { id(name) };
        let name = scene.container_of(&owner).name;
        assert!(name.starts_with(start) && name.len() <= 63 && !name.ends_with('-'), "{name}");
    }
    // The one that has the name leaves: the other takes it.
    scene.delete(&first);
    scene.pass(exit::OK);
    assert!(scene.container_of(&second).running());
}

#[test]
fn an_instance_that_is_listed_twice_is_one_when_both_are_alike_and_is_rejected_when_not() {
    let scene = Aev::new("twice");
    scene.instance("a");
    scene.platform.edit(|state| state.openaev.instances.push(state.openaev.instances[0].clone()));
    let report = scene.pass(exit::OK);
    assert_eq!(report["counts"]["steps"], json!({"deploy": 1}), "{report:#}");
    let before = scene.only();
    scene.platform.edit(|state| "xtm-fixture/connector:2".clone_into(&mut state.openaev.instances[1].image));
    scene.platform.clear_journal();
    for _ in 0..2 {
        let report = scene.pass(exit::CONNECTOR_FAILED);
        expect_all(line(&report, "id-a")["error"].as_str().unwrap(), &["twice"], "twice");
        let after = scene.only();
        assert!(after.running() && after.id == before.id && after.image == IMAGE, "{after:?}");
    }
    assert_eq!(scene.reports()[0], 0);
}

#[test]
fn an_instance_that_leaves_the_list_is_stopped_and_removed_in_the_same_pass_and_nothing_is_told_of_it() {
    let scene = Aev::new("leaves");
    for name in ["a", "b", "c"] {
        scene.instance(name);
    }
    scene.pass(exit::OK);
    let gone = scene.container_of("id-b");
    scene.delete("id-b");
    scene.platform.clear_journal();
    let tap = ApiTap::new(scene.engine);
    let report = scene.program_on(&tap.docker_host()).run().expect_code(exit::OK.into()).lane();
    assert_eq!(report["counts"]["steps"], json!({"remove": 1}), "{report:#}");
    assert!(scene.engine.container(&gone.id).is_none());
    assert_eq!(scene.containers().len(), 2);
    let writes: Vec<String> = tap.writes().iter().map(ToString::to_string).collect();
    let place = |what: String| writes.iter().position(|write| *write == what);
    let stopped = place(format!("POST /containers/{}/stop", gone.id));
    assert!(stopped.is_some() && stopped < place(format!("DELETE /containers/{}", gone.id)), "{writes:?}");
    assert_eq!(scene.calls_about("id-b"), []);
}
