//! The data threads' settings, as one published value: the [`Table`] of keys and the path, and the [`Policy`]
//! of the configuration. A thread loads the value once per batch, so that no packet is handled with half of a
//! change.

use std::sync::Arc;

use arc_swap::ArcSwap;
use vpnd_protocol::table::Table;
use vpnd_tun::Mode;

use crate::clamp::{Clamp, Segments};
use crate::filter::{Filter, Macs};
use crate::guard::Guard;

/// The published value. A new view shares the half that did not change with the previous view.
pub(crate) struct View {
    pub(crate) table: Arc<Table>,
    pub(crate) policy: Arc<Policy>,
}

/// The place where the view is published. Concurrent writers are safe: neither overwrites the other's half.
pub(crate) struct Published(ArcSwap<View>);

impl Published {
    pub(crate) fn new(table: Table, policy: Policy) -> Self {
        Self(ArcSwap::from_pointee(View { table: Arc::new(table), policy: Arc::new(policy) }))
    }

    /// The current view. A thread must drop it before it blocks, because it contains keys.
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<View>> {
        self.0.load()
    }

    /// Replaces the table, but not the policy.
    pub(crate) fn set_table(&self, table: &Arc<Table>) {
        self.0.rcu(|view| View { table: Arc::clone(table), policy: Arc::clone(&view.policy) });
    }

    /// Replaces the policy, with a new generation, but not the table.
    pub(crate) fn set_policy(&self, policy: &Policy) {
        self.0.rcu(|view| View {
            table: Arc::clone(&view.table),
            policy: Arc::new(policy.clone().after(&view.policy)),
        });
    }
}

/// The settings for packets that may change while the tunnel runs.
#[derive(Clone, Debug)]
pub struct Policy {
    mode: Mode,
    mtu: u16,
    /// The longest packet that is accepted from the peer in fragments.
    largest_accepted: u16,
    clamp: Option<Clamp>,
    segments: Option<Segments>,
    filter: Filter,
    macs: Option<Macs>,
    guard: Guard,
    generation: u64,
}

impl Policy {
    /// A policy for a device of this mode and MTU, over which the peer may use the inner source addresses of
    /// `filter`. It limits nothing else.
    pub const fn new(mode: Mode, mtu: u16, filter: Filter) -> Self {
        Self {
            mode,
            mtu,
            largest_accepted: mode.largest_packet(mtu),
            clamp: None,
            segments: None,
            filter,
            macs: None,
            guard: Guard::NONE,
            generation: 0,
        }
    }

    /// The same policy for another MTU. The peer may not have lowered its own yet, so packets as long as before
    /// are still accepted.
    #[must_use]
    pub fn with_mtu(self, mtu: u16) -> Self {
        let largest_accepted = self.largest_accepted.max(self.mode.largest_packet(mtu));
        let clamp = self.clamp;
        Self { mtu, largest_accepted, ..self }.with_clamp(clamp)
    }

    /// The same policy with a limit on TCP's segment size, or without one.
    #[must_use]
    pub fn with_clamp(self, clamp: Option<Clamp>) -> Self {
        Self { clamp, segments: clamp.map(|clamp| clamp.segments(self.mtu)), ..self }
    }

    /// The same policy with a list of the hardware addresses that the peer's frames may come from, or without one.
    #[must_use]
    pub fn with_macs(self, macs: Option<Macs>) -> Self {
        Self { macs, ..self }
    }

    /// The same policy with other messages of routers and DHCP servers that the peer may not send.
    #[must_use]
    pub fn with_guard(self, guard: Guard) -> Self {
        Self { guard, ..self }
    }

    /// The device's MTU, which padding never exceeds.
    pub const fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The length of the longest packet that crosses the device; for Ethernet frames it exceeds the MTU.
    pub const fn largest_packet(&self) -> u16 {
        self.mode.largest_packet(self.mtu)
    }

    /// The longest packet that is accepted from the peer in fragments: at least as long as our own.
    pub(crate) const fn largest_accepted(&self) -> u16 {
        self.largest_accepted
    }

    /// The limits of TCP's segment size; `None` means no limit.
    pub const fn segments(&self) -> Option<Segments> {
        self.segments
    }

    /// The inner source addresses that the peer may use.
    pub const fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The hardware addresses that the peer's frames may come from; `None` allows any address.
    pub(crate) const fn macs(&self) -> Option<&Macs> {
        self.macs.as_ref()
    }

    /// The messages of routers and DHCP servers that the peer may not send.
    pub(crate) const fn guard(&self) -> Guard {
        self.guard
    }

