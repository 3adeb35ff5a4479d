//! Asks systemd over D-Bus whether our unit is being restarted, and which unit a process is. This implements only the
//! necessary part of D-Bus.

use std::io;
use std::time::Duration;

use nix::unistd::Uid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The system bus at the address in the D-Bus specification.
const BUS: &str = "/run/dbus/system_bus_socket";
/// How long to wait for the bus.
const PATIENCE: Duration = Duration::from_secs(1);
/// The maximum length of an answer.
const MAX_LEN: usize = 64 << 10;

const MANAGER: &str = "org.freedesktop.systemd1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The job of our unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// The unit is being stopped and will be started again.
    Restart,
    /// Any other job, or an unknown one.
    Other,
}

/// Whether systemd started this process as a unit of a type that reports when it is ready.
pub(crate) fn started_us() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The job of our unit; `None` if systemd did not start this process.
pub(crate) async fn job() -> Option<Job> {
    if !started_us() {
        return None;
    }
    Some(match timeout(PATIENCE, ask(BUS)).await {
        Ok(Ok(kind)) if is_restart(&kind) => Job::Restart,
        Ok(Ok(_stop)) => Job::Other,
        Ok(Err(error)) => {
            tracing::debug!(%error, "systemd does not report whether this is a restart");
            Job::Other
        }
        Err(_late) => Job::Other,
    })
}

/// The unit whose main process this is; `None` if it is no unit's, or there is no systemd.
pub(crate) async fn unit_of(process: u32) -> Option<String> {
    match timeout(PATIENCE, main_unit(BUS, process)).await {
        Ok(Ok(unit)) => unit,
        Ok(Err(error)) => {
            tracing::debug!(%error, "systemd does not report the unit of process {process}");
            None
        }
        Err(_late) => None,
    }
}

/// A process that a unit's process has started, such as a shell, is in the unit too.
async fn main_unit(bus: &str, process: u32) -> io::Result<Option<String>> {
    let mut bus = Bus::connect(bus).await?;
    let unit = bus.unit_of(process).await?;
    let id = bus.property(&unit, "org.freedesktop.systemd1.Unit", "Id").await?.text(4)?;
    let main = bus.property(&unit, "org.freedesktop.systemd1.Service", "MainPID").await?;
    Ok((main.number(4)? == process).then_some(id))
}

/// Whether a job of this type starts the unit again. While a unit is stopped for a restart, its job is still
/// called "restart".
fn is_restart(kind: &str) -> bool {
    ["restart", "try-restart", "reload-or-start", "start"].contains(&kind)
}

/// The type of our unit's job; empty if it has none.
async fn ask(bus: &str) -> io::Result<String> {
    let mut bus = Bus::connect(bus).await?;
    // The calling process.
    let unit = bus.unit_of(0).await?;
    let job = bus.property(&unit, "org.freedesktop.systemd1.Unit", "Job").await?;
    let (id, path) = (job.number(8)?, job.text(12)?);
    if id == 0 {
        return Ok(String::new());
    }
    bus.property(&path, "org.freedesktop.systemd1.Job", "JobType").await?.text(4)
}

struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
}

#[derive(Clone, Copy)]
struct Call<'a> {
    path: &'a str,
    interface: &'a str,
    member: &'a str,
}

impl Bus {
    async fn connect(path: &str) -> io::Result<Self> {
        let mut stream = BufReader::new(UnixStream::connect(path).await?);
        let uid: String =
            Uid::effective().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes()).await?;
        let mut line = String::new();
        (&mut stream).take(1024).read_line(&mut line).await?;
        if !line.starts_with("OK ") {
            return Err(io::Error::other("the bus does not know us"));
        }
        stream.write_all(b"BEGIN\r\n").await?;
        let mut bus = Self { stream, serial: 0 };
        let bus_itself = "org.freedesktop.DBus";
        let hello = Call { path: "/org/freedesktop/DBus", interface: bus_itself, member: "Hello" };
        bus.call(bus_itself, hello, "", &[]).await?;
        Ok(bus)
    }

    /// The object of the unit that this process belongs to.
    async fn unit_of(&mut self, process: u32) -> io::Result<String> {
        let by_pid = Call {
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "GetUnitByPID",
        };
        self.call(MANAGER, by_pid, "u", &process.to_le_bytes()).await?.text(0)
    }

    /// The value of a property, including its signature.
    async fn property(&mut self, path: &str, of: &str, name: &str) -> io::Result<Body> {
        let mut body = Writer::default();
        body.string(of);
        body.string(name);
        let get = Call { path, interface: PROPERTIES, member: "Get" };
        self.call(MANAGER, get, "ss", &body.0).await
    }

    /// Calls a method and returns the body of the answer; signals that arrive before it are ignored.
    async fn call(
        &mut self,
        destination: &str,
        call: Call<'_>,
        signature: &str,
        body: &[u8],
    ) -> io::Result<Body> {
        self.serial += 1;
        let message = message(self.serial, destination, call, signature, body);
        self.stream.write_all(&message).await?;
        loop {
            match self.receive().await? {
                (METHOD_RETURN, body) => return Ok(body),
                (ERROR, body) => {
                    return Err(io::Error::other(body.text(0).unwrap_or_default()));
                }
                _ => {}
            }
        }
    }

    async fn receive(&mut self) -> io::Result<(u8, Body)> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).await?;
        let big = head[0] == b'B';
        let fixed = Body { bytes: head.to_vec(), big };
        let (body, fields) = (fixed.number(4)? as usize, fixed.number(12)? as usize);
        let fields = fields.next_multiple_of(8);
        if body.max(fields) > MAX_LEN {
            return Err(strange());
        }
        let mut bytes = vec![0; fields + body];
        self.stream.read_exact(&mut bytes).await?;
        Ok((head[1], Body { bytes: bytes.split_off(fields), big }))
    }
}

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

