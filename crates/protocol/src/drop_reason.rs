//! Why a datagram or packet was dropped: one closed list, counted by name and shown by `status`.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Why a datagram or packet went no further.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in the order `status` shows them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason's stable name, as `status --json` has it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// No WireGuard message: wrong type, reserved bytes or length; or from source port 0.
    Malformed => "malformed",
    /// A handshake message whose first MAC was not made for our public key.
    BadMac1 => "bad_mac1",
    /// Transport data, or a cookie reply, for an index that is not ours.
    UnknownIndex => "unknown_index",
    /// Did not authenticate.
    Forged => "forged",
    /// Its counter was seen before or lies behind the window.
    Replayed => "replayed",
    /// Its session's keys are too old.
    Expired => "expired",
    /// The handshake queue was full.
    HandshakeQueueFull => "handshake_queue_full",
    /// Under load, and without a valid cookie; a cookie reply was sent instead.
    CookieDemanded => "cookie_demanded",
    /// Under load, and more than 20 handshakes a second from one address.
    RateLimited => "rate_limited",
    /// An initiation of somebody who is not our peer.
    UnknownPeer => "unknown_peer",
    /// An initiation whose timestamp is not newer than the last.
    ReplayedInitiation => "replayed_initiation",
    /// A response that nothing waits for.
    UnexpectedResponse => "unexpected_response",
    /// A response that does not open: the preshared keys differ, or it is forged.
    ResponseDoesNotOpen => "response_does_not_open",
    /// A cookie reply that does not open.
    BadCookie => "bad_cookie",
    /// An inner packet that is neither IPv4 nor IPv6, or cut short.
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
    /// A frame that is not laid out as its kind has to be.
    FrameMalformed => "frame_malformed",
    /// A piece that no packet of the device can have.
    FragmentMalformed => "fragment_malformed",
    /// A piece that contradicts those of its packet that came before it.
    FragmentConflicts => "fragment_conflicts",
    /// A packet that not all pieces of came in time, or that newer ones pushed out.
    Unassembled => "unassembled",
    /// Met congestion on the way, and its transport understands no other sign of it (RFC 6040).
    Congestion => "congestion",
    /// Anything but the upgrade itself on a session that is not upgraded yet.
    NotUpgraded => "not_upgraded",
    /// A message of the upgrade that does not fit the others.
    UpgradeFailed => "upgrade_failed",
    /// The control plane had more frames of the peer waiting than it keeps.
    FrameQueueFull => "frame_queue_full",
    /// A packet of the device that was neither IPv4 nor IPv6, or not what its header says.
    DeviceMalformed => "device_malformed",
    /// A packet of the device that is a datagram of this very tunnel: a route leads the tunnel into itself.
    OwnDatagram => "own_datagram",
    /// A packet of the device that has been through tunnels of this host again and again: they lead into each
    /// other.
    NestedTooDeep => "nested_too_deep",
    /// A packet larger than one datagram.
    TooBig => "too_big",
    /// Staged for a session that did not come in time, or pushed out by newer packets.
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
