//! The commands that set systemd-resolved's name servers behind the device. Syntax and meaning are those of
//! `resolvectl`: a domain is a search domain, and its names are resolved by these servers. With a leading `~`,
//! its names are only resolved there, and the domain is not searched.

use std::net::IpAddr;

use super::plan::Argv;

/// The program that talks to systemd-resolved.
const RESOLVECTL: &str = "resolvectl";
/// The position of the device's name in the arguments.
const DEVICE_AT: usize = 1;
/// The domain that covers all names.
const EVERY_NAME: &str = "~.";

/// The commands that make systemd-resolved use `servers` behind `device`.
///
/// If everything is routed into the tunnel, these servers alone resolve all names. Otherwise they resolve only
/// the names in `domains`; without `domains`, all names whose domain no other device claims.
pub(super) fn set(
    device: &str,
    servers: &[IpAddr],
    domains: &[String],
    everything: bool,
) -> Vec<Argv> {
    if servers.is_empty() && domains.is_empty() {
        return Vec::new();
    }
    let servers = servers.iter().map(IpAddr::to_string).collect();
    let every_name = everything && !domains.iter().any(|domain| domain == EVERY_NAME);
    let every_name = every_name.then(|| EVERY_NAME.to_owned());
    let asked: Vec<_> = domains.iter().cloned().chain(every_name).collect();
    let other_names = if everything || asked.is_empty() { "yes" } else { "no" };
    let mut commands = command("dns", device, servers);
    if !asked.is_empty() {
        commands.extend(command("domain", device, asked));
    }
    commands.extend(command("default-route", device, vec![other_names.to_owned()]));
    commands
}

/// The commands that make systemd-resolved forget the servers and domains.
pub(super) fn revert(device: &str) -> Vec<Argv> {
    command("revert", device, Vec::new())
}

fn command(verb: &str, device: &str, values: Vec<String>) -> Vec<Argv> {
    let words = [RESOLVECTL, verb, device].map(str::to_owned).into_iter().chain(values);
    Argv::new(words).map(|argv| argv.naming_device(DEVICE_AT)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(servers: &[&str], domains: &[&str], everything: bool) -> Vec<String> {
        let servers: Vec<_> = servers.iter().map(|text| text.parse().unwrap()).collect();
        let domains: Vec<_> = domains.iter().map(ToString::to_string).collect();
        set("tun0", &servers, &domains, everything).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn of_a_company_only_its_names_are_asked_for_there() {
        assert_eq!(
            lines(&["10.99.0.2", "fd99::2"], &["corp.example", "~example.net"], false),
            [
                "resolvectl dns tun0 10.99.0.2 fd99::2",
                "resolvectl domain tun0 corp.example '~example.net'",
                "resolvectl default-route tun0 no",
            ]
        );
    }

    #[test]
    fn with_the_default_route_all_names_are() {
        let domain = "resolvectl domain tun0 corp.example '~.'";
        assert_eq!(lines(&["10.99.0.2"], &["corp.example"], true)[1], domain);
        assert_eq!(lines(&["10.99.0.2"], &["~."], true)[1], "resolvectl domain tun0 '~.'");
        assert_eq!(lines(&["10.99.0.2"], &[], true)[2], "resolvectl default-route tun0 yes");
    }

    #[test]
    fn servers_alone_are_asked_for_the_names_of_nobody() {
        let expected = ["resolvectl dns tun0 10.99.0.2", "resolvectl default-route tun0 yes"];
        assert_eq!(lines(&["10.99.0.2"], &[], false), expected);
        assert!(lines(&[], &[], true).is_empty());
    }
}
