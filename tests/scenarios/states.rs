//! The state of a tunnel while its path gets worse and mends: what the status, the log, the service manager, the hooks
//! and the carrier report.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_tests::relay::{Faults, Relay};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, PORT};
use vpnd_tests::traffic::ping;
use vpnd_tests::traffic::stream::{Pace, Stream};
use vpnd_tests::vpnd::Launch;
use vpnd_tests::{Host, Lab, Routed, Vpnd, eventually};

use crate::hooks::{Script, with_hooks};
use crate::tunnel::SOON;

/// The window of the loss, and a little more.
const A_MINUTE: Duration = Duration::from_secs(75);
/// The share that is lost.
const LOSS: f64 = 0.08;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("states::all that report the state agree", Cost::Waits, agree)]
}

/// Who hears of the state of A.
struct Heard {
    host: Host,
    vpnd: Vpnd,
    manager: UnixDatagram,
    status: std::cell::RefCell<String>,
    script: Script,
}

fn agree(lab: &Lab) -> Result<String> {
    let net = Routed::new(lab)?;
    let front = format!("{}:{PORT}", Routed::ROUTER_A4);
    let relay = Relay::start(&net.router, &front, Routed::B4, 1)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&net.b, &b.speaking_vpnd(&[]))?;
    let mut a = a.towards(&front).keepalive(1).speaking_vpnd(&["dead_after = \"4s\""]);
    // What an outage has taught of the path's size is soon corrected.
    a.tables.push("[path]\nraise_every = \"3s\"".to_owned());
    let heard = Heard::start(&net.a, a)?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    heard.agree_on("up", &[], 1, SOON)?;
    let stream = Stream::start(&net.a, &net.b, INNER_B4, Pace { per_second: 200, payload: 300 })?;

    relay.set(Faults { drop: LOSS, ..Faults::default() });
    heard.agree_on("degraded", &["loss"], 1, A_MINUTE)?;
    let (sent, lost) = heard.vpnd.status()?.lost_in_a_minute().context("loss was measured")?;
    relay.set(Faults { drop: 1.0, ..Faults::default() });
    heard.agree_on("down", &[], 2, SOON * 2)?;
    relay.set(Faults::default());
    heard.agree_on("up", &[], 3, A_MINUTE)?;

    let tally = stream.stop()?;
    let log = heard.vpnd.as_process().log();
    let lines = log.lines().filter(|line| line.contains("the tunnel is ")).count();
    ensure!(lines <= 10, "{lines} lines:\n{log}");
    Ok(format!(
        "up, degraded with {lost} of {sent} lost, down, up; {lines} lines in the log; {} of {} packets lost in all",
        tally.lost(),
        tally.sent
    ))
}

impl Heard {
    fn start(host: &Host, a: site::Site) -> Result<Self> {
        let name = "vpnd-tests-states";
        let address = SocketAddr::from_abstract_name(name)?;
        let manager = host.enter(|| Ok(UnixDatagram::bind_addr(&address)?))?;
        manager.set_nonblocking(true)?;
        let script = Script::new(host, "hook", "echo $VPND_HOOK >> $0.out")?;
        let a = with_hooks(a, &["established", "lost"].map(|event| script.hook(event)));
        let mut launch = Launch::to_test()?;
        launch.environment.push(("NOTIFY_SOCKET", format!("@{name}")));
        let vpnd = Vpnd::start_as(&launch, host, &a)?;
        Ok(Self { host: host.clone(), vpnd, manager, status: Default::default(), script })
    }

    /// Waits until all of them report this state; `hooks` have run by then, and the last one fits.
    fn agree_on(&self, state: &str, reasons: &[&str], hooks: usize, limit: Duration) -> Result<()> {
        let named = match reasons {
            [] => state.to_owned(),
            reasons => format!("{state} ({})", reasons.join(", ")),
        };
        let lives = state != "down";
        eventually(&format!("all of them report {named}"), limit, || {
            let status = self.vpnd.status()?;
            ensure!(status.state() == state && status.reasons() == reasons, "status: {status}");
            ensure!(status.alive() == Some(lives), "{status}");
            let manager = self.manager_heard();
            ensure!(manager.starts_with(&format!("{named}, peer at ")), "STATUS={manager}");
            let log = self.vpnd.as_process().log();
            let last =
                log.lines().rfind(|line| line.contains("the tunnel is ")).unwrap_or_default();
            let logged = last.split("the tunnel is ").nth(1).unwrap_or_default();
            ensure!(logged.starts_with(&named), "log: {last}");
            let run = self.script.lines("out");
            let expected = if lives { "established" } else { "lost" };
            let fits = run.last().is_some_and(|last| last == expected);
            ensure!(run.len() == hooks && fits, "hooks: {run:?}");
            let link = self.host.run("ip -o link show dev tun0")?;
            ensure!(link.contains("LOWER_UP") == lives, "carrier: {link}");
            Ok(())
        })
    }

    /// What the service manager was told last.
    fn manager_heard(&self) -> String {
        let mut buffer = [0; 512];
        let mut last = self.status.borrow_mut();
        while let Ok(len) = self.manager.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..len]);
            let status = message.lines().rfind(|line| line.starts_with("STATUS="));
            if let Some(status) = status.and_then(|line| line.strip_prefix("STATUS=")) {
                status.clone_into(&mut last);
            }
        }
        last.clone()
    }
}
