//! The rules of one decision: checked once, evaluated often.

use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use regorus::languages::rego::compiler::Compiler;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{LimitError, Value};
use serde::Serialize;

use crate::{Decision, Failure};

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
    #[error("{file}:{line}:{column}: {problem}")]
    Invalid {
        /// The file.
        file: String,
        /// Line of the problem, from 1.
        line: u32,
        /// Column of the problem, from 1.
        column: u32,
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
    #[error("{file} must be `package {wanted}`, not `package {found}`")]
    Package {
        /// The file.
        file: String,
        /// The package that it must be.
        wanted: String,
        /// The package that it is.
        found: String,
    },
    /// A rule that the decision needs is not there.
    #[error("{file} does not define `{rule}`")]
    Missing {
        /// The file.
        file: String,
        /// The rule.
        rule: &'static str,
    },
    /// A rule calls a function that policies must do without.
    #[error("{file} calls {function}, which a policy must not: {why}")]
    Forbidden {
        /// The file.
        file: String,
        /// The function.
        function: &'static str,
        /// The reason.
        why: &'static str,
    },
    /// The policy was asked about made-up requests, and failed for one.
    #[error("{file} fails for a sample request")]
    Sample {
        /// The file.
        file: String,
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
    #[error("{file}: {test} does not hold{detail}")]
    Test {
        /// The file.
        file: String,
        /// The rule.
        test: String,
        /// What went wrong, if it was more than a condition that is not met.
        detail: String,
    },
}

/// The checked rules of one decision.
#[derive(Clone)]
pub(crate) struct Rules {
    decision: Decision,
    file: String,
    /// Never evaluated itself, so that no evaluation leaves anything for the next.
    engine: regorus::Engine,
}

impl Rules {
    /// Checks everything about `source` that can be known without a request.
    pub(crate) fn new(decision: Decision, file: &str, source: &str) -> Result<Self, PolicyError> {
        check_bounds(file, source)?;
        let mut engine = regorus::Engine::new();
        engine.set_strict_builtin_errors(true);
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: EVALUATION_BUDGET,
            check_interval: STEPS_PER_CHECK,
        });
        let invalid = |error: &dyn std::fmt::Display| located(file, &error.to_string());

        let found =
            engine.add_policy(file.to_owned(), source.to_owned()).map_err(|e| invalid(&e))?;
        if found != decision.package() {
            let bare = |package: &str| package.trim_start_matches("data.").to_owned();
            return Err(PolicyError::Package {
                file: file.to_owned(),
                wanted: bare(&decision.package()),
                found: bare(&found),
            });
        }
        for rule in decision.rules() {
            let path = format!("{}.{rule}", decision.package());
            if !engine.has_declared_rule_rooted_at(file, rule).map_err(|e| invalid(&e))? {
                return Err(PolicyError::Missing { file: file.to_owned(), rule });
            }
            // An evaluation looks a function up when it reaches the call. Translating a rule
            // resolves every call, also those that no sample reaches.
            let policy = engine
                .compile_with_entrypoint(&Arc::from(path.as_str()))
                .map_err(|e| invalid(&e))?;
            let program =
                Compiler::compile_from_policy(&policy, &[&path]).map_err(|e| invalid(&e))?;
            for called in &program.builtin_info_table {
                if let Some((function, why)) = FORBIDDEN.into_iter().find(|f| f.0 == called.name) {
                    return Err(PolicyError::Forbidden { file: file.to_owned(), function, why });
                }
            }
        }
        Ok(Self { decision, file: file.to_owned(), engine })
    }

    pub(crate) fn decision(&self) -> Decision {
        self.decision
    }

    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// What each of the decision's rules gives for `input`, in the order of [`Decision::rules`].
    pub(crate) fn evaluate<const N: usize>(
        &self,
        input: &impl Serialize,
    ) -> Result<[Value; N], Failure> {
        let text = serde_json::to_string(input).expect("requests are plain data");
        let input = Value::from_json_str(&text).map_err(|e| Failure::Evaluation(e.to_string()))?;
        let mut engine = self.engine.clone();
        engine.set_input(input);
        let mut values = [const { Value::Undefined }; N];
        assert_eq!(N, self.decision.rules().len(), "one value for each rule");
        for (value, rule) in values.iter_mut().zip(self.decision.rules()) {
            let path = format!("{}.{rule}", self.decision.package());
            *value = engine.eval_rule(path).map_err(|error| {
                match error.downcast_ref::<LimitError>() {
                    Some(LimitError::TimeLimitExceeded { .. }) => Failure::Budget(rule),
                    _ => Failure::Evaluation(located(&self.file, &error.to_string()).to_string()),
                }
            })?;
        }
        Ok(values)
    }

    /// Runs the tests in `source`, all of whose `test_` rules must be true, and counts them.
    pub(crate) fn test(&self, file: &str, source: &str) -> Result<usize, PolicyError> {
        check_bounds(file, source)?;
        let mut engine = self.engine.clone();
        let package = engine
            .add_policy(file.to_owned(), source.to_owned())
            .map_err(|error| located(file, &error.to_string()))?;
        let tests = test_names(source);
        for test in &tests {
            let detail = match engine.eval_rule(format!("{package}.{test}")) {
                Ok(Value::Bool(true)) => continue,
                Ok(_) => String::new(),
                Err(error) => format!(": {}", located(file, &error.to_string())),
            };
            return Err(PolicyError::Test { file: file.to_owned(), test: test.clone(), detail });
        }
        match tests.len() {
            0 => Err(PolicyError::NoTest { file: file.to_owned() }),
            count => Ok(count),
        }
    }
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
            return Err(PolicyError::Invalid { file: file.to_owned(), line, column, problem });
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
fn located(file: &str, message: &str) -> PolicyError {
    let find = || {
        let (_, rest) = message.split_once("--> ")?;
        let (place, rest) = rest.split_once('\n')?;
        let mut parts = place.trim().rsplitn(3, ':');
        let column = parts.next()?.parse().ok()?;
        let line = parts.next()?.parse().ok()?;
        let file = parts.next()?.to_owned();
        let (_, problem) = rest.split_once("error: ")?;
        let problem = problem.lines().next()?.trim().to_owned();
        Some(PolicyError::Invalid { file, line, column, problem })
    };
    find().unwrap_or_else(|| PolicyError::Unusable {
        file: file.to_owned(),
        problem: message.trim().to_owned(),
    })
}
