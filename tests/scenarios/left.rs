//! Settings that stay with a device: those that a former program left on it, those that vpnd leaves to the
//! next one, and its owner.

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::tun::Tun;
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually};

use crate::tunnel::{SOON, carries_everything};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for mode in ["tun", "tap"] {
        let former = format!("left::by a former program, {mode}");
        all.push(Scenario::new(former, Cost::Works, move |lab| found(lab, mode)));
        for (how, kill) in [("stopped", false), ("killed", true)] {
            let ours = format!("left::by vpnd when it is {how}, {mode}");
            all.push(Scenario::new(ours, Cost::Works, move |lab| offloads(lab, mode, kill)));
        }
    }
    all.push(Scenario::new("left::a device that was anybody's", Cost::Works, anybodys));
    all
}

fn with(mut site: Site, mode: &str, lines: &[&str]) -> Site {
    site.interface.push(format!("mode = {mode:?}"));
    site.interface.extend(lines.iter().map(ToString::to_string));
    site.speaking_vpnd(&[])
}

/// Sizes and filters that were never taken back; each keeps packets from whoever does not look for it.
fn found(lab: &Lab, mode: &str) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &with(b, mode, &[]))?;
    for (queues, word) in [("1", ""), ("2", " multi_queue")] {
        wire.a.run(&format!("ip tuntap add dev tun0 mode {mode}{word}"))?;
        spoil(&wire.a, mode, !word.is_empty())?;
        let queues = format!("queues = {queues}");
        let mut a = Vpnd::start(&wire.a, &with(a.clone(), mode, &[&queues]).towards(Wire::B4))?;
        carries_everything(&wire, true)?;
        a.process().terminate()?;
        left_as_new(&wire.a, mode, !word.is_empty())?;
        wire.a.run(&format!("ip tuntap del dev tun0 mode {mode}{word}"))?;
    }
    Ok("a longer header, offloads and filters: packets pass, and none of it is left".into())
}

/// As the program was used to that had the device before.
fn spoil(host: &Host, mode: &str, multi_queue: bool) -> Result<()> {
    let before = Tun::attach(host, "tun0", flags(mode, multi_queue) | libc::IFF_VNET_HDR)?;
    before.number(libc::TUNSETVNETHDRSZ, 12)?;
    before.number(libc::TUNSETVNETLE, 0)?;
    before.number(libc::TUNSETSNDBUF, 20_000)?;
    before.set(libc::TUNSETOFFLOAD, libc::TUN_F_CSUM | libc::TUN_F_TSO4)?;
    if mode == "tap" {
        before.give_only([2, 0, 0x5e, 0, 0x53, 0x99])?;
        before.give_nothing()?;
    }
    Ok(())
}

fn flags(mode: &str, multi_queue: bool) -> i32 {
    let mode = if mode == "tap" { libc::IFF_TAP } else { libc::IFF_TUN };
    mode | libc::IFF_NO_PI | if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 }
}

/// The kernel gives the next program no super-packets, and has a header of ten bytes for one that asks for any.
fn left_as_new(host: &Host, mode: &str, multi_queue: bool) -> Result<()> {
    let features = host.run("ethtool -k tun0")?;
    for feature in [
        "tx-checksum-ip-generic",
        "tx-tcp-segmentation",
        "tx-tcp6-segmentation",
        "tx-udp-segmentation",
    ] {
        ensure!(features.contains(&format!("{feature}: off")), "{features}");
    }
    // At once: nobody holds it any more.
    let next = Tun::attach(host, "tun0", flags(mode, multi_queue))?;
    ensure!(next.number(libc::TUNGETVNETHDRSZ, 0)? == 10, "the header is another");
    ensure!(next.number(libc::TUNGETVNETLE, 1)? == 0, "its numbers are another's");
    Ok(())
}

/// A device that was there and one that vpnd made to stay, of one queue and of several.
fn offloads(lab: &Lab, mode: &str, kill: bool) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &with(b, mode, &[]))?;
    for (adopted, queues) in [(true, 1), (true, 2), (false, 1), (false, 2)] {
        let word = if queues > 1 { " multi_queue" } else { "" };
        if adopted {
            wire.a.run(&format!("ip tuntap add dev tun0 mode {mode}{word}"))?;
        }
        let lines = [format!("queues = {queues}"), format!("persist = {}", !adopted)];
        let lines = lines.each_ref().map(String::as_str);
        let mut a = Vpnd::start(&wire.a, &with(a.clone(), mode, &lines).towards(Wire::B4))?;
        ping::until_answered(&wire.a, INNER_B4, SOON)?;
        let during = wire.a.run("ethtool -k tun0")?;
        ensure!(during.contains("tx-tcp-segmentation: on"), "{during}");
        if kill {
            a.process().kill()?;
        } else {
            a.process().terminate()?;
        }
        // It is killed: another process does it, an instant later.
        let left = || left_as_new(&wire.a, mode, queues > 1);
        if kill {
            eventually("it is as a new one", SOON, left)?
        } else {
            left()?
        }
        wire.a.run(&format!("ip tuntap del dev tun0 mode {mode}{word}"))?;
    }
    Ok("the next program finds a device without offloads, and free".into())
}

/// Whoever takes it may say whose it is; what somebody owns stays so.
fn anybodys(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let (a, _b) = site::pair()?;
    for (made, lines, becomes) in [
        ("", &[][..], "user root"),
        (" multi_queue", &["queues = 2"], "user root"),
        ("", &["owner = \"nobody\"", "group = \"daemon\""], "user nobody group daemon"),
        (" multi_queue", &["group = \"daemon\""], "group daemon"),
        (" user daemon", &["owner = \"nobody\""], "user daemon"),
        (" group daemon", &[], "group daemon"),
    ] {
        let said = format!("ip tuntap add dev tun0 mode tun{made}: {lines:?}");
        host.run(&format!("ip tuntap add dev tun0 mode tun{made}"))?;
        let mut vpnd = Vpnd::start(&host, &with(a.clone(), "tun", lines).towards(Wire::B4))?;
        let owner = owner(&host)?;
        ensure!(owner == becomes, "{said}: {owner}");
        if !made.contains("daemon") {
            vpnd.wait_for_log("anybody could attach to device tun0", SOON)?;
        }
        vpnd.process().terminate()?;
        host.run("ip link del tun0")?;
    }
    Ok("it is root's, or whose the configuration says; one that had an owner keeps it".into())
}

/// As `ip` shows it.
fn owner(host: &Host) -> Result<String> {
    let shown = host.run("ip -d link show dev tun0")?;
    let behind = shown.split("persist on ").nth(1).unwrap_or_default();
    let words = behind.split(' ').collect::<Vec<_>>();
    let pairs = words.chunks(2).take_while(|pair| ["user", "group"].contains(&pair[0]));
    Ok(pairs.map(|pair| pair.join(" ")).collect::<Vec<_>>().join(" "))
}
