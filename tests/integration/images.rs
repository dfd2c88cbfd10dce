//! Images: by policy, each once, with a login where it belongs and nowhere else.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;

use serde_json::Value;
use xtm_reconcile::exit;

use crate::moves::{SOON, complaints, line, set};
use crate::scene::Scene;
use crate::support::{ApiTap, Registry, unique};

const POLICY: &str = "OPENCTI__DAEMON__DOCKER__IMAGE_PULL_POLICY";
const PULL: &str = "POST /images/create";

/// One pass through a tap; its report and how often it pulled.
fn pass(scene: &Scene, settings: &[(&str, &str)], code: u8) -> (Value, usize) {
    let tap = ApiTap::new(scene.engine);
    let report = set(scene.tapped(&tap), settings).run().expect_code(code.into()).lane();
    let pulls =
        tap.requests().iter().filter(|request| request.matches(PULL) && request.query.contains("fromImage")).count();
    (report, pulls)
}

fn changed(scene: &Scene, id: &str) {
    scene.edit(id, |connector| {
        connector.configuration.clear();
        *connector = connector.clone().setting("CHANGE", unique("c"));
    });
}

// Shows what README says under "Configuration": "Default: `Always` for the tags `latest` and `rolling` and for none".
#[test]
fn images_are_pulled_as_the_policy_and_the_tag_say() {
    let registry = Registry::open();
    let scene = Scene::new("policy");
    let repository = unique("policy");
    for tag in ["1", "latest", "rolling"] {
        registry.push(scene.engine, "xtm-fixture/connector:1", &format!("{repository}:{tag}"));
    }
    let named = |tag: &str| registry.reference(&format!("{repository}{tag}"));
    // Tag, policy, pulls when the engine lacks the image and when it has it.
    let cases = [
        (":1", "", 1, 0),
        (":latest", "", 1, 1),
        (":rolling", "", 1, 1),
        ("", "", 1, 1),
        (":1", "Always", 1, 1),
        (":latest", "IfNotPresent", 1, 0),
        (":rolling", "Never", 0, 0),
    ];
    scene.connector("a");
    for (tag, policy, absent, present) in cases {
        scene.engine.untag(&named(if tag.is_empty() { ":latest" } else { tag }));
        scene.edit("id-a", |connector| connector.image = named(tag));
        let settings = [(POLICY, policy)];
        let code = if policy == "Never" { exit::CONNECTOR_FAILED } else { exit::OK };
        let (report, pulls) = pass(&scene, &settings, code);
        assert_eq!(pulls, absent, "{tag:?} by {policy:?}, absent: {report:#}");
        if policy == "Never" {
            let said = complaints(&report);
            assert!(said.contains("pull policy is Never") && said.contains("load the image"), "{said}");
            scene.engine.tag("xtm-fixture/connector:1", &named(tag));
        }
        changed(&scene, "id-a");
        let (report, pulls) = pass(&scene, &settings, exit::OK);
        assert_eq!(pulls, present, "{tag:?} by {policy:?}, present: {report:#}");
        assert_eq!(scene.only().image, named(tag));
        assert!(scene.only().running());
        // What does not change is not pulled, whatever the tag.
        assert_eq!(pass(&scene, &settings, exit::OK).1, 0);
    }
}

#[test]
fn an_image_that_many_connectors_use_is_pulled_once_whether_that_works_or_not() {
    let scene = Scene::new("once");
    let image = Registry::open().push(scene.engine, "xtm-fixture/connector:2", &format!("{}:latest", unique("once")));
    let missing = Registry::open().reference("there-is-none:latest");
    for number in 0..4 {
        scene.connector_with(&format!("good-{number}"), |connector| stand_in(connector, &image));
        scene.connector_with(&format!("bad-{number}"), |connector| stand_in(connector, &missing));
    }
    let (report, pulls) = pass(&scene, &[], exit::CONNECTOR_FAILED);
    assert_eq!(pulls, 2, "{report:#}");
    for number in 0..4 {
        assert_eq!(line(&report, &format!("id-good-{number}"))["result"], "done");
        let error = line(&report, &format!("id-bad-{number}"))["error"].to_string();
        assert!(error.contains(&missing) && error.contains("cannot be pulled"), "{error}");
    }
    assert_eq!(scene.containers().iter().filter(|container| container.running()).count(), 4);
}

