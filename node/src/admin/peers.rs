//! `peer`: inviting, joining, what a peer may do, and ending a peering.

use std::collections::HashMap;
use std::time::Duration;

use certs::{SecretHash, Ticket, TicketSecret};
use model::{Bytes, Limits, PeerName, Peering, Right, Time};
use proto::admin as api;
use proto::federation::JoinRequest;
use protocol::{Ask, Reply};
use tonic::Status;

use super::{Admin, Result, bad, broken, down, ok};
use crate::hands::report;
use crate::journal::StoredPeer;
use crate::link::{LinkError, now};
use crate::peers::Peer;

/// How long a ticket is good if its maker says nothing.
const TICKET_LIFE: Duration = Duration::from_secs(3600);
/// How long a ticket can be good.
const MAX_TICKET_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long VMs of a peer run on here while its peering ends, if nothing is said.
const LEAVE_LIFE: Duration = Duration::from_secs(600);

enum Change {
    Add(StoredPeer),
    Set(PeerName, Peering),
    Invite(SecretHash, Time, Peering),
}

impl Admin {
    pub(super) async fn invite_peer(&self, ask: api::InviteRequest) -> Result<api::Invitation> {
        let life = match ask.valid_seconds {
            0 => TICKET_LIFE,
            seconds => Duration::from_secs(seconds),
        };
        if life > MAX_TICKET_LIFE {
            return Err(bad("a ticket is good for 30 days at most"));
        }
        let peering = peering_of(ask.peering)?;
        let expires = now().after(life);
        let secret = TicketSecret::from_bytes(rand::random());
        let hash = secret.hash();
        let name = self.config.name.clone();
        let addresses = vec![self.control.clone()];
        let ticket = Ticket::new(name, addresses, self.identity.site_key(), secret, expires)
            .map_err(|e| broken(&e))?;
        self.change_peers(Change::Invite(hash, expires, peering)).await?;
        ok(api::Invitation { ticket: ticket.to_string(), expires_unix_ms: expires.0 })
    }

    pub(super) async fn join_peer(&self, ask: api::JoinTicket) -> Result<api::Peer> {
        let ticket = Ticket::parse(ask.ticket.trim()).map_err(bad)?;
        let peering = peering_of(ask.peering)?;
        let key = ticket.site_key();
        if key == self.identity.site_key() {
            return Err(bad("this ticket was made by this very site; use it at the other one"));
        }
        if ticket.expires() <= now() {
            return Err(Status::failed_precondition("the ticket has expired; ask for a new one"));
        }
        let name = if ask.name.is_empty() { ticket.site().to_string() } else { ask.name };
        let name: PeerName = name.parse().map_err(bad)?;
        if self.peers.get(&name).is_some_and(|peer| peer.key != key) {
            let text = format!("another peer is called {name} here; choose a name with --name");
            return Err(Status::already_exists(text));
        }
        let addresses = ticket.addresses().to_vec();
        let request = JoinRequest {
            secret: ticket.secret().as_bytes().to_vec(),
            name: self.config.name.to_string(),
            addresses: vec![self.control.clone()],
        };
        let joined = self.links.join(key, &addresses, request).await;
        let terms = joined.map_err(|error| match error {
            LinkError::Status(text) => {
                Status::failed_precondition(format!("the other site: {text}"))
            }
            LinkError::Refused => Status::failed_precondition(crate::gate::CLOSED_DOOR),
            other => Status::unavailable(report(&other)),
        })?;
        let peer = StoredPeer { name: name.clone(), key, addresses, peering };
        self.change_peers(Change::Add(peer)).await?;
        self.peers.heard(&name, Ok(()));
        let joined = self.shown_peer(&name).await?;
        ok(api::Peer { grants: terms, ..joined })
    }

    pub(super) async fn peer_messages(&self) -> Result<api::Peers> {
        let counts = self.site(|site| {
            let mut counts = HashMap::<PeerName, (u32, u32)>::new();
            for vm in site.vms().filter(|vm| !vm.destroyed) {
                if let Some(peer) = vm.delegate {
                    counts.entry(peer).or_default().0 += 1;
                }
                if let Some(peer) = vm.delegator {
                    counts.entry(peer).or_default().1 += 1;
                }
            }
            counts
        });
        let counts = counts.await?;
        let one =
            |peer: Peer| peer_message(&peer, counts.get(&peer.name).copied().unwrap_or_default());
        ok(api::Peers { peers: self.peers.all().into_iter().map(one).collect() })
    }

    pub(super) async fn change_peering(&self, ask: api::SetPeerRequest) -> Result<api::Peer> {
        let name: PeerName = ask.name.parse().map_err(bad)?;
        let ending = self.known_peer(&name)?.peering.ending;
        // Whether it ends is said with `peer remove`.
        let peering = Peering { ending, ..peering_of(ask.peering)? };
        self.change_peers(Change::Set(name.clone(), peering)).await?;
        ok(self.shown_peer(&name).await?)
    }

