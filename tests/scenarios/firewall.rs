//! `[service] firewall`: the tables that vpnd creates, their effect, which one is removed however vpnd ends,
//! and which one stays with the kill switch; and what `check` reports about other tables.

use std::cell::Cell;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_A6, INNER_B4, INNER_B6, PORT, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Routed, Vpnd, Wire, eventually, nft, vpnd};

use crate::tunnel::SOON;

const TABLE: &str = "table inet vpnd-site-a";
const KILL_SWITCH: &str = "table inet vpnd_killswitch-site-a";

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    vec![
        works("firewall::the inside is reached from the tunnel alone", inside),
        works("firewall::one of our own addresses as the sender", own_sender),
        works("firewall::a program that names a device", named_device),
        works("firewall::the table goes with vpnd", gone),
        // A start that takes three seconds longer than it should comes too late for the kill switch.
        Scenario::new("firewall::a kill switch keeps its table", Cost::Alone, kept),
        works("firewall::a router that announces half the internet", router),
        works("firewall::a DHCP server that announces half the internet", dhcp),
        works("firewall::a filter that looks at the mark", marks),
        works("firewall::check names the line that opens the port", closed_port),
    ]
}

fn guarded(mut site: Site) -> Site {
    site.service.push("firewall = true".to_owned());
    site
}

fn tables(host: &Host) -> Result<String> {
    host.run("nft list tables")
}

/// B's host sends to A's inner addresses across the cable, as anybody on the LAN could.
fn inside(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let Wire { a, b } = &wire;
    let (site_a, site_b) = site::pair()?;
    let outside = [(INNER_A4, "192.0.2.1", "-4"), (INNER_A6, "2001:db8::1", "-6")];
    let beside = |what: &str| -> Result<()> {
        for (inner, gateway, family) in outside {
            b.run(&format!("ip {family} route {what} {inner} via {gateway}"))?;
        }
        Ok(())
    };
    beside("add")?;
    let mut open = Vpnd::start(a, &site_a)?;
    for (inner, ..) in outside {
        ping::until_answered(b, inner, SOON)?;
    }
    open.process().terminate()?;
    let _shut = Vpnd::start(a, &guarded(site_a))?;
    for (inner, ..) in outside {
        let answered = ping::series(b, inner, 3, SOON / 100)?.answered;
        ensure!(answered == 0, "{inner} answered {answered} times beside the tunnel");
    }
    ensure!(nft::dropped(a)? >= 6, "{}", a.run("nft list ruleset")?);
    beside("del")?;
    let _b = Vpnd::start(b, &site_b.towards(Wire::A4))?;
    let through = || -> Result<()> {
        for inner in [INNER_A4, INNER_A6] {
            ping::until_answered(b, inner, SOON)?;
            ping::until_answered(a, inner, SOON)?;
        }
        Ok(())
    };
    through()?;
    port(a, "tun0").down()?;
    a.run("ip link set tun0 name other")?;
    port(a, "other").up()?;
    through().context("under another name")?;
    Ok("both families: no answer beside the tunnel, answers through it and to itself".to_owned())
}

/// B's host sends to A's inner addresses, and claims to be A.
fn own_sender(lab: &Lab) -> Result<String> {
    let Wire { a, b } = &Wire::new(lab)?;
    a.run("ip -6 address add 2001:db8:5::1/64 dev eth0 nodad")?;
    b.run("ip -6 address add 2001:db8:5::1/128 dev lo nodad")?;
    b.run(&format!("ip -6 route add {INNER_A6} via 2001:db8::1"))?;
    let send = || {
        b.enter(|| {
            let socket = UdpSocket::bind("[2001:db8:5::1]:0")?;
            for _ in 0..3 {
                socket.send_to(b"to the inside", (INNER_A6, 9))?;
            }
            Ok(())
        })
    };
    let receiver = a.enter(|| Ok(UdpSocket::bind("[::]:9")?))?;
    receiver.set_read_timeout(Some(SOON / 20))?;
    let arrived = || receiver.recv_from(&mut [0; 64]).is_ok();
    let (site_a, _) = site::pair()?;
    let mut open = Vpnd::start(a, &site_a)?;
    eventually("it arrives without the table", SOON, || {
        send()?;
        ensure!(arrived());
        Ok(())
    })?;
    while arrived() {}
    open.process().terminate()?;
    let _shut = Vpnd::start(a, &guarded(site_a))?;
    send()?;
    ensure!(!arrived(), "it arrives: {}", a.run("nft list ruleset")?);
    ensure!(nft::dropped(a)? >= 3, "{}", a.run("nft list ruleset")?);
    Ok("IPv6 from outside with our own sender: arrives without the table, not with it".to_owned())
}

