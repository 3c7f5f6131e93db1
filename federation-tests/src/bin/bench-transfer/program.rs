//! Programs that this one starts: they end with it, and tell what processor time they took.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use federation_tests::bench::Failure;
use rustix::process::{Pid, Signal, kill_process};

/// How long a program may take to begin, and to end when it was asked to.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether something has happened that nobody tells.
const LOOK: Duration = Duration::from_millis(1);

/// A program that runs. It is killed when this goes.
pub(crate) struct Program {
    child: Child,
    name: String,
}

impl Program {
    /// Starts `command`, which is called `name` where something goes wrong.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self, Failure> {
        let child = command.spawn().map_err(|why| format!("{name} cannot be run: {why}"))?;
        Ok(Self { child, name: name.to_owned() })
    }

    fn number(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended well: the processor seconds that it took. None if it still runs at
    /// `until`, and then it is killed.
    pub(crate) fn ended(mut self, until: Instant) -> Result<Option<f64>, Failure> {
        let before = seconds_of_ended()?;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    return Err(format!("{} failed: {status}", self.name).into());
                }
                return Ok(Some(seconds_of_ended()? - before));
            }
            std::thread::sleep(LOOK);
        }
        Ok(None)
    }

    /// Ends a server as soon as the processes that it started have ended: the processor seconds
    /// that it and they took.
    pub(crate) fn stop(mut self) -> Result<f64, Failure> {
        let until = Instant::now() + PATIENCE;
        let children = format!("/proc/{0}/task/{0}/children", self.number());
        while std::fs::read_to_string(&children).is_ok_and(|children| !children.is_empty())
            && Instant::now() < until
        {
            std::thread::sleep(LOOK);
        }
        let before = seconds_of_ended()?;
        let pid = i32::try_from(self.number()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a child has a number"), Signal::TERM)?;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > until {
                return Err(format!("{} does not end", self.name).into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(seconds_of_ended()? - before)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process of this same program that is told what to do, and tells what has happened, by lines.
pub(crate) struct Teller {
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    program: Program,
}

impl Teller {
    /// Starts one, and waits until it is `ready`: what it says behind that word.
    pub(crate) fn start(
        name: &str,
        command: &mut Command,
        order: &str,
    ) -> Result<(Self, String), Failure> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = Program::start(name, command)?;
        let output = program.child.stdout.take().expect("it is piped");
        let input = program.child.stdin.take();
        let (sender, lines) = channel();
        // It ends with the program's output.
        std::thread::spawn(move || {
            let told = BufReader::new(output).lines().map_while(Result::ok);
            told.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
        });
        let mut teller = Self { input, lines, program };
        teller.say(order)?;
        let said = teller.hear("ready", Instant::now() + PATIENCE)?;
        let said = said.ok_or_else(|| format!("{name} does not get ready"))?;
        Ok((teller, said))
    }

    /// Tells it a line.
    pub(crate) fn say(&mut self, line: &str) -> Result<(), Failure> {
        let input = self.input.as_mut().expect("it is open until the end");
        Ok(writeln!(input, "{line}").and_then(|()| input.flush())?)
    }

    /// What it says behind `word`, as soon as it says that; none if it has not by then.
    /// What else it says is passed over, except why it stumbled or failed.
    pub(crate) fn hear(&mut self, word: &str, until: Instant) -> Result<Option<String>, Failure> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => match line.split_once(' ').unwrap_or((&line, "")) {
                    (said, rest) if said == word => return Ok(Some(rest.to_owned())),
                    ("failed", why) => return Err(format!("{}: {why}", self.program.name).into()),
                    ("stumbled", why) => println!("    {} stumbled: {why}", self.program.name),
                    _ => {}
                },
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("{} has ended too early", self.program.name).into());
                }
            }
        }
    }

    /// Asks it for a number by the word that comes before it.
    pub(crate) fn ask(&mut self, word: &str) -> Result<u64, Failure> {
        self.say(word)?;
        let said = self.hear(word, Instant::now() + PATIENCE)?;
        Ok(said.ok_or_else(|| format!("{} does not answer", self.program.name))?.parse()?)
    }

    /// Bytes of memory that it has.
    pub(crate) fn resident_bytes(&self) -> Result<u64, Failure> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.program.number()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.ok_or("no VmRSS in /proc/PID/status")? << 10)
    }

    /// Processor seconds that it has taken so far.
    pub(crate) fn seconds(&self) -> Result<f64, Failure> {
        seconds(&format!("/proc/{}/stat", self.program.number()), [11, 12])
    }

    /// Closes its input, upon which it ends: the processor seconds that it took.
    pub(crate) fn end(mut self) -> Result<f64, Failure> {
        self.input = None;
        let Self { program, .. } = self;
        let name = program.name.clone();
        Ok(program.ended(Instant::now() + PATIENCE)?.ok_or(format!("{name} does not end"))?)
    }
}

/// Processor seconds of all processes that were started here, or by those, and waited for.
fn seconds_of_ended() -> Result<f64, Failure> {
    seconds("/proc/self/stat", [13, 14])
}

/// The sum of two fields of `stat` (proc(5)), counted from 0 behind the program's name.
fn seconds(path: &str, fields: [usize; 2]) -> Result<f64, Failure> {
    let stat = std::fs::read_to_string(path)?;
    let (_, rest) = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?;
    let numbers: Vec<&str> = rest.split_whitespace().collect();
    let ticks: u64 = fields.iter().filter_map(|at| numbers.get(*at)?.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Waits until `holds`.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > until {
            return Err(format!("waited in vain: {what}").into());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
