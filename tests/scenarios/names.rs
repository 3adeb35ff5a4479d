//! How the C library resolves the name of an endpoint: `docs/static.md` has the differences between glibc and musl.

use anyhow::{Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Lab, Vpnd, Wire, vpnd};

use crate::lan::name_server;
use crate::reach::replace_file;
use crate::tunnel::SOON;

struct Case {
    what: &'static str,
    /// `/etc/resolv.conf`. The server at 192.0.2.2 knows peer.corp.example.
    resolv_conf: &'static str,
    /// `/etc/hosts`.
    hosts: &'static str,
    /// The endpoint's name.
    name: &'static str,
    glibc: bool,
    musl: bool,
}

const CASES: [Case; 6] = [
    Case {
        what: "a complete name",
        resolv_conf: "nameserver 192.0.2.2\n",
        hosts: "",
        name: "peer.corp.example",
        glibc: true,
        musl: true,
    },
    Case {
        what: "a name without a dot, and a search list",
        resolv_conf: "nameserver 192.0.2.2\nsearch other.example corp.example\n",
        hosts: "",
        name: "peer",
        glibc: true,
        musl: true,
    },
    Case {
        what: "a name with a dot, and a search list",
        resolv_conf: "nameserver 192.0.2.2\nsearch example\n",
        hosts: "",
        name: "peer.corp",
        glibc: true,
        musl: false,
    },
    Case {
        what: "a name with fewer dots than ndots",
        resolv_conf: "nameserver 192.0.2.2\nsearch example\noptions ndots:2\n",
        hosts: "",
        name: "peer.corp",
        glibc: true,
        musl: true,
    },
    Case {
        what: "a dead server before a good one",
        resolv_conf: "nameserver 192.0.2.77\nnameserver 192.0.2.2\noptions timeout:1 attempts:2\n",
        hosts: "",
        name: "peer.corp.example",
        glibc: true,
        musl: true,
    },
    Case {
        what: "a name in the hosts file",
        resolv_conf: "nameserver 192.0.2.77\n",
        hosts: "192.0.2.2 peer.corp\n",
        name: "peer.corp",
        glibc: true,
        musl: true,
    },
];

pub(crate) fn scenarios() -> Vec<Scenario> {
    let scenario = |case: &'static Case| {
        Scenario::new(format!("names::{}", case.what), Cost::Waits, |lab| resolves(lab, case))
    };
    CASES.iter().map(scenario).collect()
}

fn resolves(lab: &Lab, case: &Case) -> Result<String> {
    let wire = Wire::new(lab)?;
    let record = "--host-record=peer.corp.example,192.0.2.2";
    let _server = name_server(&wire.b, &["--no-resolv", "--no-hosts", "--local=/#/", record])?;
    replace_file(&wire.a, "/etc/resolv.conf", case.resolv_conf)?;
    replace_file(&wire.a, "/etc/hosts", case.hosts)?;
    replace_file(&wire.a, "/etc/nsswitch.conf", "hosts: files dns\n")?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let a = Vpnd::start(&wire.a, &a.towards(&format!("{}:51820", case.name)))?;
    let (library, expected) =
        if vpnd::is_static()? { ("musl", case.musl) } else { ("glibc", case.glibc) };
    if expected {
        ping::until_answered(&wire.a, INNER_B4, SOON * 2)?;
        return Ok(format!("{library}: resolved"));
    }
    a.wait_for_log(&format!("cannot resolve {}:51820", case.name), SOON * 2)?;
    let status = a.status()?;
    ensure!(status.endpoint().is_none(), "{library}: resolved: {status}");
    Ok(format!("{library}: not resolved, as expected"))
}
