//! What comes of whatever sites and users say, right or wrong: tables of replies, to be read.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

mod lies;
mod partings;
mod wishes;
