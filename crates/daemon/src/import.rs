//! `import`: reads a configuration of WireGuard or OpenVPN, reports what becomes of each line, and writes vpnd's.

mod sources;
mod write;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Context;
use clap::Args;
use clap::builder::PossibleValuesParser;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use thiserror::Error;
use vpnd_crypto::{PresharedKey, SecretKey};
use vpnd_import::{
    Choices, Failure, Format, Host, ImportError, Imported, Kind, Outcomes, Source, Tunnel,
};
use zeroize::Zeroizing;

use crate::config::{self, Handed, Loaded, Report};
use crate::exit::Exit;
use crate::keys::HandedKeys;
use crate::terminal::{self, Printable, PrintableLines, shell_word};
use crate::trust;
use write::{Place, Written};

/// Options of `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportOptions {
    /// The configuration, or - for standard input. For systemd-networkd the .netdev or the .network, or both; for
    /// OpenVPN the file of this end, and if there is one that of the other end
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Where to write the configuration and its keys
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    /// Where to write the configuration and keys of the other end: for OpenVPN, whose keys are replaced
    #[arg(long, value_name = "DIR")]
    pub(crate) peer_out: Option<PathBuf>,
    /// The tunnel's name [default: that of the device or of the file]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Of several peers the one whose public key begins like this
    #[arg(long, value_name = "KEY")]
    pub(crate) peer: Option<String>,
    /// The format, if it is not recognised
    #[arg(long, value_parser = PossibleValuesParser::new(Format::WORDS.map(|(word, _)| word)))]
    pub(crate) format: Option<String>,
    /// Where the other end reaches this one: for the configuration of the other end
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) endpoint: Option<String>,
    /// A file with the private key, if the configuration does not contain it
    #[arg(long, value_name = "FILE")]
    pub(crate) private_key: Option<PathBuf>,
    /// A file with the preshared key, if the configuration does not contain it
    #[arg(long, value_name = "FILE")]
    pub(crate) preshared_key: Option<PathBuf>,
    /// Prints what would be written, and writes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Why nothing was written.
#[derive(Debug, Error)]
pub(crate) enum ImportFailure {
    /// The files are not those of one tunnel between two points.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The other end gets new keys, and they need a place.
    #[error(
        "both ends get new keys: give --peer-out DIR, a directory for the configuration and keys of the other end"
    )]
    PeerOut,
    /// A file is too long.
    #[error("{} is longer than 1 MiB, or all files together are", path.display())]
    Long { path: PathBuf },
    /// A file has too many drop-ins.
    #[error("{}.d has more than 100 drop-ins: give one file that has their lines", path.display())]
    DropIns { path: PathBuf },
    /// Something was not written.
    #[error(transparent)]
    Write(#[from] write::WriteError),
}

impl ImportFailure {
    /// The exit code for this error.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::PeerOut => Exit::Usage,
            Self::Import(
                ImportError::SeveralPeers(_)
                | ImportError::NoSuchPeer(_)
                | ImportError::Format
                | ImportError::Files(_)
                | ImportError::Name
                | ImportError::NoEndpoint
                | ImportError::NoPrivateKey(_)
                | ImportError::NoPresharedKey(_),
            ) => Exit::Usage,
            Self::Import(_) | Self::Long { .. } | Self::DropIns { .. } | Self::Write(_) => {
                Exit::Failure
            }
        }
    }
}

/// Imports the files.
pub(crate) fn run(options: &ImportOptions) -> anyhow::Result<ExitCode> {
    let sources = sources::read(&options.files)?;
    let this = Rc::new(ThisHost::default());
    let host: Rc<dyn Host> = Rc::<ThisHost>::clone(&this);
    let imported = match vpnd_import::import(&sources, &choices(options)?, &host) {
        Ok(imported) => imported,
        Err(failure) => {
            let Failure { error, outcomes } = *failure;
            let page = Page { sources: &sources, outcomes: &outcomes };
            print(format_args!("{page}{}", this.files_read()))?;
            return Err(ImportFailure::from(error).into());
        }
    };
    print(format_args!("{}{}", heading(&imported, &sources), commands(&imported)))?;
    print(this.files_read())?;
    let ends = ends(&imported, options)?;
    // Everything is checked before anything is written.
    let ends: Vec<_> = ends.into_iter().map(|end| end.checked()).collect::<Result<_, Report>>()?;
    if options.dry_run {
        for end in &ends {
            print(format_args!("\n# {}\n{}", end.place.path("toml").display(), end.text))?;
        }
        return Ok(Exit::Success.into());
    }
    let places: Vec<_> = ends.iter().map(|end| &end.place).collect();
    write::check(&places).map_err(ImportFailure::from)?;
    let mut written = Written::default();
    for end in &ends {
        end.place.write(&end.text, end.tunnel, &mut written).map_err(ImportFailure::from)?;
    }
    written.keep();
    print(format_args!("{}", closing(&imported, &ends)))?;
    Ok(Exit::Success.into())
}

