//! The scripts of the project.

mod bench;
mod chaos;
mod demo;
mod fuzz;
mod guest_image;
mod model;
mod mutants;
mod prepare;
mod shell;
mod simulate;
mod test;
mod tidy;

use std::path::PathBuf;

use clap::Parser;

/// The scripts of the project.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Three sites, six hosts and a real guest that moves between them, told step by step.
    Demo {
        /// Leave the sites' folder behind, to look around in.
        #[arg(long)]
        keep: bool,
    },
    /// Every check and test, as CI runs them.
    Test,
    /// Checks the workspace's layout against the table in ARCHITECTURE.md.
    Tidy,
    /// Measures, against a peer or a limit in the same run.
    Bench {
        /// What to measure.
        what: bench::What,
        /// How, for the measuring program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Kills, holds and cuts off real nodes, proxies and guests, hundreds of times.
    Chaos(chaos::Args),
    /// Searches every state of the handoff, with more faults than the tests take time for.
    Model,
    /// Tries mutants of the rules: whether the tests would see each.
    Mutants(mutants::Args),
    /// Makes federations from seeds, in virtual time, with everything that can go wrong.
    Simulate(simulate::Args),
    /// Runs the fuzz targets of every parser, minimises their corpora and tells what was found.
    Fuzz(fuzz::Options),
    /// Builds the bootable test guest from Debian packages, if it is not there already.
    GuestImage {
        /// Where to write the raw disk image.
        #[arg(long, default_value = prepare::GUEST_IMAGE)]
        output: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Demo { keep } => demo::run(keep),
        Task::Test => test::run(),
        Task::Tidy => tidy::run(),
        Task::Bench { what, options } => bench::run(what, &options),
        Task::Chaos(args) => chaos::run(&args),
        Task::Model => model::run(),
        Task::Mutants(args) => mutants::run(&args),
        Task::Simulate(args) => simulate::run(&args),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::GuestImage { output } => guest_image::build(&output),
    }
}
