//! What decides: a [`Verifier`] is told what the ledgers name and what was delivered, and counts. It knows no Kafka, file
//! or clock.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use super::{
    partition::partition_of,
    report::{Late, Report, StreamReport, Totals},
};
use crate::ledger::{Id, Ledger};

/// One record that a consumer found.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Stream of the topic that it was found in.
    pub stream: Arc<str>,
    /// Kafka's key.
    pub device: Arc<str>,
    /// Partition that it was found in.
    pub partition: i32,
    /// The ids that it may have in a ledger, likeliest first: its sequence number, the hash of its value.
    pub ids: [Option<Id>; 2],
    /// When it arrived where lateness ends (see [`super`]), in microseconds of Unix time, where known.
    pub arrived_micros: Option<u64>,
}

/// A sending: one `sent` line of a ledger.
#[derive(Debug)]
struct Sending {
    micros: u64,
    /// The next sending of the same id.
    next: Option<u32>,
    matched: bool,
}

/// All sendings of one id of one device.
#[derive(Debug)]
struct Reading {
    /// No sending before this one is unmatched.
    first: u32,
    last: u32,
    sent: u32,
    acknowledged: u32,
    deliveries: u32,
}

#[derive(Debug, Default)]
struct Device {
    stream: usize,
    sendings: Vec<Sending>,
    readings: HashMap<Id, Reading>,
    /// One more than the latest sending that was delivered so far.
    delivered_to: u32,
    /// Where its records are.
    partition: Option<i32>,
    /// Whether it was found in two partitions.
    split: bool,
}

#[derive(Debug)]
struct Stream {
    name: String,
    partitions: Option<i32>,
    totals: Totals,
    /// Of each first delivery, in microseconds.
    late: Vec<i64>,
}

/// Compares ledgers with what Kafka holds; the words are defined in [`super`].
///
/// Ledgers come first, then deliveries in the order of their partition.
#[derive(Debug, Default)]
pub struct Verifier {
    streams: Vec<Stream>,
    stream_of: BTreeMap<String, usize>,
    devices: Vec<Device>,
    /// By stream, then by key, so that a look-up needs no copy of either.
    device_of: Vec<HashMap<String, usize>>,
    missing: u64,
    unacknowledged: u64,
}

impl Verifier {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells of a topic's partition count, by which foreign partitions are recognised.
    pub fn set_partitions(&mut self, stream: &str, partitions: i32) {
        let stream = self.stream(stream);
        self.streams[stream].partitions = Some(partitions);
    }

    /// The names of all streams told of.
    pub fn stream_names(&self) -> impl Iterator<Item = &str> {
        self.streams.iter().map(|s| s.name.as_str())
    }

    /// Acknowledged readings that are not delivered so far.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Sendings that are not acknowledged so far.
    pub fn unacknowledged(&self) -> u64 {
        self.unacknowledged
    }

    /// Everything that `ledger` names.
    pub fn add_ledger(&mut self, ledger: &Ledger) {
        for device in ledger.devices() {
            for entry in &device.entries {
                let acknowledged = entry.acked_micros().is_some();
                self.sent(&device.stream, &device.device, entry.id, entry.sent_micros, acknowledged);
            }
        }
    }

    /// One sending, behind all others of its device.
    fn sent(&mut self, stream: &str, device: &str, id: Id, micros: u64, acknowledged: bool) {
        let device = self.device(stream, device);
        let device = &mut self.devices[device];
        let totals = &mut self.streams[device.stream].totals;
        let index =
            u32::try_from(device.sendings.len()).expect("a ledger has less than 2^32 readings of one device");
        device.sendings.push(Sending { micros, next: None, matched: false });
        let reading = match device.readings.entry(id) {
            Entry::Occupied(reading) => {
                let reading = reading.into_mut();
                device.sendings[reading.last as usize].next = Some(index);
                reading.last = index;
                reading
            }
            Entry::Vacant(vacant) => {
                vacant.insert(Reading { first: index, last: index, sent: 0, acknowledged: 0, deliveries: 0 })
            }
        };
        reading.sent += 1;
        totals.sent += 1;
        if acknowledged {
            reading.acknowledged += 1;
            totals.acknowledged += 1;
            self.missing += 1;
        } else {
            self.unacknowledged += 1;
        }
    }

