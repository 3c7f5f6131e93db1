//! Disk images, by their headers.

use std::io::Write;

use hypervisor::ImageFormat;
use hypervisor::image::inspect;
use model::Bytes;

/// The largest disk that is taken here.
pub(super) const LIMIT: Bytes = Bytes(1 << 40);

/// The header of a disk image. One that is taken needs no other file, is not encrypted, and is not
/// larger than the limit. `tests/parsers.rs` asks `qemu-img` about the same images.
///
/// # Panics
///
/// If a promise is broken.
pub fn image(data: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("a temporary file takes what it gets");
    let Ok(found) = inspect(file.path(), LIMIT) else { return };
    assert!(found.virtual_size <= LIMIT);
    let zero = |field: std::ops::Range<usize>| data[field].iter().all(|byte| *byte == 0);
    match found.format {
        ImageFormat::Raw => assert_eq!(found.virtual_size.0, data.len() as u64),
        ImageFormat::Qcow2 => {
            assert!(zero(8..20), "no backing file");
            assert!(zero(32..36), "no encryption");
            let incompatible: &[u8] = if data[7] == 3 { &data[72..80] } else { &[] };
            let known = [0, 0, 0, 0, 0, 0, 0, 0b1_1001];
            assert!(incompatible.iter().zip(known).all(|(bits, known)| bits & !known == 0));
        }
        ImageFormat::Vmdk => {
            assert!(!zero(12..20), "its extent is in the file itself");
            let text = data.get(512..data.len().min(21 * 512)).unwrap_or_default();
            let text = text.to_ascii_lowercase();
            let names = |wanted: &[u8]| text.windows(wanted.len()).any(|text| text == wanted);
            assert!(!names(b"parentfilenamehint"), "no parent");
        }
        ImageFormat::Vdi => assert!(zero(0x1a8..0x1c8), "no parent"),
        ImageFormat::Vhd => assert_eq!(data.len() % 512, 0, "its footer is where readers look"),
    }
}
