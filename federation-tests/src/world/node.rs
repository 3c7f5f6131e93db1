//! One site with its machine, its disk and its guests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Digest, Epoch, HostName, MigrationId, PeerName, Peering, RunProfile, Time, VmId};
use protocol::{CallId, Command, Config, Event, Found, GuestEvent, Site, State};

use super::disk::Disk;
use super::federation::Line;
use super::invariant::{Ledger, Newest};
use super::law::off;
use super::outside::Made;
use super::transfer::{Pulling, Route, Serving};

/// Where the files of one stay are, or its guest is.
pub type Place = (HostName, VmId, Epoch);

/// The files of one stay.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Content {
    /// Version of the disk: new with every execution.
    pub disk: u64,
    /// The saved run state.
    pub state: Option<Saved>,
}

/// A saved run state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Saved {
    /// What the memory stands for.
    pub memory: u64,
    /// The version of the disk that belongs to it.
    pub disk: u64,
}

/// A guest's process. It outlives its node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Guest {
    /// Whether it executes, or is held.
    pub executes: bool,
    /// What its memory stands for.
    pub memory: u64,
}

/// A hypervisor's verb under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verb {
    pub due: Time,
    pub place: Place,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    Launch { loads: bool },
    Resume,
    Pause,
    ShutDown,
    Kill,
    Hibernate,
}

/// One site. What is listed first survives a crash of the node, the rest is gone with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub(super) number: u8,
    pub(super) config: Config,
    pub(super) made: Made,
    pub(super) peers: BTreeMap<PeerName, Peering>,
    pub(super) hosts: BTreeSet<HostName>,
    pub(super) broken: BTreeSet<HostName>,
    pub(super) disk: Disk,
    /// What its journal says.
    pub durable: State,
    /// How long each peer's journal was when it last spoke to this site.
    pub(super) remembers: BTreeMap<PeerName, u64>,
    /// The life of each peer in which it last spoke with this site.
    pub(super) greeted: BTreeMap<PeerName, u32>,
    /// Files, by stay.
    pub copies: BTreeMap<Place, Content>,
    /// Guests, by stay.
    pub guests: BTreeMap<Place, Guest>,
    /// How often it was started.
    pub(super) life: u32,
    /// How far its clock is off, in milliseconds.
    pub(super) skew: i64,
    /// How long its disk takes to make rows durable.
    pub(super) sync_time: Duration,
    /// Nobody can dial its proxy.
    pub(super) dials_out: bool,
    /// It passes all transfers of others through its own proxy.
    pub(super) relays: bool,
    /// There is no space for files.
    pub(super) full: bool,
    /// What arrives here next is not what was sent.
    pub(super) damages: bool,
    /// So many transactions of its journal are to be put back before the next start.
    pub(super) restore: Option<usize>,
    /// Its journal was put back from an old copy.
    pub(super) put_back: bool,
    /// It is lost for good, with all that it had.
    pub gone: bool,

    /// The machine; none while the node is down.
    pub machine: Option<Site>,
    /// Its machine handles something at this moment.
    pub(super) working: bool,
    /// What came while it was busy.
    pub(super) queue: Vec<Event>,
    pub(super) busy_until: Time,
    pub(super) callers: BTreeMap<u64, Option<Line>>,
    pub(super) calls: BTreeMap<CallId, Time>,
    pub(super) verbs: Vec<Verb>,
    pub(super) serves: BTreeMap<MigrationId, Serving>,
    pub(super) pulls: BTreeMap<MigrationId, Pulling>,
    pub(super) routes: BTreeMap<MigrationId, Route>,
}

impl Node {
    pub(super) fn new(number: u8, config: Config) -> Self {
        Self {
            number,
            config,
            made: Made::default(),
            peers: BTreeMap::new(),
            hosts: BTreeSet::new(),
            broken: BTreeSet::new(),
            disk: Disk::default(),
            durable: State::default(),
            remembers: BTreeMap::new(),
            greeted: BTreeMap::new(),
            copies: BTreeMap::new(),
            guests: BTreeMap::new(),
            life: 0,
            skew: 0,
            sync_time: Duration::ZERO,
            dials_out: false,
            relays: false,
            full: false,
            damages: false,
            restore: None,
            put_back: false,
            gone: false,
            machine: None,
            working: false,
            queue: vec![],
            busy_until: Time(0),
            callers: BTreeMap::new(),
            calls: BTreeMap::new(),
            verbs: vec![],
            serves: BTreeMap::new(),
            pulls: BTreeMap::new(),
            routes: BTreeMap::new(),
        }
    }

    /// Whether the node runs.
    pub fn is_up(&self) -> bool {
        self.machine.is_some() || self.working
    }

    /// The time by its own clock.
    pub(super) fn clock(&self, now: Time) -> Time {
        off(now, self.skew)
    }

    /// When its machine wants to be woken, by the world's clock.
    pub(super) fn deadline(&self) -> Option<Time> {
        let deadline = self.machine.as_ref()?.next_deadline()?;
        Some(off(deadline, -self.skew))
    }

