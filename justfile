# What is done every day. `just` alone lists it; `.ci/run` is what must pass before a change is taken.

set shell := ["bash", "-euo", "pipefail", "-c"]

_default:
    @just --list --unsorted

# All that needs no privilege and no network: the quick answer before a commit
check: lint
    cargo test --workspace --profile fast --exclude vpnd-tests

# Formatting, lints, documentation, dependencies
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --profile fast -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
    cargo deny check licenses bans sources

# Every test, as root: tests/setup installs what they need beyond Rust
test *filter:
    tests/setup
    cargo test --workspace --profile fast {{ filter }}

# The same with the full counts: up to an hour
test-long *filter:
    tests/setup
    VPND_TESTS=long cargo test --workspace --profile fast {{ filter }}

# vpnd beside every other tunnel that is installed, as root, for half an hour; `--quick` for a first look
bench *options:
    tests/setup bench
    cargo run --release -p vpnd-tests --bin bench -- {{ options }}

# A tunnel at work between two network namespaces of this machine
demo:
    cargo run --release -- demo

# Debian packages in target/packaging: `just deb amd64 arm64`
deb *architectures:
    packaging/deb {{ architectures }}

# Programs without libraries in target/packaging: `just static x86_64 aarch64`
static *architectures:
    packaging/static {{ architectures }}

# All of a release, with check sums and a bill of materials; `--twice` builds it in two directories and compares
release *options:
    packaging/release {{ options }}

# This vpnd beside an earlier release or commit
compatibility *old:
    tests/compatibility/run {{ old }}
