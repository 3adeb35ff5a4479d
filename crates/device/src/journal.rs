//! A file that records the changes to the system that outlive the process: after a `kill -9` the next start
//! reads what was left behind. The file belongs on a file system that is emptied at boot (`/run`), because the
//! kernel's tables are empty then, too.
//!
//! ```text
//! vpnd changes 2, network namespace 4026531840
//! = 5 tun tun0
//! % vpnd_killswitch-site-a
//! + 33 02000000...
//! - 33 02000000...
//! ```
//!
//! A `+` or `-` line contains the netlink message that reverts one change: its type and its bytes. The `+` line
//! is written before the change is made, and the `-` line after the change has been reverted. The messages
//! refer to a device by its index, which may belong to another device when they are read. A `=` line therefore
//! records the kind and name of the device that had the index. A `%` line names the packet filter's table that
//! implements the kill switch; without a name, there is no such table any more. Invalid lines are ignored.
//!
//! Once most of its lines are reverted, the file is rewritten in place, because vpnd may no longer have access
//! to its directory. First the remaining lines are appended between two `!` lines. Once the second `!` line is
//! written, the appended lines replace everything before them. Then they are copied to the beginning of the
//! file, where there is enough space, and the file is truncated behind them. A reader gets the same contents
//! wherever this is interrupted.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::geteuid;

use crate::undo::Change;

/// A longer file is not a journal.
const MAX_LEN: u64 = 1 << 23;
/// A file shorter than this is not rewritten, …
const REWRITE_AT: u64 = 1 << 16;
/// … nor a file that has grown by less than this factor since it was last rewritten.
const GROWTH: u64 = 4;
/// The lines before and after the remaining lines.
const BEGIN: &str = "! begin";
const END: &str = "! end";
/// The number of attempts to lock the file, …
const TRIES: u32 = 50;
/// … and the time between them.
const BETWEEN: Duration = Duration::from_millis(20);

/// The prefix of the name of a kill switch's table in the packet filter. No other table is ever deleted,
/// whatever a journal contains.
pub const KILL_SWITCH_TABLE: &str = "vpnd_killswitch-";

/// The journal's file. Without a file, the next start does not find what a crash has left behind.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<File>,
    header: String,
    devices: Vec<Named>,
    left_behind: Vec<Change>,
    table: Option<String>,
    /// The file's length, and the length at which it is rewritten.
    len: u64,
    rewrite_at: u64,
    /// Another process may write to the file.
    released: bool,
}

/// A device's index, and the kind and name of the device that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) index: u32,
    pub(crate) who: String,
}

/// Identifies a network namespace while it exists; unknown without `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace(Option<u64>);

impl Namespace {
    /// The calling thread's namespace.
    pub(crate) fn current() -> Self {
        Self(fs::metadata("/proc/thread-self/ns/net").ok().map(|file| file.ino()))
    }

    pub(crate) const fn number(self) -> Option<u64> {
        self.0
    }
}

