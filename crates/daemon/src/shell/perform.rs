//! Carries out the effects that the control plane returns.

use std::io;

use vpnd_plane::{Counted, Effect, Notice, Port, State};
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::peer::Transmit;
use vpnd_tunnel::clock;
use vpnd_tunnel::udp::Refusal;

use super::Shell;
use crate::diagnostics::Facts;
use crate::status::summary;

impl Shell {
    /// Carries out all pending effects, and sets the timer.
    pub(super) async fn settle(&mut self) -> io::Result<()> {
        self.perform_all().await;
        // This comes after the effects, because a session that was just established ends faults.
        self.see_counters();
        self.perform_all().await;
        self.alarm.set(self.plane.deadline())
    }

    async fn perform_all(&mut self) {
        while let Some(effect) = self.plane.poll(clock::now(), &mut self.datagram) {
            self.perform(effect).await;
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Publish(table) => {
                self.engine.publish(*table);
                self.has_published = true;
            }
            Effect::PublishPolicy(policy) => self.engine.set_policy(&policy),
            Effect::SetMtu(mtu) => self.set_mtu(mtu).await,
            Effect::MtuIs(mtu) => self.mtu_is(mtu),
            Effect::Transmit(transmit) => self.transmit(transmit),
            Effect::KeepFloor(stamp) => self.around.floor.keep(stamp),
            Effect::MeasurePath(to) => self.measure_path(to),
            Effect::Fragment(size) => {
                if self.engine.fragment_at(size).is_ok() {
                    self.plane.fragments_at(size);
                }
            }
            Effect::DontFragment(set) => {
                if let Err(error) = self.engine.set_dont_fragment(set) {
                    self.diagnostics.fragmentation_stays(clock::boot(), &error);
                }
            }
            Effect::FollowRoute(heading) => self.follow_route(heading),
            Effect::AskRoutes { at_once: true } => self.ask_routes().await,
            Effect::AskRoutes { at_once: false } => self.around.loops.poll_soon(),
            Effect::LookUpNames => self.around.resolver.nudge(),
            Effect::ChangePort => self.change_port(),
            Effect::CheckSending => {
                let refusal = self.engine.take_refusal();
                self.plane.sending_checked(clock::now(), refusal);
            }
            Effect::ForgetRefusal => drop(self.engine.take_refusal()),
            Effect::Routes { alive } => self.around.routes.set(alive),
            Effect::Carrier { on } => self.set_carrier(on),
            Effect::Hooks { alive, endpoint } => self.around.hooks.peer(alive, endpoint),
            Effect::Standing(state, endpoint) => {
                let endpoint = endpoint.map(|at| self.diagnostics.zones.show(at));
                self.around.service.status(&line(&state, endpoint));
            }
            Effect::Echo(echo) => self.echoed(echo),
            Effect::Notify(notice) => self.notify(&notice),
        }
    }

    /// Sends the polled datagram. If the socket is full, the datagram is sent later.
    fn transmit(&mut self, Transmit { to, from }: Transmit) {
        self.tap_datagram(to, from);
        match self.engine.send(to, from, &self.datagram) {
            Ok(true) => self.plane.datagram_left(to),
            Ok(false) => {}
            Err(error) => {
                self.engine.counters().count(DropReason::SendFailed, 1);
                self.plane.datagram_refused(clock::now(), to, Refusal::of(&error));
            }
        }
    }

    fn change_port(&mut self) {
        let port = match self.engine.change_port() {
            Ok(Some(port)) => {
                self.diagnostics.port_changed(clock::boot(), port);
                self.around.about.device.listen_port = port;
                Port::Changed
            }
            Ok(None) => Port::Fixed,
            Err(error) => {
                tracing::debug!("the port stays as it was: {error}");
                Port::Kept
            }
        };
        self.plane.port_is(clock::now(), port);
    }

    /// If the device is gone, its threads report that.
    pub(super) fn set_carrier(&self, on: bool) {
        if let Some(Err(error)) = self.around.carrier.as_ref().map(|carrier| carrier.set(on)) {
            tracing::debug!("cannot set the carrier: {error}");
        }
    }

    async fn set_mtu(&mut self, mtu: u16) {
        let set = self.around.device_mtu.set(mtu.into()).await;
        self.plane.mtu_set(clock::now(), set.is_ok());
        if let Err(error) = &set {
            self.diagnostics.mtu_refused(clock::boot(), error);
        }
        self.mtu_refused = set.err();
    }

    fn mtu_is(&mut self, mtu: u16) {
        let device = &mut self.around.about.device;
        self.diagnostics.mtu_is(clock::boot(), &device.name, device.mtu, mtu);
        device.mtu = mtu;
        self.around.hooks.mtu(mtu);
    }

    fn notify(&mut self, notice: &Notice) {
        let device = &self.around.about.device.name;
        let facts = Facts { device, dead_after: self.around.running.peer.dead_after };
        self.diagnostics.report(clock::boot(), facts, notice);
    }

    /// Passes the counters of events that are never queued to the control plane.
    pub(super) fn see_counters(&mut self) {
        let counters = self.engine.counters();
        let counted = Counted {
            bad_mac1: counters.dropped(DropReason::BadMac1),
            own_datagrams: counters.dropped(DropReason::OwnDatagram),
            nested: counters.dropped(DropReason::NestedTooDeep),
            refused_sources: self.engine.refused_sources(),
            sends_singly: self.engine.sends_singly(),
            marks_everything: self.engine.marks_everything(),
        };
        self.plane.counters_seen(clock::boot(), counted);
    }
}

/// The state for the service manager.
fn line(state: &State, endpoint: Option<String>) -> String {
    let state = summary(state);
    endpoint.map_or_else(|| state.clone(), |at| format!("{state}, peer at {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpnd_plane::{Kind, Reason};
    use vpnd_protocol::time::BootTime;

    #[test]
    fn one_line_for_systemd() {
        let at = Some("198.51.100.7:51820".to_owned());
        let state = |kind, reason: Option<Reason>| {
            let reasons = reason.into_iter().collect();
            State { kind, reasons, since: BootTime::default() }
        };
        let degraded = state(Kind::Degraded, Some(Reason::Loss));
        assert_eq!(line(&degraded, at), "degraded (loss), peer at 198.51.100.7:51820");
        assert_eq!(line(&state(Kind::Idle, None), None), "idle");
    }
}
