//! Tests of the kill switch: what remains after a flush, and how soon the rest is restored.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::left_behind::Notes;
use super::routes::{OWN, everything};
use super::*;

/// The table of a kill switch.
const KEPT: &str = "vpnd_killswitch-kept";

/// An uplink with a default route, and another network on it.
async fn uplink() {
    for command in [
        "addr add 192.0.2.1/24 dev other",
        "-6 addr add 2001:db8:a::1/64 dev other nodad",
        "route add default via 192.0.2.254",
        "-6 route add default via 2001:db8:a::fe",
        "route add 203.0.113.0/24 via 192.0.2.253",
        // The uplink has no carrier unless its other end is up.
        "link set there up",
    ] {
        ip(command);
    }
    // The kernel adds its objects when the carrier appears, a little later.
    let mut now = state();
    loop {
        sleep(Duration::from_millis(300)).await;
        let before = std::mem::replace(&mut now, state());
        if before == now {
            return;
        }
    }
}

/// The routes and rules that belong to vpnd.
fn ours() -> Vec<String> {
    state().into_iter().filter(|line| line.contains("proto 11")).collect()
}

/// The addresses to which a packet would leave by the uplink.
fn leaks() -> Vec<&'static str> {
    let to = ["198.18.77.1", "198.51.100.1", "2001:db8:77::1"];
    let leaves = |to: &&str| {
        let output = Command::new("ip").args(["route", "get", to]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("dev other")
    };
    to.into_iter().filter(leaves).collect()
}

/// Tests each flush by itself, without a keeper that would restore anything.
#[test]
fn no_flush_opens_a_kill_switch() {
    in_namespace(|netlink, _news| async move {
        uplink().await;
        assert_eq!(leaks().len(), 3);
        let before = state();
        for flushes in [
            &["-4 rule flush protocol 118", "-6 rule flush protocol 118"][..],
            &["-4 rule flush protocol 119", "-6 rule flush protocol 119"],
            &["-4 route flush table all proto 118", "-6 route flush table all proto 118"],
            &["-4 route flush table all proto 119", "-6 route flush table all proto 119"],
            &["-4 route flush table 51820", "-6 route flush table 51820"],
            &[
                "-4 rule flush protocol 118",
                "-6 rule flush protocol 118",
                "-4 route flush table all proto 118",
                "-6 route flush table all proto 118",
            ],
            &["-4 rule flush table 51820", "-6 rule flush table 51820"],
        ] {
            let wanted = everything(WhenDown::Blackhole);
            let setup = netlink.configure(&wanted, Undo::default()).await.unwrap();
            assert!(leaks().is_empty(), "before {flushes:?}: {:?}", leaks());
            for flush in flushes {
                let mut words: Vec<_> = flush.split(' ').collect();
                let family = words.remove(0);
                // A flush of nothing returns an error.
                let _done = Command::new("ip").arg(family).args(words).output().unwrap();
                assert!(leaks().is_empty(), "{flush} of {flushes:?}: {:?}", leaks());
                assert!(ip("route get 192.0.2.9").contains("dev other"), "{flush}: its own LAN");
                assert!(ip("route get 203.0.113.9").contains("192.0.2.253"), "{flush}");
                let own = ip("route get 198.18.77.1 mark 51820");
                assert!(own.contains("dev other"), "{flush}: our own datagrams");
            }
            netlink.undo(setup, Stays::default()).await;
            assert_eq!(state(), before);
        }
    });
}

#[test]
fn whoever_insists_does_not_open_a_kill_switch() {
    in_namespace(|netlink, news| async move {
        uplink().await;
        let setup =
            netlink.configure(&everything(WhenDown::Blackhole), Undo::default()).await.unwrap();
        let whole = ours();
        let keeper = Keeper::spawn(&netlink, news, setup);
        for turn in 0..12 {
            for family in ["-4", "-6"] {
                ip(&format!("{family} rule flush protocol 118"));
                ip(&format!("{family} rule flush protocol 119"));
                ip(&format!("{family} route flush table all proto 118 type blackhole"));
                ip(&format!("{family} route flush table all proto 119 type blackhole"));
            }
            let mut waited = 0;
            while ours() != whole {
                sleep(Duration::from_millis(5)).await;
                waited += 1;
                assert!(waited < 400, "turn {turn}: {:?}", ours());
            }
        }
        assert!(leaks().is_empty());
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
    });
}

