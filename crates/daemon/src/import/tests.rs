use std::fs;
use std::os::unix::fs::PermissionsExt;

use clap::Parser;

use super::*;
use crate::config;
use crate::keys;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: ImportOptions,
}

fn options(arguments: &[&str]) -> ImportOptions {
    Line::parse_from([&["import"], arguments].concat()).options
}

fn fixture(name: &str) -> String {
    format!("{}/../import/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The fixtures of a format.
fn fixtures(format: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(fixture(format)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_none_or(|it| it != "expected"));
    paths.sort();
    paths
}

fn import(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    run(&options(arguments))
}

/// The peers that the error lists, to choose each of them.
fn peers(error: &anyhow::Error) -> Vec<String> {
    match error.downcast_ref() {
        Some(ImportFailure::Import(ImportError::SeveralPeers(peers))) => {
            peers.iter().map(|peer| peer.key.to_string()).collect()
        }
        _ => vec![],
    }
}

/// Whatever is imported is what `vpnd check` accepts; whatever is not, leaves nothing.
#[test]
fn every_fixture_becomes_a_valid_configuration_or_a_clear_error() {
    let mut valid = 0;
    for (format, _) in Format::WORDS {
        for path in fixtures(format) {
            valid += all_peers(path.to_str().unwrap());
        }
    }
    assert!(valid >= 25, "{valid}");
}

fn all_peers(path: &str) -> usize {
    let out = tempfile::tempdir().unwrap();
    let (here, there) = (out.path().join("here"), out.path().join("there"));
    let key = out.path().join("key");
    keys::create(&key, &SecretKey::from_bytes([7; 32]).to_base64()).unwrap();
    let (here_text, there_text, key) =
        (here.to_str().unwrap(), there.to_str().unwrap(), key.to_str().unwrap());
    let ends = ["--out", here_text, "--peer-out", there_text, "--endpoint", "here.example.net"];
    let given = ["--private-key", key, "--preshared-key", key];
    let all = [&[path][..], &ends, &given].concat();
    let chosen: Vec<Option<String>> = match import(&all) {
        Ok(_) => return configurations(&[&here, &there]),
        Err(error) => match peers(&error) {
            none if none.is_empty() => {
                // What was read is valid, unless what the tunnel needs was not in the file.
                let lacks = format!("{error:#}").contains("neither end could initiate");
                assert!(lacks || !error.is::<Report>(), "{path}: {error:#}");
                assert!(!here.exists() && !there.exists(), "{path}: {error:#}");
                assert!(!format!("{error:#}").is_empty());
                vec![]
            }
            some => some.into_iter().map(Some).collect(),
        },
    };
    for (index, peer) in chosen.iter().flatten().enumerate() {
        let name = format!("t{index}");
        import(&[&all[..], &["--peer", &peer[..6], "--name", &name]].concat()).unwrap();
    }
    configurations(&[&here])
}

/// Loads every configuration, as `vpnd check` does, and counts them.
fn configurations(directories: &[&Path]) -> usize {
    let entries = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    let paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|it| it == "toml")).collect();
    for path in &paths {
        config::load(path).unwrap_or_else(|report| panic!("{report}"));
        for key in ["toml", "key", "psk"].map(|extension| path.with_extension(extension)) {
            let mode = key.metadata().map_or(0o600, |found| found.permissions().mode() & 0o7777);
            assert_eq!(mode, 0o600, "{}", key.display());
        }
    }
    paths.len()
}

#[test]
fn nothing_is_overwritten() {
    let out = tempfile::tempdir().unwrap();
    let (file, directory) = (fixture("wg-quick/wg0.conf"), out.path().to_str().unwrap());
    for existing in ["wg0.toml", "wg0.key", "wg0.psk"] {
        let path = out.path().join(existing);
        fs::write(&path, "mine").unwrap();
        let error = import(&[&file, "--out", directory]).unwrap_err();
        assert!(error.to_string().contains("nothing is overwritten"), "{error:#}");
        assert_eq!(fs::read_dir(directory).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(path).unwrap();
    }
    import(&[&file, "--out", directory]).unwrap();
    assert_eq!(fs::read_dir(directory).unwrap().count(), 3);
}

#[test]
fn a_dry_run_writes_nothing() {
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().join("none");
    let directory = directory.to_str().unwrap();
    import(&[&fixture("openvpn/inline.conf"), "--out", directory, "--dry-run"]).unwrap();
    import(&[&fixture("wg-quick/wg0.conf"), "--out", directory, "--dry-run"]).unwrap();
    assert!(!Path::new(directory).exists());
}

#[test]
fn missing_choices_end_with_2() {
    let out = tempfile::tempdir().unwrap();
    let directory = out.path().to_str().unwrap();
    for arguments in [
        &["wg-quick/server-many.conf"][..],
        &["wg-quick/server-many.conf", "--peer", "AAAAAAAA"],
        &["wg-quick/no-key.conf"],
        &["openvpn/office.conf", "--peer-out", "x"],
        &["openvpn/inline.conf"],
        &["networkd/alone.network"],
    ] {
        let file = fixture(arguments[0]);
        let arguments = [&[file.as_str(), "--out", directory], &arguments[1..]].concat();
        let error = import(&arguments).unwrap_err();
        let failure = error.downcast_ref::<ImportFailure>().unwrap();
        assert_eq!(failure.exit(), Exit::Usage, "{arguments:?}: {error:#}");
    }
    for refused in [
        "openvpn/server.conf",
        "openvpn/client.ovpn",
        "networkd/vxlan.netdev",
        "networkmanager/plugin.nmconnection",
    ] {
        let error = import(&[&fixture(refused), "--out", directory]).unwrap_err();
        let failure = error.downcast_ref::<ImportFailure>().unwrap();
        assert_eq!(failure.exit(), Exit::Failure, "{refused}: {error:#}");
    }
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
}

#[test]
fn what_is_not_valid_is_reported_as_by_check() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("wg0.conf");
    // Neither end could begin.
    let key = SecretKey::from_bytes([3; 32]);
    let text = format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\n",
        key.to_base64().as_str(),
        SecretKey::from_bytes([4; 32]).public()
    );
    fs::write(&file, text).unwrap();
    let written = out.path().join("out");
    let error = import(&[file.to_str().unwrap(), "--out", written.to_str().unwrap()]).unwrap_err();
    assert!(error.is::<Report>(), "{error:#}");
    assert!(!written.exists());
}

