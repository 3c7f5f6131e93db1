//! How a site's machine is driven here: through the same law as in a node, on a simulated disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use model::{PeerName, Time};
use protocol::{Command, Driver, Effect, Event, Output, Row, Site, Start};

use super::federation::{Crash, Federation, Point};
use super::node::{Verb, What, profile};
use super::outside::Outside;
use super::rules::Willing;

/// So many transactions of a journal are each compared with the machine's own state.
const COMPARED: usize = 64;

/// The site has ended in the middle of a turn.
#[derive(Debug)]
struct Gone;

/// What one turn of one site goes through.
struct Turn<'a, 'b> {
    federation: &'a mut Federation,
    name: &'a PeerName,
    crash: &'a mut Crash<'b>,
    point: Option<Point>,
    /// Whether rows were written in it.
    wrote: bool,
    done: usize,
}

impl Turn<'_, '_> {
    fn end(&mut self, keep: usize) -> Gone {
        self.federation.end(self.name, keep);
        Gone
    }
}

impl Driver<Outside> for Turn<'_, '_> {
    type Error = Gone;

    fn write(&mut self, _: &mut Outside, output: &Output) -> Result<(), Gone> {
        self.point = (self.crash)(self.name, output);
        if self.point == Some(Point::BeforeRows) {
            if !output.rows.is_empty() {
                self.federation.met("crash", "before a row");
            }
            return Err(self.end(0));
        }
        if output.rows.is_empty() {
            return Ok(());
        }
        if self.federation.node(self.name).disk.write(&output.rows).is_err() {
            self.federation.tell(|| "the journal's disk is full".to_owned());
            return Err(self.end(0));
        }
        if let Some(Point::Unsynced(keep)) = self.point {
            let size = self.federation.node(self.name).disk.unsynced();
            let is_whole = keep >= size;
            let what = if is_whole { "after a row, not synced" } else { "in the middle of a row" };
            self.federation.met("crash", what);
            if is_whole {
                self.federation.count_rows(self.name, &output.rows);
            }
            return Err(self.end(keep));
        }
        self.federation.count_rows(self.name, &output.rows);
        self.wrote = true;
        Ok(())
    }

    fn sync(&mut self, _: &[Row]) -> Result<(), Gone> {
        let now = self.federation.now;
        let node = self.federation.node(self.name);
        node.disk.sync();
        node.busy_until = now.after(node.sync_time);
        Ok(())
    }

    fn end_stranger(&mut self, command: Command) -> Result<(), Gone> {
        self.federation.tell(|| format!("{}:   ends {command:?}", self.name));
        let Some((host, vm, epoch)) = command.guest() else { return Ok(()) };
        let place = (host.clone(), vm, epoch);
        let verb = Verb { due: self.federation.now, place, what: What::Kill };
        self.federation.act(self.name, &verb);
        Ok(())
    }

    fn carry_out(&mut self, site: &Site, _: &Outside, effect: Effect) -> Result<(), Gone> {
        if self.point == Some(Point::AfterEffects(self.done)) {
            if self.wrote {
                self.federation.met("crash", "after a row");
            }
            return Err(self.end(0));
        }
        if self.done == 0 {
            self.federation.compare(self.name, site, self.wrote);
        }
        self.done += 1;
        self.federation.carry_out(self.name, effect);
        Ok(())
    }
}

impl Federation {
    /// Lets a site handle an event, as soon as it has done what it does now.
    pub(super) fn feed(&mut self, name: &PeerName, event: Event, crash: &mut Crash<'_>) {
        let now = self.now;
        let node = self.node(name);
        if node.machine.is_none() {
            return;
        }
        node.queue.push(event);
        if node.busy_until <= now {
            self.turn(name, crash);
        }
    }

    /// Lets a site handle what has come meanwhile.
    pub(super) fn turn(&mut self, name: &PeerName, crash: &mut Crash<'_>) {
        let events = std::mem::take(&mut self.node(name).queue);
        self.drive(name, crash, |site, world, turn| site.turn(world, events, turn));
    }

