//! Transfers: who dials whom, by way of which sites, what crosses a session, and how it ends.

use model::{Bytes, MigrationId, PeerName, Time, TransferEnd};
use protocol::TransferEvent;

use super::*;

/// Sites that a transfer goes through at most: a round of relays would have no end.
const MAX_STATIONS: usize = 8;
/// How much longer a file takes than a message.
const PARTS: u32 = 20;

impl Federation {
    /// The session of a pull of this site breaks.
    pub(super) fn break_session(&mut self, name: &PeerName, migration: MigrationId) {
        let Some(pull) = self.node(name).pulls.get_mut(&migration) else { return };
        let source = pull.path.last().cloned();
        pull.cut();
        if let Some(serve) = source.and_then(|at| self.node(&at).serves.get_mut(&migration)) {
            serve.talk.session = false;
        }
    }

    /// The pulls of all sites whose session goes through this one.
    pub(super) fn passing(
        &self,
        name: &PeerName,
        wanted: impl Fn(MigrationId) -> bool,
    ) -> Vec<(PeerName, MigrationId)> {
        let of = |(at, node): (&PeerName, &Arc<Node>)| {
            let passing = node.pulls.iter().filter(|(id, pull)| {
                wanted(**id) && pull.path.split_last().is_some_and(|(_, path)| path.contains(name))
            });
            passing.map(|(id, _)| (at.clone(), *id)).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of).collect()
    }

    pub(super) fn transfers(&self) -> Vec<Step> {
        let mut steps = vec![];
        let mut add = |name: &PeerName, migration: &MigrationId, phase| {
            steps.push(Step::Transfer(name.clone(), *migration, phase));
        };
        for (name, node) in &self.nodes {
            for (id, serve) in &node.serves {
                if serve.files.is_some() && !serve.reported {
                    add(name, id, Phase::Read);
                }
                self.talks(name, id, &serve.talk, End::Source, &mut add);
            }
            for (id, pull) in &node.pulls {
                if pull.active && !pull.talk.session && self.path_of(name, *id, pull).is_some() {
                    add(name, id, Phase::Dial);
                }
                let ready = || {
                    let source = pull.path.last().and_then(|source| self.nodes.get(source));
                    let serve = source.and_then(|node| node.serves.get(id));
                    serve.is_some_and(|serve| serve.reported)
                };
                if pull.talk.session && !pull.finished && !pull.talks_only && ready() {
                    add(name, id, if pull.begun { Phase::Finish } else { Phase::Begin });
                }
                self.talks(name, id, &pull.talk, End::Target, &mut add);
            }
        }
        steps
    }

    pub(super) fn talks(
        &self,
        name: &PeerName,
        id: &MigrationId,
        talk: &Talk,
        end: End,
        add: &mut impl FnMut(&PeerName, &MigrationId, Phase),
    ) {
        if talk.session && !talk.outbox.is_empty() {
            add(name, id, Phase::Carry(end));
        }
        if !talk.inbox.is_empty() {
            add(name, id, Phase::Hear(end));
        } else if talk.ended {
            add(name, id, Phase::Ended(end));
        }
    }

    /// The sites that a session of this pull would go to and through, the one that serves it last:
    /// as long as tokens and keys fit, and each is up and reaches the next.
    pub(super) fn path_of(
        &self,
        at: &PeerName,
        id: MigrationId,
        pull: &Pulling,
    ) -> Option<Vec<PeerName>> {
        let mut path: Vec<PeerName> = vec![];
        let mut end = &pull.source;
        loop {
            let here = path.last().unwrap_or(at);
            let (there, goes_on) = match (end.uri.is_dial_out(), end.relay) {
                (false, None) => (proxy_site(end), None),
                (false, Some(key)) => {
                    let there = proxy_site(end);
                    let route = self.nodes.get(&there)?.routes.get(&id)?;
                    let fits = route.token == end.token.hash() && route.key == key;
                    (there, Some(fits.then_some(&route.next)?))
                }
                // Whoever serves it dials this site, and shows its token.
                (true, _) => (self.dialler_of(here, id, end)?, None),
            };
            let joined = self.reaches(here, &there) && self.reaches(&there, here);
            if !joined || path.len() >= MAX_STATIONS {
                return None;
            }
            path.push(there);
            match goes_on {
                Some(next) => end = next,
                None => break,
            }
        }
        let serve = self.nodes.get(path.last()?)?.serves.get(&id)?;
        let dialled = end.uri.is_dial_out() || serve.token == end.token.hash();
        let fits = dialled && serve.key == pull.source.transfer_key && serve.peer_key == pull.key;
        fits.then_some(path)
    }

