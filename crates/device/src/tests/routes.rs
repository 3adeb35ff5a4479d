//! Default routes, routes that depend on the peer, and restored objects.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::left_behind::Notes;
use super::*;

pub(super) const OWN: Own = Own { mark: Mark::bits(51820), port: 4500, peers: Vec::new() };

/// Default routes of both families, and a network that must be reached only through the tunnel.
pub(super) fn everything(when_down: WhenDown) -> Link {
    let to = ["0.0.0.0/0", "::/0", "198.51.100.0/24"];
    let route = |to: &str| Route { to: to.parse().unwrap(), metric: None, table: None, when_down };
    Link { routes: to.map(route).to_vec(), own: Some(OWN), ..link() }
}

/// Waits until `what` prints a line with `words`, or prints none.
pub(super) async fn until(what: &str, words: &str, there: bool) {
    let limit = Instant::now() + Duration::from_secs(5);
    loop {
        let shown = ip(what);
        if shown.contains(words) == there {
            return;
        }
        assert!(Instant::now() < limit, "{words:?} there: {}; {shown}", !there);
        sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_default_route_has_a_table_of_its_own_and_rules() {
    in_namespace(|netlink, _news| async move {
        let before = state();
        let setup = netlink.configure(&everything(WhenDown::Keep), Undo::default()).await.unwrap();
        let (v4, v6) = (ip("-4 rule"), ip("-6 rule"));
        for words in [
            "31999:\tfrom all lookup local proto 118",
            "32000:\tfrom all iif lo uidrange 0-0 ipproto udp sport 4500 goto 32007 proto 118",
            "32000:\tfrom all fwmark 0xca6c/0xca6c goto 32007 proto 118",
            "32001:\tfrom all lookup main suppress_prefixlength 0 proto 118",
            "32004:\tnot from all fwmark 0xca6c/0xca6c lookup 51820 proto 118",
            "32007:\tfrom all ipproto udp sport 4500 nop proto 118",
        ] {
            assert!(v4.contains(words), "{words}: {v4}");
            assert!(v6.contains(words), "{words}: {v6}");
        }
        assert!(ip("-4 route show table 51820").contains("default dev there proto 118"));
        assert!(ip("-6 route show table 51820").contains("default dev there proto 118"));
        assert!(ip("-4 route show").contains("198.51.100.0/24 dev there proto 118 scope link"));

        assert!(ip("route get 203.0.113.1").contains("dev there table 51820"));
        ip("addr add 192.0.2.1/24 dev other");
        ip("route add default via 192.0.2.254");
        for mark in ["51820", "0xffff", "0x1ca6c"] {
            assert!(ip(&format!("route get 203.0.113.1 mark {mark}")).contains("dev other"));
        }
        assert!(ip("route get 203.0.113.1 mark 0xca68").contains("dev there"));
        assert!(ip("route get 203.0.113.1 ipproto udp sport 4500").contains("dev other"));
        assert!(ip("route get 203.0.113.1 ipproto udp sport 4501").contains("dev there"));
        ip("addr del 192.0.2.1/24 dev other");
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

#[test]
fn numbers_of_others_are_left_alone() {
    in_namespace(|netlink, _news| async move {
        ip("rule add fwmark 51820 lookup 100");
        ip("route add unreachable 198.18.7.0/24 table 51820");
        ip("-6 rule add priority 77 lookup 51821");
        let before = state();
        let mark = netlink.free_mark().await;
        assert_eq!(mark, Mark::bits(51821));
        let link = Link { own: Some(Own { mark, ..OWN }), ..everything(WhenDown::Keep) };
        let first = netlink.configure(&link, Undo::default()).await.unwrap();
        assert!(ip("route show table 51822").contains("default dev there"));
        // A second tunnel uses the same mark, because vpnd does not treat its own rules as foreign, but another
        // table.
        assert_eq!(netlink.free_mark().await, mark);
        let second = Link { name: "other".into(), addresses: vec![], mtu: None, ..link.clone() };
        let routes = second.routes.iter().filter(|route| route.is_default()).cloned().collect();
        let second = Link { routes, ..second };
        let second = netlink.configure(&second, Undo::default()).await.unwrap();
        assert!(ip("route show table 51823").contains("default dev other"));
        netlink.undo(first, Stays::default()).await;
        assert!(ip("-4 rule").contains("lookup 51823"));
        assert!(ip("-6 rule").contains("lookup 51823"));
        netlink.undo(second, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

#[test]
fn a_start_that_fails_half_way_leaves_no_trace() {
    in_namespace(|netlink, _news| async move {
        ip("addr add 192.0.2.1/24 dev other");
        ip("route add 198.51.100.0/24 dev other");
        let before = state();
        let notes = Notes::new("half-way");
        let mut link = everything(WhenDown::Keep);
        let error = netlink.configure(&link, notes.resume()).await.unwrap_err().to_string();
        assert!(error.starts_with("adding route 198.51.100.0/24 to there: File exists"), "{error}");
        assert_eq!(state(), before);
        assert_eq!(notes.resume().len(), 0);
        // A blackhole blocks the place of a route just as well.
        link.routes[2].when_down = WhenDown::Blackhole;
        ip("route del 198.51.100.0/24 dev other");
        ip("route add 198.51.100.0/24 dev other metric 1");
        let before = state();
        netlink.configure(&link, notes.resume()).await.unwrap_err();
        assert_eq!(state(), before);
    });
}

#[test]
fn routes_come_and_go_with_the_peer() {
    in_namespace(|_, _| async move {
        let before = state();
        for when_down in [WhenDown::Remove, WhenDown::Blackhole] {
            let (netlink, news) = (Netlink::connect().unwrap(), Heard::everything().unwrap());
            let drops = when_down == WhenDown::Blackhole;
            let link = everything(when_down);
            let setup = netlink.configure(&link, Undo::default()).await.unwrap();
            let keeper = Keeper::spawn(&netlink, news, setup);
            let peer = keeper.peer();
            for _ in 0..2 {
                assert!(!ip("-4 route show table all").contains("default dev there"));
                peer.set(true);
                for family in ["-4", "-6"] {
                    let all = format!("{family} route show table all");
                    until(&all, "default dev there table 51820", true).await;
                    let shown = ip(&all);
                    assert_eq!(shown.contains("blackhole default"), drops, "{shown}");
                }
                until("-4 route show", "198.51.100.0/24 dev there", true).await;
                peer.set(false);
                until("-4 route show", "198.51.100.0/24 dev there", false).await;
                until("-6 route show table all", "default dev there", false).await;
                let shown = ip("-4 route show");
                let words = "blackhole 198.51.100.0/24 proto 118 metric 1";
                assert_eq!(shown.contains(words), drops, "{shown}");
            }
            netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
            assert_eq!(state(), before);
        }
    });
}

/// If the peer's liveness changes many times a second, the routes change less often; the final state counts.
#[test]
fn a_peer_that_flaps_does_not_make_routes_flap() {
    in_namespace(|netlink, news| async move {
        let setup =
            netlink.configure(&everything(WhenDown::Remove), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        let peer = keeper.peer();
        let mut monitor = Command::new("ip")
            .args(["-4", "monitor", "route"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(300)).await;
        for turn in 0..61 {
            peer.set(turn % 2 == 0);
            sleep(Duration::from_millis(40)).await;
        }
        until("-4 route show", "198.51.100.0/24 dev there", true).await;
        monitor.kill().unwrap();
        let heard = String::from_utf8(monitor.wait_with_output().unwrap().stdout).unwrap();
        let moves = heard.lines().filter(|line| line.contains("198.51.100.0/24")).count();
        assert!((1..=6).contains(&moves), "{heard}");
        sleep(Duration::from_millis(1100)).await;
        peer.set(false);
        let since = Instant::now();
        until("-4 route show", "198.51.100.0/24 dev there", false).await;
        println!("gone after {:?}", since.elapsed());
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
    });
}

/// Another route with the same place would silently take precedence over the route that depends on the peer.
#[test]
fn a_route_that_waits_for_the_peer_is_tried_out() {
    in_namespace(|netlink, _news| async move {
        ip("addr add 192.0.2.1/24 dev other");
        ip("route add 198.51.100.0/24 dev other");
        let before = state();
        for when_down in [WhenDown::Remove, WhenDown::Blackhole] {
            let error = netlink.configure(&everything(when_down), Undo::default()).await;
            let error = error.unwrap_err().to_string();
            let words = "adding route 198.51.100.0/24 to there: File exists";
            assert!(error.starts_with(words), "{error}");
            assert_eq!(state(), before);
        }
    });
}

#[test]
fn who_may_not_take_a_route_away_hears_so_at_the_start() {
    in_namespace(|netlink, _news| async move {
        let _kept = netlink.configure(&link(), Undo::default()).await.unwrap();
        without_privilege();
        let netlink = Netlink::connect().unwrap();
        let mut wanted = link();
        wanted.routes[0].when_down = WhenDown::Remove;
        let error = netlink.configure(&wanted, Undo::default()).await.unwrap_err();
        assert!(error.is_permission(), "{error}");
        let error = error.to_string();
        assert!(error.contains("route 198.51.100.0/24 of there"), "{error}");
        assert!(error.contains("`when_down = \"keep\"`"), "{error}");
        assert!(!error.contains("ip route add"), "{error}");
    });
}

#[test]
fn what_is_removed_comes_back() {
    in_namespace(|netlink, news| async move {
        let before = state();
        let setup = netlink.configure(&everything(WhenDown::Keep), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        ip("route del 198.51.100.0/24 dev there");
        until("-4 route show", "198.51.100.0/24 dev there", true).await;
        ip("rule del priority 32004");
        until("-4 rule", "lookup 51820", true).await;
        ip("-6 addr del 2001:db8:1::1/64 dev there");
        until("-6 addr show there", "2001:db8:1::1/64", true).await;
        // The kernel removes the routes and the IPv6 addresses.
        ip("link set there down");
        sleep(Duration::from_millis(500)).await;
        assert!(ip("link show there").contains("state DOWN"), "it stays as it was put");
        ip("link set there up");
        until("-4 route show table 51820", "default dev there", true).await;
        until("-6 route show table 51820", "default dev there", true).await;
        until("-6 addr show there", "2001:db8:1::1/64", true).await;
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
        assert_eq!(state(), before);
    });
}

#[test]
fn who_insists_has_his_way() {
    in_namespace(|netlink, news| async move {
        let setup = netlink.configure(&everything(WhenDown::Keep), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        // The first removal is attributed to the kernel, because the device has only just been set up.
        for _ in 0..6 {
            until("-4 route show", "198.51.100.0/24", true).await;
            ip("route del 198.51.100.0/24 dev there");
        }
        until("-4 route show", "198.51.100.0/24", true).await;
        ip("route del 198.51.100.0/24 dev there");
        sleep(Duration::from_secs(1)).await;
        assert!(!ip("-4 route show").contains("198.51.100.0/24"));
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
    });
}

/// The lookup of a packet filter (`fib saddr . iif`) has neither a mark nor ports. `ip route get` cannot omit
/// the protocol: it sets UDP, without a port.
#[test]
fn a_question_about_the_peer_goes_past_the_table_and_no_packet_to_it_does() {
    in_namespace(|netlink, news| async move {
        ip("addr add 192.0.2.1/24 dev other");
        ip("addr add 2001:db8:2::1/64 dev other nodad");
        ip("route add default via 192.0.2.254");
        ip("-6 route add default via 2001:db8:2::fe");
        let before = state();
        let (near, far) = (["203.0.113.9", "2001:db8:9::9"], ["203.0.113.8", "2001:db8:9::8"]);
        let peers = |at: [&str; 2]| at.map(|address| address.parse().unwrap()).to_vec();
        let own = Own { peers: peers(near), ..OWN };
        let link = Link { own: Some(own), ..everything(WhenDown::Keep) };
        let setup = netlink.configure(&link, Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        for at in [near, far] {
            keeper.own().set(OwnTraffic { port: 4500, peers: peers(at) });
            for address in at {
                let asked = format!("route get {address} uid 0");
                until(&asked, "dev other", true).await;
                let icmp = if address.contains(':') { "ipproto ipv6-icmp" } else { "ipproto icmp" };
                for packet in ["ipproto tcp dport 22", "ipproto udp dport 4500", icmp] {
                    let shown = ip(&format!("{asked} {packet}"));
                    assert!(shown.contains("dev there table 51820"), "{packet}: {shown}");
                }
                let somebody = ip(&format!("route get {address} uid 1000"));
                assert!(somebody.contains("dev there table 51820"), "{somebody}");
            }
        }
        for address in near {
            assert!(ip(&format!("route get {address} uid 0")).contains("dev there table 51820"));
        }
        // The rules also follow a new port.
        keeper.own().set(OwnTraffic { port: 4501, peers: peers(far) });
        until("route get 203.0.113.1 ipproto udp sport 4501", "dev other", true).await;
        assert!(ip("route get 203.0.113.1 ipproto udp sport 4500").contains("dev there"));
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
        assert_eq!(state(), before);
    });
}

#[test]
fn the_route_of_a_datagram_is_named() {
    in_namespace(|netlink, _news| async move {
        ip("addr add 192.0.2.1/24 dev other");
        ip("addr add 2001:db8:2::1/64 dev other nodad");
        ip("route add 198.51.100.0/25 via 192.0.2.254 table 77");
        ip("rule add priority 5 fwmark 9 lookup 77");
        let question = |to: &str, mark| Question {
            to: to.parse().unwrap(),
            from: None,
            port: 4500,
            mark,
            device: None,
            uid: 0,
        };
        let shown =
            async |to, mark| netlink.route_of(&question(to, mark)).await.map(|it| it.to_string());
        assert_eq!(shown("192.0.2.7:1", 0).await.unwrap(), "192.0.2.0/24 dev other");
        assert_eq!(shown("[2001:db8:2::7]:1", 0).await.unwrap(), "2001:db8:2::/64 dev other");
        assert_eq!(shown("198.51.100.7:1", 9).await.unwrap(), "198.51.100.0/25 dev other table 77");
        assert_eq!(shown("198.51.100.7:1", 0).await, None);
    });
}
