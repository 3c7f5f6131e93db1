//! What a site keeps of the monitoring of VMs: values in the blocks that they came in, what it owes
//! to the next site, and where its producers are.
//!
//! One SQLite database per site, which one thread owns (the node's). What is taken is durable with
//! the commit that follows, and only then is the sender told so; a block that comes again is known
//! by its place (VM, epoch, number) and changes nothing. What exceeds the bounds goes, the oldest
//! first, delivered before owed; owed values that had to go are counted, and the gap is seen by
//! whoever misses their numbers.

mod census;
mod schema;
mod usage;
mod violations;
mod weights;

use std::collections::HashMap;
use std::path::Path;

use model::monitoring::SectionId;
use model::{Epoch, Monitoring, PeerName, PublicKey, Signature, Time, VmId};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::block::{Block, Malformed, SignedBlock, Value};

use weights::Weights;

pub use census::Census;
pub use schema::BookError;
pub use usage::{Asked, Entry, KeptStatement, MAX_STATEMENTS, MAX_STATEMENTS_VM, USAGE_KEPT};
pub use violations::{MAX_BYTES as MAX_EVIDENCE_BYTES, MAX_OF_VM as MAX_VIOLATIONS, Violation};

/// What a book holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one VM's blocks.
    pub vm: u64,
    /// Bytes of all blocks.
    pub all: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { vm: 16 << 20, all: 1 << 30 }
    }
}

/// Bytes that a block takes in the database beyond its own.
const ROW_BYTES: u64 = 120;

/// A block as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Its place in the order in which blocks came to this site.
    pub id: i64,
    /// When it came, by this site's clock.
    pub received: Time,
    /// The block, as it was signed.
    pub signed: SignedBlock,
}

impl Kept {
    /// What it says.
    pub fn block(&self) -> Result<Block, Malformed> {
        self.signed.peek()
    }
}

/// How complete a VM's values are at this site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Values that came, each counted once.
    pub values: u64,
    /// Values that are known to exist and have not come.
    pub missing: u64,
    /// Values that went from here before the next site had them.
    pub dropped: u64,
    /// Values that the next site does not have yet.
    pub owed: u64,
}

/// Where measuring a VM stands, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptState {
    /// The epoch of the stay that it belongs to.
    pub epoch: Epoch,
    /// It was written to the file that moves with the VM, and nothing was measured since.
    pub packed: bool,
    /// [`crate::producer::State`], encoded.
    pub state: Vec<u8>,
}

/// The book.
#[derive(Debug)]
pub struct Book {
    db: Connection,
    limits: Limits,
    weights: Weights,
    /// How many statements of usage there are of each VM.
    statements: HashMap<VmId, u64>,
    limited: violations::Limited,
}

