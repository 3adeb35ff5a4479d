//! ChaCha20-Poly1305 (RFC 8439) in 512-bit registers, for what the tunnel carries: a packet of
//! 1472 bytes and the key of its authenticator come out of one pass over 24 blocks, and the
//! authenticator takes eight blocks at a time.
//!
//! It takes half the time of ring's code, which is for 256-bit registers. Everybody's packets rest on
//! it, so it is trusted least: it only runs on a processor that has computed ring's results with it
//! in this very process, and the tests hold it against ring and RustCrypto for every length.
//!
//! No branch and no address depends on a secret.

mod chacha;
mod poly;

use chacha::{BLOCK, BLOCKS, Blocks, PASS, State};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::aead::{Forged, TAG_LEN};

/// A key at one place on the heap, wiped when dropped. That there is one proves that the processor
/// has the instructions.
pub(crate) struct WideKey(Box<Zeroizing<[u8; 32]>>);

impl WideKey {
    /// `None` where the processor lacks the instructions.
    pub(crate) fn new(key: &[u8; 32]) -> Option<Self> {
        let mut boxed = Box::new(Zeroizing::new([0; 32]));
        boxed.copy_from_slice(key);
        is_supported().then_some(Self(boxed))
    }

    /// Encrypts `buffer` in place, without associated data, and returns its tag.
    pub(crate) fn seal(&self, nonce: &[u8; 12], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        // SAFETY: `new` has found every feature that `seal` is compiled for.
        unsafe { seal(&self.0, nonce, buffer) }
    }

    /// Decrypts `buffer`, a ciphertext and its tag without associated data, in place, and returns
    /// the plaintext.
    pub(crate) fn open<'a>(
        &self,
        nonce: &[u8; 12],
        buffer: &'a mut [u8],
    ) -> Result<&'a mut [u8], Forged> {
        let (text, tag) = buffer.split_last_chunk_mut::<TAG_LEN>().ok_or(Forged)?;
        // SAFETY: as in `seal`.
        let opens = unsafe { open(&self.0, nonce, text, tag) };
        if opens { Ok(text) } else { Err(Forged) }
    }
}

/// Whether the processor has what the functions of this room are compiled for.
fn is_supported() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma")
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn seal(key: &[u8; 32], nonce: &[u8; 12], text: &mut [u8]) -> [u8; TAG_LEN] {
    let state = State::new(key, nonce);
    let mut blocks = Blocks::default();
    state.generate(0, &mut blocks, first_pass(text.len()));
    xor(&state, &blocks, text);
    poly::authenticate(blocks.half(), text)
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn open(key: &[u8; 32], nonce: &[u8; 12], text: &mut [u8], tag: &[u8; TAG_LEN]) -> bool {
    let state = State::new(key, nonce);
    let mut blocks = Blocks::default();
    state.generate(0, &mut blocks, first_pass(text.len()));
    let opens = bool::from(poly::authenticate(blocks.half(), text).ct_eq(tag));
    if opens {
        xor(&state, &blocks, text);
    }
    opens
}

/// Blocks of the pass that also yields the authenticator's key, which is block 0.
fn first_pass(len: usize) -> usize {
    (1 + len.div_ceil(BLOCK)).min(BLOCKS)
}

/// Adds the key stream, of which `blocks` holds the first pass, to `text`.
#[target_feature(enable = "avx512f,avx512ifma")]
fn xor(state: &State, blocks: &Blocks, text: &mut [u8]) {
    let (head, tail) = text.split_at_mut(text.len().min((BLOCKS - 1) * BLOCK));
    blocks.xor(1, head);
    for (pass, chunk) in (1..).zip(tail.chunks_mut(BLOCKS * BLOCK)) {
        let mut more = Blocks::default();
        state.generate(pass * PASS, &mut more, chunk.len().div_ceil(BLOCK));
        more.xor(0, chunk);
    }
}

#[cfg(test)]
mod tests;
