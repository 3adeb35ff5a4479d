//! Commands run by vpnd: when, as which user, with which environment, for how long; and names by
//! systemd-resolved.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vpnd_crypto::PresharedKey;
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::traffic::ping;
use vpnd_tests::vpnd::{self, Launch};
use vpnd_tests::{Host, Key, Lab, Process, Vpnd, Wire, eventually};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let works =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Works, body);
    let waits =
        |name: &str, body: fn(&Lab) -> Result<String>| Scenario::new(name, Cost::Waits, body);
    vec![
        waits("hooks::all four, in their order, clean", all_four),
        works("hooks::a failing up undoes the start", failing_up),
        works("hooks::a failing up and the kill switch", guarded),
        works("hooks::what was looked at is run", looked_at),
        works("hooks::what hangs is killed with its children", hanging_up),
        works("hooks::a stop does not wait for up", stopped_in_up),
        works("hooks::kill -9 leaves no hook", killed),
        works("hooks::packets pass while a hook runs", packets_pass),
        works("hooks::what floods the log is cut", flood),
        works("hooks::device pulled away", device_pulled),
        works("hooks::the runner holds no key", no_key),
        works("hooks::names by systemd-resolved", names),
        works("hooks::a device that is renamed", renamed),
        waits("hooks::names that another program resets", reset_names),
        works("hooks::names without systemd-resolved", no_names),
        works("hooks::vpnd check", checked),
    ]
}

/// A script on a host, and what it has written beside itself.
pub(crate) struct Script(PathBuf);

impl Script {
    pub(crate) fn new(host: &Host, name: &str, body: &str) -> Result<Self> {
        let path = host.directory().join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    /// As a hook of the configuration.
    pub(crate) fn hook(&self, moment: &str) -> String {
        format!("{moment} = [{:?}]", self.0)
    }

    /// What it wrote to `$0.NAME`.
    fn wrote(&self, name: &str) -> String {
        let mut path = self.0.clone().into_os_string();
        path.push(format!(".{name}"));
        fs::read_to_string(path).unwrap_or_default()
    }

    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        self.wrote(name).lines().map(str::to_owned).collect()
    }

    /// Waits until it has written so many lines.
    fn wait_for(&self, name: &str, count: usize) -> Result<Vec<String>> {
        eventually(&format!("{count} lines of {name}"), SOON, || {
            let lines = self.lines(name);
            ensure!(lines.len() >= count, "it wrote {lines:?}");
            Ok(lines)
        })
    }
}

pub(crate) fn with_hooks(mut site: Site, lines: &[String]) -> Site {
    site.tables.push(format!("[hooks]\n{}", lines.join("\n")));
    site
}

/// Notes all that a hook can see of where it runs.
const LOOK_AROUND: &str = "\
    tr '\\0' '\\n' < /proc/$$/environ > $0.$VPND_HOOK.environment
    ls -l /proc/$$/fd > $0.$VPND_HOOK.descriptors
    { nice; pwd; id -u; grep -E 'Sig(Blk|Ign)' /proc/self/status; } > $0.$VPND_HOOK.place
    ip -o address show dev $VPND_DEVICE > $0.$VPND_HOOK.device
    echo said by $VPND_HOOK
    echo $VPND_HOOK >> $0.out";

/// One end with all hooks, that soon takes its silent peer for dead.
fn watchful(site: Site, script: &Script) -> Site {
    let hooks = ["up", "established", "lost", "down"].map(|moment| script.hook(moment));
    let mut site = with_hooks(site, &hooks).keepalive(1);
    site.remote.lines.push("dead_after = \"3s\"".to_owned());
    site
}

