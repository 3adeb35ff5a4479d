//! Ends whose settings do not match: no traffic, and a log line with the reason.

use std::time::Duration;

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Key, KeyPair, Lab, Vpnd, Wire};

/// Three attempts, five seconds apart, and a busy machine.
const EXPLAINED: Duration = Duration::from_secs(30);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("refusal::B does not know A", Cost::Waits, unknown_peer),
        Scenario::new("refusal::A has another key for B", Cost::Waits, wrong_public_key),
        Scenario::new("refusal::preshared keys differ", Cost::Waits, wrong_preshared),
        Scenario::new("refusal::only A has a preshared key", Cost::Waits, one_sided_preshared),
    ]
}

fn unknown_peer(lab: &Lab) -> Result<String> {
    let stranger = KeyPair::generate()?;
    let ends = refused(lab, |_a, b| b.remote.public = stranger.public)?;
    let key = ends.a_public.as_str();
    ends.b.wait_for_log("unknown peer", EXPLAINED)?;
    ends.b.wait_for_log(key, EXPLAINED)?;
    Ok("B names the unknown key".to_owned())
}

fn wrong_public_key(lab: &Lab) -> Result<String> {
    let stranger = KeyPair::generate()?;
    let ends = refused(lab, |a, _b| a.remote.public = stranger.public)?;
    ends.b.wait_for_log("mac1", EXPLAINED)?;
    Ok("B says what a bad mac1 means".to_owned())
}

fn wrong_preshared(lab: &Lab) -> Result<String> {
    let keys = [Key::preshared()?, Key::preshared()?];
    let ends = refused(lab, |a, b| {
        a.remote.preshared = Some(keys[0].clone());
        b.remote.preshared = Some(keys[1].clone());
    })?;
    explains_preshared(&ends)
}

fn one_sided_preshared(lab: &Lab) -> Result<String> {
    let key = Key::preshared()?;
    let ends = refused(lab, |a, _b| a.remote.preshared = Some(key))?;
    explains_preshared(&ends)
}

fn explains_preshared(ends: &Ends) -> Result<String> {
    ends.a.wait_for_log("PSK differs", EXPLAINED)?;
    ends.b.wait_for_log("never confirms", EXPLAINED)?;
    Ok("A says the answer does not open, B that A never confirms".to_owned())
}

struct Ends {
    a: Vpnd,
    b: Vpnd,
    a_public: Key,
}

/// Starts both with a misfit, and makes sure that nothing passes.
fn refused(lab: &Lab, misfit: impl FnOnce(&mut Site, &mut Site)) -> Result<Ends> {
    let wire = Wire::new(lab)?;
    let (a, mut b) = site::pair()?;
    let mut a = a.towards(Wire::B4);
    misfit(&mut a, &mut b);
    let ends = Ends {
        b: Vpnd::start(&wire.b, &b)?,
        a: Vpnd::start(&wire.a, &a)?,
        a_public: a.keys.public.clone(),
    };
    let pings = ping::series(&wire.a, INNER_B4, 20, Duration::from_millis(50))?;
    ensure!(pings.answered == 0, "traffic passes: {pings:?}");
    for end in [&ends.a, &ends.b] {
        let status = end.status()?;
        ensure!(!status.is_up(), "up all the same: {status}");
    }
    Ok(ends)
}
