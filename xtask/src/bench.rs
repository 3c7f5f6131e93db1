//! Measurements. The measuring programs are part of `federation-tests`, built with optimisation.

use anyhow::Result;
use clap::ValueEnum;

use crate::shell::{cargo, root, run as run_program};

/// What can be measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum What {
    /// Requests and placements over several hops, against bare echoes over the same hops.
    Control,
}

/// `cargo xtask bench`.
pub(crate) fn run(what: What) -> Result<()> {
    let program = match what {
        What::Control => "bench-control",
    };
    let build = ["build", "--release", "--quiet", "-p", "cli", "-p", "federation-tests"];
    run_program(cargo().args(build))?;
    let args = ["run", "--release", "--quiet", "-p", "federation-tests", "--bin", program];
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), std::path::PathBuf::from);
    run_program(cargo().args(args).env("SOJOURN_PROGRAM", target.join("release/sojourn")))
}
