//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use ipnet::IpNet;
use tracing::level_filters::LevelFilter;

use crate::config::{Endpoint, LogFormat};
use crate::demo::DemoOptions;
use crate::helper::RunAs;
use crate::tuntap::WORDS;
use crate::{hooks, linger, tenancy};

/// vpnd joins two sites by an encrypted tunnel.
#[derive(Debug, Parser)]
#[command(name = "vpnd", version = VERSION, arg_required_else_help = true, subcommand_negates_reqs = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    run: Option<RunOptions>,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    logging: Logging,
}

/// A build whose tunnels may be open to anybody says so.
const VERSION: &str = if cfg!(vpnd_bench) {
    concat!(env!("CARGO_PKG_VERSION"), " (a benchmark build: it keeps no secrets)")
} else {
    env!("CARGO_PKG_VERSION")
};

impl Cli {
    /// What to do, and how to log it; `--config FILE` alone runs the tunnel.
    ///
    /// # Errors
    ///
    /// If there is nothing to do, or `--config` stands before a subcommand.
    pub(crate) fn split(self) -> Result<(Command, Logging), clap::Error> {
        let wrong = |kind, message| Self::command().error(kind, message);
        let command = match (self.command, self.run) {
            (Some(command), None) => command,
            (None, Some(run)) => Command::Run(run),
            (Some(_), Some(_)) => {
                let message = "--config before a subcommand: write it after, or leave one out";
                return Err(wrong(ErrorKind::ArgumentConflict, message));
            }
            (None, None) => {
                let message = "--config FILE or a subcommand is needed";
                return Err(wrong(ErrorKind::MissingSubcommand, message));
            }
        };
        Ok((command, self.logging))
    }
}

/// What `vpnd` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a tunnel in the foreground
    Run(RunOptions),
    /// Prints a new private key, or writes it to a file and prints its public key
    Genkey(OutputOptions),
    /// Prints the public key of a private key
    Pubkey(PubkeyOptions),
    /// Prints a new preshared key, or writes it to a file
    Genpsk(OutputOptions),
    /// Says what is wrong with a configuration, its key files included
    Check(CheckOptions),
    /// Says how a running tunnel fares
    Status(StatusOptions),
    /// Hands a running tunnel its configuration and keys anew
    Reload(ReloadOptions),
    /// Opens the kill switch of a tunnel that does not run
    Release(ReleaseOptions),
    /// Moves a running tunnel to the keys that come next
    Rotate(RotateOptions),
    /// Writes ready-to-run configurations and keys for two sites
    Pair(PairOptions),
    /// Makes, deletes and shows TUN and TAP devices, in the words of `ip tuntap`
    Tuntap(TuntapOptions),
    /// Shows a tunnel at work, between two network namespaces of this machine
    Demo(DemoOptions),
    /// Runs the hooks of the vpnd that started it
    #[command(name = hooks::WORD, hide = true)]
    HookRunner,
    /// Waits for the end of the vpnd that started it, to leave its device as the next program expects it
    #[command(name = tenancy::WORD, hide = true)]
    DeviceCaretaker(RunAs),
    /// Opens the kill switch of the vpnd that started it after that has stopped
    #[command(name = linger::WORD, hide = true)]
    KillSwitchOpener(RunAs),
}

/// How much is logged, and how.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Logging {
    /// Logs more than the configuration says; twice, still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Logs less than the configuration says; twice, still less
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "verbose")]
    pub(crate) quiet: u8,
    /// How log lines look [default: as the configuration says]
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

