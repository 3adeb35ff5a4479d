//! Manual pages and completions, with the programs that read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::{Host, Lab, vpnd};

/// Sources `$1` and completes the last of the other words. A shell's own key presses are not simulated; what it calls is.
const SHELLS: [(&str, &str); 4] = [
    (
        "bash",
        "source \"$1\"; shift; COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)) COMP_TYPE=9
         _clap_complete_vpnd vpnd \"${!#}\" vpnd; printf '%s\\n' \"${COMPREPLY[@]}\"",
    ),
    ("fish", "source $argv[1]; complete -C \"$argv[2..]\""),
    (
        "zsh",
        "compdef() {}; _describe() { print -l -- ${(P)3} }
         source $1; shift; words=(\"$@\") CURRENT=$#; _clap_dynamic_completer_vpnd",
    ),
    // As zsh itself loads it: from its function path, at the first key press.
    (
        "zsh",
        "compdef() {}; _describe() { print -l -- ${(P)3} }
         fpath=(${1:h}); shift; autoload -Uz _vpnd; words=(\"$@\") CURRENT=$#; _vpnd",
    ),
];

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("manual::pages without a warning", Cost::Works, pages),
        Scenario::new("manual::completions in three shells", Cost::Works, completions),
    ]
}

fn pages(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    let directory = host.directory().join("man");
    fs::create_dir(&directory)?;
    host.run(&format!("{} man --out {}", vpnd::program()?.display(), directory.display()))?;
    let mut pages = 0;
    for page in fs::read_dir(&directory)? {
        let page = page?.path();
        host.run(&format!("mandoc -Tlint -Wwarning {}", page.display()))?;
        let text = host.run(&format!("mandoc -Tutf8 {}", page.display()))?;
        ensure!(text.contains("vpnd") && text.len() > 500, "{}: {text}", page.display());
        pages += 1;
    }
    Ok(format!("{pages} pages"))
}

fn completions(lab: &Lab) -> Result<String> {
    let host = lab.host("a")?;
    host.run("mkdir -m 755 /run/vpnd")?;
    host.run("touch /run/vpnd/site-a.sock /run/vpnd/site-b.sock /run/vpnd/site-a.changes")?;
    let mut asked = BTreeMap::new();
    for (shell, script) in SHELLS {
        let file = host.directory().join(format!("{shell}/_vpnd"));
        fs::create_dir_all(file.parent().context("a directory of our own making")?)?;
        let (code, text) = vpnd::run(&host, &["completions", shell])?;
        ensure!(code == 0, "{text}");
        fs::write(&file, text)?;
        let complete = |words: &[&str]| complete(&host, shell, script, &file, words);
        let tunnels = complete(&["vpnd", "status", "s"])?;
        ensure!(tunnels == ["site-a", "site-b"], "{shell}: {tunnels:?}");
        for (words, expected) in [
            (&["vpnd", "sta"][..], "status"),
            (&["vpnd", "status", "--w"], "--watch"),
            (&["vpnd", "help", "keepal"], "keepalive"),
            (&["vpnd", "rotate", "site-a", "--fin"], "--finish"),
            (&["vpnd", "--log-format", "js"], "json"),
        ] {
            let offered = complete(words)?;
            ensure!(offered == [expected], "{shell}: {words:?}: {offered:?}");
        }
        *asked.entry(shell).or_insert(0) += 6;
    }
    Ok(format!("candidates as expected: {asked:?}"))
}

/// The candidates of a shell for the last word, without their descriptions.
fn complete(
    host: &Host,
    shell: &str,
    script: &str,
    file: &Path,
    words: &[&str],
) -> Result<Vec<String>> {
    let path = std::env::var("PATH").context("PATH")?;
    let program = vpnd::program()?.parent().context("a program in a directory")?;
    let mut command = host.command(shell);
    match shell {
        "bash" => command.args(["--norc", "-c", script, shell]),
        "fish" => command.args(["--no-config", "-c", script]),
        _ => command.args(["-f", "-c", script, shell]),
    };
    command.arg(file).args(words).env("PATH", format!("{}:{path}", program.display()));
    command.env("HOME", host.directory());
    let output = command.output().with_context(|| format!("cannot run {shell}"))?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(complaints.is_empty(), "{shell}: {complaints}");
    let candidates = String::from_utf8_lossy(&output.stdout);
    let names = candidates.lines().filter_map(|line| line.split(['\t', ':', ' ']).next());
    Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
}
