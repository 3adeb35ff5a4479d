//! Why a datagram or packet was dropped: one closed list, counted by name and shown by `status`.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a datagram or packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in the order `status` shows them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason's stable name, as `status --json` shows it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// Not a WireGuard message: wrong type, reserved bytes or length; or from source port 0.
    Malformed => "malformed",
    /// A handshake message whose first MAC was not made for our public key.
    BadMac1 => "bad_mac1",
    /// Transport data, or a cookie reply, for an index that is not ours.
    UnknownIndex => "unknown_index",
    /// The datagram did not authenticate.
    Forged => "forged",
    /// Its counter was seen before or is below the replay window.
    Replayed => "replayed",
    /// Its session's keys are too old.
    Expired => "expired",
    /// The handshake queue was full.
    HandshakeQueueFull => "handshake_queue_full",
    /// A handshake message just before a suspend, when no session is made.
    Asleep => "asleep",
    /// Under load, and without a valid cookie; a cookie reply was sent instead.
    CookieDemanded => "cookie_demanded",
    /// Under load, and more than 20 handshakes a second from one address.
    RateLimited => "rate_limited",
    /// An initiation under a public key that is not the peer's.
    UnknownPeer => "unknown_peer",
    /// An initiation whose timestamp is not newer than the last one's.
    ReplayedInitiation => "replayed_initiation",
    /// A response to no pending initiation.
    UnexpectedResponse => "unexpected_response",
    /// A response that does not decrypt: the preshared keys differ, or it is forged.
    ResponseDoesNotOpen => "response_does_not_open",
    /// A cookie reply that does not decrypt.
    BadCookie => "bad_cookie",
    /// An inner packet that is neither IPv4 nor IPv6, or truncated.
    InnerMalformed => "inner_malformed",
    /// An inner packet whose source address is not in `allowed_ips`.
    SourceNotAllowed => "source_not_allowed",
    /// A message of a router or a DHCP server to hosts here, or IPv6 headers that might hide one.
    Guarded => "guarded",
    /// An inner frame whose source address is not in `allowed_macs`.
    SourceMacNotAllowed => "source_mac_not_allowed",
    /// A packet of the peer that is longer than our device's MTU allows: the MTUs of the two ends differ.
    LargerThanMtu => "larger_than_mtu",
    /// A frame of a kind, or a record of a type, that this release does not know.
    UnknownFrame => "unknown_frame",
    /// A frame whose layout is invalid for its kind.
    FrameMalformed => "frame_malformed",
    /// A fragment that cannot belong to any packet of the device.
    FragmentMalformed => "fragment_malformed",
    /// A fragment that contradicts earlier ones of the same packet.
    FragmentConflicts => "fragment_conflicts",
    /// A packet whose fragments did not all arrive in time, or that was replaced by newer ones.
    Unassembled => "unassembled",
    /// Marked for congestion on the path, but the inner packet does not support ECN, so congestion is
    /// signalled by dropping it (RFC 6040).
    Congestion => "congestion",
    /// Any message but the upgrade itself on a session that is not upgraded yet.
    NotUpgraded => "not_upgraded",
    /// A message of the upgrade that does not fit the others.
    UpgradeFailed => "upgrade_failed",
    /// The queue of control frames for the control plane was full.
    FrameQueueFull => "frame_queue_full",
    /// A packet from the device that is neither IPv4 nor IPv6, or does not match its header.
    DeviceMalformed => "device_malformed",
    /// A packet from the device that is a datagram of this very tunnel: a route leads the tunnel into itself.
    OwnDatagram => "own_datagram",
    /// A packet from the device that has passed through tunnels of this host several times: they lead into
    /// each other.
    NestedTooDeep => "nested_too_deep",
    /// A packet larger than one datagram.
    TooBig => "too_big",
    /// Staged for a session that was not established in time, or replaced by newer packets.
    StagingDropped => "staging_dropped",
    /// The kernel refused to send it.
    SendFailed => "send_failed",
    /// The kernel refused it at the device.
    DeviceFailed => "device_failed",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_order() {
        for (at, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
            assert!(DropReason::ALL[..at].iter().all(|other| other.name() != reason.name()));
        }
    }

    #[test]
    fn operators_can_look_every_reason_up() {
        let page = include_str!("../../../docs/operations.md");
        let (_, table) = page.split_once("| reason | means |").unwrap();
        let reasons: Vec<&str> = table
            .lines()
            .filter_map(|row| row.strip_prefix("| `")?.split_once("` |"))
            .flat_map(|(reasons, _)| reasons.split("`, `"))
            .collect();
        let missing = DropReason::ALL.iter().find(|reason| !reasons.contains(&reason.name()));
        assert_eq!(missing, None);
    }
}
