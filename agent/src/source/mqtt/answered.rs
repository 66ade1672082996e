//! Messages of QoS 1 that were answered. There is nothing behind PUBACK: whether the broker has read it shows when it gives the
//! packet id to another message. Until then it may send the message again.

use std::collections::VecDeque;

use crate::source::window::Window;

/// The latest of one connection.
///
/// Brokers count their packet ids up, and an id comes back 65 535 messages later. One that gives an id out again while it is
/// still remembered here is taken at its word: an equal message under it may be a new one, and nothing is remembered any more.
#[derive(Debug)]
pub(super) struct Answered {
    digests: Window,
    order: VecDeque<u16>,
    /// Most that are remembered: as many as the broker may have without an answer.
    max: usize,
    /// How many belong to the last acknowledgement.
    latest: usize,
    ids_recur: bool,
}

impl Answered {
    /// None yet, of a broker that may have `receive_maximum` messages unacknowledged.
    pub(super) fn new(receive_maximum: usize) -> Self {
        Self {
            digests: Window::new(),
            order: VecDeque::new(),
            max: receive_maximum,
            latest: 0,
            ids_recur: false,
        }
    }

    /// An acknowledgement came: what is pushed from now on belongs to it.
    pub(super) fn begin(&mut self) {
        self.latest = 0;
    }

    /// A message was answered.
    pub(super) fn push(&mut self, packet_id: u16, digest: u32) {
        if self.ids_recur {
            return;
        }
        if self.digests.insert(packet_id, digest).is_some() {
            self.order.retain(|id| *id != packet_id);
        }
        self.order.push_back(packet_id);
        self.latest += 1;
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.digests.remove(&oldest);
        }
    }

    /// The message that was answered as `packet_id`.
    pub(super) fn get(&self, packet_id: u16) -> Option<u32> {
        self.digests.get(&packet_id).copied()
    }

    /// Those of the last acknowledgement.
    pub(super) fn latest(&self) -> impl Iterator<Item = (u16, u32)> {
        let latest = self.order.iter().rev().take(self.latest);
        latest.filter_map(|id| Some((*id, self.get(*id)?)))
    }

    /// The broker has given `packet_id` to a new message. True if that makes others be forgotten.
    pub(super) fn is_given_anew(&mut self, packet_id: u16) -> bool {
        let recurs = self.digests.contains_key(&packet_id);
        if recurs {
            self.ids_recur = true;
            self.take();
        }
        recurs
    }

    /// Takes all: the connection has ended.
    pub(super) fn take(&mut self) -> Window {
        self.order.clear();
        self.latest = 0;
        std::mem::take(&mut self.digests)
    }
}
