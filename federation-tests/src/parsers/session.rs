//! The transfer session, the channel to a proxy of the site's own, and QMP.

use model::limit;
use model::manifest::CHUNK;

use super::block_on;

/// Bytes that a socket takes without a reader.
const SOCKET_BYTES: usize = 64 << 10;

/// One frame of a transfer session: a control message, a request for chunks, or the manifest.
///
/// # Panics
///
/// If a promise is broken.
pub fn session(data: &[u8]) {
    let (told, manifest) = transfer_proxy::fuzzing::session(data);
    if let Some(told) = told {
        super::told(&told);
    }
    if let Some(manifest) = manifest
        && manifest.check().is_ok()
    {
        assert!(manifest.files.len() <= limit::MAX_FILES);
        assert!(manifest.files.windows(2).all(|pair| pair[0].id < pair[1].id));
        let chunks: usize = manifest.files.iter().map(|file| file.chunks.len()).sum();
        assert!(manifest.size().0 <= chunks as u64 * u64::from(CHUNK));
        let mut moved_again = manifest.clone();
        moved_again.migration.0[0] ^= 1;
        assert_eq!(manifest.root(), moved_again.root(), "the root speaks of content alone");
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
