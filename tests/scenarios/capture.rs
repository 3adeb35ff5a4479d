//! `vpnd capture`, read by Debian's tshark.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::status::Status;
use vpnd_tests::traffic::{iperf, ping, tcp};
use vpnd_tests::vpnd::{self, program};
use vpnd_tests::{Host, Key, Lab, Process, Vpnd, Wire, eventually};

use crate::tunnel::{SOON, Tunnel};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario::new("capture::both sides of a tun device", Cost::Works, both_sides),
        Scenario::new("capture::frames of a tap device", Cost::Works, frames),
        Scenario::new("capture::lines for a terminal", Cost::Works, lines),
        Scenario::new("capture::who may not, and keys that are not allowed", Cost::Works, refused),
        Scenario::new("capture::a flood is lost in the capture alone", Cost::Alone, flood),
    ];
    for (name, speaks, psk) in [
        ("WireGuard", Speaks::WireGuard, false),
        ("WireGuard with a preshared key", Speaks::WireGuard, true),
        ("the profile without what only vpnd has", Speaks::Profile, true),
    ] {
        let name = format!("capture::tshark decrypts {name}");
        all.push(Scenario::new(name, Cost::Works, move |lab| decrypts(lab, speaks, psk)));
    }
    all.push(Scenario::new("capture::tshark decrypts what wireguard-go sends", Cost::Works, other));
    all
}

#[derive(Clone, Copy)]
enum Speaks {
    WireGuard,
    Profile,
}

/// Pings of a capture.
const PINGS: u32 = 5;

/// A capture that runs until it is interrupted.
pub(crate) struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Begins with these options, and the file of this name.
    pub(crate) fn begin(host: &Host, tunnel: &str, file: &str, options: &str) -> Result<Self> {
        let file = host.directory().join(file);
        let mut command = host.command(program()?);
        command.args(["capture", tunnel, "-w"]).arg(&file).args(options.split_whitespace());
        let process = host.spawn("capture", command)?;
        let capture = Self { process, file };
        eventually("the file is begun", SOON, || {
            let len = fs::metadata(&capture.file).map_or(0, |found| found.len());
            ensure!(len > 0, "{}", capture.process.log());
            Ok(())
        })?;
        Ok(capture)
    }

    /// Ends it with Ctrl-C; returns the file, and what the command has said.
    pub(crate) fn end(mut self) -> Result<(PathBuf, String)> {
        let ended = self.process.interrupt()?;
        ensure!(ended.success(), "it ended with {ended}: {}", self.process.log());
        Ok((self.file, self.process.log()))
    }
}

/// The number of packets that tshark finds.
fn found(host: &Host, file: &Path, filter: &str, more: &str) -> Result<u32> {
    let line = format!("tshark {more} -r {} -T fields -e frame.number -Y {filter}", file.display());
    let said = host.run(&line)?;
    Ok(u32::try_from(said.lines().count())?)
}

/// The statistics of each interface: packets, and those that the capture lacks.
fn statistics(file: &Path) -> Result<Vec<(u64, u64)>> {
    let bytes = fs::read(file)?;
    let (mut rest, mut all) = (bytes.as_slice(), Vec::new());
    while let Some(front) = rest.first_chunk::<8>() {
        let word = |at: usize| {
            u32::from_le_bytes([front[at], front[at + 1], front[at + 2], front[at + 3]])
        };
        let block = rest.get(..word(4) as usize).context("a block is cut short")?;
        if word(0) == 5 {
            let long = |at: usize| block[at..at + 8].try_into().map(u64::from_le_bytes);
            all.push((long(24)?, long(36)?));
        }
        rest = &rest[block.len()..];
    }
    Ok(all)
}

/// What is private to root: the packets.
fn ensure_private(file: &Path) -> Result<()> {
    let mode = fs::metadata(file)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{} has mode {mode:o}", file.display());
    Ok(())
}

fn pinged(host: &Host, count: u32) -> Result<()> {
    let pings = ping::series(host, INNER_B4, count, Duration::from_millis(20))?;
    ensure!(pings.answered == count, "{pings:?}");
    Ok(())
}

