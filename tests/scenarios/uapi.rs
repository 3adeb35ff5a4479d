//! WireGuard's own tools on a running vpnd.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::status::Status;
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Key, Lab, Vpnd, Wire, binaries, eventually};

use crate::change::Flow;
use crate::rekey::{Losses, Streams};
use crate::tunnel::{SOON, Tunnel};

/// The time in which the other end's key follows.
const SKEW: Duration = Duration::from_millis(700);
/// A handshake whose answer did not open is tried again after five seconds.
const RENEWED: Duration = Duration::from_secs(12);
const CHANGES: usize = 5;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (tools, wg) in [("Debian's tools", Tools::Debian), ("the newest tools", Tools::Newest)] {
        let name = format!("uapi::each command, {tools}");
        all.push(Scenario::new(name, Cost::Works, move |lab| commands(lab, wg)));
    }
    all.extend([
        Scenario::new("uapi::five preshared keys, two vpnd", Cost::Waits, two_vpnd),
        Scenario::new("uapi::five preshared keys, wireguard-go", Cost::Waits, with_wireguard_go),
        Scenario::new("uapi::another endpoint and keepalive", Cost::Works, moved),
        Scenario::new("uapi::bad requests stop nothing", Cost::Works, bad_requests),
        Scenario::new("uapi::other users are refused", Cost::Works, other_users),
    ]);
    all
}

/// Which `wg`.
#[derive(Clone, Copy)]
enum Tools {
    Debian,
    Newest,
}

impl Tools {
    fn wg(self) -> Result<PathBuf> {
        match self {
            Self::Debian => binaries::installed("wg"),
            Self::Newest => binaries::newest("wg"),
        }
    }
}

fn with_socket(mut site: Site) -> Site {
    site.service.push("uapi = true".to_owned());
    site
}

/// Both with the socket; A initiates.
fn pair() -> Result<(Site, Site)> {
    let (a, b) = site::pair()?;
    Ok((with_socket(a.towards(Wire::B4)), with_socket(b)))
}

