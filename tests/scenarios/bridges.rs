//! The device as a port of a bridge: it changes nothing else of the bridge, has the same hardware address
//! after each start, gets its port settings back, and ends whose settings do not match log it.

use anyhow::{Context, Result, ensure};
use vpnd_tests::link::port;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually};

use crate::lans::{Lans, RIGHT4, bridged, plug};
use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("bridges::a bridge keeps its address", Cost::Works, keeps_its_address),
        Scenario::new("bridges::a station is the same after a start", Cost::Works, same_station),
        Scenario::new("bridges::a port comes back as it was", Cost::Works, comes_back),
        Scenario::new("bridges::an adopted port keeps the bridge's MTU", Cost::Works, adopted_port),
        Scenario::new("bridges::ends that do not fit", Cost::Works, misfits),
    ]
}

/// Before, while and after the device is a port, even beside a port whose address is nearly the highest.
fn keeps_its_address(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let host = lab.host("left")?;
    wire.a.run("ip link add br0 type bridge")?;
    plug(port(&host, "eth0"), &wire.a, "lan", 1500)?;
    port(&wire.a, "br0").up()?;
    wire.a.run("ip link set lan address fa:00:5e:00:53:01")?;
    let bridge = port(&wire.a, "br0");
    let before = bridge.mac()?;
    let (a, _) = site::pair()?;
    for adopted in [false, true] {
        if adopted {
            wire.a.run("ip tuntap add tap0 mode tap")?;
            wire.a.run("ip link set tap0 address 02:00:5e:00:53:01")?;
        }
        let mut vpnd = Vpnd::start(&wire.a, &bridged(a.clone(), 1500))?;
        let own = port(&wire.a, "tap0").mac()?;
        ensure!(own[0] == 0xfe, "{own:02x?} may become the bridge's");
        ensure!(bridge.mac()? == before, "a port changed the bridge's address");
        vpnd.process().terminate()?;
        ensure!(bridge.mac()? == before, "a port that left changed the bridge's address");
    }
    let own = port(&wire.a, "tap0").mac()?;
    ensure!(own == [2, 0, 0x5e, 0, 0x53, 1], "an adopted device has not got its address back");
    Ok("a new and an adopted device came and went, and the bridge's address stayed".to_owned())
}

/// Neighbours need not find it anew; and its IPv4 network has a broadcast address.
fn same_station(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let (a, b) = (station(a.towards(Wire::B4)), station(b));
    let _b = Vpnd::start(&wire.b, &b)?;
    let vpnd = Vpnd::start(&wire.a, &a)?;
    ping::until_answered(&wire.b, site::INNER_A4, SOON)?;
    let [first, other] = [port(&wire.a, "tap0").mac()?, port(&wire.b, "tap0").mac()?];
    ensure!(first != other, "both ends are {first:02x?}");
    let shown = wire.a.run("ip -4 -o address show dev tap0")?;
    ensure!(shown.contains("brd 10.99.0.3"), "no broadcast address: {shown}");
    // A view of the namespace's own devices, in a mount namespace of its own.
    wire.a.run("mount -t sysfs sysfs /mnt")?;
    let assigned = wire.a.run("cat /mnt/class/net/tap0/addr_assign_type")?;
    ensure!(assigned.trim() == "3", "udev may give it another address");
    let _vpnd = vpnd.restart()?;
    ensure!(port(&wire.a, "tap0").mac()? == first, "another address after a restart");
    ping::until_answered(&wire.b, site::INNER_A4, SOON)?;
    ping::until_answered(&wire.b, site::INNER_A6, SOON)?;
    Ok("the same address after a restart, and another at the other end".to_owned())
}

/// Taken out of its bridge, and after a restart, with what an administrator gave it.
fn comes_back(lab: &Lab) -> Result<String> {
    let lans = Lans::new(lab, 1500)?;
    let router = &lans.wire.a;
    ensure!(setting(router, "cost")? == "200", "a tunnel wins over a cable");
    router.run("ip link set tap0 type bridge_slave isolated on hairpin on cost 77")?;
    eventually("vpnd sees it", SOON, || remembered(router))?;
    router.run("ip link set tap0 nomaster")?;
    eventually("it is a port again, as it was", SOON, || is_set_up(router))?;
    let [a, _b] = lans.vpnds;
    let _a = a.restart()?;
    eventually("as it was after a restart", SOON, || is_set_up(router))?;
    router.run("ip link set tap0 type bridge_slave isolated off")?;
    ping::until_answered(&lans.left, RIGHT4, SOON)?;
    Ok("cost 77, isolated, hairpin: after it was taken out, and after a restart".to_owned())
}

