//! The peers of the node, which this process plays: each has its identity, an address at which it
//! answers the node, and connections of its own to the node.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use certs::{Identity, Ticket};
use federation_tests::bench::{Failure, Wire, admin, dial};
use model::{PeerName, SiteKey};
use proto::admin::{InviteRequest, Peering};
use proto::federation::JoinRequest;
use proto::federation::federation_client::FederationClient;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::serve::Server;

/// A connection to a server, which sends no more than it is told to.
pub(crate) type Line = FederationClient<Channel>;

/// Connections that are made at once.
const AT_ONCE: usize = 16;
/// Requests a second that a peer may make: never what is measured.
const RATE: u32 = 1_000_000;

/// One of them.
pub(crate) struct Peer {
    pub(crate) name: PeerName,
    pub(crate) identity: Arc<Identity>,
    address: SocketAddr,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Peers {
    pub(crate) all: Vec<Peer>,
    told: Arc<AtomicU64>,
}

impl Peers {
    /// Has more of them join the site in `folder`, until there are so many: each with a ticket, by
    /// a connection of its own.
    ///
    /// They may place VMs there and host none: whoever may host is asked for a place with every
    /// request of another.
    pub(crate) async fn join(
        &mut self,
        site: SiteKey,
        folder: &Path,
        count: usize,
    ) -> Result<(), Failure> {
        let mut node = admin(folder).await?;
        for at in self.all.len()..count {
            let peer = Peer::start(at, site, self.told.clone()).await?;
            let may = vec!["place".to_owned()];
            let peering = Peering { may, requests: Some(RATE), ..Peering::default() };
            let invite = InviteRequest { peering: Some(peering), ..InviteRequest::default() };
            let invitation = node.invite(invite).await?.into_inner();
            let ticket = Ticket::parse(&invitation.ticket)?;
            let mut line = peer.dial(site, &ticket.addresses()[0]).await?;
            let request = JoinRequest {
                secret: ticket.secret().as_bytes().to_vec(),
                name: peer.name.to_string(),
                addresses: vec![peer.address.to_string()],
            };
            line.join(request).await?;
            self.all.push(peer);
        }
        Ok(())
    }

    /// Connects all of them to the site of this key, in turn, so often that there are `count`
    /// connections.
    pub(crate) async fn connect(
        &self,
        site: SiteKey,
        address: SocketAddr,
        count: usize,
    ) -> Result<Arc<[Line]>, Failure> {
        let mut lines: Vec<Option<Line>> = (0..count).map(|_| None).collect();
        let mut under_way = JoinSet::new();
        for at in 0..count {
            if under_way.len() >= AT_ONCE {
                keep(&mut lines, under_way.join_next().await)?;
            }
            let identity = self.all[at % self.all.len()].identity.clone();
            under_way.spawn(async move {
                let channel = dial(&identity, site, &address.to_string(), &Wire::default()).await;
                channel.map(|channel| (at, FederationClient::new(channel)))
            });
        }
        while !under_way.is_empty() {
            keep(&mut lines, under_way.join_next().await)?;
        }
        Ok(lines.into_iter().flatten().collect())
    }

    /// How often the node has told any of them something.
    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }
}

/// How a connection that was tried ended.
type Tried = Option<Result<Result<(usize, Line), Failure>, tokio::task::JoinError>>;

fn keep(lines: &mut [Option<Line>], tried: Tried) -> Result<(), Failure> {
    let (at, line) = tried.ok_or("a connection was under way")???;
    lines[at] = Some(line);
    Ok(())
}

impl Peer {
    async fn start(at: usize, site: SiteKey, told: Arc<AtomicU64>) -> Result<Self, Failure> {
        let mut seed = [77; 32];
        seed[..8].copy_from_slice(&(at as u64).to_be_bytes());
        let identity = Arc::new(Identity::from_seed(&seed));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let server = Server::Peer { identity: identity.clone(), site, told };
        server.start(&identity, listener)?;
        Ok(Self { name: format!("peer{at:04}").parse()?, identity, address })
    }

    async fn dial(&self, site: SiteKey, address: &str) -> Result<Line, Failure> {
        let channel = dial(&self.identity, site, address, &Wire::default()).await?;
        Ok(FederationClient::new(channel))
    }
}