/// Where nobody answers, and where somebody does.
const BEYOND: &str = "198.51.100.9";
const NEIGHBOUR: &str = "198.18.5.9";

/// A kill switch for all networks, and one for a network; `vpnd` is down, and up. The link has no ARP, as of a modem.
fn named_device(lab: &Lab) -> Result<String> {
    let Wire { a, b } = &Wire::new(lab)?;
    without_arp(a, b)?;
    nft::count_arriving(
        b,
        &[format!("iifname eth0 ip daddr {BEYOND}"), format!("iifname eth0 ip daddr {NEIGHBOUR}")],
    )?;
    for to in ["0.0.0.0/0", "198.51.100.0/24"] {
        let (site_a, site_b) = site::pair()?;
        let mut site_a = site_a.towards(Wire::B4).keepalive(1);
        site_a.remote.allowed_ips.push("0.0.0.0/0".to_owned());
        site_a.tables.push(format!("[[route]]\nto = {to:?}\nwhen_down = \"blackhole\""));
        let path = vpnd::write_files(a, &site_a)?.display().to_string();
        let (_, said) = vpnd::run(a, &["check", &path])?;
        ensure!(said.contains("`firewall = true` in [service] drops them"), "{said}");
        let mut open = Vpnd::start(a, &site_a)?;
        ensure!(past(a, b)? > 0, "{to}: nothing leaves without the table");
        open.process().terminate()?;

        let _shut = Vpnd::start(a, &guarded(site_a))?;
        ensure!(past(a, b)? == 0, "{to}, down: {}", a.run("nft list ruleset")?);
        let _b = Vpnd::start(b, &site_b.towards(Wire::A4))?;
        ping::until_answered(a, INNER_B4, SOON)?;
        ensure!(past(a, b)? == 0, "{to}, up: {}", a.run("nft list ruleset")?);
        local_network(a, b)?;
    }
    Ok("0 datagrams of a program that names a device, down and up; the local network works".into())
}

/// The link takes packets to any address, and every address is beyond it.
fn without_arp(a: &Host, b: &Host) -> Result<()> {
    for host in [a, b] {
        for change in ["down", "address 02:00:00:00:00:01", "arp off", "up"] {
            host.run(&format!("ip link set eth0 {change}"))?;
        }
    }
    a.run("ip route add default dev eth0").map(drop)
}

/// How many datagrams of a user without rights that name a device leave beside the tunnel.
fn past(a: &Host, b: &Host) -> Result<u64> {
    let before = nft::counts(b)?[0];
    for _ in 0..3 {
        // What drops says so.
        let _refused = as_nobody(a, &format!("ping -n -c 1 -W 1 -I eth0 {BEYOND}"));
        let _refused = a.enter(|| by_device(BEYOND));
    }
    sleep(SOON / 100);
    Ok(nft::counts(b)?[0] - before)
}

fn as_nobody(host: &Host, command: &str) -> Result<String> {
    // Every group may send echo requests.
    host.sysctl("ipv4/ping_group_range", "0 65535")?;
    host.run(&format!("setpriv --reuid 65534 --regid 65534 --clear-groups {command}"))
}

/// By UDP, as a DHCP client or a resolver does.
fn by_device(to: &str) -> Result<()> {
    let to = SocketAddr::new(to.parse()?, 9);
    Ok(bound_to_device()?.send_to(b"in the clear", &to.into()).map(drop)?)
}

fn bound_to_device() -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.bind_device(Some(b"eth0"))?;
    Ok(socket)
}

/// A network that comes after the start, and goes.
fn local_network(a: &Host, b: &Host) -> Result<()> {
    ping::until_answered(a, "192.0.2.2", SOON)?;
    let bound = || as_nobody(a, "ping -n -c 1 -W 1 -I eth0 192.0.2.2");
    bound().context("to a neighbour, by a program that names a device")?;
    a.run("ip address add 198.18.5.1/24 dev eth0")?;
    let before = nft::counts(b)?[1];
    eventually("a new local network is known", SOON, || {
        let _refused = as_nobody(a, &format!("ping -n -c 1 -W 1 -I eth0 {NEIGHBOUR}"));
        ensure!(nft::counts(b)?[1] > before, "{}", a.run("nft list ruleset")?);
        Ok(())
    })?;
    a.run("ip address del 198.18.5.1/24 dev eth0")?;
    eventually("it is known no more", SOON, || {
        let set = a.run("nft list set inet vpnd-site-a specific")?;
        ensure!(!set.contains("198.18.5."), "{set}");
        Ok(())
    })
}