/// What there is to come back to, once it is written down.
fn remembered(router: &Host) -> Result<()> {
    let file = router.run("cat /run/vpnd/site-a.port").unwrap_or_default();
    // 77 as the kernel's 32 bits.
    ensure!(file.contains("4d000000"), "not seen yet: {file}");
    Ok(())
}

fn is_set_up(router: &Host) -> Result<()> {
    for (what, value) in [("cost", "77"), ("isolated", "on"), ("hairpin", "on")] {
        let is = setting(router, what)?;
        ensure!(is == value, "{what} is {is}");
    }
    Ok(())
}

fn setting(router: &Host, what: &str) -> Result<String> {
    let shown = router.run("ip -d link show dev tap0")?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != what);
    words.nth(1).map(ToOwned::to_owned).with_context(|| format!("no {what}: {shown}"))
}

fn adopted_port(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let host = lab.host("left")?;
    wire.a.run("ip link add br0 type bridge")?;
    plug(port(&host, "eth0"), &wire.a, "lan", 9000)?;
    wire.a.run("ip tuntap add tap0 mode tap")?;
    wire.a.run("ip link set tap0 mtu 9000 master br0")?;
    let (a, _) = site::pair()?;
    let mut site = Site { mtu: 0, ..bridged(a, 0) };
    site.interface.retain(|line| !line.starts_with("bridge"));
    let vpnd = Vpnd::start(&wire.a, &site)?;
    ensure!(vpnd.status()?.device_mtu() == Some(9000), "{}", vpnd.status()?);
    let bridge = wire.a.run("ip -o link show br0")?;
    ensure!(bridge.contains("mtu 9000 "), "adopting a port changed the bridge: {bridge}");
    Ok("9000 bytes before and after".to_owned())
}

/// The same hardware address at both ends, and MTUs that differ: said at both, and counted.
fn misfits(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let twin = |site: Site, mtu: u16| {
        let mut site = Site { mtu, ..station(site) };
        site.interface.push("mac = \"02:00:5e:00:53:01\"".to_owned());
        site
    };
    let b = Vpnd::start(&wire.b, &twin(b, 1500))?;
    let a = Vpnd::start(&wire.a, &twin(a.towards(Wire::B4), 1500))?;
    for end in [&a, &b] {
        hints(end, "both ends have the hardware address 02:00:5e:00:53:01")?;
    }
    drop((a, b));
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&wire.b, &Site { mtu: 1500, ..station(b) })?;
    let a = Vpnd::start(&wire.a, &Site { mtu: 4000, ..station(a.towards(Wire::B4)) })?;
    for end in [&a, &b] {
        hints(end, "longer frames than the smaller one are lost")?;
    }
    ping::until_answered(&wire.a, site::INNER_B4, SOON)?;
    let _lost = wire.a.run(&format!("ping -c 1 -W 1 -M do -s 3000 {}", site::INNER_B4));
    eventually("the frame is counted", SOON, || {
        let status = b.status()?;
        ensure!(status.drops().contains_key("larger_than_mtu"), "{status}");
        Ok(())
    })?;
    Ok("one address at both ends, MTUs of 1500 and 4000: both said at both ends".to_owned())
}

fn hints(end: &Vpnd, hint: &str) -> Result<()> {
    eventually(hint, SOON, || {
        let status = end.status()?.to_string();
        ensure!(status.contains(hint), "{status}");
        Ok(())
    })
}

/// An end with a TAP device that has its addresses, and is no bridge's port.
fn station(site: Site) -> Site {
    let mut site = Site { mtu: 1500, device: "tap0".to_owned(), ..site.speaking_vpnd(&[]) };
    site.interface.push("mode = \"tap\"".to_owned());
    site
}
