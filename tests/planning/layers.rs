//! Data flows one way: no module imports one of a later stage.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the program, each of which imports only those before it. `lib.rs` has the commands and comes last.
const ORDER: [&str; 33] = [
    "exit",
    "access",
    "stop",
    "secret",
    "holder",
    "model",
    "key",
    "manager",
    "log_cursor",
    "log_lines",
    "restart_window",
    "probation",
    "memory",
    "desired",
    "platform",
    "plan",
    "render",
    "progress",
    "telemetry",
    "orchestrator",
    "prepare",
    "apply",
    "after_apply",
    "settle",
    "publish",
    "stored_memory",
    "xtm_one",
    "report",
    "pass",
    "config",
    "cli",
    "check",
    "lib",
];

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The names that follow `crate::` in a text, those in the braces of an import included.
fn imports(text: &str) -> BTreeSet<&str> {
    let word = |text: &'_ str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split("crate::").skip(1).map(|after| &after[..word(after)]).collect()
}

#[test]
fn no_module_imports_a_later_stage() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let place = |name: &str| ORDER.iter().position(|known| *known == name);
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in files(&root).into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let relative = path.strip_prefix(&root).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if matches!(module, "main" | "build_info") {
            continue;
        }
        let own = place(module).unwrap_or_else(|| panic!("{module} has no place in the order"));
        seen.insert(module.to_owned());
        for import in imports(&fs::read_to_string(&path).unwrap()) {
            if place(import).is_some_and(|theirs| theirs > own) {
                wrong.push(format!("{} imports {import}", relative.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new(), "arrows upward");
    assert_eq!(seen.len(), ORDER.len(), "{seen:?}");
}
