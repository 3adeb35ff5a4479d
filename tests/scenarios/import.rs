//! Tunnels of WireGuard and OpenVPN that vpnd takes over, and the other end's configuration from vpnd's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Key, Lab, Process, Vpnd, Wire, binaries, eventually, vpnd};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    vec![
        works("import::wg-quick, and back", wg_quick_and_back),
        works("import::the other end for wg-quick", other_end),
        works("import::an OpenVPN pair", |lab| openvpn_pair(lab, &ROUTED)),
        works("import::OpenVPN with fingerprints", |lab| openvpn_pair(lab, &FINGERPRINTS)),
        works("import::OpenVPN on Ethernet, from one file", |lab| openvpn_pair(lab, &ETHERNET)),
    ]
}

/// The file that `wg-quick` has for this end.
fn wg_quick_file(site: &Site) -> String {
    format!(
        "[Interface]\nPrivateKey = {}\nAddress = {}\nListenPort = 51820\nMTU = 1400\nFwMark = 0x2a\n\n\
         [Peer]\nPublicKey = {}\nPresharedKey = {}\nAllowedIPs = {}\nEndpoint = {}\nPersistentKeepalive = 25\n",
        site.keys.private.as_str(),
        site.addresses.join(", "),
        site.remote.public.as_str(),
        site.remote.preshared.as_ref().map(Key::as_str).unwrap_or_default(),
        site.remote.allowed_ips.join(", "),
        site.remote.endpoint.as_deref().unwrap_or_default(),
    )
}

/// Both ends, with a preshared key and a network behind B.
fn sites() -> Result<(Site, Site)> {
    let (a, b) = site::pair()?;
    let key = Key::preshared()?;
    let a = a.towards(Wire::B4).with_preshared(&key).route("198.18.2.0/24");
    Ok((a, b.with_preshared(&key)))
}

/// Writes a private file of this host.
fn write(host: &Host, name: &str, text: &str) -> Result<PathBuf> {
    let path = host.directory().join(name);
    fs::write(&path, text)?;
    host.run(&format!("chmod 600 {}", path.display()))?;
    Ok(path)
}

/// Runs vpnd, which has to succeed, and returns its output.
fn succeed(host: &Host, words: &[&str]) -> Result<String> {
    let (code, said) = vpnd::run(host, words)?;
    ensure!(code == 0, "{words:?} ends with {code}: {said}");
    Ok(said)
}

/// Starts an imported tunnel. Its state has its place below /var/lib.
fn start(host: &Host, directory: &Path, name: &str, more: &str) -> Result<Vpnd> {
    host.run("mount -t tmpfs -o mode=755 tmpfs /var/lib")?;
    let path = directory.join(format!("{name}.toml"));
    let text = fs::read_to_string(&path)? + more;
    fs::write(&path, text)?;
    Vpnd::start_file(host, name, path)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of our own making")
}

/// The settings of a file of WireGuard, each item of a list by itself.
fn settings(file: &str) -> BTreeSet<(String, String)> {
    let pairs = file.lines().filter_map(|line| line.split_once('='));
    pairs
        .flat_map(|(key, value)| {
            let key = key.trim().to_owned();
            value.split(',').map(|item| (key.clone(), item.trim().to_owned())).collect::<Vec<_>>()
        })
        .collect()
}

fn wg_quick_and_back(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = sites()?;
    wire.b.run("ip address add 198.18.2.1/32 dev lo")?;
    let _peer = Peer::start(Kind::WireguardGo, &wire.b, &b)?;
    let file = write(&wire.a, "wg0.conf", &wg_quick_file(&a))?;
    let out = wire.a.directory().join("imported");
    succeed(&wire.a, &["import", text(&file)?, "--out", text(&out)?])?;
    let again = vpnd::run(&wire.a, &["import", text(&file)?, "--out", text(&out)?])?;
    ensure!(again.0 == 1 && again.1.contains("nothing is overwritten"), "{again:?}");
    let _vpnd = start(&wire.a, &out, "wg0", "\n[service]\nuapi = true\n")?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    ping::until_answered(&wire.a, "198.18.2.1", SOON)?;
    let stripped = wire.a.run(&format!("wg-quick strip {}", file.display()))?;
    let shown = wire.a.run("wg showconf wg0")?;
    // vpnd shows nobody its private key; the peer would not answer to another.
    let mut expected = settings(&stripped);
    expected.retain(|(key, _)| key != "PrivateKey");
    ensure!(settings(&shown) == expected, "{shown}\nis not\n{stripped}");
    let config = out.join("wg0.toml");
    let back = succeed(&wire.a, &["export", text(&config)?, "--own", "--wg-quick"])?;
    let back: String = back
        .lines()
        .filter(|line| !line.starts_with("note: "))
        .map(|line| format!("{line}\n"))
        .collect();
    let file_back = write(&wire.a, "back.conf", &back)?;
    let stripped_back = wire.a.run(&format!("wg-quick strip {}", file_back.display()))?;
    ensure!(settings(&stripped_back) == settings(&stripped), "{stripped_back}\nis not\n{stripped}");
    ensure!(settings(&back) == settings(&fs::read_to_string(&file)?), "{back}");
    Ok(format!(
        "{} settings are the same in the file, in the daemon and in the file written back",
        settings(&back).len()
    ))
}

