//! `usage`: what VMs have used, for bills and for whoever checks them.

use std::collections::HashMap;
use std::path::Path;

use model::key::{Signed, Strict};
use model::statement::Chain;
use model::{PublicKey, Signature, VmId};
use monitoring::usage::{Statement, Used};
use proto::admin as api;
use serde_json::{Value, json};

use crate::args::{Export, Format, UsageBy, UsageFormat};
use crate::client::Client;
use crate::exit::{FAILED, Failure, USAGE};
use crate::output::{Output, time};

/// How much two numbers may differ that were the same before they were written as decimals.
const ROUNDING: f64 = 1e-12;

/// Runs `usage export`.
pub(crate) async fn export(ask: Export, node: &mut Client, output: &Output) -> Result<(), Failure> {
    let by = match ask.by {
        UsageBy::Stay => "stay",
        UsageBy::Vm => "vm",
        UsageBy::Peer => "peer",
    };
    let request = api::UsageRequest {
        vm: ask.vm.unwrap_or_default(),
        by: by.to_owned(),
        since_unix_ms: ask.since.unwrap_or_default(),
        until_unix_ms: ask.until.unwrap_or_default(),
    };
    let mut stream = node.export_usage(request).await?.into_inner();
    let mut lines = Vec::new();
    while let Some(line) = stream.message().await? {
        lines.push(line);
    }
    let format = ask.format.unwrap_or(match output.format() {
        Format::Json => UsageFormat::Json,
        Format::Table => UsageFormat::Csv,
    });
    match format {
        UsageFormat::Json => {
            output.line(&lines.iter().map(|line| line_json(line, ask.by)).collect());
        }
        UsageFormat::Csv => output.raw(&csv(&lines, ask.by)?)?,
    }
    let incomplete = lines.iter().filter(|line| line.state == "at_least").count();
    if incomplete > 0 {
        output.remark(&format!(
            "{incomplete} lines are not complete: a stay is over, and its last statement has not \
             come; at least this was used"
        ));
    }
    Ok(())
}

/// The columns that a kind of lines begins with.
fn heading(by: UsageBy) -> &'static [&'static str] {
    match by {
        UsageBy::Stay => &["vm", "name", "epoch", "for", "through"],
        UsageBy::Vm => &["vm", "name", "stays"],
        UsageBy::Peer => &["for", "through", "vms", "stays"],
    }
}

/// The columns that all lines end with.
const FIGURES: [&str; 9] = [
    "since",
    "until",
    "state",
    "cpu_seconds",
    "memory_gib_hours",
    "disk_read_bytes",
    "disk_written_bytes",
    "network_received_bytes",
    "network_sent_bytes",
];

fn csv(lines: &[api::UsageLine], by: UsageBy) -> Result<Vec<u8>, Failure> {
    let mut table = csv::Writer::from_writer(Vec::new());
    let broken = |error: csv::Error| Failure::new(FAILED, error.to_string());
    table.write_record(heading(by).iter().chain(&FIGURES)).map_err(broken)?;
    for line in lines {
        let or = |name: &str, else_: &str| if name.is_empty() { else_ } else { name }.to_owned();
        let (for_peer, through) = (or(&line.for_peer, "own"), or(&line.through_peer, "here"));
        let (vm, name) = (line.vm.clone(), line.name.clone());
        let (vms, stays) = (line.vms.to_string(), line.stays.to_string());
        let mut record = match by {
            UsageBy::Stay => vec![vm, name, line.epoch.to_string(), for_peer, through],
            UsageBy::Vm => vec![vm, name, stays],
            UsageBy::Peer => vec![for_peer, through, vms, stays],
        };
        // What is not known is empty, and not zero.
        let known = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
        record.extend([
            time(line.since_unix_ms),
            time(line.until_unix_ms),
            line.state.clone(),
            format!("{}.{:09}", line.cpu_ns / 1_000_000_000, line.cpu_ns % 1_000_000_000),
            format!("{:.9}", line.memory_gib_hours),
            line.disk_read_bytes.to_string(),
            line.disk_written_bytes.to_string(),
            known(line.network_received_bytes),
            known(line.network_sent_bytes),
        ]);
        table.write_record(record).map_err(broken)?;
    }
    table.into_inner().map_err(|error| Failure::new(FAILED, error.to_string()))
}

