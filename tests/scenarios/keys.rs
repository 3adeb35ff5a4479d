//! Where keys are in the memory of a running vpnd: those in use in the memory for keys, and in no core file; those of a
//! session that has ended nowhere.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_crypto::{PresharedKey, PublicKey, Secret, SecretKey, hash, kdf};
use vpnd_tests::memory::{Memory, Place, Words, words};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{INNER_A4, INNER_B4, Site};
use vpnd_tests::traffic::{ping, tcp};
use vpnd_tests::{Host, Key, Lab, Vpnd, Wire, eventually};

use crate::capture::{Capture, allowing};
use crate::tunnel::{SOON, Tunnel};

/// Sessions that were forgotten come back by themselves only after a while.
const LATER: Duration = Duration::from_secs(40);
/// Until then nobody makes a session for packets that wait.
const NOT_YET: Duration = Duration::from_secs(3);
/// The unit that makes tunnels forget.
const UNIT: &str = include_str!("../../systemd/vpnd-sleep.service");
/// The words of a session: two keys at least, of four words each, and not all of them are searched for.
const SESSION: usize = 6;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario::new("keys::those of the key log", Cost::Waits, key_log),
        Scenario::new("keys::forgotten before a suspend", Cost::Waits, forgotten),
    ];
    for (name, lines) in [
        ("WireGuard", None),
        ("the profile", Some(&[][..])),
        ("AES", Some(&["cipher = \"aes-256-gcm\""][..])),
    ] {
        let name = format!("keys::of a session that the peer has closed, {name}");
        all.push(Scenario::new(name, Cost::Works, move |lab| closed(lab, lines)));
    }
    all
}

/// Two ends with a preshared key, A's for more than one session.
fn tunnel(lab: &Lab, vpnd: Option<&'static [&'static str]>) -> Result<(Tunnel, Static)> {
    let psk = Key::preshared()?;
    let mut known = None;
    let with = |site: Site| {
        let site = allowing(site.with_preshared(&psk));
        vpnd.map_or_else(|| site.clone(), |lines| site.clone().speaking_vpnd(lines))
    };
    let tunnel = Tunnel::with(lab, |a, b| {
        known = Some(a.keys.private.clone());
        (with(a.towards(Wire::B4)), with(b))
    })?;
    // Both data threads seal and open, batches and single packets.
    tcp::transfer(&tunnel.wire.a, &tunnel.wire.b, INNER_B4, 4 << 20)?;
    tcp::transfer(&tunnel.wire.b, &tunnel.wire.a, INNER_A4, 4 << 20)?;
    ping::until_answered(&tunnel.wire.a, INNER_B4, SOON)?;
    let private = known.context("the configuration was not made")?;
    Ok((tunnel, Static { private, psk, raw: vpnd.is_none() }))
}

/// The keys that stay.
struct Static {
    private: Key,
    psk: Key,
    /// Whether the preshared key is used as it is: the profile derives another one.
    raw: bool,
}

impl Static {
    /// They are in the memory for keys, and nowhere else, not as text either.
    fn check(&self, memory: &Memory) -> Result<()> {
        for (what, key, is_there) in
            [("private", &self.private, true), ("preshared", &self.psk, self.raw)]
        {
            let found = memory.find(&of_text(key)?);
            let in_place = found.get(&Place::Keys).map_or(0, |(count, _)| *count);
            ensure!(
                in_place >= 3 || !is_there,
                "the {what} key is not where it belongs: {found:?}"
            );
            ensure!(found.keys().all(|place| *place == Place::Keys), "the {what} key: {found:?}");
            ensure!(!memory.has_text(key.as_str()), "the {what} key is there as text");
        }
        Ok(())
    }
}

fn of_text(key: &Key) -> Result<Words> {
    Ok(words(PresharedKey::from_base64(key.as_str())?.as_bytes()).collect())
}

fn memory_of(vpnd: &Vpnd) -> Result<Memory> {
    Memory::of(vpnd.as_process().id())
}

/// What is in the memory for keys is in nothing that a core file would contain. Stacks, which no core file contains, may
/// have copies for as long as a key is in use.
fn living(vpnd: &Vpnd, fixed: &Static) -> Result<Words> {
    let mut result = Words::new();
    // A handshake may be under way.
    eventually("keys are in their memory only", SOON, || {
        let memory = memory_of(vpnd)?;
        let keys = memory.keys();
        ensure!(keys.len() > SESSION, "only {} words of keys", keys.len());
        let found = memory.find(&keys);
        ensure!(!found.contains_key(&Place::Core), "a core file would have keys: {found:?}");
        fixed.check(&memory)?;
        result = keys;
        Ok(())
    })?;
    Ok(result)
}

