//! Translates the configuration into the protocol's terms: the terms under which answers are accepted, in the
//! order in which they are tried.

use vpnd_crypto::key::{PresharedKey, PublicKey};
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::{Protocol, Terms};

use crate::config::{self, AlsoAccept, Config};
use crate::keys::Keys;

/// The identities and the terms on which sessions are agreed.
pub(crate) struct Agreement {
    pub(crate) identities: Vec<Identity>,
    pub(crate) remotes: Vec<PublicKey>,
    pub(crate) terms: Vec<Terms>,
}

impl Agreement {
    /// The agreement that the configuration describes. Current keys come before next keys.
    pub(crate) fn of(config: &Config, keys: Keys) -> Self {
        let Keys { secret, next_secret, preshared, next_preshared } = keys;
        let own = [Some(secret), next_secret].into_iter().flatten();
        let remotes = [Some(config.peer.public_key), config.peer.next_public_key];
        Self {
            identities: own.map(Identity::new).collect(),
            remotes: remotes.into_iter().flatten().collect(),
            terms: terms(config, &preshared, next_preshared.as_ref()),
        }
    }
}

/// Our own terms come first, then the same terms with the next preshared key, then the changes in `also_accept`.
fn terms(
    config: &Config,
    preshared: &PresharedKey,
    next_preshared: Option<&PresharedKey>,
) -> Vec<Terms> {
    let own = protocol(config.interface.mode, &config.peer);
    let keys = [Some(preshared), next_preshared].into_iter().flatten();
    let others = config.peer.also_accept.iter().map(|change| changed(own, *change));
    keys.map(|key| Terms::new(own, key))
        .chain(others.map(|other| Terms::new(other, preshared)))
        .collect()
}

fn protocol(mode: vpnd_tun::Mode, peer: &config::Peer) -> Protocol {
    match peer.protocol {
        config::Protocol::WireGuard => Protocol::WireGuard,
        config::Protocol::Vpnd => Protocol::Vpnd(Profile {
            mode: match mode {
                vpnd_tun::Mode::Tun => Mode::Tun,
                vpnd_tun::Mode::Tap => Mode::Tap,
            },
            cipher: peer.cipher,
            kem: kem(peer.post_quantum),
        }),
    }
}

fn changed(own: Protocol, change: AlsoAccept) -> Protocol {
    // This does not happen: the configuration rejects `also_accept` for WireGuard.
    let Protocol::Vpnd(profile) = own else { return own };
    match change {
        AlsoAccept::WireGuard => Protocol::WireGuard,
        AlsoAccept::Cipher(cipher) => Protocol::Vpnd(Profile { cipher, ..profile }),
        AlsoAccept::PostQuantum(on) => Protocol::Vpnd(Profile { kem: kem(on), ..profile }),
    }
}

const fn kem(post_quantum: bool) -> Kem {
    if post_quantum { Kem::MlKem768 } else { Kem::None }
}
