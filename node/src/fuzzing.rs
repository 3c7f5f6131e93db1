//! What a peer may say to a node before anything else looks at it: for fuzzing.

/// What is given on of what a peer says on its connection, of which so many bytes come at once.
pub fn frames(said: &[u8], part: usize) -> Vec<u8> {
    crate::gate::paced(said, part)
}
