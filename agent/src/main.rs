//! The wayside binary.
fn main() {}
