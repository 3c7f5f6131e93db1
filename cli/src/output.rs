//! What is printed: data on standard output, everything else on standard error.

use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use proto::admin as api;
use serde_json::{Value, json};

use crate::args::Format;

/// Where and how to print.
pub(crate) struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether a person watches and wants to see progress.
    pub(crate) fn shows_bars(&self) -> bool {
        !self.quiet && self.format == Format::Table && std::io::stderr().is_terminal()
    }

    /// A remark that is no data.
    pub(crate) fn remark(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// One object: for programs, or in words.
    pub(crate) fn one(&self, value: &Value, words: impl FnOnce() -> String) {
        match self.format {
            Format::Json => self.line(value),
            Format::Table => put(&words()),
        }
    }

    /// One object on a line of its own.
    pub(crate) fn line(&self, value: &Value) {
        put(&value.to_string());
    }

    /// Text for people.
    pub(crate) fn words(&self, text: &str) {
        put(text);
    }

    /// Raw bytes.
    pub(crate) fn raw(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Rows under a heading, as wide as they need.
    pub(crate) fn table(&self, heading: &[&str], rows: Vec<Vec<String>>) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(heading.to_vec());
        for row in rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.to_string().lines() {
            put(line.trim_end());
        }
    }

    /// A list: an array for programs, a table for people.
    pub(crate) fn list<T>(
        &self,
        all: &[T],
        value: impl Fn(&T) -> Value,
        heading: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) {
        match self.format {
            Format::Json => self.line(&all.iter().map(value).collect()),
            Format::Table => self.table(heading, all.iter().map(row).collect()),
        }
    }
}

/// Prints a line. A reader that has gone away ends the program, as with any other tool.
fn put(line: &str) {
    if writeln!(std::io::stdout().lock(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// A point in time, for people.
pub(crate) fn time(unix_ms: u64) -> String {
    let at = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"))
}

/// A number of bytes, for people.
pub(crate) fn bytes(n: u64) -> String {
    model::Bytes(n).to_string()
}

/// An empty text shows as a dash.
pub(crate) fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

pub(crate) fn site_value(site: &api::Site, with_settings: bool) -> Value {
    let mut value = json!({
        "name": site.name, "key": site.key, "fingerprint": site.fingerprint,
        "version": site.version, "control_address": site.control_address,
        "proxy_address": site.proxy_address, "hypervisor": site.hypervisor,
        "journal_rows": site.journal,
    });
    if with_settings {
        let one = |s: &api::Setting| json!({ "key": s.key, "value": s.value, "whence": s.whence });
        value["settings"] = site.settings.iter().map(one).collect();
    }
    value
}

pub(crate) fn peer_value(peer: &api::Peer) -> Value {
    json!({
        "name": peer.name, "key": peer.key, "fingerprint": peer.fingerprint,
        "addresses": peer.addresses, "reachable": peer.reachable, "trouble": peer.trouble,
        "vms_delegated_to": peer.delegated_to, "vms_hosted_for": peer.hosted_for,
        "peering": peer.peering.as_ref().map(peering_value),
    })
}

/// What a peer may do; a limit that is null is none.
fn peering_value(peering: &api::Peering) -> Value {
    json!({
        "may": peering.may, "contract": peering.contract, "marks": peering.marks,
        "ending_unix_ms": peering.ending_unix_ms,
        "limits": {
            "vms": peering.vms, "cpus": peering.cpus, "memory_bytes": peering.memory_bytes,
            "disk_bytes": peering.disk_bytes, "requests_per_second": peering.requests,
            "bytes_per_second": peering.rate_bytes,
        },
    })
}

pub(crate) fn host_value(host: &api::Host) -> Value {
    json!({
        "name": host.name, "cpus": host.cpus, "memory_bytes": host.memory_bytes,
        "cpus_used": host.cpus_used, "memory_used_bytes": host.memory_used_bytes,
        "draining": host.draining, "vms": host.vms,
    })
}

pub(crate) fn vm_value(vm: &api::Vm) -> Value {
    let next = vm.next.as_ref().map(|next| {
        json!({
            "migration": next.migration, "state": next.state, "who": next.who,
            "until_unix_ms": next.until_unix_ms, "then": next.then,
        })
    });
    json!({
        "id": vm.id, "name": vm.name, "state": vm.state, "epoch": vm.epoch, "place": vm.place,
        "host": vm.host, "delegator": vm.delegator, "delegate": vm.delegate,
        "primary": vm.primary, "cpus": vm.cpus, "memory_bytes": vm.memory_bytes,
        "disk_bytes": vm.disk_bytes, "parked": vm.parked, "next": next,
        "warnings": vm.warnings,
    })
}

/// Where a VM is, in a word, as far as this site knows.
pub(crate) fn place(vm: &api::Vm) -> String {
    match vm.place.as_str() {
        "here" => format!("host {}", vm.host),
        "delegated" => format!("with {}", vm.delegate),
        other => other.to_owned(),
    }
}

pub(crate) fn vm_words(vm: &api::Vm) -> String {
    let role = match (vm.primary, vm.delegate.is_empty()) {
        (true, true) => "primary; it is here".to_owned(),
        (true, false) => format!("primary; {} answers for it", vm.delegate),
        (false, true) => format!("hosts it for {}", vm.delegator),
        (false, false) => {
            format!("intermediary: {} asked, {} answers", vm.delegator, vm.delegate)
        }
    };
    let disks: Vec<String> = vm.disk_bytes.iter().map(|n| bytes(*n)).collect();
    let mut lines = vec![
        format!("name     {}", vm.name),
        format!("id       {}", vm.id),
        format!("state    {}", vm.state),
        format!("place    {}", place(vm)),
        format!("role     {role}"),
        format!("epoch    {}", vm.epoch),
        format!("has      {} CPUs, {}, disks {}", vm.cpus, bytes(vm.memory_bytes), disks.join(" ")),
    ];
    if !vm.parked.is_empty() {
        lines.push(format!("parked   {}", vm.parked));
    }
    match &vm.next {
        Some(next) => {
            lines.push(format!("now      {}", next.state));
            lines.push(format!("next     {}", next.who));
            if next.until_unix_ms > 0 {
                lines.push(format!("until    {}, then {}", time(next.until_unix_ms), next.then));
            }
        }
        None => lines.push("now      nothing is under way".to_owned()),
    }
    lines.join("\n")
}

pub(crate) fn event_value(event: &api::Event) -> Value {
    json!({ "unix_ms": event.unix_ms, "text": event.text })
}

pub(crate) fn operation_value(op: &api::Operation) -> Value {
    json!({
        "id": op.id, "vm": op.vm, "kind": op.kind, "phase": op.phase, "ended": op.ended,
        "result": op.result, "details": op.details, "migration": op.migration,
        "bytes_done": op.bytes_done, "bytes_total": op.bytes_total,
        "bytes_second": op.bytes_second, "seconds_left": op.seconds_left,
        "log": op.log.iter().map(event_value).collect::<Value>(),
    })
}
