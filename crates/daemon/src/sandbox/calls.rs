//! seccomp: a thread can make only the system calls on its list. Another call fails with `EPERM`, or ends the
//! process, as configured. Some calls fail quietly in either case, because libraries make them, and go on
//! without.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, Error, SeccompAction as Action, SeccompCmpArgLen as Width, SeccompCmpOp as Compare,
    SeccompCondition as Condition, SeccompFilter, SeccompRule as Rule, TargetArch,
};

use super::Role;
use crate::config::Confinement;

/// Moves packets: the device, the socket, the wake-up of other threads.
const PACKETS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// What the allocator, locks, clocks and the end of a thread need, in glibc and in musl.
const THREAD: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
];

/// What starts a thread, and confines it further.
const START: &[c_long] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clone3,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    // More memory for keys.
    libc::SYS_mlock,
    libc::SYS_rseq,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_getpriority,
];

/// Opens and reads files, and asks for their owners.
const FILES: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statfs,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
];

/// Changes files: the timestamp's high-water mark, the journal of changes, the control socket.
const CHANGES: &[c_long] = &[
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_mkdirat,
    libc::SYS_pwrite64,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Uses sockets: netlink, the control socket, the service manager, name servers.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Waits for events.
const EVENTS: &[c_long] = &[
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_memfd_create,
    libc::SYS_socketpair,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// Ends the processes beside the daemon, and asks about this process.
const PROCESSES: &[c_long] =
    &[libc::SYS_getppid, libc::SYS_sysinfo, libc::SYS_uname, libc::SYS_wait4, libc::SYS_waitid];

/// The families of the sockets that the daemon and the C library's name service use.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// The calls on the list of `role`, without those that depend on an argument.
fn plain(role: Role) -> impl Iterator<Item = c_long> {
    let lists: &[&[c_long]] = match role {
        Role::Data => &[PACKETS, THREAD],
        Role::Disk => &[PACKETS, THREAD, FILES, CHANGES],
        Role::Lookups => &[PACKETS, THREAD, START, FILES, SOCKETS, EVENTS, PROCESSES],
        Role::Main => &[PACKETS, THREAD, START, FILES, CHANGES, SOCKETS, EVENTS, PROCESSES],
    };
    lists.iter().flat_map(|list| list.iter().copied())
}

/// The calls that fail in both modes, and their error. The library that makes such a call goes on without it.
fn quiet(role: Role) -> &'static [(c_long, i32)] {
    match role {
        // The allocator of glibc reads a setting of the kernel before it gives memory back. A panic looks for
        // symbols.
        Role::Data => &[
            (libc::SYS_openat, libc::EACCES),
            (libc::SYS_readlinkat, libc::EACCES),
            // As musl calls them.
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_open, libc::EACCES),
            #[cfg(target_arch = "x86_64")]
            (libc::SYS_readlink, libc::EACCES),
        ],
        Role::Disk => &[],
        // With this error the C library starts threads by `clone`, whose arguments a filter can read.
        Role::Main | Role::Lookups => &[(libc::SYS_clone3, libc::ENOSYS)],
    }
}

/// The calls that are allowed with certain arguments.
fn with_arguments(role: Role) -> Result<Vec<(c_long, Vec<Rule>)>, Error> {
    let mut code = not_executable()?;
    if role == Role::Lookups {
        // The C library loads the modules of its name service when it first needs them.
        code.clear();
    }
    let process = u64::from(std::process::id());
    let mut rules = vec![
        (libc::SYS_mmap, code.clone()),
        (libc::SYS_mprotect, code),
        (libc::SYS_prctl, prctl_options()?),
        // A thread that panics twice ends its own process.
        (libc::SYS_tgkill, one(0, Width::Dword, Compare::Eq, process)?),
    ];
    if matches!(role, Role::Main | Role::Lookups) {
        rules.push((
            libc::SYS_clone,
            one(0, Width::Qword, Compare::MaskedEq(STARTED), THREAD_ONLY)?,
        ));
        rules.push((libc::SYS_socket, any(0, FAMILIES)?));
        rules.push((libc::SYS_prlimit64, one(0, Width::Dword, Compare::Eq, 0)?));
        rules.push((libc::SYS_ioctl, no_terminal()?));
    }
    Ok(rules)
}

