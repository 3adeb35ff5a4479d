//! Commands for a shell that put the files of a tunnel into the directory where the service looks for them.
//! They overwrite nothing.

use std::path::{self, Path, PathBuf};

use crate::terminal::{shell_path, shell_word};

/// Where vpnd's units look for configurations.
pub(crate) const ETC: &str = "/etc/vpnd";

/// Makes the directory, which only root may read.
pub(crate) const MAKE_ETC: &str = "install -d -m 700 /etc/vpnd";

/// True in a shell as long as the directory has none of these files, nor a link that leads nowhere.
pub(crate) fn absent(directory: &str, files: &[PathBuf]) -> String {
    let there = files.iter().filter_map(|file| file.file_name());
    let there = there.map(|name| Path::new(directory).join(name)).collect::<Vec<_>>();
    format!("[ -z \"$(ls -d {} 2>/dev/null)\" ]", words(&there))
}

/// Copies files as ours, whoever owns them, if the directory has none of them.
pub(crate) fn copy_to(directory: &str, files: &[PathBuf]) -> String {
    let copied = words(files);
    let absent = absent(directory, files);
    let directory = shell_word(directory);
    format!(
        "if {absent}; then install -m 600 -t {directory} -- {copied}; \
         else echo 'a file of this name is there: nothing was copied'; false; fi"
    )
}

/// Files as they could be typed into a shell, whatever the present directory is.
pub(crate) fn words(files: &[PathBuf]) -> String {
    let whole = files.iter().map(|file| path::absolute(file).unwrap_or_else(|_| file.clone()));
    whole.map(|file| shell_path(&file)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    /// Whether the command succeeds, and what it says.
    fn run(command: &str) -> (bool, String) {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    /// The printed command copies these files only, and never over another tunnel's.
    #[test]
    fn the_copy_takes_exactly_its_files_and_overwrites_none() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("it's $(id)"), directory.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let files = ["a.toml", "a.key"].map(|name| from.join(name));
        files.iter().for_each(|file| fs::write(file, "mine").unwrap());
        fs::write(from.join("a.conf"), "of another program").unwrap();
        let command = copy_to(to.to_str().unwrap(), &files);
        fs::write(to.join("a.key"), "another tunnel's").unwrap();
        let refused = "a file of this name is there: nothing was copied\n".to_owned();
        assert_eq!(run(&command), (false, refused));
        assert_eq!(fs::read_to_string(to.join("a.key")).unwrap(), "another tunnel's");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
        fs::remove_file(to.join("a.key")).unwrap();
        symlink("not mounted", to.join("a.key")).unwrap();
        assert!(!run(&command).0, "a link is replaced");
        fs::remove_file(to.join("a.key")).unwrap();
        assert_eq!(run(&command), (true, String::new()));
        assert_eq!(fs::read_dir(&to).unwrap().count(), 2);
        let mode = fs::metadata(to.join("a.toml")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    /// What `install` has to say is not hidden behind a sentence of ours.
    #[test]
    fn a_copy_that_fails_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("to");
        fs::create_dir(&to).unwrap();
        let (copied, said) = run(&copy_to(to.to_str().unwrap(), &[directory.path().join("a.key")]));
        assert!(!copied && said.contains("a.key") && !said.contains("nothing"), "{said}");
    }
}
