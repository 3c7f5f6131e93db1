//! What node and proxy say to each other, and its bytes: a length, then postcard. One parser.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{
    Bytes, Carrier, FileId, MigrationId, ProxyUri, PublicKey, SecretKey, Token, TokenHash, VmId,
    limit,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::order::{Dial, Pull, Relay, Serve, Share};
use crate::transfer::{End, Event, MAX_TELL_BYTES, Progress};

/// The protocol's name within TLS, so that no other port of the site is taken for this one.
pub(crate) const ALPN: &[u8] = b"sojourn-proxy";

/// The version of everything behind the greeting. One is spoken so far.
pub(crate) const VERSION: u8 = 3;

/// Size of a greeting, in bytes.
pub(crate) const MAX_GREETING_BYTES: usize = 512;

/// Length of a path in an order, in bytes; what Linux takes.
const MAX_PATH_BYTES: usize = 4096;

/// Size of one message, in bytes: the longest is an order with the paths of all files.
pub(crate) const MAX_FRAME_BYTES: usize = limit::MAX_FILES * 2 * (MAX_PATH_BYTES + 16) + 1024;
const _: () = assert!(MAX_TELL_BYTES + 1024 < MAX_FRAME_BYTES);

/// From the first packet of a connection until both ends are sure of each other.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an end with nothing to say says so.
pub(crate) const ALIVE_INTERVAL: Duration = Duration::from_secs(4);

/// A connection on which nothing comes, or nothing can be sent, for so long is over.
pub(crate) const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// The node's first words. Like [`Welcome`] the same in every version.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) lowest: u8,
    pub(crate) highest: u8,
}

/// The proxy's first words.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Welcome {
    /// Go on in this version. Proxies of other sites dial `uri`; those of this site dial the
    /// proxy's machine at `port`.
    Speak { version: u8, uri: ProxyUri, port: u16 },
    /// None of the node's versions is spoken here, but these are.
    Unsupported { lowest: u8, highest: u8 },
}

/// What the node wants. It prints nothing: some hold keys.
#[derive(Serialize, Deserialize)]
pub(crate) enum Order {
    /// See [`Serve`].
    Serve {
        migration: MigrationId,
        vm: VmId,
        token_hash: TokenHash,
        hint: [u8; 16],
        seed: Seed,
        peer_key: PublicKey,
        byte_budget: Bytes,
        dial: Option<Dial>,
        share: Share,
    },
    /// The files of a transfer that is served.
    Provide { migration: MigrationId, files: Vec<(FileId, RawPath)> },
    /// See [`Pull`].
    Pull {
        migration: MigrationId,
        vm: VmId,
        from: ProxyUri,
        token: Token,
        relay: Option<PublicKey>,
        seed: Seed,
        peer_key: PublicKey,
        folder: RawPath,
        budget: Bytes,
        expected: Vec<FileId>,
        basis: Vec<(FileId, RawPath)>,
        carrier: Option<Carrier>,
        share: Share,
    },
    /// See [`Relay`].
    Relay {
        migration: MigrationId,
        token_hash: TokenHash,
        hint: [u8; 16],
        seed: Seed,
        next: Dial,
        carrier: Option<Carrier>,
        share: Share,
    },
    /// The transfer is passed on no more.
    EndRelay { migration: MigrationId },
    /// A message for the node at the other end.
    Tell { migration: MigrationId, end: End, message: Vec<u8> },
    /// The transfer is over.
    Close { migration: MigrationId, end: End },
    /// These transfers are all that there are, and these are all that are passed on.
    Keep(Vec<(MigrationId, End)>, Vec<MigrationId>),
    /// Nothing; the connection lives.
    Alive,
}

/// What the proxy has to say.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// An event, as the proxy of a node's own process would tell it.
    Event(Event),
    /// How far a transfer is.
    Progress {
        migration: MigrationId,
        end: End,
        total: Bytes,
        done: Bytes,
        wire: Bytes,
        rate: Option<Bytes>,
        /// Since the first session opened.
        age: Option<Duration>,
    },
    /// All that happened before this connection was told.
    Synced,
    /// Nothing; the connection lives.
    Alive,
}

/// The private half of a transfer key. Said nowhere but on this channel.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Seed([u8; 32]);

impl Seed {
    fn of(key: &SecretKey) -> Self {
        Self(*key.seed())
    }

    fn key(&self) -> SecretKey {
        SecretKey::from_seed(&self.0)
    }
}

/// A path, in the bytes that the file system knows it by.
#[derive(Serialize, Deserialize)]
pub(crate) struct RawPath(Vec<u8>);

