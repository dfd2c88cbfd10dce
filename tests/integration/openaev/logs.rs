//! Logs, to a platform that adds what it is sent: each line once, in order, whatever becomes of the container.

use serde_json::Value;
use stand_in_platform::{Fault, FaultKind, Instance};
use xtm_reconcile::exit;

use super::{Aev, LOGS};
use crate::moves::SOON;
use crate::support::{self, ApiTap, Container, Engine};

/// Lines that each start prints besides those it is told to.
const GREETINGS: usize = 2;

fn talkative(lines: u32) -> impl FnOnce(Instance) -> Instance {
    move |instance| instance.setting("STANDIN_LINES", lines.to_string())
}

/// What the platform got of one instance since the journal was cleared: the lines of each call. Clears the journal.
#[track_caller]
fn delivered(scene: &Aev, id: &str) -> Vec<Vec<String>> {
    let calls = scene.calls_about(id).into_iter().filter(|call| call.is(LOGS));
    let texts = calls.map(|call| {
        let texts = call.variables["connector_instance_logs"].as_array().expect("a list of texts").clone();
        assert_eq!(texts.len(), 1, "one text, for of several the platform makes a set: {texts:?}");
        texts[0].as_str().expect("a text").split('\n').map(str::to_owned).collect()
    });
    let texts = texts.collect();
    scene.platform.clear_journal();
    texts
}

/// The log of a container once it has all that so many starts print, each with the same number of lines.
#[track_caller]
fn log(engine: &Engine, container: &str, starts: usize, lines: usize) -> Vec<String> {
    let wanted = starts * (lines + GREETINGS);
    engine.wait_for("the whole log", SOON, |engine| {
        let log: Vec<String> = engine.logs(container).lines().map(str::to_owned).collect();
        (log.len() == wanted).then_some(log)
    })
}

/// Restarts a container by hand, so that it prints everything once more.
#[track_caller]
fn restart(engine: &Engine, container: &str) {
    engine.call("POST", &format!("/containers/{container}/restart?t=2")).expect_success("restart");
}

/// A scene with one instance whose log has been delivered whole, and its container.
fn delivered_once(name: &str, lines: u32) -> (Aev, Container, Vec<String>) {
    let scene = Aev::new(name);
    scene.instance_with("a", talkative(lines));
    let no_logs = scene.program().var("MANAGER__LOGS_TAIL", "0");
    no_logs.run().expect_code(exit::OK.into());
    assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0], "a tail of 0 sends none");
    let container = scene.only();
    let log = log(scene.engine, &container.id, 1, lines as usize);
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), std::slice::from_ref(&log).to_vec());
    (scene, container, log)
}

// Shows what README says under "What a pass does": "it gets what was written since the last delivery", "nothing when
// there is nothing new".
#[test]
fn only_what_is_new_is_sent_in_order_as_one_text_and_without_anything_new_nothing() {
    let (scene, container, first) = delivered_once("log-new", 5);
    for _ in 0..2 {
        let report = scene.pass(exit::OK);
        assert_eq!(report["platform"]["sent"]["logs"], 0, "{report:#}");
        assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0]);
    }
    for starts in 2..4 {
        restart(scene.engine, &container.id);
        let all = log(scene.engine, &container.id, starts, 5);
        scene.pass(exit::OK);
        assert_eq!(delivered(&scene, "id-a"), [all[(starts - 1) * first.len()..].to_vec()], "start {starts}");
    }
    // A row for each call: the platform keeps them apart, and in order.
    let rows = scene.of("id-a").logs;
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert_eq!(rows[0], first.join("\n"));
}

// Shows what README says under "What a pass does": "More than ten times `MANAGER__LOGS_TAIL` new lines between two
// passes are cut to the newest.".
#[test]
fn a_first_delivery_has_the_last_lines_and_a_later_one_at_most_ten_times_as_many() {
    let scene = Aev::new("log-tail");
    scene.instance_with("a", talkative(60));
    scene.program().var("MANAGER__LOGS_TAIL", "0").run().expect_code(exit::OK.into());
    let container = scene.only().id;
    let short = scene.program().var("MANAGER__LOGS_TAIL", "3");
    let first = log(scene.engine, &container, 1, 60);
    short.run().expect_code(exit::OK.into());
    assert_eq!(delivered(&scene, "id-a"), [first[first.len() - 3..].to_vec()]);
    restart(scene.engine, &container);
    let second = log(scene.engine, &container, 2, 60);
    short.run().expect_code(exit::OK.into());
    assert_eq!(delivered(&scene, "id-a"), [second[second.len() - 30..].to_vec()]);
    short.run().expect_code(exit::OK.into());
    assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0]);
}

