//! Who has the platform's one place for a composer, tenants, and what `plan` and `check` say before and after.

use serde_json::{Value, json};
use stand_in_platform::openaev::{Capability, Generation, OpenAevUser};
use stand_in_platform::{Call, Composer, Instance, Kind};
use xtm_reconcile::exit;

use super::{Aev, HEARTBEAT, LIST, LOGS, REGISTER};
use crate::moves::line;
use crate::support::{ApiTap, Binary, KeyForm, Outcome, TestKey};
use crate::watch::{Watch, expect_all, faults};

/// A composer that is not this manager, last seen so many hours ago.
fn other(hours: i64) -> Composer {
    let last_check = Some(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours));
    Composer { id: "the-old-one".to_owned(), name: "Old".to_owned(), last_check, ..Composer::default() }
}

fn set_composer(scene: &Aev, composer: Option<Composer>) {
    scene.platform.edit(|state| state.openaev.composer = composer);
}

fn composer(scene: &Aev) -> Option<Composer> {
    scene.platform.read(|state| state.openaev.composer.clone())
}

// Shows what README says under "What a pass does": "**Register** when the platform does not know this manager".
#[test]
fn it_registers_when_something_changed_and_only_then() {
    let scene = Aev::new("register");
    scene.instance("a");
    let registers = |program: Binary, why: &str| -> (Composer, Value) {
        scene.platform.clear_journal();
        let report = program.run().expect_code(exit::OK.into()).lane();
        let told = report["platform"]["registration"].as_str().unwrap_or_default().to_owned();
        assert_eq!(scene.platform.calls(REGISTER).len(), usize::from(told != "known"), "{told}");
        assert!(told.contains(why), "{told:?} should tell {why:?}");
        let registered = composer(&scene).unwrap();
        assert!(registered.public_key.starts_with("-----BEGIN PUBLIC KEY-----"), "{registered:?}");
        (registered, report)
    };
    let former_key = |report: &Value| report["notices"].to_string().contains("24 hours");
    let (first, _) = registers(scene.program(), "did not know this manager");
    assert_eq!(first.id, &*scene.manager);
    registers(scene.program(), "known");
    // What the platform noted of itself is another version, as after a restored backup.
    scene.platform.edit(|state| "3.250101.0".clone_into(&mut state.openaev.composer.as_mut().unwrap().version));
    let (noted, _) = registers(scene.program(), "noted another version");
    assert_eq!(noted.version, "3.261026.0");
    registers(scene.program(), "known");
    scene.platform.edit(|state| "3.261101.0".clone_into(&mut state.openaev.platform_version));
    registers(scene.program(), "another version");
    registers(scene.program(), "known");
    let renamed = || scene.program().var("MANAGER__NAME", "Überwacher");
    let (named, report) = registers(renamed(), "another name");
    assert!(named.name == "Überwacher" && !former_key(&report), "{named:?} {report:#}");
    let other = TestKey::rsa(3072, KeyForm::Pkcs1);
    let rekeyed = || renamed().var("MANAGER__CREDENTIALS_KEY_FILEPATH", &other.path);
    let (second, report) = registers(rekeyed(), "another key");
    assert_ne!(first.public_key, second.public_key);
    assert!(former_key(&report), "the platform keeps the former key for a day: {report:#}");
    let (_, report) = registers(rekeyed(), "known");
    assert!(!former_key(&report), "said once: {report:#}");
    // Somebody pruned the record.
    for record in scene.records() {
        scene.engine.remove(&record.id);
    }
    registers(rekeyed(), "no memory");
    registers(rekeyed(), "known");
}

#[test]
fn a_secret_that_the_platform_encrypts_for_the_former_key_rejects_its_instance_alone_with_the_cure() {
    // Keys of two sizes: a smaller one's envelope is short before it is anything else.
    for (former, present, told) in [(3072, 2048, "another key"), (2048, 3072, "an envelope for this key has at least")]
    {
        let mut scene = Aev::new("former-key");
        scene.0.key = TestKey::rsa(former, KeyForm::Pkcs8);
        scene.instance("good");
        scene.pass(exit::OK);
        let cached = composer(&scene).unwrap().public_key;
        scene.platform.edit(|state| state.openaev.key_cache = Some(cached));
        scene.0.key = TestKey::rsa(present, KeyForm::Pkcs8);
        scene.pass(exit::OK);
        scene.instance_with("a", |instance| instance.secret("KEY", "hunter2"));
        for _ in 0..2 {
            let report = scene.pass(exit::CONNECTOR_FAILED);
            expect_all(line(&report, "id-a")["error"].as_str().unwrap(), &["KEY", told, "type the value again"], told);
            assert_eq!(line(&report, "id-good")["result"], "unchanged", "{report:#}");
        }
        // A day later, typed again.
        scene.platform.edit(|state| {
            state.openaev.key_cache = None;
            state.openaev.instance_mut("id-a").unwrap().envelopes.clear();
        });
        scene.pass(exit::OK);
        assert_eq!(scene.container_of("id-a").env["KEY"], "hunter2");
    }
}