fn line_json(line: &api::UsageLine, by: UsageBy) -> Value {
    let peer = |name: &str| if name.is_empty() { Value::Null } else { json!(name) };
    let mut value = json!({
        "since_unix_ms": line.since_unix_ms, "until_unix_ms": line.until_unix_ms,
        "state": line.state,
        "cpu_seconds": seconds(line.cpu_ns), "memory_gib_hours": line.memory_gib_hours,
        "disk_read_bytes": line.disk_read_bytes, "disk_written_bytes": line.disk_written_bytes,
        "network_received_bytes": line.network_received_bytes,
        "network_sent_bytes": line.network_sent_bytes,
    });
    match by {
        UsageBy::Stay => {
            value["vm"] = json!(line.vm);
            value["name"] = json!(line.name);
            value["epoch"] = json!(line.epoch);
            value["for"] = peer(&line.for_peer);
            value["through"] = peer(&line.through_peer);
            value["owner"] = json!(data_encoding::HEXLOWER.encode(&line.owner));
            value["statement"] = statement_json(line.statement.as_ref());
            value["before"] = statement_json(line.before.as_ref());
            value["certificates"] = match line.certificates.is_empty() {
                true => Value::Null,
                false => json!(base64(&line.certificates)),
            };
        }
        UsageBy::Vm => {
            value["vm"] = json!(line.vm);
            value["name"] = json!(line.name);
            value["stays"] = json!(line.stays);
        }
        UsageBy::Peer => {
            value["for"] = peer(&line.for_peer);
            value["through"] = peer(&line.through_peer);
            value["vms"] = json!(line.vms);
            value["stays"] = json!(line.stays);
        }
    }
    value
}

fn statement_json(statement: Option<&api::UsageStatement>) -> Value {
    statement.map_or(Value::Null, |statement| {
        json!({ "body": base64(&statement.body), "signature": base64(&statement.signature) })
    })
}

fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Runs `usage verify`: nothing is asked but the file.
pub(crate) fn verify(file: &Path, output: &Output) -> Result<(), Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::new(FAILED, format!("{}: {error}", file.display())))?;
    let no_export = || {
        let text = format!(
            "{} is not what `sojourn usage export --by stay --format json` writes",
            file.display()
        );
        Failure::new(USAGE, text)
    };
    let lines: Vec<Value> = serde_json::from_str(&text).map_err(|_| no_export())?;
    if lines.iter().any(|line| line["statement"].is_null()) {
        return Err(no_export());
    }
    let (mut chains, mut bad, mut rows) = (HashMap::new(), 0, Vec::new());
    for line in &lines {
        let verdict = judge(line, &mut chains);
        bad += usize::from(verdict.is_err());
        rows.push((line, verdict));
    }
    let word = |verdict: &Result<Owner, String>| match verdict {
        Ok(Owner::Proven) => "holds".to_owned(),
        Ok(Owner::Unproven) => "signed; no certificate says by whom".to_owned(),
        Err(why) => why.clone(),
    };
    let value = |(line, verdict): &(&Value, Result<Owner, String>)| {
        json!({
            "vm": line["vm"], "epoch": line["epoch"],
            "holds": matches!(verdict, Ok(Owner::Proven)), "verdict": word(verdict),
        })
    };
    output.list(&rows, value, &["VM", "EPOCH", "STATEMENT"], |(line, verdict)| {
        let vm = line["vm"].as_str().unwrap_or("-").chars().filter(char::is_ascii_hexdigit);
        vec![vm.collect(), line["epoch"].to_string(), word(verdict)]
    });
    match bad {
        0 => Ok(()),
        _ => Err(Failure::new(FAILED, format!("{bad} of {} lines do not hold", lines.len()))),
    }
}

