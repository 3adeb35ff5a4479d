//! Every fixture with its report; every key of every format; any text.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use proptest::prelude::*;
use vpnd_crypto::{PresharedKey, SecretKey};
use zeroize::Zeroizing;

use crate::{Choices, Format, Host, Kind, Outcome, Outcomes, Source, import, page};

/// A host with a few files, whose new keys are always the same.
struct Fixed(std::cell::Cell<u8>);

const FILES: &[(&str, &str)] = &[
    ("/etc/iproute2/rt_tables", "255\tlocal\n254\tmain\n# a comment\n500 vpn\n"),
    ("/etc/services", "domain 53/tcp\ndomain 53/udp # names\n"),
    ("/etc/openvpn/bridge-up.sh", "#!/bin/sh\nip link set \"$2\" up\nbrctl addif br0 \"$2\"\n"),
];

impl Fixed {
    fn key(&self) -> [u8; 32] {
        self.0.set(self.0.get() + 1);
        [self.0.get(); 32]
    }
}

impl Host for Fixed {
    fn read(&self, path: &Path) -> io::Result<Zeroizing<String>> {
        let path = path.to_string_lossy();
        if path.ends_with(".key") {
            return Ok(SecretKey::from_bytes([9; 32]).to_base64());
        }
        if path.ends_with(".psk") {
            return Ok(PresharedKey::from_bytes([8; 32]).to_base64());
        }
        let file = FILES.iter().find(|(name, _)| *name == path);
        file.map(|(_, text)| Zeroizing::new((*text).to_owned()))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn absolute(&self, path: &Path) -> PathBuf {
        Path::new("/home/admin").join(path)
    }

    fn distrust(&self, path: &Path) -> Option<String> {
        path.starts_with("/home").then(|| "/home/admin belongs to uid 1000".to_owned())
    }

    fn private_key(&self) -> Zeroizing<String> {
        SecretKey::from_bytes(self.key()).to_base64()
    }

    fn preshared_key(&self) -> Zeroizing<String> {
        PresharedKey::from_bytes(self.key()).to_base64()
    }
}

fn host() -> Rc<dyn Host> {
    Rc::new(Fixed(std::cell::Cell::new(0)))
}

/// The fixtures that are imported, with the beginning of the peer's key. `OTHER` is a key that is not in the file.
const CASES: &[(&[&str], Option<usize>)] = &[
    (&["wg-quick/wg0.conf"], None),
    (&["wg-quick/laptop.conf"], None),
    (&["wg-quick/server-one.conf"], None),
    (&["wg-quick/server-many.conf"], None),
    (&["wg-quick/server-many.conf"], Some(0)),
    (&["wg-quick/table-off.conf"], None),
    (&["wg-quick/table-123.conf"], None),
    (&["wg-quick/keys-apart.conf"], None),
    (&["wg-quick/sloppy.conf"], None),
    (&["wg-quick/amnezia.conf"], None),
    (&["wg-quick/narrow.conf"], None),
    (&["wg-quick/no-key.conf"], None),
    (&["networkd/site.netdev", "networkd/site.network"], None),
    (&["networkd/road.netdev", "networkd/road.network"], None),
    (&["networkd/many.netdev"], None),
    (&["networkd/many.netdev"], Some(1)),
    (&["networkd/credential.netdev"], None),
    (&["networkd/alone.network"], None),
    (&["networkd/vxlan.netdev"], None),
    (&["networkmanager/office.nmconnection"], None),
    (&["networkmanager/everything.nmconnection"], None),
    (&["networkmanager/agent.nmconnection"], None),
    (&["networkmanager/many.nmconnection"], None),
    (&["networkmanager/many.nmconnection"], Some(1)),
    (&["networkmanager/plugin.nmconnection"], None),
    (&["openwrt/network"], None),
    (&["openwrt/minimal"], None),
    (&["openwrt/several"], None),
    (&["openwrt/several"], Some(0)),
    (&["openwrt/several"], Some(1)),
    (&["openwrt/torn"], None),
    (&["openvpn/office.conf"], None),
    (&["openvpn/branch.conf"], None),
    (&["openvpn/office.conf", "openvpn/branch.conf"], None),
    (&["openvpn/inline.conf"], None),
    (&["openvpn/bridge.conf"], None),
    (&["openvpn/lan.conf"], None),
    (&["openvpn/tls-server.conf", "openvpn/tls-client.conf"], None),
    (&["openvpn/connections.ovpn"], None),
    (&["openvpn/server.conf"], None),
    (&["openvpn/client.ovpn"], None),
    (&["openvpn/old-site.conf"], None),
    (&["openvpn/tls-everything.conf"], None),
    (&["openvpn/windows.ovpn"], None),
    (&["openvpn/odd.conf"], None),
    (&["openwrt/odd"], None),
    (&["networkmanager/odd.nmconnection"], None),
    (&["networkd/odd.netdev", "networkd/odd.network"], None),
    (&["wg-quick/odd.conf"], None),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn sources(names: &[&str]) -> Vec<Source> {
    let read = |name: &&str| Source {
        name: (*name).to_owned(),
        text: Zeroizing::new(fs::read_to_string(fixtures().join(name)).unwrap()),
    };
    names.iter().map(read).collect()
}

/// The key of the peer with this index, in the order of the file.
fn peer(sources: &[Source], index: usize) -> String {
    let Err(failure) = import(sources, &Choices::default(), &host()) else {
        panic!("one peer only")
    };
    match failure.error {
        crate::ImportError::SeveralPeers(peers) => peers[index].key.to_string(),
        error => panic!("{error}"),
    }
}

/// The import of a case as text, and its outcomes.
fn case(names: &[&str], index: Option<usize>) -> (Vec<Outcome>, String) {
    let sources = sources(names);
    let peer = index.map(|index| peer(&sources, index)[..8].to_owned());
    let choices = Choices { peer, endpoint: Some("here.example.net".into()), ..Choices::default() };
    match import(&sources, &choices, &host()) {
        Ok(imported) => {
            let mut text = Outcomes(&imported.outcomes).to_string();
            imported.notes.iter().for_each(|note| writeln!(text, "note: {note}").unwrap());
            writeln!(text, "stop: {}", imported.stop.unwrap_or_default()).unwrap();
            text += &imported.tunnel.to_toml("here");
            if let Some(other) = imported.other {
                text += &format!("\n==== the other end\n{}", other.to_toml("there"));
            }
            (imported.outcomes, text)
        }
        Err(failure) => {
            let text = format!("{}error: {}\n", Outcomes(&failure.outcomes), failure.error);
            (failure.outcomes, text)
        }
    }
}

/// The whole output for each fixture is beside it. `VPND_WRITE=1 cargo test -p vpnd-import` writes it anew.
#[test]
fn every_fixture_is_read_as_written_beside_it() {
    for (names, index) in CASES {
        let (_, found) = case(names, *index);
        let joined: Vec<_> = names.iter().map(|name| name.rsplit('/').next().unwrap()).collect();
        let which = index.map_or_else(String::new, |index| format!(".peer{index}"));
        let directory = fixtures().join(names[0]).parent().unwrap().to_owned();
        let path = directory.join(format!("{}{which}.expected", joined.join("+")));
        if std::env::var_os("VPND_WRITE").is_some() {
            fs::write(&path, &found).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(found, expected, "{}", path.display());
    }
}

#[test]
fn there_are_forty_fixtures_and_all_are_imported() {
    let used: BTreeSet<_> = CASES.iter().flat_map(|(names, _)| names.iter()).collect();
    let mut there = 0;
    for (_, format) in Format::WORDS.iter().map(|word| (word, word.0)) {
        for entry in fs::read_dir(fixtures().join(format)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.ends_with(".expected") {
                assert!(used.contains(&format!("{format}/{name}").as_str()), "{format}/{name}");
                there += 1;
            }
        }
    }
    assert!(there >= 40, "{there}");
}

#[test]
fn the_format_is_recognised() {
    for (names, _) in CASES {
        let word = names[0].split('/').next().unwrap();
        assert_eq!(Format::of(&sources(names)).map(Format::word), Some(word), "{names:?}");
    }
}

/// The key of an outcome as the table spells it.
fn table_key(format: Format, key: &str) -> String {
    let numbered = ["address", "route", "routing"].iter().any(|stem| key.starts_with(stem));
    match format {
        Format::NetworkManager if numbered => key.replace(|c: char| c.is_ascii_digit(), "N"),
        _ => key.to_owned(),
    }
}

/// Whether the outcome comes from the place or the form of the line, not from its key.
fn is_refused(text: &str) -> bool {
    let parts = ["is no part of this tunnel", "of another peer", "clears"];
    text.starts_with("not ") || parts.iter().any(|part| text.contains(part))
}

/// The fixtures have every key of every format, and each outcome that the tables promise, and no other.
#[test]
fn the_tables_are_what_happens() {
    let (mut keys, mut kinds, mut wrong) = (BTreeSet::new(), BTreeSet::new(), vec![]);
    for (names, index) in CASES {
        let format = Format::of(&sources(names)).unwrap();
        let rows = page::keys(format);
        for outcome in case(names, *index).0 {
            let of = |key: &str| {
                let of =
                    |row: &&page::Keys| row.section == outcome.section && row.keys.contains(&key);
                rows.iter().find(of).map(|row| (row, key.to_owned()))
            };
            let found = of(&table_key(format, &outcome.key)).or_else(|| of("*"));
            let Some((row, key)) = found else { continue };
            if !is_refused(&outcome.verdict.text) && !row.kinds.contains(&outcome.verdict.kind) {
                wrong.push(format!("{names:?}: {outcome:?}"));
            }
            keys.insert((format.word(), row.section, key));
            kinds.insert((format.word(), row.section, row.text, outcome.verdict.kind));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut missing = vec![];
    for (word, format) in Format::WORDS {
        for row in page::keys(format) {
            let unseen = |key: &&&str| !keys.contains(&(word, row.section, (**key).to_owned()));
            missing.extend(
                row.keys.iter().filter(unseen).map(|key| format!("{word} [{}] {key}", row.section)),
            );
            let unseen = |kind: &&Kind| !kinds.contains(&(word, row.section, row.text, **kind));
            missing.extend(
                row.kinds
                    .iter()
                    .filter(unseen)
                    .map(|kind| format!("{word} [{}] {:?} {kind:?}", row.section, row.keys)),
            );
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// `docs/import.md` has the tables of the code. `VPND_WRITE=1 cargo test -p vpnd-import` writes them anew.
#[test]
fn the_page_has_the_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/import.md");
    let mut page = fs::read_to_string(&path).unwrap();
    for (word, format) in Format::WORDS {
        let (begin, end) = (format!("<!-- table {word} -->\n"), format!("<!-- end {word} -->"));
        let from = page.find(&begin).unwrap() + begin.len();
        let to = page.find(&end).unwrap();
        let table = page::table(format);
        if std::env::var_os("VPND_WRITE").is_some() {
            page.replace_range(from..to, &table);
            continue;
        }
        assert_eq!(&page[from..to], table, "the table of {word} in docs/import.md");
    }
    if std::env::var_os("VPND_WRITE").is_some() {
        fs::write(&path, page).unwrap();
    }
}

/// Words of a file, or its name, for a shell: one argument each.
#[test]
fn commands_to_type_quote_what_is_not_ours() {
    let evil = "x;touch /tmp/y\n$(id)";
    let stop = |name: &str, text: &str| {
        let source = Source { name: name.to_owned(), text: Zeroizing::new(text.to_owned()) };
        let private_key = Some(SecretKey::from_bytes([3; 32]).to_base64());
        let endpoint = Some("here.example.net".to_owned());
        let choices = Choices { private_key, endpoint, ..Choices::default() };
        let imported = import(&[source], &choices, &host());
        imported.unwrap_or_else(|failure| panic!("{}", failure.error)).stop.unwrap()
    };
    let key = SecretKey::from_bytes([5; 32]).public();
    let quoted = r"x;touch /tmp/y\012$(id)";
    let openvpn = format!("{evil}.conf");
    let found =
        stop(&openvpn, "dev tun0\nremote 192.0.2.2\nsecret k\nifconfig 10.0.0.1 10.0.0.2\n");
    assert_eq!(found, format!("systemctl disable --now $'openvpn@{}'", r"y\012$(id)"));
    let netdev = format!("[NetDev]\nName=wg0\nKind=wireguard\n[WireGuardPeer]\nPublicKey={key}\n");
    let found = stop(&format!("{evil}.netdev"), &netdev);
    assert!(found.starts_with(&format!("mv $'{quoted}.netdev' /root/ && ")), "{found}");
    let uci = format!("config wireguard_a$(id);b\n\toption public_key '{key}'\n");
    let found = stop("network", &uci);
    assert_eq!(
        found,
        "uci set 'network.a$(id);b.disabled=1' && uci commit network && ifdown 'a$(id);b'"
    );
}

/// Without `script-security 2` OpenVPN runs no script, and so nothing that it never ran becomes a hook.
#[test]
fn scripts_run_only_where_openvpn_runs_them() {
    let tunnel = |security: &str| {
        let text =
            format!("dev tun0\nremote 192.0.2.2\nsecret k\nup up.sh\n{security}\ndown ../d.sh\n");
        let source = Source { name: "vpn/a.conf".to_owned(), text: Zeroizing::new(text) };
        let choices = Choices { endpoint: Some("192.0.2.1".to_owned()), ..Choices::default() };
        let imported = import(&[source], &choices, &host());
        let imported = imported.unwrap_or_else(|failure| panic!("{}", failure.error));
        let [up, down] = [imported.tunnel.up, imported.tunnel.down];
        (up, down, imported.notes.join("\n"))
    };
    for without in
        ["", "script-security 0", "script-security 1", "script-security 2\nscript-security 1"]
    {
        let (up, down, notes) = tunnel(without);
        assert!(
            up.is_empty() && down.is_empty() && !notes.contains("up.sh"),
            "{without}: {up:?} {down:?}"
        );
    }
    for with in
        ["script-security 2", "script-security 3 system", "script-security 1\nscript-security 2"]
    {
        let (up, down, notes) = tunnel(with);
        // Hooks run in `/`.
        assert_eq!(up[0].last().unwrap(), "/home/admin/vpn/up.sh");
        assert_eq!(down[0].last().unwrap(), "/home/admin/vpn/../d.sh");
        assert!(notes.contains("others could change /home/admin/vpn/up.sh"), "{notes}");
    }
}

/// A secret that has lost its place in the file is no key of a report.
#[test]
fn a_line_of_a_secret_is_not_shown() {
    let hex = "6acef03f62675b4b1bbd03e53b187727";
    let base64 = SecretKey::from_bytes([5; 32]).to_base64();
    for line in [format!("{hex} # note"), base64[..20].to_owned(), "-----BEGIN".to_owned()] {
        let outcomes = outcomes_of(Format::OpenVpn, &format!("dev tun0\n{line}\n"));
        let shown = Outcomes(&outcomes).to_string();
        assert!(!shown.contains(&line[..10]) && shown.contains("not shown"), "{shown}");
    }
    let text = with_peer(Format::WgQuick, &format!("{}\nFooBar = 1\n", base64.as_str()));
    let shown = Outcomes(&outcomes_of(Format::WgQuick, &text)).to_string();
    assert!(!shown.contains(&base64[..10]) && shown.contains("`FooBar` is not known"), "{shown}");
}

#[test]
fn what_is_too_long_is_refused() {
    let long = |count: usize| {
        let nets: Vec<_> = (0..count)
            .map(|index| format!("10.{}.{}.0/24", index / 256 % 256, index % 256))
            .collect();
        let text = with_peer(Format::WgQuick, &format!("AllowedIPs = {}", nets.join(",")));
        let source = Source { name: "wg0.conf".into(), text: Zeroizing::new(text) };
        import(&[source], &Choices::default(), &host()).err().map(|failure| failure.error)
    };
    assert!(matches!(long(30_000), Some(crate::ImportError::Long)));
    assert!(matches!(long(1000), Some(crate::ImportError::NoPrivateKey(_))));
}

/// `%i` in a command becomes the device's name, which is that of the file.
#[test]
fn a_name_cannot_become_a_part_of_a_command() {
    for name in ["$(id)", "a;b", "a b", "a`b`", "a'b", "a\nb", "a&b", "a|b", "a>b", "a*"] {
        assert!(!crate::value::is_device(name), "{name}");
    }
    for name in ["wg0", "site-a.7", "a_b=c+d", "abcdefghijklmno"] {
        assert!(crate::value::is_device(name), "{name}");
    }
}

#[test]
fn no_report_shows_a_secret() {
    for (names, index) in CASES {
        let (_, text) = case(names, *index);
        for source in sources(names) {
            for line in source.text.lines() {
                let is_secret = ["private", "preshared", "secret"]
                    .iter()
                    .any(|it| line.to_lowercase().contains(it));
                let value =
                    line.rsplit([' ', '=', '\t']).find(|it| it.len() > 40).unwrap_or_default();
                let value = line.split_once('=').map_or(value, |(_, value)| value).trim();
                if is_secret && value.len() == 44 {
                    assert!(!text.contains(value), "{names:?} shows {value}");
                }
            }
        }
    }
}

/// The lines that set something: not blank, no comment, no section.
fn settings(format: Format, text: &str) -> BTreeSet<usize> {
    let mut block: Option<String> = None;
    let mut continued = false;
    let mut found = BTreeSet::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let comment = match format {
            Format::WgQuick | Format::NetworkManager | Format::OpenWrt => line.starts_with('#'),
            Format::Networkd | Format::OpenVpn => line.starts_with(['#', ';']),
        };
        let header = match format {
            Format::WgQuick => {
                let line = line.split('#').next().unwrap_or_default().trim();
                line.is_empty() || (line.starts_with('[') && line.ends_with(']'))
            }
            Format::OpenWrt => line.starts_with("config ") || line.starts_with("package "),
            Format::OpenVpn => ["<connection>", "</connection>"].contains(&line),
            _ => line.starts_with('[') && line.ends_with(']'),
        };
        if let Some(end) = &block {
            found.insert(index + 1);
            if line == end {
                block = None;
            }
            continue;
        }
        if continued || !(line.is_empty() || comment || header) {
            found.insert(index + 1);
        }
        continued = format == Format::Networkd && line.ends_with('\\') && (continued || !comment);
        let tag =
            line.strip_prefix('<').and_then(|it| it.strip_suffix('>')).filter(|it| !it.is_empty());
        if let (Format::OpenVpn, Some(tag), false) = (format, tag, header) {
            block = Some(format!("</{tag}>"));
        }
    }
    found
}

fn outcomes_of(format: Format, text: &str) -> Vec<Outcome> {
    let source = Source { name: "wg0.conf".into(), text: Zeroizing::new(text.to_owned()) };
    let choices = Choices { format: Some(format), ..Choices::default() };
    match import(&[source], &choices, &host()) {
        Ok(imported) => imported.outcomes,
        Err(failure) => failure.outcomes,
    }
}

/// Every setting of a fixture has exactly one outcome.
#[test]
fn every_line_of_a_fixture_has_one_outcome() {
    for (names, index) in CASES {
        let (outcomes, text) = case(names, *index);
        if outcomes.is_empty() {
            assert!(text.contains("error: "), "{names:?}");
            continue;
        }
        for (file, source) in sources(names).iter().enumerate() {
            let own = outcomes.iter().filter(|one| one.file == file);
            let lines: Vec<_> = own.flat_map(|one| one.first..=one.last).collect();
            let once: BTreeSet<_> = lines.iter().copied().collect();
            assert_eq!(lines.len(), once.len(), "{names:?}: two outcomes of a line");
            let format = Format::of(&sources(names)).unwrap();
            assert_eq!(once, settings(format, &source.text), "{names:?}");
        }
    }
}

fn format() -> impl Strategy<Value = Format> {
    (0..Format::WORDS.len()).prop_map(|index| Format::WORDS[index].1)
}

/// Lines of the fixtures in another order, some of them cut.
fn shuffled() -> impl Strategy<Value = (Format, String)> {
    format().prop_flat_map(|format| {
        let names = CASES.iter().flat_map(|(names, _)| names.iter());
        let names = names.filter(move |name| name.starts_with(&format!("{}/", format.word())));
        let lines: Vec<String> = names
            .flat_map(|name| {
                fs::read_to_string(fixtures().join(name))
                    .unwrap()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect();
        let line = (prop::sample::select(lines), 0..200_usize);
        let line = line.prop_map(|(line, cut)| line.chars().take(cut.max(4)).collect::<String>());
        prop::collection::vec(line, 0..60).prop_map(move |lines| (format, lines.join("\n")))
    })
}

/// A file with one valid peer, so that the lines after it are read.
fn with_peer(format: Format, rest: &str) -> String {
    let key = SecretKey::from_bytes([5; 32]).public();
    let head = match format {
        Format::WgQuick => format!("[Peer]\nPublicKey = {key}\n"),
        Format::Networkd => format!("[WireGuardPeer]\nPublicKey={key}\n"),
        Format::NetworkManager => format!("[wireguard-peer.{key}]\nendpoint=192.0.2.1:1\n"),
        Format::OpenWrt => format!("config wireguard_wg0\n\toption public_key '{key}'\n"),
        Format::OpenVpn => String::new(),
    };
    head + rest
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_survived(format in format(), text in "\\PC*") {
        outcomes_of(format, &text);
    }

    #[test]
    fn any_bytes_are_survived(format in format(), bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        outcomes_of(format, &with_peer(format, &text));
        let source = Source { name: String::new(), text: Zeroizing::new(text.into_owned()) };
        let _unrecognised = import(&[source], &Choices::default(), &host());
    }

    #[test]
    fn every_line_of_a_shuffled_file_has_one_outcome((format, text) in shuffled()) {
        let text = with_peer(format, &text);
        let outcomes = outcomes_of(format, &text);
        let lines: Vec<_> = outcomes.iter().flat_map(|one| one.first..=one.last).collect();
        let once: BTreeSet<_> = lines.iter().copied().collect();
        prop_assert_eq!(lines.len(), once.len());
        if !outcomes.is_empty() {
            prop_assert_eq!(once, settings(format, &text));
        }
    }
}
