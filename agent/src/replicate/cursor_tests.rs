//! Tests of the `cursor` module.