// Shows what README says under "What a pass does": "The last lines of a container that is replaced are sent with the
// first ones of the new one.".
#[test]
fn a_replaced_container_loses_no_line_and_repeats_none_its_last_words_included() {
    let (scene, old, _) = delivered_once("log-refresh", 4);
    // What it prints now is not delivered when it is replaced.
    restart(scene.engine, &old.id);
    let last = log(scene.engine, &old.id, 2, 4)[6..].to_vec();
    scene.change("id-a", |instance| "xtm-fixture/connector:2".clone_into(&mut instance.image));
    let report = scene.pass(exit::OK);
    assert_eq!(report["counts"]["steps"], serde_json::json!({"refresh": 1}), "{report:#}");
    let new = scene.only().id;
    assert_ne!(new, old.id);
    let first_words = log(scene.engine, &new, 1, 4);
    scene.pass(exit::OK);
    // How much of the new one's came with the pass that made it is the engine's affair.
    let all = delivered(&scene, "id-a");
    assert!((1..=2).contains(&all.len()), "{all:?}");
    assert_eq!(all.concat(), [last, first_words].concat());
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0]);
}

#[test]
fn a_pass_that_was_killed_while_it_replaced_a_container_repeats_nothing_and_loses_nothing_of_the_new_one() {
    let (scene, old, _) = delivered_once("log-killed", 4);
    restart(scene.engine, &old.id);
    let last = log(scene.engine, &old.id, 2, 4)[6..].to_vec();
    scene.change("id-a", |instance| "xtm-fixture/connector:2".clone_into(&mut instance.image));
    let tap = ApiTap::new(scene.engine);
    tap.inject(&format!("DELETE /containers/{}", old.id), 1, support::Fault::KillBefore);
    let killed = scene.program_on(&tap.docker_host()).run();
    assert!(killed.signal.is_some() && tap.faults() == 1, "{killed:?}");
    for lock in scene.locks() {
        scene.engine.remove(&lock.id);
    }
    scene.platform.clear_journal();
    scene.pass(exit::OK);
    let first_words = log(scene.engine, &scene.only().id, 1, 4);
    scene.pass(exit::OK);
    // The last words of the old one are lost: the step that removes what such a pass left does not read them.
    let arrived = delivered(&scene, "id-a").concat();
    assert!(arrived == first_words || arrived == [last, first_words].concat(), "{arrived:?}");
}

#[test]
fn a_crash_loop_is_told_line_by_line_until_it_is_stopped() {
    let scene = Aev::new("log-crash");
    let name = scene.instance_with("a", |instance| instance.setting("STANDIN_CRASH_AFTER_MS", "1"));
    for starts in 1..4 {
        scene.pass(exit::OK);
        scene.engine.wait_for("restarts", SOON, |e| e.container(&name).filter(|c| c.restarts >= starts));
    }
    scene.change("id-a", |instance| "stopping".clone_into(&mut instance.requested_status));
    scene.pass(exit::OK);
    let arrived = delivered(&scene, "id-a").concat();
    let log = scene.engine.logs(&name);
    assert_eq!(arrived, log.lines().collect::<Vec<_>>(), "every line, once");
    assert!(arrived.iter().filter(|line| line.ends_with("crashes as told")).count() >= 3, "{arrived:?}");
}

#[test]
fn binary_noise_is_made_fit_to_be_shown_and_is_sent_once_as_well() {
    let scene = Aev::new("log-binary");
    let name = scene.instance_with("a", |instance| instance.setting("STANDIN_BINARY", "1"));
    scene.program().var("MANAGER__LOGS_TAIL", "0").run().expect_code(exit::OK.into());
    scene.engine.wait_for("the long line", SOON, |engine| (engine.logs(&name).len() > 200_000).then_some(()));
    scene.pass(exit::OK);
    let lines = delivered(&scene, "id-a").concat();
    assert!(lines.iter().all(|line| !line.contains(char::is_control) && line.chars().count() <= 4200), "{lines:?}");
    for part in ["invalid utf-8 <\u{fffd}", "ansi <red> <> end", "… [cut]"] {
        assert!(lines.iter().any(|line| line.contains(part)), "{part:?} in {lines:?}");
    }
    let year = jiff::Timestamp::now().strftime("%Y-").to_string();
    assert!(
        lines.iter().all(|line| !line.contains(&year)),
        "the engine's times are not the connector's words: {lines:?}"
    );
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0]);
}

