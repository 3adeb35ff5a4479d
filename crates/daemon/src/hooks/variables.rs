//! The plan of a configuration: its commands, and the variables that describe the tunnel to them. The variables
//! contain no secret.

use std::path::Path;

use vpnd_tunnel::udp::Listen;

use super::dns;
use super::plan::{Argv, Event, Plan};
use crate::config::Config;
use crate::program;

/// Properties of the tunnel that are known once the device exists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// The device's name.
    pub(crate) device: &'a str,
    /// Its MTU.
    pub(crate) mtu: u16,
    /// The UDP port.
    pub(crate) listen_port: u16,
}

impl<'a> Facts<'a> {
    /// The properties, as far as they are known before the device exists.
    pub(crate) fn expected(config: &'a Config) -> Self {
        Self {
            device: config.interface.name.as_deref().unwrap_or("tunN"),
            mtu: config.interface.mtu.unwrap_or_default(),
            listen_port: match config.interface.listen {
                Listen::Port(port) => port,
                Listen::Address(address) => address.port(),
            },
        }
    }
}

/// All commands of the configuration.
pub(crate) fn plan(config: &Config, facts: Facts<'_>) -> Plan {
    let hooks = &config.hooks;
    let from = config.file.parent().unwrap_or_else(|| Path::new("/"));
    let commands = [
        (Event::Up, &hooks.up),
        (Event::Established, &hooks.established),
        (Event::Lost, &hooks.lost),
        (Event::Down, &hooks.down),
    ];
    let commands = commands
        .map(|(event, all)| (event, all.iter().filter_map(|argv| command(argv, from)).collect()));
    let mut plan = Plan {
        commands: commands.into(),
        environment: environment(config, facts),
        limit: hooks.timeout,
    };
    // systemd-resolved knows only the devices of its own namespace.
    if config.interface.netns.is_none() {
        add_dns(&mut plan, config, facts.device);
    }
    plan
}

fn command(words: &[String], from: &Path) -> Option<Argv> {
    let (program, arguments) = words.split_first()?;
    let program = program::from_directory(program, from);
    Argv::new(std::iter::once(&program).chain(arguments))
}

fn add_dns(plan: &mut Plan, config: &Config, device: &str) {
    let everything = config.routes_everything();
    let set = dns::set(device, &config.dns.servers, &config.dns.domains, everything);
    if !set.is_empty() {
        plan.commands.insert(Event::SetDns, set);
        plan.commands.insert(Event::RevertDns, dns::revert(device));
    }
}

fn environment(config: &Config, facts: Facts<'_>) -> Vec<(String, String)> {
    let interface = &config.interface;
    let routes: Vec<_> = config.routes.iter().map(|route| route.to).collect();
    let variables = [
        ("PATH", program::search_path().to_string_lossy().into_owned()),
        ("HOME", "/".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("VPND_NAME", config.name.clone()),
        ("VPND_CONFIG", absolute(&config.file)),
        ("VPND_DEVICE", facts.device.to_owned()),
        ("VPND_MODE", interface.mode.word().to_owned()),
        ("VPND_MTU", facts.mtu.to_string()),
        ("VPND_ADDRESSES", joined(&interface.addresses)),
        ("VPND_PEER_ADDRESSES", joined(&interface.peer_addresses)),
        ("VPND_ROUTES", joined(&routes)),
        ("VPND_LISTEN_PORT", facts.listen_port.to_string()),
        ("VPND_PEER", config.peer.public_key.to_string()),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).into()
}

fn joined(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Makes the path absolute, because commands run in the root directory.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, tests::site};

    /// The commands of a configuration with these lines, and the directory of the configuration.
    fn planned(lines: &str, change: fn(&mut Config)) -> (Vec<String>, String) {
        let (directory, file) = site(lines);
        let mut config = config::load(&file).unwrap().config;
        change(&mut config);
        let facts = Facts { device: "tun7", mtu: 1420, listen_port: 4 };
        let plan = plan(&config, facts);
        let all = plan
            .commands
            .iter()
            .flat_map(|(event, all)| all.iter().map(|argv| format!("{}: {argv}", event.word())));
        (all.collect(), directory.path().display().to_string())
    }

    #[test]
    fn a_file_becomes_a_plan() {
        let lines = "[hooks]\nup = [['./hook', 'a b'], ['true']]\ndown = ['/bin/true']\n\
                     [dns]\nservers = '10.99.0.2'\n[[route]]\nto = '0.0.0.0/0'\ntable = 7";
        let (all, directory) = planned(lines, |_| {});
        let expected = [
            "set-dns: resolvectl dns tun7 10.99.0.2".to_owned(),
            "set-dns: resolvectl domain tun7 '~.'".to_owned(),
            "set-dns: resolvectl default-route tun7 yes".to_owned(),
            format!("up: {directory}/hook 'a b'"),
            "up: true".to_owned(),
            "down: /bin/true".to_owned(),
            "revert-dns: resolvectl revert tun7".to_owned(),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_resolver_is_not_told_of_devices_elsewhere() {
        let lines = "[dns]\nservers = '10.99.0.2'";
        assert!(!planned(lines, |_| {}).0.is_empty());
        let elsewhere = |config: &mut Config| config.interface.netns = Some("blue".to_owned());
        assert!(planned(lines, elsewhere).0.is_empty());
    }

    #[test]
    fn the_configuration_says_whether_there_is_anything_to_run() {
        for lines in [
            "",
            "[dns]\nservers = '10.99.0.2'",
            "[dns]\ndomains = 'b.example'",
            "[hooks]\ndown = [['true']]",
        ] {
            let (_directory, file) = site(lines);
            let config = config::load(&file).unwrap().config;
            let plan = plan(&config, Facts::expected(&config));
            assert_eq!(config.runs_programs(), !plan.is_empty(), "{lines}");
            assert_eq!(config.runs_programs(), !lines.is_empty(), "{lines}");
        }
    }
}
