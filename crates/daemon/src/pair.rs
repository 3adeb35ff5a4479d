//! `pair`: makes the files that two sites need. What is wanted comes from options, or from a dialogue; the files go to
//! a directory for each site, by ssh to the sites, or, by codes that people pass on, each end makes its own.

mod code;
mod dialogue;
mod draw;
mod files;
mod invite;
mod keyboard;
mod keys;
mod networks;
mod options;
mod packed;
mod plan;
mod ssh;
mod steps;
#[cfg(test)]
mod tests;
mod text;

use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;
use vpnd_crypto::{KeyError, PresharedKey, SecretKey};
use zeroize::Zeroizing;

use crate::config::{self, Report};
use crate::exit::Exit;
use crate::interrupt::terminal_size;
use crate::keys::{KeyFileError, KeySource, read_secret};
use crate::placing::ETC;
use crate::terminal::{self, shell_path};

use code::CodeError;
use dialogue::{Dialogue, Stopped};
use draw::{Strokes, draw};
use files::{Files, FilesError};
use invite::{Answer, Invitation};
use keyboard::{Keyboard, Unseen};
use options::{Request, RequestError};
use ssh::{Login, SshError};
use steps::{Delivery, start_in, steps};

pub(crate) use networks::inner_network;
pub(crate) use options::PairOptions;
pub(crate) use plan::{Link, Plan, Routed, Site};

/// Why the files were not made.
#[derive(Debug, Error)]
pub(crate) enum PairError {
    /// The options do not fit together.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Nobody can be asked.
    #[error(
        "give both sites, as in `vpnd pair site-a=a.example.net:51820 site-b`, or run `vpnd pair` on a terminal, which \
         asks for everything"
    )]
    NoTerminal,
    /// The dialogue ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A file could not be written.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The configuration would not be valid: a mistake of this program, or a value that only the whole file shows to be
    /// wrong.
    #[error("nothing was written, because the configuration would not be valid:\n{0}")]
    Invalid(Report),
    /// A far end could not be set up.
    #[error("{site} is not set up: {error}. Its files are in {}", directory.display())]
    Far { site: String, error: SshError, directory: PathBuf },
    /// The code is not the one that is wanted.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The site that has invited is not in this directory.
    #[error("cannot read {}: {error}; run this where the invitation was made, with the same --out", path.display())]
    NoInvitation { path: PathBuf, error: io::Error },
    /// The configuration has its peer's key already.
    #[error("{} already has this answer", path.display())]
    AnsweredSo { path: PathBuf },
    /// Somebody else has answered.
    #[error(
        "{} already has another peer's key. If an answer came from somebody who should not have known the invitation, \
         delete the site's three files and invite again",
        path.display()
    )]
    Answered { path: PathBuf },
    /// The answer belongs to another invitation.
    #[error("this answer is not to the invitation of {site}: compare them, or invite again")]
    NotTheAnswer { site: String },
    /// A key file of the site that has invited.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The key of the answer.
    #[error("the key of the answer: {0}")]
    PeerKey(#[from] KeyError),
}

impl PairError {
    /// The exit code for this error.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Request(_) | Self::NoTerminal | Self::Code(_) => Exit::Usage,
            _ => Exit::Failure,
        }
    }
}

/// Makes what the options or the answers request.
pub(crate) fn run(options: &PairOptions) -> anyhow::Result<ExitCode> {
    let service = || options.out.clone().unwrap_or_else(|| ETC.into());
    if let Some(code) = &options.join {
        join(code, &service())
    } else if let Some(code) = &options.finish {
        finish(code, &service())
    } else {
        let request = request(options)?;
        if options.invite {
            invite(request.plan, &service())
        } else {
            both(&request, options.out.as_deref().unwrap_or_else(|| Path::new(".")))
        }
    }
}

/// Writes the files of both sites, each to a directory of its name.
///
/// # Errors
///
/// If a configuration would not be valid, or a file exists or cannot be written.
pub(crate) fn write(plan: &Plan, out: &Path) -> Result<(), PairError> {
    let all = keys::Pair::generate().files(plan);
    all.iter().try_for_each(checked)?;
    let all = all.each_ref().map(|files| (directory(out, files), files));
    Ok(files::write(&all)?)
}

