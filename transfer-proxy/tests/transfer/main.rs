//! Transfers between real proxies over loopback UDP.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

/// Makes a test of each function for each carrier.
macro_rules! over_each_carrier {
    ($($name:ident),* $(,)?) => {
        mod over_quic {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(model::Carrier::Quic).await;
            })*
        }
        mod over_tls {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(model::Carrier::Tls).await;
            })*
        }
    };
}

mod detours;
mod failures;
mod hazards;
mod moves;
mod refusals;
mod relay;
mod resume;
mod site;
mod told;
