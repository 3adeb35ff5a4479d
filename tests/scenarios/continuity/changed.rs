//! The next process has another configuration, or other sockets to continue with.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::INNER_B4;
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Process};

use super::{By, Ends, PACE, Streams, ends};
use crate::tunnel::SOON;

pub(super) fn scenarios() -> Vec<Scenario> {
    let both = [By::Process, By::Service];
    let mut all: Vec<_> = both
        .into_iter()
        .flat_map(|by| {
            let name = |what: &str| format!("continuity::{what}, {}", by.name());
            [
                Scenario::new(name("other queues and hooks"), Cost::Works, move |lab| {
                    live(lab, by)
                }),
                Scenario::new(name("a hook is not cut short"), Cost::Works, move |lab| {
                    hook(lab, by)
                }),
                Scenario::new(name("another port"), Cost::Works, move |lab| port(lab, by)),
                Scenario::new(name("the table is never absent"), Cost::Works, move |lab| {
                    table(lab, by)
                }),
                Scenario::new(name("WireGuard's tools"), Cost::Works, move |lab| tools(lab, by)),
            ]
        })
        .collect();
    all.extend([
        Scenario::new("continuity::more queues than the device can have", Cost::Works, made_anew),
        Scenario::new("continuity::a typing error after a reload", Cost::Works, typo_after_reload),
        Scenario::new("continuity::a reload names the command of a restart", Cost::Works, named),
    ]);
    all
}

/// Changes A's file and lets the next process continue with it.
fn change(ends: &mut Ends, by: By, from: &str, to: &str) -> Result<()> {
    let text = ends.a.text()?;
    ensure!(text.contains(from), "{from:?} is not in\n{text}");
    fs::write(ends.a.config(), text.replace(from, to))?;
    by.next(&mut ends.a)?;
    ping::until_answered(&ends.wire.a, INNER_B4, SOON)
}

/// What is changed without a lost packet.
fn live(lab: &Lab, by: By) -> Result<String> {
    let mut ends = ends(lab, by, |site| {
        site.remote.protocol = "vpnd";
        if site.name == "site-a" {
            site.interface.push("queues = 2".to_owned());
        }
    })?;
    let link = ends.wire.a.run("ip -o link show tun0")?;
    let streams = Streams::start(&ends.wire)?;
    for (from, to) in [
        ("queues = 2", "queues = 4"),
        ("sandbox = \"kill\"", "sandbox = \"kill\"\nallow_key_log = true"),
        ("[service]", "[hooks]\nestablished = [\"/bin/true\"]\n[service]"),
        ("[service]", "[service]\nfirewall = true"),
    ] {
        change(&mut ends, by, from, to)?;
    }
    let [there, back] = streams.stop()?;
    ensure!(there.lost() + back.lost() == 0, "{there:?} {back:?}");
    ensure!(link == ends.wire.a.run("ip -o link show tun0")?, "another device than {link}");
    let queues = ends.a.status()?;
    ensure!(queues.to_string().contains("\"queues\":4"), "{queues}");
    // Packets that wait in a queue that is closed are lost.
    change(&mut ends, by, "queues = 4", "queues = 2")?;
    Ok(format!("0 of {} and 0 of {} lost", there.sent, back.sent))
}

/// A device that was made with one queue cannot have more, and there can be another only when the manager has closed it.
fn made_anew(lab: &Lab) -> Result<String> {
    let mut ends = ends(lab, By::Service, |site| site.remote.protocol = "vpnd")?;
    let link = ends.wire.a.run("ip -o link show tun0")?;
    change(&mut ends, By::Service, "[interface]", "[interface]\nqueues = 3")?;
    ensure!(link != ends.wire.a.run("ip -o link show tun0")?, "the same device: {link}");
    let status = ends.a.status()?;
    ensure!(status.to_string().contains("\"queues\":3"), "{status}");
    // What else is kept is kept still.
    let text = ends.a.text()?;
    fs::write(ends.a.config(), format!("{text}nonsense = 1\n"))?;
    By::Service.next(&mut ends.a)?;
    ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
    ends.a.wait_for_log("the configuration is not valid, so the tunnel continues", SOON)?;
    Ok("another device, with three; and a typing error after that".to_owned())
}

/// The peer hears of another port by the handshake. Nothing that waits in the device is lost.
fn port(lab: &Lab, by: By) -> Result<String> {
    let mut ends = ends(lab, by, |site| {
        site.remote.protocol = "vpnd";
        site.listen = Some(51820);
    })?;
    let streams = Streams::start(&ends.wire)?;
    thread::sleep(Duration::from_millis(300));
    change(&mut ends, by, "listen = 51820", "listen = 7000")?;
    let [there, back] = streams.stop()?;
    ensure!(ends.a.status()?.listen_port() == Some(7000), "{}", ends.a.status()?);
    ensure!(there.lost() == 0 && back.lost() < u64::from(PACE.per_second), "{there:?} {back:?}");
    Ok(format!(
        "{} of {} to the peer lost, {} of {} that the peer sent to the former port",
        there.lost(),
        there.sent,
        back.lost(),
        back.sent
    ))
}

/// What the kernel reports about the tables.
struct Monitor(Process);

impl Monitor {
    fn start(host: &Host) -> Result<Self> {
        let mut command = host.command("stdbuf");
        command.args(["-oL", "nft", "monitor"]);
        let monitor = host.spawn("monitor", command)?;
        thread::sleep(Duration::from_millis(300));
        Ok(Self(monitor))
    }

