//! The site's policies, looked at without a running node.

use std::io::Read;
use std::path::{Path, PathBuf};

use model::decision::{Granted, Ranked, Route, Verdict};
use node::Folder;
use policies::{Answer, Decision, Engine, Explained, PolicyError, TestRun, Whose};
use serde_json::{Value, json};

use crate::args::Format;
use crate::exit::{FAILED, Failure, NOT_FOUND, USAGE};
use crate::local::absolute;
use crate::output::Output;

/// Largest input of `policy explain`, in bytes.
const MAX_INPUT_BYTES: u64 = 4 << 20;

/// `policy check`.
pub(crate) fn check(folder: &Path, output: &Output) -> Result<(), Failure> {
    let files = policies::check(&policies_of(folder)?);
    let wrong = files.iter().map(|file| file.errors.len()).sum::<usize>();
    let value = |file: &policies::Checked| {
        json!({
            "file": file.file, "whose": whose(file.whose), "sound": file.errors.is_empty(),
            "errors": file.errors.iter().map(error_value).collect::<Value>(),
        })
    };
    if output.format() == Format::Json {
        output.line(&files.iter().map(value).collect());
    } else {
        let found = |file: &policies::Checked| match file.errors.len() {
            0 => "sound".to_owned(),
            1 => "1 error".to_owned(),
            n => format!("{n} errors"),
        };
        let row = |file: &policies::Checked| {
            vec![file.file.clone(), whose(file.whose).to_owned(), found(file)]
        };
        output.table(&["FILE", "WHOSE", "FOUND"], files.iter().map(row).collect());
        for error in files.iter().flat_map(|file| &file.errors) {
            output.words(&error.in_full());
        }
    }
    match wrong {
        0 => Ok(()),
        n => Err(Failure::new(FAILED, format!("{n} errors: these policies would be refused"))),
    }
}

/// `policy test`.
pub(crate) fn test(folder: &Path, output: &Output) -> Result<(), Failure> {
    let (runs, errors) = policies::test(&policies_of(folder)?);
    if output.format() == Format::Json {
        let value = |run: &TestRun| {
            json!({
                "file": run.place.file, "line": run.place.line, "test": run.test,
                "whose": whose(run.whose), "passed": run.passed(), "fault": run.fault,
            })
        };
        let errors: Value = errors.iter().map(error_value).collect();
        output
            .line(&json!({ "tests": runs.iter().map(value).collect::<Value>(), "errors": errors }));
    } else {
        let row = |run: &TestRun| {
            let word = if run.passed() { "pass" } else { "FAIL" };
            let fault = run.fault.clone().unwrap_or_default();
            vec![word.to_owned(), run.place.to_string(), run.test.clone(), fault]
        };
        output.table(&["", "WHERE", "TEST", ""], runs.iter().map(row).collect());
        for error in &errors {
            output.words(&error.in_full());
        }
    }
    let failed = runs.iter().filter(|run| !run.passed()).count();
    if failed == 0 && errors.is_empty() {
        return Ok(());
    }
    let text = match errors.len() {
        0 => format!("{failed} of {} tests failed", runs.len()),
        n => {
            format!("{failed} of {} tests failed; {n} errors kept others from running", runs.len())
        }
    };
    Err(Failure::new(FAILED, text))
}

/// `policy explain`.
pub(crate) fn explain(
    folder: &Path,
    decision: Decision,
    input: Option<&Path>,
    output: &Output,
) -> Result<(), Failure> {
    let Some(input) = input else {
        let example = policies::example(decision);
        output.one(&example, || format!("{example:#}"));
        return Ok(());
    };
    let policies = policies_of(folder)?;
    let input = read(input)?;
    let engine =
        Engine::load(&policies).map_err(|error| Failure::new(FAILED, error.to_string()))?;
    let explained = engine.explain(decision, &input).map_err(|error| {
        let hint = format!("`sojourn policy explain {decision}` prints an example");
        Failure::new(USAGE, format!("{error}; {hint}"))
    })?;
    let Explained { file, whose: by, answer } = explained;
    let answer = answer.map_err(|failure| {
        let text = "the site gives the safe answer where a policy fails";
        Failure::new(FAILED, format!("{file} ({}) fails: {failure}; {text}", whose(by)))
    })?;
    let mut value = answer_value(&answer);
    (value["decision"], value["file"]) = (json!(decision.name()), json!(file));
    value["whose"] = json!(whose(by));
    output.one(&value, || {
        let mut lines = answer_words(&answer);
        lines.push(format!("decided by {file} ({})", whose(by)));
        lines.join("\n")
    });
    Ok(())
}

