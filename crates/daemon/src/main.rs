//! The `vpnd` binary.

mod config;
mod exit;
mod keys;

fn main() {}
