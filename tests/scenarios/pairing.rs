//! `vpnd pair`: its dialogue on a terminal, its invitations, and its ssh; and the tunnels that come of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::terminal::Terminal;
use vpnd_tests::traffic::ping;
use vpnd_tests::vpnd::{self, program};
use vpnd_tests::{Host, Lab, Process, Vpnd, Wire, binaries, eventually};

use crate::examples::{behind, bridges};
use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("pairing::the dialogue makes routed sites", Cost::Waits, routed),
        Scenario::new("pairing::the dialogue makes bridged LANs", Cost::Waits, bridged),
        Scenario::new("pairing::Ctrl-C leaves nothing behind", Cost::Waits, stopped),
        Scenario::new("pairing::an invitation and its answer", Cost::Waits, invitation),
        Scenario::new("pairing::the far end by ssh", Cost::Waits, by_ssh),
    ]
}

/// `vpnd` with these words on a terminal of a host.
fn on_terminal(host: &Host, words: &[&str]) -> Result<Terminal> {
    let program = program()?.to_str().context("a path")?;
    let words: Vec<&str> = [program].iter().chain(words).copied().collect();
    Terminal::run(host, 100, 30, &words)
}

/// Waits for a question, and answers it.
fn answer(terminal: &mut Terminal, question: &str, text: &str) -> Result<()> {
    eventually(&format!("it asks {question:?}"), SOON, || {
        let written = terminal.written();
        let last = written.rsplit('\n').next().unwrap_or_default();
        ensure!(last.contains(question) && last.ends_with(": "), "{written}");
        Ok(())
    })?;
    terminal.press(&format!("{text}\n"))
}

/// Waits until the program in the terminal has ended in order, and returns all that it wrote; its last line has these
/// words.
fn ended(terminal: &mut Terminal, words: &str) -> Result<String> {
    let status = terminal.process.wait(SOON)?;
    ensure!(status.success(), "{status}: {}", terminal.written());
    // The last words may still be on their way.
    eventually("it has written its last line", SOON, || {
        let written = terminal.written();
        ensure!(written.contains(words), "{written}");
        Ok(written)
    })
}

fn path_of(host: &Host, name: &str) -> PathBuf {
    host.directory().join(name)
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().context("a path of our own making")
}

/// Starts the tunnel of this file, whose state is kept beside it.
fn start(host: &Host, name: &str, directory: &Path) -> Result<Vpnd> {
    let file = directory.join(format!("{name}.toml"));
    let state = path_of(host, "state");
    fs::create_dir_all(&state)?;
    let service = format!("\n[service]\nstate_dir = {state:?}\nlog_level = \"debug\"\n");
    host.run_with_input(&format!("tee -a {}", file.display()), &service)?;
    Vpnd::start_file(host, name, file)
}

fn routed(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (here, there) = (behind(lab, &wire.a, 10)?, behind(lab, &wire.b, 20)?);
    let out = path_of(&wire.a, "pair");
    let mut terminal = on_terminal(&wire.a, &["pair", "--out", text_of(&out)?])?;
    let answers = [
        ("first site", ""),
        ("second site", "site-a"),
        ("second site", ""),
        ("Routed networks", ""),
        ("reaches site-a", "192.0.2.1"),
        ("reaches site-b", "192.0.2.2:51820"),
        ("behind site-a", "198.18.10.7/24"),
        ("behind site-a", "198.18.10.0/24, 2001:db8:10::/64"),
        ("behind site-b", "198.18.10.0/25"),
        ("behind site-b", "198.18.20.0/24 2001:db8:20::/64"),
        ("own addresses", ""),
        ("Protocol", ""),
        ("set site-a up", ""),
        ("set site-b up", ""),
        ("Make this?", ""),
    ];
    answers.iter().try_for_each(|(question, text)| answer(&mut terminal, question, text))?;
    let said = ended(&mut terminal, "once its files are in place")?;
    for words in [
        "both sites are called `site-a`",
        "its network is 198.18.10.0/24",
        "198.18.10.0/24 and 198.18.10.0/25 overlap",
        "LAN 198.18.20.0/24",
        "nft insert rule inet filter forward iifname vpn-site-b accept",
        "systemctl enable --now vpnd@site-b",
    ] {
        ensure!(said.contains(words), "{words}: {said}");
    }
    let _b = start(&wire.b, "site-b", &out.join("site-b"))?;
    let _a = start(&wire.a, "site-a", &out.join("site-a"))?;
    for (from, to) in [(&here, "198.18.20.7"), (&here, "2001:db8:20::7"), (&there, "198.18.10.7")] {
        ping::until_answered(from, to, SOON)?;
    }
    Ok("15 answers, three of them wrong; the networks behind ping each other, both families"
        .to_owned())
}