impl Book {
    /// Opens the book at `path`, making it if there is none.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, BookError> {
        let db = schema::open(path)?;
        let mut book = Self {
            db,
            limits,
            weights: Weights::default(),
            statements: HashMap::new(),
            limited: violations::Limited::default(),
        };
        book.weigh()?;
        Ok(book)
    }

    fn weigh(&mut self) -> Result<(), BookError> {
        let mut query =
            self.db.prepare("SELECT vm, sum(length(body) + ?1) FROM blocks GROUP BY vm")?;
        let row = |row: &Row<'_>| Ok((VmId(row.get(0)?), unsigned(row.get(1)?)));
        self.weights =
            query.query_map([signed(ROW_BYTES)], row)?.collect::<rusqlite::Result<_>>()?;
        drop(query);
        self.read_limited()?;
        self.count_statements()
    }

    /// Does what `work` does, durably when this returns, or not at all.
    pub fn commit<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, BookError>,
    ) -> Result<T, BookError> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let done = work(self).and_then(|done| {
            self.db.execute_batch("COMMIT")?;
            Ok(done)
        });
        if done.is_err() {
            // A full disk ends a transaction by itself.
            if !self.db.is_autocommit() {
                let _ = self.db.execute_batch("ROLLBACK");
            }
            self.weigh()?;
        }
        done
    }

    /// Keeps a block that was verified; answers whether it is new. `hidden` are its sealed values,
    /// where limits of service are among them and this site can open them; `owed` is the site that
    /// is to have it next.
    pub fn take(
        &mut self,
        signed_block: &SignedBlock,
        block: &Block,
        hidden: &[Value],
        received: Time,
        owed: Option<&PeerName>,
    ) -> Result<bool, BookError> {
        let Block { vm, epoch, first, .. } = *block;
        let (count, last) = (block.count(), block.last());
        // What went from here once does not count again.
        let gone: Option<i64> = self
            .db
            .prepare_cached("SELECT gone FROM runs WHERE vm = ?1 AND epoch = ?2")?
            .query_row(params![vm.0, signed(epoch.0)], |row| row.get(0))
            .optional()?;
        if gone.is_some_and(|gone| signed(last) <= gone) {
            return Ok(false);
        }
        let is_new = self
            .db
            .prepare_cached(
                "INSERT INTO blocks (vm, epoch, first, count, received_ms, owed, body, signature)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                vm.0,
                signed(epoch.0),
                signed(first),
                signed(count),
                signed(received.0),
                owed.map(PeerName::as_str),
                signed_block.body,
                signed_block.signature.0,
            ])?
            == 1;
        if !is_new {
            return Ok(false);
        }
        self.db
            .prepare_cached(
                "INSERT INTO runs (vm, epoch, first, last, taken) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET first = min(first, excluded.first),
                    last = max(last, excluded.last), taken = taken + excluded.taken",
            )?
            .execute(params![vm.0, signed(epoch.0), signed(first), signed(last), signed(count)])?;
        self.note_violations(signed_block, block, hidden, received)?;
        self.weights.add(vm, signed_block.body.len() as u64 + ROW_BYTES);
        self.prune(vm)?;
        Ok(true)
    }

    fn prune(&mut self, vm: VmId) -> Result<(), BookError> {
        while self.weights.of(vm) > self.limits.vm {
            self.drop_oldest(vm)?;
        }
        while self.weights.all() > self.limits.all {
            // Whoever has most gives.
            let Some(most) = self.weights.heaviest() else { break };
            self.drop_oldest(most)?;
        }
        Ok(())
    }

    /// Removes the oldest block of a VM: one that nobody waits for if there is one.
    fn drop_oldest(&mut self, vm: VmId) -> Result<(), BookError> {
        let oldest = |owed: &str| {
            let query = format!(
                "SELECT id, count, length(body), epoch, first + count - 1 FROM blocks
                 WHERE vm = ?1 AND owed {owed} ORDER BY id LIMIT 1"
            );
            let row = |row: &Row<'_>| {
                let (id, count): (i64, i64) = (row.get(0)?, row.get(1)?);
                let run: (i64, i64) = (row.get(3)?, row.get(4)?);
                Ok((id, count, unsigned(row.get(2)?), run))
            };
            self.db.prepare_cached(&query)?.query_row([vm.0], row).optional()
        };
        let (found, is_owed) = match oldest("IS NULL")? {
            Some(found) => (Some(found), false),
            None => (oldest("IS NOT NULL")?, true),
        };
        // What was counted and is not there is counted anew.
        let Some((id, count, bytes, (epoch, last))) = found else { return self.weigh() };
        self.db.prepare_cached("DELETE FROM blocks WHERE id = ?1")?.execute([id])?;
        self.db
            .prepare_cached("UPDATE runs SET gone = max(gone, ?3) WHERE vm = ?1 AND epoch = ?2")?
            .execute(params![vm.0, epoch, last])?;
        if is_owed {
            self.db
                .prepare_cached(
                    "INSERT INTO dropped (vm, count) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET count = count + excluded.count",
                )?
                .execute(params![vm.0, count])?;
        }
        self.weights.remove(vm, bytes + ROW_BYTES);
        Ok(())
    }

    /// Blocks that a site is to have, in order, from after `id` on, of `bytes` together; at least
    /// one if there is one.
    pub fn owed(&self, to: &PeerName, id: i64, bytes: usize) -> Result<Vec<Kept>, BookError> {
        let mut query = self.db.prepare_cached(
            "SELECT id, received_ms, body, signature FROM blocks
             WHERE owed = ?1 AND id > ?2 ORDER BY id",
        )?;
        let mut rows = query.query(params![to.as_str(), id])?;
        let (mut blocks, mut sum) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let kept = kept(row)?;
            sum += kept.signed.size();
            if sum > bytes && !blocks.is_empty() {
                break;
            }
            blocks.push(kept);
        }
        Ok(blocks)
    }

    /// Sites that are to have something.
    pub fn creditors(&self) -> Result<Vec<PeerName>, BookError> {
        let mut query = self.db.prepare_cached(
            "SELECT owed FROM blocks WHERE owed IS NOT NULL
                 UNION SELECT owed FROM usage WHERE owed IS NOT NULL",
        )?;
        let names = query.query_map([], |row| row.get::<_, String>(0))?;
        let names = names.collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Notes that nobody waits for a block any more; answers how many values somebody did wait for.
    pub fn settle(&mut self, id: i64) -> Result<u64, BookError> {
        let mut settle = self.db.prepare_cached(
            "UPDATE blocks SET owed = NULL WHERE id = ?1 AND owed IS NOT NULL RETURNING count",
        )?;
        let count: Option<i64> = settle.query_row([id], |row| row.get(0)).optional()?;
        Ok(unsigned(count.unwrap_or_default()))
    }

    /// Notes that a site would not take a block, which is lost to those above.
    pub fn give_up(&mut self, id: i64) -> Result<(), BookError> {
        self.db
            .prepare_cached(
                "INSERT INTO dropped (vm, count)
                 SELECT vm, count FROM blocks WHERE id = ?1 AND owed IS NOT NULL
                 ON CONFLICT DO UPDATE SET count = count + excluded.count",
            )?
            .execute([id])?;
        self.settle(id).map(drop)
    }

    /// What is owed of a VM is owed to this site from now on: its path has changed.
    pub fn redirect(&mut self, vm: VmId, to: &PeerName) -> Result<(), BookError> {
        self.db
            .prepare_cached("UPDATE blocks SET owed = ?2 WHERE vm = ?1 AND owed IS NOT NULL")?
            .execute(params![vm.0, to.as_str()])?;
        self.redirect_usage(vm, to)
    }

    /// The blocks of a VM that nobody above has, in order: what moves with it.
    pub fn backlog(&self, vm: VmId) -> Result<Vec<Kept>, BookError> {
        let mut query = self.db.prepare_cached(
            "SELECT id, received_ms, body, signature FROM blocks
             WHERE vm = ?1 AND owed IS NOT NULL ORDER BY epoch, first",
        )?;
        let blocks = query.query_map([vm.0], kept)?;
        Ok(blocks.collect::<rusqlite::Result<_>>()?)
    }

    /// Blocks of a VM in the order in which they came, after `id`, `max` at most.
    pub fn after(&self, vm: VmId, id: i64, max: usize) -> Result<Vec<Kept>, BookError> {
        let mut query = self.db.prepare_cached(
            "SELECT id, received_ms, body, signature FROM blocks
             WHERE vm = ?1 AND id > ?2 ORDER BY id LIMIT ?3",
        )?;
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let blocks = query.query_map(params![vm.0, id, max], kept)?;
        Ok(blocks.collect::<rusqlite::Result<_>>()?)
    }

    /// The newest blocks of a VM, the newest last, `max` at most.
    pub fn newest(&self, vm: VmId, max: usize) -> Result<Vec<Kept>, BookError> {
        let mut query = self.db.prepare_cached(
            "SELECT id, received_ms, body, signature FROM blocks
             WHERE vm = ?1 ORDER BY epoch DESC, first DESC LIMIT ?2",
        )?;
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let blocks = query.query_map(params![vm.0, max], kept)?;
        let mut blocks: Vec<Kept> = blocks.collect::<rusqlite::Result<_>>()?;
        blocks.reverse();
        Ok(blocks)
    }

    /// How complete a VM's values are here; `all` if this site is to have them from the first on.
    pub fn standing(&self, vm: VmId, all: bool) -> Result<Standing, BookError> {
        let mut standing = Standing::default();
        let mut query = self
            .db
            .prepare_cached("SELECT first, last, taken FROM runs WHERE vm = ?1 ORDER BY epoch")?;
        let mut runs = query.query([vm.0])?;
        let mut before = all.then_some(0);
        while let Some(run) = runs.next()? {
            let (first, last, taken) =
                (unsigned(run.get(0)?), unsigned(run.get(1)?), unsigned(run.get(2)?));
            standing.values += taken;
            let missing = (last - first + 1).saturating_sub(taken);
            standing.missing = standing.missing.saturating_add(missing);
            // A VM that was taken over from an older copy counts again from there.
            let expected = before.map_or(first, |before: u64| before + 1);
            let missing = first.saturating_sub(expected);
            standing.missing = standing.missing.saturating_add(missing);
            before = Some(last);
        }
        let one = |query: &str| -> Result<u64, BookError> {
            let number = self.db.prepare_cached(query)?.query_row([vm.0], |row| row.get(0));
            Ok(unsigned(number.optional()?.unwrap_or_default()))
        };
        standing.dropped = one("SELECT count FROM dropped WHERE vm = ?1")?;
        standing.owed =
            one("SELECT ifnull(sum(count), 0) FROM blocks WHERE vm = ?1 AND owed IS NOT NULL")?;
        Ok(standing)
    }

    /// Keeps where measuring a VM stands, unless a later stay has begun.
    pub fn keep_state(&mut self, vm: VmId, kept: &KeptState) -> Result<(), BookError> {
        self.db
            .prepare_cached(
                "INSERT INTO producers (vm, epoch, packed, state) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET epoch = excluded.epoch, packed = excluded.packed,
                    state = excluded.state WHERE excluded.epoch >= epoch",
            )?
            .execute(params![vm.0, signed(kept.epoch.0), kept.packed, kept.state])?;
        Ok(())
    }

    /// Where measuring a VM stands.
    pub fn state(&self, vm: VmId) -> Result<Option<KeptState>, BookError> {
        let row = |row: &Row<'_>| {
            let epoch = Epoch(unsigned(row.get(0)?));
            Ok(KeptState { epoch, packed: row.get(1)?, state: row.get(2)? })
        };
        let mut query =
            self.db.prepare_cached("SELECT epoch, packed, state FROM producers WHERE vm = ?1")?;
        Ok(query.query_row([vm.0], row).optional()?)
    }

    /// Remembers who owned a VM in which epoch, what is measured of it, and which site is above:
    /// blocks may come when this one has left the VM's path.
    pub fn remember(
        &mut self,
        vm: VmId,
        owners: &[(Epoch, PublicKey)],
        section: &Monitoring,
        up: Option<&PeerName>,
    ) -> Result<(), BookError> {
        let mut insert = self
            .db
            .prepare_cached("INSERT OR REPLACE INTO owners (vm, epoch, key) VALUES (?1, ?2, ?3)")?;
        for (epoch, key) in owners {
            insert.execute(params![vm.0, signed(epoch.0), key.0])?;
        }
        let body = postcard::to_stdvec(section).expect("descriptors are plain data");
        self.db
            .prepare_cached("INSERT OR REPLACE INTO sections (vm, id, body) VALUES (?1, ?2, ?3)")?
            .execute(params![vm.0, section.id().0, body])?;
        self.db
            .prepare_cached("INSERT OR REPLACE INTO paths (vm, up) VALUES (?1, ?2)")?
            .execute(params![vm.0, up.map(PeerName::as_str)])?;
        drop(insert);
        self.limit_by(vm, section);
        Ok(())
    }

    /// The site that is above, or was when this one was on the VM's path last: none at the primary.
    /// Nothing where the path was never remembered.
    pub fn up(&self, vm: VmId) -> Result<Option<Option<PeerName>>, BookError> {
        let mut query = self.db.prepare_cached("SELECT up FROM paths WHERE vm = ?1")?;
        let up: Option<Option<String>> = query.query_row([vm.0], |row| row.get(0)).optional()?;
        Ok(up.map(|up| up.and_then(|name| name.parse().ok())))
    }

    /// Who owned a VM in an epoch, as far as it was remembered.
    pub fn owner(&self, vm: VmId, epoch: Epoch) -> Result<Option<PublicKey>, BookError> {
        let mut query =
            self.db.prepare_cached("SELECT key FROM owners WHERE vm = ?1 AND epoch = ?2")?;
        let key = query.query_row(params![vm.0, signed(epoch.0)], |row| row.get(0)).optional()?;
        Ok(key.map(PublicKey))
    }

    /// The sections that a VM's values were made by, as far as they were remembered.
    pub fn sections(&self, vm: VmId) -> Result<HashMap<SectionId, Monitoring>, BookError> {
        let mut query = self.db.prepare_cached("SELECT id, body FROM sections WHERE vm = ?1")?;
        let rows = query.query_map([vm.0], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        let read = |(id, body): ([u8; 8], Vec<u8>)| {
            Some((SectionId(id), postcard::from_bytes(&body).ok()?))
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// Forgets a VM, all but what the next site is to have, and what it has used.
    pub fn forget(&mut self, vm: VmId) -> Result<(), BookError> {
        self.db.execute("DELETE FROM blocks WHERE vm = ?1 AND owed IS NULL", [vm.0])?;
        self.db.execute("DELETE FROM producers WHERE vm = ?1", [vm.0])?;
        self.weigh()
    }
}

fn kept(row: &Row<'_>) -> rusqlite::Result<Kept> {
    let signed = SignedBlock { body: row.get(2)?, signature: Signature(row.get(3)?) };
    Ok(Kept { id: row.get(0)?, received: Time(unsigned(row.get(1)?)), signed })
}

/// SQLite has no unsigned numbers; those of here are below 2^63.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests;