    /// How often a table was replaced within one transaction, and how often it was made although it was not there, or removed
    /// without another in its place.
    fn seen(&self, table: &str) -> [usize; 2] {
        let log = self.0.log();
        let mut counts = [0, 0];
        for transaction in log.split("# new generation") {
            let has = |what: &str| transaction.contains(&format!("{what} table inet {table}\n"));
            match (has("delete"), has("create")) {
                (true, true) => counts[0] += 1,
                (false, false) => {}
                _ => counts[1] += 1,
            }
        }
        counts
    }
}

fn table(lab: &Lab, by: By) -> Result<String> {
    let mut ends = ends(lab, by, |site| {
        if site.name == "site-a" {
            site.service.push("firewall = true".to_owned());
        }
    })?;
    let monitor = Monitor::start(&ends.wire.a)?;
    for _ in 0..5 {
        by.next(&mut ends.a)?;
        ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
    }
    if by == By::Service {
        for _ in 0..3 {
            ends.a = ends.a.restart()?;
            ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
        }
    }
    let times = if by == By::Service { 8 } else { 5 };
    let seen = monitor.seen("vpnd-site-a");
    ensure!(seen == [times, 0], "{seen:?}: {}", monitor.0.log());
    // Without the key it goes.
    change(&mut ends, by, "firewall = true", "firewall = false")?;
    let tables = ends.wire.a.run("nft list tables")?;
    ensure!(!tables.contains("vpnd-site-a"), "{tables}");
    Ok(format!("replaced {times} times, each time in one transaction"))
}

fn tools(lab: &Lab, by: By) -> Result<String> {
    let mut ends = ends(lab, by, |site| {
        if site.name == "site-a" {
            site.service.push("uapi = true".to_owned());
        }
    })?;
    for _ in 0..3 {
        by.next(&mut ends.a)?;
        ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
        let shown = ends.wire.a.run("wg show tun0")?;
        ensure!(shown.contains("interface: tun0") && shown.contains("latest handshake"), "{shown}");
    }
    let peer = ends.wire.a.run("wg show tun0 peers")?;
    ends.wire.a.run(&format!("wg set tun0 peer {} persistent-keepalive 7", peer.trim()))?;
    ensure!(ends.wire.a.run("wg show tun0 persistent-keepalive")?.contains('7'), "not set");
    Ok("`wg show` and `wg set` after each of 3".to_owned())
}

/// The configuration that a restart falls back to is that of the reload.
fn typo_after_reload(lab: &Lab) -> Result<String> {
    let mut ends = ends(lab, By::Service, |site| {
        site.remote.protocol = "vpnd";
        site.mtu = 1400;
    })?;
    let text = ends.a.text()?.replace("mtu = 1400", "mtu = 1380");
    let (code, said) = ends.a.reload_text(&text, &[])?;
    ensure!(code == 0, "{said}");
    fs::write(ends.a.config(), format!("{text}\nnonsense = true\n"))?;
    let streams = Streams::start(&ends.wire)?;
    ends.a = By::Service.restart(ends.a)?;
    ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
    let [there, back] = streams.stop()?;
    ensure!(there.lost() + back.lost() == 0, "{there:?} {back:?}");
    let log = ends.a.as_process().log();
    ensure!(log.contains("continues with that of the earlier process"), "{log}");
    let link = ends.wire.a.run("ip -o link show tun0")?;
    ensure!(link.contains("mtu 1380"), "{link}");
    Ok("the tunnel continues with what was reloaded".to_owned())
}

/// A tunnel that somebody has started by hand.
fn named(lab: &Lab) -> Result<String> {
    let mut ends = ends(lab, By::Process, |site| {
        site.remote.protocol = "vpnd";
        if site.name == "site-a" {
            site.interface.push("queues = 2".to_owned());
        }
    })?;
    let streams = Streams::start(&ends.wire)?;
    let text = ends
        .a
        .text()?
        .replace("queues = 2", "queues = 3")
        .replace("keepalive = \"5s\"", "keepalive = \"6s\"");
    let command = format!("`vpnd --config {} --take-over`", ends.a.config().display());
    let (code, said) = ends.a.reload_text(&text, &["--restart", "--dry-run"])?;
    ensure!(code == 1 && said.contains(&format!("{command} applies all of it")), "{code} {said}");
    let (code, said) = ends.a.reload_text(&text, &["--restart"])?;
    ensure!(
        code == 1 && said.contains(&command) && said.contains("nothing was changed"),
        "{code} {said}"
    );
    ends.a.take_over()?;
    let (code, said) = ends.a.reload_text(&text, &["--restart"])?;
    ensure!(code == 0 && said.starts_with("reloaded "), "{code} {said}");
    let [there, back] = streams.stop()?;
    ensure!(there.lost() + back.lost() == 0, "{there:?} {back:?}");
    Ok("and it is the right one".to_owned())
}

/// A hook that runs at a hand-over runs to its end.
fn hook(lab: &Lab, by: By) -> Result<String> {
    let mut ends = ends(lab, by, |_site| ())?;
    let done = ends.wire.a.directory().join("state/done");
    let script = format!("sleep 1; echo done >{}", done.display());
    let line = format!("[hooks]\nestablished = [[\"/bin/sh\", \"-c\", {script:?}]]\n[service]");
    fs::write(ends.a.config(), ends.a.text()?.replace("[service]", &line))?;
    ends.a.process().terminate()?;
    ends.a = ends.a.restart()?;
    ends.a.wait_for_log("hook established: ", SOON)?;
    by.next(&mut ends.a)?;
    ping::until_answered(&ends.wire.a, INNER_B4, SOON)?;
    ensure!(done.exists(), "it was cut short");
    Ok("it ended by itself".to_owned())
}
