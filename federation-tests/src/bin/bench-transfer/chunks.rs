//! What an update of a disk image costs on the wire, by several ways to cut it into chunks: of file
//! systems that are made here from files of this machine, and changed.
//!
//! What counts is the content of chunks that the other end has not, and the list of hashes of all
//! chunks that hold something. Compression is left out: it does the same for all.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use fastcdc::v2020::StreamCDC;
use federation_tests::bench::Failure;
use serde_json::json;

use crate::image::Draws;
use crate::tally::Bench;

/// Files that a file system is made of, and with `--quick`.
const FILES: &str = "/usr/share";
const QUICK_FILES: &str = "/usr/share/doc";
/// Of so many files one is changed: a line comes into it at any place.
const CHANGED_EACH: usize = 20;
/// Of so many files one is removed, and as many are new.
const REPLACED_EACH: usize = 200;
/// Bytes of a new file.
const NEW_BYTES: u64 = 64 << 10;
/// Bytes of a hash, of a sum of a block, and of the length of a chunk whose length is its own.
const HASH: u64 = 32;
const SUM: u64 = 8;
const LENGTH: u64 = 4;
/// What we do.
const CHUNK: usize = 1 << 20;
const BLOCK: usize = 4 << 10;

/// A way to cut.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// At multiples of a size; a chunk is found if it is anywhere in the old image.
    Fixed(usize),
    /// At multiples of 1 MiB, compared with what is in the same place; of a chunk that differs, the
    /// sums of its 4 KiB blocks come first and then the blocks that differ.
    Blocks,
    /// Where the content says so (FastCDC, Xia et al. 2020), at this size on average, a quarter at
    /// least and four times at most.
    Content(usize),
}

const CUTS: [Cut; 6] = [
    Cut::Fixed(1 << 20),
    Cut::Fixed(64 << 10),
    Cut::Blocks,
    Cut::Content(16 << 10),
    Cut::Content(64 << 10),
    Cut::Content(1 << 20),
];

impl Cut {
    fn name(self) -> String {
        match self {
            Self::Fixed(size) => format!("fixed, {} KiB", size >> 10),
            Self::Blocks => "fixed, 1024 KiB, blocks of 4 KiB".to_owned(),
            Self::Content(size) => {
                let [least, size, most] = [size / 4, size, size * 4].map(|size| size >> 10);
                format!("FastCDC, {least}-{size}-{most} KiB")
            }
        }
    }
}

/// Bytes that an update costs.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    content: u64,
    list: u64,
}

/// Both updates, by each way.
pub(crate) fn run(bench: &mut Bench) -> Result<(), Failure> {
    let files = Path::new(bench.extent.size(FILES, QUICK_FILES));
    let folder = bench.folder().join("chunks");
    std::fs::create_dir(&folder)?;
    let tree = folder.join("tree");
    run_program(Command::new("cp").arg("-a").args([files, &tree]))?;
    let old = folder.join("old.img");
    make(&old, &tree, None)?;
    let size = old.metadata()?.len();
    let list = list(&tree)?;
    println!("chunks: ext4 of {} MiB with {} files of {}", size >> 20, list.len(), files.display());
    let changes = Changes::make(&folder, list)?;
    let inside = folder.join("inside.img");
    crate::ways::copy(&old, &inside)?;
    changes.apply_inside(&inside, &tree)?;
    let anew = folder.join("anew.img");
    changes.apply(&tree)?;
    make(&anew, &tree, Some(size))?;
    for (what, new) in [("changed by a running system (debugfs)", inside), ("made anew", anew)] {
        println!("  the file system {what}");
        println!(
            "    {:<34} {:>10} {:>9} {:>10} {:>8}",
            "cut", "content MB", "list MB", "in all", "s"
        );
        for cut in CUTS {
            let begun = Instant::now();
            let Cost { content, list } = cost(cut, &old, &new)?;
            let took = begun.elapsed().as_secs_f64();
            let [c, l, all] = [content, list, content + list].map(|bytes| bytes as f64 / 1e6);
            println!("    {:<34} {c:>10.2} {l:>9.2} {all:>10.2} {took:>8.2}", cut.name());
            bench.note(&json!({
                "cell": "chunks", "update": what, "cut": cut.name(), "content": content,
                "list": list, "seconds": took,
            }))?;
        }
    }
    Ok(std::fs::remove_dir_all(&folder)?)
}

fn run_program(command: &mut Command) -> Result<(), Failure> {
    let done = command.stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    let name = command.get_program().to_string_lossy().into_owned();
    Err(format!("{name}: {}", String::from_utf8_lossy(&done.stderr).trim()).into())
}

