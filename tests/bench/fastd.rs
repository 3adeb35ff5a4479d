//! fastd, with the fastest of its methods that both encrypts and authenticates.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_tests::binaries::installed;
use vpnd_tests::link::port;
use vpnd_tests::site::{INNER_A4, INNER_B4};
use vpnd_tests::{Host, Process, Wire, eventually};

const SETTINGS: &str = "\
mode tun;
interface \"tun0\";
mtu 1420;
method \"salsa2012+umac\";
log level error;
";

/// A key of this run.
struct Pair {
    secret: String,
    public: String,
}

/// Starts both ends.
pub(crate) fn start(wire: &Wire) -> Result<Vec<Process>> {
    let (a, b) = (generate(&wire.a)?, generate(&wire.b)?);
    let at_b = start_end(&wire.b, &config(&b.secret, Wire::B4, &a.public, Wire::A4), INNER_B4)?;
    let at_a = start_end(&wire.a, &config(&a.secret, Wire::A4, &b.public, Wire::B4), INNER_A4)?;
    Ok(vec![at_b, at_a])
}

fn start_end(host: &Host, config: &str, address: &str) -> Result<Process> {
    let path = host.directory().join("fastd.conf");
    fs::write(&path, config)?;
    let mut command = host.command(installed("fastd")?);
    command.arg("--config").arg(&path);
    let process = host.spawn("fastd", command)?;
    let device = port(host, "tun0");
    eventually("fastd has a device", Duration::from_secs(10), || device.up())?;
    device.address(&[&format!("{address}/30")])?;
    Ok(process)
}

fn generate(host: &Host) -> Result<Pair> {
    let secret = run(host, &["--generate-key"], None)?;
    let file = host.directory().join("fastd-key.conf");
    fs::write(&file, format!("secret \"{secret}\";\n"))?;
    let public = run(host, &["--show-key"], Some(&file))?;
    Ok(Pair { secret, public })
}

fn run(host: &Host, arguments: &[&str], config: Option<&Path>) -> Result<String> {
    let mut command = host.command(installed("fastd")?);
    command.args(arguments).arg("--machine-readable");
    if let Some(path) = config {
        command.arg("--config").arg(path);
    }
    let output = command.output().context("cannot run fastd")?;
    ensure!(output.status.success(), "fastd: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn config(secret: &str, bind: &str, public: &str, remote: &str) -> String {
    format!(
        "{SETTINGS}bind {bind};\nsecret \"{secret}\";\n\
         peer \"other\" {{ key \"{public}\"; remote {remote}; }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_has_its_secret_and_the_others_key() {
        let config = config("5ec", Wire::A4, "9ub", Wire::B4);
        let lines = [
            "bind 192.0.2.1:51820;",
            "secret \"5ec\";",
            "peer \"other\" { key \"9ub\"; remote 192.0.2.2:51820; }",
        ];
        for line in lines {
            assert!(config.lines().any(|one| one == line), "{line} is not in {config}");
        }
    }
}
