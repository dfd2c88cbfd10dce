//! The life of a connector's container: made, stopped, started, replaced, renamed, adopted, removed, put right.

use stand_in_platform::Connector;
use xtm_reconcile::exit;

use crate::moves::{SOON, complaints, line, names, started_at};
use crate::scene::{IMAGE, Scene};
use crate::support::{ApiTap, EventLog, Fault, NewContainer};

const IMAGE_2: &str = "xtm-fixture/connector:2";

fn shown(scene: &Scene, id: &str) -> String {
    scene.platform.read(|state| state.connector(id).and_then(|c| c.current_status.clone()).unwrap_or_default())
}

// Shows what README says under "What a pass does": "**Deploy** what should run and is not there; **start**, **stop**
// what is", "A connector that was never started on the platform is not deployed until it is.".
#[test]
fn a_connector_goes_through_its_whole_life() {
    let scene = Scene::new("life");
    let name = scene.connector_with("a", |connector| connector.requested("stopped").setting("COLOUR", "red=1"));
    let report = scene.pass_ends(exit::OK);
    assert_eq!(line(&report, "id-a")["skip"]["kind"], "not-started", "{report:#}");
    assert!(scene.containers().is_empty(), "what was never started is not made");

    scene.edit("id-a", |connector| "starting".clone_into(&mut connector.requested_status));
    scene.pass_ends(exit::OK);
    let first = scene.only();
    assert!(first.running() && first.name == name);
    assert_eq!(first.label("opencti-manager"), &*scene.manager);
    assert_eq!(first.label("opencti-connector-id"), "id-a");
    assert_eq!(first.label("opencti-platform"), "opencti");
    assert_eq!(first.label("opencti-config-hash"), first.env["OPENCTI_CONFIG_HASH"]);
    assert_eq!(first.env["OPENCTI_URL"], scene.platform.url());
    assert_eq!(first.env["COLOUR"], "red=1");
    assert_eq!(first.json["HostConfig"]["RestartPolicy"]["Name"], "unless-stopped");
    assert_eq!(shown(&scene, "id-a"), "started");
    scene.pass_is_quiet();
    scene.is_settled(&["id-a"]);

    scene.edit("id-a", |connector| "stopping".clone_into(&mut connector.requested_status));
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["do"], "stop");
    assert_eq!((scene.only().id, scene.only().state.as_str()), (first.id.clone(), "exited"));
    assert_eq!(shown(&scene, "id-a"), "stopped");
    scene.pass_is_quiet();

    // Out of date and stopped: replaced by one that was never started.
    scene.edit("id-a", |connector| connector.configuration[0].value = Some("green".to_owned()));
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["start"], false);
    let second = scene.only();
    assert_ne!(second.id, first.id);
    assert_eq!((second.name.as_str(), second.state.as_str()), (name.as_str(), "created"));
    assert_eq!(second.env["COLOUR"], "green");
    scene.pass_is_quiet();

    scene.edit("id-a", |connector| "starting".clone_into(&mut connector.requested_status));
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["do"], "start");
    assert!(scene.only().running() && scene.only().id == second.id);

    scene.edit("id-a", |connector| IMAGE_2.clone_into(&mut connector.image));
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["do"], "refresh");
    let third = scene.only();
    assert!(third.running() && third.image == IMAGE_2 && third.id != second.id);
    scene.pass_is_quiet();
    scene.is_settled(&["id-a"]);

    scene.unlist("id-a");
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["reason"], "not-listed");
    assert!(scene.containers().is_empty());
    scene.pass_is_quiet();
}