#[test]
fn the_partner_of_a_netdev_is_found_beside_it() {
    for given in ["networkd/site.netdev", "networkd/site.network"] {
        let found = sources::read(&[PathBuf::from(fixture(given))]).unwrap();
        let names: Vec<_> =
            found.iter().map(|source| source.name.rsplit('/').next().unwrap()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.contains(&"site.netdev") && names.contains(&"site.network"), "{names:?}");
    }
}

#[test]
fn drop_ins_are_read_after_their_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("a.netdev.d")).unwrap();
    fs::write(at("a.netdev"), "[NetDev]\nName=wg1\n").unwrap();
    fs::write(at("a.netdev.d/20.conf"), "[WireGuard]\n").unwrap();
    fs::write(at("a.netdev.d/10.conf"), "[WireGuard]\n").unwrap();
    fs::write(at("z.network"), "[Match]\nName=eth0 wg*\n").unwrap();
    fs::write(at("b.network"), "[Match]\nName=eth*\n").unwrap();
    let found = sources::read(&[at("a.netdev")]).unwrap();
    let names: Vec<_> =
        found.iter().map(|source| source.name.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["a.netdev", "10.conf", "20.conf", "z.network"]);
}

#[test]
fn no_pipe_and_nothing_long_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("long.conf");
    fs::write(&long, vec![b'#'; config::MAX_LEN + 1]).unwrap();
    let error = import(&[long.to_str().unwrap()]).unwrap_err();
    assert!(error.to_string().contains("longer than 1 MiB"), "{error:#}");
    let (half, more) = (directory.path().join("a.network"), directory.path().join("a.network.d"));
    fs::create_dir(&more).unwrap();
    for file in [&half, &more.join("b.conf")] {
        fs::write(file, vec![b'#'; config::MAX_LEN / 2 + 1]).unwrap();
    }
    let error = import(&[half.to_str().unwrap()]).unwrap_err();
    assert!(error.to_string().contains("all files together"), "{error:#}");
    (0..100).for_each(|index| fs::write(more.join(format!("{index}.conf")), "").unwrap());
    let error = import(&[half.to_str().unwrap()]).unwrap_err();
    assert!(error.to_string().contains("100 drop-ins"), "{error:#}");
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(import(&[pipe.to_str().unwrap()]).is_err());
}

/// What a foreign file names is opened only if it is a regular file.
#[test]
fn no_descriptor_and_no_device_is_read_for_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (end, _other) = nix::unistd::pipe().unwrap();
    let descriptor = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&end));
    let host = ThisHost::default();
    for path in [pipe.as_path(), Path::new(&descriptor), Path::new("/dev/zero")] {
        let error = host.read(path).unwrap_err();
        assert_eq!(error.to_string(), "not a file", "{}", path.display());
    }
    // The exemption of the command line is for the descriptor itself.
    let around = format!("/dev/fd/../..{}", pipe.display());
    assert!(read_given(Path::new(&around)).is_err());
    assert_eq!(host.files_read(), "");
    fs::write(directory.path().join("key"), "text").unwrap();
    assert_eq!(host.read(&directory.path().join("key")).unwrap().as_str(), "text");
    assert!(host.files_read().contains("/key\n"), "{}", host.files_read());
}

/// A command of the file is shown as it will run.
#[test]
fn every_command_of_the_file_is_shown() {
    let sources = sources::read(&[PathBuf::from(fixture("wg-quick/laptop.conf"))]).unwrap();
    let text = sources[0]
        .text
        .replace("[Peer]", "PostUp = echo 'a\x1b' # no\nPreDown = logger down\n[Peer]");
    let sources = [Source { name: "a.conf".to_owned(), text: text.into() }];
    let host: Rc<dyn Host> = Rc::new(ThisHost::default());
    let imported = vpnd_import::import(&sources, &Choices::default(), &host);
    let shown = commands(&imported.unwrap_or_else(|failure| panic!("{}", failure.error)));
    assert!(shown.contains(r"  up           bash -c $'echo \047a\033\047'"), "{shown}");
    assert!(shown.contains("  down         bash -c 'logger down'\n"), "{shown}");
    assert!(shown.contains("with the privileges"), "{shown}");
}
