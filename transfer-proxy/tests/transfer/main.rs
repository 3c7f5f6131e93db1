//! Transfers between real proxies over loopback UDP.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod failures;
mod moves;
mod refusals;
mod relay;
mod resume;
mod site;
mod told;
