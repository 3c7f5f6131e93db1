//! One decision for one input, as an operator looks at it.

use model::Descriptor;
use model::decision::{Granted, Ranked, Route, Verdict};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::engine::{self, Engine};
use crate::rules::Rules;
use crate::{Decision, Failure, Whose, samples};

/// Offers of an example; a policy may be asked about many more.
const EXAMPLE_OFFERS: usize = 3;

/// What a policy decides for one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// The file whose rules decided.
    pub file: String,
    /// Whose it is.
    pub whose: Whose,
    /// The decision, or how the policy fails, so that the site would give the safe answer.
    pub answer: Result<Answer, Failure>,
}

/// A decision of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Of admit and delegate.
    Verdict(Verdict),
    /// Of expose: which offers are shown.
    Shown(Vec<usize>),
    /// Of rank: all offers, best first.
    Ranked(Vec<Ranked>),
    /// Of transfer.
    Route(Route),
    /// Of share.
    Granted(Granted),
    /// Of trigger: why the VM is to move.
    Move(Vec<String>),
}

/// An input that its decision cannot be asked with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadInput {
    /// It is no JSON.
    #[error("the input is no JSON: {0}")]
    Json(String),
    /// A field is missing, unknown or of another type.
    #[error("{field}: {problem}")]
    Field {
        /// The field, from `input` on.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// An input to begin with, in which everything is there.
pub fn example(decision: Decision) -> Value {
    match decision {
        Decision::Admit => value(&samples::admit()[0]),
        Decision::Delegate => value(&samples::delegate()[0]),
        Decision::Expose => {
            let [mut input, _] = samples::expose();
            input.offers.truncate(EXAMPLE_OFFERS);
            value(&input)
        }
        Decision::Rank => {
            let [mut input, _] = samples::rank();
            input.offers.truncate(EXAMPLE_OFFERS);
            value(&input)
        }
        Decision::Transfer => value(&samples::transfer()[0]),
        Decision::Share => value(&samples::share()[0]),
        Decision::Trigger => value(&samples::trigger()[0]),
    }
}

impl Engine {
    /// What the site decides for this input, a JSON text.
    pub fn explain(&self, decision: Decision, input: &str) -> Result<Explained, BadInput> {
        let rules = self.rules(decision);
        let answer = answer(rules, input)?;
        Ok(Explained { file: decision.file(), whose: rules.whose(), answer })
    }
}

fn value(input: &impl Serialize) -> Value {
    serde_json::to_value(input).expect("requests are plain data")
}

fn answer(rules: &Rules, input: &str) -> Result<Result<Answer, Failure>, BadInput> {
    let answer = match rules.decision() {
        Decision::Admit => {
            let input = parse::<model::decision::Admit>(input)?;
            check(&input.descriptor)?;
            engine::admit(rules, &input).map(Answer::Verdict)
        }
        Decision::Delegate => {
            let input = parse::<model::decision::Delegate>(input)?;
            check(&input.descriptor)?;
            engine::delegate(rules, &input).map(Answer::Verdict)
        }
        Decision::Expose => engine::expose(rules, &parse(input)?).map(Answer::Shown),
        Decision::Rank => {
            let input = parse::<model::decision::Rank>(input)?;
            check(&input.descriptor)?;
            engine::rank(rules, &input).map(Answer::Ranked)
        }
        Decision::Transfer => {
            let input = parse::<model::decision::Transfer>(input)?;
            check(&input.descriptor)?;
            engine::transfer(rules, &input).map(Answer::Route)
        }
        Decision::Share => {
            let input = parse::<model::decision::Share>(input)?;
            check(&input.descriptor)?;
            engine::share(rules, &input).map(Answer::Granted)
        }
        Decision::Trigger => {
            let input = parse::<model::decision::Trigger>(input)?;
            check(&input.descriptor)?;
            engine::trigger(rules, &input).map(Answer::Move)
        }
    };
    Ok(answer)
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, BadInput> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| BadInput::Json(error.to_string()))?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "input".to_owned() } else { format!("input.{path}") };
        BadInput::Field { field, problem: error.into_inner().to_string() }
    })
}

fn check(descriptor: &Descriptor) -> Result<(), BadInput> {
    let field = "input.descriptor".to_owned();
    descriptor.check().map_err(|error| BadInput::Field { field, problem: error.to_string() })
}
