//! Tests of the `kafka` module.
