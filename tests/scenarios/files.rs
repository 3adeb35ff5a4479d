//! Files and programs of vpnd on its host: whose files it trusts, as which user it runs, and what it does
//! when the host's resources are exhausted.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::{Host, Lab, Process, Vpnd, Wire, eventually, vpnd};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    vec![
        works("files::a configuration that others could change", changeable),
        works("files::keys in a directory of everybody", open_directory),
        works("files::paths through a directory of somebody else's", foreign_paths),
        works("files::a user of its own, and its place in the queue", own_user),
        works("files::a stamp far ahead of the clock", stamp_ahead),
        works("files::at the limit of processes", process_limit),
        works("files::a limit that is full for a moment", limit_for_a_moment),
        works("files::a bridge behind the FORWARD chain", forward_chain),
    ]
}

fn set_mode(path: &std::path::Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

fn written(host: &Host) -> Result<PathBuf> {
    vpnd::write_files(host, &site::pair()?.0.towards(Wire::B4))
}

/// Neither root's start nor a check of it, nor what is handed to a running tunnel.
fn changeable(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let path = written(&host)?;
    let inner = host.directory().join("inner");
    fs::create_dir(&inner)?;
    let moved = inner.join("site-a.toml");
    let key = format!("\"{}/site-a.key\"", host.directory().display());
    fs::write(&moved, fs::read_to_string(&path)?.replace("\"site-a.key\"", &key))?;
    let link = host.directory().join("link.toml");
    std::os::unix::fs::symlink(&moved, &link)?;
    let refuses = |path: &PathBuf, why: &str| -> Result<()> {
        let path = path.display().to_string();
        for words in
            [&["--config", &path][..], &["check", &path], &["reload", "site-a", "-c", &path]]
        {
            let (code, said) = vpnd::run(&host, words)?;
            let named =
                said.contains("others could change this configuration") && said.contains(why);
            ensure!(code == 78 && named, "{words:?}: exit {code}, without {why:?}: {said}");
        }
        Ok(())
    };
    let check = |path: &PathBuf| vpnd::run(&host, &["check", &path.display().to_string()]);
    ensure!(check(&moved)?.0 == 0 && check(&link)?.0 == 0, "{}", check(&moved)?.1);
    set_mode(&moved, 0o646)?;
    refuses(&moved, "site-a.toml can be written to by everybody")?;
    set_mode(&moved, 0o644)?;
    set_mode(&inner, 0o777)?;
    refuses(&moved, "inner can be written to by everybody")?;
    refuses(&link, "inner can be written to by everybody")?;
    set_mode(&inner, 0o755)?;
    host.run(&format!("chown 54399 {}", inner.display()))?;
    refuses(&moved, "inner belongs to uid 54399")?;
    host.run(&format!("chown 0:54399 {}", inner.display()))?;
    set_mode(&inner, 0o775)?;
    refuses(&moved, "inner can be written to by group 54399")?;
    set_mode(&inner, 0o1777)?;
    ensure!(check(&moved)?.0 == 0, "in a sticky directory: {}", check(&moved)?.1);
    Ok("exit 78 with the place: the file, its directory, its owner, its group, behind a link"
        .into())
}

fn open_directory(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let path = written(&host)?.display().to_string();
    let open = host.directory().join("open");
    fs::create_dir(&open)?;
    set_mode(&open, 0o777)?;
    let open = open.display();
    host.run(&format!("cp -p {}/site-a.key {open}/", host.directory().display()))?;
    let source = fs::read_to_string(&path)?;
    fs::write(&path, source.replace("\"site-a.key\"", "\"open/site-a.key\""))?;
    for (words, code) in [
        (format!("check {path}"), 78),
        (format!("pubkey {open}/site-a.key"), 1),
        (format!("genkey -o {open}/new.key"), 1),
        (format!("pair a=192.0.2.1:1 b --out {open}"), 1),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let (ended, said) = vpnd::run(&host, &words)?;
        let named = said.contains("others could replace") && said.contains("by everybody");
        ensure!(ended == code && named, "{words:?}: exit {ended}: {said}");
    }
    Ok("neither read nor made there: check, pubkey, genkey, pair".to_owned())
}

/// `state_dir`, `control` and `netns`: neither root's start nor a check follows them, and nothing changes hands.
fn foreign_paths(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let shared = host.directory().join("shared");
    let victim = host.directory().join("victim");
    for directory in [&shared, &victim] {
        fs::create_dir(directory)?;
        set_mode(directory, 0o755)?;
    }
    for (name, target) in
        [("state", victim.display().to_string()), ("net", "/proc/self/ns/net".into())]
    {
        std::os::unix::fs::symlink(target, shared.join(name))?;
    }
    host.run(&format!("chown 54399 {}", shared.display()))?;
    let at = |name: &str| shared.join(name).display().to_string();
    let plain = fs::read_to_string(written(&host)?)?;
    let state = plain.lines().find(|line| line.starts_with("state_dir")).context("no state_dir")?;
    for (key, source) in [
        ("[service] state_dir", plain.replace(state, &format!("state_dir = {:?}", at("state")))),
        (
            "[service] control",
            plain.replace(state, &format!("{state}\ncontrol = {:?}", at("x.sock"))),
        ),
        (
            "[interface] netns",
            plain.replacen("[interface]", &format!("[interface]\nnetns = {:?}", at("net")), 1),
        ),
    ] {
        let path = host.directory().join("site-a.toml");
        fs::write(&path, source)?;
        let path = path.display().to_string();
        for words in [&["--config", &path][..], &["check", &path]] {
            let (code, said) = vpnd::run(&host, words)?;
            let named = said.contains(key)
                && said.contains("others could replace what is there")
                && said.contains("shared belongs to uid 54399");
            ensure!(code == 78 && named, "{key}, {words:?}: exit {code}: {said}");
        }
    }
    ensure!(fs::metadata(&victim)?.uid() == 0, "root's directory was given away");
    Ok("exit 78 with the directory, by a start and a check; nothing was given away".to_owned())
}

/// What the kernel says of each thread: its name, and its place in the queue for a processor.
fn threads(process: u32) -> Result<Vec<(String, String)>> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))?.flatten();
    tasks
        .map(|task| {
            let stat = fs::read_to_string(task.path().join("stat"))?;
            let (name, rest) = stat.rsplit_once(") ").context("another stat")?;
            let name = name.split_once('(').context("no name")?.1;
            // `nice` is the 19th field of all.
            Ok((name.to_owned(), rest.split(' ').nth(16).context("no nice")?.to_owned()))
        })
        .collect()
}

