//! Tests that change the whole process, each in a process of its own.

use std::panic::UnwindSafe;
use std::process::Command;

/// Set in the process that runs a test's inside.
const MARK: &str = "VPND_TEST_CHILD";

/// Runs `inside` in a new process with one thread, and with `environment` added: the test binary
/// again, with nothing but the calling test, whose path is `test`.
pub(crate) fn in_child(
    test: &str,
    environment: &[(&str, &str)],
    inside: impl FnOnce() + UnwindSafe,
) {
    if std::env::var_os(MARK).is_some() {
        return inside();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{failed}");
}
