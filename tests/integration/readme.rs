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

// Shows what README says under "First use": "target/release/xtm-reconcile keygen --out manager.key".
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

// Shows what README says under "First use": "For OpenAEV as well".
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

/// The test that shows what each row of the table about the daemon claims, by the row's first cell.
const SHOWN_BY: [(&str, &str, &str); 20] = [
    (
        "Its workloads",
        "refresh.rs",
        "containers_of_the_daemon_are_adopted_as_they_run_get_the_restart_policy_and_are_looked_at_once",
    ),
    ("`MANAGER__ID`, `P__TOKEN` as", "config.rs", "everything_wrong_is_told_at_once_with_a_cure_and_nothing_is_begun"),
    (
        "`MANAGER__CREDENTIALS_KEY`",
        "config.rs",
        "keys_of_every_size_and_form_are_taken_inline_with_escaped_lines_and_from_files",
    ),
    (
        "A key that opens nothing",
        "new_key.rs",
        "a_key_that_opens_nothing_is_refused_with_both_fingerprints_and_the_former_one_goes_on_quietly",
    ),
    ("`COMPOSER_ENV`", "config/layers.rs", "an_environment_of_the_daemon_without_files_is_a_warning_that_names_them"),
    ("A value that is no", "config.rs", "everything_wrong_is_told_at_once_with_a_cure_and_nothing_is_begun"),
    ("An empty variable", "config/layers.rs", "an_empty_variable_does_not_hide_what_a_file_says"),
    ("Lists and maps", "config/orchestrators.rs", "lists_and_maps_come_by_comma_json_and_index"),
    (
        "`P__DAEMON__SELECTOR`",
        "config/orchestrators.rs",
        "a_cluster_comes_from_a_kubeconfig_the_pod_or_the_home_folder",
    ),
    ("`swarm`", "config.rs", "what_this_version_does_not_support_is_refused_by_name"),
    ("The local Docker socket", "config/orchestrators.rs", "the_engine_is_named_as_the_docker_client_names_it"),
    ("No restart policy", "refresh.rs", "a_connector_goes_through_its_whole_life"),
    ("`P__DAEMON__REGISTRY__SERVER`", "images.rs", "a_login_goes_to_its_own_registry_alone"),
    ("OpenCTI's registry", "config/lanes.rs", "options_that_the_daemon_took_from_opencti_for_both_are_told_of"),
    ("`OPENCTI_URL`", "lanes.rs", "both_platforms_are_served_in_one_pass_with_locks_records_and_reports_of_their_own"),
    ("`P__NO_PROXY`", "network.rs", "with_proxy_the_platform_is_reached_through_it_and_connectors_are_given_it"),
    (
        "`HTTP_PROXY`",
        "config/layers.rs",
        "of_two_spellings_the_one_in_capitals_wins_whatever_their_order_unless_it_is_empty",
    ),
    (
        "`P__HTTPS_PROXY_CA`",
        "network.rs",
        "a_proxy_with_a_ca_of_its_own_is_trusted_and_the_ca_is_in_the_connectors_container",
    ),
    (
        "A clear value that is null",
        "input.rs",
        "values_arrive_as_the_platform_has_them_in_clear_and_in_both_envelopes_of_every_key_size",
    ),
    (
        "`MANAGER__EXECUTE_SCHEDULE`",
        "config.rs",
        "unknown_names_are_told_with_the_nearest_known_one_and_meaningless_ones_once",
    ),
];

#[test]
fn every_row_about_the_daemon_has_a_test_that_shows_it() {
    let (_, section) = README.split_once("| of the daemon |").expect("the README has this table");
    let (table, _) = section.split_once("\n\n").expect("the table ends");
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert_eq!(rows.len(), SHOWN_BY.len(), "{rows:#?}");
    for (row, (begins, file, test)) in rows.iter().zip(SHOWN_BY) {
        assert!(row.starts_with(&format!("| {begins}")), "{row} should begin with {begins}");
        let source = crate::support::repository().join("tests/integration").join(file);
        let source = fs::read_to_string(source).unwrap();
        assert!(source.contains(&format!("#[test]\nfn {test}()")), "{file} has no test {test}");
    }
}
