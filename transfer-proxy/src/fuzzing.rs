//! What comes over a session and over the channel to a proxy, read as by the other end: for
//! fuzzing. The messages are this crate's own, so what must hold of them is checked here.

use model::Manifest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::message::{self, Control, Fetch};
use crate::remote::wire::{self, Asked, Hello, Order, Report, Welcome};
use crate::tls::hint_among;

/// One frame of a session, behind its length, taken for a message of each kind. Gives what the
/// other end's node tells, or the manifest, for whom these are meant.
///
/// # Panics
///
/// If a message that was read is another one when it is written and read again.
pub fn session(body: &[u8]) -> (Option<Vec<u8>>, Option<Manifest>) {
    let framed = |bytes: Vec<u8>| bytes[4..].to_vec();
    let control: Option<Control> = message::parse(body).ok();
    if let Some(control) = &control {
        assert_eq!(message::parse(&framed(message::frame(control))).as_ref(), Ok(control));
    }
    if let Ok(fetch) = message::parse::<Fetch>(body) {
        assert_eq!(message::parse(&framed(message::frame(&fetch))), Ok(fetch));
    }
    let manifest: Option<Manifest> = message::parse(body).ok();
    if let Some(manifest) = &manifest {
        assert_eq!(message::parse(&framed(message::frame(manifest))).as_ref(), Ok(manifest));
    }
    let told = match control {
        Some(Control::Tell { body, .. }) => Some(body),
        _ => None,
    };
    (told, manifest)
}

/// Everything that comes over the channel between a node and its proxy, as each of the two ends
/// reads it, up to the first message that is none.
///
/// # Panics
///
/// If a message that was read is another one when it is written and read again, or an order that
/// is taken names a path that is not absolute.
pub async fn channel(stream: &[u8]) {
    let mut from_node = stream;
    if wire::receive::<Hello>(&mut from_node, wire::MAX_GREETING_BYTES).await.is_ok() {
        while let Ok(order) = wire::receive::<Order>(&mut from_node, wire::MAX_FRAME_BYTES).await {
            reads_back(&order);
            let transfer = order.transfer();
            match order.read() {
                Ok(Asked::Provide(migration, files)) => {
                    assert_eq!(transfer.map(|(about, _)| about), Some(migration));
                    assert!(files.iter().all(|(_, path)| path.is_absolute()));
                }
                Ok(Asked::Pull(pull)) => assert!(pull.folder.is_absolute()),
                Ok(_) | Err(wire::BadPath) => {}
            }
        }
    }
    let mut from_proxy = stream;
    if wire::receive::<Welcome>(&mut from_proxy, wire::MAX_GREETING_BYTES).await.is_ok() {
        while let Ok(report) = wire::receive::<Report>(&mut from_proxy, wire::MAX_FRAME_BYTES).await
        {
            reads_back(&report);
        }
    }
}

/// Some messages hold keys and cannot be compared; their bytes can.
fn reads_back<T: Serialize + DeserializeOwned>(message: &T) {
    let bytes = postcard::to_stdvec(message).expect("messages are plain data");
    let Ok(back) = wire::parse::<T>(&bytes) else { panic!("what was written is not read") };
    assert_eq!(postcard::to_stdvec(&back).expect("messages are plain data"), bytes);
}

/// The hint among the protocols that a dialler offers, which stand in `offered` with a byte of
/// length before each (RFC 7301, section 3.1).
///
/// # Panics
///
/// If the hint is none of the protocols.
pub fn hint(offered: &[u8]) -> Option<[u8; 16]> {
    let mut names: Vec<&[u8]> = vec![];
    let mut rest = offered;
    while let Some((&length, behind)) = rest.split_first() {
        let Some((name, more)) = behind.split_at_checked(length.into()) else { break };
        names.push(name);
        rest = more;
    }
    let hint = hint_among(names.iter().copied())?;
    let text = data_encoding::HEXLOWER.encode(&hint);
    assert!(names.contains(&text.as_bytes()));
    Some(hint)
}
