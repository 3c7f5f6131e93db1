//! `peer`: other sites that this one trusts directly, and what each may do here.

use std::time::{Duration, Instant};

use proto::admin as api;
use serde_json::json;

use crate::args::{Peer, Terms};
use crate::client::Client;
use crate::commands::follow_all;
use crate::exit::Failure;
use crate::output::{Output, bytes, peer_value, time};

/// How long a peer is waited for when all that was shared with it has moved.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How often it is looked whether it is gone.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) async fn peer(verb: Peer, node: &mut Client, output: &Output) -> Result<(), Failure> {
    match verb {
        Peer::Invite { valid, terms } => {
            let peering = Some(terms.change(everything()));
            let made = node.invite(api::InviteRequest { valid_seconds: valid, peering }).await?;
            let made = made.into_inner();
            output.one(
                &json!({ "ticket": made.ticket, "expires_unix_ms": made.expires_unix_ms }),
                || made.ticket.clone(),
            );
            output.remark(&format!(
                "good once, until {}; at the other site: sojourn peer join TICKET",
                time(made.expires_unix_ms)
            ));
        }
        Peer::Join { ticket, name, terms } => {
            let peering = Some(terms.change(everything()));
            let ask = api::JoinTicket { ticket, name: name.unwrap_or_default(), peering };
            let peer = node.join(ask).await?.into_inner();
            output.one(&peer_value(&peer), || {
                format!("joined {}; its fingerprint is {}", peer.name, peer.fingerprint)
            });
            if !peer.grants.is_empty() {
                output.remark(&format!("there, this site {}", peer.grants));
            }
        }
        Peer::List => {
            let peers = node.list_peers(api::Nothing {}).await?.into_inner().peers;
            let heading =
                ["NAME", "FINGERPRINT", "ANSWERS", "MAY", "DELEGATED", "HOSTED", "ADDRESSES"];
            output.list(&peers, peer_value, &heading, |p| {
                vec![
                    p.name.clone(),
                    p.fingerprint.clone(),
                    answers(p),
                    p.peering.as_ref().map_or_else(String::new, rights),
                    p.delegated_to.to_string(),
                    p.hosted_for.to_string(),
                    p.addresses.join(" "),
                ]
            });
        }
        Peer::Show { peer } => show(&find(&peer, node).await?, output),
        Peer::Set { peer, terms } => {
            let known = find(&peer, node).await?;
            let peering = Some(terms.change(known.peering.unwrap_or_default()));
            let changed = node.set_peer(api::SetPeerRequest { name: peer, peering }).await?;
            show(&changed.into_inner(), output);
        }
        Peer::Remove { peer, deadline, undo, detach } => {
            let ask =
                api::RemovePeerRequest { name: peer.clone(), deadline_seconds: deadline, undo };
            let began = node.remove_peer(ask).await?.into_inner().operations;
            if undo {
                output.one(&json!({ "kept": peer }), || {
                    format!("{peer} stays a peer; what is under way goes on (`sojourn op list`)")
                });
                return Ok(());
            }
            if !began.is_empty() {
                let (count, them) = (began.len(), if began.len() == 1 { "it" } else { "they" });
                output.remark(&format!(
                    "{count} VMs are shared with {peer}; {peer} is a peer until {them} moved away"
                ));
                follow_all(began, detach, node, output).await?;
            }
            let ended = has_left(&peer, detach, node).await?;
            output.one(&json!({ "peer": peer, "removed": ended }), || match ended {
                true => format!("{peer} is no peer any more"),
                false => {
                    format!("{peer} is being removed; `sojourn peer show {peer}` tells how far")
                }
            });
        }
    }
    Ok(())
}

