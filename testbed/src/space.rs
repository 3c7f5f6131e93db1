//! A network namespace without a name, which leaves nothing behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a namespace may take to be made.
const MAKE_LIMIT: Duration = Duration::from_secs(10);

/// A network namespace.
///
/// It is held by a process that waits in it for the end of its input: a pipe from this process,
/// which the kernel closes when this process ends, however it ends.
/// So the namespace goes when that, and every process that was started in it, has ended.
pub struct Space {
    holder: Child,
}

impl Space {
    /// Makes one. The error says what the machine lacks.
    pub fn new() -> Result<Self, String> {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C is for this process, which may have something to end in the namespace first.
        command.process_group(0);
        let holder = command.spawn().map_err(|why| format!("unshare cannot be run: {why}"))?;
        let mut space = Self { holder };
        let link = |of: &str| fs::read_link(format!("/proc/{of}/ns/net"));
        let own = link("thread-self").map_err(|why| format!("the own network namespace: {why}"))?;
        let until = Instant::now() + MAKE_LIMIT;
        let number = space.number().to_string();
        // One that has ended is in no namespace any more.
        while link(&number).map_or(true, |its| its == own) {
            let ended = space.holder.try_wait().map_err(|why| why.to_string())?;
            if ended.is_some() || Instant::now() > until {
                return Err("network namespaces cannot be made: are you root?".to_owned());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(space)
    }

    /// The number of a process in it, as `ip link … netns` takes it.
    pub fn number(&self) -> u32 {
        self.holder.id()
    }

    /// It, as a file that can be entered.
    pub fn file(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.number()).into()
    }

    /// A command that runs a program in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.file().display())).arg("--").arg(program);
        command
    }

    /// Runs a program with its arguments in it to its end, and tells what it printed; the error is
    /// what it complained of.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        let failed = |why: String| format!("{}: {}", words.join(" "), why.trim());
        let done = self.command(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
        let done = done.map_err(|why: io::Error| failed(why.to_string()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match done.status.success() {
            true => Ok(text(&done.stdout)),
            false => Err(failed(text(&done.stderr))),
        }
    }

    /// Does something in it, in a thread of its own. Sockets that are made there stay in it,
    /// whoever uses them later.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        let failed = |why: io::Error| format!("the network namespace cannot be entered: {why}");
        let space = File::open(self.file()).map_err(failed)?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(space.as_fd(), kind).map(|()| work())
            });
            let done = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done.map_err(|why| failed(why.into()))
        })
    }

    /// The processes in it, without the one that holds it.
    pub fn processes(&self) -> Vec<Pid> {
        let Ok(its) = fs::read_link(self.file()) else { return Vec::new() };
        let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let holder = i32::try_from(self.number()).ok();
        numbers
            .filter(|number| Some(*number) != holder)
            .filter(|number| {
                fs::read_link(format!("/proc/{number}/ns/net")).is_ok_and(|link| link == its)
            })
            .filter_map(Pid::from_raw)
            .collect()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
