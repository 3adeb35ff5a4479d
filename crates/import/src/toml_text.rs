//! The text of vpnd's configuration.

use std::fmt::{Display, Write as _};
use std::net::IpAddr;

use toml::Value;

use crate::tunnel::{Clamp, Command, Route, Tunnel};

impl Tunnel {
    /// The configuration's text. Keys are in files beside it: `NAME.key` and `NAME.psk`. `origin` is where it comes
    /// from.
    pub fn to_toml(&self, origin: &str) -> String {
        let origin: String = origin.chars().filter(|c| !c.is_control()).collect();
        let name = &self.name;
        let head = format!(
            "# The tunnel {name}, imported from {origin}. Every other key: docs/configuration.md\n"
        );
        let tables = [
            self.interface(),
            self.peer(),
            self.routes(),
            self.path(),
            self.socket(),
            self.dns(),
            self.hooks(),
            self.service(),
        ];
        tables.into_iter().fold(head, |text, table| text + &table)
    }

    fn interface(&self) -> String {
        let mut table = Table::new("[interface]");
        table.text("name", self.device.as_ref());
        table.text("mode", self.tap.then_some("tap"));
        table.text("bridge", self.bridge.as_ref());
        table.text("vrf", self.vrf.as_ref());
        table.text("mac", self.mac.as_ref());
        table.list("address", &self.addresses);
        table.list("peer_address", &self.peer_addresses);
        table.text("private_key_file", Some(format!("{}.key", self.name)));
        match self.listen {
            Some((Some(address), port)) => {
                table.text("listen", Some(std::net::SocketAddr::new(address, port)));
            }
            listen => table.bare("listen", listen.map(|(_, port)| port)),
        }
        table.bare("mtu", self.mtu);
        table.bare("txqueuelen", self.txqueuelen);
        table.bare("persist", self.persist.then_some(true));
        table.bare("multicast", self.multicast);
        table.finish()
    }

    fn peer(&self) -> String {
        let mut table = Table::new("[peer]");
        table.text("protocol", Some(if self.vpnd { "vpnd" } else { "wireguard" }));
        table.text("cipher", self.cipher);
        table.text("public_key", self.public_key);
        table.text(
            "preshared_key_file",
            self.preshared_key.as_ref().map(|_| format!("{}.psk", self.name)),
        );
        table.list("endpoint", &self.endpoints);
        if let Some(nets) = &self.allowed_ips {
            table.bare("allowed_ips", Some(array(nets)));
        }
        table.text("keepalive", self.keepalive.map(|seconds| format!("{seconds}s")));
        table.text("dead_after", self.dead_after.map(|seconds| format!("{seconds}s")));
        table.finish()
    }

    fn routes(&self) -> String {
        self.routes.iter().map(route).collect()
    }

    fn path(&self) -> String {
        let mut table = Table::new("[path]");
        match self.mss_clamp {
            Some(Clamp::Off) => table.text("mss_clamp", Some("off")),
            Some(Clamp::Most(most)) => table.bare("mss_clamp", Some(most)),
            None => {}
        }
        table.bare("mtu_max", self.mtu_max);
        table.finish()
    }

    fn socket(&self) -> String {
        let mut table = Table::new("[socket]");
        table.bare("fwmark", self.fwmark);
        table.text("bind_device", self.bind_device.as_ref());
        table.bare("rcvbuf", self.rcvbuf);
        table.bare("sndbuf", self.sndbuf);
        table.finish()
    }

    fn dns(&self) -> String {
        let mut table = Table::new("[dns]");
        table.list::<IpAddr>("servers", &self.dns_servers);
        table.list("domains", &self.dns_domains);
        table.finish()
    }

    fn hooks(&self) -> String {
        let mut table = Table::new("[hooks]");
        self.commands().iter().for_each(|(event, commands)| table.commands(event, commands));
        table.finish()
    }

    fn service(&self) -> String {
        let mut table = Table::new("[service]");
        table.bare("uapi", self.uapi.then_some(true));
        table.bare("nice", self.nice);
        table.text("log_level", self.log_level);
        table.finish()
    }
}

fn route(route: &Route) -> String {
    let mut table = Table::new("[[route]]");
    table.text("to", Some(route.to));
    table.bare("metric", route.metric);
    table.bare("table", route.table);
    table.finish()
}

/// The lines of one table; nothing if it has none.
struct Table {
    title: &'static str,
    lines: String,
}

impl Table {
    fn new(title: &'static str) -> Self {
        Self { title, lines: String::new() }
    }

    fn bare(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _written = writeln!(self.lines, "{key} = {value}");
        }
    }

    fn text(&mut self, key: &str, value: Option<impl Display>) {
        self.bare(key, value.map(|value| quoted(&value.to_string())));
    }

    fn list<T: Display>(&mut self, key: &str, items: &[T]) {
        self.bare(key, (!items.is_empty()).then(|| array(items)));
    }

    fn commands(&mut self, key: &str, commands: &[Command]) {
        let lines: String =
            commands.iter().map(|command| format!("    {},\n", array(command))).collect();
        self.bare(key, (!commands.is_empty()).then(|| format!("[\n{lines}]")));
    }

    fn finish(self) -> String {
        let Self { title, lines } = self;
        if lines.is_empty() { lines } else { format!("\n{title}\n{lines}") }
    }
}

fn array<T: Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(|item| quoted(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}
