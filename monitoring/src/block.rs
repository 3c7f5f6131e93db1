//! What crosses the wire: values in blocks, signed once a block by whoever runs the VM.
//!
//! A value costs few bytes: the place of its specifier in the monitoring section, its time against
//! the block's, and itself. The signature (64 bytes) and the block's head (about 45) are shared by
//! all values of a block.

use model::key::Payload;
use model::monitoring::SectionId;
use model::{Epoch, PublicKey, Signature, Time, VmId};
use serde::{Deserialize, Serialize};

/// Values in one block.
pub const MAX_VALUES: usize = 4096;
/// Bytes of one block, signature and all; a message to a peer holds one at least.
pub const MAX_BLOCK_BYTES: usize = 768 << 10;
/// Bytes of one value that is text or a whole file: what the KPI file system takes is delivered.
pub const MAX_VALUE_BYTES: usize = 512 << 10;

/// What was measured, or written by the application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reading {
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Number(f64),
    /// What the application wrote, where it is no whole number: exactly as it was written.
    Text(String),
    /// A whole file of `encrypted/`.
    Content(Vec<u8>),
}

impl Reading {
    /// A field as an application wrote it.
    pub fn of_text(text: &str) -> Self {
        match text.parse::<i64>() {
            // `+7` and `007` are numbers too, and stay as they were written.
            Ok(number) if number.to_string() == text => Self::Integer(number),
            _ => Self::Text(text.to_owned()),
        }
    }

    /// Its value as a number; none if it is none.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Number(number) => Some(*number),
            Self::Text(text) => {
                let text = text.trim();
                let is_decimal = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
                text.parse().ok().filter(|number: &f64| is_decimal && number.is_finite())
            }
            Self::Content(_) => None,
        }
    }

    /// A measured number, as short as it can be told exactly.
    pub fn of_number(number: f64) -> Self {
        // Whole numbers up to 2^53 are the same in both.
        const EXACT: f64 = (1_u64 << 53) as f64;
        if number.fract() == 0.0 && number.abs() < EXACT {
            Self::Integer(number as i64)
        } else {
            Self::Number(number)
        }
    }

    /// Whether it is what can be measured: a number that is one.
    pub fn is_sound(&self) -> bool {
        !matches!(self, Self::Number(number) if !number.is_finite())
    }

    /// Bytes that it takes, about.
    pub fn size(&self) -> usize {
        match self {
            Self::Integer(_) | Self::Number(_) => 8,
            Self::Text(text) => text.len(),
            Self::Content(content) => content.len(),
        }
    }
}

/// One value that is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// The place of its specifier in the monitoring section.
    pub specifier: u16,
    /// When, against the block's time, in milliseconds.
    pub after_ms: i64,
    /// How many measured values it stands for: 1 unless it is a minimum, maximum, mean or median.
    pub of: u32,
    /// The value.
    pub reading: Reading,
}

/// Values that only the primary can read: HPKE over the encoded values ([`crate::seal`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// How many there are.
    pub count: u32,
    /// What they are sealed into.
    pub bytes: Vec<u8>,
}

/// Values of one VM, in the order in which they were made.
///
/// Values are numbered from 1 for the VM's whole life, at whatever sites; the open ones of a block
/// come first. A repeat is known by its number, and so is a gap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// The VM.
    pub vm: VmId,
    /// The epoch in which it was made: whose owner signs it.
    pub epoch: Epoch,
    /// The number of its first value.
    pub first: u64,
    /// The monitoring section that it was made by.
    pub section: SectionId,
    /// When it was made, by the clock of the site that made it.
    pub at: Time,
    /// Values that every site on the path may read.
    pub open: Vec<Value>,
    /// Values that only the primary can read.
    pub sealed: Option<Sealed>,
}

impl Payload for Block {
    const TYPE: &'static str = "application/vnd.sojourn.values.v1";
}

/// Bytes that are no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the block is too large, has too many values or none, one that is no number, or is not well formed"
)]
pub struct Malformed;

impl Block {
    /// How many values it has.
    pub fn count(&self) -> u64 {
        self.open.len() as u64 + self.sealed.as_ref().map_or(0, |sealed| sealed.count.into())
    }

    /// The number of its last value.
    pub fn last(&self) -> u64 {
        self.first + self.count().saturating_sub(1)
    }

    fn check(self, bytes: usize) -> Result<Self, Malformed> {
        let count = self.count();
        let is_sound = (1..=MAX_VALUES as u64).contains(&count)
            && bytes <= MAX_BLOCK_BYTES
            && self.first >= 1
            && self.first < 1 << 62
            && self.open.iter().all(|value| value.reading.is_sound());
        if is_sound { Ok(self) } else { Err(Malformed) }
    }
}

/// A block in the bytes that were signed. Whose key it was follows from the VM's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBlock {
    /// The signed bytes.
    pub body: Vec<u8>,
    /// The signature over them, as of every statement ([`model::key::Signed`]).
    pub signature: Signature,
}

impl SignedBlock {
    /// Encodes and signs.
    pub fn seal(block: &Block, sign: impl FnOnce(&str, &[u8]) -> Signature) -> Self {
        let body = postcard::to_stdvec(block).expect("values are plain data");
        let signature = sign(Block::TYPE, &body);
        Self { body, signature }
    }

