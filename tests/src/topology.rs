//! The topologies that most scenarios start from.

use anyhow::Result;

use crate::link::{cable, port};
use crate::{Host, Lab};

/// Two hosts on one cable:
///
/// ```text
///   a [eth0] 192.0.2.1/24, 2001:db8::1/64 ───── 192.0.2.2/24, 2001:db8::2/64 [eth0] b
/// ```
#[derive(Debug)]
pub struct Wire {
    /// 192.0.2.1.
    pub a: Host,
    /// 192.0.2.2.
    pub b: Host,
}

impl Wire {
    /// A's address and port outside.
    pub const A4: &str = "192.0.2.1:51820";
    /// B's address and port outside.
    pub const B4: &str = "192.0.2.2:51820";
    /// A's address and port outside.
    pub const A6: &str = "[2001:db8::1]:51820";
    /// B's address and port outside.
    pub const B6: &str = "[2001:db8::2]:51820";

    /// Makes both and the cable.
    ///
    /// # Errors
    /// As [`Lab::host`].
    pub fn new(lab: &Lab) -> Result<Self> {
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        cable(port(&a, "eth0"), port(&b, "eth0"))?;
        port(&a, "eth0").address(&["192.0.2.1/24", "2001:db8::1/64"])?;
        port(&b, "eth0").address(&["192.0.2.2/24", "2001:db8::2/64"])?;
        Ok(Self { a, b })
    }
}

/// Two hosts with the internet between them, which is one router:
///
/// ```text
///   a [eth0] 192.0.2.1/24 ── 192.0.2.254 [a] router [b] 198.51.100.254 ── 198.51.100.1/24 [eth0] b
/// ```
///
/// with 2001:db8:a::/64 and 2001:db8:b::/64 beside them, ::1 at the host and ::ff at the router.
#[derive(Debug)]
pub struct Routed {
    /// 192.0.2.1.
    pub a: Host,
    /// The place of filters, address translation, relays and captures; its devices are `a` and `b`.
    pub router: Host,
    /// 198.51.100.1.
    pub b: Host,
}

impl Routed {
    /// A's address and port outside.
    pub const A4: &str = "192.0.2.1:51820";
    /// B's address and port outside.
    pub const B4: &str = "198.51.100.1:51820";
    /// The router's address on A's side.
    pub const ROUTER_A4: &str = "192.0.2.254";
    /// The router's address on B's side.
    pub const ROUTER_B4: &str = "198.51.100.254";

    /// Makes all three, cables and routes.
    ///
    /// # Errors
    /// As [`Lab::host`].
    pub fn new(lab: &Lab) -> Result<Self> {
        let wired = Self { a: lab.host("a")?, router: lab.host("router")?, b: lab.host("b")? };
        wired.connect(&wired.a, "192.0.2.1", "192.0.2.254", "2001:db8:a")?;
        wired.connect(&wired.b, "198.51.100.1", "198.51.100.254", "2001:db8:b")?;
        wired.router.sysctl("ipv4/ip_forward", "1")?;
        wired.router.sysctl("ipv6/conf/all/forwarding", "1")?;
        Ok(wired)
    }

    fn connect(&self, host: &Host, own: &str, gateway: &str, net6: &str) -> Result<()> {
        cable(port(host, "eth0"), port(&self.router, host.name()))?;
        port(host, "eth0").address(&[&format!("{own}/24"), &format!("{net6}::1/64")])?;
        port(&self.router, host.name())
            .address(&[&format!("{gateway}/24"), &format!("{net6}::ff/64")])?;
        host.run(&format!("ip route add default via {gateway}"))?;
        host.run(&format!("ip -6 route add default via {net6}::ff"))?;
        Ok(())
    }
}
