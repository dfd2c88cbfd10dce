//! Whatever happens at whatever request to the engine, nothing is lost and the next pass puts it right.

use serde_json::json;
use stand_in_platform::Connector;
use xtm_reconcile::exit;

use crate::moves::{file_in, line, names, proxy_ca, set, with_proxy_ca};
use crate::scene::{IMAGE, Scene};
use crate::support::{ApiTap, Fault, Signal};

/// What a record says of a connector that restarted often, some time ago.
const HISTORY: &str = r#"{"v":1,"window":{"total":500,"counter":0,"generation":"gone","samples":[[1,500]]}}"#;

/// A pass that has something to do.
struct Story {
    name: &'static str,
    /// Passes before it, to have something there.
    begin: fn(&Scene),
    /// What has changed when it begins.
    change: fn(&Scene),
    /// Settings of that pass and those after it.
    settings: Vec<(&'static str, &'static str)>,
    /// The connectors that are there in the end.
    ids: &'static [&'static str],
    /// The connector of which one container has to run at any time, once the pass ended by itself.
    keeps: Option<&'static str>,
}

fn first_deploy() -> Story {
    Story {
        name: "first-deploy",
        begin: |_| (),
        change: |scene| drop(scene.connector_with("a", |connector| connector.secret("API_KEY", "hush-hush"))),
        settings: with_proxy_ca().to_vec(),
        ids: &["id-a"],
        keeps: None,
    }
}

fn refresh() -> Story {
    Story {
        name: "refresh",
        begin: |scene| {
            scene.connector("a");
            set(scene.program().arg("run"), &with_proxy_ca()).run().expect_code(exit::OK.into());
        },
        change: |scene| scene.edit("id-a", |connector| "xtm-fixture/connector:2".clone_into(&mut connector.image)),
        settings: with_proxy_ca().to_vec(),
        ids: &["id-a"],
        keeps: Some("id-a"),
    }
}

fn refresh_while_stopped() -> Story {
    Story {
        name: "refresh-stopped",
        begin: |scene| {
            scene.connector("a");
            set(scene.program().arg("run"), &with_proxy_ca()).run().expect_code(exit::OK.into());
            scene.edit("id-a", |connector| "stopping".clone_into(&mut connector.requested_status));
            set(scene.program().arg("run"), &with_proxy_ca()).run().expect_code(exit::OK.into());
        },
        change: |scene| {
            scene.edit("id-a", |connector| {
                "xtm-fixture/connector:2".clone_into(&mut connector.image);
                "starting".clone_into(&mut connector.requested_status);
            });
        },
        settings: with_proxy_ca().to_vec(),
        ids: &["id-a"],
        keeps: None,
    }
}

fn replacement_of_the_record() -> Story {
    Story {
        name: "record",
        begin: |scene| {
            scene.connector("a");
            scene.pass_ends(exit::OK);
            // A long history, which must not get lost.
            let record = scene.records().remove(0);
            let mut labels = record.labels.clone();
            labels.insert("xtm-reconcile.connector.id-a".to_owned(), HISTORY.to_owned());
            scene.engine.remove(&record.id);
            let body = json!({"Image": record.image, "Cmd": ["never-started"], "Labels": labels});
            scene.engine.post(&format!("/containers/create?name={}", record.name), &body).expect_success("a record");
        },
        change: |_| (),
        settings: vec![("MANAGER__NAME", "another name")],
        ids: &["id-a"],
        keeps: Some("id-a"),
    }
}

fn removal_and_rename() -> Story {
    Story {
        name: "remove",
        begin: |scene| {
            scene.connector("a");
            scene.connector_with("b", |connector| Connector { hash: Some("cafe0004".to_owned()), ..connector });
            scene.pass_ends(exit::OK);
        },
        change: |scene| {
            // The name goes from one to the other.
            let name = scene.platform.read(|state| state.connectors[0].name.clone());
            scene.unlist("id-a");
            scene.edit("id-b", |connector| connector.name = name);
        },
        settings: vec![],
        ids: &["id-b"],
        keeps: Some("id-b"),
    }
}

