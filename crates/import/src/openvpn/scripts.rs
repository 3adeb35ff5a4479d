//! Scripts: OpenVPN's arguments and variables are those that scripts expect.

use super::OpenVpn;
use super::parse::words;
use crate::line::Line;
use crate::table::Verdict;

/// Scripts that configure name servers, as Debian and others ship them.
const RESOLVERS: [&str; 4] = [
    "update-resolv-conf",
    "update-systemd-resolved",
    "openvpn-systemd-resolved",
    "update-resolv-conf.sh",
];

/// `sh` appends what OpenVPN appends to a script's arguments, and sets the variables that most scripts use.
const SHELL: &str =
    r#"export dev="$VPND_DEVICE" tun_mtu="$VPND_MTU"; exec "$@" "$dev" "$tun_mtu" 0"#;

pub(super) fn up(draft: &mut OpenVpn, line: &Line) -> Verdict {
    script(draft, line, "up", |draft, command| draft.tunnel.up.push(command))
}

pub(super) fn down(draft: &mut OpenVpn, line: &Line) -> Verdict {
    script(draft, line, "down", |draft, command| draft.tunnel.down.push(command))
}

pub(super) fn route_up(draft: &mut OpenVpn, line: &Line) -> Verdict {
    plain(draft, line, "up", "route-up", |draft, command| draft.tunnel.up.push(command))
}

pub(super) fn route_pre_down(draft: &mut OpenVpn, line: &Line) -> Verdict {
    plain(draft, line, "down", "route-pre-down", |draft, command| draft.tunnel.down.push(command))
}

pub(super) fn ipchange(draft: &mut OpenVpn, line: &Line) -> Verdict {
    plain(draft, line, "established", "ipchange", |draft, command| {
        draft.tunnel.established.push(command)
    })
}

/// A script that gets the device, its MTU and its addresses.
fn script(
    draft: &mut OpenVpn,
    line: &Line,
    hook: &str,
    add: fn(&mut OpenVpn, Vec<String>),
) -> Verdict {
    let Some(command) = command(draft, line) else { return Verdict::invalid("a command") };
    if let Some(verdict) = resolver(draft, &command) {
        return verdict;
    }
    let own = draft.tunnel.addresses.iter().find(|net| net.addr().is_ipv4());
    let far = match (own, draft.tunnel.peer_addresses.iter().find(|far| far.is_ipv4())) {
        (_, Some(far)) => far.to_string(),
        (Some(own), None) => own.netmask().to_string(),
        (None, None) => String::new(),
    };
    let own = own.map_or_else(String::new, |net| net.addr().to_string());
    let text = format!(
        "export script_type={hook} script_context=init ifconfig_local='{own}' ifconfig_remote='{far}'; {SHELL} '{own}' '{far}' init"
    );
    let bridge = bridge_of(draft, &command);
    add(draft, shell(&text, command));
    let how =
        format!("[hooks] {hook}, with OpenVPN's arguments and its main variables (docs/import.md)");
    Verdict::changed(match bridge {
        Some(bridge) => format!(
            "{how}. It seems to join the bridge {bridge}: [interface] bridge = \"{bridge}\" does that, then remove this command"
        ),
        None => how,
    })
}

/// A script without arguments of OpenVPN's own.
fn plain(
    draft: &mut OpenVpn,
    line: &Line,
    hook: &str,
    kind: &str,
    add: fn(&mut OpenVpn, Vec<String>),
) -> Verdict {
    let Some(command) = command(draft, line) else { return Verdict::invalid("a command") };
    if let Some(verdict) = resolver(draft, &command) {
        return verdict;
    }
    let text =
        format!(r#"export script_type={kind} dev="$VPND_DEVICE" tun_mtu="$VPND_MTU"; exec "$@""#);
    add(draft, shell(&text, command));
    Verdict::changed(format!("[hooks] {hook}, with OpenVPN's main variables (docs/import.md)"))
}

fn shell(text: &str, command: Vec<String>) -> Vec<String> {
    let mut argv: Vec<String> = vec!["sh".into(), "-c".into(), text.to_owned(), "sh".into()];
    argv.extend(command);
    argv
}

/// The program with its path, and its arguments. OpenVPN takes them as one argument, in quotes, or as several.
fn command(draft: &OpenVpn, line: &Line) -> Option<Vec<String>> {
    let given = words(&line.value);
    let mut all: Vec<_> = match given.as_slice() {
        [one] => words(one),
        several => several.to_vec(),
    };
    let program = all.first_mut().filter(|program| !program.is_empty())?;
    if program.contains('/') || !draft.directory.as_os_str().is_empty() {
        *program = draft.path(program).display().to_string();
    }
    Some(all)
}

fn resolver(draft: &OpenVpn, command: &[String]) -> Option<Verdict> {
    let name = command.first()?.rsplit('/').next()?;
    if !RESOLVERS.contains(&name) {
        return None;
    }
    Some(Verdict::dropped(match draft.dns {
        true => "[dns] does what this script does",
        false => {
            "[dns] does what this script does: no server is in this file, add `servers` if there is one"
        }
    }))
}

/// The bridge that a script adds the device to.
fn bridge_of(draft: &OpenVpn, command: &[String]) -> Option<String> {
    let text = draft.host.read(std::path::Path::new(command.first()?)).ok()?;
    text.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let after =
            |word: &str| words.iter().position(|it| *it == word).and_then(|at| words.get(at + 1));
        let name = after("addif").or_else(|| after("master"))?;
        Some(name.trim_matches(['"', '\'', ';']).to_owned())
    })
}
