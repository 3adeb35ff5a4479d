//! A log that cannot be written: its reader is gone, has stopped reading, or its disk is full. The tunnel,
//! its routes, its kill switch and its end work as with any other log.

use std::fs::File;
use std::io::{self, PipeReader, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4};
use vpnd_tests::traffic::ping;
use vpnd_tests::vpnd::Launch;
use vpnd_tests::{Host, Lab, Routed, Vpnd, eventually};

use crate::tunnel::SOON;

/// How soon it ends when it is asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// A route of A's.
const ROUTE: &str = "198.18.7.0/24";

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("logs::the reader is gone", Cost::Works, |lab| unwritable(lab, Log::Closed)),
        Scenario::new("logs::the reader does not read", Cost::Works, |lab| {
            unwritable(lab, Log::Full)
        }),
        Scenario::new("logs::the disk is full", Cost::Works, |lab| unwritable(lab, Log::NoSpace)),
    ]
}

/// What is wrong with the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Log {
    Closed,
    Full,
    NoSpace,
}

impl Log {
    /// Where the log goes, and its reader.
    fn open(self) -> Result<(OwnedFd, PipeReader)> {
        let (reader, writer) = io::pipe()?;
        let full = || File::options().write(true).open("/dev/full");
        let writer = if self == Self::NoSpace { full()?.into() } else { writer.into() };
        Ok((writer, reader))
    }

    /// From here on it cannot be written.
    fn spoil(self, writer: &OwnedFd, reader: PipeReader) -> Result<Option<PipeReader>> {
        if self != Self::Full {
            return Ok(None);
        }
        fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut pipe = File::from(writer.try_clone()?);
        while pipe.write(&[b'x'; 4096]).is_ok() {}
        fcntl(writer, FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok(Some(reader))
    }
}

fn unwritable(lab: &Lab, log: Log) -> Result<String> {
    let hosts = Routed::new(lab)?;
    let (a, b) = site::pair()?;
    let mut a = a.towards(Routed::B4).speaking_vpnd(&[]).keepalive(1);
    a.remote.allowed_ips = vec!["0.0.0.0/0".to_owned()];
    a.service.push(format!("[[route]]\nto = {ROUTE:?}"));
    a.service.push("[[route]]\nto = \"0.0.0.0/0\"\nwhen_down = \"blackhole\"".to_owned());
    let _b = Vpnd::start(&hosts.b, &b.speaking_vpnd(&[]))?;
    let (writer, reader) = log.open()?;
    let writer = Arc::new(writer);
    let launch = Launch { log_to: Some(Arc::clone(&writer)), ..Launch::to_test()? };
    let mut vpnd = Vpnd::start_as(&launch, &hosts.a, &a)?;
    drop(launch);
    ping::until_answered(&hosts.a, INNER_B4, SOON)?;
    let _unread = log.spoil(&writer, reader)?;
    for _ in 0..3 {
        comes_back(&hosts.a, &vpnd)?;
    }
    ping::until_answered(&hosts.a, INNER_B4, SOON)?;
    let asked = Instant::now();
    let status = vpnd.process().terminate()?;
    let took = asked.elapsed();
    ensure!(status.success() && took < ENDS_WITHIN, "{status} after {took:?}");
    Ok(format!("all was put back three times; it ended after {took:.1?}"))
}

/// What somebody removes is put back, and the status says so.
fn comes_back(host: &Host, vpnd: &Vpnd) -> Result<()> {
    host.run(&format!("ip route del {ROUTE} dev tun0"))?;
    eventually("the route is back", SOON, || {
        let routes = host.run("ip route show dev tun0")?;
        routes.contains(ROUTE).then_some(()).context(routes)
    })?;
    let rules = host.run("ip rule")?;
    host.run("ip rule flush")?;
    host.run("ip rule add lookup main priority 32766")?;
    eventually("the rules are back", SOON, || {
        let now = host.run("ip rule")?;
        let ours = |text: &str| text.lines().filter(|rule| rule.contains("proto")).count();
        ensure!(ours(&now) == ours(&rules), "{now} instead of {rules}");
        Ok(())
    })?;
    vpnd.wait_for("nothing is missing", SOON, |status| status.missing().is_empty())?;
    Ok(())
}
