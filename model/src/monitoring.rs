//! What of a VM is measured, how often, and when it is told to the site that placed it.
//!
//! It is a part of the VM descriptor, so that whoever runs the VM needs nothing else to measure it
//! (papers/003, IV).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::key::{Payload, Verify};
use crate::{Digest, PublicKey, Signature, limit};

/// All that is to be measured of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Monitoring {
    /// Grows with each change by the VM's primary: the latest section counts. 0 is one that nobody
    /// has vouched for.
    pub revision: u64,
    /// One entry or more for each measure.
    pub specifiers: Vec<Specifier>,
    /// Whom sealed values are for: the VM's own X25519 key, whose other half the primary keeps. It
    /// names no site.
    pub sealing_key: Option<SealingKey>,
    /// The word of the VM's own key K0 for all of it: whoever passes a descriptor on could have
    /// something told in the open otherwise.
    pub voucher: Option<Signature>,
}

/// The public half of a VM's sealing key (X25519, RFC 7748), in its wire form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SealingKey(pub [u8; 32]);

/// One measure, and what becomes of its values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Specifier {
    /// What is measured.
    pub measure: Measure,
    /// Milliseconds between two measurements; 0 is as often as possible.
    pub interval_ms: u32,
    /// When values are told.
    pub delivery: Delivery,
    /// What is told of the values of one delivery.
    pub format: Format,
    /// Whether only the holder of the VM's sealing key may read them.
    pub sealed: bool,
    /// Whether its condition is a limit of service: whoever takes the VM undertakes that it does
    /// not become true (federation.md, "Contracts").
    #[serde(default)]
    pub limit: bool,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// By the hypervisor, of the VM as a whole.
    Vm(VmMeasure),
    /// By the application in the guest, which writes it to a file.
    Kpi {
        /// The file's name.
        table: String,
        /// The column's name, as the file's first line has it.
        column: String,
    },
    /// By the application in the guest, which writes it to a file that nobody else can read.
    Encrypted {
        /// The file's name.
        file: String,
    },
}

/// What the name of a measure begins with that is a whole file.
const ENCRYPTED: &str = "encrypted/";

/// A measure of the VM as a whole.
///
/// Those that only grow count from the guest's first start, also across migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmMeasure {
    /// Time that its processors have run, in seconds; grows.
    CpuTime,
    /// Processors in use since the measurement before, as a number of them: 0 to the VM's count.
    CpuShare,
    /// Its memory that is in the host's, in bytes.
    MemoryResident,
    /// What the guest is given of its memory by its balloon, in bytes.
    MemoryBalloon,
    /// Read from its disks, in bytes; grows.
    DiskRead,
    /// Written to its disks, in bytes; grows.
    DiskWritten,
    /// Read operations of its disks; grows.
    DiskReads,
    /// Write operations of its disks; grows.
    DiskWrites,
    /// Mean time of a read since the measurement before, in seconds.
    DiskReadLatency,
    /// Mean time of a write since the measurement before, in seconds.
    DiskWriteLatency,
    /// Received by its network cards, in bytes; grows.
    NetworkReceived,
    /// Sent by its network cards, in bytes; grows.
    NetworkSent,
    /// Received by its network cards, in packets; grows.
    NetworkPacketsReceived,
    /// Sent by its network cards, in packets; grows.
    NetworkPacketsSent,
}

/// When values are told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Every so many milliseconds; 0 is as soon as there is a value.
    Every(u32),
    /// When a condition becomes true.
    When(Condition),
}

/// A condition of a measure: it becomes true when the comparison has held for so long, and can
/// only do so again after the value was back by the hysteresis.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// How the value is compared.
    pub comparison: Comparison,
    /// To what.
    pub threshold: Thousandths,
    /// How far on the other side of the threshold the value must have been; not negative.
    pub hysteresis: Thousandths,
    /// How long the comparison must hold, in milliseconds.
    pub lasting_ms: u32,
}

/// A comparison of a value with a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Comparison {
    /// The value is higher.
    Above,
    /// The value is lower.
    Below,
}

/// A decimal number in thousandths, so that descriptors compare and digest exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Thousandths(pub i64);

/// What is told of the values of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Each of them, with its time.
    Raw,
    /// The lowest.
    Min,
    /// The highest.
    Max,
    /// Their arithmetic mean.
    Mean,
    /// The middle one in order of size; of an even number, the mean of the middle two.
    Median,
}