fn directory(out: &Path, files: &Files) -> PathBuf {
    out.join(files.name.as_ref())
}

/// What is to be made, from the options or else from the answers. Answers are confirmed.
fn request(options: &PairOptions) -> anyhow::Result<Request> {
    let given = options.request().map_err(PairError::from)?;
    if let Some(request) = given {
        show(&request.plan)?;
        return Ok(request);
    }
    let mut dialogue = on_terminal()?;
    let request = dialogue.request(!options.invite).map_err(PairError::from)?;
    terminal::print("\n")?;
    show(&request.plan)?;
    dialogue.confirm("Make this?").map_err(PairError::from)?;
    Ok(request)
}

/// A dialogue on the terminal.
fn on_terminal() -> anyhow::Result<Dialogue<impl BufRead, impl Write>> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(PairError::NoTerminal.into());
    }
    Ok(Dialogue::new(BufReader::new(Keyboard::new()?), io::stdout()))
}

fn show(plan: &Plan) -> anyhow::Result<()> {
    let columns = terminal_size().map_or(NO_TERMINAL, |(columns, _)| columns);
    terminal::print(format_args!("{}\n", draw(plan, Strokes::of_environment(), columns)))
}

/// The width of a drawing that is not shown on a terminal.
const NO_TERMINAL: usize = 120;

fn checked(files: &Files) -> Result<(), PairError> {
    files.check().map(|_warnings| ()).map_err(PairError::Invalid)
}

/// Makes both sites, and sets up those that have a login.
fn both(request: &Request, out: &Path) -> anyhow::Result<ExitCode> {
    let all = keys::Pair::generate().files(&request.plan);
    all.iter().try_for_each(checked)?;
    let sites = all.iter().zip(&request.logins);
    let here = sites.clone().filter(|(_, login)| login.is_none());
    let here: Vec<_> = here.map(|(files, _)| (directory(out, files), files)).collect();
    files::write(&here).map_err(PairError::from)?;
    let mut failed = None;
    for ((files, login), end) in sites.zip(request.plan.ends()) {
        let directory = directory(out, files);
        let done = login.as_ref().map(|login| far(login, files, &directory)).transpose();
        let delivery = match &done {
            Ok(Some(())) => Delivery::Done,
            Ok(None) | Err(_) => Delivery::From(&directory),
        };
        terminal::print(format_args!("{}\n", steps(end, delivery)))?;
        failed = failed.or_else(|| done.err());
    }
    if failed.is_some() || !here.is_empty() {
        terminal::print(LAST)?;
    }
    failed.map_or(Ok(Exit::Success.into()), |error| Err(error.into()))
}

const LAST: &str = "# Each directory holds private keys: delete it once its files are in place.\n";

/// Sets a far end up. If that fails, its files are written here, so that the other end's are of use.
fn far(login: &Login, files: &Files, directory: &Path) -> Result<(), PairError> {
    let Err(error) = ssh::install(login, files) else { return Ok(()) };
    files::write(&[(directory.to_owned(), files)])?;
    let site = files.name.to_string();
    Err(PairError::Far { site, error, directory: directory.to_owned() })
}

/// Makes the first site's files, and prints the code for the second.
fn invite(plan: Plan, out: &Path) -> anyhow::Result<ExitCode> {
    let (files, invitation) = Invitation::new(plan);
    // With any key in the place of the one that is missing, the rest is checked.
    let any = text::public_key(&invitation.join().1.public);
    checked(&files.with_config(files.config.replace(text::PENDING, &any)))?;
    files::write(&[(out.to_owned(), &files)]).map_err(PairError::from)?;
    let [here, there] = invitation.plan.sites();
    terminal::print(format_args!(
        "The invitation of {} for {}. It is secret until it is used: whoever reads it could join in the other's place.\n\
         There: `vpnd pair --join -`, and then this code:\n\n{}\n\n\
         Here, when the answer has come: `vpnd pair --finish -`{}\n\n{}",
        here.name,
        there.name,
        *invitation.code(),
        with_out(out),
        steps(invitation.plan.ends()[0], Delivery::Done),
    ))?;
    Ok(Exit::Success.into())
}

