//! Key files: read with suspicion, created for their owner only.

use vpnd_crypto::{PresharedKey, SecretKey};

/// The secrets of one tunnel, apart from its [`Config`](crate::config::Config), which may be shown.
pub(crate) struct Keys {
    /// Who we are.
    pub(crate) secret: SecretKey,
    /// Mixed into each handshake; zeros when the tunnel has none.
    pub(crate) preshared: PresharedKey,
}
