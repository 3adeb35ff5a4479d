//! Network namespaces without names. Each exists only as long as its descriptor or a process in it, so none can
//! be left behind.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use caps::{CapSet, Capability};
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};
use rtnetlink::{LinkUnspec, LinkVeth};
use vpnd_device::{Link, Netlink, Undo};

use super::common::{DemoError, OUTER_A, OUTER_B};

/// The device at site A's end of the wire.
pub(super) const DEVICE_A: &str = "wire-a";
/// The device at site B's end of the wire.
pub(super) const DEVICE_B: &str = "wire-b";

/// The privilege to make namespaces.
#[derive(Clone, Copy, Debug)]
pub(super) enum Privilege {
    /// This process has the capabilities.
    Held,
    /// This process has the capabilities in a user namespace, in which it is root.
    UserNamespace(Uid),
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => write!(f, "as root"),
            Self::UserNamespace(uid) => write!(f, "by uid {uid} in a user namespace"),
        }
    }
}

/// Gets the privilege to make namespaces: enters a user namespace unless the process has the capabilities. Only
/// a single-threaded process can enter one.
///
/// # Errors
///
/// If the kernel forbids both.
pub(super) fn acquire() -> anyhow::Result<Privilege> {
    const NEEDED: [Capability; 3] =
        [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];
    let held = caps::read(None, CapSet::Effective).context("cannot read our capabilities")?;
    if NEEDED.iter().all(|capability| held.contains(capability)) {
        return Ok(Privilege::Held);
    }
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let entered = unshare(CloneFlags::CLONE_NEWUSER).map_err(io::Error::from);
    let entered = entered.and_then(|()| become_root(uid, gid));
    entered.map_err(|error| DemoError::Forbidden { step: "a user namespace", error })?;
    Ok(Privilege::UserNamespace(uid))
}

/// Maps this user to root. A process can map its group only after it has lost the right to change its groups.
fn become_root(uid: Uid, gid: Gid) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Two namespaces, connected by a veth pair.
#[derive(Debug)]
pub(super) struct Wire {
    /// Site A's namespace.
    pub(super) a: Namespace,
    /// Site B's namespace.
    pub(super) b: Namespace,
}

impl Wire {
    /// Makes both namespaces and connects them by a veth pair.
    pub(super) fn lay() -> anyhow::Result<Self> {
        let wire = Self { a: Namespace::new()?, b: Namespace::new()? };
        wire.join().context("cannot join two network namespaces by a veth pair")?;
        Ok(wire)
    }

    fn join(&self) -> anyhow::Result<()> {
        let far = self.b.0.as_raw_fd();
        self.a.enter(|| add_pair(far))??;
        self.a.enter(|| configure(DEVICE_A, IpNet::new(OUTER_A, 24)?))??;
        self.b.enter(|| configure(DEVICE_B, IpNet::new(OUTER_B, 24)?))?
    }
}

/// A network namespace.
#[derive(Clone, Debug)]
pub(super) struct Namespace(Arc<File>);

impl Namespace {
    fn new() -> anyhow::Result<Self> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let made = thread::spawn(make).join();
        let file = made.map_err(|_panic| anyhow!("making a network namespace panicked"))?;
        let file =
            file.map_err(|error| DemoError::Forbidden { step: "a network namespace", error })?;
        Ok(Self(Arc::new(file)))
    }

    /// Runs `work` inside the namespace. An object that it opens belongs to the namespace, wherever it is used.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be entered.
    pub(super) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let inside = || setns(&*self.0, CloneFlags::CLONE_NEWNET).map(|()| work());
        let joined = thread::scope(|scope| scope.spawn(inside).join());
        let entered = joined.map_err(|_panic| anyhow!("work in a network namespace panicked"))?;
        entered.context("cannot enter a network namespace")
    }

    /// A command that runs a program inside the namespace. The program is killed when the thread that started
    /// it ends.
    pub(super) fn command(&self, program: &Path) -> Command {
        let namespace = Arc::clone(&self.0);
        let enter = move || {
            set_pdeathsig(Signal::SIGKILL)?;
            Ok(setns(&*namespace, CloneFlags::CLONE_NEWNET)?)
        };
        let mut command = Command::new(program);
        // SAFETY: the closure makes two system calls and uses only its descriptor: it allocates no memory and
        // takes no lock between fork and exec.
        unsafe { command.pre_exec(enter) };
        command
    }
}

fn add_pair(far: i32) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        handle.link().add(LinkVeth::new(DEVICE_A, DEVICE_B).build()).execute().await?;
        let away = LinkUnspec::new_with_name(DEVICE_B).setns_by_fd(far).build();
        Ok(handle.link().set(away).execute().await?)
    })
}

fn configure(device: &str, address: IpNet) -> anyhow::Result<()> {
    let link = Link { name: device.to_owned(), addresses: vec![address], ..Link::default() };
    runtime()?.block_on(async {
        // The device vanishes with its namespace, so nothing has to be reverted.
        let _undo = Netlink::connect()?.configure(&link, Undo::default()).await?;
        Ok(())
    })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
