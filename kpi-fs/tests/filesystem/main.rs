//! `kpi-fs mount` as applications meet it: real mounts, real programs.
//!
//! Each test needs `/dev/fuse` and the right to mount; without them it says so and passes, unless
//! `SOJOURN_REQUIRE` names `fuse`. So do those with fsx, of a machine that lacks it (`fsx`).
//! By default the tests are small; `SOJOURN_KPI_FULL=1` gives them the sizes that they name.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests, too")]

mod commands;
mod crashes;
mod exerciser;
mod hostile;
mod limits;
mod listening;
mod mounted;
mod programs;
mod writers;

/// The size that a test has: the second with `SOJOURN_KPI_FULL`.
fn size(usual: usize, full: usize) -> usize {
    if std::env::var_os("SOJOURN_KPI_FULL").is_some() { full } else { usual }
}
