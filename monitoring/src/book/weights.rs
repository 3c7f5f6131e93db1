//! How much each VM has in the book.

use std::collections::{BTreeSet, HashMap};

use model::VmId;

/// Bytes of blocks, by VM.
#[derive(Debug, Default)]
pub(super) struct Weights {
    all: u64,
    of: HashMap<VmId, u64>,
    /// The same in order: of thousands of VMs, the one that has most is asked for at each block of
    /// a full book.
    order: BTreeSet<(u64, VmId)>,
}

impl Weights {
    /// Bytes of all VMs.
    pub(super) fn all(&self) -> u64 {
        self.all
    }

    /// Bytes of one.
    pub(super) fn of(&self, vm: VmId) -> u64 {
        self.of.get(&vm).copied().unwrap_or_default()
    }

    /// Whoever has most, if anybody has anything.
    pub(super) fn heaviest(&self) -> Option<VmId> {
        self.order.last().map(|(_, vm)| *vm)
    }

    pub(super) fn add(&mut self, vm: VmId, bytes: u64) {
        self.set(vm, self.of(vm) + bytes);
    }

    pub(super) fn remove(&mut self, vm: VmId, bytes: u64) {
        self.set(vm, self.of(vm).saturating_sub(bytes));
    }

    fn set(&mut self, vm: VmId, bytes: u64) {
        let before = self.of(vm);
        self.all = self.all - before + bytes;
        self.order.remove(&(before, vm));
        if bytes == 0 {
            self.of.remove(&vm);
        } else {
            self.of.insert(vm, bytes);
            self.order.insert((bytes, vm));
        }
    }
}

impl FromIterator<(VmId, u64)> for Weights {
    fn from_iter<I: IntoIterator<Item = (VmId, u64)>>(vms: I) -> Self {
        let mut weights = Self::default();
        vms.into_iter().for_each(|(vm, bytes)| weights.add(vm, bytes));
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_is_who_has_most_now_and_all_is_the_sum() {
        let [a, b] = [1, 2].map(|n| VmId([n; 16]));
        let mut weights: Weights = [(a, 10), (b, 20)].into_iter().collect();
        assert_eq!((weights.heaviest(), weights.all()), (Some(b), 30));
        weights.add(a, 15);
        assert_eq!((weights.heaviest(), weights.of(a), weights.all()), (Some(a), 25, 45));
        weights.remove(a, 30);
        assert_eq!((weights.heaviest(), weights.of(a), weights.all()), (Some(b), 0, 20));
        weights.remove(b, 20);
        assert_eq!((weights.heaviest(), weights.all()), (None, 0));
    }
}
