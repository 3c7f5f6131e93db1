//! Named limits of what a peer, a file or a user may hand in.

/// Sites that a Migration request passes at most when its sender names no number.
pub const DEFAULT_HOPS: u8 = 4;
/// Sites that a Migration request may pass at the very most.
pub const MAX_HOPS: u8 = 8;
/// Offers in one answer.
pub const MAX_OFFERS: usize = 64;
/// Reasons in one refusal.
pub const MAX_REASONS: usize = 32;
/// Characters of one reason.
pub const MAX_REASON_CHARS: usize = 400;
/// Disks of a VM.
pub const MAX_DISKS: usize = 32;
/// Network cards of a VM.
pub const MAX_NICS: usize = 16;
/// Measures that are monitored of a VM.
pub const MAX_SPECIFIERS: usize = 256;
/// Characters of the name of a KPI's file or column.
pub const MAX_KPI_NAME_CHARS: usize = 64;
/// Virtual processors of a VM.
pub const MAX_CPUS: u32 = 1024;
/// Files that one migration moves.
pub const MAX_FILES: usize = 64;
/// Certificates in a chain: how often a VM may change its owner.
pub const MAX_EPOCHS: usize = 4096;
/// Size of one signed message between peers, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Characters of a proxy URI.
pub const MAX_URI_CHARS: usize = 200;
/// By how much a peer's clock may differ before its commands are refused.
pub const MAX_CLOCK_SKEW: std::time::Duration = std::time::Duration::from_secs(120);
/// Bytes of the history of a VM's monitoring, as it moves with the VM.
pub const MAX_HISTORY_BYTES: u64 = 32 << 20;
