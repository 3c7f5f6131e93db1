//! The headers of disk images, read by offsets, with every field taken for a lie until checked.
//!
//! Where two fields could be read in two ways, what `qemu-img` would read is what is checked.

use model::Bytes;

use super::{ImageFormat, Inspection, Refusal};

/// Largest disk that any header may name: 64 TiB, as in a descriptor.
const MAX_SIZE: u64 = 1 << 46;
/// Extensions of a qcow2 header; those known are half a dozen.
const MAX_EXTENSIONS: usize = 32;
/// A sector of a VMDK and of a VHD.
const SECTOR: u64 = 512;
/// Sectors of a VMDK's embedded descriptor; writers reserve 20.
const MAX_DESCRIPTOR_SECTORS: u64 = 256;
/// Where `qemu-img` reads an embedded descriptor, whatever the header says, and how much of it.
const QEMU_DESCRIPTOR: std::ops::Range<usize> = 512..21 * 512;

/// Inspects an image of `length` bytes by its first and last bytes.
pub(super) fn inspect(head: &[u8], tail: &[u8], length: u64) -> Result<Inspection, Refusal> {
    let footer = last_sector(tail);
    let candidates = [
        ("qcow2", head.starts_with(b"QFI\xfb")),
        ("VMDK", head.starts_with(b"KDMV")),
        ("VMDK descriptor", is_descriptor(head)),
        ("VMDK 3", head.starts_with(b"COWD")),
        ("VDI", le32(head, 0x40) == Some(0xbeda_107f)),
        ("VHD", head.starts_with(b"conectix") || footer.starts_with(b"conectix")),
        ("VHDX", head.starts_with(b"vhdxfile")),
        ("QED", head.starts_with(b"QED\0")),
        ("LUKS", head.starts_with(b"LUKS\xba\xbe")),
        (
            "Parallels",
            head.starts_with(b"WithoutFreeSpace") || head.starts_with(b"WithouFreSpacExt"),
        ),
    ];
    let mut fitting = candidates.into_iter().filter(|(_, fits)| *fits).map(|(name, _)| name);
    let (format, size) = match (fitting.next(), fitting.next()) {
        (Some(one), Some(other)) => return Err(Refusal::Ambiguous(one, other)),
        (None, _) => (ImageFormat::Raw, length),
        (Some("qcow2"), _) => (ImageFormat::Qcow2, qcow2(head)?),
        (Some("VMDK"), _) => (ImageFormat::Vmdk, vmdk(head, tail, length)?),
        (Some("VMDK descriptor"), _) => return Err(Refusal::External),
        (Some("VDI"), _) => (ImageFormat::Vdi, vdi(head)?),
        (Some("VHD"), _) => (ImageFormat::Vhd, vhd(head, footer, length)?),
        (Some("LUKS"), _) => return Err(Refusal::Encrypted),
        (Some(other), _) => return Err(Refusal::Unsupported(other)),
    };
    if size > MAX_SIZE {
        return Err(Refusal::TooLarge { size: Bytes(size), limit: Bytes(MAX_SIZE) });
    }
    Ok(Inspection { format, virtual_size: Bytes(size) })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn last_sector(tail: &[u8]) -> &[u8] {
    tail.get(tail.len().saturating_sub(512)..).unwrap_or_default()
}

/// An image with something at its end must end with a sector: readers round its length up, and would
/// find another end than was looked at here.
fn whole_sectors(length: u64) -> Result<(), Refusal> {
    if length.is_multiple_of(SECTOR) { Ok(()) } else { Err(Refusal::Malformed("its length")) }
}

const SHORT: Refusal = Refusal::Malformed("it ends within its header");

/// Reads fields of a header; a field that is not there is a refusal.
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn be32(&self, at: usize) -> Result<u32, Refusal> {
        field(self.0, at).map(u32::from_be_bytes).ok_or(SHORT)
    }

    fn be64(&self, at: usize) -> Result<u64, Refusal> {
        field(self.0, at).map(u64::from_be_bytes).ok_or(SHORT)
    }

    fn le32(&self, at: usize) -> Result<u32, Refusal> {
        le32(self.0, at).ok_or(SHORT)
    }

    fn le64(&self, at: usize) -> Result<u64, Refusal> {
        field(self.0, at).map(u64::from_le_bytes).ok_or(SHORT)
    }
}

