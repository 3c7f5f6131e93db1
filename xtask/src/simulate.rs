//! Federations from seeds. The program that makes them is part of `federation-tests`.

use anyhow::Result;

use crate::shell::{cargo, run as run_program};

/// Which runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The seeds: A..B, or one.
    #[arg(long, default_value = "0..10000")]
    seeds: String,
    /// Print everything that happens in each run.
    #[arg(long)]
    trace: bool,
}

/// `cargo xtask simulate`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "-p", "federation-tests"]);
    // Without real nodes only the machines are built.
    command.args(["--no-default-features", "--bin", "simulate", "--"]);
    command.args(["--seeds", &args.seeds]);
    if args.trace {
        command.arg("--trace");
    }
    run_program(&mut command)
}
