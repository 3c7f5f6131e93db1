//! How another proxy is dialled: by the carriers that both have, at the addresses of its name.

use std::net::SocketAddr;
use std::time::Duration;

use model::{Carrier, ProxyUri, PublicKey};
use tokio::time::{sleep, timeout};

use crate::carrier::{Link, Port};
use crate::pilot;
use crate::session::OPEN_TIMEOUT;
use crate::tls::{Hint, TransferKey};

/// How long a carrier has before the next is tried beside it.
const HEAD_START: Duration = Duration::from_millis(400);

/// Addresses that are tried when a proxy is given by name.
const MAX_ADDRESSES: usize = 4;

/// Why nobody was reached.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    /// Of the carriers that the other has, none is allowed here. It will not get better.
    #[error("no carrier of the other proxy is allowed here")]
    Carrier,
    /// Over other carriers it would say the same.
    #[error("refused")]
    Refused,
    /// It may be there later.
    #[error("{0}")]
    Lost(String),
}

/// What is dialled, and what is shown there.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) uri: ProxyUri,
    /// The only carrier that is allowed, if one is.
    pub(crate) only: Option<Carrier>,
    /// The key shown.
    pub(crate) key: TransferKey,
    /// The key that must answer.
    pub(crate) peer: PublicKey,
    pub(crate) hint: Hint,
}

impl Call {
    /// The carriers that may be tried, in the order in which they are.
    pub(crate) fn carriers(&self) -> Vec<Carrier> {
        let allowed = |carrier: &&Carrier| self.only.is_none_or(|only| only == **carrier);
        self.uri.carriers().iter().filter(allowed).copied().collect()
    }

    /// Makes a session.
    pub(crate) async fn connect(&self, port: &Port) -> Result<Link, CallError> {
        let mut failure = CallError::Lost(format!("{}: no address", self.uri));
        for address in self.resolve().await? {
            failure = match self.connect_at(port, address).await {
                Err(error @ CallError::Lost(_)) => error,
                ended => return ended,
            };
        }
        Err(failure)
    }

    /// Makes a session over this carrier.
    pub(crate) async fn connect_over(&self, port: &Port, kind: Carrier) -> Result<Link, CallError> {
        let address = self.resolve().await?.first().copied();
        let none = || CallError::Lost(format!("{}: no address", self.uri));
        self.dial(port, kind, address.ok_or_else(none)?).await
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, CallError> {
        let authority = self.uri.authority();
        match timeout(OPEN_TIMEOUT, tokio::net::lookup_host(authority)).await {
            Ok(Ok(addresses)) => Ok(addresses.take(MAX_ADDRESSES).collect()),
            Ok(Err(error)) => Err(CallError::Lost(format!("{authority}: {error}"))),
            Err(_) => Err(CallError::Lost(format!("{authority}: no answer of the resolver"))),
        }
    }

    /// Tries the carriers that both ends have, the first with a head start; the first that answers
    /// is taken. On a near path that is the second, if it answers soon.
    async fn connect_at(&self, port: &Port, address: SocketAddr) -> Result<Link, CallError> {
        let mut kinds = self.carriers().into_iter();
        let first = kinds.next().ok_or(CallError::Carrier)?;
        let dial = |kind| self.dial(port, kind, address);
        let Some(second) = kinds.next() else { return dial(first).await };
        let late = async {
            sleep(HEAD_START).await;
            dial(second).await
        };
        let (mut sooner, mut later) = (std::pin::pin!(dial(first)), std::pin::pin!(late));
        let link = tokio::select! {
            dialled = &mut sooner => match dialled {
                Ok(link) => link,
                Err(CallError::Refused) => return Err(CallError::Refused),
                Err(_) => return dial(second).await,
            },
            dialled = &mut later => match dialled {
                Ok(link) => link,
                Err(_) => return sooner.await,
            },
        };
        if link.kind() == Carrier::Quic && pilot::is_near(link.trip()) {
            let other = timeout(HEAD_START, dial(second)).await;
            return Ok(other.ok().and_then(Result::ok).unwrap_or(link));
        }
        Ok(link)
    }

    async fn dial(
        &self,
        port: &Port,
        kind: Carrier,
        address: SocketAddr,
    ) -> Result<Link, CallError> {
        use crate::carrier::{Closed, Code};
        let dialling = port.dial(kind, address, self.key.clone(), &self.peer, &self.hint);
        match timeout(OPEN_TIMEOUT, dialling).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(Closed::ByPeer(Code::Refused))) => Err(CallError::Refused),
            Ok(Err(closed)) => Err(CallError::Lost(closed.to_string())),
            Err(_) => Err(CallError::Lost(format!("{address}: no answer"))),
        }
    }
}
