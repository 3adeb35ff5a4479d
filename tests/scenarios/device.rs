//! The lifetime of the device: created or taken over, persistent or not, by which user, in which network
//! namespace, and what happens when another program deletes it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Host, Lab, Process, Vpnd, Wire, eventually, vpnd};

use crate::tunnel::{SOON, Tunnel, carries_everything};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    vec![
        works("device::adopt auto, require and never", adopt),
        works("device::persist, and a restart that nobody sees", persist),
        works("device::unprivileged attach", unprivileged),
        works("device::somebody else's device", not_the_owner),
        works("device::its address and multicast", mac_and_multicast),
        works("device::a VRF", vrf),
        works("device::a bridge's MTU is the default", jumbo_bridge),
        works("device::frames of stations that are not allowed", allowed_macs),
        works("device::lives in a namespace, the socket outside", device_in_netns),
        works("device::socket in a namespace", socket_in_netns),
        works("device::namespaces that cannot be entered", bad_netns),
        works("device::set down and up", down_and_up),
        works("device::renamed", renamed),
        works("device::moved to another namespace", moved),
        works("device::deleted, and started again", deleted),
    ]
}

/// A tunnel in which A has these lines more in `[interface]`.
fn with(lab: &Lab, lines: &[&str]) -> Result<Tunnel> {
    Tunnel::with(lab, |a, b| (told(a, lines).towards(Wire::B4), b))
}

fn told(mut site: Site, lines: &[&str]) -> Site {
    site.interface.extend(lines.iter().map(ToString::to_string));
    site
}

/// It ends at once with this code, and says these words.
fn refuses(host: &Host, site: &Site, expected: i32, words: &str) -> Result<String> {
    let file = vpnd::write_files(host, site)?;
    let file = file.to_str().context("a path of our own making")?;
    let (code, said) = vpnd::run(host, &["--config", file])?;
    ensure!(code == expected && said.contains(words), "{code}, not {expected} and {words}: {said}");
    Ok(said)
}

fn adopt(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, _b) = site::pair()?;
    let wanting = |adopt: &str| told(a.clone(), &[&format!("adopt = {adopt:?}")]);
    let before = wire.a.network_state()?;
    refuses(&wire.a, &wanting("require"), 1, "vpnd tuntap add dev tun0 mode tun")?;
    ensure!(wire.a.network_state()? == before, "require made something");
    for adopt in ["auto", "never"] {
        Vpnd::start(&wire.a, &wanting(adopt))?.process().terminate()?;
        ensure!(wire.a.network_state()? == before, "{adopt}: it did not go");
    }
    for words in ["mode tun", "mode tun multi_queue"] {
        wire.a.run(&format!("ip tuntap add dev tun0 {words}"))?;
        let before = wire.a.network_state()?;
        refuses(&wire.a, &wanting("never"), 1, "adopt = \"never\"")?;
        for adopt in ["auto", "require"] {
            Vpnd::start(&wire.a, &wanting(adopt))?.process().terminate()?;
            ensure!(wire.a.network_state()? == before, "{words}, {adopt}: it is another now");
        }
        wire.a.run(&format!("ip tuntap del dev tun0 {words}"))?;
    }
    Ok("what is there is taken or refused, plain and multi_queue; what is not is made or missed"
        .into())
}

