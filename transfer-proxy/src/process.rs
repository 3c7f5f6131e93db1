//! A proxy as a process of its own, for machines whose files the node's process does not reach, or
//! should not move.
//!
//! It has a folder with its identity and its configuration, and keeps nothing else. Its node is
//! the only one that it obeys.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use certs::{Identity, IdentityError};
use model::{ProxyUri, SiteKey};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::carrier::ResetKey;
use crate::order::TransferProxy;
use crate::proxy::{Limits, Proxy};
use crate::remote::ControlPort;

/// The configuration's name in the proxy's folder.
pub const FILE: &str = "proxy.toml";

/// Events that wait for the control port.
const EVENTS: usize = 256;

/// What an operator sets. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where proxies of other sites come in, UDP and TCP. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// What they dial, if it is another: `ADDRESS:PORT`, with `tls://` or `quic://` before it where
    /// only TCP or only UDP is open, or `dial-out` where nothing comes in.
    #[serde(
        default,
        deserialize_with = "model::configured_uri_if_any",
        skip_serializing_if = "Option::is_none"
    )]
    pub advertise: Option<ProxyUri>,
    /// Where the node comes in, TCP. Port 0 takes a free one.
    pub control: SocketAddr,
    /// The key of the node's site.
    pub node: SiteKey,
}

/// Why a proxy's folder cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is no proxy there.
    #[error("{0} is not a proxy's folder; make one with `sojourn proxy init {0}`")]
    NoProxy(PathBuf),
    /// There is one already.
    #[error("{0} holds a proxy already; nothing was changed")]
    Exists(PathBuf),
    /// Its configuration is not legal.
    #[error("{path} is not a legal configuration:\n{reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// Its identity is missing or unsafe.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The disk says no.
    #[error("cannot use {path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> FolderError + '_ {
    move |source| FolderError::Io { path: path.to_owned(), source }
}

/// Makes a new proxy in `folder`: identity and configuration.
pub fn init(folder: &Path, config: &Config) -> Result<Identity, FolderError> {
    let path = folder.join(FILE);
    if path.exists() || folder.join(certs::KEY_FILE).exists() {
        return Err(FolderError::Exists(folder.to_owned()));
    }
    let mut make = std::fs::DirBuilder::new();
    make.recursive(true).mode(0o700).create(folder).map_err(io_error(folder))?;
    let identity = Identity::create(folder)?;
    let body = toml::to_string_pretty(config).expect("a configuration is plain data");
    let text = format!("# Sojourn transfer proxy. Unknown keys are errors.\n{body}");
    std::fs::write(&path, text).map_err(io_error(&path))?;
    Ok(identity)
}

/// Reads what [`init`] made.
pub fn load(folder: &Path) -> Result<(Config, Identity), FolderError> {
    let path = folder.join(FILE);
    let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FolderError::NoProxy(folder.to_owned()),
        _ => io_error(&path)(error),
    })?;
    let config = toml::from_str(&text)
        .map_err(|error| FolderError::Config { path: path.clone(), reason: error.to_string() })?;
    Ok((config, Identity::load(folder)?))
}

/// Why a proxy process does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control port cannot be listened at.
    #[error("cannot listen at TCP {address} for the node; is another program using it?")]
    Control {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data port.
    #[error(transparent)]
    Data(#[from] crate::StartError),
}

/// A proxy process that runs. Dropped, it ends without telling others in good order.
pub struct Running {
    /// Where its node comes in.
    pub control: SocketAddr,
    /// Where proxies of other sites dial it.
    pub uri: ProxyUri,
    proxy: Proxy,
    port: JoinSet<()>,
}

/// Opens both ports and serves.
pub async fn start(config: &Config, identity: Identity) -> Result<Running, StartError> {
    let Config { listen, ref advertise, control: address, node } = *config;
    let advertise = advertise.clone();
    let control = |source| StartError::Control { address, source };
    let listener = TcpListener::bind(address).await.map_err(control)?;
    let at = listener.local_addr().map_err(control)?;
    let (sender, events) = mpsc::channel(EVENTS);
    let reset = ResetKey::of(&identity);
    let data =
        crate::Config { listen, shares_tcp: false, advertise, limits: Limits::default(), reset };
    let proxy = Proxy::start(data, sender).await?;
    let mut port = JoinSet::new();
    port.spawn(ControlPort { listener, identity, node, proxy: proxy.clone(), events }.run());
    Ok(Running { control: at, uri: proxy.uri(), proxy, port })
}

impl Running {
    /// Ends the process' work. Transfers are interrupted, not closed: the other ends try again.
    pub async fn shut_down(mut self) {
        self.port.shutdown().await;
        self.proxy.shut_down().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            listen: "127.0.0.1:7420".parse().unwrap(),
            advertise: None,
            control: "127.0.0.1:7421".parse().unwrap(),
            node: SiteKey([7; 32]),
        }
    }

    #[test]
    fn a_folder_that_was_made_is_read_back_and_never_made_over() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("proxy");
        assert!(matches!(load(&folder), Err(FolderError::NoProxy(_))));
        let made = init(&folder, &config()).unwrap();
        let (read, identity) = load(&folder).unwrap();
        assert_eq!((read, identity.site_key()), (config(), made.site_key()));
        assert!(matches!(init(&folder, &config()), Err(FolderError::Exists(_))));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        init(&folder.path().join("proxy"), &config()).unwrap();
        let path = folder.path().join("proxy").join(FILE);
        let text = std::fs::read_to_string(&path).unwrap() + "contrl = 1\n";
        std::fs::write(&path, text).unwrap();
        let error = load(&folder.path().join("proxy")).err().unwrap().to_string();
        assert!(error.contains("line 5") && error.contains("contrl"), "{error}");
    }
}
