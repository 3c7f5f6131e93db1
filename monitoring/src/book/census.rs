//! How the whole book stands, for whoever looks after the site.

use std::collections::BTreeMap;

use model::PeerName;

use super::{Book, BookError, unsigned};

/// What a book says of all VMs together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// Values that went from here before the next site had them, since the book was made.
    pub dropped: u64,
    /// Values that are known to exist and have not come. Falls when they come late.
    pub missing: u64,
    /// Values that a site is to have and does not have yet, by site.
    pub owed: BTreeMap<PeerName, u64>,
}

/// As [`Book::standing`] counts them for one VM: numbers that did not come within an epoch, and
/// between an epoch and the one before; at the primary, which alone has nobody above, also those
/// before the first.
const MISSING: &str = "
    SELECT ifnull(sum(max(0, last - first + 1 - taken) + max(0, first - 1 - before)), 0) FROM (
        SELECT first, last, taken, ifnull(
            lag(last) OVER (PARTITION BY runs.vm ORDER BY epoch),
            iif(paths.vm IS NOT NULL AND paths.up IS NULL, 0, first - 1)
        ) AS before
        FROM runs LEFT JOIN paths ON paths.vm = runs.vm
    )";

impl Book {
    /// Counts over all VMs. It takes as long as it takes to read what is owed.
    pub fn census(&self) -> Result<Census, BookError> {
        let one = |query: &str| -> Result<u64, BookError> {
            let number = self.db.prepare_cached(query)?.query_row([], |row| row.get(0))?;
            Ok(unsigned(number))
        };
        let dropped = one("SELECT ifnull(sum(count), 0) FROM dropped")?;
        let missing = one(MISSING)?;
        let mut query = self.db.prepare_cached(
            "SELECT owed, sum(count) FROM blocks WHERE owed IS NOT NULL GROUP BY owed",
        )?;
        let mut rows = query.query([])?;
        let mut owed = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            if let Ok(name) = name.parse() {
                owed.insert(name, unsigned(row.get(1)?));
            }
        }
        Ok(Census { dropped, missing, owed })
    }
}
