//! What a restart brings back.

use super::*;
use crate::log::Remembered;

/// What a commit makes durable with the messages taken so far.
pub(super) fn note(bench: &mut Bench, remembered: &mut Remembered) {
    for (key, value) in bench.broker.changes(bench.now) {
        remembered.remove(&key);
        remembered.extend(value.map(|value| (key, value)));
    }
}

/// The next life of the agent.
fn restart(remembered: &Remembered) -> Bench {
    let mut bench = Bench::new(config());
    bench.broker.restore(bench.now, remembered);
    bench
}

#[test]
fn a_session_comes_back_with_its_subscriptions() {
    let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
    let (key, _) = bench.connect(&connect("display", false));
    bench.send(key, &subscribe(&[("home/#", 1), ("room/+", 0x2c)]));
    assert!(bench.broker.has_news());
    note(&mut bench, &mut remembered);
    assert!(!bench.broker.has_news());

    let mut bench = restart(&remembered);
    assert!(!bench.broker.has_news(), "what came back is not noted again");
    let (device, _) = bench.connect(&connect("device", true));
    bench.send(device, &publish(0x32, "home/lamp", 1, "on"));
    let (key, missed) = bench.resume("display");
    assert_eq!(missed, publish(0x32, "home/lamp", 1, "on"), "it waited for its client");
    // No local, which is bit 2 of the options, and RETAIN as published, bit 3.
    assert_eq!(bench.send(key, &publish(0x30, "room/1", 0, "own")), [0_u8; 0]);
    bench.send(device, &publish(0x31, "room/1", 0, "x"));
    assert_eq!(bench.output(key), publish(0x31, "room/1", 0, "x"));
}

#[test]
fn a_message_stored_before_a_crash_and_sent_again_is_stored_once_and_answered() {
    let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
    let (key, _) = bench.connect(&connect("device", false));
    bench.send(key, &publish(0x32, "room/1", 7, "a"));
    bench.send(key, &publish(0x34, "room/1", 8, "b"));
    note(&mut bench, &mut remembered);
    // These came too late for the commit that the crash left.
    bench.send(key, &publish(0x32, "room/1", 9, "c"));

    let mut bench = restart(&remembered);
    let (key, present) = bench.connect(&connect("device", false));
    assert!(present);
    assert_eq!(bench.send(key, &publish(0x3a, "room/1", 7, "a")), [0_u8; 0]);
    bench.send(key, &publish(0x3c, "room/1", 8, "b"));
    bench.send(key, &publish(0x3a, "room/1", 9, "c"));
    assert_eq!(bench.payloads(), ["c"]);
    bench.commit();
    assert_eq!(bench.output(key), [0x40, 2, 0, 7, 0x50, 2, 0, 8, 0x40, 2, 0, 9]);
    assert_eq!(bench.send(key, &[0x62, 2, 0, 8]), [0x70, 2, 0, 8]);
}

/// After a restart nobody knows whether it was answered: a device whose readings are equal must not lose one.
#[test]
fn an_equal_message_that_is_no_repetition_is_stored_after_a_crash() {
    for first in [0x32, 0x34] {
        let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
        let (key, _) = bench.connect(&connect("device", false));
        bench.send(key, &publish(first, "room/1", 1, "1"));
        note(&mut bench, &mut remembered);
        let mut bench = restart(&remembered);
        let (key, _) = bench.connect(&connect("device", false));
        bench.send(key, &publish(first, "room/1", 1, "1"));
        assert_eq!(bench.payloads(), ["1"]);
        // Nor does another payload under the id of before pass for it.
        let mut bench = restart(&remembered);
        let (key, _) = bench.connect(&connect("device", false));
        bench.send(key, &publish(first | 8, "room/1", 1, "2"));
        assert_eq!(bench.payloads(), ["2"]);
    }
}

