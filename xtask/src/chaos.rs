//! Kills and cuts of real processes. The program that does it is part of `federation-tests`.

use anyhow::Result;

use crate::prepare;
use crate::shell::{cargo, root, run as run_program};

/// Which faults.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// About so many faults, drawn from every kind alike; without, all.
    #[arg(long)]
    runs: Option<u64>,
    /// Only those whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// What to draw them by.
    #[arg(long)]
    seed: Option<u64>,
    /// Print their names, and do nothing.
    #[arg(long)]
    list: bool,
}

/// `cargo xtask chaos`.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.list {
        prepare::machine()?;
        prepare::guest()?;
    }
    run_program(cargo().args(["build", "--quiet", "-p", "cli", "-p", "federation-tests"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), std::path::PathBuf::from);
    let mut command = cargo();
    command.args(["run", "--quiet", "-p", "federation-tests", "--bin", "chaos", "--"]);
    command.env("SOJOURN_PROGRAM", target.join("debug/sojourn"));
    let runs = args.runs.map(|runs| runs.to_string());
    let seed = args.seed.map(|seed| seed.to_string());
    for (flag, value) in [("--runs", &runs), ("--only", &args.only), ("--seed", &seed)] {
        if let Some(value) = value {
            command.args([flag, value]);
        }
    }
    if args.list {
        command.arg("--list");
    }
    run_program(&mut command)
}
