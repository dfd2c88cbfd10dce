//! The lock protects a pass for as long as it works: against clocks that are wrong, against whoever removes it, and against
//! a second pass in every order of their requests.

use std::time::Duration;

use serde_json::{Value, json};
use xtm_reconcile::exit;

use crate::moves::{SOON, complaints, names};
use crate::scene::Scene;
use crate::support::{ApiTap, Binary, EventLog, Turns};

/// A scene with a connector that runs, a record and the image that locks are made from.
fn begun(name: &str) -> Scene {
    let scene = Scene::new(name);
    scene.connector("a");
    scene.pass_ends(exit::OK);
    scene
}

/// Puts the lock of a pass there that gave a sign of life just now.
fn put_lock(scene: &Scene, holder: &Value) -> String {
    let label = json!({
        "v": 1, "holder": holder, "shows_life": true,
        "since": "2026-01-02T03:04:05Z", "until": "2026-01-02T03:05:05Z",
    });
    let labels = json!({
        "xtm-reconcile.manager": &*scene.manager,
        "xtm-reconcile.platform": "opencti",
        "xtm-reconcile.lock": label.to_string(),
    });
    let body = json!({"Image": "xtm-reconcile/empty:1", "Cmd": ["never-started"], "Labels": labels});
    let path = format!("/containers/create?name=xtm-reconcile-lock-{}-opencti", &*scene.manager);
    scene.engine.post(&path, &body).expect_success("a lock")["Id"].as_str().unwrap().to_owned()
}

/// The process of this test as the holder of a lock: it can be seen to be alive.
fn this_process() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let space = format!("{}/{}", read("/proc/sys/kernel/random/boot_id").trim(), namespace.display());
    let stat = read("/proc/self/stat");
    let started: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    json!({"pass": "alive", "host": "here", "pid": std::process::id(), "space": space, "started": started})
}

fn elsewhere() -> Value {
    json!({"pass": "0badcafe", "host": "elsewhere", "pid": 4242})
}

/// The program as a machine runs it whose clock is wrong.
fn with_clock(scene: &Scene, tap: &ApiTap, offset: &str) -> Binary {
    let program = scene.tapped(tap);
    let library =
        ["x86_64-linux-gnu", "aarch64-linux-gnu"].map(|arch| format!("/usr/lib/{arch}/faketime/libfaketime.so.1"));
    let library = library.iter().find(|path| std::path::Path::new(path).exists()).expect("tests/run installs faketime");
    // The time that passes is right; only where the wall clock stands is wrong.
    program.var("LD_PRELOAD", library).var("FAKETIME", offset).var("FAKETIME_DONT_FAKE_MONOTONIC", "1")
}

// Shows what README says under "What a pass does": "whatever the clocks of the two machines show".
#[test]
fn a_pass_whose_clock_is_wrong_leaves_a_lock_alone_that_is_held() {
    let scene = begun("clock-of-taker");
    let id = put_lock(&scene, &elsewhere());
    for offset in ["+2h", "-2h"] {
        let tap = ApiTap::new(scene.engine);
        let outcome = with_clock(&scene, &tap, offset).run().expect_code(exit::LOCKED.into());
        let said = complaints(&outcome.lane());
        assert!(said.contains("pass 0badcafe (process 4242 on elsewhere)"), "{said}");
        assert_eq!(tap.writes().len(), 1, "it only tried to take the lock");
    }
    assert!(scene.engine.container(&id).is_some());
}

// Shows what README says under "What a pass does": "A lock is taken over once its process is seen to be gone",
// "whatever the clocks of the two machines show".
#[test]
fn a_pass_that_was_killed_with_a_wrong_clock_locks_nobody_out() {
    let scene = begun("clock-of-holder");
    for offset in ["+5h", "-5h"] {
        let tap = ApiTap::new(scene.engine);
        let gate = tap.hold("GET /containers/json", 1);
        let running = with_clock(&scene, &tap, offset).spawn();
        gate.wait(SOON);
        running.signal(crate::support::Signal::KILL);
        running.wait();
        // Its process is seen to be gone.
        scene.pass_ends(exit::OK);
        assert!(scene.locks().is_empty());
    }
}