/// Runs a line that has to fail; returns what it printed.
fn refused(host: &Host, line: &str) -> Result<String> {
    match host.run(line) {
        Ok(printed) => anyhow::bail!("`{line}` works, and prints {printed:?}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// One version of `wg` on a host, with a transcript of what was typed and printed.
struct Prompt<'h> {
    host: &'h Host,
    wg: String,
    transcript: String,
}

impl Prompt<'_> {
    /// Runs a command that works; returns what it printed.
    fn run(&mut self, words: &str) -> Result<String> {
        let printed = self.host.run(&format!("{} {words}", self.wg))?;
        self.note(words, &printed);
        Ok(printed)
    }

    /// Runs a command that vpnd refuses.
    fn refused(&mut self, words: &str) -> Result<()> {
        let said = refused(self.host, &format!("{} {words}", self.wg))?;
        self.note(words, said.find("Unable to").map_or(said.as_str(), |at| &said[at..]));
        ensure!(said.contains("Operation not supported"), "{words}: {said}");
        Ok(())
    }

    fn note(&mut self, words: &str, printed: &str) {
        let lines = printed.trim_end().lines();
        self.transcript.push_str(&format!("\n    # wg {words}"));
        lines.for_each(|line| self.transcript.push_str(&format!("\n    {line}")));
    }
}

/// Every command, and what it prints.
fn commands(lab: &Lab, tools: Tools) -> Result<String> {
    let wg = tools.wg()?.display().to_string();
    let (a, b) = pair()?;
    let psk = Key::preshared()?;
    let (a, b) = (a.with_preshared(&psk).keepalive(25), b.with_preshared(&psk));
    let tunnel = Tunnel::with(lab, |_, _| (a.clone(), b.clone()))?;
    let mut prompt = Prompt { host: &tunnel.wire.a, wg, transcript: String::new() };
    prompt.run("--version")?;
    shows(&mut prompt, &a, &psk)?;
    takes_what_is_in_force(&mut prompt, &a, &psk)?;
    ensure!(tunnel.a.status()?.listen_port() == Some(51820), "the port has moved");
    refuses(&mut prompt, &a)?;
    tunnel.a.wait_for_log("refused a request on the WireGuard socket: peer ", SOON)?;
    changes(&mut prompt, &a)?;
    ensure!(tunnel.a.status()?.handshakes() == 1, "{}", tunnel.a.status()?);
    Ok(prompt.transcript)
}

fn shows(prompt: &mut Prompt<'_>, a: &Site, psk: &Key) -> Result<()> {
    let key = a.remote.public.as_str();
    let said = prompt.run("show")?;
    for part in [
        "interface: tun0\n",
        "listening port: 51820\n",
        &format!("peer: {key}\n"),
        "preshared key: (hidden)\n",
        "endpoint: 192.0.2.2:51820\n",
        "allowed ips: 10.99.0.2/32, 2001:db8:99::2/128\n",
        "latest handshake: ",
        "transfer: ",
        "persistent keepalive: every 25 seconds\n",
    ] {
        ensure!(said.contains(part), "`wg show` lacks {part:?}:\n{said}");
    }
    ensure!(!said.contains("private key"), "{said}");
    let dump = prompt.run("show tun0 dump")?;
    let fields: Vec<_> = dump.split_whitespace().collect();
    ensure!(fields.len() == 12 && fields[..4] == ["(none)", "(none)", "51820", "off"], "{dump}");
    ensure!(fields[4] == key && fields[5] == psk.as_str(), "the dump says {dump}");
    ensure!(prompt.run("show interfaces")?.trim() == "tun0", "no interface");
    Ok(())
}

/// The file that `wg` shows, and the same with the private key and without the port.
fn takes_what_is_in_force(prompt: &mut Prompt<'_>, a: &Site, psk: &Key) -> Result<()> {
    let file = prompt.run("showconf tun0")?;
    ensure!(!file.contains("PrivateKey") && file.contains(psk.as_str()), "{file}");
    let path = prompt.host.directory().join("wg0.conf");
    let private = format!("PrivateKey = {}", a.keys.private.as_str());
    for text in [file.clone(), file.replace("ListenPort = 51820", &private)] {
        std::fs::write(&path, text)?;
        for command in ["setconf", "syncconf"] {
            prompt.run(&format!("{command} tun0 {}", path.display()))?;
        }
    }
    let same = prompt.run("showconf tun0")?;
    ensure!(same == file, "after files that change nothing:\n{same}");
    Ok(())
}

fn refuses(prompt: &mut Prompt<'_>, a: &Site) -> Result<()> {
    let (key, other) = (a.remote.public.as_str(), Key::preshared()?);
    let preshared = prompt.host.directory().join("site-a.psk");
    for line in [
        format!("peer {} allowed-ips 10.0.0.0/8", other.as_str()),
        "listen-port 7".to_owned(),
        format!("private-key {}", preshared.display()),
        format!("peer {key} remove"),
        format!("peer {key} allowed-ips 10.0.0.0/8"),
    ] {
        prompt.refused(&format!("set tun0 {line}"))?;
    }
    Ok(())
}

fn changes(prompt: &mut Prompt<'_>, a: &Site) -> Result<()> {
    let key = a.remote.public.as_str();
    prompt.run(&format!("set tun0 peer {key} allowed-ips 10.99.0.2/32,2001:db8:99::2/128"))?;
    prompt.run(&format!("set tun0 peer {key} endpoint 192.0.2.2:51820"))?;
    let preshared = prompt.host.directory().join("site-a.psk");
    prompt.run(&format!("set tun0 peer {key} preshared-key {}", preshared.display()))?;
    prompt.run(&format!("set tun0 peer {key} persistent-keepalive off"))?;
    prompt.run("set tun0 fwmark 0x77")?;
    ensure!(prompt.run("show tun0 fwmark")?.trim() == "0x77", "the mark");
    ping::until_answered(prompt.host, INNER_B4, SOON)?;
    prompt.run("set tun0 fwmark 0")?;
    let shown = prompt.run("show tun0 persistent-keepalive")?;
    ensure!(shown.trim().ends_with("off"), "{shown}");
    Ok(())
}

/// A preshared key, set as Rosenpass sets it: from a file.
fn set_preshared(host: &Host, peer: &Key, key: &Key) -> Result<()> {
    let path = host.directory().join("set.psk");
    key.write(&path)?;
    host.run(&format!("wg set tun0 peer {} preshared-key {}", peer.as_str(), path.display()))?;
    Ok(())
}

fn two_vpnd(lab: &Lab) -> Result<String> {
    let (a, b) = pair()?;
    let flow = Flow::start(lab, &a, &b)?;
    for change in 0..CHANGES {
        let key = Key::preshared()?;
        let (first, second) = if change % 2 == 0 {
            (&flow.wire().a, &flow.wire().b)
        } else {
            (&flow.wire().b, &flow.wire().a)
        };
        let peer_of =
            |host: &Host| if host.name() == "a" { &a.remote.public } else { &b.remote.public };
        flow.after(|| {
            set_preshared(first, peer_of(first), &key)?;
            thread::sleep(SKEW);
            set_preshared(second, peer_of(second), &key)
        })?;
        let shown = first.run("wg show tun0 preshared-keys")?;
        ensure!(shown.contains(key.as_str()), "{shown}");
    }
    let logs = flow.ends().map(|end| end.as_process().log());
    ensure!(logs.iter().all(|log| log.contains("another preshared key, as asked")), "not logged");
    flow.ensure_whole()
}

fn with_wireguard_go(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = pair()?;
    let peer = Peer::start(Kind::WireguardGo, &wire.b, &b)?;
    let vpnd = Vpnd::start(&wire.a, &a)?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    let streams = Streams::start(&wire)?;
    for change in 0..CHANGES {
        let (key, before) = (Key::preshared()?, vpnd.status()?.handshakes());
        let ends = [(&wire.a, &a.remote.public), (&wire.b, &b.remote.public)];
        let order = if change % 2 == 0 { [0, 1] } else { [1, 0] };
        set_preshared(ends[order[0]].0, ends[order[0]].1, &key)?;
        thread::sleep(SKEW);
        set_preshared(ends[order[1]].0, ends[order[1]].1, &key)?;
        vpnd.wait_for("a new session", RENEWED, |status| status.handshakes() > before)?;
    }
    let Losses { sent, by_a, by_b, gaps, .. } = streams.stop()?;
    ensure!(by_a == 0, "vpnd lost {by_a}, gaps {gaps:?}");
    let told = peer.handshakes();
    Ok(format!("vpnd lost 0 of {sent}, wireguard-go {by_b}; its log has {told} handshakes"))
}

/// The other end gets a second address, and A is told of it.
fn moved(lab: &Lab) -> Result<String> {
    let (a, b) = pair()?;
    let tunnel = Tunnel::with(lab, |_, _| (a.clone(), b.clone()))?;
    let (host, vpnd, key) = (&tunnel.wire.a, &tunnel.a, a.remote.public.as_str());
    tunnel.wire.b.run("ip address add 192.0.2.3/24 dev eth0")?;
    let at = |status: &Status| status.endpoint() == Some("192.0.2.3:51820");
    // A datagram of the peer that was on its way from its former address takes it back there.
    eventually("the peer stays at its new address", SOON * 2, || {
        let to = "endpoint 192.0.2.3:51820 persistent-keepalive 1";
        host.run(&format!("wg set tun0 peer {key} {to}"))?;
        vpnd.wait_for("the peer is at its new address", SOON, at)?;
        let pings = ping::series(host, INNER_B4, 20, Duration::from_millis(200))?;
        ensure!(pings.answered == pings.sent, "{pings:?}");
        let shown = host.run("wg show tun0 endpoints")?;
        ensure!(shown.trim().ends_with("192.0.2.3:51820"), "{shown}");
        Ok(())
    })?;
    let capture = Capture::start(&tunnel.wire.b, "eth0", 4)?;
    thread::sleep(Duration::from_secs(4));
    let keepalives = capture.stop()?.count(|datagram| datagram.from.to_string() == Wire::A4);
    ensure!((3..=5).contains(&keepalives), "{keepalives} keepalives in four seconds");
    ensure!(vpnd.status()?.is_up() && at(&vpnd.status()?), "{}", vpnd.status()?);
    Ok(format!("{keepalives} keepalives in four seconds, and no ping lost"))
}

/// The socket, as other namespaces see it.
fn socket_of(vpnd: &Vpnd) -> PathBuf {
    format!("/proc/{}/root/run/wireguard/tun0.sock", vpnd.as_process().id()).into()
}

/// Sends bytes to A's socket, and reads the answer.
fn send(vpnd: &Vpnd, bytes: &[u8], ends: bool) -> Result<String> {
    let path = socket_of(vpnd);
    let mut client = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
    client.set_read_timeout(Some(Duration::from_secs(15)))?;
    client.write_all(bytes)?;
    if ends {
        client.shutdown(Shutdown::Write)?;
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

fn bad_requests(lab: &Lab) -> Result<String> {
    let (a, b) = pair()?;
    let tunnel = Tunnel::with(lab, |_, _| (a.clone(), b.clone()))?;
    let host = &tunnel.wire.a;
    let other = "08".repeat(32);
    let requests = [
        (format!("set=1\npublic_key={other}\n\n"), false, "errno=-95\n\n"),
        (format!("set=1\npublic_key={other}\nremove=true\n\n"), false, "errno=0\n\n"),
        ("set=1\nreplace_peers=true\n\n".to_owned(), false, "errno=-95\n\n"),
        ("set=1\nnonsense\n\n".to_owned(), false, "errno=-22\n\n"),
        ("\u{7}garbage\n\n".to_owned(), false, "errno=-22\n\n"),
        ("get=1\n".to_owned(), true, "errno=-22\n\n"),
        ("set=1\nlisten_port=7".to_owned(), false, "errno=-110\n\n"),
        ("x".repeat(1 << 16), false, "errno=-22\n\n"),
        (String::new(), true, ""),
    ];
    for (request, ends, expected) in &requests {
        let answer = send(&tunnel.a, request.as_bytes(), *ends)?;
        ensure!(answer == *expected, "{:?}: {answer:?}", &request[..request.len().min(60)]);
    }
    // More clients than places, all silent; a command waits for a place.
    let path = socket_of(&tunnel.a);
    let silent: Vec<_> = (0..40).map(|_| UnixStream::connect(&path)).collect();
    eventually("a place is free", Duration::from_secs(20), || host.run("wg show tun0"))?;
    drop(silent);
    ping::until_answered(host, INNER_B4, SOON)?;
    let status = tunnel.a.status()?;
    ensure!(status.is_up() && status.handshakes() == 1, "{status}");
    Ok(format!("{} bad requests, each with its errno", requests.len()))
}

fn other_users(lab: &Lab) -> Result<String> {
    let (a, b) = pair()?;
    let tunnel = Tunnel::with(lab, |_, _| (a.clone(), b.clone()))?;
    let host = &tunnel.wire.a;
    let as_nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let said = refused(host, &format!("{as_nobody} wg show tun0"))?;
    ensure!(said.contains("Permission denied"), "{said}");
    host.run("chmod 666 /run/wireguard/tun0.sock")?;
    let said = refused(host, &format!("{as_nobody} wg show tun0"))?;
    ensure!(said.contains("Operation not permitted"), "{said}");
    let key = a.remote.public.as_str();
    let said =
        refused(host, &format!("{as_nobody} wg set tun0 peer {key} persistent-keepalive 1"))?;
    ensure!(said.contains("Operation not permitted"), "{said}");
    Ok("neither by the socket's mode nor without it".to_owned())
}
