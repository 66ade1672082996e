//! Finds frames in a stream of bytes: takes any chunk, holds one frame, finds its way back after anything.
//!
//! Each byte costs constant time and one checksum at the end of its frame; memory is the `N` bytes of the buffer. Noise cannot
//! cost more than itself and the frame it hit: the next delimiter starts afresh.

use crate::cobs::Unstuffer;
use crate::error::DecodeError;
use crate::frame::Frame;

/// What a decoder has seen since it was made. The counters wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DecodeCounters {
    /// Sound frames.
    pub frames: u32,
    /// [`DecodeError::Cobs`].
    pub cobs: u32,
    /// [`DecodeError::TooLong`].
    pub too_long: u32,
    /// [`DecodeError::Truncated`].
    pub truncated: u32,
    /// [`DecodeError::Crc`].
    pub crc: u32,
    /// [`DecodeError::Version`].
    pub version: u32,
    /// [`DecodeError::Kind`].
    pub kind: u32,
    /// [`DecodeError::MustUnderstand`].
    pub must_understand: u32,
}

impl DecodeCounters {
    fn count(&mut self, outcome: Result<(), DecodeError>) {
        let counter = match outcome {
            Ok(()) => &mut self.frames,
            Err(DecodeError::Cobs) => &mut self.cobs,
            Err(DecodeError::TooLong) => &mut self.too_long,
            Err(DecodeError::Truncated) => &mut self.truncated,
            Err(DecodeError::Crc) => &mut self.crc,
            Err(DecodeError::Version(_)) => &mut self.version,
            Err(DecodeError::Kind(_)) => &mut self.kind,
            Err(DecodeError::MustUnderstand(_)) => &mut self.must_understand,
        };
        *counter = counter.wrapping_add(1);
    }

    /// Rejected runs of bytes, of any reason.
    #[must_use]
    pub fn errors(&self) -> u32 {
        [self.cobs, self.too_long, self.truncated, self.crc, self.version, self.kind, self.must_understand]
            .into_iter()
            .fold(0, u32::wrapping_add)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Right after a delimiter.
    Between,
    /// Inside a frame.
    Collecting,
    /// The frame is too long: everything up to the next delimiter is thrown away.
    Discarding,
}

/// A streaming decoder for frames of up to `N` bytes before COBS, checksum included.
///
/// ```
/// # use wayside_protocol::{decoder::Decoder, frame::{Frame, Header, Kind}};
/// let mut wire = [0; 64];
/// let frame = Frame { header: Header::control(Kind::Log, 7, 1), extension: &[], body: b"hello" };
/// let len = frame.encode(&mut wire)?;
///
/// let mut decoder = Decoder::<254>::new();
/// let mut bodies = 0;
/// for chunk in wire[..len].chunks(3) {
///     let mut rest = chunk;
///     while let Some(outcome) = decoder.next(&mut rest) {
///         assert_eq!(outcome.expect("nothing damaged it").body, b"hello");
///         bodies += 1;
///     }
/// }
/// assert_eq!(bodies, 1);
/// # Ok::<(), wayside_protocol::error::EncodeError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Decoder<const N: usize> {
    buffer: [u8; N],
    len: usize,
    unstuffer: Unstuffer,
    state: State,
    counters: DecodeCounters,
}

impl<const N: usize> Default for Decoder<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Decoder<N> {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: [0; N],
            len: 0,
            unstuffer: Unstuffer::default(),
            state: State::Between,
            counters: DecodeCounters::default(),
        }
    }

    /// What was seen so far.
    #[must_use]
    pub fn counters(&self) -> DecodeCounters {
        self.counters
    }

    /// Takes bytes from the front of `input` up to the end of the next frame, sound or not, and returns it; `None` when
    /// `input` is used up. Call it until it returns `None`.
    ///
    /// # Errors
    /// The reason why bytes between two delimiters are no frame. Counted; go on calling.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Frame<'_>, DecodeError>> {
        let outcome = match self.collect(input)? {
            Ok(()) => Frame::parse(self.buffer.get(..self.len).unwrap_or_default()),
            Err(error) => Err(error),
        };
        self.counters.count(outcome.map(|_| ()));
        Some(outcome)
    }

    /// Consumes input until a delimiter ends a frame that is not empty (`Ok`: `buffer[..len]` holds it), or until the frame
    /// turns out to be none.
    fn collect(&mut self, input: &mut &[u8]) -> Option<Result<(), DecodeError>> {
        loop {
            let (&first, rest) = input.split_first()?;
            if first == 0 {
                *input = rest;
                match core::mem::replace(&mut self.state, State::Between) {
                    State::Between | State::Discarding => {}
                    State::Collecting if self.unstuffer.owed() > 0 => return Some(Err(DecodeError::Cobs)),
                    State::Collecting => return Some(Ok(())),
                }
                continue;
            }
            if self.state == State::Discarding {
                *input = input.split_at(run_len(input)).1;
                continue;
            }
            if self.state == State::Between {
                self.state = State::Collecting;
                self.len = 0;
                self.unstuffer = Unstuffer::default();
            }
            let fits = if self.unstuffer.owed() == 0 {
                *input = rest;
                !self.unstuffer.open_block(first) || self.append(&[0])
            } else {
                let (window, _) = input.split_at(self.unstuffer.owed().min(input.len()));
                let (run, rest) = input.split_at(run_len(window));
                *input = rest;
                self.unstuffer.take(run.len());
                self.append(run)
            };
            if !fits {
                self.state = State::Discarding;
                return Some(Err(DecodeError::TooLong));
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> bool {
        let end = self.len + bytes.len();
        let Some(place) = self.buffer.get_mut(self.len..end) else { return false };
        place.copy_from_slice(bytes);
        self.len = end;
        true
    }
}

/// Bytes before the first delimiter.
fn run_len(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len())
}
