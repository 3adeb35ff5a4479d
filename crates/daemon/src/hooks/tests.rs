use super::*;
use std::future::pending;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::UnixStream;

/// Hooks whose commands write their arguments to a file, one line each.
struct Site {
    directory: TempDir,
    hooks: Hooks,
    plan: Plan,
}

impl Site {
    fn new(scripts: &[(Event, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut plan = Plan { limit: Duration::from_secs(60), ..Plan::default() };
        plan.environment = vec![
            ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
            ("OUT".to_owned(), directory.path().join("out").to_str().unwrap().to_owned()),
        ];
        for (event, script) in scripts {
            let argv = Argv::new(["sh", "-c", script]).unwrap();
            plan.commands.entry(*event).or_default().push(argv);
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        runner::tests::pretend(theirs);
        let hooks = Hooks {
            runner: Some(Runner::over(ours)),
            plan: Plan::default(),
            changed: Changed::default(),
            names: None,
        };
        Self { directory, hooks, plan }
    }

    /// Brings the site up, and returns the directory in which its commands write.
    async fn up(self) -> (Result<Option<Following>, HookError>, TempDir) {
        (self.hooks.up(self.plan, pending()).await, self.directory)
    }
}

const TELL: &str = r#"echo "$VPND_HOOK $VPND_ENDPOINT" >> "$OUT""#;

fn written(directory: &TempDir) -> Vec<String> {
    let text = std::fs::read_to_string(directory.path().join("out")).unwrap_or_default();
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

async fn until(what: &str, wanted: impl Fn() -> bool) {
    let begin = Instant::now();
    while !wanted() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what} never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn all_four_in_their_order() {
    let all = [Event::SetDns, Event::Up, Event::Established, Event::Lost, Event::Down];
    let all = all.into_iter().chain([Event::RevertDns]).map(|event| (event, TELL));
    let (following, out) = Site::new(&all.collect::<Vec<_>>()).up().await;
    let mut following = following.unwrap().unwrap();
    assert_eq!(written(&out), ["set-dns", "up"]);
    let at = "192.0.2.7:51820".parse().ok();
    following.news().peer(true, at);
    until("established", || written(&out).len() == 3).await;
    following.news().peer(false, None);
    until("lost", || written(&out).len() == 4).await;
    following.end().await;
    following.end().await;
    let told = ["established", "lost", "down"].map(|hook| format!("{hook} 192.0.2.7:51820"));
    assert_eq!(written(&out)[2..5], told);
    assert_eq!(written(&out)[5..], ["revert-dns"]);
}

#[tokio::test]
async fn a_device_that_has_changed_is_told_of_so() {
    let tell = r#"echo "$VPND_HOOK $VPND_DEVICE $VPND_MTU $0" >> "$OUT""#;
    let mut site = Site::new(&[(Event::Established, tell), (Event::Down, tell)]);
    for (name, value) in [("VPND_DEVICE", "tun0"), ("VPND_MTU", "1420")] {
        site.plan.environment.push((name.to_owned(), value.to_owned()));
    }
    let argv = Argv::new(["sh", "-c", tell, "tun0"]).unwrap().naming_device(2);
    site.plan.commands.insert(Event::RevertDns, vec![argv]);
    let (following, out) = site.up().await;
    let mut following = following.unwrap().unwrap();
    following.news().peer(true, None);
    until("established", || written(&out) == ["established tun0 1420 sh"]).await;
    following.news().renamed("office");
    following.news().mtu(1300);
    following.end().await;
    assert_eq!(written(&out)[1..], ["down office 1300 sh", "revert-dns office 1300 office"]);
}

#[tokio::test]
async fn a_failing_up_ends_the_start_and_what_follows_it() {
    let fails = "echo oh; exit 7";
    let (result, out) =
        Site::new(&[(Event::Up, fails), (Event::Up, TELL), (Event::Down, TELL)]).up().await;
    let error = result.err().unwrap().to_string();
    assert!(error.starts_with("hook up: `sh -c 'echo oh; exit 7'` ended with status 7"), "{error}");
    assert!(written(&out).is_empty());
}

#[tokio::test]
async fn names_that_cannot_be_set_do_not_keep_a_tunnel_down() {
    let scripts = [
        (Event::SetDns, "exit 1"),
        (Event::SetDns, TELL),
        (Event::Up, TELL),
        (Event::RevertDns, TELL),
    ];
    let (following, out) = Site::new(&scripts).up().await;
    following.unwrap().unwrap().end().await;
    assert_eq!(written(&out), ["up"], "what was not set is not reverted");
}

#[tokio::test]
async fn of_what_flaps_the_last_state_is_told() {
    let slow = r#"echo "$VPND_HOOK" >> "$OUT"; while [ ! -e "$OUT.go" ]; do sleep 0.01; done"#;
    let scripts = [(Event::Established, slow), (Event::Lost, TELL)];
    let (following, out) = Site::new(&scripts).up().await;
    let mut following = following.unwrap().unwrap();
    following.news().peer(false, None);
    following.news().peer(true, None);
    until("established", || written(&out).len() == 1).await;
    for _ in 0..100 {
        following.news().peer(false, None);
        following.news().peer(true, None);
    }
    following.news().peer(false, None);
    std::fs::write(out.path().join("out.go"), "").unwrap();
    until("lost", || written(&out).len() == 2).await;
    following.end().await;
    assert_eq!(written(&out), ["established", "lost"]);
}

#[tokio::test]
async fn what_flaps_is_told_no_sooner_than_some_seconds_apart() {
    let scripts = [(Event::Established, TELL), (Event::Lost, TELL), (Event::Down, TELL)];
    let (following, out) = Site::new(&scripts).up().await;
    let mut following = following.unwrap().unwrap();
    let begin = Instant::now();
    for (alive, count) in [(true, 1), (false, 2)] {
        following.news().peer(alive, None);
        until("the first of each", || written(&out).len() == count).await;
    }
    // The state changes faster than the commands can follow.
    for count in 1..=101 {
        following.news().peer(count % 2 == 1, None);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until("the last state", || written(&out).len() == 3).await;
    assert!(begin.elapsed() >= SAME_EVENT_INTERVAL, "it is told after {:?}", begin.elapsed());
    // A stop does not wait for the pauses between commands.
    following.news().peer(false, None);
    following.news().peer(true, None);
    following.end().await;
    assert_eq!(written(&out), ["established", "lost", "established", "down"]);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_up() {
    let Site { directory, hooks, plan } =
        Site::new(&[(Event::Up, "echo $$ >> $OUT; sleep 1000; true"), (Event::Down, TELL)]);
    let begun = until("up", || !written(&directory).is_empty());
    assert!(hooks.up(plan, begun).await.unwrap().is_none());
    let id = written(&directory)[0].clone();
    until("its end", || !Path::new("/proc").join(&id).join("exe").exists()).await;
}

#[tokio::test]
async fn without_hooks_nothing_is_started() {
    let hooks = Hooks::start(false).unwrap();
    let mut following = hooks.up(Plan::default(), pending()).await.unwrap().unwrap();
    following.news().peer(true, None);
    following.end().await;
}

#[tokio::test]
async fn a_lost_runner_is_no_reason_to_stop() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let commands = [(Event::Down, vec![Argv::new(["true"]).unwrap()])];
    let plan = Plan { commands: commands.into(), ..Plan::default() };
    let hooks =
        Hooks { runner: Some(Runner::over(ours)), plan, changed: Changed::default(), names: None };
    hooks.follow(false).end().await;
}