fn both_sides(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let host = &tunnel.wire.a;
    let capture = Capture::begin(host, "site-a", "both.pcapng", "--both")?;
    let status = vpnd::run(host, &["status", "site-a"])?.1;
    ensure!(status.contains("  capture  inner packets and outer datagrams\n"), "{status}");
    pinged(host, PINGS)?;
    tcp::transfer(host, &tunnel.wire.b, INNER_B4, 1 << 20)?;
    let (file, said) = capture.end()?;
    ensure_private(&file)?;
    let inner = found(host, &file, "icmp&&frame.interface_id==0", "")?;
    ensure!(inner == 2 * PINGS, "{inner} inner packets of {PINGS} pings");
    let outer = found(host, &file, "wg.type==4&&ip.src==192.0.2.1&&frame.interface_id==1", "")?;
    ensure!(outer >= PINGS, "{outer} datagrams left");
    for filter in ["wg.type==4&&ip.dst==192.0.2.1", "tcp&&frame.interface_id==0"] {
        ensure!(found(host, &file, filter, "")? > 0, "nothing is {filter}");
    }
    let checked = "-o ip.check_checksum:TRUE -o udp.check_checksum:TRUE";
    let bad = "ip.checksum.status==0||udp.checksum.status==0||_ws.malformed";
    ensure!(found(host, &file, bad, checked)? == 0, "a header is wrong");
    let [inner, outer] = statistics(&file)?[..] else { anyhow::bail!("no statistics") };
    ensure!(inner.1 == 0 && outer.1 == 0 && inner.0 > 700 && outer.0 > 700, "{inner:?} {outer:?}");
    let status = vpnd::run(host, &["status", "site-a"])?.1;
    ensure!(!status.contains("  capture"), "{status}");
    Ok(said.trim().to_owned())
}

fn frames(lab: &Lab) -> Result<String> {
    let tap = |mut site: Site| {
        site.interface.push("mode = \"tap\"".to_owned());
        site.speaking_vpnd(&[])
    };
    let tunnel = Tunnel::with(lab, |a, b| (tap(a.towards(Wire::B4)), tap(b)))?;
    let host = &tunnel.wire.a;
    let capture = Capture::begin(host, "site-a", "tap.pcapng", "--inner")?;
    pinged(host, PINGS)?;
    let (file, said) = capture.end()?;
    let icmp = found(host, &file, "eth&&icmp", "")?;
    ensure!(icmp == 2 * PINGS, "{icmp} frames of {PINGS} pings: {said}");
    Ok(format!("{icmp} frames"))
}

fn lines(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let host = &tunnel.wire.a;
    let run = || vpnd::run(host, &["capture", "site-a", "--both", "-c", "4", "--seconds", "20"]);
    let (code, said) = thread::scope(|scope| {
        let capture = scope.spawn(run);
        eventually("it runs", SOON, || {
            ensure!(vpnd::run(host, &["status", "site-a"])?.1.contains("  capture"));
            Ok(())
        })?;
        pinged(host, PINGS)?;
        capture.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    })?;
    ensure!(code == 0 && said.lines().count() == 4 + 1, "{code}: {said}");
    for part in [
        " inner out IP 10.99.0.1 > 10.99.0.2: ICMP, length 84\n",
        " outer out IP 192.0.2.1.51820 > 192.0.2.2.51820: WireGuard data, length 128\n",
        " outer in  IP 192.0.2.2.51820 > 192.0.2.1.51820: WireGuard data, length 128\n",
        " inner in  IP 10.99.0.2 > 10.99.0.1: ICMP, length 84\n",
    ] {
        ensure!(said.contains(part), "no line {part:?}:\n{said}");
    }
    // For a program that reads it at once.
    let piped = format!("{} capture site-a --inner -w - --seconds 2", program()?.display());
    let file = host.directory().join("piped");
    let shell = format!("exec {piped} > {}", file.display());
    let mut command = host.command("sh");
    let mut process = host.spawn("piped", {
        command.args(["-c", &shell]);
        command
    })?;
    thread::sleep(Duration::from_millis(500));
    pinged(host, PINGS)?;
    ensure!(process.wait(SOON)?.success(), "{}", process.log());
    ensure!(found(host, &file, "icmp", "")? == 2 * PINGS, "other packets came to standard output");
    Ok(said.lines().take(4).collect::<Vec<_>>().join("\n    "))
}