fn bridged(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let [left, right] = bridges(lab, &wire, ["02:00:00:00:53:01", "02:00:00:00:53:02"])?;
    let out = path_of(&wire.a, "pair");
    let mut terminal = on_terminal(&wire.a, &["pair", "--out", text_of(&out)?])?;
    let answers = [
        ("first site", "office"),
        ("second site", "cabin"),
        ("Routed networks", "bridged"),
        ("reaches office", ""),
        ("reaches cabin", ""),
        ("reaches cabin", "192.0.2.2"),
        ("Bridge at office", ""),
        ("Bridge at cabin", ""),
        ("set office up", ""),
        ("set cabin up", ""),
        ("Make this?", "yes"),
    ];
    answers.iter().try_for_each(|(question, text)| answer(&mut terminal, question, text))?;
    let said = ended(&mut terminal, "once its files are in place")?;
    ensure!(said.contains("office has none, so cabin needs one"), "{said}");
    let _cabin = start(&wire.b, "cabin", &out.join("cabin"))?;
    let _office = start(&wire.a, "office", &out.join("office"))?;
    ping::until_answered(&left, "198.18.0.2", SOON)?;
    ping::until_answered(&right, "198.18.0.1", SOON)?;
    Ok("hosts of both LANs ping each other".to_owned())
}

/// However far the dialogue has come, and also if the answer to its last question is no.
fn stopped(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let out = path_of(&host, "pair");
    let answers = [
        ("first site", ""),
        ("second site", ""),
        ("Routed networks", ""),
        ("reaches site-a", "192.0.2.1"),
        ("reaches site-b", ""),
        ("behind site-a", ""),
        ("behind site-b", ""),
        ("own addresses", ""),
        ("Protocol", ""),
        ("set site-a up", ""),
        ("set site-b up", ""),
    ];
    for (after, how) in [(0, "\x03"), (4, "\x03"), (7, "\x04"), (11, "\x03"), (11, "no\n")] {
        let mut terminal = on_terminal(&host, &["pair", "--out", text_of(&out)?])?;
        let given = &answers[..after];
        given.iter().try_for_each(|(question, text)| answer(&mut terminal, question, text))?;
        eventually("it asks on", SOON, || {
            let written = terminal.written();
            ensure!(written.ends_with(": ") && written.matches("]: ").count() > 0, "{written}");
            let next = answers.get(after).map_or("Make this?", |(question, _)| question);
            ensure!(
                written.rsplit('\n').next().is_some_and(|last| last.contains(next)),
                "{written}"
            );
            Ok(())
        })?;
        terminal.press(how)?;
        let status = terminal.process.wait(SOON)?;
        ensure!(status.code() == Some(1), "{status}: {}", terminal.written());
        ensure!(!out.exists(), "there is {}", out.display());
    }
    let (code, said) = vpnd::run(&host, &["pair"])?;
    ensure!(code == 2 && said.contains("give both sites"), "{code}: {said}");
    Ok("at five places; and without a terminal it is a wrong command line".to_owned())
}

/// The code in what `vpnd pair` has printed: the lines of groups.
fn code_in(said: &str) -> String {
    let groups = |line: &&str| {
        let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '-';
        line.len() > 5 && line.chars().all(allowed)
    };
    said.lines().map(str::trim).filter(groups).collect::<Vec<_>>().join("\n")
}

