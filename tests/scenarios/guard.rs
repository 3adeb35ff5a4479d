//! The kill switch: packets that leave outside the tunnel when somebody flushes rules or routes, when vpnd is
//! restarted, before a start succeeds, and when the link has no carrier. They are counted at the router, with
//! a datagram of each family every two milliseconds.
//!
//! ```text
//!   a [eth0] ──── [a] router [b] ──── [eth0] b
//! ```

use std::fs;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use vpnd_crypto::PresharedKey;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Routed, Vpnd, eventually, nft, vpnd};

use crate::hooks::{child_of, gone, search};
use crate::tunnel::SOON;

/// Nobody is there, and the router is the way to it.
const BEYOND4: &str = "203.0.113.9";
/// The same.
const BEYOND6: &str = "2001:db8:99::9";
/// From one datagram to the next.
const PACE: Duration = Duration::from_millis(2);

pub(crate) fn scenarios() -> Vec<Scenario> {
    let waits =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Waits, body);
    vec![
        waits("guard::flushes of rules and routes", flushes),
        // A start that takes three seconds longer than it should comes too late for the kill switch.
        Scenario::new("guard::a restart, a reload, and a stop", Cost::Alone, restarts),
        // The same.
        Scenario::new("guard::the process that opens it has no key", Cost::Alone, opener),
        // The second start has to come while the first one runs its hook.
        Scenario::new("guard::a start while the one before stops", Cost::Alone, overlapping),
        waits("guard::a restart that was announced", announced),
        waits("guard::an address that comes later", address_later),
        waits("guard::a start that fails", failed_start),
        waits("guard::routes that are passed over", passed_over),
        waits("guard::another route to the same network", same_network),
        waits("guard::a LAN with a network of the tunnel", shared_network),
    ]
}

/// The network, A's side of the tunnel, and what counts at the router.
struct Net {
    hosts: Routed,
    a: Site,
    b: Site,
}

impl Net {
    fn new(lab: &Lab, when_down: &str) -> Result<Self> {
        let hosts = Routed::new(lab)?;
        let counted = [format!("ip daddr {BEYOND4}"), format!("ip6 daddr {BEYOND6}")];
        nft::count_arriving(&hosts.router, &counted)?;
        let (a, b) = site::pair()?;
        let mut a = a.towards(Routed::B4).speaking_vpnd(&[]).keepalive(1);
        a.remote.lines.push("dead_after = \"3s\"".to_owned());
        a.remote.allowed_ips = vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()];
        for to in ["0.0.0.0/0", "::/0"] {
            a.service.push(format!("[[route]]\nto = {to:?}\nwhen_down = {when_down:?}"));
        }
        Ok(Self { hosts, a, b: b.speaking_vpnd(&[]) })
    }

    /// How many datagrams of each family have left beside the tunnel.
    fn leaked(&self) -> Result<Vec<u64>> {
        nft::counts(&self.hosts.router)
    }

    /// Begins to send, and makes sure that all of it is seen where nothing keeps it in.
    fn sending(&self) -> Result<Sending> {
        let sending = Sending::start(&self.hosts.a)?;
        eventually("datagrams are counted", SOON, || {
            let seen = self.leaked()?;
            ensure!(seen.iter().all(|count| *count > 20), "{seen:?}");
            Ok(())
        })?;
        Ok(sending)
    }
}

