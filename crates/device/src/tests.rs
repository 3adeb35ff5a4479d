//! Tests with a real kernel, each in a separate network namespace. `ip` shows the state independently.

use std::process::Command;

use super::*;

mod change;
mod guard;
mod kernel;
pub(crate) mod left_behind;
#[path = "../../../tests/common/namespace.rs"]
mod namespace;
mod routes;

use namespace::ip;

/// Runs `test` on a thread that has a namespace with a pair of devices, `there` and its other end.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(Netlink, Heard) -> F + Send + 'static) {
    namespace::in_namespace(|| {
        ip("link add there type veth peer name other");
        ip("link set other up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (netlink, news) = (Netlink::connect().unwrap(), Heard::everything().unwrap());
            test(netlink, news).await
        });
    });
}

/// All state that this crate may change, without the objects that the kernel adds to a device that is up.
fn state() -> Vec<String> {
    let link = ip("-o link show there");
    let word_after = |key| link.split_whitespace().skip_while(|word| *word != key).nth(1);
    let mut state =
        vec![format!("up {} multicast {}", link.contains(",UP"), link.contains("MULTICAST"))];
    for key in ["mtu", "qlen", "link/ether", "master"] {
        state.push(format!("{key} {:?}", word_after(key)));
    }
    for what in [
        "-o addr show there scope global",
        "-4 route show table all",
        "-6 route show table all",
        "-4 rule",
        "-6 rule",
    ] {
        let text = ip(what);
        // The kernel adds the local route of an IPv6 address a moment after the address.
        let is_late = |line: &str| line.starts_with("local ") && line.contains(':');
        let is_kernels = |line: &str| line.contains("fe80::") || line.contains("ff00::");
        let lines = text.lines().filter(|line| !is_kernels(line) && !is_late(line));
        // The kernel notes a link without carrier a moment later.
        state.extend(lines.map(|line| line.replace(" linkdown", "")));
    }
    state
}