// Shows what README says under "What a pass does": "**rename** what has another name".
#[test]
fn a_new_name_is_given_to_the_running_container() {
    let scene = Scene::new("rename");
    scene.connector_with("a", |connector| Connector { hash: Some("cafe0001".to_owned()), ..connector });
    scene.pass_ends(exit::OK);
    let before = scene.only();
    let title = format!("{} & Co. (2)", scene.manager.connector_name("New"));
    scene.edit("id-a", |connector| connector.name.clone_from(&title));
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["skip"]["kind"], "running");
    let after = scene.only();
    let slug = title.to_lowercase().replace([' ', '&', '.', '(', ')'], "-");
    assert_eq!(after.name, slug.trim_matches('-'));
    assert_eq!((after.id, started_at(&before)), (before.id.clone(), started_at(&scene.only())));
    scene.pass_is_quiet();
}

#[test]
fn connectors_that_trade_their_names_end_up_with_them_without_a_restart() {
    let scene = Scene::new("swap");
    let ids = ["id-a", "id-b", "id-c"];
    let fixed = |connector: Connector| Connector { hash: Some("cafe0002".to_owned()), ..connector };
    let names = ["a", "b", "c"].map(|name| scene.connector_with(name, fixed));
    scene.pass_ends(exit::OK);
    let before = ids.map(|id| scene.container_of(id).id);
    // Two trade; then all three, around.
    for order in [[1, 0, 2], [2, 0, 1]] {
        for (id, place) in ids.iter().zip(order) {
            scene.edit(id, |connector| connector.name.clone_from(&names[place]));
        }
        let passes = (0..4).take_while(|_| scene.pass_ends(exit::OK)["counts"]["unchanged"] != 3).count();
        assert!(passes < 4, "the names are where they belong after a few passes");
        // One more: a temporary name counts as unchanged while it waits.
        scene.pass_ends(exit::OK);
        scene.pass_is_quiet();
        scene.is_settled(&ids);
        assert_eq!(ids.map(|id| scene.container_of(id).id), before);
    }
}

#[test]
fn a_connector_made_anew_under_the_same_name_is_replaced_in_one_pass() {
    let scene = Scene::new("anew");
    let name = scene.connector("a");
    scene.pass_ends(exit::OK);
    scene.unlist("id-a");
    scene.platform.edit(|state| state.connectors.push(Connector::new("id-b", &name, IMAGE).requested("starting")));
    scene.pass_ends(exit::OK);
    let container = scene.only();
    assert_eq!((container.name.as_str(), container.label("opencti-connector-id")), (name.as_str(), "id-b"));
    scene.is_settled(&["id-b"]);
    scene.pass_is_quiet();
}

// Shows what README says under "What a pass does": "**remove** what the platform does not list any more, and
// duplicates.".
#[test]
fn of_two_containers_of_one_connector_the_right_one_stays() {
    let scene = Scene::new("twice");
    let name = scene.connector_with("a", |connector| Connector { hash: Some("cafe0003".to_owned()), ..connector });
    scene.pass_ends(exit::OK);
    let right = scene.only();
    let copy = |suffix: &str, hash: &str| {
        NewContainer::of_daemon(&format!("{name}-{suffix}"), &scene.manager, "id-a", hash)
            .label("opencti-platform", "opencti")
    };
    scene.engine.run(&copy("running", "cafe0003"));
    scene.engine.create(&copy("stopped", "cafe0003"));
    scene.engine.run(&copy("stale", "cafe0000").label("opencti-config-hash", "cafe0000"));
    let report = scene.pass_ends(exit::OK);
    assert_eq!(report["counts"]["steps"]["remove"], 3, "{report:#}");
    assert_eq!((scene.only().id, started_at(&scene.only())), (right.id.clone(), started_at(&right)));
    scene.pass_ends(exit::OK);
    scene.pass_is_quiet();
}

