//! Statements of usage, as a site keeps them.
//!
//! Of each VM and epoch the newest statement is kept, which says all that was used, and the first
//! of each hour, so that the use of a period is the difference of two statements. Which ones those are
//! does not depend on the order in which they come, so that every site on the path ends up with the
//! same. What is kept goes after [`USAGE_KEPT`], or when there is too much of it: the oldest of a
//! VM's hours first, its newest statements last.

use std::time::Duration;

use model::key::Signed;
use model::{Epoch, PeerName, PublicKey, Signature, Time, VmId};
use rusqlite::{OptionalExtension, Row, params};

use super::{Book, BookError, signed, unsigned};
use crate::usage::{HOUR_MS, LATE_MS, Malformed, Standing, Statement, Stay, Tally};

/// For how long a statement is kept, also when its VM is gone.
pub const USAGE_KEPT: Duration = Duration::from_secs(400 * 24 * 3600);
/// Statements of one VM: 400 days of hours, and some stays.
pub const MAX_STATEMENTS_VM: u64 = 12_000;
/// Statements of all VMs, of about 400 bytes each.
pub const MAX_STATEMENTS: u64 = 1_000_000;

/// A statement as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptStatement {
    /// Its place in the order in which statements came to this site.
    pub id: i64,
    /// The statement, as it was signed, with the key of its epoch's owner.
    pub signed: Signed<Statement>,
}

/// What becomes of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It is new here.
    New,
    /// It is known, or others that are kept say what it says.
    Known,
    /// It contradicts what its owner has stated: something has shrunk, or goes on after its end.
    Contradiction,
}

/// Whose use is asked for, and of when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// One VM; none for all.
    pub vm: Option<VmId>,
    /// From this full hour on.
    pub since: Option<Time>,
    /// Up to this full hour.
    pub until: Option<Time>,
}

/// A row that a statement is compared with.
struct Neighbour {
    statement: Statement,
    body: Vec<u8>,
    up: Option<String>,
}

impl Book {
    pub(super) fn count_statements(&mut self) -> Result<(), BookError> {
        let mut query = self.db.prepare_cached("SELECT vm, count(*) FROM usage GROUP BY vm")?;
        let row = |row: &Row<'_>| Ok((VmId(row.get(0)?), unsigned(row.get(1)?)));
        self.statements = query.query_map([], row)?.collect::<rusqlite::Result<_>>()?;
        Ok(())
    }

