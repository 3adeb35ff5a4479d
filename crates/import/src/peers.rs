//! The choice of one peer of several.

use std::fmt::Write as _;

use vpnd_crypto::PublicKey;

use crate::line::Line;
use crate::report::ImportError;
use crate::table::Verdict;

/// A peer of the file.
#[derive(Clone, Debug)]
pub struct PeerChoice {
    /// Its public key.
    pub key: PublicKey,
    /// What the file says about it.
    pub about: String,
}

/// The error `what`, and the list of peers.
pub(crate) fn listed(what: &str, peers: &[PeerChoice]) -> String {
    let mut text = format!("{what}. Choose one:");
    for PeerChoice { key, about } in peers {
        // Writing to a string cannot fail.
        let _written = write!(text, "\n  --peer {key}  {about}");
    }
    text
}

/// The peer that the user wants, or the only one.
pub(crate) fn choose(
    mut peers: Vec<PeerChoice>,
    wanted: Option<&str>,
) -> Result<PublicKey, ImportError> {
    peers.dedup_by_key(|peer| peer.key);
    let Some(wanted) = wanted else {
        return match peers.as_slice() {
            [] => Err(ImportError::NoPeer),
            [one] => Ok(one.key),
            _ => Err(ImportError::SeveralPeers(peers)),
        };
    };
    let begins = |peer: &&PeerChoice| peer.key.to_string().starts_with(wanted);
    match *peers.iter().filter(begins).collect::<Vec<_>>() {
        [one] => Ok(one.key),
        _ if peers.is_empty() => Err(ImportError::NoPeer),
        _ => Err(ImportError::NoSuchPeer(peers)),
    }
}

/// The outcome of the lines of a peer that is not taken.
pub(crate) fn other() -> Verdict {
    Verdict::dropped(
        "of another peer: vpnd has one for each tunnel, import again with its key in --peer and a --name",
    )
}

/// The peers of sections called `section`, each of which is a group.
pub(crate) fn of_sections(
    lines: &[Line],
    section: &str,
    names: &PeerKeys,
) -> Vec<(usize, PeerChoice)> {
    let mut found: Vec<(usize, PeerChoice)> = Vec::new();
    for line in lines.iter().filter(|line| line.section == section && line.key == names.key) {
        let Ok(key) = PublicKey::from_base64(&line.value) else { continue };
        let about = about(lines, line.group, names);
        found.push((line.group, PeerChoice { key, about }));
    }
    found
}

/// The keys of a format that tell about a peer.
pub(crate) struct PeerKeys {
    pub(crate) key: &'static str,
    pub(crate) about: &'static [&'static str],
}

fn about(lines: &[Line], group: usize, names: &PeerKeys) -> String {
    let told = lines.iter().filter(|line| line.group == group);
    let told = told.filter(|line| names.about.contains(&line.key.as_str()));
    told.flat_map(Line::words).collect::<Vec<_>>().join(" ")
}

/// Decides the lines of every section `section` that is not a peer with this key.
pub(crate) fn keep_only(
    lines: &mut [Line],
    section: &str,
    peers: &[(usize, PeerChoice)],
    chosen: PublicKey,
) {
    let of_chosen =
        |group: usize| peers.iter().any(|(other, peer)| *other == group && peer.key == chosen);
    for line in lines.iter_mut().filter(|line| line.section == section) {
        if !of_chosen(line.group) {
            line.decide(other);
        }
    }
}
