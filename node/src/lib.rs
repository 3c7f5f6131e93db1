//! The site node: configuration, the journal, the one driver loop, and thin doors for peers and
//! users.
//!
//! ```text
//!   peers ──▶ gate ─┐                       ┌─▶ link ──▶ peers
//!   users ──▶ admin ┼─▶ driver: step, persist, then send ─┼─▶ hands ──▶ hypervisor, transfer proxy
//!   hands ──────────┘        (journal)      └─▶ answers, replies
//! ```
//!
//! Monitoring goes beside it, with a database of its own: nothing of it decides about a VM. So do
//! the node's own metrics and health, which only count and look.
//!
//! **Architecture invariant.** Only the driver touches the [`protocol::Site`] and the
//! journal. Everything else hands it inputs and gets effects.

mod admin;
pub mod config;
pub mod doctor;
mod driver;
pub mod folder;
pub mod fuzzing;
mod gate;
mod hands;
mod journal;
mod library;
mod link;
mod metrics;
mod monitor;
mod peers;
mod proxies;
mod run;

pub use config::{Config, ConfigError};
pub use folder::{Folder, FolderError};
pub use journal::JournalError;
pub use library::LibraryError;
pub use run::{Running, StartError, start};

/// What a mutex guards. Whoever panicked with it has left it whole: no change here takes two steps.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
