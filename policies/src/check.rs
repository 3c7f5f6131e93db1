//! A folder of policies: what is wrong with it, and its tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::engine::try_samples;
use crate::error::Place;
use crate::rules::Rules;
use crate::{Decision, Failure, MAX_POLICY_BYTES, PolicyError};

/// How often the samples are tried while they take longer than their budget.
const SAMPLE_TRIES: usize = 3;

/// Whose rules take a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The site's own.
    Site,
    /// Those that come with Sojourn.
    Default,
}

/// One policy file, examined.
pub struct Checked {
    /// Its name.
    pub file: String,
    /// Whose it is.
    pub whose: Whose,
    /// Everything that is wrong with it, as far as can be seen: what follows a syntax error in a
    /// file cannot.
    pub errors: Vec<PolicyError>,
    /// The rules, where they are sound.
    pub(crate) rules: Option<Rules>,
}

/// How a test of a policy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRun {
    /// Where the test begins.
    pub place: Place,
    /// The rule.
    pub test: String,
    /// Whose rules were tried.
    pub whose: Whose,
    /// Why it did not pass; none if it did.
    pub fault: Option<String>,
}

/// Examines every policy file in `folder`, and the defaults for what it has no file for.
pub fn check(folder: &Path) -> Vec<Checked> {
    examine(Sources::read(folder))
}

/// Runs every test in `folder`, and those of the defaults that it does not replace. What cannot be
/// run is an error.
pub fn test(folder: &Path) -> (Vec<TestRun>, Vec<PolicyError>) {
    let sources = Sources::read(folder);
    let own = sources.own.clone();
    let (mut runs, mut errors) = (Vec::new(), Vec::new());
    for checked in examine(sources) {
        // A test that does not hold is among the runs.
        let others = checked.errors.into_iter().filter(|e| !matches!(e, PolicyError::Test { .. }));
        errors.extend(others);
        let Some(rules) = checked.rules else { continue };
        let file = rules.decision().test_file();
        let default = (rules.whose() == Whose::Default).then(|| rules.decision().default_tests());
        let own = own.get(&file).map(String::as_str);
        for source in default.into_iter().chain(own) {
            // Why it cannot be run is among the errors already.
            runs.extend(rules.test(&file, source).unwrap_or_default());
        }
    }
    (runs, errors)
}

/// A site's own files, by name.
#[derive(Default)]
pub(crate) struct Sources {
    own: BTreeMap<String, String>,
    /// What is wrong with files that hold no rules that could be examined.
    errors: Vec<PolicyError>,
}

impl Sources {
    pub(crate) fn read(folder: &Path) -> Self {
        let mut sources = Self::default();
        if let Err(source) = sources.read_all(folder) {
            sources.errors.push(PolicyError::Read { path: folder.to_owned(), source });
        }
        sources
    }

    fn read_all(&mut self, folder: &Path) -> io::Result<()> {
        let known: Vec<String> =
            Decision::ALL.iter().flat_map(|one| [one.file(), one.test_file()]).collect();
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let file = entry.file_name().to_string_lossy().into_owned();
            if !file.ends_with(".rego") {
                continue;
            }
            if !known.contains(&file) {
                let nearest = known.iter().min_by_key(|known| distance(known, &file));
                let nearest = nearest.expect("there are decisions").clone();
                self.errors.push(PolicyError::Unknown { file, nearest });
                continue;
            }
            match read(&entry.path()) {
                Ok(source) => drop(self.own.insert(file, source)),
                Err(source) => self.errors.push(PolicyError::Read { path: entry.path(), source }),
            }
        }
        Ok(())
    }
}

/// Every file of `sources`, the defaults that they do not replace, and what is no policy.
pub(crate) fn examine(sources: Sources) -> Vec<Checked> {
    let mut all = Vec::new();
    for decision in Decision::ALL {
        let own = sources.own.get(&decision.file()).map(String::as_str);
        let whose = if own.is_some() { Whose::Site } else { Whose::Default };
        let (rules, errors) = match Rules::new(decision, own) {
            Ok(rules) => {
                let failures = failures(&rules);
                let errors = failures
                    .into_iter()
                    .map(|source| PolicyError::Sample { place: rules.place_of(&source), source });
                let errors: Vec<PolicyError> = errors.collect();
                (errors.is_empty().then_some(rules), errors)
            }
            Err(errors) => (None, errors),
        };
        let tests = decision.test_file();
        let tested = sources.own.get(&tests).map(|source| match &rules {
            Some(rules) => tested(rules, &tests, source),
            // What the rules suffer from is told with them.
            None => vec![],
        });
        all.push(Checked { file: decision.file(), whose, errors, rules });
        if let Some(errors) = tested {
            all.push(Checked { file: tests, whose: Whose::Site, errors, rules: None });
        }
    }
    let others = sources.errors.into_iter().map(|error| Checked {
        file: error.file(),
        whose: Whose::Site,
        errors: vec![error],
        rules: None,
    });
    all.extend(others);
    all
}

/// How the rules fail for made-up requests.
fn failures(rules: &Rules) -> Vec<Failure> {
    // A rule that never ends takes too long every time, one on a busy machine does not.
    let mut failures = try_samples(rules);
    for _ in 1..SAMPLE_TRIES {
        if !failures.iter().any(|failure| matches!(failure, Failure::Budget(_))) {
            break;
        }
        failures = try_samples(rules);
    }
    // Both requests may meet the same mistake.
    failures.dedup_by_key(|failure| failure.to_string());
    failures
}

fn tested(rules: &Rules, file: &str, source: &str) -> Vec<PolicyError> {
    match rules.test(file, source) {
        Err(error) => vec![error],
        Ok(runs) => runs.into_iter().filter_map(TestRun::error).collect(),
    }
}

impl TestRun {
    /// Whether it passed.
    pub fn passed(&self) -> bool {
        self.fault.is_none()
    }

    fn error(self) -> Option<PolicyError> {
        let Self { place, test, fault, .. } = self;
        fault.map(|fault| PolicyError::Test { place, test, fault })
    }
}

/// The text of a file, of which no more is read than may be used.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_POLICY_BYTES as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// How many letters must be put in, taken out or changed to make one name from the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.chars().enumerate() {
            let change = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[row.len() - 1]
}