// Shows what README says under "xtm-reconcile": "adopts the workloads that the daemon made without restarting them";
// under "What a pass does": "Containers get the restart policy `unless-stopped`, and adopted ones"; and under
// "Configuration": "one that has another keeps that until its next refresh".
#[test]
fn containers_of_the_daemon_are_adopted_as_they_run_get_the_restart_policy_and_are_looked_at_once() {
    let scene = Scene::new("adopt");
    let engine = scene.engine;
    let form = |name: &str, hash: &str| NewContainer::of_daemon(name, &scene.manager, &format!("id-{name}"), hash);
    let named = |name: &str| scene.manager.connector_name(name);
    // With the platform label, as newer daemons leave them, and without, as the oldest.
    for (name, wanted, labelled) in [
        ("new-up", "starting", true),
        ("new-down", "stopped", true),
        ("old-up", "starting", false),
        ("old-down", "stopped", false),
        ("another-policy", "starting", true),
    ] {
        scene.connector_with(name, |connector| Connector {
            hash: Some("beef0001".to_owned()),
            ..connector.requested(wanted)
        });
        let full = NewContainer::of_daemon(&named(name), &scene.manager, &format!("id-{name}"), "beef0001");
        let full = if labelled { full.label("opencti-platform", "opencti") } else { full };
        let full = if name == "another-policy" { full.restart("on-failure") } else { full };
        if wanted == "starting" {
            engine.run(&full)
        } else {
            engine.create(&full)
        };
    }
    let unlisted = named("unlisted");
    engine.run(&form(&unlisted, "beef0001"));
    let facts =
        || -> Vec<_> { scene.containers().iter().map(|c| (c.name.clone(), c.id.clone(), started_at(c))).collect() };
    let policy = |name: &str| {
        let container = engine.container(&named(name)).expect("the container is there");
        container.json["HostConfig"]["RestartPolicy"]["Name"].as_str().unwrap_or_default().to_owned()
    };
    let before = facts();

    let report = scene.pass_ends(exit::OK);
    assert_eq!(report["counts"]["steps"], serde_json::json!({"update": 2}), "{report:#}");
    assert_eq!(report["counts"]["unchanged"], 6, "{report:#}");
    assert!(report.to_string().contains("unknown-platform"), "what is left alone is told: {report:#}");
    assert_eq!(facts(), before, "nothing was restarted");
    let of_all = ["new-up", "old-up", "new-down", "old-down", "unlisted"].map(policy);
    assert_eq!(of_all, ["unless-stopped", "unless-stopped", "", "", ""], "those that run and are ours");
    assert_eq!(policy("another-policy"), "on-failure");

    let tap = ApiTap::new(engine);
    scene.tapped(&tap).run().expect_code(exit::OK.into());
    for name in ["new-down", "old-down"] {
        let id = scene.container_of(&format!("id-{name}")).id;
        assert_eq!(tap.count(&format!("GET /containers/{id}/json")), 0, "{name} is stopped and known");
    }
    scene.pass_is_quiet();
    scene.edit("id-new-down", |connector| "starting".clone_into(&mut connector.requested_status));
    // Nobody looks at one that never ran, so that it gets the policy once it runs.
    for step in ["start", "update"] {
        let report = scene.pass_ends(exit::OK);
        assert_eq!(report["counts"]["steps"], serde_json::json!({ step: 1 }), "{report:#}");
    }
    assert_eq!(policy("new-down"), "unless-stopped");
    scene.pass_is_quiet();

    // From the first refresh on they are like any other; the unlisted one is still left alone.
    for id in ["id-old-up", "id-another-policy"] {
        scene.edit(id, |connector| connector.hash = Some("beef0002".to_owned()));
    }
    scene.pass_ends(exit::OK);
    assert_eq!(scene.container_of("id-old-up").label("opencti-config-hash"), "beef0002");
    assert_eq!(policy("another-policy"), "unless-stopped");
    scene.pass_is_quiet();
    assert!(engine.container(&unlisted).is_some_and(|container| container.running()));
}

