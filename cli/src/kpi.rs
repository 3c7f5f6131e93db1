//! `vm kpi`: what is measured of a VM, as a table, as it comes, as a plot, or asked in SQL.

use std::io::IsTerminal;

use proto::admin as api;
use proto::admin::kpi_cell::Value as Cell;
use proto::admin::kpi_value::Value as Number;
use serde_json::{Map, Value, json};
use textplots::{Chart, Plot, Shape};

use crate::args::{Format, Kpi};
use crate::client::Client;
use crate::exit::{FAILED, Failure, NOT_FOUND};
use crate::output::{Output, time};

/// Values that a plot shows at most.
const PLOT_VALUES: u32 = 2_000;
/// The size of a plot in dots, two by four of which are one character.
const PLOT: (u32, u32) = (140, 60);

/// Runs `vm kpi`.
pub(crate) async fn run(ask: Kpi, node: &mut Client, output: &Output) -> Result<(), Failure> {
    if let Some(sql) = ask.sql {
        return query(ask.vm, sql, node, output).await;
    }
    if let Some(measure) = ask.plot {
        return plot(ask.vm, measure, ask.follow, node, output).await;
    }
    let request = api::KpiRequest {
        vm: ask.vm.clone(),
        follow: ask.follow,
        measures: ask.measures,
        last: ask.last,
    };
    let mut updates = node.follow_kpi(request).await?.into_inner();
    if !ask.follow {
        let update = updates.message().await?.unwrap_or_default();
        return show(&ask.vm, &update, output);
    }
    let mut standing = api::KpiStanding::default();
    while let Some(update) = updates.message().await? {
        for value in &update.values {
            match output.format() {
                Format::Json => output.line(&value_json(value)),
                Format::Table => {
                    output.words(&format!(
                        "{}  {}  {}{}",
                        time(value.at_unix_ms),
                        name(value),
                        shown(value.value.as_ref()),
                        told(value)
                    ));
                }
            }
        }
        let now = update.standing.unwrap_or_default();
        if trouble(&now) != trouble(&standing) {
            output.remark(&trouble(&now));
        }
        standing = now;
    }
    Err(Failure::new(FAILED, "the node has ended"))
}

fn show(vm: &str, update: &api::KpiUpdate, output: &Output) -> Result<(), Failure> {
    let standing = update.standing.unwrap_or_default();
    if output.format() == Format::Json {
        output.line(&json!({
            "values": update.values.iter().map(value_json).collect::<Value>(),
            "standing": standing_json(&standing),
        }));
        return Ok(());
    }
    if update.values.is_empty() {
        output.remark(&format!(
            "nothing has come of {vm} yet; what is measured of it is in the monitoring section of \
             its package"
        ));
    } else {
        let row = |value: &api::KpiValue| {
            vec![
                value.measure.clone(),
                value.format.clone(),
                shown(value.value.as_ref()),
                value.of.to_string(),
                time(value.at_unix_ms),
                value.condition.clone(),
            ]
        };
        let heading = ["MEASURE", "FORMAT", "VALUE", "OF", "AT", "TOLD WHEN"];
        output.table(&heading, update.values.iter().map(row).collect());
    }
    let trouble = trouble(&standing);
    if !trouble.is_empty() {
        output.remark(&trouble);
    }
    Ok(())
}

