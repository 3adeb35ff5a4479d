//! Scripts: OpenVPN's arguments and variables are those that scripts expect.

use std::path::{Path, PathBuf};

use super::OpenVpn;
use super::parse::words;
use crate::line::Line;
use crate::table::Verdict;
use crate::value;

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

const NO_SCRIPTS: &str = "OpenVPN runs it only with `script-security 2`: add that line and import again, if it is to \
                          run with vpnd's privileges";

pub(super) fn script_security(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let level = line.words().next().and_then(value::decimal);
    draft.runs_scripts = level.is_some_and(|level| level >= 2);
    match level {
        Some(0 | 1) => {
            Verdict::changed("no script becomes a command in [hooks], as OpenVPN runs none")
        }
        Some(_) => Verdict::changed("scripts become commands in [hooks], which are shown below"),
        None => Verdict::invalid("a level from 0 to 3"),
    }
}

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
    let command = match runnable(draft, line) {
        Ok(command) => command,
        Err(verdict) => return verdict,
    };
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
    let command = match runnable(draft, line) {
        Ok(command) => command,
        Err(verdict) => return verdict,
    };
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

/// The command of a line, unless OpenVPN would not run it either, or `[dns]` does what it does.
fn runnable(draft: &mut OpenVpn, line: &Line) -> Result<Vec<String>, Verdict> {
    let (program, command) = command(draft, line).ok_or_else(|| Verdict::invalid("a command"))?;
    if let Some(verdict) = resolver(draft, &program) {
        return Err(verdict);
    }
    if !draft.runs_scripts {
        return Err(Verdict::dropped(NO_SCRIPTS));
    }
    // The hook is `sh`, which is all that vpnd checks when it starts.
    if let Some(why) = draft.host.distrust(&program) {
        let (option, program) = (&line.key, program.display());
        draft
            .notes
            .push(format!("`{option}`: others could change {program}, or it is not there: {why}"));
    }
    Ok(command)
}

/// The path of the program, and the command with it. OpenVPN takes the arguments as one, in quotes, or as several.
fn command(draft: &OpenVpn, line: &Line) -> Option<(PathBuf, Vec<String>)> {
    let given = words(&line.value);
    let mut all: Vec<_> = match given.as_slice() {
        [one] => words(one),
        several => several.to_vec(),
    };
    let first = all.first_mut().filter(|program| !program.is_empty())?;
    let program = draft.host.absolute(&draft.path(first));
    *first = program.display().to_string();
    Some((program, all))
}

fn resolver(draft: &OpenVpn, program: &Path) -> Option<Verdict> {
    let name = program.file_name()?;
    if !RESOLVERS.iter().any(|known| name == *known) {
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
    let text = draft.host.read(Path::new(command.first()?)).ok()?;
    text.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let after =
            |word: &str| words.iter().position(|it| *it == word).and_then(|at| words.get(at + 1));
        let name = after("addif").or_else(|| after("master"))?;
        let name = name.trim_matches(['"', '\'', ';']);
        value::is_device(name).then(|| name.to_owned())
    })
}