fn link() -> Link {
    Link {
        name: "there".into(),
        addresses: nets(&["10.99.0.1/24", "2001:db8:1::1/64"]),
        peer_addresses: Vec::new(),
        mtu: Some(1420),
        txqueuelen: Some(512),
        mac: None,
        mac_as_port: None,
        multicast: None,
        bridge: None,
        stp_cost: None,
        vrf: None,
        routes: vec![
            route("198.51.100.0/24", None, None),
            route("198.18.0.0/15", Some(77), Some(1000)),
            route("2001:db8:2::/48", Some(5), None),
            route("::/0", None, None),
        ],
        alive: false,
        own: None,
        passed_over: Families::default(),
        guard_table: None,
    }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn route(to: &str, metric: Option<u32>, table: Option<u32>) -> Route {
    Route { to: to.parse().unwrap(), metric, table, when_down: WhenDown::Keep }
}

#[test]
fn a_device_gets_all_it_should_and_gives_it_back() {
    in_namespace(|netlink, _news| async move {
        let before = state();
        let setup = netlink.configure(&link(), Undo::default()).await.unwrap();
        let shown = ip("link show there");
        assert!(shown.contains("mtu 1420") && shown.contains("qlen 512"), "{shown}");
        assert!(shown.contains(",UP"), "{shown}");
        // The device is an Ethernet device, on which a network has a broadcast address.
        let v4 = ip("-4 addr show there");
        assert!(v4.contains("inet 10.99.0.1/24 brd 10.99.0.255 scope global there"), "{v4}");
        let v6 = ip("-6 addr show there scope global");
        assert!(v6.contains("2001:db8:1::1/64") && !v6.contains("tentative"), "{v6}");
        assert!(ip("-4 route show dev there").contains("198.51.100.0/24 proto 118 scope link"));
        assert!(ip("-4 route show table 1000").contains("198.18.0.0/15 dev there"));
        assert!(ip("-4 route show table 1000").contains("metric 77"));
        let v6 = ip("-6 route show dev there");
        assert!(v6.contains("2001:db8:2::/48 proto 118 metric 5"), "{v6}");
        assert!(v6.contains("default proto 118 metric 1024"), "{v6}");

        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

#[test]
fn what_was_there_before_stays() {
    in_namespace(|netlink, _news| async move {
        ip("link set there up mtu 1420 txqueuelen 512");
        ip("addr add 10.99.0.1/24 dev there");
        ip("route add 198.51.100.0/24 dev there");
        ip("-6 route add default dev there");
        let before = state();
        let setup = netlink.configure(&link(), Undo::default()).await.unwrap();
        assert!(ip("-4 route show table 1000").contains("198.18.0.0/15"));
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

#[test]
fn a_peer_address_makes_the_device_point_to_point() {
    in_namespace(|netlink, _news| async move {
        let link = Link {
            addresses: nets(&["10.99.0.1/32", "2001:db8:1::1/128"]),
            peer_addresses: vec!["2001:db8:1::2".parse().unwrap(), "10.99.0.2".parse().unwrap()],
            routes: Vec::new(),
            ..link()
        };
        let before = state();
        let setup = netlink.configure(&link, Undo::default()).await.unwrap();
        assert!(ip("-4 addr show there").contains("10.99.0.1 peer 10.99.0.2/32"));
        assert!(ip("-6 addr show there").contains("2001:db8:1::1 peer 2001:db8:1::2/128"));
        assert!(ip("-4 route show").contains("10.99.0.2 dev there"));
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

#[test]
fn a_route_of_another_device_is_an_error_and_leaves_no_trace() {
    in_namespace(|netlink, _news| async move {
        ip("addr add 192.0.2.1/24 dev other");
        ip("route add 198.51.100.0/24 dev other");
        let before = state();
        let error = netlink.configure(&link(), Undo::default()).await.unwrap_err().to_string();
        assert!(error.starts_with("adding route 198.51.100.0/24 to there: File exists"), "{error}");
        assert!(error.contains("`metric`"), "{error}");
        assert_eq!(state(), before);
    });
}

#[test]
fn errors_say_what_to_do() {
    in_namespace(|netlink, _news| async move {
        let missing = Link { name: "nowhere".into(), ..link() };
        let error = netlink.configure(&missing, Undo::default()).await.unwrap_err().to_string();
        assert!(error.starts_with("there is no device nowhere"), "{error}");

        let small = Link { mtu: Some(1279), ..link() };
        let error = netlink.configure(&small, Undo::default()).await.unwrap_err().to_string();
        assert!(error.contains("adding address 2001:db8:1::1/64 to there"), "{error}");
        assert!(error.contains("at least 1280"), "{error}");

        let lonely = Link { peer_addresses: vec!["10.99.0.2".parse().unwrap(); 2], ..link() };
        let error = netlink.configure(&lonely, Undo::default()).await.unwrap_err().to_string();
        assert!(error.starts_with("peer_address 10.99.0.2 needs a local address"), "{error}");
    });
}

#[test]
fn a_port_of_a_bridge_has_its_own_address_until_the_end() {
    in_namespace(|netlink, _news| async move {
        ip("link add br0 mtu 1600 type bridge");
        let before = state();
        let mac = [0x02, 0, 0, 0, 0, 0x77];
        let wanted = Link {
            mac: Some(mac),
            multicast: Some(false),
            bridge: Some("br0".to_owned()),
            mtu: Some(netlink.bridge_mtu("br0").await.unwrap()),
            ..link()
        };
        let undo = netlink.configure(&wanted, Undo::default()).await.unwrap();
        let shown = ip("link show there");
        for words in ["02:00:00:00:00:77", "master br0", "mtu 1600"] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        assert!(!shown.contains("MULTICAST"), "{shown}");
        assert!(ip("link show br0").contains("mtu 1600"), "joining changed it");
        netlink.undo(undo, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

#[test]
fn a_port_comes_back_to_its_bridge() {
    in_namespace(|netlink, news| async move {
        ip("link add br0 type bridge");
        let wanted = Link { bridge: Some("br0".to_owned()), ..link() };
        let setup = netlink.configure(&wanted, Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        ip("link set there nomaster");
        routes::until("link show there", "master br0", true).await;
        ip("link del br0");
        routes::until("link show there", "master br0", false).await;
        ip("link add br0 type bridge");
        routes::until("link show there", "master br0", true).await;
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
        assert!(!ip("link show there").contains("master"));
    });
}

#[test]
fn what_is_no_bridge_or_vrf_takes_no_ports() {
    in_namespace(|netlink, _news| async move {
        let before = state();
        for (bridge, vrf, words) in [
            (Some("nowhere"), None, "there is no bridge nowhere"),
            (Some("other"), None, "other is no bridge"),
            (None, Some("nowhere"), "there is no vrf nowhere"),
            (None, Some("other"), "other is no vrf"),
        ] {
            let [bridge, vrf] = [bridge, vrf].map(|name| name.map(str::to_owned));
            let wanted = Link { bridge, vrf, ..link() };
            let error = netlink.configure(&wanted, Undo::default()).await.unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
            assert_eq!(state(), before);
        }
    });
}

/// Capabilities belong to a thread, so only this test loses them.
fn without_privilege() {
    caps::clear(None, caps::CapSet::Effective).unwrap();
}

#[test]
fn who_may_not_change_it_may_find_it_done() {
    in_namespace(|netlink, _news| async move {
        // The state as `configure` leaves it; `undo` is not run.
        let _kept = netlink.configure(&link(), Undo::default()).await.unwrap();
        let before = state();
        without_privilege();
        let netlink = Netlink::connect().unwrap();
        let undo = netlink
            .configure(&Link { txqueuelen: Some(77), ..link() }, Undo::default())
            .await
            .unwrap();
        netlink.undo(undo, Stays::default()).await;
        assert_eq!(state(), before);

        let peer = vec!["10.99.0.2".parse().unwrap()];
        for (wanted, command) in [
            (Link { mtu: Some(1400), ..link() }, "ip link set there mtu 1400"),
            (
                Link { mac: Some([2, 0, 0, 0, 0, 7]), ..link() },
                "set there address 02:00:00:00:00:07",
            ),
            (Link { multicast: Some(false), ..link() }, "ip link set there multicast off"),
            (
                Link { addresses: nets(&["10.99.0.9/24"]), ..link() },
                "ip address add 10.99.0.9/24 dev there",
            ),
            (
                Link { peer_addresses: peer, ..link() },
                "ip address add 10.99.0.1 peer 10.99.0.2/24 dev there",
            ),
            (
                Link { routes: vec![route("192.0.2.0/24", None, None)], ..link() },
                "ip route add 192.0.2.0/24 dev there",
            ),
        ] {
            let error = netlink.configure(&wanted, Undo::default()).await.unwrap_err();
            assert!(error.is_permission(), "{error}");
            assert!(error.to_string().contains(command), "{error}");
        }
        assert_eq!(state(), before);
    });
}

#[test]
fn an_mtu_that_is_set_later_is_put_back_too() {
    in_namespace(|netlink, _news| async move {
        ip("link set there mtu 1400");
        for first in [1400, 1420] {
            let before = state();
            let wanted = Link { mtu: Some(first), ..link() };
            let setup = netlink.configure(&wanted, Undo::default()).await.unwrap();
            let keeper = Keeper::spawn(&netlink, Heard::everything().unwrap(), setup);
            let device = keeper.mtu();
            for mtu in [1300, 1500, 1500, first] {
                device.set(mtu).await.unwrap();
                assert!(ip("link show there").contains(&format!("mtu {mtu} ")));
            }
            let refused = device.set(40).await.unwrap_err().to_string();
            assert!(refused.starts_with("setting MTU 40 on there: "), "{refused}");
            device.set(1350).await.unwrap();
            let setup = keeper.stop().await.unwrap();
            assert!(matches!(device.set(1300).await, Err(Error::NotKept)));
            netlink.undo(setup, Stays::default()).await;
            assert_eq!(state(), before);
        }
    });
}

#[test]
fn what_others_do_to_it_is_seen() {
    in_namespace(|netlink, _news| async move {
        let setup = netlink.configure(&link(), Undo::default()).await.unwrap();
        let mut watch = netlink.watch("there", Heard::devices().unwrap()).await.unwrap();
        ip("link set other mtu 1400");
        ip("link set there down");
        assert_eq!(watch.next().await, Seen::Down);
        ip("link set there up");
        assert_eq!(watch.next().await, Seen::Up);
        ip("link set there name elsewhere");
        assert_eq!(watch.next().await, Seen::Renamed("elsewhere".to_owned()));
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(watch.next().await, Seen::Down);
        ip("link del elsewhere");
        assert_eq!(watch.next().await, Seen::Gone);
    });
}

#[test]
fn undoing_what_is_gone_already_is_quiet() {
    in_namespace(|netlink, _news| async move {
        let setup = netlink.configure(&link(), Undo::default()).await.unwrap();
        ip("link del there");
        netlink.undo(setup, Stays::default()).await;
    });
}

#[test]
fn no_thread_is_started() {
    in_namespace(|netlink, _news| async move {
        let setup = netlink.configure(&link(), Undo::default()).await.unwrap();
        // The test harness has threads, too, so our threads are recognised by name.
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let name = std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap();
            assert!(!name.starts_with("tokio"), "{name}");
        }
        netlink.undo(setup, Stays::default()).await;
    });
}
