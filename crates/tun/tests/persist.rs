//! Devices that outlive whoever made them, in a network namespace of their own.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]
#![allow(unsafe_code, reason = "becoming somebody else")]

mod common;

use common::devices::{device, options};
use common::namespace::{in_namespace, is_root};
use vpnd_tun::{
    Adopt, Mode, OpenError, Options, Owner, PersistError, Persistent, keep, kind_of, open, remove,
};

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
        assert!(held.adopted);
        let busy = remove("tun7", None);
        assert!(matches!(busy, Err(PersistError::Open(OpenError::Busy { .. }))));
        drop(held);
        remove("tun7", None).unwrap();
    });
}

#[test]
fn what_is_adopted_and_what_is_made() {
    in_namespace("what_is_adopted_and_what_is_made", || {
        let wanted = |adopt| Options { adopt, ..options("tun7") };
        let missing = open(&wanted(Adopt::Require)).unwrap_err();
        assert!(matches!(missing, OpenError::Missing { .. }), "{missing}");
        assert!(matches!(kind_of("tun7"), Err(PersistError::Missing { .. })), "it was made");
        for adopt in [Adopt::Auto, Adopt::Never] {
            assert!(!open(&wanted(adopt)).unwrap().adopted);
        }

        for multi_queue in [false, true] {
            Persistent { multi_queue, ..device(Some("tun7"), Mode::Tun) }.create().unwrap();
            for adopt in [Adopt::Auto, Adopt::Require] {
                assert!(open(&wanted(adopt)).unwrap().adopted);
            }
            let exists = open(&wanted(Adopt::Never)).unwrap_err();
            assert!(matches!(exists, OpenError::Exists { .. }), "{exists}");
            let other = open(&Options { mode: Mode::Tap, ..wanted(Adopt::Require) }).unwrap_err();
            assert!(matches!(other, OpenError::Kind { .. }), "{other}");
            remove("tun7", None).unwrap();
        }
    });
}

#[test]
fn a_device_that_is_kept_outlives_its_opener() {
    in_namespace("a_device_that_is_kept_outlives_its_opener", || {
        let made = open(&options("tun7")).unwrap();
        keep(&made.queues[0], "tun7").unwrap();
        drop(made);
        assert_eq!(kind_of("tun7").unwrap(), Mode::Tun);
        assert!(open(&options("tun7")).unwrap().adopted);
    });
}

/// Users are a thread's own, to the kernel, and with root's its capabilities go.
fn as_somebody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let alone = scope.spawn(|| {
            // SAFETY: the call takes three numbers, and concerns the calling thread alone.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
            work()
        });
        alone.join().unwrap()
    })
}

#[test]
fn nobody_reads_along() {
    in_namespace("nobody_reads_along", || {
        // Nobody else can become anybody.
        if !is_root() {
            return;
        }
        for (queues, stays) in [(2, false), (1, true), (2, true)] {
            let wanted = Options { queues, ..options("tun7") };
            let made = open(&wanted).unwrap();
            if stays {
                keep(&made.queues[0], "tun7").unwrap();
            }
            let held = (!stays).then_some(made);
            let refused = as_somebody(|| open(&wanted).map(drop)).unwrap_err();
            assert!(matches!(refused, OpenError::Permission { .. }), "{queues}: {refused}");
            drop(held);
            if stays {
                remove("tun7", None).unwrap();
            }
        }
        let owner = Owner { user: Some(65534), group: None };
        let made = open(&Options { owner, ..options("tun7") }).unwrap();
        keep(&made.queues[0], "tun7").unwrap();
        drop(made);
        assert!(as_somebody(|| open(&options("tun7")).map(drop)).is_ok(), "its owner may");
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