/// Of these words those that are not in use any more are nowhere; returns how many there are, and how much was searched.
fn dead(vpnd: &Vpnd, words: &Words) -> Result<(usize, usize)> {
    let mut result = (0, 0);
    eventually("dead keys are nowhere", SOON, || {
        let memory = memory_of(vpnd)?;
        let gone: Words = words.difference(&memory.keys()).copied().collect();
        ensure!(gone.len() >= SESSION, "only {} words have left the memory for keys", gone.len());
        let found = memory.find(&gone);
        ensure!(found.is_empty(), "keys of a dead session: {found:?}");
        result = (gone.len(), memory.len());
        Ok(())
    })?;
    Ok(result)
}

fn closed(lab: &Lab, vpnd: Option<&'static [&'static str]>) -> Result<String> {
    let (mut tunnel, fixed) = tunnel(lab, vpnd)?;
    let before = living(&tunnel.a, &fixed)?;
    if vpnd.is_some() {
        // It says that it ends.
        tunnel.b.process().terminate()?;
        tunnel.a.wait_for("no session", SOON, |status| !status.has_session())?;
    } else {
        tunnel.wire.a.run(&format!("{} forget site-a", vpnd_tests::vpnd::program()?.display()))?;
    }
    let (words, bytes) = dead(&tunnel.a, &before)?;
    fixed.check(&memory_of(&tunnel.a)?)?;
    Ok(format!("{words} words of keys in {} KiB: 0 hits", bytes / 1024))
}

/// The value of a line of [`UNIT`].
fn setting(key: &str) -> Result<&'static str> {
    let value = UNIT.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.with_context(|| format!("no {key}= in the unit"))
}

/// The command of [`UNIT`] as root with these capabilities only, and without a network.
fn unit_with(capabilities: &str) -> Result<String> {
    let (_, arguments) = setting("ExecStart")?.split_once(' ').context("a command of one word")?;
    let names = capabilities.to_lowercase();
    let added: String = names.split_whitespace().map(|name| name.replace("cap_", ",+")).collect();
    Ok(format!(
        "unshare --net setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{added} {} {arguments}",
        vpnd_tests::vpnd::program()?.display()
    ))
}

/// Makes vpnd forget, as the service does that is started before a suspend: the control socket belongs to vpnd's own user.
fn forgotten(lab: &Lab) -> Result<String> {
    let (tunnel, fixed) = tunnel(lab, Some(&[]))?;
    let before = living(&tunnel.a, &fixed)?;
    let without = tunnel.wire.a.run(&unit_with("")?).err().context("needs no capability")?;
    ensure!(format!("{without:#}").contains("no permission to open"), "{without:#}");
    ensure!(tunnel.a.status()?.has_session(), "forgotten without permission");
    tunnel.wire.a.run(&unit_with(setting("CapabilityBoundingSet")?)?)?;
    ensure!(!tunnel.a.status()?.has_session(), "there is a session still, or again");
    // At once, or they are in the image of a hibernation.
    let memory = memory_of(&tunnel.a)?;
    let gone: Words = before.difference(&memory.keys()).copied().collect();
    let found = memory.find(&gone);
    ensure!(gone.len() >= SESSION && found.is_empty(), "{} words gone: {found:?}", gone.len());
    let words = gone.len();
    // Packets wait, and nobody makes a session for them.
    ensure!(ping::until_answered(&tunnel.wire.a, INNER_B4, NOT_YET).is_err(), "it goes on");
    ensure!(!tunnel.a.status()?.has_session(), "there is a session before the host has slept");
    ping::until_answered(&tunnel.wire.a, INNER_B4, LATER)?;
    let after = living(&tunnel.a, &fixed)?;
    let common = after.intersection(&before).count();
    ensure!(after.len() > common + SESSION, "no new session: {} words, {common}", after.len());
    Ok(format!("{words} words of keys gone, then a new session"))
}

