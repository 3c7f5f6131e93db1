//! The wire: generated messages, and the sealed envelope around every request and answer.
//!
//! The only way to a [`Verified`] value is through [`envelope`]; handlers take nothing else.

mod call;
pub mod envelope;

#[expect(missing_docs, reason = "generated; documented in the .proto files")]
pub mod federation {
    include!("gen/sojourn.federation.v1.rs");
}

#[expect(missing_docs, reason = "generated; documented in the .proto files")]
pub mod admin {
    include!("gen/sojourn.admin.v1.rs");
}

/// The descriptors of all services, for reflection on the admin socket.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");

impl From<model::JournalMark> for federation::JournalMark {
    fn from(mark: model::JournalMark) -> Self {
        Self { length: mark.length, signature: mark.signature.0.to_vec() }
    }
}

impl federation::JournalMark {
    /// The mark, if its signature has a signature's length.
    pub fn parse(&self) -> Option<model::JournalMark> {
        let signature = model::Signature::from_slice(&self.signature)?;
        Some(model::JournalMark { length: self.length, signature })
    }
}

pub use call::call;
pub use envelope::Verified;