/// The connection is made before the restart, and ends after it.
fn persist(lab: &Lab) -> Result<String> {
    let lines = ["persist = true", "owner = \"nobody\"", "group = \"12345\""];
    let tunnel = with(lab, &lines)?;
    let Tunnel { wire, mut a, b: _b } = tunnel;
    let running = without_carrier(&wire.a.network_state()?);
    let status = a.process().terminate()?;
    ensure!(status.success(), "{status}");
    let stopped = without_carrier(&wire.a.network_state()?);
    ensure!(running == stopped, "running:\n{running}\nstopped:\n{stopped}");
    let shown = wire.a.run("ip -d link show tun0")?;
    ensure!(shown.contains("persist on user nobody group 12345"), "{shown}");

    let mut a = a.restart()?;
    let transfer = tcp::Transfer::start(&wire.a, &wire.b, INNER_B4, 64 << 20)?;
    transfer.reach(1 << 20)?;
    a.process().kill()?;
    ensure!(!transfer.is_over(), "it ended too soon to see anything");
    let a = a.restart()?;
    let done = transfer.finish()?;
    ensure!(a.status()?.is_up(), "{}", a.status()?);
    Ok(format!("addresses and routes stay; one TCP connection over a restart: {done:?}"))
}

/// The kernel marks the routes of a device that nobody has open.
fn without_carrier(state: &str) -> String {
    state.replace(" linkdown", "")
}

/// Each refusal says what to do as root, and when that is done, it runs.
fn unprivileged(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let a = a.route("198.18.7.0/24").route("2001:db8:7::/64").towards(Wire::B4);
    let _b = Vpnd::start(&wire.b, &b)?;
    let program = as_nobody(&wire.a, &a)?;
    let mut commands = Vec::new();
    let mut running = loop {
        match attempt(&program, &wire.a)? {
            Attempt::Running(process) => break process,
            Attempt::Refused(advice) => {
                ensure!(!commands.contains(&advice), "{advice} helps nothing");
                follow(&wire.a, &advice.replace("NAME", "nobody"))?;
                commands.push(advice);
            }
        }
    };
    ensure!(running.log().contains("txqueuelen"), "no word of the shorter queue");
    let before = without_carrier(&wire.a.network_state()?);
    carries_everything(&wire, true)?;
    let identity = fs::read_to_string(format!("/proc/{}/status", running.id()))?;
    for line in ["Uid:\t65534\t65534", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"] {
        ensure!(identity.contains(line), "not {line}: {identity}");
    }
    let status = running.terminate()?;
    ensure!(status.success(), "{status}: {}", running.log());
    let after = without_carrier(&wire.a.network_state()?);
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(format!("uid 65534 without a capability, after: {}", commands.join("; ")))
}

/// What comes of a start.
enum Attempt {
    Running(Process),
    /// What it says to do as root.
    Refused(String),
}

fn attempt(program: &Path, host: &Host) -> Result<Attempt> {
    let mut command = host.command(program);
    command.arg("--config").arg(host.directory().join("site-a.toml"));
    let mut process = host.spawn("vpnd-attempt", command)?;
    let ended = eventually("it starts, or says why not", SOON, || {
        let ended = process.ended()?;
        ensure!(ended.is_some() || process.log().contains("listening on port"), "neither");
        Ok(ended)
    })?;
    let Some(status) = ended else { return Ok(Attempt::Running(process)) };
    let log = process.log();
    let last = log.lines().last().unwrap_or_default();
    ensure!(status.code() == Some(77), "{status}: {last}");
    let advice = last.rsplit('`').nth(1).with_context(|| format!("no advice: {last}"))?;
    Ok(Attempt::Refused(advice.to_owned()))
}

fn follow(host: &Host, advice: &str) -> Result<()> {
    let Some(words) = advice.strip_prefix("vpnd ") else { return host.run(advice).map(drop) };
    let words: Vec<&str> = words.split(' ').collect();
    let (code, said) = vpnd::run(host, &words)?;
    ensure!(code == 0, "{advice}: {said}");
    Ok(())
}