/// A path that means nothing on another machine, or nothing at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a path of the transfer is not absolute, or longer than {MAX_PATH_BYTES} bytes")]
pub(crate) struct BadPath;

impl RawPath {
    fn of(path: &Path) -> Result<Self, BadPath> {
        let bytes = path.as_os_str().as_bytes();
        let sound = path.is_absolute() && bytes.len() <= MAX_PATH_BYTES;
        sound.then(|| Self(bytes.to_vec())).ok_or(BadPath)
    }

    fn path(&self) -> Result<PathBuf, BadPath> {
        let path = PathBuf::from(OsStr::from_bytes(&self.0));
        if path.is_absolute() { Ok(path) } else { Err(BadPath) }
    }
}

impl Order {
    pub(crate) fn serve(serve: &Serve) -> Self {
        let Serve { migration, vm, token_hash, hint, key, peer_key, .. } = serve;
        Self::Serve {
            migration: *migration,
            vm: *vm,
            token_hash: *token_hash,
            hint: *hint,
            seed: Seed::of(key),
            peer_key: *peer_key,
            byte_budget: serve.byte_budget,
            dial: serve.dial.clone(),
            share: serve.share.clone(),
        }
    }

    pub(crate) fn relay(relay: &Relay) -> Self {
        let Relay { migration, token_hash, hint, key, next, carrier, share } = relay;
        Self::Relay {
            migration: *migration,
            token_hash: *token_hash,
            hint: *hint,
            seed: Seed::of(key),
            next: next.clone(),
            carrier: *carrier,
            share: share.clone(),
        }
    }

    pub(crate) fn provide(
        migration: MigrationId,
        files: &[(FileId, PathBuf)],
    ) -> Result<Self, BadPath> {
        if files.len() > limit::MAX_FILES {
            return Err(BadPath);
        }
        let files = files.iter().map(|(id, path)| Ok((*id, RawPath::of(path)?)));
        Ok(Self::Provide { migration, files: files.collect::<Result<_, _>>()? })
    }

    pub(crate) fn pull(pull: &Pull) -> Result<Self, BadPath> {
        let Pull { migration, vm, from, token, key, peer_key, folder, budget, .. } = pull;
        let Pull { expected, basis, carrier, share, .. } = pull;
        if expected.len() > limit::MAX_FILES || basis.len() > limit::MAX_FILES {
            return Err(BadPath);
        }
        let basis = basis.iter().map(|(id, path)| Ok((*id, RawPath::of(path)?)));
        Ok(Self::Pull {
            migration: *migration,
            vm: *vm,
            from: from.clone(),
            token: token.clone(),
            relay: pull.relay,
            seed: Seed::of(key),
            peer_key: *peer_key,
            folder: RawPath::of(folder)?,
            budget: *budget,
            expected: expected.clone(),
            basis: basis.collect::<Result<_, _>>()?,
            carrier: *carrier,
            share: share.clone(),
        })
    }

    /// Hands an order to what it is about.
    pub(crate) fn read(self) -> Result<Asked, BadPath> {
        Ok(match self {
            Self::Serve {
                migration,
                vm,
                token_hash,
                hint,
                seed,
                peer_key,
                byte_budget,
                dial,
                share,
            } => {
                let key = seed.key();
                Asked::Serve(Serve {
                    migration,
                    vm,
                    token_hash,
                    hint,
                    key,
                    peer_key,
                    byte_budget,
                    dial,
                    share,
                })
            }
            Self::Provide { migration, files } => {
                let files = files.iter().map(|(id, path)| Ok((*id, path.path()?)));
                Asked::Provide(migration, files.collect::<Result<_, _>>()?)
            }
            Self::Pull {
                migration,
                vm,
                from,
                token,
                relay,
                seed,
                peer_key,
                folder,
                budget,
                expected,
                basis,
                carrier,
                share,
            } => {
                let (key, folder) = (seed.key(), folder.path()?);
                let basis = basis.iter().map(|(id, path)| Ok((*id, path.path()?)));
                let basis = basis.collect::<Result<_, _>>()?;
                Asked::Pull(Pull {
                    migration,
                    vm,
                    from,
                    token,
                    relay,
                    key,
                    peer_key,
                    folder,
                    budget,
                    expected,
                    basis,
                    carrier,
                    share,
                })
            }
            Self::Tell { migration, end, message } => Asked::Tell(migration, end, message),
            Self::Close { migration, end } => Asked::Close(migration, end),
            Self::Relay { migration, token_hash, hint, seed, next, carrier, share } => {
                let key = seed.key();
                Asked::Relay(Relay { migration, token_hash, hint, key, next, carrier, share })
            }
            Self::EndRelay { migration } => Asked::EndRelay(migration),
            Self::Keep(open, passed) => Asked::Keep(open, passed),
            Self::Alive => Asked::Nothing,
        })
    }

