//! What users see of a VM's values.

use std::collections::HashMap;

use model::monitoring::{Delivery, Measure, SectionId};
use model::{Monitoring, VmId};
use monitoring::book::{Kept, Standing};
use monitoring::query::{self, Seen, Table};
use monitoring::seal::OpeningKey;
use tokio::sync::broadcast;

use super::Monitor;
use super::ledger::LedgerError;

/// Blocks that are read at once.
const BLOCKS: usize = 1024;
/// Blocks that are looked through for the newest values.
const LOOK_BACK: usize = 4096;
/// Blocks that a query sees.
const QUERY_BLOCKS: usize = 20_000;

/// What is asked of a VM's values.
pub(crate) struct Asked {
    pub(crate) vm: VmId,
    /// The measures; none means all.
    pub(crate) measures: Vec<Measure>,
    /// How many of each.
    pub(crate) last: usize,
    /// Whether this site is to have all values from the first on.
    pub(crate) is_primary: bool,
}

/// Values, and how complete they are.
#[derive(Default)]
pub(crate) struct Shown {
    pub(crate) values: Vec<Seen>,
    pub(crate) standing: Standing,
    /// Values of these blocks that could not be opened.
    pub(crate) sealed: u64,
    /// The place of the last block.
    pub(crate) last: i64,
}

impl Monitor {
    /// News of VMs with new values.
    pub(crate) fn news(&self) -> broadcast::Receiver<VmId> {
        self.0.news.subscribe()
    }

    /// The newest values of a VM.
    pub(crate) async fn newest(
        &self,
        asked: &Asked,
        key: Option<&OpeningKey>,
    ) -> Result<Shown, LedgerError> {
        let (vm, is_primary) = (asked.vm, asked.is_primary);
        let read = self.ledger().run(move |book| {
            let blocks = book.newest(vm, LOOK_BACK)?;
            Ok((blocks, book.sections(vm)?, book.standing(vm, is_primary)?))
        });
        let (blocks, sections, standing) = read.await?;
        let mut shown = show(&blocks, &sections, key, standing);
        let mut left: HashMap<String, usize> = HashMap::new();
        let mut newest: Vec<Seen> = std::mem::take(&mut shown.values)
            .into_iter()
            .rev()
            .filter(|seen| asked.wants(seen))
            .filter(|seen| {
                let series = format!("{} {}", seen.measure, seen.format);
                let left = left.entry(series).or_insert(asked.last);
                let is_wanted = *left > 0;
                *left = left.saturating_sub(1);
                is_wanted
            })
            .collect();
        newest.reverse();
        shown.values = newest;
        Ok(shown)
    }

    /// Values of a VM that came after a block.
    pub(crate) async fn after(
        &self,
        asked: &Asked,
        block: i64,
        key: Option<&OpeningKey>,
    ) -> Result<Shown, LedgerError> {
        let (vm, is_primary) = (asked.vm, asked.is_primary);
        let read = self.ledger().run(move |book| {
            let blocks = book.after(vm, block, BLOCKS)?;
            Ok((blocks, book.sections(vm)?, book.standing(vm, is_primary)?))
        });
        let (blocks, sections, standing) = read.await?;
        let mut shown = show(&blocks, &sections, key, standing);
        shown.values.retain(|seen| asked.wants(seen));
        shown.last = shown.last.max(block);
        Ok(shown)
    }

    /// Runs a query over the values of a VM.
    pub(crate) async fn query(
        &self,
        vm: VmId,
        sql: String,
        key: Option<OpeningKey>,
    ) -> Result<Result<Table, query::QueryError>, LedgerError> {
        let read =
            self.ledger().run(move |book| Ok((book.newest(vm, QUERY_BLOCKS)?, book.sections(vm)?)));
        let (blocks, sections) = read.await?;
        let run = tokio::task::spawn_blocking(move || {
            query::run(&query::values(&blocks, &sections, key.as_ref()).0, &sql)
        });
        Ok(run.await.expect("a query does not panic"))
    }
}

impl Asked {
    fn wants(&self, seen: &Seen) -> bool {
        self.measures.is_empty() || self.measures.contains(&seen.measure)
    }
}

fn show(
    blocks: &[Kept],
    sections: &HashMap<SectionId, Monitoring>,
    key: Option<&OpeningKey>,
    standing: Standing,
) -> Shown {
    let (values, sealed) = query::values(blocks, sections, key);
    let last = blocks.iter().map(|kept| kept.id).max().unwrap_or_default();
    Shown { sealed, values, standing, last }
}

/// By what condition values of a measure are told, in words; empty if by none.
pub(crate) fn condition(section: &Monitoring, seen: &Seen) -> String {
    let specifier = section
        .specifiers
        .iter()
        .find(|specifier| specifier.measure == seen.measure && specifier.format == seen.format);
    match specifier.map(|specifier| &specifier.delivery) {
        Some(Delivery::When(condition)) => condition.to_string(),
        _ => String::new(),
    }
}