impl Story {
    /// Plays it once for each request of its pass that fits, with a fault there. `judge` sees what the pass left.
    #[track_caller]
    #[expect(clippy::print_stderr, reason = "shown with a failure, whatever it is that fails")]
    fn at_each(&self, pattern: &str, fault: Fault, judge: impl Fn(&Scene, crate::support::Outcome, &str)) {
        for nth in 1.. {
            let scene = Scene::new(self.name);
            (self.begin)(&scene);
            (self.change)(&scene);
            let tap = ApiTap::new(scene.engine);
            tap.inject(pattern, nth, fault);
            let outcome = set(scene.tapped(&tap), &self.settings).run();
            if tap.faults() == 0 {
                assert!(nth > 4, "{}: the pass made only {nth} such requests", self.name);
                outcome.expect_code(exit::OK.into());
                return;
            }
            let at =
                tap.requests().iter().filter(|request| request.matches(pattern)).nth(nth - 1).map(ToString::to_string);
            let at = format!("{}: {fault:?} at {}", self.name, at.unwrap_or_default());
            eprintln!("{at}");
            judge(&scene, outcome, &at);
            self.is_mended(&scene, &at);
        }
    }

    /// The pass after the fault brings everything about, and leaves nothing behind.
    #[track_caller]
    fn is_mended(&self, scene: &Scene, at: &str) {
        let report = set(scene.program().args(["run", "--output", "json"]), &self.settings).run();
        let report = report.expect_code(exit::OK.into()).lane();
        if self.name == "record" {
            assert_eq!(line(&report, "id-a")["restarts"], 500, "{at}: {report:#}");
        }
        let unreadable: Vec<_> =
            report["notices"].as_array().unwrap().iter().filter(|n| n.as_str().unwrap().contains("record")).collect();
        assert!(unreadable.is_empty(), "{at}: {unreadable:?}");
        scene.is_settled(self.ids);
        for container in scene.containers() {
            let image =
                scene.platform.read(|s| s.connector(container.label("opencti-connector-id")).unwrap().image.clone());
            assert_eq!(container.image, image, "{at}");
            if !self.settings.is_empty() && self.settings[0].0 == "OPENCTI__WITH_PROXY" {
                let ca = file_in(scene, &container.id, "/etc/ssl/certs/xtm-proxy-ca.crt");
                assert_eq!(ca.as_deref().map(str::trim), Some(proxy_ca().trim()), "{at}");
            }
        }
        scene.pass_is_quiet_with(&self.settings);
    }

    fn killed_at_each_write(&self) {
        for fault in [Fault::KillBefore, Fault::KillAfter] {
            self.at_each("WRITE *", fault, |scene, outcome, at| {
                assert_eq!(outcome.signal, Some(9), "{at}");
                self.never_twice(scene, at);
            });
        }
    }

    fn refused_at_each_request(&self, faults: &[Fault]) {
        for fault in faults {
            self.at_each("* *", *fault, |scene, outcome, at| {
                let code = outcome.code.unwrap_or(-1);
                let known = [exit::OK, exit::CONNECTOR_FAILED, exit::ORCHESTRATOR].map(i32::from);
                assert!(known.contains(&code), "{at}: exit code {code}\n{}\n{}", outcome.stdout, outcome.stderr);
                assert!(!outcome.stderr.contains("panicked"), "{at}: {}", outcome.stderr);
                self.never_twice(scene, at);
                if let Some(id) = self.keeps {
                    let running = scene
                        .containers()
                        .iter()
                        .filter(|c| c.running() && c.label("opencti-connector-id") == id)
                        .count();
                    assert_eq!(running, 1, "{at}: {}\n{}", names(&scene.containers()), outcome.stdout);
                }
            });
        }
    }

