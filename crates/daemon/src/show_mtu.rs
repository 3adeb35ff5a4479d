//! `vpnd mtu [NAME]`: how large packets on the path may be, and the last probes.

use std::fmt::{self, Write};

use clap::Args;

use crate::span::span;
use crate::status::{PathMtu, Status};

/// Options of `mtu`.
#[derive(Debug, Args)]
pub(crate) struct MtuOptions {
    /// The tunnel, or the path of its control socket [default: every tunnel that runs]
    pub(crate) name: Option<String>,
}

/// The answer for people.
pub(crate) fn render(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a string never fails.
    let _written = match &status.path_mtu {
        Some(size) => write(&mut text, size, status),
        None => writeln!(text, "{}  no path to the peer is known yet", status.name),
    };
    text
}

fn write(text: &mut String, size: &PathMtu, status: &Status) -> fmt::Result {
    let device = &status.device;
    let follows = if size.device_follows { "follows the path" } else { "is fixed" };
    let endpoint = status.peer.endpoint.as_deref().unwrap_or("an unknown address");
    writeln!(text, "{}  path to {endpoint}", status.name)?;
    writeln!(text, "  packets  {}", size.text())?;
    writeln!(text, "  device   {}, mtu {}, {follows}", device.name, device.mtu)?;
    writeln!(text, "  bounds   1280 to {} bytes", size.most)?;
    if let Some(too_large) = size.too_large {
        writeln!(text, "  lost     {too_large} bytes do not arrive")?;
    }
    match size.next_search_s {
        _ if size.searching => writeln!(text, "  search   under way")?,
        Some(wait) => writeln!(text, "  search   again in {}", span(wait))?,
        None if size.known == "probed" => writeln!(text, "  search   complete")?,
        None => writeln!(text, "  search   none: the peer answers no probes")?,
    }
    size.probes.iter().try_for_each(|probe| writeln!(text, "  probe    {probe}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::size::tests::probed;
    use crate::status::tests::sample;

    #[test]
    fn it_is_shown() {
        let status = Status { path_mtu: Some(probed()), ..sample() };
        assert_eq!(
            render(&status),
            "site-a  path to 198.51.100.7:51820\n  \
             packets  1400 bytes, 1340 inside; probed, for 3m\n  \
             device   vpn-site-a, mtu 1420, follows the path\n  \
             bounds   1280 to 1500 bytes\n  \
             lost     1401 bytes do not arrive\n  \
             search   again in 9m\n  \
             probe    1401 bytes, 3s ago, sent 3×, not answered\n  \
             probe    1400 bytes, 5s ago, sent 1×, answered\n"
        );
        let status = Status { path_mtu: None, ..sample() };
        assert_eq!(render(&status), "site-a  no path to the peer is known yet\n");
    }
}
