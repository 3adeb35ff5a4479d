//! A single initiation without a tunnel around it, to find out whether the peer answers and on which terms. The
//! session that an answer offers is never confirmed, so the peer uses it for nothing.

use rand_core::CryptoRng;
use vpnd_crypto::key::{NonContributory, PublicKey};
use zerocopy::IntoBytes;

use crate::cookie::{Jar, Mac1Key};
use crate::handshake::{Identity, Initiator};
use crate::message::{self, Index, Initiation, Message, Response};
use crate::terms::Terms;
use crate::time::BootTime;
use crate::timestamp::Timestamp;

/// An initiation that waits for its answer.
pub struct Call<'a> {
    identity: &'a Identity,
    initiator: Initiator,
    initiation: Initiation,
    jar: Jar,
    /// Everybody who answers us knows our public key.
    mac1: Mac1Key,
}

/// What a datagram is to a [`Call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The peer's answer. It opens under the terms with this number, the first that were given being 0.
    Answered(usize),
    /// An answer to this very call that opens under none of the terms.
    DoesNotOpen,
    /// The peer is busy and asks for a proof of our address, which the next [`Call::datagram`] contains.
    Again,
    /// Something else.
    Nothing,
}

impl<'a> Call<'a> {
    /// Prepares an initiation.
    ///
    /// # Errors
    ///
    /// `remote` is a low-order point, which is nobody's public key.
    pub fn new(
        identity: &'a Identity,
        remote: &PublicKey,
        stamp: Timestamp,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, NonContributory> {
        let index = Index::new(rng.next_u32());
        let (initiator, initiation) = Initiator::initiate(identity, remote, index, stamp, rng)?;
        let (jar, mac1) = (Jar::new(remote), Mac1Key::new(identity.public()));
        Ok(Self { identity, initiator, initiation, jar, mac1 })
    }

    /// The datagram to send. A second one with the same timestamp is a repetition, which a peer that has answered
    /// the first ignores.
    pub fn datagram(&mut self, now: BootTime) -> Vec<u8> {
        let mut datagram = self.initiation.as_bytes().to_vec();
        self.jar.seal_macs(now, &mut datagram);
        datagram
    }

    /// Handles a datagram from the peer's address.
    pub fn hear(&mut self, now: BootTime, datagram: &[u8], terms: &[Terms]) -> Reply {
        match message::parse(datagram) {
            Ok(Message::Response(response)) if self.mac1.verify(datagram) => {
                self.answer(response, terms)
            }
            Ok(Message::CookieReply(reply)) if reply.receiver == self.initiator.index() => {
                match self.jar.receive(now, reply) {
                    Ok(()) => Reply::Again,
                    Err(_) => Reply::Nothing,
                }
            }
            _ => Reply::Nothing,
        }
    }

    fn answer(&self, response: &Response, terms: &[Terms]) -> Reply {
        if response.receiver != self.initiator.index() {
            return Reply::Nothing;
        }
        let candidates = terms.iter().map(Terms::psk);
        match self.initiator.open_response(self.identity, candidates, response) {
            Ok(answer) => Reply::Answered(answer.candidate),
            Err(_) => Reply::DoesNotOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cookie::Checker;
    use crate::handshake::read_initiation;
    use crate::terms::Protocol;
    use crate::time::WallTime;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use vpnd_crypto::key::{PresharedKey, SecretKey};
    use zerocopy::FromBytes;

    const NOW: BootTime = BootTime::from_nanos(1);

    fn identity(seed: u64) -> Identity {
        Identity::new(SecretKey::generate(&mut StdRng::seed_from_u64(seed)))
    }

    fn terms(psks: &[u8]) -> Vec<Terms> {
        let of = |psk: &u8| Terms::new(Protocol::WireGuard, &PresharedKey::from_bytes([*psk; 32]));
        psks.iter().map(of).collect()
    }

    /// The peer's answer to an initiation, under this preshared key.
    fn answer(peer: &Identity, caller: &Identity, datagram: &[u8], psk: u8) -> Vec<u8> {
        let initiation = Initiation::read_from_bytes(datagram).unwrap();
        let claim = read_initiation(peer, &initiation).unwrap().prove(peer).unwrap();
        let mut rng = StdRng::seed_from_u64(9);
        let key = PresharedKey::from_bytes([psk; 32]);
        let (response, _) = claim.respond(Index::new(5), &key, &mut rng).unwrap();
        let mut datagram = response.as_bytes().to_vec();
        Jar::new(caller.public()).seal_macs(NOW, &mut datagram);
        datagram
    }

    fn call<'a>(us: &'a Identity, peer: &Identity, seed: u64) -> Call<'a> {
        let stamp = Timestamp::from_wall(WallTime::default());
        Call::new(us, peer.public(), stamp, &mut StdRng::seed_from_u64(seed)).unwrap()
    }

    #[test]
    fn the_terms_of_an_answer_are_named() {
        let (us, peer) = (identity(1), identity(2));
        let mut call = call(&us, &peer, 3);
        let datagram = call.datagram(NOW);
        for psk in 0..3 {
            let answer = answer(&peer, &us, &datagram, psk);
            let candidates = terms(&[0, 1, 2]);
            assert_eq!(call.hear(NOW, &answer, &candidates), Reply::Answered(psk.into()));
        }
        let strange = answer(&peer, &us, &datagram, 7);
        assert_eq!(call.hear(NOW, &strange, &terms(&[0, 1])), Reply::DoesNotOpen);
    }

    #[test]
    fn what_is_no_answer_to_this_call() {
        let (us, peer) = (identity(1), identity(2));
        let mut call = call(&us, &peer, 3);
        let datagram = call.datagram(NOW);
        let mut other = answer(&peer, &us, &datagram, 0);
        other[8] ^= 1;
        for noise in [&b""[..], b"hello", &datagram, &other] {
            assert_eq!(call.hear(NOW, noise, &terms(&[0])), Reply::Nothing);
        }
        // Sealed for somebody else's public key.
        let misled = answer(&peer, &peer, &datagram, 0);
        assert_eq!(call.hear(NOW, &misled, &terms(&[0])), Reply::Nothing);
    }

    #[test]
    fn a_busy_peer_gets_its_proof() {
        let (us, peer) = (identity(1), identity(2));
        let mut call = call(&us, &peer, 3);
        let first = call.datagram(NOW);
        let (from, mut rng) = ("192.0.2.1:7".parse().unwrap(), StdRng::seed_from_u64(4));
        let mut checker = Checker::new(peer.public());
        let index = call.initiator.index();
        let macs = Initiation::read_from_bytes(&first[..]).unwrap().macs;
        let cookie = checker.reply(NOW, from, index, &macs, &mut rng);
        assert!(!checker.verify_mac2(NOW, from, &first));
        assert_eq!(call.hear(NOW, cookie.as_bytes(), &terms(&[0])), Reply::Again);
        assert!(checker.verify_mac2(NOW, from, &call.datagram(NOW)));
    }
}
