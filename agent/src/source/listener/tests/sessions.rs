//! Sessions, subscribers, retained messages and wills.

use super::*;

/// What a subscriber of MQTT 5 gets at QoS 0.
fn got(topic: &str, payload: &str) -> Vec<u8> {
    publish(0x30, topic, 0, payload)
}

#[test]
fn a_client_that_connects_again_takes_its_session_over() {
    let mut bench = Bench::new(config());
    let (old, present) = bench.connect(&connect("c", false));
    assert!(!present);
    bench.send(old, &subscribe(&[("home/#", 0)]));
    let (new, present) = bench.connect(&connect("c", false));
    assert!(present);
    assert_eq!(bench.output(old), [0xe0, 1, 0x8e]);
    assert_eq!(bench.broker.clients(), 1);
    bench.lose(old);
    bench.send(new, &publish(0x30, "home/1", 0, "a"));
    assert_eq!(bench.output(new), [0; 0], "sent at once");
    let (other, _) = bench.connect(&connect("d", true));
    bench.send(other, &publish(0x30, "home/1", 0, "b"));
    assert_eq!(bench.output(new), got("home/1", "b"), "the subscription is the session's");
}

#[test]
fn a_session_ends_by_its_expiry_by_a_clean_start_and_at_once_if_it_has_none() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("c", false));
    bench.lose(key);
    bench.wait(299);
    let (key, present) = bench.connect(&connect("c", false));
    assert!(present);
    bench.lose(key);
    bench.wait(300);
    let (key, present) = bench.connect(&connect("c", false));
    assert!(!present);
    bench.lose(key);
    assert!(!bench.connect(&connect("c", true)).1);
    let (key, _) = bench.connect(&connect_with("short", 0, &[], &[]));
    bench.lose(key);
    assert!(!bench.connect(&connect_with("short", 0, &[], &[])).1);
    let (key, _) = bench.connect(&connect_v3("three", false));
    bench.lose(key);
    bench.wait(3599);
    assert!(bench.connect(&connect_v3("three", false)).1, "as long as the configuration says");
    // DISCONNECT may change it, but not from none (section 3.14.2.2.2).
    let (key, _) = bench.connect(&connect("c", true));
    bench.send(key, &packet(0xe0, &[0, 5, 0x11, 0, 0, 0, 0]));
    bench.lose(key);
    assert!(!bench.connect(&connect("c", false)).1);
    let (key, _) = bench.connect(&connect_with("short", 2, &[], &[]));
    assert_eq!(bench.send(key, &packet(0xe0, &[0, 5, 0x11, 0, 0, 0, 9])), [0xe0, 1, 0x82]);
}

#[test]
fn there_are_no_more_than_twice_as_many_sessions_as_connections() {
    let mut bench = Bench::new(Listener { max_connections: 2, ..config() });
    for id in ["a", "b", "c", "d", "e"] {
        bench.now = bench.now + Duration::from_secs(1);
        let (key, _) = bench.connect(&connect(id, false));
        bench.lose(key);
    }
    assert_eq!(bench.broker.drops()["too_many_sessions"], 1);
    let present = |bench: &mut Bench, id| {
        let (key, present) = bench.connect(&connect(id, false));
        bench.lose(key);
        present
    };
    assert!(present(&mut bench, "b") && !present(&mut bench, "a"), "the one that would end first");
}

#[test]
fn a_subscriber_that_was_away_gets_what_came_at_qos_1() {
    let mut bench = Bench::new(config());
    let (subscriber, _) = bench.connect(&connect("s", false));
    assert_eq!(bench.send(subscriber, &subscribe(&[("room/+", 2)])), [0x90, 4, 0, 1, 0, 1], "QoS 1 at most");
    let (publisher, _) = bench.connect(&connect("p", true));
    bench.send(publisher, &publish(0x32, "room/1", 1, "a"));
    assert_eq!(bench.output(subscriber), publish(0x32, "room/1", 1, "a"));
    bench.lose(subscriber);
    bench.send(publisher, &publish(0x32, "room/1", 2, "b"));
    bench.send(publisher, &publish(0x30, "room/1", 0, "QoS 0 does not wait"));
    let (key, missed) = bench.resume("s");
    assert_eq!(missed, [publish(0x3a, "room/1", 1, "a"), publish(0x32, "room/1", 2, "b")].concat());
    bench.send(key, &packet(0x40, &[0, 1]));
    bench.lose(key);
    let (key, missed) = bench.resume("s");
    assert_eq!(missed, publish(0x3a, "room/1", 2, "b"), "what it has not acknowledged");
    bench.send(key, &packet(0x40, &[0, 2]));
    bench.lose(key);
    assert_eq!(bench.resume("s").1, [0; 0]);
}

