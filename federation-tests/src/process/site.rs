//! One site: its folder, its node's process, and the command line towards it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hypervisor::SimulatedFaults;
use model::{Bytes, PublicKey, SecretKey};
use protocol::{Record, Row, State};
use rusqlite::params;
use rustix::process::Signal;
use serde_json::Value;

use super::program::{Clock, interrupted, signal, sojourn};
use super::proxy::Proxy;
use crate::bench::clock;

/// The port of every site, each at an address of its own.
const PORT: u16 = 7420;
/// How long a node may take to start or to stop.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// Lines of a node's log that a failed test shows.
const TAIL_LINES: usize = 40;

/// A site, whose node runs or not.
pub struct Site {
    name: String,
    folder: PathBuf,
    address: SocketAddr,
    /// The network namespace of its processes, if it has one of its own.
    space: Option<PathBuf>,
    /// The clock of its node, if it is another than this machine's.
    clock: Option<Clock>,
    node: Mutex<Option<Child>>,
    proxy: Option<Proxy>,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

/// What a process has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, of all its threads, since it was started.
    pub cpu: Duration,
    /// Memory that it has now.
    pub memory: Bytes,
    /// The most that it ever had.
    pub most_memory: Bytes,
}

impl Usage {
    /// Of the process with this number (`proc_pid_stat(5)`, `proc_pid_status(5)`), which was not
    /// waited for.
    pub fn of(process: u32) -> Self {
        let read = |name: &str| {
            let path = format!("/proc/{process}/{name}");
            fs::read_to_string(path).expect("a process that was not waited for is there")
        };
        let stat = read("stat");
        // The name, in brackets, is the second field; user and system time are the 14th and 15th.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let ticks = ticks(12).unwrap_or_default() + ticks(13).unwrap_or_default();
        let status = read("status");
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            Bytes(number.unwrap_or_default() << 10)
        };
        let cpu = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Self {
            cpu: Duration::from_secs_f64(cpu),
            memory: kib("VmRSS:"),
            most_memory: kib("VmHWM:"),
        }
    }
}

impl Outcome {
    /// The last line of its output, which is JSON.
    pub fn json(&self) -> Value {
        let line = self.out.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|why| panic!("no JSON ({why}): {self:?}"))
    }

    /// Fails unless it ended with this code and said each of these.
    pub fn says(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "it does not say {word:?}: {self:?}");
        }
        self
    }
}

