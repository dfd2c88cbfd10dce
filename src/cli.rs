//! The command line.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::model::PlatformKind;

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

/// One pass of connector reconciliation for OpenCTI and OpenAEV, then exit.
///
/// Checks the registration, pulls the connectors that the platform wants, brings what runs in line, reports status,
/// health and logs, and prints what it did. All settings are environment variables: the XTM Composer daemon's, and a few
/// more. The README lists them.
#[derive(Debug, Parser)]
#[command(name = "xtm-reconcile", version = BUILD, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// The command to run; `run` when there is none.
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

/// The commands of the program.
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
    /// Make one pass that starts a connector again which is held for a reboot loop.
    Release {
        /// The id of the connector, its name on the platform, or the name of its workload.
        #[arg(value_name = "NAME")]
        connector: String,
    },
    /// Look after the tokens that were made for XTM One.
    #[command(subcommand)]
    XtmOne(XtmOne),
    /// Make an RSA key pair of 4096 bits and write the private key, PKCS#8 PEM.
    Keygen {
        /// The file to write the key to, which must not exist yet.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell that the script is for.
        shell: Shell,
    },
    /// Print the table of variables, as it stands in the README.
    #[command(hide = true)]
    Variables,
}

/// The commands about XTM One.
#[derive(Debug, Subcommand)]
pub enum XtmOne {
    /// Replace the tokens of the users who have one, tell XTM One, and revoke the former ones.
    Rotate {
        /// Replace the token of this user alone.
        #[arg(long, value_name = "EMAIL")]
        user: Option<String>,
        /// Only show what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show how many users have a token, and what a pass remembers of the registration.
    Status {
        /// Accepted like that of the other commands; this one changes nothing anyway.
        #[arg(long)]
        dry_run: bool,
    },
    /// Revoke the tokens named "XTM One" of every user on the platform.
    Revoke {
        /// Confirm that it is meant for all users.
        #[arg(long, required = true)]
        all: bool,
        /// Only show how many there are.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Options of a pass.
#[derive(Debug, Args, Clone)]
pub struct PassArgs {
    /// Read this YAML file of the daemon's as well; later ones win, the environment wins over all.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Vec<PathBuf>,
    /// Serve this platform alone; repeat it for more. Without it, every platform that is enabled.
    #[arg(long, value_enum, value_name = "PLATFORM", global = true)]
    pub platform: Vec<PlatformKind>,
    /// How to print the report.
    #[arg(long, value_enum, default_value_t = Output::Table, global = true)]
    pub output: Output,
    /// Remove every workload that the platform does not list, however large a share that is.
    #[arg(long, global = true)]
    pub allow_prune: bool,
    /// Register this manager's key although it opens none of the values that the platform lists.
    #[arg(long, global = true)]
    pub accept_new_key: bool,
}

/// How to print the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    Table,
    /// One JSON document.
    Json,
}

impl ValueEnum for PlatformKind {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.label()))
    }
}

impl PassArgs {
    /// Takes the values of the repeatable options from `arguments`, which clap has accepted: of an option that stands before and
    /// after the command, clap keeps one side only.
    #[must_use]
    pub fn with_all_repeated(mut self, arguments: &[OsString]) -> Self {
        self.config = repeated("--config", arguments).into_iter().map(PathBuf::from).collect();
        let platforms = repeated("--platform", arguments);
        self.platform = platforms
            .iter()
            .filter_map(|platform| PlatformKind::from_str(&platform.to_string_lossy(), false).ok())
            .collect();
        self
    }
}

/// The values of every `option` in `arguments`, in order.
fn repeated(option: &str, arguments: &[OsString]) -> Vec<OsString> {
    let mut arguments = arguments.iter();
    let mut values = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == option {
            values.extend(arguments.next().cloned());
        } else if let Some(value) =
            argument.as_bytes().strip_prefix(option.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
        {
            values.push(OsString::from_vec(value.to_vec()));
        }
    }
    values
}
