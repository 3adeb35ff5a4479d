//! Tests of the command line as in a shell: the real binary, its output and its exit codes.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its tests do")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn vpnd(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vpnd"));
    command.current_dir(directory).args(arguments).stdin(Stdio::null());
    command.env_remove("CREDENTIALS_DIRECTORY").output().unwrap()
}

/// The standard output of a successful run.
fn stdout(directory: &Path, arguments: &[&str]) -> String {
    let output = vpnd(directory, arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {err}");
    out
}

/// The exit code and the standard error of a run that prints nothing on standard output.
fn complaint(directory: &Path, arguments: &[&str]) -> (i32, String) {
    let output = vpnd(directory, arguments);
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    (output.status.code().unwrap(), text(&output.stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const COMMANDS: [&str; 17] = [
    "run", "genkey", "pubkey", "genpsk", "check", "doctor", "status", "wait", "ping", "mtu",
    "reload", "rotate", "pair", "import", "export", "tuntap", "demo",
];

#[test]
fn version_and_help() {
    let here = tempfile::tempdir().unwrap();
    let version = stdout(here.path(), &["--version"]);
    assert_eq!(version, format!("vpnd {}\n", env!("CARGO_PKG_VERSION")));
    let help = stdout(here.path(), &["--help"]);
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is missing from\n{help}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let here = tempfile::tempdir().unwrap();
    for arguments in [
        &[][..],
        &["chekc", "f"],
        &["check"],
        &["run"],
        &["-v"],
        &["-c", "f", "genkey"],
        &["status", "--watch", "--json"],
        &["doctor"],
        &["wait"],
        &["wait", "a", "--timeout", "soon"],
        &["ping"],
        &["ping", "a", "-c", "0"],
        &["ping", "a", "-i", "1ms"],
        &["ping", "a", "-W", "6s"],
        &["reload"],
        &["reload", "a", "--finish"],
        &["rotate"],
        &["tuntap", "ad"],
        &["tuntap", "add", "dev", "tun7"],
        &["tuntap", "add", "dev", "tun7", "mode", "tnu"],
        &["tuntap", "add", "dev", "tun7", "mode", "tun", "multiqueue"],
        &["tuntap", "add", "mode", "tun", "user", "no such user"],
        &["tuntap", "del"],
        &["tuntap", "del", "tun7", "user", "root"],
        &["tuntap", "list", "tun7", "mode", "tun"],
        &["import"],
        &["import", "f", "--format", "ini"],
        &["export", "a"],
        &["export", "a", "--qr", "--uapi"],
        &["export", "a", "--qr", "--own", "--endpoint", "b"],
        &["pair", "a", "b"],
        &["pair", "a=192.0.2.1:1", "a"],
        &["pair", "a=192.0.2.1", "b"],
        &["pair", "a=192.0.2.1:1", "b", "--inner", "10.99.0.0/32"],
    ] {
        assert_eq!(complaint(here.path(), arguments).0, 2, "{arguments:?}");
    }
}

#[test]
fn keys_on_standard_output_and_in_files() {
    let here = tempfile::tempdir().unwrap();
    let secret = stdout(here.path(), &["genkey"]);
    assert_eq!((secret.len(), secret.ends_with("=\n")), (45, true));
    assert_ne!(secret, stdout(here.path(), &["genkey"]));
    assert_eq!(stdout(here.path(), &["genpsk"]).len(), 45);

    let public = stdout(here.path(), &["genkey", "-o", "site.key"]);
    assert_eq!(stdout(here.path(), &["pubkey", "site.key"]), public);
    assert_eq!(pubkey_of(&fs::read(here.path().join("site.key")).unwrap()), public);
    assert_eq!(stdout(here.path(), &["genpsk", "--output", "site.psk"]), "");

    let (code, said) = complaint(here.path(), &["genkey", "-o", "site.key"]);
    assert_eq!(
        (code, said.as_str()),
        (1, "vpnd: cannot create site.key: File exists (os error 17)\n")
    );
}

fn pubkey_of(secret: &[u8]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vpnd"));
    command.arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(secret).unwrap();
    text(&child.wait_with_output().unwrap().stdout)
}

#[test]
fn a_pair_is_ready_to_run() {
    let here = tempfile::tempdir().unwrap();
    let sites = ["pair", "--out", "new", "a=a.example.net:51820", "b=b.example.net:51820"];
    let advice = stdout(here.path(), &sites);
    let new = here.path().canonicalize().unwrap().join("new/a").display().to_string();
    let copied = format!("install -m 600 -t /etc/vpnd -- {new}/a.toml {new}/a.key {new}/a.psk;");
    assert!(advice.contains(&copied), "{advice}");
    let json = |file| {
        let text = stdout(here.path(), &["check", "--json", file]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let (a, b) = (json("new/a/a.toml"), json("new/b/b.toml"));
    assert_eq!(a["public_key"], b["config"]["peer"]["public_key"]);
    assert_eq!(b["public_key"], a["config"]["peer"]["public_key"]);
    assert_eq!(a["config"]["interface"]["address"][0], "10.99.0.1/30");
    assert_eq!(b["config"]["interface"]["address"][0], "10.99.0.2/30");
    assert_eq!(a["config"]["peer"]["keepalive"], "25s");

    // The drawing comes first, on standard output.
    let again = vpnd(here.path(), &sites);
    assert_eq!(again.status.code(), Some(1));
    let said = text(&again.stderr);
    assert!(said.contains("new/a/a.key exists already, and is left as it is"), "{said}");
}

#[test]
fn a_bad_configuration_ends_with_78_and_shows_the_place() {
    let here = tempfile::tempdir().unwrap();
    stdout(here.path(), &["pair", "a=a.example.net:51820", "b"]);
    let path = here.path().join("a/a.toml");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("keepalive = ", "keepalvie = ")).unwrap();
    let expected = r#"error: unknown key `keepalvie` in [peer]
  --> a/a.toml:16:1
   |
16 | keepalvie = "25s"  # keeps a NAT on the way open
   | ^^^^^^^^^
   |
   = help: did you mean `keepalive`?
"#;
    for arguments in [&["check", "a/a.toml"][..], &["run", "-c", "a/a.toml"], &["-c", "a/a.toml"]] {
        assert_eq!(complaint(here.path(), arguments), (78, expected.to_owned()));
    }
    let output = vpnd(here.path(), &["check", "--json", "a/a.toml"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert_eq!((&json["ok"], &json["config"]), (&false.into(), &serde_json::Value::Null));
    assert_eq!(
        (&json["problems"][0]["line"], &json["problems"][0]["column"]),
        (&16.into(), &1.into())
    );
}

#[test]
fn what_stands_in_a_file_is_shown_and_not_obeyed() {
    let here = tempfile::tempdir().unwrap();
    stdout(here.path(), &["pair", "a=a.example.net:51820", "b"]);
    let path = here.path().join("a/a.toml");
    let good = fs::read_to_string(&path).unwrap();
    let unfit = |c: char| {
        c.is_control() && c != '\n'
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    for bad in [
        "[hooks]\nup = [\"\\u001b[2J\", \"\u{9b}31m\u{202e}\u{2028}\"]\n",
        "[hooks]\n\"\u{9b}2J\u{2066}\" = 1 # \u{85}\n",
        "[dns]\ndomains = \"\\u001b]0;x\\u0007\"\n",
        "\x1b[2J\n",
    ] {
        fs::write(&path, format!("{good}\n{bad}")).unwrap();
        for arguments in
            [&["check", "a/a.toml"][..], &["check", "--json", "a/a.toml"], &["-c", "a/a.toml"]]
        {
            if bad.contains("up = ") && arguments.len() == 2 && arguments[0] == "-c" {
                continue;
            }
            let output = vpnd(here.path(), arguments);
            let said = text(&output.stdout) + &text(&output.stderr);
            assert!(!said.contains(unfit), "{arguments:?} of {bad:?}: {said:?}");
            assert!(!said.is_empty(), "{arguments:?}");
        }
    }
}

#[test]
fn a_file_of_nothing_but_mistakes_is_told_in_an_instant() {
    let here = tempfile::tempdir().unwrap();
    let lines: String = (0..60_000).map(|line| format!("mistake{line} = 1\n")).collect();
    fs::write(here.path().join("site.toml"), lines).unwrap();
    let (code, said) = complaint(here.path(), &["check", "site.toml"]);
    assert_eq!((code, said.matches("error: ").count()), (78, 20));
    assert!(said.trim_end().ends_with("more problems"), "{said}");
    let output = vpnd(here.path(), &["check", "--json", "site.toml"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["problems"].as_array().unwrap().len(), 20);
    assert!(json["more"].as_u64().unwrap() >= 59_980, "{}", json["more"]);
}

#[test]
fn an_unreadable_configuration_ends_with_78() {
    let here = tempfile::tempdir().unwrap();
    let (code, said) = complaint(here.path(), &["run", "--config", "none.toml"]);
    assert_eq!(code, 78);
    assert_eq!(
        said,
        "error: cannot be read: No such file or directory (os error 2)\n--> none.toml\n"
    );
}

#[test]
fn a_name_is_checked_where_reload_looks_for_it() {
    let here = tempfile::tempdir().unwrap();
    stdout(here.path(), &["pair", "a=a.example.net:51820", "b"]);
    // The directory that `pair` made is not a configuration.
    for name in ["no-such-tunnel", "a"] {
        let (code, said) = complaint(here.path(), &["check", name]);
        assert!(code == 78 && said.contains(&format!("--> /etc/vpnd/{name}.toml")), "{said}");
    }
    fs::copy(here.path().join("a/a.toml"), here.path().join("a/plain")).unwrap();
    assert!(stdout(&here.path().join("a"), &["check", "plain"]).starts_with("ok        plain"));
}

#[test]
fn a_tunnel_that_does_not_run_is_neither_reloaded_nor_rotated() {
    let here = tempfile::tempdir().unwrap();
    stdout(here.path(), &["pair", "a=a.example.net:51820", "b"]);
    let expected = "vpnd: nobody answers at ./a.sock: that tunnel does not run, or its configuration \
                    names another `control`: give that path\n";
    for arguments in [
        &["reload", "./a.sock", "--config", "a/a.toml"][..],
        &["rotate", "./a.sock"],
        &["rotate", "./a.sock", "--finish"],
    ] {
        assert_eq!(complaint(here.path(), arguments), (4, expected.to_owned()));
    }
}

#[test]
fn a_tunnel_that_does_not_run_is_waited_for_and_not_pinged() {
    let here = tempfile::tempdir().unwrap();
    let wait = ["wait", "./a.sock", "--up", "--timeout", "0.2"];
    let (code, said) = complaint(here.path(), &wait);
    let expected = "vpnd: ./a.sock is not up after 200ms: nobody answers at ./a.sock: ";
    assert!(code == 4 && said.starts_with(expected), "{code}: {said}");
    let (code, said) = complaint(here.path(), &["ping", "./a.sock"]);
    assert!(code == 4 && said.starts_with("vpnd: nobody answers at ./a.sock: "), "{code}: {said}");
}

#[test]
fn a_bad_configuration_is_not_handed_over() {
    let here = tempfile::tempdir().unwrap();
    stdout(here.path(), &["pair", "a=a.example.net:51820", "b"]);
    fs::remove_file(here.path().join("a/a.psk")).unwrap();
    let (code, said) = complaint(here.path(), &["reload", "./a.sock", "-c", "a/a.toml"]);
    assert!(code == 78 && said.contains("preshared_key_file: cannot read"), "{said}");
    let (code, said) = complaint(here.path(), &["reload", "./no-such-tunnel.sock"]);
    assert!(code == 78 && said.contains("--> /etc/vpnd/no-such-tunnel.toml"), "{said}");
}

#[test]
fn a_key_in_the_configuration_is_not_repeated() {
    let here = tempfile::tempdir().unwrap();
    let secret = stdout(here.path(), &["genkey"]);
    for key in ["private_key", "private_key_file", "PrivateKey"] {
        let source = format!("[interface]\n{key} = \"{}\"\n", secret.trim());
        fs::write(here.path().join("site.toml"), source).unwrap();
        let (code, said) = complaint(here.path(), &["check", "site.toml"]);
        assert_eq!(code, 78);
        assert!(said.contains("site.toml:2:") && !said.contains(secret.trim()), "{said}");
    }
}

#[test]
fn a_credential_is_found_where_systemd_puts_it() {
    let (here, credentials) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    stdout(here.path(), &["pair", "a=a.example.net:51820", "b"]);
    fs::rename(here.path().join("a/a.key"), credentials.path().join("site")).unwrap();
    let path = here.path().join("a/a.toml");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("\"a.key\"", "\"cred:site\"")).unwrap();
    let (code, said) = complaint(here.path(), &["check", "a/a.toml"]);
    assert!(code == 78 && said.contains("$CREDENTIALS_DIRECTORY is not set"), "{said}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vpnd"));
    command.current_dir(here.path()).args(["check", "a/a.toml"]);
    let output = command.env("CREDENTIALS_DIRECTORY", credentials.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// The output is closed early, as with `vpnd check a.toml | head` once `head` has read enough.
#[test]
fn a_reader_that_has_read_enough_is_no_error() {
    let here = tempfile::tempdir().unwrap();
    let pair = ["pair", "a=192.0.2.1:51820", "b=192.0.2.2:51820", "--out", "."];
    for arguments in [&pair[..], &["check", "a/a.toml"], &["check", "--json", "a/a.toml"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_vpnd"));
        command.current_dir(here.path()).args(arguments).stdin(Stdio::null()).stdout(writer);
        let output = command.stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", output.status);
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
}