/// Something that is not what its text should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotOne(&'static str);

/// A monitoring section that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MonitoringError {
    /// There are too many specifiers.
    #[error("at most {max} things are monitored, got {0}", max = limit::MAX_SPECIFIERS)]
    TooMany(usize),
    /// A KPI's table or column cannot be one.
    #[error("{0:?} is no name of a KPI: {NAMES}")]
    Name(String),
    /// A condition that could not become true again.
    #[error("the hysteresis of {0} is negative")]
    Hysteresis(Measure),
    /// A limit of service that nothing breaks.
    #[error("{0} is told without a condition, and only a condition can be a limit of service")]
    Limit(Measure),
    /// A file is no number.
    #[error("{0} is a whole file: it has no condition, and no format but raw")]
    File(Measure),
}

/// What the names of KPIs are made of.
const NAMES: &str = "letters, digits, - and _, at most 64, beginning with a letter or _; a file's \
                     name may have points too";

/// Whether the text can be the name of a KPI's file, which a table is named after: letters,
/// digits, `-`, `_` and `.` of ASCII, beginning with a letter or `_`, at most 64 of them.
pub fn is_kpi_file(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let rest = |c: char| first(c) || c.is_ascii_digit() || c == '-' || c == '.';
    text.starts_with(first) && text.len() <= limit::MAX_KPI_NAME_CHARS && text.chars().all(rest)
}

/// Whether the text can be the name of a KPI's column: as of a file, without points, so that
/// `web.log.errors` can only be the column `errors` of `web.log`.
pub fn is_kpi_column(text: &str) -> bool {
    is_kpi_file(text) && !text.contains('.')
}

/// Names a monitoring section by its content.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct SectionId(pub [u8; 8]);

/// What a voucher is for: all of a section but itself.
#[derive(Serialize, Deserialize)]
struct Vouched(u64, Vec<Specifier>, Option<SealingKey>);

impl Payload for Vouched {
    const TYPE: &'static str = "application/vnd.sojourn.monitoring.v1";
}

impl Monitoring {
    /// Has the VM's own key vouch for the section as it is.
    pub fn vouch(&mut self, sign: impl FnOnce(&str, &[u8]) -> Signature) {
        self.voucher = Some(sign(Vouched::TYPE, &self.vouched()));
    }

    /// Whether the VM's own key vouches for the section as it is.
    pub fn is_vouched(&self, k0: &PublicKey, verify: &dyn Verify) -> bool {
        let holds = |voucher| verify.verify(k0, Vouched::TYPE, &self.vouched(), &voucher);
        self.voucher.is_some_and(holds)
    }

    /// Whether `other` takes its place: a later one that is sound, and that the VM's own key
    /// vouches for.
    pub fn yields_to(&self, other: &Self, k0: &PublicKey, verify: &dyn Verify) -> bool {
        other.revision > self.revision && other.check().is_ok() && other.is_vouched(k0, verify)
    }

    fn vouched(&self) -> Vec<u8> {
        let vouched = Vouched(self.revision, self.specifiers.clone(), self.sealing_key);
        postcard::to_stdvec(&vouched).expect("descriptors are plain data")
    }

    /// Its name: the beginning of the digest of its content.
    pub fn id(&self) -> SectionId {
        let bytes = postcard::to_stdvec(self).expect("descriptors are plain data");
        SectionId(*Digest::of(&bytes).0.first_chunk().expect("a digest has 32 bytes"))
    }

