//! Every scenario, in one binary.
//!
//! `cargo test -p vpnd-tests --test scenarios -- interop` runs those whose name has the word.

use std::process::ExitCode;

use vpnd_tests::runner;

fn main() -> ExitCode {
    runner::main(Vec::new())
}