    /// Nothing new is taken from then on, or given; the driver forgets the peer when nothing is
    /// shared with it any more.
    pub(super) async fn end_peering(&self, ask: api::RemovePeerRequest) -> Result<api::Operations> {
        let name: PeerName = ask.name.parse().map_err(bad)?;
        let peering = self.known_peer(&name)?.peering;
        let life = match ask.deadline_seconds {
            0 => LEAVE_LIFE,
            seconds => Duration::from_secs(seconds),
        };
        let ending = (!ask.undo).then(|| now().after(life));
        self.change_peers(Change::Set(name.clone(), Peering { ending, ..peering })).await?;
        let mut operations = Vec::new();
        if !ask.undo && self.peers.get(&name).is_some() {
            let began = match self.ask(Ask::Leave(name)).await? {
                Reply::BeganMany(began) => began,
                _ => return Err(Status::internal("an unexpected reply")),
            };
            for id in began {
                operations.push(self.operation(id, false).await?);
            }
        }
        ok(api::Operations { operations })
    }

    async fn shown_peer(&self, name: &PeerName) -> std::result::Result<api::Peer, Status> {
        let all = self.peer_messages().await?.into_inner().peers;
        let found = all.into_iter().find(|peer| peer.name == name.as_str());
        found.ok_or_else(|| Status::internal("the peer is gone"))
    }

    fn known_peer(&self, name: &PeerName) -> std::result::Result<Peer, Status> {
        let text = || format!("there is no peer {name}; `sojourn peer list` shows all");
        self.peers.get(name).ok_or_else(|| Status::not_found(text()))
    }

    async fn change_peers(&self, change: Change) -> std::result::Result<(), Status> {
        let peers = self.peers.clone();
        let changed = self.driver.visit(move |core| {
            match change {
                Change::Add(peer) => core.journal.add_peer(&peer)?,
                Change::Set(name, peering) => core.journal.set_peering(&name, &peering)?,
                Change::Invite(hash, until, peering) => {
                    core.journal.invite(&hash, until, &peering)?;
                }
            }
            peers.load(core.journal.peers()?, core.journal.inviting_until()?);
            core.peers_changed()
        });
        changed.await.map_err(down)?.map_err(|e| broken(&e))
    }
}

fn peer_message(peer: &Peer, (delegated_to, hosted_for): (u32, u32)) -> api::Peer {
    api::Peer {
        name: peer.name.to_string(),
        key: peer.key.to_string(),
        fingerprint: peer.key.fingerprint(),
        addresses: peer.addresses.clone(),
        reachable: matches!(peer.heard, Some(Ok(()))),
        trouble: match &peer.heard {
            Some(Err(why)) => why.clone(),
            None => "not tried since the node started".to_owned(),
            Some(Ok(())) => String::new(),
        },
        delegated_to,
        hosted_for,
        peering: Some(peering_message(&peer.peering)),
        grants: String::new(),
    }
}

fn peering_message(peering: &Peering) -> api::Peering {
    let Limits { vms, cpus, memory, disk, requests, rate } = peering.limits;
    api::Peering {
        may: peering.may.iter().map(ToString::to_string).collect(),
        vms,
        cpus,
        memory_bytes: memory.map(|bytes| bytes.0),
        disk_bytes: disk.map(|bytes| bytes.0),
        requests,
        rate_bytes: rate.map(|bytes| bytes.0),
        contract: peering.contract.clone(),
        marks: peering.marks.iter().cloned().collect(),
        ending_unix_ms: peering.ending.map(|at| at.0),
    }
}

/// What was asked for, checked; everything without a limit if nothing was.
fn peering_of(said: Option<api::Peering>) -> std::result::Result<Peering, Status> {
    let Some(said) = said else { return Ok(Peering::default()) };
    let rights: std::result::Result<_, _> =
        said.may.iter().map(|may| may.parse::<Right>()).collect();
    if said.requests == Some(0) || said.rate_bytes == Some(0) {
        return Err(bad(
            "a peer without requests or bytes could not even leave; `peer remove` ends a peering",
        ));
    }
    let peering = Peering {
        may: rights.map_err(bad)?,
        limits: Limits {
            vms: said.vms,
            cpus: said.cpus,
            memory: said.memory_bytes.map(Bytes),
            disk: said.disk_bytes.map(Bytes),
            requests: said.requests,
            rate: said.rate_bytes.map(Bytes),
        },
        contract: said.contract,
        marks: said.marks.into_iter().collect(),
        ending: None,
    };
    peering.check().map_err(bad)?;
    Ok(peering)
}
