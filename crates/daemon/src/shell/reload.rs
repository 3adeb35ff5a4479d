//! Changes a running tunnel to another configuration: to all of it, or to nothing.
//!
//! 1. The two configurations are compared; a key that takes a restart ends the attempt.
//! 2. What can fail without a trace comes first: sockets are opened, threads started ([`Prepared`]).
//! 3. The *steps* change what the kernel may refuse. If it refuses one, those before it are taken back.
//! 4. The rest cannot fail: timers, filters, keys, the log.

use std::io;
use std::net::IpAddr;

use thiserror::Error;
use vpnd_device::{Link, Own};
use vpnd_protocol::limits::ETHERNET_MTU;
use vpnd_protocol::peer::Transmit;
use vpnd_tun::Mode;
use vpnd_tunnel::clock;
use vpnd_tunnel::udp::{BindError, Egress};

use super::Shell;
use crate::changes::{self, egress_beside};
use crate::config::{Config, Difference, Takes};
use crate::firewall::Tunnel;
use crate::keys::Keys;
use crate::logging;
use crate::metrics::Metrics;
use crate::options;
use crate::resolve::{self, Resolver};
use crate::terms::Agreement;

/// Why a reload has changed nothing.
#[derive(Debug, Error)]
pub(crate) enum Refused {
    /// These keys differ, and take a restart.
    #[error(
        "{} {} a restart; nothing was changed", quoted(.0),
        if .0.len() == 1 { "differs and takes" } else { "differ and take" }
    )]
    NeedsRestart(Vec<String>),
    /// This key was refused.
    #[error("{key}: {why}; nothing was changed")]
    Key { key: &'static str, why: String },
}

fn quoted(keys: &[String]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}

impl Refused {
    fn of(key: &'static str, why: impl ToString) -> Self {
        Self::Key { key, why: why.to_string() }
    }

    /// The keys of these differences that take a restart, if there are any.
    fn restart(differences: &[Difference]) -> Result<(), Self> {
        let restart = differences.iter().filter(|one| one.takes == Takes::Restart);
        let keys: Vec<_> = restart.map(|one| one.key.clone()).collect();
        if keys.is_empty() { Ok(()) } else { Err(Self::NeedsRestart(keys)) }
    }
}

impl From<vpnd_device::Error> for Refused {
    fn from(error: vpnd_device::Error) -> Self {
        Self::of(error.key(), error)
    }
}

/// The key that a socket's error is about.
fn socket_key(error: &BindError) -> &'static str {
    match error {
        BindError::NoDevice { .. } | BindError::Device { .. } => "[socket] bind_device",
        BindError::SourceNotOurs { .. } | BindError::Source { .. } => "[socket] source",
        _ => "[socket] fwmark",
    }
}

/// A configuration, and what follows from it on this host.
struct Target {
    config: Config,
    egress: Egress,
    mtu: u16,
}

/// What the kernel may refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Egress,
    Buffers,
    Batches,
    /// Filters and the MTU.
    Policy,
    Device,
    Firewall,
}

/// The order of the steps. Datagrams have their mark as long as a rule asks for it. The MTU is that which IPv6 needs as
/// long as there is an IPv6 address.
fn order(from: &Target, to: &Target) -> Vec<Step> {
    let marked = to.egress.mark != 0;
    let grows = to.mtu >= from.mtu;
    let early = [(Step::Egress, marked), (Step::Policy, grows)];
    let late = [(Step::Policy, !grows), (Step::Egress, !marked)];
    let chosen =
        |all: [(Step, bool); 2]| all.into_iter().filter(|(_, now)| *now).map(|(step, _)| step);
    let always = [Step::Buffers, Step::Batches];
    let middle = [Step::Device, Step::Firewall];
    always.into_iter().chain(chosen(early)).chain(middle).chain(chosen(late)).collect()
}

/// What was opened for a configuration, and is dropped if the change fails.
#[derive(Default)]
struct Prepared {
    resolver: Option<Resolver>,
    metrics: Option<Option<Metrics>>,
}

