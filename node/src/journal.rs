//! The journal: one SQLite database, written by the driver alone, synchronously.
//!
//! Rows of the protocol carry a type and a version beside their JSON body, so that an operator can
//! read them with any SQLite shell and a later release can still read them all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use certs::{Identity, SecretHash};
use model::{JournalMark, PeerName, Peering, PublicKey, SecretKey, Signature, SiteKey, Time, VmId};
use protocol::{Record, Row, State, Unreadable};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

/// The schema that this program writes. A newer one is refused.
const SCHEMA: i64 = 3;

/// Oldest SQLite whose WAL mode is trusted.
const MIN_SQLITE: i32 = 3_050_000;

/// Events that are kept for each VM or operation.
const MAX_EVENTS: i64 = 1_000;

/// Why the journal cannot be used. None of these loses anything that was written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A later release wrote it.
    #[error(
        "{path} was written by a newer release (schema {found}, this program knows {SCHEMA}); \
         run that release, or restore a backup"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// A row cannot be read.
    #[error(
        "journal row {seq} of type {kind} cannot be read; run the release that wrote it, \
         or restore a backup; never edit it"
    )]
    Row {
        /// Its place.
        seq: i64,
        /// Its type.
        kind: String,
        /// What is wrong.
        #[source]
        source: Unreadable,
    },
    /// A row does not follow from those before it.
    #[error("journal row {seq} contradicts those before it; restore a backup, never edit it")]
    Illegal {
        /// Its place.
        seq: i64,
        /// What is wrong.
        #[source]
        source: protocol::Illegal,
    },
    /// SQLite is too old.
    #[error("this program needs SQLite 3.50 or later, and was built with {0}")]
    Old(&'static str),
    /// SQLite says no: no space, no rights, a damaged file.
    #[error("the journal {path} cannot be used: {source}; free space or repair it, then restart")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
}

/// The open journal.
pub(crate) struct Journal {
    db: Connection,
    path: PathBuf,
    len: u64,
    mark: Option<JournalMark>,
}

/// A peer, as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct StoredPeer {
    pub name: PeerName,
    pub key: SiteKey,
    pub addresses: Vec<String>,
    pub peering: Peering,
}

/// One line about a VM or an operation.
#[derive(Debug, Clone)]
pub(crate) struct EventLine {
    pub at: Time,
    /// `vm:ID` or `op:ID`.
    pub subject: String,
    pub text: String,
}

/// What the journal says.
pub(crate) struct Loaded {
    pub state: State,
    pub keys: BTreeMap<PublicKey, SecretKey>,
    pub token_secret: [u8; 32],
}