fn own_user(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let mut a = Vpnd::start(&wire.a, &a.towards(Wire::B4))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    let id = a.process().id();
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).context("no uid")?;
    ensure!(!uid.contains("65534") && !uid.split('\t').any(|uid| uid == "0"), "runs as {uid}");
    let threads = threads(id)?;
    for (name, nice) in &threads {
        let data = name.starts_with("inbound") || name.starts_with("outbound");
        ensure!(*nice == if data { "-10" } else { "0" }, "{name} at {nice}: {threads:?}");
    }
    ensure!(threads.iter().filter(|(_, nice)| nice == "-10").count() == 2, "{threads:?}");
    Ok(format!("uid {}, data threads at -10, all others at 0", uid.replace('\t', " ")))
}

fn stamp_ahead(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let a = a.towards(Wire::B4);
    vpnd::write_files(&wire.a, &a)?;
    let floor = wire.a.directory().join("state/site-a.floor");
    let end_of_time = "@7fffffffffffffff3b000000\n";
    fs::write(&floor, end_of_time)?;
    let b = Vpnd::start(&wire.b, &b)?;
    let a = Vpnd::start(&wire.a, &a)?;
    a.wait_for_log("years ahead of the clock: it is ignored", SOON)?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    let kept = eventually("a floor of today is kept", SOON, || {
        let kept = fs::read_to_string(&floor)?;
        ensure!(kept.starts_with("@40000000"), "{kept}");
        Ok(kept)
    })?;
    ensure!(b.status()?.is_up(), "{}", b.status()?);
    Ok(format!("ignored and said; kept from then on: {}", kept.trim()))
}

/// Users that run nothing else on this machine, for limits count what they run anywhere.
const SOMEBODY: u32 = 54397;
const SOMEBODY_ELSE: u32 = 54398;

/// Starts vpnd as the user `uid`, with so many processes and threads at most, on a device made for it.
fn limited(host: &Host, site: &Site, uid: u32, most: usize) -> Result<Process> {
    let path = vpnd::write_files(host, site)?;
    // From the attempt before, if there was one.
    drop(host.run("ip link delete tun0"));
    for line in [
        &format!("ip tuntap add tun0 mode tun user {uid}"),
        "ip link set tun0 mtu 1420 txqueuelen 1000 up",
        "ip address add 10.99.0.1/30 dev tun0",
        "ip address add 2001:db8:99::1/64 dev tun0",
        &format!("chown -R {uid} {}", host.directory().display()),
    ] {
        host.run(line)?;
    }
    let mut command = host.command("prlimit");
    command.arg(format!("--nproc={most}")).args(become_user(uid)).arg(vpnd::program()?);
    command.arg("--config").arg(path);
    host.spawn(&format!("vpnd-with-{most}"), command)
}

fn become_user(uid: u32) -> Vec<String> {
    let ids = format!("setpriv --reuid={uid} --regid={uid} --clear-groups --inh-caps=-all");
    ids.split(' ').map(str::to_owned).collect()
}