/// The host's files, driver and `/run/vpnd` are nobody's, and so is who is started by the program returned.
fn as_nobody(host: &Host, site: &Site) -> Result<PathBuf> {
    vpnd::write_files(host, site)?;
    for line in [
        "mount -t tmpfs -o mode=0755 none /dev/net",
        "mknod -m 0666 /dev/net/tun c 10 200",
        "mkdir /run/vpnd",
        "chown nobody /run/vpnd",
        &format!("chown -R nobody {}", host.directory().display()),
    ] {
        host.run(line)?;
    }
    let program = host.directory().join("as-nobody");
    let vpnd = vpnd::program()?.display();
    let script = format!(
        "#!/bin/sh\nexec setpriv --reuid 65534 --regid 65534 --clear-groups {vpnd} \"$@\"\n"
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

fn not_the_owner(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let (a, _b) = site::pair()?;
    let a = a.towards(Wire::B4);
    let program = as_nobody(&host, &a)?;
    host.run("ip tuntap add dev tun0 mode tun user daemon")?;
    let config = host.directory().join("site-a.toml");
    let output = host.command(&program).arg("--config").arg(config).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    let named = last.contains("belongs to this user");
    ensure!(output.status.code() == Some(77) && named, "{}: {said}", output.status);
    Ok(last.to_owned())
}

const MAC_A: &str = "02:00:5e:00:53:0a";
const MAC_B: &str = "02:00:5e:00:53:0b";

/// A TAP device that is not a bridge's.
fn tap(site: Site, lines: &[&str]) -> Site {
    told(site.speaking_vpnd(&[]), &[&["mode = \"tap\""], lines].concat())
}

fn mac_and_multicast(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    wire.a.run("ip tuntap add dev tun0 mode tap")?;
    let before = shown(&wire.a)?;
    let (a, b) = site::pair()?;
    let lines = [&format!("mac = {MAC_A:?}"), "multicast = false"];
    let _b = Vpnd::start(&wire.b, &tap(b, &[]))?;
    let mut a = Vpnd::start(&wire.a, &tap(a, &lines).towards(Wire::B4))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    let during = shown(&wire.a)?;
    ensure!(during.contains(MAC_A) && !during.contains("MULTICAST"), "{during}");
    let seen = wire.b.run("ip neighbour show dev tun0")?;
    ensure!(seen.contains(MAC_A), "B sees another station: {seen}");
    a.process().terminate()?;
    let after = shown(&wire.a)?;
    ensure!(before == after, "before: {before}\nafter: {after}");
    Ok(format!("{MAC_A} without MULTICAST, and as before when vpnd has ended"))
}

/// The device's line of `ip`, less its scheduler, which the kernel chooses when it is first up.
fn shown(host: &Host) -> Result<String> {
    let line = host.run("ip -o link show tun0")?;
    let (before, behind) = line.split_once("qdisc ").context("no scheduler")?;
    Ok(before.to_owned() + behind.split_once(' ').context("nothing behind it")?.1)
}

/// Not every kernel has them; each says what is none.
fn vrf(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let a = told(a.route("198.18.7.0/24").towards(Wire::B4), &["vrf = \"red\""]);
    refuses(&wire.a, &a, 1, "there is no vrf red")?;
    if wire.a.run("ip link add red type vrf table 1001").is_err() {
        wire.a.run("ip link add red type bridge")?;
        refuses(&wire.a, &a, 1, "red is no vrf")?;
        return Ok(
            "this kernel has no VRF: what is none is refused, joining one was not seen".into()
        );
    }
    wire.a.run("ip link set red up")?;
    let before = wire.a.network_state()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let mut a = Vpnd::start(&wire.a, &a)?;
    eventually("it crosses", SOON, || {
        wire.a.run(&format!("ip vrf exec red ping -c 1 -W 1 {INNER_B4}"))
    })?;
    let routes = wire.a.run("ip route show vrf red")?;
    ensure!(routes.contains("198.18.7.0/24 dev tun0"), "{routes}");
    a.process().terminate()?;
    ensure!(wire.a.network_state()? == before, "it left something");
    Ok(format!("joined, with its routes in the VRF's table: {routes}"))
}

fn jumbo_bridge(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let bridged =
        |site: Site| Site { mtu: 0, addresses: vec![], ..tap(site, &["bridge = \"br0\""]) };
    for (host, address) in [(&wire.a, "198.18.0.1/24"), (&wire.b, "198.18.0.2/24")] {
        host.run("ip link add br0 mtu 9000 type bridge")?;
        host.run("ip link set br0 up")?;
        host.run(&format!("ip address add {address} dev br0"))?;
    }
    let b = Vpnd::start(&wire.b, &bridged(b))?;
    let a = Vpnd::start(&wire.a, &bridged(a.towards(Wire::B4)))?;
    ping::until_answered(&wire.a, "198.18.0.2", SOON)?;
    let pings = ping::with_size(&wire.a, "198.18.0.2", 5, Duration::from_millis(20), 8972)?;
    ensure!(pings.answered == 5, "9000 bytes: {pings:?}");
    for (end, host) in [(&a, &wire.a), (&b, &wire.b)] {
        let status = end.status()?;
        ensure!(status.device_mtu() == Some(9000), "{status}");
        let bridge = host.run("ip -o link show br0")?;
        ensure!(bridge.contains("mtu 9000"), "joining changed the bridge: {bridge}");
    }
    let config = wire.a.directory().join("site-a.toml");
    let (_code, said) = vpnd::run(&wire.a, &["check", &config.display().to_string()])?;
    ensure!(said.contains("tun0, with the mtu of bridge br0"), "{said}");
    Ok("9000 bytes with DF over a path of 1500; status says 9000, check whose it is".to_owned())
}

fn allowed_macs(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::with(lab, |a, mut b| {
        b.remote.lines.push(format!("allowed_macs = [\"02:00:5e:00:53:0f\", {MAC_A:?}]"));
        let mac = |mac: &str| format!("mac = {mac:?}");
        (tap(a, &[&mac(MAC_A)]).towards(Wire::B4), tap(b, &[&mac(MAC_B)]))
    })?;
    let Tunnel { wire, a, b } = tunnel;
    ping::until_answered(&wire.a, INNER_B6, SOON)?;
    ensure!(!b.status()?.drops().contains_key("source_mac_not_allowed"), "{}", b.status()?);
    wire.a.run("ip link set tun0 address 02:00:5e:00:53:0c")?;
    wire.a
        .run(&format!("ip neighbour replace {INNER_B4} lladdr {MAC_B} nud permanent dev tun0"))?;
    // In pieces too, which are looked at once they are whole.
    for size in [56, 1392] {
        let pings = ping::with_size(&wire.a, INNER_B4, 3, Duration::from_millis(20), size)?;
        ensure!(pings.answered == 0, "another station reaches B: {pings:?}");
    }
    let status = b.status()?;
    let dropped = status.drops().get("source_mac_not_allowed").copied().unwrap_or_default();
    ensure!(dropped >= 6, "{status}");
    wire.a.run(&format!("ip link set tun0 address {MAC_A}"))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    ensure!(a.status()?.is_up(), "{}", a.status()?);
    Ok(format!("{dropped} frames of another station dropped and counted"))
}

/// By path to a host of its own, with all kinds of traffic; then by name.
fn device_in_netns(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let inside = lab.host("inside")?;
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&wire.b, &b)?;
    let (outer, inner) = (wire.a.network_state()?, inside.network_state()?);
    let site = a.route("198.18.7.0/24").route("2001:db8:7::/64").towards(Wire::B4);
    let by_path = told(site.clone(), &[&format!("netns = {:?}", inside.network_path())]);
    let mut a = Vpnd::start(&wire.a, &by_path)?;
    ensure!(wire.a.network_state()? == outer, "something of it is outside");
    let routes = inside.run("ip route show")?;
    ensure!(routes.contains("198.18.7.0/24 dev tun0"), "{routes}");
    let [a_host, b_host] = [&inside, &wire.b];
    for (from, to, address) in [(a_host, b_host, INNER_B6), (b_host, a_host, INNER_A4)] {
        ping::until_answered(from, address, SOON)?;
        tcp::transfer(from, to, address, 1 << 20)?;
    }
    // What was asked for later is asked outside too: the way's MTU.
    inside.run("ip link set tun0 down")?;
    inside.run("ip link set tun0 up")?;
    ping::until_answered(&inside, INNER_B6, SOON)?;
    a.process().terminate()?;
    ensure!(inside.network_state()? == inner, "it left something");

    wire.a.run("ip netns add blue")?;
    let mut a = Vpnd::start(&wire.a, &told(site, &["netns = \"blue\""]))?;
    eventually("it crosses", SOON, || {
        wire.a.run(&format!("ip netns exec blue ping -n -q -c 1 -W 1 {INNER_B4}"))
    })?;
    ensure!(a.status()?.is_up() && b.status()?.is_up(), "{}", a.status()?);
    a.process().terminate()?;
    Ok("device, addresses and routes inside, by path and by name; the socket outside".to_owned())
}

/// Where vpnd is started there is no network at all.
fn socket_in_netns(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let jail = lab.host("jail")?;
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&wire.b, &b.speaking_vpnd(&[]))?;
    let mut a = a.speaking_vpnd(&[]).towards(Wire::B4);
    a.service.push(format!("[socket]\nnetns = {:?}", wire.a.network_path()));
    for host in [&wire.a, &wire.b] {
        host.run("ip link set eth0 mtu 1400")?;
    }
    let outside = wire.a.network_state()?;
    let a = Vpnd::start(&jail, &a)?;
    for (from, to, address) in [(&jail, &wire.b, INNER_B6), (&wire.b, &jail, INNER_A4)] {
        ping::until_answered(from, address, SOON)?;
        tcp::transfer(from, to, address, 1 << 20)?;
    }
    ensure!(wire.a.network_state()? == outside, "something of it is outside");
    // The route is looked up where the socket is: what does not fit there is cut before it leaves.
    let before = wire.b.run("nstat -az IpReasmOKs")?;
    let pings = ping::with_size(&jail, INNER_B4, 5, Duration::from_millis(20), 1392)?;
    ensure!(pings.answered == 5, "{pings:?}");
    let after = wire.b.run("nstat -az IpReasmOKs")?;
    ensure!(reassembled(&before)? == reassembled(&after)?, "fragments outside: {after}");
    ensure!(a.status()?.is_up() && b.status()?.is_up(), "{}", a.status()?);
    Ok("a host without a network reaches the peer by another's, and knows that one's MTU"
        .to_owned())
}