fn all_four(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let script = Script::new(&wire.a, "hook", LOOK_AROUND)?;
    let (a, b) = site::pair()?;
    let a = watchful(a.towards(Wire::B4).route("198.18.2.0/24"), &script);
    let mut b = Vpnd::start(&wire.b, &b.keepalive(1))?;
    let mut running = Vpnd::start(&wire.a, &a)?;
    ensure!(script.lines("out").first().is_some_and(|first| first == "up"), "ready before `up`");
    script.wait_for("out", 2)?;
    let death = Instant::now();
    b.process().kill()?;
    script.wait_for("out", 3)?;
    let (death, back) = (death.elapsed(), Instant::now());
    let _b = b.restart()?;
    script.wait_for("out", 4)?;
    let back = back.elapsed();
    let status = running.process().terminate()?;
    ensure!(status.success(), "{status}");
    let order = script.lines("out");
    ensure!(order == ["up", "established", "lost", "established", "down"], "{order:?}");
    for hook in ["up", "established", "lost", "down"] {
        environment(&script, hook, &a).with_context(|| format!("environment of {hook}"))?;
        place(&script, hook, wire.a.run("nice")?.trim())
            .with_context(|| format!("where {hook} ran"))?;
        let said = format!("hook {hook}: said by {hook}");
        ensure!(running.as_process().log().contains(&said), "not logged: {said}");
    }
    let seconds = |time: Duration| time.as_secs_f64();
    Ok(format!(
        "{}; lost {:.1} s after the peer's death, established {:.1} s after its start",
        order.join(", "),
        seconds(death),
        seconds(back)
    ))
}