#[test]
fn what_was_done_by_hand_is_put_right() {
    let scene = Scene::new("drift");
    let name = scene.connector("a");
    scene.pass_ends(exit::OK);
    let id = scene.only().id;
    let engine = scene.engine;

    engine.stop(&name);
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["reason"], "ended");
    engine.call("POST", &format!("/containers/{name}/pause")).expect_success("pause");
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["reason"], "paused");
    engine.rename(&name, &format!("{name}-by-hand"));
    scene.pass_ends(exit::OK);
    scene.is_settled(&["id-a"]);
    assert_eq!(scene.only().id, id, "it was the same container all along");

    engine.call("POST", &format!("/containers/{name}/pause")).expect_success("pause");
    scene.edit("id-a", |connector| "stopping".clone_into(&mut connector.requested_status));
    scene.pass_ends(exit::OK);
    assert_eq!(scene.only().state, "exited", "a paused one can be stopped");
    engine.start(&name);
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["do"], "stop");
    assert_eq!(scene.only().state, "exited");

    scene.edit("id-a", |connector| "starting".clone_into(&mut connector.requested_status));
    engine.remove(&name);
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["do"], "deploy");
    scene.is_settled(&["id-a"]);
}

#[test]
fn a_container_that_vanishes_during_the_pass_is_no_error() {
    // By the request at which it vanishes: the step's own, and the look at it.
    for request in ["POST /containers/*/stop", "GET /containers/*/json", "GET /containers/*/logs"] {
        let scene = Scene::new("vanish");
        scene.connector("a");
        let other = scene.connector("b");
        scene.pass_ends(exit::OK);
        let victim = scene.container_of("id-a");
        if request.starts_with("POST") {
            scene.edit("id-a", |connector| IMAGE_2.clone_into(&mut connector.image));
        }
        let tap = ApiTap::new(scene.engine);
        let gate = tap.hold(&request.replace('*', &victim.id), 1);
        let pass = scene.tapped(&tap).spawn();
        gate.wait(SOON);
        scene.engine.remove(&victim.id);
        gate.release();
        // What was to be replaced need not be stopped, what is gone is made anew or by the next pass.
        pass.wait().expect_code(exit::OK.into());
        assert!(scene.engine.container(&other).is_some_and(|container| container.running()));
        scene.pass_ends(exit::OK);
        scene.is_settled(&["id-a", "id-b"]);
    }
}

