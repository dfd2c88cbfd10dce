//! The command line.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Version with what it was built from.
const BUILD: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("XTM_BUILD_COMMIT"),
    ", ",
    env!("XTM_BUILD_TARGET"),
    ", rustc ",
    env!("XTM_BUILD_RUSTC"),
    ")"
);

/// One pass of connector reconciliation for OpenCTI, then exit.
///
/// Checks the registration, pulls the connectors that the platform wants, brings what runs in line, reports status,
/// health and logs, and prints what it did. All settings are environment variables: the XTM Composer daemon's, and a few
/// more. The README lists them.
#[derive(Debug, Parser)]
#[command(name = "xtm-reconcile", version = BUILD, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do; without one, `run`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of a pass.
    #[command(flatten)]
    pub pass: PassArgs,
}

const EXAMPLES: &str = "\
Examples:
  xtm-reconcile keygen --out manager.key     make the key pair
  xtm-reconcile check                        see whether everything can be reached
  xtm-reconcile plan                         see what a pass would do
  xtm-reconcile                              make one pass
  xtm-reconcile --config default.yaml run --output json

Exit codes: 0 converged, 1 a connector failed, 2 changes pending (plan --detailed-exitcode), 3 platform, 4 cluster or engine,
5 prune guard, 6 another pass runs, 64 wrong arguments, 78 invalid configuration, 130/143 SIGINT/SIGTERM.";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make one pass (the default).
    Run,
    /// Show what a pass would do, without a write anywhere.
    Plan {
        /// Exit with 2 when there is something to do.
        #[arg(long)]
        detailed_exitcode: bool,
    },
    /// See whether configuration, key, platform and cluster or engine can be used; read-only.
    Check,
    /// Make an RSA key pair of 4096 bits and write the private key, PKCS#8 PEM.
    Keygen {
        /// Where to; must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Print the table of variables, as it stands in the README.
    #[command(hide = true)]
    Variables,
}

/// Options of a pass.
#[derive(Debug, Args, Clone)]
pub struct PassArgs {
    /// Read this YAML file of the daemon's as well; later ones win, the environment wins over all.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Vec<PathBuf>,
    /// How to print the report.
    #[arg(long, value_enum, default_value_t = Output::Table, global = true)]
    pub output: Output,
    /// Remove whatever is not listed, whatever the share.
    #[arg(long, global = true)]
    pub allow_prune: bool,
}

/// How to print the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One JSON document.
    Json,
}

/// The files of every `--config` in `arguments`, in order. Of an option that may stand before and after the command, clap
/// keeps one side only. The arguments must be ones that it has accepted.
#[must_use]
pub fn config_files(arguments: impl IntoIterator<Item = OsString>) -> Vec<PathBuf> {
    let mut arguments = arguments.into_iter();
    let mut files = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            files.extend(arguments.next().map(PathBuf::from));
        } else if let Some(file) = argument.as_bytes().strip_prefix(b"--config=") {
            files.push(OsString::from_vec(file.to_vec()).into());
        }
    }
    files
}
