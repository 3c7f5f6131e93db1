//! What moves with a VM beside its disks: where measuring it stands, and the values that nobody
//! above has yet.
//!
//! It is a file among the VM's own, so that it is at every moment where the VM is, and is checked
//! like every other. Whoever reads it takes no value whose signature does not hold.

use serde::{Deserialize, Serialize};

use crate::block::SignedBlock;
use crate::producer::State;

/// The version of the form below.
const VERSION: u8 = 1;

/// The history of a VM's monitoring.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct History {
    /// Where measuring stands; none if it never began.
    pub state: Option<State>,
    /// What nobody above has, in order.
    pub backlog: Vec<SignedBlock>,
}

/// A file that is no history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the file is no history of a VM's monitoring, or of another version")]
pub struct NoHistory;

impl History {
    /// Its form in a file: the newest of the backlog that fit in `max` bytes.
    pub fn to_bytes(&self, max: usize) -> Vec<u8> {
        let encode = |history: &Self| {
            let mut bytes = vec![VERSION];
            bytes.extend(postcard::to_stdvec(history).expect("a history is plain data"));
            bytes
        };
        let bytes = encode(self);
        if bytes.len() <= max {
            return bytes;
        }
        let mut state = self.state.clone();
        let mut head = encode(&Self { state: state.clone(), backlog: vec![] }).len() + 16;
        if head > max {
            // What was gathered and not told goes before the VM cannot move.
            state = state.map(|state| state.without_windows());
            head = encode(&Self { state: state.clone(), backlog: vec![] }).len() + 16;
        }
        let mut room = max.saturating_sub(head);
        let newest = self.backlog.iter().rev().take_while(|block| {
            let fits = block.size() <= room;
            room = room.saturating_sub(block.size());
            fits
        });
        let kept = newest.count();
        let backlog = self.backlog[self.backlog.len() - kept..].to_vec();
        encode(&Self { state, backlog })
    }

    /// Reads a file.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NoHistory> {
        let (version, rest) = bytes.split_first().ok_or(NoHistory)?;
        match postcard::take_from_bytes(rest) {
            Ok((history, [])) if *version == VERSION => Ok(history),
            _ => Err(NoHistory),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_reads_back_and_nothing_else_is_one() {
        let signature = model::Signature([3; 64]);
        let backlog = (0..10).map(|n| SignedBlock { body: vec![n; 100], signature });
        let history = History { state: Some(State::default()), backlog: backlog.collect() };
        let bytes = history.to_bytes(1 << 20);
        assert_eq!(History::from_bytes(&bytes), Ok(history.clone()));
        for bad in [&b""[..], &[0], &[2, 0, 0], &bytes[..bytes.len() - 1], b"\x01\x00\x00x"] {
            assert_eq!(History::from_bytes(bad), Err(NoHistory));
        }
        let short = History::from_bytes(&history.to_bytes(500)).unwrap();
        assert_eq!(short.state, history.state);
        assert!(!short.backlog.is_empty() && short.backlog.len() < 10);
        assert!(history.backlog.ends_with(&short.backlog), "the newest stay");
    }
}
