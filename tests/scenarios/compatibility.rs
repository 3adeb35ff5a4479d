//! A release and an earlier one, which `VPND_OLD` names: `tests/compatibility/run`.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::vpnd::{self, Launch};
use vpnd_tests::{Host, Key, Lab, Vpnd, Wire};

use crate::tunnel::{SOON, carries_everything};

/// What two ends speak.
type Profile = (&'static str, fn(Site) -> Site);

const PROFILES: [Profile; 5] = [
    ("WireGuard", |site| site),
    ("vpnd", |site| site.speaking_vpnd(&[])),
    ("vpnd without ML-KEM", |site| site.speaking_vpnd(&["post_quantum = false"])),
    ("vpnd with AES-256-GCM", |site| site.speaking_vpnd(&["cipher = \"aes-256-gcm\""])),
    ("vpnd with frames", |site| {
        let mut site = site.speaking_vpnd(&[]);
        site.interface.push("mode = \"tap\"".to_owned());
        site
    }),
];

/// Without an earlier release there is nothing to compare with.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let Some(old) = env::var_os("VPND_OLD") else { return Vec::new() };
    let old: Arc<Path> = PathBuf::from(old).into();
    let mut all = Vec::new();
    for (name, profile) in PROFILES {
        for old_calls in [true, false] {
            let (old, caller) = (Arc::clone(&old), if old_calls { "the old" } else { "the new" });
            let name = format!("compatibility::{name}, {caller} calls");
            all.push(Scenario::new(name, Cost::Works, move |lab| {
                talk(lab, &old, profile, old_calls)
            }));
        }
    }
    all.push(Scenario::new("compatibility::an upgrade in place", Cost::Works, move |lab| {
        upgrade(lab, &old)
    }));
    all
}

fn pair(profile: fn(Site) -> Site) -> Result<(Site, Site)> {
    let (a, b) = site::pair()?;
    let key = Key::preshared()?;
    Ok((
        profile(a.with_preshared(&key)).towards(Wire::B4).keepalive(5),
        profile(b.with_preshared(&key)).keepalive(5),
    ))
}

/// A pair of releases carries packets, and each answers the other's commands.
fn talk(lab: &Lab, old: &Path, profile: fn(Site) -> Site, old_calls: bool) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = pair(profile)?;
    let (old_one, new_one) = (Launch::plain(old), Launch::to_test()?);
    let (launch_a, launch_b) = if old_calls { (old_one, new_one) } else { (new_one, old_one) };
    let _b = Vpnd::start_as(&launch_b, &wire.b, &b)?;
    let _a = Vpnd::start_as(&launch_a, &wire.a, &a)?;
    carries_everything(&wire, true)?;
    asks(&wire.a, &launch_b.program, "site-a")?;
    asks(&wire.b, &launch_a.program, "site-b")?;
    asks(&wire.a, &launch_a.program, "site-a")?;
    Ok("ping, TCP both ways, the status of each by the other".to_owned())
}

/// The program of one release asks a daemon of the other.
fn asks(host: &Host, program: &Path, name: &str) -> Result<()> {
    let output = host.command(program).args(["status", name, "--json"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {text}", program.display());
    let status: serde_json::Value = serde_json::from_str(&text).context("status --json")?;
    ensure!(status["state"] == "up", "{}: {text}", program.display());
    Ok(())
}

/// The new release takes a tunnel over from the old one, and the file needs no change.
fn upgrade(lab: &Lab, old: &Path) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = pair(|site| site.speaking_vpnd(&[]))?;
    let mut b = Vpnd::start_as(&Launch::plain(old), &wire.b, &b)?;
    let mut a = Vpnd::start_as(&Launch::plain(old), &wire.a, &a)?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    for end in [&mut a, &mut b] {
        end.upgrade(vpnd::program()?)?;
        carries_everything(&wire, true)?;
    }
    Ok("one end, then the other".to_owned())
}
