//! Times of receipt are corrected by the clock as it is when records are sent.

use super::*;
use crate::record::BootId;

/// When the system started.
const START: UnixMicros = UnixMicros(1_800_000_000_000_000);

const HOUR_US: i64 = 3_600_000_000;

/// Lets the clock run since the start of the system `boot`, where it showed `start`, and be an hour on now.
fn set_clock(world: &mut World, boot: u32, start: UnixMicros, quality: ClockQuality) {
    world.timeline = Timeline { boot: BootId(boot), start };
    world.wall = UnixMicros(start.0 + HOUR_US);
    world.quality = quality;
}

/// Commits an entry of one record that a device made a second ago, as it says itself or as the gateway counts back.
fn commit(world: &mut World, dates_event: bool) {
    let base = world.offsets.entry(("a", 0)).or_default();
    let mut entry = Arc::unwrap_or_clone(group(world.log_end.0, &[("a", 0, *base, 1)]));
    *base += 1;
    let received = Received { dates_event, ..world.clock() };
    let made = if dates_event { received.at } else { UnixMicros(START.0 + HOUR_US) };
    let record = &mut entry.batches[0].records[0];
    record.received = received;
    record.event_time = Some(UnixMicros(made.0 - 1_000_000));
    world.log.insert(world.log_end, Arc::new(entry));
    world.log_end = world.log_end.next();
}

/// What Kafka has: time of receipt, its quality, timestamp in ms.
fn sent(world: &World) -> Vec<(i64, ClockQuality, i64)> {
    let held = world.brokers.partition("test.a", PartitionId(0));
    held.iter().map(|a| (a.received.at.0, a.received.quality, a.timestamp_ms)).collect()
}

#[test]
fn what_came_before_the_clock_was_set_is_sent_with_its_right_time_also_after_a_restart() {
    let mut world = World::new(5, 1 << 20);
    set_clock(&mut world, 3, UnixMicros(0), ClockQuality::Unknown);
    commit(&mut world, false);
    commit(&mut world, true);
    set_clock(&mut world, 3, START, ClockQuality::Synced);
    commit(&mut world, true);
    world.restart_agent();
    world.run_until_caught_up();
    let received = START.0 + HOUR_US;
    let made_ms = received / 1000 - 1000;
    assert_eq!(
        sent(&world),
        [ClockQuality::Estimated, ClockQuality::Estimated, ClockQuality::Synced]
            .map(|q| (received, q, made_ms))
    );
    assert_eq!(world.metrics.corrected_records.get(), 2);
    assert_eq!(world.metrics.restamped_records.get(), 0);
}

#[test]
fn what_came_before_an_earlier_start_of_the_system_or_was_sent_already_keeps_its_time() {
    let mut world = World::new(5, 1 << 20);
    set_clock(&mut world, 3, UnixMicros(0), ClockQuality::Unknown);
    commit(&mut world, true);
    world.restart_agent();
    world.run_until_caught_up();
    world.save_cursor();
    commit(&mut world, true);
    set_clock(&mut world, 4, START, ClockQuality::Synced);
    world.restart_agent();
    world.run_until_caught_up();
    let in_1970 = (HOUR_US, ClockQuality::Unknown, HOUR_US / 1000 - 1000);
    assert_eq!(sent(&world), [in_1970, in_1970]);
    assert_eq!(world.metrics.corrected_records.get(), 0);
}

#[test]
fn the_age_of_the_backlog_does_not_count_by_how_much_the_clock_was_set() {
    let mut world = World::new(5, 1 << 20);
    world.brokers.set_away(true);
    set_clock(&mut world, 3, UnixMicros(0), ClockQuality::Unknown);
    commit(&mut world, true);
    world.restart_agent();
    world.step();
    set_clock(&mut world, 3, START, ClockQuality::Synced);
    world.wall = UnixMicros(world.wall.0 + 7_000_000);
    world.replicator.publish(world.clock());
    assert_eq!(world.metrics.oldest_age_seconds.get(), 7);
}
