//! `Noise_IKpsk2` as in the pattern, one line per token; prologue and payloads are parameters:
//!
//! ```text
//! <- s
//! ...
//! -> e, es, s, ss, {payload}
//! <- e, ee, se, psk, {payload}
//! ```
//!
//! Messages are read in steps, each of which verifies more. Each step consumes the state and returns the
//! next, so that a failed message leaves no state behind.

use vpnd_crypto::aead::Forged;
use vpnd_crypto::key::{NonContributory, PresharedKey, PublicKey, SecretKey};

use super::symmetric::{Cipher, Symmetric};
use super::{HandshakeError, Identity};
use crate::message::Sealed;

/// Writes message 1, `-> e, es, s, ss, {payload}`, all but the ephemeral key itself.
pub(super) fn write_first<C: Cipher, const N: usize>(
    prologue: &[u8],
    local: &Identity,
    remote: &PublicKey,
    ephemeral: &SecretKey,
    payload: &[u8; N],
) -> Result<(Symmetric<C>, Sealed<32>, Sealed<N>), NonContributory> {
    let mut state = Symmetric::start(prologue, remote);
    // e
    state.mix_ephemeral(&ephemeral.public());
    // es
    let key = state.mix_key(&ephemeral.diffie_hellman(remote)?);
    // s
    let fixed = state.seal(key, local.public.as_bytes());
    // ss
    let key = state.mix_key(&local.secret.diffie_hellman(remote)?);
    // {payload}
    let payload = state.seal(key, payload);
    Ok((state, fixed, payload))
}

/// Reads message 1 up to its sender's public key: `e, es, s`.
pub(super) fn read_first_static<C: Cipher>(
    prologue: &[u8],
    local: &Identity,
    ephemeral: &PublicKey,
    fixed: &Sealed<32>,
) -> Result<(Symmetric<C>, PublicKey), HandshakeError> {
    let mut state = Symmetric::start(prologue, &local.public);
    // e
    state.mix_ephemeral(ephemeral);
    // es
    let key = state.mix_key(&local.secret.diffie_hellman(ephemeral)?);
    // s
    let remote = state.open(key, fixed).map_err(|Forged| HandshakeError::NotForUs)?;
    Ok((state, PublicKey::from_bytes(remote)))
}

/// Reads the rest of message 1, which only the owner of the key `remote` can have written: `ss, {payload}`.
pub(super) fn read_first_payload<C: Cipher, const N: usize>(
    mut state: Symmetric<C>,
    local: &Identity,
    remote: &PublicKey,
    payload: &Sealed<N>,
) -> Result<(Symmetric<C>, [u8; N]), HandshakeError> {
    // ss
    let key = state.mix_key(&local.secret.diffie_hellman(remote)?);
    // {payload}
    let payload = state.open(key, payload).map_err(|Forged| HandshakeError::Impostor)?;
    Ok((state, payload))
}

/// Writes message 2, `<- e, ee, se, psk, {payload}`, all but the ephemeral key itself.
pub(super) fn write_second<C: Cipher, const N: usize>(
    mut state: Symmetric<C>,
    ephemeral: &SecretKey,
    remote: &Remote,
    psk: &PresharedKey,
    payload: &[u8; N],
) -> Result<(Symmetric<C>, Sealed<N>), NonContributory> {
    // e
    state.mix_ephemeral(&ephemeral.public());
    // ee
    state.mix_secret(&ephemeral.diffie_hellman(&remote.ephemeral)?);
    // se
    state.mix_secret(&ephemeral.diffie_hellman(&remote.fixed)?);
    // psk
    let key = state.mix_psk(psk);
    // {payload}
    let payload = state.seal(key, payload);
    Ok((state, payload))
}

/// Both public keys of the initiator, from message 1.
pub(super) struct Remote {
    pub(super) ephemeral: PublicKey,
    pub(super) fixed: PublicKey,
}

/// Reads message 2 up to the preshared key: `e, ee, se`.
pub(super) fn read_second_keys<C: Cipher>(
    mut state: Symmetric<C>,
    local: &Identity,
    ephemeral: &SecretKey,
    remote: &PublicKey,
) -> Result<Symmetric<C>, NonContributory> {
    // e
    state.mix_ephemeral(remote);
    // ee
    state.mix_secret(&ephemeral.diffie_hellman(remote)?);
    // se
    state.mix_secret(&local.secret.diffie_hellman(remote)?);
    Ok(state)
}

/// Reads the rest of message 2, which decrypts only under the responder's preshared key: `psk, {payload}`.
pub(super) fn read_second_payload<C: Cipher, const N: usize>(
    mut state: Symmetric<C>,
    psk: &PresharedKey,
    payload: &Sealed<N>,
) -> Result<(Symmetric<C>, [u8; N]), Forged> {
    // psk
    let key = state.mix_psk(psk);
    // {payload}
    let payload = state.open(key, payload)?;
    Ok((state, payload))
}
