//! `vpnd tuntap` compared with `ip tuntap`: equal arguments create equal devices, and errors are explained.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::tun::Intruder;
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually, long, site, vpnd};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    vec![
        works("tuntap::the same device as ip makes", same_device),
        works("tuntap::listed as ip does", listed),
        works("tuntap::what the next opener overwrites", overwritten),
        works("tuntap::what is wrong is named", errors),
        works("tuntap::no privilege, no driver", nothing_to_open),
        works("tuntap::another namespace's sysfs", foreign_sysfs),
        works("tuntap::no queue for another user", no_intruder),
    ]
}

/// Each word alone, in both modes where they might differ, and all together.
const DEVICES: [&str; 12] = [
    "mode tun",
    "mode tap",
    "mode tun user nobody",
    "mode tun group daemon",
    "mode tap user 12345 group 54321",
    "mode tun multi_queue",
    "mode tap multi_queue",
    "mode tun vnet_hdr",
    "mode tun pi",
    "mode tap pi",
    "mode tun one_queue",
    "mode tap user nobody group daemon multi_queue pi vnet_hdr one_queue",
];

/// Each tool deletes what the other made.
fn same_device(lab: &Lab) -> Result<String> {
    let host = host(lab)?;
    for words in DEVICES {
        host.run(&format!("ip tuntap add dev t0 {words}"))?;
        let expected = device(&host)?;
        does(&host, &format!("del {} name t0", without_owner(words)))?;
        ensure!(!exists(&host, "t0"), "{words}: vpnd did not delete it");
        let said = does(&host, &format!("add {words} name t0"))?;
        ensure!(said.is_empty(), "{words}: it chose no name, and says {said}");
        let made = device(&host)?;
        ensure!(made == expected, "{words}: ip makes\n{expected}\nvpnd makes\n{made}");
        host.run(&format!("ip tuntap del dev t0 {}", without_owner(words)))?;
        ensure!(!exists(&host, "t0"), "{words}: ip did not delete it");
    }
    ensure!(does(&host, "add mode tap")? == "tap0\n", "the kernel's first name");
    let second: Value = serde_json::from_str(&does(&host, "add --json mode tap dev tap%d")?)?;
    ensure!(second == json!({"schema": 1, "name": "tap1"}), "{second}");
    Ok(format!("{} devices, each shown by ip -d link and sysfs as ip's own", DEVICES.len()))
}

/// What `ip` and sysfs show of t0, apart from its number and hardware address.
fn device(host: &Host) -> Result<String> {
    let shown = host.run("ip -d link show dev t0")?;
    let (_index, shown) = shown.split_once(": ").context("no index")?;
    let hardware = shown.lines().find_map(|line| line.trim().strip_prefix("link/ether "));
    let address = hardware.and_then(|line| line.split(' ').next()).unwrap_or("none at all");
    let files = ["tun_flags", "owner", "group"].map(|file| format!("/sys/class/net/t0/{file}"));
    Ok(shown.replace(address, "ADDRESS") + &host.run(&format!("cat {}", files.join(" ")))?)
}

/// Which are no words of `ip tuntap del`.
fn without_owner(words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    let is_owner = |at: usize| matches!(words[at], "user" | "group");
    let kept = (0..words.len()).filter(|at| !(is_owner(*at) || *at > 0 && is_owner(at - 1)));
    kept.map(|at| words[at]).collect::<Vec<_>>().join(" ")
}

/// The first line of each device is that of `ip tuntap`, which calls a device with `pi` `filter` too:
/// the bit that says neither is the same.
fn listed(lab: &Lab) -> Result<String> {
    let host = host(lab)?;
    host.run("ip link add veth0 type veth peer name veth1")?;
    let tun = DEVICES.iter().filter(|words| words.starts_with("mode tun"));
    for (number, words) in tun.enumerate() {
        // vpnd shows the names of those that have one.
        let words = words.replace("nobody", "12345").replace("daemon", "54321");
        does(&host, &format!("add dev t{number} {words}"))?;
    }
    let theirs = host.run("ip tuntap list")?.replace(" filter", "");
    for words in ["", "list", "show", "lst"] {
        let ours = first_lines(&does(&host, words)?);
        ensure!(ours == theirs, "ip:\n{theirs}\nvpnd {words}:\n{ours}");
    }
    let one = first_lines(&does(&host, "show dev t1")?);
    ensure!(one == "t1: tun persist user 12345\n", "{one}");
    Ok(format!("{} devices, the same lines", theirs.lines().count()))
}

