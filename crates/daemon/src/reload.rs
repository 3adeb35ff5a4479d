//! `reload` and `rotate`: sends a running tunnel its configuration and keys again, or makes it use its next
//! keys. The daemon has no privileges, so it cannot read the files itself.

mod restart;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use crate::ask::{self, SOCKETS, ask, socket};
use crate::config::{self, Config, Difference, Handed, Takes};
use crate::control::{Announced, Ask, CONFIG, Differences};
use crate::exit::Exit;
use crate::placing::ETC;
use crate::terminal::{self, PrintableLines};

use restart::Restart;

/// Options of `reload`.
#[derive(Debug, Args)]
pub(crate) struct ReloadOptions {
    /// The tunnel, or the path of its control socket
    pub(crate) name: String,
    /// Its configuration [default: /etc/vpnd/NAME.toml]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Prints what differs from the running configuration, and changes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Restarts the tunnel without a loss, if a changed key takes that
    #[arg(long)]
    pub(crate) restart: bool,
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

/// Reads the configuration and its key files, as `run` would, and sends them to the tunnel.
pub(crate) fn reload(options: &ReloadOptions) -> anyhow::Result<ExitCode> {
    let socket = socket(&options.name);
    let file = options.config.clone().unwrap_or_else(|| usual_file(&socket));
    let loaded = config::load_for_running(&file)?;
    if !loaded.warnings.is_empty() {
        writeln!(io::stderr(), "{}\n", loaded.warnings)
            .context("cannot write to standard error")?;
    }
    let users = runs_as(&socket, &loaded.config);
    let compare = || compare(&socket, &loaded.hand_over(), &users);
    if options.dry_run || options.restart {
        let differences = compare()?;
        let takes_restart = differences.iter().any(|one| one.takes == Takes::Restart);
        let restart = (takes_restart && options.restart).then(|| Restart::of(&socket, &file));
        let restart = restart.transpose()?;
        if options.dry_run {
            return show(&differences, restart.as_ref());
        }
        if let Some(restart) = restart {
            restart.run(&differences)?;
            return restarted(&restart, &compare()?, &file);
        }
    }
    hand_over(&socket, "reload", &loaded.hand_over(), &users)?;
    say(&format!("reloaded {}", file.display()))
}

/// Reports a restart. The tunnel may have another file than the one that was compared.
fn restarted(restart: &Restart, left: &[Difference], file: &Path) -> anyhow::Result<ExitCode> {
    let (command, file) = (restart.command(), file.display());
    if !left.is_empty() {
        let listed = listed(left);
        anyhow::bail!(
            "`{command}` was run, but the tunnel still has another configuration than {file}:\n{listed}"
        );
    }
    say(&format!("restarted with {file}: `{command}`"))
}

/// What differs from the running configuration.
fn compare(socket: &Path, handed: &Handed, users: &[u32]) -> anyhow::Result<Vec<Difference>> {
    let answer = hand_over(socket, "compare", handed, users)?;
    let Differences { differences, .. } =
        serde_json::from_value(answer).map_err(|error| ask::shape(socket, error))?;
    Ok(differences)
}

/// Prints the differences, and the command that restarts the tunnel. A key that takes a restart ends with the exit code
/// that a reload would end with.
fn show(differences: &[Difference], restart: Option<&Restart>) -> anyhow::Result<ExitCode> {
    let text = PrintableLines(listed(differences));
    terminal::print(format_args!("{text}\n"))?;
    if let Some(restart) = restart {
        terminal::print(format_args!("`{}` applies all of it\n", restart.command()))?;
    }
    let takes_restart = differences.iter().any(|one| one.takes == Takes::Restart);
    let is_refused = takes_restart && !restart.is_some_and(Restart::is_ours);
    Ok(if is_refused { Exit::Failure } else { Exit::Success }.into())
}

/// A line for each difference.
fn listed(differences: &[Difference]) -> String {
    if differences.is_empty() {
        return "nothing differs from the running configuration".to_owned();
    }
    let line = |Difference { key, takes, was, becomes }: &Difference| {
        format!("{:<9} {key}: {was} -> {becomes}", takes.to_string())
    };
    differences.iter().map(line).collect::<Vec<_>>().join("\n")
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
    Path::new(ETC).join(name)
}

/// The users as which the tunnel may run: the user in its configuration, and the owner of its socket's
/// directory. systemd makes that owner, a dynamic user, for the service.
fn runs_as(socket: &Path, config: &Config) -> Vec<u32> {
    let named = config.service.user.as_ref().map(|user| user.uid);
    let usual = socket.parent() == Some(Path::new(SOCKETS));
    let made_up = usual.then(|| fs::metadata(SOCKETS)).and_then(Result::ok);
    named.into_iter().chain(made_up.map(|directory| directory.uid())).collect()
}

/// Sends the files with this request, and returns the answer.
fn hand_over(
    socket: &Path,
    command: &str,
    handed: &Handed,
    users: &[u32],
) -> anyhow::Result<Value> {
    let keys = handed.keys.0.iter().map(|(named_by, text)| (*named_by, text.as_str()));
    let (names, files): (Vec<_>, Vec<_>) =
        [(CONFIG, handed.source.as_str())].into_iter().chain(keys).unzip();
    let announced = names.iter().zip(&files);
    let announced = announced
        .map(|(name, file)| Announced { name: (*name).to_owned(), bytes: file.len() })
        .collect();
    Ok(ask::hand_over(socket, &Ask { files: announced, ..Ask::new(command) }, &files, users)?)
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
    use crate::control::{Control, Request, Wanted};
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
        let asking = spawn_blocking(move || {
            hand_over(&path, "reload", &handed, &[]).map(drop).map_err(|e| e.to_string())
        });
        let Request::Reload(got, reply) = control.next().await else { panic!("another request") };
        reply.send(answer.map_err(str::to_owned)).unwrap();
        let Wanted { config, keys, .. } = *got;
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
    async fn a_dry_run_lists_what_differs() {
        let (_directory, file) = site("");
        let loaded = config::load(&file).unwrap();
        let mut control = Control::bind(&loaded.config).unwrap();
        control.load_with(&Worker::start("lookups", || Ok(())).unwrap());
        let (path, handed) = (loaded.config.service.control.clone(), loaded.hand_over());
        let asking = spawn_blocking(move || hand_over(&path, "compare", &handed, &[]).unwrap());
        let Request::Compare(got, reply) = control.next().await else { panic!("another request") };
        assert_eq!(got.config, loaded.config);
        let difference = |key: &str, takes, was: &str, becomes: &str| Difference {
            key: key.to_owned(),
            takes,
            was: was.to_owned(),
            becomes: becomes.to_owned(),
        };
        let all = [
            difference("[interface] name", Takes::Restart, "none", "\"tun7\""),
            difference("[peer] keepalive", Takes::Live, "\"off\"", "\"25s\""),
        ];
        reply.send(all.to_vec()).unwrap();
        let answer: Differences = serde_json::from_value(asking.await.unwrap()).unwrap();
        assert_eq!(answer.differences, all);
        assert_eq!(
            listed(&all),
            "restart   [interface] name: none -> \"tun7\"\nlive      [peer] keepalive: \"off\" -> \"25s\""
        );
        assert_eq!(listed(&[]), "nothing differs from the running configuration");
    }

    #[tokio::test]
    async fn a_refusal_comes_back() {
        let (_directory, file) = site("");
        let (said, ..) =
            hand(&config::load(&file).unwrap(), Err("`[interface] mtu` differs")).await;
        assert!(said.unwrap_err().ends_with("/site.sock: `[interface] mtu` differs"));
    }
}
