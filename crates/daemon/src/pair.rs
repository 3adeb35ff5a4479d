//! `pair`: writes the files that two sites need, in a directory for each site.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use thiserror::Error;
use vpnd_crypto::{PresharedKey, PublicKey, SecretKey};

use crate::config::Endpoint;
use crate::exit::Exit;
use crate::keys::{self, KeyFileError};
use crate::terminal;
use crate::trust::{self, Untrusted};

/// Options of `pair`.
#[derive(Debug, Args)]
pub(crate) struct PairOptions {
    /// One site: its name, and the endpoint at which the other site reaches it; a site without one initiates
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

/// One site of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// The name of its tunnel and files.
    pub(crate) name: String,
    /// The endpoint at which the other site reaches this one.
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

/// A network with an address for each site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InnerNet {
    /// The first site's address in the network.
    pub(crate) a: IpNet,
    /// The second site's address.
    pub(crate) b: IpNet,
}

/// Parses a network and chooses both sites' addresses.
pub(crate) fn inner_network(text: &str) -> Result<InnerNet, String> {
    let net: IpNet = text.parse().map_err(|_| "a network such as 10.99.0.0/30".to_owned())?;
    // The first address of an IPv6 network is the subnet-router anycast address (RFC 4291 §2.6.1).
    let anycast = net.addr().is_ipv6() && net.prefix_len() < 127;
    let mut hosts = net.trunc().hosts().skip(usize::from(anycast));
    let mut host = || {
        let address = hosts.next().ok_or_else(|| format!("{net} has no two addresses"))?;
        IpNet::new(address, net.prefix_len()).map_err(|error| error.to_string())
    };
    Ok(InnerNet { a: host()?, b: host()? })
}

/// Why the files were not written.
#[derive(Debug, Error)]
pub(crate) enum PairError {
    /// Neither site has an endpoint, so neither could reach the other.
    #[error("neither site has an endpoint: give one as NAME=HOST:PORT")]
    NoEndpoint,
    /// Both sites have the same name.
    #[error("both sites are called `{0}`: give them two names")]
    SameName(String),
    /// A directory could not be made.
    #[error("cannot make the directory {}: {error}", path.display())]
    Directory { path: PathBuf, error: io::Error },
    /// Others could replace the files.
    #[error("others could replace what is in {}: {why}; give --out a directory of your own", path.display())]
    Place { path: PathBuf, why: Untrusted },
    /// A configuration could not be written.
    #[error("cannot create {}: {error}", path.display())]
    Config { path: PathBuf, error: io::Error },
    /// A key could not be written.
    #[error(transparent)]
    Key(#[from] KeyFileError),
}

impl PairError {
    /// The exit code for this error.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::NoEndpoint | Self::SameName(_) => Exit::Usage,
            Self::Directory { .. } | Self::Place { .. } | Self::Config { .. } | Self::Key(_) => {
                Exit::Failure
            }
        }
    }
}

/// Writes both sites' files, and prints the next steps.
pub(crate) fn run(options: &PairOptions) -> anyhow::Result<ExitCode> {
    write(options)?;
    let text = format!("{}\n{}\n{LAST}", next(options, &options.a), next(options, &options.b));
    terminal::print(format_args!("{text}\n"))?;
    Ok(Exit::Success.into())
}

const LAST: &str = "Each directory holds private keys: delete it once its files are in place.";

fn next(options: &PairOptions, site: &Site) -> String {
    let (name, directory) = (&site.name, options.out.join(&site.name));
    format!(
        "{name}: copy {}/* to /etc/vpnd/ there, then run\n    \
         vpnd check /etc/vpnd/{name}.toml && systemctl enable --now vpnd@{name}\n",
        directory.display(),
    )
}

/// Writes both sites' files.
///
/// # Errors
///
/// If the sites do not match, or a file exists or cannot be written.
pub(crate) fn write(options: &PairOptions) -> Result<(), PairError> {
    let (a, b) = (&options.a, &options.b);
    if a.name == b.name {
        return Err(PairError::SameName(a.name.clone()));
    }
    if a.endpoint.is_none() && b.endpoint.is_none() {
        return Err(PairError::NoEndpoint);
    }
    // This is checked before any file is made, so that an error leaves nothing behind.
    for site in [a, b] {
        let directory = options.out.join(&site.name);
        let trusted = trust::future_directory(&directory, &[]);
        trusted.map_err(|why| PairError::Place { path: directory, why })?;
    }
    let rng = &mut UnwrapErr(SysRng);
    let (secret_a, secret_b) = (SecretKey::generate(rng), SecretKey::generate(rng));
    let preshared = PresharedKey::generate(rng);
    let end = |site, other, address| End { site, other, address };
    let (at_a, at_b) = options.inner.iter().map(|net| (net.a, net.b)).unzip();
    end(a, b, at_a).write(&options.out, &secret_a, &secret_b.public(), &preshared)?;
    end(b, a, at_b).write(&options.out, &secret_b, &secret_a.public(), &preshared)
}

/// One site of the pair, with the other site and its own addresses in the tunnel.
struct End<'a> {
    site: &'a Site,
    other: &'a Site,
    address: Vec<IpNet>,
}

