//! Logs of pods for OpenAEV, which adds what it is sent to what it has.

use super::*;

// Shows what README says under "What a pass does": "it gets what was written since the last delivery".
#[test]
fn a_log_of_openaev_is_delivered_once_and_in_order_whatever_is_rotated_away() {
    let (scene, pod) = Scene::with_instance("applog");
    if scene.cluster.stand_in().is_none() {
        return;
    }
    assert_eq!(scene.pass_sends(), [] as [String; 0], "there is no log yet");
    scene.cluster.set_log(&pod, false, "one\ntwo\n");
    assert_eq!(scene.pass_sends(), ["one\ntwo"]);
    assert_eq!(scene.pass_sends(), [] as [String; 0], "nothing new, no call");
    scene.expect_both_quiet("and no cursor is written");
    scene.cluster.set_log(&pod, false, "one\ntwo\nthree\nfour\n");
    assert_eq!(scene.pass_sends(), ["three\nfour"]);
    // A rotation: of what was delivered, of all there was, and of what was not delivered yet.
    scene.set_rotated(&pod, 3, "four\nfive\n");
    assert_eq!(scene.pass_sends(), ["five"]);
    scene.set_rotated(&pod, 5, "");
    assert_eq!(scene.pass_sends(), [] as [String; 0]);
    scene.set_rotated(&pod, 5, "six\nseven\n");
    assert_eq!(scene.pass_sends(), ["six\nseven"]);
    scene.set_rotated(&pod, 9, "ten\neleven\n");
    assert_eq!(scene.pass_sends(), ["ten\neleven"], "the lines that are still there");
    assert_eq!(scene.pass_sends(), [] as [String; 0]);
    // A call that fails is made up for.
    scene.set_rotated(&pod, 9, "ten\neleven\ntwelve\n");
    let fault = stand_in_platform::Fault::on("openaev.logs", stand_in_platform::FaultKind::status(400));
    scene.platform.fault(fault.times(1));
    scene.pass_with(|program| scene.and_openaev(program));
    scene.platform.clear_faults();
    assert_eq!(scene.pass_sends(), ["twelve"]);
}

#[test]
fn everything_is_new_of_what_was_deployed_here_and_of_a_new_pod_and_the_tail_of_what_was_adopted() {
    let scene = Scene::new("newpod");
    if scene.cluster.stand_in().is_none() {
        return;
    }
    let lines = |range: std::ops::Range<u32>| range.map(|line| format!("line {line}")).collect::<Vec<_>>().join("\n");
    let sends = |id: &str| {
        scene.platform.clear_journal();
        let outcome = scene.pass_with(|program| scene.and_openaev(program).var("MANAGER__LOGS_TAIL", "5"));
        outcome.expect_code(exit::OK.into());
        let theirs = |call: &stand_in_platform::Call| call.path.contains(id);
        assert!(scene.platform.calls("openaev.logs").iter().all(theirs), "only of {id}");
        scene.logs_sent()
    };
    let set = |pod: &Value, range| scene.cluster.set_log(pod, false, &format!("{}\n", lines(range)));
    scene.instance_with("id-beta", "Beta", |instance| Instance { hash: Some("bbbb2222".to_owned()), ..instance });
    older(&scene, "beta", "id-beta", "bbbb2222");
    set(&scene.cluster.running("beta", 0, 600), 0..50);
    assert_eq!(sends("id-beta"), [lines(45..50)], "it has run for long");
    scene.instance("id-alpha", "Alpha");
    assert_eq!(sends("id-alpha"), [] as [String; 0]);
    let pod = scene.cluster.running("alpha", 0, 5);
    set(&pod, 0..20);
    assert_eq!(sends("id-alpha"), [lines(0..20)], "more than the tail");
    scene.cluster.delete_pod(&pod);
    let next = scene.cluster.running("alpha", 0, 5);
    assert_ne!(next["metadata"]["uid"], pod["metadata"]["uid"]);
    set(&next, 100..120);
    assert_eq!(sends("id-alpha"), [lines(100..120)], "nothing of it was delivered");
    assert_eq!(sends("id-alpha"), [] as [String; 0]);
    // At most as much as the platform keeps of such tails.
    set(&next, 100..220);
    assert_eq!(sends("id-alpha"), [lines(170..220)]);
}

/// Lines with their times, as a kubelet gives them.
fn timed(lines: &[(Timestamp, &str)]) -> String {
    lines.iter().fold(String::new(), |text, (at, line)| text + &format!("{at:.9} {line}\n"))
}

/// A run that began after another one had ended with an error.
fn after_a_crash(restarts: u64, ended: Timestamp, started: Timestamp) -> Value {
    let end = json!({ "exitCode": 1, "reason": "Error", "startedAt": ago(3600), "finishedAt": format!("{ended:.0}") });
    json!({
        "restartCount": restarts,
        "state": { "running": { "startedAt": format!("{started:.0}") } },
        "lastState": { "terminated": end },
    })
}

