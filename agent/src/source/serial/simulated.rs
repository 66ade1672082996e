//! A port in memory: what the driver does with a line, one step at a time, for the deterministic simulation.

use bytes::BytesMut;

use super::{
    line::{Frames, Line, Now},
    native::{NativeConfig, NativeLine},
};
use crate::{
    config::Value,
    env::Clock,
    intake::{self, Intake},
    log::{Note, Remembered},
    record::Record,
    source::ready,
};

/// The agent's end of a line of the link protocol.
pub(crate) struct SimulatedPort {
    line: NativeLine,
    intake: Intake,
    /// What waits for room.
    waiting: Option<(Vec<Record>, Vec<Note>)>,
}

impl SimulatedPort {
    /// An open port, after a life that noted `remembered`.
    pub(crate) fn new(record_bytes_max: usize, intake: Intake, remembered: &Remembered) -> Self {
        let port = "line".to_owned();
        let config = NativeConfig { source: port.clone(), port, value: Value::Raw, record_bytes_max };
        Self { line: NativeLine::new(config, remembered), intake, waiting: None }
    }

    /// One turn: takes what has come, and returns what is to be sent.
    pub(crate) fn turn(&mut self, clock: &dyn Clock, received: &[u8]) -> BytesMut {
        let now = Now { monotonic: clock.monotonic(), received: clock.wall() };
        if let Some(Ok(acknowledgement)) = ready(self.intake.acknowledged()) {
            self.line.acknowledged(now, acknowledgement);
        }
        if !received.is_empty() {
            self.line.receive(now, received);
        }
        self.line.expire(now);
        self.submit();
        self.line.set_room(now, self.waiting.is_none());
        let mut out = BytesMut::new();
        self.line.transmit(now, &mut out);
        out
    }

    fn submit(&mut self) {
        let (records, notes) = self.waiting.take().unwrap_or_else(|| {
            let Frames { records, changes } = self.line.take();
            (records, self.intake.notes(changes))
        });
        if records.is_empty() {
            return;
        }
        let size_bytes = intake::size_bytes(&records) + notes.iter().map(Note::size_bytes).sum::<usize>();
        match self.intake.try_reserve(size_bytes) {
            None => self.waiting = Some((records, notes)),
            Some(room) => {
                let ticket = self.intake.submit_noting(room, records, notes).expect("the pipeline lives");
                self.line.submitted(ticket);
            }
        }
    }
}
