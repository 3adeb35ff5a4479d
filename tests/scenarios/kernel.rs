//! Objects that the kernel drops, forgets or creates anew by itself, and objects that it does not accept yet.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A4, INNER_A6, INNER_B4, INNER_B6, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Vpnd, Wire, eventually, site};

use crate::tunnel::{SOON, Tunnel, carries_everything};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    vec![
        works("kernel::IPv6 switched off and on, TUN", |lab| toggled(lab, false)),
        works("kernel::IPv6 switched off and on, TAP", |lab| toggled(lab, true)),
        works("kernel::MTU below 1280 and back", narrow),
        works("kernel::a start without IPv6", without_ipv6),
        works("kernel::the far end of an IPv6 address", far_end),
    ]
}

fn disable_ipv6(host: &Host, on: &str, disabled: bool) -> Result<()> {
    let value = if disabled { "1" } else { "0" };
    host.sysctl(&format!("ipv6/conf/{on}/disable_ipv6"), value)
}

/// Waits until nothing of the device is missing, and its addresses and routes are as `before`.
fn restored(host: &Host, vpnd: &Vpnd, before: &str) -> Result<()> {
    vpnd.wait_for("nothing is missing", SOON, |status| status.missing().is_empty())?;
    eventually("all is as before", SOON, || {
        let after = host.network_state()?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        Ok(())
    })
}

fn toggled(lab: &Lab, tap: bool) -> Result<String> {
    let mode = |site: Site| match tap {
        true => {
            let mut site = site.speaking_vpnd(&[]);
            site.interface.push("mode = \"tap\"".to_owned());
            site
        }
        false => site,
    };
    let Tunnel { wire, a, b: _b } = Tunnel::with(lab, |a, b| {
        (mode(a.route("198.18.7.0/24").route("2001:db8:7::/64").towards(Wire::B4)), mode(b))
    })?;
    let before = wire.a.network_state()?;
    for on in ["tun0", "all"] {
        disable_ipv6(&wire.a, on, true)?;
        let status = a.wait_for("it says what is missing", SOON, |status| {
            let missing = status.missing();
            missing.iter().any(|(what, _)| *what == "route 2001:db8:7::/64")
                && missing.iter().all(|(_, why)| why.contains("disable_ipv6"))
        })?;
        ensure!(status.missing().len() == 2, "{status}");
        let pings = ping::series(&wire.a, INNER_B4, 3, Duration::from_millis(20))?;
        ensure!(pings.answered == 3, "IPv4 suffers: {pings:?}");
        disable_ipv6(&wire.a, on, false)?;
        // The cable's own IPv6 went too, which is nobody's to put back.
        if on == "tun0" {
            restored(&wire.a, &a, &before)?;
        }
        ping::until_answered(&wire.a, INNER_B6, SOON)?;
    }
    ensure!(!a.as_process().log().contains("which had been removed"), "{}", a.as_process().log());
    Ok("addresses and routes of IPv6 went and came back, status said so, IPv4 went on".to_owned())
}

/// Below 1280 the kernel takes IPv6 from a device, and then configures it anew with its defaults.
fn narrow(lab: &Lab) -> Result<String> {
    let Tunnel { wire, a, b: _b } = Tunnel::with(lab, |a, b| {
        (a.route("198.18.7.0/24").route("2001:db8:7::/64").towards(Wire::B4), b)
    })?;
    let before = wire.a.network_state()?;
    wire.a.run("ip link set tun0 mtu 1200")?;
    a.wait_for("it says what is missing", SOON, |status| {
        status.missing().iter().any(|(_, why)| why.contains("1280"))
    })?;
    wire.a.run("ip link set tun0 mtu 1420")?;
    restored(&wire.a, &a, &before)?;
    let shown = wire.a.run("ip -d link show tun0")?;
    ensure!(shown.contains("addrgenmode none"), "it is not silent: {shown}");
    carries_everything(&wire, true)?;
    let log = a.as_process().log();
    let said = log.matches("was changed from 1420 to 1200").count();
    ensure!(said == 1 && log.contains("1420 again, as configured"), "{said}: {log}");
    Ok("IPv6 is back as it was, without a link-local address of the kernel's making".to_owned())
}

fn without_ipv6(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    for on in ["all", "default"] {
        disable_ipv6(&wire.a, on, true)?;
    }
    let mut a = a.towards(Wire::B4);
    for network in ["0.0.0.0/0", "::/0"] {
        a.tables.push(format!("[[route]]\nto = {network:?}\nwhen_down = \"blackhole\""));
        a.remote.allowed_ips.push(network.to_owned());
    }
    let before = wire.a.network_state()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let mut a = Vpnd::start(&wire.a, &a)?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    let status = a.status()?;
    let missing = |what: &str| status.missing().iter().any(|(missing, _)| *missing == what);
    ensure!(missing(&format!("address {INNER_A6}/64")), "{status}");
    // Another device may have IPv6: what it must not carry is kept from it.
    let shown = wire.a.run("ip -6 route show table all")?;
    ensure!(shown.contains("blackhole default"), "{shown}");
    ensure!(wire.a.run("ip -6 rule")?.contains("proto 118"), "no rules of IPv6");
    for on in ["all", "default"] {
        disable_ipv6(&wire.a, on, false)?;
    }
    ping::until_answered(&wire.a, INNER_B6, SOON)?;
    a.wait_for("nothing is missing", SOON, |status| status.missing().is_empty())?;
    let status = a.process().terminate()?;
    ensure!(status.success(), "{status}");
    // What drops stays until it is clear that this is no restart.
    eventually("nothing is left", SOON, || {
        let after = wire.a.network_state()?;
        ensure!(!after.contains("proto 11"), "before:\n{before}\nafter:\n{after}");
        Ok(())
    })?;
    Ok("IPv4 works, IPv6 is missed by name, blackholed, and there when it is switched on".into())
}

/// The kernel adds the route to the far end with the address, and only while the device is up.
fn far_end(lab: &Lab) -> Result<String> {
    let Tunnel { wire, a, b: _b } = Tunnel::with(lab, |mut a, b| {
        a.addresses = vec![format!("{INNER_A4}/32"), format!("{INNER_A6}/128")];
        a.interface.push(format!("peer_address = [{INNER_B4:?}, {INNER_B6:?}]"));
        a.interface.push("carrier = \"peer\"".to_owned());
        (a.towards(Wire::B4).keepalive(1), b)
    })?;
    let far = format!("{INNER_B6} proto kernel");
    let there = || {
        eventually("the far end has its route", SOON, || {
            let routes = wire.a.run("ip -6 route show dev tun0")?;
            ensure!(routes.contains(&far), "{routes}");
            Ok(())
        })
    };
    there()?;
    for kept in ["0", "1"] {
        wire.a.sysctl("ipv6/conf/tun0/keep_addr_on_down", kept)?;
        wire.a.run("ip link set tun0 down")?;
        let downs = usize::from(kept == "1") + 1;
        eventually("it is seen down", SOON, || {
            let said = a.as_process().log().matches("was set down").count();
            ensure!(said == downs, "{said} times");
            Ok(())
        })?;
        wire.a.run("ip link set tun0 up")?;
        there()?;
    }
    wire.a.run("ip -6 route flush dev tun0")?;
    there()?;
    carries_everything(&wire, true)?;
    Ok("there at the start, after down and up, with and without the address, after a flush".into())
}