impl Site {
    pub(super) fn make(
        name: &str,
        folder: PathBuf,
        place: Option<(PathBuf, IpAddr)>,
        flags: &[&str],
    ) -> Self {
        let (space, address) = match place {
            Some((space, address)) => (Some(space), SocketAddr::new(address, PORT)),
            None => (None, free_address()),
        };
        let node = Mutex::default();
        let (name, clock, proxy) = (name.to_owned(), None, None);
        let site = Self { name, folder, address, space, clock, node, proxy };
        let mut init = Command::new(sojourn());
        init.args(["site", "init"]).arg(&site.folder).args(["--name", &site.name]).args(flags);
        init.args(["--listen", &address.to_string()]);
        let made = init.output().expect("the program can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        site
    }

    /// What it calls itself, and others call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its state folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where its node listens, TCP and UDP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets a value of `sojourn.toml`, for the next start.
    pub fn configure(&self, table: &str, key: &str, value: impl Into<toml::Value>) {
        self.edit(|all| {
            let inner = all.entry(table).or_insert_with(|| toml::Table::new().into());
            let inner = inner.as_table_mut().expect("only tables are named");
            inner.insert(key.to_owned(), value.into());
        });
    }

    pub(super) fn set_clock(&mut self, clock: Clock) {
        self.clock = Some(clock);
    }

    fn edit(&self, change: impl FnOnce(&mut toml::Table)) {
        let path = self.folder.join("sojourn.toml");
        let text = fs::read_to_string(&path).expect("a site has its configuration");
        let mut all: toml::Table = text.parse().expect("it is legal");
        change(&mut all);
        fs::write(&path, all.to_string()).expect("it can be written");
    }

    /// What makes the verbs of one of its simulated hosts fail.
    pub fn faults(&self, host: &str) -> SimulatedFaults {
        SimulatedFaults::of(&self.folder.join("hosts").join(host).join("run"))
    }

    /// Gives it a transfer proxy in a process of its own, for all hosts and the library. It runs
    /// at once, and the node knows it from its next start on.
    pub(super) fn add_proxy(&mut self) {
        let key = certs::Identity::load(&self.folder).expect("a site has its key").site_key();
        let proxy = Proxy::make(self.folder.with_extension("proxy"), self.address.ip(), &key);
        let list = toml::Value::Array(vec![proxy.entry().into()]);
        self.edit(|all| all.insert("proxies".to_owned(), list).map_or((), drop));
        proxy.start(self.program());
        self.proxy = Some(proxy);
    }

    /// Its transfer proxy's process, if it has one.
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Starts what has ended of its processes: the node and the proxy.
    pub(super) fn revive(&self) -> bool {
        if let Some(proxy) = &self.proxy
            && proxy.has_died()
        {
            proxy.start(self.program());
        }
        let died = self.has_died();
        if died {
            self.start();
        }
        died
    }

    /// The program, to be run where the site's processes run.
    fn program(&self) -> Command {
        if let Some(clock) = &self.clock {
            return clock.program();
        }
        let Some(space) = &self.space else { return Command::new(sojourn()) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", space.display())).arg(sojourn());
        command
    }

    // The node.

    /// Starts the node, and returns when it serves.
    pub fn start(&self) {
        self.start_with(&[]);
    }

    /// Starts the node with these environment variables.
    pub fn start_with(&self, variables: &[(&str, &str)]) {
        let mut node = self.node();
        assert!(node.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.expect("the log can be written");
        let mut run = self.program();
        run.args(["site", "run"]).arg(&self.folder);
        run.envs(variables.iter().copied());
        run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = run.spawn().expect("the program can be run");
        let until = Instant::now() + START_LIMIT;
        while UnixStream::connect(self.folder.join("admin.sock")).is_err() {
            let ended = child.try_wait().expect("it is our child");
            if ended.is_some() && !variables.is_empty() {
                break; // it was to be killed, and was so at once
            }
            assert!(ended.is_none(), "{} ended: {ended:?}\n{}", self.name, self.log_tail());
            assert!(Instant::now() < until, "{} does not start\n{}", self.name, self.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
        *node = Some(child);
    }

    /// Ends the node as an operator does.
    pub fn stop(&self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{} did not stop well: {status}\n{}", self.name, self.log_tail());
    }

    /// Ends the node as a power cut does. One that does not run stays so.
    pub fn kill(&self) {
        if self.node().is_some() {
            self.signal(Signal::KILL);
            self.wait();
        }
    }

    /// Kills the node and starts it again.
    pub fn crash(&self) {
        self.kill();
        self.start();
    }

    /// Has the node read its policies again.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Holds the node: it answers nothing, and its connections stay open.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a held node go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether its node was started and is not there any more.
    pub fn is_gone(&self) -> bool {
        self.node().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// Whether its node was started and is not there any more. It is taken note of.
    pub fn has_died(&self) -> bool {
        let gone = self.is_gone();
        if gone {
            *self.node() = None;
        }
        gone
    }

    /// Whether its node is held.
    pub fn is_frozen(&self) -> bool {
        let node = self.node();
        let Some(child) = node.as_ref() else { return false };
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        // The state comes after the name, which stands in brackets (proc_pid_stat(5)).
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    }

    /// What its node, which runs, has used since it was started.
    pub fn usage(&self) -> Usage {
        Usage::of(self.node().as_ref().expect("the node was started").id())
    }

    /// The process of its node, which runs.
    pub fn process_id(&self) -> u32 {
        self.node().as_ref().expect("the node was started").id()
    }

    /// How many files, sockets among them, its node has open.
    pub fn descriptors(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.process_id()));
        open.expect("a process that was not waited for is there").count()
    }

    fn signal(&self, what: Signal) {
        signal(self.node().as_ref().expect("the node was started"), what);
    }

    fn wait(&self) -> ExitStatus {
        let mut child = self.node().take().expect("the node was started");
        let until = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                return status;
            }
            if Instant::now() > until {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{} did not end\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn node(&self) -> MutexGuard<'_, Option<Child>> {
        self.node.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    // The command line.

    /// Runs a command towards this site, with JSON output.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(sojourn());
        command.arg("--site").arg(&self.folder).args(["-o", "json"]).args(arguments);
        command.stdin(Stdio::null());
        finish(command)
    }

    /// Runs a command that must succeed, and returns the last line of its output.
    pub fn done(&self, arguments: &[&str]) -> Value {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, 0, "{}: {arguments:?}: {}", self.name, outcome.err);
        outcome.json()
    }

    /// Adds a host with room for `vms` small VMs.
    pub fn host(&self, name: &str, vms: u32) {
        let (cpus, memory) = (vms.to_string(), format!("{}M", 128 * vms));
        self.done(&["host", "add", name, "--cpus", &cpus, "--memory", &memory]);
    }

    /// The VMs on whose path it stands, by name.
    pub fn vms(&self) -> Vec<String> {
        let vms = self.done(&["vm", "list"]);
        let vms = vms.as_array().expect("a list");
        vms.iter().map(|vm| vm["name"].as_str().expect("a name").to_owned()).collect()
    }

    // The files.

    /// Every folder with files of a VM, on hosts and in the library.
    pub fn files_of(&self, vm: &str) -> Vec<PathBuf> {
        let hosts = super::guest::entries(&self.folder.join("hosts"));
        let places = hosts.iter().map(|host| host.join("vms"));
        let places = places.chain([self.folder.join("library")]);
        let found = places.flat_map(|place| super::guest::entries(&place));
        let of_vm = |path: &PathBuf| path.to_str().is_some_and(|path| path.contains(vm));
        found.filter(of_vm).collect()
    }

    /// Every folder of a stay on its hosts: of files, and of a guest that runs.
    pub fn stays(&self) -> Vec<PathBuf> {
        let hosts = super::guest::entries(&self.folder.join("hosts"));
        let places = hosts.iter().flat_map(|host| [host.join("vms"), host.join("run")]);
        places.flat_map(|place| super::guest::entries(&place)).collect()
    }

    /// Every row of its journal.
    pub fn rows(&self) -> Vec<Row> {
        let rows = || {
            let journal = self.journal()?;
            let mut rows = journal.prepare("SELECT body FROM journal ORDER BY seq")?;
            let rows = rows.query_map([], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<Vec<String>>>()
        };
        let rows = rows().unwrap_or_else(|why| panic!("{}: its journal: {why}", self.name));
        let read = |row: String| serde_json::from_str(&row).expect("a row of this release");
        rows.into_iter().map(read).collect()
    }

    /// Writes rows to its journal with the private keys that they speak of, as its node would, which
    /// must not run: for sites that would take too long to come to this by themselves.
    pub fn remember(&self, rows: &[Row], keys: &[SecretKey]) {
        let write = || {
            let mut journal = rusqlite::Connection::open(self.folder.join("journal.db"))?;
            let step = journal.transaction()?;
            let last = "SELECT ifnull(max(seq), 0) FROM journal";
            let last = step.query_row(last, [], |row| row.get::<_, i64>(0))?;
            let mut len = u64::try_from(last).unwrap_or_default();
            for row in rows {
                len = row.place_after(len);
                let [seq, at] =
                    [len, clock().0].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
                let Record { kind, version, body } = Record::of(row);
                step.prepare_cached("INSERT INTO journal VALUES (?1, ?2, ?3, ?4, ?5)")?
                    .execute(params![seq, at, kind, version, body])?;
            }
            for key in keys {
                step.prepare_cached("INSERT INTO keys VALUES (?1, ?2)")?
                    .execute(params![key.public().0, *key.seed()])?;
            }
            step.commit()
        };
        let written: rusqlite::Result<()> = write();
        written.unwrap_or_else(|why| panic!("{}: its journal: {why}", self.name));
    }

    /// The private keys that its node keeps: those of its VMs, transfers and migrations.
    pub fn keys(&self) -> BTreeMap<PublicKey, SecretKey> {
        let keys = || {
            let journal = self.journal()?;
            let mut keys = journal.prepare("SELECT seed FROM keys")?;
            let keys = keys.query_map([], |row| row.get(0))?;
            keys.collect::<rusqlite::Result<Vec<[u8; 32]>>>()
        };
        let keys = keys().unwrap_or_else(|why| panic!("{}: its keys: {why}", self.name));
        let keys = keys.iter().map(SecretKey::from_seed);
        keys.map(|key| (key.public(), key)).collect()
    }

    /// The names and keys of its peers.
    pub fn peers(&self) -> Vec<(String, Vec<u8>)> {
        let peers = || {
            let journal = self.journal()?;
            let mut peers = journal.prepare("SELECT name, key FROM peers ORDER BY name")?;
            let peers = peers.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            peers.collect::<rusqlite::Result<Vec<_>>>()
        };
        peers().unwrap_or_else(|why| panic!("{}: its peers: {why}", self.name))
    }

    fn journal(&self) -> rusqlite::Result<rusqlite::Connection> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let path = self.folder.join("journal.db");
        let journal = rusqlite::Connection::open_with_flags(path, flags)?;
        journal.busy_timeout(Duration::from_secs(10))?;
        Ok(journal)
    }

    /// What its journal adds up to.
    pub fn state(&self) -> State {
        let mut state = State::default();
        for row in self.rows() {
            state.apply(&row).unwrap_or_else(|why| panic!("{}: its journal: {why}", self.name));
        }
        state
    }

    fn log(&self) -> PathBuf {
        self.folder.with_extension("log")
    }

    /// The whole log of its node, over all starts.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<String> = text.lines().map(in_words).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// A line of a node's log, for people.
fn in_words(line: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
    let time = value["timestamp"].as_str().and_then(|time| time.get(11..23)).unwrap_or_default();
    format!("{time} {} {}", value["level"].as_str().unwrap_or_default(), value["fields"])
}

/// Runs a command to its end, and never longer than a command may take.
pub(super) fn finish(mut command: Command) -> Outcome {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program can be run");
    let (mut out, mut err) =
        (child.stdout.take().expect("it is piped"), child.stderr.take().expect("it is piped"));
    let read = |from: &mut dyn std::io::Read| {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    std::thread::scope(|scope| {
        let out = scope.spawn(move || read(&mut out));
        let err = scope.spawn(move || read(&mut err));
        let until = Instant::now() + COMMAND_LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                break Some(status);
            }
            if Instant::now() > until || interrupted() {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let out = out.join().expect("reading does not panic");
        let err = err.join().expect("reading does not panic");
        let Some(status) = status else { panic!("{command:?} does not end: {out}\n{err}") };
        Outcome { code: status.code().unwrap_or(-1), out, err }
    })
}

/// An address of the loopback network that nobody uses: 127.0.0.0/8 is all this machine's.
fn free_address() -> SocketAddr {
    let free = |at: &SocketAddr| TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok();
    let random = std::iter::repeat_with(|| {
        let [a, b, c] = rand::random::<[u8; 3]>();
        SocketAddr::from(([127, a, b, c.clamp(1, 254)], PORT))
    });
    random.take(100).find(free).expect("one of sixteen million addresses is free")
}