impl Journal {
    /// Opens the file and reads the leftovers of an earlier run if it ran in `namespace`: another namespace has
    /// other tables. The file stays open, because vpnd may lack the permission to open it later.
    ///
    /// # Errors
    ///
    /// If the file can be neither opened nor created, others may write to it, or another vpnd has locked it.
    pub fn open(path: &Path, namespace: Namespace) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).mode(0o600);
        Self::read(options, path, namespace, |owner| owner == geteuid().as_raw())
    }

    /// Records in the file at `path`, if it exists, that a start has begun. The kill switch that this start
    /// would take over from an earlier run then stays, even if the start fails.
    ///
    /// # Errors
    ///
    /// If there is a file, and vpnd may not write to it.
    pub fn announce_start(path: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = match own(options.append(true), path, |owner| owner == geteuid().as_raw()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        // A running vpnd holds the lock, and has not handed anything on yet.
        if file.try_lock().is_err() {
            return Ok(());
        }
        writeln!(file, "# start by {}", std::process::id())
    }

    /// Like [`open`](Self::open), but only if the file exists. Root may open it whichever user ran vpnd.
    pub(crate) fn open_left(path: &Path, namespace: Namespace) -> io::Result<Self> {
        let is_root = geteuid().is_root();
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        Self::read(options, path, namespace, |owner| is_root || owner == geteuid().as_raw())
    }

    fn read(
        options: &mut OpenOptions,
        path: &Path,
        namespace: Namespace,
        trusted: impl FnOnce(u32) -> bool,
    ) -> io::Result<Self> {
        let unknown = || io::Error::other("without /proc nothing tells the network namespace");
        let header = header(namespace.0.ok_or_else(unknown)?);
        let mut file = own(options, path, trusted)?;
        lock(&file)?;
        let mut text = Vec::new();
        (&mut file).take(MAX_LEN).read_to_end(&mut text)?;
        let mut journal = Self::of(file, header, &text);
        journal.begin();
        Ok(journal)
    }

    /// The journal in `file`, which was released with the contents `text`. The file is not locked.
    pub(crate) fn take_over(file: File, text: &[u8]) -> io::Result<Self> {
        let header = Namespace::current().number().map(header).unwrap_or_default();
        if text.split(|byte| *byte == b'\n').next() != Some(header.as_bytes()) {
            return Err(io::Error::other("a journal of another network namespace"));
        }
        Ok(Self::of(file, header, text))
    }

    fn of(file: File, header: String, text: &[u8]) -> Self {
        let Content { devices, changes, table } = read(&String::from_utf8_lossy(text), &header);
        let (len, left_behind) = (text.len() as u64, changes);
        let rewrite_at = REWRITE_AT.max(len * GROWTH);
        Self {
            file: Some(file),
            header,
            devices,
            left_behind,
            table,
            len,
            rewrite_at,
            released: false,
        }
    }

    pub(crate) fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        self.file.as_ref().map(|file| file.try_clone().map(OwnedFd::from)).transpose()
    }

    pub(crate) const fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    pub(crate) fn left_behind(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.left_behind)
    }

    /// Records which device has the index that the following lines use.
    pub(crate) fn name(&mut self, device: Named) {
        if !self.devices.contains(&device) {
            self.put(&naming(&device));
            self.devices.retain(|known| known.index != device.index);
            self.devices.push(device);
        }
    }

    pub(crate) fn devices(&self) -> &[Named] {
        &self.devices
    }

    /// Records the name of the packet filter's table of the kill switch, or that there is no table any more.
    pub(crate) fn set_table(&mut self, table: Option<&str>) {
        if self.table.as_deref() != table {
            self.put(&tabling(table));
            self.table = table.map(str::to_owned);
        }
    }

    pub(crate) fn table(&self) -> Option<&str> {
        self.table.as_deref()
    }

    pub(crate) fn add(&mut self, change: &Change) {
        self.put(&line('+', change));
    }

    pub(crate) fn remove(&mut self, change: &Change) {
        self.put(&line('-', change));
    }

    /// Empties the file: no change is left to revert.
    pub(crate) fn end(&mut self) {
        self.write(|file| file.set_len(0));
    }

    /// Lets another process write to the file, without a word in it.
    pub(crate) fn release(&mut self) {
        self.released = true;
        if let Some(Err(error)) = self.file.as_ref().map(File::unlock) {
            tracing::debug!(%error, "the journal stays locked");
        }
    }

    /// Locks the file again, and reads what another process has made of it. Returns false if there is no file.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if that process still has it, or another error of the file.
    pub(crate) fn retake(&mut self) -> io::Result<bool> {
        let Some(mut file) = self.file.take() else { return Ok(false) };
        match file.try_lock() {
            Ok(()) => {}
            Err(error) => {
                self.file = Some(file);
                return Err(match error {
                    TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
                    TryLockError::Error(error) => error,
                });
            }
        }
        let text = content(&mut file)?;
        *self = Self::of(file, std::mem::take(&mut self.header), &text);
        self.begin();
        Ok(true)
    }

    /// Releases the file to the next start, and returns its final contents. No start writes the same contents.
    pub(crate) fn let_go(&mut self) -> Option<Vec<u8>> {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| time.num_milliseconds());
        self.put(&format!("# let go by {} at {boot}\n", std::process::id()));
        let file = self.file.as_mut()?;
        let text = content(file).ok()?;
        file.unlock().ok()?;
        Some(text)
    }

    /// Locks the file again if it still has the contents it was released with, which means that no start has
    /// begun.
    pub(crate) fn take_back(&mut self, text: &[u8]) -> bool {
        let Some(file) = &mut self.file else { return false };
        file.try_lock().is_ok() && content(file).is_ok_and(|now| now == text)
    }

    /// Writes the changes that were read, without the reverted ones.
    fn begin(&mut self) {
        let mut text = format!("{}\n", self.header);
        text.extend(self.devices.iter().map(naming));
        text.extend(self.table().map(|table| tabling(Some(table))));
        text.extend(self.left_behind.iter().map(|change| line('+', change)));
        self.write(|file| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())
        });
        self.has_len(text.len() as u64);
    }

    fn put(&mut self, line: &str) {
        self.write(|file| file.write_all(line.as_bytes()));
        self.len += line.len() as u64;
        if self.len >= self.rewrite_at {
            self.rewrite();
        }
    }

    /// Removes the reverted changes from the file.
    fn rewrite(&mut self) {
        let (header, mut len) = (self.header.clone(), self.len);
        self.write(|file| {
            len = rewrite(file, &header)?;
            Ok(())
        });
        self.has_len(len);
    }

    fn has_len(&mut self, len: u64) {
        (self.len, self.rewrite_at) = (len, REWRITE_AT.max(len * GROWTH));
    }

    /// Writes to the file. A failure, such as a full disk, does not stop the tunnel.
    fn write(&mut self, write: impl FnOnce(&mut File) -> io::Result<()>) {
        let Some(file) = self.file.as_mut().filter(|_| !self.released) else { return };
        if let Err(error) = write(file) {
            tracing::warn!(%error, "cannot write the journal: further changes to the system are not recorded");
            self.file = None;
        }
    }
}

