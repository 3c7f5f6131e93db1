//! Limits of service that were broken: what a site keeps of it, with the evidence.
//!
//! The evidence is the block that tells it, signed by whoever ran the VM: the one that owes cannot
//! say that it never told so, and nobody else can have made it up. It is kept when the block has
//! gone for want of space, and after the VM.

use std::collections::HashMap;

use model::monitoring::{Delivery, SectionId};
use model::{Epoch, Monitoring, Signature, Time, VmId};
use rusqlite::{Row, params};

use super::{Book, BookError, signed, unsigned};
use crate::block::{Block, SignedBlock, Value};

/// Violations of one VM that are kept; the oldest go.
pub const MAX_OF_VM: usize = 1_000;
/// Bytes of evidence of one VM, and of all.
pub const MAX_BYTES: (u64, u64) = (4 << 20, 256 << 20);

/// A limit of service that was broken.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// The VM.
    pub vm: VmId,
    /// The epoch in which it was: whose owner tells it.
    pub epoch: Epoch,
    /// The number of the value that tells it.
    pub number: u64,
    /// When, by the clock of the site that measured it.
    pub at: Time,
    /// When this site heard of it.
    pub received: Time,
    /// What is measured.
    pub measure: String,
    /// The condition that became true.
    pub condition: String,
    /// The value; none if it is no number.
    pub value: Option<f64>,
    /// The block that tells it.
    pub evidence: SignedBlock,
}

/// Sections with limits of service, so that most blocks cost nothing here.
#[derive(Debug, Default)]
pub(super) struct Limited {
    sections: HashMap<(VmId, SectionId), Monitoring>,
    bytes: u64,
}

fn is_limited(section: &Monitoring) -> bool {
    section.specifiers.iter().any(|specifier| specifier.limit)
}

impl Book {
    pub(super) fn read_limited(&mut self) -> Result<(), BookError> {
        let mut query = self.db.prepare("SELECT DISTINCT vm FROM sections")?;
        let vms = query.query_map([], |row| row.get(0).map(VmId))?;
        let vms = vms.collect::<rusqlite::Result<Vec<_>>>()?;
        drop(query);
        self.limited = Limited::default();
        for vm in vms {
            let sections = self.sections(vm)?.into_iter().filter(|(_, one)| is_limited(one));
            self.limited.sections.extend(sections.map(|(id, one)| ((vm, id), one)));
        }
        let sum = "SELECT coalesce(sum(length(body)), 0) FROM violations";
        self.limited.bytes = unsigned(self.db.query_row(sum, [], |row| row.get(0))?);
        Ok(())
    }

    pub(super) fn limit_by(&mut self, vm: VmId, section: &Monitoring) {
        if is_limited(section) {
            self.limited.sections.insert((vm, section.id()), section.clone());
        }
    }

    /// Keeps what a new block tells of limits that were broken. `hidden` are its sealed values, at
    /// the site that can open them.
    pub(super) fn note_violations(
        &mut self,
        signed_block: &SignedBlock,
        block: &Block,
        hidden: &[Value],
        received: Time,
    ) -> Result<(), BookError> {
        let Some(section) = self.limited.sections.get(&(block.vm, block.section)) else {
            return Ok(());
        };
        let mut told = vec![];
        for (number, value) in (block.first..).zip(block.open.iter().chain(hidden)) {
            let Some(specifier) = section.specifiers.get(usize::from(value.specifier)) else {
                continue;
            };
            if let (true, Delivery::When(condition)) = (specifier.limit, &specifier.delivery) {
                let (measure, condition) = (specifier.measure.to_string(), condition.to_string());
                let at = block.at.0.saturating_add_signed(value.after_ms);
                told.push((number, at, measure, condition, value.reading.number()));
            }
        }
        for (number, at, measure, condition, value) in told {
            let added = self
                .db
                .prepare_cached(
                    "INSERT INTO violations (vm, epoch, number, at_ms, received_ms, measure,
                        condition, value, body, signature)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    block.vm.0,
                    signed(block.epoch.0),
                    signed(number),
                    signed(at),
                    signed(received.0),
                    measure,
                    condition,
                    value,
                    signed_block.body,
                    signed_block.signature.0,
                ])?;
            self.limited.bytes += added as u64 * signed_block.body.len() as u64;
            self.bound_violations(block.vm)?;
        }
        Ok(())
    }

    fn bound_violations(&mut self, vm: VmId) -> Result<(), BookError> {
        loop {
            let (count, bytes): (i64, i64) = self
                .db
                .prepare_cached(
                    "SELECT count(*), coalesce(sum(length(body)), 0) FROM violations WHERE vm = ?1",
                )?
                .query_row([vm.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
            if unsigned(count) <= MAX_OF_VM as u64 && unsigned(bytes) <= MAX_BYTES.0 {
                break;
            }
            self.drop_violation("vm = ?1", params![vm.0])?;
        }
        while self.limited.bytes > MAX_BYTES.1 {
            self.drop_violation("true", [])?;
        }
        Ok(())
    }

    fn drop_violation(
        &mut self,
        of: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<(), BookError> {
        let text = format!(
            "DELETE FROM violations WHERE id = (SELECT min(id) FROM violations WHERE {of})
             RETURNING length(body)"
        );
        let bytes = self.db.prepare_cached(&text)?.query_row(parameters, |row| row.get(0))?;
        self.limited.bytes = self.limited.bytes.saturating_sub(unsigned(bytes));
        Ok(())
    }

    /// Limits of service that were broken, of one VM or of all, the oldest first.
    pub fn violations(&self, vm: Option<VmId>) -> Result<Vec<Violation>, BookError> {
        let mut query = self.db.prepare_cached(
            "SELECT vm, epoch, number, at_ms, received_ms, measure, condition, value, body,
                signature FROM violations WHERE ?1 IS NULL OR vm = ?1 ORDER BY id",
        )?;
        let read = |row: &Row<'_>| {
            Ok(Violation {
                vm: VmId(row.get(0)?),
                epoch: Epoch(unsigned(row.get(1)?)),
                number: unsigned(row.get(2)?),
                at: Time(unsigned(row.get(3)?)),
                received: Time(unsigned(row.get(4)?)),
                measure: row.get(5)?,
                condition: row.get(6)?,
                value: row.get(7)?,
                evidence: SignedBlock { body: row.get(8)?, signature: Signature(row.get(9)?) },
            })
        };
        let rows = query.query_map([vm.map(|vm| vm.0)], read)?;
        Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
    }
}

#[cfg(test)]
mod tests;
