//! One configuration on two machines.

use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use vpnd_tests::link::{cable, port};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Routed, Vpnd};

use crate::tunnel::SOON;

/// Echo requests of each machine and the pause between them: a little more than two handshakes of each.
const PINGS: u32 = 170;
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("duplicate::one configuration on two machines", Cost::Waits, copied)]
}

fn copied(lab: &Lab) -> Result<String> {
    let net = Routed::new(lab)?;
    let second = second_machine(lab, &net)?;
    let (a, b) = site::pair()?;
    let a = a.towards(Routed::B4);
    let copy = Site { name: "copy".to_owned(), ..a.clone() };
    let mut b = Vpnd::start(&net.b, &b)?;
    let _a = Vpnd::start(&net.a, &a)?;
    ping::until_answered(&net.a, INNER_B4, SOON)?;
    let _copy = Vpnd::start(&second, &copy)?;
    ping::until_answered(&second, INNER_B4, SOON)?;
    ensure!(b.status()?.hint().is_none(), "two sessions are no sign yet: {}", b.status()?);
    let [one, other] = pings_of_both([&net.a, &second])?;
    let status = b.wait_for("the hint", SOON, |status| {
        let hint = status.hint().unwrap_or_default();
        ["two machines", "192.0.2.1:51820", "203.0.113.1:51820"].iter().all(|it| hint.contains(it))
    })?;
    ensure!(status.is_up(), "the tunnel is up all the same: {status}");
    b.wait_for_log("used at two addresses in turn", SOON)?;
    let lines = b.process().log().matches("used at two addresses in turn").count();
    ensure!(lines == 1, "said {lines} times");
    Ok(format!("{one} and {other} of {PINGS} pings answered; B names both addresses"))
}

/// How many echo requests of each host are answered, while both send.
fn pings_of_both(hosts: [&Host; 2]) -> Result<[u32; 2]> {
    let run = |host| ping::series(host, INNER_B4, PINGS, PAUSE).map(|pings| pings.answered);
    thread::scope(|scope| {
        let [one, other] = hosts.map(|host| scope.spawn(move || run(host)));
        let end = |run: ScopedJoinHandle<'_, Result<u32>>| {
            run.join().map_err(|_| anyhow!("a thread panicked"))?
        };
        Ok([end(one)?, end(other)?])
    })
}

/// Another host at the router.
fn second_machine(lab: &Lab, net: &Routed) -> Result<Host> {
    let host = lab.host("copy")?;
    cable(port(&host, "eth0"), port(&net.router, "copy"))?;
    port(&host, "eth0").address(&["203.0.113.1/24"])?;
    port(&net.router, "copy").address(&["203.0.113.254/24"])?;
    host.run("ip route add default via 203.0.113.254")?;
    Ok(host)
}
