//! `sojourn contract`: what was agreed with neighbours.

use data_encoding::BASE64;
use proto::admin as api;
use serde_json::{Value, json};

use crate::args::Contract;
use crate::client::Client;
use crate::exit::{Failure, NOT_FOUND};
use crate::output::{Output, time};

pub(crate) async fn run(verb: Contract, node: &mut Client, output: &Output) -> Result<(), Failure> {
    let contracts = node.list_contracts(api::Nothing {}).await?.into_inner().contracts;
    match verb {
        Contract::List => {
            let heading = ["CONTRACT", "VM", "WITH", "THIS SITE", "PRICE", "SINCE", "UNTIL"];
            output.list(&contracts, value, &heading, |contract| {
                vec![
                    contract.id.chars().take(SHORT).collect(),
                    name(contract).to_owned(),
                    contract.peer.clone(),
                    role(contract).to_owned(),
                    thousandths(contract.price_milli),
                    format!("epoch {}", contract.since_epoch),
                    until(contract),
                ]
            });
        }
        Contract::Show { id } => {
            let mut found = contracts.iter().filter(|contract| contract.id.starts_with(&id));
            let (Some(contract), None) = (found.next(), found.next()) else {
                let count = contracts.iter().filter(|contract| contract.id.starts_with(&id));
                let text = match count.count() {
                    0 => format!("there is no contract {id}; `sojourn contract list` has all"),
                    many => format!("{many} contracts begin with {id}; give more of it"),
                };
                return Err(Failure::new(NOT_FOUND, text));
            };
            let broken = violations(contract.vm.clone(), node).await?;
            let broken = broken.iter().filter(|one| {
                let by = if contract.provides { &one.owes_by } else { &one.owed_by };
                *by == contract.id
            });
            let count = broken.count() as u64;
            output.one(&value(contract), || words(contract, count));
        }
        Contract::Violations { vm } => {
            let broken = violations(vm.unwrap_or_default(), node).await?;
            let heading = ["TIME", "VM", "EPOCH", "LIMIT", "VALUE", "OWED TO THIS SITE", "OWES"];
            let sum = |id: &str| {
                let contract = contracts.iter().find(|contract| contract.id == id);
                let owed = |one: &api::Contract| {
                    format!("{} ({})", thousandths(one.penalty_milli), one.peer)
                };
                contract.map_or("-".to_owned(), owed)
            };
            output.list(&broken, violation_value, &heading, |one| {
                vec![
                    time(one.at_unix_ms),
                    if one.name.is_empty() { one.vm.clone() } else { one.name.clone() },
                    one.epoch.to_string(),
                    format!("{} {}", one.measure, one.condition),
                    one.value.map_or("-".to_owned(), |value| value.to_string()),
                    sum(&one.owed_by),
                    sum(&one.owes_by),
                ]
            });
        }
    }
    Ok(())
}

async fn violations(vm: String, node: &mut Client) -> Result<Vec<api::Violation>, Failure> {
    let ask = api::ViolationsRequest { vm };
    Ok(node.list_violations(ask).await?.into_inner().violations)
}

/// Digits of an id in a table.
const SHORT: usize = 12;

fn value(contract: &api::Contract) -> Value {
    json!({
        "id": contract.id, "vm": contract.vm, "name": contract.name, "peer": contract.peer,
        "role": if contract.provides { "provider" } else { "customer" },
        "price_milli": contract.price_milli, "penalty_milli": contract.penalty_milli,
        "class": contract.class, "country": contract.country, "runs": contract.runs,
        "since_epoch": contract.since_epoch, "ended_epoch": contract.ended_epoch,
        "descriptor": contract.descriptor,
        "provider_key": contract.provider_key, "customer_key": contract.customer_key,
        "signed": BASE64.encode(&contract.body),
        "provider_signature": BASE64.encode(&contract.provider_signature),
        "customer_signature": BASE64.encode(&contract.customer_signature),
    })
}

fn violation_value(one: &api::Violation) -> Value {
    json!({
        "vm": one.vm, "name": one.name, "epoch": one.epoch, "number": one.number,
        "at_unix_ms": one.at_unix_ms, "received_unix_ms": one.received_unix_ms,
        "measure": one.measure, "condition": one.condition, "value": one.value,
        "owed_by": one.owed_by, "owes_by": one.owes_by, "owner_key": one.owner_key,
        "signed": BASE64.encode(&one.body), "signature": BASE64.encode(&one.signature),
    })
}

fn words(contract: &api::Contract, broken: u64) -> String {
    let who = if contract.provides { "this site answers to" } else { "answered for by" };
    let country = match contract.country.as_str() {
        "" => String::new(),
        country => format!(", in {country}"),
    };
    format!(
        "contract {}\n  VM       {} ({})\n  between  {who} {}\n  terms    class {}{country}, {}\n  \
         price    {} an hour; {} for each limit of service that is broken\n  broken   {broken} \
         times: {}\n  counts   from epoch {}, until {}\n  signed   by both; -o json has the \
         signatures",
        contract.id,
        name(contract),
        contract.vm,
        contract.peer,
        contract.class,
        if contract.runs { "to run" } else { "to be stored" },
        thousandths(contract.price_milli),
        thousandths(contract.penalty_milli),
        thousandths(contract.penalty_milli.saturating_mul(broken)),
        contract.since_epoch,
        until(contract),
    )
}

fn name(contract: &api::Contract) -> &str {
    if contract.name.is_empty() { &contract.vm } else { &contract.name }
}

fn role(contract: &api::Contract) -> &'static str {
    if contract.provides { "provides" } else { "pays" }
}

fn until(contract: &api::Contract) -> String {
    contract.ended_epoch.map_or("now".to_owned(), |epoch| format!("epoch {epoch}"))
}

fn thousandths(amount: u64) -> String {
    format!("{}.{:03}", amount / 1000, amount % 1000)
}
