//! Two ends of a transfer, and what a test needs of them.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use model::{Bytes, Carrier, Digest, FileId, MigrationId, ProxyUri, SecretKey, Token, VmId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use transfer_proxy::{
    Config, End, Event, Limits, Proxy, Pull, ResetKey, Serve, Share, StartError, TransferProxy,
};

pub(crate) const MIB: u64 = 1 << 20;

/// No step of any test takes so long on a machine that works.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Site<P = Proxy> {
    pub(crate) proxy: P,
    pub(crate) events: mpsc::Receiver<Event>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::try_start("127.0.0.1:0".parse().unwrap()).await.unwrap()
    }

    /// With room for so many transfers at once.
    pub(crate) async fn with_room(count: usize) -> Self {
        let (sender, events) = mpsc::channel(64);
        let limits = Limits { pulls: count, sessions: count, ..Limits::default() };
        let config = config("127.0.0.1:0".parse().unwrap(), limits);
        Self { proxy: Proxy::start(config, sender).await.unwrap(), events }
    }

    /// Takes the place of a site that just ended, whose port may take a moment to be free.
    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match Self::try_start(address).await {
                Ok(site) => return site,
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    }

    pub(crate) async fn try_start(listen: SocketAddr) -> Result<Self, StartError> {
        let (sender, events) = mpsc::channel(64);
        Ok(Self { proxy: Proxy::start(config(listen, Limits::default()), sender).await?, events })
    }
}

/// The configuration of a proxy; one that listens where another did is the same proxy.
pub(crate) fn config(listen: SocketAddr, limits: Limits) -> Config {
    let reset = ResetKey::of(&certs::Identity::from_seed(&[1; 32]));
    Config { listen, shares_tcp: false, advertise: None, limits, reset }
}

impl<P: TransferProxy> Site<P> {
    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.uri().authority().parse().unwrap()
    }

    /// Waits for the first event that `wanted` takes; others are dropped.
    pub(crate) async fn wait<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let found = timeout(DEADLINE, async {
            loop {
                let event = self.events.recv().await.expect("the proxy runs");
                if let Some(found) = wanted(&event) {
                    return found;
                }
                seen.push(event);
            }
        });
        found.await.unwrap_or_else(|_| panic!("only these events came: {seen:?}"))
    }

    pub(crate) async fn opened(&mut self) {
        self.wait(|event| matches!(event, Event::Opened { .. }).then_some(())).await;
    }

    pub(crate) async fn sent(&mut self) -> model::Digest {
        self.wait(|event| match event {
            Event::Sent { digest, .. } => Some(*digest),
            Event::Failed { final_: true, error, .. } => panic!("{error}"),
            _ => None,
        })
        .await
    }

    /// The digest, and the bytes on the wire.
    pub(crate) async fn received(&mut self) -> (model::Digest, u64) {
        self.wait(|event| match event {
            Event::Received { digest, wire, .. } => Some((*digest, wire.0)),
            Event::Failed { final_: true, error, .. } => panic!("{error}"),
            _ => None,
        })
        .await
    }

    /// The error of the next final failure. Nothing may count as received before.
    pub(crate) async fn failed_for_good(&mut self) -> String {
        self.wait(|event| match event {
            Event::Failed { final_: true, error, .. } => Some(error.clone()),
            Event::Received { .. } => panic!("received what cannot be received"),
            _ => None,
        })
        .await
    }

    /// The error of the next failure that is tried again.
    pub(crate) async fn stumbled(&mut self) -> String {
        self.wait(|event| match event {
            Event::Failed { final_: false, error, .. } => Some(error.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn told(&mut self, wanted: End) -> Vec<u8> {
        self.wait(|event| match event {
            Event::Told { end, message, .. } if *end == wanted => Some(message.clone()),
            _ => None,
        })
        .await
    }
}

/// One migration: keys, token, and a folder for either end.
pub(crate) struct Move {
    /// The only one that the target may use, if there is one.
    pub(crate) carrier: Option<Carrier>,
    pub(crate) migration: MigrationId,
    pub(crate) vm: VmId,
    pub(crate) token: Token,
    pub(crate) source_key: SecretKey,
    pub(crate) target_key: SecretKey,
    folder: tempfile::TempDir,
}

impl Move {
    pub(crate) fn over(carrier: Carrier) -> Self {
        Self { carrier: Some(carrier), ..Self::new() }
    }

    pub(crate) fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let seed = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("source")).unwrap();
        Self {
            carrier: None,
            migration: MigrationId([seed; 16]),
            vm: VmId([7; 16]),
            token: Token([seed; 32]),
            source_key: SecretKey::from_seed(&[seed; 32]),
            target_key: SecretKey::from_seed(&[!seed; 32]),
            folder,
        }
    }

    pub(crate) fn serve(&self) -> Serve {
        Serve {
            migration: self.migration,
            vm: self.vm,
            token_hash: self.token.hash(),
            hint: self.token.hint(),
            key: self.source_key.clone(),
            peer_key: self.target_key.public(),
            byte_budget: Bytes::mib(4096),
            dial: None,
            share: Share::default(),
        }
    }

    pub(crate) fn pull(&self, from: ProxyUri) -> Pull {
        Pull {
            migration: self.migration,
            vm: self.vm,
            from,
            token: self.token.clone(),
            relay: None,
            key: self.target_key.clone(),
            peer_key: self.source_key.public(),
            folder: self.target(),
            budget: Bytes::mib(1024),
            expected: (0..4).map(FileId::disk).chain([FileId::STATE]).collect(),
            basis: vec![],
            carrier: self.carrier,
            share: Share::default(),
        }
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.folder.path().join("target")
    }

    pub(crate) fn source_file(&self, id: FileId) -> PathBuf {
        self.folder.path().join("source").join(id.file_name())
    }

    pub(crate) fn target_file(&self, id: FileId) -> PathBuf {
        self.target().join(id.file_name())
    }

    /// Makes a file at the source: `size` bytes, all hole but the pieces (offset, length).
    pub(crate) fn file(&self, id: FileId, size: u64, pieces: &[(u64, u64)]) -> (FileId, PathBuf) {
        let path = self.source_file(id);
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in pieces {
            file.write_all_at(&noise(*offset, *length), *offset).unwrap();
        }
        (id, path)
    }

    /// A disk of `mib` MiB of data.
    pub(crate) fn full_disk(&self, mib: u64) -> (FileId, PathBuf) {
        self.file(FileId::disk(0), mib * MIB, &[(0, mib * MIB)])
    }

    pub(crate) fn assert_equal(&self, id: FileId) {
        let source = std::fs::read(self.source_file(id)).unwrap();
        assert!(std::fs::read(self.target_file(id)).unwrap() == source, "{id} differs");
    }

    /// What a file at the source is: its hash, and when it was written last.
    pub(crate) fn fingerprint(&self, id: FileId) -> (Digest, SystemTime) {
        let path = self.source_file(id);
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        (Digest::of(&std::fs::read(&path).unwrap()), modified)
    }

    pub(crate) fn assert_nothing_written(&self) {
        assert!(!self.target().exists(), "the folder was made");
    }
}

/// Bytes that do not repeat.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(length as usize + 8);
    while (bytes.len() as u64) < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes
}

/// Bytes that a file takes on disk.
pub(crate) fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Waits until `holds`.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