/// Exactly these, and no secret among them.
fn environment(script: &Script, hook: &str, site: &Site) -> Result<()> {
    let mut lines = script.lines(&format!("{hook}.environment"));
    let all = lines.join("\n");
    ensure!(!all.contains(site.keys.private.as_str()), "the private key is there");
    let path = std::env::var("PATH").unwrap_or_default();
    let config = script.0.with_file_name("site-a.toml");
    let endpoint = if hook == "up" { String::new() } else { Wire::B4.to_owned() };
    let mut expected = [
        ("HOME", "/".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("PATH", path),
        ("VPND_ADDRESSES", site.addresses.join(" ")),
        ("VPND_CONFIG", config.display().to_string()),
        ("VPND_DEVICE", "tun0".to_owned()),
        ("VPND_ENDPOINT", endpoint),
        ("VPND_HOOK", hook.to_owned()),
        ("VPND_LISTEN_PORT", "51820".to_owned()),
        ("VPND_MODE", "tun".to_owned()),
        ("VPND_MTU", "1420".to_owned()),
        ("VPND_NAME", "site-a".to_owned()),
        ("VPND_PEER", site.remote.public.as_str().to_owned()),
        ("VPND_PEER_ADDRESSES", String::new()),
        ("VPND_ROUTES", "198.18.2.0/24".to_owned()),
    ]
    .map(|(name, value)| format!("{name}={value}"));
    lines.sort();
    expected.sort();
    ensure!(lines == expected, "{lines:#?} instead of {expected:#?}");
    Ok(())
}

/// As root, in the root directory, with no more than a program that the system itself starts.
fn place(script: &Script, hook: &str, ours: &str) -> Result<()> {
    let [nice, directory, uid, blocked, ignored] = &script.lines(&format!("{hook}.place"))[..]
    else {
        bail!("it wrote {:?}", script.wrote(&format!("{hook}.place")));
    };
    // Vpnd itself has gone before others.
    ensure!([nice.as_str(), directory, uid] == [ours, "/", "0"], "{nice} {directory} {uid}");
    for signals in [blocked, ignored] {
        let mask = signals.split_whitespace().nth(1).context("no mask")?;
        // The C library keeps two signals to itself.
        ensure!(u64::from_str_radix(mask, 16)? & !(3 << 31) == 0, "{signals}");
    }
    let descriptors = script.lines(&format!("{hook}.descriptors"));
    let targets = descriptors.iter().filter_map(|line| line.split_once(" -> "));
    let mut targets = targets.map(|(_, target)| target);
    // The shell has its script open, and what it has just redirected to.
    let own = script.0.display().to_string();
    let good = |target: &str| {
        target == "/dev/null" || target.starts_with("pipe:") || target.starts_with(&own)
    };
    ensure!(targets.all(good), "{descriptors:#?}");
    let device = script.wrote(&format!("{hook}.device"));
    ensure!(device.contains("10.99.0.1/30"), "no address at the device: {device}");
    Ok(())
}

/// The network's state once the kernel has given new links their own addresses.
fn settled(host: &Host) -> Result<String> {
    eventually("the network settles", SOON, || {
        let first = host.network_state()?;
        std::thread::sleep(Duration::from_millis(200));
        let second = host.network_state()?;
        ensure!(first == second, "{first}, then {second}");
        Ok(second)
    })
}

/// Starts vpnd with these hooks, which do not let it come up: the exit code, and what it says.
fn refused(host: &Host, hooks: &[String]) -> Result<(i32, String)> {
    let (a, _b) = site::pair()?;
    let site = with_hooks(a.towards(Wire::B4).route("198.18.2.0/24"), hooks);
    let path = vpnd::write_files(host, &site)?.display().to_string();
    let before = settled(host)?;
    let outcome = vpnd::run(host, &["--config", &path])?;
    let after = host.network_state()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(outcome)
}

fn failing_up(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let tell = Script::new(&wire.a, "tell", "echo $VPND_HOOK >> $0.out")?;
    let fail = Script::new(&wire.a, "fail", "echo no such table >&2; exit 3")?;
    let up = format!("up = [[{:?}], [{:?}, \"a b\"], [{:?}]]", tell.0, fail.0, tell.0);
    let (code, said) = refused(&wire.a, &[up, tell.hook("down")])?;
    let last = said.lines().last().unwrap_or_default().to_owned();
    let expected = format!("vpnd: hook up: `{} 'a b'` ended with status 3", fail.0.display());
    ensure!(code == 1 && last.starts_with(&expected), "exit {code}: {said}");
    ensure!(said.contains("hook up: no such table"), "what it said is not logged: {said}");
    ensure!(tell.lines("out") == ["up"], "ran: {:?}", tell.lines("out"));
    for (hooks, words) in [
        ("up = [\"/nowhere/hook\"]", "could not be started: /nowhere/hook is not there"),
        ("up = [\"sh\", \"-c\", \"kill -SEGV $$\"]", "was ended by SIGSEGV"),
    ] {
        let (code, said) = refused(&wire.a, &[hooks.to_owned()])?;
        ensure!(code == 1 && said.contains(words), "exit {code}: {said}");
    }
    Ok("exit 1, network as before, no `down`; a status, a signal and a missing program".to_owned())
}

/// A start that fails keeps the kill switch shut, its own as well as one that it found.
fn guarded(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let before = settled(&wire.a)?;
    let fail = Script::new(&wire.a, "fail", "[ ! -e $0.now ]")?;
    let mut site = site::pair()?.0.towards(Wire::B4);
    let network = "198.18.2.0/24";
    site.remote.allowed_ips.push(network.to_owned());
    site.tables.push(format!("[[route]]\nto = {network:?}\nwhen_down = \"blackhole\""));
    let site = with_hooks(site, &[fail.hook("up")]);
    let path = vpnd::write_files(&wire.a, &site)?.display().to_string();
    let failing = || -> Result<String> {
        fs::write(fail.0.with_file_name("fail.now"), "")?;
        let (code, said) = vpnd::run(&wire.a, &["--config", &path])?;
        ensure!(code == 1 && said.contains("ended with status 1"), "exit {code}: {said}");
        fs::remove_file(fail.0.with_file_name("fail.now"))?;
        wire.a.network_state()
    };
    let state = failing()?;
    ensure!(state.contains(&format!("blackhole {network}")), "no kill switch is left:\n{state}");
    ensure!(!state.contains("tun0"), "more is left by a start that failed:\n{state}");
    let mut running = Vpnd::start(&wire.a, &site)?;
    running.process().kill()?;
    let state = failing()?;
    ensure!(state.contains(&format!("blackhole {network}")), "no kill switch is left:\n{state}");
    Vpnd::start(&wire.a, &site)?.process().terminate()?;
    eventually("a stop opens it", Duration::from_secs(10), || {
        ensure!(wire.a.network_state()? == before, "{}", wire.a.network_state()?);
        Ok(())
    })?;
    Ok("its own stays shut, and so does one left by kill -9; it goes with a clean stop".into())
}

/// A link and a path of programs that somebody changes while the tunnel runs.
fn looked_at(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let good = Script::new(&wire.a, "good", "echo $VPND_HOOK >> $0.out")?;
    let bad = Script::new(&wire.a, "bad", "echo $VPND_HOOK >> $0.out")?;
    let link = wire.a.directory().join("link");
    std::os::unix::fs::symlink(&good.0, &link)?;
    // Anybody's, as in the home of a user.
    std::os::unix::fs::lchown(&link, Some(65534), Some(65534))?;
    let resolvectl = Script::new(&wire.a, "resolvectl", "echo $1 >> $0.out")?;
    let hook = |moment: &str| format!("{moment} = [{link:?}]");
    let mut site = with_hooks(site::pair()?.0.towards(Wire::B4), &[hook("up"), hook("down")]);
    site.tables.push("[dns]\nservers = [\"10.99.0.2\"]".to_owned());
    let mut a = Vpnd::start_as(&with_path(&wire.a)?, &wire.a, &site)?;
    fs::remove_file(&link)?;
    std::os::unix::fs::symlink(&bad.0, &link)?;
    a.process().terminate()?;
    ensure!(good.lines("out") == ["up", "down"], "{:?}", good.lines("out"));
    ensure!(bad.wrote("out").is_empty(), "what the link led to later was run as root");
    let told = resolvectl.lines("out");
    fs::set_permissions(&resolvectl.0, Permissions::from_mode(0o777))?;
    let mut a = Vpnd::start_as(&with_path(&wire.a)?, &wire.a, &site)?;
    a.wait_for_log("resolvectl could be changed by others", SOON)?;
    a.process().terminate()?;
    ensure!(resolvectl.lines("out") == told, "{:?}", resolvectl.lines("out"));
    Ok("a link changed later changes nothing; a resolvectl that others can write is not run".into())
}

/// Who writes its own id and its child's, and does not end.
const HANG: &str = "trap '' TERM; sleep 1000 & echo $$ $! >> $0.ids; wait; wait; sleep 1000";

fn hanging_up(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let hang = Script::new(&wire.a, "hang", HANG)?;
    let start = Instant::now();
    let (code, said) = refused(&wire.a, &[hang.hook("up"), "timeout = \"1s\"".to_owned()])?;
    let took = start.elapsed();
    ensure!(code == 1 && said.contains("was not done after 1s and has been killed"), "{said}");
    gone(&ids(&hang)?)?;
    Ok(format!("it ignores SIGTERM and has a child: both gone, exit 1 after {took:.1?}"))
}

fn ids(script: &Script) -> Result<Vec<String>> {
    Ok(script.wait_for("ids", 1)?[0].split(' ').map(str::to_owned).collect())
}

pub(crate) fn gone(ids: &[String]) -> Result<()> {
    eventually("all are gone", SOON, || {
        let lives = |id: &&String| Path::new("/proc").join(id).join("exe").read_link().is_ok();
        let living: Vec<_> = ids.iter().filter(lives).collect();
        ensure!(living.is_empty(), "{living:?} live");
        Ok(())
    })
}

/// Starts vpnd with hooks, and does not wait until it is up.
fn begun(host: &Host, site: Site, hooks: &[String]) -> Result<Process> {
    let path = vpnd::write_files(host, &with_hooks(site, hooks))?;
    let mut command = host.command(vpnd::program()?);
    command.arg("--config").arg(path);
    host.spawn("vpnd-begun", command)
}

fn stopped_in_up(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let before = settled(&wire.a)?;
    let hang = Script::new(&wire.a, "hang", HANG)?;
    let tell = Script::new(&wire.a, "tell", "echo $VPND_HOOK >> $0.out")?;
    let hooks = [hang.hook("up"), tell.hook("down"), "timeout = \"60s\"".to_owned()];
    let mut process = begun(&wire.a, site::pair()?.0.towards(Wire::B4), &hooks)?;
    let ids = ids(&hang)?;
    let start = Instant::now();
    let status = process.terminate()?;
    let took = start.elapsed();
    ensure!(status.success(), "{status}: {}", process.log());
    gone(&ids)?;
    ensure!(wire.a.network_state()? == before, "{}", wire.a.network_state()?);
    ensure!(tell.wrote("out").is_empty(), "`down` without `up`");
    Ok(format!("a clean stop {took:.1?} after SIGTERM, the hook killed, network as before"))
}

fn killed(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let hang = Script::new(&wire.a, "hang", HANG)?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let hooks = [hang.hook("established"), "timeout = \"60s\"".to_owned()];
    let mut a = Vpnd::start(&wire.a, &with_hooks(a.towards(Wire::B4), &hooks))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    let mut all = ids(&hang)?;
    all.push(runner_of(a.process().id())?.to_string());
    let start = Instant::now();
    a.process().kill()?;
    gone(&all)?;
    Ok(format!("runner, hook and the hook's child gone {:.1?} after", start.elapsed()))
}

fn runner_of(vpnd: u32) -> Result<u32> {
    child_of(vpnd, "vpnd-hooks")
}

/// The child of a process that has this name.
pub(crate) fn child_of(process: u32, name: &str) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
    let comm = |id: &str| fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    let mut children = children.split_whitespace().filter(|id| comm(id).trim() == name);
    Ok(children.next().with_context(|| format!("no child {name}"))?.parse()?)
}

