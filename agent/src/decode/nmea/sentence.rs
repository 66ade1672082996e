//! From the text of a sentence to what it says about a position.
//!
//! The crate `nmea` reads the fields. Where it refuses a sentence, the position is still read from the fields themselves, so
//! that it is not lost for the sake of another field: GNS with three or more systems, GLL without a mode (NMEA before
//! 2.3), RMC and GGA with a field left out. Times and places are always read here, because the
//! crate knows no leap second and takes minutes beyond the 60th.

use std::ops::RangeInclusive;

use chrono::{Datelike as _, NaiveDate};
use nmea::{
    NmeaSentence, SentenceType,
    sentences::{parse_gga, parse_gll, parse_gns, parse_rmc, parse_vtg, parse_zda, rmc::RmcStatusOfFix},
};

use super::super::reading::Fix;

/// Metres per second in a knot.
const MPS_PER_KNOT: f64 = 1852.0 / 3600.0;

/// The years that a date may have: GPS counts from 1980, and times are written with four digits.
const YEARS: RangeInclusive<i32> = 1980..=9999;

/// What a sentence is to the decoder.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sentence {
    /// It says something about a position.
    Part(Box<Part>),
    /// It supports a fix: GSA, GSV, GST, GBS, GRS.
    Support,
    /// Anything else.
    Other,
}

/// The types that make a position, by the rank of the place that they give: GGA and GNS come with the quality of the fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Gga,
    Gns,
    Rmc,
    Gll,
    Vtg,
    Zda,
}

impl Kind {
    pub(super) const COUNT: usize = 6;
}

/// What one sentence says about a position. Absent is what it does not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) kind: Kind,
    /// Two characters: which system the sentence is from.
    pub(super) talker: [u8; 2],
    /// Milliseconds of the day, UTC.
    pub(super) time_ms: Option<u32>,
    pub(super) date: Option<NaiveDate>,
    /// How the fix was found; [`Fix::None`] if the receiver says that it has none. Absent in VTG and ZDA.
    pub(super) fix: Option<Fix>,
    /// Latitude and longitude, degrees.
    pub(super) place: Option<(f64, f64)>,
    pub(super) altitude_m: Option<f64>,
    pub(super) speed_mps: Option<f64>,
    pub(super) course_deg: Option<f64>,
    pub(super) satellites: Option<u32>,
    pub(super) hdop: Option<f64>,
}

impl Sentence {
    /// Reads a sentence that the framer found.
    pub(super) fn parse(text: &str) -> Self {
        let Some((address, data)) = text
            .strip_prefix('$')
            .and_then(|text| text.split_once('*'))
            .and_then(|(text, _checksum)| text.split_once(','))
        else {
            return Self::Other;
        };
        let &[t0, t1, ref kind @ ..] = address.as_bytes() else { return Self::Other };
        // $P is a maker's own (PGRMC is no RMC), but for QZSS as Quectel writes it.
        if t0 == b'P' && t1 != b'Q' {
            return Self::Other;
        }
        let kind = match kind {
            b"GGA" => Kind::Gga,
            b"GNS" => Kind::Gns,
            b"RMC" => Kind::Rmc,
            b"GLL" => Kind::Gll,
            b"VTG" => Kind::Vtg,
            b"ZDA" => Kind::Zda,
            b"GSA" | b"GSV" | b"GST" | b"GBS" | b"GRS" => return Self::Support,
            _ => return Self::Other,
        };
        Self::Part(Box::new(Part::parse(kind, [t0, t1], data)))
    }
}

impl Part {
    fn empty(kind: Kind, talker: [u8; 2]) -> Self {
        Self {
            kind,
            talker,
            time_ms: None,
            date: None,
            fix: None,
            place: None,
            altitude_m: None,
            speed_mps: None,
            course_deg: None,
            satellites: None,
            hdop: None,
        }
    }

