//! Brings values to one peer: all that is owed to it, in order, until it has them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::PeerName;
use monitoring::book::Kept;
use proto::envelope::{MAX_VALUES_BYTES, Verdict};
use tokio::sync::Notify;

use super::Monitor;
use crate::hands::report;

/// How long a peer that cannot be reached is left alone, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How long blocks are offered that the peer cannot judge yet, from its first word of that on.
const LATER: Duration = Duration::from_secs(3600);
/// How long after a peer could not judge some they are offered again.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(monitor: Monitor, peer: PeerName, wake: Arc<Notify>) {
    let mut pause = PAUSES.0;
    // Blocks up to here were offered in this round.
    let mut offered = 0;
    let mut is_patient = false;
    // When each block that could not be judged was first said so of.
    let mut later: HashMap<i64, Instant> = HashMap::new();
    loop {
        let (to, after) = (peer.clone(), offered);
        let owed = monitor.ledger().run(move |book| book.owed(&to, after, MAX_VALUES_BYTES)).await;
        let owed = owed.unwrap_or_default();
        let Some(last) = owed.last().map(|kept| kept.id) else {
            offered = 0;
            if std::mem::take(&mut is_patient) {
                let _ = tokio::time::timeout(AGAIN, wake.notified()).await;
            } else {
                wake.notified().await;
            }
            continue;
        };
        let blocks = owed.iter().map(|kept| (kept.signed.body.clone(), kept.signed.signature));
        match monitor.links().values(&peer, blocks.collect()).await {
            Ok(verdicts) => {
                pause = PAUSES.0;
                offered = last;
                is_patient |= verdicts.contains(&Verdict::Later);
                settle(&monitor, &peer, owed, &verdicts, &mut later).await;
            }
            Err(error) => {
                tracing::debug!(%peer, error = report(&error), "values wait");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                offered = 0;
            }
        }
    }
}

async fn settle(
    monitor: &Monitor,
    peer: &PeerName,
    owed: Vec<Kept>,
    verdicts: &[Verdict],
    later: &mut HashMap<i64, Instant>,
) {
    let mut ended = Vec::new();
    for (kept, verdict) in owed.iter().zip(verdicts) {
        let id = kept.id;
        let is_later = *verdict == Verdict::Later;
        if is_later && later.entry(id).or_insert_with(Instant::now).elapsed() < LATER {
            continue;
        }
        later.remove(&id);
        ended.push((id, *verdict));
    }
    let settled = monitor.ledger().run(move |book| {
        let (mut blocks, mut values) = (0, 0);
        for (id, verdict) in ended {
            if verdict == Verdict::Taken {
                blocks += 1;
                values += book.settle(id)?;
            } else {
                tracing::warn!(block = id, ?verdict, "values were not taken above");
                book.give_up(id)?;
            }
        }
        Ok((blocks, values))
    });
    // What is not settled is offered again, and known there.
    if let Ok((blocks, values)) = settled.await {
        monitor.metrics().values_forwarded(peer, blocks, values);
    }
}