fn packets_pass(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let slow = Script::new(&wire.a, "slow", "echo begins >> $0.out; sleep 3; echo ends >> $0.out")?;
    let (a, b) = site::pair()?;
    let _b = Vpnd::start(&wire.b, &b)?;
    let mut a =
        Vpnd::start(&wire.a, &with_hooks(a.towards(Wire::B4), &[slow.hook("established")]))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    slow.wait_for("out", 1)?;
    let pings = ping::series(&wire.a, INNER_B4, 50, Duration::from_millis(20))?;
    ensure!(slow.lines("out").len() == 1, "the hook ended too early to tell");
    ensure!(pings.answered == 50, "{pings:?}");
    ensure!(a.status()?.is_up(), "{}", a.status()?);
    // A stop lets it end.
    a.process().terminate()?;
    ensure!(slow.lines("out") == ["begins", "ends"], "{:?}", slow.lines("out"));
    Ok("50 of 50 pings while a hook slept; a stop then waited for its end".to_owned())
}

fn flood(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let flood = Script::new(&wire.a, "flood", "yes a line that nobody asked for | head -n 200000")?;
    let (a, _b) = site::pair()?;
    let site = with_hooks(a.towards(Wire::B4), &[flood.hook("up")]);
    let a = Vpnd::start(&wire.a, &site)?;
    let log = a.as_process().log();
    let lines = log.lines().filter(|line| line.contains("hook up: a line")).count();
    ensure!(lines == 50 && log.contains("hook up: (199950 more lines)"), "{lines} lines: {log}");
    Ok("of 200000 lines 50 are logged, and how many more there were".to_owned())
}

