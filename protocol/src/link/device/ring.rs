//! The readings that are not durable yet, oldest first, numbered without gaps.

/// A reading and what became of it.
#[derive(Debug)]
pub(super) struct Slot<const BODY: usize> {
    pub(super) made_us: u64,
    pub(super) sent_us: u64,
    /// Number of the last transmission in this session, 0 before the first.
    pub(super) order: u64,
    pub(super) schema: u16,
    pub(super) rev: u8,
    /// It was sent more than once, or in an earlier session.
    pub(super) resent: bool,
    /// The gateway said that it has it, but not on disk.
    pub(super) held: bool,
    /// To be sent now, whatever the credit.
    pub(super) due: bool,
    pub(super) body: heapless::Vec<u8, BODY>,
}

impl<const BODY: usize> Slot<BODY> {
    pub(super) fn new(made_us: u64, schema: u16, rev: u8, body: heapless::Vec<u8, BODY>) -> Self {
        Self { made_us, sent_us: 0, order: 0, schema, rev, resent: false, held: false, due: false, body }
    }
}

#[derive(Debug)]
pub(super) struct Ring<const RING: usize, const BODY: usize> {
    slots: heapless::Deque<Slot<BODY>, RING>,
    /// Sequence number of the oldest slot; of the next reading when there is none.
    base: u32,
}

impl<const RING: usize, const BODY: usize> Ring<RING, BODY> {
    pub(super) fn new() -> Self {
        Self { slots: heapless::Deque::new(), base: 0 }
    }

    pub(super) fn base(&self) -> u32 {
        self.base
    }

    pub(super) fn next_seq(&self) -> u32 {
        // RING readings do not fit into a microcontroller long before their number does not fit into 32 bits.
        self.base.wrapping_add(u32::try_from(self.slots.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.slots.is_full()
    }

    /// Appends a reading and returns its number; `None` if there is no room.
    pub(super) fn push(&mut self, slot: Slot<BODY>) -> Option<u32> {
        let seq = self.next_seq();
        self.slots.push_back(slot).ok()?;
        Some(seq)
    }

    pub(super) fn pop_oldest(&mut self) -> Option<Slot<BODY>> {
        let slot = self.slots.pop_front()?;
        self.base = self.base.wrapping_add(1);
        Some(slot)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Slot<BODY>> {
        self.slots.get_mut(index)
    }

    /// All readings with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Slot<BODY>)> {
        let base = self.base;
        (0u32..).map(move |index| base.wrapping_add(index)).zip(self.slots.iter())
    }

    /// All readings with their numbers.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Slot<BODY>)> {
        let base = self.base;
        (0u32..).map(move |index| base.wrapping_add(index)).zip(self.slots.iter_mut())
    }

    /// A new session: nothing is in flight any more.
    pub(super) fn forget_transmissions(&mut self) {
        for slot in self.slots.iter_mut() {
            slot.resent |= slot.order > 0;
            slot.order = 0;
            slot.held = false;
            slot.due = false;
        }
    }

    /// A new boot number: the readings that are left are numbered from 0.
    pub(super) fn restart(&mut self) {
        self.base = 0;
        self.forget_transmissions();
    }
}
