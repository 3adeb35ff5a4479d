//! The shipped examples, run unchanged except that names become addresses and placeholder keys become real
//! ones.

use std::fs;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_tests::capture::Capture;
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Host, Key, KeyPair, Lab, Vpnd, Wire};

use crate::tunnel::SOON;

/// The public keys that stand in the examples, of A and its like, and of B.
const SHIPPED_A: &str = "MwVJImvzoH1OI8osx4JnAImGs8ceh4CXmGe9GOD24QE=";
const SHIPPED_B: &str = "x/w8KfNz7rhSYau3uquf7fT8Qr6/4o7d/LItsHMBgzM=";
/// What the examples call networks and machines, and where they are here.
const PLACES: [(&str, &str); 8] = [
    ("a.example.net", "192.0.2.1"),
    ("b.example.net", "192.0.2.2"),
    ("lan.example.net", "192.0.2.2"),
    ("gateway.example.net", "192.0.2.2"),
    ("192.168.", "198.18."),
    ("fd10:", "2001:db8:10:"),
    ("fd20:", "2001:db8:20:"),
    ("fd99:", "2001:db8:99:"),
];

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("examples::routed sites", Cost::Works, routed),
        Scenario::new("examples::bridged LANs", Cost::Works, bridged),
        Scenario::new("examples::a bridge of virtual machines", Cost::Works, virtual_machines),
        Scenario::new("examples::a road warrior", Cost::Works, road_warrior),
        Scenario::new("examples::a WireGuard peer", Cost::Works, wireguard_peer),
    ]
}

/// Two machines, and the keys that both ends' files are written with.
struct Pair {
    wire: Wire,
    a: KeyPair,
    b: KeyPair,
    shared: Key,
}

impl Pair {
    fn new(lab: &Lab) -> Result<Self> {
        let (a, b) = (KeyPair::generate()?, KeyPair::generate()?);
        Ok(Self { wire: Wire::new(lab)?, a, b, shared: Key::preshared()? })
    }

    /// An example as its users would have it.
    fn text(&self, example: &str) -> Result<String> {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../config")).join(example);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let keys = [(SHIPPED_A, self.a.public.as_str()), (SHIPPED_B, self.b.public.as_str())];
        ensure!(keys.iter().any(|(shipped, _)| text.contains(shipped)), "{example}: whose keys?");
        let changes = keys.into_iter().chain(PLACES);
        Ok(changes.fold(text, |text, (shipped, here)| text.replace(shipped, here)))
    }

    /// Writes an example and its keys to the host, and runs it.
    fn run(&self, host: &Host, keys: &KeyPair, example: &str) -> Result<Vpnd> {
        let (_, file) = example.split_once('/').context("an example is in a directory")?;
        let name = file.strip_suffix(".toml").context("an example is in TOML")?;
        let directory = host.directory();
        keys.private.write(&directory.join(format!("{name}.key")))?;
        self.shared.write(&directory.join(format!("{name}.psk")))?;
        let state = directory.join("state");
        fs::create_dir_all(&state)?;
        let config = directory.join(file);
        let service = format!("\n[service]\nstate_dir = {state:?}\nlog_level = \"debug\"\n");
        fs::write(&config, self.text(example)? + &service)?;
        Vpnd::start_file(host, name, config)
    }

    fn both(&self, a: &str, b: &str) -> Result<[Vpnd; 2]> {
        let b = self.run(&self.wire.b, &self.b, b)?;
        Ok([self.run(&self.wire.a, &self.a, a)?, b])
    }

    /// Hosts behind both speak to each other, in both families.
    fn networks_meet(here: &Host, there: &Host) -> Result<()> {
        for address in ["198.18.20.7", "2001:db8:20::7"] {
            ping::until_answered(here, address, SOON)?;
            tcp::transfer(here, there, address, 1 << 20)?;
        }
        ping::until_answered(there, "2001:db8:10::7", SOON)
    }
}

/// A host with a network of its own behind A or B, which forwards.
pub(crate) fn behind(lab: &Lab, router: &Host, number: u8) -> Result<Host> {
    let host = lab.host(&format!("behind-{}", router.name()))?;
    cable(port(&host, "eth0"), port(router, "eth1"))?;
    let addresses =
        |last: u8| [format!("198.18.{number}.{last}/24"), format!("2001:db8:{number}::{last}/64")];
    let (own, gateway) = (addresses(7), addresses(1));
    port(&host, "eth0").address(&[&own[0], &own[1]])?;
    port(router, "eth1").address(&[&gateway[0], &gateway[1]])?;
    host.run(&format!("ip route add default via 198.18.{number}.1"))?;
    host.run(&format!("ip route add default via 2001:db8:{number}::1"))?;
    router.sysctl("ipv4/ip_forward", "1")?;
    router.sysctl("ipv6/conf/all/forwarding", "1")?;
    Ok(host)
}

fn routed(lab: &Lab) -> Result<String> {
    let pair = Pair::new(lab)?;
    let (here, there) = (behind(lab, &pair.wire.a, 10)?, behind(lab, &pair.wire.b, 20)?);
    let _vpnds = pair.both("routed/site-a.toml", "routed/site-b.toml")?;
    Pair::networks_meet(&here, &there)?;
    Ok("hosts behind both sites: pings and TCP, both families".to_owned())
}