fn with_out(out: &Path) -> String {
    if out == Path::new(ETC) { String::new() } else { format!(" with --out {}", shell_path(out)) }
}

/// Makes the second site's files, and prints the answer.
fn join(code: &str, out: &Path) -> anyhow::Result<ExitCode> {
    let code = given(code, "The code of the invitation (it is not shown):", |text| {
        Invitation::read(text).is_ok()
    })?;
    let invitation = Invitation::read(&code).map_err(PairError::from)?;
    show(&invitation.plan)?;
    let [there, here] = invitation.plan.sites();
    if io::stdin().is_terminal() {
        let question = format!("Make the files of {} in {}?", here.name, out.display());
        on_terminal()?.confirm(&question).map_err(PairError::from)?;
    }
    let (files, answer) = invitation.join();
    checked(&files)?;
    files::write(&[(out.to_owned(), &files)]).map_err(PairError::from)?;
    terminal::print(format_args!(
        "The answer of {} for {}. There: `vpnd pair --finish -`, and then this code:\n\n{}\n\n{}",
        here.name,
        there.name,
        *answer.code(),
        steps(invitation.plan.ends()[1], Delivery::InPlace(out)),
    ))?;
    Ok(Exit::Success.into())
}

/// Completes the first site's files.
fn finish(code: &str, out: &Path) -> anyhow::Result<ExitCode> {
    let code = given(code, "The code of the answer:", |text| Answer::read(text).is_ok())?;
    let answer = Answer::read(&code).map_err(PairError::from)?;
    let path = complete(&answer, out)?;
    let name = answer.inviter.as_ref();
    let start = start_in(out, name, &format!("systemctl enable --now vpnd@{name}\n"));
    terminal::print(format_args!("{} is complete: {start}", path.display()))?;
    Ok(Exit::Success.into())
}

/// Writes the peer's key to the configuration that waits for it.
fn complete(answer: &Answer, out: &Path) -> Result<PathBuf, PairError> {
    let file = |kind: &str| out.join(format!("{}.{kind}", answer.inviter));
    let path = file("toml");
    let text = fs::read_to_string(&path)
        .map_err(|error| PairError::NoInvitation { path: path.clone(), error })?;
    let key = text::public_key(&answer.public);
    if !text.lines().any(|line| line == text::PENDING) {
        let has = text.lines().any(|line| line == key);
        return Err(if has {
            PairError::AnsweredSo { path }
        } else {
            PairError::Answered { path }
        });
    }
    let secret: SecretKey = read_secret(&file("key"), None)?;
    let find = KeySource::Files { credentials: None };
    let psk = find.find("preshared_key_file", &file("psk"), PresharedKey::from_base64)?;
    if !answer.answers(&secret, &psk) {
        return Err(PairError::NotTheAnswer { site: answer.inviter.to_string() });
    }
    let text = text.replacen(text::PENDING, &key, 1);
    config::load_text(&path, text.clone()).map_err(PairError::Invalid)?;
    files::replace(&path, &text)?;
    Ok(path)
}

/// A code from the command line, or with `-` from standard input; on a terminal it is asked for, and not shown.
fn given(
    argument: &str,
    question: &str,
    is_whole: impl Fn(&str) -> bool,
) -> anyhow::Result<Zeroizing<String>> {
    if argument != "-" {
        return Ok(Zeroizing::new(argument.to_owned()));
    }
    // The full capacity is reserved at the start, because a growing text would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * LONGEST));
    if io::stdin().is_terminal() {
        let mut dialogue = on_terminal()?;
        let _unseen = Unseen::begin();
        dialogue.lines(question, is_whole, &mut text).map_err(PairError::from)?;
    } else {
        io::stdin().take(LONGEST as u64).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// The longest text that is read as a code, in bytes.
const LONGEST: usize = 1 << 13;
