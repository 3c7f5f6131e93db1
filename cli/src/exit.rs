//! How the program ends: a message for people, a code for programs.

use std::fmt;

/// Failed for a reason of its own.
pub(crate) const FAILED: u8 = 1;
/// What was typed makes no sense.
pub(crate) const USAGE: u8 = 2;
/// There is no such thing.
pub(crate) const NOT_FOUND: u8 = 3;
/// Refused by policy; the reasons are in the message.
pub(crate) const REFUSED: u8 = 4;
/// Not now; the same command may work later.
pub(crate) const LATER: u8 = 5;
/// It contradicts what is there, or under way.
pub(crate) const CONFLICT: u8 = 6;
/// The time was up.
pub(crate) const TIMED_OUT: u8 = 124;

/// Why a command did not do what it should.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    text: String,
}

impl Failure {
    pub(crate) fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        let code = match status.code() {
            Code::NotFound => NOT_FOUND,
            Code::PermissionDenied => REFUSED,
            Code::Unavailable => LATER,
            Code::Aborted | Code::AlreadyExists => CONFLICT,
            Code::InvalidArgument => USAGE,
            Code::DeadlineExceeded => TIMED_OUT,
            _ => FAILED,
        };
        Self::new(code, status.message())
    }
}

/// Everything else is a plain failure, told with its causes.
macro_rules! plain {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(FAILED, chain(&error))
            }
        })*
    };
}
plain!(std::io::Error, node::StartError, node::JournalError, transfer_proxy::process::StartError);

impl From<node::FolderError> for Failure {
    fn from(error: node::FolderError) -> Self {
        let exists = matches!(error, node::FolderError::Exists(_));
        Self::new(if exists { CONFLICT } else { FAILED }, chain(&error))
    }
}

impl From<transfer_proxy::process::FolderError> for Failure {
    fn from(error: transfer_proxy::process::FolderError) -> Self {
        let exists = matches!(error, transfer_proxy::process::FolderError::Exists(_));
        Self::new(if exists { CONFLICT } else { FAILED }, chain(&error))
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
