//! Brings values and usage to one peer: all that is owed to it, in order, until it has them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::PeerName;
use monitoring::book::{Book, BookError};
use proto::envelope::{Carried, MAX_VALUES_BYTES, Verdict};
use tokio::sync::Notify;

use super::Monitor;
use crate::hands::report;

/// How long a peer that cannot be reached is left alone, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How long pieces are offered that the peer cannot judge yet, from its first word of that on.
const LATER: Duration = Duration::from_secs(3600);
/// How long after a peer could not judge some they are offered again.
const AGAIN: Duration = Duration::from_secs(1);
/// Statements of usage in one message, at most. They go before values.
const STATEMENTS: usize = 256;
/// Bytes of such statements: a block of values fits beside them.
const STATEMENT_BYTES: usize = STATEMENTS * (monitoring::usage::MAX_STATEMENT_BYTES + 72);
const _: () = assert!(STATEMENT_BYTES + monitoring::block::MAX_BLOCK_BYTES <= MAX_VALUES_BYTES);

/// A piece, by its kind and its place among those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Piece {
    Values(i64),
    Usage(i64),
}

/// Up to where pieces of each kind were offered in this round.
#[derive(Debug, Clone, Copy, Default)]
struct Offered {
    values: i64,
    usage: i64,
}

impl Offered {
    fn past(&mut self, piece: Piece) {
        match piece {
            Piece::Values(id) => self.values = id,
            Piece::Usage(id) => self.usage = id,
        }
    }
}

pub(super) async fn run(monitor: Monitor, peer: PeerName, wake: Arc<Notify>) {
    let mut pause = PAUSES.0;
    let mut offered = Offered::default();
    let mut is_patient = false;
    // When each piece that could not be judged was first said so of.
    let mut later: HashMap<Piece, Instant> = HashMap::new();
    loop {
        let (to, after) = (peer.clone(), offered);
        let owed = monitor.ledger().run(move |book| owed(book, &to, after)).await;
        let (pieces, carried): (Vec<_>, Vec<_>) = owed.unwrap_or_default().into_iter().unzip();
        if pieces.is_empty() {
            offered = Offered::default();
            if std::mem::take(&mut is_patient) {
                let _ = tokio::time::timeout(AGAIN, wake.notified()).await;
            } else {
                // What was newer took the place of those that are left.
                later.clear();
                wake.notified().await;
            }
            continue;
        }
        match monitor.links().values(&peer, carried).await {
            Ok(verdicts) => {
                pause = PAUSES.0;
                pieces.iter().for_each(|piece| offered.past(*piece));
                is_patient |= verdicts.contains(&Verdict::Later);
                settle(&monitor, &peer, pieces, &verdicts, &mut later).await;
            }
            Err(error) => {
                tracing::debug!(%peer, error = report(&error), "values wait");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                offered = Offered::default();
            }
        }
    }
}

/// What goes into the next message.
fn owed(book: &Book, to: &PeerName, after: Offered) -> Result<Vec<(Piece, Carried)>, BookError> {
    let statements = book.owed_statements(to, after.usage, STATEMENTS)?.into_iter();
    let usage = statements.map(|kept| {
        let carried = Carried::Usage(kept.signed.body, kept.signed.signature);
        (Piece::Usage(kept.id), carried)
    });
    let blocks = book.owed(to, after.values, MAX_VALUES_BYTES - STATEMENT_BYTES)?.into_iter();
    let values = blocks.map(|kept| {
        let carried = Carried::Values(kept.signed.body, kept.signed.signature);
        (Piece::Values(kept.id), carried)
    });
    Ok(usage.chain(values).collect())
}

async fn settle(
    monitor: &Monitor,
    peer: &PeerName,
    pieces: Vec<Piece>,
    verdicts: &[Verdict],
    later: &mut HashMap<Piece, Instant>,
) {
    let mut ended = Vec::new();
    for (piece, verdict) in pieces.into_iter().zip(verdicts) {
        let is_later = *verdict == Verdict::Later;
        if is_later && later.entry(piece).or_insert_with(Instant::now).elapsed() < LATER {
            continue;
        }
        later.remove(&piece);
        ended.push((piece, *verdict));
    }
    let settled = monitor.ledger().run(move |book| {
        let (mut blocks, mut values) = (0, 0);
        for (piece, verdict) in ended {
            match (piece, verdict) {
                (Piece::Values(id), Verdict::Taken) => {
                    blocks += 1;
                    values += book.settle(id)?;
                }
                (Piece::Usage(id), Verdict::Taken) => book.settle_statement(id)?,
                (Piece::Values(id), _) => {
                    tracing::warn!(block = id, ?verdict, "values were not taken above");
                    book.give_up(id)?;
                }
                (Piece::Usage(id), _) => {
                    tracing::warn!(statement = id, ?verdict, "usage was not taken above");
                    book.settle_statement(id)?;
                }
            }
        }
        Ok((blocks, values))
    });
    // What is not settled is offered again, and known there.
    if let Ok((blocks, values)) = settled.await {
        monitor.metrics().values_forwarded(peer, blocks, values);
    }
}
