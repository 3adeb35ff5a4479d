//! What shows a tunnel at work: metrics for Prometheus, and the commands `wait`, `ping` and `status --watch`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vpnd_tests::binaries::cached;
use vpnd_tests::peer::{Kind, Peer};
use vpnd_tests::runner::{Cost, Scenario};
use vpnd_tests::site::{self, INNER_B4, Site};
use vpnd_tests::terminal::Terminal;
use vpnd_tests::traffic::ping;
use vpnd_tests::vpnd::{self, program};
use vpnd_tests::{Host, Lab, Process, Vpnd, Wire, eventually};

use crate::tunnel::SOON;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("monitoring::metrics, checked by promtool", Cost::Waits, metrics),
        Scenario::new("monitoring::a Prometheus scrapes", Cost::Waits, prometheus),
        Scenario::new("monitoring::the rules and the dashboard", Cost::Waits, rules),
        Scenario::new("monitoring::counters of the kernel's device agree", Cost::Waits, counters),
        Scenario::new("monitoring::an address in use ends the start", Cost::Waits, in_use),
        Scenario::new("monitoring::wait for a tunnel", Cost::Waits, wait),
        Scenario::new("monitoring::ping the peer's vpnd", Cost::Waits, pings),
        Scenario::new("monitoring::WireGuard answers no ping", Cost::Waits, no_pings),
        Scenario::new("monitoring::watch a tunnel", Cost::Waits, watch),
    ]
}

/// Where A serves its metrics.
const METRICS: &str = "127.0.0.1:9586";

/// Two vpnd, of which A serves metrics, after some pings.
fn start(wire: &Wire) -> Result<[Vpnd; 2]> {
    let (a, b) = site::pair()?;
    let b = Vpnd::start(&wire.b, &b.speaking_vpnd(&[]))?;
    let a = Vpnd::start(&wire.a, &serving(a.towards(Wire::B4).keepalive(1).speaking_vpnd(&[])))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    Ok([a, b])
}

fn serving(mut site: Site) -> Site {
    site.tables.push(format!("[metrics]\nlisten = \"{METRICS}\""));
    site
}

