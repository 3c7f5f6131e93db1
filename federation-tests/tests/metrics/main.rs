//! Metrics and health of real nodes: what they tell, to whom, and what they survive.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

mod door;
mod health;
mod http;
mod kpi;
mod openmetrics;
mod site;