    /// The transfer that it is about, if it is about one.
    pub(crate) fn transfer(&self) -> Option<(MigrationId, End)> {
        match self {
            Self::Serve { migration, .. } | Self::Provide { migration, .. } => {
                Some((*migration, End::Source))
            }
            Self::Pull { migration, .. } => Some((*migration, End::Target)),
            Self::Tell { migration, end, .. } | Self::Close { migration, end } => {
                Some((*migration, *end))
            }
            Self::Relay { .. } | Self::EndRelay { .. } | Self::Keep(..) | Self::Alive => None,
        }
    }
}

/// An [`Order`], understood.
pub(crate) enum Asked {
    Serve(Serve),
    Provide(MigrationId, Vec<(FileId, PathBuf)>),
    Pull(Pull),
    Tell(MigrationId, End, Vec<u8>),
    Close(MigrationId, End),
    Relay(Relay),
    EndRelay(MigrationId),
    Keep(Vec<(MigrationId, End)>, Vec<MigrationId>),
    Nothing,
}

impl Report {
    pub(crate) fn progress((migration, end): (MigrationId, End), progress: &Progress) -> Self {
        let Progress { total, done, wire, rate, started } = *progress;
        let age = started.map(|started| started.elapsed());
        Self::Progress { migration, end, total, done, wire, rate, age }
    }
}

/// Why a message did not come, or did not go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// The other end closed the connection.
    #[error("the other end closed the connection")]
    Closed,
    /// Nothing came or went.
    #[error("the other end is silent")]
    Silent,
    /// Longer than this kind of message may be.
    #[error("a message of {got} bytes, {limit} are allowed")]
    Long { got: usize, limit: usize },
    /// Not a message of the expected kind.
    #[error("a malformed message")]
    Malformed,
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Broken(error),
        }
    }
}

/// Sends messages of at most [`MAX_FRAME_BYTES`].
pub(crate) struct FrameWriter<W> {
    stream: W,
    /// As large as the largest message from the start: a buffer that grows leaves copies of keys
    /// behind.
    buffer: Zeroizing<Vec<u8>>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(crate) fn new(stream: W) -> Self {
        Self { stream, buffer: Zeroizing::new(vec![0; 4 + MAX_FRAME_BYTES]) }
    }

    pub(crate) async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), WireError> {
        let (length, body) = self.buffer.split_at_mut(4);
        let bytes = postcard::to_slice(message, body).map_err(|_| WireError::Malformed)?.len();
        length.copy_from_slice(&u32::try_from(bytes).expect("below the limit").to_be_bytes());
        let frame = &mut self.buffer[..4 + bytes];
        let sending = async {
            self.stream.write_all(frame).await?;
            self.stream.flush().await
        };
        let sent = timeout(SILENCE_LIMIT, sending).await;
        frame.zeroize();
        Ok(sent.map_err(|_| WireError::Silent)??)
    }
}

/// Receives one message of at most `limit` bytes.
pub(crate) async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<T, WireError> {
    let receiving = async {
        let got = stream.read_u32().await? as usize;
        if got > limit {
            return Err(WireError::Long { got, limit });
        }
        let mut body = Zeroizing::new(vec![0; got]);
        stream.read_exact(&mut body).await?;
        parse(&body)
    };
    timeout(SILENCE_LIMIT, receiving).await.map_err(|_| WireError::Silent)?
}

