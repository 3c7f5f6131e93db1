//! What the guest's application reports, as its owner follows it live.
//!
//! In the guest a small HTTP server writes how many use it to a plain file; here one command of
//! its primary's prints each value as it comes, over the sites in between.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::sites::Sites;

/// The measure that is followed.
pub(super) const MEASURE: &str = "web.current_users";
/// How long the next value may take: the guest writes one a second, and may be moving.
const VALUE_LIMIT: Duration = Duration::from_secs(60);

/// A value as it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    /// Its number in the VM's life.
    number: u64,
    pub(super) users: i64,
}

/// The command that follows, for as long as this is there.
pub(super) struct Follow {
    command: Child,
    heard: Arc<Mutex<Vec<Heard>>>,
    told: usize,
}

impl Follow {
    pub(super) fn new(sites: &Sites, site: &str) -> Result<Self> {
        let arguments = ["-o", "json", "vm", "kpi", "guest", "--follow", "--measure", MEASURE];
        let mut command = sites.follow(site, &arguments)?;
        let heard = Arc::new(Mutex::new(vec![]));
        let hears = heard.clone();
        let output = BufReader::new(command.stdout.take().context("its output is not here")?);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(value) = read(&line) {
                    hears.lock().unwrap_or_else(PoisonError::into_inner).push(value);
                }
            }
        });
        Ok(Self { command, heard, told: 0 })
    }

    fn all(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for so many values more than were told of last.
    fn wait(&self, more: usize) -> Result<Vec<Heard>> {
        let until = Instant::now() + VALUE_LIMIT;
        loop {
            let all = self.all();
            if all.len() >= self.told + more {
                return Ok(all);
            }
            ensure!(Instant::now() < until, "no value of {MEASURE} comes any more");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until values have come again, and tells of all that came since it was last asked.
    pub(super) fn since(&mut self) -> Result<String> {
        // One may have been under way since before the move; the second was written after it.
        let all = self.wait(2)?;
        let new = &all[self.told..];
        let users = |heard: Option<&Heard>| heard.map_or(0, |heard| heard.users);
        let told = format!(
            "{MEASURE} at the primary: {} → {} users, {} values, none missing",
            users(new.first()),
            users(new.last()),
            new.len()
        );
        let first = all.first().map_or(0, |heard| heard.number);
        for (heard, number) in all.iter().zip(first..) {
            ensure!(heard.number == number, "value {number} is missing, {} came", heard.number);
        }
        self.told = all.len();
        Ok(told)
    }

    /// A condition of the users that will be true soon: they go up and down again.
    pub(super) fn soon(&self) -> Result<String> {
        const STEP: i64 = 150;
        const MOST: i64 = 1_800;
        let all = self.wait(2)?;
        let [.., before, now] = all[..] else { unreachable!("two have come") };
        let rises = now.users >= before.users;
        Ok(match (rises, now.users) {
            (true, users) if users + STEP < MOST => format!("&gt; {}", users + STEP),
            (_, users) if users > 2 * STEP => format!("&lt; {}", users - STEP),
            _ => format!("&gt; {}", 2 * STEP),
        })
    }

    pub(super) fn count(&self) -> usize {
        self.all().len()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}

fn read(line: &str) -> Option<Heard> {
    let value: Value = serde_json::from_str(line).ok()?;
    Some(Heard { number: value["number"].as_u64()?, users: value["value"].as_i64()? })
}

/// The monitoring section: the users as they change, and, if wanted, when a condition comes true.
pub(super) fn section(when: Option<&str>) -> String {
    let when = when.map(|when| format!("  <sj:Monitor measure=\"{MEASURE}\" when=\"{when}\"/>\n"));
    format!(
        "<sj:MonitoringSection ovf:required=\"false\" \
         xmlns:sj=\"https://sojourn.example/ovf/1\"\n    \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\">\n  \
         <sj:Monitor measure=\"{MEASURE}\"/>\n{}</sj:MonitoringSection>\n",
        when.unwrap_or_default()
    )
}
