//! The command line: the subcommands. Each subcommand's options are defined in the file that implements it.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::capture::CaptureOptions;
use crate::check::CheckOptions;
use crate::demo::DemoOptions;
use crate::doctor::DoctorOptions;
use crate::export::ExportOptions;
use crate::forget::ForgetOptions;
use crate::helper::RunAs;
use crate::import::ImportOptions;
use crate::keygen::{OutputOptions, PubkeyOptions};
use crate::logging::Logging;
use crate::manual::{CompletionsOptions, HelpOptions, ManOptions};
use crate::pair::PairOptions;
use crate::ping::PingOptions;
use crate::release::ReleaseOptions;
use crate::reload::{ReloadOptions, RotateOptions};
use crate::run::RunOptions;
use crate::show_mtu::MtuOptions;
use crate::show_status::StatusOptions;
use crate::tuntap::TuntapOptions;
use crate::wait::WaitOptions;
use crate::wireguard_go::CompatOptions;
use crate::{hooks, linger, tenancy, wireguard_go};

/// vpnd joins two sites by an encrypted tunnel.
#[derive(Debug, Parser)]
#[command(name = "vpnd", version, arg_required_else_help = true, subcommand_negates_reqs = true)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    run: Option<RunOptions>,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    logging: Logging,
}

impl Cli {
    /// The command and its logging options; `--config FILE` alone runs the tunnel.
    ///
    /// # Errors
    ///
    /// If there is no command, or `--config` precedes a subcommand.
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

/// The commands of `vpnd`.
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
    /// Checks a configuration and its key files
    Check(CheckOptions),
    /// Finds out what is wrong with a running tunnel and its host, and what mends it
    Doctor(DoctorOptions),
    /// Shows the state of running tunnels
    Status(StatusOptions),
    /// Waits until a tunnel is up, also for a daemon that is not started yet
    Wait(WaitOptions),
    /// Measures the round trip to the peer's vpnd
    Ping(PingOptions),
    /// Captures the packets of a running tunnel, as root
    Capture(CaptureOptions),
    /// Shows how large packets on the path may be, and how that is known
    Mtu(MtuOptions),
    /// Reloads the configuration and keys of a running tunnel
    Reload(ReloadOptions),
    /// Removes the kill switch of a tunnel that does not run
    Release(ReleaseOptions),
    /// Switches a running tunnel to its next keys
    Rotate(RotateOptions),
    /// Makes running tunnels drop their session keys, before the host is suspended
    Forget(ForgetOptions),
    /// Writes ready-to-run configurations and keys for two sites
    Pair(PairOptions),
    /// Reads a tunnel of wg-quick, systemd-networkd, NetworkManager, OpenWrt or OpenVPN
    Import(ImportOptions),
    /// Prints the other end's configuration for WireGuard's other programs
    Export(ExportOptions),
    /// Creates, deletes and lists TUN and TAP devices, with the syntax of `ip tuntap`
    Tuntap(TuntapOptions),
    /// Runs a demonstration: two sites in network namespaces on this machine
    Demo(DemoOptions),
    /// Explains a command, or a key of the configuration
    Help(HelpOptions),
    /// Prints a manual page, for `man -l -`
    Man(ManOptions),
    /// Prints a shell's completions: `source <(vpnd completions bash)`
    Completions(CompletionsOptions),
    /// Takes the place of wireguard-go: waits for the settings that `wg` brings. A link `vpnd-wg` does the same
    #[command(name = wireguard_go::WORD, hide = true)]
    WireguardGoCompat(CompatOptions),
    /// Runs the hooks of the vpnd that started it
    #[command(name = hooks::WORD, hide = true)]
    HookRunner,
    /// Releases the device after the vpnd that started it has ended, so that the next program finds it as
    /// expected
    #[command(name = tenancy::WORD, hide = true)]
    DeviceCaretaker(RunAs),
    /// Opens the kill switch after the vpnd that started it has ended
    #[command(name = linger::WORD, hide = true)]
    KillSwitchOpener(RunAs),
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
}
