//! The exhaustive searches, whole.

use anyhow::Result;

use crate::shell::{cargo, run as run_program};

/// `cargo xtask model`.
pub(crate) fn run() -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--release", "-p", "federation-tests"]);
    command.args(["--no-default-features", "--test", "handoff_model", "--", "--nocapture"]);
    // Each search uses every core itself.
    command.args(["--test-threads=1", "--include-ignored"]);
    run_program(&mut command)
}
