//! The reference for the tests: RustCrypto's portable AEADs, which share no code with the back ends.

use aes_gcm::Aes256Gcm;
use chacha20poly1305::aead::{AeadInOut, Nonce};
use chacha20poly1305::consts::U16;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};

use super::{Algorithm, TAG_LEN};

/// Like [`AeadKey::seal`](super::AeadKey::seal).
pub(super) fn seal(
    algorithm: Algorithm,
    key: &[u8; 32],
    counter: u64,
    aad: &[u8],
    buffer: &mut [u8],
) -> [u8; TAG_LEN] {
    let nonce = algorithm.nonce(counter);
    match algorithm {
        Algorithm::ChaCha20Poly1305 => {
            sealed(&ChaCha20Poly1305::new(key.into()), (&nonce).into(), aad, buffer)
        }
        Algorithm::Aes256Gcm => sealed(&Aes256Gcm::new(key.into()), (&nonce).into(), aad, buffer),
    }
}

fn sealed<A>(key: &A, nonce: &Nonce<A>, aad: &[u8], buffer: &mut [u8]) -> [u8; TAG_LEN]
where
    A: AeadInOut<TagSize = U16>,
{
    key.encrypt_inout_detached(nonce, aad, buffer.into()).unwrap().into()
}
