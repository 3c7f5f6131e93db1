//! From what a rule evaluates to, to a decision.

use std::time::Duration;

use model::decision::{Ranked, Route, Verdict};
use model::limit;
use regorus::Value;

use crate::rules::EVALUATION_BUDGET;

/// Why an evaluation gave no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It took too long.
    #[error("rule `{0}` takes longer than {limit:?}", limit = EVALUATION_BUDGET as Duration)]
    Budget(&'static str),
    /// A rule could not be evaluated.
    #[error("{0}")]
    Evaluation(String),
    /// A rule gave something else than it must.
    #[error("rule `{rule}` must be {wanted}, got {got}")]
    Result {
        /// The rule.
        rule: &'static str,
        /// What it must evaluate to.
        wanted: &'static str,
        /// What it evaluated to, cut to a printable length.
        got: String,
    },
}

fn wrong(rule: &'static str, wanted: &'static str, got: &Value) -> Failure {
    let got = match got {
        Value::Undefined => "nothing".to_owned(),
        value => value.to_string().chars().take(120).collect(),
    };
    Failure::Result { rule, wanted, got }
}

/// `refuse` of admit and delegate.
pub(crate) fn verdict(refuse: &Value) -> Result<Verdict, Failure> {
    let reasons = texts("refuse", "a set of texts", refuse)?;
    Ok(if reasons.is_empty() { Verdict::Allow } else { Verdict::Refuse(reasons) })
}

/// `hide` of expose, for `count` offers: what is left to show.
pub(crate) fn shown(hide: &Value, count: usize) -> Result<Vec<usize>, Failure> {
    let error = || wrong("hide", "a set of indices into input.offers", hide);
    let mut show = vec![true; count];
    for index in hide.as_set().map_err(|_| error())?.iter() {
        let index = index.as_u64().ok().and_then(|index| usize::try_from(index).ok());
        *index.and_then(|index| show.get_mut(index)).ok_or_else(error)? = false;
    }
    Ok((0..count).filter(|index| show[*index]).collect())
}

/// `score`, `reasons` and `exclude` of rank, for `count` offers: best first, excluded ones last.
pub(crate) fn ranking(
    score: &Value,
    reasons: &Value,
    exclude: &Value,
    count: usize,
) -> Result<Vec<Ranked>, Failure> {
    const SCORES: &str = "a number for each index into input.offers";
    const TEXTS: &str = "a set of texts for an index into input.offers";
    for (rule, wanted, value) in
        [("score", SCORES, score), ("reasons", TEXTS, reasons), ("exclude", TEXTS, exclude)]
    {
        check_indices(rule, wanted, value, count)?;
    }
    let mut ranked = Vec::with_capacity(count);
    for offer in 0..count {
        let points = at(score, offer).and_then(|points| points.as_f64().ok());
        let points = points.ok_or_else(|| wrong("score", SCORES, score))?;
        let texts_of = |rule, value| match at(value, offer) {
            Some(value) => texts(rule, TEXTS, value),
            None => Ok(vec![]),
        };
        let against = texts_of("exclude", exclude)?;
        let excluded = !against.is_empty();
        let reasons = if excluded { against } else { texts_of("reasons", reasons)? };
        ranked.push(Ranked { offer, score: points, reasons, excluded });
    }
    // The sort is stable: among equals the earlier offer stays first.
    ranked.sort_by(|a, b| a.excluded.cmp(&b.excluded).then(b.score.total_cmp(&a.score)));
    Ok(ranked)
}

/// `mode` of transfer.
pub(crate) fn route(mode: &Value) -> Result<Route, Failure> {
    match mode.as_string().map(|mode| &**mode) {
        Ok("direct") => Ok(Route::Direct),
        Ok("relayed") => Ok(Route::Relayed),
        _ => Err(wrong("mode", "\"direct\" or \"relayed\"", mode)),
    }
}

fn at(value: &Value, index: usize) -> Option<&Value> {
    value.as_object().ok()?.get(&Value::from(index as u64))
}

/// An object whose keys are indices below `count`. A key that is none would be a rule without
/// effect, and an exclusion without effect is the worst of all.
fn check_indices(
    rule: &'static str,
    wanted: &'static str,
    value: &Value,
    count: usize,
) -> Result<(), Failure> {
    let keys = value.as_object().map_err(|_| wrong(rule, wanted, value))?;
    let sound = |key: &Value| key.as_u64().is_ok_and(|key| key < count as u64);
    match keys.iter().find(|(key, _)| !sound(key)) {
        Some((key, _)) => Err(wrong(rule, wanted, key)),
        None => Ok(()),
    }
}

/// A set of texts in its own order, cut to the limits of what may travel.
fn texts(rule: &'static str, wanted: &'static str, value: &Value) -> Result<Vec<String>, Failure> {
    let error = |_| wrong(rule, wanted, value);
    let set = value.as_set().map_err(error)?;
    let mut texts = Vec::with_capacity(set.len().min(limit::MAX_REASONS));
    for text in set.iter() {
        let text = text.as_string().map_err(error)?;
        if texts.len() < limit::MAX_REASONS {
            texts.push(text.chars().take(limit::MAX_REASON_CHARS).collect());
        }
    }
    Ok(texts)
}
