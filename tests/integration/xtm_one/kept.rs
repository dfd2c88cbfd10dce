//! What is kept of XTM One's answer, and what the licence is checked for.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use xtm_reconcile::exit;

use super::scene;
use crate::moves::set;
use crate::support::told::expect_all;

// Shows what README says under "What is sent, and to whom": "when it changed, if `XTM__CHAT_WEB_TOKEN_SECRET` or
// `_FILE` is set"; and under "Tokens": "The file is replaced as a whole, for its owner alone.".
#[test]
fn the_chat_token_is_kept_in_a_private_file_and_written_only_when_it_changes() {
    let scene = scene("chat-file");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat");
    let settings = [("XTM__CHAT_WEB_TOKEN_FILE", path.to_str().unwrap())];
    let answer = |token: Option<&str>| {
        scene.platform.edit(|state| {
            state.xtm_one.chat_web_token = token.map(str::to_owned);
            state.xtm_one.send_chat_web_token = true;
        });
    };
    answer(Some("chat-token-one"));
    let kept = |code| scene.register_with(&settings, code)["chat_web_token"].clone();
    assert_eq!(kept(exit::OK), "written");
    assert_eq!(fs::read_to_string(&path).unwrap(), "chat-token-one");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(kept(exit::OK), "unchanged");
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified);
    answer(None);
    assert!(kept(exit::OK).is_null(), "an answer without one");
    scene.platform.edit(|state| state.xtm_one.send_chat_web_token = false);
    assert!(kept(exit::OK).is_null(), "an answer of an older generation");
    assert_eq!(fs::read_to_string(&path).unwrap(), "chat-token-one", "it stays");
    answer(Some("chat-token-two"));
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(kept(exit::OK), "written");
    assert_eq!(fs::read_to_string(&path).unwrap(), "chat-token-two");
    // OpenAEV has one of its own.
    let both = set(scene.with_openaev(scene.reporting()), &settings);
    both.run().expect_code(0);
    assert_eq!(fs::read_to_string(folder.path().join("chat.openaev")).unwrap(), "chat-token-two");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");

    let nowhere = folder.path().join("no/such/folder/chat");
    let outcome =
        scene.register_with(&[("XTM__CHAT_WEB_TOKEN_FILE", nowhere.to_str().unwrap())], exit::CONNECTOR_FAILED);
    assert_eq!((&outcome["status"], &outcome["chat_web_token"]), (&"registered".into(), &"not kept".into()));
    expect_all(&super::errors(&outcome), &["cannot be written", "no/such/folder"], "where");
}

#[test]
fn a_chat_token_that_nobody_keeps_is_mentioned_once_for_each_change() {
    let scene = scene("chat-nowhere");
    let answer = |token: &str| {
        scene.platform.edit(|state| {
            state.xtm_one.chat_web_token = Some(token.to_owned());
            state.xtm_one.send_chat_web_token = true;
        });
    };
    let mentioned = || scene.reporting().run().expect_code(0).lane()["notices"].to_string().contains("kept nowhere");
    answer("one");
    assert_eq!([mentioned(), mentioned(), mentioned()], [true, false, false]);
    answer("two");
    assert_eq!([mentioned(), mentioned()], [true, false]);
}

// Shows what README says under "What is sent, and to whom": "the licence (`XTM__LICENSE_PEM`)".
#[test]
fn the_licence_is_checked_before_it_is_sent() {
    let scene = scene("licence");
    let folder = tempfile::tempdir().unwrap();
    let certificate = crate::moves::proxy_ca();
    let file = |text: &str| {
        let path = folder.path().join("licence.pem");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file(&format!("comment\n{certificate}\nanother comment\n"));
    let outcome = scene.register_with(&[("XTM__LICENSE_PEM_FILE", &good)], exit::OK);
    assert!(outcome["licence_expires"].as_str().unwrap().starts_with("20"), "{outcome:#}");
    assert!(scene.platform.read(|state| state.xtm_one.platforms["opencti"].license_pem));
    let key = fs::read_to_string(&scene.key.path).unwrap();
    for (text, told) in [
        (format!("{certificate}\n{key}"), "must not leave this machine"),
        ("not a certificate".to_owned(), "no PEM certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----".to_owned(), "can be read"),
    ] {
        let path = file(&text);
        let refused = set(scene.registering(), &[("XTM__LICENSE_PEM_FILE", &path)]);
        let refused = refused.run().expect_code(exit::CONFIG.into());
        expect_all(&refused.stderr, &["XTM__LICENSE_PEM", told], "a bad licence");
        assert!(!refused.stderr.contains("PRIVATE"), "{}", refused.stderr);
    }
}