    /// Checks every rule.
    ///
    /// # Errors
    ///
    /// The first that is broken.
    pub fn check(&self) -> Result<(), MonitoringError> {
        if self.specifiers.len() > limit::MAX_SPECIFIERS {
            return Err(MonitoringError::TooMany(self.specifiers.len()));
        }
        for specifier in &self.specifiers {
            let measure = || specifier.measure.clone();
            let wrong = match &specifier.measure {
                Measure::Vm(_) => None,
                Measure::Kpi { table, .. } if !is_kpi_file(table) => Some(table),
                Measure::Kpi { column, .. } => Some(column).filter(|name| !is_kpi_column(name)),
                Measure::Encrypted { file } => Some(file).filter(|name| !is_kpi_file(name)),
            };
            if let Some(name) = wrong {
                return Err(MonitoringError::Name(name.chars().take(64).collect()));
            }
            let is_plain =
                matches!(specifier.delivery, Delivery::Every(_)) && specifier.format == Format::Raw;
            if matches!(specifier.measure, Measure::Encrypted { .. }) && !is_plain {
                return Err(MonitoringError::File(measure()));
            }
            match &specifier.delivery {
                Delivery::When(condition) if condition.hysteresis.0 < 0 => {
                    return Err(MonitoringError::Hysteresis(measure()));
                }
                Delivery::Every(_) if specifier.limit => {
                    return Err(MonitoringError::Limit(measure()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl VmMeasure {
    /// Every one, with its name.
    pub const ALL: [(Self, &'static str); 14] = [
        (Self::CpuTime, "cpu_time"),
        (Self::CpuShare, "cpu_share"),
        (Self::MemoryResident, "memory_resident"),
        (Self::MemoryBalloon, "memory_balloon"),
        (Self::DiskRead, "disk_read"),
        (Self::DiskWritten, "disk_written"),
        (Self::DiskReads, "disk_reads"),
        (Self::DiskWrites, "disk_writes"),
        (Self::DiskReadLatency, "disk_read_latency"),
        (Self::DiskWriteLatency, "disk_write_latency"),
        (Self::NetworkReceived, "network_received"),
        (Self::NetworkSent, "network_sent"),
        (Self::NetworkPacketsReceived, "network_packets_received"),
        (Self::NetworkPacketsSent, "network_packets_sent"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(measure, _)| *measure == self);
        found.expect("every measure is in the table").1
    }
}

/// `cpu_share`, `web.current_users` for a KPI, or `encrypted/balance` for a file.
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(measure) => f.write_str(measure.name()),
            Self::Kpi { table, column } => write!(f, "{table}.{column}"),
            Self::Encrypted { file } => write!(f, "{ENCRYPTED}{file}"),
        }
    }
}

impl FromStr for Measure {
    type Err = NotOne;

    fn from_str(text: &str) -> Result<Self, NotOne> {
        if let Some(file) = text.strip_prefix(ENCRYPTED) {
            let error =
                NotOne("an encrypted KPI is encrypted/FILE, of letters, digits, -, _ and .");
            return if is_kpi_file(file) {
                Ok(Self::Encrypted { file: file.to_owned() })
            } else {
                Err(error)
            };
        }
        if let Some((table, column)) = text.rsplit_once('.') {
            let named = is_kpi_file(table) && is_kpi_column(column);
            let (table, column) = (table.to_owned(), column.to_owned());
            let error = NotOne("a KPI is FILE.COLUMN, both of letters, digits, - and _");
            return if named { Ok(Self::Kpi { table, column }) } else { Err(error) };
        }
        let found = VmMeasure::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(measure, _)| Self::Vm(*measure)).ok_or(NotOne(
            "a measure is cpu_time, cpu_share, memory_resident, memory_balloon, disk_read, \
             disk_written, disk_reads, disk_writes, disk_read_latency, disk_write_latency, \
             network_received, network_sent, network_packets_received, network_packets_sent, or a \
             KPI as FILE.COLUMN or encrypted/FILE",
        ))
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Above => ">",
            Self::Below => "<",
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Min => "min",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::Median => "median",
        })
    }
}

impl FromStr for Format {
    type Err = NotOne;

    fn from_str(text: &str) -> Result<Self, NotOne> {
        let all = [Self::Raw, Self::Min, Self::Max, Self::Mean, Self::Median];
        let found = all.into_iter().find(|format| format.to_string() == text);
        found.ok_or(NotOne("a format is raw, min, max, mean or median"))
    }
}

impl Thousandths {
    /// As a number.
    pub fn value(self) -> f64 {
        // Exact to 2^53 thousandths, and no measure is exact beyond.
        self.0 as f64 / 1000.0
    }
}

/// As short as it can be: `1000`, `0.5`, `-2.125`.
impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, size) = (if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs());
        let text = format!("{sign}{}.{:03}", size / 1000, size % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl FromStr for Thousandths {
    type Err = NotOne;

    fn from_str(text: &str) -> Result<Self, NotOne> {
        let wrong = || NotOne("a number has at most three digits after its point, such as -2.125");
        let (negative, size) = text.strip_prefix('-').map_or((false, text), |size| (true, size));
        let (whole, fraction) = size.split_once('.').unwrap_or((size, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
            return Err(wrong());
        }
        let fraction: i64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
        let whole = whole.parse::<i64>().ok().and_then(|whole| whole.checked_mul(1000));
        let size = whole.and_then(|whole| whole.checked_add(fraction)).ok_or_else(wrong)?;
        Ok(Self(if negative { -size } else { size }))
    }
}

/// `> 1000`, `> 1000 for 30 s`, with `~ 50` behind the threshold for a hysteresis.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.comparison, self.threshold)?;
        if self.hysteresis.0 != 0 {
            write!(f, " ~ {}", self.hysteresis)?;
        }
        match self.lasting_ms {
            0 => Ok(()),
            ms if ms.is_multiple_of(1000) => write!(f, " for {} s", ms / 1000),
            ms => write!(f, " for {ms} ms"),
        }
    }
}

impl FromStr for Condition {
    type Err = NotOne;

