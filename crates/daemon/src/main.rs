//! The `vpnd` binary.
fn main() {}
