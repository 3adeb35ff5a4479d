//! wg-quick: what `wg-quick(8)` reads, and what it leaves to `wg setconf`.

use std::path::Path;
use std::rc::Rc;

use crate::line::{Line, Source};
use crate::peers::{self, PeerKeys};
use crate::report::{Failure, ImportError, Imported};
use crate::table::{
    ANY, CHANGED, CHANGED_OR_DROPPED, DROPPED, Row, TAKEN, TAKEN_OR_CHANGED, TAKEN_OR_DROPPED,
    Verdict, always, apply, reads,
};
use crate::value;
use crate::wireguard::{self as wg, Draft, Routing};
use crate::{Choices, Format, Host, ini, shell_word};

const I: &str = "Interface";
const P: &str = "Peer";
const AMNEZIA: &str = "of AmneziaWG: vpnd speaks WireGuard only, and a peer that needs this will not answer. \
                       Remove it there too, or run vpnd at both ends";

/// Every section and key, in the usual spelling.
pub(crate) const SPELLING: &[&str] = &[
    "Interface",
    "Peer",
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
    "PublicKey",
    "PresharedKey",
    "AllowedIPs",
    "Endpoint",
    "PersistentKeepalive",
    "Jc",
    "Jmin",
    "Jmax",
    "S1",
    "S2",
    "S3",
    "S4",
    "H1",
    "H2",
    "H3",
    "H4",
    "I1",
    "I2",
    "I3",
    "I4",
    "I5",
];

/// The keys. `Table` precedes `AllowedIPs`, which depends on it.
pub(crate) static ROWS: &[Row<Draft>] = &[
    reads(I, &["PrivateKey"], TAKEN, "`NAME.key`, mode 0600", wg::private_key),
    reads(I, &["ListenPort"], TAKEN, "`[interface] listen`", wg::listen_port),
    reads(I, &["FwMark"], TAKEN, "`[socket] fwmark`", wg::fwmark),
    reads(
        I,
        &["Address"],
        TAKEN_OR_CHANGED,
        "`[interface] address`; the address of a whole network becomes a single host and a route",
        wg::addresses,
    ),
    reads(
        I,
        &["DNS"],
        CHANGED,
        "`[dns] servers` and `domains`, with `~.` because wg-quick asks these servers for all names",
        dns,
    ),
    reads(I, &["MTU"], TAKEN_OR_DROPPED, "`[interface] mtu`", wg::mtu),
    reads(I, &["Table"], ANY, "`[[route]] table`; `off`: no routes", table),
    reads(
        I,
        &["SaveConfig"],
        TAKEN_OR_DROPPED,
        "`true` is dropped: vpnd never writes its configuration, `vpnd reload` reads it again",
        save_config,
    ),
    reads(
        I,
        &["PreUp"],
        CHANGED,
        "`[hooks] up`, before `PostUp`: the device exists then; with `wg` in it `[hooks] established`",
        pre_up,
    ),
    reads(
        I,
        &["PostUp"],
        CHANGED_OR_DROPPED,
        "`[hooks] up`; with `wg` in it `[hooks] established`; `wg set %i private-key FILE` becomes the key file",
        post_up,
    ),
    reads(I, &["PreDown"], CHANGED, "`[hooks] down`", pre_down),
    reads(
        I,
        &["PostDown"],
        CHANGED,
        "`[hooks] down`, after `PreDown`: the device still exists then",
        post_down,
    ),
    reads(
        P,
        &["PublicKey"],
        TAKEN_OR_DROPPED,
        "`[peer] public_key`; of several peers, the one in `--peer`",
        wg::public_key,
    ),
    reads(P, &["PresharedKey"], TAKEN, "`NAME.psk`, mode 0600", wg::preshared_key),
    reads(
        P,
        &["AllowedIPs"],
        ANY,
        "`[peer] allowed_ips`, and `[[route]]` for each network that no address covers; dropped if a later section of the same peer has others",
        wg::allowed_ips,
    ),
    reads(
        P,
        &["Endpoint"],
        TAKEN_OR_CHANGED,
        "`[peer] endpoint`, IPv6 in brackets, the name of a port as its number",
        wg::endpoint,
    ),
    reads(P, &["PersistentKeepalive"], TAKEN, "`[peer] keepalive`", wg::keepalive),
    always(
        I,
        &[
            "Jc", "Jmin", "Jmax", "S1", "S2", "S3", "S4", "H1", "H2", "H3", "H4", "I1", "I2", "I3",
            "I4", "I5",
        ],
        DROPPED,
        AMNEZIA,
    ),
];

