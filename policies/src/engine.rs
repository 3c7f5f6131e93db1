//! The engine: every decision of a site, by its rules.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use model::decision::{
    Admit, Delegate, Expose, Granted, Policy, Rank, Ranked, Route, Share, Transfer, Trigger,
    Verdict,
};

use crate::rules::{MAX_POLICY_BYTES, PolicyError, Rules};
use crate::{Decision, Failure, outcome, samples};

#[cfg(test)]
mod tests;

/// How often the samples are tried while they take longer than their budget.
const SAMPLE_TRIES: usize = 3;

/// A site's checked policies. Made at start; to change a policy, make another engine.
#[derive(Clone)]
pub struct Engine {
    admit: Rules,
    delegate: Rules,
    expose: Rules,
    rank: Rules,
    transfer: Rules,
    share: Rules,
    trigger: Rules,
}

impl Engine {
    /// The policies of a site that has none of its own.
    pub fn defaults() -> Self {
        Self::new(&BTreeMap::new()).expect("the policies that come with Sojourn are sound")
    }

    /// The policies in `folder`, and the default for every decision that it has no file for.
    ///
    /// A file `DECISION.rego` replaces the default, and `DECISION_test.rego` holds tests that are
    /// run here. Any other `.rego` file is an error; files of other kinds are left alone.
    pub fn load(folder: &Path) -> Result<Self, PolicyError> {
        let read_error = |source| PolicyError::Read { path: folder.to_owned(), source };
        let mut sources = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            let file = entry.file_name().to_string_lossy().into_owned();
            if !file.ends_with(".rego") {
                continue;
            }
            let known = known_files();
            if !known.contains(&file) {
                let nearest = known.into_iter().min_by_key(|known| distance(known, &file));
                let nearest = nearest.expect("there are decisions");
                return Err(PolicyError::Unknown { file, nearest });
            }
            let source = read(&entry.path())?;
            sources.insert(file, source);
        }
        Self::new(&sources)
    }

    /// `sources` by file name.
    fn new(sources: &BTreeMap<String, String>) -> Result<Self, PolicyError> {
        let rules = |decision: Decision| {
            let file = decision.file();
            let source = sources.get(&file).map_or(decision.default_source(), String::as_str);
            Rules::new(decision, &file, source)
        };
        let engine = Self {
            admit: rules(Decision::Admit)?,
            delegate: rules(Decision::Delegate)?,
            expose: rules(Decision::Expose)?,
            rank: rules(Decision::Rank)?,
            transfer: rules(Decision::Transfer)?,
            share: rules(Decision::Share)?,
            trigger: rules(Decision::Trigger)?,
        };
        // A rule that never ends takes too long every time, one on a busy machine does not.
        let mut tried = engine.try_samples();
        for _ in 1..SAMPLE_TRIES {
            if !matches!(tried, Err(PolicyError::Sample { source: Failure::Budget(_), .. })) {
                break;
            }
            tried = engine.try_samples();
        }
        tried?;
        for rules in engine.all() {
            let file = rules.decision().test_file();
            if let Some(source) = sources.get(&file) {
                rules.test(&file, source)?;
            }
        }
        Ok(engine)
    }

    fn all(&self) -> [&Rules; 7] {
        let Self { admit, delegate, expose, rank, transfer, share, trigger } = self;
        [admit, delegate, expose, rank, transfer, share, trigger]
    }

    fn try_samples(&self) -> Result<(), PolicyError> {
        let each = |rules: &Rules, results: [Result<(), Failure>; 2]| {
            results
                .into_iter()
                .collect::<Result<(), Failure>>()
                .map_err(|source| PolicyError::Sample { file: rules.file().to_owned(), source })
        };
        each(&self.admit, samples::admit().map(|s| self.try_admit(&s).map(drop)))?;
        each(&self.delegate, samples::delegate().map(|s| self.try_delegate(&s).map(drop)))?;
        each(&self.expose, samples::expose().map(|s| self.try_expose(&s).map(drop)))?;
        each(&self.rank, samples::rank().map(|s| self.try_rank(&s).map(drop)))?;
        each(&self.transfer, samples::transfer().map(|s| self.try_transfer(&s).map(drop)))?;
        each(&self.share, samples::share().map(|s| self.try_share(&s).map(drop)))?;
        each(&self.trigger, samples::trigger().map(|s| self.try_trigger(&s).map(drop)))
    }

    fn try_admit(&self, input: &Admit) -> Result<Verdict, Failure> {
        let [refuse] = self.admit.evaluate(input)?;
        outcome::verdict(&refuse)
    }

    fn try_delegate(&self, input: &Delegate) -> Result<Verdict, Failure> {
        let [refuse] = self.delegate.evaluate(input)?;
        outcome::verdict(&refuse)
    }

    fn try_expose(&self, input: &Expose) -> Result<Vec<usize>, Failure> {
        let [hide] = self.expose.evaluate(input)?;
        outcome::shown(&hide, input.offers.len())
    }

    fn try_rank(&self, input: &Rank) -> Result<Vec<Ranked>, Failure> {
        let [score, reasons, exclude] = self.rank.evaluate(input)?;
        outcome::ranking(&score, &reasons, &exclude, input.offers.len())
    }

    fn try_transfer(&self, input: &Transfer) -> Result<Route, Failure> {
        let [mode] = self.transfer.evaluate(input)?;
        outcome::route(&mode)
    }

    fn try_share(&self, input: &Share) -> Result<Granted, Failure> {
        let [carrier, rate, weight] = self.share.evaluate(input)?;
        outcome::granted(&carrier, &rate, &weight)
    }

    fn try_trigger(&self, input: &Trigger) -> Result<Vec<String>, Failure> {
        let [reasons] = self.trigger.evaluate(input)?;
        outcome::texts("move", &reasons)
    }
}

