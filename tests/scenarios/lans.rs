//! Two LANs joined by a tunnel, and an eavesdropper on the link between the sites.

use anyhow::{Context, Result, ensure};
use vpnd_tests::capture::{Capture, Datagram, Seen};
use vpnd_tests::link::{Port, cable, port};
use vpnd_tests::site::{self, PORT, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Frame, Host, Lab, Vpnd, Wire, eventually};

use crate::tunnel::SOON;

/// Left's address.
pub(crate) const LEFT4: &str = "198.18.0.1";
/// Left's address.
pub(crate) const LEFT6: &str = "2001:db8:18::1";
/// Right's address.
pub(crate) const RIGHT4: &str = "198.18.0.2";
/// Right's address.
pub(crate) const RIGHT6: &str = "2001:db8:18::2";

/// Two LANs, each a bridge with one host and vpnd's device:
///
/// ```text
///   left [eth0] ── [lan] a (br0, tap0) ══ tunnel ══ b (br0, tap0) [lan] ── [eth0] right
/// ```
pub(crate) struct Lans {
    pub(crate) left: Host,
    pub(crate) right: Host,
    pub(crate) wire: Wire,
    pub(crate) vpnds: [Vpnd; 2],
}

impl Lans {
    /// LANs of 1500 bytes, and so much between the sites.
    pub(crate) fn new(lab: &Lab, path: u16) -> Result<Self> {
        Self::of(lab, 1500, path)
    }

    /// LANs whose largest packet is `lan` bytes, and a way between that takes `path`.
    pub(crate) fn of(lab: &Lab, lan: u16, path: u16) -> Result<Self> {
        Self::with(lab, lan, path, |site| site)
    }

    /// The same, with other settings at both ends.
    pub(crate) fn with(
        lab: &Lab,
        lan: u16,
        path: u16,
        change: impl Fn(Site) -> Site,
    ) -> Result<Self> {
        let wire = Wire::new(lab)?;
        let (left, right) = (lab.host("left")?, lab.host("right")?);
        for (end, router) in [(&left, &wire.a), (&right, &wire.b)] {
            port(router, "eth0").mtu(path)?;
            router.run("ip link add br0 type bridge")?;
            plug(port(end, "eth0"), router, "lan", lan)?;
            port(router, "br0").up()?;
        }
        port(&left, "eth0").address(&[&format!("{LEFT4}/24"), &format!("{LEFT6}/64")])?;
        port(&right, "eth0").address(&[&format!("{RIGHT4}/24"), &format!("{RIGHT6}/64")])?;
        let (a, b) = site::pair()?;
        let b = Vpnd::start(&wire.b, &change(bridged(b, lan)))?;
        let a = Vpnd::start(&wire.a, &change(bridged(a.towards(Wire::B4), lan)))?;
        let lans = Self { left, right, wire, vpnds: [a, b] };
        ping::until_answered(&lans.left, RIGHT4, SOON)?;
        ping::until_answered(&lans.left, RIGHT6, SOON)?;
        Ok(lans)
    }

    /// What crosses left's cable, and right's.
    pub(crate) fn captures(&self) -> Result<[Capture; 2]> {
        Ok([Capture::frames(&self.left, "eth0")?, Capture::frames(&self.right, "eth0")?])
    }

    /// Nobody has any neighbour's hardware address any more.
    pub(crate) fn forget_neighbours(&self) -> Result<()> {
        for host in [&self.left, &self.right] {
            host.run("ip neigh flush all")?;
        }
        Ok(())
    }

    /// That the bridges have this MTU, and both ends a session.
    pub(crate) fn ensure_whole(&self, mtu: u16) -> Result<()> {
        for router in [&self.wire.a, &self.wire.b] {
            let bridge = router.run("ip -o link show br0")?;
            let is_kept = bridge.contains(&format!("mtu {mtu} "));
            ensure!(is_kept, "joining changed the bridge: {bridge}");
        }
        for vpnd in &self.vpnds {
            ensure!(vpnd.status()?.is_up(), "{}", vpnd.status()?);
        }
        Ok(())
    }

    /// Waits until a router's bridge has learned that a hardware address is behind a port.
    pub(crate) fn learned(&self, router: &Host, mac: [u8; 6], behind: &str) -> Result<()> {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        eventually(&format!("{} finds {mac} behind {behind}", router.name()), SOON, || {
            let table = router.run("bridge fdb show br br0")?;
            let wanted = format!("{mac} dev {behind} ");
            ensure!(table.contains(&wanted), "the bridge knows:\n{table}");
            Ok(())
        })
    }
}

/// A cable to a new port of a router's bridge.
pub(crate) fn plug(end: Port<'_>, router: &Host, name: &str, mtu: u16) -> Result<()> {
    cable(end, port(router, name))?;
    end.mtu(mtu)?;
    port(router, name).mtu(mtu)?;
    router.run(&format!("ip link set {name} master br0")).map(drop)
}

/// An end whose device is a port of br0.
pub(crate) fn bridged(site: Site, mtu: u16) -> Site {
    let mut site = Site { mtu, device: "tap0".to_owned(), ..site.speaking_vpnd(&[]) };
    site.addresses.clear();
    site.interface.extend(["mode = \"tap\"", "bridge = \"br0\""].map(str::to_owned));
    site
}

/// Whoever listens between the sites, and what must not be heard there: anything with the hardware address of
/// a host of either LAN, as every frame has.
pub(crate) struct Wiretap {
    cable: Capture,
    secrets: Vec<[u8; 6]>,
}

impl Wiretap {
    pub(crate) fn new(lans: &Lans, others: &[&Host]) -> Result<Self> {
        let hosts = [&lans.left, &lans.right].into_iter().chain(others.iter().copied());
        let secrets = hosts.map(|host| port(host, "eth0").mac()).collect::<Result<_>>()?;
        Ok(Self { cable: Capture::start(&lans.wire.b, "eth0", 2000)?, secrets })
    }

    /// Says how much was heard, and that none of it is a LAN's.
    pub(crate) fn heard(self) -> Result<String> {
        let seen = self.cable.stop()?;
        let loud = self.secrets.iter().find(|mac| seen.contains(&mac[..]));
        ensure!(loud.is_none(), "{loud:02x?} in clear between the sites");
        let sealed = seen.count(is_sealed);
        ensure!(sealed > 0 && sealed == seen.datagrams.len(), "{sealed} of {:?}", seen.datagrams);
        Ok(format!("{sealed} datagrams between the sites, no hardware address in clear"))
    }
}

/// Between the tunnel's ports, and a message of WireGuard's.
fn is_sealed(datagram: &Datagram) -> bool {
    let ports = [datagram.from.port(), datagram.to.port()];
    ports == [PORT; 2] && matches!(datagram.kind(), Some(1..=4))
}

/// How many frames of a capture match.
pub(crate) fn count(seen: &Seen, matching: impl Fn(&Frame) -> bool) -> usize {
    seen.frames.iter().filter(|frame| matching(frame)).count()
}

/// That a capture has such a frame.
pub(crate) fn ensure_seen(
    seen: &Seen,
    what: &str,
    matching: impl Fn(&Frame) -> bool,
) -> Result<()> {
    let found = seen.frames.iter().find(|frame| matching(frame));
    found.map(drop).with_context(|| format!("no {what} among {} frames", seen.frames.len()))
}