const TABLES: &str = "
    CREATE TABLE journal (
        seq     INTEGER PRIMARY KEY,
        at_ms   INTEGER NOT NULL,
        type    TEXT NOT NULL,
        version INTEGER NOT NULL,
        body    TEXT NOT NULL
    ) STRICT;
    CREATE TABLE keys (
        public BLOB PRIMARY KEY,
        seed   BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE secrets (
        name  TEXT PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE peers (
        name         TEXT PRIMARY KEY,
        key          BLOB NOT NULL UNIQUE,
        addresses    TEXT NOT NULL,
        journal_seen INTEGER NOT NULL,
        peering      TEXT NOT NULL DEFAULT '{}',
        journal_mark BLOB
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE invitations (
        secret     BLOB PRIMARY KEY,
        expires_ms INTEGER NOT NULL,
        used_by    BLOB,
        peering    TEXT NOT NULL DEFAULT '{}'
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE events (
        id      INTEGER PRIMARY KEY,
        at_ms   INTEGER NOT NULL,
        subject TEXT NOT NULL,
        text    TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_by_subject ON events (subject, id);
";

/// What the second schema has more than the first: the terms of each peering.
const FROM_FIRST: &str = "
    ALTER TABLE peers ADD COLUMN peering TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE invitations ADD COLUMN peering TEXT NOT NULL DEFAULT '{}';
";

/// What the third has more: a peer's signature under the length of its journal. Of one that has
/// not spoken since there is none, and it is told of no length.
const FROM_SECOND: &str = "ALTER TABLE peers ADD COLUMN journal_mark BLOB;";

impl Journal {
    /// Opens the journal at `path`, making it if there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        if rusqlite::version_number() < MIN_SQLITE {
            return Err(JournalError::Old(rusqlite::version()));
        }
        let error = |source| JournalError::Sqlite { path: path.to_owned(), source };
        let db = Connection::open(path).map_err(error)?;
        set_private(path).map_err(|e| error(rusqlite::Error::ToSqlConversionFailure(e.into())))?;
        db.pragma_update(None, "journal_mode", "WAL").map_err(error)?;
        db.pragma_update(None, "synchronous", "FULL").map_err(error)?;
        db.pragma_update(None, "trusted_schema", false).map_err(error)?;
        let mut journal = Self { db, path: path.to_owned(), len: 0, mark: None };
        journal.prepare()?;
        Ok(journal)
    }

    fn error(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Sqlite { path: self.path.clone(), source }
    }

    fn prepare(&mut self) -> Result<(), JournalError> {
        let found: i64 = self
            .db
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(|e| self.error(e))?;
        if found > SCHEMA {
            return Err(JournalError::Newer { path: self.path.clone(), found });
        }
        if found == 0 {
            let secret: [u8; 32] = rand::random();
            let made = self.transaction(|tx| {
                tx.execute_batch(TABLES)?;
                tx.execute("INSERT INTO secrets VALUES ('token', ?1)", [secret])?;
                tx.pragma_update(None, "user_version", SCHEMA)
            });
            made?;
        }
        if (1..SCHEMA).contains(&found) {
            self.transaction(|tx| {
                if found == 1 {
                    tx.execute_batch(FROM_FIRST)?;
                }
                tx.execute_batch(FROM_SECOND)?;
                tx.pragma_update(None, "user_version", SCHEMA)
            })?;
        }
        let len: i64 = self
            .db
            .query_row("SELECT coalesce(max(seq), 0) FROM journal", [], |row| row.get(0))
            .map_err(|e| self.error(e))?;
        self.len = u64::try_from(len).unwrap_or_default();
        Ok(())
    }

    fn transaction<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        let path = self.path.clone();
        let error = |source| JournalError::Sqlite { path: path.clone(), source };
        let tx =
            self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
        let value = work(&tx).map_err(error)?;
        tx.commit().map_err(error)?;
        Ok(value)
    }

    /// Folds all rows, and reads the keys.
    pub(crate) fn load(&self) -> Result<Loaded, JournalError> {
        let error = |source| self.error(source);
        let mut state = State::default();
        let mut rows = self
            .db
            .prepare("SELECT seq, type, version, body FROM journal ORDER BY seq")
            .map_err(error)?;
        let mut rows = rows.query([]).map_err(error)?;
        while let Some(row) = rows.next().map_err(error)? {
            let seq: i64 = row.get(0).map_err(error)?;
            let record = Record {
                kind: row.get(1).map_err(error)?,
                version: row.get(2).map_err(error)?,
                body: row.get(3).map_err(error)?,
            };
            let row = record.row().map_err(|source| JournalError::Row {
                seq,
                kind: record.kind,
                source,
            })?;
            state.apply(&row).map_err(|source| JournalError::Illegal { seq, source })?;
        }
        let mut keys = BTreeMap::new();
        let mut stored = self.db.prepare("SELECT seed FROM keys").map_err(error)?;
        let stored = stored.query_map([], |row| row.get::<_, [u8; 32]>(0)).map_err(error)?;
        for seed in stored {
            let key = SecretKey::from_seed(&seed.map_err(error)?);
            keys.insert(key.public(), key);
        }
        let token_secret = self
            .db
            .query_row("SELECT value FROM secrets WHERE name = 'token'", [], |row| row.get(0))
            .map_err(error)?;
        Ok(Loaded { state, keys, token_secret })
    }

    /// Writes rows, keys and events, all or nothing. Nothing of it counts before
    /// [`Journal::sync`].
    pub(crate) fn write(
        &mut self,
        now: Time,
        rows: &[Row],
        keys: &[SecretKey],
        events: &[EventLine],
        seen: &BTreeMap<SiteKey, JournalMark>,
    ) -> Result<(), JournalError> {
        let len = Self::insert(&self.db, self.len, now, rows, keys, events, seen);
        self.len = len.map_err(|source| {
            // After an error SQLite may have ended the transaction already.
            let _ = self.db.execute_batch("ROLLBACK");
            self.error(source)
        })?;
        Ok(())
    }

    fn insert(
        db: &Connection,
        mut len: u64,
        now: Time,
        rows: &[Row],
        keys: &[SecretKey],
        events: &[EventLine],
        seen: &BTreeMap<SiteKey, JournalMark>,
    ) -> rusqlite::Result<u64> {
        db.execute_batch("BEGIN IMMEDIATE")?;
        let mut insert = db.prepare_cached("INSERT INTO journal VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for row in rows {
            len = row.place_after(len);
            let record = Record::of(row);
            let at = i64::try_from(now.0).unwrap_or(i64::MAX);
            let seq = i64::try_from(len).unwrap_or(i64::MAX);
            insert.execute(params![seq, at, record.kind, record.version, record.body])?;
        }
        let mut insert = db.prepare_cached("INSERT OR IGNORE INTO keys VALUES (?1, ?2)")?;
        for key in keys {
            insert.execute(params![key.public().0, *key.seed()])?;
        }
        for event in events {
            insert_event(db, event)?;
        }
        for (key, mark) in seen {
            update_seen(db, key, mark)?;
        }
        Ok(len)
    }

    /// Makes durable what was written.
    pub(crate) fn sync(&mut self) -> Result<(), JournalError> {
        self.db.execute_batch("COMMIT").map_err(|source| self.error(source))
    }

    /// The place of the newest row. It grows with every row and never falls.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The place of the newest row, signed, for peers to remember.
    pub(crate) fn mark(&mut self, identity: &Identity) -> JournalMark {
        let known = self.mark.filter(|mark| mark.length == self.len);
        let made = || JournalMark::new(self.len, |kind, body| identity.sign(kind, body));
        let mark = known.unwrap_or_else(made);
        self.mark = Some(mark);
        mark
    }

    /// The last events about a subject, oldest first.
    pub(crate) fn events(&self, subject: &str) -> Result<Vec<EventLine>, JournalError> {
        let sql = "SELECT at_ms, text FROM (SELECT id, at_ms, text FROM events
                   WHERE subject = ?1 ORDER BY id DESC LIMIT ?2) ORDER BY id";
        let mut query = self.db.prepare_cached(sql).map_err(|e| self.error(e))?;
        let lines = query
            .query_map(params![subject, MAX_EVENTS], |row| {
                let at: i64 = row.get(0)?;
                let at = Time(u64::try_from(at).unwrap_or_default());
                Ok(EventLine { at, subject: subject.to_owned(), text: row.get(1)? })
            })
            .and_then(Iterator::collect);
        lines.map_err(|e| self.error(e))
    }

    /// Every peer.
    pub(crate) fn peers(&self) -> Result<Vec<StoredPeer>, JournalError> {
        let mut query = self
            .db
            .prepare("SELECT name, key, addresses, peering FROM peers ORDER BY name")
            .map_err(|e| self.error(e))?;
        let peers = query
            .query_map([], |row| {
                let name: String = row.get(0)?;
                let addresses: String = row.get(2)?;
                Ok(StoredPeer {
                    name: name.parse().expect("only checked names are stored"),
                    key: SiteKey(row.get(1)?),
                    addresses: addresses.split_whitespace().map(str::to_owned).collect(),
                    peering: peering_of(row.get(3)?)?,
                })
            })
            .and_then(Iterator::collect);
        peers.map_err(|e| self.error(e))
    }

    /// Changes what a peer may do.
    pub(crate) fn set_peering(
        &mut self,
        name: &PeerName,
        peering: &Peering,
    ) -> Result<(), JournalError> {
        let peering = text_of(peering);
        self.transaction(|tx| {
            let sql = "UPDATE peers SET peering = ?2 WHERE name = ?1";
            tx.execute(sql, params![name.as_str(), peering]).map(drop)
        })
    }

    /// Adds a peer, or takes its new addresses.
    pub(crate) fn add_peer(&mut self, peer: &StoredPeer) -> Result<(), JournalError> {
        self.transaction(|tx| insert_peer(tx, peer))
    }

    /// Takes a peer's new key in place of the old one.
    pub(crate) fn renew_key(&mut self, old: &SiteKey, new: &SiteKey) -> Result<(), JournalError> {
        self.transaction(|tx| {
            tx.execute("UPDATE peers SET key = ?2 WHERE key = ?1", [old.0, new.0]).map(drop)
        })
    }

    /// Forgets a peer.
    pub(crate) fn remove_peer(&mut self, name: &PeerName) -> Result<(), JournalError> {
        self.transaction(|tx| {
            tx.execute("DELETE FROM peers WHERE name = ?1", [name.as_str()]).map(drop)
        })
    }

    /// Remembers how long a peer's journal is; it never shrinks.
    pub(crate) fn saw_journal(
        &mut self,
        key: &SiteKey,
        mark: &JournalMark,
    ) -> Result<(), JournalError> {
        self.transaction(|tx| update_seen(tx, key, mark))
    }

    /// The longest journal of a peer that was ever seen.
    pub(crate) fn seen(&self, key: &SiteKey) -> Result<Option<JournalMark>, JournalError> {
        let sql = "SELECT journal_seen, journal_mark FROM peers
                   WHERE key = ?1 AND journal_mark IS NOT NULL";
        let mark = |row: &rusqlite::Row<'_>| {
            let length = u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default();
            Ok(JournalMark { length, signature: Signature(row.get(1)?) })
        };
        let found = self.db.query_row(sql, [key.0], mark).optional();
        found.map_err(|e| self.error(e))
    }

    /// Remembers an invitation, by its secret's hash, and what whoever uses it may do.
    pub(crate) fn invite(
        &mut self,
        secret: &SecretHash,
        until: Time,
        peering: &Peering,
    ) -> Result<(), JournalError> {
        let peering = text_of(peering);
        let until = i64::try_from(until.0).unwrap_or(i64::MAX);
        self.transaction(|tx| {
            let sql = "INSERT INTO invitations VALUES (?1, ?2, NULL, ?3)";
            tx.execute(sql, params![secret.0, until, peering]).map(drop)
        })
    }

    /// When the last invitation that is open ends by itself; none if none is.
    pub(crate) fn inviting_until(&self) -> Result<Option<Time>, JournalError> {
        let sql = "SELECT max(expires_ms) FROM invitations WHERE used_by IS NULL";
        let found = self.db.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
        let found = found.map_err(|e| self.error(e))?;
        Ok(found.map(|ms| Time(u64::try_from(ms).unwrap_or_default())))
    }

    /// Uses an invitation up for a peer, which may then do what the invitation says, in one
    /// transaction; none if it is not open. The same peer may show it again, since it may not have
    /// heard the answer: that changes nothing.
    pub(crate) fn accept_invitation(
        &mut self,
        secret: &SecretHash,
        now: Time,
        peer: &StoredPeer,
    ) -> Result<Option<Peering>, JournalError> {
        let now = i64::try_from(now.0).unwrap_or(i64::MAX);
        self.transaction(|tx| {
            let sql =
                "SELECT used_by, peering FROM invitations WHERE secret = ?1 AND expires_ms > ?2";
            let open = |row: &rusqlite::Row<'_>| {
                Ok((row.get::<_, Option<[u8; 32]>>(0)?, peering_of(row.get(1)?)?))
            };
            match tx.query_row(sql, params![secret.0, now], open).optional()? {
                Some((None, peering)) => {
                    let sql = "UPDATE invitations SET used_by = ?2 WHERE secret = ?1";
                    tx.execute(sql, params![secret.0, peer.key.0])?;
                    insert_peer(tx, &StoredPeer { peering: peering.clone(), ..peer.clone() })?;
                    Ok(Some(peering))
                }
                // What was said of it since counts, also that it is no peer any more.
                Some((Some(by), _)) if by == peer.key.0 => {
                    let sql = "SELECT peering FROM peers WHERE key = ?1";
                    tx.query_row(sql, [by], |row| peering_of(row.get(0)?)).optional()
                }
                _ => Ok(None),
            }
        })
    }
}

