//! From bytes to columns and fields, or to a refusal. Nothing here does I/O.
//!
//! | what is written | becomes | refused with |
//! | --- | --- | --- |
//! | no byte | no row | |
//! | one line | one row; columns `column1`, `column2`, … | |
//! | several lines | the first names the columns, each other is a row | |
//! | an empty field in the first of several lines | `columnN` at place N | |
//! | an empty first line | columns are `column1`, …, as many as the second line has fields | |
//! | a name outside the set of [`crate::name`] in the first of several lines | | EINVAL |
//! | two equal names, letters' cases not told apart | | EINVAL |
//! | more than [`COLUMNS_MAX`] fields in a line, or columns in a table | | E2BIG |
//! | a line with another number of fields than there are columns | | EINVAL |
//! | an empty line after the first | one empty field | EINVAL if there are several columns |
//! | `\n` or `\r\n` at the end, also none after the last line | a line's end | |
//! | a field in quotes (`"a,b"`, `"say ""hi"""`) | its inside, quotes halved (RFC 4180) | |
//! | a quote inside a field without quotes, text after a closing quote, a quote never closed on its line | | EINVAL |
//! | spaces, `007`, `1e5`, an empty field | as written | |
//! | what is not UTF-8, control characters other than tab and the line's end | | EILSEQ |
//! | a line above [`LINE_MAX`] bytes | | EMSGSIZE |
//!
//! A line's end inside quotes is not allowed: a line is a row, and where a row ends is known
//! without reading what comes before it.

use std::borrow::Cow;

use crate::name::Identifier;
use crate::refusal::Refusal;

/// Longest line, in bytes, its end not counted.
pub const LINE_MAX: usize = 64 * 1024;

/// Most columns that a file may have, and that a table may come to have.
pub const COLUMNS_MAX: usize = 128;

/// The fields of one line, which comes without its `\n`; `at` is where it starts in the file.
pub fn fields(line: &[u8], at: u64) -> Result<Vec<Cow<'_, str>>, Refusal> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > LINE_MAX {
        return Err(Refusal::Line { at });
    }
    let place = |index: usize| at + u64::try_from(index).expect("a line's length");
    if let Some(index) = line.iter().position(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Refusal::Text { at: place(index) });
    }
    let text = std::str::from_utf8(line)
        .map_err(|error| Refusal::Text { at: place(error.valid_up_to()) })?;
    let mut fields = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (field, after) = match text.strip_prefix('"') {
            Some(inside) => quoted(inside).ok_or(Refusal::Quote { at })?,
            None => match text.split_once(',') {
                Some((field, after)) => (Cow::Borrowed(field), Some(after)),
                None => (Cow::Borrowed(text), None),
            },
        };
        if !text.starts_with('"') && field.contains('"') {
            return Err(Refusal::Quote { at });
        }
        if fields.len() == COLUMNS_MAX {
            return Err(Refusal::Columns(COLUMNS_MAX + 1));
        }
        fields.push(field);
        rest = after;
    }
    Ok(fields)
}

/// A field after its opening quote, and what comes after the comma behind it.
fn quoted(text: &str) -> Option<(Cow<'_, str>, Option<&str>)> {
    let mut from = 0;
    loop {
        let quote = from + text[from..].find('"')?;
        let after = &text[quote + 1..];
        if after.starts_with('"') {
            from = quote + 2;
            continue;
        }
        let inside = &text[..quote];
        let field = if inside.contains('"') {
            Cow::Owned(inside.replace("\"\"", "\""))
        } else {
            Cow::Borrowed(inside)
        };
        return match after.strip_prefix(',') {
            Some(after) => Some((field, Some(after))),
            None if after.is_empty() => Some((field, None)),
            None => None,
        };
    }
}

/// The columns that the first of several lines names; `None` if it is empty and names none.
pub fn header(line: &[u8]) -> Result<Option<Vec<Identifier>>, Refusal> {
    let names = fields(line, 0)?;
    if let [only] = names.as_slice()
        && only.is_empty()
    {
        return Ok(None);
    }
    let mut columns: Vec<Identifier> = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        let column = match name.as_ref() {
            "" => Identifier::numbered(index),
            name => Identifier::of_column(name)?,
        };
        if columns.iter().any(|other| other.is_like(&column)) {
            return Err(Refusal::ColumnTwice(column.as_str().to_owned()));
        }
        columns.push(column);
    }
    Ok(Some(columns))
}

/// The columns of lines that have `count` fields and no names.
pub fn unnamed(count: usize) -> Vec<Identifier> {
    (0..count).map(Identifier::numbered).collect()
}

/// Checks that a line has a field for each column.
pub fn check(fields: &[Cow<'_, str>], columns: usize, at: u64) -> Result<(), Refusal> {
    if fields.len() == columns {
        return Ok(());
    }
    Err(Refusal::Fields { at, found: fields.len(), columns })
}

/// A whole file: columns, and rows of as many fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sheet {
    /// The columns' names.
    pub columns: Vec<Identifier>,
    /// The rows' fields, as text.
    pub rows: Vec<Vec<String>>,
}

