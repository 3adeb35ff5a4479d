//! Runs tests that change the whole process in a separate process.

use std::panic::{UnwindSafe, catch_unwind};
use std::process::{self, Command};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// This variable is set in the environment of the child process.
const MARK: &str = "VPND_TEST_CHILD";

/// Runs `inside` in a new process with one thread, and with `environment` added. The process is the test binary
/// again, with only the calling test selected, whose path is `test`.
pub(crate) fn in_child(
    test: &str,
    environment: &[(&str, &str)],
    inside: impl FnOnce() + UnwindSafe,
) {
    if std::env::var_os(MARK).is_some() {
        return in_fork(inside);
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(MARK, "1")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{failed}");
}

/// Runs `inside` in a fork, in which the test runner's own thread does not exist.
fn in_fork(inside: impl FnOnce() + UnwindSafe) {
    // SAFETY: the only other thread is the runner's. It waits for this one, so it holds none of the locks that
    // the child may need.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => process::exit(i32::from(catch_unwind(inside).is_err())),
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
    }
}