fn text_of(peering: &Peering) -> String {
    serde_json::to_string(peering).expect("a peering is plain data")
}

fn peering_of(text: String) -> rusqlite::Result<Peering> {
    serde_json::from_str(&text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
    })
}

fn insert_peer(tx: &Transaction<'_>, peer: &StoredPeer) -> rusqlite::Result<()> {
    // Of a peer that joins again it is remembered how long its journal was.
    let sql = "DELETE FROM peers WHERE key = ?1 RETURNING journal_seen, journal_mark";
    let before = tx.query_row(sql, [peer.key.0], |row| Ok((row.get(0)?, row.get(1)?)));
    let (seen, mark): (i64, Option<[u8; 64]>) = before.optional()?.unwrap_or_default();
    let addresses = peer.addresses.join(" ");
    tx.execute(
        "INSERT INTO peers VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![peer.name.as_str(), peer.key.0, addresses, seen, text_of(&peer.peering), mark],
    )?;
    Ok(())
}

fn update_seen(db: &Connection, key: &SiteKey, mark: &JournalMark) -> rusqlite::Result<()> {
    let len = i64::try_from(mark.length).unwrap_or(i64::MAX);
    let sql = "UPDATE peers SET journal_seen = ?2, journal_mark = ?3
               WHERE key = ?1 AND (journal_seen <= ?2 OR journal_mark IS NULL)
               AND journal_mark IS NOT ?3";
    db.prepare_cached(sql)?.execute(params![key.0, len, mark.signature.0]).map(drop)
}