/// Runs a capture that has to fail with this exit code.
fn fails(host: &Host, options: &str, code: i32) -> Result<String> {
    let words: Vec<_> = ["capture", "site-a"].into_iter().chain(options.split(' ')).collect();
    let (ended, said) = vpnd::run(host, &words)?;
    ensure!(ended == code, "`{options}` ends with {ended}: {said}");
    Ok(said)
}

fn refused(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let host = &tunnel.wire.a;
    let file = host.directory().join("none");
    let said = fails(host, &format!("--outer --keys -w {}", file.display()), 1)?;
    ensure!(said.contains("[service] allow_key_log = true"), "{said}");
    ensure!(!file.exists(), "a file was made");
    let capture = Capture::begin(host, "site-a", "first.pcapng", "--inner")?;
    let second = fails(host, "--outer --seconds 1", 1)?;
    ensure!(second.contains("only one can run at a time"), "{second}");
    capture.end()?;
    fails(host, "--inner --seconds 1", 0)?;
    let as_nobody = format!(
        "setpriv --reuid=65534 --regid=65534 --clear-groups {} capture site-a --inner --seconds 1",
        program()?.display()
    );
    let denied = host.run(&as_nobody).err().context("nobody may capture")?;
    ensure!(format!("{denied:#}").contains("no permission"), "{denied:#}");
    host.run("chmod 666 /run/vpnd/site-a.sock")?;
    let denied = host.run(&as_nobody).err().context("nobody may capture")?;
    ensure!(format!("{denied:#}").contains("uid 65534 may not ask"), "{denied:#}");
    let log = tunnel.a.as_process().log();
    ensure!(!log.contains("private key"), "{log}");
    Ok(said.trim().to_owned())
}

pub(crate) fn allowing(mut site: Site) -> Site {
    site.service.push("allow_key_log = true".to_owned());
    site
}

fn decrypts(lab: &Lab, speaks: Speaks, psk: bool) -> Result<String> {
    let key = Key::preshared()?;
    let with = |site: Site| {
        let site = if psk { site.with_preshared(&key) } else { site };
        match speaks {
            Speaks::WireGuard => site,
            Speaks::Profile => {
                site.speaking_vpnd(&["post_quantum = false", "cipher = \"chacha20-poly1305\""])
            }
        }
    };
    let settled = |a: Site, b| (allowing(with(a.towards(Wire::B4))), allowing(with(b)));
    let tunnel = Tunnel::with(lab, settled)?;
    let wire = &tunnel.wire;
    // Who begins a capture initiates, so B has the keys of a handshake at either side.
    let responder = renewed(&tunnel, || begin_with_keys(&wire.b, "site-b"))?;
    let initiator = renewed(&tunnel, || begin_with_keys(&wire.a, "site-a"))?;
    pinged(&wire.a, PINGS - 1)?;
    let (mut told, captures) = (Vec::new(), [initiator.end()?.0, responder.end()?.0]);
    // The first capture has one handshake and the pings after it; the second one more of each.
    for (file, (pings, sessions)) in captures.iter().zip([(PINGS, 1), (PINGS + 1, 2)]) {
        ensure_private(file)?;
        let icmp = found(&wire.a, file, "icmp", "")?;
        ensure!(icmp == 2 * pings, "{icmp} of {} packets are decrypted", 2 * pings);
        let opened = found(&wire.a, file, "wg.handshake_ok==1", "")?;
        ensure!(opened == sessions, "{opened} handshakes are decrypted");
        told.push(format!("{icmp} packets of {opened} sessions"));
    }
    let log = tunnel.a.as_process().log();
    ensure!(log.contains("WARN root captures this tunnel's packets together with"), "{log}");
    key_log(&tunnel)?;
    let status = vpnd::run(&wire.a, &["status", "site-a"])?.1;
    ensure!(status.contains("  key log  allowed"), "{status}");
    Ok(format!("decrypted: {}", told.join("; ")))
}

