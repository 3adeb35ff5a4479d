//! Searches this process's own memory, the stack included, for keys that were dropped.

#![allow(clippy::unwrap_used, reason = "a test, though one with a main of its own")]

use std::convert::Infallible;
use std::fs::{File, read_to_string};
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use ml_kem::Generate;
use rand_core::{TryCryptoRng, TryRng};
use ring::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use vpnd_crypto::kem::{CIPHERTEXT_LEN, DecapsulationKey, EncapsulationKey, SharedSecret};
use vpnd_crypto::stack::{self, wiped};
use vpnd_crypto::{
    AeadKey, Algorithm, Backend, Message, PresharedKey, Secret, SecretKey, TAG_LEN, hash, hmac,
    kdf, seal_once,
};
use zeroize::Zeroize;

fn main() {
    assert!(remains("an array", |key| **key), "the search does not find what is there");
    assert!(remains("ring's own key", ring_key), "ring wipes its keys: ours need no box any more");

    for algorithm in algorithms() {
        for backend in [Backend::Wide, Backend::Ring] {
            let what = format!("{algorithm:?} by {backend:?}");
            assert!(!remains(&what, |key| AeadKey::with_backend(backend, algorithm, key)));
            assert!(!remains(&format!("{what}, used"), |key| used(backend, algorithm, key)));
        }
        assert!(!passes("a key for one message", |key| seal_once(
            algorithm,
            key,
            &[],
            &mut [7; 32]
        )));
    }
    assert!(!remains("a secret key", |key| SecretKey::from_base64(&text(key))));
    assert!(!remains("a preshared key", |key| PresharedKey::from_base64(&text(key))));
    assert!(!passes("a key that derives others", |key| kdf::<3>(key, &[b"input"])));
    let first = wiped(|| Wanted::of(&hmac(&[1; 32], &[b"input"])));
    assert!(!any_passes(&first, || kdf::<3>(&[1; 32], &[b"input"])));

    let (ours, theirs) = (SecretKey::from_bytes([8; 32]), SecretKey::from_bytes([9; 32]).public());
    let agree = || ours.diffie_hellman(&theirs).unwrap();
    let agreed = wiped(|| Wanted::of(agree().as_bytes()));
    assert!(!any_remains("what was agreed on", &agreed, agree));

    assert!(!remains("a decapsulation key's seed", |seed| decapsulation_key(seed)));
    let polynomial = stack_of(|| Wanted::of(&polynomial()));
    assert!(!any_passes(&polynomial, || decapsulation_key(&SEED)));
    assert!(!any_passes(&polynomial, decapsulate));
    let secret = stack_of(|| Wanted::of(encapsulate().as_bytes()));
    assert!(!any_remains("what was encapsulated", &secret, encapsulate));
    assert!(!any_remains("what was decapsulated", &secret, decapsulate));
}

/// Computes something that takes much stack, and wipes it.
fn stack_of<T>(compute: impl FnOnce() -> T) -> T {
    let result = wiped(compute);
    stack::wipe();
    result
}

/// A key that has sealed and opened batches, on a thread that has wiped its stack after that.
fn used(backend: Backend, algorithm: Algorithm, key: &Secret) -> AeadKey {
    let key = AeadKey::with_backend(backend, algorithm, key);
    for len in [20, 100, 1500] {
        let mut packets = vec![vec![0; len + TAG_LEN]; 8];
        key.seal_each(messages(&mut packets));
        key.open_each(messages(&mut packets), |_, opened| assert!(opened.is_ok()));
    }
    stack::wipe();
    key
}

fn messages(packets: &mut [Vec<u8>]) -> impl Iterator<Item = Message<'_>> {
    packets.iter_mut().zip(0..).map(|(buffer, counter)| Message { counter, buffer })
}

/// The key as text, which is wiped.
fn text(key: &Secret) -> impl std::ops::Deref<Target = String> {
    PresharedKey::from(Secret::copy_of(key)).to_base64()
}

/// Whether memory contains any part of a key that is only used while something is computed, after that.
fn passes<T>(what: &str, compute: impl FnOnce(&Secret) -> T) -> bool {
    let wanted = Wanted::new(what);
    any_passes(&wanted, || compute(&wanted.key()))
}

/// Like [`passes`], for bytes that nobody is given.
fn any_passes<T>(wanted: &Wanted, compute: impl FnOnce() -> T) -> bool {
    let mut memory = Memory::open();
    let _result = black_box(compute());
    memory.holds(wanted)
}

