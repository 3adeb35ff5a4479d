//! Looks for dead keys in this process's own memory.
//!
//! All writable memory is searched except the main thread's stack, where every value that moves
//! leaves copies that no type can wipe.

#![allow(clippy::unwrap_used, reason = "a test, though one with a main of its own")]

use std::fs::{File, read_to_string};
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use ring::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use vpnd_crypto::{AeadKey, Algorithm, Backend, PresharedKey, SecretKey, hash};

fn main() {
    assert!(remains("an array", |key| *key), "the search does not find what is there");
    assert!(remains("ring's own key", ring_key), "ring wipes its keys: ours need no box any more");

    for algorithm in algorithms() {
        for backend in [Backend::Wide, Backend::Ring, Backend::Portable] {
            let what = format!("{algorithm:?} by {backend:?}");
            assert!(!remains(&what, |key| AeadKey::with_backend(backend, algorithm, key)));
        }
    }
    assert!(!remains("a secret key", |key| SecretKey::from_bytes(*key)));
    assert!(!remains("a preshared key", |key| PresharedKey::from_bytes(*key)));
}

/// Whether anything is left in memory of a key that lived on the heap and was dropped.
fn remains<T>(what: &str, make: impl FnOnce(&[u8; 32]) -> T) -> bool {
    let wanted = Wanted::new(what);
    let alive = Box::new(make(&wanted.key()));
    // Whatever the search allocates, it allocates now, lest it take the dead key's place.
    let memory = Memory::open();
    assert!(memory.holds(&wanted), "{what} is not where it is looked for, even while it lives");
    drop(black_box(alive));
    memory.holds(&wanted)
}

/// Without instructions for AES its keys lie transposed, and there is nothing to look for.
fn algorithms() -> Vec<Algorithm> {
    let mut algorithms = vec![Algorithm::ChaCha20Poly1305];
    if read_to_string("/proc/cpuinfo").unwrap().split_whitespace().any(|flag| flag == "aes") {
        algorithms.push(Algorithm::Aes256Gcm);
    }
    algorithms
}

fn ring_key(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap())
}

/// A key's four words, inverted so that the search does not find itself. One word is enough to be
/// found: an allocator writes over the first bytes of what is given back.
struct Wanted([u64; 4]);

const WORD: usize = size_of::<u64>();

impl Wanted {
    fn new(seed: &str) -> Self {
        let seed = hash(&[seed.as_bytes()]);
        Self([0, 1, 2, 3].map(|i| word(&seed[i * WORD..][..WORD])))
    }

    fn key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(WORD).zip(self.0) {
            bytes.copy_from_slice(&(!word).to_ne_bytes());
        }
        key
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        bytes.windows(WORD).any(|bytes| self.0.contains(&!word(bytes)))
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.try_into().unwrap())
}

/// What this process can write to.
struct Memory {
    contents: File,
    maps: String,
}

impl Memory {
    fn open() -> Self {
        Self {
            contents: File::open("/proc/self/mem").unwrap(),
            maps: read_to_string("/proc/self/maps").unwrap(),
        }
    }

    fn holds(&self, wanted: &Wanted) -> bool {
        self.maps.lines().filter_map(searched).any(|(start, end)| self.has(wanted, start, end))
    }

    fn has(&self, wanted: &Wanted, mut start: usize, end: usize) -> bool {
        let mut buffer = [0; 1 << 16];
        while end - start >= WORD {
            let len = buffer.len().min(end - start);
            let read = self.contents.read_at(&mut buffer[..len], start as u64).unwrap();
            if wanted.is_in(&buffer[..read]) {
                return true;
            }
            start += read - (WORD - 1);
        }
        false
    }
}

/// The addresses in a line of `/proc/self/maps`, if they are to be searched.
fn searched(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    if !rest.starts_with("rw") || rest.ends_with("[stack]") {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}
