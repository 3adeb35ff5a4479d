//! Carries out what the control plane wants done.

use std::io;

use vpnd_plane::{Effect, Notice, Port};
use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::peer::{Liveness, Transmit};
use vpnd_tunnel::clock;
use vpnd_tunnel::udp::Refusal;

use super::Shell;
use crate::status::State;

impl Shell {
    /// Tells the service manager how it stands before anything has happened.
    pub(super) fn begin(&mut self) {
        self.around.service.status(&line(Liveness::Idle, None));
    }

    /// Carries out everything that is to be done by now.
    pub(super) async fn settle(&mut self) -> io::Result<()> {
        while let Some(effect) = self.plane.poll(clock::now(), &mut self.datagram) {
            self.perform(effect).await;
        }
        self.watch_counters();
        self.alarm.set(self.plane.deadline())
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Publish(table) => self.engine.publish(*table),
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
            Effect::FollowRoute(heading) => self.follow_route(heading),
            Effect::AskRoutes { at_once: true } => self.ask_routes().await,
            Effect::AskRoutes { at_once: false } => self.around.loops.look_soon(),
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
            Effect::Standing(liveness, endpoint) => {
                let endpoint = endpoint.map(|at| self.telling.zones.show(at));
                self.around.service.status(&line(liveness, endpoint));
            }
            Effect::Notify(notice) => self.notify(&notice),
        }
    }

    /// Sends the datagram that was polled. One that finds no room leaves later.
    fn transmit(&mut self, Transmit { to, from }: Transmit) {
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
                tracing::info!("no answer for long: sending from another port, {port}");
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
    fn set_carrier(&self, on: bool) {
        if let Some(Err(error)) = self.around.carrier.as_ref().map(|carrier| carrier.set(on)) {
            tracing::debug!("the carrier does not follow: {error}");
        }
    }

    async fn set_mtu(&mut self, mtu: u16) {
        let set = self.around.device_mtu.set(mtu.into()).await;
        self.plane.mtu_set(clock::now(), set.is_ok());
        self.mtu_refused = set.err();
    }

    fn mtu_is(&mut self, mtu: u16) {
        let device = &mut self.around.about.device;
        tracing::info!("the MTU of {} is {mtu} now, it was {}", device.name, device.mtu);
        device.mtu = mtu;
        self.around.hooks.mtu(mtu);
    }

    fn notify(&mut self, notice: &Notice) {
        let now = clock::boot();
        match notice {
            Notice::Change(change) => self.telling.changed(now, change),
            Notice::Diagnosis(found) => self.telling.diagnosed(now, found),
            Notice::Alive(alive) => {
                self.telling.alive(now, *alive, self.around.running.peer.dead_after);
            }
            Notice::Refused(refused) => self.telling.refused(now, *refused),
            Notice::Leaves => self.telling.leaves(now),
            Notice::Silent => tracing::warn!("the peer is silent"),
            Notice::Answers => tracing::info!("the peer answers again"),
            Notice::FallsSilent => tracing::info!(
                "no answer for long: nothing is sent for half a minute, so that a NAT on the path forgets this flow; \
                 without a fixed [interface] listen another port would be tried"
            ),
            Notice::RouteChanged => tracing::debug!("the route to the peer has changed"),
        }
    }

    /// What is only counted, and never queued.
    fn watch_counters(&mut self) {
        let (now, counters) = (clock::boot(), self.engine.counters());
        let bad_mac1 = counters.dropped(DropReason::BadMac1);
        self.telling.watch_bad_mac1(now, bad_mac1, self.plane.is_connected());
        self.telling.watch_refused_sources(now, self.engine.refused_sources());
        let back =
            [DropReason::OwnDatagram, DropReason::NestedTooDeep].map(|why| counters.dropped(why));
        self.telling.watch_loops(now, &self.around.about.device.name, back);
    }
}

/// How the tunnel stands, for the service manager.
fn line(liveness: Liveness, endpoint: Option<String>) -> String {
    let state = State::from(liveness).word();
    endpoint.map_or_else(|| state.to_owned(), |at| format!("{state}, peer at {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_systemd() {
        let at = Some("198.51.100.7:51820".to_owned());
        assert_eq!(line(Liveness::Up, at), "up, peer at 198.51.100.7:51820");
        assert_eq!(line(Liveness::Idle, None), "idle");
    }
}