#[test]
fn a_stopped_instance_gets_its_last_lines_and_one_that_starts_again_goes_on_from_there() {
    let (scene, container, _) = delivered_once("log-stop", 4);
    restart(scene.engine, &container.id);
    let last = log(scene.engine, &container.id, 2, 4)[6..].to_vec();
    scene.change("id-a", |instance| "stopping".clone_into(&mut instance.requested_status));
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), [last]);
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0]);
    scene.change("id-a", |instance| "starting".clone_into(&mut instance.requested_status));
    scene.pass(exit::OK);
    let more = log(scene.engine, &container.id, 3, 4)[12..].to_vec();
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a").concat(), more);
}

#[test]
fn a_container_that_was_removed_by_hand_and_is_deployed_anew_is_told_from_its_first_line() {
    let (scene, container, _) = delivered_once("log-removed", 4);
    scene.engine.remove(&container.id);
    let report = scene.pass(exit::OK);
    assert_eq!(report["counts"]["steps"], serde_json::json!({"deploy": 1}), "{report:#}");
    let anew = log(scene.engine, &scene.only().id, 1, 4);
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a").concat(), anew);
}

#[test]
fn a_log_that_the_engine_rotated_repeats_nothing_and_tells_what_is_left() {
    let arguments = ["--log-driver=json-file", "--log-opt=max-size=2k", "--log-opt=max-file=2"].map(str::to_owned);
    let engine = Engine::private_with(&arguments);
    let scene = Aev::new("log-rotated");
    let name = scene.instance_with("a", talkative(80));
    let pass = || scene.program_on(&engine.docker_host()).run().expect_code(exit::OK.into());
    // The one line on stderr may come early or late: the numbered ones show what counts.
    let numbered =
        |lines: &[String]| -> Vec<String> { lines.iter().filter(|line| line.starts_with("line ")).cloned().collect() };
    // The engine notes when a container was started after it may have printed all it has to say: our own time is before.
    let left_when_all_is_said = |since: jiff::Timestamp| {
        let since = since.to_string();
        engine.wait_for("the last line of this start", SOON, |engine| {
            let said = engine.cli().args(["logs", "--since", &since, &name]).output().expect("docker logs");
            String::from_utf8_lossy(&said.stdout).contains("line 80\n").then_some(())
        });
        let left = numbered(&engine.logs(&name).lines().map(str::to_owned).collect::<Vec<_>>());
        assert!(left.len() < 80 && left.last().is_some_and(|line| line == "line 80"), "rotated: {left:?}");
        left
    };
    let mut since = jiff::Timestamp::now();
    scene.program_on(&engine.docker_host()).var("MANAGER__LOGS_TAIL", "0").run().expect_code(exit::OK.into());
    for start in 0..3 {
        if start > 0 {
            engine.stop(&name);
            since = jiff::Timestamp::now();
            engine.start(&name);
        }
        let left = left_when_all_is_said(since);
        pass();
        // Of the earlier start nothing is left, the line of the cursor included.
        assert_eq!(numbered(&delivered(&scene, "id-a").concat()), left, "start {start}");
        pass();
        // The line on stderr may have been late.
        let late = delivered(&scene, "id-a").concat();
        assert!(numbered(&late).is_empty() && late.len() < 2, "start {start}: {late:?}");
    }
}

/// Replaces what the record says of how far a log was delivered; a text stands for the whole label.
#[track_caller]
fn forge(scene: &Aev, cursor: &Value) {
    const LABEL: &str = "xtm-reconcile.connector.id-a";
    let records = scene.records();
    let [record] = records.as_slice() else { panic!("one record is expected: {records:?}") };
    let mut labels = record.labels.clone();
    let text = match cursor {
        Value::String(text) => text.clone(),
        cursor => {
            let mut before: Value = serde_json::from_str(record.label(LABEL)).expect("what is remembered of it");
            assert!(before["log"]["source"].is_string(), "{before}");
            before["log"] = cursor.clone();
            before.to_string()
        }
    };
    labels.insert(LABEL.to_owned(), text);
    scene.engine.remove(&record.id);
    let body = serde_json::json!({"Image": record.image, "Cmd": ["never-started"], "Labels": labels});
    let path = format!("/containers/create?name={}", record.name);
    scene.engine.post(&path, &body).expect_success("the forged record");
}