fn begin_with_keys(host: &Host, tunnel: &str) -> Result<Capture> {
    Capture::begin(host, tunnel, "keys.pcapng", "--outer --keys")
}

/// What `begin` returns, once both ends have the session that it starts.
fn renewed<T>(tunnel: &Tunnel, begin: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = tunnel.a.status()?.handshakes();
    let begun = begin()?;
    // The end that has just responded leaves the other five seconds.
    let later = |status: &Status| status.handshakes() > before;
    tunnel.a.wait_for("a new session", 2 * SOON, later)?;
    pinged(&tunnel.wire.a, 1)?;
    Ok(begun)
}

/// The keys in a file of their own, in the form that Wireshark's preference takes.
fn key_log(tunnel: &Tunnel) -> Result<()> {
    let (host, keys) = (&tunnel.wire.a, tunnel.wire.a.directory().join("keys.txt"));
    let options = format!("--outer --keys={}", keys.display());
    let capture = renewed(tunnel, || Capture::begin(host, "site-a", "plain.pcapng", &options))?;
    pinged(host, PINGS - 1)?;
    let (file, _) = capture.end()?;
    ensure_private(&keys)?;
    ensure!(found(host, &file, "icmp", "")? == 0, "the capture has keys itself");
    let preference = format!("-o wg.keylog_file:{}", keys.display());
    let icmp = found(host, &file, "icmp", &preference)?;
    ensure!(icmp == 2 * PINGS, "{icmp} with the key log: {}", fs::read_to_string(&keys)?);
    // It is not overwritten.
    let again = fails(host, &format!("--outer --seconds 1 {}", &options[8..]), 1)?;
    ensure!(again.contains("must be new"), "{again}");
    Ok(())
}

/// The keys are those of any implementation's session.
fn other(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let psk = Key::preshared()?;
    let (a, b) = (a.towards(Wire::B4).with_preshared(&psk), b.with_preshared(&psk));
    let _peer = Peer::start(Kind::WireguardGo, &wire.b, &b)?;
    let vpnd = Vpnd::start(&wire.a, &allowing(a))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    let capture = Capture::begin(&wire.a, "site-a", "keys.pcapng", "--both --keys")?;
    vpnd.wait_for("a new session", SOON, |status| status.handshakes() > 1)?;
    pinged(&wire.a, PINGS)?;
    let (file, _) = capture.end()?;
    let icmp = found(&wire.a, &file, "icmp&&frame.interface_id==1", "")?;
    ensure!(icmp == 2 * PINGS, "{icmp} of {} packets are decrypted", 2 * PINGS);
    Ok(format!("{icmp} packets"))
}

fn flood(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let wire = &tunnel.wire;
    let plain = iperf::tcp(&wire.a, &wire.b, INNER_B4, 3)?;
    let before = [tunnel.a.status()?.dropped(), tunnel.b.status()?.dropped()];
    let capture = Capture::begin(&wire.a, "site-a", "flood.pcapng", "--both")?;
    let captured = iperf::tcp(&wire.a, &wire.b, INNER_B4, 3)?;
    pinged(&wire.a, PINGS)?;
    let (file, _) = capture.end()?;
    let after = [tunnel.a.status()?.dropped(), tunnel.b.status()?.dropped()];
    ensure!(before == after, "dropped before {before:?}, after {after:?}");
    let statistics = statistics(&file)?;
    let packets = found(&wire.a, &file, "frame", "")?;
    let (seen, lost) =
        statistics.iter().fold((0, 0), |(seen, lost), one| (seen + one.0, lost + one.1));
    ensure!(lost > 0 && seen - lost == u64::from(packets), "{packets} of {statistics:?}");
    let memory = tunnel.a.as_process().peak_resident()? >> 20;
    Ok(format!(
        "{plain:?} without, {captured:?} with a capture that lacks {lost} of {seen} packets; {memory} MiB"
    ))
}
