//! Devices that outlive whoever made them, in a network namespace of their own.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]

mod common;

use common::devices::options;
use common::namespace::in_namespace;
use vpnd_tun::{Mode, OpenError, PersistError, Persistent, kind_of, open, remove};

#[test]
fn a_device_is_made_found_and_removed() {
    in_namespace("a_device_is_made_found_and_removed", || {
        for (kind, name) in [(Mode::Tun, "tun0"), (Mode::Tap, "tap0")] {
            for multi_queue in [false, true] {
                let made = Persistent { multi_queue, ..device(None, kind) }.create().unwrap();
                assert_eq!((made.as_str(), kind_of(&made).unwrap()), (name, kind));
                remove(&made, Some(kind)).unwrap();
                assert!(matches!(kind_of(&made), Err(PersistError::Missing { .. })));
            }
        }
    });
}

#[test]
fn nothing_is_made_by_removing() {
    in_namespace("nothing_is_made_by_removing", || {
        device(Some("tun7"), Mode::Tun).create().unwrap();
        assert!(
            matches!(remove("tun8", None), Err(PersistError::Missing { name }) if name == "tun8")
        );
        assert!(matches!(remove("lo", None), Err(PersistError::NotOurs { name }) if name == "lo"));
        let other = remove("tun7", Some(Mode::Tap));
        assert!(matches!(other, Err(PersistError::OtherKind { is: Mode::Tun, .. })));
        let again = device(Some("tun7"), Mode::Tap).create();
        assert!(matches!(again, Err(PersistError::Exists { name }) if name == "tun7"));
    });
}

#[test]
fn a_held_device_stays() {
    in_namespace("a_held_device_stays", || {
        device(Some("tun7"), Mode::Tun).create().unwrap();
        let held = open(&options("tun7")).unwrap();
        assert!(!held.created);
        let busy = remove("tun7", None);
        assert!(matches!(busy, Err(PersistError::Open(OpenError::Busy { .. }))));
        drop(held);
        remove("tun7", None).unwrap();
    });
}

#[test]
fn an_owner_that_cannot_be_leaves_nothing_behind() {
    in_namespace("an_owner_that_cannot_be_leaves_nothing_behind", || {
        let nobody = Persistent { user: Some(u32::MAX), ..device(Some("tun7"), Mode::Tun) };
        assert!(matches!(nobody.create(), Err(PersistError::Refused { what: "user", .. })));
        assert!(matches!(kind_of("tun7"), Err(PersistError::Missing { .. })));
    });
}

#[test]
fn names_that_cannot_be() {
    for name in ["sixteen-letters-", "a/b", "t%x", "%d%d", "t%"] {
        let made = device(Some(name), Mode::Tun).create();
        assert!(matches!(made, Err(PersistError::Open(OpenError::Name { .. }))), "{name}");
    }
}

fn device(name: Option<&str>, kind: Mode) -> Persistent {
    Persistent {
        name: name.map(str::to_owned),
        kind,
        user: None,
        group: None,
        multi_queue: false,
        packet_info: false,
        vnet_header: false,
        one_queue: false,
    }
}
