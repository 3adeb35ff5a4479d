//! `wg-quick` with vpnd in the place of `wireguard-go`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_A4, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, KeyPair, Lab, Routed, Vpnd, Wire, eventually, vpnd};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("wg_quick::up and down, with vpnd", Cost::Works, |lab| pair(lab, None)),
        Scenario::new("wg_quick::up and down, with wireguard-go", Cost::Works, |lab| {
            pair(lab, Some(Kind::WireguardGo))
        }),
        Scenario::new("wg_quick::a default route", Cost::Works, default_route),
        Scenario::new("wg_quick::a second peer is refused", Cost::Works, second_peer),
        Scenario::new("wg_quick::one setting after the other", Cost::Works, one_by_one),
    ]
}

/// A host with `vpnd-wg`.
struct Quick<'h> {
    host: &'h Host,
    link: PathBuf,
    file: PathBuf,
}

impl<'h> Quick<'h> {
    fn new(host: &'h Host, file: &str) -> Result<Self> {
        // The state of a tunnel without a configuration has its place below it.
        host.run("mount -t tmpfs -o mode=755 tmpfs /var/lib")?;
        let link = host.directory().join("vpnd-wg");
        symlink(vpnd::program()?, &link)?;
        let path = host.directory().join("wg0.conf");
        fs::write(&path, file)?;
        host.run(&format!("chmod 600 {}", path.display()))?;
        Ok(Self { host, link, file: path })
    }

    fn run(&self, word: &str) -> Result<String> {
        let mut command = self.host.command("wg-quick");
        command.arg(word).arg(&self.file);
        command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", &self.link);
        let output = command.output().context("cannot run wg-quick")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "wg-quick {word}: {}: {said}", output.status);
        Ok(said)
    }

    fn has_ended(&self) -> Result<()> {
        eventually("no device, no daemon", SOON, || {
            let (code, said) = vpnd::run(self.host, &["status", "wg0"])?;
            ensure!(code == 4, "status ends with {code}: {said}");
            match self.host.run("ip link show wg0") {
                Ok(said) => bail!("there is {said}"),
                Err(_) => Ok(()),
            }
        })
    }
}

impl Drop for Quick<'_> {
    fn drop(&mut self) {
        // Ends the daemon, which is nobody's child.
        let _gone = self.host.run("ip link delete wg0");
    }
}

/// A file for `wg-quick`.
fn file(site: &Site, allowed_ips: &str) -> String {
    format!(
        "[Interface]\nPrivateKey = {}\nAddress = {}\nListenPort = 51820\n\n[Peer]\nPublicKey = {}\n\
         AllowedIPs = {allowed_ips}\nEndpoint = {}\nPersistentKeepalive = 25\n",
        site.keys.private.as_str(),
        site.addresses.join(", "),
        site.remote.public.as_str(),
        site.remote.endpoint.as_deref().unwrap_or_default(),
    )
}

fn pair(lab: &Lab, kind: Option<Kind>) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let a = a.towards(Wire::B4);
    let _peer = kind.map(|kind| Peer::start(kind, &wire.b, &b)).transpose()?;
    let _vpnd = kind.is_none().then(|| Vpnd::start(&wire.b, &b)).transpose()?;
    let quick = Quick::new(&wire.a, &file(&a, &a.remote.allowed_ips.join(", ")))?;
    // The second time there is a socket that the first has left.
    for _ in 0..2 {
        quick.run("up")?;
        ping::until_answered(&wire.a, INNER_B4, SOON)?;
        ping::until_answered(&wire.b, INNER_A4, SOON)?;
        let (code, said) = vpnd::run(&wire.a, &["status", "wg0"])?;
        ensure!(code == 0, "status ends with {code}: {said}");
        let shown = wire.a.run("wg show wg0")?;
        for part in ["listening port: 51820", "latest handshake: ", "every 25 seconds"] {
            ensure!(shown.contains(part), "`wg show` lacks {part:?}: {shown}");
        }
        wire.a.run(&format!("wg syncconf wg0 {}", stripped(&wire.a, &quick.file)?.display()))?;
        quick.run("down")?;
        quick.has_ended()?;
    }
    Ok("up, down, up and down".to_owned())
}

