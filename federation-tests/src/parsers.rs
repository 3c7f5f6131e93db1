//! What reads bytes from outside, and what must hold whatever the bytes are.
//!
//! Each function takes one input, panics when a promise about it is broken, and returns otherwise.
//! `fuzz/` runs them with inputs that it makes up; `tests/parsers.rs` runs them with those that are
//! kept in `fuzz/corpus` and `fuzz/findings`.
//! [`seeds`] makes the real inputs that fuzzing starts from.

mod config;
mod envelope;
mod frames;
mod image;
mod journal;
mod kpi;
mod monitoring;
mod package;
mod peer;
mod policy;
pub mod seeds;
mod session;
mod statement;
mod text;
mod tls;

pub use config::config;
pub use envelope::{answer, hop, operation, sealed};
pub use frames::frames;
pub use image::image;
pub use journal::journal;
pub use kpi::{sheet, words};
pub use monitoring::{guest, history, opened, usage, values};
pub use package::{manifest, ova, ovf};
pub use peer::peer;
pub use policy::{decision, policy};
pub use session::{channel, qmp, session};
pub use statement::{chain, told};
pub use text::{text, ticket};
pub use tls::certificates;

/// One parser: what its fuzz target, its corpus and its findings are called, and the promises.
pub type Target = (&'static str, fn(&[u8]));

/// Every parser that reads what others may have written.
pub const TARGETS: [Target; 29] = [
    ("answer", answer),
    ("certificates", certificates),
    ("chain", chain),
    ("channel", channel),
    ("config", config),
    ("decision", decision),
    ("frames", frames),
    ("guest", guest),
    ("history", history),
    ("hop", hop),
    ("image", image),
    ("journal", journal),
    ("manifest", manifest),
    ("operation", operation),
    ("opened", opened),
    ("ova", ova),
    ("ovf", ovf),
    ("peer", peer),
    ("policy", policy),
    ("qmp", qmp),
    ("sealed", sealed),
    ("session", session),
    ("sheet", sheet),
    ("text", text),
    ("ticket", ticket),
    ("told", told),
    ("usage", usage),
    ("values", values),
    ("words", words),
];

/// The value that `bytes` are in postcard, with nothing behind it.
fn exactly<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// Checks that a value written in postcard is read as the same value.
fn reads_back<T>(value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = postcard::to_stdvec(value).expect("plain data");
    assert_eq!(exactly::<T>(&bytes).as_ref(), Some(value));
}

/// Runs what needs a reactor, on a runtime that is made once for the thread.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}
