//! A pass is killed at every request: the next one finds out whose keys never arrived, and mends it.

use stand_in_platform::{Call, Fault, FaultKind};
use xtm_reconcile::exit;

use super::scene;
use crate::moves::SOON;
use crate::scene::Scene;
use crate::support::{ApiTap, Binary, Fault as EngineFault, Signal};

const SLOW: FaultKind = FaultKind::SlowBody { ms: 600_000 };

fn stuck(_: &stand_in_platform::State, calls: &[Call]) -> bool {
    calls.iter().any(|call| call.outcome == "fault:slow_body")
}

/// Kills the program while it waits for the end of the answer to each of its requests, which was carried out.
#[track_caller]
fn killed_at_every_request(
    name: &str,
    begin: impl Fn(&Scene),
    program: impl Fn(&Scene) -> Binary,
    judge: impl Fn(&Scene, &str),
) {
    for nth in 0.. {
        let scene = scene(name);
        begin(&scene);
        scene.platform.clear_journal();
        scene.platform.fault(Fault::any(SLOW).skip(nth).times(1));
        let running = program(&scene).spawn();
        let waited = scene.platform.wait_for(SOON, |state, calls| stuck(state, calls) || !running.is_running());
        assert!(waited, "{name}: neither stuck at request {nth} nor at its end");
        if !scene.platform.journal().iter().any(|call| call.outcome == "fault:slow_body") {
            assert!(nth > 6, "{name}: only {nth} requests");
            running.wait();
            return;
        }
        running.signal(Signal::KILL);
        running.wait();
        let at = scene.platform.journal().iter().map(|call| call.operation.clone()).collect::<Vec<_>>().join(" ");
        scene.platform.clear_faults();
        judge(&scene, &format!("{name}: killed after {at}"));
    }
}

// Shows what README says under "Tokens": "When the pass was killed, the next one revokes the tokens of the noted users
// and makes others.".
#[test]
fn a_first_registration_can_be_killed_at_every_request_to_either_side() {
    killed_at_every_request(
        "killed-first",
        |scene| scene.people(3),
        Scene::reporting,
        |scene, at| {
            scene.register(exit::OK);
            scene.all_is_well(0..3, at);
            let quiet = scene.register(exit::OK);
            assert_eq!(quiet["users"]["tokens_made"], 0, "{at}");
            assert_eq!(quiet["users"]["tokens_revoked"], 0, "{at}");
        },
    );
}

#[test]
fn a_rotation_can_be_killed_at_every_request_to_either_side() {
    killed_at_every_request(
        "killed-rotation",
        |scene| {
            scene.people(3);
            scene.register(exit::OK);
        },
        |scene| scene.reporting().args(["xtm-one", "rotate"]),
        |scene, at| {
            scene.register(exit::OK);
            scene.all_is_well(0..3, at);
        },
    );
}

#[test]
fn a_failing_registration_can_be_killed_at_every_request_to_either_side() {
    killed_at_every_request(
        "killed-failing",
        |scene| {
            scene.people(2);
            scene.platform.fault(Fault::on(super::REGISTER, FaultKind::status(400)));
        },
        Scene::reporting,
        |scene, at| {
            // The hold may have been written already.
            scene.register_with(
                &[("XTM__XTM_ONE_URL", &scene.platform.xtm_one_url().replace("127.0.0.1", "localhost"))],
                exit::OK,
            );
            scene.all_is_well(0..2, at);
        },
    );
}

// Shows what README says under "Tokens": "When the pass was killed, the next one revokes the tokens of the noted users
// and makes others.".
#[test]
fn a_registration_can_be_killed_at_every_write_to_the_engine() {
    for fault in [EngineFault::KillBefore, EngineFault::KillAfter] {
        for nth in 1.. {
            let scene = scene("killed-engine");
            scene.people(2);
            let tap = ApiTap::new(scene.engine);
            tap.inject("WRITE *", nth, fault);
            let outcome = scene.reporting().var("DOCKER_HOST", tap.docker_host()).run();
            if tap.faults() == 0 {
                assert!(nth > 4, "only {nth} writes");
                outcome.expect_code(0);
                break;
            }
            scene.register(exit::OK);
            scene.all_is_well(0..2, &format!("{fault:?} at write {nth}"));
        }
    }
}
