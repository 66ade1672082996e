//! Partition: which partition of its stream a device belongs to, the same that any Kafka producer in Java chooses.

use std::num::{NonZeroU16, NonZeroU32};

use crate::record::{DeviceId, PartitionId};

/// The partition of `device` in a stream of `partitions` partitions: Kafka's default partitioner over the key.
///
/// The same for ever, so that the records of a device stay in one partition and thereby in order.
pub fn partition_of(device: &DeviceId, partitions: NonZeroU16) -> PartitionId {
    PartitionId(wayside_protocol::partition::partition(device.as_bytes(), NonZeroU32::from(partitions)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_goes_where_the_java_client_sends_its_key() {
        // murmur2 of Kafka's own UtilsTest: "foobar" -> -790332482, "21" -> -973932308.
        let check = |device: &str, partitions: u16, expected: i32| {
            let partitions = NonZeroU16::new(partitions).unwrap();
            assert_eq!(partition_of(&DeviceId::new(device).unwrap(), partitions), PartitionId(expected));
        };
        check("foobar", 10, (-790_332_482 & 0x7fff_ffff) % 10);
        check("21", 7, (-973_932_308 & 0x7fff_ffff) % 7);
        check("foobar", 1, 0);
    }

    #[test]
    fn every_partition_is_in_range() {
        for partitions in [1, 2, 3, 4, 12, u16::MAX] {
            let partitions = NonZeroU16::new(partitions).unwrap();
            for n in 0..500 {
                let PartitionId(p) =
                    partition_of(&DeviceId::new(&format!("device-{n}")).unwrap(), partitions);
                assert!((0..i32::from(partitions.get())).contains(&p));
            }
        }
    }
}
