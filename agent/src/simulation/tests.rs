//! Fixed seeds, fresh seeds, and what makes a simulation worth something.

use super::*;

/// Fails with the smallest scenario found that fails as that of `seed` does.
#[track_caller]
fn assert_holds(seed: u64) -> Summary {
    let scenario = Scenario::of(seed);
    match scenario.run() {
        Ok(summary) => summary,
        Err(broken) => {
            let smallest = scenario.minimised();
            panic!("{broken}\n{scenario:?}\nsmaller: {smallest:?}: {:?}", smallest.run());
        }
    }
}

#[test]
fn fixed_seeds_keep_the_promises() {
    let mut all = Counts::default();
    let mut crashes = 0;
    for seed in 0..100 {
        let summary = assert_holds(seed);
        crashes += summary.crashes;
        all.acknowledged += summary.counts.acknowledged;
        all.repeated += summary.counts.repeated;
        all.told += summary.counts.told;
        all.corrected += summary.counts.corrected;
    }
    // A simulation in which nothing happens proves nothing.
    assert!(
        crashes > 100 && all.acknowledged > 5_000 && all.repeated > 0 && all.told > 0 && all.corrected > 500,
        "{crashes}, {all}"
    );
}

#[test]
fn fresh_seeds_keep_the_promises() {
    let first: u64 = SmallRng::from_os_rng().random();
    for seed in (0..50).map(|n| first.wrapping_add(n)) {
        assert_holds(seed);
    }
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in 1000..1020 {
        assert_eq!(Scenario::of(seed).run(), Scenario::of(seed).run());
    }
}

/// At least once is what replication promises.
#[test]
fn what_kafka_holds_twice_is_found_where_it_must_not_be() {
    let is_found =
        |seed| Scenario { transactions: false, exactly_once: true, ..Scenario::of(seed) }.run().is_err();
    assert!((0..100).any(is_found));
}

#[test]
fn a_failing_scenario_is_made_smaller_and_fails_still() {
    let fails = |scenario: &Scenario| scenario.run().is_err();
    let scenario = (0..100)
        .map(|seed| Scenario { transactions: false, exactly_once: true, ..Scenario::of(seed) })
        .find(fails)
        .expect("Kafka holds something twice");
    let smaller = scenario.minimised();
    assert!(fails(&smaller) && smaller.steps <= scenario.steps, "{smaller}");
}