fn insert_event(db: &Connection, event: &EventLine) -> rusqlite::Result<()> {
    let at = i64::try_from(event.at.0).unwrap_or(i64::MAX);
    let mut insert =
        db.prepare_cached("INSERT INTO events (at_ms, subject, text) VALUES (?1, ?2, ?3)")?;
    insert.execute(params![at, event.subject, event.text])?;
    // Now and then, so that it costs little: all but the newest go.
    if db.last_insert_rowid() % 256 == 0 {
        db.execute(
            "DELETE FROM events WHERE subject = ?1 AND id <= (SELECT id FROM events
             WHERE subject = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            params![event.subject, MAX_EVENTS],
        )?;
    }
    Ok(())
}

fn set_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

/// The subject of a VM's events.
pub(crate) fn vm_subject(vm: VmId) -> String {
    format!("vm:{vm}")
}

/// The subject of an operation's events.
pub(crate) fn operation_subject(operation: model::OperationId) -> String {
    format!("op:{operation}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_row(name: &str) -> Row {
        Row::HostAdded { host: name.parse().unwrap(), capacity: model::Resources::default() }
    }

    #[test]
    fn what_was_synced_is_folded_after_a_restart_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let key = SecretKey::from_seed(&[7; 32]);
        let first = Journal::open(&path).unwrap().load().unwrap().token_secret;
        let mut journal = Journal::open(&path).unwrap();
        let (now, keys, seen) = (Time(1), std::slice::from_ref(&key), BTreeMap::new());
        journal.write(now, &[host_row("a"), host_row("b")], keys, &[], &seen).unwrap();
        journal.sync().unwrap();
        journal.write(now, &[host_row("c")], &[], &[], &seen).unwrap();
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        let loaded = journal.load().unwrap();
        assert_eq!(journal.len(), 2);
        assert_eq!(loaded.state.hosts.len(), 2);
        assert!(loaded.keys.contains_key(&key.public()));
        assert_eq!(loaded.token_secret, first, "a site's token secret is made once");
    }

    #[test]
    fn a_journal_of_a_newer_release_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        drop(Journal::open(&path).unwrap());
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "user_version", SCHEMA + 1).unwrap();
        drop(db);
        let Err(error) = Journal::open(&path) else { panic!("it was opened") };
        assert!(matches!(error, JournalError::Newer { found, .. } if found == SCHEMA + 1));
        assert!(error.to_string().contains("newer release"), "{error}");
    }

    #[test]
    fn a_journal_of_the_second_schema_is_brought_to_this_one_and_its_peers_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        drop(Journal::open(&path).unwrap());
        let key = SiteKey([1; 32]);
        let db = Connection::open(&path).unwrap();
        db.execute_batch("ALTER TABLE peers DROP COLUMN journal_mark").unwrap();
        db.execute("INSERT INTO peers VALUES ('b', ?1, '[::1]:1', 700, '{}')", [key.0]).unwrap();
        db.pragma_update(None, "user_version", 2).unwrap();
        drop(db);
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.peers().unwrap().len(), 1);
        assert_eq!(journal.seen(&key).unwrap(), None, "what it has is no proof");
        let mark = |length| JournalMark { length, signature: Signature([7; 64]) };
        // The length of before was anybody's word.
        journal.saw_journal(&key, &mark(70)).unwrap();
        assert_eq!(journal.seen(&key).unwrap(), Some(mark(70)));
        journal.saw_journal(&key, &mark(69)).unwrap();
        assert_eq!(journal.seen(&key).unwrap(), Some(mark(70)), "it never shrinks");
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().seen(&key).unwrap(), Some(mark(70)));
    }

    #[test]
    fn an_invitation_is_good_once_and_until_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("journal.db")).unwrap();
        let peer = |name: &str, key| StoredPeer {
            name: name.parse().unwrap(),
            key: SiteKey([key; 32]),
            addresses: vec!["[::1]:1".to_owned()],
            peering: Peering::default(),
        };
        let (secret, late) = (SecretHash([1; 32]), SecretHash([2; 32]));
        let partner = Peering { marks: ["partner".to_owned()].into(), ..Peering::default() };
        journal.invite(&secret, Time(100), &partner).unwrap();
        journal.invite(&late, Time(100), &Peering::default()).unwrap();
        assert_eq!(journal.inviting_until().unwrap(), Some(Time(100)));
        assert!(journal.accept_invitation(&secret, Time(50), &peer("b", 1)).unwrap().is_some());
        assert!(
            journal.accept_invitation(&secret, Time(50), &peer("b", 1)).unwrap().is_some(),
            "a repeat"
        );
        assert!(journal.accept_invitation(&secret, Time(50), &peer("c", 2)).unwrap().is_none());
        assert!(journal.accept_invitation(&late, Time(100), &peer("c", 2)).unwrap().is_none());
        journal.accept_invitation(&late, Time(99), &peer("b", 1)).unwrap();
        assert_eq!(journal.inviting_until().unwrap(), None);
        assert_eq!(journal.peers().unwrap().len(), 1);
    }

    #[test]
    fn the_journal_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        drop(Journal::open(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
