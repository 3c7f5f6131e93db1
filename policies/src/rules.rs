//! The rules of one decision: checked once, evaluated often.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use regorus::languages::rego::compiler::Compiler;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{LimitError, Value};
use serde::Serialize;

use crate::error::{Place, PolicyError};
use crate::{Decision, Failure, TestRun, Whose};

/// How long one rule may take for one request. Ours take less than a hundredth of it; it is
/// there for a rule that would not end, since a site waits for its decisions.
pub const EVALUATION_BUDGET: Duration = Duration::from_millis(250);

/// Size of one policy file, in bytes.
pub const MAX_POLICY_BYTES: usize = 64 * 1024;

/// Levels of square and curly brackets within one another in a policy. The interpreter's parser reads
/// each level twice, as a list of values and as one that is computed, and so needs twice the time
/// for each level more. Ours have four.
const MAX_NESTING: usize = 10;

/// Steps of an evaluation between two looks at the clock.
const STEPS_PER_CHECK: NonZeroU32 = NonZeroU32::new(64).expect("64 is not zero");

/// Functions that a policy must do without, and why.
const FORBIDDEN: [(&str, &str); 3] = [
    ("rand.intn", "equal requests must get equal decisions"),
    ("numbers.range", "no time limit ends it; write the numbers down, or use input"),
    ("numbers.range_step", "no time limit ends it; write the numbers down, or use input"),
];

/// The checked rules of one decision.
#[derive(Clone)]
pub(crate) struct Rules {
    decision: Decision,
    whose: Whose,
    /// Where each of the decision's rules begins, in the order of [`Decision::rules`].
    places: Vec<Place>,
    /// Never evaluated itself, so that no evaluation leaves anything for the next.
    engine: regorus::Engine,
}

impl Rules {
    /// Checks everything about a site's own rules, or about the default ones where it has none,
    /// that can be known without a request.
    pub(crate) fn new(decision: Decision, own: Option<&str>) -> Result<Self, Vec<PolicyError>> {
        let file = decision.file();
        let source = own.unwrap_or(decision.default_source());
        let mut engine = parsed(decision, source).map_err(|error| vec![error])?;
        if own.is_some() {
            add_default(decision, &mut engine);
        }
        let mut errors = Vec::new();
        let mut places = Vec::new();
        for rule in decision.rules() {
            match check_rule(decision, rule, source, &mut engine) {
                Ok(()) => places.push(Place::of_rule(&file, source, rule)),
                // One mistake may keep all rules from being translated.
                Err(error) if errors.iter().any(|known| same(known, &error)) => {}
                Err(error) => errors.push(error),
            }
        }
        let whose = if own.is_some() { Whose::Site } else { Whose::Default };
        let rules = Self { decision, whose, places, engine };
        if errors.is_empty() { Ok(rules) } else { Err(errors) }
    }

    pub(crate) fn decision(&self) -> Decision {
        self.decision
    }

    pub(crate) fn whose(&self) -> Whose {
        self.whose
    }

    /// Where what failed begins.
    pub(crate) fn place_of(&self, failure: &Failure) -> Place {
        let rule = match failure {
            Failure::Budget(rule) | Failure::Result { rule, .. } => Some(*rule),
            Failure::Evaluation { place: Some(place), .. } => return place.clone(),
            Failure::Evaluation { place: None, .. } => None,
        };
        let at = self.decision.rules().iter().position(|known| Some(*known) == rule);
        self.places[at.unwrap_or_default()].clone()
    }

    /// What each of the decision's rules gives for `input`, in the order of [`Decision::rules`].
    pub(crate) fn evaluate<const N: usize>(
        &self,
        input: &impl Serialize,
    ) -> Result<[Value; N], Failure> {
        let text = serde_json::to_string(input).expect("requests are plain data");
        let input = Value::from_json_str(&text).map_err(|error| {
            let problem = error.to_string();
            Failure::Evaluation { place: None, problem }
        })?;
        let mut engine = self.engine.clone();
        engine.set_input(input);
        let mut values = [const { Value::Undefined }; N];
        assert_eq!(N, self.decision.rules().len(), "one value for each rule");
        for (value, rule) in values.iter_mut().zip(self.decision.rules()) {
            let path = format!("{}.{rule}", self.decision.package());
            *value = engine.eval_rule(path).map_err(|error| {
                match error.downcast_ref::<LimitError>() {
                    Some(LimitError::TimeLimitExceeded { .. }) => Failure::Budget(rule),
                    _ => {
                        let (place, problem) = located(&error.to_string());
                        Failure::Evaluation { place, problem }
                    }
                }
            })?;
        }
        Ok(values)
    }

    /// Runs the tests in `source`: every `test_` rule, which must be true.
    pub(crate) fn test(&self, file: &str, source: &str) -> Result<Vec<TestRun>, PolicyError> {
        check_bounds(file, source)?;
        let mut engine = self.engine.clone();
        let package = engine
            .add_policy(file.to_owned(), source.to_owned())
            .map_err(|error| invalid(file, &error.to_string()))?;
        let run = |test: String| {
            let fault = match engine.clone().eval_rule(format!("{package}.{test}")) {
                Ok(Value::Bool(true)) => None,
                Ok(_) => Some("does not hold".to_owned()),
                Err(error) => {
                    let (place, problem) = located(&error.to_string());
                    let place = place.map_or_else(String::new, |place| format!("{place}: "));
                    Some(format!("does not hold: {place}{problem}"))
                }
            };
            let place = Place::of_rule(file, source, &test);
            TestRun { place, test, whose: self.whose, fault }
        };
        let runs: Vec<TestRun> = test_names(source).into_iter().map(run).collect();
        if runs.is_empty() {
            return Err(PolicyError::NoTest { file: file.to_owned() });
        }
        Ok(runs)
    }
}

