//! What a benchmark build, and no other, lets the environment choose: the cipher of transport data.
//! Figures are all it is good for.

use std::env::{self, VarError};
use std::sync::LazyLock;

use vpnd_crypto::aead::Algorithm;

/// The environment variable; both ends need the same.
pub const VARIABLE: &str = "VPND_BENCH_CIPHER";

/// What seals transport data. The handshake stays as it is.
///
/// # Panics
///
/// If the variable names nothing that is known: better no figure than one of another cipher.
pub fn data_cipher() -> Algorithm {
    static CHOSEN: LazyLock<Algorithm> = LazyLock::new(|| match env::var(VARIABLE).as_deref() {
        Ok("chacha20-poly1305") | Err(VarError::NotPresent) => Algorithm::ChaCha20Poly1305,
        Ok("aes-256-gcm") => Algorithm::Aes256Gcm,
        Ok("none") => Algorithm::None,
        other => panic!("{VARIABLE} is {other:?}, not chacha20-poly1305, aes-256-gcm or none"),
    });
    *CHOSEN
}