fn wireguard_peer(lab: &Lab) -> Result<String> {
    let pair = Pair::new(lab)?;
    let (here, there) = (behind(lab, &pair.wire.a, 10)?, behind(lab, &pair.wire.b, 20)?);
    let vpnd = pair.run(&pair.wire.a, &pair.a, "wireguard-peer/site-a.toml")?;
    let text = pair.text("wireguard-peer/wg0.conf")?;
    let text = text.replace("PRESHARED_KEY", pair.shared.as_str());
    let text = text.replace("PRIVATE_KEY", pair.b.private.as_str());
    // The name of the file is the device's.
    let file = pair.wire.b.directory().join("wg0.conf");
    fs::write(&file, text)?;
    let quick = pair.wire.b.command("wg-quick").arg("up").arg(&file).output()?;
    ensure!(quick.status.success(), "wg-quick: {}", String::from_utf8_lossy(&quick.stderr));
    let met = Pair::networks_meet(&here, &there);
    let down = pair.wire.b.command("wg-quick").arg("down").arg(&file).output()?;
    met?;
    ensure!(down.status.success() && vpnd.status()?.is_up(), "{}", vpnd.status()?);
    Ok("wg-quick with its wg0.conf: hosts behind both, pings and TCP, both families".to_owned())
}

/// A is the laptop, B the gateway and, without a tunnel, the café's router to the same world.
fn road_warrior(lab: &Lab) -> Result<String> {
    let pair = Pair::new(lab)?;
    let (laptop, gateway) = (&pair.wire.a, &pair.wire.b);
    let world = behind(lab, gateway, 20)?;
    for (to, router) in [("default", "192.0.2.2"), ("default", "2001:db8::2")] {
        laptop.run(&format!("ip route add {to} via {router}"))?;
    }
    let everywhere = ["198.18.20.7", "2001:db8:20::7"];
    let reaches = |limit| everywhere.map(|to| ping::until_answered(laptop, to, limit));
    reaches(SOON).into_iter().collect::<Result<()>>()?;

    let _laptop = pair.run(laptop, &pair.b, "road-warrior/laptop.toml")?;
    let leaks = Capture::start(&world, "eth0", 64)?;
    let past = reaches(Duration::from_secs(2));
    ensure!(past.iter().all(Result::is_err), "something passed while the gateway was away");
    let (v4, v6) = ([192, 0, 2, 1, 198, 18, 20, 7], "2001:db8::1".parse::<Ipv6Addr>()?.octets());
    let seen = leaks.stop()?;
    ensure!(!seen.contains(&v4) && !seen.contains(&v6), "something leaked past the tunnel");

    let _gateway = pair.run(gateway, &pair.a, "road-warrior/gateway.toml")?;
    let arrives = Capture::start(&world, "eth0", 64)?;
    reaches(SOON).into_iter().collect::<Result<()>>()?;
    tcp::transfer(laptop, &world, "198.18.20.7", 1 << 20)?;
    let seen = arrives.stop()?;
    ensure!(seen.contains(&[198, 18, 20, 1, 198, 18, 20, 7]), "the gateway did not masquerade");
    ensure!(!seen.contains(&v4) && !seen.contains(&v6), "something went past the tunnel");
    Ok("nothing leaks before the gateway is there; then all goes through it, masqueraded"
        .to_owned())
}

/// A bridge at A and at B, with a host in each; the hosts' devices bear the addresses given.
pub(crate) fn bridges(lab: &Lab, wire: &Wire, macs: [&str; 2]) -> Result<[Host; 2]> {
    let hosts = [lab.host("left")?, lab.host("right")?];
    for (n, (router, mac)) in [&wire.a, &wire.b].into_iter().zip(macs).enumerate() {
        let lan = port(&hosts[n], "eth0");
        cable(lan, port(router, "eth1"))?;
        hosts[n].run(&format!("ip link set eth0 address {mac}"))?;
        lan.address(&[&format!("198.18.0.{}/24", n + 1)])?;
        router.run("ip link add br0 type bridge")?;
        router.run("ip link set eth1 master br0")?;
        router.run("ip link set br0 up")?;
    }
    Ok(hosts)
}

fn bridged(lab: &Lab) -> Result<String> {
    let pair = Pair::new(lab)?;
    let [left, right] = bridges(lab, &pair.wire, ["02:00:00:00:53:01", "02:00:00:00:53:02"])?;
    let _vpnds = pair.both("bridged/site-a.toml", "bridged/site-b.toml")?;
    ping::until_answered(&left, "198.18.0.2", SOON)?;
    tcp::transfer(&right, &left, "198.18.0.1", 4 << 20)?;
    Ok("hosts of both LANs: pings and TCP".to_owned())
}

fn virtual_machines(lab: &Lab) -> Result<String> {
    let pair = Pair::new(lab)?;
    let [vm, host] = bridges(lab, &pair.wire, ["52:54:00:00:53:01", "02:00:00:00:53:02"])?;
    let [_hypervisor, lan] = pair.both("vm-bridge/hypervisor.toml", "vm-bridge/lan.toml")?;
    ping::until_answered(&vm, "198.18.0.2", SOON)?;
    tcp::transfer(&vm, &host, "198.18.0.2", 4 << 20)?;
    vm.run("ip link set eth0 address 52:54:00:00:53:99")?;
    let stranger = ping::until_answered(&vm, "198.18.0.2", Duration::from_secs(2));
    ensure!(stranger.is_err(), "a machine that nobody allowed was heard");
    ensure!(lan.status()?.is_up(), "{}", lan.status()?);
    Ok("a machine reaches the LAN; with an address that is not listed it is not heard".to_owned())
}