fn reassembled(nstat: &str) -> Result<&str> {
    let line =
        nstat.lines().find(|line| line.starts_with("IpReasmOKs")).context("no such counter")?;
    line.split_whitespace().nth(1).context("no number")
}

fn bad_netns(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let (a, _b) = site::pair()?;
    let inside = |netns: &str| told(a.clone(), &[&format!("netns = {netns:?}")]).towards(Wire::B4);
    refuses(&host, &inside("nowhere"), 1, "network namespace /run/netns/nowhere: No such file")?;
    refuses(&host, &inside("/dev/null"), 1, "cannot enter network namespace /dev/null")?;
    host.run("ip netns add blue")?;
    let file: PathBuf = vpnd::write_files(&host, &inside("blue"))?;
    let mut command = host.command("setpriv");
    command.args(["--bounding-set", "-sys_admin", "--"]).arg(vpnd::program()?);
    let output = command.arg("--config").arg(file).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(77) && said.contains("CAP_SYS_ADMIN is missing"),
        "{}: {said}",
        output.status
    );
    Ok(said.trim().to_owned())
}

/// The kernel forgets routes and IPv6 addresses; vpnd does not.
fn down_and_up(lab: &Lab) -> Result<String> {
    let Tunnel { wire, mut a, b: _b } = Tunnel::with(lab, |a, b| {
        (a.route("198.18.7.0/24").route("2001:db8:7::/64").towards(Wire::B4), b)
    })?;
    let before = wire.a.network_state()?;
    wire.a.run("ip link set tun0 down")?;
    a.wait_for_log("device tun0 was set down", SOON)?;
    wire.a.run("ip link set tun0 up")?;
    eventually("all is as before", SOON, || {
        let after = wire.a.network_state()?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        Ok(())
    })?;
    carries_everything(&wire, true)?;
    let status = a.process().terminate()?;
    ensure!(status.success(), "{status}");
    Ok("addresses and routes are back, and traffic".to_owned())
}