fn other_end(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = sites()?;
    let file = write(&wire.a, "wg0.conf", &wg_quick_file(&a))?;
    let out = wire.a.directory().join("imported");
    succeed(&wire.a, &["import", text(&file)?, "--out", text(&out)?])?;
    let _vpnd = start(&wire.a, &out, "wg0", "")?;
    wire.a.run("ip address add 198.18.1.1/32 dev lo")?;
    let key = write(&wire.a, "b.key", b.keys.private.as_str())?;
    let config = out.join("wg0.toml");
    let export = |format: &str| {
        let words = [
            "export",
            text(&config)?,
            format,
            "--peer-key",
            text(&key)?,
            "--endpoint",
            "192.0.2.1",
        ];
        succeed(&wire.a, &[&words[..], &["--network", "198.18.1.0/24"]].concat())
    };
    let file = export("--wg-quick")?;
    let file: String = file
        .lines()
        .filter(|line| !line.starts_with("note: "))
        .map(|line| format!("{line}\n"))
        .collect();
    let path = write(&wire.b, "wg1.conf", &file)?;
    let mut up = wire.b.command("wg-quick");
    up.arg("up").arg(&path).env("WG_QUICK_USERSPACE_IMPLEMENTATION", Kind::WireguardGo.program()?);
    let output = up.output().context("cannot run wg-quick")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answered = ping::until_answered(&wire.b, INNER_A4, SOON)
        .and_then(|_| ping::until_answered(&wire.b, "198.18.1.1", SOON));
    let shown = wire.b.run("wg showconf wg1")?;
    // Ends wireguard-go, which is nobody's child.
    wire.b.run("ip link delete wg1")?;
    answered?;
    let stripped = wire.b.run(&format!("wg-quick strip {}", path.display()))?;
    ensure!(settings(&shown) == settings(&stripped), "{shown}\nis not\n{stripped}");
    let code = export("--qr")?;
    ensure!(code.contains('█') && code.contains("contains a private key"), "{code}");
    Ok("the exported file, brought up by wg-quick, reaches the tunnel and the network behind it"
        .to_owned())
}

/// A tunnel of OpenVPN.
struct OpenVpn {
    /// Lines of both files.
    common: &'static str,
    /// Lines of A's and of B's file.
    ends: [&'static str; 2],
    /// Whether the ends know each other by their certificates.
    tls: bool,
    /// Whether B's file is imported too.
    both: bool,
    /// What A reaches.
    reached: &'static [&'static str],
}

const ROUTED: OpenVpn = OpenVpn {
    common: "dev tun0\nproto udp\nport 1194\ncipher AES-256-CBC\nauth SHA256\nkeepalive 1 10\npersist-tun\npersist-key\nverb 3\n",
    ends: [
        "remote 192.0.2.2\nifconfig 10.9.8.1 10.9.8.2\nifconfig-ipv6 2001:db8:98::1/64 2001:db8:98::2\n\
         route 198.18.2.0 255.255.255.0\nroute-ipv6 2001:db8:2::/64\nsecret static.key 0\n",
        "remote 192.0.2.1\nifconfig 10.9.8.2 10.9.8.1\nifconfig-ipv6 2001:db8:98::2/64 2001:db8:98::1\n\
         route 198.18.1.0 255.255.255.0\nsecret static.key 1\n",
    ],
    tls: false,
    both: true,
    reached: &["10.9.8.2", "2001:db8:98::2", "198.18.2.1", "2001:db8:2::1"],
};

const FINGERPRINTS: OpenVpn = OpenVpn {
    common: "dev tun0\nproto udp\nkeepalive 1 10\ndata-ciphers AES-256-GCM\ncert tls.crt\nkey tls.key\ndisable-dco\nverb 3\n",
    ends: [
        "remote 192.0.2.2 1194\nnobind\nifconfig 10.9.8.1 10.9.8.2\nroute 198.18.2.0 255.255.255.0\ntls-client\n",
        "port 1194\nifconfig 10.9.8.2 10.9.8.1\nroute 198.18.1.0 255.255.255.0\ntls-server\ndh none\nfloat\n",
    ],
    tls: true,
    both: true,
    reached: &["10.9.8.2", "198.18.2.1"],
};

const ETHERNET: OpenVpn = OpenVpn {
    common: "dev tap0\nproto udp\nport 1194\ncipher AES-256-CBC\nauth SHA256\nkeepalive 1 10\nverb 3\nsecret static.key\n",
    ends: [
        "remote 192.0.2.2\nlocal 192.0.2.1\nifconfig 10.9.7.1 255.255.255.252\n",
        "remote 192.0.2.1\nifconfig 10.9.7.2 255.255.255.252\n",
    ],
    tls: false,
    both: false,
    reached: &["10.9.7.2"],
};