/// Reads a whole file that was written at once: the table of this module as one function.
///
/// The store reads files piece by piece with the functions above, and its tests hold it against
/// this one.
pub fn read(bytes: &[u8]) -> Result<Sheet, Refusal> {
    let mut lines = Vec::new();
    let mut at = 0_usize;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        lines.push((line.strip_suffix(b"\n").unwrap_or(line), at as u64));
        at += line.len();
    }
    let mut sheet = Sheet::default();
    let mut columns = None;
    if lines.len() > 1 {
        columns = header(lines.remove(0).0)?;
    }
    for (line, at) in lines {
        let fields = fields(line, at)?;
        let columns = columns.get_or_insert_with(|| unnamed(fields.len()));
        check(&fields, columns.len(), at)?;
        sheet.rows.push(fields.into_iter().map(Cow::into_owned).collect());
    }
    sheet.columns = columns.unwrap_or_default();
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(text: &str) -> Result<(String, Vec<Vec<String>>), Refusal> {
        let sheet = read(text.as_bytes())?;
        let names: Vec<&str> = sheet.columns.iter().map(Identifier::as_str).collect();
        Ok((names.join("|"), sheet.rows))
    }

    #[test]
    fn one_line_is_a_row_and_the_first_of_two_names_the_columns() {
        let row = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect();
        let rows = |rows: &[&[&str]]| rows.iter().map(|fields| row(fields)).collect::<Vec<_>>();
        for (text, columns, expected) in [
            ("", "", rows(&[])),
            ("5", "column1", rows(&[&["5"]])),
            ("5\n", "column1", rows(&[&["5"]])),
            ("\n", "column1", rows(&[&[""]])),
            ("5,\n", "column1|column2", rows(&[&["5", ""]])),
            ("\n5,6\n", "column1|column2", rows(&[&["5", "6"]])),
            ("users\n", "column1", rows(&[&["users"]])),
            ("users\n5\n", "users", rows(&[&["5"]])),
            ("users\r\n5\r\n", "users", rows(&[&["5"]])),
            ("users\n5\n\n6", "users", rows(&[&["5"], &[""], &["6"]])),
            (
                "users,,load\n5,6,7\n8,9,10",
                "users|column2|load",
                rows(&[&["5", "6", "7"], &["8", "9", "10"]]),
            ),
            ("a\n007\n", "a", rows(&[&["007"]])),
            ("a\n 1e5 \n", "a", rows(&[&[" 1e5 "]])),
            ("a,b\n\"x,y\",\"say \"\"hi\"\"\"\n", "a|b", rows(&[&["x,y", "say \"hi\""]])),
            ("\"a\",b\n\"\",\n", "a|b", rows(&[&["", ""]])),
            ("a\n\ttab\n", "a", rows(&[&["\ttab"]])),
            ("a\nüñ\n", "a", rows(&[&["üñ"]])),
        ] {
            assert_eq!(sheet(text), Ok((columns.to_owned(), expected)), "{text:?}");
        }
    }

    #[test]
    fn each_kind_of_wrong_line_has_its_errno() {
        use rustix::io::Errno;
        let wide = vec!["1"; COLUMNS_MAX + 1].join(",");
        let long = "x".repeat(LINE_MAX + 1);
        for (text, errno) in [
            ("a b\n1\n", Errno::INVAL),
            ("5\n6\n", Errno::INVAL),
            ("a,A\n1,2\n", Errno::INVAL),
            ("column2,\n1,2\n", Errno::INVAL),
            ("rowid\n1\n", Errno::INVAL),
            ("a,b\n1\n", Errno::INVAL),
            ("a\n1,2\n", Errno::INVAL),
            ("a,b\n\n", Errno::INVAL),
            ("\"a\n1\n", Errno::INVAL),
            ("a\n\"1\n2\"\n", Errno::INVAL),
            ("a\n\"1\"2\n", Errno::INVAL),
            ("a\n1\"2\n", Errno::INVAL),
            ("a\n1\r2\n", Errno::ILSEQ),
            ("a\n\u{1b}[31m\n", Errno::ILSEQ),
            ("a\n\0\n", Errno::ILSEQ),
            (&wide, Errno::TOOBIG),
            (&long, Errno::MSGSIZE),
        ] {
            let found = read(text.as_bytes()).map_err(|refusal| refusal.errno());
            let short: String = text.chars().take(40).collect();
            assert_eq!(found, Err(errno), "{short:?}");
        }
        assert_eq!(read(b"a\n\xff\n"), Err(Refusal::Text { at: 2 }));
    }

    /// Any bytes; what is taken means the same when it is written with quotes around all fields.
    #[test]
    fn whatever_the_bytes_are_rows_have_a_field_for_each_column_and_survive_quoting() {
        let mut state = 3_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            usize::try_from(state >> 33).unwrap() % below
        };
        let pieces: [&[u8]; 12] = [
            b",",
            b"\"",
            b"\n",
            b"\r\n",
            b"\r",
            b"a",
            b"b1",
            b" ",
            b"\t",
            b"\xc3\xbc",
            b"\xff",
            b"\0",
        ];
        let mut taken = 0;
        for _ in 0..50_000 {
            let common = if random(4) == 0 { pieces.len() } else { 10 };
            let bytes: Vec<u8> =
                (0..random(14)).flat_map(|_| pieces[random(common)]).copied().collect();
            let Ok(sheet) = read(&bytes) else { continue };
            taken += 1;
            assert!(sheet.rows.iter().all(|row| row.len() == sheet.columns.len()), "{bytes:?}");
            let names: Vec<&str> = sheet.columns.iter().map(Identifier::as_str).collect();
            let mut quoted = names.join(",");
            for row in &sheet.rows {
                let fields = row.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\"")));
                quoted += "\n";
                quoted += &fields.collect::<Vec<_>>().join(",");
            }
            if !sheet.rows.is_empty() {
                assert_eq!(read(quoted.as_bytes()).as_ref(), Ok(&sheet), "{bytes:?}");
            }
        }
        assert!(taken > 5_000, "{taken}");
    }
}
