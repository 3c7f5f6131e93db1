//! Who has written what is not stored.
//!
//! The kernel tells of each close of each descriptor, and a descriptor is closed in many processes
//! that have nothing to do with the file: a program that starts another one has the child inherit
//! its descriptors and close them, at any moment, also in the middle of a line.
//! So only a close by a process that wrote stores what it wrote.

use std::collections::BTreeSet;

use super::draft::HandleId;

/// Writers of one file that are told apart. With more, every close counts as one of theirs.
const WRITERS_MAX: usize = 4_096;

/// A process, as the kernel tells them apart at their files: those that share a table of
/// descriptors, as threads do, are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub u64);

/// A handle, and the process that wrote through it; for a new size the kernel does not say which.
pub(super) type Writer = (HandleId, Option<Process>);

/// A set of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Writers(BTreeSet<Writer>);

impl Writers {
    pub(super) fn add(&mut self, writer: Writer) {
        // One of each handle is always there, so that it is known to have written.
        if self.0.len() < WRITERS_MAX || !self.has(writer.0) {
            self.0.insert(writer);
        }
    }

    /// Whether something was written through the handle.
    pub(super) fn has(&self, handle: HandleId) -> bool {
        self.of(handle).next().is_some()
    }

    /// Whether a close of the handle by the process is one by a writer.
    pub(super) fn is_closed_by(&self, handle: HandleId, process: Process) -> bool {
        let mut known = self.of(handle).filter_map(|writer| writer.1).peekable();
        let is_unknown = known.peek().is_none();
        let is_theirs = known.any(|writer| writer == process);
        self.has(handle) && (is_unknown || is_theirs || self.0.len() >= WRITERS_MAX)
    }

    pub(super) fn contains(&self, writer: &Writer) -> bool {
        self.0.contains(writer)
    }

    /// Those that wrote through the handle.
    pub(super) fn of(&self, handle: HandleId) -> impl Iterator<Item = &Writer> {
        self.0.range((handle, None)..=(handle, Some(Process(u64::MAX))))
    }

    pub(super) fn handles(&self) -> BTreeSet<HandleId> {
        self.0.iter().map(|writer| writer.0).collect()
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Writer) -> bool) {
        self.0.retain(keep);
    }
}