/// The file without what only `wg-quick` understands.
fn stripped(host: &Host, file: &Path) -> Result<PathBuf> {
    let text = host.run(&format!("wg-quick strip {}", file.display()))?;
    let path = host.directory().join("stripped.conf");
    fs::write(&path, text)?;
    Ok(path)
}

/// `wg-quick` sets a mark then, after the tunnel runs, and routing rules with it.
fn default_route(lab: &Lab) -> Result<String> {
    const WORLD: &str = "203.0.113.7";
    let wired = Routed::new(lab)?;
    let (a, b) = site::pair()?;
    let a = a.towards(Routed::B4);
    let _vpnd = Vpnd::start(&wired.b, &b)?;
    wired.b.run(&format!("ip address add {WORLD}/32 dev lo"))?;
    let quick = Quick::new(&wired.a, &file(&a, "0.0.0.0/0"))?;
    quick.run("up")?;
    ping::until_answered(&wired.a, WORLD, SOON)?;
    let pings = ping::series(&wired.a, WORLD, 20, Duration::from_millis(50))?;
    ensure!(pings.answered == pings.sent, "{pings:?}");
    let route = wired.a.run(&format!("ip route get {WORLD}"))?;
    ensure!(route.contains("dev wg0"), "{route}");
    let mark = wired.a.run("wg show wg0 fwmark")?;
    quick.run("down")?;
    quick.has_ended()?;
    let rules = wired.a.run("ip rule")?;
    ensure!(!rules.contains("51820"), "wg-quick left {rules}");
    Ok(format!("mark {}, and its rules are gone afterwards", mark.trim()))
}

fn second_peer(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, _) = site::pair()?;
    let a = a.towards(Wire::B4);
    let other = KeyPair::generate()?.public;
    let two = format!(
        "{}[Peer]\nPublicKey = {}\nAllowedIPs = 10.98.0.0/24\n",
        file(&a, "10.99.0.2/32"),
        other.as_str()
    );
    let quick = Quick::new(&wire.a, &two)?;
    let said = quick.run("up").err().context("two peers are accepted")?.to_string();
    ensure!(said.contains("Operation not supported"), "{said}");
    quick.has_ended()?;
    Ok("refused, and nothing is left".to_owned())
}

fn one_by_one(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let _vpnd = Vpnd::start(&wire.b, &b)?;
    let quick = Quick::new(&wire.a, "")?;
    let mut command = wire.a.command(&quick.link);
    command.args(["-f", "wg0"]).env("LOG_LEVEL", "verbose");
    let mut process = wire.a.spawn("vpnd-wg", command)?;
    let set = |words: &str| wire.a.run(&format!("wg set wg0 {words}"));
    let key = a.remote.public.as_str();
    let path = wire.a.directory().join("private.key");
    a.keys.private.write(&path)?;
    eventually("vpnd-wg listens", SOON, || set("listen-port 51820"))?;
    ensure!(wire.a.run("wg show wg0 listen-port")?.trim() == "51820", "another port");
    set(&format!("private-key {}", path.display()))?;
    set(&format!("peer {key} endpoint {}", Wire::B4))?;
    let other = KeyPair::generate()?.public;
    let refused = set(&format!("peer {} allowed-ips ::/0", other.as_str()));
    ensure!(
        refused.is_err_and(|error| format!("{error:#}").contains("not supported")),
        "two peers"
    );
    ensure!(process.log().contains("a second peer, "), "{}", process.log());
    set(&format!("peer {key} allowed-ips 10.99.0.2/32"))?;
    wire.a.run(&format!("ip address add {INNER_A4}/30 dev wg0"))?;
    wire.a.run("ip link set wg0 up")?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    wire.a.run("ip link delete wg0")?;
    let ended = process.wait(SOON)?;
    ensure!(ended.success(), "it ended with {ended}: {}", process.log());
    Ok("a tunnel once key and peer are complete, until the device is deleted".to_owned())
}
