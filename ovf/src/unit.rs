//! Numbers and units: DSP0004 programmatic units, as far as they count bytes, and the older words.

use model::Bytes;

use crate::fault::{Problem, cut};

/// A whole number that is not negative.
pub(crate) fn number(what: &'static str, text: &str) -> Result<u64, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().ok_or_else(|| Problem::Value {
        what,
        got: cut(text),
        wanted: "a whole number of 64 bits is expected",
    })
}

/// `quantity` in `units`, in bytes.
pub(crate) fn bytes(what: &'static str, quantity: &str, units: &str) -> Result<Bytes, Problem> {
    let unit = factor(units).ok_or_else(|| Problem::Value {
        what: "the allocation unit",
        got: cut(units),
        wanted: "a unit of bytes such as \"byte * 2^20\" is expected",
    })?;
    number(what, quantity)?.checked_mul(unit).map(Bytes).ok_or_else(|| Problem::Value {
        what,
        got: cut(&format!("{quantity} {units}")),
        wanted: "a size below 2^64 bytes is expected",
    })
}

/// How many bytes one unit has.
fn factor(units: &str) -> Option<u64> {
    let plain: String = units.chars().filter(|c| !c.is_whitespace()).collect();
    let plain = plain.to_ascii_lowercase();
    Some(match plain.as_str() {
        "byte" | "bytes" | "b" => 1,
        // The words of OVF 1.0, which mean powers of two wherever they are written.
        "kilobytes" | "kilobyte" | "kb" => 1 << 10,
        "megabytes" | "megabyte" | "mb" => 1 << 20,
        "gigabytes" | "gigabyte" | "gb" => 1 << 30,
        "terabytes" | "terabyte" | "tb" => 1 << 40,
        _ => {
            let multiplier = plain.strip_prefix("byte*")?;
            let (base, exponent) = multiplier.split_once('^').unwrap_or((multiplier, "1"));
            base.parse::<u64>().ok()?.checked_pow(exponent.parse().ok()?)?
        }
    })
}

/// A decimal number with at most three digits after the point, in thousandths.
pub(crate) fn thousandths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "000"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_as_the_tools_write_them() {
        for (quantity, units, wanted) in [
            ("512", "MegaBytes", Bytes::mib(512)),
            ("512", "byte * 2^20", Bytes::mib(512)),
            ("2", "byte*2^30", Bytes::mib(2048)),
            ("3", "byte * 10^6", Bytes(3_000_000)),
            ("4", "byte * 1024", Bytes(4096)),
            ("0", "byte", Bytes(0)),
        ] {
            assert_eq!(bytes("memory", quantity, units), Ok(wanted), "{quantity} {units}");
        }
    }

    #[test]
    fn silly_units_and_numbers_are_refused() {
        for (quantity, units) in [
            ("1", "byte * 2^99"),
            ("1", "byte * 2^-1"),
            ("1", "hertz * 10^6"),
            ("1", "bananas"),
            ("1", ""),
            ("-1", "byte"),
            ("+1", "byte"),
            ("1.5", "byte"),
            ("", "byte"),
            ("99999999999999999999", "byte"),
            ("18446744073709551615", "byte * 2^20"),
        ] {
            assert!(bytes("memory", quantity, units).is_err(), "{quantity} {units} was taken");
        }
    }

    #[test]
    fn prices_are_read_in_thousandths() {
        for (text, wanted) in [("1", 1000), ("1.25", 1250), ("0.001", 1), ("12.500", 12_500)] {
            assert_eq!(thousandths(text), Some(wanted));
        }
        for bad in ["", ".", "1.", ".5", "1.2345", "-1", "1,5", "99999999999999999999"] {
            assert_eq!(thousandths(bad), None, "{bad:?} was taken");
        }
    }
}