    fn from_str(text: &str) -> Result<Self, NotOne> {
        let wrong = || {
            NotOne(
                "a condition is a comparison (> or <), a number, and, if wanted, ~ and a \
                 hysteresis, for and a time in s or ms: > 1000 ~ 50 for 30 s",
            )
        };
        let text = text.trim();
        let (comparison, rest) = match (text.strip_prefix('>'), text.strip_prefix('<')) {
            (Some(rest), _) => (Comparison::Above, rest),
            (_, Some(rest)) => (Comparison::Below, rest),
            _ => return Err(wrong()),
        };
        let (rest, lasting) = rest.split_once(" for ").map_or((rest, None), |(a, b)| (a, Some(b)));
        let (threshold, hysteresis) = rest.split_once('~').unwrap_or((rest, "0"));
        let lasting_ms = match lasting.map(str::trim) {
            None => Some(0),
            Some(time) => match time.strip_suffix("ms") {
                Some(ms) => milliseconds(ms, 1),
                None => time.strip_suffix('s').and_then(|s| milliseconds(s, 1000)),
            },
        };
        let hysteresis: Thousandths = hysteresis.trim().parse()?;
        if hysteresis.0 < 0 {
            return Err(NotOne("a hysteresis is not negative"));
        }
        Ok(Self {
            comparison,
            threshold: threshold.trim().parse()?,
            hysteresis,
            lasting_ms: lasting_ms.ok_or_else(wrong)?,
        })
    }
}

fn milliseconds(text: &str, factor: u32) -> Option<u32> {
    let text = text.trim();
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    text.parse::<u32>().ok().filter(|_| plain)?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_is_in_the_table_once_and_reads_back() {
        for (at, (measure, name)) in VmMeasure::ALL.into_iter().enumerate() {
            assert_eq!(measure as usize, at, "in the order of the type");
            assert_eq!(name.parse(), Ok(Measure::Vm(measure)));
            assert_eq!(serde_json::to_value(measure).unwrap(), name, "the same name everywhere");
        }
        let kpi = Measure::Kpi { table: "web".into(), column: "current_users".into() };
        assert_eq!("web.current_users".parse(), Ok(kpi.clone()));
        assert_eq!(kpi.to_string(), "web.current_users");
        let kpi = Measure::Kpi { table: "web.log".into(), column: "errors".into() };
        assert_eq!("web.log.errors".parse(), Ok(kpi));
        let file = Measure::Encrypted { file: "balance".into() };
        assert_eq!("encrypted/balance".parse(), Ok(file.clone()));
        assert_eq!(file.to_string(), "encrypted/balance");
        for bad in ["", "cpu", "web.", ".users", "we b.users", "encrypted/", "a/b", "1.2"] {
            assert!(bad.parse::<Measure>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn conditions_read_back_and_nonsense_is_refused() {
        for text in ["> 1000", "< -0.5 for 30 s", "> 1000 ~ 50 for 30 s", "< 2 ~ 0.125 for 20 ms"] {
            let condition: Condition = text.parse().unwrap();
            assert_eq!(condition.to_string(), text);
        }
        let plain: Condition = ">1000 for 30000ms".parse().unwrap();
        assert_eq!(plain.to_string(), "> 1000 for 30 s");
        for bad in [
            "",
            ">",
            "1000",
            "> a",
            ">= 5",
            "> 1.2345",
            "> +5",
            "> 5 for",
            "> 5 for 3 h",
            "> 5 ~",
            "> 5 ~ -1",
            "> 5 for -3 s",
            "> 5 for +3 s",
            "> 5 for 99999999999 s",
            "> 99999999999999999999",
            "> 9223372036854775807",
        ] {
            assert!(bad.parse::<Condition>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_section_counts_as_the_vms_own_key_has_vouched_for_it_and_not_otherwise() {
        use crate::SecretKey;
        use crate::key::Strict;
        let (k0, other) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let sealed = Specifier {
            measure: "web.income".parse().unwrap(),
            interval_ms: 0,
            delivery: Delivery::Every(0),
            format: Format::Raw,
            sealed: true,
            limit: false,
        };
        let sealing_key = Some(SealingKey([7; 32]));
        let mut whole =
            Monitoring { revision: 1, specifiers: vec![sealed], sealing_key, voucher: None };
        assert!(!whole.is_vouched(&k0.public(), &Strict));
        whole.vouch(|kind, body| k0.sign(kind, body));
        assert!(whole.is_vouched(&k0.public(), &Strict));
        assert!(!whole.is_vouched(&other.public(), &Strict));
        let exchanged = Monitoring { sealing_key: Some(SealingKey([8; 32])), ..whole.clone() };
        assert!(!exchanged.is_vouched(&k0.public(), &Strict));
        let mut opened = whole.clone();
        opened.specifiers[0].sealed = false;
        assert!(!opened.is_vouched(&k0.public(), &Strict), "told in the open");
        let first = Monitoring::default();
        assert!(first.yields_to(&whole, &k0.public(), &Strict));
        assert!(!whole.yields_to(&whole, &k0.public(), &Strict), "not later");
        assert!(!whole.yields_to(&first, &k0.public(), &Strict), "earlier");
        let raised = Monitoring { revision: 2, ..whole.clone() };
        assert!(!whole.yields_to(&raised, &k0.public(), &Strict), "numbered by somebody else");
        let mut endless = whole.clone();
        endless.specifiers = vec![whole.specifiers[0].clone(); limit::MAX_SPECIFIERS + 1];
        endless.vouch(|kind, body| k0.sign(kind, body));
        assert!(!first.yields_to(&endless, &k0.public(), &Strict), "its owner's, and too long");
    }

    #[test]
    fn numbers_are_exact_in_thousandths() {
        for (text, thousandths) in [("0", 0), ("-0.001", -1), ("12.5", 12_500), ("1000", 1_000_000)]
        {
            assert_eq!(text.parse(), Ok(Thousandths(thousandths)));
            assert_eq!(Thousandths(thousandths).to_string(), text);
        }
        assert!((Thousandths(-2_125).value() + 2.125).abs() < f64::EPSILON);
    }

    #[test]
    fn a_section_that_breaks_a_rule_is_refused_with_the_measure() {
        let users = || Specifier {
            measure: "web.users".parse().unwrap(),
            interval_ms: 0,
            delivery: Delivery::Every(0),
            format: Format::Raw,
            sealed: false,
            limit: false,
        };
        let check = |specifier: Specifier| {
            let checked =
                Monitoring { specifiers: vec![specifier], ..Monitoring::default() }.check();
            checked.map_err(|error| error.to_string())
        };
        assert_eq!(check(users()), Ok(()));
        assert_eq!(check(Specifier { sealed: true, ..users() }), Ok(()), "the primary adds a key");
        let column = "x; drop".to_owned();
        let hostile = Measure::Kpi { table: "web".into(), column };
        assert!(check(Specifier { measure: hostile, ..users() }).is_err());
        let condition = Condition { hysteresis: Thousandths(-1), .."> 1".parse().unwrap() };
        let negative = Specifier { delivery: Delivery::When(condition), ..users() };
        assert!(check(negative).is_err());
        assert!(check(Specifier { limit: true, ..users() }).is_err(), "nothing can break it");
        let condition = Delivery::When("> 1".parse().unwrap());
        assert_eq!(check(Specifier { limit: true, delivery: condition, ..users() }), Ok(()));
        let file: Measure = "encrypted/balance".parse().unwrap();
        let plain = Specifier { measure: file, ..users() };
        assert_eq!(check(plain.clone()), Ok(()));
        assert!(check(Specifier { format: Format::Mean, ..plain.clone() }).is_err());
        let condition = Delivery::When("> 1".parse().unwrap());
        assert!(check(Specifier { delivery: condition, ..plain }).is_err());
        let many = vec![users(); limit::MAX_SPECIFIERS + 1];
        assert!(Monitoring { specifiers: many, ..Monitoring::default() }.check().is_err());
    }
}
