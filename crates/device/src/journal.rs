//! What stands in the system and outlives us, in a file: after a `kill -9` the next start reads what is left
//! behind. It belongs on a file system that a boot empties (`/run`), for so do the kernel's tables.
//!
//! ```text
//! vpnd changes 1, network namespace 4026531840
//! + 33 02000000...
//! - 33 02000000...
//! ```
//!
//! Each line is a netlink message that takes one change back, its type and its bytes; it is written before the
//! change is made, and withdrawn when it has been taken back. Lines that make no sense are passed over.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::undo::Change;

/// What is longer is something else.
const MAX_LEN: u64 = 1 << 20;

/// The file; or none, and then what a crash leaves is not found again.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<File>,
    left_behind: Vec<Change>,
}

impl Journal {
    /// Opens the file and reads what an earlier run left in it. It stays open, for later we may have no
    /// right to open it.
    ///
    /// # Errors
    ///
    /// If it can be neither opened nor made.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        // Who owns the directory may have put a link there, to a file that is only ours to write.
        let options = options.read(true).write(true).create(true).mode(0o600);
        let mut file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(io::Error::other("not a file of its own"));
        }
        let mut text = Vec::new();
        (&mut file).take(MAX_LEN).read_to_end(&mut text)?;
        let left_behind = read(&String::from_utf8_lossy(&text), &header());
        let mut journal = Self { file: Some(file), left_behind };
        journal.begin();
        Ok(journal)
    }

    pub(crate) fn left_behind(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.left_behind)
    }

    pub(crate) fn add(&mut self, change: &Change) {
        self.put(&line('+', change));
    }

    pub(crate) fn remove(&mut self, change: &Change) {
        self.put(&line('-', change));
    }

    /// Nothing is left.
    pub(crate) fn end(&mut self) {
        self.write(|file| file.set_len(0));
    }

    /// What was read, and nothing that has been withdrawn.
    fn begin(&mut self) {
        let mut text = header() + "\n";
        text.extend(self.left_behind.iter().map(|change| line('+', change)));
        self.write(|file| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())
        });
    }

    fn put(&mut self, line: &str) {
        self.write(|file| file.write_all(line.as_bytes()));
    }

    /// A disk that is full keeps no tunnel from working.
    fn write(&mut self, write: impl FnOnce(&mut File) -> io::Result<()>) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = write(file) {
            tracing::warn!(%error, "what is changed in the system is written down no more");
            self.file = None;
        }
    }
}

/// Another network namespace has other tables.
fn header() -> String {
    let namespace = fs::metadata("/proc/thread-self/ns/net").map_or(0, |file| file.ino());
    format!("vpnd changes 1, network namespace {namespace}")
}

fn line(sign: char, change: &Change) -> String {
    let (kind, bytes) = change.encode();
    let mut line = format!("{sign} {kind} ");
    for byte in bytes {
        // A string takes whatever it is given.
        let _ = write!(line, "{byte:02x}");
    }
    line + "\n"
}

/// The changes that nobody has taken back.
fn read(text: &str, header: &str) -> Vec<Change> {
    let mut lines = text.lines();
    let mut changes = Vec::new();
    if lines.next() != Some(header) {
        return changes;
    }
    for line in lines {
        match (parse(line), line.starts_with('+')) {
            (Some(change), true) => changes.push(change),
            (Some(change), false) => {
                let last = changes.iter().rposition(|known| *known == change);
                drop(last.map(|at| changes.remove(at)));
            }
            (None, _) => tracing::debug!("a line of the journal makes no sense"),
        }
    }
    changes
}

fn parse(line: &str) -> Option<Change> {
    let mut words = line.split(' ');
    let (sign, kind, hex) = (words.next()?, words.next()?, words.next()?);
    if !["+", "-"].contains(&sign) {
        return None;
    }
    Change::decode(kind.parse().ok()?, &unhex(hex)?)
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    };
    hex.as_bytes().chunks(2).map(pair).collect()
}
