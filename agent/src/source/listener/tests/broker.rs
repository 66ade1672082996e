//! Acknowledgements, credit, limits and access.

use super::*;

const ACKS: [u8; 12] = [0x40, 2, 0, 1, 0x50, 2, 0, 2, 0x40, 2, 0, 3];

#[test]
fn puback_and_pubrec_wait_for_the_commit_and_keep_publish_order() {
    for (connect, publish) in [
        (connect("c", true), publish as fn(u8, &str, u16, &str) -> Vec<u8>),
        (connect_v3("c", true), publish_v3),
    ] {
        let mut bench = Bench::new(config());
        let (key, _) = bench.connect(&connect);
        let window = [
            publish(0x32, "room/1", 1, "a"),
            publish(0x34, "room/1", 2, "b"),
            publish(0x32, "room/1", 3, "c"),
        ];
        assert_eq!(bench.send(key, &window.concat()), [0; 0]);
        assert_eq!(bench.broker.unacknowledged(), 3);
        bench.commit();
        assert!(bench.broker.touched().contains(&key));
        assert_eq!(bench.output(key), ACKS, "all of a window at once");
        assert_eq!(bench.payloads(), ["a", "b", "c"]);
        assert_eq!(bench.broker.unacknowledged(), 0);
    }
}

#[test]
fn a_message_that_is_not_stored_is_answered_in_its_turn() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("c", true));
    assert_eq!(bench.send(key, &publish(0x32, "home/lamp", 1, "on")), [0x40, 2, 0, 1], "nobody before it");
    bench.send(key, &publish(0x32, "room/1", 2, "a"));
    assert_eq!(bench.send(key, &publish(0x32, "home/lamp", 3, "off")), [0; 0]);
    bench.commit();
    assert_eq!(bench.output(key), [0x40, 2, 0, 2, 0x40, 2, 0, 3]);
    assert_eq!(bench.payloads(), ["a"]);
}

#[test]
fn a_qos_2_message_is_stored_once_until_its_pubrel() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("c", true));
    let (first, again) = (publish(0x34, "room/1", 7, "a"), publish(0x3c, "room/1", 7, "a"));
    bench.send(key, &first);
    assert_eq!(bench.send(key, &again), [0; 0], "no PUBREC before the commit");
    bench.commit();
    assert_eq!(bench.output(key), [0x50, 2, 0, 7], "one, for both");
    bench.lose(key);
    let (key, present) = bench.connect(&connect("c", false));
    assert!(present);
    bench.send(key, &publish(0x32, "room/1", 8, "b"));
    assert_eq!(bench.send(key, &again), [0; 0], "answered behind all that was taken");
    bench.commit();
    assert_eq!(bench.output(key), [0x40, 2, 0, 8, 0x50, 2, 0, 7]);
    assert_eq!(bench.send(key, &packet(0x62, &[0, 7])), [0x70, 2, 0, 7]);
    assert_eq!(bench.send(key, &packet(0x62, &[0, 7])), [0x70, 3, 0, 7, 0x92], "an id that nobody knows");
    bench.send(key, &first);
    assert_eq!(bench.payloads(), ["a", "b", "a"]);
}

#[test]
fn what_a_broken_connection_left_unanswered_is_recognised_in_its_session_alone() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("c", true));
    bench.send(key, &publish(0x32, "room/1", 1, "a"));
    bench.send(key, &publish(0x32, "room/1", 2, "b"));
    bench.lose(key);
    let (key, _) = bench.connect(&connect("c", false));
    bench.send(key, &publish(0x3a, "room/1", 1, "a"));
    bench.send(key, &publish(0x3a, "room/1", 2, "not b"));
    assert_eq!(bench.payloads(), ["a", "b", "not b"]);
    bench.commit();
    assert_eq!(bench.output(key), [0x40, 2, 0, 1, 0x40, 2, 0, 2]);
    bench.send(key, &publish(0x32, "room/1", 3, "c"));
    bench.lose(key);
    let (key, present) = bench.connect(&connect("c", true));
    assert!(!present);
    bench.send(key, &publish(0x3a, "room/1", 3, "c"));
    assert_eq!(bench.payloads()[3..], ["c", "c"], "another session");
}

