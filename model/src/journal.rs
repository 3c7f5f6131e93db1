//! How long a site's journal is, as its peers remember it for the site.

use serde::{Deserialize, Serialize};

use crate::key::{Payload, Verify};
use crate::{Signature, SiteKey};

/// The length of a site's journal, signed by the site.
///
/// Peers keep the longest that they were shown, and give it back: a site that finds its own journal
/// shorter was restored from an old copy. They need not check it, and cannot make one up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JournalMark {
    /// The place of the newest row.
    pub length: u64,
    /// The site's signature over it, by the key that it had then.
    pub signature: Signature,
}

/// What is signed.
#[derive(Serialize, Deserialize)]
struct Length(u64);

impl Payload for Length {
    const TYPE: &'static str = "application/vnd.sojourn.journal-length.v1";
}

impl JournalMark {
    /// Marks a journal of this length; `sign` signs a payload of a type with the site's key.
    pub fn new(length: u64, sign: impl FnOnce(&str, &[u8]) -> Signature) -> Self {
        Self { length, signature: sign(Length::TYPE, &body(length)) }
    }

    /// Whether the site with one of these keys has made it.
    pub fn is_of(&self, keys: &[SiteKey], verify: &dyn Verify) -> bool {
        let body = body(self.length);
        keys.iter().any(|key| verify.verify(&key.public(), Length::TYPE, &body, &self.signature))
    }
}

fn body(length: u64) -> Vec<u8> {
    postcard::to_stdvec(&Length(length)).expect("a number is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretKey;
    use crate::key::Strict;

    #[test]
    fn a_mark_is_of_the_site_that_made_it_at_that_length_and_of_no_other() {
        let site = SecretKey::from_seed(&[1; 32]);
        let (own, other) = (SiteKey(site.public().0), SiteKey([2; 32]));
        let mark = JournalMark::new(7, |kind, body| site.sign(kind, body));
        assert!(mark.is_of(&[own], &Strict));
        assert!(mark.is_of(&[other, own], &Strict), "a key of before");
        assert!(!mark.is_of(&[other], &Strict));
        assert!(!mark.is_of(&[], &Strict));
        assert!(!JournalMark { length: 8, ..mark }.is_of(&[own], &Strict));
    }
}
