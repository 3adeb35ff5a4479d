//! The metrics of a status, and clients of the socket: good ones, slow ones, and too many.

use super::*;
use crate::config::{self, tests::site};
use crate::status::tests::sample;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use vpnd_protocol::drop_reason::DropReason;

/// The value of the sample with this name and these labels besides `tunnel` and `device`.
fn value(text: &str, name: &str, labels: &str) -> Option<f64> {
    let start = format!("{name}{{tunnel=\"site-a\",device=\"vpn-site-a\"{labels}}} ");
    text.lines().find_map(|line| line.strip_prefix(&start)).map(|value| value.parse().unwrap())
}

fn encoded(status: &Status) -> String {
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let started = now - Duration::from_secs(11_520);
    families::encode(Snapshot { status: status.clone(), started, now })
}

#[test]
fn what_the_status_shows_has_a_metric() {
    let text = encoded(&sample());
    for (name, labels, expected) in [
        ("vpnd_build_info", ",version=\"0.1.0\"", 1.0),
        ("vpnd_start_timestamp_seconds", "", 1_000_000.0 - 11_520.0),
        ("vpnd_state", ",state=\"up\"", 1.0),
        ("vpnd_state", ",state=\"down\"", 0.0),
        ("vpnd_state_changed_timestamp_seconds", "", 991_000.0),
        ("vpnd_degraded", ",reason=\"loss\"", 0.0),
        ("vpnd_peer_alive", "", 1.0),
        ("vpnd_handshakes_total", "", 97.0),
        ("vpnd_session_age_seconds", "", 71.0),
        ("vpnd_last_received_timestamp_seconds", "", 999_997.5),
        ("vpnd_round_trip_seconds", "", 0.012),
        ("vpnd_round_trip_jitter_seconds", "", 0.0005),
        ("vpnd_loss_ratio", ",direction=\"transmit\",window=\"1m\"", 1.0 / 70.0),
        ("vpnd_loss_ratio", ",direction=\"receive\",window=\"1m\"", 0.0),
        ("vpnd_device_mtu_bytes", "", 1420.0),
        ("vpnd_traffic_bytes_total", ",direction=\"receive\"", f64::from(1 << 30)),
        ("vpnd_traffic_packets_total", ",direction=\"transmit\"", 12.0),
        ("vpnd_too_big_batches_total", "", 0.0),
        ("vpnd_missing_settings", "", 0.0),
    ] {
        assert_eq!(value(&text, name, labels), Some(expected), "{name}{labels} in\n{text}");
    }
    assert!(text.ends_with("\n# EOF\n"));
}

#[test]
fn what_is_not_known_has_no_sample() {
    let text = encoded(&Status { session: None, last_received_s: None, ..sample() });
    for name in
        ["vpnd_session_age_seconds", "vpnd_last_received_timestamp_seconds", "vpnd_path_mtu_bytes"]
    {
        assert!(!text.contains(name), "{text}");
    }
    assert!(!text.contains("direction=\"receive\",window=\"10m\""), "{text}");
}

#[test]
fn every_drop_of_the_status_has_its_metric() {
    let mut status = sample();
    for (number, (_, count)) in status.drops.iter_mut().enumerate() {
        *count = 1000 + number as u64;
    }
    let text = encoded(&status);
    assert_eq!(status.drops.len(), DropReason::ALL.len());
    let json = serde_json::to_value(&status).unwrap();
    for (reason, count) in json["drops"].as_object().unwrap() {
        let labels = format!(",reason=\"{reason}\"");
        assert_eq!(value(&text, "vpnd_drops_total", &labels), count.as_f64(), "{reason}");
    }
    assert_eq!(text.matches("\nvpnd_drops_total{").count(), status.drops.len());
}