// Shows what README says under "What a pass does": "a composer that it does not know is registered before its key can
// be tried", "Should that open nothing, this pass and later ones end with 3".
#[test]
fn a_key_that_opens_nothing_is_not_registered_and_one_that_had_to_be_is_refused_in_every_later_pass() {
    let scene = Aev::new("wrong-key");
    scene.instance_with("a", |instance| instance.secret("KEY", "hunter2"));
    scene.pass(exit::OK);
    let right = composer(&scene).unwrap().public_key;
    let wrong = TestKey::rsa(3072, KeyForm::Pkcs8);
    let wrong = || scene.program().var("MANAGER__CREDENTIALS_KEY_FILEPATH", &wrong.path);
    let refused = |what: &str, program: Binary, told: &[&str]| {
        let watch = Watch::new(&scene);
        let report = program.run().expect_code(exit::PLATFORM.into()).lane();
        watch.expect_untouched(what);
        expect_all(&faults(&report), told, what);
        expect_all(&faults(&report), &["opens none", "--accept-new-key", "MANAGER__CREDENTIALS_KEY_FILEPATH"], what);
        report["platform"]["registration"].as_str().unwrap().to_owned()
    };
    let told = refused("known", wrong(), &["has the fingerprint", "this pass does not register it"]);
    assert_eq!(told, "not registered: this manager has another key");
    refused("plan", wrong().arg("plan"), &["this pass does not register it"]);
    assert_eq!(composer(&scene).unwrap().public_key, right);

    // Another composer has the place, and the list is given to the registered one alone.
    for forget in [false, true] {
        set_composer(&scene, Some(other(3)));
        if forget {
            scene.records().iter().for_each(|record| scene.engine.remove(&record.id));
        }
        let taking = || wrong().var("OPENAEV__TAKE_OVER", "true");
        let told = refused("taken", taking(), &["had to be registered before it could be tried"]);
        assert_eq!(told, "registered: the platform did not know this manager");
        assert_ne!(composer(&scene).unwrap().public_key, right);
        scene.platform.clear_journal();
        refused("again", wrong(), &["this pass does not register it"]);
        assert_eq!(scene.platform.calls(REGISTER), []);
        // The way back.
        let report = scene.pass(exit::OK);
        assert_eq!(report["platform"]["registration"], "registered: there is no memory of an earlier registration");
        assert_eq!(composer(&scene).unwrap().public_key, right);
        let report = scene.pass(exit::OK);
        assert_eq!(report["platform"]["registration"], "known", "{report:#}");
    }
}

// Shows what README says under "Coming from the daemon": "a pass that finds the place taken by another composer stops
// there and says so".
#[test]
fn the_place_of_another_composer_is_not_taken_unless_told_to() {
    for generation in [Generation::Recent, Generation::Earlier] {
        let scene = Aev::new("place");
        scene.instance("a");
        scene.platform.edit(|state| state.openaev.generation = generation);
        let refused = |what: &str, told: &[&str]| {
            scene.platform.clear_journal();
            let before = composer(&scene);
            let watch = Watch::new(&scene);
            let report = scene.pass(exit::PLATFORM);
            watch.expect_untouched(what);
            let faults = faults(&report);
            expect_all(&faults, told, what);
            expect_all(&faults, &[&scene.platform.url(), "OPENAEV__TAKE_OVER=true", "MANAGER__ID"], what);
            assert_eq!(composer(&scene), before, "{what}: the slot is as it was, {generation:?}");
            assert!(scene.platform.calls(REGISTER).is_empty() && scene.platform.calls(LIST).is_empty(), "{what}");
            assert!(scene.locks().is_empty(), "{what}: the lock was given back");
        };
        set_composer(&scene, Some(other(0)));
        refused("a fresh one", &["another composer", "within the last two hours"]);
        let plan = scene.program().arg("plan").run().expect_code(exit::PLATFORM.into());
        expect_all(&plan.stdout, &["another", "OPENAEV__TAKE_OVER"], "plan");
        let check = scene.program().arg("check").run().expect_code(exit::PLATFORM.into());
        expect_all(&check.stdout, &["another composer", "OPENAEV__TAKE_OVER"], "check");

        let taking = || scene.program().var("OPENAEV__TAKE_OVER", "true");
        let report = taking().run().expect_code(exit::OK.into()).lane();
        assert_eq!(composer(&scene).unwrap().id, &*scene.manager, "{report:#}");
        assert_eq!(report["counts"]["steps"], json!({"deploy": 1}), "{report:#}");

        // Evicted: also one that has not been heard of for long is not evicted in return.
        for hours in [0, 3] {
            set_composer(&scene, Some(other(hours)));
            refused("evicted", &["another composer"]);
            assert!(scene.only().running(), "what runs runs on");
        }
        taking().run().expect_code(exit::OK.into());
        assert_eq!(composer(&scene).unwrap().id, &*scene.manager);
    }
}