#[test]
fn a_client_that_never_releases_its_ids_costs_no_memory_and_is_served() {
    let mut bench = Bench::new(config());
    let (mut key, _) = bench.connect(&connect("c", true));
    for id in 1..=100 {
        bench.send(key, &publish(0x34, "room/1", id, "a"));
        bench.lose(key);
        key = bench.resume("c").0;
    }
    bench.send(key, &publish(0x3c, "room/1", 100, "a"));
    assert_eq!(bench.payloads().len(), 100, "the latest is known");
    bench.send(key, &publish(0x3c, "room/1", 1, "a"));
    assert_eq!(bench.payloads().len(), 101, "the first is not");
}

#[test]
fn a_client_beyond_its_receive_maximum_is_told_so_and_one_at_it_hastens_the_commit() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("c", true));
    for id in 1..=10 {
        let at_limit =
            bench.broker.received(bench.now, key, &publish(0x32, "room/1", id, "a"), &mut bench.taken);
        assert_eq!(at_limit, id == 10);
    }
    assert_eq!(bench.send(key, &publish(0x32, "room/1", 11, "a")), [0xe0, 1, 0x93]);
    assert!(bench.broker.is_done(key));
    // MQTT 3.1.1 knows no such limit: it is not read until it is answered.
    let (key, _) = bench.connect(&connect_v3("d", true));
    for id in 1..=10 {
        assert!(bench.broker.may_read(bench.now, key));
        bench.send(key, &publish_v3(0x32, "room/1", id, "a"));
    }
    assert!(!bench.broker.may_read(bench.now, key));
    bench.commit();
    assert!(bench.broker.may_read(bench.now, key));
}

#[test]
fn an_alias_stands_for_the_topic_it_was_set_to() {
    let aliased =
        |topic: &str, alias: u8| packet(0x30, &[text(topic), vec![3, 0x23, 0, alias, b'p']].concat());
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("c", true));
    for publish in [aliased("room/1", 2), aliased("", 2), aliased("room/2", 2), aliased("", 2)] {
        assert_eq!(bench.send(key, &publish), [0; 0]);
    }
    let topics: Vec<_> = bench.taken.messages.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(topics, ["room/1", "room/1", "room/2", "room/2"]);
    assert_eq!(bench.send(key, &aliased("", 1)), [0xe0, 1, 0x82], "never set");
    let (key, _) = bench.connect(&connect("c", true));
    assert_eq!(bench.send(key, &aliased("", 2)), [0xe0, 1, 0x82], "of another connection");
    let (key, _) = bench.connect(&connect("c", true));
    assert_eq!(bench.send(key, &aliased("room/1", 9)), [0xe0, 1, 0x94], "above the maximum");
}

#[test]
fn what_is_out_of_order_ends_the_connection() {
    let mut bench = Bench::new(config());
    let key = bench.open();
    bench.send(key, &publish(0x30, "room/1", 0, "a"));
    assert_eq!(bench.refusal(), Some("a packet before CONNECT"));
    assert!(bench.broker.is_done(key) && bench.taken.messages.is_empty());
    let (key, _) = bench.connect(&connect("c", true));
    assert_eq!(bench.send(key, &connect("c", true)), [0xe0, 1, 0x82]);
    assert_eq!(bench.refusal(), Some("a second CONNECT"));
    let key = bench.open();
    assert_eq!(
        bench.send(key, &connect_v3("", false)),
        [0x20, 2, 0, 2],
        "no id, and a session to find by it"
    );
    let key = bench.open();
    assert_eq!(bench.send(key, &packet(0x10, b"\0\x06MQIsdp\x03\x02\0\x0a\0\x01c")), [0x20, 2, 0, 1]);
    let key = bench.open();
    let id = "c".repeat(TOPIC_BYTES_MAX + 1);
    let long = [&[0x10, 0x8d, 0x08][..], b"\0\x04MQTT\x04\x02\0\x0a", &text(&id)].concat();
    assert_eq!(bench.send(key, &long), [0x20, 2, 0, 2]);
    // Pipelined behind what was refused, it counts no more.
    let key = bench.open();
    bench.send(key, &[connect("c", true), vec![0xf0, 0], publish(0x30, "room/1", 0, "a")].concat());
    assert_eq!(bench.taken.messages, []);
}

