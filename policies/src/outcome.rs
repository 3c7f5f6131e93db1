//! From what a rule evaluates to, to a decision.

use model::decision::{Granted, Ranked, Route, Verdict};
use model::{Bytes, Carrier, limit};
use regorus::Value;

use crate::error::Place;
use crate::rules::EVALUATION_BUDGET;

/// Bytes a second below which a transfer would rather be lost than slow.
const LOWEST_RATE: u64 = 1 << 10;

/// Against a weight of 1, the most that a transfer may be given.
const MAX_WEIGHT: u32 = 1000;

/// Why an evaluation gave no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It took too long.
    #[error("rule `{0}` takes longer than {EVALUATION_BUDGET:?}")]
    Budget(&'static str),
    /// A rule could not be evaluated.
    #[error("{problem}")]
    Evaluation {
        /// Where, if that is known.
        place: Option<Place>,
        /// What is wrong there.
        problem: String,
    },
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
    let reasons = texts("refuse", refuse)?;
    Ok(if reasons.is_empty() { Verdict::Allow } else { Verdict::Refuse(reasons) })
}

/// A set of texts: `refuse` of admit and delegate, `move` of trigger.
pub(crate) fn texts(rule: &'static str, value: &Value) -> Result<Vec<String>, Failure> {
    let error = |_| wrong(rule, "a set of texts", value);
    let mut texts = vec![];
    for text in value.as_set().map_err(error)?.iter() {
        keep(&mut texts, text.as_string().map_err(error)?);
    }
    Ok(texts)
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
    let scores = scores(score, count)?;
    let reasons = texts_by_offer("reasons", reasons, count)?;
    let exclude = texts_by_offer("exclude", exclude, count)?;
    let mut ranked: Vec<Ranked> = scores
        .into_iter()
        .zip(reasons.into_iter().zip(exclude))
        .enumerate()
        .map(|(offer, (score, (reasons, against)))| match against.is_empty() {
            true => Ranked { offer, score, reasons, excluded: false },
            false => Ranked { offer, score, reasons: against, excluded: true },
        })
        .collect();
    // The sort is stable: among equals the earlier offer stays first.
    ranked.sort_by(|a, b| a.excluded.cmp(&b.excluded).then(b.score.total_cmp(&a.score)));
    Ok(ranked)
}

fn scores(score: &Value, count: usize) -> Result<Vec<f64>, Failure> {
    let error = || wrong("score", "a number for each index into input.offers", score);
    let object = score.as_object().map_err(|_| error())?;
    if object.len() != count {
        return Err(error());
    }
    let score_of = |index| object.get(&Value::from(index as u64))?.as_f64().ok();
    (0..count).map(|index| score_of(index).ok_or_else(error)).collect()
}

/// A set of `[index, text]`. An index that is none would be a rule without effect, and an
/// exclusion without effect is the worst of all.
fn texts_by_offer(
    rule: &'static str,
    value: &Value,
    count: usize,
) -> Result<Vec<Vec<String>>, Failure> {
    let error = || wrong(rule, "a set of [index into input.offers, text]", value);
    let mut texts = vec![vec![]; count];
    for pair in value.as_set().map_err(|_| error())?.iter() {
        let [index, text] = pair.as_array().map_err(|_| error())?.as_slice() else {
            return Err(error());
        };
        let index = index.as_u64().ok().and_then(|index| usize::try_from(index).ok());
        let texts = index.and_then(|index| texts.get_mut(index)).ok_or_else(error)?;
        keep(texts, text.as_string().map_err(|_| error())?);
    }
    Ok(texts)
}

/// `mode` of transfer.
pub(crate) fn route(mode: &Value) -> Result<Route, Failure> {
    match mode.as_string().map(|mode| &**mode) {
        Ok("direct") => Ok(Route::Direct),
        Ok("relayed") => Ok(Route::Relayed),
        _ => Err(wrong("mode", "\"direct\" or \"relayed\"", mode)),
    }
}

/// `carrier`, `rate` and `weight` of share.
pub(crate) fn granted(carrier: &Value, rate: &Value, weight: &Value) -> Result<Granted, Failure> {
    let carrier = match carrier.as_string().map(|carrier| &**carrier) {
        Ok("any") => None,
        Ok("quic") => Some(Carrier::Quic),
        Ok("tls") => Some(Carrier::Tls),
        _ => return Err(wrong("carrier", "\"any\", \"quic\" or \"tls\"", carrier)),
    };
    let rate = match rate.as_u64() {
        Ok(0) => None,
        Ok(bytes) => Some(Bytes(bytes.max(LOWEST_RATE))),
        Err(_) => return Err(wrong("rate", "a whole number of bytes a second", rate)),
    };
    match weight.as_u64().ok().and_then(|weight| u32::try_from(weight).ok()) {
        Some(weight @ 1..=MAX_WEIGHT) => Ok(Granted { carrier, rate, weight }),
        _ => Err(wrong("weight", "a whole number from 1 to 1000", weight)),
    }
}

/// Keeps a text, cut to the limits of what may travel.
fn keep(texts: &mut Vec<String>, text: &str) {
    if texts.len() < limit::MAX_REASONS {
        texts.push(text.chars().take(limit::MAX_REASON_CHARS).collect());
    }
}
