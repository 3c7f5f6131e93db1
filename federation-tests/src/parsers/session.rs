//! The transfer session, the channel to a proxy of the site's own, and QMP.

use super::block_on;

/// Bytes that a socket takes without a reader.
const SOCKET_BYTES: usize = 64 << 10;

/// Bytes of the chunk that a piece is about.
const CHUNK_BYTES: usize = 9 * 4096 + 5;

/// One frame of a transfer session: a control message, or what stands before a chunk, with the
/// bytes behind it; the first byte is then the length of that frame.
///
/// # Panics
///
/// If a promise is broken.
pub fn session(data: &[u8]) {
    if let Some(told) = transfer_proxy::fuzzing::session(data) {
        super::told(&told);
    }
    if let Some((&length, rest)) = data.split_first()
        && let Some((frame, came)) = rest.split_at_checked(length.into())
    {
        let base: Vec<u8> = (0..CHUNK_BYTES).map(|at| (at / 5) as u8).collect();
        transfer_proxy::fuzzing::lane(frame, came, &base);
    }
    transfer_proxy::fuzzing::hint(data);
}

/// The channel between a node and a proxy of its own.
///
/// # Panics
///
/// If a promise is broken.
pub fn channel(data: &[u8]) {
    block_on(transfer_proxy::fuzzing::channel(data));
}

/// What a QEMU that was taken over says to its node.
///
/// # Panics
///
/// If a promise is broken.
pub fn qmp(data: &[u8]) {
    let said = &data[..data.len().min(SOCKET_BYTES)];
    match block_on(hypervisor::fuzzing::qmp_answer(said)) {
        // The second answer is the one to the command.
        Ok(_) => assert!(said.iter().filter(|byte| **byte == b'\n').count() >= 3),
        Err(error) => assert!(error.to_string().len() < 4096, "a refusal is told in few words"),
    }
}