impl Shell {
    /// Every key that differs from these, without a change.
    pub(super) fn compare(&self, config: &Config, keys: &Keys) -> Vec<Difference> {
        let alter = &self.around.alter;
        let of_keys = alter.keys.differences(&alter.keys.of_others(keys));
        self.around.running.differences(config, alter.running, &of_keys)
    }

    /// Changes to another configuration. If that fails, nothing has changed, and the reason is returned.
    pub(super) async fn become_new(
        &mut self,
        config: Config,
        keys: Keys,
    ) -> io::Result<Result<(), Refused>> {
        if let Err(refused) = Refused::restart(&self.compare(&config, &keys)) {
            return Ok(Err(refused));
        }
        let from = Target {
            config: self.around.running.clone(),
            egress: self.around.egress.clone(),
            mtu: self.plane.policy().mtu(),
        };
        let to = match self.target(config).await {
            Ok(to) => to,
            Err(refused) => return Ok(Err(refused)),
        };
        let prepared = match self.prepare(&to).await {
            Ok(prepared) => prepared,
            Err(refused) => return Ok(Err(refused)),
        };
        if let Err(refused) = self.take_all(&from, &to).await? {
            return Ok(Err(refused));
        }
        self.conclude(to, keys, prepared);
        Ok(Ok(()))
    }

    async fn target(&self, config: Config) -> Result<Target, Refused> {
        let running = &self.around.running;
        let would_loop = self.would_loop(&config);
        let mark = self.around.egress.mark;
        let chosen = (running.socket.fwmark == 0 && mark != 0).then_some(mark);
        let netlink = &self.around.alter.netlink;
        let egress = egress_beside(&config, netlink, would_loop, chosen).await;
        let mtu = self.wanted_mtu(&config).await?;
        Ok(Target { config, egress, mtu })
    }

    /// Whether the tunnel's routes lead its own datagrams into the tunnel, unless rules exempt them.
    fn would_loop(&self, config: &Config) -> bool {
        config.leads_everywhere() && self.around.alter.one_place
    }

    async fn wanted_mtu(&self, config: &Config) -> Result<u16, Refused> {
        let (interface, former) = (&config.interface, &self.around.running.interface);
        let is_same = (interface.mtu, &interface.bridge) == (former.mtu, &former.bridge);
        let there = match (interface.mtu, &interface.bridge) {
            (Some(mtu), _) => return Ok(mtu),
            (None, _) if is_same || interface.mode == Mode::Tun => {
                return Ok(self.plane.policy().mtu());
            }
            (None, Some(bridge)) => self.around.alter.netlink.bridge_mtu(bridge).await?,
            (None, None) => return Ok(ETHERNET_MTU),
        };
        Ok(u16::try_from(there).unwrap_or(u16::MAX))
    }

    /// Opens what the new configuration needs.
    async fn prepare(&self, to: &Target) -> Result<Prepared, Refused> {
        let (running, wanted) = (&self.around.running, &to.config);
        let mut prepared = Prepared::default();
        if wanted.socket.sources != running.socket.sources {
            changes::check_sources(&wanted.socket, &to.egress)
                .map_err(|error| Refused::of(socket_key(&error), error))?;
        }
        let is_elsewhere = self.around.hold.endpoint.is_some();
        if is_elsewhere || wanted.peer.endpoints != running.peer.endpoints {
            let endpoints = wanted.peer.endpoints.clone();
            let known = Some(&self.around.resolver);
            let resolver = resolve::spawn(endpoints, &self.around.lookups, known).await;
            prepared.resolver =
                Some(resolver.map_err(|error| Refused::of("[peer] endpoint", error))?);
        }
        if wanted.metrics != running.metrics {
            let bound = Metrics::bind_now(wanted);
            let bound = bound.map_err(|error| Refused::of("[metrics] listen", error))?;
            prepared.metrics = Some(bound.map(crate::metrics::Bound::serve));
        }
        Ok(prepared)
    }