/// Whether memory still contains any part of a key that was dropped.
fn remains<T>(what: &str, make: impl FnOnce(&Secret) -> T) -> bool {
    let wanted = Wanted::new(what);
    any_remains(what, &wanted, || make(&wanted.key()))
}

/// Like [`remains`], for bytes other than those that the key is made from.
fn any_remains<T>(what: &str, wanted: &Wanted, make: impl FnOnce() -> T) -> bool {
    let alive = Box::new(make());
    // The search allocates its memory now, so that it does not reuse the memory of the dropped key.
    let mut memory = Memory::open();
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

fn ring_key(key: &Secret) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &**key).unwrap())
}

const SEED: [u8; 32] = [7; 32];

fn decapsulation_key(seed: &[u8; 32]) -> DecapsulationKey {
    DecapsulationKey::generate(&mut Same(seed))
}

fn encapsulate() -> SharedSecret {
    exchange().1
}

fn decapsulate() -> SharedSecret {
    decapsulation_key(&SEED).decapsulate(&exchange().0)
}

fn exchange() -> ([u8; CIPHERTEXT_LEN], SharedSecret) {
    let key = decapsulation_key(&SEED).encapsulation_key();
    EncapsulationKey::parse(&key).unwrap().encapsulate(&mut Same(&SEED))
}

/// Sixteen numbers of the secret polynomial, as they are stored in memory: two bytes each. The expanded key
/// begins with all numbers, two of them in three bytes. This function must leave none of them on the heap; the caller wipes
/// the stack.
#[expect(deprecated, reason = "nothing else gives the polynomial out")]
fn polynomial() -> [u8; 32] {
    let key = ml_kem::DecapsulationKey768::generate_from_rng(&mut Same(&SEED));
    let expanded = ml_kem::ExpandedKeyEncoding::to_expanded_bytes(&key);
    std::array::from_fn(|i| {
        let (pair, shift) = (&expanded[384 + i / 4 * 3..][..3], i / 2 % 2 * 12);
        let word = u32::from_le_bytes([pair[0], pair[1], pair[2], 0]) >> shift & 0xfff;
        word.to_le_bytes()[i % 2]
    })
}

/// A random number generator that always returns the same bytes.
struct Same<'s>(&'s [u8; 32]);

impl TryRng for Same<'_> {
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

impl TryCryptoRng for Same<'_> {}

/// A key's four words, inverted so that the search does not find this value. A single word found in memory
/// counts, because an allocator overwrites the first bytes of freed memory.
struct Wanted([u64; 4]);

const WORD: usize = size_of::<u64>();

impl Wanted {
    fn new(seed: &str) -> Self {
        wiped(|| Self::of(&hash(&[seed.as_bytes()])))
    }

    fn of(key: &[u8; 32]) -> Self {
        Self([0, 1, 2, 3].map(|i| !word(&key[i * WORD..][..WORD])))
    }

    fn key(&self) -> Secret {
        wiped(|| {
            let mut key = Secret::default();
            for (bytes, word) in key.chunks_exact_mut(WORD).zip(self.0) {
                bytes.copy_from_slice(&(!word).to_ne_bytes());
            }
            key
        })
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
    /// What was read last, which is wiped, so that it is not found by the next search.
    read: Vec<u8>,
}

impl Memory {
    fn open() -> Self {
        Self {
            contents: File::open("/proc/self/mem").unwrap(),
            maps: read_to_string("/proc/self/maps").unwrap(),
            read: vec![0; 1 << 16],
        }
    }

    fn holds(&mut self, wanted: &Wanted) -> bool {
        let Self { contents, maps, read } = self;
        let has = |(start, end)| has(contents, read, wanted, start, end);
        let found = maps.lines().filter_map(searched).any(has);
        self.read.as_mut_slice().zeroize();
        found
    }
}

fn has(memory: &File, read: &mut [u8], wanted: &Wanted, mut start: usize, end: usize) -> bool {
    while end - start >= WORD {
        let len = read.len().min(end - start);
        let count = memory.read_at(&mut read[..len], start as u64).unwrap();
        if wanted.is_in(&read[..count]) {
            return true;
        }
        start += count - (WORD - 1);
    }
    false
}

/// The address range in a line of `/proc/self/maps`, if it is to be searched.
fn searched(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    if !rest.starts_with("rw") {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}