/// QEMU's `docs/interop/qcow2.txt`.
fn qcow2(head: &[u8]) -> Result<u64, Refusal> {
    /// Refcounts may be wrong, which a reader need not care for.
    const DIRTY: u64 = 1;
    const CORRUPT: u64 = 1 << 1;
    const EXTERNAL: u64 = 1 << 2;
    const COMPRESSION_TYPE: u64 = 1 << 3;
    const EXTENDED_L2: u64 = 1 << 4;

    let header = Header(head);
    let version = header.be32(4)?;
    if header.be64(8)? != 0 || header.be32(16)? != 0 {
        return Err(Refusal::Backing);
    }
    let cluster_bits = header.be32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Refusal::Malformed("the cluster size"));
    }
    if header.be32(32)? != 0 {
        return Err(Refusal::Encrypted);
    }
    let extensions = match version {
        2 => 72,
        3 => {
            let features = header.be64(72)?;
            if features & EXTERNAL != 0 {
                return Err(Refusal::External);
            }
            if features & CORRUPT != 0 {
                return Err(Refusal::Corrupt);
            }
            let unknown = features & !(DIRTY | COMPRESSION_TYPE | EXTENDED_L2);
            if unknown != 0 {
                return Err(Refusal::Features(unknown));
            }
            header.be32(100)? as usize
        }
        _ => return Err(Refusal::Unsupported("other qcow")),
    };
    let cluster = 1_usize << cluster_bits;
    if extensions < 72 || extensions > cluster || (version == 3 && extensions < 104) {
        return Err(Refusal::Malformed("the header's length"));
    }
    qcow2_extensions(&head[..cluster.min(head.len())], extensions)?;
    header.be64(24)
}

fn qcow2_extensions(cluster: &[u8], mut at: usize) -> Result<(), Refusal> {
    const END: u32 = 0;
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    const EXTERNAL_DATA: u32 = 0x4441_5441;
    const ENCRYPTION: u32 = 0x0537_be77;

    let header = Header(cluster);
    for _ in 0..MAX_EXTENSIONS {
        // The list may end with the cluster instead of an end mark.
        if at + 8 > cluster.len() {
            return Ok(());
        }
        match header.be32(at)? {
            END => return Ok(()),
            BACKING_FORMAT => return Err(Refusal::Backing),
            EXTERNAL_DATA => return Err(Refusal::External),
            ENCRYPTION => return Err(Refusal::Encrypted),
            _ => {}
        }
        at += 8 + (header.be32(at + 4)? as usize).next_multiple_of(8);
        if at > cluster.len() {
            return Err(Refusal::Malformed("an extension of the header"));
        }
    }
    Err(Refusal::Malformed("too many extensions of the header"))
}

/// Whether a text names a VMDK's extents: what a reader would take for one, comments first.
fn is_descriptor(head: &[u8]) -> bool {
    let text = &head[..head.len().min(512)];
    contains(text, b"# Disk DescriptorFile") || text.starts_with(b"version=")
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted))
}

