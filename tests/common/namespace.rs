//! A network namespace for one unit test. Several crates include this file.

use std::panic::resume_unwind;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a thread that has an empty network namespace.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("a network namespace: run as root or `unshare -r`");
        test();
    };
    if let Err(panic) = thread::spawn(body).join() {
        resume_unwind(panic);
    }
}

/// What `ip` prints, run with these arguments in the namespace of this thread.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
