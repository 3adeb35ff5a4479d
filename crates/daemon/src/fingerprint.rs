//! What may be shown of keys, to compare them with others later: public keys, and whether a preshared key is the same.

use rand::rand_core::TryRng;
use rand::rngs::SysRng;
use vpnd_crypto::{PresharedKey, PublicKey, hash};

use crate::config::{Difference, Takes};
use crate::keys::Keys;

/// The fingerprints of a tunnel's keys.
#[derive(Clone, Debug)]
pub(crate) struct Fingerprints {
    /// Makes the hashes of this process useless elsewhere.
    salt: [u8; 32],
    own: PublicKey,
    next: Option<PublicKey>,
    preshared: [u8; 32],
    next_preshared: Option<[u8; 32]>,
}

impl Fingerprints {
    /// The fingerprints of these keys.
    ///
    /// # Errors
    ///
    /// If the kernel has no random numbers.
    pub(crate) fn of(keys: &Keys) -> Result<Self, <SysRng as TryRng>::Error> {
        let mut salt = [0; 32];
        SysRng.try_fill_bytes(&mut salt)?;
        Ok(Self::salted(keys, salt))
    }

    /// The fingerprints of other keys, in the same form.
    pub(crate) fn of_others(&self, keys: &Keys) -> Self {
        Self::salted(keys, self.salt)
    }

    fn salted(keys: &Keys, salt: [u8; 32]) -> Self {
        let hashed = |key: &PresharedKey| hash(&[&salt[..], key.as_bytes()]);
        Self {
            salt,
            own: keys.secret.public(),
            next: keys.next_secret.as_ref().map(vpnd_crypto::SecretKey::public),
            preshared: hashed(&keys.preshared),
            next_preshared: keys.next_preshared.as_ref().map(hashed),
        }
    }

    /// The key files whose keys differ from those of `wanted`.
    pub(crate) fn differences(&self, wanted: &Self) -> Vec<Difference> {
        let public = |key: Option<&PublicKey>| {
            key.map_or_else(|| "none".to_owned(), |key| format!("the key of {key}"))
        };
        let preshared = |is_there: bool| if is_there { "a key" } else { "none" }.to_owned();
        let [was_next, next] = [self, wanted].map(|all| all.next_preshared.is_some());
        let all = [
            (
                "[interface] private_key_file",
                self.own != wanted.own,
                [self, wanted].map(|all| public(Some(&all.own))),
            ),
            (
                "[interface] next_private_key_file",
                self.next != wanted.next,
                [self, wanted].map(|all| public(all.next.as_ref())),
            ),
            (
                "[peer] preshared_key_file",
                self.preshared != wanted.preshared,
                ["a key, or none".to_owned(), "another".to_owned()],
            ),
            (
                "[peer] next_preshared_key_file",
                self.next_preshared != wanted.next_preshared,
                [preshared(was_next), preshared(next)],
            ),
        ];
        let differing = all.into_iter().filter(|(_, differs, _)| *differs);
        let difference = |(key, _, [was, becomes]): (&str, bool, [String; 2])| Difference {
            key: key.to_owned(),
            takes: Takes::Live,
            was,
            becomes,
        };
        differing.map(difference).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_crypto::SecretKey;

    fn keys(secret: u8, preshared: u8) -> Keys {
        Keys {
            secret: SecretKey::from_bytes([secret; 32]),
            next_secret: None,
            preshared: PresharedKey::from_bytes([preshared; 32]),
            next_preshared: None,
        }
    }

    #[test]
    fn keys_are_told_apart_and_none_is_shown() {
        let (old, same, new) = (keys(1, 2), keys(1, 2), keys(3, 4));
        let known = Fingerprints::of(&old).unwrap();
        assert_eq!(known.differences(&known.of_others(&same)), []);
        let found = known.differences(&known.of_others(&new));
        let named: Vec<_> = found.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(named, ["[interface] private_key_file", "[peer] preshared_key_file"]);
        assert_eq!(found[0].becomes, format!("the key of {}", new.secret.public()));
        let text = format!("{found:?} {known:?}");
        for secret in [old.secret.to_base64(), old.preshared.to_base64(), new.preshared.to_base64()]
        {
            assert!(!text.contains(&*secret));
        }
        let again = Fingerprints::of(&old).unwrap();
        assert_ne!(again.preshared, known.preshared, "each process has its own salt");
    }
}