#[test]
fn a_name_cannot_forge_a_sample() {
    let name = "a\"} 1\nvpnd_state{tunnel=\"b\\".to_owned();
    let text = encoded(&Status { name, ..sample() });
    assert!(text.contains(r#"{tunnel="a\"} 1\nvpnd_state{tunnel=\"b\\",device="#), "{text}");
    assert!(!text.contains("\nvpnd_state{tunnel=\"b"), "{text}");
}

/// A tunnel whose metrics are served at `listen`.
fn configured(listen: MetricsListen) -> (TempDir, Config) {
    let (directory, file) = site("");
    let mut config = config::load(&file).unwrap().config;
    config.metrics.listen = Some(listen);
    (directory, config)
}

fn bound(listen: MetricsListen) -> Metrics {
    Metrics::bind(&configured(listen).1).unwrap().unwrap().serve()
}

fn refused(listen: MetricsListen) -> MetricsError {
    Metrics::bind(&configured(listen).1).err().unwrap()
}

/// Metrics at a free port of this host, and a control plane that answers all requests.
fn served() -> SocketAddr {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = free.local_addr().unwrap();
    drop(free);
    answer_all(bound(MetricsListen::Address(at)));
    at
}

fn answer_all(mut metrics: Metrics) {
    tokio::spawn(async move {
        loop {
            drop(metrics.next().await.send(sample()));
        }
    });
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn asked(at: SocketAddr, request: &str) -> String {
    exchange(TcpStream::connect(at).await.unwrap(), request).await
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn one_request_is_answered_and_the_connection_closed() {
    let at = served();
    let answer = asked(at, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(answer.contains(kind) && answer.ends_with("# EOF\n"), "{answer}");
    let text = "GET /metrics HTTP/1.0\r\nAccept: text/plain\r\n\r\n";
    let answer = asked(at, text).await;
    assert!(answer.contains("text/plain; version=0.0.4") && !answer.contains("# EOF"), "{answer}");
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405 Method"),
        ("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "405 Method"),
        ("nonsense\r\n\r\n", "400 Bad Request"),
    ] {
        let answer = asked(at, request).await;
        assert!(answer.starts_with("HTTP/1.") && answer[9..].starts_with(expected), "{answer}");
    }
}

#[tokio::test]
async fn a_request_has_a_limit() {
    let at = served();
    let mut client = TcpStream::connect(at).await.unwrap();
    let long = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    // The answer may come before all of it is written.
    let _refused = client.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset = client.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(asked(at, GET).await.contains(" 200 OK"));
}

#[tokio::test]
async fn who_is_silent_or_slow_is_cut_and_keeps_nobody_out() {
    let at = served();
    let mut silent = Vec::new();
    for number in 0..MAX_CONNECTIONS {
        let mut client = TcpStream::connect(at).await.unwrap();
        if number % 2 == 0 {
            client.write_all(b"GET /metr").await.unwrap();
        }
        silent.push(client);
    }
    assert!(asked(at, GET).await.contains(" 200 OK"));
    for mut client in silent {
        let ended = client.read(&mut [0]).await;
        let closed = matches!(&ended, Ok(0))
            || matches!(&ended, Err(error) if error.kind() == io::ErrorKind::ConnectionReset);
        assert!(closed, "{ended:?}");
    }
}

#[tokio::test]
async fn a_socket_in_the_file_system_serves_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("run/site-a.metrics");
    let metrics = bound(MetricsListen::Path(path.clone()));
    let second = refused(MetricsListen::Path(path.clone())).to_string();
    assert!(second.contains("run/site-a.metrics is in use; name another path"), "{second}");
    answer_all(metrics);
    let answer = exchange(UnixStream::connect(&path).await.unwrap(), GET).await;
    assert!(answer.contains(" 200 OK") && answer.ends_with("# EOF\n"), "{answer}");
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = other.local_addr().unwrap();
    let error = refused(MetricsListen::Address(at));
    assert!(matches!(error, MetricsError::InUse(_)), "{error}");
    assert!(error.to_string().contains(&format!("another program listens at {at}")), "{error}");
}

#[test]
fn others_may_see_it_only_if_they_reach_it() {
    let (_directory, file) = site("");
    let mut config = config::load(&file).unwrap().config;
    for (listen, noted) in [
        (None, false),
        (Some("127.0.0.1:9586"), false),
        (Some("[::1]:9586"), false),
        (Some("0.0.0.0:9586"), true),
        (Some("192.0.2.1:9586"), true),
    ] {
        let listen = listen.map(|at| MetricsListen::Address(at.parse().unwrap()));
        config.metrics.listen = listen;
        assert_eq!(seen_by_others(&config).is_some(), noted, "{:?}", config.metrics);
    }
}