fn device_pulled(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let tell = Script::new(&wire.a, "tell", "echo $VPND_HOOK of $VPND_DEVICE >> $0.out")?;
    let site = with_hooks(site::pair()?.0.towards(Wire::B4), &[tell.hook("down")]);
    let mut a = Vpnd::start(&wire.a, &site)?;
    wire.a.run("ip link delete tun0")?;
    let status = a.process().wait(SOON)?;
    ensure!(!status.success(), "{status}");
    ensure!(tell.lines("out") == ["down of tun0"], "{:?}", tell.lines("out"));
    Ok(format!("`down` is run all the same, then {status}"))
}

/// Of vpnd's keys nothing is in the memory of the process that runs programs.
fn no_key(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let psk = Key::preshared()?;
    let tell = Script::new(&wire.a, "tell", "echo $VPND_HOOK >> $0.out")?;
    let hooks = [tell.hook("up"), tell.hook("established")];
    let site = with_hooks(a.towards(Wire::B4).with_preshared(&psk), &hooks);
    let _b = Vpnd::start(&wire.b, &b.with_preshared(&psk))?;
    let mut a = Vpnd::start(&wire.a, &site)?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    tell.wait_for("out", 2)?;
    let (vpnd, runner) = (a.process().id(), runner_of(a.process().id())?);
    let mut searched = 0;
    for (what, key) in [("private", &site.keys.private), ("preshared", &psk)] {
        let bytes = *PresharedKey::from_base64(key.as_str())?.as_bytes();
        ensure!(search(vpnd, &bytes)?.1, "the search does not find the {what} key where it is");
        for needle in [&bytes[..], key.as_str().as_bytes()] {
            let (bytes, found) = search(runner, needle)?;
            ensure!(!found, "the {what} key is in the runner's memory");
            searched = bytes;
        }
    }
    ensure!(searched > 100 << 10, "only {searched} bytes of the runner were searched");
    let held = fs::read_dir(format!("/proc/{runner}/fd"))?.flatten();
    let held: Vec<_> = held.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let device = Path::new("/dev/net/tun");
    ensure!(held.iter().all(|target| target != device), "{held:?}");
    Ok(format!("{} KiB searched, neither key there; both are found in vpnd's", searched / 1024))
}