/// Opens a file that only this user can have written, or creates it.
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).mode(0o600);
    own(options, path, |owner| owner == geteuid().as_raw())
}

/// Opens a file whose owner is trusted, and that only this owner can have written.
fn own(
    options: &mut OpenOptions,
    path: &Path,
    trusted: impl FnOnce(u32) -> bool,
) -> io::Result<File> {
    // The owner of the directory may have put a link there, to a file that only this user may write to.
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(io::Error::other("not a file of its own"));
    }
    // The contents of the file are executed with all privileges of this process.
    if !trusted(metadata.uid()) || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("others may write to it; remove it"));
    }
    Ok(file)
}

fn content(file: &mut File) -> io::Result<Vec<u8>> {
    file.rewind()?;
    let mut text = Vec::new();
    file.take(MAX_LEN).read_to_end(&mut text)?;
    Ok(text)
}

/// Rewrites the file with its remaining lines, and returns its new length.
fn rewrite(file: &mut File, header: &str) -> io::Result<u64> {
    let before = content(file)?;
    let Content { devices, changes, table } = read(&String::from_utf8_lossy(&before), header);
    let mut left: String = devices.iter().map(naming).collect();
    left.extend(table.map(|table| tabling(Some(&table))));
    left.extend(changes.iter().map(|change| line('+', change)));
    file.seek(SeekFrom::End(0))?;
    file.write_all(format!("{BEGIN}\n{left}{END}\n").as_bytes())?;
    let text = format!("{header}\n{left}");
    if text.len() <= before.len() {
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)?;
    }
    file.seek(SeekFrom::End(0))
}

/// Locks the file; only the process with the lock may change its contents. A process that is about to end holds
/// the lock only briefly.
fn lock(file: &File) -> io::Result<()> {
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other("another vpnd has it"))
}

fn header(namespace: u64) -> String {
    format!("vpnd changes 2, network namespace {namespace}")
}

fn naming(device: &Named) -> String {
    format!("= {} {}\n", device.index, device.who)
}

fn tabling(table: Option<&str>) -> String {
    format!("% {}\n", table.unwrap_or_default())
}