const PEER: PeerKeys = PeerKeys { key: "PublicKey", about: &["Endpoint", "AllowedIPs"] };

pub(crate) fn import(
    sources: &[Source],
    choices: &Choices,
    host: &Rc<dyn Host>,
) -> Result<Imported, Box<Failure>> {
    let [source] = sources else {
        return Err(ImportError::Files("a wg-quick configuration is one file").alone());
    };
    let mut lines = ini::parse(0, source, &ini::WIREGUARD);
    let found = peers::of_sections(&lines, P, &PEER);
    let choice = found.iter().map(|(_, peer)| peer.clone()).collect();
    let chosen = peers::choose(choice, choices.peer.as_deref()).map_err(ImportError::alone)?;
    peers::keep_only(&mut lines, P, &found, chosen);
    last_section_only(&mut lines);
    let mut draft = Draft::new(host, choices);
    let device = Some(source.stem())
        .filter(|stem| value::is_device(stem) && *stem != "-")
        .map(str::to_owned);
    let name = choices.name.as_deref().or(device.as_deref()).and_then(value::tunnel_name);
    draft.tunnel.name = name.ok_or_else(|| ImportError::Name.alone())?;
    draft.tunnel.device =
        device.or_else(|| value::is_device(&draft.tunnel.name).then(|| draft.tunnel.name.clone()));
    draft.routing = Routing::Auto;
    let outcomes = apply(ROWS, lines, &mut draft);
    if draft.tunnel.mtu.is_none() {
        draft.notes.push(
            "no MTU: the device gets 1420, where wg-quick took 80 bytes off the route's; \
             [interface] mtu = \"auto\" follows the route"
                .to_owned(),
        );
    }
    let stop = draft.tunnel.device.as_ref().map(|device| {
        format!("systemctl disable --now {}", shell_word(&format!("wg-quick@{device}")))
    });
    match draft.finish() {
        Ok((tunnel, notes)) => {
            Ok(Imported { format: Format::WgQuick, tunnel, other: None, outcomes, notes, stop })
        }
        Err(error) => Err(error.after(outcomes)),
    }
}

/// Of several sections of one peer, `wg setconf` lets the last replace the allowed IPs.
fn last_section_only(lines: &mut [Line]) {
    let allowed = |line: &&mut Line| line.key == "AllowedIPs" && line.decided.is_none();
    let last = lines.iter_mut().filter(allowed).map(|line| line.group).max();
    for line in lines.iter_mut().filter(allowed) {
        if Some(line.group) != last {
            line.decide(|| {
                Verdict::dropped("a later section of the same peer replaces it, as in WireGuard")
            });
        }
    }
}

fn dns(draft: &mut Draft, line: &Line) -> Verdict {
    let items = line.items(&[',']);
    let bad: Vec<_> = items.filter(|item| !wg::add_dns(&mut draft.tunnel, item)).collect();
    if !draft.tunnel.dns_servers.is_empty() {
        wg::add_domain(&mut draft.tunnel, "~.");
    }
    let all = "[dns]: systemd-resolved asks them for all names (\"~.\"), as wg-quick does";
    match bad.as_slice() {
        [] => Verdict::changed(all),
        bad => Verdict::changed(format!(
            "{all}; left out, neither address nor domain: {}",
            bad.join(", ")
        )),
    }
}

fn table(draft: &mut Draft, line: &Line) -> Verdict {
    match line.value.as_str() {
        "off" => {
            draft.routing = Routing::Off;
            Verdict::taken("no [[route]]")
        }
        "auto" => Verdict::taken("routes in main, a default route in a table of its own"),
        text => match value::table(text, &*draft.host) {
            Some(table) => {
                draft.routing = Routing::Table(table);
                let same = value::decimal(text) == Some(table);
                let verdict = if same { Verdict::taken } else { Verdict::changed };
                verdict(format!("[[route]] table = {table}"))
            }
            None => {
                draft.routing = Routing::Off;
                Verdict::dropped(
                    "no number, and no name in rt_tables here: add [[route]] with `table` yourself",
                )
            }
        },
    }
}

fn save_config(_: &mut Draft, line: &Line) -> Verdict {
    match value::truth(&line.value) {
        Some(false) => Verdict::taken("vpnd never writes its configuration"),
        Some(true) => {
            Verdict::dropped("vpnd never writes its configuration: edit it, and run `vpnd reload`")
        }
        None => Verdict::invalid("true or false"),
    }
}

