//! `sojourn`: the one program of a site's operators and users.

mod args;
mod client;
mod commands;
mod contract;
mod exit;
mod kpi;
mod local;
mod output;
mod peer;
mod policy;
mod usage;

use clap::Parser;

fn main() -> std::process::ExitCode {
    let args = args::Args::parse();
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    match runtime.block_on(commands::run(args)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            std::process::ExitCode::from(failure.code)
        }
    }
}
