//! Packages from outside: those of known tools, hostile ones, and our own.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod export;
mod hostile;
mod make;
mod samples;