/// Whether it is no peer any more. What was moved has to be told to it first, which takes a moment.
async fn has_left(name: &str, detach: bool, node: &mut Client) -> Result<bool, Failure> {
    let until = Instant::now() + if detach { Duration::ZERO } else { LAST_WORDS };
    loop {
        let peers = node.list_peers(api::Nothing {}).await?.into_inner().peers;
        if peers.iter().all(|known| known.name != name) {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn find(name: &str, node: &mut Client) -> Result<api::Peer, Failure> {
    let peers = node.list_peers(api::Nothing {}).await?.into_inner().peers;
    peers.into_iter().find(|known| known.name == name).ok_or_else(|| {
        let text = format!("there is no peer {name}; `sojourn peer list` shows all");
        Failure::new(crate::exit::NOT_FOUND, text)
    })
}

fn show(peer: &api::Peer, output: &Output) {
    output.one(&peer_value(peer), || {
        let mut lines = vec![
            ("name", peer.name.clone()),
            ("fingerprint", peer.fingerprint.clone()),
            ("key", peer.key.clone()),
            ("addresses", peer.addresses.join(" ")),
            ("answers", answers(peer)),
            ("delegated", format!("{} VMs", peer.delegated_to)),
            ("hosted", format!("{} VMs", peer.hosted_for)),
        ];
        if let Some(peering) = &peer.peering {
            lines.push(("may", rights(peering)));
            let most = limits(peering);
            lines.extend((!most.is_empty()).then(|| ("at most", most.join(", "))));
            lines.extend(peering.contract.clone().map(|contract| ("contract", contract)));
            let marks = peering.marks.join(" ");
            lines.extend((!marks.is_empty()).then_some(("marks", marks)));
            let ending = peering.ending_unix_ms;
            lines.extend(ending.map(|at| ("ends", format!("VMs here run until {}", time(at)))));
        }
        let lines = lines.into_iter().map(|(what, text)| format!("{what:<12} {text}"));
        let trouble = (!peer.reachable).then(|| peer.trouble.clone());
        lines.chain(trouble).collect::<Vec<_>>().join("\n")
    });
}

fn answers(peer: &api::Peer) -> String {
    match (peer.reachable, peer.trouble.starts_with("not tried")) {
        (true, _) => "yes",
        (false, true) => "not tried",
        (false, false) => "no",
    }
    .to_owned()
}

fn rights(peering: &api::Peering) -> String {
    match (peering.ending_unix_ms, peering.may.is_empty()) {
        (Some(_), _) => "leave".to_owned(),
        (None, true) => "nothing".to_owned(),
        (None, false) => peering.may.join(","),
    }
}

fn limits(peering: &api::Peering) -> Vec<String> {
    let most = [
        peering.vms.map(|n| format!("{n} VMs")),
        peering.cpus.map(|n| format!("{n} processors")),
        peering.memory_bytes.map(|n| format!("{} of memory", bytes(n))),
        peering.disk_bytes.map(|n| format!("{} of disk", bytes(n))),
        peering.requests.map(|n| format!("{n} requests a second")),
        peering.rate_bytes.map(|n| format!("{} a second", bytes(n))),
    ];
    most.into_iter().flatten().collect()
}

/// What a peer may do of which nothing was said.
fn everything() -> api::Peering {
    let may = model::Right::ALL.map(|right| right.to_string()).into();
    api::Peering { may, ..api::Peering::default() }
}

impl Terms {
    /// The terms that come of what was typed.
    fn change(self, before: api::Peering) -> api::Peering {
        let may = match self.may.as_deref() {
            None => before.may,
            Some("nothing") => vec![],
            Some(rights) => rights.split(',').map(|right| right.trim().to_owned()).collect(),
        };
        let contract = match self.contract.as_deref() {
            None => before.contract,
            Some("none") => None,
            Some(contract) => Some(contract.to_owned()),
        };
        let kept = before.marks.into_iter().filter(|mark| !self.unmark.contains(mark));
        api::Peering {
            may,
            vms: self.vms.map_or(before.vms, |cap| cap.0),
            cpus: self.cpus.map_or(before.cpus, |cap| cap.0),
            memory_bytes: self.memory.map_or(before.memory_bytes, |cap| cap.0.map(|b| b.0)),
            disk_bytes: self.disk.map_or(before.disk_bytes, |cap| cap.0.map(|b| b.0)),
            requests: self.requests.map_or(before.requests, |cap| cap.0),
            rate_bytes: self.rate.map_or(before.rate_bytes, |cap| cap.0.map(|b| b.0)),
            contract,
            marks: kept.chain(self.mark).collect(),
            ending_unix_ms: before.ending_unix_ms,
        }
    }
}