    /// Guest processes and saved run states, as a starting node finds them.
    pub(super) fn found(&self) -> Vec<Found> {
        let power = |guest: &Guest| {
            if guest.executes { model::PowerState::Active } else { model::PowerState::Paused }
        };
        let guests = self.guests.iter().map(|(place, guest)| (place, power(guest)));
        let saved = self.copies.iter().filter(|(place, content)| {
            content.state.is_some() && !self.guests.contains_key(*place)
        });
        let saved = saved.map(|(place, _)| (place, model::PowerState::Suspended));
        guests
            .chain(saved)
            .map(|((host, vm, epoch), power)| Found {
                host: host.clone(),
                vm: *vm,
                epoch: *epoch,
                power,
            })
            .collect()
    }

    /// Begins a command on a guest or on its files. Those on files are done at once.
    pub(super) fn command(&mut self, command: &Command, due: Time) -> Option<String> {
        let (host, vm, epoch) = command.guest()?;
        let place = (host.clone(), vm, epoch);
        let what = match command {
            Command::Launch { state, .. } => What::Launch { loads: state.is_some() },
            Command::Resume(..) => What::Resume,
            Command::Pause(..) => What::Pause,
            Command::ShutDown(..) => What::ShutDown,
            Command::Kill(..) => What::Kill,
            Command::Hibernate(..) => What::Hibernate,
            Command::DropState(..) => {
                if let Some(content) = self.copies.get_mut(&place) {
                    content.state = None;
                }
                return None;
            }
            Command::Purge(..) => {
                self.copies.remove(&place);
                // What is asked of one guest is done in its order.
                let mut verbs = self.verbs.iter().filter(|verb| verb.place == place);
                let ends = verbs.any(|verb| verb.what == What::Kill);
                let used = self.guests.contains_key(&place) && !ends;
                return used.then(|| format!("files of the guest at {place:?} are deleted"));
            }
            _ => return None,
        };
        self.verbs.push(Verb { due, place, what });
        None
    }

    /// Does what a hypervisor was asked for.
    pub(super) fn act(&mut self, verb: &Verb, ledger: &mut Ledger) -> Result<GuestEvent, String> {
        let place = &verb.place;
        let (host, vm, _) = place;
        let executes = self.guests.get(place).is_some_and(|guest| guest.executes);
        if executes && verb.what != What::Resume && !matches!(verb.what, What::Launch { .. }) {
            // It executed until now.
            let disk = ledger.write(*vm);
            self.copies.get_mut(place).ok_or("a guest without files")?.disk = disk;
        }
        Ok(match verb.what {
            What::Launch { loads } => {
                if self.guests.contains_key(place) {
                    return Ok(GuestEvent::Launched(profile()));
                }
                if self.broken.contains(host) {
                    return Ok(GuestEvent::LaunchFailed("no such machine type".to_owned()));
                }
                let Some(content) = self.copies.get(place) else {
                    return Ok(GuestEvent::LaunchFailed("no such files".to_owned()));
                };
                let memory = match (&content.state, loads) {
                    (_, false) => ledger.fresh(),
                    (Some(state), true) if state.disk != content.disk => {
                        return Err(format!("{place:?} loads a state that its disk has overtaken"));
                    }
                    (Some(state), true) => state.memory,
                    (None, true) => {
                        return Ok(GuestEvent::LaunchFailed("no saved state".to_owned()));
                    }
                };
                self.guests.insert(place.clone(), Guest { executes: false, memory });
                GuestEvent::Launched(profile())
            }
            What::Resume => {
                let Some(guest) = self.guests.get_mut(place) else {
                    return Ok(GuestEvent::Failed("there is no such guest".to_owned()));
                };
                let content = self.copies.get_mut(place).ok_or("a guest without files")?;
                let newest = ledger.newest.get(vm).copied().unwrap_or_default();
                let known = ledger.knows(*vm);
                if known && content.disk != newest.disk {
                    return Err(format!("{place:?} executes on old content"));
                }
                if known && newest.saved.is_some_and(|memory| memory != guest.memory) {
                    return Err(format!("{place:?} executes without its saved memory"));
                }
                guest.executes = true;
                content.disk = ledger.write(*vm);
                GuestEvent::Resumed
            }
            What::Pause => match self.guests.get_mut(place) {
                Some(guest) => {
                    guest.executes = false;
                    GuestEvent::Paused
                }
                None => GuestEvent::Failed("there is no such guest".to_owned()),
            },
            What::ShutDown | What::Kill => {
                let was_there = self.guests.remove(place).is_some();
                if was_there && verb.what == What::ShutDown {
                    // Asked for by a user: with its process its memory is meant to go.
                    ledger.newest.entry(*vm).or_default().saved = None;
                }
                GuestEvent::Ended
            }
            What::Hibernate if self.full => GuestEvent::Failed("no space".to_owned()),
            What::Hibernate => match self.guests.remove(place) {
                Some(guest) => {
                    let content = self.copies.get_mut(place).ok_or("a guest without files")?;
                    let (memory, disk) = (guest.memory, content.disk);
                    content.state = Some(Saved { memory, disk });
                    ledger.newest.insert(*vm, Newest { disk, saved: Some(memory) });
                    GuestEvent::Hibernated
                }
                None => GuestEvent::Failed("there is no such guest".to_owned()),
            },
        })
    }
}

/// The run profile of every host here.
pub(super) fn profile() -> RunProfile {
    RunProfile {
        hypervisor: "simulated".to_owned(),
        version: "1".to_owned(),
        machine: "simulated-1".to_owned(),
        cpu: "simulated".to_owned(),
        accelerator: "none".to_owned(),
        firmware: Digest([0; 32]),
    }
}