/// See the table at the top of the crate for what is answered when a policy fails.
impl Policy for Engine {
    fn admit(&self, input: &Admit) -> Verdict {
        let refuse = |failure| Verdict::Refuse(vec![failed(Decision::Admit, &failure)]);
        self.try_admit(input).unwrap_or_else(refuse)
    }

    fn delegate(&self, input: &Delegate) -> Verdict {
        let refuse = |failure| Verdict::Refuse(vec![failed(Decision::Delegate, &failure)]);
        self.try_delegate(input).unwrap_or_else(refuse)
    }

    fn expose(&self, input: &Expose) -> Vec<usize> {
        self.try_expose(input).unwrap_or_else(|failure| {
            failed(Decision::Expose, &failure);
            vec![]
        })
    }

    fn rank(&self, input: &Rank) -> Vec<Ranked> {
        self.try_rank(input).unwrap_or_else(|failure| {
            let reason = failed(Decision::Rank, &failure);
            let exclude =
                |offer| Ranked { offer, score: 0.0, reasons: vec![reason.clone()], excluded: true };
            (0..input.offers.len()).map(exclude).collect()
        })
    }

    fn transfer(&self, input: &Transfer) -> Route {
        self.try_transfer(input).unwrap_or_else(|failure| {
            failed(Decision::Transfer, &failure);
            Route::Relayed
        })
    }

    fn share(&self, input: &Share) -> Granted {
        self.try_share(input).unwrap_or_else(|failure| {
            failed(Decision::Share, &failure);
            Granted::default()
        })
    }

    fn trigger(&self, input: &Trigger) -> Vec<String> {
        self.try_trigger(input).unwrap_or_else(|failure| {
            failed(Decision::Trigger, &failure);
            vec![]
        })
    }
}

/// Logs the cause, and gives the reason that may be told to others.
fn failed(decision: Decision, failure: &Failure) -> String {
    tracing::error!(%decision, %failure, "policy failed; the safe answer is given");
    match failure {
        Failure::Budget(_) => format!("policy failed: {decision} took too long"),
        Failure::Evaluation(_) | Failure::Result { .. } => {
            format!("policy failed: {decision} gave no decision")
        }
    }
}

fn known_files() -> Vec<String> {
    Decision::ALL.iter().flat_map(|decision| [decision.file(), decision.test_file()]).collect()
}

/// The text of a file, of which no more is read than may be used.
fn read(path: &Path) -> Result<String, PolicyError> {
    let read = || {
        let mut text = String::new();
        fs::File::open(path)?.take(MAX_POLICY_BYTES as u64 + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|source| PolicyError::Read { path: path.to_owned(), source })
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
