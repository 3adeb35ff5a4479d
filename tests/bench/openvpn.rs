//! OpenVPN, point to point over UDP: each end knows the other's certificate by its fingerprint.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vpnd_tests::site::{INNER_A4, INNER_B4, PORT};
use vpnd_tests::{Host, Process, Wire};

/// The fastest settings its manual has for a tunnel of this kind: no compression, no second
/// look at datagrams (`fast-io`), large buffers, the cipher of WireGuard. Its kernel module
/// (`dco`) is another program.
const SETTINGS: &str = "\
dev tun0
dev-type tun
proto udp4
tun-mtu 1420
mssfix 0
data-ciphers CHACHA20-POLY1305
data-ciphers-fallback CHACHA20-POLY1305
disable-dco
allow-compression no
fast-io
sndbuf 4194304
rcvbuf 4194304
connect-retry 1
verb 1
";

/// Starts both ends, the server first.
pub(crate) fn start(wire: &Wire) -> Result<Vec<Process>> {
    let a = certificate(wire.a.directory())?;
    let b = certificate(wire.b.directory())?;
    let server =
        End { own: [Wire::B4, INNER_B4], other: [Wire::A4, INNER_A4], role: "tls-server\ndh none" };
    let client = End { own: [Wire::A4, INNER_A4], other: [Wire::B4, INNER_B4], role: "tls-client" };
    Ok(vec![server.start(&wire.b, &a)?, client.start(&wire.a, &b)?])
}

/// One end; addresses are those of the cable and of the tunnel.
struct End {
    own: [&'static str; 2],
    other: [&'static str; 2],
    role: &'static str,
}

impl End {
    /// `fingerprint` is that of the other end's certificate.
    fn start(&self, host: &Host, fingerprint: &str) -> Result<Process> {
        let path = host.directory().join("openvpn.conf");
        fs::write(&path, self.config(host.directory(), fingerprint)?)?;
        let mut command = host.command(vpnd_tests::binaries::installed("openvpn")?);
        command.arg("--config").arg(&path);
        host.spawn("openvpn", command)
    }

    fn config(&self, directory: &Path, fingerprint: &str) -> Result<String> {
        let [own, other] = [self.own[0], self.other[0]].map(|end| end.rsplit_once(':'));
        let ((own, _), (other, _)) = (own.context("no port")?, other.context("no port")?);
        let files = directory.display();
        Ok(format!(
            "{SETTINGS}{}\nlocal {own}\nremote {other}\nport {PORT}\nifconfig {} {}\n\
             cert {files}/tls.crt\nkey {files}/tls.key\npeer-fingerprint {fingerprint}\n",
            self.role, self.own[1], self.other[1],
        ))
    }
}

/// Makes a key and a certificate for this run, and returns the fingerprint.
fn certificate(directory: &Path) -> Result<String> {
    let (key, certificate) = (directory.join("tls.key"), directory.join("tls.crt"));
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=bench";
    openssl(
        Command::new("openssl")
            .args(new.split(' '))
            .arg("-keyout")
            .arg(key)
            .arg("-out")
            .arg(&certificate),
    )?;
    let print = openssl(
        Command::new("openssl")
            .args(["x509", "-fingerprint", "-sha256", "-noout", "-in"])
            .arg(&certificate),
    )?;
    let (_, fingerprint) = print.trim().split_once('=').context("openssl prints no fingerprint")?;
    Ok(fingerprint.to_owned())
}

fn openssl(command: &mut Command) -> Result<String> {
    let output = command.output().context("cannot run openssl")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_knows_the_other_by_address_and_fingerprint() {
        let end =
            End { own: [Wire::A4, INNER_A4], other: [Wire::B4, INNER_B4], role: "tls-client" };
        let config = end.config(Path::new("/x"), "E2:EF").unwrap();
        for line in [
            "local 192.0.2.1",
            "remote 192.0.2.2",
            "ifconfig 10.99.0.1 10.99.0.2",
            "peer-fingerprint E2:EF",
            "key /x/tls.key",
        ] {
            assert!(config.lines().any(|one| one == line), "{line} is not in {config}");
        }
    }
}