#[test]
fn a_client_is_told_its_limits_and_an_id_if_it_has_none() {
    let mut bench = Bench::new(config());
    let key = bench.open();
    let answer = bench.send(key, &connect_with("", 2, &[0x11, 0xff, 0xff, 0xff, 0xff], &[]));
    let has = |bytes: &[u8]| answer.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(&[0x11, 0, 0, 0x0e, 0x10]), "session expiry 3 600 s");
    assert!(has(&[0x21, 0, 10]) && has(&[0x27, 0, 0, 0x10, 0]), "receive maximum, packet size");
    assert!(has(b"\x12\0\x18wayside-0000000000000001"));
    let key = bench.open();
    let mut for_ever = connect("d", true);
    for_ever[11] = 0;
    let answer = bench.send(key, &for_ever);
    assert_eq!(answer[answer.len() - 3..], [0x13, 0, 60], "server keep-alive");
}

#[test]
fn a_client_that_is_silent_or_never_connects_is_let_go() {
    let mut bench = Bench::new(config());
    let mute = bench.open();
    bench.wait(9);
    let (key, _) = bench.connect(&connect("c", true));
    assert!(!bench.broker.is_done(mute));
    bench.wait(1);
    assert!(bench.broker.is_done(mute));
    assert_eq!(bench.output(mute), [0; 0]);
    bench.wait(60);
    assert_eq!(bench.send(key, &[0xc0, 0]), [0xd0, 0], "PINGRESP");
    bench.wait(90);
    assert!(!bench.broker.is_done(key), "one and a half times the keep-alive");
    // A part of a packet is no sign of life.
    bench.send(key, &[0x30]);
    bench.wait(1);
    assert_eq!(bench.output(key), [0xe0, 1, 0x8d]);
}

#[test]
fn connections_and_unfinished_packets_are_bounded() {
    let mut bench = Bench::new(Listener { max_connections: 3, max_packet_bytes: 16 << 20, ..config() });
    let keys: Vec<_> = ["a", "b", "c"].map(|id| bench.connect(&connect(id, true)).0).into();
    assert_eq!(bench.broker.open(bench.now, [127, 0, 0, 1].into(), &mut bench.taken), None);
    assert_eq!(bench.broker.drops()["too_many_connections"], 1);
    // Packets of 15 MiB, of which most never comes.
    let begun = |mib: usize| [&[0x30, 0x80, 0x80, 0xc0, 0x07][..], &vec![b'x'; mib << 20]].concat();
    bench.send(keys[0], &begun(5));
    bench.send(keys[1], &begun(2));
    assert!(keys.iter().all(|key| !bench.broker.is_done(*key)));
    bench.send(keys[2], &begun(2));
    let done: Vec<_> = keys.iter().map(|key| bench.broker.is_done(*key)).collect();
    assert_eq!(done, [true, false, false], "the largest");
}

#[test]
fn a_packet_that_comes_byte_by_byte_is_looked_at_when_it_is_whole() {
    let now = Monotonic::default();
    let mut connection = Connection::new(now, [127, 0, 0, 1].into(), &config());
    let whole = packet(0x30, &[text("room/1"), vec![b'x'; 100]].concat());
    let (first, rest) = whole.split_at(5);
    let (last, rest) = rest.split_last().expect("long");
    let mut input = connection.take(now, first);
    assert_eq!(connection.next_packet(now, &mut input), Ok(None));
    for byte in rest {
        assert_eq!(connection.take(now, &[*byte]), "");
    }
    // With what comes behind it.
    let mut input = connection.take(now, &[*last, 0xc0, 0]);
    assert_eq!(connection.next_packet(now, &mut input), Ok(Some(whole.into())));
    assert_eq!(input, [0xc0, 0][..]);
}

