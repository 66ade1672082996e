//! A serial line with devices on it, and what happens to bytes there.

use bytes::BytesMut;
use rand::{Rng, rngs::SmallRng};
use wayside_protocol::{
    frame::{FRAME_LEN_DEFAULT, max_wire_len},
    link::device::{Config, Device, Overflow},
    payload::Raw,
};

use super::checker::Ledger;
use crate::{env::Clock, source::serial::simulated::SimulatedPort};

/// Readings that a device keeps.
const RING: usize = 8;

/// Frames that may be on the line to the gateway; beyond, a device waits.
const FRAMES_MAX: usize = 16;

struct Mcu {
    device: Device<RING, 64>,
    uid: u64,
    boot: u32,
    /// Readings taken in this boot.
    next: u32,
}

impl Mcu {
    fn new(uid: u64, boot: u32) -> Self {
        let config = Config { uid, firmware: 1, overflow: Overflow::DropOldest };
        Self { device: Device::new(config, boot), uid, boot, next: 0 }
    }

    /// The oldest reading that it keeps.
    fn oldest(&self) -> u32 {
        self.next - u32::try_from(self.device.pending()).expect("few")
    }
}

/// The line.
pub(super) struct Wire {
    devices: Vec<Mcu>,
    boots: u32,
    /// Frames in a thousand that are damaged.
    pub(super) noise: u16,
    /// On its way to the gateway, and back.
    up: Vec<u8>,
    down: BytesMut,
}

impl Wire {
    pub(super) fn new(rng: &mut SmallRng) -> Self {
        let count = rng.random_range(1..=4);
        let devices: Vec<Mcu> = (1..=count).map(|n| Mcu::new(u64::from(n), n)).collect();
        Self { devices, boots: count, noise: 0, up: Vec::new(), down: BytesMut::new() }
    }

    /// Devices have readings.
    pub(super) fn load(&mut self, rng: &mut SmallRng, now_us: u64, ledger: &mut Ledger) {
        for mcu in &mut self.devices {
            if rng.random_bool(0.15) {
                let oldest = mcu.oldest();
                let text = format!("{}", mcu.next);
                let reading = Raw { port: 1, bytes: text.as_bytes() };
                mcu.device.send_payload(now_us, &reading).expect("the oldest goes");
                mcu.next += 1;
                if mcu.oldest() > oldest {
                    ledger.dropped(mcu.uid, mcu.boot, oldest);
                }
            }
        }
    }

    /// Bytes go both ways.
    pub(super) fn talk(
        &mut self,
        rng: &mut SmallRng,
        clock: &dyn Clock,
        port: &mut SimulatedPort,
        ledger: &mut Ledger,
    ) {
        let now_us = clock.monotonic().as_micros();
        let mut frame = [0; max_wire_len(FRAME_LEN_DEFAULT)];
        for mcu in &mut self.devices {
            for _ in 0..FRAMES_MAX {
                let Some(size) = mcu.device.poll_transmit(now_us, &mut frame) else { break };
                let damaged = rng.random_range(0..1000) < self.noise;
                if damaged {
                    frame[rng.random_range(0..size)] ^= 1 << rng.random_range(0..8);
                }
                self.up.extend_from_slice(&frame[..size]);
            }
        }
        // What is read at once ends anywhere.
        let read = rng.random_range(0..=self.up.len());
        let received: Vec<u8> = self.up.drain(..read).collect();
        let mut sent = port.turn(clock, &received);
        if !sent.is_empty() && rng.random_range(0..1000) < self.noise {
            let at = rng.random_range(0..sent.len());
            sent[at] ^= 1 << rng.random_range(0..8);
        }
        self.down.extend_from_slice(&sent);
        let heard = self.down.split_to(rng.random_range(0..=self.down.len()));
        for mcu in &mut self.devices {
            let oldest = mcu.oldest();
            mcu.device.receive(now_us, &heard, |_, _| {});
            for seq in oldest..mcu.oldest() {
                ledger.acknowledged_reading(mcu.uid, mcu.boot, seq);
            }
        }
    }

    /// A device restarts and has nothing.
    pub(super) fn restart(&mut self, rng: &mut SmallRng, ledger: &mut Ledger) {
        self.boots += 1;
        let index = rng.random_range(0..self.devices.len());
        let mcu = &mut self.devices[index];
        for seq in mcu.oldest()..mcu.next {
            ledger.forgotten(mcu.uid, mcu.boot, seq);
        }
        *mcu = Mcu::new(mcu.uid, self.boots);
    }

    /// Whether all devices have their acknowledgements.
    pub(super) fn is_quiet(&self) -> bool {
        self.devices.iter().all(|mcu| mcu.device.pending() == 0)
    }
}
