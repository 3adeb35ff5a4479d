//! Draws values from proptest's strategies, seed by seed, until a test has processed enough packets.
//!
//! `VPND_TESTS=long` selects the full counts; `VPND_SEED=n` selects a single seed.

use std::cell::Cell;
use std::env;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestError, TestRng, TestRunner};

/// Passes values to `check` until at least `enough` packets were checked. `check` returns the number of packets
/// it checked, and panics at a difference. Returns the total number.
pub(crate) fn each_seed<S: Strategy>(
    strategy: &S,
    enough: usize,
    check: impl Fn(S::Value) -> usize,
) -> usize {
    let packets = Cell::new(0);
    let checked = |value| {
        packets.set(packets.get() + check(value));
        Ok(())
    };
    if let Some(seed) = env::var("VPND_SEED").ok().map(|seed| seed.parse().unwrap()) {
        draw(strategy, seed, checked);
        return packets.get();
    }
    for seed in 0.. {
        draw(strategy, seed, checked);
        if packets.get() >= enough {
            break;
        }
    }
    packets.get()
}

/// Returns `short` or `long`, depending on the requested length of the tests.
pub(crate) fn sized(short: usize, long: usize) -> usize {
    if env::var("VPND_TESTS").is_ok_and(|tests| tests == "long") { long } else { short }
}

fn draw<S: Strategy>(strategy: &S, seed: u64, check: impl Fn(S::Value) -> TestCaseResult) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { max_shrink_time: 20_000, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let tree = strategy.new_tree(&mut runner).unwrap();
    if let Err(TestError::Fail(reason, least)) = runner.run_one(tree, check) {
        panic!("VPND_SEED={seed}: {reason}\nas with {least:?}");
    }
}