// Shows what README says under "What a pass does": "each pass writes how far it got: a record on Docker".
#[test]
fn a_cursor_that_cannot_be_true_repeats_the_last_lines_once_at_most_and_then_goes_on() {
    let (scene, container, mut all) = delivered_once("log-cursor", 4);
    let source = container.id.as_str();
    let cursor = |source: &str, at: &str| serde_json::json!({"source": source, "at": at, "lines": 1});
    // The cursor, and where it is told that something is wrong: in the report, in the log, or nowhere.
    let cases = [
        ("no JSON", Value::from("garbage"), "notice"),
        ("another form", serde_json::json!("garbage"), "notice"),
        ("a list", serde_json::json!([1, 2]), "notice"),
        ("no time", cursor(source, "yesterday"), "notice"),
        (
            "a negative count",
            serde_json::json!({"source": source, "at": "2026-01-01T00:00:00Z", "lines": -1}),
            "notice",
        ),
        ("the near future", cursor(source, "2037-01-01T00:00:00Z"), "warning"),
        ("the far future", cursor(source, "9999-01-01T00:00:00Z"), "warning"),
        ("before the engine", cursor(source, "1969-12-31T23:59:59Z"), ""),
        ("before everything", cursor(source, "-009999-06-01T00:00:00Z"), ""),
        ("of another container", cursor("0badcafe", "2026-01-01T00:00:00Z"), ""),
        ("of another one in the future", cursor("0badcafe", "9999-01-01T00:00:00Z"), ""),
        ("of nobody", cursor("", "2026-01-01T00:00:00Z"), ""),
        ("missing", Value::from(r#"{"v":1}"#), ""),
    ];
    for (what, cursor, told) in cases {
        forge(&scene, &cursor);
        let outcome = scene.program().run().expect_code(exit::OK.into());
        let report = outcome.lane();
        let notices = report["notices"].to_string();
        assert_eq!(notices.contains("cannot be read"), told == "notice", "{what}: {notices}");
        let warned = outcome.stderr.contains("holds nothing as new as what was delivered last");
        assert_eq!(warned, told == "warning", "{what}: {}", outcome.stderr);
        assert_eq!(delivered(&scene, "id-a"), std::slice::from_ref(&all).to_vec(), "{what}: what there is, once");
        scene.pass(exit::OK);
        assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0], "{what}: and not again");
    }
    // From there it goes on.
    restart(scene.engine, source);
    let grown = log(scene.engine, source, 2, 4);
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), [grown[all.len()..].to_vec()]);
    all = grown;

    // A cursor that claims more lines of its instant than there are, and one that is behind: no harm in either.
    let label = scene.records()[0].label("xtm-reconcile.connector.id-a").to_owned();
    let mut true_one: Value = serde_json::from_str(&label).unwrap();
    true_one["log"]["lines"] = u32::MAX.into();
    forge(&scene, &true_one["log"]);
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0]);
    restart(scene.engine, source);
    let grown = log(scene.engine, source, 3, 4);
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), [grown[all.len()..].to_vec()]);
}

// Shows what README says under "What a pass does": "in the connector logs that are pushed the values of the workload's
// sensitive variables are masked", "nor `true`, `false`, `none` and `null`".
#[test]
fn logs_hold_no_secret_not_even_the_last_words_of_a_container_with_the_former_one() {
    let scene = Aev::new("log-masked");
    let sealed = scene.instance_with("sealed", |instance| {
        instance.secret("PLAIN_NAME", "former-hunter2").setting("STANDIN_PRINT", "PLAIN_NAME")
    });
    let token = scene.instance_with("token", |instance| instance.setting("STANDIN_PRINT", "OPENAEV_TOKEN"));
    let words = ["null", "true", "FALSE", "None"];
    let plain = words.map(|word| {
        let secret = |instance: Instance| instance.setting("MY_TOKEN", word).setting("STANDIN_PRINT", "MY_TOKEN");
        scene.instance_with(&word.to_lowercase(), secret)
    });
    let spoken = |name: &str, needle: &str, times: usize| {
        scene.engine.wait_for(needle, SOON, |e| (e.logs(name).matches(needle).count() == times).then_some(()));
    };
    scene.pass(exit::OK);
    spoken(&sealed, "former-hunter2", 1);
    let secret_token = scene.of("id-token").token;
    spoken(&token, &secret_token, 1);
    for (name, word) in plain.iter().zip(words) {
        spoken(name, &format!("MY_TOKEN={word}"), 1);
    }
    scene.pass(exit::OK);
    // Printed once more, and replaced by one with another secret before anybody has read it.
    restart(scene.engine, &sealed);
    spoken(&sealed, "former-hunter2", 2);
    scene.change("id-sealed", |instance| {
        instance.secrets.insert("PLAIN_NAME".to_owned(), "later-hunter2".to_owned());
    });
    scene.pass(exit::OK);
    spoken(&sealed, "later-hunter2", 1);
    scene.pass(exit::OK);
    let rows = scene.of("id-sealed").logs.join("\n");
    assert_eq!(rows.matches("PLAIN_NAME=[masked]").count(), 3, "{rows}");
    assert!(!rows.contains("hunter2"), "{rows}");
    let rows = scene.of("id-token").logs.join("\n");
    assert!(rows.contains("OPENAEV_TOKEN=[masked]") && !rows.contains(&secret_token), "{rows}");
    for word in words {
        let rows = scene.of(&format!("id-{}", word.to_lowercase())).logs.join("\n");
        assert!(rows.contains(&format!("MY_TOKEN={word}")), "{word} is no secret: {rows}");
    }
}

