//! A proxy process on real ports, the handle that its node has, and paths between the two.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use certs::Identity;
use model::{MigrationId, ProxyUri, SiteKey};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use transfer_proxy::{Event, PATIENCE, RemoteConfig, RemoteProxy, process};

use crate::site::{DEADLINE, Site, until};

/// The node of a site.
pub(crate) fn node(seed: u8) -> Arc<Identity> {
    Arc::new(Identity::from_seed(&[seed; 32]))
}

/// A node's handle, with its connection.
pub(crate) struct Handle {
    pub(crate) site: Site<RemoteProxy>,
    connection: JoinSet<()>,
}

impl Handle {
    fn new(config: RemoteConfig, node: Arc<Identity>, before: impl FnOnce(&RemoteProxy)) -> Self {
        let (sender, events) = mpsc::channel(256);
        let (proxy, connection) = RemoteProxy::new(config, node, sender);
        before(&proxy);
        let mut task = JoinSet::new();
        task.spawn(connection.run());
        Self { site: Site { proxy, events }, connection: task }
    }
}

impl Deref for Handle {
    type Target = Site<RemoteProxy>;

    fn deref(&self) -> &Site<RemoteProxy> {
        &self.site
    }
}

impl std::ops::DerefMut for Handle {
    fn deref_mut(&mut self) -> &mut Site<RemoteProxy> {
        &mut self.site
    }
}

/// A proxy process, and its node's handle of it.
pub(crate) struct Far {
    pub(crate) site: Site<RemoteProxy>,
    node: Arc<Identity>,
    identity: Identity,
    config: process::Config,
    running: Option<process::Running>,
    connection: JoinSet<()>,
}

impl Far {
    /// A proxy of the site whose node has this seed, connected.
    pub(crate) async fn start(seed: u8) -> Self {
        let (node, identity) = (node(seed), Identity::from_seed(&[seed | 0x80; 32]));
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut config =
            process::Config { listen: any, advertise: None, control: any, node: node.site_key() };
        let running = process::start(&config, identity.clone()).await.unwrap();
        (config.listen, config.control) =
            (running.uri.authority().parse().unwrap(), running.control);
        let remote = RemoteConfig {
            name: "far".into(),
            control: config.control,
            uri: running.uri.clone(),
            key: identity.site_key(),
            patience: PATIENCE,
        };
        let Handle { site, connection } = Handle::new(remote, node.clone(), |_| {});
        until("the node is connected", || site.proxy.is_connected()).await;
        Self { site, node, identity, config, running: Some(running), connection }
    }

    pub(crate) fn key(&self) -> SiteKey {
        self.identity.site_key()
    }

    pub(crate) fn uri(&self) -> ProxyUri {
        ProxyUri::at(self.config.listen)
    }

    pub(crate) fn control(&self) -> SocketAddr {
        self.config.control
    }

    /// Another handle of the same process.
    pub(crate) fn handle_of(
        &self,
        node: Arc<Identity>,
        key: SiteKey,
        uri: ProxyUri,
        patience: Duration,
    ) -> Handle {
        let control = self.config.control;
        let remote = RemoteConfig { name: "far".into(), control, uri, key, patience };
        Handle::new(remote, node, |_| {})
    }

    /// Ends the process as a crash would.
    pub(crate) async fn kill(&mut self) {
        drop(self.running.take());
        until("the node has noticed", || !self.site.proxy.is_connected()).await;
    }

    /// Starts it again on the same ports.
    pub(crate) async fn restart(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match process::start(&self.config, self.identity.clone()).await {
                Ok(running) => break self.running = Some(running),
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// The node ends, and a new one gives the orders that it knows of.
    pub(crate) fn restart_node(&mut self, orders: impl FnOnce(&RemoteProxy)) -> Handle {
        self.connection.abort_all();
        let remote = RemoteConfig {
            name: "far".into(),
            control: self.config.control,
            uri: self.uri(),
            key: self.key(),
            patience: PATIENCE,
        };
        Handle::new(remote, self.node.clone(), orders)
    }

    /// Waits until the other end closed a transfer.
    pub(crate) async fn closed(&mut self) -> MigrationId {
        self.site
            .wait(|event| match event {
                Event::Closed { migration, .. } => Some(*migration),
                _ => None,
            })
            .await
    }

    /// Waits until the other end closed this transfer.
    pub(crate) async fn closed_of(&mut self, wanted: MigrationId) {
        while self.closed().await != wanted {}
    }
}

/// A TCP path that can be cut and mended.
pub(crate) struct Path {
    whole: watch::Sender<bool>,
    _far: Far,
    _task: JoinSet<()>,
}

impl Path {
    /// Puts a path between a process and a new handle of it; the old handle goes.
    pub(crate) async fn to(mut far: Far) -> (Self, Handle) {
        far.connection.shutdown().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let remote = RemoteConfig {
            name: "far".into(),
            control: listener.local_addr().unwrap(),
            uri: far.uri(),
            key: far.key(),
            patience: PATIENCE,
        };
        let whole = watch::Sender::new(true);
        let mut task = JoinSet::new();
        task.spawn(forward(listener, far.control(), whole.subscribe()));
        let handle = Handle::new(remote, far.node.clone(), |_| {});
        until("the node is connected", || handle.proxy.is_connected()).await;
        (Self { whole, _far: far, _task: task }, handle)
    }

    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn forward(listener: TcpListener, to: SocketAddr, mut whole: watch::Receiver<bool>) {
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        if !*whole.borrow_and_update() {
            continue;
        }
        let mut far = TcpStream::connect(to).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            _ = whole.wait_for(|whole| !whole) => {}
        }
    }
}

/// A bare connection to a control port. One that is refused is found out by reading.
pub(crate) async fn call(
    node: &Identity,
    key: SiteKey,
    control: SocketAddr,
) -> TlsStream<TcpStream> {
    let mut tls = Arc::unwrap_or_clone(certs::client_config(node, key).unwrap());
    tls.alpn_protocols = vec![b"sojourn-proxy".to_vec()];
    let stream = TcpStream::connect(control).await.unwrap();
    let tls = TlsConnector::from(Arc::new(tls));
    tls.connect(certs::server_name(&key), stream).await.unwrap()
}