#[test]
fn a_place_that_nobody_uses_any_more_goes_to_a_manager_that_never_had_one() {
    for generation in [Generation::Recent, Generation::Earlier] {
        for former in [None, Some(other(3))] {
            let scene = Aev::new("abandoned");
            scene.platform.edit(|state| state.openaev.generation = generation);
            set_composer(&scene, former.clone());
            scene.instance("a");
            let report = scene.pass(exit::OK);
            assert_eq!(composer(&scene).unwrap().id, &*scene.manager, "{generation:?}, after {former:?}: {report:#}");
            assert!(scene.only().running());
            let report = scene.pass(exit::OK);
            assert_eq!(report["platform"]["registration"], "known", "{report:#}");
            assert_eq!(report["counts"]["unchanged"], 1, "{report:#}");
        }
    }
}

// Shows what README says under "Coming from the daemon": "after a restored backup `OPENAEV__TAKE_OVER=true` is needed
// once".
#[test]
fn a_place_that_the_platform_lost_is_taken_back_where_it_tells_that_nobody_has_it() {
    let scene = Aev::new("lost-place");
    scene.instance("a");
    scene.pass(exit::OK);
    let lose = |generation| {
        set_composer(&scene, None);
        scene.platform.edit(|state| state.openaev.generation = generation);
    };
    lose(Generation::Earlier);
    let report = scene.pass(exit::OK);
    expect_all(&report["platform"]["registration"].to_string(), &["did not know this manager"], "earlier");
    // Recent builds give one answer for nobody and for somebody else.
    lose(Generation::Recent);
    expect_all(&faults(&scene.pass(exit::PLATFORM)), &["or none", "OPENAEV__TAKE_OVER=true"], "recent");
    scene.program().var("OPENAEV__TAKE_OVER", "true").run().expect_code(exit::OK.into());
    let report = scene.pass(exit::OK);
    assert_eq!(report["platform"]["registration"], "known", "{report:#}");
}

fn composer_paths(calls: &[Call]) -> Vec<&str> {
    calls.iter().filter(|call| !call.path.contains("/settings")).map(|call| call.path.as_str()).collect()
}