/// A site with a kill switch for all networks, on a link without ARP.
fn switched(a: &Host, b: &Host) -> Result<Site> {
    without_arp(a, b)?;
    let mut site = site::pair()?.0.towards(Wire::B4).keepalive(1);
    for to in ["0.0.0.0/0", "::/0"] {
        site.tables.push(format!("[[route]]\nto = {to:?}\nwhen_down = \"blackhole\""));
    }
    Ok(site)
}

/// What a program that names a device sends is dropped over restarts, flushes, crashes and starts that fail.
fn kept(lab: &Lab) -> Result<String> {
    let Wire { a, b } = &Wire::new(lab)?;
    let site = guarded(switched(a, b)?);
    let mut vpnd = Vpnd::start(a, &site)?;
    let sending = Sending::start(a, b)?;
    let dropped = |when: &str| -> Result<()> {
        let leaked = sending.leaked()?;
        ensure!(leaked == 0, "{when}: {leaked} datagrams left: {}", a.run("nft list ruleset")?);
        Ok(())
    };
    for _ in 0..3 {
        vpnd.process().terminate()?;
        dropped("after a SIGTERM")?;
        vpnd = Vpnd::start(a, &site)?;
        dropped("after a start")?;
    }
    // The table that stays has no owner. The one that has one drops as well, until vpnd ends.
    a.run("nft flush ruleset")?;
    dropped("after a flush")?;
    vpnd.wait_for_log("restored nftables' table inet vpnd_killswitch-site-a", SOON)?;
    vpnd = vpnd.restart()?;
    vpnd.process().kill()?;
    dropped("after a kill -9")?;

    let mut broken = site.clone();
    broken.tables.push("[socket]\nbind_device = \"eth9\"".to_owned());
    let broken = vpnd::write_files(a, &broken)?.display().to_string();
    let (code, said) = vpnd::run(a, &["--config", &broken])?;
    ensure!(code == 1, "exit {code}: {said}");
    dropped("after a start that fails")?;
    let (code, said) = vpnd::run(a, &["release", "site-a"])?;
    ensure!(code == 0 && sending.leaked()? > 0, "released: exit {code}: {said}");
    opened_by_a_stop(a, &site, &sending)?;
    Ok("shut over three restarts, a flush, a kill -9 and a failed start; opened by release and a stop".into())
}

/// By one that was asked for at a terminal, at once; by another, after three seconds. And a start without it removes
/// what an earlier one has left.
fn opened_by_a_stop(a: &Host, site: &Site, sending: &Sending) -> Result<()> {
    let mut vpnd = Vpnd::start(a, site)?;
    let _before_the_start = sending.leaked()?;
    ensure!(sending.leaked()? == 0, "it is open while vpnd runs");
    vpnd.process().interrupt()?;
    ensure!(tables(a)?.is_empty() && sending.leaked()? > 0, "it is shut: {}", tables(a)?);
    vpnd = Vpnd::start(a, site)?;
    vpnd.process().terminate()?;
    ensure!(tables(a)?.contains(KILL_SWITCH), "a restart may follow: {}", tables(a)?);
    eventually("a stop opens it", SOON * 2, || {
        ensure!(tables(a)?.is_empty(), "{}", tables(a)?);
        Ok(())
    })?;
    vpnd = Vpnd::start(a, site)?;
    vpnd.process().kill()?;
    let mut other = site.clone();
    other.service.retain(|line| !line.contains("firewall"));
    vpnd = Vpnd::start(a, &other)?;
    ensure!(tables(a)?.is_empty(), "a start without it: {}", tables(a)?);
    // One that no journal names.
    vpnd.process().kill()?;
    a.run(&format!("nft add {KILL_SWITCH}"))?;
    let (code, said) = vpnd::run(a, &["release", "site-a"])?;
    ensure!(code == 0 && tables(a)?.is_empty(), "release: exit {code}: {said}: {}", tables(a)?);
    a.run(&format!("nft add {KILL_SWITCH}"))?;
    vpnd = Vpnd::start(a, &other)?;
    ensure!(tables(a)?.is_empty(), "a start, of one that no journal names: {}", tables(a)?);
    vpnd.process().interrupt()?;
    Ok(())
}