/// The answer to one request, as a client without any library gets it.
fn http(host: &Host, at: &str, request: &str) -> Result<String> {
    host.enter(|| {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

fn scrape(host: &Host, accept: &str) -> Result<String> {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {METRICS}\r\nAccept: {accept}\r\n\r\n");
    let answer = http(host, METRICS, &request)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    ensure!(head.to_lowercase().contains(&format!("content-type: {accept}")), "{head}");
    Ok(body.to_owned())
}

const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The value of the first sample that begins like this.
fn sample(text: &str, start: &str) -> Result<f64> {
    let line = text.lines().find(|line| line.starts_with(start)).context(start.to_owned())?;
    Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
}

fn metrics(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let [a, _b] = start(&wire)?;
    eventually("the round trip is measured", SOON, || {
        sample(&scrape(&wire.a, OPEN)?, "vpnd_round_trip_seconds{")
    })?;
    let open = scrape(&wire.a, OPEN)?;
    ensure!(open.ends_with("# EOF\n"), "{open}");
    ensure!(sample(&open, "vpnd_state{tunnel=\"site-a\",device=\"tun0\",state=\"up\"}")? == 1.0);
    let status = a.status()?;
    ensure!(sample(&open, "vpnd_handshakes_total{")? >= 1.0, "{status}");
    no_secrets(&wire.a, &open)?;
    let text = scrape(&wire.a, TEXT)?;
    let promtool = format!("{} check metrics", cached("promtool")?.display());
    let said = wire.a.run_with_input(&promtool, &text)?;
    ensure!(said.trim().is_empty(), "promtool: {said}");
    for request in
        ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET /metrics/x HTTP/1.1\r\nHost: x\r\n\r\n"]
    {
        ensure!(http(&wire.a, METRICS, request)?.starts_with("HTTP/1.1 404 "));
    }
    let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    ensure!(http(&wire.a, METRICS, post)?.starts_with("HTTP/1.1 405 "));
    many_silent_clients(&wire.a)?;
    let samples = open.lines().filter(|line| !line.starts_with('#')).count();
    Ok(format!("{samples} samples; promtool check metrics has nothing to say"))
}

/// Neither private nor preshared keys are served.
fn no_secrets(host: &Host, text: &str) -> Result<()> {
    let key = std::fs::read_to_string(host.directory().join("site-a.key"))?;
    ensure!(!text.contains(key.trim()), "the private key is served");
    Ok(())
}

/// More clients that say nothing than are served at once hold nobody up for long.
fn many_silent_clients(host: &Host) -> Result<()> {
    let silent = host.enter(|| {
        let all = (0..12).map(|_| Ok(TcpStream::connect(METRICS)?));
        all.collect::<Result<Vec<_>>>()
    })?;
    let begun = Instant::now();
    eventually("clients that say nothing are left", SOON * 3, || scrape(host, OPEN))?;
    ensure!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    drop(silent);
    Ok(())
}

/// The directory of the rules and the dashboard.
fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring").join(name)
}

fn rules(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let [_a, _b] = start(&wire)?;
    let promtool = cached("promtool")?;
    let run = |words: &str, file: &str| {
        wire.a.run(&format!("{} {words} {}", promtool.display(), shipped(file).display()))
    };
    let checked = run("check rules", "alerts.yml")?;
    ensure!(checked.contains("SUCCESS"), "{checked}");
    let tested = run("test rules", "alerts_test.yml")?;
    ensure!(tested.contains("SUCCESS"), "{tested}");
    let served = eventually("everything is measured", SOON * 3, || {
        let served = scrape(&wire.a, OPEN)?;
        let all = ["vpnd_path_mtu_bytes{", "vpnd_loss_ratio{", "vpnd_peer_device_mtu_bytes{"];
        all.iter().try_for_each(|name| sample(&served, name).map(drop))?;
        Ok(served)
    })?;
    let dashboard = std::fs::read_to_string(shipped("dashboard.json"))?;
    serde_json::from_str::<Value>(&dashboard).context("dashboard.json")?;
    let page = std::fs::read_to_string(shipped("README.md"))?;
    for file in [&dashboard, &std::fs::read_to_string(shipped("alerts.yml"))?, &page] {
        for name in names(file) {
            ensure!(served.contains(&format!("\n{name}{{")), "{name} is not served");
        }
    }
    let unnamed: Vec<_> =
        names(&served).filter(|name| served.contains(&format!("\n{name}{{"))).collect();
    for name in &unnamed {
        ensure!(page.contains(&format!("`{name}`")), "README.md lacks {name}");
    }
    Ok(format!("{}; {}", last_line(&checked), last_line(&tested)))
}

fn last_line(text: &str) -> &str {
    text.trim().lines().last().unwrap_or_default().trim()
}

/// The names of metrics in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(move |c| !is_part(c));
    words.filter(|word| word.starts_with("vpnd_"))
}

const CONFIG: &str = "global: { scrape_interval: 1s }\nscrape_configs:\n  - job_name: vpnd\n    static_configs: [ \
                      { targets: [ '127.0.0.1:9586' ] } ]\n";

fn prometheus(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let [_a, _b] = start(&wire)?;
    let _prometheus = start_prometheus(&wire.a)?;
    let sent = "rate(vpnd_traffic_packets_total{direction=\"transmit\"}[5s])";
    let queries = [
        "up{job=\"vpnd\"}",
        "vpnd_state{state=\"up\"}",
        "vpnd_handshakes_total",
        "vpnd_round_trip_seconds",
        sent,
    ];
    eventually("five scrapes", SOON * 4, || {
        // Some packets, for the rate.
        ping::series(&wire.a, INNER_B4, 2, Duration::from_millis(200))?;
        let scraped = query(&wire.a, "count_over_time(up{job=\"vpnd\"}[1m])")?;
        ensure!(scraped >= 5.0, "{scraped}");
        Ok(())
    })?;
    let mut told = Vec::new();
    for asked in queries {
        let value = query(&wire.a, asked)?;
        ensure!(value > 0.0, "{asked} is {value}");
        told.push(format!("{asked} = {value}"));
    }
    ensure!(query(&wire.a, "sum(vpnd_drops_total{reason=\"forged\"})")? == 0.0);
    Ok(told.join("; "))
}

fn start_prometheus(host: &Host) -> Result<Process> {
    let directory = host.directory();
    let config = directory.join("prometheus.yml");
    std::fs::write(&config, CONFIG)?;
    let mut command = host.command(cached("prometheus")?);
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", directory.join("tsdb").display()))
        .arg("--web.listen-address=127.0.0.1:9090");
    host.spawn("prometheus", command)
}

/// The value of the only series that a query finds.
fn query(host: &Host, query: &str) -> Result<f64> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let request = format!("GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n");
    let answer = http(host, "127.0.0.1:9090", &request)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let json: Value = serde_json::from_str(body)?;
    let value = json.pointer("/data/result/0/value/1").and_then(Value::as_str);
    Ok(value.with_context(|| format!("{query}: {body}"))?.parse()?)
}

