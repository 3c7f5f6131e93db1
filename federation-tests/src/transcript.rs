//! Texts of what happened, as tests compare them with what is kept: to be read, and to tell of each
//! change of the rules, meant or not. `SOJOURN_REGENERATE=1` writes them anew, for whoever reviews
//! the change.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::world::World;

/// Lines shown before the one that differs.
const BEFORE: usize = 12;

/// Compares what has happened in a world with the transcript of this name.
///
/// # Panics
///
/// As [`compare`].
pub fn check(name: &str, world: &World) {
    compare(&format!("transcripts/{name}"), &told(world));
}

/// What has happened in a world, as a transcript.
pub fn told(world: &World) -> String {
    transcript(&world.federation.log)
}

/// Compares a text with what was kept under this name, which begins with the test program's.
///
/// # Panics
///
/// When a line is not as it was.
pub fn compare(name: &str, said: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/{name}.txt"));
    if std::env::var_os("SOJOURN_REGENERATE").is_some() {
        return fs::write(path, said).expect("the tests' folder can be written to");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let (mut was, mut is) = (kept.lines(), said.lines());
    let mut shown = String::new();
    for line in 0.. {
        match (was.next(), is.next()) {
            (None, None) => return,
            (one, other) if one == other => {}
            (one, other) => {
                for before in said.lines().take(line).skip(line.saturating_sub(BEFORE)) {
                    shown.push_str(&format!("    {before}\n"));
                }
                let (one, other) = (one.unwrap_or("(the end)"), other.unwrap_or("(the end)"));
                panic!("{name}, line {}:\n{shown}  - {one}\n  + {other}", line + 1);
            }
        }
    }
}

/// The log without what no one does, with short names for identifiers.
fn transcript(log: &[String]) -> String {
    let mut names = BTreeMap::new();
    let mut text = String::new();
    for line in log.iter().filter(|line| !line.ends_with(": tick")) {
        text.push_str(&named(line, &mut names));
        text.push('\n');
    }
    text
}

/// The line with a number for each identifier, in the order in which they came up.
fn named(line: &str, names: &mut BTreeMap<String, usize>) -> String {
    const DIGITS: usize = 32;
    let mut short = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, from) = rest.split_at(at);
        let length = from.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(from.len());
        let (word, after) = from.split_at(length);
        short.push_str(before);
        if length == DIGITS {
            let next = names.len() + 1;
            let number = *names.entry(word.to_owned()).or_insert(next);
            short.push_str(&format!("#{number}"));
        } else {
            short.push_str(word);
        }
        rest = after;
    }
    short.push_str(rest);
    short
}