impl Logging {
    /// `level`, and as many steps from it as `-v` and `-q` say.
    pub(crate) fn level(&self, level: LevelFilter) -> LevelFilter {
        const STEPS: [LevelFilter; 6] = [
            LevelFilter::OFF,
            LevelFilter::ERROR,
            LevelFilter::WARN,
            LevelFilter::INFO,
            LevelFilter::DEBUG,
            LevelFilter::TRACE,
        ];
        let step = STEPS.iter().position(|known| *known == level).unwrap_or_default();
        let step = (step + usize::from(self.verbose)).saturating_sub(usize::from(self.quiet));
        STEPS[step.min(STEPS.len() - 1)]
    }
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunOptions {
    /// The tunnel's configuration
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// Options of `release`.
#[derive(Debug, Args)]
pub(crate) struct ReleaseOptions {
    /// The tunnel's name, or the path of its control socket
    pub(crate) name: String,
}

/// Options of `genkey` and `genpsk`.
#[derive(Debug, Args)]
pub(crate) struct OutputOptions {
    /// A new file, which only its owner may read
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Options of `pubkey`.
#[derive(Debug, Args)]
pub(crate) struct PubkeyOptions {
    /// The private key's file [default: standard input]
    pub(crate) file: Option<PathBuf>,
}

/// Options of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// The tunnel's configuration
    pub(crate) file: PathBuf,
    /// Prints one JSON object: what is wrong, or the configuration with every default filled in
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusOptions {
    /// The tunnel, or the path of its control socket [default: every tunnel that runs]
    pub(crate) name: Option<String>,
    /// Prints one JSON object a tunnel
    #[arg(long)]
    pub(crate) json: bool,
}

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
    /// Gives up the keys that were there before
    #[arg(long)]
    pub(crate) finish: bool,
}

/// Options of `pair`.
#[derive(Debug, Args)]
pub(crate) struct PairOptions {
    /// One site: its name, and where the other finds it; without an endpoint it finds the other
    #[arg(value_name = "NAME[=HOST:PORT]")]
    pub(crate) a: Site,
    /// The other site
    #[arg(value_name = "NAME[=HOST:PORT]")]
    pub(crate) b: Site,
    /// Where to write: one directory a site, with all that belongs there
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    /// A network for the tunnel's own addresses; may be given twice, for IPv4 and IPv6
    #[arg(long, value_name = "NET", default_value = "10.99.0.0/30", value_parser = inner_network)]
    pub(crate) inner: Vec<InnerNet>,
}

/// Options of `tuntap`.
#[derive(Debug, Args)]
pub(crate) struct TuntapOptions {
    #[command(subcommand)]
    pub(crate) command: Option<TuntapCommand>,
    /// Prints one JSON object
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What `tuntap` can do; without a word it lists.
#[derive(Debug, Subcommand)]
pub(crate) enum TuntapCommand {
    /// Makes a device that stays until it is deleted
    #[command(after_help = WORDS)]
    Add(Words),
    /// Deletes a device; its name is enough, and a mode must be the right one
    #[command(visible_alias = "delete", after_help = WORDS)]
    Del(Words),
    /// Shows devices: flags, owner, group, and the processes that are attached
    #[command(visible_aliases = ["show", "lst"])]
    List(Words),
}

/// Words in any order, as `ip` takes them.
#[derive(Debug, Args)]
pub(crate) struct Words {
    /// Such as: dev tun7 mode tun user alice multi_queue
    #[arg(value_name = "WORD")]
    pub(crate) words: Vec<String>,
}

/// One end of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// What its tunnel and files are called.
    pub(crate) name: String,
    /// Where the other end finds it.
    pub(crate) endpoint: Option<Endpoint>,
}

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, endpoint) = match text.split_once('=') {
            Some((name, endpoint)) => (name, Some(endpoint)),
            None => (text, None),
        };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if name.is_empty() || name.starts_with('-') || !name.bytes().all(allowed) {
            return Err(format!("`{name}` cannot name a site: letters, digits, - and _ can"));
        }
        let endpoint = endpoint.map(Endpoint::from_str).transpose().map_err(|e| e.to_string())?;
        Ok(Self { name: name.to_owned(), endpoint })
    }
}

/// A network with an address for either site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InnerNet {
    /// The first site's address in it.
    pub(crate) a: IpNet,
    /// The second site's.
    pub(crate) b: IpNet,
}

/// Picks both sites' addresses.
pub(crate) fn inner_network(text: &str) -> Result<InnerNet, String> {
    let net: IpNet = text.parse().map_err(|_| "a network such as 10.99.0.0/30".to_owned())?;
    // The first address of an IPv6 network is every router's there (RFC 4291 §2.6.1).
    let anycast = net.addr().is_ipv6() && net.prefix_len() < 127;
    let mut hosts = net.trunc().hosts().skip(usize::from(anycast));
    let mut host = || {
        let address = hosts.next().ok_or_else(|| format!("{net} has no two addresses"))?;
        IpNet::new(address, net.prefix_len()).map_err(|error| error.to_string())
    };
    Ok(InnerNet { a: host()?, b: host()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn plain_config_runs() {
        for line in [&["vpnd", "-c", "f"][..], &["vpnd", "run", "--config", "f"]] {
            let (command, _) = Cli::parse_from(line).split().unwrap();
            assert!(matches!(command, Command::Run(run) if run.config.as_os_str() == "f"));
        }
        let both = Cli::parse_from(["vpnd", "-c", "f", "genkey"]).split();
        assert_eq!(both.unwrap_err().kind(), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn verbosity_counts_from_the_configured_level() {
        let logging = |verbose, quiet| Logging { verbose, quiet, log_format: None };
        assert_eq!(logging(1, 0).level(LevelFilter::INFO), LevelFilter::DEBUG);
        assert_eq!(logging(9, 0).level(LevelFilter::INFO), LevelFilter::TRACE);
        assert_eq!(logging(0, 1).level(LevelFilter::INFO), LevelFilter::WARN);
        assert_eq!(logging(0, 9).level(LevelFilter::INFO), LevelFilter::OFF);
    }

    #[test]
    fn both_sites_get_an_address() {
        let addresses =
            |text| inner_network(text).map(|net| (net.a.to_string(), net.b.to_string()));
        let expect = |a: &str, b: &str| Ok((a.to_owned(), b.to_owned()));
        assert_eq!(addresses("10.99.0.0/30"), expect("10.99.0.1/30", "10.99.0.2/30"));
        assert_eq!(addresses("10.99.0.0/31"), expect("10.99.0.0/31", "10.99.0.1/31"));
        assert_eq!(addresses("fd99::/64"), expect("fd99::1/64", "fd99::2/64"));
        assert_eq!(addresses("fd99::/127"), expect("fd99::/127", "fd99::1/127"));
        assert_eq!(addresses("10.99.0.0/32"), Err("10.99.0.0/32 has no two addresses".into()));
    }

    #[test]
    fn sites() {
        let site: Site = "a=[2001:db8::1]:51820".parse().unwrap();
        assert_eq!(site.endpoint.unwrap().to_string(), "[2001:db8::1]:51820");
        assert_eq!("b".parse(), Ok(Site { name: "b".into(), endpoint: None }));
        assert!("../b".parse::<Site>().is_err());
        assert!("b=nowhere".parse::<Site>().is_err());
    }
}
