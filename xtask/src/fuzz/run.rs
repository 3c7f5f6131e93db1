//! One target, run until its time is over or nothing new comes.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::FOLDER;
use crate::shell::root;

/// An input that takes longer than this is a finding, in seconds.
const INPUT_SECONDS: u64 = 20;
/// A target that takes more memory than this is a finding, in MiB.
const MEMORY_MIB: u64 = 2048;
/// The longest input that is made up, in bytes.
const INPUT_BYTES: u64 = 16 << 10;

/// For how long a target runs.
pub(super) struct Bounds {
    /// At most.
    pub(super) whole: Duration,
    /// Without a new edge.
    pub(super) quiet: Duration,
}

/// What a run brought.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) tried: u64,
    /// Edges of the control flow that some input reached, as libFuzzer counts them (`cov`).
    pub(super) edges: u64,
    pub(super) time: Duration,
    pub(super) ended: String,
    pub(super) findings: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tried, edges, time, ended, findings } = self;
        let seconds = time.as_secs();
        write!(f, "{tried} inputs, {edges} edges, {seconds} s, {ended}, {findings} findings")
    }
}

impl Figures {
    pub(super) fn per_second(&self) -> u64 {
        self.tried / self.time.as_secs().max(1)
    }

    fn path(target: &str) -> PathBuf {
        root().join(FOLDER).join("figures").join(target)
    }

    /// Keeps them for the table, which may be wanted later.
    pub(super) fn keep(&self, target: &str) -> Result<()> {
        let Self { tried, edges, time, ended, findings } = self;
        let path = Self::path(target);
        fs::create_dir_all(path.parent().expect("a file lies in a folder"))?;
        let time = time.as_secs();
        Ok(fs::write(path, format!("{tried} {edges} {time} {findings} {ended}"))?)
    }

    /// Those of the last run, if there was one.
    pub(super) fn kept(target: &str) -> Result<Option<Self>> {
        let Ok(text) = fs::read_to_string(Self::path(target)) else { return Ok(None) };
        let mut parts = text.splitn(5, ' ');
        let mut number = || parts.next().unwrap_or_default().parse::<u64>();
        let (tried, edges, time, findings) = (number()?, number()?, number()?, number()?);
        let ended = parts.next().unwrap_or_default().to_owned();
        let (time, findings) = (Duration::from_secs(time), usize::try_from(findings)?);
        Ok(Some(Self { tried, edges, time, ended, findings }))
    }
}

/// Runs a target of the folder `programs`. Its inputs, and what they begin with, lie where
/// [`super`] says; temporary files go to `scratch`.
pub(super) fn run(
    target: &str,
    programs: &Path,
    scratch: &Path,
    bounds: &Bounds,
) -> Result<Figures> {
    let work = root().join(FOLDER).join("work").join(target);
    let artifacts = root().join(FOLDER).join("artifacts").join(target);
    let _ = fs::remove_dir_all(&artifacts);
    for folder in [&work, &artifacts] {
        fs::create_dir_all(folder)?;
    }
    let kept = [root().join("fuzz/corpus"), root().join(FOLDER).join("seeds")];
    let kept = kept.into_iter().map(|folder| folder.join(target)).filter(|folder| folder.is_dir());
    let mut command = Command::new(programs.join(target));
    command
        .arg(format!("-max_total_time={}", bounds.whole.as_secs()))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-max_len={INPUT_BYTES}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-reload=0"]);
    let dictionary = root().join("fuzz/dictionaries").join(format!("{target}.dict"));
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(&work).args(kept).env("TMPDIR", scratch);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let watched = watch(&mut child, begun, bounds);
    if watched.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let (mut figures, quiet, last_words) = watched?;
    figures.time = begun.elapsed();
    figures.findings = move_findings(target, &artifacts)?;
    if figures.findings > 0 {
        println!("{target}: a finding:\n{}", last_words.join("\n"));
    }
    figures.ended = match (figures.findings, quiet) {
        (0, true) => format!("{} min without a new edge", bounds.quiet.as_secs() / 60),
        (0, false) if status.success() => "time over".to_owned(),
        (0, false) => bail!("ended with {status}:\n{}", last_words.join("\n")),
        _ => "a finding".to_owned(),
    };
    Ok(figures)
}

/// Reads what libFuzzer says until it ends. Gives the figures, whether it was stopped because
/// nothing new came, and its last words.
fn watch(
    child: &mut Child,
    begun: Instant,
    bounds: &Bounds,
) -> Result<(Figures, bool, Vec<String>)> {
    const LAST_WORDS: usize = 60;
    let stderr = child.stderr.take().expect("it was asked for");
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        // What a target prints need not be text.
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut figures = Figures::default();
    let mut last_new = begun;
    let mut quiet = false;
    let mut last_words = Vec::new();
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                if let Some(progress) = Progress::read(&line) {
                    figures.tried = figures.tried.max(progress.tried);
                    if progress.edges > figures.edges {
                        figures.edges = progress.edges;
                        last_new = Instant::now();
                    }
                } else if let Some(tried) = line.strip_prefix("stat::number_of_executed_units:") {
                    figures.tried = tried.trim().parse().unwrap_or(figures.tried);
                }
                last_words.push(line);
                if last_words.len() > LAST_WORDS {
                    last_words.remove(0);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok((figures, quiet, last_words)),
        }
        if !quiet && last_new.elapsed() >= bounds.quiet {
            quiet = true;
            // It then tells its final figures.
            let number = child.id().to_string();
            Command::new("kill").args(["-INT", &number]).status().context("cannot run kill")?;
        }
    }
}

/// What a line of libFuzzer's says, such as
/// `#1234  NEW    cov: 210 ft: 400 corp: 12/1Kb lim: 4 exec/s: 617 rss: 40Mb L: 3/4 MS: 1 Flip-`.
struct Progress {
    tried: u64,
    edges: u64,
}

impl Progress {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix('#')?.split_whitespace();
        let tried = words.next()?.parse().ok()?;
        words.find(|word| *word == "cov:")?;
        Some(Self { tried, edges: words.next()?.parse().ok()? })
    }
}

/// Moves what broke a promise to where it is kept. What was merely slow is no finding.
fn move_findings(target: &str, artifacts: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(artifacts)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("slow-unit-") {
            continue;
        }
        let findings = root().join("fuzz/findings").join(target);
        fs::create_dir_all(&findings)?;
        fs::copy(entry.path(), findings.join(name))?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_libfuzzer_is_read_and_other_lines_are_passed_over() {
        let line = "#1234\tREDUCE cov: 210 ft: 400 corp: 12/1Kb lim: 4 exec/s: 617 rss: 40Mb";
        let progress = Progress::read(line).unwrap();
        assert_eq!((progress.tried, progress.edges), (1234, 210));
        for other in ["", "#", "#x cov: 1", "# cov: 5", "#12\tcov:", "INFO: seed corpus: files: 3"]
        {
            assert!(Progress::read(other).is_none(), "{other:?}");
        }
    }
}