fn message(
    serial: u32,
    destination: &str,
    call: Call<'_>,
    signature: &str,
    body: &[u8],
) -> Vec<u8> {
    let mut fields = Writer::default();
    for (code, kind, value) in [
        (1, b'o', call.path),
        (2, b's', call.interface),
        (3, b's', call.member),
        (6, b's', destination),
    ] {
        fields.pad(8);
        fields.0.extend([code, 1, kind, 0]);
        fields.string(value);
    }
    if !signature.is_empty() {
        fields.pad(8);
        fields.0.extend([8, 1, b'g', 0, u8::try_from(signature.len()).unwrap_or_default()]);
        fields.0.extend(signature.bytes().chain([0]));
    }
    let mut message = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    for number in [length(body), serial, length(&fields.0)] {
        message.0.extend(number.to_le_bytes());
    }
    message.0.extend(fields.0);
    message.pad(8);
    message.0.extend(body);
    message.0
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn pad(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn string(&mut self, text: &str) {
        self.pad(4);
        self.0.extend(length(text.as_bytes()).to_le_bytes());
        self.0.extend(text.bytes().chain([0]));
    }
}

/// The body of an answer.
struct Body {
    bytes: Vec<u8>,
    /// Whether numbers are big-endian.
    big: bool,
}

impl Body {
    fn number(&self, at: usize) -> io::Result<u32> {
        let bytes =
            *self.bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(strange)?;
        Ok(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn text(&self, at: usize) -> io::Result<String> {
        let length = self.number(at)? as usize;
        let text = self.bytes.get(at + 4..).and_then(|rest| rest.get(..length));
        String::from_utf8(text.ok_or_else(strange)?.to_vec()).map_err(|_| strange())
    }
}

fn strange() -> io::Error {
    io::Error::other("the bus answers in an unknown format")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// A bus that answers each call with the next of these bodies, after a signal.
    async fn answering(listener: UnixListener, bodies: Vec<Vec<u8>>) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.starts_with("\0AUTH EXTERNAL 3"), "{line}");
        stream.write_all(b"OK 1234\r\n").await.unwrap();
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "BEGIN\r\n");
        let mut bus = Bus { stream, serial: 0 };
        for body in bodies {
            assert_eq!(bus.receive().await.unwrap().0, METHOD_CALL);
            let call = Call { path: "/", interface: "i", member: "m" };
            for kind in [4, METHOD_RETURN] {
                let mut message = message(1, "d", call, "", &body);
                message[1] = kind;
                bus.stream.write_all(&message).await.unwrap();
            }
        }
    }

    fn text(text: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.string(text);
        body.0
    }

    fn variant(signature: &str, align: usize, value: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut body = Writer(vec![u8::try_from(signature.len()).unwrap()]);
        body.0.extend(signature.bytes().chain([0]));
        body.pad(align);
        value(&mut body);
        body.0
    }

    async fn asked(id: u32, kind: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        let job = variant("(uo)", 8, |body| {
            body.0.extend(id.to_le_bytes());
            body.string("/job/7");
        });
        let kind = variant("s", 4, |body| body.string(kind));
        let bodies = vec![text(":1.7"), text("/unit"), job, kind];
        let bus = tokio::spawn(answering(listener, bodies));
        let said = ask(path.to_str().unwrap()).await.unwrap();
        bus.abort();
        said
    }

    #[tokio::test]
    async fn a_job_has_a_type() {
        for (kind, restarts) in [("restart", true), ("stop", false)] {
            let said = asked(7, kind).await;
            assert_eq!((said.as_str(), is_restart(&said)), (kind, restarts));
        }
        assert_eq!(asked(0, "restart").await, "");
    }

    #[tokio::test]
    async fn only_the_main_process_is_the_unit() {
        for (main, expected) in [(7_u32, Some("vpnd@a.service".to_owned())), (8, None)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("bus");
            let listener = UnixListener::bind(&path).unwrap();
            let id = variant("s", 4, |body| body.string("vpnd@a.service"));
            let main = variant("u", 4, |body| body.0.extend(main.to_le_bytes()));
            let bodies = vec![text(":1.7"), text("/unit"), id, main];
            let bus = tokio::spawn(answering(listener, bodies));
            assert_eq!(main_unit(path.to_str().unwrap(), 7).await.unwrap(), expected);
            bus.abort();
        }
    }

    #[tokio::test]
    async fn whoever_is_not_a_service_asks_nobody() {
        assert_eq!(job().await, None);
    }

    /// If this system has a bus, it accepts our messages.
    #[tokio::test]
    async fn no_bus_is_no_answer() {
        assert!(ask("/nowhere").await.is_err());
    }
}
