//! Every check and test, in the order in which they fail fastest.

use std::time::Instant;

use anyhow::Result;

use crate::shell::cargo;
use crate::{prepare, tidy};

/// Runs everything; stops at the first failure.
fn run_all(steps: &[(&str, &dyn Fn() -> Result<()>)]) -> Result<()> {
    for (name, step) in steps {
        let begun = Instant::now();
        println!("== {name}");
        step()?;
        println!("== {name}: {} s", begun.elapsed().as_secs());
    }
    Ok(())
}

/// `cargo xtask test`.
pub(crate) fn run() -> Result<()> {
    run_all(&[
        ("format", &|| crate::shell::run(cargo().args(["fmt", "--all", "--check"]))),
        ("tidy", &tidy::run),
        ("machine", &|| {
            prepare::machine()?;
            prepare::fsx()?;
            prepare::guest().map(drop)
        }),
        ("lints", &|| {
            let args =
                ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
            run_cargo(&args)
        }),
        ("build", &|| run_cargo(&["build", "--workspace", "--all-targets", "--quiet"])),
        ("tests", &|| {
            let mut command = cargo();
            command.args(["test", "--workspace", "--no-fail-fast"]);
            if std::env::var_os("CI").is_some() {
                // Here nothing that should run may be passed over.
                command.env("SOJOURN_REQUIRE", "qemu,mount,netns,fuse,faketime,fsx");
            }
            crate::shell::run(&mut command)
        }),
    ])
}

fn run_cargo(args: &[&str]) -> Result<()> {
    crate::shell::run(cargo().args(args))
}