/// Makes a file system of a folder: of this size, or with a third more room than it needs.
fn make(image: &Path, tree: &Path, size: Option<u64>) -> Result<(), Failure> {
    let size = match size {
        Some(size) => size,
        None => {
            let du = Command::new("du").args(["-s", "--block-size=1"]).arg(tree).output()?;
            let text = String::from_utf8_lossy(&du.stdout).into_owned();
            let used: u64 = text.split_whitespace().next().ok_or("du says nothing")?.parse()?;
            (used * 4 / 3).next_multiple_of(64 << 20)
        }
    };
    File::create(image)?.set_len(size)?;
    let id = "8a7c9f10-3b52-4a57-9a0e-6d1f2f0b7c11";
    let mut make = Command::new("mke2fs");
    make.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-i",
        "8192",
        "-U",
        id,
        "-E",
        &format!("hash_seed={id}"),
        "-d",
    ]);
    run_program(make.arg(tree).arg(image))
}

/// Files below a folder that have something in them, by path from there, in order. Names that
/// debugfs would have to be told in quotes are left out.
fn list(tree: &Path) -> Result<Vec<PathBuf>, Failure> {
    let (mut found, mut folders) = (Vec::new(), vec![tree.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, entry.path());
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && entry.metadata()?.len() > 0 {
                let inner = path.strip_prefix(tree)?;
                if inner.to_str().is_some_and(|path| path.chars().all(plain)) {
                    found.push(inner.to_owned());
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What happens to files.
struct Changes {
    list: Vec<PathBuf>,
    /// A new file.
    new: PathBuf,
    /// Where changed files are made.
    folder: PathBuf,
}

impl Changes {
    fn make(folder: &Path, list: Vec<PathBuf>) -> Result<Self, Failure> {
        let folder = folder.join("changed");
        std::fs::create_dir(&folder)?;
        let new = folder.join("new");
        crate::image::random(&new, NEW_BYTES, 6)?;
        Ok(Self { list, new, folder })
    }

    fn changed(&self) -> impl Iterator<Item = (usize, &PathBuf)> {
        self.list.iter().enumerate().filter(|(at, _)| at % CHANGED_EACH == 1)
    }

    fn removed(&self) -> impl Iterator<Item = (usize, &PathBuf)> {
        self.list.iter().enumerate().filter(|(at, _)| at % REPLACED_EACH == 2)
    }

    /// Makes the changed version of a file, beside the tree.
    fn version(&self, at: usize, path: &Path, tree: &Path) -> Result<PathBuf, Failure> {
        let mut bytes = std::fs::read(tree.join(path))?;
        let place = Draws::new(at as u64).below(bytes.len() as u64 + 1) as usize;
        bytes.splice(place..place, *b"a line that was not there before\n");
        let version = self.folder.join(at.to_string());
        std::fs::write(&version, bytes)?;
        Ok(version)
    }

    /// Changes a file system as a running system does: what is written goes where there is room.
    fn apply_inside(&self, image: &Path, tree: &Path) -> Result<(), Failure> {
        let script = self.folder.join("script");
        let mut lines = File::create(&script)?;
        for (at, path) in self.changed() {
            let version = self.version(at, path, tree)?;
            let path = path.display();
            writeln!(lines, "rm /{path}\nwrite {} /{path}", version.display())?;
        }
        for (_, path) in self.removed() {
            let path = path.display();
            writeln!(lines, "rm /{path}\nwrite {} /{path}.new", self.new.display())?;
        }
        run_program(Command::new("debugfs").args(["-w", "-f"]).arg(&script).arg(image))
    }

    /// Changes the files themselves.
    fn apply(&self, tree: &Path) -> Result<(), Failure> {
        for (at, path) in self.changed() {
            std::fs::rename(self.version(at, path, tree)?, tree.join(path))?;
        }
        for (_, path) in self.removed() {
            let path = tree.join(path);
            std::fs::remove_file(&path)?;
            std::fs::copy(&self.new, path.with_added_extension("new"))?;
        }
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

fn cost(cut: Cut, old: &Path, new: &Path) -> Result<Cost, Failure> {
    let mut cost = Cost::default();
    if let Cut::Blocks = cut {
        let mut old = pieces(old, CHUNK)?;
        for_each(pieces(new, CHUNK)?, |new| {
            let old = old.next().transpose()?.unwrap_or_default();
            cost.add_blocks(&old, new);
            Ok(())
        })?;
        return Ok(cost);
    }
    let mut known = HashSet::new();
    let entry = match cut {
        Cut::Content(_) => HASH + LENGTH,
        _ => HASH,
    };
    for_each(cut_up(cut, old)?, |chunk| {
        known.insert(blake3::hash(chunk));
        Ok(())
    })?;
    for_each(cut_up(cut, new)?, |chunk| {
        if !is_zero(chunk) {
            cost.list += entry;
            // A chunk that comes twice travels once.
            cost.content += if known.insert(blake3::hash(chunk)) { chunk.len() as u64 } else { 0 };
        }
        Ok(())
    })?;
    Ok(cost)
}

impl Cost {
    fn add_blocks(&mut self, old: &[u8], new: &[u8]) {
        if is_zero(new) {
            return;
        }
        self.list += HASH;
        if old == new {
            return;
        }
        let has_old = !is_zero(old);
        self.list += if has_old { SUM * new.len().div_ceil(BLOCK) as u64 } else { 0 };
        for (at, block) in new.chunks(BLOCK).enumerate() {
            let there = old.get(at * BLOCK..at * BLOCK + block.len());
            // What is not there at all is zero.
            let same = if has_old { there == Some(block) } else { is_zero(block) };
            self.content += if same { 0 } else { block.len() as u64 };
        }
    }
}

type Chunks = Box<dyn Iterator<Item = Result<Vec<u8>, Failure>>>;

fn for_each(
    chunks: Chunks,
    mut work: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for chunk in chunks {
        work(&chunk?)?;
    }
    Ok(())
}

fn cut_up(cut: Cut, path: &Path) -> Result<Chunks, Failure> {
    match cut {
        Cut::Fixed(size) => pieces(path, size),
        Cut::Blocks => pieces(path, CHUNK),
        Cut::Content(size) => {
            let chunks = StreamCDC::new(File::open(path)?, size / 4, size, size * 4);
            Ok(Box::new(chunks.map(|chunk| Ok(chunk?.data))))
        }
    }
}

fn pieces(path: &Path, size: usize) -> Result<Chunks, Failure> {
    let mut file = BufReader::new(File::open(path)?);
    Ok(Box::new(std::iter::from_fn(move || {
        let mut piece = Vec::with_capacity(size);
        match file.by_ref().take(size as u64).read_to_end(&mut piece) {
            Ok(0) => None,
            Ok(_) => Some(Ok(piece)),
            Err(why) => Some(Err(why.into())),
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// An image of 8 MiB, of which 4 are data, and one where `edit` has changed it.
    fn images(folder: &Path, edit: impl Fn(&mut Vec<u8>)) -> [PathBuf; 2] {
        let mut bytes = Draws::new(1).random(4 * MIB);
        bytes.resize(8 << 20, 0);
        let paths = ["old", "new"].map(|name| folder.join(name));
        std::fs::write(&paths[0], &bytes).unwrap();
        edit(&mut bytes);
        std::fs::write(&paths[1], &bytes).unwrap();
        paths
    }

    #[test]
    fn an_image_that_has_not_changed_costs_its_list() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = images(folder.path(), |_| {});
        for cut in CUTS {
            let Cost { content, list } = cost(cut, &old, &new).unwrap();
            assert_eq!(content, 0, "{cut:?}");
            assert!(list >= HASH, "{cut:?}");
        }
        assert_eq!(cost(Cut::Blocks, &old, &new).unwrap().list, 4 * HASH);
    }

    #[test]
    fn a_byte_that_has_changed_costs_what_was_cut_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = images(folder.path(), |bytes| bytes[1_500_000] ^= 1);
        let content = |cut| cost(cut, &old, &new).unwrap().content;
        assert_eq!(content(Cut::Fixed(1 << 20)), MIB);
        assert_eq!(content(Cut::Fixed(64 << 10)), 64 << 10);
        assert_eq!(content(Cut::Blocks), BLOCK as u64);
        let Cost { list, .. } = cost(Cut::Blocks, &old, &new).unwrap();
        assert_eq!(list, 4 * HASH + 256 * SUM);
        assert!(content(Cut::Content(64 << 10)) <= 2 * (256 << 10));
    }

    #[test]
    fn content_that_has_moved_is_found_by_content_alone() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = images(folder.path(), |bytes| {
            bytes.splice(0..0, *b"one line more");
            bytes.truncate(8 << 20);
        });
        let content = |cut| cost(cut, &old, &new).unwrap().content;
        assert!(content(Cut::Fixed(64 << 10)) > 4 * MIB);
        assert!(content(Cut::Blocks) > 4 * MIB);
        assert!(content(Cut::Content(64 << 10)) < MIB);
    }
}