/// One test, because each part has to wait for a minute.
// Shows what README says under "What a pass does": "Its pass gives a sign of life every 15 seconds", "or when there was
// no sign of life for a minute", "unless its process is seen to be alive"; and under "What it leaves on a Docker
// engine": "else after a minute without a sign of life".
#[test]
fn without_a_sign_of_life_for_a_minute_a_lock_is_taken_over_unless_its_process_is_seen_alive() {
    let (gone, alive) = (begun("no-sign"), begun("no-sign-alive"));
    put_lock(&gone, &elsewhere());
    let kept = put_lock(&alive, &this_process());
    let working = begun("sign");
    let tap = ApiTap::new(working.engine);
    let gate = tap.hold("POST /containers/*/stop", 1);
    working.edit("id-a", |connector| "xtm-fixture/connector:2".clone_into(&mut connector.image));
    let running = working.tapped(&tap).spawn();
    gate.wait(SOON);

    gone.pass_ends(exit::LOCKED);
    std::thread::sleep(Duration::from_secs(62));
    gone.pass_ends(exit::OK);
    gone.is_settled(&["id-a"]);
    let said = complaints(&alive.pass_ends(exit::LOCKED));
    assert!(said.contains("its process is there on this machine"), "{said}");
    assert!(alive.engine.container(&kept).is_some());

    // The one that works gave signs of life meanwhile, and one of them is there.
    let signs = || working.engine.containers_labelled(&format!("xtm-reconcile.alive={}", working.locks()[0].id));
    assert_eq!(signs().len(), 1, "{}", names(&signs()));
    let creations = tap.count("POST /containers/create");
    assert!((5..=7).contains(&creations), "the lock, the new container and a sign each 15 s: {creations}");
    working.pass_ends(exit::LOCKED);
    gate.release();
    running.wait().expect_code(exit::OK.into());
    working.is_settled(&["id-a"]);
    let left = working.engine.containers_of(&working.manager);
    assert_eq!(left.len(), 2, "the connector and the record: {}", names(&left));
    working.pass_is_quiet();
}

// Shows what README says under "What a pass does": "without it, it starts nothing more and exits with 6"; and under
// "What it leaves on a Docker engine": "A pass whose lock is removed so begins no other step and exits with 6.".
#[test]
fn a_pass_whose_lock_is_gone_starts_nothing_more() {
    let scene = begun("lock-removed");
    scene.connector("b");
    scene.connector("c");
    let record = scene.records()[0].id.clone();
    let tap = ApiTap::new(scene.engine);
    // The first creation is that of the lock.
    let gate = tap.hold("POST /containers/create", 2);
    let running = scene.tapped(&tap).var("MANAGER__CONCURRENCY", "1").spawn();
    gate.wait(SOON);
    scene.engine.remove(&scene.locks()[0].id);
    gate.release();
    let report = running.wait().expect_code(exit::LOCKED.into()).lane();
    assert!(complaints(&report).contains("the lock was lost"), "{report:#}");
    let running = scene.containers().iter().filter(|container| container.running()).count();
    assert_eq!(running, 1, "the step that was going on started nothing, and no other began");
    assert_eq!(scene.records()[0].id, record, "the record may be another pass's by now");
    scene.pass_ends(exit::OK);
    scene.is_settled(&["id-a", "id-b", "id-c"]);
    scene.pass_is_quiet();
}

/// Two passes that begin together meet in many orders of their requests, and each order has to end well.
// Shows what README says under "What a pass does": "**One pass at a time.**", "Only one of them runs at any time.".
#[test]
fn two_passes_in_whatever_order_of_their_requests_never_run_two_instances_and_lose_no_record() {
    const ORDERS: u64 = 200;
    let scene = begun("orders");
    let mut both_worked = 0;
    for seed in 0..ORDERS {
        scene.edit("id-a", |c| c.image = format!("xtm-fixture/connector:{}", seed % 2 + 1));
        let log = EventLog::start(scene.engine);
        let turns = Turns::new(seed);
        let taps = [ApiTap::new(scene.engine), ApiTap::new(scene.engine)];
        let [first, second] = taps.each_ref().map(|tap| {
            tap.take_turns(&turns);
            // Every other order keeps what is replaced, for a moment.
            let probation = if seed % 4 < 2 { "0" } else { "1" };
            scene.tapped(tap).var("MANAGER__PROBATION", probation).var("MANAGER__SETTLE", "0")
        });
        let first = first.spawn();
        // The second begins at another place of the first each time, up to its end.
        let place = usize::try_from(seed % 16).unwrap();
        scene.engine.wait_for("a place to begin", SOON, |_| {
            (taps[0].requests().len() >= place || !first.is_running()).then_some(())
        });
        let second = second.spawn();
        let outcomes = [first, second].map(crate::support::Running::wait);
        let codes = outcomes.each_ref().map(|outcome| outcome.code.unwrap_or(-1));
        let known = [exit::OK, exit::LOCKED].map(i32::from);
        assert!(codes.iter().all(|code| known.contains(code)), "order {seed}: {codes:?}");
        assert!(codes.contains(&exit::OK.into()), "order {seed}: one of them works: {codes:?}");
        both_worked += usize::from(codes == [0, 0]);
        let mut up = 1;
        for event in log.finish_for(&scene.manager) {
            up += i32::from(event.starts_with("container start")) - i32::from(event.starts_with("container die"));
            assert!(up <= 1, "order {seed}: two run at once");
        }
        scene.pass_ends(exit::OK);
        let running: Vec<_> = scene.containers().into_iter().filter(crate::support::Container::running).collect();
        assert_eq!(running.len(), 1, "order {seed}: {}", names(&scene.containers()));
        assert_eq!(running[0].image, format!("xtm-fixture/connector:{}", seed % 2 + 1), "order {seed}");
        assert_eq!(scene.records().len(), 1, "order {seed}");
        let record = scene.records().remove(0);
        assert!(!record.label("xtm-reconcile.registration").is_empty(), "order {seed}: the record is whole");
        assert!(scene.locks().is_empty(), "order {seed}");
    }
    assert!(both_worked > 0, "in some orders the second takes the lock when the first has given it back");
}
