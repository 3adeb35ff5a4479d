//! Tests which other users could change a file, with directories of different owners and modes. Root is trusted
//! as an owner, and only root can change owners, so some tests need root.

use super::*;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use tempfile::TempDir;

/// Makes `a/b/file` in a directory of ours.
fn tree() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("a/b")).unwrap();
    let path = directory.path().join("a/b/file");
    fs::write(&path, "").unwrap();
    (directory, path)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn said(path: &Path) -> String {
    file(path).unwrap_err().to_string()
}

/// Adds an access control list with permissions for one user; `None` if the file system has no lists.
pub(crate) fn let_user(path: &Path, uid: u32, permissions: u16) -> Option<()> {
    let nobody = u32::MAX;
    let entries =
        [(1, 7, nobody), (2, permissions, uid), (4, 5, nobody), (16, 7, nobody), (32, 5, nobody)];
    let entries = entries.into_iter().flat_map(|(tag, permissions, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    let value: Vec<u8> = 2_u32.to_le_bytes().into_iter().chain(entries).collect();
    let path = std::ffi::CString::new(path.to_str()?).ok()?;
    let name = c"system.posix_acl_access";
    // SAFETY: both strings end with a zero, and the length is that of the value.
    let set = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    (set == 0).then_some(())
}

#[test]
fn what_is_ours_is_trusted_by_every_name() {
    let (directory, path) = tree();
    let real = path.canonicalize().unwrap();
    assert_eq!(file(&path).unwrap(), real);
    assert_eq!(file(&directory.path().join("a/../a/./b/file")).unwrap(), real);
    symlink("a/b", directory.path().join("link")).unwrap();
    assert_eq!(file(&directory.path().join("link/file")).unwrap(), real);
    symlink(&path, directory.path().join("absolute")).unwrap();
    assert_eq!(file(&directory.path().join("absolute")).unwrap(), real);
    assert_eq!(
        super::directory(directory.path()).unwrap(),
        directory.path().canonicalize().unwrap()
    );
}

#[test]
fn every_directory_on_the_way_counts() {
    let (directory, path) = tree();
    let a = directory.path().join("a");
    for (mode, who) in [(0o757, Some("everybody")), (0o777, Some("everybody")), (0o1777, None)] {
        set_mode(&a, mode);
        let error = file(&path).err().map(|error| error.to_string());
        let expected = who.map(|who| format!("{} can be written to by {who}", a.display()));
        assert_eq!(error, expected, "{mode:o}");
    }
    set_mode(&path, 0o664);
    assert!(said(&path).starts_with(&path.display().to_string()), "the file itself");
}

#[test]
fn a_link_is_as_good_as_its_own_directory() {
    let (directory, path) = tree();
    let open = directory.path().join("open");
    fs::create_dir(&open).unwrap();
    symlink(&path, open.join("link")).unwrap();
    assert!(file(&open.join("link")).is_ok());
    set_mode(&open, 0o777);
    assert!(said(&open.join("link")).starts_with(&open.display().to_string()));
}

#[test]
fn links_in_a_circle_end() {
    let (directory, _path) = tree();
    symlink("two", directory.path().join("one")).unwrap();
    symlink("one", directory.path().join("two")).unwrap();
    assert!(said(&directory.path().join("one")).contains("oo many levels of symbolic links"));
    assert!(matches!(file(&directory.path().join("none")), Err(Untrusted::Unreachable { .. })));
}

#[test]
fn an_access_control_list_is_seen() {
    let (directory, path) = tree();
    let a = directory.path().join("a");
    // Not every file system supports lists.
    if let_user(&a, 12345, 5).is_none() {
        return;
    }
    assert_eq!(a.metadata().unwrap().mode() & 0o777, 0o775);
    assert!(file(&path).is_ok(), "to read is not to write");
    let_user(&a, 12345, 7).unwrap();
    assert_eq!(said(&path), format!("{} can be written to by uid 12345", a.display()));
    let_user(&a, 0, 7).unwrap();
    let_user(&path, 12345, 6).unwrap();
    assert_eq!(said(&path), format!("{} can be written to by uid 12345", path.display()));
}

#[test]
fn what_others_own_is_theirs() {
    // Only root can give anything away.
    if !Uid::effective().is_root() {
        return;
    }
    let (directory, path) = tree();
    let a = directory.path().join("a");
    let other = Some(12345);
    chown(&a, other, None).unwrap();
    assert_eq!(said(&path), format!("{} belongs to uid 12345", a.display()));
    chown(&a, Some(0), other).unwrap();
    assert!(file(&path).is_ok(), "a group that may not write is none of our business");
    set_mode(&a, 0o775);
    assert_eq!(said(&path), format!("{} can be written to by group 12345", a.display()));
    set_mode(&a, 0o1777);
    assert!(file(&path).is_ok(), "sticky: {}", said(&path));
    chown(a.join("b"), other, None).unwrap();
    assert!(said(&path).ends_with("a/b belongs to uid 12345"));
}

#[test]
fn a_link_of_somebody_elses_in_a_sticky_directory_leads_where_they_say() {
    if !Uid::effective().is_root() {
        return;
    }
    let (directory, path) = tree();
    set_mode(directory.path(), 0o1777);
    let link = directory.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(file(&link).is_ok());
    std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
    assert_eq!(said(&link), format!("{} belongs to uid 12345", link.display()));
}

#[test]
fn debians_staff_may_write_below_usr_local() {
    let us = Us { uid: 1000, gid: 1000, users: vec![], unmapped: None, missing: Missing::Refused };
    let trusted = |group, path| us.is_trusted(group, Path::new(path));
    assert!(trusted(50, "/usr/local/bin") && !trusted(50, "/usr/bin"));
    assert!(trusted(0, "/etc") && trusted(1000, "/home/x") && !trusted(100, "/home/x"));
}

#[test]
fn in_a_user_namespace_the_system_belongs_to_nobody_that_is_known() {
    let us = |unmapped| Us { uid: 0, gid: 0, users: vec![], unmapped, missing: Missing::Refused };
    assert!(us(None).is_foreign(65534) && !us(Some(65534)).is_foreign(65534));
    assert!(us(Some(65534)).is_foreign(1000));
}

#[test]
fn what_is_not_there_yet_is_as_good_as_the_directory_that_is() {
    let (directory, _path) = tree();
    let a = directory.path().join("a");
    let new = a.join("new/../deep/state");
    assert_eq!(future_place(&new).unwrap(), a.canonicalize().unwrap());
    assert!(future_directory(&a.join("deep"), &[]).is_ok() && !a.join("deep").exists());
    set_mode(&a, 0o777);
    assert!(future_place(&new).unwrap_err().to_string().contains("by everybody"));
    assert!(make_directory(&a.join("deep/state")).is_err() && !a.join("deep").exists());
    set_mode(&a, 0o755);
    let made = make_directory(&a.join("deep/state")).unwrap();
    assert_eq!(made, a.canonicalize().unwrap().join("deep/state"));
    assert!(made.is_dir());
}

#[test]
fn a_directory_may_belong_to_a_user_that_is_named_and_none_above_it_may() {
    if !Uid::effective().is_root() {
        return;
    }
    let (directory, _path) = tree();
    let a = directory.path().join("a");
    chown(&a, Some(12345), None).unwrap();
    assert!(future_directory(&a, &[]).is_err());
    assert!(future_directory(&a, &[12345]).is_ok());
    assert!(future_directory(&a.join("b"), &[12345]).is_err());
}

#[test]
fn the_kernels_link_to_a_namespace_is_where_it_ends() {
    let ours = place(Path::new("/proc/self/ns/net")).unwrap();
    assert!(ours.starts_with("/proc") && ours.ends_with("ns/net"), "{}", ours.display());
    let directory = tempfile::tempdir().unwrap();
    symlink("net:[1]", directory.path().join("net")).unwrap();
    assert!(place(&directory.path().join("net")).is_err(), "one of somebody's making");
}
