//! The wayside-sim binary.
fn main() {}