/// How many bytes of a process's memory were looked at, and whether `needle` is among them.
pub(crate) fn search(process: u32, needle: &[u8]) -> Result<(u64, bool)> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let memory = fs::File::open(format!("/proc/{process}/mem"))?;
    let (mut searched, mut found) = (0, false);
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, rest) = line.split_once('-').context("no range")?;
        let end = rest.split(' ').next().context("no end")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - start)?];
        // Some ranges are devices, and cannot be read.
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        searched += end - start;
        found |= bytes.windows(needle.len()).any(|window| window == needle);
    }
    Ok((searched, found))
}

/// With a stand-in for the program that talks to systemd-resolved.
fn names(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let resolvectl = Script::new(&wire.a, "resolvectl", "echo \"$@\" >> $0.out")?;
    let tell = Script::new(&wire.a, "tell", "echo $VPND_HOOK >> ${0%tell}resolvectl.out")?;
    let mut site =
        with_hooks(site::pair()?.0.towards(Wire::B4), &[tell.hook("up"), tell.hook("down")]);
    let servers = "servers = [\"10.99.0.2\", \"2001:db8:99::2\"]";
    site.tables.push(format!("[dns]\n{servers}\ndomains = [\"corp.example\", \"~example.net\"]"));
    let mut a = Vpnd::start_as(&with_path(&wire.a)?, &wire.a, &site)?;
    a.process().terminate()?;
    let expected = [
        "dns tun0 10.99.0.2 2001:db8:99::2",
        "domain tun0 corp.example ~example.net",
        "default-route tun0 no",
        "up",
        "down",
        "revert tun0",
    ];
    ensure!(resolvectl.lines("out") == expected, "{:#?}", resolvectl.lines("out"));
    Ok(expected.join("; "))
}

/// Hooks and name servers go by the name that the device has when they are run.
fn renamed(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let resolvectl = Script::new(&wire.a, "resolvectl", "echo \"$@\" >> $0.out")?;
    let tell =
        Script::new(&wire.a, "tell", "echo $VPND_HOOK $VPND_DEVICE >> ${0%tell}resolvectl.out")?;
    let (a, b) = site::pair()?;
    let hooks = ["established", "lost", "down"].map(|moment| tell.hook(moment));
    let mut a = with_hooks(a.towards(Wire::B4), &hooks).keepalive(1);
    a.remote.lines.push("dead_after = \"3s\"".to_owned());
    a.tables.push("[dns]\nservers = \"10.99.0.2\"".to_owned());
    let mut b = Vpnd::start(&wire.b, &b)?;
    let mut a = Vpnd::start_as(&with_path(&wire.a)?, &wire.a, &a)?;
    resolvectl.wait_for("out", 3)?;
    wire.a.run("ip link set tun0 name office")?;
    a.wait_for("status has the name", SOON, |status| status.device_name() == Some("office"))?;
    b.process().kill()?;
    resolvectl.wait_for("out", 4)?;
    a.process().terminate()?;
    let said = resolvectl.lines("out");
    let expected = [
        "dns tun0 10.99.0.2",
        "default-route tun0 yes",
        "established tun0",
        "lost office",
        "down office",
        "revert office",
    ];
    ensure!(said == expected, "{said:#?}");
    Ok(expected.join("; "))
}

