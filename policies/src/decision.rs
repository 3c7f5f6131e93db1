//! The decisions, and what is constant about each.

use std::fmt;
use std::str::FromStr;

/// A decision that a policy takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Whether to host a VM.
    Admit,
    /// Whether to pass a request on.
    Delegate,
    /// Which offers to show.
    Expose,
    /// In which order to try offers.
    Rank,
    /// How to move files.
    Transfer,
    /// What a transfer may take of the links.
    Share,
    /// Whether a condition asks for another place.
    Trigger,
}

impl Decision {
    /// Every decision.
    pub const ALL: [Self; 7] = [
        Self::Admit,
        Self::Delegate,
        Self::Expose,
        Self::Rank,
        Self::Transfer,
        Self::Share,
        Self::Trigger,
    ];

    /// Its name: of the file without `.rego`, and of the package under `sojourn`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Delegate => "delegate",
            Self::Expose => "expose",
            Self::Rank => "rank",
            Self::Transfer => "transfer",
            Self::Share => "share",
            Self::Trigger => "trigger",
        }
    }

    /// The file that holds its rules.
    pub(crate) fn file(self) -> String {
        format!("{}.rego", self.name())
    }

    /// The file that holds the tests of its rules.
    pub(crate) fn test_file(self) -> String {
        format!("{}_test.rego", self.name())
    }

    /// The package of its rules.
    pub(crate) fn package(self) -> String {
        format!("data.sojourn.{}", self.name())
    }

    /// The rules that the package must define.
    pub(crate) fn rules(self) -> &'static [&'static str] {
        match self {
            Self::Admit | Self::Delegate => &["refuse"],
            Self::Expose => &["hide"],
            Self::Rank => &["score", "reasons", "exclude"],
            Self::Transfer => &["mode"],
            Self::Share => &["carrier", "rate", "weight"],
            Self::Trigger => &["move"],
        }
    }

    /// The rules of a site that has none of its own.
    pub(crate) fn default_source(self) -> &'static str {
        match self {
            Self::Admit => include_str!("../rego/admit.rego"),
            Self::Delegate => include_str!("../rego/delegate.rego"),
            Self::Expose => include_str!("../rego/expose.rego"),
            Self::Rank => include_str!("../rego/rank.rego"),
            Self::Transfer => include_str!("../rego/transfer.rego"),
            Self::Share => include_str!("../rego/share.rego"),
            Self::Trigger => include_str!("../rego/trigger.rego"),
        }
    }

    /// Their tests.
    pub(crate) fn default_tests(self) -> &'static str {
        match self {
            Self::Admit => include_str!("../rego/admit_test.rego"),
            Self::Delegate => include_str!("../rego/delegate_test.rego"),
            Self::Expose => include_str!("../rego/expose_test.rego"),
            Self::Rank => include_str!("../rego/rank_test.rego"),
            Self::Transfer => include_str!("../rego/transfer_test.rego"),
            Self::Share => include_str!("../rego/share_test.rego"),
            Self::Trigger => include_str!("../rego/trigger_test.rego"),
        }
    }
}

/// A word that is no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policies decide admit, delegate, expose, rank, transfer, share or trigger, got {0:?}")]
pub struct DecisionError(String);

impl FromStr for Decision {
    type Err = DecisionError;

    fn from_str(text: &str) -> Result<Self, DecisionError> {
        let found = Self::ALL.into_iter().find(|decision| decision.name() == text);
        found.ok_or_else(|| DecisionError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
