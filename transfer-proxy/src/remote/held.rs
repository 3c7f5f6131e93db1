//! What the node must have heard of each open transfer, told again on each new connection.

use std::collections::{BTreeMap, VecDeque};

use model::MigrationId;

use crate::transfer::{End, Event, OUTBOX_MESSAGES};

/// Bytes of told messages that are kept per transfer; the oldest give way.
const MAX_TOLD_BYTES: usize = 128 << 10;

/// The open transfers. Bounded by those that the proxy takes on.
#[derive(Default)]
pub(crate) struct Held(BTreeMap<(MigrationId, End), Past>);

/// The past of one transfer, as far as it still counts.
#[derive(Default)]
struct Past {
    /// [`Event::Opened`], [`Event::Sent`] and [`Event::Received`].
    opened: Option<Event>,
    sent: Option<Event>,
    received: Option<Event>,
    /// What the other end's node said; the latest, each once.
    told: VecDeque<Vec<u8>>,
    /// A final failure, or the end by the other side.
    over: Option<Event>,
}

impl Held {
    /// The transfer is open.
    pub(crate) fn open(&mut self, transfer: (MigrationId, End)) {
        self.0.entry(transfer).or_default();
    }

    /// The transfer begins anew.
    pub(crate) fn open_anew(&mut self, transfer: (MigrationId, End)) {
        self.0.insert(transfer, Past::default());
    }

    /// Whether the transfer failed for good or was ended by the other side.
    pub(crate) fn is_over(&self, transfer: (MigrationId, End)) -> bool {
        self.0.get(&transfer).is_some_and(|past| past.over.is_some())
    }

    /// The transfer is closed.
    pub(crate) fn close(&mut self, transfer: (MigrationId, End)) {
        self.0.remove(&transfer);
    }

    /// Every open transfer.
    pub(crate) fn transfers(&self) -> Vec<(MigrationId, End)> {
        self.0.keys().copied().collect()
    }

    /// Keeps what must be told again. Of a transfer that is not open nothing is.
    pub(crate) fn note(&mut self, event: &Event) {
        let Some(past) = self.0.get_mut(&event.transfer()) else { return };
        match event {
            Event::Opened { .. } => past.opened = Some(event.clone()),
            Event::Sent { .. } => {
                past.sent = Some(event.clone());
                past.over = None;
            }
            Event::Received { .. } => past.received = Some(event.clone()),
            Event::Told { message, .. } => {
                past.told.retain(|known| known != message);
                past.told.push_back(message.clone());
                let bytes = |told: &VecDeque<Vec<u8>>| told.iter().map(Vec::len).sum::<usize>();
                while past.told.len() > OUTBOX_MESSAGES || bytes(&past.told) > MAX_TOLD_BYTES {
                    past.told.pop_front();
                }
            }
            // There is no session any more; the next one says so again.
            Event::Failed { final_: false, .. } => past.opened = None,
            Event::Failed { final_: true, .. } | Event::Closed { .. } => {
                past.over = Some(event.clone());
            }
        }
    }

    /// Everything once more.
    pub(crate) fn events(&self) -> Vec<Event> {
        let of_one = |(&(migration, end), past): (&(MigrationId, End), &Past)| {
            let told = past.told.iter().cloned();
            let told = told.map(move |message| Event::Told { migration, end, message });
            let first = [&past.opened, &past.sent, &past.received].into_iter().flatten().cloned();
            first.chain(told).chain(past.over.clone()).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of_one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_TELL_BYTES;
    use model::{Bytes, Digest};

    const MIGRATION: MigrationId = MigrationId([1; 16]);
    const TARGET: (MigrationId, End) = (MIGRATION, End::Target);

    fn told(message: Vec<u8>) -> Event {
        Event::Told { migration: MIGRATION, end: End::Target, message }
    }

    fn failed(end: End, final_: bool) -> Event {
        Event::Failed { migration: MIGRATION, end, error: "why".into(), final_ }
    }

    #[test]
    fn what_counts_is_told_again_until_the_transfer_is_closed() {
        let mut held = Held::default();
        let digest = Digest([2; 32]);
        let (size, wire) = (Bytes(3), Bytes(4));
        let received =
            Event::Received { migration: MIGRATION, digest, size, wire, has_state: false };
        held.note(&received);
        assert!(held.events().is_empty(), "it is not open");
        held.open(TARGET);
        for event in [failed(End::Target, false), received.clone(), told(vec![5])] {
            held.note(&event);
        }
        held.open(TARGET);
        assert_eq!(held.events(), [received, told(vec![5])]);
        held.note(&failed(End::Target, true));
        assert!(held.is_over(TARGET) && held.events().len() == 3);
        held.open_anew(TARGET);
        assert!(held.events().is_empty() && held.transfers() == [TARGET]);
        held.close(TARGET);
        held.note(&told(vec![6]));
        assert!(held.events().is_empty() && held.transfers().is_empty());
    }

    #[test]
    fn a_session_that_was_lost_does_not_count_as_open() {
        let mut held = Held::default();
        held.open((MIGRATION, End::Source));
        held.note(&Event::Opened { migration: MIGRATION });
        assert_eq!(held.events().len(), 1);
        held.note(&failed(End::Source, false));
        assert!(held.events().is_empty());
    }

    #[test]
    fn memory_stays_bounded_whatever_the_other_end_says() {
        let mut held = Held::default();
        held.open(TARGET);
        for n in 0..100 {
            held.note(&told(vec![n; MAX_TELL_BYTES]));
        }
        assert_eq!(held.events(), [told(vec![98; MAX_TELL_BYTES]), told(vec![99; MAX_TELL_BYTES])]);
        for n in 0..100 {
            held.note(&told(vec![n]));
            held.note(&told(vec![n]));
        }
        assert_eq!(held.events().len(), OUTBOX_MESSAGES);
    }
}