fn first_lines(listing: &str) -> String {
    let firsts = listing.lines().filter(|line| !line.starts_with(' '));
    firsts.map(|line| format!("{line}\n")).collect()
}

/// The daemon opens a device that has other flags, and holds it.
fn overwritten(lab: &Lab) -> Result<String> {
    let host = host(lab)?;
    does(&host, "add dev tun0 mode tun user nobody pi one_queue")?;
    let before = found(&host)?;
    ensure!(before["flags"] == json!(["pi", "one_queue", "persist"]), "{before}");
    ensure!(before["overwritten"] == json!(["pi", "vnet_hdr", "one_queue"]), "{before}");
    ensure!(before["user"]["name"] == "nobody" && before["processes"] == json!([]), "{before}");
    let mut running = start(&host)?;
    let during = found(&host)?;
    ensure!(during["flags"] == json!(["vnet_hdr", "persist"]), "{during}");
    ensure!(during["user"] == before["user"] && during["fixed"] == before["fixed"], "{during}");
    let holders = during["processes"].as_array().context("no processes")?;
    // One descriptor to move packets, one to watch the device, one for its carrier.
    let daemon = json!({
        "pid": running.process().id(), "name": "vpnd", "queues": 3, "elsewhere": false,
    });
    ensure!(holders.contains(&daemon), "{during}");
    // Beside it the process that waits for its end.
    let caretaker = holders.iter().find(|holder| holder["name"] == "vpnd-device");
    let caretaker = caretaker.and_then(|holder| holder["pid"].as_u64());
    ensure!(holders.len() == 2, "{during}");
    let caretaker = caretaker.with_context(|| during.to_string())?;
    eventually("the caretaker has no privilege", SOON, || has_no_privilege(caretaker))?;
    refuses(&host, "del dev tun0", 1, "in use by another process")?;
    running.process().terminate()?;
    does(&host, "del dev tun0")?;
    Ok(format!("{} became {}", before["flags"], during["flags"]))
}

/// Neither root nor a capability, and no better priority than other programs.
fn has_no_privilege(process: u64) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()).map(str::to_owned)
    };
    ensure!(field("Uid:").is_some_and(|uid| uid != "0"), "{status}");
    ensure!(field("Gid:").is_some_and(|gid| gid != "0"), "{status}");
    ensure!(field("CapPrm:").is_some_and(|set| set.trim_matches('0').is_empty()), "{status}");
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let nice = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(16));
    ensure!(nice == Some("0"), "{stat}");
    Ok(())
}

fn start(host: &Host) -> Result<Vpnd> {
    let (a, _b) = site::pair()?;
    Vpnd::start(host, &a.towards(Wire::B4))
}

/// What `list --json` says of tun0.
fn found(host: &Host) -> Result<Value> {
    let mut listing: Value = serde_json::from_str(&does(host, "list tun0 --json")?)?;
    let devices = listing["devices"].as_array().map(Vec::len);
    ensure!(devices == Some(1) && listing["schema"] == 1, "{listing}");
    let mut device = listing["devices"][0].take();
    // Scenarios beside this one have devices of that name in namespaces of their own.
    let processes = device["processes"].as_array_mut().context("no processes")?;
    processes.retain(|process| process["elsewhere"] == false);
    Ok(device)
}

/// The words, the exit code, and what must be said.
const ERRORS: [(&str, i32, &str); 12] = [
    ("add dev t0 mode tun user nobody-of-that-name", 2, "no user `nobody-of-that-name`"),
    ("add dev t0 mode tun group none-of-that-name", 2, "no group `none-of-that-name`"),
    ("add dev t0", 2, "which mode?"),
    ("add dev t0 mode tun multiqueue", 2, "did you mean multi_queue?"),
    ("add dev sixteen-letters- mode tun", 2, "cannot name a device"),
    ("add dev t%x mode tun", 2, "cannot name a device"),
    ("add dev there mode tun", 1, "\"there\" already"),
    ("add dev lo mode tun", 1, "\"lo\" already"),
    ("del dev there mode tap", 1, "is a tun device"),
    ("del dev lo", 1, "neither a TUN nor a TAP"),
    ("del dev veth0", 1, "neither a TUN nor a TAP"),
    ("del dev nowhere mode tun", 1, "no device \"nowhere\""),
];