    /// What it says, whoever made it.
    pub fn peek(&self) -> Result<Block, Malformed> {
        if self.size() > MAX_BLOCK_BYTES {
            return Err(Malformed);
        }
        match postcard::take_from_bytes::<Block>(&self.body) {
            Ok((block, [])) => block.check(self.size()),
            _ => Err(Malformed),
        }
    }

    /// Whether `owner` made it: the VM's owner of the epoch that it names, as the caller knows.
    pub fn is_of(&self, owner: &PublicKey, verify: &dyn model::key::Verify) -> bool {
        verify.verify(owner, Block::TYPE, &self.body, &self.signature)
    }

    /// Bytes of it on a wire, about.
    pub fn size(&self) -> usize {
        self.body.len() + 68
    }
}

#[cfg(test)]
mod tests {
    use model::SecretKey;
    use model::key::Strict;

    use super::*;

    fn value(reading: Reading) -> Value {
        Value { specifier: 3, after_ms: -250, of: 1, reading }
    }

    fn block(values: Vec<Value>) -> Block {
        Block {
            vm: VmId([7; 16]),
            epoch: Epoch(2),
            first: 1_000_000,
            section: SectionId([1; 8]),
            at: Time(1_800_000_000_000),
            open: values,
            sealed: None,
        }
    }

    #[test]
    fn what_the_kpi_file_system_takes_is_delivered() {
        assert_eq!(MAX_VALUE_BYTES as u64, kpi_fs::store::OPAQUE_MAX);
    }

    #[test]
    fn ten_numbers_of_a_second_take_less_than_32_bytes_each() {
        let numbers = (0..10).map(|n| value(Reading::of_number(1000.5 + f64::from(n))));
        let key = SecretKey::from_seed(&[1; 32]);
        let signed = SignedBlock::seal(&block(numbers.collect()), |kind, b| key.sign(kind, b));
        assert!(postcard::to_stdvec(&signed).unwrap().len() < 320);
    }

    #[test]
    fn a_number_that_is_none_makes_a_block_none() {
        let key = SecretKey::from_seed(&[1; 32]);
        for (number, is_taken) in [(0.5, true), (f64::NAN, false), (f64::INFINITY, false)] {
            let made = block(vec![value(Reading::Number(number))]);
            let signed = SignedBlock::seal(&made, |kind, body| key.sign(kind, body));
            assert_eq!(signed.peek().is_ok(), is_taken, "{number}");
        }
    }

    #[test]
    fn only_what_its_owner_signed_counts_and_only_unaltered() {
        let (key, other) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let made = block(vec![value(Reading::Text("007".into()))]);
        let signed = SignedBlock::seal(&made, |kind, body| key.sign(kind, body));
        assert_eq!(signed.peek().unwrap(), made);
        assert!(signed.is_of(&key.public(), &Strict));
        assert!(!signed.is_of(&other.public(), &Strict));
        for at in 0..signed.body.len() {
            let mut altered = signed.clone();
            altered.body[at] ^= 1;
            assert!(!altered.is_of(&key.public(), &Strict), "byte {at}");
        }
    }

    #[test]
    fn blocks_that_break_a_limit_are_malformed() {
        let sign = |block: &Block| SignedBlock::seal(block, |_, _| Signature([0; 64])).peek();
        let one = value(Reading::Integer(1));
        assert!(sign(&block(vec![one.clone()])).is_ok());
        assert!(sign(&block(vec![])).is_err());
        assert!(sign(&block(vec![one.clone(); MAX_VALUES + 1])).is_err());
        assert!(sign(&Block { first: 0, ..block(vec![one.clone()]) }).is_err());
        assert!(sign(&Block { first: u64::MAX, ..block(vec![one.clone()]) }).is_err());
        let sealed = Some(Sealed { count: u32::MAX, bytes: vec![] });
        assert!(sign(&Block { sealed, ..block(vec![one]) }).is_err());
        let large = value(Reading::Content(vec![0; MAX_BLOCK_BYTES]));
        assert!(sign(&block(vec![large])).is_err());
    }

    #[test]
    fn text_stays_as_it_was_written_and_has_a_number_if_it_is_one() {
        for (text, number) in [
            ("5", Some(5.0)),
            ("-3", Some(-3.0)),
            ("007", Some(7.0)),
            ("+7", Some(7.0)),
            ("1e5", Some(100_000.0)),
            (" 2.5 ", Some(2.5)),
            ("", None),
            ("inf", None),
            ("NaN", None),
            ("1e999", None),
            ("5 users", None),
            ("0x10", None),
        ] {
            let reading = Reading::of_text(text);
            assert_eq!(reading.number(), number, "{text:?}");
            let kept = match reading {
                Reading::Integer(number) => number.to_string(),
                Reading::Text(text) => text,
                other => panic!("{other:?}"),
            };
            assert_eq!(kept, text);
        }
        assert_eq!(Reading::of_number(3.0), Reading::Integer(3));
        assert_eq!(Reading::of_number(0.25), Reading::Number(0.25));
    }
}
