//! `[service] firewall`: the table that vpnd sets, what it does, and that it goes however vpnd ends; and what `check`
//! says of others'.

use anyhow::{Context, Result, ensure};
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
