//! Drops all privileges except for one capability.
//!
//! Capabilities belong to a thread, so they are dropped before there is a second thread.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::null_mut;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, SysconfVar, Uid, setgroups, setresgid, setresuid, sysconf};
use thiserror::Error;

use crate::account::Account;

/// Needed for devices, addresses and routes, before and after the drop. Without it, vpnd can still run a tunnel
/// on a device that was made and configured for its user.
const KEPT: Capability = Capability::CAP_NET_ADMIN;

/// Why the daemon's privileges are not enough, or could not be dropped.
#[derive(Debug, Error)]
pub(crate) enum PrivilegeError {
    /// There are other threads, which would keep the privileges that this thread drops.
    #[error("privileges cannot be dropped once there are {0} threads")]
    Threads(usize),
    /// The kernel refused to change the user.
    #[error(
        "becoming user {user}: {what}: {error}; [service] user names another one, and user = \"\" \
         keeps this one"
    )]
    Become { user: String, what: &'static str, error: Errno },
    /// The kernel refused to drop a privilege.
    #[error("dropping privileges: {what}: {error}")]
    Restrict { what: &'static str, error: io::Error },
}

impl PrivilegeError {
    /// Whether a missing privilege is the reason.
    pub(crate) const fn is_permission(&self) -> bool {
        matches!(self, Self::Become { error: Errno::EPERM, .. })
    }
}

/// Sets the scheduling priority, which every thread started from now on inherits. Without the privilege for
/// that, vpnd keeps the priority that it was started with.
pub(crate) fn share_processor(nice: i32) {
    // SAFETY: the call takes three numbers, of which 0 means the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "the scheduling priority stays what it was");
    }
}

/// Lowers the priority of the calling thread below that of the data threads, which have been started by now, so
/// that packets from strangers take processor time from this thread and not from other programs. If vpnd was
/// started with an even lower priority, that is kept.
pub(crate) fn yield_to_others() {
    // SAFETY: the call takes two numbers, of which 0 means the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    if nice < 0 {
        share_processor(0);
    }
}

/// Changes to `user`, if there is one and that is possible, and keeps at most `CAP_NET_ADMIN`, permanently.
///
/// A process that is not root, or whose user namespace has no mapping for `user`, keeps its uid.
///
/// # Errors
///
/// The kernel's error; the daemon must not continue with unintended privileges.
pub(crate) fn drop_to(user: Option<&Account>) -> Result<(), PrivilegeError> {
    alone()?;
    forbid_gains()?;
    if let Some(user) = user.filter(|user| can_become(user)) {
        become_user(user)?;
    }
    keep_at_most_one_capability()?;
    hide_memory()
}

/// Changes to `user` as [`drop_to`] does, and drops every capability, permanently.
///
/// # Errors
///
/// The kernel's error.
pub(crate) fn drop_all(user: Option<&Account>) -> Result<(), PrivilegeError> {
    alone()?;
    forbid_gains()?;
    if let Some(user) = user.filter(|user| can_become(user)) {
        become_user(user)?;
    }
    drop_capabilities()?;
    hide_memory()
}

/// Drops every capability of the calling thread, permanently.
///
/// # Errors
///
/// The kernel's error.
pub(crate) fn drop_capabilities() -> Result<(), PrivilegeError> {
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(capability("all capabilities"))?;
    }
    Ok(())
}

fn alone() -> Result<(), PrivilegeError> {
    match fs::read_dir("/proc/self/task").map(Iterator::count) {
        // Without /proc the number of threads is unknown.
        Ok(1) | Err(_) => Ok(()),
        Ok(threads) => Err(PrivilegeError::Threads(threads)),
    }
}

/// Keeps this process's memory out of swap, and the main thread's stack out of core files. Call this before there is a key.
pub(crate) fn protect_memory() {
    lock_memory();
    hide_stack();
}

/// What every thread does first, except for the main one, which alone handles signals. If any thread could, one might take the
/// announcement of a restart and be interrupted before it has handled it, while another handles the stop that follows.
pub(crate) fn begin_thread() {
    hide_stack();
    // This fails for an invalid argument only.
    let _blocked = SigSet::all().thread_block();
}

/// Leaves the calling thread's stack out of core files: ciphers keep copies of a key there while they compute. Keys
/// themselves are in memory that core files never contain.
fn hide_stack() {
    let Some(stack) = stack() else {
        tracing::debug!("where this thread's stack is, is not known");
        return;
    };
    let start = std::ptr::without_provenance_mut(stack.start);
    // SAFETY: the call changes what a core file contains, and nothing else.
    let result = unsafe { libc::madvise(start, stack.len(), libc::MADV_DONTDUMP) };
    // The main thread's stack may still grow, and nothing is mapped where it may grow to.
    if result != 0 && Errno::last() != Errno::ENOMEM {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "a stack is not left out of core files");
    }
}