#[test]
fn a_tenant_has_routes_of_its_own_and_logs_go_to_the_tenant_of_their_instance() {
    let scene = Aev::new("tenants");
    scene.platform.edit(|state| state.openaev.tenants = ["main", "blue", "red"].map(str::to_owned).into());
    for tenant in ["main", "blue", "red"] {
        scene.instance_with(tenant, |instance| instance.in_tenant(tenant));
    }
    let logs_paths = || {
        let mut paths: Vec<String> = scene.platform.calls(LOGS).into_iter().map(|call| call.path).collect();
        paths.sort();
        paths
    };
    let of = |tenant: &str, id: &str| {
        let (tenant, manager) = (format!("/api/tenants/{tenant}/xtm-composer"), &*scene.manager);
        format!("{tenant}/{manager}/connector-instances/id-{id}/logs")
    };
    // On the plain path.
    scene.pass(exit::OK);
    let mut wanted = ["main", "blue", "red"].map(|tenant| of(tenant, tenant));
    wanted.sort();
    assert_eq!(logs_paths(), wanted);
    for tenant in ["main", "blue", "red"] {
        assert!(!scene.of(&format!("id-{tenant}")).logs.is_empty(), "{tenant}");
        assert_eq!(scene.container_of(&format!("id-{tenant}")).env["OPENAEV_TENANT_ID"], tenant);
    }
    let journal = scene.platform.journal();
    let others = composer_paths(&journal).into_iter().filter(|path| !path.ends_with("/logs"));
    assert!(others.clone().count() > 6 && others.clone().all(|path| path.starts_with("/api/xtm-composer/")));

    // A user who may do something in one tenant alone: on the plain path nothing, and the cure names the key.
    scene.platform.edit(|state| state.openaev.users[0].tenant = Some("blue".to_owned()));
    let told = faults(&scene.pass(exit::PLATFORM));
    expect_all(&told, &["HTTP 403", &scene.platform.url(), "OPENAEV__TENANT"], "plain");
    let tenant = || scene.program().var("OPENAEV__TENANT", "blue");
    scene.instance_with("late", |instance| instance.in_tenant("blue"));
    for name in ["main", "blue", "red"] {
        let container = scene.manager.connector_name(name);
        scene.engine.call("POST", &format!("/containers/{container}/restart?t=2")).expect_success("new lines");
    }
    scene.platform.clear_journal();
    let outcome = tenant().run().expect_code(exit::CONNECTOR_FAILED.into());
    let report = outcome.lane();
    assert_eq!(report["counts"]["steps"], json!({"deploy": 1}), "{report:#}");
    let told = faults(&report);
    expect_all(&told, &["logs was not published", "HTTP 403", "OPENAEV__TENANT"], "another tenant's logs");
    let ids: Vec<_> = report["errors"].as_array().unwrap().iter().map(|error| error["connector"].clone()).collect();
    assert_eq!(ids, [json!("id-main"), json!("id-red")], "theirs alone: {report:#}");
    assert_eq!(report["platform"]["sent"], json!({"status": 1, "health": 4, "logs": 2}), "{report:#}");
    let journal = scene.platform.journal();
    let others = composer_paths(&journal).into_iter().filter(|path| !path.ends_with("/logs"));
    assert!(
        others.clone().count() > 6 && others.clone().all(|path| path.starts_with("/api/tenants/blue/xtm-composer/"))
    );

    // A tenant that there is not.
    let told = faults(&scene.program().var("OPENAEV__TENANT", "green").run().expect_code(exit::PLATFORM.into()).lane());
    expect_all(&told, &["404", "OPENAEV__TENANT"], "unknown tenant");
    // A build without tenants has no such route.
    scene.platform.edit(|state| {
        state.openaev.tenants.clear();
        state.openaev.users[0].tenant = None;
    });
    let told = faults(&tenant().run().expect_code(exit::PLATFORM.into()).lane());
    expect_all(&told, &["404", "OPENAEV__TENANT"], "no tenants");
}

#[test]
fn requests_are_named_carry_a_token_and_no_cookie() {
    let scene = Aev::new("manners");
    scene.instance("a");
    for command in ["plan", "check", "run", "run", "plan", "check"] {
        scene.program().arg(command).run().expect_code(exit::OK.into());
    }
    let journal = scene.platform.journal();
    assert!(journal.len() > 15, "{}", journal.len());
    for call in journal {
        assert_eq!(call.user_agent, concat!("xtm-reconcile/", env!("CARGO_PKG_VERSION")), "{call:?}");
        assert!(!call.cookies && call.outcome != "csrf", "{call:?}");
        assert!(call.authorization.starts_with("Bearer "), "{call:?}");
        assert!(call.operation.starts_with("openaev."), "{call:?}");
    }
}

/// Runs a command that must not write, and sees that it did not.
#[track_caller]
fn without_a_write(scene: &Aev, what: &str, program: impl FnOnce(Binary) -> Binary) -> Outcome {
    let tap = ApiTap::new(scene.engine);
    let watch = Watch::new(scene);
    scene.platform.clear_journal();
    let before = scene.platform.read(|state| state.openaev.clone());
    let outcome = program(scene.program_on(&tap.docker_host())).run();
    watch.expect_untouched(what);
    assert_eq!(tap.writes(), [], "{what}");
    let journal = scene.platform.journal();
    assert!(journal.iter().all(|call| call.kind != Kind::Write), "{what}: {journal:#?}");
    let after = scene.platform.read(|state| state.openaev.clone());
    assert_eq!((after.composer, after.audited), (before.composer, before.audited), "{what}");
    outcome
}