#[test]
fn a_client_that_does_not_read_its_answers_is_not_read() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("c", true));
    for _ in 0..4096 {
        assert!(bench.broker.may_read(bench.now, key));
        bench.broker.received(bench.now, key, &[0xc0, 0].repeat(8), &mut bench.taken);
    }
    assert!(!bench.broker.may_read(bench.now, key));
    assert_eq!(bench.output(key).len(), 64 * 1024);
    assert!(bench.broker.may_read(bench.now, key));
}

#[test]
fn a_client_over_its_rate_is_read_later() {
    let mut bench = Bench::new(Listener { client_messages_per_second: 2, ..config() });
    let (key, _) = bench.connect(&connect("c", true));
    for _ in 0..4 {
        bench.send(key, &publish(0x30, "room/1", 0, "a"));
    }
    assert!(!bench.broker.may_read(bench.now, key));
    let at = bench.broker.read_at(bench.now, key).expect("a time");
    assert_eq!(at.since(bench.now), Duration::from_secs(1), "4 messages take 2 s, of which one is spared");
    assert!(bench.broker.may_read(at, key));
    let (other, _) = bench.connect(&connect("d", true));
    assert!(bench.broker.may_read(bench.now, other));
    let mut bench = Bench::new(Listener { client_bytes_per_second: 100, ..config() });
    let (key, _) = bench.connect(&connect("c", true));
    bench.send(key, &publish(0x30, "room/1", 0, &"a".repeat(100)));
    assert!(!bench.broker.may_read(bench.now, key));
}

#[test]
fn an_mqtt_5_client_is_told_what_a_policy_dropped_and_what_does_not_decode() {
    let mut bench = Bench::new(config());
    let (key, _) = bench.connect(&connect("device", false));
    bench.send(key, &publish(0x32, "room/1", 1, "a"));
    bench.send(key, &publish(0x32, "room/1", 2, "b"));
    bench.send(key, &publish(0x34, "room/1", 3, "c"));
    bench.send(key, &publish(0x32, "room/1", 4, "invalid"));
    let (v3, _) = bench.connect(&connect_v3("old", true));
    bench.send(v3, &publish_v3(0x32, "room/1", 1, "invalid"));
    bench.commit_but(&[1, 2, 4]);
    let expected =
        [&[0x40, 2, 0, 1][..], &[0x40, 3, 0, 2, 0x97], &[0x50, 3, 0, 3, 0x97], &[0x40, 3, 0, 4, 0x99]];
    assert_eq!(bench.output(key), expected.concat());
    assert_eq!(bench.output(v3), [0x40, 2, 0, 1], "MQTT 3.1.1 has no reason codes");
    // No PUBREL follows such a PUBREC (section 4.3.3): the id is free.
    bench.send(key, &publish(0x34, "room/1", 3, "c"));
    assert_eq!(bench.payloads(), ["a", "b", "c", "invalid", "invalid", "c"]);
}

#[test]
fn of_too_many_connections_without_connect_the_oldest_goes() {
    let mut bench = Bench::new(Listener { max_half_open: 2, ..config() });
    let (served, _) = bench.connect(&connect("c", true));
    let oldest = bench.open();
    assert!(bench.broker.accept_at() <= bench.now);
    let second = bench.open();
    let at = bench.broker.accept_at();
    assert_eq!(at.since(bench.now), Duration::from_secs(1), "it has its time");
    bench.now = at;
    let third = bench.open();
    assert!(bench.broker.is_done(oldest));
    assert_eq!(bench.refusal(), Some("the oldest of too many connections without CONNECT"));
    bench.lose(oldest);
    // Who connects, or goes, makes room.
    assert!(bench.broker.accept_at() <= bench.now, "the second had its time too");
    bench.now = bench.now + Duration::from_millis(1);
    bench.send(second, &connect("d", true));
    let fourth = bench.open();
    assert!(bench.broker.accept_at() > bench.now);
    bench.lose(third);
    assert!(bench.broker.accept_at() <= bench.now);
    assert!(![served, second, fourth].into_iter().any(|key| bench.broker.is_done(key)));
}