/// The addresses of the calling thread's stack, in whole pages. A thread that is confined cannot read `/proc`, but the C
/// library knows the stacks of the threads that it has started.
fn stack() -> Option<Range<usize>> {
    let mut attributes = MaybeUninit::uninit();
    let (mut start, mut len) = (null_mut(), 0);
    // SAFETY: the first call fills the attributes if it succeeds, and the others use them only then.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let known = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut len);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        if known != 0 {
            return None;
        }
    }
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??.try_into().ok()?;
    let end = (start.addr() + len).next_multiple_of(page);
    Some(start.addr() - start.addr() % page..end)
}

/// Keeps this process's memory out of swap, which may outlive its keys: all that it has touched and will touch,
/// stacks too. Without the privilege to lift the limit nothing is locked, because a limit that is reached later would
/// make allocations fail.
fn lock_memory() {
    let unlimited = libc::RLIM_INFINITY;
    // Without the privilege, the limit that the service manager has set counts.
    let _refused = setrlimit(Resource::RLIMIT_MEMLOCK, unlimited, unlimited);
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    let everything = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: the call takes flags, and affects no memory contents.
    if limit == unlimited && unsafe { libc::mlockall(everything) } != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "memory is not locked");
    }
}

/// Whether memory is locked, as the kernel shows it.
pub(crate) fn memory_is_locked() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut locked = status.lines().filter_map(|line| line.strip_prefix("VmLck:"));
    locked.next().is_some_and(|size| size.trim() != "0 kB")
}

/// Ensures that a program executed from now on gets no more privileges than this process has.
fn forbid_gains() -> Result<(), PrivilegeError> {
    prctl::set_no_new_privs().map_err(restrict("no_new_privs"))?;
    // Emptying the bounding set needs this capability; without it, the line above is enough.
    if has(Capability::CAP_SETPCAP) {
        caps::clear(None, CapSet::Bounding).map_err(capability("the bounding set"))?;
    }
    Ok(())
}

fn can_become(user: &Account) -> bool {
    let other = Uid::effective().as_raw() != user.uid || Uid::current() != Uid::effective();
    other
        && Uid::effective().is_root()
        && is_mapped("/proc/self/uid_map", user.uid)
        && is_mapped("/proc/self/gid_map", user.gid)
}

/// Whether our user namespace maps `id`. The initial namespace also has a map, which contains all ids.
pub(crate) fn is_mapped(map: &str, id: u32) -> bool {
    fs::read_to_string(map).map_or(true, |map| map.lines().any(|range| contains(range, id)))
}

/// Whether one line of a map (first id inside, first id outside, number of ids) contains `id`.
fn contains(range: &str, id: u32) -> bool {
    let mut numbers = range.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.nth(1)) {
        (Some(Ok(first)), Some(Ok(count))) => (first..first + count).contains(&u64::from(id)),
        _ => false,
    }
}

fn become_user(user: &Account) -> Result<(), PrivilegeError> {
    let refused =
        |what| move |error| PrivilegeError::Become { user: user.name.clone(), what, error };
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // Without this, a change of uid would drop the permitted capabilities. It drops the effective ones in any
    // case.
    prctl::set_keepcaps(true).map_err(restrict("keepcaps"))?;
    setgroups(&[]).map_err(refused("setgroups"))?;
    setresgid(gid, gid, gid).map_err(refused("setresgid"))?;
    setresuid(uid, uid, uid).map_err(refused("setresuid"))?;
    prctl::set_keepcaps(false).map_err(restrict("keepcaps"))
}

