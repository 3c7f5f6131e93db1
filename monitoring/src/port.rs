//! What the KPI file system of a guest and the site that runs it say to each other, a line of JSON
//! each (`kpi-fs/src/export.rs`, which has the reasons): the site asks for rows from a place on, the
//! guest answers with the place and sends them, and the site says which it has. Rows that come
//! before the answer are left over from before.
//!
//! A guest is not trusted: a line that cannot be read is passed over, and nothing that a guest
//! says concerns any other.

use model::Time;
use serde::Deserialize;

/// Bytes of a line: a whole file of `encrypted/` in base64, and its head. A guest's `kpi-fs` may be
/// of an earlier release, that took files of 4 MiB: what cannot be told is counted, and acknowledged.
pub const MAX_LINE: usize = 6 << 20;
/// Columns that are looked at.
const MAX_COLUMNS: usize = 128;

/// What a guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Rows come from after this one on. It is another than was asked for if the guest's database
    /// is another than it was.
    After(i64),
    /// A row.
    Row(Row),
}

/// A row of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its number in the guest: above all that were before it.
    pub number: i64,
    /// When it was stored, by the guest's clock.
    pub saved: Time,
    /// What it has.
    pub load: Load,
}

/// What a row has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Load {
    /// The file of `unencrypted/`, and its fields by the names of its columns.
    Fields(String, Vec<(String, String)>),
    /// The file of `encrypted/`, and its content.
    Content(String, Vec<u8>),
}

/// A line that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a guest's line says nothing: {0}")]
pub struct Nothing(String);

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    After {
        after: i64,
    },
    Row {
        seq: i64,
        table: String,
        #[serde(default)]
        saved_ms: i64,
        columns: Option<Fields>,
        content: Option<String>,
    },
}

/// In the order in which they stand.
struct Fields(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("fields by the names of their columns")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    if fields.len() == MAX_COLUMNS {
                        return Err(serde::de::Error::custom("more than 128 columns"));
                    }
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Reads what a guest has said.
pub fn said(line: &[u8]) -> Result<Said, Nothing> {
    let no = |why: &str| Nothing(why.chars().take(200).collect());
    if line.len() > MAX_LINE {
        return Err(no("it is too long"));
    }
    let line: Line = serde_json::from_slice(line).map_err(|error| no(&error.to_string()))?;
    let (number, saved, table, columns, content) = match line {
        Line::After { after } => return Ok(Said::After(after)),
        Line::Row { seq, table, saved_ms, columns, content } => {
            // A guest whose clock is before 1970 says so.
            let saved = Time(u64::try_from(saved_ms).unwrap_or_default());
            (seq, saved, table, columns, content)
        }
    };
    let load = match (columns, content) {
        (Some(Fields(fields)), None) => Load::Fields(table, fields),
        (None, Some(content)) => {
            let file = table.strip_prefix("encrypted/").unwrap_or(&table).to_owned();
            let content = data_encoding::BASE64.decode(content.as_bytes());
            Load::Content(file, content.map_err(|error| no(&error.to_string()))?)
        }
        _ => return Err(no("a row has columns or a content")),
    };
    Ok(Said::Row(Row { number, saved, load }))
}

/// What the site says first: send what comes after this row. The empty line ends what was half said
/// by another before it.
pub fn after(row: i64) -> String {
    format!("\n{{\"after\":{row}}}\n")
}

/// What the site says when rows are safe: all up to this one.
pub fn acknowledged(row: i64) -> String {
    format!("{{\"acknowledged\":{row}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_the_kpi_file_system_writes_them() {
        let values = kpi_fs::outbox::Values::Columns(vec![("users".into(), "5".into())]);
        let made = kpi_fs::outbox::Row { seq: 7, table: "web".into(), saved_ms: 9, values };
        let fields = vec![("users".to_owned(), "5".to_owned())];
        let expected = Row { number: 7, saved: Time(9), load: Load::Fields("web".into(), fields) };
        assert_eq!(said(&serde_json::to_vec(&made).unwrap()), Ok(Said::Row(expected)));
        assert_eq!(said(b"{\"after\":6}"), Ok(Said::After(6)));
        let values = kpi_fs::outbox::Values::Content(vec![0, 255]);
        let made = kpi_fs::outbox::Row { seq: 8, table: "encrypted/x".into(), saved_ms: 9, values };
        let expected =
            Row { number: 8, saved: Time(9), load: Load::Content("x".into(), vec![0, 255]) };
        assert_eq!(said(&serde_json::to_vec(&made).unwrap()), Ok(Said::Row(expected)));
    }

    #[test]
    fn what_is_no_row_is_refused_and_nothing_else_happens() {
        let many: String = (0..129).map(|n| format!("\"c{n}\":\"\",")).collect();
        let many = format!("{{\"seq\":1,\"table\":\"t\",\"columns\":{{{many}\"z\":\"\"}}}}");
        for line in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"seq":1,"table":"t"}"#,
            r#"{"seq":1.5,"table":"t","columns":{}}"#,
            r#"{"seq":1,"table":"t","columns":{"a":5}}"#,
            r#"{"seq":1,"table":"t","columns":{},"content":""}"#,
            r#"{"seq":1,"table":"t","content":"%"}"#,
            r#"{"seq":99999999999999999999,"table":"t","columns":{}}"#,
            "\u{0}\u{0}\u{0}",
            &many,
            &"[".repeat(100_000),
        ] {
            assert!(said(line.as_bytes()).is_err(), "{line:.60}");
        }
        assert!(said(&vec![b' '; MAX_LINE + 1]).is_err());
    }
}