/// Sends datagrams by a device's name for as long as it lives, and counts those that arrive.
struct Sending {
    to: Host,
    /// By the last count.
    arrived: Cell<u64>,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sending {
    fn start(from: &Host, to: &Host) -> Result<Self> {
        nft::count_arriving(to, &[format!("iifname eth0 ip daddr {BEYOND}")])?;
        let socket = from.enter(bound_to_device)?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = spawn(move || {
            let Ok(beyond) = format!("{BEYOND}:9").parse::<SocketAddr>() else { return };
            while !stopped.load(Relaxed) {
                // What drops says so.
                let _refused = socket.send_to(b"in the clear", &beyond.into());
                counter.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(1));
            }
        });
        Ok(Self { to: to.clone(), arrived: Cell::new(0), stop, sent, thread: Some(thread) })
    }

    /// How many have arrived since the last call, when some more have been sent.
    fn leaked(&self) -> Result<u64> {
        let until = self.sent.load(Relaxed) + 50;
        eventually("datagrams are sent", SOON, || {
            ensure!(self.sent.load(Relaxed) >= until);
            Ok(())
        })?;
        let arrived = nft::counts(&self.to)?[0];
        Ok(arrived - self.arrived.replace(arrived))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// A network that is announced, what announces it, and a host in it.
struct Announced {
    /// The kill switch, and the network that is announced for a part of it.
    switch: &'static str,
    network: &'static str,
    /// A host of that network, and its address as the local network should have it.
    host: &'static str,
    own: &'static str,
    announce: fn(&Host, &Host) -> Result<()>,
}

/// A router, by an advertisement that says that half the internet is on the link.
const BY_ROUTER: Announced = Announced {
    switch: "::/0",
    network: "2000::/3",
    host: "2001:db8:5::9",
    own: "2001:db8:5::1/64",
    announce: |_, b| advertise(b, "2000::/3"),
};

/// A DHCP server, by classless static routes, as a DHCP client sets them.
const BY_DHCP: Announced = Announced {
    switch: "0.0.0.0/0",
    network: "128.0.0.0/1",
    host: "198.18.5.9",
    own: "198.18.5.1/24",
    announce: |a, _| a.run("ip route replace 128.0.0.0/1 dev eth0 proto dhcp").map(drop),
};

fn router(lab: &Lab) -> Result<String> {
    announced(lab, &BY_ROUTER)
}

fn dhcp(lab: &Lab) -> Result<String> {
    announced(lab, &BY_DHCP)
}

/// The log and the status report it; the table drops what would go there, and nothing to the local network.
fn announced(lab: &Lab, what: &Announced) -> Result<String> {
    let Announced { switch, network, host, own, announce } = what;
    let Wire { a, b } = &Wire::new(lab)?;
    a.sysctl("ipv6/conf/eth0/accept_ra", "2")?;
    let (_, len) = own.split_once('/').context("a network")?;
    b.run(&format!("ip address add {host}/{len} dev eth0"))?;
    let mut site = site::pair()?.0.towards(Wire::B4);
    site.tables.push(format!("[[route]]\nto = {switch:?}\nwhen_down = \"blackhole\""));
    let mut open = Vpnd::start(a, &site)?;
    let reached = || a.run(&format!("ping -n -c 1 -W 1 {host}")).is_ok();
    ensure!(!reached(), "nothing keeps it in");
    let draw = |vpnd: &Vpnd| -> Result<()> {
        announce(a, b)?;
        vpnd.wait_for("it is in status", SOON, |status| {
            let by = format!("route {network} dev eth0");
            status.bypassed().iter().any(|(route, part)| route.starts_with(&by) && *part)
        })?;
        vpnd.wait_for_log(&format!("diverts a large part of route {switch} from tun0"), SOON)
    };
    draw(&open)?;
    ping::until_answered(a, host, SOON).context("without the table it takes packets")?;
    open.process().interrupt()?;

    a.run(&format!("ip route del {network} dev eth0"))?;
    let shut = Vpnd::start(a, &guarded(site))?;
    draw(&shut)?;
    ensure!(!reached(), "it answers: {}", a.run("nft list ruleset")?);
    ensure!(nft::dropped(a)? > 0, "{}", a.run("nft list ruleset")?);
    for neighbour in ["192.0.2.2", "2001:db8::2"] {
        ping::until_answered(a, neighbour, SOON).context("the local network")?;
    }
    a.run(&format!("ip address add {own} dev eth0"))?;
    ping::until_answered(a, host, SOON).context("a local network that comes later")?;
    Ok("reported; its packets leave without the table, and are dropped with it".to_owned())
}

/// Sends a router advertisement: no router, and a network that is on the link.
fn advertise(from: &Host, network: &str) -> Result<()> {
    let (net, len) = network.split_once('/').context("a network")?;
    let mut message = vec![134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // On the link, for an hour.
    message.extend([3, 4, len.parse()?, 0x80, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
    message.extend(net.parse::<Ipv6Addr>()?.octets());
    from.enter(|| {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.bind_device(Some(b"eth0"))?;
        socket.set_multicast_hops_v6(255)?;
        let everybody: SocketAddr = "[ff02::1]:0".parse()?;
        socket.send_to(&message, &everybody.into())?;
        Ok(())
    })
}

fn gone(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let site = guarded(site::pair()?.0);
    let mut vpnd = Vpnd::start(&host, &site)?;
    host.run("nft flush ruleset")?;
    let there = tables(&host)?;
    ensure!(there.contains(TABLE), "after a flush: {there}");
    vpnd = vpnd.restart()?;
    ensure!(tables(&host)?.contains(TABLE), "after kill -9 and a start: {}", tables(&host)?);
    vpnd.process().kill()?;
    ensure!(tables(&host)?.is_empty(), "after kill -9: {}", tables(&host)?);
    vpnd = vpnd.restart()?;
    ensure!(vpnd.process().terminate()?.success(), "{}", vpnd.as_process().log());
    ensure!(tables(&host)?.is_empty(), "after a stop: {}", tables(&host)?);
    host.run(&format!("nft add {TABLE}"))?;
    let path = vpnd::write_files(&host, &site)?.display().to_string();
    let (code, said) = vpnd::run(&host, &["--config", &path])?;
    let named = said.contains("vpnd-site-a") && said.contains("another program has made one");
    ensure!(code == 1 && named, "with one that is not ours: exit {code}: {said}");
    ensure!(tables(&host)?.contains(TABLE), "it took away what is not its own");
    Ok("flush ruleset leaves it, kill -9 and a stop do not; a stranger's is left alone".to_owned())
}

/// Everything goes through the tunnel, and where the peer is nobody knows: only the mark tells a filter that its call
/// may come from there.
fn marks(lab: &Lab) -> Result<String> {
    let Routed { a, b, .. } = &Routed::new(lab)?;
    let (mut site_a, site_b) = site::pair()?;
    for to in ["0.0.0.0/0", "::/0"] {
        site_a.remote.allowed_ips.push(to.to_owned());
        site_a.service.push(format!("[[route]]\nto = {to:?}"));
    }
    let strict = "iifname eth0 meta nfproto ipv4 fib saddr . mark . iif oif missing";
    nft::drop_arriving(a, strict)?;
    let _b = Vpnd::start(b, &site_b.towards(Routed::A4).keepalive(1))?;
    let mut without = Vpnd::start(a, &site_a)?;
    eventually("the filter drops the peer's calls", SOON, || {
        ensure!(nft::dropped(a)? > 0);
        Ok(())
    })?;
    without.process().terminate()?;
    site_a.service.insert(0, "firewall = true".to_owned());
    let with = Vpnd::start(a, &site_a)?;
    ping::until_answered(a, INNER_B4, SOON)?;
    ping::until_answered(a, INNER_B6, SOON)?;
    let rules = a.run("nft list ruleset")?;
    let marked = rules.contains(&format!("udp dport {PORT} fib daddr type local meta mark set"));
    ensure!(marked && with.status()?.is_up(), "{rules}");
    Ok("dropped without the table, up with it".to_owned())
}

fn closed_port(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let path = vpnd::write_files(&host, &site::pair()?.0.towards(Wire::B4))?;
    let path = path.display().to_string();
    let check = || -> Result<String> {
        let (code, said) = vpnd::run(&host, &["check", &path])?;
        ensure!(code == 0, "exit {code}: {said}");
        Ok(said)
    };
    ensure!(!check()?.contains("input"), "without a chain: {}", check()?);
    let chain = |policy| {
        format!(
            "table inet own {{ chain input {{ type filter hook input priority 0; policy {policy}; }}; }}"
        )
    };
    let set = |rules: &str| host.run_with_input("nft -f -", rules);
    set(&chain("accept"))?;
    ensure!(!check()?.contains("input"), "one that accepts: {}", check()?);
    set(&chain("drop"))?;
    let line = format!("nft insert rule inet own input udp dport {PORT} accept");
    let said = check()?;
    ensure!(said.contains(&line), "{said}");
    host.run(&line)?;
    ensure!(!check()?.contains("input"), "with that line: {}", check()?);
    Ok("named with its line, which then is enough".to_owned())
}