/// A stand-in that lists the servers it was told of, as systemd-resolved does.
const LISTS: &str = "\
    list=/run/systemd/resolve/resolv.conf; mkdir -p ${list%/*}; echo \"$@\" >> $0.out
    case $1 in dns) echo nameserver $3 > $list;; revert) : > $list;; esac";

/// Another program has the resolver forget the names, of a device that has a new name by then.
fn reset_names(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let resolvectl = Script::new(&wire.a, "resolvectl", LISTS)?;
    let mut site = site::pair()?.0.towards(Wire::B4);
    site.tables.push("[dns]\nservers = \"10.99.0.2\"".to_owned());
    let mut a = Vpnd::start_as(&with_path(&wire.a)?, &wire.a, &site)?;
    wire.a.run("ip link set tun0 name office")?;
    a.wait_for("status has the name", SOON, |status| status.device_name() == Some("office"))?;
    let reset = Instant::now();
    wire.a.run(&format!("{} revert office", resolvectl.0.display()))?;
    a.wait_for_log("they are set again", SOON)?;
    let took = reset.elapsed();
    a.process().terminate()?;
    let said = resolvectl.lines("out");
    let expected = [
        "dns tun0 10.99.0.2",
        "default-route tun0 yes",
        "revert office",
        "dns office 10.99.0.2",
        "default-route office yes",
        "revert office",
    ];
    ensure!(said == expected, "{said:#?}");
    Ok(format!("{}; {:.1} s after they were gone", expected.join("; "), took.as_secs_f64()))
}

/// vpnd with the host's own directory first in its PATH.
fn with_path(host: &Host) -> Result<Launch> {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", host.directory().display());
    Ok(Launch { environment: vec![("PATH", path)], ..Launch::to_test()? })
}

fn no_names(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let mut site = site::pair()?.0.towards(Wire::B4);
    site.tables.push("[dns]\nservers = \"10.99.0.2\"".to_owned());
    let launch =
        Launch { environment: vec![("PATH", "/nowhere".to_owned())], ..Launch::to_test()? };
    let mut a = Vpnd::start_as(&launch, &wire.a, &site)?;
    a.wait_for_log(
        "cannot apply [dns]: `resolvectl dns tun0 10.99.0.2` could not be started",
        SOON,
    )?;
    a.process().terminate()?;
    let refuses = "echo Failed to connect to bus >&2; echo $1 >> $0.out; exit 1";
    let resolvectl = Script::new(&wire.a, "resolvectl", refuses)?;
    let mut a = Vpnd::start_as(&with_path(&wire.a)?, &wire.a, &site)?;
    a.wait_for_log("hook set-dns: Failed to connect to bus", SOON)?;
    let status = a.process().terminate()?;
    ensure!(
        status.success() && resolvectl.lines("out") == ["dns"],
        "{:?}",
        resolvectl.lines("out")
    );
    Ok("a warning, and the tunnel runs: without resolvectl, and without who listens to it"
        .to_owned())
}

fn checked(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let tell = Script::new(&host, "tell", "true")?;
    let check = |hooks: &str| -> Result<(i32, String)> {
        let site = with_hooks(site::pair()?.0.towards(Wire::B4), &[hooks.to_owned()]);
        let path = vpnd::write_files(&host, &site)?.display().to_string();
        vpnd::run(&host, &["check", &path])
    };
    let runs = format!("runs      lost: {} 'a b'", tell.0.display());
    for (hooks, expected, words) in [
        ("lost = [\"./tell\", \"a b\"]", 0, runs.as_str()),
        ("lost = [\"no-such-program\"]", 0, "there is no program `no-such-program` in PATH"),
        ("lost = [[\"./tell\"], [\"./none\"]]", 0, "none is not there"),
    ] {
        let (code, said) = check(hooks)?;
        ensure!(code == expected && said.contains(words), "{hooks}: exit {code}: {said}");
    }
    fs::set_permissions(&tell.0, Permissions::from_mode(0o777))?;
    let (code, said) = check("lost = [\"./tell\"]")?;
    ensure!(code == 78 && said.contains("could be changed by others"), "exit {code}: {said}");
    Ok("what is run and when; what is missing is a warning, what others can write exit 78"
        .to_owned())
}