    /// Differs between any two published policies. When it changes, state that depends on the sizes in a policy
    /// is renewed.
    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    /// The same policy, with the generation after that of `former`.
    fn after(self, former: &Self) -> Self {
        Self { generation: former.generation + 1, ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::thread;

    use vpnd_protocol::drop_reason::DropReason;

    use super::*;
    use crate::outbound::Outbound;
    use crate::shared::Shared;
    use crate::tests::{MTU, ends, inbound, lines, policy, read_packet, receive, send};
    use crate::udp::tests::in_namespace;

    const HERE: &str = "192.0.2.0/24";
    const ELSEWHERE: &str = "198.51.100.0/24";

    #[test]
    fn each_publication_keeps_the_other_half_and_every_policy_has_a_generation_of_its_own() {
        in_namespace(|| {
            let (near, _) = ends(1);
            let (view, other) = (&near.view, policy(1300, HERE));
            let generation = || view.load().policy.generation();
            let (table, first) = (Arc::clone(&view.load().table), generation());
            view.set_policy(&other);
            assert!(Arc::ptr_eq(&table, &view.load().table));
            assert_eq!((view.load().policy.mtu(), generation()), (1300, first + 1));
            view.set_table(&table);
            assert_eq!((view.load().policy.mtu(), generation()), (1300, first + 1));
            view.set_policy(&other);
            assert_eq!(generation(), first + 2);
        });
    }

    #[test]
    fn a_policy_that_changes_under_traffic_loses_nothing_and_rules_the_next_batch() {
        in_namespace(|| {
            let (near, far) = ends(1);
            let (mut lines, mut inbound, packet) = (lines(&near), inbound(&far), read_packet(400));
            let stop = AtomicBool::new(false);
            let (batches, policies) = thread::scope(|scope| {
                let changes = scope.spawn(|| {
                    let mut count = 0u64;
                    while !stop.load(Relaxed) {
                        let mtu = if count.is_multiple_of(2) { 1280 } else { MTU };
                        near.view.set_policy(&policy(mtu, "0.0.0.0/0"));
                        far.view.set_policy(&policy(mtu, HERE));
                        count += 1;
                    }
                    count
                });
                let mut batches = 0;
                while batches < 2000 || near.view.load().policy.generation() < 1000 {
                    send(&mut lines[0], &packet, 20);
                    receive(&mut inbound);
                    batches += 1;
                }
                stop.store(true, Relaxed);
                (batches, changes.join().unwrap())
            });
            let crossed = far.activity.traffic().packets_received;
            assert_eq!(crossed, 20 * batches, "under {policies} policies");
            assert_eq!(far.counters.iter().map(|(_, dropped)| dropped).sum::<u64>(), 0);
            for (allowed, dropped) in [(ELSEWHERE, 20), (HERE, 20), (ELSEWHERE, 40)] {
                far.view.set_policy(&policy(MTU, allowed));
                send(&mut lines[0], &packet, 20);
                receive(&mut inbound);
                assert_eq!(far.counters.dropped(DropReason::SourceNotAllowed), dropped);
            }
        });
    }

    /// The size on the wire of one packet of this length.
    fn datagram(near: &Shared, line: &mut Outbound, len: u16) -> u64 {
        let sent = || near.activity.traffic().bytes_sent;
        let before = sent();
        send(line, &read_packet(len), 10);
        (sent() - before) / 10
    }

    #[test]
    fn no_datagram_is_larger_than_the_new_mtu_makes_it_and_what_was_queued_before_still_goes() {
        in_namespace(|| {
            const OVERHEAD: u64 = 32;
            let (near, far) = ends(1);
            let (mut lines, mut inbound) = (lines(&near), inbound(&far));
            let line = &mut lines[0];
            // Padded to a multiple of 16, but never beyond the MTU.
            for (mtu, len, padded) in [
                (MTU, 1290, 1296),
                (MTU, 1420, 1420),
                (1290, 1290, 1290),
                (1290, 1281, 1290),
                // The kernel had queued the packet before the device's MTU was lowered.
                (1290, 1420, 1420 - 1420 % 1290 + 144),
                (9000, 8990, 8992),
            ] {
                near.view.set_policy(&policy(mtu, HERE));
                line.poll(0).map(drop).unwrap();
                assert_eq!(datagram(&near, line, len), padded + OVERHEAD, "{len} over {mtu}");
                receive(&mut inbound);
            }
            assert_eq!(far.activity.traffic().packets_received, 60);
        });
    }
}
