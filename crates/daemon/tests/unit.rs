//! The unit file's filter of system calls allows what vpnd's own sandbox needs: otherwise systemd would forbid a call that a
//! thread makes after it has confined itself, or that confines it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what does not unwrap fails its test")]

use std::collections::BTreeSet;
use std::process::Command;

const UNIT: &str = include_str!("../../../systemd/vpnd@.service");
const CALLS: &str = include_str!("../src/sandbox/calls.rs");

/// All calls of the lists in the sandbox. Calls of other processors than x86-64 are in them too.
fn calls() -> BTreeSet<&'static str> {
    let name = |text: &'static str| text.split(|c: char| !c.is_alphanumeric() && c != '_').next();
    CALLS.split("libc::SYS_").skip(1).filter_map(name).collect()
}

/// The calls of a group, with those of the groups in it.
fn group(name: &str) -> BTreeSet<String> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", name]).output();
    let output = output.expect("systemd-analyze, of the package systemd");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#'));
    let expanded = lines.flat_map(|line| match line.strip_prefix('@') {
        Some(_) => group(line),
        None => BTreeSet::from([line.to_owned()]),
    });
    expanded.collect()
}

/// The calls that the unit's lines allow, applied in their order (`systemd.exec(5)`).
fn allowed() -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for line in UNIT.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (removes, names) = line.strip_prefix('~').map_or((false, line), |names| (true, names));
        for name in names.split_whitespace() {
            let calls =
                if name.starts_with('@') { group(name) } else { BTreeSet::from([name.to_owned()]) };
            match removes {
                true => allowed.retain(|call| !calls.contains(call)),
                false => allowed.extend(calls),
            }
        }
    }
    allowed
}

#[test]
fn the_units_filter_allows_what_the_sandbox_needs() {
    let (calls, allowed) = (calls(), allowed());
    assert!(calls.len() > 80 && allowed.len() > 200, "{} {}", calls.len(), allowed.len());
    let forbidden: Vec<_> = calls.into_iter().filter(|call| !allowed.contains(*call)).collect();
    assert_eq!(forbidden, [""; 0]);
}

#[test]
fn the_unit_keeps_descriptors_over_a_restart() {
    let most = UNIT.lines().find_map(|line| line.strip_prefix("FileDescriptorStoreMax="));
    // Eight queues, one that is only written, the socket, the configuration and the sessions.
    assert!(most.unwrap().parse::<u32>().unwrap() >= 12);
}
