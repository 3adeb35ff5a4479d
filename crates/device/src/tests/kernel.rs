//! Tests with objects that the kernel drops, forgets and recreates by itself.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::routes::{everything, until};
use super::*;

const ADDRESS: &str = "2001:db8:1::1/64";

fn sysctl(key: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
}

fn disable_ipv6(on: &str, disabled: bool) {
    sysctl(&format!("ipv6/conf/{on}/disable_ipv6"), if disabled { "1" } else { "0" });
}

/// Waits until the keeper reports missing objects, or reports that no object is missing.
async fn reported(keeper: &Keeper, missing: bool) -> Vec<Missing> {
    let mut reports = keeper.missing();
    let wanted = reports.wait_for(|all| all.is_empty() != missing);
    let all = tokio::time::timeout(Duration::from_secs(5), wanted).await;
    all.unwrap_or_else(|_| panic!("still {:?}", keeper.missing().borrow())).unwrap().clone()
}

#[test]
fn ipv6_that_was_switched_off_comes_back_with_all_of_ours() {
    in_namespace(|netlink, news| async move {
        let setup = netlink.configure(&everything(WhenDown::Keep), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        for on in ["there", "all"] {
            disable_ipv6(on, true);
            let missing = reported(&keeper, true).await;
            assert!(
                missing.iter().any(|one| one.what == format!("address {ADDRESS}")),
                "{missing:?}"
            );
            assert!(missing.iter().all(|one| one.why.contains("disable_ipv6")), "{missing:?}");
            disable_ipv6(on, false);
            let since = Instant::now();
            until("-6 addr show there", ADDRESS, true).await;
            until("-6 route show table 51820", "default dev there", true).await;
            // The keeper reacts to the kernel's message, not to the timer.
            assert!(since.elapsed() < Duration::from_millis(900), "{:?}", since.elapsed());
            reported(&keeper, false).await;
        }
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
    });
}

/// Below an MTU of 1280 the kernel removes IPv6 from a device, and configures it anew once the MTU is large
/// enough.
#[test]
fn a_silent_device_stays_silent_when_ipv6_is_made_anew() {
    in_namespace(|netlink, news| async move {
        let setup = netlink.configure(&everything(WhenDown::Keep), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        let silent = || ip("-d link show there").contains("addrgenmode none");
        assert!(silent());
        for pause in [500, 0] {
            ip("link set there mtu 1200");
            sleep(Duration::from_millis(pause)).await;
            ip("link set there mtu 1420");
            until("-d link show there", "addrgenmode none", true).await;
            until("-6 addr show there", "fe80::", false).await;
            until("-6 addr show there", ADDRESS, true).await;
            until("-6 route show table 51820", "default dev there", true).await;
        }
        // An administrator may switch generated addresses on.
        ip("link set there addrgenmode eui64");
        ip("link set there down");
        ip("link set there up");
        until("-6 addr show there", "fe80::", true).await;
        until("-6 addr show there", ADDRESS, true).await;
        assert!(!silent());
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
    });
}

#[test]
fn what_ipv4_needs_does_not_fail_over_ipv6() {
    in_namespace(|netlink, news| async move {
        disable_ipv6("all", true);
        disable_ipv6("default", true);
        let before = state();
        for when_down in [WhenDown::Keep, WhenDown::Remove, WhenDown::Blackhole] {
            let setup = netlink.configure(&everything(when_down), Undo::default()).await.unwrap();
            assert!(ip("-4 addr show there").contains("10.99.0.1/24"));
            netlink.undo(setup, Stays::default()).await;
            assert_eq!(state(), before);
        }
        let setup =
            netlink.configure(&everything(WhenDown::Blackhole), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        let missing = reported(&keeper, true).await;
        assert!(missing.iter().any(|one| one.what == format!("address {ADDRESS}")), "{missing:?}");
        // IPv6 may be configured on other devices.
        assert!(ip("-6 route show table 51820").contains("blackhole default"));
        assert!(ip("-6 rule").contains("lookup 51820"));
        disable_ipv6("all", false);
        until("-6 addr show there", ADDRESS, true).await;
        keeper.peer().set(true);
        until("-6 route show table 51820", "default dev there", true).await;
        reported(&keeper, false).await;
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
        assert!(!ip("-6 addr show there").contains(ADDRESS));
        assert!(!ip("-6 route show table all").contains("51820"));
    });
}

/// For an address that was added before the device is up, the kernel never adds the route to the far end.
#[test]
fn the_route_to_an_ipv6_peer_address_is_there() {
    in_namespace(|netlink, news| async move {
        let link = Link {
            addresses: nets(&["10.99.0.1/32", "2001:db8:1::1/128"]),
            peer_addresses: vec!["2001:db8:1::2".parse().unwrap(), "10.99.0.2".parse().unwrap()],
            routes: Vec::new(),
            ..link()
        };
        let (far4, far6) =
            ("10.99.0.2 dev there proto kernel", "2001:db8:1::2 dev there proto kernel");
        let setup = netlink.configure(&link, Undo::default()).await.unwrap();
        until("-6 route show", far6, true).await;
        let keeper = Keeper::spawn(&netlink, news, setup);
        for kept in ["0", "1"] {
            sysctl("ipv6/conf/there/keep_addr_on_down", kept);
            ip("link set there down");
            sleep(Duration::from_millis(300)).await;
            ip("link set there up");
            until("-6 route show", far6, true).await;
            until("-4 route show", far4, true).await;
        }
        for family in ["-4", "-6"] {
            ip(&format!("{family} route flush dev there"));
            let far = if family == "-4" { far4 } else { far6 };
            until(&format!("{family} route show"), far, true).await;
        }
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
        assert!(!ip("-6 route show").contains("2001:db8:1::"), "{}", ip("-6 route show"));
        assert!(!ip("-4 route show").contains("10.99."), "{}", ip("-4 route show"));
    });
}

#[test]
fn a_network_of_ours_is_reached_again_after_a_flush() {
    in_namespace(|netlink, news| async move {
        let setup = netlink.configure(&everything(WhenDown::Keep), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        let routes = || ["-4", "-6"].map(|family| ip(&format!("{family} route show dev there")));
        let before = routes();
        ip("-4 route flush dev there");
        ip("-6 route flush dev there proto kernel");
        let limit = Instant::now() + Duration::from_secs(5);
        while routes().map(sorted) != before.clone().map(sorted) {
            assert!(Instant::now() < limit, "{before:?} {:?}", routes());
            sleep(Duration::from_millis(20)).await;
        }
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
    });
}

/// The routes without link-local routes, which a tunnel does not need.
fn sorted(routes: String) -> Vec<String> {
    let lines = routes.lines().filter(|line| !line.contains("fe80::"));
    let mut lines: Vec<_> = lines.map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}