    /// Keeps a statement whose signature holds. `via` is the peer that it came from, `up` the one
    /// that is to have it next and that it is for.
    pub fn take_statement(
        &mut self,
        made: &Signed<Statement>,
        statement: &Statement,
        received: Time,
        via: Option<&PeerName>,
        up: Option<&PeerName>,
    ) -> Result<Entry, BookError> {
        let (vm, epoch) = (statement.vm, statement.epoch);
        // An epoch has one owner. Who was taken for it before, on a branch of the VM's life that
        // counts no more, is not.
        let kept: Option<[u8; 32]> = self
            .db
            .prepare_cached("SELECT owner FROM usage WHERE vm = ?1 AND epoch = ?2 LIMIT 1")?
            .query_row(params![vm.0, signed(epoch.0)], |row| row.get(0))
            .optional()?;
        if kept.is_some_and(|owner| owner != made.key.0) {
            self.db
                .prepare_cached("DELETE FROM usage WHERE vm = ?1 AND epoch = ?2")?
                .execute(params![vm.0, signed(epoch.0)])?;
            self.count_statements()?;
        }
        let before = self.neighbour(statement, "<= (?3, ?4) ORDER BY until_ms DESC, final DESC")?;
        let after = self.neighbour(statement, "> (?3, ?4) ORDER BY until_ms, final")?;
        if let Some(before) = &before {
            if before.statement.place() == statement.place() {
                let is_same = before.body == made.body;
                return Ok(if is_same { Entry::Known } else { Entry::Contradiction });
            }
            if !statement.continues(&before.statement) {
                return Ok(Entry::Contradiction);
            }
        }
        if after.as_ref().is_some_and(|after| !after.statement.continues(statement)) {
            return Ok(Entry::Contradiction);
        }
        let is_first = before.as_ref().is_none_or(|b| b.statement.hour() != statement.hour());
        if after.is_some() && !is_first {
            return Ok(Entry::Known);
        }
        // A stay that is over was for whoever was above then.
        let newest: Option<i64> = self
            .db
            .prepare_cached("SELECT max(epoch) FROM owners WHERE vm = ?1")?
            .query_row([vm.0], |row| row.get(0))?;
        let is_over = newest.is_some_and(|newest| signed(epoch.0) < newest);
        let up = match before.as_ref().or(after.as_ref()) {
            Some(other) if is_over => other.up.as_deref(),
            _ => up.map(PeerName::as_str),
        };
        self.db
            .prepare_cached(
                "INSERT INTO usage (vm, epoch, until_ms, final, received_ms, via, up, owed, body,
                    owner, signature) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                vm.0,
                signed(epoch.0),
                signed(statement.until.0),
                statement.is_final,
                signed(received.0),
                via.map(PeerName::as_str),
                up,
                made.body,
                made.key.0,
                made.signature.0,
            ])?;
        let mut spent = self.drop_covered((vm, epoch), statement.hour())?;
        if let Some(before) = before.filter(|_| is_first) {
            spent += self.drop_covered((vm, epoch), before.statement.hour())?;
        }
        let count = self.statements.entry(vm).or_default();
        *count = (*count + 1).saturating_sub(spent);
        self.bound_statements(vm)?;
        Ok(Entry::New)
    }

    /// Removes the statements of an hour that are neither its first nor the newest of all.
    fn drop_covered(&mut self, (vm, epoch): (VmId, Epoch), hour: u64) -> Result<u64, BookError> {
        let gone = self
            .db
            .prepare_cached(
                "DELETE FROM usage AS u WHERE vm = ?1 AND epoch = ?2
                    AND until_ms >= ?3 AND until_ms < ?4
                    AND EXISTS (SELECT 1 FROM usage e WHERE e.vm = ?1 AND e.epoch = ?2
                        AND e.until_ms >= ?3 AND (e.until_ms, e.final) < (u.until_ms, u.final))
                    AND EXISTS (SELECT 1 FROM usage l WHERE l.vm = ?1 AND l.epoch = ?2
                        AND (l.until_ms, l.final) > (u.until_ms, u.final))",
            )?
            .execute(params![
                vm.0,
                signed(epoch.0),
                signed(hour * HOUR_MS),
                signed((hour + 1) * HOUR_MS),
            ])?;
        Ok(gone as u64)
    }

    fn neighbour(&self, of: &Statement, order: &str) -> Result<Option<Neighbour>, BookError> {
        let query = format!(
            "SELECT body, up FROM usage WHERE vm = ?1 AND epoch = ?2
             AND (until_ms, final) {order} LIMIT 1"
        );
        let place = params![of.vm.0, signed(of.epoch.0), signed(of.until.0), of.is_final];
        let row = |row: &Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?));
        let found = self.db.prepare_cached(&query)?.query_row(place, row).optional()?;
        Ok(found.and_then(|(body, up)| {
            let statement = Statement::read(&body).ok()?;
            Some(Neighbour { statement, body, up })
        }))
    }

    fn bound_statements(&mut self, vm: VmId) -> Result<(), BookError> {
        while self.statements.get(&vm).is_some_and(|count| *count > MAX_STATEMENTS_VM) {
            self.drop_statement(vm)?;
        }
        while self.statements.values().sum::<u64>() > MAX_STATEMENTS {
            // Whoever has most gives.
            let Some((most, _)) = self.statements.iter().max_by_key(|(_, count)| **count) else {
                break;
            };
            self.drop_statement(*most)?;
        }
        Ok(())
    }

    /// Removes the oldest statement of a VM: one that a later one covers if there is one.
    fn drop_statement(&mut self, vm: VmId) -> Result<(), BookError> {
        let dropped = self
            .db
            .prepare_cached(
                "DELETE FROM usage WHERE id = (
                    SELECT id FROM usage u WHERE vm = ?1 ORDER BY EXISTS (
                        SELECT 1 FROM usage l WHERE l.vm = u.vm AND l.epoch = u.epoch
                        AND (l.until_ms, l.final) > (u.until_ms, u.final)) DESC, until_ms LIMIT 1)",
            )?
            .execute([vm.0])?;
        if dropped == 0 {
            // What was counted and is not there is counted anew.
            return self.count_statements();
        }
        let count = self.statements.entry(vm).or_default();
        *count = count.saturating_sub(1);
        Ok(())
    }

    /// Removes what was kept for long enough.
    pub fn sweep_usage(&mut self, now: Time) -> Result<(), BookError> {
        let kept = u64::try_from(USAGE_KEPT.as_millis()).expect("it is some days");
        let old = signed(now.0.saturating_sub(kept));
        self.db.prepare_cached("DELETE FROM usage WHERE received_ms < ?1")?.execute([old])?;
        self.count_statements()
    }

    /// Statements that a site is to have, in the order in which they came, from after `id` on,
    /// `max` at most.
    pub fn owed_statements(
        &self,
        to: &PeerName,
        id: i64,
        max: usize,
    ) -> Result<Vec<KeptStatement>, BookError> {
        let mut query = self.db.prepare_cached(
            "SELECT id, body, owner, signature FROM usage
             WHERE owed = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
        )?;
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let row = |row: &Row<'_>| {
            Ok(KeptStatement { id: row.get(0)?, signed: signed_statement(row, 1)? })
        };
        let owed = query.query_map(params![to.as_str(), id, max], row)?;
        Ok(owed.collect::<rusqlite::Result<_>>()?)
    }

    /// Notes that nobody waits for a statement any more.
    pub fn settle_statement(&mut self, id: i64) -> Result<(), BookError> {
        self.db.prepare_cached("UPDATE usage SET owed = NULL WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    /// What is owed of the newest epoch is for this site from now on: the path has changed. What is
    /// owed of earlier ones stays with whom it was for.
    pub(super) fn redirect_usage(&mut self, vm: VmId, to: &PeerName) -> Result<(), BookError> {
        self.db
            .prepare_cached(
                "UPDATE usage SET owed = ?2, up = ?2 WHERE vm = ?1 AND owed IS NOT NULL
                    AND epoch >= (SELECT ifnull(max(epoch), 0) FROM owners WHERE vm = ?1)",
            )?
            .execute(params![vm.0, to.as_str()])?;
        Ok(())
    }

    /// Keeps what is being added up in an epoch, whose owner's key this is.
    pub fn keep_tally(
        &mut self,
        (vm, epoch): (VmId, Epoch),
        owner: &PublicKey,
        tally: &Tally,
    ) -> Result<(), BookError> {
        let tally = postcard::to_stdvec(tally).expect("a tally is plain data");
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO tallies (vm, epoch, owner, tally) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![vm.0, signed(epoch.0), owner.0, tally])?;
        Ok(())
    }

    /// What was added up in an epoch, while it lasts.
    pub fn tally(&self, vm: VmId, epoch: Epoch) -> Result<Option<Tally>, BookError> {
        let mut query =
            self.db.prepare_cached("SELECT tally FROM tallies WHERE vm = ?1 AND epoch = ?2")?;
        let row = |row: &Row<'_>| row.get::<_, Vec<u8>>(0);
        let tally = query.query_row(params![vm.0, signed(epoch.0)], row).optional()?;
        Ok(tally.and_then(|bytes| postcard::from_bytes(&bytes).ok()))
    }

    /// Every epoch in which something is being added up here, with its owner's key.
    pub fn tallies(&self) -> Result<Vec<(VmId, Epoch, PublicKey)>, BookError> {
        let mut query = self.db.prepare_cached("SELECT vm, epoch, owner FROM tallies")?;
        let row = |row: &Row<'_>| {
            Ok((VmId(row.get(0)?), Epoch(unsigned(row.get(1)?)), PublicKey(row.get(2)?)))
        };
        Ok(query.query_map([], row)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Nothing more is added up in an epoch. Its last statement is kept before.
    pub fn forget_tally(&mut self, vm: VmId, epoch: Epoch) -> Result<(), BookError> {
        self.db
            .prepare_cached("DELETE FROM tallies WHERE vm = ?1 AND epoch = ?2")?
            .execute(params![vm.0, signed(epoch.0)])?;
        Ok(())
    }

    /// What was used, by VM and epoch. `is_open` says whether an epoch goes on.
    pub fn stays(
        &self,
        asked: &Asked,
        is_open: impl Fn(VmId, Epoch) -> bool,
    ) -> Result<Vec<Stay>, BookError> {
        let mut query = self.db.prepare_cached(
            "SELECT DISTINCT vm, epoch FROM usage WHERE ifnull(?1, vm) = vm ORDER BY vm, epoch",
        )?;
        let row = |row: &Row<'_>| Ok((VmId(row.get(0)?), Epoch(unsigned(row.get(1)?))));
        let of_vm = query.query_map([asked.vm.map(|vm| vm.0)], row)?;
        let mut stays = Vec::new();
        for found in of_vm {
            let (vm, epoch) = found?;
            stays.extend(self.stay((vm, epoch), asked, || is_open(vm, epoch))?);
        }
        Ok(stays)
    }

    fn stay(
        &self,
        of: (VmId, Epoch),
        asked: &Asked,
        is_open: impl FnOnce() -> bool,
    ) -> Result<Option<Stay>, BookError> {
        let Some(newest) = self.statement_at(of, None)? else { return Ok(None) };
        let end = match asked.until {
            None => Some(newest.clone()),
            Some(until) => self.statement_at(of, Some(until))?,
        };
        let Some(end) = end else { return Ok(None) };
        let before = match asked.since {
            None => None,
            Some(since) => self.statement_at(of, Some(since))?,
        };
        if before.as_ref().is_some_and(|before| before.statement.place() >= end.statement.place()) {
            return Ok(None);
        }
        let earlier = before.as_ref().map(|before| &before.statement);
        let is_later = newest.statement.place() > end.statement.place();
        let standing = match end.statement.is_final || is_later {
            true => Standing::Final,
            false if is_open() => Standing::Open,
            false => Standing::AtLeast,
        };
        Ok(Some(Stay {
            vm: of.0,
            epoch: of.1,
            up: end.up,
            via: end.via,
            since: earlier.map_or(end.statement.since, |before| before.until),
            until: end.statement.until,
            used: earlier
                .map_or(end.statement.used, |before| end.statement.used.since(before.used)),
            standing,
            statement: end.signed,
            before: before.map(|before| before.signed),
        }))
    }

    /// The statement that says what was used up to a full hour, or the newest: the first one that
    /// was made at the hour, else the last one before. None if the guest was not seen before.
    fn statement_at(
        &self,
        (vm, epoch): (VmId, Epoch),
        time: Option<Time>,
    ) -> Result<Option<At>, BookError> {
        let (from, late) = match time {
            Some(time) => (signed(time.0), signed(time.0.saturating_add(LATE_MS))),
            None => (i64::MAX, i64::MAX),
        };
        let one = |condition: &str| {
            let query = format!(
                "SELECT via, up, body, owner, signature FROM usage
                 WHERE vm = ?1 AND epoch = ?2 AND until_ms {condition} LIMIT 1"
            );
            let values = params![vm.0, signed(epoch.0), from, late];
            self.db.prepare_cached(&query)?.query_row(values, at).optional()
        };
        let found = match one(">= ?3 AND until_ms < ?4 ORDER BY until_ms, final")? {
            Some(found) => Some(found),
            None => one("< ?3 AND ?4 > 0 ORDER BY until_ms DESC, final DESC")?,
        };
        let Some(found) = found else { return Ok(None) };
        let Ok(found) = found else { return Ok(None) };
        let is_seen = time.is_none_or(|time| found.statement.since < time);
        Ok(is_seen.then_some(found))
    }
}

/// A statement that an end of a period is made of.
#[derive(Clone)]
struct At {
    via: Option<PeerName>,
    up: Option<PeerName>,
    statement: Statement,
    signed: Signed<Statement>,
}

fn at(row: &Row<'_>) -> rusqlite::Result<Result<At, Malformed>> {
    let name = |name: Option<String>| name.and_then(|name| name.parse().ok());
    let signed = signed_statement(row, 2)?;
    let (via, up) = (name(row.get(0)?), name(row.get(1)?));
    Ok(Statement::read(&signed.body).map(|statement| At { via, up, statement, signed }))
}

/// Body, owner, signature, from a column on.
fn signed_statement(row: &Row<'_>, from: usize) -> rusqlite::Result<Signed<Statement>> {
    let (owner, signature) = (PublicKey(row.get(from + 1)?), Signature(row.get(from + 2)?));
    Ok(Signed::from_parts(row.get(from)?, owner, signature))
}

#[cfg(test)]
mod tests;
