//! What a restart brings back.

use super::*;
use crate::{
    log::Remembered,
    source::window::{self, Window},
};

/// What a commit makes durable with the messages taken so far.
pub(super) fn note(bench: &mut Bench, remembered: &mut Remembered) {
    for (key, value) in bench.broker.changes(bench.now) {
        remembered.remove(&key);
        remembered.extend(value.map(|value| (key, value)));
    }
}

/// The next life of the agent.
pub(super) fn restart(remembered: &Remembered) -> Bench {
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
    // Something new is on its way to the disk.
    let (other, _) = bench.connect(&connect("other", true));
    bench.send(other, &publish(0x30, "room/2", 0, "x"));
    assert_eq!(bench.send(key, &publish(0x3a, "room/1", 7, "a")), [0_u8; 0]);
    bench.send(key, &publish(0x3c, "room/1", 8, "b"));
    bench.send(key, &publish(0x3a, "room/1", 9, "c"));
    assert_eq!(bench.payloads(), ["x", "c"]);
    bench.commit();
    assert_eq!(bench.output(key), [0x40, 2, 0, 7, 0x50, 2, 0, 8, 0x40, 2, 0, 9]);
    assert_eq!(bench.send(key, &[0x62, 2, 0, 8]), [0x70, 2, 0, 8]);
}

/// Found by the simulation: all devices had sent all that they might have unanswered, and waited for ever.
#[test]
fn a_message_that_is_sent_again_after_a_crash_is_answered_though_nothing_new_comes() {
    let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
    let (key, _) = bench.connect(&connect("device", false));
    bench.send(key, &publish(0x32, "room/1", 7, "a"));
    bench.send(key, &publish(0x34, "room/1", 8, "b"));
    note(&mut bench, &mut remembered);

    let mut bench = restart(&remembered);
    let (key, _) = bench.connect(&connect("device", false));
    assert_eq!(bench.send(key, &publish(0x3a, "room/1", 7, "a")), [0x40, 2, 0, 7]);
    assert_eq!(bench.send(key, &publish(0x3c, "room/1", 8, "b")), [0x50, 2, 0, 8]);
    assert_eq!(bench.payloads(), [""; 0]);
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

/// The session `device`, each time it was noted: what is known of it.
fn known(bench: &mut Bench, remembered: &mut Remembered) -> Vec<u16> {
    note(bench, remembered);
    let is_part = |key: &[u8]| key == b"wdevice" || key.starts_with(b"x") && key.ends_with(b"device");
    let mut window = Window::new();
    remembered.iter().filter(|(key, _)| is_part(key)).for_each(|(_, part)| window::decode(&mut window, part));
    window.into_keys().collect()
}

#[test]
fn what_was_answered_stays_known_and_what_was_released_does_not() {
    let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
    let (key, _) = bench.connect(&connect("device", false));
    bench.send(key, &publish(0x32, "room/1", 7, "a"));
    bench.send(key, &publish(0x34, "room/1", 8, "b"));
    assert_eq!(known(&mut bench, &mut remembered), [7, 8]);
    bench.commit();
    assert!(!bench.broker.has_news(), "no commit of its own for that");
    assert_eq!(
        known(&mut bench, &mut remembered),
        [7, 8],
        "the answers may not arrive; and PUBREL has not come"
    );
    bench.send(key, &[0x62, 2, 0, 8]);
    bench.send(key, &publish(0x32, "room/1", 9, "c"));
    assert_eq!(known(&mut bench, &mut remembered), [7, 9]);
    bench.commit();
    bench.send(key, &publish(0x32, "room/1", 10, "d"));
    assert_eq!(known(&mut bench, &mut remembered), [7, 9, 10], "of several commits");
    bench.commit();
    // An id that is given to an equal message.
    bench.send(key, &publish(0x32, "room/1", 9, "c"));
    assert_eq!(known(&mut bench, &mut remembered), [9], "that it was answered is no longer known");
    bench.commit();
    bench.send(key, &publish(0x32, "room/1", 11, "e"));
    assert_eq!(known(&mut bench, &mut remembered), [11]);
}

/// A link with a long way: PUBACKs of many commits are on it when the power fails.
#[test]
fn messages_whose_answers_of_many_commits_did_not_arrive_are_stored_once() {
    let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
    let (key, _) = bench.connect(&connect("device", false));
    let ids = 1..=config().receive_maximum;
    for id in ids.clone() {
        bench.send(key, &publish(0x32, "room/1", id, &format!("{id}")));
        note(&mut bench, &mut remembered);
        bench.commit();
    }
    let mut bench = restart(&remembered);
    let (key, _) = bench.connect(&connect("device", false));
    for id in ids {
        bench.send(key, &publish(0x3a, "room/1", id, &format!("{id}")));
    }
    assert_eq!(bench.payloads(), [""; 0]);
}

/// While a commit waits, a round of reading costs what it brought.
#[test]
fn a_message_costs_a_note_of_some_bytes_however_many_are_unanswered() {
    let config = Listener { receive_maximum: 2000, ..config() };
    let (mut bench, mut remembered) = (Bench::new(config), Remembered::new());
    let (key, _) = bench.connect(&connect_with("device", 0, &[], &[]));
    note(&mut bench, &mut remembered);
    let mut bytes = 0;
    for id in 1..=2000 {
        bench.send(key, &publish(0x32, "room/1", id, "a"));
        let changes = bench.broker.changes(bench.now);
        bytes +=
            changes.iter().map(|(_, value)| value.as_ref().map_or(0, |value| value.len())).sum::<usize>();
    }
    assert!(bytes < 2000 * 50, "{bytes} bytes");
}

#[test]
fn a_message_whose_answer_went_with_the_connection_is_stored_once() {
    let (mut bench, mut remembered) = (Bench::new(config()), Remembered::new());
    let (key, _) = bench.connect(&connect("device", false));
    for (id, payload) in [(1, "a"), (2, "b"), (3, "c")] {
        bench.send(key, &publish(0x32, "room/1", id, payload));
        bench.commit();
    }
    // It has read the first answer alone.
    bench.lose(key);
    note(&mut bench, &mut remembered);
    for crashed in [false, true] {
        let mut restarted = restart(&remembered);
        let next = if crashed { &mut restarted } else { &mut bench };
        let (key, _) = next.connect(&connect("device", false));
        assert_eq!(next.send(key, &publish(0x3a, "room/1", 2, "b")), [0x40, 2, 0, 2]);
        assert_eq!(next.send(key, &publish(0x3a, "room/1", 3, "c")), [0x40, 2, 0, 3]);
        next.send(key, &publish(0x32, "room/1", 4, "d"));
        next.commit();
        assert_eq!(next.output(key), [0x40, 2, 0, 4]);
        let before = if crashed { &[][..] } else { &["a", "b", "c"] };
        assert_eq!(next.payloads(), [before, &["d"]].concat());
    }
}

/// A device whose readings are equal, and that has few ids: one that is lost on its way and comes as a repetition is no repetition.
#[test]
fn a_device_that_gives_an_id_to_an_equal_message_loses_none() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("device", false));
    for _ in 0..2 {
        bench.send(key, &publish(0x32, "room/1", 1, "open"));
        bench.commit();
    }
    bench.lose(key);
    let (key, _) = bench.connect(&connect("device", false));
    bench.send(key, &publish(0x3a, "room/1", 1, "open"));
    assert_eq!(bench.payloads(), ["open", "open", "open"]);
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