fn keep_at_most_one_capability() -> Result<(), PrivilegeError> {
    // The effective set cannot be checked, because the change of uid has emptied it.
    let has = caps::has_cap(None, CapSet::Permitted, KEPT).unwrap_or(false);
    let kept: CapsHashSet = has.then_some(KEPT).into_iter().collect();
    let none = CapsHashSet::new();
    // The ambient set comes first, because it never exceeds the inheritable one. Effective capabilities have to
    // be permitted, so the effective set is reduced before the permitted set, and extended after it.
    caps::clear(None, CapSet::Ambient).map_err(capability("the ambient set"))?;
    caps::set(None, CapSet::Inheritable, &none).map_err(capability("the inheritable set"))?;
    caps::set(None, CapSet::Effective, &none).map_err(capability("the effective set"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(capability("the permitted set"))?;
    caps::set(None, CapSet::Effective, &kept).map_err(capability("the effective set"))
}

/// Prevents core files from containing keys, and other processes of the same user from reading them.
fn hide_memory() -> Result<(), PrivilegeError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(restrict("core files"))?;
    // This comes last, because a change of uid resets it.
    prctl::set_dumpable(false).map_err(restrict("dumpable"))
}

fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

fn restrict(what: &'static str) -> impl Fn(Errno) -> PrivilegeError {
    move |error| PrivilegeError::Restrict { what, error: error.into() }
}

fn capability(what: &'static str) -> impl Fn(CapsError) -> PrivilegeError {
    move |error| PrivilegeError::Restrict { what, error: io::Error::other(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::in_child;
    use nix::sched::{CloneFlags, unshare};

    fn account(uid: u32) -> Account {
        Account { name: "somebody".into(), uid, gid: uid }
    }

    /// A line of `/proc/self/status`.
    fn status(key: &str) -> String {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
    }

    const NONE: &str = "0000000000000000";

    fn assert_dropped() {
        const NET_ADMIN: &str = "0000000000001000";
        assert_eq!(status("CapPrm"), NET_ADMIN);
        assert_eq!(status("CapEff"), NET_ADMIN);
        for set in ["CapInh", "CapAmb", "CapBnd"] {
            assert_eq!(status(set), NONE, "{set}");
        }
        assert_eq!(status("NoNewPrivs"), "1");
        assert!(!prctl::get_dumpable().unwrap());
    }

    /// Enters a user namespace as its root, with a map of one uid.
    fn enter_user_namespace() {
        let uid = Uid::effective();
        unshare(CloneFlags::CLONE_NEWUSER).unwrap();
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    }

    #[test]
    fn root_becomes_the_user_for_good() {
        in_child("privilege::tests::root_becomes_the_user_for_good", &[], || {
            // The tests below need root to change the user.
            if !Uid::effective().is_root() {
                return;
            }
            drop_to(Some(&account(12345))).unwrap();
            assert_eq!(status("Uid"), "12345 12345 12345 12345");
            assert_eq!(status("Gid"), "12345 12345 12345 12345");
            assert_eq!(status("Groups"), "");
            assert_dropped();
            assert_eq!(setresuid(0.into(), 0.into(), 0.into()), Err(Errno::EPERM));
        });
    }

    #[test]
    fn a_namespace_of_one_uid_keeps_it() {
        in_child("privilege::tests::a_namespace_of_one_uid_keeps_it", &[], || {
            enter_user_namespace();
            drop_to(Some(&account(12345))).unwrap();
            assert!(status("Uid").starts_with("0 0 0"));
            assert_dropped();
        });
    }

    #[test]
    fn no_user_keeps_the_uid() {
        in_child("privilege::tests::no_user_keeps_the_uid", &[], || {
            enter_user_namespace();
            drop_to(None).unwrap();
            assert_dropped();
        });
    }

    #[test]
    fn who_has_none_keeps_none() {
        in_child("privilege::tests::who_has_none_keeps_none", &[], || {
            for set in [CapSet::Effective, CapSet::Permitted] {
                caps::clear(None, set).unwrap();
            }
            drop_to(None).unwrap();
            assert_eq!((status("CapPrm"), status("CapEff")), (NONE.into(), NONE.into()));
            assert_eq!(status("NoNewPrivs"), "1");
        });
    }

    #[test]
    fn memory_is_locked_if_the_limit_allows_it() {
        in_child("privilege::tests::memory_is_locked_if_the_limit_allows_it", &[], || {
            lock_memory();
            let locked = memory_is_locked();
            let limit = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap().0;
            assert_eq!(locked, limit == libc::RLIM_INFINITY);
            // A process with a limit locks nothing, and can allocate.
            if locked {
                setrlimit(Resource::RLIMIT_MEMLOCK, 1 << 16, 1 << 16).unwrap();
                for set in [CapSet::Effective, CapSet::Permitted] {
                    caps::clear(None, set).unwrap();
                }
                // SAFETY: the call takes no arguments.
                assert_eq!(unsafe { libc::munlockall() }, 0);
                lock_memory();
                assert!(!memory_is_locked());
                assert_eq!(vec![1_u8; 1 << 22].len(), 1 << 22);
            }
        });
    }

    #[test]
    fn all_goes() {
        in_child("privilege::tests::all_goes", &[], || {
            enter_user_namespace();
            drop_all(None).unwrap();
            for set in ["CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd"] {
                assert_eq!(status(set), NONE, "{set}");
            }
            assert_eq!(status("NoNewPrivs"), "1");
            assert!(!prctl::get_dumpable().unwrap());
        });
    }

    #[test]
    fn all_goes_and_root_too() {
        in_child("privilege::tests::all_goes_and_root_too", &[], || {
            if !Uid::effective().is_root() {
                return;
            }
            drop_all(Some(&account(12345))).unwrap();
            assert_eq!(status("Uid"), "12345 12345 12345 12345");
            assert_eq!(status("Gid"), "12345 12345 12345 12345");
            assert_eq!((status("CapPrm"), status("CapEff")), (NONE.into(), NONE.into()));
        });
    }

    #[test]
    fn a_second_thread_forbids_it() {
        in_child("privilege::tests::a_second_thread_forbids_it", &[], || {
            let (_end, wait) = std::sync::mpsc::channel::<()>();
            let _thread = std::thread::spawn(move || wait.recv());
            assert!(matches!(drop_to(None), Err(PrivilegeError::Threads(2))));
        });
    }

    #[test]
    fn ranges_of_a_user_namespace() {
        assert!(contains("         0          0 4294967295", 65534));
        assert!(contains("0 1000 1", 0));
        assert!(!contains("0 1000 1", 1));
        assert!(contains("100 100000 65536", 65635));
        assert!(!contains("100 100000 65536", 65636));
        assert!(!contains("garbage", 0));
    }
}
