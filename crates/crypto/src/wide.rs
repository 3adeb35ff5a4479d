//! ChaCha20-Poly1305 (RFC 8439) in 512-bit registers, for tunnel packets: up to eight packets of one length
//! under one key, computed together.
//!
//! For one packet, each step has to wait for the result of the step before it. With several packets, the
//! processor computes steps of the others in the meantime, so each packet takes half to two thirds of the time.
//! A single long packet is still faster than with ring, whose code is for 256-bit registers. A single short
//! packet is slower, so ring seals it (`docs/performance.md`).
//!
//! Every packet depends on this code, so it is checked thoroughly. It is used only after it has reproduced
//! ring's results in the running process, and the tests compare it with ring and RustCrypto for every length.
//!
//! No branch and no memory address depends on a secret.

mod chacha;
mod each;
mod limbs;
mod poly;
mod transpose;

use chacha::{BLOCK, Pass, Stream};
use subtle::ConstantTimeEq;

use crate::aead::{Forged, GROUP, TAG_LEN};
use crate::memory::Secret;

/// From this number of messages on, it is faster to give each message one lane than to give all lanes to one
/// message after the other.
const MIN_LANE_EACH: usize = 3;

/// A key. It exists only if the processor has the instructions.
pub(crate) struct WideKey(Secret);

impl WideKey {
    /// `None` if the processor lacks the instructions.
    pub(crate) fn new(key: &[u8; 32]) -> Option<Self> {
        is_supported().then(|| Self(Secret::copy_of(key)))
    }

    /// Encrypts `buffer` in place, without associated data, and returns its tag.
    pub(crate) fn seal(&self, nonce: &[u8; 12], buffer: &mut [u8]) -> [u8; TAG_LEN] {
        let [tag, ..] = self.seal_group(&[*nonce], &mut [buffer]);
        tag
    }

    /// Decrypts `buffer`, a ciphertext and its tag without associated data, in place, and returns
    /// the plaintext.
    pub(crate) fn open<'a>(
        &self,
        nonce: &[u8; 12],
        buffer: &'a mut [u8],
    ) -> Result<&'a mut [u8], Forged> {
        let (text, tag) = buffer.split_last_chunk_mut::<TAG_LEN>().ok_or(Forged)?;
        let [opens, ..] = self.open_group(&[*nonce], &mut [&mut *text], &[*tag]);
        if opens { Ok(text) } else { Err(Forged) }
    }

    /// Encrypts up to [`GROUP`] texts of one length in place, and returns their tags.
    pub(crate) fn seal_group(
        &self,
        nonces: &[[u8; 12]],
        texts: &mut [&mut [u8]],
    ) -> [[u8; TAG_LEN]; GROUP] {
        // SAFETY: `new` has found every feature that `seal` is compiled for.
        unsafe { seal(&self.0, nonces, texts) }
    }

    /// Decrypts up to [`GROUP`] ciphertexts of one length in place, and returns which of them had the right
    /// tag. A ciphertext with a wrong tag is not decrypted, and its slice in `texts` is emptied.
    pub(crate) fn open_group(
        &self,
        nonces: &[[u8; 12]],
        texts: &mut [&mut [u8]],
        tags: &[[u8; TAG_LEN]],
    ) -> [bool; GROUP] {
        // SAFETY: as in `seal_group`.
        unsafe { open(&self.0, nonces, texts, tags) }
    }
}

/// Whether the processor has the instructions that this module needs.
fn is_supported() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma")
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn seal(key: &[u8; 32], nonces: &[[u8; 12]], texts: &mut [&mut [u8]]) -> [[u8; TAG_LEN]; GROUP] {
    let (mut stream, mut pass, end) = (Stream::new(key, nonces), Pass::new(), end(texts));
    stream.next(end, &mut pass);
    let keys = *pass.keys();
    xor(&mut stream, pass, end, texts);
    authenticate(&keys, texts)
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn open(
    key: &[u8; 32],
    nonces: &[[u8; 12]],
    texts: &mut [&mut [u8]],
    tags: &[[u8; TAG_LEN]],
) -> [bool; GROUP] {
    let (mut stream, mut pass, end) = (Stream::new(key, nonces), Pass::new(), end(texts));
    stream.next(end, &mut pass);
    let mut opens = [false; GROUP];
    let expected = authenticate(pass.keys(), texts);
    for (i, text) in texts.iter_mut().enumerate() {
        opens[i] = expected[i].ct_eq(&tags[i]).into();
        if !opens[i] {
            *text = &mut [];
        }
    }
    xor(&mut stream, pass, end, texts);
    opens
}

/// The number of blocks of each message: block 0, which is the authenticator's key, and the blocks of the text.
fn end(texts: &[&mut [u8]]) -> usize {
    1 + texts[0].len().div_ceil(BLOCK)
}

/// XORs the texts with the key stream; `pass` contains the beginning of the stream.
#[target_feature(enable = "avx512f,avx512ifma")]
fn xor(stream: &mut Stream, mut pass: Pass, end: usize, texts: &mut [&mut [u8]]) {
    pass.xor(texts);
    while stream.block() < end {
        stream.next(end, &mut pass);
        pass.xor(texts);
    }
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn authenticate(keys: &[[u8; BLOCK]; GROUP], texts: &[&mut [u8]]) -> [[u8; TAG_LEN]; GROUP] {
    if texts.len() >= MIN_LANE_EACH {
        let lanes = std::array::from_fn(|i| &**texts.get(i).unwrap_or(&texts[0]));
        return each::authenticate(keys, lanes);
    }
    let mut tags = [[0; TAG_LEN]; GROUP];
    for ((text, key), tag) in texts.iter().zip(keys).zip(&mut tags) {
        *tag = poly::authenticate(key, text);
    }
    tags
}

#[cfg(test)]
mod tests;