/// The kernel's counters of the tunnel's device: packets and bytes that it took from vpnd, and that it gave.
fn kernel(host: &Host) -> Result<[f64; 4]> {
    let link: Value = serde_json::from_str(&host.run("ip -s -json link show dev tun0")?)?;
    let field = |name: &str| link.pointer(&format!("/0/stats64/{name}")).and_then(Value::as_f64);
    let all = ["rx/packets", "tx/packets", "rx/bytes", "tx/bytes"].map(field);
    let [Some(a), Some(b), Some(c), Some(d)] = all else { anyhow::bail!("no counters: {link}") };
    Ok([a, b, c, d])
}

/// Packets are counted alike, unless the kernel hands several over as one; bytes are those outside.
fn counters(lab: &Lab) -> Result<String> {
    const OUTSIDE: f64 = 32.0;
    let wire = Wire::new(lab)?;
    let [_a, _b] = start(&wire)?;
    let pinged = ping::with_size(&wire.a, INNER_B4, 200, Duration::from_millis(10), 900)?;
    ensure!(pinged.answered == 200, "{pinged:?}");
    let told = eventually("the counters agree", SOON, || {
        let text = scrape(&wire.a, OPEN)?;
        let kernel = kernel(&wire.a)?;
        let ours = |family: &str, direction: &str| {
            let labels = format!("{{tunnel=\"site-a\",device=\"tun0\",direction=\"{direction}\"}}");
            sample(&text, &format!("vpnd_traffic_{family}_total{labels}"))
        };
        let packets = [ours("packets", "receive")?, ours("packets", "transmit")?];
        ensure!(packets == kernel[..2], "packets: ours {packets:?}, the kernel's {kernel:?}");
        ensure!(packets[0] >= 200.0);
        for (direction, bytes, count) in
            [("receive", kernel[2], packets[0]), ("transmit", kernel[3], packets[1])]
        {
            let outside = ours("bytes", direction)?;
            let least = bytes + OUTSIDE * count;
            // Padding, handshakes and measurements.
            let fits = outside >= least && outside <= least + 16.0 * count + 8192.0;
            ensure!(fits, "{direction}: {outside} bytes outside, {bytes} inside");
        }
        Ok(format!("packets received, sent: {packets:?}, the kernel's {:?}", &kernel[..2]))
    })?;
    Ok(told)
}

fn in_use(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, _) = site::pair()?;
    let taken = wire.a.enter(|| Ok(std::net::TcpListener::bind(METRICS)?))?;
    let config = vpnd::write_files(&wire.a, &serving(a.towards(Wire::B4)))?;
    let config = config.to_str().context("a path of our own making")?;
    let (code, said) = vpnd::run(&wire.a, &["--config", config])?;
    ensure!(
        code == 78 && said.contains("another program listens at 127.0.0.1:9586"),
        "{code}: {said}"
    );
    ensure!(wire.a.run("ip link show dev tun0").is_err(), "the device was made");
    drop(taken);
    let seen = config.to_owned();
    std::fs::write(
        config,
        std::fs::read_to_string(config)?.replace("127.0.0.1:9586", "0.0.0.0:9586"),
    )?;
    let (code, said) = vpnd::run(&wire.a, &["check", &seen])?;
    ensure!(
        code == 0 && said.contains("note: [metrics] listen: whoever reaches"),
        "{code}: {said}"
    );
    Ok("exit code 78, and the error names the address".to_owned())
}

fn wait(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let (code, said) = vpnd::run(&wire.a, &["wait", "site-a", "--up", "--timeout", "300ms"])?;
    ensure!(
        code == 4 && said.contains("site-a is not up after 300ms: nobody answers"),
        "{code}: {said}"
    );
    let mut waiting = wire.a.command(program()?);
    waiting.args(["wait", "site-a", "--up", "--timeout", "30"]);
    let mut waiting = wire.a.spawn("wait", waiting)?;
    let _a = Vpnd::start(&wire.a, &a.towards(Wire::B4).keepalive(1))?;
    let (code, said) = vpnd::run(&wire.a, &["wait", "site-a", "--timeout", "1"])?;
    ensure!(code == 3 && said.contains("it is connecting"), "{code}: {said}");
    ensure!(waiting.ended()?.is_none(), "{}", waiting.log());
    let _b = Vpnd::start(&wire.b, &b)?;
    let ended = waiting.wait(SOON)?;
    ensure!(ended.success() && waiting.log().is_empty(), "{ended}: {}", waiting.log());
    Ok("4 without a daemon, 3 without a peer, 0 when the tunnel is up".to_owned())
}

