//! The README's examples do what they say.

use std::fs;
use std::process::Command;
use std::time::Duration;

use stand_in_platform::{DEFAULT_TOKEN, OPENAEV_DEFAULT_TOKEN};

use crate::scene::Scene;
use crate::support::Running;

const README: &str = include_str!("../../README.md");

/// The first shell block after a heading.
fn block(heading: &str) -> &'static str {
    let (_, section) = README.split_once(heading).expect("the README has this heading");
    let (_, block) = section.split_once("```sh\n").expect("a shell block follows it");
    block.split_once("```").expect("the block ends").0
}

#[test]
fn the_first_use_section_works_as_it_stands() {
    let scene = Scene::new("readme");
    let name = scene.connector("first");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("opencti.token"), format!("{DEFAULT_TOKEN}\n")).unwrap();
    // The build is this test's own; id and URL are placeholders in the README.
    let program = env!("CARGO_BIN_EXE_xtm-reconcile");
    let lines: Vec<&str> = block("## First use").lines().filter(|line| !line.starts_with("cargo build")).collect();
    let script = lines
        .join("\n")
        .replace("target/release/xtm-reconcile", program)
        .replace("my-manager-001", &scene.manager)
        .replace("https://opencti.example.org", &scene.platform.url());
    assert_eq!(script.matches(program).count(), 4, "keygen, check, plan and a pass:\n{script}");

    let mut shell = Command::new("bash");
    shell.args(["-euxc", &script]).current_dir(folder.path()).env_clear();
    shell.env("PATH", std::env::var_os("PATH").unwrap()).env("DOCKER_HOST", scene.engine.docker_host());
    let outcome = Running::start(&mut shell, Duration::from_mins(5)).wait().expect_code(0);
    assert!(outcome.stdout.contains("1 to deploy") && outcome.stdout.contains("1 deployed"), "{}", outcome.stdout);
    let containers = scene.containers();
    assert!(containers.len() == 1 && containers[0].name == name && containers[0].running(), "{containers:?}");
}

#[test]
fn the_second_block_serves_openaev_in_the_same_pass() {
    let scene = Scene::new("readme-both");
    let (cti, aev) = (scene.connector("first"), scene.instance("second"));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("opencti.token"), format!("{DEFAULT_TOKEN}\n")).unwrap();
    fs::write(folder.path().join("openaev.token"), format!("{OPENAEV_DEFAULT_TOKEN}\n")).unwrap();
    let program = env!("CARGO_BIN_EXE_xtm-reconcile");
    let first = block("## First use").lines().filter(|line| line.starts_with("export") || line.contains("keygen"));
    let script: Vec<&str> = first.chain(block("For OpenAEV as well").lines()).collect();
    let script = script
        .join("\n")
        .replace("target/release/xtm-reconcile", program)
        .replace("my-manager-001", &scene.manager)
        .replace("https://opencti.example.org", &scene.platform.url())
        .replace("https://openaev.example.org", &scene.platform.url());
    let mut shell = Command::new("bash");
    shell.args(["-euxc", &script]).current_dir(folder.path()).env_clear();
    shell.env("PATH", std::env::var_os("PATH").unwrap()).env("DOCKER_HOST", scene.engine.docker_host());
    let outcome = Running::start(&mut shell, Duration::from_mins(5)).wait().expect_code(0);
    assert!(outcome.stdout.contains("run: 2 deployed"), "{}", outcome.stdout);
    let mut running: Vec<String> = scene.containers().into_iter().map(|container| container.name).collect();
    running.sort();
    assert_eq!(running, [cti, aev]);
}

#[test]
fn every_exit_code_of_the_readme_is_one_of_the_programs() {
    use xtm_reconcile::exit;
    let (_, section) = README.split_once("### Exit codes").unwrap();
    let (table, _) = section.split_once("\n\nOf several").unwrap();
    let listed: Vec<u8> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split('|').next())
        .flat_map(|cell| cell.split(',').filter_map(|code| code.trim().parse().ok()).collect::<Vec<u8>>())
        .collect();
    let known = [
        exit::OK,
        exit::CONNECTOR_FAILED,
        exit::CHANGES_PENDING,
        exit::PLATFORM,
        exit::ORCHESTRATOR,
        exit::GUARD,
        exit::LOCKED,
        exit::USAGE,
        exit::CONFIG,
        exit::INTERRUPTED,
        exit::TERMINATED,
    ];
    assert_eq!(listed, known);
}
