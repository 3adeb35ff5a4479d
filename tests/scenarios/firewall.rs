//! `[service] firewall`: the table that vpnd sets, what it does, and that it goes however vpnd ends; and what `check`
//! says of others'.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_A6, INNER_B4, INNER_B6, PORT, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Routed, Vpnd, Wire, eventually, nft, vpnd};

use crate::tunnel::SOON;

const TABLE: &str = "table inet vpnd-site-a";

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    vec![
        works("firewall::the inside is reached from the tunnel alone", inside),
        works("firewall::one of our own addresses as the sender", own_sender),
        works("firewall::a program that names a device", named_device),
        works("firewall::the table goes with vpnd", gone),
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
    for host in [a, b] {
        for change in ["down", "address 02:00:00:00:00:01", "arp off", "up"] {
            host.run(&format!("ip link set eth0 {change}"))?;
        }
    }
    a.run("ip route add default dev eth0")?;
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
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.bind_device(Some(b"eth0"))?;
    let to = SocketAddr::new(to.parse()?, 9);
    Ok(socket.send_to(b"in the clear", &to.into()).map(drop)?)
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
    let named = said.contains("vpnd-site-a") && said.contains("somebody else has made one");
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
