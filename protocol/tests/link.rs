//! The link over lines that lose, damage, double and reorder, with restarts at both ends.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Chance, Faults, Outcome, Plan, World};
use proptest::prelude::*;
use wayside_protocol::link::device::Overflow;

const SOUND: Plan = Plan {
    readings: 200,
    every_us: 10_000,
    commit_us_max: 20_000,
    overflow: Overflow::Refuse,
    faults: Faults {
        lose: 0,
        flip_bits: 0,
        drop_byte: 0,
        insert_byte: 0,
        cut: 0,
        noise: 0,
        duplicate: 0,
        delay: 0,
        reset_device: 0,
        restart_gateway: 0,
        change_credit: 0,
    },
};

fn run<const RING: usize>(seed: u64, plan: Plan) -> Outcome {
    World::<RING>::new(Chance::new(seed, &[]), plan).run()
}

#[test]
fn sound_line_brings_everything_over_once_without_resending() {
    let outcome = run::<8>(1, SOUND);
    assert_eq!((outcome.delivered, outcome.lost, outcome.resent), (200, 0, 0));
}

fn faults() -> impl Strategy<Value = Faults> {
    let chance = || prop_oneof![3 => Just(0u16), 2 => 1..100u16, 1 => 100..500u16];
    let rare = || prop_oneof![3 => Just(0u16), 1 => 1..40u16];
    (
        (chance(), chance(), chance(), chance(), chance()),
        (chance(), chance(), chance()),
        (rare(), rare(), chance()),
    )
        .prop_map(
            |(
                (lose, flip_bits, drop_byte, insert_byte, cut),
                (noise, duplicate, delay),
                (reset_device, restart_gateway, change_credit),
            )| Faults {
                lose,
                flip_bits,
                drop_byte,
                insert_byte,
                cut,
                noise,
                duplicate,
                delay,
                reset_device,
                restart_gateway,
                change_credit,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn any_line_brings_everything_over_once_and_in_order_or_reports_it_lost(
        seed in any::<u64>(),
        faults in faults(),
        every_us in prop_oneof![Just(1u64), 1..20_000u64, 20_000..500_000u64],
        commit_us_max in prop_oneof![Just(0u64), 0..20_000u64, 0..2_000_000u64],
        drop_oldest in any::<bool>(),
        long_ring in any::<bool>(),
    ) {
        let overflow = if drop_oldest { Overflow::DropOldest } else { Overflow::Refuse };
        let plan = Plan { readings: 150, every_us, commit_us_max, overflow, faults };
        if long_ring { run::<50>(seed, plan) } else { run::<8>(seed, plan) };
    }
}
