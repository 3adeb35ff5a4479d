//! A pair without ssh between the sites: a code goes from the site that invites to the one that joins, and an answer
//! comes back. Private keys stay where they are made.

use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use vpnd_crypto::{PresharedKey, PublicKey, SecretKey, hmac, verify};
use zeroize::Zeroizing;

use super::code::{self, CodeError, Kind};
use super::files::Files;
use super::keys::files;
use super::packed::{Packer, Unpacker};
use super::plan::{Name, Plan};

/// What the first site of a plan tells the second. It is secret: whoever knows it may answer in the other's place.
pub(crate) struct Invitation {
    /// What both make.
    pub(crate) plan: Plan,
    inviter: PublicKey,
    preshared: PresharedKey,
}

impl Invitation {
    /// New keys for the first site. Returns its files, in which the peer's key is missing, and the invitation.
    pub(crate) fn new(plan: Plan) -> (Files, Self) {
        let rng = &mut UnwrapErr(SysRng);
        let (secret, preshared) = (SecretKey::generate(rng), PresharedKey::generate(rng));
        let files = files(plan.ends()[0], &secret, &preshared, None);
        (files, Self { plan, inviter: secret.public(), preshared })
    }

    /// The invitation as a code.
    pub(crate) fn code(&self) -> Zeroizing<String> {
        let mut packer = Packer::new();
        packer.bytes(self.inviter.as_bytes());
        packer.bytes(self.preshared.as_bytes());
        packer.plan(&self.plan);
        code::write(Kind::Invitation, &packer.done())
    }

    /// Reads a code.
    ///
    /// # Errors
    ///
    /// If it is mistyped, or no invitation of this version.
    pub(crate) fn read(text: &str) -> Result<Self, CodeError> {
        let content = code::read(Kind::Invitation, text)?;
        let mut unpacker = Unpacker::new(&content);
        let mut invitation = || {
            let inviter = PublicKey::from_bytes(*unpacker.array()?);
            let preshared = PresharedKey::from_bytes(*unpacker.array()?);
            let plan = unpacker.plan()?;
            unpacker.is_done().then_some(Self { plan, inviter, preshared })
        };
        invitation().ok_or(CodeError::Content)
    }

    /// New keys for the second site. Returns its files, and the answer.
    pub(crate) fn join(&self) -> (Files, Answer) {
        let secret = SecretKey::generate(&mut UnwrapErr(SysRng));
        let [_, end] = self.plan.ends();
        let files = files(end, &secret, &self.preshared, Some(&self.inviter));
        let tag = tag(&self.preshared, &self.inviter, &secret.public());
        let inviter = end.peer().name.clone();
        (files, Answer { inviter, public: secret.public(), tag })
    }
}

/// What the second site tells the first. It is no secret.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The site that has invited.
    pub(crate) inviter: Name,
    /// The second site's key.
    pub(crate) public: PublicKey,
    tag: [u8; TAG],
}

impl Answer {
    /// The answer as a code.
    pub(crate) fn code(&self) -> Zeroizing<String> {
        let mut packer = Packer::new();
        packer.bytes(self.public.as_bytes());
        packer.bytes(&self.tag);
        packer.text(self.inviter.as_ref());
        code::write(Kind::Answer, &packer.done())
    }

    /// Reads a code.
    ///
    /// # Errors
    ///
    /// If it is mistyped, or no answer of this version.
    pub(crate) fn read(text: &str) -> Result<Self, CodeError> {
        let content = code::read(Kind::Answer, text)?;
        let mut unpacker = Unpacker::new(&content);
        let mut answer = || {
            let public = PublicKey::from_bytes(*unpacker.array()?);
            let tag = *unpacker.array()?;
            let inviter = unpacker.parsed()?;
            unpacker.is_done().then_some(Self { inviter, public, tag })
        };
        answer().ok_or(CodeError::Content)
    }

    /// Whether it answers the invitation that was made with these keys.
    pub(crate) fn answers(&self, inviter: &SecretKey, preshared: &PresharedKey) -> bool {
        verify(&self.tag, &tag(preshared, &inviter.public(), &self.public))
    }
}

const TAG: usize = 16;

/// Proves that whoever answers knows the invitation.
fn tag(preshared: &PresharedKey, inviter: &PublicKey, joiner: &PublicKey) -> [u8; TAG] {
    let parts: [&[u8]; 3] = [b"vpnd pair answer", inviter.as_bytes(), joiner.as_bytes()];
    let whole = hmac(preshared.as_bytes(), &parts);
    std::array::from_fn(|at| whole[at])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{both_families, bridged};
    use super::super::text::{PENDING, public_key};
    use super::*;

    fn secret(files: &Files) -> SecretKey {
        SecretKey::from_base64(&files.key).unwrap()
    }

    fn preshared(files: &Files) -> PresharedKey {
        PresharedKey::from_base64(files.psk.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn both_ends_belong_together() {
        for plan in [both_families(), bridged()] {
            let (a, invitation) = Invitation::new(plan);
            let read = Invitation::read(&invitation.code()).unwrap();
            assert_eq!(read.plan, invitation.plan);
            let (b, answer) = read.join();
            assert_eq!(Answer::read(&answer.code()).unwrap(), answer);
            assert!(answer.answers(&secret(&a), &preshared(&a)));
            assert_eq!(answer.public, secret(&b).public());
            assert_eq!(*b.psk.as_ref().unwrap(), *a.psk.as_ref().unwrap());
            assert!(b.check().is_ok());
            assert!(b.config.contains(&public_key(&secret(&a).public())));
            assert!(a.config.contains(PENDING) && a.check().is_err());
        }
    }

    #[test]
    fn no_private_key_leaves_its_machine() {
        let (a, invitation) = Invitation::new(bridged());
        let content = code::read(Kind::Invitation, &invitation.code()).unwrap();
        let secret = base64_bytes(&a.key);
        assert!(!content.windows(32).any(|bytes| bytes == secret));
    }

    /// The 32 bytes of a private key: those with which it makes the same public key.
    fn base64_bytes(key: &str) -> Vec<u8> {
        data_encoding::BASE64.decode(key.as_bytes()).unwrap()
    }

    #[test]
    fn the_answer_to_another_invitation_is_refused() {
        let (a, _) = Invitation::new(bridged());
        let (_, another) = Invitation::new(bridged());
        let (_, answer) = another.join();
        assert!(!answer.answers(&secret(&a), &preshared(&a)));
    }

    #[test]
    fn a_code_is_as_short_as_its_keys_allow() {
        let (_, invitation) = Invitation::new(both_families());
        let (code, answer) = (invitation.code(), invitation.join().1.code());
        assert!(code.len() < 400 && answer.len() < 130, "{} {}", code.len(), answer.len());
    }
}