fn invitation(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (here, _there) = (behind(lab, &wire.a, 10)?, behind(lab, &wire.b, 20)?);
    let (out_a, out_b) = (path_of(&wire.a, "etc"), path_of(&wire.b, "etc"));
    let (at_a, at_b) = (text_of(&out_a)?, text_of(&out_b)?);
    let networks = ["--network", "home=198.18.10.0/24", "--network", "away=198.18.20.0/24"];
    let invite = ["pair", "home=192.0.2.1:51820", "away", "--invite", "--out", at_a];
    let (code, said) = vpnd::run(&wire.a, &[&invite[..], &networks].concat())?;
    ensure!(code == 0, "{code}: {said}");
    let invitation = code_in(&said);
    let (code, said) = vpnd::run(&wire.a, &["check", &format!("{at_a}/home.toml")])?;
    ensure!(code == 78 && said.contains("public_key"), "it is not incomplete: {code}: {said}");

    let wrong = invitation.replacen(['2', '3', '4', '5'], "Z", 1);
    let (code, said) = vpnd::run(&wire.b, &["pair", "--join", &wrong, "--out", at_b])?;
    ensure!(code == 2 && said.contains("mistyped") && !out_b.exists(), "{code}: {said}");
    let mut terminal = on_terminal(&wire.b, &["pair", "--join", "-", "--out", at_b])?;
    eventually("it asks for the code", SOON, || {
        ensure!(terminal.written().contains("it is not shown"), "{}", terminal.written());
        Ok(())
    })?;
    terminal.press(&format!("{invitation}\n"))?;
    answer(&mut terminal, "Make the files of away", "")?;
    let said = ended(&mut terminal, "&& vpnd --config")?;
    let shown = invitation.lines().find(|line| said.contains(line));
    ensure!(shown.is_none(), "the invitation is shown: {said}");
    let answer = code_in(&said);

    let b = start(&wire.b, "away", &out_b)?;
    let said = wire.a.run_with_input(
        &format!("{} pair --finish - --out {at_a}", program()?.display()),
        &format!("{answer}\n"),
    )?;
    ensure!(said.contains("home.toml is complete"), "{said}");
    let again = vpnd::run(&wire.a, &["pair", "--finish", &answer, "--out", at_a])?;
    ensure!(again.0 == 1 && again.1.contains("already has this answer"), "{again:?}");
    let _a = start(&wire.a, "home", &out_a)?;
    ping::until_answered(&here, "198.18.20.7", SOON)?;
    ensure!(b.status()?.is_up(), "{}", b.status()?);
    Ok(format!("a code of {} letters, an answer of {}", letters(&invitation), letters(&answer)))
}

fn letters(code: &str) -> usize {
    code.chars().filter(char::is_ascii_alphanumeric).count()
}

/// An ssh server on B, which A may log in to as root: with home, shell and `/etc` of the scenario.
struct Server {
    /// What A's `PATH` begins with.
    path: String,
    /// The arguments of each ssh.
    arguments: PathBuf,
    _process: Process,
}