/// The same two files, first for OpenVPN, then imported.
fn openvpn_pair(lab: &Lab, tunnel: &OpenVpn) -> Result<String> {
    let wire = Wire::new(lab)?;
    wire.a.run("ip address add 198.18.1.1/32 dev lo")?;
    wire.b.run("ip address add 198.18.2.1/32 dev lo")?;
    wire.b.run("ip -6 address add 2001:db8:2::1/128 dev lo")?;
    // The networks are on the loopback device; a ping to them has to come from the network at the other end.
    let files = tunnel.write(&wire)?;
    let device = if tunnel.common.contains("dev tap0") { "tap0" } else { "tun0" };
    let before = tunnel.run_openvpn(&wire, &files, device)?;
    let (out_a, out_b) = (wire.a.directory().join("out"), wire.b.directory().join("out"));
    let mut words = vec!["import", text(&files[0])?];
    words.extend(if tunnel.both { vec![text(&files[1])?] } else { vec![] });
    words.extend(["--out", text(&out_a)?, "--peer-out", text(&out_b)?]);
    succeed(&wire.a, &words)?;
    let _a = start(&wire.a, &out_a, "a", "")?;
    let _b = start(&wire.b, &out_b, if tunnel.both { "b" } else { "a-peer" }, "")?;
    tunnel.reaches(&wire)?;
    let after = state(&wire.a, device)?;
    ensure!(before == after, "with OpenVPN {before:?}, with vpnd {after:?}");
    Ok(format!(
        "{} answer as before, with the same {} addresses and routes",
        tunnel.reached.join(", "),
        after.len()
    ))
}

impl OpenVpn {
    fn write(&self, wire: &Wire) -> Result<[PathBuf; 2]> {
        let (a, b) = (wire.a.directory(), wire.b.directory());
        let mut lines = [String::new(), String::new()];
        if self.tls {
            let prints = [certificate(&wire.a)?, certificate(&wire.b)?];
            // Each end knows the other's.
            lines = [1, 0].map(|other| format!("peer-fingerprint {}\n", prints[other]));
        } else {
            wire.a.run(&format!("openvpn --genkey secret {}/static.key", a.display()))?;
            fs::copy(a.join("static.key"), b.join("static.key"))?;
        }
        let end = |index: usize| format!("{}{}{}", self.common, self.ends[index], lines[index]);
        Ok([write(&wire.a, "a.conf", &end(0))?, write(&wire.b, "b.conf", &end(1))?])
    }

    /// Addresses and routes at A while OpenVPN runs.
    fn run_openvpn(
        &self,
        wire: &Wire,
        files: &[PathBuf; 2],
        device: &str,
    ) -> Result<BTreeSet<String>> {
        let mut b = openvpn(&wire.b, &files[1])?;
        let mut a = openvpn(&wire.a, &files[0])?;
        let reached = self.reaches(wire);
        let state = state(&wire.a, device)?;
        reached.with_context(|| format!("OpenVPN says {}\n{}", a.log(), b.log()))?;
        a.terminate()?;
        b.terminate()?;
        eventually("OpenVPN's device is gone", SOON, || {
            ensure!(wire.a.run(&format!("ip link show {device}")).is_err(), "it is there");
            Ok(())
        })?;
        Ok(state)
    }

    fn reaches(&self, wire: &Wire) -> Result<()> {
        self.reached
            .iter()
            .try_for_each(|address| ping::until_answered(&wire.a, address, SOON).map(drop))
    }
}

fn openvpn(host: &Host, file: &Path) -> Result<Process> {
    let mut command = host.command(binaries::installed("openvpn")?);
    command.arg("--cd").arg(host.directory()).arg("--config").arg(file);
    host.spawn("openvpn", command)
}

/// A certificate for this host; returns its fingerprint.
fn certificate(host: &Host) -> Result<String> {
    let at = host.directory().display();
    host.run(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test \
         -keyout {at}/tls.key -out {at}/tls.crt"
    ))?;
    let print = host.run(&format!("openssl x509 -fingerprint -sha256 -noout -in {at}/tls.crt"))?;
    let (_, print) = print.trim().split_once('=').context("openssl prints no fingerprint")?;
    Ok(print.to_owned())
}

/// The addresses of a device, and the networks that are routed into it, without what the kernel adds.
fn state(host: &Host, device: &str) -> Result<BTreeSet<String>> {
    let addresses = host.run(&format!("ip -br address show dev {device}"))?;
    let addresses = addresses.split_whitespace().skip(2).filter(|word| !word.starts_with("fe80:"));
    let mut found: BTreeSet<_> = addresses.map(|word| word.replace("/32", "")).collect();
    for family in ["-4", "-6"] {
        let routes = host.run(&format!("ip {family} route show dev {device}"))?;
        let networks = routes.lines().filter_map(|line| line.split_whitespace().next());
        let networks = networks.filter(|to| {
            !to.starts_with("fe80:") && !to.starts_with("ff00:") && *to != "multicast"
        });
        found.extend(networks.map(|to| format!("to {to}")));
    }
    Ok(found)
}
