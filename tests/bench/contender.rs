//! The subjects of the comparison: the bare link, builds of vpnd, and other tunnels.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use vpnd_tests::binaries::installed;
use vpnd_tests::peer::{self, Peer};
use vpnd_tests::site::{INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::vpnd::{self, Launch};
use vpnd_tests::{Host, Lab, Process, Vpnd, Wire, site};

use crate::options::Options;
use crate::{fastd, openvpn, say};

/// How long a tunnel may take from its start to the first answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// The one that everything is about.
const VPND: &str = "vpnd";
/// B on the cable itself.
const OUTER_B4: &str = "192.0.2.2";

/// One of those compared.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    pub(crate) name: String,
    kind: Kind,
}

#[cfg(test)]
impl Contender {
    /// For tests of what only looks at names: no vpnd is needed.
    pub(crate) fn named(name: &str) -> Self {
        let known = peer::Kind::ALL.into_iter().find(|kind| kind.to_string() == name);
        let other =
            if name == "bare" { Kind::Bare } else { Kind::Vpnd(Launch::plain(Path::new(name))) };
        Self::new(name, known.map_or(other, Kind::WireGuard))
    }
}

#[derive(Debug, Clone)]
enum Kind {
    Bare,
    Vpnd(Launch),
    Profile(Launch, Profile),
    Queues(Launch, u16),
    WireGuard(peer::Kind),
    OpenVpn,
    Fastd,
}

/// Of vpnd with vpnd: what both ends' tables say beside `protocol = "vpnd"`.
#[derive(Debug, Clone, Copy)]
struct Profile {
    peer: &'static [&'static str],
    interface: &'static [&'static str],
    /// Of the device; larger than the cable's makes every packet go out in pieces.
    mtu: u16,
}

impl Profile {
    const fn new(peer: &'static [&'static str]) -> Self {
        Self { peer, interface: &[], mtu: 1420 }
    }

    fn of(self, site: Site) -> Site {
        let mut site = Site { mtu: self.mtu, ..site.speaking_vpnd(self.peer) };
        site.interface.extend(self.interface.iter().map(ToString::to_string));
        site
    }
}

/// A contender at work between two hosts.
pub(crate) struct Tunnel {
    /// One for each end; none for the bare cable. They end before the hosts do.
    pub(crate) daemons: Vec<Process>,
    pub(crate) wire: Wire,
    /// Of B, inside.
    pub(crate) address: &'static str,
    lab: Lab,
}

impl Contender {
    /// Those asked for, installed or not.
    ///
    /// # Errors
    /// When there is no vpnd, or a name is unknown or taken.
    pub(crate) fn chosen(options: &Options) -> Result<Vec<Self>> {
        let mut all = Self::all(options)?;
        ensure_distinct(&all)?;
        for name in &options.only {
            if !all.iter().any(|one| one.name == *name) {
                let known: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
                bail!("no contender is called {name:?}; there are {}", known.join(", "));
            }
        }
        all.retain(|one| options.only.is_empty() || options.only.contains(&one.name));
        Ok(all)
    }

    fn all(options: &Options) -> Result<Vec<Self>> {
        let launch = Launch::plain(&vpnd_binary(options)?);
        let own = Kind::Vpnd(launch.clone());
        let mut all = vec![Self::new("bare", Kind::Bare), Self::new(VPND, own)];
        let also = || options.also.iter().map(|one| (one.name.as_str(), Launch::plain(&one.path)));
        if options.profiles {
            all.extend(profiles(VPND, &launch));
            all.extend(also().flat_map(|(name, launch)| profiles(name, &launch)));
        }
        let queues = options.queues.iter();
        all.extend(queues.map(|n| Self::new(&several(*n), Kind::Queues(launch.clone(), *n))));
        if options.devices {
            all.extend(devices(&launch));
        }
        all.extend(also().map(|(name, launch)| Self::new(name, Kind::Vpnd(launch))));
        let peers = peer::Kind::ALL.into_iter();
        all.extend(peers.map(|kind| Self::new(&kind.to_string(), Kind::WireGuard(kind))));
        all.extend([Self::new("openvpn", Kind::OpenVpn), Self::new("fastd", Kind::Fastd)]);
        Ok(all)
    }

    fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind }
    }

    /// Why it cannot run here, if it cannot.
    pub(crate) fn missing(&self) -> Option<String> {
        self.program().err().map(|error| format!("{error:#}"))
    }

    /// Its name and version, as it tells them itself.
    pub(crate) fn version(&self) -> Option<String> {
        let output = Command::new(self.program().ok()??).arg("--version").output().ok()?;
        // "vpnd 0.1.0", "OpenVPN 2.6.14 x86_64-pc-linux-gnu …", "fastd v22".
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().find(|word| is_version(word))?;
        Some(format!("{} {}", self.name, version.trim_start_matches('v')))
    }

    pub(crate) fn is_bare(&self) -> bool {
        matches!(self.kind, Kind::Bare)
    }

    /// Whether this is vpnd as it is installed, and no variant of it.
    pub(crate) fn is_vpnd(&self) -> bool {
        self.name == VPND
    }

    fn program(&self) -> Result<Option<PathBuf>> {
        match &self.kind {
            Kind::Bare => Ok(None),
            Kind::Vpnd(launch) | Kind::Profile(launch, _) | Kind::Queues(launch, _) => {
                Ok(Some(launch.program.clone()))
            }
            Kind::WireGuard(kind) => kind.newest().map(Some),
            Kind::OpenVpn => installed("openssl").and_then(|_| installed("openvpn")).map(Some),
            Kind::Fastd => installed("fastd").map(Some),
        }
    }

    /// Whether it is somebody else's work, to be beaten.
    pub(crate) fn is_peer(&self) -> bool {
        !matches!(self.kind, Kind::Bare | Kind::Vpnd(_) | Kind::Profile(..) | Kind::Queues(..))
    }

    /// Starts both ends and waits until one reaches the other.
    ///
    /// # Errors
    /// When it does not in time; with the ends of its logs.
    pub(crate) fn start(&self, place: &Path) -> Result<Tunnel> {
        let lab = Lab::within(place, &self.name)?;
        let wire = Wire::new(&lab)?;
        let daemons = self.daemons(&wire)?;
        let address = if daemons.is_empty() { OUTER_B4 } else { INNER_B4 };
        let tunnel = Tunnel { daemons, wire, address, lab };
        ping::until_answered(&tunnel.wire.a, address, ANSWERS)
            .map_err(|error| anyhow!("{error:#}\n{}", tunnel.logs()))?;
        Ok(tunnel)
    }

    fn daemons(&self, wire: &Wire) -> Result<Vec<Process>> {
        let (a, b) = site::pair()?;
        let (a, b) = ((&wire.a, a.towards(Wire::B4)), (&wire.b, b.towards(Wire::A4)));
        // B first: it answers when A speaks.
        match &self.kind {
            Kind::Bare => Ok(Vec::new()),
            Kind::OpenVpn => openvpn::start(wire),
            Kind::Fastd => fastd::start(wire),
            Kind::Vpnd(launch) => start(launch, [b, a]),
            Kind::Profile(launch, profile) => {
                start(launch, [b, a].map(|(host, site)| (host, profile.of(site))))
            }
            Kind::Queues(launch, queues) => start(
                launch,
                [b, a].map(|(host, mut site)| {
                    site.interface.push(format!("queues = {queues}"));
                    (host, site)
                }),
            ),
            Kind::WireGuard(kind) => [b, a]
                .iter()
                .map(|(host, site)| Ok(Peer::start_quiet(*kind, host, site)?.into_process()))
                .collect(),
        }
    }
}

impl Tunnel {
    /// The last lines of what its programs wrote.
    pub(crate) fn logs(&self) -> String {
        self.lab.log_tails()
    }

    /// Of all daemons together.
    ///
    /// # Errors
    /// When one is gone.
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        self.daemons.iter().map(Process::processor_time).sum()
    }

    /// Sets how many packets wait for either daemon before the kernel drops more.
    ///
    /// # Errors
    /// When there is no such device.
    pub(crate) fn queue_length(&self, packets: u16) -> Result<()> {
        for host in [&self.wire.a, &self.wire.b] {
            host.run(&format!("ip link set dev tun0 txqueuelen {packets}"))?;
        }
        Ok(())
    }
}

fn start(launch: &Launch, ends: [(&Host, Site); 2]) -> Result<Vec<Process>> {
    let start = |(host, site)| Ok(Vpnd::start_as(launch, host, &site)?.into_process());
    ends.into_iter().map(start).collect()
}

fn several(queues: u16) -> String {
    format!("vpnd queues {queues}")
}

/// vpnd with its own protocol: as configured by default, with the other cipher, and with packets that
/// need two datagrams each.
fn profiles(name: &str, launch: &Launch) -> [Contender; 3] {
    let with = |variant, profile| {
        Contender::new(&format!("{name} {variant}"), Kind::Profile(launch.clone(), profile))
    };
    let pieces = Profile { mtu: 2800, ..Profile::new(&[]) };
    [
        with("profile", Profile::new(&[])),
        with("profile aes-256-gcm", Profile::new(&["cipher = \"aes-256-gcm\""])),
        with("profile in pieces", pieces),
    ]
}

/// Packets and frames: of a size that one datagram holds, and of a LAN's, which takes two.
fn devices(launch: &Launch) -> [Contender; 4] {
    let with = |name, interface, mtu| {
        let profile = Profile { interface, mtu, ..Profile::new(&[]) };
        Contender::new(name, Kind::Profile(launch.clone(), profile))
    };
    const TAP: &[&str] = &["mode = \"tap\""];
    [
        with("tun 1420", &[], 1420),
        with("tap 1420", TAP, 1420),
        with("tun 1500", &[], 1500),
        with("tap 1500", TAP, 1500),
    ]
}

/// Values are kept by name.
fn ensure_distinct(all: &[Contender]) -> Result<()> {
    for (place, one) in all.iter().enumerate() {
        let taken = all[..place].iter().any(|other| other.name == one.name);
        ensure!(!taken, "two contenders are called {:?}", one.name);
    }
    Ok(())
}

/// As `2.6.14`, `v22`.
fn is_version(word: &str) -> bool {
    word.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit())
}

fn vpnd_binary(options: &Options) -> Result<PathBuf> {
    match &options.vpnd {
        Some(path) => path.canonicalize().with_context(|| format!("no vpnd at {}", path.display())),
        None => {
            say("building vpnd");
            Ok(vpnd::program()?.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once() {
        let all = |names: &[&str]| {
            ensure_distinct(&names.iter().map(|name| Contender::named(name)).collect::<Vec<_>>())
        };
        assert!(all(&["bare", "vpnd", "gotatun"]).is_ok());
        assert!(all(&["bare", "vpnd", "bare"]).is_err());
    }

    #[test]
    fn a_version_is_told_from_a_name() {
        assert!(["2.6.14", "v22", "0.1.0"].into_iter().all(is_version));
        assert!(!["OpenVPN", "vpnd", "x86_64-pc-linux-gnu"].into_iter().any(is_version));
    }
}