    /// A record found in Kafka.
    pub fn delivered(&mut self, delivery: &Delivery) {
        let stream = self.stream(&delivery.stream);
        let partitions = self.streams[stream].partitions;
        let totals = &mut self.streams[stream].totals;
        if partitions.is_some_and(|n| partition_of(delivery.device.as_bytes(), n) != delivery.partition) {
            totals.foreign_partition += 1;
        }
        let Some(&device) = self.device_of[stream].get(&*delivery.device) else {
            totals.unknown += 1;
            return;
        };
        let device = &mut self.devices[device];
        match device.partition {
            None => device.partition = Some(delivery.partition),
            Some(partition) if partition != delivery.partition && !device.split => {
                device.split = true;
                totals.split_devices += 1;
            }
            Some(_) => {}
        }
        let known = delivery.ids.iter().flatten().find(|id| device.readings.contains_key(id));
        let Some(reading) = known.and_then(|id| device.readings.get_mut(id)) else {
            totals.unknown += 1;
            return;
        };
        reading.deliveries += 1;
        if reading.deliveries <= reading.acknowledged {
            self.missing -= 1;
        }
        if reading.deliveries > reading.sent {
            totals.duplicated += 1;
            return;
        }
        totals.delivered += 1;
        let sending = next_sending(&device.sendings, reading, device.delivered_to);
        let sent = &mut device.sendings[sending as usize];
        sent.matched = true;
        if sending < device.delivered_to {
            totals.reordered += 1;
        } else {
            device.delivered_to = sending + 1;
        }
        if let Some(arrived) = delivery.arrived_micros {
            let late = arrived.cast_signed().saturating_sub(sent.micros.cast_signed());
            self.streams[stream].late.push(late);
        }
        while device.sendings[reading.first as usize].matched
            && let Some(next) = device.sendings[reading.first as usize].next
        {
            reading.first = next;
        }
    }

    /// The verdict on all that was told.
    pub fn report(&self) -> Report {
        let mut lost = vec![0; self.streams.len()];
        for device in &self.devices {
            lost[device.stream] += device
                .readings
                .values()
                .map(|r| u64::from(r.acknowledged.saturating_sub(r.deliveries)))
                .sum::<u64>();
        }
        let mut totals = Totals::default();
        let mut late = Vec::new();
        let mut streams = Vec::new();
        // By name, so that two runs print alike.
        for &index in self.stream_of.values() {
            let stream = &self.streams[index];
            let of_stream = Totals { lost: lost[index], ..stream.totals };
            totals += of_stream;
            late.extend_from_slice(&stream.late);
            streams.push(StreamReport {
                stream: stream.name.clone(),
                totals: of_stream,
                late: Late::of(stream.late.clone()),
            });
        }
        Report { totals, late: Late::of(late), streams }
    }

    fn stream(&mut self, name: &str) -> usize {
        if let Some(&index) = self.stream_of.get(name) {
            return index;
        }
        let index = self.streams.len();
        self.stream_of.insert(name.to_owned(), index);
        self.streams.push(Stream {
            name: name.to_owned(),
            partitions: None,
            totals: Totals::default(),
            late: Vec::new(),
        });
        self.device_of.push(HashMap::new());
        index
    }

    fn device(&mut self, stream: &str, key: &str) -> usize {
        let stream = self.stream(stream);
        if let Some(&index) = self.device_of[stream].get(key) {
            return index;
        }
        let index = self.devices.len();
        self.device_of[stream].insert(key.to_owned(), index);
        self.devices.push(Device { stream, ..Device::default() });
        index
    }
}

