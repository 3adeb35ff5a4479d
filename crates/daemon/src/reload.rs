//! `reload` and `rotate`: sends a running tunnel its configuration and keys again, or makes it use its next
//! keys. The daemon has no privileges, so it cannot read the files itself.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::ask::{self, SOCKETS, ask, socket};
use crate::config::{self, Config, Handed};
use crate::control::{Announced, Ask, CONFIG};
use crate::exit::Exit;
use crate::terminal;

/// Options of `reload`.
#[derive(Debug, Args)]
pub(crate) struct ReloadOptions {
    /// The tunnel, or the path of its control socket
    pub(crate) name: String,
    /// Its configuration [default: /etc/vpnd/NAME.toml]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Options of `rotate`.
#[derive(Debug, Args)]
pub(crate) struct RotateOptions {
    /// The tunnel, or the path of its control socket
    pub(crate) name: String,
    /// Stops accepting the previous keys
    #[arg(long)]
    pub(crate) finish: bool,
}

/// The directory of configurations if there is no `--config`.
const CONFIGURATIONS: &str = "/etc/vpnd";

/// Reads the configuration and its key files, as `run` would, and sends them to the tunnel.
pub(crate) fn reload(options: &ReloadOptions) -> anyhow::Result<ExitCode> {
    let socket = socket(&options.name);
    let file = options.config.clone().unwrap_or_else(|| usual_file(&socket));
    let loaded = config::load_for_running(&file)?;
    if !loaded.warnings.is_empty() {
        writeln!(io::stderr(), "{}\n", loaded.warnings)
            .context("cannot write to standard error")?;
    }
    hand_over(&socket, &loaded.hand_over(), &runs_as(&socket, &loaded.config))?;
    say(&format!("reloaded {}", file.display()))
}

/// Makes a tunnel use its next keys, or stop accepting the previous ones.
pub(crate) fn rotate(options: &RotateOptions) -> anyhow::Result<ExitCode> {
    let request = Ask { finish: options.finish, ..Ask::new("rotate") };
    ask(&socket(&options.name), &request)?;
    say(if options.finish {
        "the previous keys are no longer accepted"
    } else {
        "new handshakes use the next key; `vpnd status --json` shows it as `device.public_key` once a session is established"
    })
}

/// The configuration with the same name as the tunnel's socket.
pub(crate) fn usual_file(socket: &Path) -> PathBuf {
    let mut name = socket.file_stem().unwrap_or_default().to_owned();
    name.push(".toml");
    Path::new(CONFIGURATIONS).join(name)
}

/// The users as which the tunnel may run: the user in its configuration, and the owner of its socket's
/// directory. systemd makes that owner, a dynamic user, for the service.
fn runs_as(socket: &Path, config: &Config) -> Vec<u32> {
    let named = config.service.user.as_ref().map(|user| user.uid);
    let usual = socket.parent() == Some(Path::new(SOCKETS));
    let made_up = usual.then(|| fs::metadata(SOCKETS)).and_then(Result::ok);
    named.into_iter().chain(made_up.map(|directory| directory.uid())).collect()
}

fn hand_over(socket: &Path, handed: &Handed, users: &[u32]) -> anyhow::Result<()> {
    let keys = handed.keys.0.iter().map(|(named_by, text)| (*named_by, text.as_str()));
    let (names, files): (Vec<_>, Vec<_>) =
        [(CONFIG, handed.source.as_str())].into_iter().chain(keys).unzip();
    let announced = names.iter().zip(&files);
    let announced = announced
        .map(|(name, file)| Announced { name: (*name).to_owned(), bytes: file.len() })
        .collect();
    ask::hand_over(socket, &Ask { files: announced, ..Ask::new("reload") }, &files, users)?;
    Ok(())
}

fn say(line: &str) -> anyhow::Result<ExitCode> {
    terminal::print(format_args!("{line}\n"))?;
    Ok(Exit::Success.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;
    use crate::config::tests::site;
    use crate::control::{Control, Request};
    use crate::keys::Keys;
    use crate::worker::Worker;
    use tokio::task::spawn_blocking;

    #[test]
    fn a_configuration_is_found_by_the_name_of_its_tunnel() {
        for name in ["site-a", "/elsewhere/site-a.sock"] {
            assert_eq!(usual_file(&socket(name)), Path::new("/etc/vpnd/site-a.toml"));
        }
        assert_eq!(usual_file(&socket("site.a")), Path::new("/etc/vpnd/site.a.toml"));
    }

    /// Runs `vpnd reload` against a tunnel that gives this answer. Returns its result and what the tunnel
    /// received.
    async fn hand(loaded: &Loaded, answer: Result<(), &str>) -> (Result<(), String>, Config, Keys) {
        let mut control = Control::bind(&loaded.config).unwrap();
        control.load_with(&Worker::start("lookups", || Ok(())).unwrap());
        let (path, handed) = (loaded.config.service.control.clone(), loaded.hand_over());
        let asking =
            spawn_blocking(move || hand_over(&path, &handed, &[]).map_err(|e| e.to_string()));
        let Request::Reload(got, reply) = control.next().await else { panic!("another request") };
        reply.send(answer.map_err(str::to_owned)).unwrap();
        let (config, keys) = *got;
        (asking.await.unwrap(), config, keys)
    }

    #[tokio::test]
    async fn a_configuration_crosses_with_its_keys() {
        let (_directory, file) = site("protocol = 'vpnd'\npreshared_key_file = 'site.psk'");
        let here = config::load(&file).unwrap();
        let (said, config, keys) = hand(&here, Ok(())).await;
        assert_eq!(said, Ok(()));
        assert_eq!(config, here.config);
        assert_eq!(keys.secret.public(), here.keys.secret.public());
        assert_eq!(keys.preshared.as_bytes(), here.keys.preshared.as_bytes());
    }

    /// systemd gives the directory of the sockets to the user that it has made up.
    #[test]
    fn a_tunnel_of_a_dynamic_user_is_reloaded_by_root() {
        let (directory, file) = site("");
        let sockets = directory.path().join("run");
        fs::create_dir(&sockets).unwrap();
        // Only root can give a directory away.
        if std::os::unix::fs::chown(&sockets, Some(65053), None).is_ok() {
            assert!(config::load(&file).is_err());
        }
        assert!(config::load_for_running(&file).is_ok());
    }

    #[tokio::test]
    async fn a_refusal_comes_back() {
        let (_directory, file) = site("");
        let (said, ..) =
            hand(&config::load(&file).unwrap(), Err("`[interface] mtu` differs")).await;
        assert!(said.unwrap_err().ends_with("/site.sock: `[interface] mtu` differs"));
    }
}