/// A command as `wg-quick` would run it. If a mark is asked for, it is written into the command, because the tunnel
/// answers nobody before `[hooks] up` has ended.
fn command(draft: &mut Draft, line: &Line) -> Vec<String> {
    const MARK: &str = "$(wg show %i fwmark)";
    let device = draft.tunnel.device.clone().unwrap_or_default();
    let mut text = line.value.to_string();
    if text.contains(MARK) {
        let mark = *draft.tunnel.fwmark.get_or_insert(USUAL_MARK);
        text = text.replace(MARK, &mark.to_string());
    }
    Draft::shell("bash", &text.replace("%i", &device))
}

/// The mark that wg-quick chooses first.
const USUAL_MARK: u32 = 51820;

/// Whether a command uses `wg`, which asks the tunnel itself.
fn asks(command: &[String]) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    command.iter().any(|text| text.split(|c| !word(c)).any(|it| it == "wg" || it.ends_with("/wg")))
}

const LIMITS: &str =
    "by bash, for at most 10 s, under systemd with CAP_NET_ADMIN only (docs/hooks.md)";

fn pre_up(draft: &mut Draft, line: &Line) -> Verdict {
    add_up(draft, line, "; the device exists already")
}

fn post_up(draft: &mut Draft, line: &Line) -> Verdict {
    key_command(draft, line).unwrap_or_else(|| add_up(draft, line, ""))
}

fn add_up(draft: &mut Draft, line: &Line, more: &str) -> Verdict {
    let command = command(draft, line);
    if asks(&command) {
        draft.tunnel.uapi = true;
        draft.tunnel.established.push(command);
        return Verdict::changed(
            "[hooks] established, each time that the peer becomes alive: it uses `wg`, to which the tunnel \
             answers only when it runs. [service] uapi = true is set for it, which needs a directory under systemd \
             (docs/operations.md#wireguards-tools)",
        );
    }
    draft.tunnel.up.push(command);
    Verdict::changed(format!("[hooks] up, {LIMITS}{more}"))
}

fn pre_down(draft: &mut Draft, line: &Line) -> Verdict {
    let command = command(draft, line);
    draft.tunnel.down.push(command);
    Verdict::changed(format!("[hooks] down, {LIMITS}"))
}

fn post_down(draft: &mut Draft, line: &Line) -> Verdict {
    let command = command(draft, line);
    draft.tunnel.down.push(command);
    Verdict::changed(format!("[hooks] down, {LIMITS}; the device exists still"))
}

/// `wg set %i private-key FILE` and `wg set %i peer KEY preshared-key FILE`, with which keys are kept out of the file.
fn key_command(draft: &mut Draft, line: &Line) -> Option<Verdict> {
    let device = draft.tunnel.device.clone().unwrap_or_default();
    let path = |text: &str| text.replace("%i", &device);
    let words: Vec<_> = line.words().collect();
    let (file, private) = match words.as_slice() {
        ["wg", "set", _, "private-key", file, ..] => (path(file), true),
        ["wg", "set", _, "peer", _, "preshared-key", file, ..] => (path(file), false),
        _ => return None,
    };
    if !file.starts_with('/') {
        let why = "a program keeps the key, and vpnd's is in a file".to_owned();
        let option = if private { "--private-key" } else { "--preshared-key" };
        let verdict = Verdict::dropped(format!("{why}: give it by {option} FILE"));
        *missing(draft, private) = Some(why);
        return Some(verdict);
    }
    let text = draft.host.read(Path::new(&file));
    let line = |value| Line {
        value,
        section: String::new(),
        key: String::new(),
        shown: None,
        decided: None,
        ..*line
    };
    let verdict = match text {
        Ok(text) if private => wg::private_key(draft, &line(text)),
        Ok(text) => wg::preshared_key(draft, &line(text)),
        Err(error) => {
            let why = format!("cannot read {file}: {error}");
            *missing(draft, private) = Some(why.clone());
            return Some(Verdict::dropped(why));
        }
    };
    Some(match verdict.kind {
        crate::Kind::Taken => {
            Verdict::changed(format!("the key in {file} is copied to the key file of vpnd"))
        }
        _ => verdict,
    })
}

/// Why a key is missing.
fn missing(draft: &mut Draft, private: bool) -> &mut Option<String> {
    if private { &mut draft.no_private_key } else { &mut draft.no_preshared_key }
}
