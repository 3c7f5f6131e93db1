//! Named limits of what a package may hold.

/// Files in a package.
pub const MAX_FILES: usize = 64;
/// Headers in an archive: each file may have one extended header before it.
pub const MAX_HEADERS: usize = 2 * MAX_FILES + 1;
/// Bytes of a file's name.
pub const MAX_NAME_BYTES: usize = 255;
/// Bytes of one extended (pax) header.
pub const MAX_PAX_BYTES: u64 = 64 << 10;
/// Bytes of the descriptor.
pub const MAX_DESCRIPTOR_BYTES: u64 = 4 << 20;
/// Bytes of the manifest.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// Elements of the descriptor.
pub const MAX_ELEMENTS: usize = 50_000;
/// Levels of elements within elements.
pub const MAX_DEPTH: usize = 64;
/// Attributes of one element.
pub const MAX_ATTRIBUTES: usize = 64;
/// Namespace declarations of the descriptor.
pub const MAX_NAMESPACES: usize = 256;
/// Warnings of one import; what goes beyond is counted.
pub const MAX_WARNINGS: usize = 64;
