//! What is left to do at each site, as commands for a shell: forwarding, the firewall, the start.

use std::path::Path;

use ipnet::IpNet;

use super::plan::End;
use crate::placing::{ETC, MAKE_ETC, absent, copy_to, words};
use crate::terminal::{shell_path, shell_word};

/// How a site gets its files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Delivery<'a> {
    /// They are in a directory, to be copied to `/etc/vpnd` there.
    From(&'a Path),
    /// They are in the directory from which the tunnel runs.
    InPlace(&'a Path),
    /// They are there, and were checked and started.
    Done,
}

/// The commands for a site.
pub(crate) fn steps(end: End<'_>, delivery: Delivery<'_>) -> String {
    let mut steps = vec![format!("# At {}, as root\n", end.site().name)];
    if let Delivery::From(directory) = delivery {
        steps.push(copy(end, directory));
    }
    steps.extend(forward(end));
    steps.extend(bridge(end));
    steps.push(firewall(end));
    steps.extend(start(end, delivery));
    steps.concat()
}

/// The site's own files by their names; a file that exists there already is not replaced.
fn copy(end: End<'_>, directory: &Path) -> String {
    let name = &end.site().name;
    let files = ["toml", "key", "psk"].map(|kind| directory.join(format!("{name}.{kind}")));
    let far = end.site().endpoint.as_ref().map_or("HOST", |endpoint| &*endpoint.host);
    let login = |host: &str| shell_word(&format!("root@{host}"));
    let scp = login(&if far.contains(':') { format!("[{far}]") } else { far.to_owned() });
    let remote = shell_word(&format!("{MAKE_ETC} && {}", absent(ETC, &files)));
    format!(
        "# Its files: if they are on this machine already,\n\
         {MAKE_ETC}\n{}\n\
         # or from here:\n\
         #   ssh {} {remote} && scp -p -- {} {scp}:{ETC}/\n",
        copy_to(ETC, &files),
        login(far),
        words(&files)
    )
}

/// Only a site with networks behind it forwards packets.
fn forward(end: End<'_>) -> Option<String> {
    let has = |is_v4: bool| end.behind().iter().any(|net: &IpNet| net.addr().is_ipv4() == is_v4);
    let sysctls = [(true, "net.ipv4.ip_forward"), (false, "net.ipv6.conf.all.forwarding")];
    let wanted = sysctls.into_iter().filter(|(is_v4, _)| has(*is_v4));
    let lines: Vec<_> = wanted.map(|(_, sysctl)| format!("'{sysctl} = 1'")).collect();
    let file = format!("/etc/sysctl.d/90-vpnd-{}.conf", end.site().name);
    (!lines.is_empty()).then(|| {
        format!(
            "# Packets between the LAN and the tunnel are forwarded, also after a reboot:\n\
             printf '%s\\n' {} >{file} && sysctl -p {file}\n",
            lines.join(" ")
        )
    })
}

fn bridge(end: End<'_>) -> Option<String> {
    end.bridge().map(|bridge| {
        format!(
            "# The bridge {bridge} must exist, with the interface of the LAN as a port: \
             docs/examples/bridged.md. To see it:\n\
             ip link show master {bridge}\n"
        )
    })
}

fn firewall(end: End<'_>) -> String {
    let rule =
        |chain: &str, rule: String| format!("nft insert rule inet filter {chain} {rule} accept\n");
    let port = end.site().endpoint.as_ref().map(|at| at.port);
    let mut rules: Vec<_> =
        port.iter().map(|port| rule("input", format!("udp dport {port}"))).collect();
    let device = end.device();
    if end.bridge().is_none() {
        rules.push(rule("input", format!("iifname {device}")));
    }
    if !end.behind().is_empty() {
        rules.push(rule("forward", format!("iifname {device}")));
        rules.push(rule("forward", format!("oifname {device}")));
    }
    if rules.is_empty() {
        return String::new();
    }
    "# Only if a firewall drops packets that it has no rule for; the same in /etc/nftables.conf lasts over a reboot:\n"
        .to_owned()
        + &rules.concat()
}

fn start(end: End<'_>, delivery: Delivery<'_>) -> Option<String> {
    let name = &end.site().name;
    let service = format!("systemctl enable --now vpnd@{name}\n");
    match delivery {
        Delivery::Done => None,
        Delivery::From(_) => Some(format!("vpnd check /etc/vpnd/{name}.toml && {service}")),
        Delivery::InPlace(directory) => Some(start_in(directory, name.as_ref(), &service)),
    }
}

/// The service reads its files in `/etc/vpnd`.
pub(super) fn start_in(directory: &Path, name: &str, service: &str) -> String {
    let file = directory.join(format!("{name}.toml"));
    let shown = shell_path(&file);
    if directory == Path::new(ETC) {
        format!("vpnd check {shown} && {service}")
    } else {
        format!("vpnd check {shown} && vpnd --config {shown}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{both_families, bridged, routed};
    use super::*;

    #[test]
    fn a_router_forwards_and_lets_everything_in() {
        let plan = both_families();
        let text = steps(plan.ends()[0], Delivery::From(Path::new("/tmp/my pair/site-a")));
        for line in [
            "install -d -m 700 /etc/vpnd\n\
             if [ -z \"$(ls -d /etc/vpnd/site-a.toml /etc/vpnd/site-a.key /etc/vpnd/site-a.psk 2>/dev/null)\" ]; \
             then install -m 600 -t /etc/vpnd -- '/tmp/my pair/site-a/site-a.toml' \
             '/tmp/my pair/site-a/site-a.key' '/tmp/my pair/site-a/site-a.psk'; else ",
            "#   ssh root@a.example.net 'install -d -m 700 /etc/vpnd && [ -z \"$(ls -d /etc/vpnd/site-a.toml ",
            "printf '%s\\n' 'net.ipv4.ip_forward = 1' 'net.ipv6.conf.all.forwarding = 1' \
             >/etc/sysctl.d/90-vpnd-site-a.conf && sysctl -p /etc/sysctl.d/90-vpnd-site-a.conf\n",
            "nft insert rule inet filter input udp dport 51820 accept\n",
            "nft insert rule inet filter forward iifname vpn-site-a accept\n",
            "vpnd check /etc/vpnd/site-a.toml && systemctl enable --now vpnd@site-a\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn a_bridge_forwards_nothing_and_a_site_behind_a_nat_opens_no_port() {
        let plan = bridged();
        let text = steps(plan.ends()[1], Delivery::Done);
        assert!(text.contains("ip link show master br-lan\n"), "{text}");
        assert!(
            !text.contains("nft") && !text.contains("sysctl") && !text.contains("start"),
            "{text}"
        );
    }

    #[test]
    fn a_host_of_its_own_forwards_nothing() {
        let behind: [&[&str]; 2] = [&["0.0.0.0/0"], &[]];
        let plan = routed(["home=192.0.2.1:51820", "road"], behind, &["10.99.0.0/30"]).unwrap();
        let [home, road] =
            plan.ends().map(|end| steps(end, Delivery::InPlace(Path::new("/tmp/x"))));
        assert!(!road.contains("ip_forward") && home.contains("ip_forward"), "{road}{home}");
        assert!(road.ends_with("vpnd check /tmp/x/road.toml && vpnd --config /tmp/x/road.toml\n"));
    }
}
