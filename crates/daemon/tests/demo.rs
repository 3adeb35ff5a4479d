//! Tests of `vpnd demo` as a user runs it: as root, as another user, and interrupted.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;

const VPND: &str = env!("CARGO_BIN_EXE_vpnd");

/// A directory in which every user can run the demonstration.
fn workplace() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    place
}

fn demo(program: &str, place: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("TMPDIR", place).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(said).unwrap()
}

fn assert_shown(output: &Output) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for line in [
        "10.99.0.2 -> 10.99.0.1  5 of 5 answered",
        "fd99::1 -> fd99::2    5 of 5 answered",
        "; it reads the sentence 0 times.",
        "handshake initiation ",
        "0000  04 00 00 00 ",
        "The tunnel carries ",
        "site-a  UP ",
        "site-b  UP ",
        "Everything crossed",
    ] {
        assert!(said.contains(line), "{line:?} is missing from\n{said}");
    }
}

fn assert_empty(place: &Path) {
    let left: Vec<_> = fs::read_dir(place).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// Whether the tests can run: without root, or without the TUN driver, the demonstration has to fail.
fn is_able() -> bool {
    Uid::effective().is_root() && Path::new("/dev/net/tun").exists()
}

#[test]
fn it_shows_a_tunnel_and_cleans_up() {
    let place = workplace();
    let output = demo(VPND, place.path()).args(["demo", "--seconds", "1"]).output().unwrap();
    if is_able() {
        assert_shown(&output);
    } else if !output.status.success() {
        assert!(matches!(output.status.code(), Some(69 | 77)), "{}", text(&output));
    }
    assert_empty(place.path());
}

/// On most systems every user may open the device file. On others, a mount namespace gets one that is open to
/// all.
#[test]
fn it_needs_no_root() {
    if !is_able() {
        return;
    }
    let (place, hall) = (workplace(), workplace());
    let program = hall.path().join("vpnd");
    fs::copy(VPND, &program).unwrap();
    let script = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
                  exec setpriv --reuid 65534 --regid 65534 --clear-groups $0 demo --seconds 1";
    let mut command = demo("unshare", place.path());
    let output = command.args(["-m", "sh", "-c", script]).arg(&program).output().unwrap();
    let forbidden = output.status.code() == Some(77) && text(&output).contains("is refused");
    if !forbidden {
        assert_shown(&output);
        assert!(text(&output).contains("by uid 65534 in a user namespace"));
    }
    assert_empty(place.path());
}

#[test]
fn an_interruption_leaves_nothing_behind() {
    if !is_able() {
        return;
    }
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let place = workplace();
        let mut child = demo(VPND, place.path()).arg("demo").spawn().unwrap();
        let daemon = second_daemon(&mut child);
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(!Path::new("/proc").join(&daemon).exists(), "process {daemon} goes on");
        assert_empty(place.path());
    }
}

#[test]
fn a_killed_demonstration_takes_its_daemons_with_it() {
    if !is_able() {
        return;
    }
    let place = workplace();
    let mut child = demo(VPND, place.path()).arg("demo").spawn().unwrap();
    let daemon = Path::new("/proc").join(second_daemon(&mut child));
    child.kill().unwrap();
    child.wait().unwrap();
    let gone = || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        !daemon.exists()
    };
    assert!((0..500).any(|_| gone()), "{daemon:?} goes on");
}

/// Reads until both daemons are up, and returns the process id of the second one. The output stays open.
fn second_daemon(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    let mut lines = lines.filter_map(|line| {
        let (_, rest) = line.split_once("site-b  process ")?;
        Some(rest.split(',').next()?.to_owned())
    });
    lines.next().expect("a demonstration starts two daemons")
}
