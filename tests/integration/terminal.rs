//! What only people on a terminal get.

use xtm_reconcile::exit;

use crate::scene::Scene;
use crate::support::{ApiTap, Registry, unique};

/// A scene with one connector whose image has to be pulled.
fn scene_with_a_pull(name: &str) -> (Scene, String) {
    let scene = Scene::new(name);
    // A first pass, so that the engine has the empty image that locks are made from: that is a request of the same kind.
    scene.pass().expect_code(exit::OK.into());
    let registry = Registry::open();
    let image = registry.push(scene.engine, "xtm-fixture/connector:1", &format!("{}:1", unique("pulled")));
    scene.connector_with("a", |mut connector| {
        connector.image.clone_from(&image);
        connector
    });
    (scene, image)
}

#[test]
fn a_long_pull_is_shown_on_a_terminal_and_gone_from_it_afterwards() {
    let (scene, image) = scene_with_a_pull("terminal");
    let tap = ApiTap::new(scene.engine);
    let gate = tap.hold("POST /images/create", 1);
    let program = scene.program_on(&tap.docker_host()).var("MANAGER__LOGGER__LEVEL", "error").on_terminal();
    let running = program.spawn();
    // It says which image while the engine has not answered a word yet.
    running.wait_for_stdout(&format!("pulling {image}"), std::time::Duration::from_secs(30));
    gate.release();
    let outcome = running.wait().expect_code(exit::OK.into());
    // The bar's line is cleared before the report is printed.
    let report = outcome.stdout.rfind("deploy").expect("the report");
    assert!(!outcome.stdout[report..].contains("pulling"), "{}", outcome.stdout);
    assert!(outcome.stdout[..report].contains("\u{1b}[2K"), "the line is cleared: {:?}", outcome.stdout);
}

#[test]
fn off_a_terminal_a_pull_shows_no_progress() {
    let (scene, _) = scene_with_a_pull("no-terminal");
    let outcome = scene.program().var("MANAGER__LOGGER__LEVEL", "error").run().expect_code(exit::OK.into());
    assert_eq!(outcome.stderr, "");
    assert!(!outcome.stdout.contains("pulling"), "{}", outcome.stdout);
}

// Shows what README says under "Commands": "logs go to standard error, as JSON unless that is a terminal".
#[test]
fn logs_are_json_off_a_terminal_and_lines_for_people_on_one() {
    let scene = Scene::new("log-form");
    scene.connector("a");
    for terminal in [false, true] {
        let program = scene.program().var("MANAGER__LOGGER__LEVEL", "info");
        let outcome = if terminal { program.on_terminal() } else { program }.run().expect_code(exit::OK.into());
        let logged = if terminal { &outcome.stdout } else { &outcome.stderr };
        let lines = || logged.lines().filter(|line| line.contains("INFO"));
        assert!(lines().count() >= 2, "{logged}");
        let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line.trim()).is_ok();
        assert!(lines().all(|line| is_json(line) != terminal), "terminal: {terminal}\n{logged}");
    }
}
