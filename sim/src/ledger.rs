//! The ledger: what was sent and what was acknowledged, one line an event, so that a verifier can hold Kafka against it.
//!
//! ```text
//! #wayside-ledger 1
//! sent<TAB>STREAM<TAB>DEVICE<TAB>ID<TAB>UNIX_MICROS
//! acked<TAB>STREAM<TAB>DEVICE<TAB>ID<TAB>UNIX_MICROS
//! ```
//!
//! `STREAM` is the agent's stream name and `DEVICE` the Kafka key. `ID` is `s<decimal>` where the reading carries a device
//! sequence, else `h<16 hex digits>`, the FNV-1a 64 hash of the payload as published. A `sent` line is written before the
//! bytes leave, once per reading however often it is resent; the `sent` lines of one device are in send order. The same id may be
//! sent several times (recordings repeat), so ids are a multiset: an acknowledgement belongs to the oldest open one.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// First line of every ledger file.
const HEADER: &str = "#wayside-ledger 1";
/// One system call per about 1 500 lines.
const BUFFER_BYTES: usize = 128 * 1024;

/// Names one reading among those of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    /// The sequence that the device gave the reading; Kafka header `wayside.seq`.
    Seq(u64),
    /// FNV-1a 64 of the payload, for readings without a sequence; see [`Id::of_payload`].
    Hash(u64),
}

impl Id {
    /// The id of a reading that carries no sequence. The Kafka value must be the same bytes (route value `raw`).
    pub fn of_payload(payload: &[u8]) -> Self {
        Self::Hash(fnv1a_64(payload))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seq(seq) => write!(f, "s{seq}"),
            Self::Hash(hash) => write!(f, "h{hash:016x}"),
        }
    }
}

impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(seq) = text.strip_prefix('s') {
            return seq.parse().map(Self::Seq).map_err(|_| ());
        }
        match text.strip_prefix('h') {
            Some(hash) if hash.len() == 16 => u64::from_str_radix(hash, 16).map(Self::Hash).map_err(|_| ()),
            _ => Err(()),
        }
    }
}

/// FNV-1a, 64 bits: the offset basis and the prime of draft-eastlake-fnv.
fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The system's wall clock in microseconds since 1970.
pub fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Writes a ledger file. Clones share the file; all methods may be called from any thread.
///
/// The mutex is held for the formatting of one line, never across an await. The first write error sticks: later lines are
/// discarded, and [`flush`](Self::flush) and [`close`](Self::close) report it, since a ledger with a hole proves nothing.
#[derive(Debug, Clone)]
pub struct LedgerWriter {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    file: BufWriter<File>,
    error: Option<io::Error>,
}

impl LedgerWriter {
    /// Creates the file, or empties it, and writes the header.
    ///
    /// # Errors
    /// The operating system's; the caller gives up.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
        writeln!(file, "{HEADER}")?;
        Ok(Self { shared: Arc::new(Mutex::new(State { file, error: None })) })
    }

    /// Notes that the reading is about to leave. `stream` and `device` hold no tab and no line end.
    pub fn sent(&self, stream: &str, device: &str, id: Id, unix_micros: u64) {
        self.line("sent", stream, device, id, unix_micros);
    }

    /// Notes that the reading's acknowledgement has arrived.
    pub fn acked(&self, stream: &str, device: &str, id: Id, unix_micros: u64) {
        self.line("acked", stream, device, id, unix_micros);
    }

    fn line(&self, event: &str, stream: &str, device: &str, id: Id, unix_micros: u64) {
        debug_assert!(!stream.contains(['\t', '\n']) && !device.contains(['\t', '\n']));
        let mut state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if state.error.is_none()
            && let Err(error) = writeln!(state.file, "{event}\t{stream}\t{device}\t{id}\t{unix_micros}")
        {
            state.error = Some(error);
        }
    }

    /// Hands the buffered lines to the operating system.
    ///
    /// # Errors
    /// The first error of any write so far, once; the ledger is incomplete from there on.
    pub fn flush(&self) -> io::Result<()> {
        let mut state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match state.error.take() {
            Some(error) => {
                state.error = Some(io::Error::new(error.kind(), error.to_string()));
                Err(error)
            }
            None => state.file.flush(),
        }
    }

    /// Flushes and syncs the file. Lines that other clones write afterwards are not covered.
    ///
    /// # Errors
    /// As [`flush`](Self::flush): the ledger is incomplete and must not be verified against.
    pub fn close(self) -> io::Result<()> {
        self.flush()?;
        let state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        state.file.get_ref().sync_all()
    }
}

/// Why a ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be opened or read.
    #[error("cannot read ledger {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is no ledger of this version, or a line is damaged. A last line without line end is not an error: it is what a
    /// killed simulator leaves, and it is ignored.
    #[error("{path}:{line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