fn choices(options: &ImportOptions) -> anyhow::Result<Choices> {
    let key = |path: &Option<PathBuf>| -> anyhow::Result<_> {
        let Some(path) = path else { return Ok(None) };
        let text = read_text(path)?;
        let key = PresharedKey::from_base64(text.trim());
        let key = key.with_context(|| format!("{} holds no key", path.display()))?;
        Ok(Some(key.to_base64()))
    };
    let format = options.format.as_deref();
    let known = |word: &str| Format::WORDS.iter().find(|(known, _)| *known == word);
    Ok(Choices {
        format: format.and_then(known).map(|(_, format)| *format),
        peer: options.peer.clone(),
        name: options.name.clone(),
        endpoint: options.endpoint.clone(),
        private_key: key(&options.private_key)?,
        preshared_key: key(&options.preshared_key)?,
    })
}

/// An end of the tunnel, and where it is written.
struct End<'a> {
    tunnel: &'a Tunnel,
    place: Place,
    text: String,
}

fn ends<'a>(imported: &'a Imported, options: &ImportOptions) -> anyhow::Result<Vec<End<'a>>> {
    let end = |tunnel: &'a Tunnel, directory: &Path| End {
        tunnel,
        place: Place::new(directory, &tunnel.name),
        text: tunnel.to_toml(imported.format.title()),
    };
    let mut ends = vec![end(&imported.tunnel, &options.out)];
    match (&imported.other, &options.peer_out) {
        (Some(other), Some(directory)) => ends.push(end(other, directory)),
        (Some(other), None) if options.dry_run => ends.push(end(other, Path::new("PEER"))),
        (Some(_), None) => return Err(ImportFailure::PeerOut.into()),
        (None, _) => {}
    }
    Ok(ends)
}

impl End<'_> {
    /// What `vpnd check` says, before the files are there.
    fn checked(self) -> Result<Self, Report> {
        let keys = [
            ("private_key_file", Some(self.tunnel.private_key.clone())),
            ("preshared_key_file", self.tunnel.preshared_key.clone()),
        ];
        let keys = keys.into_iter().filter_map(|(named_by, key)| Some((named_by, key?))).collect();
        let handed = Handed { source: self.text.clone(), keys: HandedKeys(keys) };
        let path = std::path::absolute(self.place.path("toml"))
            .unwrap_or_else(|_| self.place.path("toml"));
        let Loaded { warnings, .. } = config::load_handed(&self.tunnel.name, &path, handed)?;
        for warning in warnings.lines() {
            // A warning on a closed standard error is lost, and the configuration is valid.
            let _said = io::Write::write_fmt(
                &mut io::stderr(),
                format_args!("{}\n", PrintableLines(warning)),
            );
        }
        Ok(self)
    }
}

fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    terminal::print(PrintableLines(text))
}

/// The outcomes of each file, under its name.
struct Page<'a> {
    sources: &'a [Source],
    outcomes: &'a [vpnd_import::Outcome],
}

impl std::fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, source) in self.sources.iter().enumerate() {
            let own: Vec<_> =
                self.outcomes.iter().filter(|one| one.file == index).cloned().collect();
            if !own.is_empty() {
                write!(f, "{}\n{}", Printable(&source.name), Outcomes(&own))?;
            }
        }
        Ok(())
    }
}

fn heading(imported: &Imported, sources: &[Source]) -> String {
    let Imported { format, tunnel, outcomes, notes, .. } = imported;
    let count = |kind| Outcomes(outcomes).count(kind);
    let page = Page { sources, outcomes };
    let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
    format!(
        "{}: the tunnel {}. {} lines taken, {} changed, {} dropped\n\n{page}\n{notes}",
        format.title(),
        tunnel.name,
        count(Kind::Taken),
        count(Kind::Changed),
        count(Kind::Dropped),
    )
}