// Shows what README says under "What a pass does": "**On Docker a refresh never trades a working connector for a failed
// one.**", "The image is pulled and the new container made before the old one is stopped".
#[test]
fn a_refresh_that_fails_keeps_the_old_container_running_and_serves_the_others() {
    type Break<'a> = &'a dyn Fn(&Scene, &ApiTap) -> Vec<(&'static str, &'static str)>;
    let with_image = |image: &'static str| {
        move |scene: &Scene, _: &ApiTap| {
            scene.edit("id-a", |connector| image.clone_into(&mut connector.image));
            vec![]
        }
    };
    let with_fault = |pattern: &'static str, nth: usize| {
        move |scene: &Scene, tap: &ApiTap| {
            scene.edit("id-a", |connector| IMAGE_2.clone_into(&mut connector.image));
            tap.inject(pattern, nth, Fault::Status(500));
            vec![]
        }
    };
    let refused = |scene: &Scene, _: &ApiTap| {
        scene.edit("id-a", |connector| IMAGE_2.clone_into(&mut connector.image));
        vec![("OPENCTI__DAEMON__DOCKER__RUNTIME", "no-such-runtime")]
    };
    let cases: [(&str, Break<'_>, &str); 6] = [
        ("no such image", &with_image("127.0.0.1:1/none:1"), "cannot be pulled"),
        ("does not start", &with_image("xtm-fixture/noentry:1"), "/missing"),
        ("engine refuses to create", &refused, "no-such-runtime"),
        ("engine fails to create", &with_fault("POST /containers/create", 2), "cannot be created"),
        ("engine fails to stop", &with_fault("POST /containers/*/stop", 1), "cannot be stopped"),
        ("engine fails to start", &with_fault("POST /containers/*/start", 1), "cannot be started"),
    ];
    for (what, breaking, words) in cases {
        let scene = Scene::new("keep");
        scene.connector("a");
        scene.pass_ends(exit::OK);
        let before = scene.only();
        let log = EventLog::start(scene.engine);
        let tap = ApiTap::new(scene.engine);
        let settings = breaking(&scene, &tap);
        let mut program = scene.tapped(&tap);
        for (name, value) in &settings {
            program = program.var(name, value);
        }
        // A sibling to be served meanwhile, but where all containers are refused.
        let sibling = settings.is_empty() && !what.contains("to create");
        if sibling {
            scene.platform.edit(|state| {
                let name = scene.manager.connector_name("z");
                state.connectors.push(Connector::new("id-z", name, IMAGE).requested("starting"));
            });
            // The faults count requests: the sibling must come second.
            program = program.var("MANAGER__CONCURRENCY", "1");
        }
        let report = program.run().expect_code(exit::CONNECTOR_FAILED.into()).lane();
        let said = complaints(&report);
        assert!(said.contains(words), "{what}: {said}");
        let after = scene.container_of("id-a");
        assert!(after.running(), "{what}: the old one is {}", after.state);
        assert_eq!((after.id, after.name), (before.id, before.name), "{what}");
        assert_eq!(scene.containers().len(), 1 + usize::from(sibling), "{what}: {}", names(&scene.containers()));
        if sibling {
            assert!(scene.container_of("id-z").running(), "{what}");
        }
        assert_eq!(shown(&scene, "id-a"), "started", "{what}");
        assert!(scene.locks().is_empty(), "{what}");
        let events = log.finish_for(&scene.manager);
        let bounced = events.iter().any(|event| event.starts_with("container die") && !event.contains(".xtm-next"));
        assert_eq!(bounced, words == "/missing" || what == "engine fails to start", "{what}: {events:#?}");

        // Mended, by a configuration that was not tried yet, the next pass does what this one could not.
        scene.edit("id-a", |connector| {
            IMAGE_2.clone_into(&mut connector.image);
            *connector = connector.clone().setting("MENDED", "1");
        });
        scene.pass_ends(exit::OK);
        assert_eq!(scene.container_of("id-a").image, IMAGE_2, "{what}");
        scene.pass_is_quiet();
    }
}

#[test]
fn a_connector_that_ignores_the_signal_is_killed_after_its_grace_period() {
    let scene = Scene::new("deaf");
    scene.connector_with("a", |connector| connector.setting("STANDIN_IGNORE_TERM", "1"));
    scene.pass_ends(exit::OK);
    let id = scene.only().id;
    scene.edit("id-a", |connector| "stopping".clone_into(&mut connector.requested_status));
    assert_eq!(line(&scene.pass_ends(exit::OK), "id-a")["step"]["do"], "stop");
    let container = scene.only();
    assert_eq!((container.id, container.state.as_str(), container.exit_code), (id, "exited", 137));
}

/// Foreign to the manager of `scene`, each in its own way, running, with names that its connectors want.
fn foreigners(scene: &Scene) -> Vec<String> {
    let name = |name: &str| scene.manager.connector_name(name);
    let other = format!("{}-other", &*scene.manager);
    let hash = "beef0001";
    let all = [
        NewContainer::foreign(&name("c0")),
        NewContainer::of_daemon(&name("c1"), &other, "id-c1", hash).label("opencti-platform", "opencti"),
        NewContainer::of_daemon(&name("f2"), &scene.manager, "id-c2", hash).label("opencti-platform", "openaev"),
        NewContainer::foreign(&name("c3")).label("opencti-manager", &scene.manager),
        NewContainer::foreign(&name("f4"))
            .label("opencti-manager", &scene.manager)
            .label("opencti-connector-id", "a b"),
        NewContainer::foreign(&format!("{}.12345678.xtm-next", name("f5"))),
        NewContainer::of_daemon(&name("f6"), &scene.manager, "id-never-listed", hash),
    ];
    all.iter().map(|new| scene.engine.run(new)).collect()
}