fn policies_of(folder: &Path) -> Result<PathBuf, Failure> {
    let policies = Folder::at(absolute(folder)?).policies();
    if policies.exists() {
        return Ok(policies);
    }
    let text = format!("{} holds no site's policies", policies.display());
    Err(Failure::new(NOT_FOUND, text))
}

fn read(path: &Path) -> Result<String, Failure> {
    let read = |source: &mut dyn Read| {
        let mut text = String::new();
        source.take(MAX_INPUT_BYTES).read_to_string(&mut text).map(|_| text)
    };
    let text = match path.to_str() {
        Some("-") => read(&mut std::io::stdin().lock()),
        _ => std::fs::File::open(path).and_then(|mut file| read(&mut file)),
    };
    text.map_err(|error| {
        Failure::new(USAGE, format!("the input {} cannot be read: {error}", path.display()))
    })
}

fn whose(whose: Whose) -> &'static str {
    match whose {
        Whose::Site => "the site's own",
        Whose::Default => "default",
    }
}

fn error_value(error: &PolicyError) -> Value {
    let place = error.place();
    json!({
        "file": error.file(), "line": place.map(|place| place.line),
        "column": place.map(|place| place.column), "error": error.in_full(),
    })
}

fn answer_value(answer: &Answer) -> Value {
    match answer {
        Answer::Verdict(Verdict::Allow) => json!({ "verdict": "allow", "reasons": [] }),
        Answer::Verdict(Verdict::Refuse(why)) => json!({ "verdict": "refuse", "reasons": why }),
        Answer::Shown(offers) => json!({ "shown": offers }),
        Answer::Ranked(ranked) => json!({ "ranked": ranked }),
        Answer::Route(route) => json!({ "mode": route }),
        Answer::Granted(Granted { carrier, rate, weight }) => json!({
            "carrier": carrier, "bytes_per_second": rate, "weight": weight,
        }),
        Answer::Move(why) if why.is_empty() => json!({ "verdict": "stay", "reasons": [] }),
        Answer::Move(why) => json!({ "verdict": "move", "reasons": why }),
    }
}

fn answer_words(answer: &Answer) -> Vec<String> {
    let with = |word: &str, why: &[String]| {
        let reasons = why.iter().map(|reason| format!("  {reason}"));
        std::iter::once(word.to_owned()).chain(reasons).collect()
    };
    match answer {
        Answer::Verdict(Verdict::Allow) => with("allow", &[]),
        Answer::Verdict(Verdict::Refuse(why)) => with("refuse", why),
        Answer::Shown(offers) if offers.is_empty() => with("no offer is shown", &[]),
        Answer::Shown(offers) => {
            let offers: Vec<String> = offers.iter().map(|at| format!("offer {at}")).collect();
            with("shown", &offers)
        }
        Answer::Ranked(ranked) => {
            let one = |ranked: &Ranked| {
                let reasons = ranked.reasons.join(", ");
                match ranked.excluded {
                    true => format!("offer {}: out of the question: {reasons}", ranked.offer),
                    false => format!("offer {}: {}: {reasons}", ranked.offer, ranked.score),
                }
            };
            with("best first", &ranked.iter().map(one).collect::<Vec<_>>())
        }
        Answer::Route(Route::Direct) => with("direct", &[]),
        Answer::Route(Route::Relayed) => with("relayed", &[]),
        Answer::Granted(Granted { carrier, rate, weight }) => {
            let carrier = carrier.map_or("any".to_owned(), |carrier| carrier.to_string());
            let rate = rate.map_or("no limit".to_owned(), |rate| format!("{rate} a second"));
            vec![format!("carrier {carrier}"), format!("rate {rate}"), format!("weight {weight}")]
        }
        Answer::Move(why) if why.is_empty() => with("stay", &[]),
        Answer::Move(why) => with("move", why),
    }
}
