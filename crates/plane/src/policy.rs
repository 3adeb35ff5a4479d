//! Changes of MTU, filter or MSS clamping while the tunnel runs. The data path never has a smaller limit than
//! the device, so that it can carry every packet of the device: a lower MTU is set at the device first, a
//! higher one in the data path first.

use vpnd_protocol::time::Now;
use vpnd_tunnel::view::Policy;

use crate::effect::Effect;
use crate::plane::Plane;

/// The data path's policy, and the pending one.
#[derive(Debug)]
pub(crate) struct Policies {
    current: Policy,
    changing: Option<Changing>,
}

/// A change that waits for the device's new MTU.
#[derive(Debug)]
enum Changing {
    /// The MTU becomes lower: this policy is published afterwards.
    Lower(Policy),
    /// The MTU becomes higher: the current policy has it already, and this previous one returns if the device
    /// refuses.
    Higher(Policy),
}

impl Policies {
    pub(crate) const fn new(current: Policy) -> Self {
        Self { current, changing: None }
    }

    /// The policy of the data path after the device has accepted its MTU.
    pub(crate) const fn wanted(&self) -> &Policy {
        match &self.changing {
            Some(Changing::Lower(policy)) => policy,
            Some(Changing::Higher(_)) | None => &self.current,
        }
    }
}

impl Plane {
    /// The current policy of the data path.
    pub const fn policy(&self) -> &Policy {
        &self.policies.current
    }

    /// Gives the data path the policy `policy`, and the device its MTU. It replaces a policy whose MTU the
    /// device has not confirmed yet.
    pub fn set_policy(&mut self, policy: Policy) {
        let (before, mtu) = (self.policies.current.mtu(), policy.mtu());
        if mtu < before {
            self.policies.changing = Some(Changing::Lower(policy));
        } else {
            self.push(Effect::PublishPolicy(policy.clone()));
            let former = std::mem::replace(&mut self.policies.current, policy);
            self.policies.changing = (mtu > before).then_some(Changing::Higher(former));
        }
        if mtu != before {
            self.push(Effect::SetMtu(mtu));
        }
    }

    /// The answer to [`Effect::SetMtu`]: whether the kernel has accepted the MTU.
    pub fn mtu_set(&mut self, now: Now, confirmed: bool) {
        match (self.policies.changing.take(), confirmed) {
            (Some(Changing::Lower(policy)), true) | (Some(Changing::Higher(policy)), false) => {
                self.push(Effect::PublishPolicy(policy.clone()));
                self.policies.current = policy;
            }
            _ => {}
        }
        if confirmed {
            let policy = &self.policies.current;
            let (mtu, largest) = (policy.mtu(), policy.largest_packet());
            self.peer.device_changed(now, mtu, largest);
            self.push(Effect::MtuIs(mtu));
        }
    }
}