/// What of the values is not here, in words; empty if all are.
fn trouble(standing: &api::KpiStanding) -> String {
    let parts = [
        (standing.missing, "are missing: they were measured and have not come"),
        (
            standing.dropped,
            "were dropped here, for they could not be kept until they were delivered",
        ),
        (standing.sealed, "are sealed, and only the VM's primary can open them"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(count, what)| format!("{count} values {what}")).collect();
    parts.join("; ")
}

async fn query(vm: String, sql: String, node: &mut Client, output: &Output) -> Result<(), Failure> {
    let table = node.query_kpi(api::KpiQuery { vm, sql }).await?.into_inner();
    let cells = |row: &api::KpiRow| row.cells.iter().map(|c| c.value.clone()).collect::<Vec<_>>();
    match output.format() {
        Format::Json => {
            for row in &table.rows {
                let cells = cells(row);
                let fields = table.columns.iter().cloned().zip(cells.iter().map(cell_json));
                output.line(&Value::Object(fields.collect::<Map<_, _>>()));
            }
        }
        Format::Table => {
            let heading: Vec<&str> = table.columns.iter().map(String::as_str).collect();
            let row = |row: &api::KpiRow| cells(row).iter().map(cell_text).collect();
            output.table(&heading, table.rows.iter().map(row).collect());
        }
    }
    if table.cut {
        output.remark("there is more; ask for less, such as with a limit");
    }
    Ok(())
}

async fn plot(
    vm: String,
    measure: String,
    follow: bool,
    node: &mut Client,
    output: &Output,
) -> Result<(), Failure> {
    let measures = vec![measure.clone()];
    let request = api::KpiRequest { vm, follow, measures, last: PLOT_VALUES };
    let mut updates = node.follow_kpi(request).await?.into_inner();
    let mut points: Vec<(u64, f64)> = Vec::new();
    let redraws = follow && std::io::stdout().is_terminal();
    while let Some(update) = updates.message().await? {
        let numbers = update
            .values
            .iter()
            .filter_map(|value| Some((value.at_unix_ms, number(value.value.as_ref()?)?)));
        points.extend(numbers);
        let old = points.len().saturating_sub(PLOT_VALUES as usize);
        points.drain(..old);
        if points.is_empty() && !follow {
            let text = format!("no number has come of {measure} yet");
            return Err(Failure::new(NOT_FOUND, text));
        }
        if points.is_empty() {
            continue;
        }
        if redraws {
            // Home, and clear what is below.
            output.raw(b"\x1b[H\x1b[J")?;
        }
        output.words(&drawn(&measure, &points));
    }
    Ok(())
}

fn drawn(measure: &str, points: &[(u64, f64)]) -> String {
    let (start, end) = (points[0].0, points[points.len() - 1].0);
    // Seconds before the newest value; exact for the spans that a plot can show.
    let before = |at: u64| -((end.saturating_sub(at)) as f32 / 1000.0);
    let dots: Vec<(f32, f32)> = points.iter().map(|(at, n)| (before(*at), *n as f32)).collect();
    let from = before(start).min(-1.0);
    let mut chart = Chart::new(PLOT.0, PLOT.1, from, 0.0);
    let line = Shape::Steps(&dots);
    let chart = chart.lineplot(&line);
    chart.axis();
    chart.figures();
    let picture = chart.to_string();
    let last = points[points.len() - 1].1;
    format!("{measure}: {last} at {}, {:.0} s back\n{picture}", time(end), -from)
}

fn number(value: &Number) -> Option<f64> {
    match value {
        Number::Integer(number) => Some(*number as f64),
        Number::NumberValue(number) => Some(*number),
        Number::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        Number::Content(_) => None,
    }
}

fn name(value: &api::KpiValue) -> String {
    match value.format.as_str() {
        "raw" => value.measure.clone(),
        format => format!("{format}({})", value.measure),
    }
}

fn told(value: &api::KpiValue) -> String {
    match value.condition.as_str() {
        "" => String::new(),
        condition => format!("  ({condition})"),
    }
}

fn shown(value: Option<&Number>) -> String {
    match value {
        Some(Number::Integer(number)) => number.to_string(),
        Some(Number::NumberValue(number)) => short(*number),
        // What an application wrote must not steer a terminal.
        Some(Number::Text(text)) => text.chars().map(visible).collect(),
        Some(Number::Content(content)) => format!("({} bytes)", content.len()),
        None => "-".to_owned(),
    }
}

/// A number for people: six digits behind the point, without zeros at the end.
fn short(number: f64) -> String {
    let text = format!("{number:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn visible(c: char) -> char {
    if c.is_control() { '\u{fffd}' } else { c }
}

fn value_json(value: &api::KpiValue) -> Value {
    let told = match &value.value {
        Some(Number::Integer(number)) => json!(number),
        Some(Number::NumberValue(number)) => json!(number),
        Some(Number::Text(text)) => json!(text),
        Some(Number::Content(content)) => json!({ "base64": base64(content) }),
        None => Value::Null,
    };
    json!({
        "epoch": value.epoch, "number": value.number, "at_unix_ms": value.at_unix_ms,
        "received_unix_ms": value.received_unix_ms, "measure": value.measure,
        "format": value.format, "of": value.of, "value": told, "condition": value.condition,
    })
}

fn standing_json(standing: &api::KpiStanding) -> Value {
    json!({
        "values": standing.values, "missing": standing.missing, "dropped": standing.dropped,
        "owed": standing.owed, "sealed": standing.sealed,
    })
}

fn cell_json(cell: &Option<Cell>) -> Value {
    match cell {
        None => Value::Null,
        Some(Cell::Integer(number)) => json!(number),
        Some(Cell::Number(number)) => json!(number),
        Some(Cell::Text(text)) => json!(text),
        Some(Cell::Content(content)) => json!({ "base64": base64(content) }),
    }
}

fn cell_text(cell: &Option<Cell>) -> String {
    match cell {
        None => "-".to_owned(),
        Some(Cell::Integer(number)) => number.to_string(),
        Some(Cell::Number(number)) => short(*number),
        Some(Cell::Text(text)) => text.chars().map(visible).collect(),
        Some(Cell::Content(content)) => format!("({} bytes)", content.len()),
    }
}

fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}
