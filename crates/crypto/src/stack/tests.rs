//! No computation uses more stack than is wiped after it.

use std::cell::Cell;
use std::hint::black_box;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::kem::{self, EncapsulationKey};
use crate::{AeadKey, Algorithm, Backend, Message, PublicKey, SecretKey, TAG_LEN, hash, seal_once};

thread_local! {
    /// Whether nothing is wiped on this thread, so that the computation alone is measured.
    pub(super) static LEAVES_ALL: Cell<bool> = const { Cell::new(false) };
}

/// More than is measured.
const PAINTED: usize = 512 << 10;
const PAINT: u8 = 0xa5;
const PIECE: usize = 512;

#[inline(never)]
fn paint() {
    let mut area = [PAINT; PAINTED];
    keep(&mut area);
}

/// How deep the paint is gone.
#[inline(never)]
fn gone() -> usize {
    let mut area = std::mem::MaybeUninit::<[u8; PAINTED]>::uninit();
    // SAFETY: nothing is executed. The compiler has to assume that the bytes are written.
    unsafe { asm!("/* {} */", in(reg) area.as_mut_ptr(), options(nostack, preserves_flags)) };
    // SAFETY: as far as the compiler knows they were, and any bytes are an array.
    let area = unsafe { area.assume_init_ref() };
    // A function with a large frame writes a word to each page first, and this one is such a function.
    let is_gone =
        |bytes: &[u8]| bytes.iter().filter(|byte| **byte != PAINT).count() > size_of::<u64>();
    // The two arrays do not lie at exactly the same place.
    let left = area.chunks(PIECE).skip(1).take_while(|bytes| !is_gone(bytes)).count();
    PAINTED - PIECE - left * PIECE
}

/// How much stack this takes.
#[inline(never)]
fn depth(compute: impl FnOnce()) -> usize {
    LEAVES_ALL.set(true);
    paint();
    call(compute);
    LEAVES_ALL.set(false);
    gone()
}

#[test]
fn what_is_measured_is_what_a_function_takes() {
    let some = depth(|| keep(&mut [1; 20_000]));
    assert!((20_000..30_000).contains(&some), "{some}");
}

#[test]
fn no_computation_is_deeper_than_what_is_wiped() {
    let (secret, mut rng) = (SecretKey::from_bytes([1; 32]), StdRng::seed_from_u64(1));
    let (public, text) = (secret.public(), secret.to_base64());
    // What is found out once in a process is found out before.
    let once = crate::Secret::draw(&mut rng);
    for algorithm in [Algorithm::ChaCha20Poly1305, Algorithm::Aes256Gcm] {
        let seals = depth(|| discard(seal_once(algorithm, &once, b"a", &mut [0; 32])));
        check(&format!("{algorithm} once"), seals, DEPTH);
        check("an AEAD key", depth(|| discard(AeadKey::new(algorithm, &once))), DEPTH);
    }
    check("agreement", depth(|| discard(secret.diffie_hellman(&public))), DEPTH);
    check("a public key", depth(|| discard(secret.public())), DEPTH);
    check("reading", depth(|| discard(SecretKey::from_base64(&text))), DEPTH);
    check("a peer's key", depth(|| discard(PublicKey::from_base64(&text))), DEPTH);
    check("writing", depth(|| discard(secret.to_base64())), DEPTH);
    check("derivation", depth(|| discard(hash::kdf::<3>(&[1; 32], &[b"b"]))), DEPTH);

    let key = kem::DecapsulationKey::generate(&mut rng);
    let public = key.encapsulation_key();
    let ciphertext = EncapsulationKey::parse(&public).unwrap().encapsulate(&mut rng).0;
    check("key generation", depth(|| discard(kem::DecapsulationKey::generate(&mut rng))), DEEP);
    let parsed = EncapsulationKey::parse(&public).unwrap();
    check("encapsulation", depth(|| discard(parsed.encapsulate(&mut rng))), DEEP);
    check("decapsulation", depth(|| discard(key.decapsulate(&ciphertext))), DEEP);
}