/// A driver that everybody may open.
fn open_driver(host: &Host) -> Result<()> {
    host.run("mount -t tmpfs -o mode=0755 none /dev/net")?;
    host.run("mknod -m 0666 /dev/net/tun c 10 200").map(drop)
}

/// The end at A, with all its files where its user may write.
fn of_somebody(host: &Host, a: Site, endpoint: &str) -> Site {
    let mut a = a.towards(endpoint).keepalive(1);
    a.service.push(format!("user = \"\"\ncontrol = {:?}", host.directory().join("a.sock")));
    a
}

fn process_limit(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    open_driver(&wire.a)?;
    let mut outcomes = Vec::new();
    // Itself, what waits for its end, two that move packets, one for files and one for lookups; and one for each name.
    for (endpoint, needs) in [(Wire::B4, 6), ("localhost:51820", 7)] {
        let site = of_somebody(&wire.a, a.clone(), endpoint);
        for most in [1, needs - 1, needs] {
            let mut process = limited(&wire.a, &site, SOMEBODY, most)?;
            outcomes
                .push(format!("{most} for {endpoint}: {}", outcome(&mut process, most == needs)?));
        }
    }
    Ok(outcomes.join(", "))
}

/// Waits until it runs, if it is to, or has said why not and ended.
fn outcome(process: &mut Process, runs: bool) -> Result<&'static str> {
    if !runs {
        let status = process.wait(SOON)?;
        let log = process.log();
        let said = log.contains("there is no room for another thread") && !log.contains("panicked");
        ensure!(status.code() == Some(1) && said, "{status}: {log}");
        return Ok("exit 1");
    }
    eventually("it calls the peer", SOON, || {
        let ended = process.ended()?;
        ensure!(
            ended.is_none() && process.log().contains("sending an initiation"),
            "{ended:?}: {}",
            process.log()
        );
        Ok(())
    })?;
    let status = process.terminate()?;
    ensure!(status.success() && !process.log().contains("panicked"), "{status}: {}", process.log());
    Ok("runs")
}

/// Names are looked up and the floor is kept while there is no room for another thread.
fn limit_for_a_moment(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    open_driver(&wire.a)?;
    let hosts = wire.a.directory().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n")?;
    wire.a.run(&format!("mount --bind {} /etc/hosts", hosts.display()))?;
    let site = of_somebody(&wire.a, a, "b.invalid:51820");
    let mut process = limited(&wire.a, &site, SOMEBODY_ELSE, 10)?;
    eventually("the name is not found", SOON, || {
        ensure!(process.log().contains("cannot resolve b.invalid"), "{}", process.log());
        Ok(())
    })?;
    let others = (0..10).map(|number| {
        let mut command = wire.a.command("setpriv");
        command.args(&become_user(SOMEBODY_ELSE)[1..]).args(["sleep", "600"]);
        wire.a.spawn(&format!("other-{number}"), command)
    });
    let _full = others.collect::<Result<Vec<_>>>()?;
    fs::write(&hosts, "192.0.2.2 b.invalid\n")?;
    ping::until_answered(&wire.a, INNER_B4, Duration::from_secs(30))?;
    let floor = wire.a.directory().join("state/site-a.floor");
    eventually("the floor is kept", SOON, || Ok(fs::read_to_string(&floor)?))?;
    ensure!(process.terminate()?.success(), "{}", process.log());
    Ok("with no room for a thread a name is found, and the floor kept".to_owned())
}

/// `br_netfilter` hands what crosses a bridge to the FORWARD chain.
fn forward_chain(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let mut a = site::pair()?.0.towards(Wire::B4).speaking_vpnd(&[]);
    a.interface.push("mode = \"tap\"\nbridge = \"br0\"".to_owned());
    a.addresses.clear();
    let path = vpnd::write_files(&host, &a)?.display().to_string();
    // A kernel without it has nothing to say of it.
    let Ok(_there) = host.run("sysctl -w net.bridge.bridge-nf-call-iptables=1") else {
        return Ok("no br_netfilter in this kernel".to_owned());
    };
    host.run("sysctl -w net.bridge.bridge-nf-call-ip6tables=0")?;
    let check = || -> Result<String> {
        let (code, said) = vpnd::run(&host, &["check", &path])?;
        ensure!(code == 0, "exit {code}: {said}");
        Ok(said)
    };
    ensure!(!check()?.contains("FORWARD"), "without a chain: {}", check()?);
    host.run("nft add table ip filter")?;
    let chain =
        "add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }";
    host.run(&format!("nft {chain}"))?;
    let said = check()?;
    let named = said.contains("chain FORWARD of table filter drops") && said.contains("br0");
    ensure!(named && !said.contains("IPv6 packets"), "{said}");
    host.run("sysctl -w net.bridge.bridge-nf-call-iptables=0")?;
    ensure!(!check()?.contains("FORWARD"), "switched off: {}", check()?);
    Ok("named with its chain and the cure, and only where both are so".to_owned())
}
