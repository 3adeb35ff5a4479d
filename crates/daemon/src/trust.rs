//! Checks whether a path is under the control of root and this user only: no other user can change the file, or
//! replace it.
//!
//! The path is followed from the root, one component after the other, and each directory is checked before
//! anything is looked up in it. So no other user can change where the checked part leads, and the resulting
//! real path refers to the same file until root or this user changes it.

mod acl;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{self, Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{self, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};
use thiserror::Error;

use crate::privilege::is_mapped;
use acl::Acl;

/// The number of symbolic links that the kernel follows in one path.
const MAX_LINKS: usize = 40;
const STICKY: u32 = 0o1000;

/// Why a path is not trusted.
#[derive(Debug, Error)]
pub(crate) enum Untrusted {
    /// The path does not exist, or this process may not access it.
    #[error("{}: {error}", path.display())]
    Unreachable { path: PathBuf, error: io::Error },
    /// The owner of a file or a directory can always write to it.
    #[error("{} belongs to uid {uid}", path.display())]
    Owner { path: PathBuf, uid: u32 },
    /// The permissions let other users write.
    #[error("{} can be written to by {who}", path.display())]
    Writable { path: PathBuf, who: Who },
}

/// The other users who may write to a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    User(u32),
    Group(u32),
    Everybody,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "uid {uid}"),
            Self::Group(gid) => write!(f, "group {gid}"),
            Self::Everybody => f.write_str("everybody"),
        }
    }
}

/// The real path of a file that no other user can change or replace.
///
/// # Errors
///
/// The first component that is missing, or under the control of another user.
pub(crate) fn file(path: &Path) -> Result<PathBuf, Untrusted> {
    let us = Us::now();
    let (real, found) = us.walk(path)?;
    us.check_file(&real, &found)?;
    Ok(real)
}

/// The real path of a directory in which no other user can replace our files.
///
/// # Errors
///
/// Like [`file()`].
pub(crate) fn directory(path: &Path) -> Result<PathBuf, Untrusted> {
    let us = Us::now();
    let (real, found) = us.walk(path)?;
    us.check_directory(&real, &found)?;
    Ok(real)
}

/// The real path of a file that no other user can replace, although others may write to it.
///
/// # Errors
///
/// Like [`file()`].
pub(crate) fn place(path: &Path) -> Result<PathBuf, Untrusted> {
    Us::now().walk(path).map(|(real, _)| real)
}

/// Like [`place`], but `users` may also replace the file.
///
/// # Errors
///
/// Like [`file()`].
pub(crate) fn place_among(path: &Path, users: &[u32]) -> Result<PathBuf, Untrusted> {
    Us { users: users.to_vec(), ..Us::now() }.walk(path).map(|(real, _)| real)
}

/// Checks that no other user can replace the file at this path. If the file does not exist yet, checks the
/// existing part of the path.
///
/// # Errors
///
/// Like [`file()`].
pub(crate) fn future_place(path: &Path) -> Result<PathBuf, Untrusted> {
    Us { missing: Missing::Accepted, ..Us::now() }.walk(path).map(|(real, _)| real)
}

/// Like [`directory()`], but the directory need not exist yet, and may belong to one of `users`.
///
/// # Errors
///
/// Like [`file()`].
pub(crate) fn future_directory(path: &Path, users: &[u32]) -> Result<PathBuf, Untrusted> {
    let us = Us { missing: Missing::Accepted, ..Us::now() };
    let (real, found) = us.walk(path)?;
    Us { users: users.to_vec(), ..us }.check_directory(&real, &found)?;
    Ok(real)
}

/// Makes a directory and its missing parents, in places that no other user can replace; returns its real path.
///
/// # Errors
///
/// Like [`file()`], or if a directory cannot be made.
pub(crate) fn make_directory(path: &Path) -> Result<PathBuf, Untrusted> {
    Us { missing: Missing::Made, ..Us::now() }.walk(path).map(|(real, _)| real)
}

/// Opens a file that no other user can replace, by its real path, and checks the opened file.
///
/// # Errors
///
/// Like [`file()`].
pub(crate) fn open(path: &Path, flags: OFlag) -> Result<(PathBuf, File), Untrusted> {
    let real = place(path)?;
    let opened = open_no_link(&real, flags).and_then(|file| Ok((file.metadata()?, file)));
    let (found, file) = opened.map_err(unreachable(&real))?;
    Us::now().check_file(&real, &found)?;
    Ok((real, file))
}

/// Opens a file for reading, or as a mere path. Does not wait for a pipe's other end, and does not follow a link in the last
/// component: that is an error, or with O_PATH the link itself.
pub(crate) fn open_no_link(path: &Path, flags: OFlag) -> io::Result<File> {
    // Not with `OpenOptions`: for musl, where O_PATH is a bit of O_ACCMODE, it drops O_PATH.
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    loop {
        match fcntl::open(path, flags, Mode::empty()) {
            Err(Errno::EINTR) => {}
            opened => return Ok(opened?.into()),
        }
    }
}

/// The trusted users and groups: root's and this process's.
struct Us {
    uid: u32,
    gid: u32,
    /// Other users who are trusted for this check.
    users: Vec<u32>,
    /// In a user namespace, the owner that stands for every unmapped user. It owns the system's `/` and `/usr`,
    /// from which all programs come anyway.
    unmapped: Option<u32>,
    missing: Missing,
}

/// What to do if a component of a path is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Refused,
    /// Accept this: the path ends before the component.
    Accepted,
    /// Make the component, as a directory.
    Made,
}

