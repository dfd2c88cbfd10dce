//! Build information for `--version`. Everything falls back to "unknown": a source archive has no commit.

#![expect(clippy::print_stdout, reason = "a build script speaks to cargo on standard output")]

use std::env;
use std::process::Command;

fn main() {
    // Grows with every commit; without git there is none, and nothing to watch.
    if std::path::Path::new(".git/logs/HEAD").exists() {
        println!("cargo::rerun-if-changed=.git/logs/HEAD");
    }
    println!("cargo::rerun-if-changed=src/build_info.rs");
    set("COMMIT", first_line("git", &["rev-parse", "--short=12", "HEAD"]));
    set("TARGET", env::var("TARGET").ok());
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    set("RUSTC", first_line(&rustc, &["--version"]).and_then(|line| line.split(' ').nth(1).map(str::to_owned)));
}

fn set(name: &str, value: Option<String>) {
    println!("cargo::rustc-env=XTM_BUILD_{name}={}", value.unwrap_or_else(|| "unknown".to_owned()));
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}