    /// The site whose proxy dials `here` for this transfer, with the token of `end`.
    pub(super) fn dialler_of(
        &self,
        here: &PeerName,
        id: MigrationId,
        end: &TransferEnd,
    ) -> Option<PeerName> {
        let dials = |node: &Node| {
            let dial = node.serves.get(&id).and_then(|serve| serve.dial.as_ref());
            dial.is_some_and(|dial| proxy_site(dial) == *here && dial.token == end.token)
        };
        self.nodes.iter().find(|(_, node)| dials(node)).map(|(name, _)| name.clone())
    }

    /// When a step of a transfer is due: a pull takes its time.
    pub(super) fn transfer_due(&self, step: &Step) -> Time {
        match step {
            Step::Transfer(name, id, Phase::Dial | Phase::Begin | Phase::Finish) => {
                self.nodes[name].pulls.get(id).map_or(self.now, |pull| pull.due)
            }
            _ => self.now,
        }
    }

    pub(super) fn break_passing(&mut self, name: &PeerName, migration: MigrationId) {
        for (other, migration) in self.passing(name, |id| id == migration) {
            self.break_session(&other, migration);
        }
    }

    pub(super) fn close(&mut self, name: &PeerName, migration: MigrationId, end: End) {
        let node = self.node(name);
        let talk = match end {
            End::Source => node.serves.remove(&migration).map(|serve| serve.talk),
            End::Target => node.pulls.remove(&migration).map(|pull| pull.talk),
        };
        let Some(talk) = talk.filter(|talk| talk.session) else { return };
        let Some(other) = self.other_end(migration, end) else { return };
        if let Some(theirs) = talk_of(self.node(&other.0), migration, other.1) {
            theirs.inbox.extend(talk.outbox);
            theirs.session = false;
            theirs.ended = true;
        }
        if other.1 == End::Target
            && let Some(pull) = self.node(&other.0).pulls.get_mut(&migration)
        {
            pull.cut();
            pull.active = false;
        }
    }

    /// Where the other end of a session is.
    pub(super) fn other_end(&self, migration: MigrationId, end: End) -> Option<(PeerName, End)> {
        let other = if end == End::Source { End::Target } else { End::Source };
        let has = |node: &Node| match other {
            End::Source => node.serves.get(&migration).is_some_and(|serve| serve.talk.session),
            End::Target => node.pulls.get(&migration).is_some_and(|pull| pull.talk.session),
        };
        let name = self.nodes.iter().find(|(_, node)| has(node)).map(|(name, _)| name.clone());
        name.map(|name| (name, other))
    }

