//! Copies bytes between files: exactly as many as are due, and with holes where there are zeros.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::manifest::Hasher;

/// Bytes read at a time.
const BLOCK: usize = 128 << 10;

/// A part of a file: a whole file of a folder, or an entry of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

impl Span {
    /// Reads the span from its start. The reader has a position of its own.
    pub(crate) fn reader(&self) -> SpanReader {
        SpanReader { span: self.clone(), done: 0 }
    }

    /// The whole span as text. The caller has checked the size.
    pub(crate) fn read_all(&self) -> io::Result<Vec<u8>> {
        let size = usize::try_from(self.size).expect("only bounded spans are read as a whole");
        let mut bytes = vec![0; size];
        self.reader().read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// See [`Span::reader`].
pub(crate) struct SpanReader {
    span: Span,
    done: u64,
}

impl Read for SpanReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.span.size - self.done;
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.span.file.read_at(&mut buffer[..most], self.span.offset + self.done)?;
        self.done += got as u64;
        Ok(got)
    }
}

/// Copies `length` bytes to `to` at `offset`, where `to` is zero so far, and adds them to `hash`.
///
/// A source that ends early is an error; what it holds beyond is not read.
pub(crate) fn copy(
    from: &mut dyn Read,
    length: u64,
    to: &File,
    offset: u64,
    hash: Option<&mut Hasher>,
) -> io::Result<()> {
    walk(from, length, hash, &mut |block, at| {
        if block.iter().all(|&b| b == 0) { Ok(()) } else { to.write_all_at(block, offset + at) }
    })
}

/// Adds `length` bytes to `hash`.
pub(crate) fn digest(from: &mut dyn Read, length: u64, hash: &mut Hasher) -> io::Result<()> {
    walk(from, length, Some(hash), &mut |_, _| Ok(()))
}

fn walk(
    from: &mut dyn Read,
    length: u64,
    mut hash: Option<&mut Hasher>,
    each: &mut dyn FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while at < length {
        let block = BLOCK.min(usize::try_from(length - at).unwrap_or(BLOCK));
        let block = &mut buffer[..block];
        from.read_exact(block)?;
        if let Some(hash) = hash.as_deref_mut() {
            hash.update(block);
        }
        each(block, at)?;
        at += block.len() as u64;
    }
    Ok(())
}