// Shows what README says under "What a pass does": "**Foreign workloads are never touched**".
#[test]
fn no_foreign_container_is_ever_touched_whatever_the_passes_do() {
    let scene = Scene::new("foreign");
    let foreign = foreigners(&scene);
    let mut random = fastrand::Rng::with_seed(20);
    let log = EventLog::start(scene.engine);
    for round in 0..20 {
        let id = format!("id-c{}", random.u8(0..9));
        match random.u8(0..9) {
            0 => scene.unlist(&id),
            1..=4 => {
                scene.unlist(&id);
                let name = scene.manager.connector_name(&format!("c{}", random.u8(0..9)));
                let connector = Connector::new(&id, name, IMAGE).requested("starting");
                scene.platform.edit(|state| state.connectors.push(connector));
            }
            5 | 6 => scene.platform.edit(|state| {
                let images = [IMAGE, IMAGE_2];
                state.connectors.iter_mut().for_each(|c| c.image = images[usize::from(random.bool())].to_owned());
            }),
            7 => scene.platform.edit(|state| {
                state.connectors.iter_mut().for_each(|c| c.requested_status = "stopping".to_owned());
            }),
            _ => scene.platform.edit(|state| state.connectors.clear()),
        }
        let outcome = scene.program().args(["run", "--allow-prune", "--output", "json"]).run();
        let code = outcome.code.unwrap_or(-1);
        assert!([exit::OK, exit::CONNECTOR_FAILED].map(i32::from).contains(&code), "round {round}: {}", outcome.stdout);
    }
    let events = log.finish();
    let ours = |action: &str| {
        let of_a_connector = |name: &String| name.starts_with("id-c");
        let all = events.iter().filter(|event| event.is_of(&scene.manager) && event.action == action);
        all.filter(|event| event.attributes.get("opencti-connector-id").is_some_and(of_a_connector)).count()
    };
    assert!(ours("create") >= 4 && ours("destroy") >= 4, "{} made, {} removed", ours("create"), ours("destroy"));
    let touched: Vec<String> =
        events.iter().filter(|event| foreign.contains(&event.id)).map(ToString::to_string).collect();
    assert_eq!(touched, Vec::<String>::new());
    // Those of other managers and of nobody do not go with the scene.
    for id in &foreign {
        scene.engine.remove(id);
    }
}

// Shows what README says under "What a pass does": "until then the connector is rejected by name", "or at once when the
// configuration changes".
#[test]
fn a_configuration_that_does_not_start_does_not_interrupt_the_old_container_in_every_pass() {
    let scene = Scene::new("backoff");
    scene.connector("a");
    scene.pass_ends(exit::OK);
    let before = scene.only();
    scene.edit("id-a", |connector| "xtm-fixture/noentry:1".clone_into(&mut connector.image));
    scene.pass_ends(exit::CONNECTOR_FAILED);
    scene.pass_ends(exit::CONNECTOR_FAILED);

    // It was tried twice. Until the wait is over the old one is left in peace, and every pass says why.
    let log = EventLog::start(scene.engine);
    for _ in 0..2 {
        let report = scene.pass_ends(exit::CONNECTOR_FAILED);
        assert_eq!(line(&report, "id-a")["reject"]["kind"], "wont-start", "{report:#}");
        assert!(complaints(&report).contains("2 attempts"), "{report:#}");
    }
    let touched: Vec<String> =
        log.finish_for(&scene.manager).into_iter().filter(|event| !event.contains("xtm-reconcile-")).collect();
    assert_eq!(touched, [""; 0]);
    assert_eq!(scene.only().id, before.id);
    assert_eq!(shown(&scene, "id-a"), "started");

    // Another configuration is tried at once.
    scene.edit("id-a", |connector| IMAGE_2.clone_into(&mut connector.image));
    scene.pass_ends(exit::OK);
    assert_eq!(scene.only().image, IMAGE_2);
    scene.pass_is_quiet();
}