/// The kill switch must exist even if later steps fail; here even the device is missing.
#[test]
fn a_kill_switch_is_there_before_the_device() {
    in_namespace(|netlink, _news| async move {
        uplink().await;
        let before = state();
        let notes = Notes::new("before-the-device");
        let wanted = everything(WhenDown::Blackhole);
        let early = Link { own: Some(Own { port: 0, ..OWN }), ..wanted.clone() };
        let mut undo = notes.resume();
        netlink.guard(&early, &mut undo).await.unwrap();
        assert!(leaks().is_empty(), "{:?}", leaks());
        // The start fails, and the next one too.
        drop(undo);
        let mut undo = notes.resume();
        netlink.guard(&early, &mut undo).await.unwrap();
        let missing = Link { name: "missing".into(), ..wanted.clone() };
        netlink.configure(&missing, undo).await.unwrap_err();
        assert!(leaks().is_empty(), "{:?}", leaks());
        let mut undo = notes.resume();
        netlink.guard(&early, &mut undo).await.unwrap();
        let setup = netlink.configure(&wanted, undo).await.unwrap();
        assert_eq!(ip("-4 rule").matches("proto 118").count(), 7);
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

/// A kill switch that was handed on is removed in time, or taken over. In both cases nothing of it is left at
/// the end.
#[test]
fn a_stop_that_may_be_a_restart_hands_it_on() {
    in_namespace(|netlink, _news| async move {
        uplink().await;
        let before = state();
        let notes = Notes::new("handed-on");
        let wanted = everything(WhenDown::Blackhole);
        let mut undo = notes.resume();
        undo.set_table(Some(KEPT));
        let setup = netlink.configure(&wanted, undo).await.unwrap();
        let leftover = netlink.hand_on(setup, false, |_| Ok(())).await.unwrap();
        assert!(leaks().is_empty(), "{:?}", leaks());
        let setup = netlink.configure(&wanted, notes.resume()).await.unwrap();
        leftover.open_after(Duration::ZERO, |table| panic!("{table} was taken over"));
        assert!(leaks().is_empty(), "it was taken over: {:?}", leaks());

        let leftover = netlink.hand_on(setup, false, |_| Ok(())).await.unwrap();
        // A start that fails takes it over too.
        drop(notes.resume());
        leftover
            .open_after(Duration::ZERO, |table| panic!("somebody has tried to take over {table}"));
        assert!(leaks().is_empty(), "somebody has tried: {:?}", leaks());

        let setup = netlink.configure(&wanted, notes.resume()).await.unwrap();
        let (leftover, mut deleted) =
            (netlink.hand_on(setup, false, |_| Ok(())).await.unwrap(), Vec::new());
        leftover.open_after(Duration::ZERO, |_| Err(io::Error::other("busy")));
        assert_eq!(notes.resume().table(), Some(KEPT), "a deletion that fails forgets nothing");
        let setup = netlink.configure(&wanted, notes.resume()).await.unwrap();
        let leftover = netlink.hand_on(setup, false, |_| Ok(())).await.unwrap();
        leftover.open_after(Duration::ZERO, |table| {
            deleted.push(table.to_owned());
            Ok(())
        });
        assert_eq!(deleted, [KEPT]);
        assert_eq!((state(), notes.resume().len()), (before.clone(), 0));
        assert_eq!(notes.resume().table(), None);
        let nothing = netlink.configure(&everything(WhenDown::Keep), notes.resume()).await.unwrap();
        assert!(
            netlink.hand_on(nothing, false, |_| Ok(())).await.is_none(),
            "there is nothing to hand on"
        );
        assert_eq!(state(), before);
    });
}

/// If vpnd is killed during the deletion, or the deletion fails, the journal still names the table.
#[test]
fn a_table_is_forgotten_after_it_is_deleted() {
    in_namespace(|netlink, _news| async move {
        uplink().await;
        let notes = Notes::new("table-deleted");
        let mut undo = notes.resume();
        undo.set_table(Some(KEPT));
        let mut setup = netlink.configure(&everything(WhenDown::Blackhole), undo).await.unwrap();
        setup.delete_table(|_| Err(io::Error::other("busy")));
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(notes.resume().table(), Some(KEPT));
        let mut setup =
            netlink.configure(&everything(WhenDown::Keep), notes.resume()).await.unwrap();
        let journal = notes.text();
        setup.delete_table(|_| {
            assert_eq!(notes.text(), journal, "it is named until it is gone");
            Ok(())
        });
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(notes.resume().table(), None);
    });
}

/// If the kernel ignores routes of a link without carrier, their packets do not take another route.
#[test]
fn what_is_passed_over_is_dropped() {
    in_namespace(|netlink, _news| async move {
        uplink().await;
        ip("link add dead type veth peer name far");
        sleep(Duration::from_millis(300)).await;
        let before = state();
        std::fs::write("/proc/sys/net/ipv4/conf/all/ignore_routes_with_linkdown", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/dead/ignore_routes_with_linkdown", "1").unwrap();
        let link = Link {
            name: "dead".into(),
            passed_over: Families { v4: true, v6: true },
            ..everything(WhenDown::Keep)
        };
        let open = Link { passed_over: Families::default(), ..link.clone() };
        let setup = netlink.configure(&open, Undo::default()).await.unwrap();
        assert_eq!(leaks().len(), 3, "without it, they leave by the uplink");
        netlink.undo(setup, Stays::default()).await;
        let setup = netlink.configure(&link, Undo::default()).await.unwrap();
        assert!(leaks().is_empty(), "{:?}", leaks());
        for connected in ["10.99.0.2", "2001:db8:1::2"] {
            let output = Command::new("ip").args(["route", "get", connected]).output().unwrap();
            assert!(!output.status.success(), "{connected}: {output:?}");
        }
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

/// A tunnel with a kill switch for two networks.
fn guarded() -> Link {
    let mut link = link();
    link.routes = vec![
        Route { when_down: WhenDown::Blackhole, ..route("198.18.4.0/22", Some(100), None) },
        Route { when_down: WhenDown::Blackhole, ..route("2001:db8:5::/48", None, None) },
    ];
    link
}

/// Waits until the routes through which packets bypass the kill switch are these.
async fn bypassed(keeper: &Keeper, by: &[(&str, bool)]) {
    let began = Instant::now();
    loop {
        let found = keeper.bypassed().borrow().clone();
        let found: Vec<_> = found.iter().map(|one| (one.by.as_str(), one.is_part)).collect();
        if found == by {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{found:?} is not {by:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_route_past_a_kill_switch_is_reported() {
    in_namespace(|netlink, news| async move {
        uplink().await;
        ip("route add 198.18.4.0/22 via 192.0.2.254 metric 7");
        let setup = netlink.configure(&guarded(), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        let early = ("route 198.18.4.0/22 via 192.0.2.254 dev other metric 7", false);
        bypassed(&keeper, &[early]).await;

        ip("-6 route add 2001:db8:5::/48 via 2001:db8:a::fe metric 9");
        let v6 = ("route 2001:db8:5::/48 via 2001:db8:a::fe dev other metric 9", false);
        bypassed(&keeper, &[early, v6]).await;
        ip("route del 198.18.4.0/22 via 192.0.2.254 metric 7");
        bypassed(&keeper, &[v6]).await;

        // This route has the metric of our route, so it comes first while the peer is dead.
        ip("route add 198.18.4.0/22 via 192.0.2.254 metric 100");
        let same = ("route 198.18.4.0/22 via 192.0.2.254 dev other metric 100", false);
        bypassed(&keeper, &[same, v6]).await;
        // The kernel deletes the routes of both families, and sends no message about the IPv4 route.
        ip("link set other down");
        bypassed(&keeper, &[]).await;
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
    });
}

#[test]
fn routes_that_do_not_leak_are_not_reported() {
    in_namespace(|netlink, news| async move {
        uplink().await;
        // A network of this host, a blackhole, a route with a higher metric than ours, a route of another
        // table, a route of another tunnel, and the route of the tunnel's own datagrams.
        for command in [
            "addr add 198.18.6.1/24 dev other",
            "route add blackhole 198.18.5.0/24",
            "route add 198.18.4.0/22 via 192.0.2.254 metric 200",
            "route add 198.18.4.0/22 via 192.0.2.254 table 1000",
            "route add 198.18.4.0/22 via 192.0.2.254 metric 3 proto 118",
            "route add 198.18.7.7 via 192.0.2.254",
        ] {
            ip(command);
        }
        let setup = netlink.configure(&guarded(), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        let peers = vec!["198.18.7.7".parse().unwrap()];
        keeper.own().set(OwnTraffic { port: 1, peers });
        sleep(Duration::from_millis(900)).await;
        assert_eq!(*keeper.bypassed().borrow(), []);

        ip("route add 198.18.7.0/30 via 192.0.2.254");
        bypassed(&keeper, &[("route 198.18.7.0/30 via 192.0.2.254 dev other", true)]).await;
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
    });
}

#[test]
fn a_local_network_that_is_too_large_for_one_is_reported() {
    in_namespace(|netlink, news| async move {
        uplink().await;
        let shut = |to| Route { when_down: WhenDown::Blackhole, ..route(to, None, None) };
        let routes = ["0.0.0.0/0", "::/0"].map(shut).to_vec();
        let link = Link { routes, own: Some(OWN), ..link() };
        let setup = netlink.configure(&link, Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        // The kernel adds such a route for an on-link prefix of a router advertisement.
        ip("-6 route add 2000::/3 dev other proto kernel metric 256");
        bypassed(&keeper, &[("route 2000::/3 dev other metric 256", true)]).await;
        ip("-6 route del 2000::/3 dev other proto kernel metric 256");
        ip("addr add 198.18.0.1/15 dev other");
        bypassed(&keeper, &[("route 198.18.0.0/15 dev other", true)]).await;
        ip("addr del 198.18.0.1/15 dev other");
        ip("addr add 198.18.0.1/16 dev other");
        ip("-6 addr add 2001:db8::7/32 dev other nodad");
        bypassed(&keeper, &[]).await;
        netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
    });
}