#[test]
fn no_batch_is_deeper_than_what_a_thread_wipes() {
    for algorithm in [Algorithm::ChaCha20Poly1305, Algorithm::Aes256Gcm] {
        for backend in [Backend::Wide, Backend::Ring] {
            let key = AeadKey::with_backend(backend, algorithm, &[1; 32]);
            for len in [20, 100, 1500, 9000] {
                let mut packets = vec![vec![0; len + TAG_LEN]; 8];
                let seals = depth(|| key.seal_each(messages(&mut packets)));
                let opens = depth(|| key.open_each(messages(&mut packets), |_, _| ()));
                check(&format!("{algorithm} by {backend:?}"), seals.max(opens), DEEP);
            }
        }
    }
}

/// What is in the vector registers after they were filled, and `clear` was called.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn registers_after(clear: fn()) -> [[u64; 2]; 16] {
    let mut registers = [[0; 2]; 16];
    // SAFETY: only registers are written that the compiler takes for changed by the calls that follow.
    unsafe {
        asm!(
            "movq xmm0, {0}",
            "movq xmm1, {0}",
            "movq xmm2, {0}",
            "movq xmm3, {0}",
            "movq xmm4, {0}",
            "movq xmm5, {0}",
            "movq xmm6, {0}",
            "movq xmm7, {0}",
            "movq xmm8, {0}",
            "movq xmm9, {0}",
            "movq xmm10, {0}",
            "movq xmm11, {0}",
            "movq xmm12, {0}",
            "movq xmm13, {0}",
            "movq xmm14, {0}",
            "movq xmm15, {0}",
            in(reg) u64::MAX,
            options(nomem, nostack, preserves_flags)
        );
    }
    clear();
    // SAFETY: this is as long as what is written.
    unsafe {
        asm!(
            "movups [{0} + 0], xmm0",
            "movups [{0} + 16], xmm1",
            "movups [{0} + 32], xmm2",
            "movups [{0} + 48], xmm3",
            "movups [{0} + 64], xmm4",
            "movups [{0} + 80], xmm5",
            "movups [{0} + 96], xmm6",
            "movups [{0} + 112], xmm7",
            "movups [{0} + 128], xmm8",
            "movups [{0} + 144], xmm9",
            "movups [{0} + 160], xmm10",
            "movups [{0} + 176], xmm11",
            "movups [{0} + 192], xmm12",
            "movups [{0} + 208], xmm13",
            "movups [{0} + 224], xmm14",
            "movups [{0} + 240], xmm15",
            in(reg) registers.as_mut_ptr(),
            options(nostack, preserves_flags)
        );
    }
    registers
}

#[cfg(target_arch = "x86_64")]
#[test]
fn vector_registers_are_cleared_whatever_the_processor_has() {
    let filled = |registers: [[u64; 2]; 16]| registers.iter().filter(|one| one[0] != 0).count();
    assert_eq!(filled(registers_after(|| ())), 16, "the test does not see what is there");
    assert_eq!(registers_after(wide_registers::clear_narrow), [[0; 2]; 16]);
    assert_eq!(registers_after(wide_registers::clear), [[0; 2]; 16]);
}

fn messages(packets: &mut [Vec<u8>]) -> impl Iterator<Item = Message<'_>> {
    packets.iter_mut().zip(0..).map(|(buffer, counter)| Message { counter, buffer })
}

/// Takes a result, which is computed because of that.
fn discard<T>(result: T) {
    let _dropped = black_box(result);
}

/// Half of the stack is left for the frames between the computation and those that wipe, and for other compilers.
#[track_caller]
fn check(what: &str, depth: usize, wiped: usize) {
    println!("{what}: {depth} bytes");
    assert!(depth < wiped / 2, "{what} takes {depth} bytes of stack, and {wiped} are wiped");
}
