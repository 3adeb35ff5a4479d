//! Default routes, routes that depend on the peer, what is put back, and what an earlier run left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::*;

/// A file of this test's own, that goes with it.
struct Notes(PathBuf);

impl Notes {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vpnd-{name}-{}", std::process::id()));
        // One that is left of a run that was killed.
        let _none = fs::remove_file(&path);
        Self(path)
    }

    fn resume(&self) -> Undo {
        Undo::resume(Journal::open(&self.0, Namespace::current()).unwrap())
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0);
    }
}

const OWN: Own = Own { mark: 51820, port: 4500 };

/// Default routes of both families, and a network that is to be reached in no other way.
fn everything(when_down: WhenDown) -> Link {
    let to = ["0.0.0.0/0", "::/0", "198.51.100.0/24"];
    let route = |to: &str| Route { to: to.parse().unwrap(), metric: None, table: None, when_down };
    Link { routes: to.map(route).to_vec(), own: Some(OWN), ..link() }
}

/// Waits until `what` prints a line with `words`, or none.
async fn until(what: &str, words: &str, there: bool) {
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
        let v4 = ip("-4 rule");
        for words in [
            "32000:\tfrom all iif lo ipproto udp sport 4500 goto 32003 proto 118",
            "32001:\tfrom all lookup main suppress_prefixlength 0 proto 118",
            "32002:\tnot from all fwmark 0xca6c lookup 51820 proto 118",
            "32003:\tfrom all ipproto udp sport 4500 nop proto 118",
        ] {
            assert!(v4.contains(words), "{words}: {v4}");
        }
        let v6 = ip("-6 rule");
        assert!(v6.contains("not from all fwmark 0xca6c lookup 51820 proto 118"), "{v6}");
        assert!(!v6.contains("nop"), "{v6}");
        assert!(ip("-4 route show table 51820").contains("default dev there proto 118"));
        assert!(ip("-6 route show table 51820").contains("default dev there proto 118"));
        assert!(ip("-4 route show").contains("198.51.100.0/24 dev there proto 118 scope link"));

        assert!(ip("route get 203.0.113.1").contains("dev there table 51820"));
        ip("addr add 192.0.2.1/24 dev other");
        ip("route add default via 192.0.2.254");
        assert!(ip("route get 203.0.113.1 mark 51820").contains("dev other"));
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
        assert_eq!(mark, 51821);
        let link = Link { own: Some(Own { mark, ..OWN }), ..everything(WhenDown::Keep) };
        let first = netlink.configure(&link, Undo::default()).await.unwrap();
        assert!(ip("route show table 51822").contains("default dev there"));
        // A second tunnel has the same mark, for rules of vpnd's are no strangers, and another table.
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
        // What drops stands in the way of a route just as well.
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
            let (netlink, news) = (Netlink::connect().unwrap(), News::listen().unwrap());
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

#[test]
fn what_is_removed_comes_back() {
    in_namespace(|netlink, news| async move {
        let before = state();
        let setup = netlink.configure(&everything(WhenDown::Keep), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, news, setup);
        ip("route del 198.51.100.0/24 dev there");
        until("-4 route show", "198.51.100.0/24 dev there", true).await;
        ip("rule del priority 32002");
        until("-4 rule", "lookup 51820", true).await;
        ip("-6 addr del 2001:db8:1::1/64 dev there");
        until("-6 addr show there", "2001:db8:1::1/64", true).await;
        // The kernel takes the routes, and the IPv6 addresses.
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
        for _ in 0..5 {
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

#[test]
fn a_killed_run_is_taken_over_or_taken_back() {
    in_namespace(|netlink, _news| async move {
        let before = state();
        let notes = Notes::new("killed");
        let kept = everything(WhenDown::Blackhole);
        // Nothing runs at its end, as after a kill -9.
        drop(netlink.configure(&kept, notes.resume()).await.unwrap());
        assert!(ip("-4 route show").contains("blackhole 198.51.100.0/24"));

        // The same once more: all of it is its own.
        drop(netlink.configure(&kept, notes.resume()).await.unwrap());
        assert_eq!(ip("-4 rule").matches("proto 118").count(), 4);

        // Another mark, port and network, and the device goes by its addresses.
        let mut other = Link { own: Some(Own { mark: 7, port: 9 }), ..kept };
        other.routes[2].to = "198.18.0.0/15".parse().unwrap();
        other.addresses = nets(&["10.99.0.5/24", "2001:db8:1::1/64"]);
        let setup = netlink.configure(&other, notes.resume()).await.unwrap();
        let rules = ip("-4 rule");
        assert_eq!(rules.matches("proto 118").count(), 4, "{rules}");
        assert!(rules.contains("fwmark 0x7 lookup 51820"), "{rules}");
        assert!(!ip("-4 route show").contains("198.51.100.0/24"));
        assert!(!ip("addr show there").contains("10.99.0.1/24"));
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
        assert_eq!(notes.text(), "");
    });
}

#[test]
fn an_end_that_nobody_asked_for_keeps_what_drops() {
    in_namespace(|netlink, _news| async move {
        let before = state();
        let notes = Notes::new("guarded");
        for when_down in [WhenDown::Keep, WhenDown::Blackhole] {
            let setup = netlink.configure(&everything(when_down), notes.resume()).await.unwrap();
            netlink.undo(setup, Stays { guards: true, ..Stays::default() }).await;
            if when_down == WhenDown::Keep {
                assert_eq!(state(), before);
            }
        }
        assert!(ip("-4 route show").contains("blackhole 198.51.100.0/24"));
        assert!(ip("-6 rule").contains("lookup 51820"));
        let setup = netlink.configure(&everything(WhenDown::Keep), notes.resume()).await.unwrap();
        assert!(!ip("-4 route show").contains("blackhole"));
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

/// The number of a device that was killed with its process is given to another.
#[test]
fn what_was_done_to_another_device_is_forgotten() {
    in_namespace(|netlink, _news| async move {
        let notes = Notes::new("strangers");
        drop(netlink.configure(&everything(WhenDown::Keep), notes.resume()).await.unwrap());
        let index = ip("-o link show there").split(':').next().unwrap().to_owned();
        ip("link del there");
        ip(&format!("link add eth0 index {index} type veth peer name there"));
        ip("addr add 10.99.0.1/24 dev eth0");
        ip("link set eth0 up mtu 1420");
        let mut link = link();
        link.addresses.clear();
        link.routes.clear();
        let setup = netlink.configure(&link, notes.resume()).await.unwrap();
        netlink.undo(setup, Stays::default()).await;
        let shown = ip("-o addr show eth0") + &ip("-o link show eth0");
        assert!(shown.contains(",UP") && shown.contains("10.99.0.1/24"), "{shown}");
        assert!(shown.contains("mtu 1420"), "{shown}");
        assert_eq!(ip("-4 rule").matches("proto 118").count(), 0, "rules are nobody else's");
        assert_eq!(notes.text(), "");
    });
}

#[test]
fn a_connection_knows_the_namespace_it_was_opened_in() {
    in_namespace(|netlink, _news| async move {
        let inside = Namespace::current();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert_ne!(Namespace::current(), inside);
        assert_eq!(netlink.namespace(), inside);
    });
}

/// What a device keeps is its own after the next start too: it comes to no second table, and goes when asked to.
#[test]
fn what_stays_is_known_again() {
    in_namespace(|netlink, _news| async move {
        let before = state();
        let notes = Notes::new("stays");
        let stays = Stays { device: true, ..Stays::default() };
        let link = everything(WhenDown::Keep);
        for _ in 0..3 {
            let setup = netlink.configure(&link, notes.resume()).await.unwrap();
            let routes = ip("-4 route show table all proto 118");
            assert_eq!(routes.matches("default dev there table 51820").count(), 1, "{routes}");
            assert_eq!(routes.matches("default").count(), 1, "{routes}");
            netlink.undo(setup, stays).await;
            assert_eq!(ip("-4 rule").matches("proto 118").count(), 0);
            assert!(ip("addr show there").contains("10.99.0.1/24"));
        }
        let mut less = link;
        less.addresses.remove(0);
        less.routes.remove(2);
        let setup = netlink.configure(&less, notes.resume()).await.unwrap();
        assert!(!ip("addr show there").contains("10.99.0.1/24"));
        assert!(!ip("-4 route show").contains("198.51.100.0/24"));
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
        assert_eq!(notes.text(), "");
    });
}

#[test]
fn a_journal_of_garbage_says_nothing() {
    in_namespace(|netlink, _news| async move {
        let notes = Notes::new("garbage");
        drop(netlink.configure(&everything(WhenDown::Keep), notes.resume()).await.unwrap());
        let good = notes.text().into_bytes();
        let whole = notes.resume().len();
        assert!(whole > 10, "{whole}");
        let mut seed = 1_u32;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut bad = good.clone();
            let at = seed as usize % bad.len();
            bad[at] = seed.to_be_bytes()[0];
            bad.truncate(bad.len() - seed as usize / 7 % 40);
            fs::write(&notes.0, bad).unwrap();
            assert!(notes.resume().len() <= whole);
        }
        fs::write(&notes.0, [b'+'; 3000]).unwrap();
        assert_eq!(notes.resume().len(), 0);
        let other = good.iter().skip(1).copied().collect::<Vec<_>>();
        fs::write(&notes.0, other).unwrap();
        assert_eq!(notes.resume().len(), 0, "of another namespace, or another kind");
    });
}

#[test]
fn a_link_in_the_journals_place_is_not_followed() {
    let notes = Notes::new("link");
    let target = Notes::new("link-target");
    fs::write(&target.0, "untouched").unwrap();
    std::os::unix::fs::symlink(&target.0, &notes.0).unwrap();
    let open = |path: &Path| Journal::open(path, Namespace::current());
    assert!(open(&notes.0).is_err());
    fs::remove_file(&notes.0).unwrap();
    fs::hard_link(&target.0, &notes.0).unwrap();
    assert!(open(&notes.0).is_err());
    assert!(open(Path::new("/nonexistent/vpnd")).is_err());
    assert_eq!(target.text(), "untouched");
}

#[test]
fn a_journal_that_others_may_write_is_refused() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let notes = Notes::new("others");
    let open = || Journal::open(&notes.0, Namespace::current());
    drop(open().unwrap());
    for mode in [0o620, 0o602] {
        fs::set_permissions(&notes.0, fs::Permissions::from_mode(mode)).unwrap();
        let error = open().unwrap_err().to_string();
        assert!(error.contains("others may write"), "{error}");
    }
    fs::set_permissions(&notes.0, fs::Permissions::from_mode(0o600)).unwrap();
    drop(open().unwrap());
    // Without a second user there is nobody to give it to.
    if chown(&notes.0, Some(65534), None).is_ok() {
        assert!(open().is_err());
    }
}

/// Each of these would do to a device what vpnd never does.
#[test]
fn a_journal_takes_back_nothing_that_vpnd_does_not_do() {
    in_namespace(|netlink, _news| async move {
        use crate::undo::Change;
        use rtnetlink::LinkUnspec;
        use rtnetlink::packet_route::link::LinkAttribute;
        use rtnetlink::packet_route::route::RouteMessage;

        let back = |change: &Change| {
            let (kind, bytes) = change.encode();
            Change::decode(kind, &bytes)
        };
        let setup = netlink.configure(&everything(WhenDown::Blackhole), Undo::default()).await;
        let undo = setup.unwrap().undo;
        assert!(undo.len() > 10);
        for change in undo.changes() {
            assert_eq!(back(change).as_ref(), Some(change));
        }
        let set = LinkUnspec::new_with_index;
        let mut renamed = set(2).build();
        renamed.attributes.push(LinkAttribute::IfName("lost".to_owned()));
        let mut moved = set(2).build();
        moved.attributes.push(LinkAttribute::NetNsPid(1));
        for link in [renamed, moved, set(2).up().build(), set(2).promiscuous(true).build()] {
            assert_eq!(back(&Change::Link(link)), None);
        }
        assert_eq!(back(&Change::Route(RouteMessage::default())), None);
        assert_eq!(back(&Change::Rule(Default::default())), None);
    });
}