/// Every command that was taken from the files, because the lines above do not show them.
fn commands(imported: &Imported) -> String {
    let of = |tunnel: &Tunnel| -> String {
        let hooks = tunnel.commands().into_iter();
        let all = hooks.flat_map(|(event, commands)| commands.iter().map(move |it| (event, it)));
        all.map(|(event, command)| format!("  {event:11}  {}\n", typed(command))).collect()
    };
    let (here, there) = (of(&imported.tunnel), imported.other.as_ref().map(of).unwrap_or_default());
    let under = |title: &str, commands: &str| match commands {
        "" => String::new(),
        commands => format!("\n{title}:\n{commands}"),
    };
    under("these commands will run with the privileges that vpnd is started with", &here)
        + &under("and these at the other end", &there)
}

fn typed(command: &[String]) -> String {
    command.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ")
}

fn closing(imported: &Imported, ends: &[End<'_>]) -> String {
    let wrote: String =
        ends.iter().map(|end| format!("wrote {}\n", end.place.listed(end.tunnel))).collect();
    let [here, there @ ..] = ends else { return wrote };
    let start = |name: &str| {
        format!("  vpnd check /etc/vpnd/{name}.toml\n  systemctl enable --now vpnd@{name}\n")
    };
    let name = &here.tunnel.name;
    let stop = imported.stop.as_ref().map_or_else(String::new, |stop| format!("  {stop}\n"));
    let copy = here.place.copy(here.tunnel);
    let there: String = there
        .iter()
        .map(|end| {
            format!(
                "at the other end, stop the old tunnel too; then, with the files of {} in /etc/vpnd:\n{}",
                Printable(end.place.directory().display()),
                start(&end.tunnel.name)
            )
        })
        .collect();
    format!("{wrote}\nnext, as root:\n{stop}{copy}{}{there}", start(name))
}

/// Files of this host, and random keys.
#[derive(Default)]
struct ThisHost {
    /// The files that the configuration names.
    read: RefCell<BTreeSet<PathBuf>>,
}

impl ThisHost {
    /// The files that were read, for people: a configuration of somebody else may name any.
    fn files_read(&self) -> String {
        let read = self.read.borrow();
        let lines = read.iter().map(|path| format!("  {}\n", Printable(path.display())));
        let lines: String = lines.collect();
        if lines.is_empty() { lines } else { format!("\nthese files were read too:\n{lines}") }
    }
}

impl Host for ThisHost {
    fn read(&self, path: &Path) -> io::Result<Zeroizing<String>> {
        let text = read_file(path)?;
        self.read.borrow_mut().insert(path.to_owned());
        Ok(text)
    }

    fn absolute(&self, path: &Path) -> PathBuf {
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
    }

    fn distrust(&self, path: &Path) -> Option<String> {
        trust::file(path).err().map(|why| why.to_string())
    }

    fn private_key(&self) -> Zeroizing<String> {
        SecretKey::generate(&mut UnwrapErr(SysRng)).to_base64()
    }

    fn preshared_key(&self) -> Zeroizing<String> {
        PresharedKey::generate(&mut UnwrapErr(SysRng)).to_base64()
    }
}

/// The whole text of a file, of at most 1 MiB.
fn read_text(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = read_given(path).with_context(|| format!("cannot read {}", path.display()))?;
    if text.len() > config::MAX_LEN {
        return Err(ImportFailure::Long { path: path.to_owned() }.into());
    }
    Ok(text)
}

/// Reads what the command line gives: a file, standard input, or the pipe of a shell's `<(…)`.
fn read_given(path: &Path) -> io::Result<Zeroizing<String>> {
    let is_descriptor = |directory: &str| path.parent() == Some(Path::new(directory));
    if path == Path::new("-") {
        limited(io::stdin())
    } else if is_descriptor("/dev/fd") || is_descriptor("/proc/self/fd") {
        limited(File::open(path)?)
    } else {
        read_file(path)
    }
}

/// Reads a regular file. Anything else is neither waited for nor opened, since opening a device can have an effect.
fn read_file(path: &Path) -> io::Result<Zeroizing<String>> {
    let regular = |found: Metadata| {
        if found.is_file() { Ok(()) } else { Err(io::Error::other("not a file")) }
    };
    regular(path.metadata()?)?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    regular(file.metadata()?)?;
    limited(file)
}

/// Reads one byte more than the limit, so that a longer file is noticed.
fn limited(file: impl Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(1 << 16));
    file.take(config::MAX_LEN as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