fn errors(lab: &Lab) -> Result<String> {
    let host = host(lab)?;
    does(&host, "add dev there mode tun multi_queue")?;
    host.run("ip link add veth0 type veth peer name veth1")?;
    let before = host.network_state()?;
    for (words, code, said) in ERRORS {
        refuses(&host, words, code, said)?;
    }
    refuses(&host, "list dev lo", 1, "neither a TUN nor a TAP")?;
    refuses(&host, "show nowhere", 1, "no device \"nowhere\"")?;
    let after = host.network_state()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(format!("{} mistakes, and nothing changed", ERRORS.len() + 2))
}

fn nothing_to_open(lab: &Lab) -> Result<String> {
    let host = host(lab)?;
    let mut command = host.command("setpriv");
    command.args(["--bounding-set", "-net_admin", "--"]).arg(vpnd::program()?);
    command.args(["tuntap", "add", "dev", "t0", "mode", "tun"]);
    let status = host.spawn("unprivileged", command)?.wait(Duration::from_secs(5))?;
    ensure!(status.code() == Some(77), "{status}");
    host.run("mount -t tmpfs none /dev/net")?;
    refuses(&host, "add dev t0 mode tun", 69, "/dev/net/tun")?;
    ensure!(!exists(&host, "t0"), "it is there all the same");
    Ok("exit 77 and 69".to_owned())
}

/// The flags of another device are not shown as those of this one.
fn foreign_sysfs(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    does(&host, "add dev not-in-this-sys mode tun")?;
    refuses(&host, "list", 1, "/sys shows the devices of another network namespace")?;
    does(&host, "del dev not-in-this-sys")?;
    ensure!(does(&host, "list")?.is_empty(), "there is none left");
    Ok("list refuses; add and del need no sysfs".to_owned())
}

/// A user without privileges tries to get a queue of a device that is made for somebody else.
fn no_intruder(lab: &Lab) -> Result<String> {
    let host = host(lab)?;
    let (rounds, mut caught) = (if long() { 200 } else { 10 }, 0);
    for round in 0..rounds {
        let (mode, flag) = [("tun", libc::IFF_TUN), ("tap", libc::IFF_TAP)][round % 2];
        let intruder = Intruder::start(&host, "t0", flag)?;
        does(&host, &format!("add dev t0 mode {mode} multi_queue user daemon group daemon"))?;
        let shown = host.run("ip -d link show dev t0")?;
        ensure!(shown.contains("multi_queue numqueues 0 numdisabled 0 "), "{shown}");
        ensure!(shown.contains("persist on user daemon group daemon"), "{shown}");
        does(&host, "del dev t0")?;
        caught += intruder.stop()?;
    }
    Ok(format!("{rounds} devices, no queue for uid 12345; {caught} made anew over it"))
}

/// A host whose `/sys` shows its own devices.
fn host(lab: &Lab) -> Result<Host> {
    let host = lab.host("a")?;
    host.run("mount -t sysfs none /sys")?;
    Ok(host)
}

fn does(host: &Host, words: &str) -> Result<String> {
    let (code, said) = tuntap(host, words)?;
    ensure!(code == 0, "`tuntap {words}` ends with {code}: {said}");
    Ok(said)
}

fn refuses(host: &Host, words: &str, expected: i32, must: &str) -> Result<()> {
    let (code, said) = tuntap(host, words)?;
    ensure!(
        code == expected && said.contains(must),
        "`tuntap {words}` ends with {code}, not {expected} and {must:?}: {said}"
    );
    Ok(())
}

fn tuntap(host: &Host, words: &str) -> Result<(i32, String)> {
    let words: Vec<&str> = ["tuntap"].into_iter().chain(words.split_whitespace()).collect();
    vpnd::run(host, &words)
}

fn exists(host: &Host, name: &str) -> bool {
    host.run(&format!("ip link show dev {name}")).is_ok()
}
