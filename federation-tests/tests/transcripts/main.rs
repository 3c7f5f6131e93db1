//! What sites say, write and do in the course of a VM's life, word for word and by the millisecond.
//!
//! A transcript is to be read: it is how the rules look from outside. A change of the rules that is
//! meant changes transcripts; `SOJOURN_REGENERATE=1` writes them anew, for whoever reviews the
//! change. One that is not meant fails here, whatever else it leaves as it was.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

mod lies;
mod stories;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use federation_tests::world::World;

/// Lines shown before the one that differs.
const BEFORE: usize = 12;

/// Compares what has happened in a world with the transcript of this name.
fn check(name: &str, world: &World) {
    compare(name, &transcript(&world.federation.log));
}

/// Compares a text with what was kept under this name.
fn compare(name: &str, said: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let path = folder.join(format!("{name}.txt"));
    if std::env::var_os("SOJOURN_REGENERATE").is_some() {
        return fs::write(path, said).unwrap();
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
                    writeln!(shown, "    {before}").unwrap();
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
        writeln!(text, "{}", named(line, &mut names)).unwrap();
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
            write!(short, "#{number}").unwrap();
        } else {
            short.push_str(word);
        }
        rest = after;
    }
    short.push_str(rest);
    short
}
