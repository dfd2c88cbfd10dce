//! Arguments, run, exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(xtm_reconcile::run())
}