fn stand_in(mut connector: stand_in_platform::Connector, image: &str) -> stand_in_platform::Connector {
    image.clone_into(&mut connector.image);
    connector
}

#[test]
fn a_registry_with_a_login_lets_in_who_has_it_and_its_refusal_is_told() {
    let registry = Registry::with_login();
    let login = registry.login.clone().expect("a login");
    let name = format!("team/{}:1", unique("private"));
    let scene = Scene::new("login");
    let full = registry.push(scene.engine, "xtm-fixture/connector:2", &name);
    scene.connector("a");
    pass(&scene, &[], exit::OK);
    let before = scene.only().id;
    let server = [("OPENCTI__DAEMON__REGISTRY__SERVER", registry.address.as_str())];
    let user = |password| {
        [
            server[0],
            ("OPENCTI__DAEMON__REGISTRY__USERNAME", &*login.user),
            ("OPENCTI__DAEMON__REGISTRY__PASSWORD", password),
        ]
    };

    // The image that names the registry, and the one that gets it by configuration.
    for image in [&full, &name] {
        scene.engine.untag(&full);
        scene.edit("id-a", |connector| connector.image.clone_from(image));
        for settings in [&server[..], &user("wrong-password")[..]] {
            let (report, _) = pass(&scene, settings, exit::CONNECTOR_FAILED);
            let said = complaints(&report);
            assert!(said.contains(&full) && said.contains("cannot be pulled"), "{said}");
            assert!(said.contains("no basic auth credentials") || said.contains("unauthorized"), "{said}");
            assert!(said.contains("OPENCTI__DAEMON__REGISTRY__"), "what to do: {said}");
            assert!(!said.contains("wrong-password"), "{said}");
            assert_eq!((scene.only().id, scene.only().running()), (before.clone(), true), "what runs goes on");
        }
    }
    let (_, pulls) = pass(&scene, &user(&login.password), exit::OK);
    assert_eq!(pulls, 1);
    assert_eq!(scene.only().image, full);
    // Given with its scheme, as people do.
    let with_scheme = format!("https://{}/", registry.address);
    scene.engine.untag(&full);
    changed(&scene, "id-a");
    let mut settings = user(&login.password);
    settings[0].1 = &with_scheme;
    assert_eq!(pass(&scene, &settings, exit::OK).1, 1);
    scene.engine.untag(&full);
}

// Shows what README says under "Configuration": "User of that registry".
#[test]
fn a_login_goes_to_its_own_registry_alone() {
    let scene = Scene::new("elsewhere");
    // Another registry, which notes what it is told and knows no image.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = listener.local_addr().expect("an address").to_string();
    let (sender, heard) = mpsc::channel();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let mut buffer = [0; 8192];
            let read = connection.read(&mut buffer).unwrap_or(0);
            // Noted before it is answered: whoever has the answer finds the note.
            if sender.send(String::from_utf8_lossy(&buffer[..read]).into_owned()).is_err() {
                return;
            }
            let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"other\"\r\n";
            let _ = connection.write_all(format!("{answer}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes());
        }
    });
    scene.connector_with("a", |connector| stand_in(connector, &format!("{other}/some/image:1")));
    let settings = [
        ("OPENCTI__DAEMON__REGISTRY__SERVER", "registry.example.org"),
        ("OPENCTI__DAEMON__REGISTRY__USERNAME", "somebody"),
        ("OPENCTI__DAEMON__REGISTRY__PASSWORD", "a-password-of-ours"),
    ];
    let (report, _) = pass(&scene, &settings, exit::CONNECTOR_FAILED);
    let notices = report["notices"].to_string();
    let passed_by = format!("({other}/some/image:1)");
    assert!(notices.contains("come from there and not from registry.example.org") && notices.contains(&passed_by));
    let first = heard.recv_timeout(SOON).expect("the engine asks the other registry");
    let all: Vec<String> = std::iter::once(first).chain(heard.try_iter()).collect();
    assert!(all.iter().all(|request| !request.to_ascii_lowercase().contains("authorization:")), "{all:?}");

    // The same when that one is the configured registry: so the above can fail.
    let mut settings = settings;
    settings[0].1 = &other;
    let (report, _) = pass(&scene, &settings, exit::CONNECTOR_FAILED);
    assert_eq!(report["notices"], serde_json::json!([]), "its own registry is the configured one");
    let all: Vec<String> = heard.try_iter().collect();
    assert!(all.iter().any(|request| request.contains("Authorization: Basic")), "{all:?}");
}
