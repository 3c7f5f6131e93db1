//! Step, persist, then send: the one order in which a site does anything.
//!
//! A node and the simulator of federations both drive their machines through [`Site::start`] and
//! [`Site::turn`], so that what the simulator finds out about the order holds for the node.

use std::collections::BTreeMap;

use model::{HostName, PeerName, Peering, RunProfile};

use crate::effect::{Command, Effect, Event, Found, Output};
use crate::row::Row;
use crate::site::{Site, World};

/// Whoever drives a machine: makes its rows durable, and carries out its effects.
///
/// An error ends the site there and then; what was not carried out is found again at the next
/// [`Site::start`].
pub trait Driver<W> {
    /// Why the site cannot go on.
    type Error;

    /// Writes the rows of an output, all or none of them, and takes down what it tells users.
    /// Nothing may be promised on it before [`Driver::sync`].
    fn write(&mut self, world: &mut W, output: &Output) -> Result<(), Self::Error>;

    /// Waits until these rows, the last that were written, are on stable storage. There are some.
    fn sync(&mut self, rows: &[Row]) -> Result<(), Self::Error>;

    /// Ends a guest that this site does not own, before it returns.
    fn end_stranger(&mut self, command: Command) -> Result<(), Self::Error>;

    /// Carries out one effect. It must not wait for what comes of it.
    fn carry_out(&mut self, site: &Site, world: &W, effect: Effect) -> Result<(), Self::Error>;
}

/// What a site is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    /// Its peers, and on what terms.
    pub peers: BTreeMap<PeerName, Peering>,
    /// Its hosts' run profiles, where a hypervisor could tell.
    pub profiles: Vec<(HostName, RunProfile)>,
    /// Guests, and saved run states, that are there.
    pub found: Vec<Found>,
    /// How long its journal is.
    pub journal: u64,
    /// The longest journal of this site that a peer remembers.
    pub journal_seen: u64,
}

impl Site {
    /// Begins, or goes on after an end of any kind. Nobody may be let in before it returns.
    ///
    /// # Errors
    ///
    /// The driver's. The site is then as it was before.
    pub fn start<W, D>(
        &mut self,
        world: &mut W,
        start: Start,
        driver: &mut D,
    ) -> Result<(), D::Error>
    where
        W: World,
        D: Driver<W>,
    {
        self.set_peers(start.peers);
        self.timers.follow(world.now());
        let mut output = Output::default();
        for (host, profile) in start.profiles {
            output.join(self.handle(world, Event::Profile(host, profile)));
        }
        if start.journal_seen > start.journal {
            output.join(self.handle(world, Event::Fence { journal: start.journal_seen }));
        }
        output.join(self.restart(world, &start.found));
        self.persist_then_send(world, output, driver, |driver, effect| match effect {
            Effect::Do(kill @ Command::Kill(..)) => driver.end_stranger(kill).map(|()| None),
            other => Ok(Some(other)),
        })
    }

    /// Handles events together, and the deadlines that have come.
    ///
    /// # Errors
    ///
    /// The driver's, after which this machine must not be used any more.
    pub fn turn<W, D>(
        &mut self,
        world: &mut W,
        events: impl IntoIterator<Item = Event>,
        driver: &mut D,
    ) -> Result<(), D::Error>
    where
        W: World,
        D: Driver<W>,
    {
        self.timers.follow(world.now());
        let mut output = Output::default();
        for event in events {
            output.join(self.handle(world, event));
        }
        if self.next_deadline().is_some_and(|at| at <= world.now()) {
            output.join(self.handle(world, Event::Tick));
        }
        self.persist_then_send(world, output, driver, |_, effect| Ok(Some(effect)))
    }

    /// The law. `first` sees every effect before any is carried out, and may take it away.
    fn persist_then_send<W, D: Driver<W>>(
        &mut self,
        world: &mut W,
        output: Output,
        driver: &mut D,
        mut first: impl FnMut(&mut D, Effect) -> Result<Option<Effect>, D::Error>,
    ) -> Result<(), D::Error> {
        driver.write(world, &output)?;
        if !output.rows.is_empty() {
            driver.sync(&output.rows)?;
        }
        let mut later = vec![];
        for effect in output.effects {
            later.extend(first(driver, effect)?);
        }
        for effect in later {
            driver.carry_out(self, world, effect)?;
        }
        Ok(())
    }
}

impl Output {
    fn join(&mut self, more: Self) {
        self.rows.extend(more.rows);
        self.effects.extend(more.effects);
    }
}
