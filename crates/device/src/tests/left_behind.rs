//! The leftovers of an earlier run, and the journal that records them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::time::sleep;

use super::routes::everything;
use super::*;

/// A journal file for one test, which is deleted with this value.
pub(crate) struct Notes(pub(crate) PathBuf);

impl Notes {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vpnd-{name}-{}", std::process::id()));
        // A killed test run may have left its file.
        let _none = fs::remove_file(&path);
        Self(path)
    }

    pub(super) fn resume(&self) -> Undo {
        Undo::resume(Journal::open(&self.0, Namespace::current()).unwrap())
    }

    pub(super) fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0);
    }
}

/// Another object blocks the next start. The blackhole, and the rules that lead to it, exist all the time.
#[test]
fn a_start_that_fails_after_a_crash_keeps_what_drops() {
    in_namespace(|netlink, _news| async move {
        let before = state();
        let notes = Notes::new("guarded-still");
        let mut wanted = everything(WhenDown::Blackhole);
        wanted.routes.push(route("203.0.113.0/24", None, None));
        drop(netlink.configure(&wanted, notes.resume()).await.unwrap());
        let guards = || {
            let routes = ip("-4 route show table all type blackhole");
            routes + &ip("-6 route show table all type blackhole") + &ip("-4 rule") + &ip("-6 rule")
        };
        let left = guards();
        // Three blackhole routes and one of last resort, and a blackhole rule of each family.
        assert_eq!(left.matches("blackhole").count(), 6, "{left}");
        ip("route del 203.0.113.0/24 dev there");
        ip("addr add 192.0.2.1/24 dev other");
        ip("route add 203.0.113.0/24 dev other");
        let mut monitor = Command::new("ip")
            .args(["monitor", "route", "rule"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(300)).await;
        for _ in 0..2 {
            let error = netlink.configure(&wanted, notes.resume()).await.unwrap_err().to_string();
            assert!(error.contains("203.0.113.0/24 to there: File exists"), "{error}");
            assert_eq!(guards(), left);
        }
        sleep(Duration::from_millis(300)).await;
        monitor.kill().unwrap();
        let heard = String::from_utf8(monitor.wait_with_output().unwrap().stdout).unwrap();
        let opened = |line: &&str| {
            line.starts_with("Deleted") && (line.contains("blackhole") || line.contains("from all"))
        };
        assert_eq!(heard.lines().filter(opened).count(), 0, "{heard}");
        assert!(heard.contains("Deleted"), "nothing was heard: {heard}");

        ip("addr del 192.0.2.1/24 dev other");
        let setup = netlink.configure(&wanted, notes.resume()).await.unwrap();
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

/// A leftover blackhole has the place of the new route into the tunnel.
#[test]
fn what_drops_gives_way_to_a_route_in_its_place() {
    in_namespace(|netlink, _news| async move {
        let before = state();
        let notes = Notes::new("in-its-place");
        drop(netlink.configure(&everything(WhenDown::Blackhole), notes.resume()).await.unwrap());
        let mut other = everything(WhenDown::Keep);
        other.routes[2].metric = Some(1);
        let setup = netlink.configure(&other, notes.resume()).await.unwrap();
        assert!(!ip("-4 route show").contains("blackhole"));
        assert!(ip("-4 route show").contains("198.51.100.0/24 dev there proto 118"));
        netlink.undo(setup, Stays::default()).await;
        assert_eq!(state(), before);
    });
}

#[test]
fn a_killed_run_is_taken_over_or_taken_back() {
    in_namespace(|netlink, _news| async move {
        let before = state();
        let notes = Notes::new("killed");
        let kept = everything(WhenDown::Blackhole);
        // Nothing is reverted at its end, as after a kill -9.
        drop(netlink.configure(&kept, notes.resume()).await.unwrap());
        assert!(ip("-4 route show").contains("blackhole 198.51.100.0/24"));

        // The same configuration again: all objects are its own.
        drop(netlink.configure(&kept, notes.resume()).await.unwrap());
        assert_eq!(ip("-4 rule").matches("proto 118").count(), 7);

        // Now with another mark, port and network, and a device without those addresses.
        let mut other =
            Link { own: Some(Own { mark: Mark::exact(7), port: 9, peers: vec![] }), ..kept };
        other.routes[2].to = "198.18.0.0/15".parse().unwrap();
        other.addresses = nets(&["10.99.0.5/24", "2001:db8:1::1/64"]);
        let setup = netlink.configure(&other, notes.resume()).await.unwrap();
        let rules = ip("-4 rule");
        assert_eq!(rules.matches("proto 118").count(), 7, "{rules}");
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

/// The device was deleted with its process, and another device has its index now.
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

/// A device that keeps its settings also keeps them over the next start: no second table is added, and all
/// settings are removed on request.
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
    // Without a second user the file cannot be given away.
    if chown(&notes.0, Some(65534), None).is_ok() {
        assert!(open().is_err());
    }
}

/// Each of these journal entries would change a device in a way in which vpnd never changes one.
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