/// `clone` starts a thread of this process …
const THREAD_ONLY: u64 = libc::CLONE_THREAD as u64;
/// … which is in the same namespaces.
const STARTED: u64 = THREAD_ONLY
    | (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u64;

/// The requests that write into a terminal's input (`asm-generic/ioctls.h`).
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// Nothing is typed into the terminal that vpnd was started from.
fn no_terminal() -> Result<Vec<Rule>, Error> {
    let other = |request: u64| Condition::new(1, Width::Dword, Compare::Ne, request);
    let conditions = [other(TIOCSTI), other(TIOCLINUX)];
    let conditions: Result<Vec<_>, _> = conditions.into_iter().collect();
    let rule = conditions.and_then(Rule::new).map_err(Error::Backend)?;
    Ok(vec![rule])
}

/// Memory never becomes code.
fn not_executable() -> Result<Vec<Rule>, Error> {
    one(2, Width::Dword, Compare::MaskedEq(libc::PROT_EXEC as u64), 0)
}

/// A thread names itself and its memory, and gives up rights.
fn prctl_options() -> Result<Vec<Rule>, Error> {
    any(
        0,
        [
            libc::PR_SET_NAME,
            libc::PR_SET_VMA,
            libc::PR_SET_NO_NEW_PRIVS,
            libc::PR_GET_DUMPABLE,
            libc::PR_CAP_AMBIENT,
        ],
    )
}

fn any<const N: usize>(argument: u8, values: [i32; N]) -> Result<Vec<Rule>, Error> {
    let rule = |value: i32| one(argument, Width::Dword, Compare::Eq, value.unsigned_abs().into());
    values.into_iter().map(rule).collect::<Result<Vec<_>, _>>().map(|rules| rules.concat())
}

fn one(argument: u8, width: Width, compare: Compare, value: u64) -> Result<Vec<Rule>, Error> {
    let condition = Condition::new(argument, width, compare, value).map_err(Error::Backend)?;
    Ok(vec![Rule::new(vec![condition]).map_err(Error::Backend)?])
}

/// Confines the calling thread. Returns whether there is a list for this processor.
///
/// # Errors
///
/// If the kernel refuses the filter.
pub(super) fn confine(role: Role, confinement: Confinement) -> Result<bool, Error> {
    let Ok(processor) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(false) };
    let other = match (confinement, role) {
        (Confinement::Off, _) => return Ok(false),
        // Modules of the name service are programs of others, which may try any call and go on without it.
        (Confinement::Errno, _) | (_, Role::Lookups) => Action::Errno(libc::EPERM.unsigned_abs()),
        (Confinement::Kill, _) => Action::KillProcess,
    };
    // Of two filters the stricter one decides. This one comes first, because it allows the call that sets the other.
    for (call, error) in quiet(role) {
        let fails = Action::Errno(error.unsigned_abs());
        let filter = [(*call, Vec::new())].into();
        set(SeccompFilter::new(filter, Action::Allow, fails, processor))?;
    }
    let mut listed: BTreeMap<_, _> = plain(role).map(|call| (call, Vec::new())).collect();
    listed.extend(quiet(role).iter().map(|(call, _)| (*call, Vec::new())));
    listed.extend(with_arguments(role)?);
    set(SeccompFilter::new(listed, other, Action::Allow, processor))?;
    Ok(true)
}

fn set(filter: Result<SeccompFilter, seccompiler::BackendError>) -> Result<(), Error> {
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(Error::Backend)?;
    seccompiler::apply_filter(&program)
}