    /// Starts a site that is down, from what is on its disk.
    pub(super) fn restart(&mut self, name: &PeerName, crash: &mut Crash<'_>) {
        let now = self.now;
        let journal_seen = match self.nodes[name].put_back {
            // Whoever puts an old copy back starts the node when its peers can be asked.
            true => self.remembered_by_any(name),
            false => self.remembered(name),
        };
        let node = self.node(name);
        node.life += 1;
        node.busy_until = now;
        let restored = node.restore.take();
        if let Some(old) = restored {
            node.disk.restore(old);
        }
        match node.disk.read() {
            Ok(state) => node.durable = state,
            Err(error) => return self.violate(format!("{name} cannot read its journal: {error}")),
        }
        if restored.is_some() {
            self.forget_epochs(name);
        }
        let node = self.node(name);
        let profiles = node.hosts.iter().map(|host| (host.clone(), profile())).collect();
        let start = Start {
            peers: node.peers.clone(),
            profiles,
            found: node.found(),
            journal: node.disk.len(),
            journal_seen,
        };
        node.machine = Some(Site::new(node.config.clone(), node.durable.clone()));
        self.drive(name, crash, |site, world, turn| site.start(world, start, turn));
    }

    fn drive(
        &mut self,
        name: &PeerName,
        crash: &mut Crash<'_>,
        work: impl FnOnce(&mut Site, &mut Outside, &mut Turn<'_, '_>) -> Result<(), Gone>,
    ) {
        let (now, crypto) = (self.now, self.crypto);
        let node = self.node(name);
        let Some(mut site) = node.machine.take() else { return };
        let made = std::mem::take(&mut node.made);
        let mut outside = Outside {
            name: name.clone(),
            site: node.number,
            now: node.clock(now),
            crypto,
            made,
            policy: Willing { relays: node.relays },
            dials_out: node.dials_out,
        };
        // While its machine is at work the site counts as up.
        node.working = true;
        let mut turn = Turn { federation: self, name, crash, point: None, wrote: false, done: 0 };
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut site, &mut outside, &mut turn)));
        let (point, wrote, done) = (turn.point, turn.wrote, turn.done);
        let node = self.node(name);
        node.working = false;
        node.made = outside.made;
        match result {
            Ok(Ok(())) => {
                if done == 0 {
                    self.compare(name, &site, wrote);
                }
                self.node(name).machine = Some(site);
                if matches!(point, Some(Point::AfterEffects(_))) {
                    self.end(name, 0);
                }
            }
            Ok(Err(Gone)) => {}
            Err(panic) => {
                let what = panic.downcast_ref::<String>().cloned();
                let what = what.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                self.violate(format!("{name} panicked: {}", what.unwrap_or_default()));
            }
        }
    }

    /// The rows that a machine gave away make the state that it goes on with.
    fn compare(&mut self, name: &PeerName, site: &Site, wrote: bool) {
        if wrote && !(site.state.is_indexed() && self.nodes[name].durable.is_indexed()) {
            self.violate(format!("{name} would look up what is not there"));
        }
        // The comparison is as long as the history; a long one is compared now and then.
        let node = &self.nodes[name];
        if node.disk.transactions() > COMPARED && !node.disk.transactions().is_multiple_of(COMPARED)
        {
            return;
        }
        if site.state != node.durable {
            self.violate(format!("{name}: the fold of its journal is not its state"));
        }
    }

    fn count_rows(&mut self, name: &PeerName, rows: &[Row]) {
        for row in rows {
            self.tell(|| format!("{name}:   row {}", row.kind()));
            self.met("row", row.kind());
            if let Some(violation) = self.ledger.decided(row) {
                self.violate(violation);
            }
            if let Row::Concluded { operation, result } = row {
                self.concludes(name, *operation, result);
            }
            let node = self.node(name);
            if let Err(error) = node.durable.apply(row) {
                self.violate(format!("{name} wrote a row that cannot be folded: {error}"));
            }
        }
    }

    /// Does a hypervisor's verb, and tells what comes of it.
    pub(super) fn act(&mut self, name: &PeerName, verb: &Verb) -> Option<Event> {
        let node = Arc::make_mut(self.nodes.get_mut(name).expect("a known site"));
        match node.act(verb, &mut self.ledger) {
            Ok(event) => {
                let (_, vm, epoch) = verb.place;
                Some(Event::Guest { vm, epoch, event })
            }
            Err(violation) => {
                self.violate(violation);
                None
            }
        }
    }
}

/// A clock that is off by so many milliseconds.
pub(super) fn off(time: Time, by: i64) -> Time {
    let span = Duration::from_millis(by.unsigned_abs());
    if by < 0 { Time(time.0.saturating_sub(by.unsigned_abs())) } else { time.after(span) }
}
