//! A site's transfer proxy in a process of its own.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::SiteKey;
use rustix::process::Signal;

use super::program::{signal, sojourn};
use super::site::finish;

/// Where the node comes in, TCP, and other proxies, UDP.
const CONTROL: u16 = 7421;
const DATA: u16 = 7422;

/// The proxy, which runs or not.
pub struct Proxy {
    folder: PathBuf,
    at: IpAddr,
    key: String,
    process: Mutex<Option<Child>>,
}

impl Proxy {
    pub(super) fn make(folder: PathBuf, at: IpAddr, node: &SiteKey) -> Self {
        let mut init = Command::new(sojourn());
        init.args(["-o", "json", "proxy", "init"]).arg(&folder);
        init.args(["--listen", &SocketAddr::new(at, DATA).to_string()]);
        init.args(["--control", &SocketAddr::new(at, CONTROL).to_string()]);
        init.args(["--node", &node.to_string()]);
        let made = finish(init);
        assert_eq!(made.code, 0, "{made:?}");
        let key = made.json()["key"].as_str().expect("a proxy has a key").to_owned();
        Self { folder, at, key, process: Mutex::default() }
    }

    /// Its entry in the node's configuration.
    pub(super) fn entry(&self) -> toml::Table {
        let address = |port| SocketAddr::new(self.at, port).to_string();
        let lines = [
            ("name", "apart".to_owned()),
            ("control", address(CONTROL)),
            ("data", address(DATA)),
            ("key", self.key.clone()),
        ];
        lines.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
    }

    pub(super) fn start(&self, mut program: Command) {
        let log = File::options().create(true).append(true).open(self.folder.join("log"));
        program.args(["proxy", "run"]).arg(&self.folder);
        program.stdin(Stdio::null()).stdout(Stdio::null());
        program.stderr(log.expect("the log can be written"));
        *self.process() = Some(program.spawn().expect("the program can be run"));
    }

    /// Ends it as a power cut does. One that does not run stays so.
    pub fn kill(&self) {
        if let Some(mut process) = self.process().take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, what: Signal) {
        signal(self.process().as_ref().expect("the proxy was started"), what);
    }

    /// Whether it was started and is not there any more.
    pub(super) fn has_died(&self) -> bool {
        let mut process = self.process();
        process.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
