//! Another MTU, filter or clamp while the tunnel runs. A packet that the device takes never meets a smaller limit in
//! the data path: a lower MTU is set at the device first, a higher one in the data path first.

use vpnd_protocol::time::Now;
use vpnd_tunnel::view::Policy;

use crate::effect::Effect;
use crate::plane::Plane;

/// What the data path goes by, and what it is about to.
#[derive(Debug)]
pub(crate) struct Policies {
    current: Policy,
    changing: Option<Changing>,
}

/// The device is being given another MTU.
#[derive(Debug)]
enum Changing {
    /// A lower one: this policy follows it.
    Lower(Policy),
    /// A higher one: the current policy has it already, and this one returns if the device refuses.
    Higher(Policy),
}

impl Policies {
    pub(crate) const fn new(current: Policy) -> Self {
        Self { current, changing: None }
    }

    /// The policy that the data path goes by once the device has taken its MTU.
    pub(crate) const fn wanted(&self) -> &Policy {
        match &self.changing {
            Some(Changing::Lower(policy)) => policy,
            Some(Changing::Higher(_)) | None => &self.current,
        }
    }
}

impl Plane {
    /// The policy that the data path goes by.
    pub const fn policy(&self) -> &Policy {
        &self.policies.current
    }

    /// Has the data path go by `policy`, and gives the device its MTU. It takes the place of one whose MTU the device
    /// has not confirmed yet.
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

    /// The answer to [`Effect::SetMtu`]: whether the kernel has confirmed it.
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