/// One reading of a device.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its id.
    pub id: Id,
    /// When it was first sent, Unix time in microseconds.
    pub sent_micros: u64,
    acked_micros: u64,
    /// The next open entry with the same id, as an index + 1; 0 is none.
    next_same: u32,
}

impl Entry {
    /// When its acknowledgement arrived, Unix time in microseconds; `None` when it never did.
    pub fn acked_micros(&self) -> Option<u64> {
        (self.acked_micros != 0).then_some(self.acked_micros)
    }
}

/// All readings of one device in one stream.
#[derive(Debug)]
pub struct DeviceLedger {
    /// Stream name.
    pub stream: String,
    /// Device id, which is the Kafka key.
    pub device: String,
    /// The readings in send order, file after file.
    pub entries: Vec<Entry>,
    /// First and last open entry of each id, as indices.
    open: HashMap<Id, (u32, u32)>,
}

impl DeviceLedger {
    fn sent(&mut self, id: Id, sent_micros: u64) -> Result<(), &'static str> {
        let index = u32::try_from(self.entries.len())
            .map_err(|_| "more than 4 294 967 295 readings of one device")?;
        self.entries.push(Entry { id, sent_micros, acked_micros: 0, next_same: 0 });
        if let Some((_, last)) = self.open.get_mut(&id) {
            self.entries[*last as usize].next_same = index + 1;
            *last = index;
        } else {
            self.open.insert(id, (index, index));
        }
        Ok(())
    }

    fn acked(&mut self, id: Id, acked_micros: u64) -> Result<(), &'static str> {
        let (first, last) = *self.open.get(&id).ok_or("acknowledged but not sent, or acknowledged twice")?;
        let entry = &mut self.entries[first as usize];
        // 0 means open, and no clock of ours stands in 1970.
        entry.acked_micros = acked_micros.max(1);
        if first == last {
            self.open.remove(&id);
        } else {
            let next = entry.next_same - 1;
            self.open.insert(id, (next, last));
        }
        Ok(())
    }
}

/// One or several ledger files in memory: about 50 bytes a reading, and as much again for each that is not acknowledged.
#[derive(Debug, Default)]
pub struct Ledger {
    devices: Vec<DeviceLedger>,
    index: HashMap<Key, usize>,
}

#[derive(Debug, PartialEq, Eq)]
struct Key(String, String);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0.as_str(), self.1.as_str()).hash(state);
    }
}

impl Ledger {
    /// Reads the files one after the other, line by line; those of one device append.
    ///
    /// # Errors
    /// [`LedgerError`]: the ledger cannot be trusted, the caller reports it and stops.
    pub fn read<P: AsRef<Path>>(paths: &[P]) -> Result<Self, LedgerError> {
        let mut ledger = Self::default();
        for path in paths {
            let path = path.as_ref();
            let file = File::open(path).map_err(|source| LedgerError::Io { path: path.into(), source })?;
            ledger.read_one(path, BufReader::with_capacity(BUFFER_BYTES, file))?;
        }
        Ok(ledger)
    }