#[test]
fn of_a_run_that_crashed_in_between_what_was_not_delivered_comes_first_and_once() {
    let (scene, pod) = Scene::with_instance("between");
    let name = pod["metadata"]["name"].as_str().unwrap();
    scene.cluster.tap.answer_logs();
    let set = |previous: bool, lines: &[(Timestamp, &str)]| scene.cluster.tap.set_log(name, previous, &timed(lines));
    let begin = Timestamp::from_second(Timestamp::now().as_second() - 300).unwrap();
    let at = |ms: i64| begin + SignedDuration::from_millis(ms);
    set(false, &[(at(0), "a"), (at(200), "b")]);
    assert_eq!(scene.pass_sends(), ["a\nb"]);
    // It went on, crashed, and runs again for long.
    set(true, &[(at(0), "a"), (at(200), "b"), (at(9_000), "c"), (at(9_500), "panic")]);
    set(false, &[(at(20_000), "d")]);
    scene.cluster.report("alpha", "Running", Some(&after_a_crash(1, at(9_000), at(20_000))));
    assert_eq!(scene.pass_sends(), ["c\npanic\nd"]);
    assert_eq!(scene.pass_sends(), [] as [String; 0], "once");
    // It crashes within the second of the last line that was delivered: engines tell the end in whole seconds.
    set(true, &[(at(20_000), "d"), (at(21_300), "e")]);
    set(false, &[(at(30_400), "f")]);
    scene.cluster.report("alpha", "Running", Some(&after_a_crash(2, at(21_000), at(30_000))));
    assert_eq!(scene.pass_sends(), ["e\nf"]);
    set(true, &[(at(30_400), "f"), (at(30_700), "panic again")]);
    set(false, &[(at(40_000), "g")]);
    scene.cluster.report("alpha", "Running", Some(&after_a_crash(3, at(30_000), at(40_000))));
    assert_eq!(scene.pass_sends(), ["panic again\ng"]);
    // It waits for its next run: the log is that of the run before.
    set(true, &[(at(40_000), "g"), (at(41_000), "h")]);
    scene.cluster.tap.set_log(name, false, "");
    let mut waits = after_a_crash(4, at(41_000), at(41_000));
    waits["state"] = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
    scene.cluster.report("alpha", "Running", Some(&waits));
    scene.platform.clear_journal();
    scene.pass_with(|program| scene.and_openaev(program));
    assert_eq!(scene.logs_sent(), ["h"]);
    set(false, &[(at(60_000), "i")]);
    scene.cluster.report("alpha", "Running", Some(&after_a_crash(4, at(41_000), at(60_000))));
    scene.platform.clear_journal();
    scene.pass_with(|program| scene.and_openaev(program));
    assert_eq!(scene.logs_sent(), ["i"]);
}

// Shows what README says under "What a pass does": "an annotation of the Deployment on Kubernetes".
#[test]
fn a_cursor_in_the_future_or_of_garbage_begins_anew_and_says_so() {
    let (scene, pod) = Scene::with_instance("cursor");
    if scene.cluster.stand_in().is_none() {
        return;
    }
    scene.cluster.set_log(&pod, false, "one\ntwo\nthree\n");
    assert_eq!(scene.pass_sends(), ["one\ntwo\nthree"]);
    let remember = |text: &str| {
        let patch = json!({ "metadata": { "annotations": { "xtm-reconcile/memory": text } } });
        scene.cluster.edit(&scene.cluster.deployment_path("alpha"), "somebody", &patch);
    };
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let cursor =
        |source: &str, at: &str| json!({ "v": 1, "log": { "source": source, "at": at, "lines": 1 } }).to_string();
    let with_tail = || {
        scene.platform.clear_journal();
        let outcome = scene.pass_with(|program| scene.and_openaev(program).var("MANAGER__LOGS_TAIL", "2"));
        (outcome.expect_code(exit::OK.into()).json(), scene.logs_sent())
    };
    remember(&cursor(uid, "2126-03-01T12:00:00Z"));
    assert_eq!(with_tail().1, ["two\nthree"], "a time that never was");
    assert_eq!(with_tail().1, [] as [String; 0]);
    remember(&cursor("another-pod", "2126-03-01T12:00:00Z"));
    assert_eq!(with_tail().1, ["one\ntwo\nthree"], "nothing of this pod was delivered");
    for garbage in ["{", &cursor(uid, "yesterday"), r#"{"v":1,"log":7}"#] {
        remember(garbage);
        let (report, sent) = with_tail();
        assert_eq!(sent, ["two\nthree"], "{garbage}");
        let told = lane(&report, OPENAEV)["notices"].to_string();
        expect_all(&told, &["xtm-reconcile/memory of Deployment alpha cannot be read"], garbage);
        assert_eq!(lane(&report, OPENCTI)["notices"], json!([]), "{garbage}: {report:#}");
        assert_eq!(with_tail().1, [] as [String; 0], "{garbage}");
    }
    // Behind it the log goes on.
    scene.cluster.set_log(&pod, false, "one\ntwo\nthree\nfour\n");
    assert_eq!(with_tail().1, ["four"]);
}

// Shows what README says under "What a pass does": "The last lines of a container that is replaced are sent with the
// first ones of the new one.".
#[test]
fn what_a_workload_wrote_before_it_is_changed_is_delivered_once() {
    let (scene, pod) = Scene::with_instance("changed");
    if scene.cluster.stand_in().is_none() {
        return;
    }
    scene.cluster.set_log(&pod, false, "one\n");
    assert_eq!(scene.pass_sends(), ["one"]);
    scene.cluster.set_log(&pod, false, "one\nlast words\n");
    scene.change_instance("id-alpha", |instance| "registry.example/connector:2".clone_into(&mut instance.image));
    // Its pod is still there when the pass looks again.
    assert_eq!(scene.pass_sends(), ["last words"]);
    scene.cluster.control();
    let next = scene.cluster.running("alpha", 0, 5);
    assert_ne!(next["metadata"]["uid"], pod["metadata"]["uid"]);
    scene.cluster.set_log(&next, false, "first words\n");
    assert_eq!(scene.pass_sends(), ["first words"]);
}
