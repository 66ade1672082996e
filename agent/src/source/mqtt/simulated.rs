//! A connection in memory: what the source does with the packets of a broker, one step at a time, for the deterministic
//! simulation.

use bytes::{Bytes, BytesMut};

use super::{
    memory::Memory,
    session::{Answer, Arrival, Deliveries},
    wire::{Publish, Writer},
};
use crate::{
    config::{MqttVersion, Qos, Route},
    decode::mqtt::Router,
    env::Clock,
    intake::{self, Intake},
    log::{Note, Remembered},
    record::Record,
    source::ready,
};

const CLIENT_ID: &str = "wayside";
const BROKER: &str = "broker:1883";

/// What a broker sends.
#[derive(Clone, Debug)]
pub(crate) enum SimulatedPacket {
    /// PUBLISH of QoS 1, or with `exactly_once` of QoS 2.
    Publish {
        /// Topic.
        topic: String,
        /// Payload.
        payload: Bytes,
        /// Packet id.
        packet_id: u16,
        /// QoS 2.
        exactly_once: bool,
        /// It may have been sent before.
        dup: bool,
    },
    /// PUBREL with its packet id.
    Release(u16),
}

/// The agent's end of its session at a broker. Answers are packets of MQTT 3.1.1.
pub(crate) struct SimulatedSession {
    deliveries: Deliveries,
    memory: Memory,
    router: Router,
    intake: Intake,
    writer: Writer,
    records: Vec<Record>,
    answers: Vec<Answer>,
    notes: Vec<Note>,
    is_connected: bool,
}

impl SimulatedSession {
    /// Not connected, after a life that noted `remembered`.
    pub(crate) fn new(
        routes: &[Route],
        record_bytes_max: usize,
        receive_maximum: u16,
        intake: Intake,
        remembered: &Remembered,
    ) -> Self {
        let (memory, window, noted) = Memory::restore(remembered);
        Self {
            deliveries: Deliveries::new(receive_maximum, window, noted),
            memory,
            router: Router::new("broker", routes, record_bytes_max).expect("routes that are right"),
            intake,
            writer: Writer::new(MqttVersion::V3),
            records: Vec::new(),
            answers: Vec::new(),
            notes: Vec::new(),
            is_connected: false,
        }
    }

    /// CONNACK came.
    pub(crate) fn connected(&mut self, session_present: bool) {
        self.is_connected = true;
        if !session_present {
            self.deliveries.session_lost();
            self.note();
        }
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self) {
        self.is_connected = false;
        self.deliveries.disconnected();
        if self.records.is_empty() {
            self.answers.clear();
        }
        self.writer.buffer().clear();
    }

    /// Whether packets are read, or a new connection is made: not while what was read waits for room.
    pub(crate) fn reads(&self) -> bool {
        self.records.is_empty() && self.notes.is_empty()
    }

    /// One turn: takes what has come, and returns what is to be sent.
    pub(crate) fn turn(&mut self, clock: &dyn Clock, packets: Vec<SimulatedPacket>) -> BytesMut {
        let now = clock.monotonic();
        if let Some(Ok(acknowledgement)) = ready(self.intake.acknowledged()) {
            self.deliveries.acknowledged(now, acknowledgement, &mut self.writer);
        }
        for packet in packets {
            match packet {
                SimulatedPacket::Release(packet_id) => {
                    self.deliveries.release(now, packet_id, &mut self.writer);
                }
                SimulatedPacket::Publish { topic, payload, packet_id, exactly_once, dup } => {
                    let qos = if exactly_once { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
                    let topic_bytes = Bytes::copy_from_slice(topic.as_bytes());
                    let publish = Publish {
                        topic: topic_bytes,
                        payload: payload.clone(),
                        qos,
                        packet_id,
                        dup,
                        retain: false,
                    };
                    match self.deliveries.arrive(now, &publish) {
                        Arrival::Known(answer) => self.answers.push(answer),
                        Arrival::New(answer) => {
                            self.answers.extend(answer);
                            self.records.push(self.router.decode(&topic, payload, false, clock.wall()));
                        }
                    }
                }
            }
        }
        if !self.records.is_empty() && self.notes.is_empty() {
            self.note();
        }
        self.submit();
        self.writer.buffer().split()
    }

    fn note(&mut self) {
        let noting = self.deliveries.noting(&self.answers);
        let changes = self.memory.changes(CLIENT_ID, BROKER, noting);
        self.notes.extend(self.intake.notes(changes));
    }

    fn submit(&mut self) {
        if self.reads() {
            let answers = std::mem::take(&mut self.answers);
            if !answers.is_empty() {
                self.deliveries.submitted(None, answers);
                self.deliveries.answer(&mut self.writer);
            }
            return;
        }
        let size_bytes =
            intake::size_bytes(&self.records) + self.notes.iter().map(Note::size_bytes).sum::<usize>();
        let Some(room) = self.intake.try_reserve(size_bytes) else { return };
        let (records, notes) = (std::mem::take(&mut self.records), std::mem::take(&mut self.notes));
        let ticket = self.intake.submit_noting(room, records, notes).expect("the pipeline lives");
        self.deliveries.submitted(Some(ticket), self.answers.drain(..));
        if !self.is_connected {
            self.deliveries.disconnected();
        }
    }
}
