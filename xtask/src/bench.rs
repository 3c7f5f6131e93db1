//! Measurements. The measuring programs are part of `federation-tests`, built with optimisation.

use anyhow::Result;
use clap::ValueEnum;

use crate::prepare;
use crate::shell::{cargo, root, run as run_program};

/// What can be measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum What {
    /// Requests and placements over several hops, against bare echoes over the same hops.
    Control,
    /// Rows through the KPI file system, values over two hops, and an Intermediary of 10,000 VMs,
    /// against SQLite, plain files and bare echoes: `--quick` for two minutes of it, `--hours N`
    /// to look at memory for so long, `--only rows|latency|relay`.
    Monitoring,
    /// A node with 1,000 peers and 10,000 VMs: what it answers in a second, against the same gRPC
    /// server that answers with nothing, its memory, and the decisions of its policies: `--quick`
    /// for less than a minute of it, `--rounds N`, `--json FILE`, `--only requests|decisions`.
    Peers,
    /// Files from proxy to proxy, against scp, rsync, nbdcopy and bare TLS, on a clean link and on
    /// emulated ones: `--quick` for two minutes of it, `--rounds N`, `--folder FOLDER`,
    /// `--json FILE`, `--only clean|image|loss|fair|many|chunks`.
    Transfer,
}

/// `cargo xtask bench`. The measuring program gets `options` as they are.
pub(crate) fn run(what: What, options: &[String]) -> Result<()> {
    let program = match what {
        What::Control => "bench-control",
        What::Monitoring => "bench-monitoring",
        What::Peers => "bench-peers",
        What::Transfer => "bench-transfer",
    };
    match what {
        What::Monitoring if !options.iter().any(|option| option == "--quick") => {
            prepare::machine()?;
            prepare::guest()?;
        }
        What::Control | What::Monitoring | What::Peers => {}
        What::Transfer => prepare::movers()?,
    }
    if !matches!(what, What::Transfer) {
        let build = ["build", "--release", "--quiet", "-p", "cli", "-p", "kpi-fs"];
        run_program(cargo().args(build).args(["-p", "federation-tests"]))?;
    }
    let args = ["run", "--release", "--quiet", "-p", "federation-tests", "--bin", program];
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), std::path::PathBuf::from);
    let mut measure = cargo();
    measure.args(args).arg("--").args(options);
    run_program(measure.env("SOJOURN_PROGRAM", target.join("release/sojourn")))
}