fn line(sign: char, change: &Change) -> String {
    let (kind, bytes) = change.encode();
    format!("{sign} {kind} {}\n", hex(&bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string never fails.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// The devices, the changes not reverted yet, and the packet filter's table of the kill switch.
#[derive(Debug, Default, PartialEq, Eq)]
struct Content {
    devices: Vec<Named>,
    changes: Vec<Change>,
    table: Option<String>,
}

fn read(text: &str, header: &str) -> Content {
    let (mut lines, mut content) = (text.lines(), Content::default());
    if lines.next() != Some(header) {
        return content;
    }
    let mut replaced = None;
    for line in lines.filter(|line| !line.starts_with('#')) {
        match line {
            BEGIN => replaced = Some(std::mem::take(&mut content)),
            END => replaced = None,
            _ => content.read(line),
        }
    }
    // An incomplete rewrite replaces nothing.
    replaced.unwrap_or(content)
}

impl Content {
    fn read(&mut self, line: &str) {
        if let Some(device) = named(line) {
            self.devices.retain(|known| known.index != device.index);
            self.devices.push(device);
        } else if let Some(table) = line.strip_prefix("% ") {
            self.name_table(table);
        } else if let Some(change) = parse(line) {
            self.note(change, line.starts_with('+'));
        } else {
            tracing::debug!("a line of the journal makes no sense");
        }
    }

    fn name_table(&mut self, table: &str) {
        if table.is_empty() {
            self.table = None;
        } else if table.starts_with(KILL_SWITCH_TABLE) {
            self.table = Some(table.to_owned());
        } else {
            tracing::warn!(
                "the journal names the table {table:?}, which belongs to no kill switch: vpnd ignores it"
            );
        }
    }

    /// Records a change that was made, or that was reverted.
    fn note(&mut self, change: Change, made: bool) {
        if made {
            self.changes.push(change);
            return;
        }
        let last = self.changes.iter().rposition(|known| *known == change);
        drop(last.map(|at| self.changes.remove(at)));
    }
}

fn named(line: &str) -> Option<Named> {
    let (index, who) = line.strip_prefix("= ")?.split_once(' ')?;
    Some(Named { index: index.parse().ok()?, who: who.to_owned() })
}

fn parse(line: &str) -> Option<Change> {
    let mut words = line.split(' ');
    let (sign, kind, hex) = (words.next()?, words.next()?, words.next()?);
    if !["+", "-"].contains(&sign) {
        return None;
    }
    Change::decode(kind.parse().ok()?, &unhex(hex)?)
}

pub(crate) fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    };
    hex.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::address::AddressMessage;

    const HEADER: &str = "vpnd changes 2, network namespace 7";

    fn change(index: u32) -> Change {
        let mut address = AddressMessage::default();
        address.header.index = index;
        Change::Address(address)
    }

    fn device() -> Named {
        Named { index: 5, who: "tun tun0".to_owned() }
    }

    #[test]
    fn a_peer_that_moves_for_long_does_not_fill_the_disk() {
        let path = std::env::temp_dir().join(format!("vpnd-journal-{}", std::process::id()));
        let _none = fs::remove_file(&path);
        let mut journal = Journal::open(&path, Namespace(Some(7))).unwrap();
        journal.name(device());
        journal.add(&change(1));
        for index in 2..20_000 {
            journal.add(&change(index));
            journal.remove(&change(index));
            assert!(fs::metadata(&path).unwrap().len() < 2 * REWRITE_AT);
        }
        drop(journal);
        let mut journal = Journal::open(&path, Namespace(Some(7))).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(journal.left_behind(), [change(1)]);
        assert_eq!(journal.devices(), [device()]);
    }

    #[test]
    fn what_another_process_has_written_is_continued_with() {
        let path = std::env::temp_dir().join(format!("vpnd-released-{}", std::process::id()));
        let _none = fs::remove_file(&path);
        let open = || Journal::open(&path, Namespace(Some(7)));
        let mut journal = open().unwrap();
        journal.name(device());
        journal.add(&change(1));
        journal.release();
        let mut other = open().unwrap();
        assert_eq!(journal.retake().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // Only the other process writes.
        journal.add(&change(9));
        other.remove(&change(1));
        other.add(&change(2));
        drop(other);
        assert!(journal.retake().unwrap());
        assert_eq!(journal.left_behind(), [change(2)]);
        assert!(open().is_err(), "it is locked again");
        journal.add(&change(3));
        drop(journal);
        assert_eq!(open().unwrap().left_behind(), [change(2), change(3)]);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_table_is_named_until_it_is_gone() {
        let text = |lines: &[Option<&str>]| {
            lines.iter().fold(format!("{HEADER}\n"), |text, line| text + &tabling(*line))
        };
        let table = |lines: &[Option<&str>]| read(&text(lines), HEADER).table;
        let [one, other] = ["vpnd_killswitch-one", "vpnd_killswitch-a b"];
        assert_eq!(table(&[Some(one), Some(other)]), Some(other.to_owned()));
        assert_eq!(table(&[Some(one), None]), None);
    }

    #[test]
    fn only_a_kill_switchs_table_is_named() {
        for name in ["filter", "vpnd-site-a", "vpnd_killswitch", " vpnd_killswitch-site-a"] {
            let text = format!("{HEADER}\n{}", tabling(Some(name)));
            assert_eq!(read(&text, HEADER).table, None, "{name}");
            let known = format!("{HEADER}\n% vpnd_killswitch-site-a\n{}", tabling(Some(name)));
            let known = read(&known, HEADER).table;
            assert_eq!(known.as_deref(), Some("vpnd_killswitch-site-a"), "{name} hides none");
        }
    }

    #[test]
    fn the_same_is_read_wherever_a_rewrite_stops() {
        let table = tabling(Some("vpnd_killswitch-site-a"));
        let left = naming(&device()) + &table + &line('+', &change(1)) + &line('+', &change(2));
        let other = line('+', &change(3)) + &line('-', &change(3));
        let before = format!("{HEADER}\n{left}{}", other.repeat(8));
        let appended = format!("{before}{BEGIN}\n{left}{END}\n");
        let after = format!("{HEADER}\n{left}");
        let known = Content {
            devices: vec![device()],
            changes: vec![change(1), change(2)],
            table: Some("vpnd_killswitch-site-a".to_owned()),
        };
        for end in before.len()..=appended.len() {
            assert_eq!(read(&appended[..end], HEADER), known, "{end} bytes are appended");
        }
        for end in 0..=after.len() {
            let text = format!("{}{}", &after[..end], &appended[end..]);
            assert_eq!(read(&text, HEADER), known, "{end} bytes are written over");
        }
        assert_eq!(read(&after, HEADER), known);
    }
}
