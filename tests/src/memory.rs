//! The memory of a process, to search it for keys.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// Keys are searched for word by word: a part of one counts too.
const WORD: usize = size_of::<u64>();

/// What a process could write to, at one moment.
pub struct Memory(Vec<Mapping>);

/// A mapping, and its contents.
struct Mapping {
    at: Range<u64>,
    name: String,
    kind: Place,
    bytes: Vec<u8>,
}

/// The kinds of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Left out of core files, and empty after a fork: the memory for keys.
    Keys,
    /// Left out of core files: stacks.
    NoCore,
    /// Part of a core file.
    Core,
}

/// The words of keys.
pub type Words = HashSet<u64>;

impl Memory {
    /// Reads all of it.
    ///
    /// # Errors
    /// If the process has ended, or this one may not.
    pub fn of(process: u32) -> Result<Self> {
        let smaps = fs::read_to_string(format!("/proc/{process}/smaps"))?;
        let memory = File::open(format!("/proc/{process}/mem"))?;
        let (mut all, mut last) = (Vec::new(), None);
        for line in smaps.lines() {
            if let Some(mapping) = header(line) {
                last = Some(mapping);
            } else if let Some(flags) = line.strip_prefix("VmFlags:") {
                let (at, name) = last.take().context("flags of no mapping")?;
                let Some(kind) = Place::of(flags) else { continue };
                let mut bytes = vec![0; usize::try_from(at.end - at.start)?];
                // Some are devices, and cannot be read.
                if memory.read_exact_at(&mut bytes, at.start).is_ok() {
                    all.push(Mapping { at, name, kind, bytes });
                }
            }
        }
        Ok(Self(all))
    }

    /// The words of all that is in the memory for keys, except those that could be addresses or small numbers.
    pub fn keys(&self) -> Words {
        let keys = self.0.iter().filter(|mapping| mapping.kind == Place::Keys);
        keys.flat_map(|mapping| words(&mapping.bytes)).collect()
    }

    /// Where these words are found: how often in each kind of place, and the first place of each.
    pub fn find(&self, wanted: &Words) -> HashMap<Place, (usize, String)> {
        let mut found = HashMap::new();
        for Mapping { at, name, kind, bytes } in &self.0 {
            for (offset, bytes) in (0_u64..).zip(bytes.windows(WORD)) {
                if wanted.contains(&word(bytes)) {
                    let first = || {
                        (
                            0,
                            format!(
                                "{:x} of {:x}-{:x} {name}",
                                at.start + offset,
                                at.start,
                                at.end
                            ),
                        )
                    };
                    found.entry(*kind).or_insert_with(first).0 += 1;
                }
            }
        }
        found
    }

    /// Whether this text is anywhere.
    pub fn has_text(&self, text: &str) -> bool {
        let has = |bytes: &[u8]| bytes.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        self.0.iter().any(|mapping| has(&mapping.bytes))
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.0.iter().map(|mapping| mapping.bytes.len()).sum()
    }

    /// Whether nothing could be read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Place {
    /// `None` for memory that the process cannot write to.
    fn of(flags: &str) -> Option<Self> {
        let has = |flag| flags.split_whitespace().any(|found| found == flag);
        match (has("wr"), has("dd"), has("wf")) {
            (false, ..) => None,
            (_, true, true) => Some(Self::Keys),
            (_, true, false) => Some(Self::NoCore),
            (_, false, _) => Some(Self::Core),
        }
    }
}

/// The words of a key.
pub fn words(key: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let all = key.chunks_exact(WORD).map(word);
    // An address has sixteen equal bits at its front, and lengths and flags have many zeroes.
    all.filter(|word| word >> 48 != 0 && word & 0xffff_ffff != 0)
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The addresses and the name of a mapping, from the first of its lines.
fn header(line: &str) -> Option<(Range<u64>, String)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let name = rest.split_whitespace().nth(4).unwrap_or("anonymous").to_owned();
    Some((number(start)?..number(end)?, name))
}
