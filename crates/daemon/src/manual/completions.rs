//! Completions for shells. The script that a shell loads asks this program for candidates at each key press, so that it never
//! is older than the program.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, Args, Command};
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Shells, Zsh};
use clap_complete::{ArgValueCandidates, CompletionCandidate};

use super::keys;
use crate::ask::SOCKETS;
use crate::exit::Exit;
use crate::terminal;

/// The variable by which a shell's script asks for candidates.
const VARIABLE: &str = "VPND_COMPLETE";
const SHELLS: Shells<'static> = Shells(&[&Bash, &Fish, &Zsh]);

/// zsh runs a file of its function path when it first needs it, and then calls nothing in it.
const ZSH_AUTOLOAD: &str = "[ \"$funcstack[1]\" = _vpnd ] && _clap_dynamic_completer_vpnd \"$@\"\n";

/// Options of `completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsOptions {
    /// The shell
    #[arg(value_parser = PossibleValuesParser::new(["bash", "fish", "zsh"]))]
    pub(crate) shell: String,
}

/// Prints the script that a shell loads.
pub(crate) fn completions(options: &CompletionsOptions) -> anyhow::Result<ExitCode> {
    let shell = SHELLS.completer(&options.shell);
    let shell: &dyn EnvCompleter = shell.unwrap_or(&Bash);
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "vpnd", "vpnd", "vpnd", &mut script)?;
    let mut script = String::from_utf8(script)?;
    if shell.name() == Zsh.name() {
        script.push_str(ZSH_AUTOLOAD);
    }
    terminal::print(script)?;
    Ok(Exit::Success.into())
}

/// If a shell asks for candidates, prints them and ends this process.
pub(crate) fn answer(command: impl Fn() -> Command) {
    CompleteEnv::with_factory(|| with_candidates(command()))
        .var(VARIABLE)
        .shells(SHELLS)
        .complete();
}

/// Adds the tunnels' names to each argument that is one, and its topics to `help`.
fn with_candidates(command: Command) -> Command {
    let commands = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let commands: Vec<_> = commands.map(|sub| sub.get_name().to_owned()).collect();
    let topics = ArgValueCandidates::new(move || topics(&commands));
    let command =
        command.mut_subcommand("help", |help| help.mut_arg("topic", |arg| arg.add(topics)));
    with_tunnels(command)
}

fn with_tunnels(command: Command) -> Command {
    let is_name = |arg: &Arg| arg.is_positional() && arg.get_id() == "name";
    let command = command.mut_args(|arg| match is_name(&arg) {
        true => arg.add(ArgValueCandidates::new(tunnels)),
        false => arg,
    });
    command.mut_subcommands(with_tunnels)
}

/// The tunnels that have a control socket, in order.
fn tunnels() -> Vec<CompletionCandidate> {
    let entries = fs::read_dir(SOCKETS).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let sockets = paths.filter(|path| path.extension().is_some_and(|ending| ending == "sock"));
    let names = sockets.filter_map(|path| path.file_stem().map(OsStr::to_owned));
    names.collect::<BTreeSet<_>>().into_iter().map(CompletionCandidate::new).collect()
}

fn topics(commands: &[String]) -> Vec<CompletionCandidate> {
    let keys = keys::all().into_iter().map(|key| key.name);
    let topics = commands.iter().cloned().chain([super::CONFIG.to_owned()]).chain(keys);
    topics.map(CompletionCandidate::new).collect()
}
