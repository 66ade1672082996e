//! A Kafka broker inside this process, for the demo and for tests: one node, everything in memory, gone when dropped.
//!
//! It speaks Kafka's protocol (messages by the crate `kafka-protocol`) with what a producer and a consumer with assigned
//! partitions need, transactions in full: idempotent producers, fencing by epoch, control markers, aborted
//! transactions hidden from `read_committed`, consumer offsets committed with a transaction, transaction timeouts. It
//! can go away, with every connection cut and every new one refused, and come back with its data.
//!
//! It is our own because neither of the brokers that can be had as a library shows what the demo is to show.
//! `tansu-broker` 0.6 names no aborted transactions in its fetch responses, so that `read_committed` consumers get
//! records twice that were sent once; answers a producer that asks for its next epoch with an error; and needs 269 more
//! crates. librdkafka's mock cluster writes no markers, forgets consumer offsets and fences nobody.
//!
//! What it lacks: consumer group membership (`subscribe`), replication, compaction and retention (topics only grow),
//! security, automatic topic creation, checking of checksums.

mod cluster;
mod log;
mod server;
#[cfg(test)]
mod tests;
mod transactions;

pub use server::EmbeddedKafka;