fn pings(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let [_a, mut b] = start(&wire)?;
    let (code, said) = vpnd::run(&wire.a, &["ping", "site-a", "-c", "5", "-i", "0.05"])?;
    ensure!(
        code == 0 && said.contains("5 packets transmitted, 5 received, 0% packet loss"),
        "{said}"
    );
    ensure!(said.starts_with("PING site-a: the peer at 192.0.2.2:51820 (vpnd "), "{said}");
    ensure!(said.matches(": seq=").count() == 5, "{said}");
    let rtt = last_line(&said).to_owned();
    // Ctrl-C ends it with the statistics.
    let mut running = Terminal::run(&wire.a, 80, 24, &words(&["ping", "site-a"])?)?;
    eventually("an answer", SOON, || {
        ensure!(running.written().contains("seq=2 time="), "{}", running.written());
        Ok(())
    })?;
    running.press("\x03")?;
    let ended = running.process.wait(SOON)?;
    ensure!(ended.success(), "{ended}");
    eventually("the statistics", SOON, || {
        ensure!(running.written().contains("rtt min/avg/max/mdev"), "{}", running.written());
        Ok(())
    })?;
    b.process().kill()?;
    let words = ["ping", "site-a", "-c", "2", "-i", "0.05", "-W", "300ms"];
    let (code, said) = vpnd::run(&wire.a, &words)?;
    ensure!(code == 1 && said.contains("no answer: seq=2"), "{code}: {said}");
    ensure!(said.contains("2 packets transmitted, 0 received, 100% packet loss"), "{said}");
    Ok(rtt)
}

fn words<'a>(words: &[&'a str]) -> Result<Vec<&'a str>> {
    let program = program()?.to_str().context("a path")?;
    Ok([program].iter().chain(words).copied().collect())
}

/// WireGuard has no ping, and the error says so.
fn no_pings(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let (a, b) = site::pair()?;
    let _b = Peer::start(Kind::WireguardGo, &wire.b, &b)?;
    let _a = Vpnd::start(&wire.a, &a.towards(Wire::B4).keepalive(1))?;
    ping::until_answered(&wire.a, INNER_B4, SOON)?;
    let (code, said) = vpnd::run(&wire.a, &["ping", "site-a", "-c", "1"])?;
    ensure!(code == 1 && said.contains("a peer answers no ping"), "{code}: {said}");
    Ok(said.trim().to_owned())
}

fn watch(lab: &Lab) -> Result<String> {
    let wire = Wire::new(lab)?;
    let [_a, mut b] = start(&wire)?;
    let mut watching = Terminal::run(&wire.a, 80, 24, &words(&["status", "--watch"])?)?;
    let has = |watching: &Terminal, width: usize, height: usize, wanted: &[&str]| {
        eventually(&format!("the page shows {wanted:?}"), SOON * 4, || {
            let page = watching.page().context("no page yet")?;
            let text = page.join("\n");
            ensure!(page.len() <= height, "{text}");
            ensure!(page.iter().all(|line| line.chars().count() <= width), "{text}");
            ensure!(wanted.iter().all(|words| text.contains(words)), "{text}");
            Ok(text)
        })
    };
    let wide = has(&watching, 80, 24, &["site-a  UP", "bit/s", "  rtt      ", "  events   "])?;
    watching.resize(24, 6)?;
    has(&watching, 24, 6, &["site-a  UP", "…"])?;
    watching.resize(100, 30)?;
    b.process().terminate()?;
    has(&watching, 100, 30, &["site-a  DOWN", "up → down"])?;
    watching.press("\x03")?;
    let ended = watching.process.wait(SOON)?;
    ensure!(ended.success(), "{ended}");
    eventually("the terminal is as before", SOON, || {
        ensure!(watching.written().ends_with("\x1b[?25h\x1b[?1049l"), "{:?}", watching.written());
        Ok(())
    })?;
    closed_pipe(&wire.a)?;
    Ok(wide.lines().nth(2).unwrap_or_default().to_owned())
}

/// A reader that has read enough ends it, as with `head`.
fn closed_pipe(host: &Host) -> Result<()> {
    let mut command = host.command(program()?);
    let mut child = command.args(["status", "--watch"]).stdout(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().context("no pipe")?;
    out.read_exact(&mut [0; 20])?;
    drop(out);
    let begun = Instant::now();
    let ended = child.wait()?;
    ensure!(ended.success() && begun.elapsed() < SOON, "{ended} after {:?}", begun.elapsed());
    Ok(())
}
