//! Messages of QoS 1 that were answered. There is nothing behind PUBACK: whether their sender, a broker or a device, has read it
//! shows when it gives the packet id to another message. Until then it may send the message again.

use std::collections::VecDeque;

use crate::source::window::Window;

/// The latest of one connection.
///
/// A sender that gives an id to another message has read the PUBACK before it, and the other message takes its place here. One
/// that gives it to an equal message may do so again where the message is lost on its way and comes as a repetition; it would pass
/// for the one before. So from then on nothing is remembered: twice is better than never.
#[derive(Debug)]
pub(super) struct Answered {
    digests: Window,
    order: VecDeque<u16>,
    /// Most that are remembered: as many as the sender may have without an answer.
    max: usize,
    /// How many belong to the last acknowledgement.
    latest: usize,
    repeats_itself: bool,
}

impl Answered {
    /// None yet, of a sender that may have `receive_maximum` messages unacknowledged.
    pub(super) fn new(receive_maximum: usize) -> Self {
        Self {
            digests: Window::new(),
            order: VecDeque::new(),
            max: receive_maximum,
            latest: 0,
            repeats_itself: false,
        }
    }

    /// An acknowledgement came: what is pushed from now on belongs to it.
    pub(super) fn begin(&mut self) {
        self.latest = 0;
    }

    /// A message was answered. False if it is not remembered.
    pub(super) fn push(&mut self, packet_id: u16, digest: u32) -> bool {
        if self.repeats_itself {
            return false;
        }
        if self.digests.insert(packet_id, digest).is_some() {
            self.remove_from_order(packet_id);
        }
        self.order.push_back(packet_id);
        self.latest += 1;
        if self.order.len() > self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.digests.remove(&oldest);
        }
        true
    }

    /// The message that was answered as `packet_id`.
    pub(super) fn get(&self, packet_id: u16) -> Option<u32> {
        self.digests.get(&packet_id).copied()
    }

    /// All that are remembered, in the order of their answers.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (u16, u32)> {
        // Each has its digest.
        self.order.iter().map(|id| (*id, self.get(*id).unwrap_or_default()))
    }

    /// How many of the last belong to the last acknowledgement.
    pub(super) fn latest(&self) -> usize {
        self.latest.min(self.order.len())
    }

    /// Whether there are as many as the sender may have without an answer.
    pub(super) fn is_full(&self) -> bool {
        self.order.len() == self.max
    }

    /// The sender has given `packet_id` to a new message. True if that is equal to the one before, so that all are forgotten.
    pub(super) fn is_given_anew(&mut self, packet_id: u16, digest: u32) -> bool {
        let Some(before) = self.digests.remove(&packet_id) else { return false };
        self.remove_from_order(packet_id);
        let is_equal = before == digest;
        if is_equal {
            self.repeats_itself = true;
            self.take();
        }
        is_equal
    }

    /// Most senders give their ids in turn, so that it is the first.
    fn remove_from_order(&mut self, packet_id: u16) {
        if let Some(at) = self.order.iter().position(|id| *id == packet_id) {
            self.order.remove(at);
        }
    }

    /// Takes all: the connection has ended.
    pub(super) fn take(&mut self) -> Window {
        self.order.clear();
        self.latest = 0;
        std::mem::take(&mut self.digests)
    }
}
