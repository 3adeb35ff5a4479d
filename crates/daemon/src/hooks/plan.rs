//! Which commands run at which event. The runner gets the plan before vpnd reads anything from the network.
//! After that, vpnd only sends the position of a command in the plan.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::program::look_at;
use crate::terminal::shell_word;

/// The events at which commands run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The device is configured: set systemd-resolved's name servers.
    SetDns,
    /// The device is configured; the privileges are not dropped yet.
    Up,
    /// The peer is alive.
    Established,
    /// The peer is silent.
    Lost,
    /// A stop has begun; the device is still configured.
    Down,
    /// After `down`: make systemd-resolved forget its name servers.
    RevertDns,
}

impl Event {
    /// The name in the configuration and in `VPND_HOOK`.
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

/// A command: a program whose file was checked, and its arguments. It is run without a shell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Argv {
    /// The program as it was named, which is also its `argv[0]`: a path, or a word that was looked up in
    /// `PATH`.
    program: String,
    /// The file to execute, or why there is none. The name is not looked up again.
    file: Result<String, String>,
    arguments: Vec<String>,
    /// The position of the argument that is the device's name, which may have changed when the command runs.
    device: Option<usize>,
}

impl Argv {
    /// Builds a command from these words, the first of which is the program, and checks the program; `None`
    /// without words.
    pub(crate) fn new(words: impl IntoIterator<Item = impl Into<String>>) -> Option<Self> {
        let mut words = words.into_iter().map(Into::into);
        let program = words.next()?;
        let file = look_at(&program).map_err(|error| error.to_string());
        Some(Self { program, file, arguments: words.collect(), device: None })
    }

    /// Marks the argument at position `at` as the device's name.
    pub(super) fn naming_device(mut self, at: usize) -> Self {
        self.device = Some(at);
        self
    }

    /// The same command with the device's current name.
    pub(super) fn with_device(&self, name: &str) -> Self {
        let mut argv = self.clone();
        if let Some(at) = argv.device.and_then(|at| argv.arguments.get_mut(at)) {
            name.clone_into(at);
        }
        argv
    }

    /// The file to execute.
    ///
    /// # Errors
    ///
    /// Why the file must not be executed.
    pub(super) fn file(&self) -> io::Result<&str> {
        self.file.as_deref().map_err(|why| io::Error::other(why.clone()))
    }

    /// All words. The program's name is included, because a multi-call program (busybox) depends on it.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.program).chain(&self.arguments).map(String::as_str)
    }
}

/// The command as it could be typed into a shell.
impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shell_word(&self.program))?;
        self.arguments.iter().try_for_each(|word| write!(f, " {}", shell_word(word)))
    }
}

/// Every command that the tunnel's runner will ever run, and the environment of the commands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The commands of each event, in the order in which they run.
    pub(crate) commands: BTreeMap<Event, Vec<Argv>>,
    /// The environment, except for the variables that depend on the event.
    pub(crate) environment: Vec<(String, String)>,
    /// How long one command may take.
    pub(crate) limit: Duration,
}

impl Plan {
    /// The commands of an event.
    pub(crate) fn at(&self, event: Event) -> &[Argv] {
        self.commands.get(&event).map_or(&[], Vec::as_slice)
    }

    /// Whether there is no command at all.
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
        let commands = [(Event::RevertDns, vec![Argv::new(["a", "b"]).unwrap()])];
        let plan = Plan {
            commands: commands.into(),
            environment: vec![("A".to_owned(), "b c".to_owned())],
            limit: Duration::from_millis(1500),
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert!(!plan.is_empty() && plan.at(Event::Up).is_empty());
        assert!(Plan::default().is_empty());
    }
}
