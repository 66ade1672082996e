//! RFC 3339 time stamps at load rates.

use std::fmt::Write as _;

use chrono::DateTime;

/// Formats Unix microseconds as RFC 3339 UTC with six decimals. The text of the current second is kept: calendar arithmetic a
/// reading would cost more than all the rest of its JSON.
#[derive(Debug, Default)]
pub struct Stamps {
    second: Option<u64>,
    text: String,
}

impl Stamps {
    const SECOND_LENGTH: usize = "2026-01-02T03:04:05".len();

    /// The time stamp of `unix_micros`; years after 9999 come out as 1970.
    pub fn format(&mut self, unix_micros: u64) -> &str {
        let second = unix_micros / 1_000_000;
        if self.second != Some(second) {
            let time = DateTime::from_timestamp(i64::try_from(second).unwrap_or(0), 0).unwrap_or_default();
            let time = if time.timestamp() < 253_402_300_800 { time } else { DateTime::default() };
            self.text = time.format("%Y-%m-%dT%H:%M:%S").to_string();
            self.second = Some(second);
        }
        self.text.truncate(Self::SECOND_LENGTH);
        let _ = write!(self.text, ".{:06}Z", unix_micros % 1_000_000);
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_rfc_3339_with_microseconds() {
        let mut stamps = Stamps::default();
        assert_eq!(stamps.format(1_793_336_706_000_042), "2026-10-30T05:05:06.000042Z");
        assert_eq!(stamps.format(1_793_336_706_999_999), "2026-10-30T05:05:06.999999Z");
        assert_eq!(stamps.format(1_793_336_707_000_000), "2026-10-30T05:05:07.000000Z");
        assert_eq!(stamps.format(u64::MAX).len(), 27);
    }
}