    /// Takes all steps, or none.
    async fn take_all(&mut self, from: &Target, to: &Target) -> io::Result<Result<(), Refused>> {
        let steps = order(from, to);
        for (done, step) in steps.iter().enumerate() {
            let Err(refused) = self.take(*step, from, to).await? else { continue };
            for step in steps[..done].iter().rev() {
                if let Err(error) = self.take(*step, to, from).await? {
                    tracing::warn!("a reload that was refused cannot be taken back: {error}");
                }
            }
            return Ok(Err(refused));
        }
        Ok(Ok(()))
    }

    async fn take(
        &mut self,
        step: Step,
        from: &Target,
        to: &Target,
    ) -> io::Result<Result<(), Refused>> {
        Ok(match step {
            Step::Egress => self.set_egress(from, to),
            Step::Buffers => self.set_buffers(from, to),
            Step::Batches => self.set_batches(from, to),
            Step::Policy => return self.set_policy(to).await,
            Step::Device => self.set_link(from, to).await,
            Step::Firewall => self.set_rules(from, to).await,
        })
    }

    fn set_egress(&self, from: &Target, to: &Target) -> Result<(), Refused> {
        if from.egress == to.egress {
            return Ok(());
        }
        let set = self.engine.socket().set_egress(&to.egress);
        set.map_err(|error| Refused::of(socket_key(&error), error))
    }

    fn set_buffers(&self, from: &Target, to: &Target) -> Result<(), Refused> {
        let [was, wanted] =
            [from, to].map(|target| (target.config.socket.rcvbuf, target.config.socket.sndbuf));
        if was == wanted {
            return Ok(());
        }
        let set = self.engine.socket().set_buffers(wanted.0, wanted.1);
        set.map_err(|error| Refused::of("[socket] rcvbuf", error))
    }

    fn set_batches(&self, from: &Target, to: &Target) -> Result<(), Refused> {
        let gso = to.config.path.gso;
        if from.config.path.gso == gso {
            return Ok(());
        }
        let set = self.engine.socket().set_gso(gso);
        set.map_err(|error| Refused::of("[path] gso", error))
    }

    async fn set_policy(&mut self, to: &Target) -> io::Result<Result<(), Refused>> {
        self.mtu_refused = None;
        self.plane.set_policy(options::policy(&to.config, to.mtu));
        self.settle().await?;
        Ok(self.mtu_refused.take().map_or(Ok(()), |error| Err(error.into())))
    }

    async fn set_link(&self, from: &Target, to: &Target) -> Result<(), Refused> {
        let [was, wanted] = [from, to].map(|target| self.link_of(target));
        if was != wanted {
            self.around.alter.link.become_new(wanted).await?;
        }
        Ok(())
    }

    /// The wanted state of the device. What takes a restart is as it was at the start.
    fn link_of(&self, target: &Target) -> Link {
        let config = &target.config;
        let own = || Own {
            mark: changes::mark(config, &target.egress),
            port: self.engine.local_port(),
            peers: self.peers().collect(),
        };
        let Link { name, mac, mac_as_port, .. } = self.around.alter.first.clone();
        let own = self.would_loop(config).then(own);
        let mut link = options::link(config, &name, target.mtu, own);
        (link.mac, link.mac_as_port) = (mac, mac_as_port);
        if options::carrier_follows(config, self.around.carrier.as_ref()) {
            link.passed_over = self.around.alter.passed_over;
        }
        // A port that has a cost keeps it until it gets another one.
        if link.bridge.is_some() {
            link.stp_cost.get_or_insert(vpnd_device::DEFAULT_STP_COST);
        }
        link
    }

    fn peers(&self) -> impl Iterator<Item = IpAddr> {
        let (current, all) = self.plane.addresses();
        current.into_iter().chain(all.iter().copied()).map(|at| at.ip())
    }

