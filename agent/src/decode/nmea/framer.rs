//! Finds sentences in a stream of bytes: `$` or `!`, printable characters, `*`, two hex digits.
//!
//! It looks for the start and the checksum, not for line ends: on a line that a binary protocol shares, a line end may
//! belong to either. When what was collected turns out to be no sentence, the search goes on at the next start byte inside
//! of it, so that the remains of one sentence cannot swallow the following one.

/// Longest sentence without its line end. The standard has 82 with it; 107 occur (RTK, eight decimals).
pub const SENTENCE_BYTES_MAX: usize = 120;

/// What was seen on a line. Bytes count once: as part of a sentence, sound or damaged, or as skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FramerCounters {
    /// Sentences with a right checksum.
    pub sentences: u64,
    /// Well-framed sentences with a wrong checksum.
    pub wrong_checksums: u64,
    /// Lines like sentences, without a checksum.
    pub no_checksums: u64,
    /// Bytes that belong to no sentence. Line ends do not count.
    pub skipped_bytes: u64,
}

/// A sentence, without its line end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framed<'a> {
    /// With a right checksum.
    Sentence(&'a str),
    /// With a wrong checksum.
    WrongChecksum(&'a str),
    /// Ended by a line end, without a checksum. Nobody can tell whether it is what was sent.
    NoChecksum(&'a str),
}

/// Takes any chunks of a stream.
#[derive(Clone, Debug)]
pub(super) struct Framer {
    /// A start byte and what followed; empty between sentences.
    buffer: [u8; SENTENCE_BYTES_MAX],
    len: usize,
    counters: FramerCounters,
}

impl Default for Framer {
    fn default() -> Self {
        Self { buffer: [0; SENTENCE_BYTES_MAX], len: 0, counters: FramerCounters::default() }
    }
}

/// What the buffer is after one more byte.
enum Verdict {
    /// The beginning of a sentence, so far.
    Open,
    Sentence,
    WrongChecksum,
    NoChecksum,
    /// No sentence will come of it.
    Broken,
}

impl Framer {
    /// Takes `bytes` and hands every sentence that they complete to `on_framed`, in order.
    pub(super) fn push(&mut self, bytes: &[u8], on_framed: &mut dyn FnMut(Framed<'_>)) {
        for &byte in bytes {
            self.push_byte(byte, on_framed);
        }
    }

    /// Forgets the sentence that has begun; its bytes count as skipped.
    pub(super) fn reset(&mut self) {
        self.skip(self.len);
        self.len = 0;
    }

    pub(super) fn counters(&self) -> FramerCounters {
        self.counters
    }

    fn skip(&mut self, bytes: usize) {
        self.counters.skipped_bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    fn push_byte(&mut self, byte: u8, on_framed: &mut dyn FnMut(Framed<'_>)) {
        if self.len == 0 && !is_start(byte) {
            return self.skip(usize::from(!is_line_end(byte)));
        }
        self.buffer[self.len] = byte;
        self.len += 1;
        let verdict = judge(&self.buffer[..self.len]);
        if matches!(verdict, Verdict::Open) {
            return;
        }
        let (buffer, len) = (self.buffer, std::mem::take(&mut self.len));
        let collected = &buffer[..len];
        let (counter, framed): (_, fn(_) -> _) = match verdict {
            Verdict::Sentence => (&mut self.counters.sentences, Framed::Sentence),
            // What looks like one damaged sentence may be the remains of one and a sound one behind.
            _ if collected[1..].iter().any(|&b| is_start(b)) => return self.retry(collected, on_framed),
            Verdict::WrongChecksum => (&mut self.counters.wrong_checksums, Framed::WrongChecksum),
            Verdict::NoChecksum => (&mut self.counters.no_checksums, Framed::NoChecksum),
            Verdict::Open | Verdict::Broken => {
                let line_end = collected.last().is_some_and(|&b| is_line_end(b));
                return self.skip(len - usize::from(line_end));
            }
        };
        *counter += 1;
        let text = collected.strip_suffix(b"\r").or(collected.strip_suffix(b"\n")).unwrap_or(collected);
        on_framed(framed(std::str::from_utf8(text).expect("judged to be ASCII")));
    }

    /// Searches again in what was no sentence, from the next start byte on. Each turn drops at least one byte of at most
    /// [`SENTENCE_BYTES_MAX`], so the time for a byte is bounded.
    fn retry(&mut self, collected: &[u8], on_framed: &mut dyn FnMut(Framed<'_>)) {
        let next = 1 + collected[1..].iter().position(|&b| is_start(b)).unwrap_or(collected.len() - 1);
        self.skip(next);
        self.push(&collected[next..], on_framed);
    }
}

fn is_start(byte: u8) -> bool {
    matches!(byte, b'$' | b'!')
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// Judges a start byte and what followed, whose last byte is new.
fn judge(collected: &[u8]) -> Verdict {
    if let [start @ .., b'*', high, low] = collected
        && let (Some(high), Some(low)) = (hex(*high), hex(*low))
    {
        let sum = start[1..].iter().fold(0, |sum, byte| sum ^ byte);
        return match () {
            () if !has_address(start) => Verdict::Broken,
            () if sum == high << 4 | low => Verdict::Sentence,
            () => Verdict::WrongChecksum,
        };
    }
    match collected {
        [start @ .., b'\r' | b'\n'] if has_address(start) && !start.contains(&b'*') => Verdict::NoChecksum,
        [.., b' '..=b'~'] if collected.len() < SENTENCE_BYTES_MAX => Verdict::Open,
        _ => Verdict::Broken,
    }
}

/// Whether `sentence` starts like one: `$`, three or more capitals and digits, a comma.
fn has_address(sentence: &[u8]) -> bool {
    let address = sentence[1..].iter().take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit()).count();
    address >= 3 && sentence.get(1 + address) == Some(&b',')
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RMC: &str = "$GNRMC,055234.000,A,4739.71890,N,12219.58362,W,0.00,286.35,050826,,,A,V*13";
    const AIS: &str = "!AIVDM,2,2,9,B,`88888888888880,2*76";

    fn framed(bytes: &[u8], chunk: usize) -> (Vec<String>, FramerCounters) {
        let mut framer = Framer::default();
        let mut found = Vec::new();
        for part in bytes.chunks(chunk) {
            framer.push(part, &mut |framed| {
                found.push(match framed {
                    Framed::Sentence(text) => text.to_owned(),
                    Framed::WrongChecksum(text) => format!("wrong {text}"),
                    Framed::NoChecksum(text) => format!("none {text}"),
                });
            });
        }
        (found, framer.counters())
    }

    fn check(bytes: impl AsRef<[u8]>, expected: &[&str], skipped_bytes: u64) {
        let bytes = bytes.as_ref();
        let (found, counters) = framed(bytes, bytes.len().max(1));
        assert_eq!(found, expected, "{}", bytes.escape_ascii());
        assert_eq!(counters.skipped_bytes, skipped_bytes, "{}", bytes.escape_ascii());
    }

    #[test]
    fn framer_takes_any_line_end() {
        for end in ["\r\n", "\n", "\r", "", "\n\r"] {
            check(format!("{RMC}{end}{AIS}{end}"), &[RMC, AIS], 0);
        }
    }

    #[test]
    fn framer_resyncs_after_a_cut_sentence() {
        check(format!("$GNZDA,071551.000,06,{RMC}\r\n"), &[RMC], 21);
        check(format!("$GNZDA,071551.000,06,\r\n{RMC}"), &["none $GNZDA,071551.000,06,", RMC], 0);
        check(format!("!AIVDM,1,1,,A,13aDq3{RMC}"), &[RMC], 20);
        check(format!("$GNRMC,0{AIS}"), &[AIS], 8);
    }

    #[test]
    fn framer_finds_sentences_between_binary() {
        let mut bytes = b"\xba\xce\x10\x00$\x01\x12!\xff*".to_vec();
        bytes.extend(RMC.bytes());
        bytes.extend(b"\r\n\xba\xce$GN*00$*13!");
        bytes.extend(AIS.bytes());
        check(&bytes, &[RMC, AIS], 23);
    }

    #[test]
    fn framer_keeps_a_sentence_with_a_start_byte_in_its_text() {
        check("$GNTXT,01,01,02,hello!*10", &["$GNTXT,01,01,02,hello!*10"], 0);
    }

    #[test]
    fn framer_reports_wrong_checksums() {
        let wrong = RMC.replace("286", "287");
        check(format!("{wrong}\r\n{RMC}\r\n"), &[&format!("wrong {wrong}"), RMC], 0);
        check("$GPGGA*56\r\n", &[], 9);
    }

    #[test]
    fn framer_ends_an_overlong_sentence() {
        let mut long = "$GPTXT,".to_owned();
        long.push_str(&"x".repeat(SENTENCE_BYTES_MAX));
        let skipped = u64::try_from(long.len()).unwrap();
        check(format!("{long}\r\n{RMC}\r\n"), &[RMC], skipped);
        check("$".repeat(1000), &[], 1000 - 119);
    }

    proptest! {
        #[test]
        fn framer_gives_the_same_for_any_chunks(
            parts in prop::collection::vec(
                prop_oneof![
                    Just(RMC.as_bytes().to_vec()),
                    Just(AIS.as_bytes().to_vec()),
                    Just(b"\r\n".to_vec()),
                    Just(b"$GPGGA,".to_vec()),
                    prop::collection::vec(prop::sample::select(&b"$!*,A09\r\n\xff"[..]), 0..40),
                    prop::collection::vec(any::<u8>(), 0..40),
                ],
                0..12,
            ),
            chunk in 1usize..50,
        ) {
            let bytes = parts.concat();
            let whole = framed(&bytes, bytes.len().max(1));
            prop_assert_eq!(framed(&bytes, chunk), whole);
        }

        #[test]
        fn framer_finds_a_sentence_behind_anything(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = noise;
            bytes.extend(RMC.bytes());
            bytes.extend(b"\r\n");
            // Noise may end in the middle of a sentence, but it never hides the one behind.
            let (found, _) = framed(&bytes, 7);
            prop_assert_eq!(found.last().map(String::as_str), Some(RMC));
        }
    }
}
