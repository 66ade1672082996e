//! Times as devices write them.
//!
//! * text: RFC 3339 (`2024-02-13T16:32:59.931Z`), or the digits of a number
//! * number, fractions allowed: Unix time in seconds below 1e11 (year 5138), in milliseconds below 1e14, else in
//!   microseconds
//!
//! Only the years 1970 to 9999 count: anything else, most of all a negative time, Kafka would not take.

use chrono::DateTime;

use super::scan::Scalar;
use crate::record::UnixMicros;

/// The largest time, 9999-12-31T23:59:59.999999Z.
const UNIX_MICROS_MAX: i64 = 253_402_300_799_999_999;

/// The time that `scalar` is.
pub fn from_scalar(scalar: &Scalar<'_>) -> Option<UnixMicros> {
    match scalar {
        Scalar::Text(text) => from_text(text),
        Scalar::Unsigned(number) => from_integer(*number),
        Scalar::Float(number) => from_float(*number),
        Scalar::Signed(_) | Scalar::Other => None,
    }
}

/// The time that `text` is.
pub fn from_text(text: &str) -> Option<UnixMicros> {
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) => in_range(time.timestamp_micros()),
        Err(_) => match text.parse() {
            Ok(number) => from_integer(number),
            Err(_) => from_float(text.parse().ok()?),
        },
    }
}

/// The time that `number` is.
pub fn from_number(number: &serde_json::Number) -> Option<UnixMicros> {
    number.as_u64().map_or_else(|| from_float(number.as_f64()?), from_integer)
}

/// The time that `number` is, by its size.
pub fn from_integer(number: u64) -> Option<UnixMicros> {
    let micros_each = match number {
        ..100_000_000_000 => 1_000_000,
        ..100_000_000_000_000 => 1_000,
        _ => 1,
    };
    in_range(i64::try_from(number.checked_mul(micros_each)?).ok()?)
}

fn from_float(number: f64) -> Option<UnixMicros> {
    let micros_each = match number {
        0.0..1e11 => 1e6,
        1e11..1e14 => 1e3,
        1e14..1e18 => 1.0,
        _ => return None,
    };
    #[allow(clippy::cast_possible_truncation, reason = "below 1e18 by the match")]
    let micros = (number * micros_each).round() as i64;
    in_range(micros)
}

fn in_range(micros: i64) -> Option<UnixMicros> {
    (0..=UNIX_MICROS_MAX).contains(&micros).then_some(UnixMicros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_in_every_form() {
        let check = |text: &str, expected: Option<i64>| {
            assert_eq!(from_text(text), expected.map(UnixMicros), "{text}");
        };
        check("2024-02-13T16:32:59.931Z", Some(1_707_841_979_931_000));
        check("2024-02-13T18:32:59.931+02:00", Some(1_707_841_979_931_000));
        check("2016-12-31T23:59:60Z", Some(1_483_228_800_000_000));
        check("1707841979", Some(1_707_841_979_000_000));
        check("1707841979.931", Some(1_707_841_979_931_000));
        check("1707841979931", Some(1_707_841_979_931_000));
        check("1707841979931123", Some(1_707_841_979_931_123));
        check("0", Some(0));
        // No zone: nobody knows which moment that is.
        check("2024-02-24T22:20:38", None);
        for wrong in
            ["", "-1", "now", "NaN", "inf", "1e300", "1969-12-31T23:59:59Z", "18446744073709551615", "1e17"]
        {
            check(wrong, if wrong == "1e17" { Some(100_000_000_000_000_000) } else { None });
        }
    }
}
