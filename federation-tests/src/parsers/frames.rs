//! What a peer says over HTTP/2, before the server sees it.

/// The first byte says how much comes at once. Every byte is given on, once, in order.
///
/// # Panics
///
/// If a promise is broken.
pub fn frames(data: &[u8]) {
    let Some((part, said)) = data.split_first() else { return };
    let heard = node::fuzzing::frames(said, usize::from(*part) * 37 + 1);
    assert!(heard == said, "it is given on as it came");
}
