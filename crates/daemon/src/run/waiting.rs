//! Waits until there is enough for a tunnel.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::interval;
use vpnd_tun::Device;

use super::draft::Draft;
use crate::config::Loaded;
use crate::presence::Presence;
use crate::stop::Stop;
use crate::uapi::{Asked, Refused, Set, Uapi};

/// How often to look whether somebody has deleted the device.
const LOOK: Duration = Duration::from_millis(500);

/// The reply to the request that completed the settings; it waits until the tunnel runs.
type Reply = oneshot::Sender<Result<(), Refused>>;

/// Waits until `wg` has set a private key and a peer. Returns `None` if the device was deleted, or a stop was asked for.
///
/// # Errors
///
/// If the process has no descriptor left.
pub(super) async fn wait(
    device: &Device,
    uapi: &mut Uapi,
) -> std::io::Result<Option<(Loaded, Reply)>> {
    let (mut stop, presence) = (Stop::new()?, Presence::of(&device.queues[0])?);
    let (mut draft, mut look) = (Draft::default(), interval(LOOK));
    tracing::info!("{} waits for a private key and a peer: `wg setconf`", device.name);
    loop {
        tokio::select! {
            () = stop.asked() => return Ok(None),
            _ = look.tick() => if !presence.is_there() {
                tracing::info!("{} was deleted", device.name);
                return Ok(None);
            },
            asked = uapi.next() => match asked {
                Asked::Get(reply) => drop(reply.send(draft.shown())),
                Asked::Set(set, reply) => match take(&mut draft, *set, &device.name) {
                    Ok(Some(loaded)) => return Ok(Some((loaded, reply))),
                    Ok(None) => drop(reply.send(Ok(()))),
                    Err(refused) => drop(reply.send(Err(refused))),
                }
            },
        }
    }
}

/// Takes over a request; returns the configuration once it is complete.
fn take(draft: &mut Draft, set: Set, device: &str) -> Result<Option<Loaded>, Refused> {
    let before = draft.copy();
    draft.apply(set)?;
    if !draft.is_complete() {
        return Ok(None);
    }
    draft.load(device).map(Some).map_err(|report| {
        *draft = before;
        Refused::invalid(report.lines().collect::<Vec<_>>().join("; "))
    })
}
