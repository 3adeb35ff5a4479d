//! Network namespaces: the device may be in one, the socket in another. An object that is opened in a namespace
//! stays there, even after the process has left it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use thiserror::Error;

use crate::trust::{self, Untrusted};

/// The directory of the namespaces that `ip netns add` makes.
const NAMED: &str = "/run/netns";
/// The namespace of the calling thread.
const OURS: &str = "/proc/thread-self/ns/net";

/// Why a namespace cannot be used.
#[derive(Debug, Error)]
pub(crate) enum NetnsError {
    /// There is no such namespace.
    #[error(
        "cannot open network namespace {}: {error}; `ip netns add` makes one, before vpnd starts",
        path.display()
    )]
    Open { path: PathBuf, error: io::Error },
    /// Other users could replace the namespace.
    #[error("others could replace network namespace {}: {why}", path.display())]
    Place { path: PathBuf, why: Untrusted },
    /// A privilege is missing.
    #[error(
        "cannot enter network namespace {}: CAP_SYS_ADMIN is missing; start vpnd as root, or give \
         vpnd@.service that capability (docs/operations.md, Network namespaces)", path.display()
    )]
    Privilege { path: PathBuf },
    /// The kernel refused.
    #[error("cannot enter network namespace {}: {error}", path.display())]
    Enter { path: PathBuf, error: Errno },
    /// The original namespace cannot be entered again, so vpnd cannot continue.
    #[error("cannot return to the network namespace vpnd was started in: {0}")]
    Return(Errno),
}

impl NetnsError {
    /// Whether a missing privilege is the reason.
    pub(crate) const fn is_permission(&self) -> bool {
        matches!(self, Self::Privilege { .. })
    }
}

/// The path of the namespace with this name. An absolute path is returned unchanged.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// A network namespace in which objects are opened: our own, or another one.
pub(crate) struct Netns(Option<Other>);

struct Other {
    path: PathBuf,
    there: File,
    ours: File,
}

impl Netns {
    /// The namespace with this name or path; without a name, our own.
    ///
    /// # Errors
    ///
    /// If the namespace does not exist.
    pub(crate) fn open(name: Option<&str>) -> Result<Self, NetnsError> {
        let Some(name) = name else { return Ok(Self(None)) };
        let open = |path: &Path| {
            File::open(path).map_err(|error| NetnsError::Open { path: path.to_owned(), error })
        };
        let path = path(name);
        let real = trust::place(&path).map_err(|why| match why {
            Untrusted::Unreachable { error, .. } => NetnsError::Open { path: path.clone(), error },
            why => NetnsError::Place { path: path.clone(), why },
        })?;
        let (there, ours) = (open(&real)?, open(Path::new(OURS))?);
        Ok(Self(Some(Other { path, there, ours })))
    }

    /// Whether both are the same namespace, even under different names.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let id = |netns: &Self| {
            let found = match &netns.0 {
                Some(Other { there, .. }) => there.metadata(),
                None => std::fs::metadata(OURS),
            };
            found.map(|found| (found.dev(), found.ino())).ok()
        };
        id(self) == id(other)
    }

    /// Runs `work` inside the namespace, and returns to the original one.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be entered or left.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        self.enter()?;
        let done = work();
        if let Some(Other { ours, .. }) = &self.0 {
            setns(ours, CloneFlags::CLONE_NEWNET).map_err(NetnsError::Return)?;
        }
        Ok(done)
    }

    /// Enters the namespace permanently, with this thread and the threads that it will start.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be entered.
    pub(crate) fn enter(&self) -> Result<(), NetnsError> {
        let Some(Other { path, there, .. }) = &self.0 else { return Ok(()) };
        let path = || path.clone();
        setns(there, CloneFlags::CLONE_NEWNET).map_err(|error| match error {
            Errno::EPERM => NetnsError::Privilege { path: path() },
            error => NetnsError::Enter { path: path(), error },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::unshare;
    use nix::unistd::Uid;
    use std::sync::mpsc;
    use std::{fs, thread};

    fn current() -> PathBuf {
        fs::read_link(OURS).unwrap()
    }

    /// Makes a namespace that exists as long as the thread that made it.
    fn another() -> (PathBuf, mpsc::Sender<()>) {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let thread = fs::read_link("/proc/thread-self").unwrap();
            tell.send(Path::new("/proc").join(thread).join("ns/net")).unwrap();
            ended.recv()
        });
        (told.recv().unwrap(), end)
    }

    #[test]
    fn there_and_back() {
        // Only root can enter a namespace.
        if !Uid::effective().is_root() {
            return;
        }
        let begin = current();
        let (path, _end) = another();
        let netns = Netns::open(path.to_str()).unwrap();
        let inside = netns.within(current).unwrap();
        assert_eq!(inside, fs::read_link(&path).unwrap());
        assert_ne!(inside, begin);
        assert_eq!(current(), begin);
        assert_eq!(Netns::open(None).unwrap().within(current).unwrap(), begin);
        let ours = Netns::open(None).unwrap();
        assert!(ours.is(&Netns::open(Some(OURS)).unwrap()) && !ours.is(&netns));
        thread::spawn(move || {
            netns.enter().unwrap();
            assert_eq!(current(), inside);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn one_that_somebody_else_could_replace_is_not_entered() {
        use std::os::unix::fs::{chown, symlink};
        if !Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("inside");
        symlink(OURS, &link).unwrap();
        let open = || Netns::open(link.to_str()).map(drop).map_err(|error| error.to_string());
        assert_eq!(open(), Ok(()));
        chown(directory.path(), Some(54399), None).unwrap();
        let error = open().unwrap_err();
        assert!(error.contains("others could replace") && error.contains("54399"), "{error}");
    }

    #[test]
    fn what_is_no_namespace_is_named() {
        let said = |name| match Netns::open(Some(name)).and_then(|netns| netns.enter()) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        let missing = said("not-there");
        assert!(missing.contains("/run/netns/not-there: No such file"), "{missing}");
        let file = said("/dev/null");
        assert!(file.starts_with("cannot enter network namespace /dev/null"), "{file}");
    }
}