/// An interpreter that has read the rules.
fn parsed(decision: Decision, source: &str) -> Result<regorus::Engine, PolicyError> {
    let file = decision.file();
    check_bounds(&file, source)?;
    let mut engine = regorus::Engine::new();
    engine.set_strict_builtin_errors(true);
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit: EVALUATION_BUDGET,
        check_interval: STEPS_PER_CHECK,
    });
    let found = engine
        .add_policy(file.clone(), source.to_owned())
        .map_err(|error| invalid(&file, &error.to_string()))?;
    if found != decision.package() {
        let bare = |package: &str| package.trim_start_matches("data.").to_owned();
        return Err(PolicyError::Package {
            place: Place::of_package(&file, source),
            wanted: bare(&decision.package()),
            found: bare(&found),
        });
    }
    Ok(engine)
}

/// Gives a site's own rules the default ones beside them, as `data.sojourn.defaults.DECISION`, so
/// that they can add to these and need not repeat them.
fn add_default(decision: Decision, engine: &mut regorus::Engine) {
    let (package, other) =
        (format!("package sojourn.{decision}"), format!("package sojourn.defaults.{decision}"));
    let default = decision.default_source().replacen(&package, &other, 1);
    engine
        .add_policy(format!("defaults/{}", decision.file()), default)
        .expect("the policies that come with Sojourn can be read");
}

/// Checks one rule that the decision needs.
fn check_rule(
    decision: Decision,
    rule: &'static str,
    source: &str,
    engine: &mut regorus::Engine,
) -> Result<(), PolicyError> {
    let file = decision.file();
    let invalid = |error: &dyn std::fmt::Display| invalid(&file, &error.to_string());
    let path = format!("{}.{rule}", decision.package());
    if !engine.has_declared_rule_rooted_at(&file, rule).map_err(|e| invalid(&e))? {
        return Err(PolicyError::Missing { place: Place::of_package(&file, source), rule });
    }
    // An evaluation looks a function up when it reaches the call. Translating a rule resolves
    // every call, also those that no sample reaches; and no evaluation has to prepare it again.
    let policy =
        engine.compile_with_entrypoint(&Arc::from(path.as_str())).map_err(|e| invalid(&e))?;
    let program = Compiler::compile_from_policy(&policy, &[&path]).map_err(|e| invalid(&e))?;
    for called in &program.builtin_info_table {
        if let Some((function, why)) = FORBIDDEN.into_iter().find(|f| f.0 == called.name) {
            let place = Place::of_word(&file, source, function);
            return Err(PolicyError::Forbidden { place, function, why });
        }
    }
    Ok(())
}

fn same(one: &PolicyError, other: &PolicyError) -> bool {
    one.to_string() == other.to_string()
}

/// Refuses what would keep the interpreter's parser busy for too long.
fn check_bounds(file: &str, source: &str) -> Result<(), PolicyError> {
    if source.len() > MAX_POLICY_BYTES {
        return Err(PolicyError::TooLarge { file: file.to_owned() });
    }
    let mut open = 0_usize;
    let (mut line, mut column) = (1, 0);
    let mut chars = source.chars();
    // What ends the text or the comment that the brackets are part of, if they are.
    let mut within = None;
    while let Some(c) = chars.next() {
        column += 1;
        match (within, c) {
            (Some(end), c) if c == end => within = None,
            (Some('"'), '\\') => {
                chars.next();
                column += 1;
            }
            (Some(_), _) => {}
            (None, '"' | '`') => within = Some(c),
            (None, '#') => within = Some('\n'),
            (None, '[' | '{') => open += 1,
            (None, ']' | '}') => open = open.saturating_sub(1),
            (None, _) => {}
        }
        if open > MAX_NESTING {
            let problem = format!("more than {MAX_NESTING} brackets within one another");
            let place = Place { file: file.to_owned(), line, column };
            return Err(PolicyError::Invalid { place, problem });
        }
        if c == '\n' {
            (line, column) = (line + 1, 0);
        }
    }
    Ok(())
}

/// The names of rules at the beginning of a line that start with `test_`.
fn test_names(source: &str) -> Vec<String> {
    let name = |line: &str| {
        let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        line[..end.unwrap_or(line.len())].to_owned()
    };
    source.lines().filter(|line| line.starts_with("test_")).map(name).collect()
}

/// Takes line and column out of the interpreter's message, which looks like this:
///
/// ```text
/// --> admit.rego:3:7
///   |
/// 3 | refuse contains
///   |       ^
/// error: expecting expression
/// ```
fn located(message: &str) -> (Option<Place>, String) {
    let find = || {
        let (_, rest) = message.split_once("--> ")?;
        let (place, rest) = rest.split_once('\n')?;
        let mut parts = place.trim().rsplitn(3, ':');
        let column = parts.next()?.parse().ok()?;
        let line = parts.next()?.parse().ok()?;
        let file = parts.next()?.to_owned();
        let (_, problem) = rest.split_once("error: ")?;
        let problem = problem.lines().next()?.trim().to_owned();
        Some((Some(Place { file, line, column }), problem))
    };
    find().unwrap_or_else(|| (None, message.trim().to_owned()))
}

/// The interpreter's message about a file.
fn invalid(file: &str, message: &str) -> PolicyError {
    match located(message) {
        (Some(place), problem) => PolicyError::Invalid { place, problem },
        (None, problem) => PolicyError::Unusable { file: file.to_owned(), problem },
    }
}
