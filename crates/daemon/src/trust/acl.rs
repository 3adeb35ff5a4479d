//! POSIX access control lists. A file's mode does not show them: if there is a list, the group bits of the mode
//! are the list's mask.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Who;

const NAME: &std::ffi::CStr = c"system.posix_acl_access";
/// The kernel's limit for the length of a list (`XATTR_SIZE_MAX`).
const MAX_LEN: usize = 64 << 10;
/// `POSIX_ACL_XATTR_VERSION`, which precedes the entries.
const VERSION: [u8; 4] = 2_u32.to_le_bytes();
const WRITE: u16 = 2;

/// `ACL_USER_OBJ` and similar constants (`linux/posix_acl.h`).
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The permissions of all users and groups except for the owner.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

impl Acl {
    /// The list of a file, if it has one. A link is not followed.
    ///
    /// # Errors
    ///
    /// If the list cannot be read, or has an unknown format.
    pub(super) fn of(path: &Path) -> io::Result<Option<Self>> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut value = vec![0; MAX_LEN];
        // SAFETY: both strings end with a zero, and the kernel writes no more bytes than the buffer has.
        let len = unsafe {
            libc::lgetxattr(path.as_ptr(), NAME.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        match usize::try_from(len) {
            Ok(len) => Self::read(&value[..len]).map(Some).ok_or_else(unknown),
            Err(_negative) => match io::Error::last_os_error() {
                error if is_none(&error) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// The list that corresponds to a mode.
    pub(super) fn from_mode(mode: u32) -> Self {
        let writes = |bit: u32| if mode & bit != 0 { WRITE } else { 0 };
        let entry = |tag, permissions| Entry { tag, permissions, id: u32::MAX };
        Self(vec![entry(GROUP_OBJ, writes(0o020)), entry(OTHER, writes(0o002))])
    }

    fn read(value: &[u8]) -> Option<Self> {
        let (entries, []) = value.strip_prefix(&VERSION)?.as_chunks::<8>() else { return None };
        let entry = |[t0, t1, p0, p1, i0, i1, i2, i3]: [u8; 8]| Entry {
            tag: u16::from_le_bytes([t0, t1]),
            permissions: u16::from_le_bytes([p0, p1]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
        };
        Some(Self(entries.iter().copied().map(entry).collect()))
    }

    /// All users and groups that may write, except for the owner; `group` is the file's group.
    pub(super) fn writers(&self, group: u32) -> impl Iterator<Item = Who> {
        let mask = self.0.iter().find(|entry| entry.tag == MASK);
        let mask = mask.map_or(u16::MAX, |mask| mask.permissions);
        self.0.iter().filter_map(move |entry| {
            let (who, effective) = match entry.tag {
                USER => (Who::User(entry.id), entry.permissions & mask),
                GROUP_OBJ => (Who::Group(group), entry.permissions & mask),
                GROUP => (Who::Group(entry.id), entry.permissions & mask),
                OTHER => (Who::Everybody, entry.permissions),
                _ => return None,
            };
            (effective & WRITE != 0).then_some(who)
        })
    }
}

/// Whether the file has no list, or its file system does not support lists.
fn is_none(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ENOSYS))
}

fn unknown() -> io::Error {
    io::Error::other("its access control list has an unknown format")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries = entries.iter().flat_map(|(tag, permissions, id)| {
            let words = [tag.to_le_bytes(), permissions.to_le_bytes()].concat();
            [words, id.to_le_bytes().to_vec()].concat()
        });
        VERSION.into_iter().chain(entries).collect()
    }

    fn writers(entries: &[(u16, u16, u32)]) -> Vec<Who> {
        Acl::read(&list(entries)).unwrap().writers(7).collect()
    }

    #[test]
    fn the_mask_bounds_all_but_the_owner_and_everybody_else() {
        let of = |mask| writers(&[(1, 7, 0), (USER, 7, 1000), (GROUP_OBJ, 5, 0), (MASK, mask, 0)]);
        assert_eq!(of(7), [Who::User(1000)]);
        assert_eq!(of(5), []);
        assert_eq!(writers(&[(GROUP, 2, 50), (OTHER, 0, 0)]), [Who::Group(50)]);
        assert_eq!(writers(&[(GROUP_OBJ, 6, 0), (OTHER, 2, 0)]), [Who::Group(7), Who::Everybody]);
    }

    #[test]
    fn a_mode_says_the_same_in_short() {
        let writers = |mode| Acl::from_mode(mode).writers(7).collect::<Vec<_>>();
        assert_eq!(writers(0o100_755), []);
        assert_eq!(writers(0o775), [Who::Group(7)]);
        assert_eq!(writers(0o757), [Who::Everybody]);
    }

    #[test]
    fn another_shape_is_no_list() {
        assert_eq!(Acl::read(&[]), None);
        assert_eq!(Acl::read(&[3, 0, 0, 0]), None);
        assert_eq!(Acl::read(&list(&[(USER, 7, 1)])[..11]), None);
    }
}