#[test]
fn a_slow_subscriber_loses_its_own_messages_and_holds_up_nobody() {
    let mut bench = Bench::new(config());
    let (slow, _) = bench.connect(&connect("slow", true));
    bench.send(slow, &subscribe(&[("room/+", 0)]));
    let (quick, _) = bench.connect(&connect("quick", true));
    bench.send(quick, &subscribe(&[("room/+", 0)]));
    let (publisher, _) = bench.connect(&connect("p", true));
    for _ in 0..2000 {
        bench.send(publisher, &publish(0x30, "room/1", 0, &"x".repeat(90)));
        assert_eq!(bench.output(quick).len(), 101);
        // What fits is encoded, and nobody takes it.
        bench.broker.output(bench.now, slow);
    }
    let lost = usize::try_from(bench.broker.drops()["slow_subscriber"]).expect("a count");
    assert_eq!(bench.taken.messages.len(), 2000);
    let rest = bench.output(slow).len() / 101;
    assert_eq!(lost + rest, 2000);
    assert!((100..300).contains(&rest), "{rest}");
}

#[test]
fn retained_messages_go_to_new_subscriptions_as_they_ask_for() {
    let mut bench = Bench::new(config());
    let (publisher, _) = bench.connect(&connect("p", true));
    bench.send(publisher, &publish(0x31, "room/1", 0, "a"));
    bench.send(publisher, &publish(0x31, "room/2", 0, "b"));
    bench.send(publisher, &publish(0x31, "room/2", 0, ""));
    let (key, _) = bench.connect(&connect("s", true));
    let suback = [0x90, 4, 0, 1, 0, 0];
    let with = |bench: &mut Bench, filter, options| bench.send(key, &subscribe(&[(filter, options)]));
    let retained = publish(0x31, "room/1", 0, "a");
    assert_eq!(with(&mut bench, "room/+", 0x20), suback, "never");
    assert_eq!(with(&mut bench, "room/+", 0x10), suback, "not new");
    assert_eq!(with(&mut bench, "room/+", 0x00), [&suback[..], &retained].concat());
    assert_eq!(with(&mut bench, "room/1", 0x10), [&suback[..], &retained].concat(), "new");
    assert_eq!(with(&mut bench, "$SYS/#", 0), suback);
    // Live messages carry RETAIN only where that was asked for, and not to who sent them if that was not wanted.
    let unsubscribed = bench.send(key, &packet(0xa2, &[vec![0, 2, 0], text("room/1"), text("x")].concat()));
    assert_eq!(unsubscribed, [0xb0, 5, 0, 2, 0, 0, 0x11]);
    bench.send(publisher, &publish(0x31, "room/1", 0, "c"));
    assert_eq!(bench.output(key), got("room/1", "c"));
    with(&mut bench, "room/+", 0x28);
    bench.send(publisher, &publish(0x31, "room/1", 0, "d"));
    assert_eq!(bench.output(key), publish(0x31, "room/1", 0, "d"), "retain as published");
    with(&mut bench, "room/+", 0x24);
    assert_eq!(bench.send(key, &publish(0x30, "room/1", 0, "own")), [0; 0], "no local");
    bench.send(publisher, &publish(0x31, "room/1", 0, &"x".repeat(100)));
    for topic in 0..30 {
        bench.send(publisher, &publish(0x31, &format!("room/{topic}"), 0, &"x".repeat(100)));
    }
    assert!(bench.broker.drops()["retained_full"] > 10, "bounded");
}