    async fn set_rules(&self, from: &Target, to: &Target) -> Result<(), Refused> {
        let Some(rules) = &self.around.alter.rules else { return Ok(()) };
        let parts = |target: &Target| {
            let Config { interface, routes, .. } = &target.config;
            (
                interface.addresses.clone(),
                interface.bridge.clone(),
                routes.clone(),
                target.egress.mark,
            )
        };
        if parts(from) == parts(to) {
            return Ok(());
        }
        let mark = (to.egress.mark != 0).then(|| changes::mark(&to.config, &to.egress));
        let routed = mark.filter(|_| self.would_loop(&to.config));
        let tunnel = Tunnel { index: self.around.device_watch.index(), mark: routed, borne: mark };
        let set = rules.become_new(&to.config, tunnel).await;
        set.map_err(|error| Refused::of("[[route]]", error))
    }

    /// What cannot fail.
    fn conclude(&mut self, to: Target, keys: Keys, prepared: Prepared) {
        let Target { config, egress, .. } = to;
        let is_other_way = egress != self.around.egress;
        self.around.egress = egress;
        self.around.alter.keys = self.around.alter.keys.of_others(&keys);
        self.adopt(&config, keys);
        self.retune(&config);
        self.take_up(prepared, &config);
        self.around.alter.kill_switch.set(config.has_kill_switch());
        logging::change(&config.service);
        self.around.running = config;
        if is_other_way {
            self.follow_egress();
        }
    }

    /// Changes to other terms and keys, with an immediate handshake.
    fn adopt(&mut self, config: &Config, keys: Keys) {
        self.around.hold.keep(&keys.preshared);
        let Agreement { identities, remotes, terms } = Agreement::of(config, keys);
        self.plane.adopt(clock::now(), terms, identities, remotes);
        self.diagnostics.expect(config.peer.public_key);
        let about = &mut self.around.about;
        about.protocol = config.peer.protocol.to_string();
        about.preshared_key = config.peer.preshared_key_file.is_some();
        about.endpoints = config.peer.endpoints.iter().map(ToString::to_string).collect();
        about.dead_after = config.peer.dead_after;
    }

    fn retune(&mut self, config: &Config) {
        let carrier = self.around.carrier.as_ref();
        let followed = options::carrier_follows(&self.around.running, carrier);
        let follows = options::carrier_follows(config, carrier);
        // The last argument is only about the start.
        let settings = options::settings(config, follows, false);
        let tuning = options::tuning(config);
        // What was set on the WireGuard socket is over.
        (self.around.hold.keepalive, self.around.hold.endpoint) = (config.peer.keepalive, None);
        self.plane.retune(clock::now(), &tuning, settings);
        if followed && !follows {
            self.set_carrier(true);
        }
    }

    fn take_up(&mut self, prepared: Prepared, config: &Config) {
        if let Some(resolver) = prepared.resolver {
            self.around.resolver = resolver;
            self.plane.endpoints_replaced();
            if config.peer.endpoints.is_empty() {
                self.plane.resolved(Vec::new());
            }
        }
        if let Some(metrics) = prepared.metrics {
            self.around.metrics = metrics;
        }
    }

    /// The routes of datagrams with another mark, or by another interface, may be others.
    fn follow_egress(&mut self) {
        self.around.loops.set_egress(self.around.egress.clone());
        let from = self.plane.source();
        self.follow_route(self.plane.addresses().0.map(|to| Transmit { to, from }));
        self.around.about.device.listen_port = self.engine.local_port();
        self.plane.socket_changed();
        self.plane.network_changed(clock::now(), true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_takes_a_restart_is_named() {
        let difference = |key: &str, takes| Difference {
            key: key.to_owned(),
            takes,
            was: String::new(),
            becomes: String::new(),
        };
        let one = difference("[interface] name", Takes::Restart);
        let other = difference("[path] offload", Takes::Restart);
        let live = difference("[peer] roam", Takes::Live);
        let said = |all: &[Difference]| Refused::restart(all).map_err(|error| error.to_string());
        assert_eq!(said(std::slice::from_ref(&live)), Ok(()));
        let expected = "`[interface] name` differs and takes a restart; nothing was changed";
        assert_eq!(said(&[live.clone(), one.clone()]), Err(expected.to_owned()));
        let expected =
            "`[interface] name`, `[path] offload` differ and take a restart; nothing was changed";
        assert_eq!(said(&[one, live, other]), Err(expected.to_owned()));
    }
}
