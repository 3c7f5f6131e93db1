//! The corpora that are kept: few and small inputs that reach all that the many reached.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::FOLDER;
use crate::shell::root;

/// The largest input that is kept, in bytes.
const MAX_INPUT_BYTES: u64 = 16 << 10;
/// The most that is kept for one target, in bytes.
const MAX_TARGET_BYTES: u64 = 64 << 10;
/// The most inputs that are kept for one target.
const MAX_INPUTS: usize = 128;

fn kept(target: &str) -> PathBuf {
    root().join("fuzz/corpus").join(target)
}

/// Replaces a target's kept corpus by the fewest inputs, of the work folder and of the kept ones,
/// that reach the same edges.
pub(super) fn minimise(target: &str, programs: &Path, scratch: &Path) -> Result<()> {
    let folder = root().join(FOLDER);
    let chosen = folder.join("chosen").join(target);
    let _ = fs::remove_dir_all(&chosen);
    fs::create_dir_all(&chosen)?;
    let sources =
        [kept(target), folder.join("seeds").join(target), folder.join("work").join(target)];
    let mut command = Command::new(programs.join(target));
    // Edges alone count here, not how often each is passed.
    command.args(["-set_cover_merge=1", "-use_counters=0"]).arg(&chosen);
    command.args(sources.iter().filter(|folder| folder.is_dir())).env("TMPDIR", scratch);
    let done = command.stdin(Stdio::null()).output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let last: Vec<&str> = said.lines().rev().take(20).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!("minimising ended with {}:\n{}", done.status, last.join("\n"));
    }
    // libFuzzer writes those first that reach most; as many are kept as there is room for.
    let mut inputs = vec![];
    for (size, path) in files(&chosen)? {
        inputs.push((fs::metadata(&path)?.modified()?, Reverse(size), path));
    }
    inputs.sort();
    let _ = fs::remove_dir_all(kept(target));
    fs::create_dir_all(kept(target))?;
    let mut total = 0;
    let mut count = 0;
    for (_, Reverse(size), path) in inputs {
        if size > MAX_INPUT_BYTES || total + size > MAX_TARGET_BYTES || count == MAX_INPUTS {
            continue;
        }
        fs::copy(&path, kept(target).join(path.file_name().expect("a file has a name")))?;
        (total, count) = (total + size, count + 1);
    }
    Ok(())
}

/// How many inputs are kept, and their bytes, in words.
pub(super) fn size(target: &str) -> Result<String> {
    if !kept(target).is_dir() {
        return Ok("none".to_owned());
    }
    let files = files(&kept(target))?;
    let bytes: u64 = files.iter().map(|(size, _)| size).sum();
    Ok(format!("{} of {} KiB", files.len(), bytes.div_ceil(1024)))
}

fn files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = vec![];
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    Ok(files)
}
