//! Tests of devices that outlive the program that made them, in a separate network namespace.
#![allow(clippy::unwrap_used, reason = "what does not unwrap fails its test")]
#![allow(unsafe_code, reason = "becoming somebody else")]

mod common;

use common::devices::{device, options};
use common::namespace::{attach, driver, in_namespace, is_root};
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

/// A new device has no owner at first, but it has one before it gets its final name.
#[test]
fn a_name_is_taken_last() {
    in_namespace("a_name_is_taken_last", || {
        let wanted = |name: &str| Options { queues: 2, adopt: Adopt::Never, ..options(name) };
        let made = open(&wanted("vpnd%d")).unwrap();
        assert_eq!(made.name, "vpnd0");
        assert_eq!(open(&wanted("vpnd%d")).unwrap().name, "vpnd1");
        for taken in ["vpnd0", "lo"] {
            let exists = open(&wanted(taken)).unwrap_err();
            assert!(matches!(&exists, OpenError::Exists { name } if name == taken), "{exists}");
        }
        let group = Owner { user: None, group: Some(7) };
        for owner in [group, Owner { user: Some(7), group: Some(7) }] {
            assert_eq!(open(&Options { owner, ..wanted("tun7") }).unwrap().name, "tun7");
        }
        let invalid = open(&wanted("t%x")).unwrap_err();
        assert!(matches!(invalid, OpenError::Io { .. }), "{invalid}");
        // The devices that were deleted again are gone: only these two interfaces are left.
        assert_eq!(interfaces(), ["lo", "vpnd0"]);
    });
}

fn interfaces() -> Vec<String> {
    let listed = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = listed.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn a_device_that_is_held_is_left_alone() {
    in_namespace("a_device_that_is_held_is_left_alone", || {
        Persistent { multi_queue: true, ..device(Some("tun7"), Mode::Tun) }.create().unwrap();
        let holder = driver();
        attach(&holder, "tun7", flags(true)).unwrap();
        for queues in [1, 3] {
            let shared = open(&Options { queues, ..options("tun7") }).unwrap_err();
            assert!(matches!(shared, OpenError::Shared { queues: 1, .. }), "{shared}");
        }
        drop(holder);
        let taken = open(&Options { queues: 3, ..options("tun7") }).unwrap();
        assert!(taken.adopted && taken.claimed.is_some_and(|owner| owner.user.is_some()));
        drop(taken);
        assert_eq!(open(&options("tun7")).unwrap().claimed, None, "it has an owner now");
    });
}

fn flags(multi_queue: bool) -> i32 {
    libc::IFF_TUN | libc::IFF_NO_PI | if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 }
}

/// Runs `work` as another user: in the kernel, each thread has its own user. The thread also loses root's
/// capabilities.
fn as_somebody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let alone = scope.spawn(|| {
            // SAFETY: the call takes three numbers, and affects only the calling thread.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
            work()
        });
        alone.join().unwrap()
    })
}

#[test]
fn nobody_reads_along() {
    in_namespace("nobody_reads_along", || {
        // Only root can become another user.
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
            // Whether the driver can be opened without privileges depends on the system.
            let (driver, flags) = (driver(), flags(queues > 1));
            let refused = as_somebody(|| attach(&driver, "tun7", flags)).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{queues}: {refused}");
            drop(held);
            if stays {
                remove("tun7", None).unwrap();
            }
        }
        let owner = Owner { user: Some(65534), group: None };
        let made = open(&Options { owner, ..options("tun7") }).unwrap();
        keep(&made.queues[0], "tun7").unwrap();
        drop(made);
        let driver = driver();
        as_somebody(|| attach(&driver, "tun7", flags(false))).expect("its owner may");
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
