//! How people write rates, times, shares and sizes, and how they are shown to them.

use std::time::Duration;

/// Bits per second, as in `100Mbit`, `2.5Gbit/s`.
pub fn rate(text: &str) -> Result<u64, String> {
    let units = [("bit", 1.0), ("kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9)];
    whole(measure(text.strip_suffix("/s").unwrap_or(text), &units, "a rate", "100Mbit")?, text)
}

/// A time, as in `20ms`, `0.2ms`, `150us`, `1s`.
pub fn time(text: &str) -> Result<Duration, String> {
    let units = [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)];
    Ok(Duration::from_nanos(whole(measure(text, &units, "a time", "20ms")?, text)?))
}

/// A share from 0 to 1, as in `0.1%`.
pub fn share(text: &str) -> Result<f64, String> {
    let share = measure(text, &[("%", 0.01)], "a share", "0.1%")?;
    if share > 1.0 {
        Err(format!("{text:?} is more than all: 100% is the most"))
    } else {
        Ok(share)
    }
}

/// Bytes, as in `1MiB`, `64KiB`, `3000B`.
pub fn size(text: &str) -> Result<u64, String> {
    let units = [("B", 1.0), ("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)];
    whole(measure(text, &units, "a size", "1MiB")?, text)
}

fn measure(text: &str, units: &[(&str, f64)], what: &str, like: &str) -> Result<f64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale = units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| scale);
    let number: Option<f64> = number.parse().ok();
    let (Some(number), Some(scale)) = (number, scale) else {
        let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
        let names = names.join(", ");
        return Err(format!("{text:?} is not {what}: a number and {names}, as in {like}"));
    };
    Ok(number * scale)
}

/// The nearest whole number.
fn whole(number: f64, text: &str) -> Result<u64, String> {
    // Up to there a float has every whole number.
    const MOST: f64 = (1_u64 << 53) as f64;
    if number > MOST { Err(format!("{text:?} is too large")) } else { Ok(number.round() as u64) }
}

/// A rate in the largest unit that keeps it above 1, as in `94.2Mbit`.
pub fn show_rate(rate: u64) -> String {
    show(rate as f64, &[("Gbit", 1e9), ("Mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)])
}

/// A time in the largest unit that keeps it above 1, as in `0.2ms`.
pub fn show_time(time: Duration) -> String {
    show(time.as_nanos() as f64, &[("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1.0)])
}

fn show(number: f64, units: &[(&str, f64)]) -> String {
    let largest = units.iter().find(|(_, scale)| number >= *scale);
    let (unit, scale) = largest.or(units.last()).expect("there are units");
    let digits = format!("{:.1}", number / scale);
    format!("{}{unit}", digits.strip_suffix(".0").unwrap_or(&digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        assert_eq!(rate("100Mbit"), Ok(100_000_000));
        assert_eq!(rate("2.5Gbit/s"), Ok(2_500_000_000));
        assert_eq!(rate("9600bit"), Ok(9_600));
        assert_eq!(time("0.2ms"), Ok(Duration::from_micros(200)));
        assert_eq!(time("150us"), Ok(Duration::from_micros(150)));
        assert_eq!(time("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(share("1%"), Ok(0.01));
        assert_eq!(share("0%"), Ok(0.0));
        assert_eq!(size("1MiB"), Ok(1 << 20));
        assert_eq!(size("1500B"), Ok(1_500));
    }

    #[test]
    fn what_could_mean_something_else_is_refused_with_an_example() {
        for text in ["100", "100MB", "100mbit", "Mbit", "-1Mbit", "1e3Mbit", "1.2.3Mbit", ""] {
            let why = rate(text).unwrap_err();
            assert!(why.contains("bit, kbit, Mbit, Gbit, as in 100Mbit"), "{why}");
        }
        assert!(time("20").unwrap_err().contains("as in 20ms"));
        assert!(share("0.01").unwrap_err().contains("as in 0.1%"));
        assert!(share("101%").unwrap_err().contains("100% is the most"));
        assert!(size("1M").unwrap_err().contains("as in 1MiB"));
        assert!(size("99999999999999GiB").unwrap_err().contains("too large"));
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for text in ["100Mbit", "2.5Gbit", "1kbit", "0bit"] {
            assert_eq!(show_rate(rate(text).unwrap()), text);
        }
        assert_eq!(show_time(Duration::from_micros(200)), "200us");
        assert_eq!(show_time(Duration::from_millis(1_500)), "1.5s");
    }
}