impl Server {
    fn start(wire: &Wire) -> Result<Self> {
        let (a, b) = (&wire.a, &wire.b);
        let (home, bin) = (b.directory(), path_of(a, "bin"));
        b.run("mkdir /run/etc /run/work")?;
        b.run(
            "mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc",
        )?;
        let shell = home.join("shell");
        let programs = program()?.parent().context("a program in a directory")?;
        let path = format!("{}:{}:$PATH", home.join("bin").display(), programs.display());
        script(&shell, &format!("PATH={path} exec /bin/sh \"$@\""))?;
        let root = format!("root:x:0:0:root:{}:{}\n", home.display(), shell.display());
        let users = b.run("cat /etc/passwd")?;
        let others = users.lines().filter(|line| !line.starts_with("root:"));
        let others: String = others.map(|line| format!("{line}\n")).collect();
        b.run_with_input("tee /etc/passwd", &(root + &others))?;
        b.run_with_input("tee /etc/shells", &format!("{}\n", shell.display()))?;

        let (host_key, key) = (home.join("host-key"), path_of(a, "id"));
        b.run(&format!("dropbearkey -t ed25519 -f {}", host_key.display()))?;
        let made = a
            .command("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fs::create_dir(home.join(".ssh"))?;
        fs::copy(key.with_extension("pub"), home.join(".ssh/authorized_keys"))?;
        let public = b.run(&format!("dropbearkey -y -f {}", host_key.display()))?;
        let public = public.lines().find(|line| line.starts_with("ssh-")).context("no host key")?;
        fs::write(path_of(a, "known_hosts"), format!("192.0.2.2 {public}\n"))?;
        fs::create_dir(&bin)?;
        let (arguments, directory) = (path_of(a, "arguments"), a.directory().display());
        let ssh = binaries::installed("ssh")?;
        let line = format!(
            "printf '%s\\n' \"$@\" >>{}\nexec {} -F none -i {directory}/id -o StrictHostKeyChecking=yes \
             -o UserKnownHostsFile={directory}/known_hosts \"$@\"",
            arguments.display(),
            ssh.display(),
        );
        script(&bin.join("ssh"), &line)?;
        let mut command = b.command(binaries::installed("dropbear")?);
        command.args(["-F", "-E", "-s", "-p", "192.0.2.2:22", "-P", "/run/dropbear.pid", "-r"]);
        command.arg(&host_key);
        let process = b.spawn("dropbear", command)?;
        eventually("the server listens", SOON, || {
            let listening = b.run("ss -ltn")?;
            ensure!(listening.contains("192.0.2.2:22"), "{listening}");
            Ok(())
        })?;
        let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
        Ok(Self { path, arguments, _process: process })
    }

    /// `vpnd pair` at A: its exit code, and what it and the far end have said.
    fn pair(&self, a: &Host, words: &[&str]) -> Result<(i32, String)> {
        let mut command = a.command(program()?);
        let output = command.arg("pair").args(words).env("PATH", &self.path).output()?;
        let said = [output.stdout, output.stderr].concat();
        let code = output.status.code().context("killed")?;
        Ok((code, String::from_utf8_lossy(&said).into_owned()))
    }
}

fn script(path: &Path, lines: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, format!("#!/bin/sh\n{lines}\n"))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn by_ssh(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = (&wire.a, &wire.b);
    let (here, _there) = (behind(lab, a, 10)?, behind(lab, b, 20)?);
    let server = Server::start(&wire)?;
    let out = path_of(a, "pair");
    let sites = ["site-a=192.0.2.1:51820", "site-b=192.0.2.2:51820"];
    let networks = ["--network", "site-a=198.18.10.0/24", "--network", "site-b=198.18.20.0/24"];
    let far = ["--ssh", "root@192.0.2.2", "--out", text_of(&out)?];
    let (code, said) = server.pair(a, &[&sites[..], &networks, &far].concat())?;
    ensure!(code == 0 && said.contains("there is no service vpnd@site-b"), "{code}: {said}");
    ensure!(!out.join("site-b").exists() && out.join("site-a").exists(), "{said}");
    let modes = b.run("stat -c %a /etc/vpnd /etc/vpnd/site-b.key /etc/vpnd/site-b.psk")?;
    ensure!(modes == "700\n600\n600\n", "{modes}");
    keys_are_in_no_command_line(b, &server)?;
    refusals(&server, &wire)?;
    services(&server, &wire)?;
    let _b = start(b, "site-b", Path::new("/etc/vpnd"))?;
    let _a = start(a, "site-a", &out.join("site-a"))?;
    ping::until_answered(&here, "198.18.20.7", SOON)?;
    Ok("a real ssh server: copied, checked, refused, started; the networks ping each other"
        .to_owned())
}

fn keys_are_in_no_command_line(b: &Host, server: &Server) -> Result<()> {
    let arguments = fs::read_to_string(&server.arguments)?;
    for file in ["site-b.key", "site-b.psk"] {
        let key = b.run(&format!("cat /etc/vpnd/{file}"))?;
        ensure!(
            key.trim().len() == 44 && !arguments.contains(key.trim()),
            "{file} is in {arguments}"
        );
    }
    Ok(())
}

/// A file that exists stays as it is, and the files that could not be sent are not lost.
fn refusals(server: &Server, wire: &Wire) -> Result<()> {
    let (a, b) = (&wire.a, &wire.b);
    let before = b.run("cat /etc/vpnd/site-b.key")?;
    let again = path_of(a, "again");
    let sites = ["site-a=192.0.2.1:51820", "site-b", "--ssh", "root@192.0.2.2", "--out"];
    let (code, said) = server.pair(a, &[&sites[..], &[text_of(&again)?]].concat())?;
    ensure!(code == 1 && said.contains("site-b.toml exists already"), "{code}: {said}");
    ensure!(again.join("site-b/site-b.key").exists(), "{said}");
    ensure!(b.run("cat /etc/vpnd/site-b.key")? == before, "the key was replaced");
    // A far end without vpnd.
    let shell = b.directory().join("shell");
    let with = fs::read_to_string(&shell)?;
    script(&shell, "PATH=/usr/bin:/bin exec /bin/sh \"$@\"")?;
    let bare = path_of(a, "bare");
    let sites = ["site-a=192.0.2.1:51820", "site-x", "--ssh", "root@192.0.2.2", "--out"];
    let (code, said) = server.pair(a, &[&sites[..], &[text_of(&bare)?]].concat())?;
    ensure!(code == 1 && said.contains("vpnd is not installed"), "{code}: {said}");
    fs::write(&shell, with)?;
    let left = b.run("ls /etc/vpnd")?;
    ensure!(!left.contains("site-x"), "{left}");
    Ok(())
}

/// Where there is systemd, the service is started.
fn services(server: &Server, wire: &Wire) -> Result<()> {
    let (a, b) = (&wire.a, &wire.b);
    b.run("mkdir -p /run/systemd/system")?;
    let bin = b.directory().join("bin");
    fs::create_dir(&bin)?;
    script(&bin.join("systemctl"), "echo \"$@\" >>/run/systemctl")?;
    let (out, words) = (path_of(a, "service"), ["site-a=192.0.2.1:51820", "site-c"]);
    let far = ["--ssh", "site-c=root@192.0.2.2", "--out", text_of(&out)?];
    let (code, said) = server.pair(a, &[&words[..], &far].concat())?;
    ensure!(code == 0 && said.contains("vpnd@site-c is started"), "{code}: {said}");
    let called = b.run("cat /run/systemctl")?;
    ensure!(called == "cat vpnd@site-c\nenable --now vpnd@site-c\n", "{called}");
    Ok(())
}
