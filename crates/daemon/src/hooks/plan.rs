//! What is run when. The runner has the plan before anything is read from the network; after that,
//! only the place of a command in it is named.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::program::look_at;

/// When commands are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Moment {
    /// The device is configured: systemd-resolved is told of the name servers behind it.
    SetDns,
    /// The device is configured; privileges are still there.
    Up,
    /// The peer is alive.
    Established,
    /// The peer is silent.
    Lost,
    /// A stop has begun; the device is still configured.
    Down,
    /// systemd-resolved is to forget what it was told.
    RevertDns,
}

impl Moment {
    /// As the configuration and `VPND_HOOK` call it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::SetDns => "set-dns",
            Self::Up => "up",
            Self::Established => "established",
            Self::Lost => "lost",
            Self::Down => "down",
            Self::RevertDns => "revert-dns",
        }
    }
}

/// A command: a program that was looked at, and arguments that no shell looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Argv {
    /// What it is called, by us and as its own `argv[0]`: a path, or a word that was looked up in `PATH`.
    program: String,
    /// The file that is run, or why none is. Nobody looks for it again.
    file: Result<String, String>,
    arguments: Vec<String>,
    /// Which of the arguments is the device's name: it may have another by the time that this is run.
    #[serde(default)]
    device: Option<usize>,
}

impl Argv {
    /// Of words, the first of which is the program; none of no words. The program is looked at here.
    pub(crate) fn new(words: impl IntoIterator<Item = impl Into<String>>) -> Option<Self> {
        let mut words = words.into_iter().map(Into::into);
        let program = words.next()?;
        let file = look_at(&program).map_err(|error| error.to_string());
        Some(Self { program, file, arguments: words.collect(), device: None })
    }

    /// The same, whose argument `at` is the device's name.
    pub(super) fn naming_device(mut self, at: usize) -> Self {
        self.device = Some(at);
        self
    }

    /// The same for a device that has this name by now.
    pub(super) fn with_device(&self, name: &str) -> Self {
        let mut argv = self.clone();
        if let Some(at) = argv.device.and_then(|at| argv.arguments.get_mut(at)) {
            name.clone_into(at);
        }
        argv
    }

    /// The file that is run.
    ///
    /// # Errors
    ///
    /// Why it is not run.
    pub(super) fn file(&self) -> io::Result<&str> {
        self.file.as_deref().map_err(|why| io::Error::other(why.clone()))
    }

    /// All words. A program of several names (busybox) goes by the one that it is called.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.program).chain(&self.arguments).map(String::as_str)
    }
}

/// As it could be typed into a shell.
impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quoted(&self.program))?;
        self.arguments.iter().try_for_each(|word| write!(f, " {}", quoted(word)))
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// All that a tunnel's runner will ever run, and with what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// In the order that they are run.
    pub(crate) commands: BTreeMap<Moment, Vec<Argv>>,
    /// The whole environment, but for what depends on the moment.
    pub(crate) environment: Vec<(String, String)>,
    /// How long one command may take.
    pub(crate) limit: Duration,
}

impl Plan {
    /// What is run at `moment`.
    pub(crate) fn at(&self, moment: Moment) -> &[Argv] {
        self.commands.get(&moment).map_or(&[], Vec::as_slice)
    }

    /// Whether nothing is ever run.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.commands.values().all(Vec::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_would_take_it() {
        let argv = Argv::new(["nft", "add rule", "it's", "", "-f"]).unwrap();
        assert_eq!(argv.to_string(), r"nft 'add rule' 'it'\''s' '' -f");
        assert_eq!(Argv::new(Vec::<String>::new()), None);
    }

    #[test]
    fn a_plan_crosses_as_json() {
        let commands = [(Moment::RevertDns, vec![Argv::new(["a", "b"]).unwrap()])];
        let plan = Plan {
            commands: commands.into(),
            environment: vec![("A".to_owned(), "b c".to_owned())],
            limit: Duration::from_millis(1500),
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert!(!plan.is_empty() && plan.at(Moment::Up).is_empty());
        assert!(Plan::default().is_empty());
    }
}
