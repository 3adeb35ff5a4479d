//! A running tunnel goes on with another configuration: its keys and terms, what the data path goes by, and the
//! device's MTU.

use vpnd_device::Error;
use vpnd_tunnel::clock;
use vpnd_tunnel::view::Policy;

use super::Plane;
use crate::config::Config;
use crate::keys::Keys;
use crate::options;
use crate::terms::Agreement;

impl Plane {
    /// Goes on with another configuration, where that differs in nothing else than what may change.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub(super) async fn become_new(&mut self, config: Config, keys: Keys) -> Result<(), String> {
        self.around.running.can_become(&config).map_err(|error| error.to_string())?;
        // The one thing that somebody else may refuse comes first.
        self.follow_policy(&config).await.map_err(|error| error.to_string())?;
        self.speak_anew(&config, keys);
        self.around.running = config;
        Ok(())
    }

    /// What the data path goes by, and with it the device's MTU.
    async fn follow_policy(&mut self, config: &Config) -> Result<(), Error> {
        let (engine, device) = (&self.engine, &self.around.device_mtu);
        let former = engine.policy();
        let mtu = config.interface.mtu.unwrap_or_else(|| former.mtu());
        let policy = options::policy(config, mtu);
        let publish = |policy: &Policy| engine.set_policy(policy);
        replace(&former, &policy, publish, async |mtu: u16| device.set(mtu.into()).await).await?;
        if mtu != former.mtu() {
            self.mtu_changed(config, mtu);
        }
        Ok(())
    }

    fn mtu_changed(&mut self, config: &Config, mtu: u16) {
        let device = &mut self.around.about.device;
        tracing::info!("the MTU of {} is {mtu} now, it was {}", device.name, device.mtu);
        device.mtu = mtu;
        self.around.hooks.mtu(mtu);
        let largest_packet = options::mode(config).largest_packet(mtu);
        self.peer.device_changed(clock::now(), mtu, largest_packet);
    }

    /// Takes up other terms and keys, by a handshake at once.
    fn speak_anew(&mut self, config: &Config, keys: Keys) {
        let Agreement { identities, remotes, terms } = Agreement::of(config, keys);
        self.peer.adopt(clock::now(), terms, identities, remotes);
        self.telling.expect(config.peer.public_key);
        self.around.about.protocol = config.peer.protocol.to_string();
        self.around.about.preshared_key = config.peer.preshared_key_file.is_some();
    }
}

/// Publishes a policy, and sets the device's MTU where that differs: a lower one before, a higher one after it, so
/// that a packet which the device takes never meets a smaller limit.
async fn replace<E>(
    former: &Policy,
    policy: &Policy,
    publish: impl Fn(&Policy),
    set_device: impl AsyncFn(u16) -> Result<(), E>,
) -> Result<(), E> {
    let (before, mtu) = (former.mtu(), policy.mtu());
    if mtu < before {
        set_device(mtu).await?;
    }
    publish(policy);
    if mtu > before {
        set_device(mtu).await.inspect_err(|_refused| publish(former))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use vpnd_tun::Mode;
    use vpnd_tunnel::filter::Filter;

    use super::*;

    /// In which order the policy's and the device's MTU changed.
    async fn changed(
        from: u16,
        to: u16,
        answer: Result<(), ()>,
    ) -> (Vec<(&'static str, u16)>, bool) {
        let policy = |mtu| Policy::new(Mode::Tun, mtu, None, Filter::new(&[]), None);
        let order = RefCell::new(Vec::new());
        let publish = |policy: &Policy| order.borrow_mut().push(("policy", policy.mtu()));
        let set_device = async |mtu| {
            order.borrow_mut().push(("device", mtu));
            answer
        };
        let done = replace(&policy(from), &policy(to), publish, set_device).await;
        (order.into_inner(), done.is_ok())
    }

    #[tokio::test]
    async fn the_device_never_takes_what_the_data_path_does_not() {
        let lowered = vec![("device", 1300), ("policy", 1300)];
        assert_eq!(changed(1420, 1300, Ok(())).await, (lowered, true));
        let raised = vec![("policy", 1420), ("device", 1420)];
        assert_eq!(changed(1300, 1420, Ok(())).await, (raised, true));
        assert_eq!(changed(1420, 1420, Err(())).await, (vec![("policy", 1420)], true));
        assert_eq!(changed(1420, 1300, Err(())).await, (vec![("device", 1300)], false));
        let back = vec![("policy", 1420), ("device", 1420), ("policy", 1300)];
        assert_eq!(changed(1300, 1420, Err(())).await, (back, false));
    }
}