#[test]
fn what_was_answered_is_forgotten_with_the_next_commit() {
    let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
    let (key, _) = bench.connect(&connect("device", false));
    bench.send(key, &publish(0x32, "room/1", 7, "a"));
    bench.send(key, &publish(0x34, "room/1", 8, "b"));
    note(&mut bench, &mut remembered);
    let notes = remembered.len();
    bench.commit();
    assert!(!bench.broker.has_news(), "no commit of its own for that");
    note(&mut bench, &mut remembered);
    assert_eq!(remembered.len(), notes, "PUBREL has not come");
    bench.send(key, &[0x62, 2, 0, 8]);
    note(&mut bench, &mut remembered);
    assert_eq!(remembered.len(), notes - 1);
}

#[test]
fn retained_messages_come_back_until_they_are_removed() {
    let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
    let (key, _) = bench.connect(&connect_with("device", 2, &[], &[]));
    bench.send(key, &publish(0x31, "home/lamp", 0, "on"));
    // Lives for 10 s.
    let expiring = [text("home/door"), vec![5, 2, 0, 0, 0, 10], b"open".to_vec()].concat();
    bench.send(key, &packet(0x31, &expiring));
    note(&mut bench, &mut remembered);
    assert_eq!(remembered.len(), 2, "no note of a session that ends with its connection");

    let mut bench = restart(&remembered);
    bench.wait(4);
    let (key, _) = bench.connect(&connect_with("display", 2, &[], &[]));
    let seen = bench.send(key, &subscribe(&[("home/#", 0)]));
    let left = [text("home/door"), vec![5, 2, 0, 0, 0, 6], b"open".to_vec()].concat();
    assert_eq!(seen[6..], [packet(0x31, &left), publish(0x31, "home/lamp", 0, "on")].concat());
    bench.send(key, &publish(0x31, "home/lamp", 0, ""));
    bench.wait(7);
    note(&mut bench, &mut remembered);
    let mut bench = restart(&remembered);
    bench.wait(10);
    let (key, _) = bench.connect(&connect_with("display", 2, &[], &[]));
    assert_eq!(bench.send(key, &subscribe(&[("home/#", 0)])).len(), 6, "SUBACK alone");
}

#[test]
fn a_session_that_has_ended_is_forgotten() {
    let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
    let (key, _) = bench.connect(&connect("a", false));
    bench.send(key, &publish(0x32, "room/1", 7, "a"));
    let (other, _) = bench.connect(&connect("b", false));
    note(&mut bench, &mut remembered);
    assert_eq!(remembered.len(), 3);
    // One begins anew, the other's time is over.
    bench.connect(&connect_with("a", 2, &[], &[]));
    bench.lose(other);
    bench.wait(301);
    note(&mut bench, &mut remembered);
    assert_eq!(remembered, Remembered::new());

    // After a restart its time begins anew, and ends too.
    bench.connect(&connect("c", false));
    note(&mut bench, &mut remembered);
    let mut bench = restart(&remembered);
    bench.wait(299);
    let (key, present) = bench.connect(&connect("c", false));
    assert!(present);
    bench.lose(key);
    bench.wait(301);
    note(&mut bench, &mut remembered);
    assert_eq!(remembered, Remembered::new());
}

#[test]
fn notes_of_a_later_release_and_more_than_may_be_are_passed_over() {
    let mut remembered = Remembered::new();
    for key in ["", "s", "sx", "wx", "w", "rx", "z", "s\u{ff}"] {
        remembered.insert(key.as_bytes().into(), [0xff, 0xff, 7].into());
    }
    remembered.insert([b's', 0xff].into(), [0].into());
    let expiry_and_no_filters =
        postcard::to_stdvec(&(300_u32, None::<&str>, Vec::<(&str, u8)>::new())).unwrap();
    for id in 0..30 {
        let key = format!("s{id:02}");
        remembered.insert(key.as_bytes().into(), expiry_and_no_filters.clone().into());
    }
    let mut bench = restart(&remembered);
    let present = (0..30).filter(|id| {
        let (key, present) = bench.connect(&connect(&format!("{id:02}"), false));
        bench.lose(key);
        present
    });
    assert_eq!(present.count(), 20, "twice as many as connections");
}