/// VMware Virtual Disk Format 5.0: `SparseExtentHeader`, its embedded descriptor, and the footer of a
/// streamOptimized one, which replaces the header.
fn vmdk(head: &[u8], tail: &[u8], length: u64) -> Result<u64, Refusal> {
    let header = Header(head);
    let capacity = vmdk_header(&header)?;
    // A descriptor is looked for where the header says and where qemu-img reads.
    let offset = header.le64(28)?;
    let sectors = header.le64(36)?;
    if sectors > MAX_DESCRIPTOR_SECTORS || offset > MAX_DESCRIPTOR_SECTORS {
        return Err(Refusal::Malformed("the place of the descriptor"));
    }
    let start = (offset * SECTOR) as usize;
    let end = start + (sectors * SECTOR) as usize;
    let embedded = head.get(start..end).ok_or(SHORT)?;
    let read = head.get(QEMU_DESCRIPTOR.start..QEMU_DESCRIPTOR.end.min(head.len()));
    for text in [embedded, read.unwrap_or_default()] {
        check_descriptor(text)?;
    }
    // The grain directory is "at the end": the footer's header counts, one sector before the last.
    if header.le64(56)? == u64::MAX {
        whole_sectors(length)?;
        let footer = Header(tail.get(..512).ok_or(SHORT)?);
        if !footer.0.starts_with(b"KDMV") {
            return Err(Refusal::Malformed("the footer"));
        }
        if vmdk_header(&footer)? != capacity || footer.le64(28)? != offset {
            return Err(Refusal::Malformed("the footer contradicts the header"));
        }
    }
    capacity.checked_mul(SECTOR).ok_or(Refusal::Malformed("the capacity"))
}

fn vmdk_header(header: &Header<'_>) -> Result<u64, Refusal> {
    if !(1..=3).contains(&header.le32(4)?) {
        return Err(Refusal::Malformed("the version"));
    }
    match header.le64(12)? {
        // Then a reader goes by the descriptor and opens the files that it names.
        0 => Err(Refusal::External),
        capacity => Ok(capacity),
    }
}

fn check_descriptor(text: &[u8]) -> Result<(), Refusal> {
    if contains(text, b"parentFileNameHint") {
        return Err(Refusal::Backing);
    }
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let mut extents = 0;
    for line in text.lines().map(str::trim) {
        let lower = line.to_ascii_lowercase();
        if let Some(parent) = lower.strip_prefix("parentcid") {
            if parent.trim_start_matches([' ', '=']).trim() != "ffffffff" {
                return Err(Refusal::Backing);
            }
        } else if let Some(kind) = lower.strip_prefix("createtype") {
            let kind = kind.trim_start_matches([' ', '=']).trim_matches('"');
            if kind != "monolithicsparse" && kind != "streamoptimized" {
                return Err(Refusal::External);
            }
        } else if ["rw ", "rdonly ", "noaccess "].iter().any(|access| lower.starts_with(access)) {
            extents += 1;
            let sparse = lower.split_whitespace().nth(2) == Some("sparse");
            let name = line.split('"').nth(1).unwrap_or_default();
            if extents > 1 || !sparse || name.contains(['/', '\\', ':']) {
                return Err(Refusal::External);
            }
        }
    }
    Ok(())
}

/// VirtualBox's `VDIPREHEADER` and `VDIHEADER1`.
fn vdi(head: &[u8]) -> Result<u64, Refusal> {
    let header = Header(head);
    if header.le32(0x44)? != 0x0001_0001 {
        return Err(Refusal::Unsupported("other VDI"));
    }
    match header.le32(0x4c)? {
        1 | 2 => {}
        3 | 4 => return Err(Refusal::Backing),
        _ => return Err(Refusal::Malformed("the type")),
    }
    // The ids of the image that this one goes with, and of its parent.
    let ids = head.get(0x1a8..0x1c8).ok_or(SHORT)?;
    if ids.iter().any(|byte| *byte != 0) {
        return Err(Refusal::Backing);
    }
    header.le64(0x170)
}

