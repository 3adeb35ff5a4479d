//! The far end through ssh: the files are copied there, checked and started. Host keys, passwords and questions are
//! ssh's own. Keys go through its standard input and appear in no command line.

use std::fmt;
use std::io::{self, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::str::FromStr;

use thiserror::Error;
use zeroize::Zeroizing;

use super::files::Files;

/// Whom ssh connects to: `user@host`, a name in ssh's configuration, or `ssh://user@host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Login(String);

impl FromStr for Login {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // ssh would take the first for an option.
        let is_wrong = text.is_empty() || text.starts_with('-');
        if is_wrong || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!("`{text}` is no login for ssh: write user@host"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the far end is not set up. What happened there is on standard error already.
#[derive(Debug, Error)]
pub(crate) enum SshError {
    /// ssh could not be started.
    #[error("cannot run ssh: {0}")]
    Start(io::Error),
    /// ssh itself failed, or what it ran.
    #[error("ssh {login}: {status}")]
    Failed { login: Login, status: ExitStatus },
}

/// Copies a site's files to `/etc/vpnd` there and starts its tunnel, unless a file exists already.
///
/// # Errors
///
/// If ssh cannot be run, or anything fails there.
pub(crate) fn install(login: &Login, files: &Files) -> Result<(), SshError> {
    let mut command = Command::new("ssh");
    command.args([&login.0, &there(files)]).stdin(Stdio::piped());
    let mut child = command.spawn().map_err(SshError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If ssh has ended already, its exit code says so.
        let _sent = stdin.write_all(input(files).as_bytes());
    }
    let status = child.wait().map_err(SshError::Start)?;
    if status.success() { Ok(()) } else { Err(SshError::Failed { login: login.clone(), status }) }
}

/// Both keys, a line each, and the configuration.
fn input(files: &Files) -> Zeroizing<String> {
    let psk = files.psk.as_ref().map_or("", |psk| psk.as_str());
    let (key, config) = (files.key.as_str(), &files.config);
    let mut input = Zeroizing::new(String::with_capacity(key.len() + psk.len() + config.len() + 2));
    [key, "\n", psk, "\n", config].iter().for_each(|part| input.push_str(part));
    input
}

/// The command line for the shell of the far end, whichever it is: words in single quotes, without a quote, a
/// backslash, a line break or an exclamation mark in them.
fn there(files: &Files) -> String {
    let (name, len) = (&files.name, files.config.len());
    format!(
        "sh -c '{BECOME_ROOT}' '{}'",
        INSTALL.replace("LENGTH", &len.to_string()).replace("NAME", name.as_ref())
    )
}

/// Runs its argument as root.
const BECOME_ROOT: &str =
    r#"if [ "$(id -u)" = 0 ]; then exec sh -c "$0"; else exec sudo -n sh -c "$0"; fi"#;

/// A file that is half written, or does not pass the check, is removed again.
/// ssh does not keep the order of the two outputs: what the check says is in one.
const INSTALL: &str = concat!(
    r#"umask 077; set -C; n=NAME; f=/etc/vpnd/$n; "#,
    r#"die() { echo "vpnd pair, at $(uname -n): $1" >&2; exit 1; }; "#,
    r#"command -v vpnd >/dev/null || die "vpnd is not installed: install it, and try again"; "#,
    r#"for one in $f.toml $f.key $f.psk; do "#,
    r#"if [ -e $one ] || [ -L $one ]; then die "$one exists already, and is left as it is"; fi; done; "#,
    r#"mkdir -p -m 700 /etc/vpnd || exit 1; "#,
    r#"made=; gone() { rm -f $made; }; trap gone EXIT; trap "exit 1" HUP INT TERM; "#,
    r#"new() { true >$1 || die "cannot make $1"; made="$made $1"; }; "#,
    r#"IFS= read -r key && IFS= read -r psk || die "the keys have not come"; "#,
    r#"new $f.key; echo "$key" >>$f.key || die "cannot write $f.key"; "#,
    r#"[ -z "$psk" ] || { new $f.psk; echo "$psk" >>$f.psk; } || die "cannot write $f.psk"; "#,
    r#"new $f.toml; cat >>$f.toml || die "cannot write $f.toml"; "#,
    r#"[ "$(wc -c <$f.toml)" -eq LENGTH ] || die "the configuration has not come whole"; "#,
    r#"vpnd check $f.toml 2>&1 || die "the configuration is not valid here, and is removed"; "#,
    r#"trap - EXIT; "#,
    r#"if [ -d /run/systemd/system ] && systemctl cat vpnd@$n >/dev/null 2>&1; then "#,
    r#"systemctl enable --now vpnd@$n || die "vpnd@$n has not started: see journalctl -u vpnd@$n"; "#,
    r#"echo "vpnd@$n is started at $(uname -n)"; "#,
    r#"else echo "there is no service vpnd@$n at $(uname -n): to start the tunnel, run vpnd --config $f.toml there"; fi"#,
);

#[cfg(test)]
mod tests {
    use super::super::keys::Pair;
    use super::super::tests::both_families;
    use super::*;

    #[test]
    fn no_key_is_in_the_command_line() {
        for files in &Pair::generate().files(&both_families()) {
            let (command, input) = (there(files), input(files));
            assert!(!command.contains(files.key.as_str()));
            assert!(!command.contains(files.psk.as_ref().unwrap().as_str()));
            assert!(input.starts_with(files.key.as_str()) && input.ends_with(&files.config));
        }
    }

    #[test]
    fn every_shell_reads_the_command_line_the_same() {
        let [files, _] = Pair::generate().files(&both_families());
        let command = there(&files);
        assert_eq!(command.matches('\'').count(), 4);
        assert!(!command.contains(['\\', '\n', '!']), "{command}");
        assert!(!command.contains("NAME") && !command.contains("LENGTH"), "{command}");
        let checked = Command::new("sh").args(["-n", "-c", INSTALL]).status().unwrap();
        assert!(checked.success());
    }

    #[test]
    fn what_is_no_login() {
        for text in ["", "-oProxyCommand=x", "root@a b", "a\n"] {
            assert!(text.parse::<Login>().is_err(), "{text}");
        }
        for text in ["root@a.example.net", "ssh://root@a.example.net:2222", "a"] {
            assert!(text.parse::<Login>().is_ok(), "{text}");
        }
    }
}
