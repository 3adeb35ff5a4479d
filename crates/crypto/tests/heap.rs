//! Searches this process's own memory for keys that were dropped.
//!
//! All writable memory is searched except the main thread's stack, where every value that moves
//! leaves copies that no type can wipe.

#![allow(clippy::unwrap_used, reason = "a test, though one with a main of its own")]

use std::convert::Infallible;
use std::fs::{File, read_to_string};
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use ml_kem::Generate;
use rand_core::{TryCryptoRng, TryRng};
use ring::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use vpnd_crypto::kem::{CIPHERTEXT_LEN, DecapsulationKey, EncapsulationKey, SharedSecret};
use vpnd_crypto::{AeadKey, Algorithm, Backend, PresharedKey, SecretKey, hash};

fn main() {
    assert!(remains("an array", |key| *key), "the search does not find what is there");
    assert!(remains("ring's own key", ring_key), "ring wipes its keys: ours need no box any more");

    for algorithm in algorithms() {
        for backend in [Backend::Wide, Backend::Ring] {
            let what = format!("{algorithm:?} by {backend:?}");
            assert!(!remains(&what, |key| AeadKey::with_backend(backend, algorithm, key)));
        }
    }
    assert!(!remains("a secret key", |key| SecretKey::from_bytes(*key)));
    assert!(!remains("a preshared key", |key| PresharedKey::from_bytes(*key)));

    assert!(!remains("a decapsulation key's seed", decapsulation_key));
    let polynomial = Wanted::of(&polynomial());
    assert!(!any_remains("its polynomial", &polynomial, || decapsulation_key(&SEED)));
    let secret = Wanted::of(encapsulate().as_bytes());
    assert!(!any_remains("what was encapsulated", &secret, encapsulate));
    assert!(!any_remains("what was decapsulated", &secret, decapsulate));
}

/// Whether memory still contains any part of a key that was on the heap and was dropped.
fn remains<T>(what: &str, make: impl FnOnce(&[u8; 32]) -> T) -> bool {
    let wanted = Wanted::new(what);
    any_remains(what, &wanted, || make(&wanted.key()))
}

/// Like [`remains`], for bytes other than those that the key is made from.
fn any_remains<T>(what: &str, wanted: &Wanted, make: impl FnOnce() -> T) -> bool {
    let alive = Box::new(make());
    // The search allocates its memory now, so that it does not reuse the memory of the dropped key.
    let memory = Memory::open();
    assert!(memory.holds(wanted), "{what} is not where it is looked for, even while it lives");
    drop(black_box(alive));
    memory.holds(wanted)
}

/// The tested ciphers. Without AES instructions, AES keys are stored transposed, and cannot be searched for.
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

const SEED: [u8; 32] = [7; 32];

fn decapsulation_key(seed: &[u8; 32]) -> DecapsulationKey {
    DecapsulationKey::generate(&mut Same(*seed))
}

fn encapsulate() -> SharedSecret {
    exchange().1
}

fn decapsulate() -> SharedSecret {
    decapsulation_key(&SEED).decapsulate(&exchange().0)
}

fn exchange() -> ([u8; CIPHERTEXT_LEN], SharedSecret) {
    let key = decapsulation_key(&SEED).encapsulation_key();
    EncapsulationKey::parse(&key).unwrap().encapsulate(&mut Same(SEED))
}

/// Sixteen numbers of the secret polynomial, as they are stored in memory: two bytes each. The expanded key
/// begins with all numbers, two of them in three bytes. This function must leave none of them on the heap.
#[expect(deprecated, reason = "nothing else gives the polynomial out")]
fn polynomial() -> [u8; 32] {
    let key = ml_kem::DecapsulationKey768::generate_from_rng(&mut Same(SEED));
    let expanded = ml_kem::ExpandedKeyEncoding::to_expanded_bytes(&key);
    std::array::from_fn(|i| {
        let (pair, shift) = (&expanded[384 + i / 4 * 3..][..3], i / 2 % 2 * 12);
        let word = u32::from_le_bytes([pair[0], pair[1], pair[2], 0]) >> shift & 0xfff;
        word.to_le_bytes()[i % 2]
    })
}

/// A random number generator that always returns the same bytes.
struct Same([u8; 32]);

impl TryRng for Same {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("keys are filled whole")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("keys are filled whole")
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.copy_from_slice(&self.0[..bytes.len()]);
        Ok(())
    }
}

impl TryCryptoRng for Same {}

/// A key's four words, inverted so that the search does not find this value. A single word found in memory
/// counts, because an allocator overwrites the first bytes of freed memory.
struct Wanted([u64; 4]);

const WORD: usize = size_of::<u64>();

impl Wanted {
    fn new(seed: &str) -> Self {
        Self::of(&hash(&[seed.as_bytes()]))
    }

    fn of(key: &[u8; 32]) -> Self {
        Self([0, 1, 2, 3].map(|i| !word(&key[i * WORD..][..WORD])))
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

/// The memory that this process can write to.
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

/// The address range in a line of `/proc/self/maps`, if it is to be searched.
fn searched(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    if !rest.starts_with("rw") || rest.ends_with("[stack]") {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}
