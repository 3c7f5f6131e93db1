//! The disk under a site's journal: what was synced stays, what was only written may be lost or
//! torn when the site ends.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use model::{Epoch, VmId};
use protocol::{Record, Row, State, TargetStep};

/// Bytes before each transaction: its length and a checksum.
const HEADER: usize = 4 + 8;

/// A journal, a transaction after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Disk {
    /// The bytes of each transaction.
    written: Vec<Arc<[u8]>>,
    /// So many of them are on stable storage.
    synced: usize,
    /// The place of the newest row.
    len: u64,
    /// There is no space for another one.
    pub full: bool,
}

/// There is no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Disk {
    /// Writes a transaction.
    pub(super) fn write(&mut self, rows: &[Row]) -> Result<(), Full> {
        if self.full {
            return Err(Full);
        }
        let mut body = Vec::new();
        for row in rows {
            self.len = row.place_after(self.len);
            let record = Record::of(row);
            let line = (self.len, record.kind, record.version, record.body);
            serde_json::to_writer(&mut body, &line).expect("plain data");
            body.push(b'\n');
        }
        let size = u32::try_from(body.len()).expect("rows are small");
        let frame = [&size.to_be_bytes()[..], &checksum(&body), &body].concat();
        self.written.push(frame.into());
        Ok(())
    }

    /// Waits until all that was written is safe.
    pub(super) fn sync(&mut self) {
        self.synced = self.written.len();
    }

    /// How many bytes are not synced.
    pub(super) fn unsynced(&self) -> usize {
        self.written[self.synced..].iter().map(|frame| frame.len()).sum()
    }

    /// The site ends: of what was not synced only the first `keep` bytes are there.
    pub(super) fn crash(&mut self, keep: usize) {
        let unsynced = self.written.split_off(self.synced).concat();
        if !unsynced.is_empty() && keep > 0 {
            self.written.push(unsynced[..keep.min(unsynced.len())].into());
        }
    }

    /// How long the journal is, in rows.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many transactions are there.
    pub(super) fn transactions(&self) -> usize {
        self.written.len()
    }

    /// Copies of the journal, by the count of their transactions, that are shorter than `len` rows
    /// and say otherwise than the journal does which VMs are here, or on their way here: those that
    /// name one which has left since, if there are any.
    pub(super) fn outdated(&self, len: u64) -> Vec<usize> {
        let mut all = self.clone();
        let mut known = vec![];
        let read = all.replay(|at, len, state| known.push((at, len, here(state))));
        let now = read.map_or_else(|_| BTreeSet::new(), |state| here(&state));
        known.retain(|(_, old, here)| *old < len && *here != now);
        if known.iter().any(|(.., here)| !here.is_subset(&now)) {
            known.retain(|(.., here)| !here.is_subset(&now));
        }
        known.into_iter().map(|(at, ..)| at).collect()
    }

    /// Puts back an old copy.
    pub(super) fn restore(&mut self, transactions: usize) {
        self.written.truncate(transactions);
        self.synced = self.written.len();
    }

    /// Reads the journal as a starting site does: whole transactions count, and nothing after one
    /// that is torn.
    pub(super) fn read(&mut self) -> Result<State, String> {
        self.replay(|_, _, _| {})
    }

    /// Reads it, and shows what it says after each transaction: how many those are, how many rows,
    /// and what of them.
    fn replay(&mut self, mut look: impl FnMut(usize, u64, &State)) -> Result<State, String> {
        let mut state = State::default();
        self.len = 0;
        let mut whole = Vec::new();
        'frames: for frame in std::mem::take(&mut self.written) {
            let mut rest = &frame[..];
            while !rest.is_empty() {
                let Some((body, after)) = transaction(rest) else { break 'frames };
                for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let (len, kind, version, body) =
                        serde_json::from_slice(line).map_err(|e| e.to_string())?;
                    let record = Record { kind, version, body };
                    let row = record.row().map_err(|e| format!("row {len}: {e}"))?;
                    state.apply(&row).map_err(|e| format!("row {len}: {e}"))?;
                    self.len = len;
                }
                whole.push(rest[..rest.len() - after.len()].into());
                look(whole.len(), self.len, &state);
                rest = after;
            }
        }
        self.written = whole;
        self.sync();
        Ok(state)
    }
}

/// The VMs that are here, or on their way, and under which epoch.
fn here(state: &State) -> BTreeSet<(VmId, Epoch)> {
    let stays = state.vms.iter().filter_map(|(vm, entry)| Some((*vm, entry.stay.as_ref()?.epoch)));
    let on_their_way = state.migrations.values().filter_map(|migration| {
        let target = migration.target.as_ref().filter(|t| t.step == TargetStep::Ready)?;
        Some((migration.vm, target.epoch()))
    });
    stays.chain(on_their_way).collect()
}

fn checksum(body: &[u8]) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    hasher.finish().to_be_bytes()
}

/// The first transaction's body, and what comes after it.
fn transaction(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let size = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
    let end = HEADER.checked_add(usize::try_from(size).ok()?)?;
    let body = bytes.get(HEADER..end)?;
    (bytes[4..HEADER] == checksum(body)).then(|| (body, &bytes[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        Row::HostAdded { host: name.parse().expect("legal"), capacity: model::Resources::default() }
    }

    #[test]
    fn what_was_synced_survives_and_a_torn_transaction_counts_for_nothing() {
        let mut disk = Disk::default();
        disk.write(&[row("a"), row("b")]).expect("space");
        disk.sync();
        disk.write(&[row("c"), row("d")]).expect("space");
        for keep in 0..10_000 {
            let mut crashed = disk.clone();
            crashed.crash(keep);
            let hosts = crashed.read().expect("readable").hosts.len();
            assert!(hosts == 2 || hosts == 4, "half a transaction counts");
            assert_eq!(crashed.len(), hosts as u64);
            if hosts == 4 {
                assert!(keep > HEADER);
                return;
            }
        }
        panic!("a transaction that was written whole is never there");
    }
}
