//! vpnd and its host: its changes and their reversal, its refusals, and its ends.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::vpnd::Launch;
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually, vpnd};

use crate::tunnel::{SOON, Tunnel, carries_everything};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    vec![
        works("system::state before and after", state_is_put_back),
        works("system::a device that was there before", existing_device),
        works("system::the terminal is closed", terminal_closed),
        works("system::SIGHUP for a service", hangup_of_a_service),
        works("system::device deleted", device_deleted),
        works("system::privileges are given up", privileges),
        works("system::a cable pulled and plugged", cable_pulled),
        works("system::read-only state directory", read_only_state),
        works("system::configuration errors", configuration_errors),
        works("system::key file others can read", readable_key),
        works("system::no privilege", no_privilege),
        works("system::no device file", no_device_file),
    ]
}

fn state_is_put_back(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let before = wire.a.network_state()?;
    for round in 0..3 {
        run_once(&wire.a, |running| {
            ensure!(running != before, "it changed nothing");
            Ok(())
        })?;
        let after = wire.a.network_state()?;
        ensure!(before == after, "round {round}, before:\n{before}\nafter:\n{after}");
    }
    Ok("3 starts and stops: devices, addresses, routes and rules as before".to_owned())
}

/// What outlives vpnd gets back what it had.
fn existing_device(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    wire.a.run("ip tuntap add dev tun0 mode tun")?;
    wire.a.run("ip link set tun0 mtu 1300 txqueuelen 77")?;
    wire.a.run("ip address add 198.18.9.9/32 dev tun0")?;
    let before = wire.a.network_state()?;
    run_once(&wire.a, |_running| Ok(()))?;
    let after = wire.a.network_state()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok("its address, MTU and queue length are as before".to_owned())
}

/// In the foreground, SIGHUP is a stop like any other.
fn terminal_closed(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let before = wire.a.network_state()?;
    let (a, _b) = site::pair()?;
    let mut vpnd = Vpnd::start(&wire.a, &a.towards(Wire::B4))?;
    vpnd.process().signal(Signal::SIGHUP)?;
    let status = vpnd.process().wait(SOON)?;
    ensure!(status.success(), "{status}");
    let after = wire.a.network_state()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok("everything is put back, exit code 0".to_owned())
}

fn hangup_of_a_service(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (mut a, _b) = site::pair()?;
    // Whom it becomes could not read its key.
    a.service.push("user = \"\"".to_owned());
    let mut launch = Launch::to_test()?;
    launch.environment.push(("NOTIFY_SOCKET", "@vpnd-tests-hangup".to_owned()));
    let mut vpnd = Vpnd::start_as(&launch, &wire.a, &a.towards(Wire::B4))?;
    vpnd.process().signal(Signal::SIGHUP)?;
    vpnd.wait_for_log("reloaded, as asked", SOON)?;
    vpnd.status()?;
    Ok("it reads its files again and goes on".to_owned())
}

fn run_once(host: &Host, look: impl FnOnce(String) -> Result<()>) -> Result<()> {
    let (a, _b) = site::pair()?;
    let site = a.towards(Wire::B4).route("198.18.2.0/24").route("2001:db8:2::/64");
    let mut running = Vpnd::start(host, &site)?;
    look(host.network_state()?)?;
    let status = running.process().terminate()?;
    ensure!(status.success(), "SIGTERM is a clean stop, not {status}");
    Ok(())
}

fn device_deleted(lab: &Lab) -> Result<String> {
    let mut tunnel = Tunnel::new(lab)?;
    tunnel.wire.a.run("ip link delete tun0")?;
    let status = tunnel.a.process().wait(Duration::from_secs(1))?;
    let log = tunnel.a.process().log();
    let last = log.lines().last().unwrap_or_default();
    ensure!(last.contains("device tun0 is gone"), "it does not say so: {log}");
    ensure!(status.code().is_some_and(|code| code != 0), "{status}");
    Ok(format!("{status}: {last}"))
}

/// With `user` set, root is only needed to start.
fn privileges(lab: &Lab) -> Result<String> {
    let mut tunnel = Tunnel::with(lab, |mut a, b| {
        a.service.push("user = \"nobody\"".to_owned());
        (a.towards(Wire::B4), b)
    })?;
    let status = fs::read_to_string(format!("/proc/{}/status", tunnel.a.process().id()))?;
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let seen = ["Uid:", "CapEff:", "NoNewPrivs:"].map(|name| line(name).replace('\t', " "));
    ensure!(seen[0].split(' ').skip(1).all(|uid| uid == "65534"), "{seen:?}");
    ensure!(seen[1].ends_with("0000000000001000"), "not CAP_NET_ADMIN alone: {seen:?}");
    ensure!(seen[2].ends_with('1'), "{seen:?}");
    carries_everything(&tunnel.wire, true)?;
    let status = tunnel.a.process().terminate()?;
    ensure!(status.success(), "{status}: {}", tunnel.a.process().log());
    Ok(seen.join(", "))
}

