//! The keys of a pair, and the files of both sites with them.

use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use vpnd_crypto::{PresharedKey, PublicKey, SecretKey};

use super::files::Files;
use super::plan::{End, Plan};
use super::text;

/// A private key for each site, and a preshared key.
pub(crate) struct Pair {
    secrets: [SecretKey; 2],
    preshared: PresharedKey,
}

impl Pair {
    /// New keys.
    pub(crate) fn generate() -> Self {
        let rng = &mut UnwrapErr(SysRng);
        let secrets = [SecretKey::generate(rng), SecretKey::generate(rng)];
        Self { secrets, preshared: PresharedKey::generate(rng) }
    }

    /// The files of both sites.
    pub(crate) fn files(&self, plan: &Plan) -> [Files; 2] {
        let ([end_a, end_b], [a, b]) = (plan.ends(), &self.secrets);
        let shared = &self.preshared;
        [files(end_a, a, shared, Some(&b.public())), files(end_b, b, shared, Some(&a.public()))]
    }
}

/// The files of one end, whose peer's key may be unknown yet.
pub(super) fn files(
    end: End<'_>,
    secret: &SecretKey,
    preshared: &PresharedKey,
    peer: Option<&PublicKey>,
) -> Files {
    Files {
        name: end.site().name.clone(),
        config: text::config(end, peer),
        key: secret.to_base64(),
        psk: Some(preshared.to_base64()),
    }
}