impl Us {
    fn now() -> Self {
        let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid");
        let overflow = overflow.ok().and_then(|text| text.trim().parse().ok());
        Self {
            uid: Uid::effective().as_raw(),
            gid: Gid::effective().as_raw(),
            users: Vec::new(),
            unmapped: overflow.filter(|uid| !is_mapped("/proc/self/uid_map", *uid)),
            missing: Missing::Refused,
        }
    }

    fn is_foreign(&self, uid: u32) -> bool {
        let known = uid == 0 || uid == self.uid || Some(uid) == self.unmapped;
        !known && !self.users.contains(&uid)
    }

    /// Follows the path; returns the real path, and the metadata of its file.
    fn walk(&self, path: &Path) -> Result<(PathBuf, Metadata), Untrusted> {
        let whole = path::absolute(path).map_err(unreachable(path))?;
        let (mut here, mut links) = (PathBuf::from("/"), 0);
        let mut found = look(&here)?;
        let mut rest: VecDeque<OsString> = components(&whole);
        while let Some(name) = rest.pop_front() {
            self.check_directory(&here, &found)?;
            if name == ".." {
                here.pop();
                found = look(&here)?;
                continue;
            }
            let next = here.join(&name);
            let Some(there) = self.look_at(&next)? else { break };
            self.check_entry(&found, &next, &there)?;
            if !there.is_symlink() {
                (here, found) = (next, there);
                continue;
            }
            links += 1;
            let target = fs::read_link(&next).map_err(unreachable(&next))?;
            if rest.is_empty() && is_namespace(&next, &target) {
                return Ok((next, there));
            }
            if links > MAX_LINKS {
                return Err(unreachable(path)(Errno::ELOOP.into()));
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
                found = look(&here)?;
            }
            let target = components(&target);
            target.into_iter().rev().for_each(|component| rest.push_front(component));
        }
        Ok((here, found))
    }

    /// The metadata of the file; `None` if the file is missing and that is accepted.
    fn look_at(&self, path: &Path) -> Result<Option<Metadata>, Untrusted> {
        let missing = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            found => return found.map(Some).map_err(unreachable(path)),
        };
        match self.missing {
            Missing::Refused => Err(unreachable(path)(missing)),
            Missing::Accepted => Ok(None),
            Missing::Made => {
                match DirBuilder::new().mode(0o755).create(path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(unreachable(path)(error));
                    }
                    _ => {}
                }
                look(path).map(Some)
            }
        }
    }

    /// Checks a directory. If others may create entries in it, it is trusted only if it is sticky, as /tmp is.
    fn check_directory(&self, path: &Path, found: &Metadata) -> Result<(), Untrusted> {
        self.check_owner(path, found)?;
        match self.writer(path, found, |group| self.is_trusted(group, path))? {
            Some(who) if found.mode() & STICKY == 0 => {
                Err(Untrusted::Writable { path: path.to_owned(), who })
            }
            _ => Ok(()),
        }
    }

    /// Checks the owner of an entry in a sticky directory: nobody can remove entries of others there, but
    /// anybody may have created one.
    fn check_entry(
        &self,
        directory: &Metadata,
        path: &Path,
        found: &Metadata,
    ) -> Result<(), Untrusted> {
        if directory.mode() & STICKY != 0 { self.check_owner(path, found) } else { Ok(()) }
    }

    /// Checks a file. No group may write to it, because the members of a group are unknown.
    fn check_file(&self, path: &Path, found: &Metadata) -> Result<(), Untrusted> {
        self.check_owner(path, found)?;
        match self.writer(path, found, |_group| false)? {
            Some(who) => Err(Untrusted::Writable { path: path.to_owned(), who }),
            None => Ok(()),
        }
    }

    fn check_owner(&self, path: &Path, found: &Metadata) -> Result<(), Untrusted> {
        let uid = found.uid();
        if self.is_foreign(uid) {
            return Err(Untrusted::Owner { path: path.to_owned(), uid });
        }
        Ok(())
    }

    /// Whether the members of a group may write to directories: of root's group, ours, and Debian's `staff`, to
    /// which the system gives /usr/local.
    fn is_trusted(&self, group: u32, directory: &Path) -> bool {
        group == 0 || group == self.gid || directory.starts_with("/usr/local")
    }

    /// A user or group other than the owner that may write, according to the mode or a POSIX ACL.
    fn writer(
        &self,
        path: &Path,
        found: &Metadata,
        is_trusted: impl Fn(u32) -> bool,
    ) -> Result<Option<Who>, Untrusted> {
        let acl = Acl::of(path).map_err(unreachable(path))?;
        let acl = acl.unwrap_or_else(|| Acl::from_mode(found.mode()));
        Ok(acl.writers(found.gid()).find(|who| match *who {
            Who::User(uid) => self.is_foreign(uid),
            Who::Group(gid) => !is_trusted(gid),
            Who::Everybody => true,
        }))
    }
}

/// The components of a path, without the root and `.`, which have no effect.
fn components(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

/// Whether a link is the kernel's own link to a network namespace, `net:[4026531840]`, whose target is not a
/// path.
fn is_namespace(link: &Path, target: &Path) -> bool {
    let target = target.to_str().unwrap_or_default();
    link.starts_with("/proc") && target.starts_with("net:[")
}

fn look(path: &Path) -> Result<Metadata, Untrusted> {
    fs::symlink_metadata(path).map_err(unreachable(path))
}

fn unreachable(path: &Path) -> impl Fn(io::Error) -> Untrusted {
    move |error| Untrusted::Unreachable { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests;
