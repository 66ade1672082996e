//! Tests of the `replicator` module.