    fn parse(kind: Kind, talker: [u8; 2], data: &str) -> Self {
        let fields = Fields::new(kind, data);
        let mut part = fields.read_by_crate(talker).unwrap_or_else(|| fields.read(talker));
        part.time_ms = fields.time_ms();
        part.date = part.date.filter(|date| YEARS.contains(&date.year()));
        part.place = fields.place().filter(|(lat, lon)| lat.abs() <= 90.0 && lon.abs() <= 180.0);
        part.speed_mps = part.speed_mps.filter(|speed| *speed >= 0.0);
        part.course_deg = part.course_deg.filter(|course| (0.0..=360.0).contains(course));
        part.hdop = part.hdop.filter(|hdop| *hdop >= 0.0);
        part
    }
}

/// The fields between the commas, by their number.
struct Fields<'a> {
    kind: Kind,
    data: &'a str,
    fields: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    fn new(kind: Kind, data: &'a str) -> Self {
        Self { kind, data, fields: data.split(',').collect() }
    }

    fn get(&self, index: usize) -> &'a str {
        self.fields.get(index).copied().unwrap_or_default()
    }

    fn number(&self, index: usize) -> Option<f64> {
        self.get(index).parse().ok().filter(|number: &f64| number.is_finite())
    }

    fn time_index(&self) -> Option<usize> {
        match self.kind {
            Kind::Gga | Kind::Gns | Kind::Rmc | Kind::Zda => Some(0),
            Kind::Gll => Some(4),
            Kind::Vtg => None,
        }
    }

    /// `hhmmss` and any decimals, rounded to milliseconds.
    fn time_ms(&self) -> Option<u32> {
        let text = self.get(self.time_index()?);
        let (hhmm, seconds) = text.split_at_checked(4)?;
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if !digits(hhmm) || !digits(seconds.get(..2)?) {
            return None;
        }
        let (hours, minutes): (u32, u32) = (hhmm[..2].parse().ok()?, hhmm[2..].parse().ok()?);
        let seconds = seconds.parse().ok().filter(|seconds: &f64| (0.0..61.0).contains(seconds))?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 61 000")]
        let ms = (seconds * 1000.0).round() as u32;
        (hours < 24 && minutes < 60).then(|| (hours * 60 + minutes) * 60_000 + ms)
    }

    /// Latitude, N or S, longitude, E or W.
    fn place(&self) -> Option<(f64, f64)> {
        let index = match self.kind {
            Kind::Gga | Kind::Gns => 1,
            Kind::Rmc => 2,
            Kind::Gll => 0,
            Kind::Vtg | Kind::Zda => return None,
        };
        let degrees = |index: usize, degree_digits: usize, plus: &str, minus: &str| {
            let (degrees, minutes) = self.get(index).split_at_checked(degree_digits)?;
            let minutes: f64 = minutes.parse().ok().filter(|minutes| (0.0..60.0).contains(minutes))?;
            let angle = f64::from(degrees.parse::<u8>().ok()?) + minutes / 60.0;
            match self.get(index + 1) {
                hemisphere if hemisphere == plus => Some(angle),
                hemisphere if hemisphere == minus => Some(-angle),
                _ => None,
            }
        };
        Some((degrees(index, 2, "N", "S")?, degrees(index + 2, 3, "E", "W")?))
    }

    /// The sentence as the crate reads it, `None` if it refuses.
    fn read_by_crate(&self, talker: [u8; 2]) -> Option<Part> {
        let without_time: String;
        let data = match self.time_index() {
            Some(0) => &self.data[self.get(0).len()..],
            Some(index) => {
                let mut fields = self.fields.clone();
                *fields.get_mut(index)? = "";
                without_time = fields.join(",");
                &without_time
            }
            None => self.data,
        };
        // The checksum was the framer's to check; the crate's own entry would refuse more than 102 bytes.
        let sentence = |message_id| NmeaSentence { talker_id: "GP", message_id, data, checksum: 0 };
        let empty = Part::empty(self.kind, talker);
        Some(match self.kind {
            Kind::Gga => {
                let gga = parse_gga(sentence(SentenceType::GGA)).ok()?;
                Part {
                    fix: self.quality(),
                    altitude_m: finite(gga.altitude),
                    satellites: gga.fix_satellites,
                    hdop: finite(gga.hdop),
                    ..empty
                }
            }
            Kind::Gns => {
                let gns = parse_gns(sentence(SentenceType::GNS)).ok()?;
                Part {
                    fix: Some(fix_of_modes(self.get(5))),
                    altitude_m: finite(gns.alt),
                    satellites: Some(gns.nsattelites.into()),
                    hdop: finite(gns.hdop),
                    ..empty
                }
            }
            Kind::Rmc => {
                let rmc = parse_rmc(sentence(SentenceType::RMC)).ok()?;
                let valid = rmc.status_of_fix != RmcStatusOfFix::Invalid;
                Part {
                    date: rmc.fix_date,
                    fix: Some(fix_of_status(valid, self.get(11))),
                    speed_mps: finite(rmc.speed_over_ground).map(|knots| knots * MPS_PER_KNOT),
                    course_deg: finite(rmc.true_course),
                    ..empty
                }
            }
            Kind::Gll => {
                let gll = parse_gll(sentence(SentenceType::GLL)).ok()?;
                Part { fix: Some(fix_of_status(gll.valid, self.get(6))), ..empty }
            }
            Kind::Vtg => {
                let vtg = parse_vtg(sentence(SentenceType::VTG)).ok()?;
                Part {
                    speed_mps: finite(vtg.speed_over_ground).map(|knots| knots * MPS_PER_KNOT),
                    course_deg: finite(vtg.true_course),
                    ..empty
                }
            }
            Kind::Zda => Part { date: parse_zda(sentence(SentenceType::ZDA)).ok()?.utc_date(), ..empty },
        })
    }

    /// The sentence by its fields alone, each as far as it can be read.
    fn read(&self, talker: [u8; 2]) -> Part {
        let empty = Part::empty(self.kind, talker);
        match self.kind {
            Kind::Gga => Part {
                fix: self.quality().or(Some(Fix::None)),
                altitude_m: self.number(8),
                satellites: self.get(6).parse().ok(),
                hdop: self.number(7),
                ..empty
            },
            Kind::Gns => Part {
                fix: Some(fix_of_modes(self.get(5))),
                altitude_m: self.number(8),
                satellites: self.get(6).parse().ok(),
                hdop: self.number(7),
                ..empty
            },
            Kind::Rmc => Part {
                date: self.date(8),
                fix: Some(fix_of_status(matches!(self.get(1), "A" | "D"), self.get(11))),
                speed_mps: self.number(6).map(|knots| knots * MPS_PER_KNOT),
                course_deg: self.number(7),
                ..empty
            },
            Kind::Gll => Part { fix: Some(fix_of_status(self.get(5) == "A", self.get(6))), ..empty },
            Kind::Vtg => Part {
                speed_mps: self
                    .number(4)
                    .map(|knots| knots * MPS_PER_KNOT)
                    .or_else(|| self.number(6).map(|km_h| km_h / 3.6)),
                course_deg: self.number(0),
                ..empty
            },
            Kind::Zda => empty,
        }
    }

    /// The quality of GGA, absent if the field is no digit.
    fn quality(&self) -> Option<Fix> {
        self.get(5).parse().ok().map(Fix::from_gga)
    }

    /// `ddmmyy`, of the years 1983 to 2082: the standard is of 1983.
    fn date(&self, index: usize) -> Option<NaiveDate> {
        let text = self.get(index);
        let number = |at: usize| text.get(at..at + 2)?.parse::<u8>().ok();
        let (day, month, year) = (number(0)?, number(2)?, i32::from(number(4)?));
        let century = if year < 83 { 2000 } else { 1900 };
        NaiveDate::from_ymd_opt(century + year, month.into(), day.into())
    }
}

