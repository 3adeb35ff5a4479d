//! The procd service, with a stand-in for what OpenWrt's `rc.common` defines. OpenRC's is in `tests/booted/openrc`.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site;
use vpnd_tests::{Lab, vpnd};

/// Prints what a service asks procd for.
const PROCD: &str = "for word in open_instance close_instance set_param; do
    eval \"procd_$word() { echo $word \\\"\\$@\\\"; }\"
done
. \"$0\"
\"$@\"
";

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("services::procd", Cost::Works, procd)]
}

fn procd(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let (a, _) = site::pair()?;
    let good = vpnd::write_files(&host, &a)?;
    fs::write(host.directory().join("bad.toml"), "nonsense = 1\n")?;
    let service = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/procd/vpnd");
    let mut command = host.command("sh");
    command.args(["-c", PROCD]).arg(&service).arg("start_service");
    command.env("VPND_PROG", vpnd::program()?).env("VPND_PLACE", host.directory());
    let output = command.output()?;
    let (asked, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(!output.status.success(), "a bad configuration is no failure: {asked}");
    ensure!(said.contains("unknown key `nonsense`"), "{said}");
    let program = vpnd::program()?.display();
    let command = format!("set_param command {program} --config {}\n", good.display());
    for part in
        ["open_instance site-a\n", &command, "set_param respawn 3600 1 0\n", "close_instance\n"]
    {
        ensure!(asked.matches(part).count() == 1, "{part:?} in {asked}");
    }
    Ok("one instance for the good configuration, the bad one is reported".to_owned())
}