/// The sending that the next delivery of `reading` is taken for: the first unmatched one that keeps the order, for what
/// was sent twice and lost once must not count as reordered; else the first unmatched one.
fn next_sending(sendings: &[Sending], reading: &Reading, delivered_to: u32) -> u32 {
    let mut unmatched = None;
    let mut at = Some(reading.first);
    while let Some(index) = at {
        let sending = &sendings[index as usize];
        if !sending.matched {
            unmatched = unmatched.or(Some(index));
            if index >= delivered_to {
                return index;
            }
        }
        at = sending.next;
    }
    unmatched.expect("fewer deliveries than sendings were matched")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A verifier that was told `sendings` of device `d` in stream `s`: ids, `+` where acknowledged.
    fn verifier(sendings: &str) -> Verifier {
        let mut verifier = Verifier::new();
        for (i, sending) in sendings.split_whitespace().enumerate() {
            let id = sending.trim_end_matches('+').parse().unwrap();
            verifier.sent("s", "d", Id::Seq(id), 1_000 * (i as u64 + 1), sending.ends_with('+'));
        }
        verifier
    }

    fn delivery(id: u64, partition: i32) -> Delivery {
        let ids = [Some(Id::Seq(id)), Some(Id::Hash(99))];
        Delivery { stream: "s".into(), device: "d".into(), partition, ids, arrived_micros: None }
    }

    /// Checks `(delivered, lost, duplicated, reordered, unknown)` after `found` ids arrived in partition 0.
    #[track_caller]
    fn check(sendings: &str, found: &[u64], expected: (u64, u64, u64, u64, u64)) {
        let mut verifier = verifier(sendings);
        found.iter().for_each(|id| verifier.delivered(&delivery(*id, 0)));
        let t = verifier.report().totals;
        assert_eq!((t.delivered, t.lost, t.duplicated, t.reordered, t.unknown), expected);
        assert_eq!(verifier.missing(), t.lost);
        assert_eq!(t.sent, sendings.split_whitespace().count() as u64);
        assert_eq!(t.acknowledged, sendings.matches('+').count() as u64);
    }

    #[test]
    fn everything_once_and_in_order_is_no_fault() {
        check("1+ 2+ 3+", &[1, 2, 3], (3, 0, 0, 0, 0));
    }

    #[test]
    fn acknowledged_and_not_delivered_is_lost() {
        check("1+ 2+ 3", &[1], (1, 1, 0, 0, 0));
    }

    #[test]
    fn delivered_though_never_acknowledged_is_no_fault() {
        check("1+ 2", &[1, 2], (2, 0, 0, 0, 0));
    }

    #[test]
    fn a_second_delivery_is_a_duplicate_and_not_out_of_order() {
        check("1+ 2+", &[1, 2, 1, 2, 2], (2, 0, 3, 0, 0));
    }

    #[test]
    fn a_first_delivery_behind_a_later_one_is_reordered() {
        check("1+ 2+ 3+", &[2, 1, 3], (3, 0, 0, 1, 0));
        check("1+ 2+ 3+", &[3, 1, 2], (3, 0, 0, 2, 0));
    }

    #[test]
    fn an_id_sent_twice_may_arrive_twice() {
        check("1+ 2+ 1+", &[1, 2, 1], (3, 0, 0, 0, 0));
        check("1+ 2+ 1+", &[1, 2, 1, 1], (3, 0, 1, 0, 0));
        check("1+ 2+ 1+", &[1, 2], (2, 1, 0, 0, 0));
    }

    #[test]
    fn of_an_id_sent_twice_the_unacknowledged_one_may_be_missing() {
        check("1 2+ 1+", &[2, 1], (2, 0, 0, 0, 0));
        // Found behind 3, it can be neither of the two in order.
        check("1 2+ 1+ 3+", &[2, 3, 1], (3, 0, 0, 1, 0));
    }

    #[test]
    fn what_no_ledger_names_is_unknown() {
        check("1+", &[1, 7], (1, 0, 0, 0, 1));
        let mut verifier = verifier("1+");
        verifier.delivered(&Delivery { device: "other".into(), ..delivery(1, 0) });
        assert_eq!(verifier.report().totals.unknown, 1);
    }

    #[test]
    fn a_reading_without_sequence_is_recognised_by_its_hash() {
        let mut verifier = Verifier::new();
        verifier.sent("s", "d", Id::Hash(99), 0, true);
        // The record carries a sequence that the ledger does not name its readings by.
        verifier.delivered(&delivery(5, 0));
        assert_eq!(verifier.report().totals.delivered, 1);
        assert_eq!(verifier.missing(), 0);
    }

    #[test]
    fn a_device_in_two_partitions_is_an_error_counted_once() {
        let mut verifier = verifier("1+ 2+ 3+");
        for (id, partition) in [(1, 0), (2, 1), (3, 0)] {
            verifier.delivered(&delivery(id, partition));
        }
        let report = verifier.report();
        assert_eq!(report.totals.split_devices, 1);
        assert!(!report.holds(false));
    }

    #[test]
    fn a_record_outside_of_the_java_clients_partition_is_foreign() {
        let mut verifier = verifier("1+ 2+");
        verifier.set_partitions("s", 4);
        let right = partition_of(b"d", 4);
        verifier.delivered(&delivery(1, right));
        assert_eq!(verifier.report().totals.foreign_partition, 0);
        verifier.delivered(&delivery(2, (right + 1) % 4));
        assert_eq!(verifier.report().totals.foreign_partition, 1);
    }

    #[test]
    fn lateness_is_from_sending_to_the_first_arrival() {
        let mut verifier = verifier("1+ 2+ 3+");
        for (id, arrived) in [(1, 3_000), (1, 900_000), (2, 12_000), (3, 1_000)] {
            verifier.delivered(&Delivery { arrived_micros: Some(arrived), ..delivery(id, 0) });
        }
        // 2 ms, 10 ms, and one before it was sent: the clocks differ.
        assert_eq!(verifier.report().late, Late { p50_ms: 2.0, p99_ms: 10.0, max_ms: 10.0 });
    }

    #[test]
    fn json_has_the_totals_on_top_and_the_streams_as_a_list() {
        let mut verifier = verifier("1+ 2+");
        verifier.sent("r", "d", Id::Seq(1), 0, true);
        verifier.delivered(&delivery(1, 0));
        let json = serde_json::to_value(verifier.report()).unwrap();
        assert_eq!(json["acknowledged"], 3);
        assert_eq!(json["delivered"], 1);
        assert_eq!(json["lost"], 2);
        assert_eq!(json["duplicated"], 0);
        assert_eq!(json["reordered"], 0);
        let streams = json["streams"].as_array().unwrap();
        assert_eq!((&streams[0]["stream"], &streams[0]["lost"]), (&"r".into(), &1.into()));
        assert_eq!((&streams[1]["stream"], &streams[1]["lost"]), (&"s".into(), &1.into()));
    }

    #[test]
    fn the_promise_holds_with_duplicates_unless_exactly_once_was_promised() {
        let mut verifier = verifier("1+");
        verifier.delivered(&delivery(1, 0));
        verifier.delivered(&delivery(1, 0));
        assert!(verifier.report().holds(false));
        assert!(!verifier.report().holds(true));
    }
}
