//! The engine: every decision of a site, by its rules.

use std::path::Path;

use model::decision::{
    Admit, Delegate, Expose, Granted, Policy, Rank, Ranked, Route, Share, Transfer, Trigger,
    Verdict,
};

use crate::check::{self, Sources};
use crate::rules::Rules;
use crate::{Decision, Failure, Unsound, outcome, samples};

#[cfg(test)]
mod tests;

/// A site's checked policies. Made at start; to change a policy, make another engine.
#[derive(Clone)]
pub struct Engine {
    /// In the order of [`Decision::ALL`].
    rules: Vec<Rules>,
}

impl Engine {
    /// The policies of a site that has none of its own.
    pub fn defaults() -> Self {
        Self::of(Sources::default()).expect("the policies that come with Sojourn are sound")
    }

    /// The policies in `folder`, and the default for every decision that it has no file for.
    ///
    /// A file `DECISION.rego` replaces the default, and `DECISION_test.rego` holds tests that are
    /// run here. Any other `.rego` file is an error; files of other kinds are left alone.
    /// All of them are taken, or none and everything that is wrong is told.
    pub fn load(folder: &Path) -> Result<Self, Unsound> {
        Self::of(Sources::read(folder))
    }

    fn of(sources: Sources) -> Result<Self, Unsound> {
        let mut errors = Vec::new();
        let mut rules = Vec::new();
        for checked in check::examine(sources) {
            errors.extend(checked.errors);
            rules.extend(checked.rules);
        }
        if errors.is_empty() { Ok(Self { rules }) } else { Err(Unsound(errors)) }
    }

    pub(crate) fn rules(&self, decision: Decision) -> &Rules {
        let place = Decision::ALL.iter().position(|known| *known == decision);
        &self.rules[place.expect("all decisions are in the list of all")]
    }
}

/// Asks `rules` about the made-up requests for their decision.
pub(crate) fn try_samples(rules: &Rules) -> Vec<Failure> {
    let failures: Vec<Result<(), Failure>> = match rules.decision() {
        Decision::Admit => samples::admit().map(|s| admit(rules, &s).map(drop)).into(),
        Decision::Delegate => samples::delegate().map(|s| delegate(rules, &s).map(drop)).into(),
        Decision::Expose => samples::expose().map(|s| expose(rules, &s).map(drop)).into(),
        Decision::Rank => samples::rank().map(|s| rank(rules, &s).map(drop)).into(),
        Decision::Transfer => samples::transfer().map(|s| transfer(rules, &s).map(drop)).into(),
        Decision::Share => samples::share().map(|s| share(rules, &s).map(drop)).into(),
        Decision::Trigger => samples::trigger().map(|s| trigger(rules, &s).map(drop)).into(),
    };
    failures.into_iter().filter_map(Result::err).collect()
}

pub(crate) fn admit(rules: &Rules, input: &Admit) -> Result<Verdict, Failure> {
    let [refuse] = rules.evaluate(input)?;
    outcome::verdict(&refuse)
}

pub(crate) fn delegate(rules: &Rules, input: &Delegate) -> Result<Verdict, Failure> {
    let [refuse] = rules.evaluate(input)?;
    outcome::verdict(&refuse)
}

pub(crate) fn expose(rules: &Rules, input: &Expose) -> Result<Vec<usize>, Failure> {
    let [hide] = rules.evaluate(input)?;
    outcome::shown(&hide, input.offers.len())
}

pub(crate) fn rank(rules: &Rules, input: &Rank) -> Result<Vec<Ranked>, Failure> {
    let [score, reasons, exclude] = rules.evaluate(input)?;
    outcome::ranking(&score, &reasons, &exclude, input.offers.len())
}

pub(crate) fn transfer(rules: &Rules, input: &Transfer) -> Result<Route, Failure> {
    let [mode] = rules.evaluate(input)?;
    outcome::route(&mode)
}

pub(crate) fn share(rules: &Rules, input: &Share) -> Result<Granted, Failure> {
    let [carrier, rate, weight] = rules.evaluate(input)?;
    outcome::granted(&carrier, &rate, &weight)
}

pub(crate) fn trigger(rules: &Rules, input: &Trigger) -> Result<Vec<String>, Failure> {
    let [reasons] = rules.evaluate(input)?;
    outcome::texts("move", &reasons)
}

/// See the table at the top of the crate for what is answered when a policy fails.
impl Policy for Engine {
    fn admit(&self, input: &Admit) -> Verdict {
        let refuse = |failure| Verdict::Refuse(vec![failed(Decision::Admit, &failure)]);
        admit(self.rules(Decision::Admit), input).unwrap_or_else(refuse)
    }

    fn delegate(&self, input: &Delegate) -> Verdict {
        let refuse = |failure| Verdict::Refuse(vec![failed(Decision::Delegate, &failure)]);
        delegate(self.rules(Decision::Delegate), input).unwrap_or_else(refuse)
    }

    fn expose(&self, input: &Expose) -> Vec<usize> {
        expose(self.rules(Decision::Expose), input).unwrap_or_else(|failure| {
            failed(Decision::Expose, &failure);
            vec![]
        })
    }

    fn rank(&self, input: &Rank) -> Vec<Ranked> {
        rank(self.rules(Decision::Rank), input).unwrap_or_else(|failure| {
            let reason = failed(Decision::Rank, &failure);
            let exclude =
                |offer| Ranked { offer, score: 0.0, reasons: vec![reason.clone()], excluded: true };
            (0..input.offers.len()).map(exclude).collect()
        })
    }

    fn transfer(&self, input: &Transfer) -> Route {
        transfer(self.rules(Decision::Transfer), input).unwrap_or_else(|failure| {
            failed(Decision::Transfer, &failure);
            Route::Relayed
        })
    }

    fn share(&self, input: &Share) -> Granted {
        share(self.rules(Decision::Share), input).unwrap_or_else(|failure| {
            failed(Decision::Share, &failure);
            Granted::default()
        })
    }

    fn trigger(&self, input: &Trigger) -> Vec<String> {
        trigger(self.rules(Decision::Trigger), input).unwrap_or_else(|failure| {
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
        Failure::Evaluation { .. } | Failure::Result { .. } => {
            format!("policy failed: {decision} gave no decision")
        }
    }
}