    /// Lets a transfer go on, and tells which site hears of it.
    pub(super) fn transfer(
        &mut self,
        name: &PeerName,
        id: MigrationId,
        phase: Phase,
    ) -> Option<(PeerName, TransferEvent)> {
        let event = match phase {
            Phase::Dial => {
                let pull = self.nodes[name].pulls.get(&id)?;
                let path = self.path_of(name, id, pull)?;
                let source = path.last()?.clone();
                let stations: Vec<_> = [name].into_iter().chain(&path).cloned().collect();
                self.met("session", if path.len() > 1 { "relayed" } else { "direct" });
                self.sessions.push(stations);
                let begins = self.now.after(self.along(name, &path));
                let pull = self.node(name).pulls.get_mut(&id)?;
                pull.cut();
                pull.path = path;
                pull.due = begins;
                pull.talk.session = true;
                self.node(&source).serves.get_mut(&id)?.talk.session = true;
                return Some((source, TransferEvent::Opened));
            }
            Phase::Read => {
                let node = self.node(name);
                let serve = node.serves.get_mut(&id)?;
                let (place, with_state) = serve.files.clone()?;
                let Some(mut content) = node.copies.get(&place).cloned() else {
                    let reason = "no such files".to_owned();
                    serve.files = None;
                    return Some((name.clone(), TransferEvent::Failed { source: true, reason }));
                };
                if !with_state {
                    content.state = None;
                } else if content.state.is_none() {
                    let reason = "no saved state".to_owned();
                    serve.files = None;
                    return Some((name.clone(), TransferEvent::Failed { source: true, reason }));
                }
                serve.reported = true;
                let digest = root(place.1, serve.content.get_or_insert(content));
                TransferEvent::Sent { digest }
            }
            Phase::Begin => {
                let path = &self.nodes[name].pulls.get(&id)?.path;
                // A link that is slow for a message is slow for every part of a file.
                let ends = self.now.after(self.along(name, path) * PARTS);
                let pull = self.node(name).pulls.get_mut(&id)?;
                pull.begun = true;
                pull.due = ends;
                TransferEvent::Receiving
            }
            Phase::Finish => self.finish(name, id)?,
            Phase::Carry(end) => {
                let (other, theirs) = self.other_end(id, end)?;
                let talk = talk_of(self.node(name), id, end)?;
                let told = talk.outbox.remove(0);
                return Some((other, TransferEvent::Told { source: theirs == End::Source, told }));
            }
            Phase::Hear(end) => {
                let told = talk_of(self.node(name), id, end)?.inbox.remove(0);
                TransferEvent::Told { source: end == End::Source, told }
            }
            Phase::Ended(end) => {
                talk_of(self.node(name), id, end)?.ended = false;
                let reason = "the other end has closed".to_owned();
                TransferEvent::Failed { source: end == End::Source, reason }
            }
        };
        Some((name.clone(), event))
    }

    pub(super) fn finish(&mut self, name: &PeerName, id: MigrationId) -> Option<TransferEvent> {
        let pull = self.nodes[name].pulls.get(&id)?;
        let source = pull.path.last()?.clone();
        let from = self.nodes.get(&source)?;
        let serve = from.serves.get(&id)?;
        let content = serve.content.clone()?;
        let (place, with_state) = serve.files.clone()?;
        let vm = place.1;
        let mut current = from.copies.get(&place).cloned();
        if let Some(current) = &mut current
            && !with_state
        {
            current.state = None;
        }
        let changed = current.as_ref() != Some(&content);
        let unexpected = content.state.is_some() && !pull.takes_state;
        if changed || unexpected {
            let pull = self.node(name).pulls.get_mut(&id)?;
            pull.cut();
            pull.active = false;
            let serve = self.node(&source).serves.get_mut(&id)?;
            serve.talk.session = false;
            serve.talk.ended = true;
            let reason = if changed { "a file changed" } else { "an unexpected file" }.to_owned();
            return Some(TransferEvent::Failed { source: false, reason });
        }
        if self.nodes[name].full {
            let pull = self.node(name).pulls.get_mut(&id)?;
            pull.cut();
            pull.active = false;
            self.node(&source).serves.get_mut(&id)?.talk.session = false;
            let reason = "no space".to_owned();
            return Some(TransferEvent::Failed { source: false, reason });
        }
        let mut content = content;
        if std::mem::take(&mut self.node(name).damages) {
            content.disk = self.ledger.fresh();
        }
        let node = self.node(name);
        let pull = node.pulls.get_mut(&id)?;
        pull.finished = true;
        let has_state = content.state.is_some();
        let digest = root(vm, &content);
        let place = pull.place.clone();
        let written = node.copies.insert(place.clone(), content.clone()) != Some(content);
        if written && node.guests.contains_key(&place) {
            self.violate(format!("{name} overwrites the files of the guest at {place:?}"));
        }
        let (size, wire) = (Bytes::mib(1024), Bytes::mib(512));
        Some(TransferEvent::Received { digest, size, wire, has_state })
    }
}

/// The site that a pull dials, and the token's hash.
fn proxy_site(end: &TransferEnd) -> PeerName {
    let name = end.uri.authority().split(':').next().unwrap_or_default();
    name.parse().expect("proxies here are named after their site")
}
