//! Tests of the `driver` module.