/// Virtual Hard Disk Image Format Specification 1.0, "Hard Disk Footer Format".
fn vhd(head: &[u8], footer: &[u8], length: u64) -> Result<u64, Refusal> {
    const NO_GEOMETRY: u32 = 0xffff_10ff;

    whole_sectors(length)?;
    // A dynamic disk has a copy at its start, which readers prefer.
    let copy = head.get(..512).filter(|copy| copy.starts_with(b"conectix"));
    if let Some(copy) = copy
        && footer.starts_with(b"conectix")
        && copy != footer
    {
        return Err(Refusal::Malformed("the footer contradicts its copy"));
    }
    let header = Header(copy.unwrap_or(footer));
    match (header.be32(60)?, copy) {
        (2, None) | (3, Some(_)) => {}
        (4, _) => return Err(Refusal::Backing),
        _ => return Err(Refusal::Malformed("the type")),
    }
    // By which of the two a reader goes depends on the program that wrote it, but for the largest
    // geometry, which says that the disk is too large for one.
    let by_geometry = match header.be32(56)? {
        NO_GEOMETRY => 0,
        geometry => {
            let [heads, sectors] = [geometry >> 8 & 0xff, geometry & 0xff].map(u64::from);
            u64::from(geometry >> 16) * heads * sectors * 512
        }
    };
    Ok(header.be64(48)?.max(by_geometry))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zeros of a length with some fields set.
    fn image(length: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (at, field) in fields {
            bytes[*at..at + field.len()].copy_from_slice(field);
        }
        bytes
    }

    fn with(mut bytes: Vec<u8>, at: usize, field: &[u8]) -> Vec<u8> {
        bytes[at..at + field.len()].copy_from_slice(field);
        bytes
    }

    fn look(bytes: &[u8]) -> Result<Inspection, Refusal> {
        let tail = &bytes[bytes.len() - bytes.len().min(1024)..];
        inspect(bytes, tail, bytes.len() as u64)
    }

    fn qcow2_image() -> Vec<u8> {
        let fields: [(usize, &[u8]); 5] = [
            (0, b"QFI\xfb\0\0\0\x03"),
            (20, &16_u32.to_be_bytes()),
            (24, &(5_u64 << 20).to_be_bytes()),
            (96, &4_u32.to_be_bytes()),
            (100, &104_u32.to_be_bytes()),
        ];
        image(65536, &fields)
    }

    const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
        createType=\"streamOptimized\"\nRW 10240 SPARSE \"disk.vmdk\"\n";

    fn vmdk_image(descriptor: &str) -> Vec<u8> {
        let fields: [(usize, &[u8]); 6] = [
            (0, b"KDMV\x01\0\0\0"),
            (12, &10240_u64.to_le_bytes()),
            (28, &1_u64.to_le_bytes()),
            (36, &20_u64.to_le_bytes()),
            (56, &30_u64.to_le_bytes()),
            (512, descriptor.as_bytes()),
        ];
        image(65536, &fields)
    }

    fn vdi_image() -> Vec<u8> {
        let fields: [(usize, &[u8]); 5] = [
            (0, b"<<< Oracle VM VirtualBox Disk Image >>>\n"),
            (0x40, &0xbeda_107f_u32.to_le_bytes()),
            (0x44, &0x0001_0001_u32.to_le_bytes()),
            (0x4c, &1_u32.to_le_bytes()),
            (0x170, &(5_u64 << 20).to_le_bytes()),
        ];
        image(4096, &fields)
    }

    fn vhd_footer(kind: u32) -> Vec<u8> {
        let fields: [(usize, &[u8]); 3] =
            [(0, b"conectix"), (48, &(5_u64 << 20).to_be_bytes()), (60, &kind.to_be_bytes())];
        image(512, &fields)
    }

    fn vhd_image(kind: u32) -> Vec<u8> {
        let footer = vhd_footer(kind);
        let image = image(8192, &[(7680, &footer)]);
        if kind == 2 { image } else { with(image, 0, &footer) }
    }

    #[test]
    fn sound_images_are_taken_for_what_they_are() {
        let streamed = with(vmdk_image(DESCRIPTOR), 56, &u64::MAX.to_le_bytes());
        let footer = streamed[..512].to_vec();
        let streamed = with(streamed, 65536 - 1024, &footer);
        let qcow2_v2 = with(with(qcow2_image(), 4, &2_u32.to_be_bytes()), 96, &[0; 8]);
        for (bytes, format) in [
            (qcow2_image(), ImageFormat::Qcow2),
            (qcow2_v2, ImageFormat::Qcow2),
            (with(qcow2_image(), 79, &[0b1_1001]), ImageFormat::Qcow2),
            (vmdk_image(DESCRIPTOR), ImageFormat::Vmdk),
            (streamed, ImageFormat::Vmdk),
            (vdi_image(), ImageFormat::Vdi),
            (vhd_image(2), ImageFormat::Vhd),
            (vhd_image(3), ImageFormat::Vhd),
        ] {
            let virtual_size = Bytes(5 << 20);
            assert_eq!(look(&bytes), Ok(Inspection { format, virtual_size }), "{format}");
        }
        for raw in [vec![], vec![0; 3], vec![0xff; 70_000], b"QFI".to_vec()] {
            let virtual_size = Bytes(raw.len() as u64);
            assert_eq!(look(&raw), Ok(Inspection { format: ImageFormat::Raw, virtual_size }));
        }
    }

    #[test]
    fn hostile_headers_are_refused_by_name() {
        let be32 = |value: u32| value.to_be_bytes();
        let extension = |kind: u32| with(qcow2_image(), 104, &be32(kind));
        let vmdk_with = |old: &str, new: &str| {
            let text = DESCRIPTOR.replace(old, new);
            assert_ne!(text, DESCRIPTOR);
            vmdk_image(&text)
        };
        let streamed = with(vmdk_image(DESCRIPTOR), 56, &u64::MAX.to_le_bytes());
        let other_footer = with(streamed[..512].to_vec(), 12, &0_u64.to_le_bytes());
        let hidden_parent = with(
            with(vmdk_image(DESCRIPTOR), 28, &21_u64.to_le_bytes()),
            2048,
            b"parentFileNameHint=\"/etc/shadow\"",
        );
        let qcow2_and_vhd = with(qcow2_image(), 65024, &vhd_footer(2));
        let table: Vec<(&str, Vec<u8>, Refusal)> = vec![
            ("backing offset", with(qcow2_image(), 15, &[1]), Refusal::Backing),
            ("backing length", with(qcow2_image(), 19, &[1]), Refusal::Backing),
            ("backing format", extension(0xe279_2aca), Refusal::Backing),
            ("external bit", with(qcow2_image(), 79, &[4]), Refusal::External),
            ("external name", extension(0x4441_5441), Refusal::External),
            ("corrupt", with(qcow2_image(), 79, &[2]), Refusal::Corrupt),
            ("feature", with(qcow2_image(), 79, &[0x20]), Refusal::Features(0x20)),
            ("feature 63", with(qcow2_image(), 72, &[0x80]), Refusal::Features(1 << 63)),
            ("AES", with(qcow2_image(), 35, &[1]), Refusal::Encrypted),
            ("LUKS in qcow2", extension(0x0537_be77), Refusal::Encrypted),
            ("qcow 1", with(qcow2_image(), 7, &[1]), Refusal::Unsupported("other qcow")),
            ("clusters", with(qcow2_image(), 23, &[60]), Refusal::Malformed("the cluster size")),
            (
                "header length",
                with(qcow2_image(), 100, &be32(u32::MAX)),
                Refusal::Malformed("the header's length"),
            ),
            (
                "extension length",
                with(extension(7), 108, &be32(u32::MAX)),
                Refusal::Malformed("an extension of the header"),
            ),
            (
                "endless size",
                with(qcow2_image(), 24, &[0xff; 8]),
                Refusal::TooLarge { size: Bytes(u64::MAX), limit: Bytes(MAX_SIZE) },
            ),
            ("short qcow2", qcow2_image()[..60].to_vec(), SHORT),
            ("parent", vmdk_with("parentCID=ffffffff", "parentCID=12345678"), Refusal::Backing),
            ("parent's name", vmdk_with("CID=1", "parentFileNameHint=\"x\""), Refusal::Backing),
            ("hidden parent", hidden_parent, Refusal::Backing),
            ("flat", vmdk_with("SPARSE", "FLAT"), Refusal::External),
            ("outside", vmdk_with("\"disk", "\"/etc/disk"), Refusal::External),
            ("split", vmdk_with("streamOpt", "twoGbMaxExt"), Refusal::External),
            ("second", vmdk_with("RW 1", "RW 1 SPARSE \"a\"\nRW 1"), Refusal::External),
            ("no capacity", with(vmdk_image(DESCRIPTOR), 12, &[0; 8]), Refusal::External),
            (
                "other footer",
                with(streamed.clone(), 65536 - 1024, &other_footer),
                Refusal::External,
            ),
            ("no footer", streamed, Refusal::Malformed("the footer")),
            (
                "capacity",
                with(vmdk_image(DESCRIPTOR), 12, &[0xff; 8]),
                Refusal::Malformed("the capacity"),
            ),
            (
                "far descriptor",
                with(vmdk_image(DESCRIPTOR), 28, &[0xff; 8]),
                Refusal::Malformed("the place of the descriptor"),
            ),
            ("descriptor", image(600, &[(0, DESCRIPTOR.as_bytes())]), Refusal::External),
            ("VMDK 3", image(600, &[(0, b"COWD")]), Refusal::Unsupported("VMDK 3")),
            ("VDI difference", with(vdi_image(), 0x4c, &[4]), Refusal::Backing),
            ("VDI parent", with(vdi_image(), 0x1b8, &[4]), Refusal::Backing),
            ("VDI link", with(vdi_image(), 0x1a8, &[4]), Refusal::Backing),
            ("VHD difference", vhd_image(4), Refusal::Backing),
            (
                "VHD that differs",
                with(vhd_image(3), 48, &[1]),
                Refusal::Malformed("the footer contradicts its copy"),
            ),
            ("VHDX", image(600, &[(0, b"vhdxfile")]), Refusal::Unsupported("VHDX")),
            ("LUKS", image(600, &[(0, b"LUKS\xba\xbe")]), Refusal::Encrypted),
            ("two", qcow2_and_vhd, Refusal::Ambiguous("qcow2", "VHD")),
            (
                "two more",
                with(qcow2_image(), 0x40, &0xbeda_107f_u32.to_le_bytes()),
                Refusal::Ambiguous("qcow2", "VDI"),
            ),
        ];
        for (name, bytes, refusal) in table {
            assert_eq!(look(&bytes), Err(refusal), "{name}");
        }
    }

    #[test]
    fn an_image_whose_end_readers_would_look_for_elsewhere_is_refused() {
        let streamed = with(vmdk_image(DESCRIPTOR), 56, &u64::MAX.to_le_bytes());
        let footer = streamed[..512].to_vec();
        // For qemu-img the last sector is the one that is not whole, and filled up with zeros: its
        // footer lies 80 bytes behind ours, and has another capacity.
        let larger = with(footer[..80].to_vec(), 12, &(1_u64 << 40).to_le_bytes());
        let split = with(streamed, 65536 - 1024 - 80, &footer[..80]);
        let mut split = with(split, 65536 - 1024, &larger);
        split.truncate(65536 - 80);
        assert_eq!(look(&split), Err(Refusal::Malformed("its length")));

        let mut moved = vhd_image(2);
        moved.splice(0..0, [0; 100]);
        assert_eq!(look(&moved), Err(Refusal::Malformed("its length")));
    }

    #[test]
    fn no_header_that_is_cut_off_or_garbled_makes_the_reader_panic() {
        for sound in [qcow2_image(), vmdk_image(DESCRIPTOR), vdi_image(), vhd_image(3)] {
            for length in (0..1200).chain([4095, 4096]) {
                let _ = look(&sound[..length.min(sound.len())]);
            }
            for at in 4..520 {
                for value in [0x01, 0x7f, 0x80, 0xff] {
                    let _ = look(&with(sound.clone(), at, &[value]));
                    let _ = look(&with(sound.clone(), at, &[value; 8]));
                }
            }
        }
    }
}