/// Whether certificates prove that the key belongs to the epoch's owner.
enum Owner {
    Proven,
    Unproven,
}

/// Whether a line says what its epoch's owner has signed.
fn judge(line: &Value, chains: &mut HashMap<VmId, Chain>) -> Result<Owner, String> {
    let text = |name: &str| line[name].as_str().ok_or_else(|| format!("it has no {name}"));
    let vm: VmId = text("vm")?.parse().map_err(|_| "its vm is no id")?;
    let owner: PublicKey = text("owner")?.parse().map_err(|_| "its owner is no key")?;
    if let Some(certificates) = line["certificates"].as_str() {
        let bytes = decode(certificates)?;
        let (chain, rest): (Chain, _) =
            postcard::take_from_bytes(&bytes).map_err(|_| "its certificates cannot be read")?;
        if !rest.is_empty() {
            return Err("its certificates cannot be read".to_owned());
        }
        chain.verify(vm, &Strict).map_err(|error| error.to_string())?;
        chains.insert(vm, chain);
    }
    let now = open(&line["statement"], owner)?;
    let before = match &line["before"] {
        Value::Null => None,
        before => Some(open(before, owner)?),
    };
    let of = |statement: &Statement| (statement.vm, statement.epoch.0);
    let is_of =
        |statement: &Statement| of(statement) == (vm, line["epoch"].as_u64().unwrap_or(u64::MAX));
    if !is_of(&now) || before.as_ref().is_some_and(|before| !is_of(before)) {
        return Err("it was signed for another VM or epoch".to_owned());
    }
    if before.as_ref().is_some_and(|before| !now.continues(before)) {
        return Err("its statements contradict each other".to_owned());
    }
    let (since, used) = match &before {
        None => (now.since, now.used),
        Some(before) => (before.until, now.used.since(before.used)),
    };
    let times = (line["since_unix_ms"].as_u64(), line["until_unix_ms"].as_u64());
    if times != (Some(since.0), Some(now.until.0)) || !is_same(line, &used) {
        return Err("its figures are not those that were signed".to_owned());
    }
    match chains.get(&vm) {
        None => Ok(Owner::Unproven),
        Some(chain) if chain.owner_at(now.epoch) == Some(owner) => Ok(Owner::Proven),
        Some(_) => Err("its key did not own the VM in this epoch".to_owned()),
    }
}

fn decode(text: &str) -> Result<Vec<u8>, String> {
    data_encoding::BASE64.decode(text.as_bytes()).map_err(|_| "it is not base64".to_owned())
}

fn open(statement: &Value, owner: PublicKey) -> Result<Statement, String> {
    let bytes = |name: &str| decode(statement[name].as_str().unwrap_or_default());
    let (body, signature) = (bytes("body")?, bytes("signature")?);
    let signature = Signature::from_slice(&signature).ok_or("its signature has another length")?;
    let signed = Signed::<Statement>::from_parts(body, owner, signature);
    signed.open(&owner, &Strict).map_err(|error| error.to_string())?;
    Statement::read(&signed.body).map_err(|error| error.to_string())
}

fn is_same(line: &Value, used: &Used) -> bool {
    let near = |name: &str, number: f64| {
        let told = line[name].as_f64();
        told.is_some_and(|told| (told - number).abs() <= number.abs() * ROUNDING)
    };
    let network = |number: Option<u64>| number.map_or(Value::Null, |number| json!(number));
    near("cpu_seconds", seconds(used.cpu_ns))
        && near("memory_gib_hours", used.memory_gib_hours())
        && line["disk_read_bytes"] == json!(used.disk_read_bytes)
        && line["disk_written_bytes"] == json!(used.disk_written_bytes)
        && line["network_received_bytes"] == network(used.network.map(|n| n.received_bytes))
        && line["network_sent_bytes"] == network(used.network.map(|n| n.sent_bytes))
}