// Shows what README says under "Commands": "so that there is no plan before the first pass".
#[test]
fn a_plan_says_that_it_needs_a_registration_first_and_then_shows_what_a_pass_will_do() {
    for generation in [Generation::Recent, Generation::Earlier] {
        let scene = Aev::new("plan");
        scene.platform.edit(|state| state.openaev.generation = generation);
        for name in ["keep", "change", "stop", "gone", "other"] {
            scene.instance(name);
        }
        let plan = |what: &str| without_a_write(&scene, what, |program| program.args(["plan", "--detailed-exitcode"]));
        let report = plan("first").expect_code(exit::OK.into()).lane();
        assert!(report["platform"]["registration"].as_str().unwrap().contains("to register"), "{report:#}");
        expect_all(&report["notices"].to_string(), &["registered composer alone", "make one pass"], "first");
        assert_eq!((&report["counts"]["steps"], &report["connectors"]), (&json!({}), &json!([])), "{report:#}");
        scene.pass(exit::OK);

        let report = plan("nothing to do").expect_code(exit::OK.into()).lane();
        assert_eq!(report["platform"]["registration"], "known", "{report:#}");
        scene.instance("late");
        scene.change("id-change", |instance| "xtm-fixture/connector:2".clone_into(&mut instance.image));
        scene.change("id-stop", |instance| "stopping".clone_into(&mut instance.requested_status));
        scene.delete("id-gone");
        let wanted = json!({"deploy": 1, "refresh": 1, "stop": 1, "remove": 1});
        let report = plan("work").expect_code(exit::CHANGES_PENDING.into()).lane();
        assert_eq!(report["counts"]["steps"], wanted, "{report:#}");
        assert_eq!(scene.pass(exit::OK)["counts"]["steps"], wanted);
    }
}

// Shows what README says under "xtm-reconcile": "OpenAEV 2.1.0 and later".
#[test]
fn a_check_is_green_when_a_pass_can_work_and_red_for_each_capability_that_it_can_see() {
    let scene = Aev::new("check");
    scene.instance_with("a", |instance| instance.secret("API_KEY", "clear-hunter2"));
    let check = |what: &str, code: u8, told: &[&str]| {
        let outcome = without_a_write(&scene, what, |program| program.arg("check")).expect_code(code.into());
        let document = outcome.json();
        let bad: Vec<_> =
            document["checks"].as_array().unwrap().iter().filter(|check| check["verdict"] == "bad").collect();
        assert_eq!(bad.is_empty(), code == exit::OK, "{what}: {document:#}");
        expect_all(&outcome.stdout, told, what);
        assert!(!outcome.stdout.contains("hunter2"), "{what}: {}", outcome.stdout);
    };
    check("fresh", exit::OK, &["version 3.261026.0", "no manager yet; the first pass registers"]);
    scene.pass(exit::OK);
    check("good", exit::OK, &["this manager is registered", "API_KEY of", "opens with this key", "1 listed"]);
    let without = |capability: Capability| {
        let mut user = OpenAevUser::default();
        user.capabilities.retain(|one| *one != capability);
        scene.platform.edit(|state| state.openaev.users = vec![user]);
    };
    without(Capability::PlatformSettingRead);
    check("settings", exit::PLATFORM, &["lacks the capability platform settings read"]);
    without(Capability::CatalogRead);
    check("read", exit::PLATFORM, &["catalog read is missing; give it to the role"]);
    // Nothing that only reads can tell.
    without(Capability::CatalogWrite);
    check("write", exit::OK, &["this manager is registered"]);
    scene.platform.edit(|state| state.openaev.users[0].token = "another-token-than-the-managers".to_owned());
    check("token", exit::PLATFORM, &["refused the token 7d1f…", "OPENAEV__TOKEN"]);
    scene.platform.edit(|state| state.openaev.users = vec![OpenAevUser::default()]);
    scene.platform.edit(|state| "2.0.9".clone_into(&mut state.openaev.platform_version));
    check("old", exit::PLATFORM, &["2.0.9", "too old", "2.1.0"]);
    scene.platform.edit(|state| "2.1.0".clone_into(&mut state.openaev.platform_version));
    check("first version", exit::OK, &["version 2.1.0"]);
    scene.instance_with("odd", |instance| Instance { image: String::new(), ..instance });
    check("rejected", exit::CONNECTOR_FAILED, &["id-odd", "sent no image"]);
    assert_eq!(scene.platform.calls(HEARTBEAT), [], "a heartbeat is a write");
}
