//! Cables and switches between hosts.

use anyhow::{Context, Result};

use crate::{Host, Lab};

/// One end of a cable: a device of a host.
#[derive(Debug, Clone, Copy)]
pub struct Port<'a> {
    /// Its host.
    pub host: &'a Host,
    /// The device's name there.
    pub device: &'a str,
}

/// Names a device of a host.
pub fn port<'a>(host: &'a Host, device: &'a str) -> Port<'a> {
    Port { host, device }
}

/// Joins two hosts by a pair of virtual Ethernet devices, both up.
///
/// # Errors
/// When a device of that name exists.
pub fn cable(a: Port<'_>, b: Port<'_>) -> Result<()> {
    let far = b.host.network_path();
    let (near, other) = (a.device, b.device);
    a.host.run(&format!("ip link add {near} type veth peer name {other} netns {far}"))?;
    a.up()?;
    b.up()
}

impl Port<'_> {
    /// Sets it up.
    ///
    /// # Errors
    /// When the device is not there.
    pub fn up(&self) -> Result<()> {
        self.ip("link set up dev")
    }

    /// Takes it down, as a pulled cable does.
    ///
    /// # Errors
    /// When the device is not there.
    pub fn down(&self) -> Result<()> {
        self.ip("link set down dev")
    }

    /// Adds addresses, usable at once.
    ///
    /// # Errors
    /// When one is not an address with a prefix, or is there already.
    pub fn address(&self, addresses: &[&str]) -> Result<()> {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            self.host.run(&format!("ip address add {address} dev {} {nodad}", self.device))?;
        }
        Ok(())
    }

    /// Removes an address.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_address(&self, address: &str) -> Result<()> {
        self.host.run(&format!("ip address del {address} dev {}", self.device)).map(drop)
    }

    /// Sets the largest packet.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn mtu(&self, mtu: u16) -> Result<()> {
        self.host.run(&format!("ip link set mtu {mtu} dev {}", self.device)).map(drop)
    }

    /// Its hardware address.
    ///
    /// # Errors
    /// When the device is not there, or has none.
    pub fn mac(&self) -> Result<[u8; 6]> {
        let shown = self.host.run(&format!("ip -o link show dev {}", self.device))?;
        let behind = shown.split("link/ether ").nth(1).context("no Ethernet device")?;
        let bytes = behind.get(..17).unwrap_or_default().split(':');
        let bytes =
            bytes.map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
        <[u8; 6]>::try_from(bytes).ok().context("an address of another length")
    }

    /// Makes the device send every datagram separately, so that a filter after it counts and measures
    /// datagrams and not the kernel's super-packets.
    ///
    /// # Errors
    /// When `ethtool` fails.
    pub fn no_offload(&self) -> Result<()> {
        let features = "tso off gso off gro off tx-udp-segmentation off";
        self.host.run(&format!("ethtool -K {} {features}", self.device)).map(drop)
    }

    fn ip(&self, verb: &str) -> Result<()> {
        self.host.run(&format!("ip {verb} {}", self.device)).map(drop)
    }
}

/// A switch: a host with just a bridge.
#[derive(Debug)]
pub struct Switch {
    host: Host,
}

impl Switch {
    /// Makes one without ports.
    ///
    /// # Errors
    /// As [`Lab::host`].
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        let host = lab.host(name)?;
        host.run("ip link add bridge type bridge")?;
        host.run("ip link set bridge up")?;
        Ok(Self { host })
    }

    /// Connects a new device of a host; the switch's port has the host's name.
    ///
    /// # Errors
    /// When either device exists.
    pub fn plug(&self, end: Port<'_>) -> Result<()> {
        let own = port(&self.host, end.host.name());
        cable(end, own)?;
        self.host.run(&format!("ip link set {} master bridge", own.device)).map(drop)
    }

    /// The switch as a host, for filters and captures.
    pub fn host(&self) -> &Host {
        &self.host
    }
}
