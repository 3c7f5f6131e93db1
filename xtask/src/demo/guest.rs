//! What the guest says on its console.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::sites::Sites;

/// One line of the guest's: `sojourn-guest counter=17 uptime=9 boot=ab12cd34 since=8`.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) text: String,
    /// On its disk.
    pub(super) counter: u64,
    /// In its memory: lines since it booted.
    pub(super) uptime: u64,
    /// In its memory: random, made at boot.
    pub(super) boot: String,
    /// In its memory: the counter that it found at boot.
    since: u64,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix("sojourn-guest counter=")?;
        let mut words = rest.split(' ');
        let counter = words.next()?.parse().ok()?;
        let mut value = |name: &str| words.next()?.strip_prefix(name).map(str::to_owned);
        let uptime = value("uptime=")?.parse().ok()?;
        let boot = value("boot=")?;
        let since = value("since=")?.parse().ok()?;
        Some(Self { text: text.trim().to_owned(), counter, uptime, boot, since })
    }

    /// Whether the disk and the memory are of one moment.
    pub(super) fn is_whole(&self) -> bool {
        self.counter == self.since + self.uptime
    }
}

/// Waits until the guest at `site` has counted to `counter`, and returns what it says then.
pub(super) fn wait(sites: &Sites, site: &str, limit: Duration, counter: u64) -> Result<Line> {
    let until = Instant::now() + limit;
    loop {
        let console = sites.text(site, &["vm", "console", "guest"])?;
        let last = console.lines().filter_map(Line::parse).next_back();
        if let Some(line) = last
            && line.counter >= counter
        {
            return Ok(line);
        }
        if Instant::now() > until {
            bail!("the guest does not go on at {site}; its console:\n{console}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
