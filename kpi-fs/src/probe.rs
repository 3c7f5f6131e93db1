//! KPIs of an application that cannot be changed: a command's output or a page's text, written to
//! a file at an interval.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::csv::LINE_MAX;

/// Longest text that is taken from a command or a page.
const TEXT_MAX: u64 = 2 * LINE_MAX as u64;

/// Longest that a command or a page is waited for, if the interval is longer.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How often a command is looked after.
const LOOK: Duration = Duration::from_millis(10);

/// Where the values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A program and its arguments; what it prints is taken if it succeeds.
    Command(Vec<String>),
    /// A page, read by plain HTTP; what it says is taken if its status is 200.
    Url(String),
}

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Where the values come from.
    pub what: What,
    /// The time from the start of one look to the start of the next.
    pub every: Duration,
    /// The file, written anew each time.
    pub into: PathBuf,
    /// A line before the values.
    pub header: Option<String>,
}

/// Why a look came to nothing. The next one is made all the same.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The command cannot be run.
    #[error("the command cannot be run: {0}")]
    Run(#[source] io::Error),
    /// It has failed.
    #[error("the command has failed: {0}")]
    Failed(std::process::ExitStatus),
    /// It takes too long, and was killed.
    #[error("there was no end within {0:?}")]
    Late(Duration),
    /// It says too much.
    #[error("it says more than {TEXT_MAX} bytes")]
    Large,
    /// The page cannot be read.
    #[error("the page cannot be read: {0}")]
    Page(#[source] Box<ureq::Error>),
    /// The file refuses the text.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Probe {
    /// Looks at every interval, `times` times or for ever. What fails is told to the log.
    pub fn run(&self, times: Option<u64>) {
        let mut next = Instant::now();
        let mut done = 0;
        while times.is_none_or(|times| done < times) {
            if let Err(error) = self.look() {
                tracing::warn!("no value: {error}");
            }
            done += 1;
            if times == Some(done) {
                return;
            }
            // A look that took longer than the interval does not make the next ones hurry.
            next = (next + self.every).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    /// Looks once, and writes.
    pub fn look(&self) -> Result<(), ProbeError> {
        let limit = self.every.min(WAIT_MAX);
        let text = match &self.what {
            What::Command(words) => run(words, limit)?,
            What::Url(url) => get(url, limit)?,
        };
        let mut whole = Vec::new();
        if let Some(header) = &self.header {
            whole.extend_from_slice(header.as_bytes());
            whole.push(b'\n');
        }
        whole.extend_from_slice(&text);
        self.write(&whole).map_err(|source| ProbeError::Write { path: self.into.clone(), source })
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let mut file = std::fs::File::create(&self.into)?;
        io::Write::write_all(&mut file, text)?;
        // It is closed when dropped, which tells nobody that it was refused.
        file.sync_all()
    }
}

fn get(url: &str, limit: Duration) -> Result<Vec<u8>, ProbeError> {
    let page = |error| ProbeError::Page(Box::new(error));
    let config = ureq::Agent::config_builder().timeout_global(Some(limit)).build();
    let mut answer = ureq::Agent::new_with_config(config).get(url).call().map_err(page)?;
    let body = answer.body_mut().with_config().limit(TEXT_MAX);
    body.read_to_vec().map_err(page)
}

fn run(words: &[String], limit: Duration) -> Result<Vec<u8>, ProbeError> {
    let (program, arguments) = words.split_first().ok_or_else(|| {
        ProbeError::Run(io::Error::new(io::ErrorKind::InvalidInput, "no command is named"))
    })?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    // A group of its own, so that what it starts ends with it.
    let child = command.process_group(0).spawn().map_err(ProbeError::Run)?;
    let mut group = Group(child);
    let out = group.0.stdout.take().expect("it was asked for");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        out.take(TEXT_MAX + 1).read_to_end(&mut text).map(|_| text)
    });
    let end = Instant::now() + limit;
    while !group.has_ended().map_err(ProbeError::Run)? {
        if Instant::now() >= end {
            return Err(ProbeError::Late(limit));
        }
        std::thread::sleep(LOOK);
    }
    let status = group.end().map_err(ProbeError::Run)?;
    let text = reader.join().expect("reading does not panic").map_err(ProbeError::Run)?;
    if !status.success() {
        return Err(ProbeError::Failed(status));
    }
    if text.len() as u64 > TEXT_MAX {
        return Err(ProbeError::Large);
    }
    Ok(text)
}

/// A command and what it started, which end when this goes.
struct Group(Child);

impl Group {
    fn number(&self) -> Pid {
        i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process's number")
    }

    /// Whether the command has ended. It is not waited for, so that its number is still its own.
    fn has_ended(&self) -> io::Result<bool> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.number()), look)?.is_some())
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        // There is nobody to kill if all have ended in order.
        let _ = kill_process_group(self.number(), Signal::KILL);
        self.0.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // After the first time it is not ours to kill.
        if matches!(self.0.try_wait(), Ok(None)) {
            drop(self.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    fn command(script: &str) -> What {
        What::Command(["sh", "-c", script].map(str::to_owned).to_vec())
    }

    fn look(what: What, every: Duration) -> Result<String, ProbeError> {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("value");
        let header = Some("users".to_owned());
        Probe { what, every, into: into.clone(), header }.look()?;
        Ok(std::fs::read_to_string(into).unwrap())
    }

    #[test]
    fn what_a_command_prints_is_written_and_what_fails_is_not() {
        let minute = Duration::from_secs(60);
        assert_eq!(look(command("echo 5"), minute).unwrap(), "users\n5\n");
        let failed = look(command("echo 5; exit 3"), minute);
        assert!(matches!(failed, Err(ProbeError::Failed(status)) if status.code() == Some(3)));
        let none = look(What::Command(vec!["/no/such/program".into()]), minute);
        assert!(matches!(none, Err(ProbeError::Run(_))));
        let large = look(command("head -c 200000 /dev/zero"), minute);
        assert!(matches!(large, Err(ProbeError::Large | ProbeError::Failed(_))), "{large:?}");
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", note.display());
        let late = look(command(&script), Duration::from_secs(1));
        assert!(matches!(late, Err(ProbeError::Late(_))), "{late:?}");
        let pid = std::fs::read_to_string(note).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        // A killed process may be there as a zombie until somebody has waited for it.
        let is_there = || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            status.is_ok_and(|status| !status.contains(") Z "))
        };
        while is_there() {
            assert!(Instant::now() < deadline, "it still runs");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_a_page_says_is_written_if_its_status_is_good() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let good = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n7\n\r\n0\r\n\r\n";
            for answer in [good, "HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n9\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let page = || look(What::Url(format!("http://{address}/kpi")), Duration::from_secs(20));
        assert_eq!(page().unwrap(), "users\n7\n");
        assert!(matches!(page(), Err(ProbeError::Page(_))));
        server.join().unwrap();
    }
}