/// The keys of a session are computed from the key log: they are what is in the memory for keys, and are gone with it.
fn key_log(lab: &Lab) -> Result<String> {
    let (tunnel, fixed) = tunnel(lab, None)?;
    let host = &tunnel.wire.a;
    let before = tunnel.a.status()?.handshakes();
    let capture = Capture::begin(host, "site-a", "keys.pcapng", "--outer --keys")?;
    tunnel.a.wait_for("a handshake that is captured", SOON, |now| now.handshakes() > before)?;
    ping::until_answered(host, INNER_B4, SOON)?;
    let (file, _said) = capture.end()?;
    let session = Derived::from_capture(host, &file)?;
    for (which, vpnd) in [("A", &tunnel.a), ("B", &tunnel.b)] {
        let found = memory_of(vpnd)?.find(&session.keys);
        let (count, _) = found.get(&Place::Keys).with_context(|| format!("{which}: {found:?}"))?;
        ensure!(*count >= SESSION && !found.contains_key(&Place::Core), "{which}: {found:?}");
    }
    living(&tunnel.a, &fixed)?;
    let passed = memory_of(&tunnel.a)?;
    let found = passed.find(&session.passed);
    ensure!(found.is_empty(), "the ephemeral key or a chaining key: {found:?}");
    ensure!(!passed.has_text(&session.ephemeral), "the ephemeral key, as text");
    host.run(&format!("{} forget site-a", vpnd_tests::vpnd::program()?.display()))?;
    eventually("the session's keys are nowhere", SOON, || {
        let found = memory_of(&tunnel.a)?.find(&session.keys);
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })?;
    Ok("session keys, ephemeral key and chaining keys: 0 hits".to_owned())
}

/// What a handshake that A has begun has computed.
struct Derived {
    /// The session's keys.
    keys: Words,
    /// Chaining keys, what was agreed on, and the ephemeral key.
    passed: Words,
    /// The ephemeral key, as text.
    ephemeral: String,
}

impl Derived {
    fn from_capture(host: &Host, file: &Path) -> Result<Self> {
        let text = String::from_utf8_lossy(&fs::read(file)?).into_owned();
        let last = |name: &str| -> Result<String> {
            let (_, rest) =
                text.rsplit_once(&format!("{name} = ")).with_context(|| name.to_owned())?;
            Ok(rest[..44].to_owned())
        };
        let ephemeral = last("LOCAL_EPHEMERAL_PRIVATE_KEY")?;
        let [e_i, s_i] = [&ephemeral, &last("LOCAL_STATIC_PRIVATE_KEY")?]
            .map(|text| SecretKey::from_base64(text));
        let (e_i, s_i) = (e_i?, s_i?);
        let s_r = PublicKey::from_base64(&last("REMOTE_STATIC_PUBLIC_KEY")?)?;
        let psk = PresharedKey::from_base64(&last("PRESHARED_KEY")?)?;
        let fields = host.run(&format!(
            "tshark -r {} -Y wg.type==2 -T fields -e wg.ephemeral",
            file.display()
        ))?;
        let e_r = fields.lines().last().context("no response in the capture")?.trim();
        let e_r = PublicKey::from_base64(e_r).or_else(|_| from_hex(e_r))?;

        let mut all = vec![Secret::copy_of(&hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]))];
        let mut passed: Words = [].into();
        let mut mix = |input: &[u8], parts: usize| {
            let last = all.last().expect("one is there from the beginning");
            let [chaining, first, second] = kdf::<3>(last, &[input]);
            all.push(chaining);
            passed.extend(words(&*first).filter(|_| parts > 1));
            passed.extend(words(&*second).filter(|_| parts > 2));
        };
        let agreed = [
            e_i.diffie_hellman(&s_r)?,
            s_i.diffie_hellman(&s_r)?,
            e_i.diffie_hellman(&e_r)?,
            s_i.diffie_hellman(&e_r)?,
        ];
        let [es, ss, ee, se] = agreed.each_ref().map(|secret| secret.as_bytes());
        mix(e_i.public().as_bytes(), 1);
        mix(es, 2);
        mix(ss, 2);
        mix(e_r.as_bytes(), 1);
        mix(ee, 1);
        mix(se, 1);
        mix(psk.as_bytes(), 3);
        passed.extend(all.iter().skip(1).flat_map(|key| words(&**key).collect::<Vec<_>>()));
        passed
            .extend(agreed.iter().flat_map(|secret| words(secret.as_bytes()).collect::<Vec<_>>()));
        let raw = PresharedKey::from_base64(&ephemeral)?;
        passed.extend(words(raw.as_bytes()));
        // The static keys of both ends agree on the same secret in each handshake, but nothing keeps it.
        let keys = kdf::<2>(all.last().context("nothing was mixed")?, &[&[]]);
        let keys = keys.iter().flat_map(|key| words(&**key).collect::<Vec<_>>()).collect();
        Ok(Self { keys, passed, ephemeral })
    }
}

/// A key as tshark prints bytes: hexadecimal digits, maybe with colons.
fn from_hex(text: &str) -> Result<PublicKey> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs =
        digits.chunks_exact(2).map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
    let bytes: Vec<u8> = pairs.collect::<Result<_>>()?;
    let bytes = bytes.try_into().map_err(|_| anyhow::anyhow!("{text:?} is no key"))?;
    Ok(PublicKey::from_bytes(bytes))
}
