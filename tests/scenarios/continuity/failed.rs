//! The next process cannot start: the running one goes on, and no packet is lost.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::INNER_B4;
use vpnd_tests::traffic::ping;
use vpnd_tests::{Lab, eventually};

use super::{By, Ends, Streams, ends};
use crate::tunnel::SOON;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("continuity::the next process fails", Cost::Works, failed)]
}

fn failed(lab: &Lab) -> Result<String> {
    let mut ends = ends(lab, By::Process, |site| {
        site.remote.protocol = "vpnd";
        if site.name == "site-a" {
            site.service.push("firewall = true".to_owned());
            site.service.push("uapi = true".to_owned());
            site.remote.allowed_ips.push("198.18.7.0/24".to_owned());
            site.tables
                .push("[[route]]\nto = \"198.18.7.0/24\"\nwhen_down = \"blackhole\"".to_owned());
        }
    })?;
    let host = &ends.wire.a;
    // A route that somebody else has, a port that somebody else has, and an interface that nobody has.
    host.run("ip route add 198.18.9.0/24 dev lo")?;
    let _taken = host.enter(|| Ok(TcpListener::bind("127.0.0.1:9586")?))?;
    eventually("the kill switch knows the route", SOON, || {
        ensure!(state(&ends)?.matches("198.18.9.0/24").count() == 3, "{}", state(&ends)?);
        Ok(())
    })?;
    let before = state(&ends)?;
    let good = ends.a.text()?;
    let handshakes = ends.a.status()?.handshakes();
    let streams = Streams::start(&ends.wire)?;
    for (addition, reason) in [
        ("[[route]]\nto = \"198.18.8.0/24\"\n[[route]]\nto = \"198.18.9.0/24\"", "198.18.9.0/24"),
        ("[metrics]\nlisten = \"127.0.0.1:9586\"", "9586"),
        ("[socket]\nbind_device = \"nothing0\"", "nothing0"),
    ] {
        fs::write(ends.a.config(), format!("{good}\n{addition}\n"))?;
        let said = fails(&ends, ends.a.config())?;
        ensure!(said.contains(reason), "{addition}: {said}");
        eventually("everything is as before", SOON, || {
            let now = state(&ends)?;
            ensure!(now == before, "{before}\nis now\n{now}");
            Ok(())
        })?;
    }
    let [there, back] = streams.stop()?;
    ensure!(there.lost() + back.lost() == 0, "{there:?} {back:?}");
    ensure!(ends.a.status()?.handshakes() == handshakes, "there was another handshake");
    ends.wire.a.run("wg show tun0")?;
    // The next one that can start does.
    fs::write(ends.a.config(), good)?;
    ends.a.take_over()?;
    ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
    ensure!(state(&ends)? == before, "{before}\nis now\n{}", state(&ends)?);
    Ok(format!("3 failures: 0 of {} and 0 of {} lost, the same session", there.sent, back.sent))
}

/// Starts a process that takes over and cannot: what it says.
fn fails(ends: &Ends, config: &Path) -> Result<String> {
    let config = config.to_str().context("a path of our own making")?;
    let (code, said) = vpnd_tests::vpnd::run(&ends.wire.a, &["--config", config, "--take-over"])?;
    ensure!(code != 0, "it runs: {said}");
    Ok(said)
}

fn state(ends: &Ends) -> Result<String> {
    let lines = [
        "ip -d link show tun0",
        "ip addr show dev tun0",
        "ip route show table all",
        "ip rule",
        "nft -s list table inet vpnd-site-a",
        "nft -s list table inet vpnd_killswitch-site-a",
    ];
    lines.into_iter().map(|line| ends.wire.a.run(line)).collect()
}