    fn read_one(&mut self, path: &Path, mut file: impl BufRead) -> Result<(), LedgerError> {
        let mut line = String::new();
        for number in 1.. {
            line.clear();
            let length =
                file.read_line(&mut line).map_err(|source| LedgerError::Io { path: path.into(), source })?;
            let at_line = |reason| LedgerError::Line { path: path.into(), line: number, reason };
            let Some(complete) = line.strip_suffix('\n') else {
                // An empty file, or one that was cut in its first line, is no proof of having sent nothing.
                return if number == 1 { Err(at_line("not a ledger of version 1")) } else { Ok(()) };
            };
            debug_assert_ne!(length, 0);
            if number == 1 {
                if complete != HEADER {
                    return Err(at_line("not a ledger of version 1"));
                }
            } else {
                self.apply(complete).map_err(at_line)?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, line: &str) -> Result<(), &'static str> {
        let mut fields = line.split('\t');
        let mut next = || fields.next().ok_or("a field is missing");
        let (event, stream, device) = (next()?, next()?, next()?);
        let id = next()?.parse().map_err(|()| "the id is neither s<decimal> nor h<16 hex digits>")?;
        let micros = next()?.parse().map_err(|_| "the time is not a decimal number")?;
        if fields.next().is_some() {
            return Err("a field too many");
        }
        let device = self.device_mut(stream, device);
        match event {
            "sent" => device.sent(id, micros),
            "acked" => device.acked(id, micros),
            _ => Err("the event is neither sent nor acked"),
        }
    }

    fn device_mut(&mut self, stream: &str, device: &str) -> &mut DeviceLedger {
        let key = Key(stream.to_owned(), device.to_owned());
        let devices = &mut self.devices;
        let index = *self.index.entry(key).or_insert_with(|| {
            devices.push(DeviceLedger {
                stream: stream.to_owned(),
                device: device.to_owned(),
                entries: Vec::new(),
                open: HashMap::new(),
            });
            devices.len() - 1
        });
        &mut self.devices[index]
    }

    /// The devices in the order of their first reading.
    pub fn devices(&self) -> &[DeviceLedger] {
        &self.devices
    }

    /// The device's readings in this stream, if it has any.
    pub fn device(&self, stream: &str, device: &str) -> Option<&DeviceLedger> {
        self.index.get(&Key(stream.to_owned(), device.to_owned())).map(|&index| &self.devices[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Ledger, LedgerError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, text).unwrap();
        Ledger::read(&[path])
    }

    #[test]
    fn what_is_written_is_read_back_in_send_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let writer = LedgerWriter::create(&path).unwrap();
        writer.sent("occupancy", "a", Id::Seq(1), 10);
        writer.sent("occupancy", "a", Id::Seq(2), 20);
        writer.sent("vehicle-positions", "b", Id::of_payload(b"x"), 25);
        writer.acked("occupancy", "a", Id::Seq(2), 30);
        writer.close().unwrap();

        let ledger = Ledger::read(&[path]).unwrap();
        assert_eq!(ledger.devices().len(), 2);
        let entries = &ledger.device("occupancy", "a").unwrap().entries;
        let seen: Vec<_> = entries.iter().map(|e| (e.id, e.sent_micros, e.acked_micros())).collect();
        assert_eq!(seen, [(Id::Seq(1), 10, None), (Id::Seq(2), 20, Some(30))]);
        assert_eq!(ledger.device("vehicle-positions", "b").unwrap().entries[0].id, Id::of_payload(b"x"));
        assert!(ledger.device("occupancy", "b").is_none());
    }

    #[test]
    fn an_acknowledgement_belongs_to_the_oldest_open_reading_of_its_id() {
        let text = "#wayside-ledger 1\nsent\ts\td\th00000000000000aa\t1\nsent\ts\td\th00000000000000aa\t2\n\
                    acked\ts\td\th00000000000000aa\t3\nsent\ts\td\th00000000000000aa\t4\nacked\ts\td\th00000000000000aa\t5\n";
        let ledger = read(text).unwrap();
        let acked: Vec<_> = ledger.devices()[0].entries.iter().map(Entry::acked_micros).collect();
        assert_eq!(acked, [Some(3), Some(5), None]);
    }

    #[test]
    fn the_cut_last_line_of_a_killed_simulator_is_ignored() {
        let ledger = read("#wayside-ledger 1\nsent\ts\td\ts1\t1\nacked\ts\td\ts1").unwrap();
        assert_eq!(ledger.devices()[0].entries[0].acked_micros(), None);
    }

    #[test]
    fn damaged_ledgers_are_refused_with_file_and_line() {
        let check = |text: &str, expected: &str| {
            let message = read(text).unwrap_err().to_string();
            assert!(message.ends_with(expected), "{message}");
        };
        check("", ":1: not a ledger of version 1");
        check("#wayside-ledger 2\n", ":1: not a ledger of version 1");
        check("#wayside-ledger 1\nsent\ts\td\n", ":2: a field is missing");
        check(
            "#wayside-ledger 1\nsent\ts\td\t7\t1\n",
            ":2: the id is neither s<decimal> nor h<16 hex digits>",
        );
        check("#wayside-ledger 1\nsent\ts\td\ts7\tx\n", ":2: the time is not a decimal number");
        check("#wayside-ledger 1\nsent\ts\td\ts7\t1\t2\n", ":2: a field too many");
        check("#wayside-ledger 1\nlost\ts\td\ts7\t1\n", ":2: the event is neither sent nor acked");
        check(
            "#wayside-ledger 1\nacked\ts\td\ts7\t1\n",
            ":2: acknowledged but not sent, or acknowledged twice",
        );
    }

    #[test]
    fn payload_ids_are_fnv_1a() {
        // Vectors of draft-eastlake-fnv, appendix C.
        assert_eq!(Id::of_payload(b"").to_string(), "hcbf29ce484222325");
        assert_eq!(Id::of_payload(b"a").to_string(), "haf63dc4c8601ec8c");
        assert_eq!(Id::of_payload(b"foobar").to_string(), "h85944171f73967e8");
    }

    #[test]
    fn a_write_error_is_reported_at_every_later_flush() {
        let writer = LedgerWriter::create(Path::new("/dev/full")).unwrap();
        for seq in 0..10_000 {
            writer.sent("stream", "device", Id::Seq(seq), seq);
        }
        assert!(writer.flush().is_err());
        assert!(writer.clone().close().is_err());
    }
}