/// No route to the peer is never fatal.
fn cable_pulled(lab: &Lab) -> Result<String> {
    let tunnel = Tunnel::new(lab)?;
    let device = vpnd_tests::link::port(&tunnel.wire.a, "eth0");
    device.down()?;
    let pings = ping::series(&tunnel.wire.a, INNER_B4, 20, Duration::from_millis(50))?;
    ensure!(pings.answered == 0, "through no cable: {pings:?}");
    device.up()?;
    let start = std::time::Instant::now();
    ping::until_answered(&tunnel.wire.a, INNER_B4, Duration::from_secs(6))?;
    Ok(format!("traffic {:.1?} after it is back", start.elapsed()))
}

fn read_only_state(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let state = wire.a.directory().join("state");
    fs::create_dir(&state)?;
    wire.a.run(&format!("mount -t tmpfs -o ro none {}", state.display()))?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let a = Vpnd::start(&wire.a, &a.towards(Wire::B4))?;
    ping::until_answered(&wire.a, INNER_B4, Duration::from_secs(5))?;
    a.wait_for_log("site-a.floor", Duration::from_secs(5))?;
    Ok("it runs, and says that the floor is not kept".to_owned())
}

/// What is wrong, and words that must be said about it.
const ERRORS: [(&str, &str, &[&str]); 9] = [
    ("mtu = 1420", "mtuu = 1420", &["mtuu", "did you mean", "mtu"]),
    ("mtu = 1420", "mtu = 12", &["mtu", "12"]),
    ("mtu = 1420", "mtu = \"large\"", &["mtu"]),
    ("mtu = 1420", "mtu = ", &["site-a.toml"]),
    ("mtu = 1420", "mode = \"tap\"", &["mode", "tap"]),
    ("protocol = \"wireguard\"", "protocol = \"wiregard\"", &["protocol", "wireguard"]),
    ("protocol = \"wireguard\"", "cipher = \"aes-256-gcm\"", &["cipher", "protocol", "vpnd"]),
    ("endpoint = [\"192.0.2.2:51820\"]", "endpoint = [\"192.0.2.2\"]", &["endpoint", "port"]),
    ("10.99.0.1/30", "10.99.0.1/33", &["address", "10.99.0.1/33"]),
];

fn configuration_errors(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let (site, path) = written(&host)?;
    let good = fs::read_to_string(&path)?;
    ensure!(site.remote.endpoint.is_some(), "the table needs one");
    for (old, new, words) in ERRORS {
        let bad = good.replacen(old, new, 1);
        ensure!(bad != good, "the file has no {old:?}");
        fs::write(&path, &bad)?;
        let line = 1 + bad.lines().position(|line| line.contains(new)).context("not there")?;
        let place = format!("site-a.toml:{line}:");
        for arguments in [["check"].as_slice(), &["--config"]] {
            let (code, said) =
                vpnd::run(&host, &[arguments, &[&path.display().to_string()]].concat())?;
            let all = words.iter().all(|word| said.contains(word)) && said.contains(&place);
            ensure!(
                code == 78 && all,
                "{arguments:?} of {new:?}: exit {code}, without {words:?} or {place}: {said}"
            );
        }
    }
    Ok(format!("{} mistakes: exit 78 with file, line and what was expected", ERRORS.len()))
}

fn readable_key(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let (_site, path) = written(&host)?;
    host.run(&format!("chmod 644 {}", host.directory().join("site-a.key").display()))?;
    refuses(&host, &path.display().to_string(), 78, "site-a.key")
}

fn no_privilege(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let (_site, path) = written(&host)?;
    let mut command = host.command("setpriv");
    command.args(["--bounding-set", "-net_admin", "--"]).arg(vpnd::program()?);
    let mut process = host.spawn("vpnd-unprivileged", {
        command.arg("--config").arg(path);
        command
    })?;
    let status = process.wait(Duration::from_secs(5))?;
    let log = process.log();
    ensure!(status.code() == Some(77) && log.contains("CAP_NET_ADMIN"), "{status}: {log}");
    Ok(log.trim().to_owned())
}

fn no_device_file(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let (_site, path) = written(&host)?;
    host.run("mount -t tmpfs none /dev/net")?;
    refuses(&host, &path.display().to_string(), 69, "/dev/net/tun")
}

fn refuses(host: &Host, config: &str, expected: i32, word: &str) -> Result<String> {
    let mut seen = String::new();
    eventually("it refuses", Duration::from_secs(1), || {
        let (code, said) = vpnd::run(host, &["--config", config])?;
        ensure!(code == expected && said.contains(word), "exit {code}: {said}");
        said.trim().clone_into(&mut seen);
        Ok(())
    })?;
    Ok(seen)
}

fn written(host: &Host) -> Result<(Site, std::path::PathBuf)> {
    let (a, _b) = site::pair()?;
    let site = a.towards(Wire::B4);
    let path = vpnd::write_files(host, &site)?;
    Ok((site, path))
}
