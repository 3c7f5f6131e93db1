//! What is wrong with a site's policies, and where.

use std::path::PathBuf;
use std::{fmt, io};

use crate::{Failure, MAX_POLICY_BYTES};

/// A place in a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Place {
    /// Where a rule begins, or the file if that cannot be told.
    pub(crate) fn of_rule(file: &str, source: &str, rule: &str) -> Self {
        let begins = |line: &str| {
            let line = line.strip_prefix("default ").unwrap_or(line);
            let rest = line.strip_prefix(rule);
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        };
        Self::of_line(file, source, begins)
    }

    /// Where the package is named.
    pub(crate) fn of_package(file: &str, source: &str) -> Self {
        Self::of_line(file, source, |line| line.trim_start().starts_with("package "))
    }

    fn of_line(file: &str, source: &str, is_it: impl Fn(&str) -> bool) -> Self {
        let at = source.lines().position(is_it).unwrap_or_default();
        Self { file: file.to_owned(), line: number(at + 1), column: 1 }
    }

    /// Where a word stands first, outside comments.
    pub(crate) fn of_word(file: &str, source: &str, word: &str) -> Self {
        let code = |line: &str| line.split('#').next().unwrap_or_default().find(word);
        let found = source.lines().enumerate().find_map(|(at, line)| Some((at, code(line)?)));
        let (line, column) = found.unwrap_or_default();
        Self { file: file.to_owned(), line: number(line + 1), column: number(column + 1) }
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Why a policy cannot be used. It is found when the engine is made, never at a request.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The folder or one of its files cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The folder or the file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that would be ignored, and was surely meant to do something.
    #[error("{file} is no policy of a site; did you mean {nearest}?")]
    Unknown {
        /// The file.
        file: String,
        /// The known name that is most like it.
        nearest: String,
    },
    /// A file is too large to be a policy.
    #[error("{file} is larger than {MAX_POLICY_BYTES} bytes")]
    TooLarge {
        /// The file.
        file: String,
    },
    /// A file is no correct Rego.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where.
        place: Place,
        /// What is wrong there.
        problem: String,
    },
    /// A file is no correct Rego as a whole.
    #[error("{file}: {problem}")]
    Unusable {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The rules are in a package where nobody looks for them.
    #[error("{place}: it must be `package {wanted}`, not `package {found}`")]
    Package {
        /// Where the package is named.
        place: Place,
        /// The package that it must be.
        wanted: String,
        /// The package that it is.
        found: String,
    },
    /// A rule that the decision needs is not there.
    #[error("{place}: it does not define `{rule}`")]
    Missing {
        /// Where the package is named whose rule it would be.
        place: Place,
        /// The rule.
        rule: &'static str,
    },
    /// A rule calls a function that policies must do without.
    #[error("{place}: it calls {function}, which a policy must not: {why}")]
    Forbidden {
        /// Where.
        place: Place,
        /// The function.
        function: &'static str,
        /// The reason.
        why: &'static str,
    },
    /// The policy was asked about made-up requests, and failed for one.
    #[error("{place}: it fails for a sample request")]
    Sample {
        /// Where what failed begins.
        place: Place,
        /// How it fails.
        #[source]
        source: Failure,
    },
    /// A test file without a test.
    #[error("{file} has no rule whose name starts with test_")]
    NoTest {
        /// The file.
        file: String,
    },
    /// A test rule does not hold.
    #[error("{place}: {test} {fault}")]
    Test {
        /// Where the test begins.
        place: Place,
        /// The rule.
        test: String,
        /// What went wrong.
        fault: String,
    },
}

impl PolicyError {
    /// The file that it is about; for what cannot be read, its whole path.
    pub fn file(&self) -> String {
        match self {
            Self::Read { path, .. } => path.display().to_string(),
            Self::Unknown { file, .. }
            | Self::TooLarge { file }
            | Self::Unusable { file, .. }
            | Self::NoTest { file } => file.clone(),
            _ => self.place().map(|place| place.file.clone()).unwrap_or_default(),
        }
    }

    /// The place that it is about, if it is about one.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Read { .. }
            | Self::Unknown { .. }
            | Self::TooLarge { .. }
            | Self::Unusable { .. }
            | Self::NoTest { .. } => None,
            Self::Invalid { place, .. }
            | Self::Package { place, .. }
            | Self::Missing { place, .. }
            | Self::Forbidden { place, .. }
            | Self::Sample { place, .. }
            | Self::Test { place, .. } => Some(place),
        }
    }

    /// It, with its causes, on one line.
    pub fn in_full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        text
    }
}

/// Everything that is wrong with a site's policies: at least one thing.
#[derive(Debug)]
pub struct Unsound(pub Vec<PolicyError>);

impl fmt::Display for Unsound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(PolicyError::in_full).collect();
        f.write_str(&all.join("; "))
    }
}

impl std::error::Error for Unsound {}