fn renamed(lab: &Lab) -> Result<String> {
    let Tunnel { wire, mut a, b: _b } = Tunnel::new(lab)?;
    wire.a.run("ip link set tun0 name office")?;
    a.wait_for("status has the name", SOON, |status| status.device_name() == Some("office"))?;
    wire.a.run("ip link set office down")?;
    wire.a.run("ip link set office up")?;
    carries_everything(&wire, true)?;
    let status = a.process().terminate()?;
    ensure!(status.success(), "{status}");
    ensure!(wire.a.run("ip link show office").is_err(), "it is still there");
    ping::until_answered(&wire.b, "192.0.2.1", SOON)?;
    Ok("it goes on under the new name, set down and up too, and goes at the end".to_owned())
}

/// Packets find it wherever it is; what was set of it here stays behind, and is set again when it is back.
fn moved(lab: &Lab) -> Result<String> {
    let Tunnel { wire, mut a, b: _b } = Tunnel::with(lab, |a, b| {
        (a.route("198.18.7.0/24").towards(Wire::B4), b.towards(Wire::A4))
    })?;
    let before = wire.a.network_state()?;
    wire.a.run("ip netns add other")?;
    wire.a.run("ip link set tun0 netns other")?;
    a.wait_for_log("device tun0 was moved to another network namespace", SOON)?;
    wire.a.run("ip -n other link set tun0 up")?;
    wire.a.run(&format!("ip -n other address add {INNER_A4}/30 dev tun0"))?;
    ping::until_answered(&wire.b, INNER_A4, SOON)?;
    a.wait_for("what is not here is missing", SOON, |status| {
        status
            .missing()
            .iter()
            .any(|(what, why)| *what == "route 198.18.7.0/24" && why.contains("gone"))
    })?;
    // A device that happens to have its number is not taken for it.
    ensure!(!wire.a.network_state()?.contains("198.18.7.0"), "the route is still here");
    wire.a.run(&format!("ip -n other link set tun0 netns {}", a.process().id()))?;
    wire.a.run("ip link set tun0 up")?;
    eventually("all is as before", SOON, || {
        let after = wire.a.network_state()?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        Ok(())
    })?;
    carries_everything(&wire, true)?;
    let status = a.process().terminate()?;
    ensure!(status.success(), "{status}");
    Ok("it goes on in the other namespace, and back here with all that it had".to_owned())
}

fn deleted(lab: &Lab) -> Result<String> {
    let Tunnel { wire, mut a, b: _b } = Tunnel::new(lab)?;
    let said = pulled_away(&wire.a, &mut a, "ip link delete tun0")?;
    let _a = a.restart()?;
    carries_everything(&wire, true)?;
    Ok(said)
}

fn pulled_away(host: &Host, vpnd: &mut Vpnd, command: &str) -> Result<String> {
    host.run(command)?;
    let status = vpnd.process().wait(Duration::from_secs(2))?;
    let log = vpnd.process().log();
    let last = log.lines().last().unwrap_or_default();
    ensure!(last.contains("device tun0 is gone"), "it does not say so: {log}");
    ensure!(status.code() == Some(1), "{status}");
    Ok(format!("{status}: {last}"))
}