/// Sends datagrams beyond the router for as long as it lives, whatever the kernel says.
struct Sending {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sending {
    fn start(host: &Host) -> Result<Self> {
        let sockets =
            host.enter(|| Ok([UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("[::]:0")?]))?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = spawn(move || {
            while !stopped.load(Relaxed) {
                for (socket, to) in sockets.iter().zip([BEYOND4, BEYOND6]) {
                    // What drops says so.
                    let _refused = socket.send_to(b"in the clear", (to, 9));
                }
                counter.fetch_add(1, Relaxed);
                sleep(PACE);
            }
        });
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// Waits until so many more have been sent.
    fn more(&self, count: u64) -> Result<()> {
        let until = self.sent.load(Relaxed) + count;
        eventually("datagrams are sent", SOON * 4, || {
            let sent = self.sent.load(Relaxed);
            (sent >= until).then_some(()).ok_or_else(|| anyhow!("{sent} of {until}"))
        })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn flushes(lab: &Lab) -> Result<String> {
    const ROUNDS: usize = 6;
    let net = Net::new(lab, "blackhole")?;
    let a = &net.hosts.a;
    let sending = net.sending()?;
    let before = a.network_state()?;
    let mut vpnd = Vpnd::start(a, &net.a)?;
    let (whole, base) = (a.network_state()?, net.leaked()?);
    // A harmless thing, so often that it is left alone: that is no reason to leave the rest alone.
    for _ in 0..6 {
        let _gone_already = a.run("ip address del 10.99.0.1/30 dev tun0");
        sending.more(150)?;
    }
    for what in [
        &["-4 rule flush protocol 118", "-6 rule flush protocol 118"][..],
        &["-4 route flush table all proto 118", "-6 route flush table all proto 118"],
        &["-4 route flush table 51820", "-6 route flush table 51820"],
        &["-4 rule flush protocol 119", "-6 rule flush protocol 119"],
        &[
            "-4 rule flush protocol 118",
            "-6 rule flush protocol 118",
            "-4 route flush table all proto 118",
            "-6 route flush table all proto 118",
        ],
    ] {
        for _ in 0..ROUNDS {
            for command in what {
                // Nothing to flush is an error.
                let _none = a.run(&format!("ip {command}"));
            }
            sending.more(20)?;
            let now = net.leaked()?;
            ensure!(now == base, "{what:?}: {base:?} datagrams were counted, and now {now:?}");
        }
    }
    let guards = |state: &str| {
        let is_one = |line: &&str| line.contains("proto 11") && !line.contains("dev tun0");
        // Those of one priority have no order.
        let mut guards: Vec<_> = state.lines().filter(is_one).map(str::to_owned).collect();
        guards.sort_unstable();
        guards
    };
    eventually("all of it is there again", SOON, || {
        let now = a.network_state()?;
        ensure!(guards(&now) == guards(&whole), "{now}");
        Ok(())
    })?;
    vpnd.process().signal(Signal::SIGINT)?;
    vpnd.process().wait(SOON)?;
    ensure!(a.network_state()? == before, "left behind: {}", a.network_state()?);
    Ok(format!("{ROUNDS} flushes of each kind, of both families: no datagram in the clear"))
}

fn restarts(lab: &Lab) -> Result<String> {
    let net = Net::new(lab, "blackhole")?;
    let a = &net.hosts.a;
    let sending = net.sending()?;
    let before = a.network_state()?;
    let mut vpnd = Vpnd::start(a, &net.a)?;
    let base = net.leaked()?;
    for _ in 0..3 {
        vpnd.process().terminate()?;
        // `restart` would kill it first.
        vpnd = Vpnd::start(a, &net.a)?;
        vpnd.reload(&net.a)?;
        sending.more(20)?;
    }
    vpnd = vpnd.restart()?;
    sending.more(20)?;
    let now = net.leaked()?;
    ensure!(now == base, "{base:?} datagrams were counted, and after restarts {now:?}");
    let status = vpnd.process().terminate()?;
    ensure!(status.success(), "{status}");
    ensure!(net.leaked()? == base, "a restart may follow, and it is open at once");
    eventually("a stop opens it", SOON * 2, || {
        ensure!(a.network_state()? == before, "{}", a.network_state()?);
        Ok(())
    })?;
    sending.more(20)?;
    let after = net.leaked()?;
    ensure!(after.iter().zip(&base).all(|(after, base)| after > base), "{base:?}, {after:?}");
    Ok("three restarts and reloads and a kill -9: no datagram in the clear; a stop opens it"
        .to_owned())
}

/// As the unit file does it, where vpnd cannot ask systemd.
fn announced(lab: &Lab) -> Result<String> {
    let net = Net::new(lab, "blackhole")?;
    let sending = net.sending()?;
    let mut vpnd = Vpnd::start(&net.hosts.a, &net.a)?;
    let base = net.leaked()?;
    vpnd.process().signal(Signal::SIGUSR1)?;
    let status = vpnd.process().terminate()?;
    ensure!(status.success(), "{status}");
    sleep(OPENS * 2);
    sending.more(20)?;
    ensure!(net.leaked()? == base, "{base:?} datagrams were counted, now {:?}", net.leaked()?);
    vpnd = Vpnd::start(&net.hosts.a, &net.a)?;
    vpnd.process().terminate()?;
    eventually("a stop opens it", SOON * 2, || {
        ensure!(net.leaked()?.iter().zip(&base).all(|(now, then)| now > then), "it is shut");
        Ok(())
    })?;
    Ok(format!("shut for {OPENS:?} twice over, and opened by the next stop"))
}

/// After a SIGTERM. A `kill -9` of vpnd ends that process too, and opens nothing.
fn opener(lab: &Lab) -> Result<String> {
    let net = Net::new(lab, "blackhole")?;
    let a = &net.hosts.a;
    let before = a.network_state()?;
    let mut vpnd = Vpnd::start(a, &net.a)?;
    let opener = opener_of(&vpnd)?;
    vpnd.process().kill()?;
    gone(&[opener.to_string()])?;
    let killed = a.network_state()?;
    sleep(OPENS * 2);
    ensure!(killed != before && a.network_state()? == killed, "{}", a.network_state()?);

    vpnd = Vpnd::start(a, &net.a)?;
    let (running, opener) = (vpnd.process().id(), opener_of(&vpnd)?);
    let key = net.a.keys.private.as_str();
    let bytes = *PresharedKey::from_base64(key)?.as_bytes();
    ensure!(search(running, &bytes)?.1, "the search does not find the key where it is");
    vpnd.process().terminate()?;
    let stopped = Instant::now();
    let mut searched = 0;
    for needle in [&bytes[..], key.as_bytes()] {
        let (bytes, found) = search(opener, needle)?;
        ensure!(!found, "the private key is in its memory");
        searched = bytes;
    }
    ensure!(searched > 100 << 10, "only {searched} bytes were searched");
    let status = fs::read_to_string(format!("/proc/{opener}/status"))?;
    ensure!(status.contains("CapPrm:\t0000000000001000"), "not CAP_NET_ADMIN alone: {status}");
    ensure!(!status.contains("Uid:\t0\t"), "it is root: {status}");
    ensure!(a.network_state()? != before, "it is open {:?} after the end", stopped.elapsed());
    eventually("it opens", SOON, || {
        let now = a.network_state()?;
        ensure!(now == before, "{now}");
        Ok(())
    })?;
    let opened = stopped.elapsed();
    gone(&[opener.to_string()])?;
    Ok(format!("{} KiB searched, no key; it opens {opened:.1?} after the end", searched / 1024))
}

/// After this time the opener opens the kill switch.
const OPENS: Duration = Duration::from_secs(3);

/// Once it has started and has the user that vpnd has.
fn opener_of(vpnd: &Vpnd) -> Result<u32> {
    let vpnd = vpnd.as_process().id();
    eventually("there is a process to open the kill switch", SOON, || {
        let opener = child_of(vpnd, "vpnd-killswitch")?;
        let status = fs::read_to_string(format!("/proc/{opener}/status"))?;
        ensure!(!status.contains("Uid:\t0\t"), "it is root: {status}");
        Ok(opener)
    })
}

/// The first one runs a `down` hook, which takes its time. The second waits for its end; a third, while the second runs,
/// fails at once.
fn overlapping(lab: &Lab) -> Result<String> {
    let net = Net::new(lab, "blackhole")?;
    let a = &net.hosts.a;
    let before = a.network_state()?;
    let sending = net.sending()?;
    let mut site = net.a.clone();
    // Longer than a start takes on a machine that does much else.
    site.tables.push("[hooks]\ndown = [\"/bin/sleep\", \"8\"]".to_owned());
    let mut first = Vpnd::start(a, &site)?;
    let base = net.leaked()?;
    first.process().signal(Signal::SIGTERM)?;
    first.wait_for_log("hook down: `/bin/sleep 8` begins", SOON)?;
    // Until the second one has the control socket, the first one answers for it.
    let mut second = Vpnd::start(a, &site)?;
    first.process().wait(SOON * 2)?;
    let id = u64::from(second.process().id());
    eventually("the second one runs", SOON, || {
        let status = second.status()?;
        ensure!(status.process() == id, "{status}");
        Ok(())
    })?;
    second.wait_for_log("the start waits for its end", SOON)?;
    // Longer than the first one's opener would wait.
    sleep(OPENS + Duration::from_secs(1));
    sending.more(20)?;
    let now = net.leaked()?;
    ensure!(now == base, "{base:?} datagrams were counted, and now {now:?}");
    let file = vpnd::write_files(a, &site)?;
    let begun = Instant::now();
    let (code, said) =
        vpnd::run(a, &["--config", file.to_str().context("a path of our own making")?])?;
    ensure!(code == 1 && said.contains("already running"), "{code}: {said}");
    let refused = begun.elapsed();
    second.process().interrupt()?;
    ensure!(a.network_state()? == before, "left behind: {}", a.network_state()?);
    Ok(format!("nothing in the clear; a start beside one that runs is refused after {refused:.1?}"))
}

fn address_later(lab: &Lab) -> Result<String> {
    let net = Net::new(lab, "blackhole")?;
    let a = &net.hosts.a;
    let _b = Vpnd::start(&net.hosts.b, &net.b)?;
    // With the first address goes the route.
    a.run("ip address del 192.0.2.1/24 dev eth0")?;
    a.run("ip address add 192.0.2.77/24 dev eth0")?;
    a.run("ip route add default via 192.0.2.254")?;
    let sending = net.sending()?;
    let mut site = net.a.clone();
    site.service.insert(0, "[socket]\nsource = \"192.0.2.1\"".to_owned());
    let vpnd = Vpnd::start(a, &site)?;
    let base = net.leaked()?;
    vpnd.wait_for_log("no interface has this address", SOON)?;
    sending.more(100)?;
    a.run("ip address add 192.0.2.1/24 dev eth0")?;
    ping::until_answered(a, INNER_B4, Duration::from_secs(10))?;
    let now = net.leaked()?;
    ensure!(now == base, "{base:?} datagrams were counted, and now {now:?}");
    Ok("the tunnel waits for its address, and nothing leaves in the clear".to_owned())
}

/// Over and over, as a service manager does it.
fn failed_start(lab: &Lab) -> Result<String> {
    let net = Net::new(lab, "blackhole")?;
    let a = &net.hosts.a;
    let before = a.network_state()?;
    let sending = net.sending()?;
    let mut site = net.a.clone();
    site.service.insert(0, "[socket]\nbind_device = \"eth9\"".to_owned());
    let file = vpnd::write_files(a, &site)?;
    let file = file.to_str().context("a path of our own making")?;
    let fails = || {
        let (code, said) = vpnd::run(a, &["--config", file])?;
        ensure!(code == 1 && said.contains("vpnd release site-a"), "{code}: {said}");
        Ok(())
    };
    fails()?;
    let base = net.leaked()?;
    for _ in 0..3 {
        fails()?;
        sending.more(20)?;
    }
    let now = net.leaked()?;
    ensure!(now == base, "{base:?} datagrams were counted, and now {now:?}");
    // The next start takes it over.
    let vpnd = Vpnd::start(a, &net.a)?;
    let (code, said) = vpnd::run(a, &["release", "site-a"])?;
    ensure!(code != 0 && said.contains("another vpnd has it"), "it runs: {code}, {said}");
    drop(vpnd);
    let (code, said) = vpnd::run(a, &["release", "site-a"])?;
    ensure!(code == 0, "{code}: {said}");
    eventually("it is open", SOON, || {
        let now = a.network_state()?;
        ensure!(now == before, "{now}");
        Ok(())
    })?;
    Ok("four starts that fail keep it shut; `vpnd release` opens it".to_owned())
}

/// By a kernel that passes over the routes of a link without carrier, while the peer is dead.
fn passed_over(lab: &Lab) -> Result<String> {
    let mut leaked = Vec::new();
    let net = Net::new(lab, "keep")?;
    let a = &net.hosts.a;
    let before = a.network_state()?;
    for (family, of) in [("ipv4", "all"), ("ipv6", "all"), ("ipv6", "default")] {
        a.sysctl(&format!("{family}/conf/{of}/ignore_routes_with_linkdown"), "1")?;
    }
    let mut b = Vpnd::start(&net.hosts.b, &net.b)?;
    let sending = net.sending()?;
    let mut vpnd = Vpnd::start(a, &net.a)?;
    ping::until_answered(a, INNER_B4, SOON)?;
    let base = net.leaked()?;
    b.process().kill()?;
    vpnd.wait_for_log("the peer is dead", SOON * 4)?;
    eventually("the link has no carrier", SOON, || {
        let link = a.run("ip link show tun0")?;
        ensure!(link.contains("NO-CARRIER"), "{link}");
        Ok(())
    })?;
    sending.more(500)?;
    leaked.push(net.leaked()?);
    ensure!(leaked[0] == base, "{base:?} datagrams were counted, and now {leaked:?}");
    for inner in [INNER_B4, site::INNER_B6] {
        let route = a.run(&format!("ip route get {inner}"));
        let beside = route.as_ref().is_ok_and(|route| route.contains("dev eth0"));
        ensure!(!beside, "the peer's inner address leaves beside it: {route:?}");
    }
    vpnd.process().terminate()?;
    ensure!(a.network_state()? == before, "left behind: {}", a.network_state()?);
    Ok("the peer is dead, and nothing leaves in the clear, though its routes are passed over"
        .to_owned())
}

/// Behind the router, and to be reached through the tunnel only.
const GUARDED: &str = "198.18.5.0/24";

/// DHCP moves the host to a network that a route of the tunnel leads to, and the host starts in one that the
/// device's address is in.
fn shared_network(lab: &Lab) -> Result<String> {
    let hosts = Routed::new(lab)?;
    let (site, _b) = site::pair()?;
    let mut site = site.towards(Routed::B4);
    site.service.push(format!("[[route]]\nto = {GUARDED:?}"));
    let (a, inner) = (&hosts.a, site.addresses[0].clone());
    let mut vpnd = Vpnd::start(a, &site)?;
    let lan = GUARDED.replace(".0/", ".10/");
    for _ in 0..2 {
        a.run(&format!("ip address add {lan} dev eth0"))?;
        let said = format!("route {GUARDED} into the tunnel");
        vpnd.wait_for("the LAN is lost", SOON, |status| {
            status.bypassed() == [(said.as_str(), false)]
        })?;
        vpnd.wait_for_log("this host is connected to that network", SOON)?;
        a.run(&format!("ip address del {lan} dev eth0"))?;
        vpnd.wait_for("it is gone from status", SOON, |status| status.bypassed().is_empty())?;
    }
    vpnd.process().interrupt()?;
    a.run(&format!("ip address add {inner} dev eth0"))?;
    let vpnd = Vpnd::start(a, &site)?;
    vpnd.wait_for("the tunnel is passed by", SOON, |status| {
        let by_lan = |(by, part): &(&str, bool)| by.contains("dev eth0") && !part;
        status.bypassed().iter().filter(|one| by_lan(one)).count() == 1
    })?;
    vpnd.wait_for_log("and sends them unencrypted", SOON)?;
    Ok("a LAN that the tunnel takes, and one that takes the tunnel's packets".to_owned())
}

/// A route of a lower metric that is there at the start, and one that comes and goes later.
fn same_network(lab: &Lab) -> Result<String> {
    let hosts = Routed::new(lab)?;
    let (a, _b) = site::pair()?;
    let mut site = a.towards(Routed::B4);
    site.service
        .push(format!("[[route]]\nto = {GUARDED:?}\nmetric = 100\nwhen_down = \"blackhole\""));
    let past = format!("{GUARDED} via 192.0.2.254 metric 10");
    let said = format!("route {GUARDED} via 192.0.2.254 dev eth0 metric 10");
    let a = &hosts.a;
    a.run(&format!("ip route add {past}"))?;
    let vpnd = Vpnd::start(a, &site)?;
    let mut took = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        vpnd.wait_for("it is in status", SOON, |status| {
            status.bypassed() == [(said.as_str(), false)]
        })?;
        vpnd.wait_for_log(&format!("{said} diverts the packets of"), SOON)?;
        took.push(began.elapsed());
        a.run(&format!("ip route del {past}"))?;
        vpnd.wait_for("it is gone from status", SOON, |status| status.bypassed().is_empty())?;
        vpnd.wait_for_log("no longer diverts packets from tun0", SOON)?;
        a.run(&format!("ip route add {past}"))?;
    }
    ensure!(took.iter().all(|took| *took < Duration::from_secs(2)), "{took:?}");
    Ok(format!("reported after {took:.1?}, and not once it was gone"))
}
