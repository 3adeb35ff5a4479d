#!/usr/bin/env bash
# Rust's OpenOptions::custom_flags(O_PATH) has no effect for musl: the file is really opened. Opening a socket as a mere path
# then fails with ENXIO, a program that may be executed but not read with EACCES, and reading from what was meant to be a
# path succeeds. musl counts O_PATH (as O_SEARCH) to O_ACCMODE, and the standard library takes the bits of O_ACCMODE out
# of the flags that it is given. open(2) itself, as nix calls it, takes the flag with either C library.
#
# Seen with Rust 1.95.0, targets x86_64-unknown-linux-gnu and -musl: what is printed below.
# Needs rustup with both targets. Ends with 1 if the standard library does otherwise.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat >"$place/path.rs" <<'RUST'
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;

/// The same number on x86_64 with both C libraries.
const O_PATH: i32 = 0o10000000;

fn main() {
    let place = std::env::args().nth(1).expect("a directory");
    let open = |path: &str| OpenOptions::new().read(true).custom_flags(O_PATH).open(path);
    let socket = format!("{place}/socket");
    let _listener = UnixListener::bind(&socket).expect("bind");
    let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(0);
    let socket = open(&socket).map_or_else(errno, |_| 0);
    let mut file = open("/proc/self/cmdline").expect("a file that everybody may read");
    let read = file.read(&mut [0; 16]).map_or_else(errno, |_| 0);
    println!("open of a socket: errno {socket}; read from a path: errno {read}");
}
RUST
status=0
for target in gnu:"open of a socket: errno 0; read from a path: errno 9" musl:"open of a socket: errno 6; read from a path: errno 0"; do
    library=${target%%:*}
    rustc +1.95.0 --edition 2021 --target "x86_64-unknown-linux-$library" -o "$place/$library" "$place/path.rs"
    seen=$("$place/$library" "$place")
    rm -f "$place/socket"
    echo "$library: $seen"
    [ "$seen" = "${target#*:}" ] || status=1
done
exit $status