    /// Told to end, a step finishes or goes back, and the pass says that it was ended early.
    fn told_to_end_at_each_write(&self) {
        self.at_each("WRITE *", Fault::SignalBefore(Signal::TERM), |scene, outcome, at| {
            let code = outcome.code.unwrap_or(-1);
            // A signal that comes when all is done changes nothing.
            let known = [exit::TERMINATED, exit::OK].map(i32::from);
            assert!(known.contains(&code), "{at}: exit code {code}\n{}\n{}", outcome.stdout, outcome.stderr);
            assert!(scene.locks().is_empty(), "{at}");
            self.never_twice(scene, at);
            if code == i32::from(exit::OK) {
                scene.is_settled(self.ids);
            }
        });
    }

    fn never_twice(&self, scene: &Scene, at: &str) {
        for id in self.ids {
            let mut all = scene.containers();
            all.retain(|container| container.running() && container.label("opencti-connector-id") == *id);
            assert!(all.len() <= 1, "{at}: {}", names(&all));
        }
    }
}

#[test]
fn a_first_deploy_can_be_killed_at_any_point() {
    first_deploy().killed_at_each_write();
}

// Shows what README says under "What a pass does": "Killed at any point, the next pass finds its way out".
#[test]
fn a_refresh_can_be_killed_at_any_point() {
    refresh().killed_at_each_write();
}

#[test]
fn a_refresh_of_a_stopped_connector_can_be_killed_at_any_point() {
    refresh_while_stopped().killed_at_each_write();
}

#[test]
fn replacing_the_record_can_be_killed_at_any_point() {
    replacement_of_the_record().killed_at_each_write();
}

#[test]
fn a_removal_and_a_rename_can_be_killed_at_any_point() {
    removal_and_rename().killed_at_each_write();
}

// Shows what README says under "Exit codes": "SIGINT, SIGTERM: running steps finished or were rolled back"; and under
// "What a pass does": "Running steps finish or roll back".
#[test]
fn a_refresh_can_be_told_to_end_at_any_point() {
    refresh().told_to_end_at_each_write();
}

#[test]
fn a_first_deploy_can_be_told_to_end_at_any_point() {
    first_deploy().told_to_end_at_each_write();
}

#[test]
fn a_first_deploy_survives_any_failing_request() {
    first_deploy().refused_at_each_request(&[Fault::DropWithRepeat, Fault::StatusAfter(500)]);
}

// Shows what README says under "What a pass does": "**On Docker a refresh never trades a working connector for a failed
// one.**".
#[test]
fn a_refresh_survives_any_request_that_the_engine_does_not_do() {
    refresh().refused_at_each_request(&[Fault::DropWithRepeat, Fault::Status(500)]);
}

// Shows what README says under "What a pass does": "**On Docker a refresh never trades a working connector for a failed
// one.**".
#[test]
fn a_refresh_survives_any_answer_that_is_lost() {
    refresh().refused_at_each_request(&[Fault::DropAfter, Fault::StatusAfter(500)]);
}

#[test]
fn a_removal_and_a_rename_survive_any_failing_request() {
    removal_and_rename().refused_at_each_request(&[Fault::DropAfter, Fault::Status(500)]);
}

#[test]
fn replacing_the_record_survives_any_failing_request() {
    replacement_of_the_record().refused_at_each_request(&[Fault::DropAfter, Fault::Status(500)]);
}

#[test]
fn a_refresh_that_was_killed_and_then_fails_brings_the_old_container_back() {
    let scene = Scene::new("killed-then-fails");
    scene.connector("a");
    scene.pass_ends(exit::OK);
    let old = scene.only().id;
    scene.edit("id-a", |connector| "xtm-fixture/noentry:1".clone_into(&mut connector.image));
    let tap = ApiTap::new(scene.engine);
    tap.inject("POST /containers/*/stop", 1, Fault::KillAfter);
    assert_eq!(scene.tapped(&tap).run().signal, Some(9));
    scene.pass_ends(exit::CONNECTOR_FAILED);
    let container = scene.only();
    assert_eq!((container.id, container.state.as_str()), (old, "running"));
    scene.edit("id-a", |connector| IMAGE.clone_into(&mut connector.image));
    scene.pass_ends(exit::OK);
    scene.pass_is_quiet();
}