// Shows what README says under "What a pass does": "and so does one that gets no answer to a delivery".
#[test]
fn logs_whose_answer_is_lost_are_not_sent_twice_by_one_pass_and_what_did_not_arrive_comes_with_the_next() {
    let scene = Aev::new("log-lost");
    scene.instance_with("a", talkative(4));
    scene.program().var("MANAGER__LOGS_TAIL", "0").run().expect_code(exit::OK.into());
    let all = log(scene.engine, &scene.only().id, 1, 4);
    for kind in [FaultKind::DropAnswer, FaultKind::Drop, FaultKind::status(500), FaultKind::status(503)] {
        let what = format!("{kind:?}");
        scene.platform.clear_journal();
        scene.platform.fault(Fault::on(LOGS, kind).times(1));
        let report = scene.program().run().lane();
        assert_eq!(delivered(&scene, "id-a").len(), 1, "{what}: one attempt");
        assert_eq!(report["platform"]["sent"]["logs"], 0, "{what}: {report:#}");
        let told = report["errors"].to_string();
        assert!(told.contains("logs was not published") && told.contains("id-a"), "{what}: {told}");
        assert_ne!(report["exit_code"], exit::OK, "{what}: {report:#}");
    }
    scene.platform.clear_faults();
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), [all], "the cursor stayed where it was");
    scene.pass(exit::OK);
    assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0]);
}

// Shows what README says under "What a pass does": "A pass that is killed between a delivery and writing its memory
// delivers those lines again".
#[test]
fn a_pass_that_was_killed_after_a_delivery_and_before_its_note_delivers_those_lines_once_more() {
    let (scene, container, first) = delivered_once("log-unnoted", 4);
    restart(scene.engine, &container.id);
    let new = log(scene.engine, &container.id, 2, 4)[first.len()..].to_vec();
    let tap = ApiTap::new(scene.engine);
    // The first creation is that of the lock, the second that of the record.
    tap.inject("POST /containers/create", 2, support::Fault::KillBefore);
    let killed = scene.program_on(&tap.docker_host()).run();
    assert!(killed.signal.is_some() && tap.faults() == 1, "{killed:?}");
    let written = tap.writes().into_iter().next_back().expect("the write at which it was killed");
    assert!(written.query.contains("xtm-reconcile-record"), "{written:?}");
    for again in [true, true, false] {
        let wanted = if again { vec![new.clone()] } else { vec![] };
        assert_eq!(delivered(&scene, "id-a"), wanted, "again: {again}");
        scene.pass(exit::OK);
    }
}

// Shows what README says under "What a pass does": "A delivery has at most 400 KiB of text, the newest lines.".
#[test]
fn more_than_fits_into_one_delivery_is_cut_to_the_newest_lines_and_says_so() {
    let scene = Aev::new("log-large");
    scene.instance_with("a", talkative(60_000));
    scene.program().var("MANAGER__LOGS_TAIL", "0").run().expect_code(exit::OK.into());
    let container = scene.only().id;
    log(scene.engine, &container, 1, 60_000);
    scene.program().var("MANAGER__LOGS_TAIL", "3").run().expect_code(exit::OK.into());
    delivered(&scene, "id-a");
    restart(scene.engine, &container);
    let all = log(scene.engine, &container, 2, 60_000);
    let pass = || scene.program().var("MANAGER__LOGS_TAIL", "10000").run().expect_code(exit::OK.into());
    pass();
    let texts = delivered(&scene, "id-a");
    let [lines] = texts.as_slice() else { panic!("one delivery is expected: {}", texts.len()) };
    let bytes = lines.join("\n").len();
    assert!((390 * 1024..=400 * 1024).contains(&bytes), "{bytes} bytes");
    assert_eq!(lines[0], "[earlier lines are left out]");
    assert!(all.ends_with(&lines[1..]), "the newest: {:?} to {:?}", lines[1], lines.last());
    pass();
    assert_eq!(delivered(&scene, "id-a"), [[""; 0]; 0], "what was left out is left out for good");
}
