//! Brings values to one peer: all that is owed to it, in order, until it has them.

use std::sync::Arc;
use std::time::Duration;

use model::PeerName;
use monitoring::book::Kept;
use proto::envelope::{MAX_VALUES_BYTES, Verdict};
use tokio::sync::Notify;

use super::Monitor;
use crate::hands::report;
use crate::link::now;

/// How long a peer that cannot be reached is left alone, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How long blocks are offered that the peer cannot judge yet.
const LATER: Duration = Duration::from_secs(3600);
/// How long after a peer could not judge some they are offered again.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn run(monitor: Monitor, peer: PeerName, wake: Arc<Notify>) {
    let mut pause = PAUSES.0;
    // Blocks up to here were offered in this round.
    let mut offered = 0;
    let mut is_patient = false;
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
                settle(&monitor, owed, &verdicts).await;
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

async fn settle(monitor: &Monitor, owed: Vec<Kept>, verdicts: &[Verdict]) {
    let now = now();
    let verdicts: Vec<Verdict> = verdicts.to_vec();
    let settled = monitor.ledger().run(move |book| {
        for (kept, verdict) in owed.iter().zip(verdicts) {
            match verdict {
                Verdict::Taken => book.settle(kept.id)?,
                Verdict::Later if now.since(kept.received) < LATER => {}
                Verdict::Later | Verdict::Refused => {
                    tracing::warn!(block = kept.id, ?verdict, "values were not taken above");
                    book.give_up(kept.id)?;
                }
            }
        }
        Ok(())
    });
    // What is not settled is offered again, and known there.
    let _ = settled.await;
}