/// The one parser of everything that comes over the channel.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(seed: u8) -> MigrationId {
        MigrationId([seed; 16])
    }

    fn a_pull() -> Pull {
        Pull {
            migration: migration(1),
            vm: VmId([2; 16]),
            from: "quic://192.0.2.1:7420".parse().unwrap(),
            token: Token([3; 32]),
            relay: Some(PublicKey([8; 32])),
            key: SecretKey::from_seed(&[4; 32]),
            peer_key: PublicKey([5; 32]),
            folder: PathBuf::from(OsStr::from_bytes(b"/srv/\xff/vm")),
            budget: Bytes::mib(6),
            expected: vec![FileId::disk(0), FileId::STATE],
            basis: vec![(FileId::disk(0), "/srv/old.raw".into())],
            carrier: Some(Carrier::Tls),
            share: Share { weight: 3, urgent: true, rate: Some(Bytes(9)), ..Share::default() },
        }
    }

    fn a_dial() -> Dial {
        let uri = ProxyUri::dial_out();
        Dial { uri, token: Token([9; 32]), key: PublicKey([8; 32]) }
    }

    fn a_relay() -> Relay {
        Relay {
            migration: migration(1),
            token_hash: TokenHash([3; 32]),
            hint: [4; 16],
            key: SecretKey::from_seed(&[5; 32]),
            next: a_dial(),
            carrier: Some(Carrier::Quic),
            share: Share { weight: 2, ..Share::default() },
        }
    }

    fn a_serve() -> Serve {
        Serve {
            migration: migration(1),
            vm: VmId([2; 16]),
            token_hash: TokenHash([3; 32]),
            hint: [4; 16],
            key: SecretKey::from_seed(&[5; 32]),
            peer_key: PublicKey([6; 32]),
            byte_budget: Bytes::mib(7),
            dial: Some(a_dial()),
            share: Share::default(),
        }
    }

    fn through(order: &Order) -> Asked {
        let bytes = postcard::to_stdvec(order).unwrap();
        parse::<Order>(&bytes).unwrap().read().unwrap()
    }

    #[test]
    fn an_order_asks_for_the_same_on_the_other_side_keys_and_odd_paths_included() {
        let Asked::Serve(serve) = through(&Order::serve(&a_serve())) else { panic!("no serve") };
        assert!(serve.has_terms_of(&a_serve()));
        let Asked::Relay(relay) = through(&Order::relay(&a_relay())) else { panic!("no relay") };
        assert!(relay.has_terms_of(&a_relay()));
        let Asked::Pull(pull) = through(&Order::pull(&a_pull()).unwrap()) else {
            panic!("no pull")
        };
        assert!(pull.has_terms_of(&a_pull()));
        let files = vec![(FileId::disk(0), PathBuf::from("/srv/vm/disk0.raw"))];
        let order = Order::provide(migration(1), &files).unwrap();
        let Asked::Provide(about, provided) = through(&order) else { panic!("no provide") };
        assert_eq!((about, provided), (migration(1), files));
    }

    #[test]
    fn a_relative_or_endless_path_is_refused_on_both_sides() {
        for bad in ["vm/disk0.raw", "", &format!("/{}", "a".repeat(MAX_PATH_BYTES))] {
            let files = [(FileId::disk(0), PathBuf::from(bad))];
            assert!(Order::provide(migration(1), &files).is_err(), "{bad:?} was taken");
        }
        let folder = RawPath(b"../elsewhere".to_vec());
        assert_eq!(folder.path(), Err(BadPath));
    }

    #[tokio::test]
    async fn the_longest_messages_fit_their_frame_and_longer_ones_are_not_read() {
        let path = PathBuf::from(format!("/{}", "a".repeat(MAX_PATH_BYTES - 1)));
        let files: Vec<_> =
            (0..limit::MAX_FILES).map(|file| (FileId::disk(file), path.clone())).collect();
        let (near, mut far) = tokio::io::duplex(2 * MAX_FRAME_BYTES);
        let mut near = FrameWriter::new(near);
        near.send(&Order::provide(migration(1), &files).unwrap()).await.unwrap();
        let order: Order = receive(&mut far, MAX_FRAME_BYTES).await.unwrap();
        assert_eq!(order.transfer(), Some((migration(1), End::Source)));

        let message = vec![0; MAX_FRAME_BYTES];
        let order = Order::Tell { migration: migration(1), end: End::Source, message };
        assert!(matches!(near.send(&order).await, Err(WireError::Malformed)));

        near.stream.write_u32(MAX_FRAME_BYTES as u32 + 1).await.unwrap();
        let refused = receive::<Order>(&mut far, MAX_FRAME_BYTES).await;
        assert!(matches!(refused, Err(WireError::Long { .. })));
    }

    #[test]
    fn bytes_without_sense_cut_or_lengthened_never_panic_the_parser() {
        let good = postcard::to_stdvec(&Order::pull(&a_pull()).unwrap()).unwrap();
        for end in 0..good.len() {
            assert!(parse::<Order>(&good[..end]).is_err());
        }
        assert!(parse::<Order>(&[&good[..], &[0]].concat()).is_err());
        let mut seed = 1_u64;
        for length in 0..4000 {
            let bytes: Vec<u8> = (0..length % 97)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 56) as u8
                })
                .collect();
            let _ = parse::<Order>(&bytes).map(Order::read);
            let _ = parse::<Report>(&bytes);
            let _ = parse::<Hello>(&bytes);
            let _ = parse::<Welcome>(&bytes);
        }
    }
}