fn finite(number: Option<f32>) -> Option<f64> {
    number.map(f64::from).filter(|number| number.is_finite())
}

/// The mode of one system, from NMEA 2.3 on.
fn fix_of_mode(mode: char) -> Fix {
    match mode {
        'A' => Fix::Gnss,
        'D' | 'P' => Fix::Differential,
        'R' => Fix::RtkFixed,
        'F' => Fix::RtkFloat,
        'E' => Fix::DeadReckoning,
        'M' => Fix::Manual,
        'S' => Fix::Simulated,
        'N' => Fix::None,
        _ => Fix::Unknown,
    }
}

/// The best of the modes of several systems, one letter each.
fn fix_of_modes(modes: &str) -> Fix {
    "RFDPAEMS".chars().find(|&mode| modes.contains(mode)).map_or(Fix::None, fix_of_mode)
}

/// Of a sentence that says whether the fix is valid and, from NMEA 2.3 on, the mode; it may be absent.
fn fix_of_status(valid: bool, mode: &str) -> Fix {
    match mode.chars().next() {
        _ if !valid => Fix::None,
        Some(mode) => fix_of_mode(mode),
        None => Fix::Gnss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str) -> Part {
        match Sentence::parse(&format!("${text}*00")) {
            Sentence::Part(part) => *part,
            other => panic!("{text}: {other:?}"),
        }
    }

    /// Both ways of reading agree on `text`, but for what comes as f32 from the crate.
    fn check_both(text: &str) {
        let (address, data) = text.split_once(',').unwrap();
        let kind = part(text).kind;
        let fields = Fields::new(kind, data);
        let by_crate = fields.read_by_crate(*b"GN").unwrap_or_else(|| panic!("the crate refuses {address}"));
        let own = fields.read(*b"GN");
        let close = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-4,
            (a, b) => a == b,
        };
        assert_eq!((by_crate.date, by_crate.fix), (own.date, own.fix), "{text}");
        assert_eq!(by_crate.satellites, own.satellites, "{text}");
        assert!(close(by_crate.speed_mps, own.speed_mps), "{text}");
        assert!(close(by_crate.course_deg, own.course_deg), "{text}");
        assert!(close(by_crate.altitude_m, own.altitude_m), "{text}");
        assert!(close(by_crate.hdop, own.hdop), "{text}");
    }

    #[test]
    fn sentence_reads_the_same_with_and_without_the_crate() {
        check_both("GNRMC,055234.000,A,4739.71890,N,12219.58362,W,1.31,286.35,050826,,,A,V");
        check_both("GPRMC,,V,,,,,,,,,,N");
        check_both("GNGGA,071551.000,4739.71754,N,12219.58177,W,1,17,0.8,77.5,M,-21.6,M,,");
        check_both("GPGGA,,,,,,0,,,,,,,,");
        check_both("GNGLL,4739.71754,N,12219.58177,W,071551.000,A,A");
        check_both("GNVTG,286.35,T,,M,0.50,N,0.93,K,A");
        check_both("GPGNS,224749.00,3333.4268304,N,11153.3538273,W,D,19,0.6,406.110,-26.294,6.0,0138,S");
    }

    #[test]
    fn position_is_read_where_the_crate_refuses() {
        let place = Some((33.0 + 33.4268304 / 60.0, -(111.0 + 53.3538273 / 60.0)));
        // Four systems; no mode; no magnetic variation; no quality of 9 in the crate.
        let gns = part("GNGNS,224749.00,3333.4268304,N,11153.3538273,W,ANDN,19,0.6,406.1,-26.2,6.0,,S");
        assert_eq!((gns.place, gns.fix, gns.satellites), (place, Some(Fix::Differential), Some(19)));
        let gll = part("GPGLL,3333.4268304,N,11153.3538273,W,224749,A");
        assert_eq!((gll.place, gll.fix, gll.time_ms), (place, Some(Fix::Gnss), Some(82_069_000)));
        let rmc = part("GPRMC,224749,A,3333.4268304,N,11153.3538273,W,10,90,311299");
        assert_eq!((rmc.place, rmc.fix), (place, Some(Fix::Gnss)));
        assert_eq!(rmc.date, NaiveDate::from_ymd_opt(1999, 12, 31));
        assert!((rmc.speed_mps.unwrap() - 5.144444).abs() < 1e-6);
        let gga = part("GPGGA,224749,3333.4268304,N,11153.3538273,W,9,,,,,,,,");
        assert_eq!((gga.place, gga.fix), (place, Some(Fix::Unknown)));
    }

    #[test]
    fn time_knows_the_leap_second_and_refuses_nonsense() {
        let check = |time: &str, expected: Option<u32>| {
            let rmc = part(&format!("GPRMC,{time},A,4739.7,N,12219.5,W,,,311216,,,A"));
            assert_eq!(rmc.time_ms, expected, "{time}");
            assert!(rmc.place.is_some(), "{time}: the place does not hang on the time");
        };
        check("235960.50", Some(86_400_500));
        check("000000", Some(0));
        check("071551.2", Some(26_151_200));
        for nonsense in
            ["", "1", "12345", "240000", "126000", "123461", "1234-1", "12345x", "+11111", "12é456"]
        {
            check(nonsense, None);
        }
    }

    #[test]
    fn sentences_of_makers_are_no_positions() {
        for text in [
            "$PGRMC,A,1*00",
            "$PUBX,00,1*00",
            "$GPTXT,x*00",
            "$GPRMCX,x*00",
            "$RMC,x*00",
            "!AIVDM,1,1,,A,x,0*00",
        ] {
            assert_eq!(Sentence::parse(text), Sentence::Other, "{text}");
        }
        for text in ["$PQGSV,x*00", "$GAGSA,x*00"] {
            assert_eq!(Sentence::parse(text), Sentence::Support, "{text}");
        }
    }

    /// Found by the fuzz target `nmea`: a course of 999.9 degrees and a negative speed went to Kafka as they came.
    #[test]
    fn motion_out_of_range_is_none() {
        let check = |text: &str, expected: [bool; 3]| {
            let part = part(text);
            let found = [part.speed_mps, part.course_deg, part.hdop].map(|value| value.is_some());
            assert_eq!(found, expected, "{text}");
        };
        check("GPRMC,224749,A,4739.7,N,12219.5,W,0.0,360.0,311299,,,A", [true, true, false]);
        check("GPRMC,224749,A,4739.7,N,12219.5,W,-1.0,999.9,311299,,,A", [false; 3]);
        check("GPVTG,-0.1,T,,M,,N,-1.0,K,A", [false; 3]);
        check("GPGGA,224749,4739.7,N,12219.5,W,1,17,0.8,-77.5,M,,M,,", [false, false, true]);
        check("GPGGA,224749,4739.7,N,12219.5,W,1,17,-0.8,,M,,M,,", [false; 3]);
    }

    #[test]
    fn date_that_no_calendar_has_is_none() {
        for date in
            ["310226", "290225", "000126", "320126", "010026", "011326", "-10126", "1e0126", "01012", "é0126"]
        {
            let rmc = part(&format!("GPRMC,224749,A,4739.7,N,12219.5,W,,,{date},,,A"));
            assert_eq!(rmc.date, None, "{date}");
            assert!(rmc.place.is_some(), "{date}: the place does not hang on the date");
        }
        for date in ["31,02,2026", "00,00,0000", "01,01,0000", "01,01,1979", "01,01,99999", "01,01,-1"] {
            assert_eq!(part(&format!("GPZDA,224749,{date},00,00")).date, None, "{date}");
        }
        assert!(part("GPZDA,224749,01,01,1980,00,00").date.is_some());
    }

    #[test]
    fn place_out_of_range_is_none() {
        for place in ["9100.0,N,00000.0,E", "0000.0,N,18100.0,E", "nan,N,nan,E", "4739.7,N,,"] {
            assert_eq!(part(&format!("GPGGA,224749,{place},1,,,,,,,,")).place, None, "{place}");
        }
    }
}