#[test]
fn shared_subscriptions_are_refused_with_their_reason() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("c", true));
    let answer = bench.send(key, &subscribe(&[("$share/g/room/+", 0), ("room/+", 1)]));
    assert_eq!(answer, [0x90, 5, 0, 1, 0, 0x9e, 1]);
    let (key, _) = bench.connect(&connect_v3("d", true));
    let answer = bench.send(key, &packet(0x82, &[vec![0, 1], text("$share/g/a"), vec![0]].concat()));
    assert_eq!(answer, [0x90, 3, 0, 1, 0x80]);
    let (key, _) = bench.connect(&connect("e", true));
    let with_id = packet(0x82, &[vec![0, 1, 2, 0x0b, 7], text("a"), vec![0]].concat());
    assert_eq!(bench.send(key, &with_id), [0xe0, 1, 0xa1]);
}

#[test]
fn properties_are_handed_on_but_for_the_alias_and_the_time_that_has_passed() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("s", false));
    bench.send(key, &subscribe(&[("room/+", 1)]));
    let (publisher, _) = bench.connect(&connect("p", true));
    let properties = [&[0x23, 0, 1, 0x02, 0, 0, 0, 100][..], b"\x26\0\x01n\0\x01v"].concat();
    let message = [text("room/1"), vec![0, 1, 15], properties, b"a".to_vec()].concat();
    bench.lose(key);
    bench.send(publisher, &packet(0x32, &message));
    bench.wait(40);
    let (key, missed) = bench.resume("s");
    let properties = [&[12, 0x02, 0, 0, 0, 60][..], b"\x26\0\x01n\0\x01v"].concat();
    assert_eq!(missed, packet(0x32, &[text("room/1"), vec![0, 1], properties, b"a".to_vec()].concat()));
    bench.lose(key);
    bench.wait(60);
    assert_eq!(bench.resume("s").1, [0; 0], "expired");
}

/// CONNECT with the will `gone` to `room/1`.
fn connect_with_will(id: &str, delay_s: u8) -> Vec<u8> {
    let will = [vec![5, 0x18, 0, 0, 0, delay_s], text("room/1"), text("gone")].concat();
    connect_with(id, 0x04, &[0x11, 0, 0, 1, 0x2c], &will)
}

#[test]
fn a_will_is_stored_and_handed_on_when_its_connection_breaks_and_not_when_it_ends() {
    let mut bench = Bench::new(config());
    let (subscriber, _) = bench.connect(&connect("s", true));
    bench.send(subscriber, &subscribe(&[("room/+", 0)]));
    let (key, _) = bench.connect(&connect_with_will("c", 0));
    bench.send(key, &[0xe0, 0]);
    bench.lose(key);
    assert_eq!(bench.taken.messages, []);
    let (key, _) = bench.connect(&connect_with_will("c", 0));
    bench.send(key, &[0xe0, 1, 4]);
    assert_eq!(bench.payloads(), ["gone"], "DISCONNECT with will");
    assert_eq!(bench.output(subscriber), got("room/1", "gone"));
    bench.lose(key);
    let (key, _) = bench.connect(&connect_with_will("c", 0));
    bench.lose(key);
    assert_eq!(bench.payloads(), ["gone", "gone"]);
    let (key, _) = bench.connect(&connect_with_will("c", 0));
    bench.send(key, &[0x00, 0]);
    assert_eq!(bench.payloads().len(), 3, "for an error of its own");
}

#[test]
fn a_will_with_a_delay_waits_and_is_forgotten_when_the_client_is_back() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect_with_will("c", 30));
    bench.lose(key);
    bench.wait(29);
    assert_eq!(bench.taken.messages, []);
    let (key, _) = bench.connect(&connect_with_will("c", 30));
    bench.wait(30);
    assert_eq!(bench.taken.messages, []);
    bench.lose(key);
    bench.wait(30);
    assert_eq!(bench.payloads(), ["gone"]);
    let (key, _) = bench.connect(&connect_with_will("c", 30));
    bench.lose(key);
    bench.connect(&connect("c", true));
    assert_eq!(bench.payloads(), ["gone", "gone"], "the session's end does not wait");
}

#[test]
fn a_shutdown_tells_everybody_and_sends_no_will() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect_with_will("c", 0));
    bench.broker.shut_down(bench.now, &mut bench.taken);
    assert_eq!(bench.output(key), [0xe0, 1, 0x8b]);
    assert_eq!((bench.taken.messages.len(), bench.refusal()), (0, None));
}