impl End<'_> {
    fn write(
        &self,
        out: &Path,
        secret: &SecretKey,
        peer: &PublicKey,
        preshared: &PresharedKey,
    ) -> Result<(), PairError> {
        let name = &self.site.name;
        let directory = out.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|error| PairError::Directory { path: directory.clone(), error })?;
        trust::directory(&directory)
            .map_err(|why| PairError::Place { path: directory.clone(), why })?;
        keys::create(&directory.join(format!("{name}.key")), &secret.to_base64())?;
        keys::create(&directory.join(format!("{name}.psk")), &preshared.to_base64())?;
        let path = directory.join(format!("{name}.toml"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(self.config(peer).as_bytes()));
        written.map_err(|error| PairError::Config { path, error })
    }

    fn config(&self, peer: &PublicKey) -> String {
        let (name, other) = (&self.site.name, &self.other.name);
        let device: String = format!("vpn-{name}").chars().take(15).collect();
        let addresses: Vec<_> = self.address.iter().map(|net| format!("\"{net}\"")).collect();
        let address = addresses.join(", ");
        let listen = self.site.endpoint.as_ref().map_or_else(
            || "# listen: absent, for nobody finds this site by its address".to_owned(),
            |endpoint| format!("listen = {}  # UDP; the firewall must let it in", endpoint.port),
        );
        let endpoint = self.other.endpoint.as_ref().map_or_else(
            || format!("# endpoint: absent, for {other} finds this site"),
            |endpoint| format!("endpoint = \"{endpoint}\""),
        );
        format!(
            r#"# The tunnel from {name} to {other}. Every other key: docs/configuration.md

[interface]
name = "{device}"
address = [{address}]
private_key_file = "{name}.key"
{listen}

[peer]
protocol = "vpnd"  # at both ends; "wireguard" is any WireGuard, and has neither of these two
# cipher = "chacha20-poly1305"
# post_quantum = true
public_key = "{peer}"
preshared_key_file = "{name}.psk"
{endpoint}
keepalive = "25s"  # keeps a NAT on the way open

# A network behind {other}, in place of this one:
# [[route]]
# to = "192.0.2.0/24"
"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Protocol};

    fn options(out: &Path, a: &str, b: &str) -> PairOptions {
        let inner = ["10.99.0.0/30", "fd99::/64"];
        let inner = inner.map(|net| inner_network(net).unwrap()).to_vec();
        PairOptions { a: a.parse().unwrap(), b: b.parse().unwrap(), out: out.to_owned(), inner }
    }

    #[test]
    fn both_ends_load_and_belong_together() {
        let out = tempfile::tempdir().unwrap();
        write(&options(out.path(), "a=a.example.net:51820", "b=[2001:db8::2]:4500")).unwrap();
        let load = |name: &str| {
            let path = out.path().join(format!("{name}/{name}.toml"));
            config::load(&path).unwrap_or_else(|report| panic!("{report}"))
        };
        let (a, b) = (load("a"), load("b"));
        assert!(a.warnings.is_empty() && b.warnings.is_empty());
        assert_eq!(a.config.peer.public_key, b.keys.secret.public());
        assert_eq!(b.config.peer.public_key, a.keys.secret.public());
        assert_eq!(a.keys.preshared.as_bytes(), b.keys.preshared.as_bytes());
        assert_ne!(a.keys.preshared.as_bytes(), &[0; 32]);
        assert_eq!(a.config.peer.endpoints[0].to_string(), "[2001:db8::2]:4500");
        assert_eq!(a.config.peer.allowed_ips, b.config.peer.allowed_ips);
        assert_eq!(a.config.peer.protocol, Protocol::Vpnd);
        assert_eq!(b.config.peer.protocol, Protocol::Vpnd);
    }

    #[test]
    fn one_endpoint_is_enough() {
        let out = tempfile::tempdir().unwrap();
        write(&options(out.path(), "office=office.example.net:51820", "cabin")).unwrap();
        for name in ["office", "cabin"] {
            let loaded = config::load(&out.path().join(format!("{name}/{name}.toml")));
            assert!(loaded.is_ok(), "{}", loaded.err().unwrap());
        }
    }

    #[test]
    fn what_makes_no_pair() {
        let out = tempfile::tempdir().unwrap();
        let error = |a, b| write(&options(out.path(), a, b)).unwrap_err();
        assert_eq!(error("a", "b").exit(), Exit::Usage);
        assert_eq!(error("a=192.0.2.1:1", "a").exit(), Exit::Usage);
    }

    #[test]
    fn nothing_is_left_where_others_could_replace_it() {
        use std::os::unix::fs::PermissionsExt;
        let out = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(out.path(), open).unwrap();
        let refused = write(&options(&out.path().join("deep"), "a=192.0.2.1:1", "b"));
        assert!(matches!(refused, Err(PairError::Place { .. })));
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_overwritten() {
        let out = tempfile::tempdir().unwrap();
        let options = options(out.path(), "a=192.0.2.1:1", "b");
        write(&options).unwrap();
        let before = std::fs::read(out.path().join("a/a.key")).unwrap();
        assert!(matches!(write(&options), Err(PairError::Key(KeyFileError::Create { .. }))));
        assert_eq!(std::fs::read(out.path().join("a/a.key")).unwrap(), before);
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
