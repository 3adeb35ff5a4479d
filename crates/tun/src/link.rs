//! Reads the properties of a device over netlink. Owner and number of queues are those of one instant. The
//! network namespace is that of the calling thread, no matter which `/sys` is mounted.

use std::io::{self, Read};

use socket2::{Domain, Protocol, Socket, Type};

/// A device of the TUN driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// The interface's number.
    pub(crate) index: i32,
    /// The type of hardware that the device emulates, `ARPHRD_*`.
    pub(crate) hardware: u16,
    /// The user who may attach without a capability.
    pub(crate) user: Option<u32>,
    /// The group whose members may attach without a capability.
    pub(crate) group: Option<u32>,
    /// Whether the device continues to exist when no descriptor is attached.
    pub(crate) persistent: bool,
    /// The number of attached descriptors, including detached queues; `None` for a single-queue device.
    pub(crate) queues: Option<u32>,
}

impl Link {
    /// Whether every user who can open the driver may attach.
    pub(crate) const fn is_anybodys(&self) -> bool {
        self.user.is_none() && self.group.is_none()
    }
}

/// Queries the interface `name`; `None` if it is not a device of the TUN driver.
///
/// # Errors
///
/// ENODEV if there is no interface of that name.
pub(crate) fn query(name: &str) -> io::Result<Option<Link>> {
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let mut asked = attribute(libc::IFLA_IFNAME, &name)?;
    asked.extend(attribute(libc::IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())?);
    let answer = exchange(libc::RTM_GETLINK, 0, &asked)?;
    read(&answer).ok_or_else(|| io::Error::other("the kernel's answer is malformed"))
}

/// Deletes the interface with this number, even if another process is attached to it.
pub(crate) fn delete(index: i32) -> io::Result<()> {
    exchange(libc::RTM_DELLINK, index, &[]).map(drop)
}

/// Sends one request and returns the answer without its header. An acknowledgement yields an empty answer.
fn exchange(kind: u16, index: i32, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let domain = Domain::from(libc::AF_NETLINK);
    let protocol = Protocol::from(libc::NETLINK_ROUTE);
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.send(&request(kind, index, attributes)?)?;
    let mut answer = vec![0; LARGEST_ANSWER];
    let len = socket.read(&mut answer)?;
    answer.truncate(len);
    answered(answer)
}

fn request(kind: u16, index: i32, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let acknowledge = if kind == libc::RTM_GETLINK { 0 } else { libc::NLM_F_ACK };
    let len = u32::try_from(HEADER + INTERFACE + attributes.len()).map_err(|_| does_not_fit())?;
    let flags = u16::try_from(libc::NLM_F_REQUEST | acknowledge).unwrap_or_default();
    let mut request = len.to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Sequence number and port in the header; family and type of the interface.
    request.extend([0; 12]);
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(attributes);
    Ok(request)
}

/// Removes the header, and turns an error message into an error.
fn answered(mut answer: Vec<u8>) -> io::Result<Vec<u8>> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let kind = number16(&answer, 4).ok_or_else(short)?;
    let body = answer.split_off(HEADER.min(answer.len()));
    if i32::from(kind) != libc::NLMSG_ERROR {
        return Ok(body);
    }
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)).ok_or_else(short)? {
        0 => Ok(Vec::new()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// Parses the answer about an interface. `None` if the answer is incomplete; `Some(None)` if the interface is
/// not a device of the TUN driver.
#[expect(clippy::option_option, reason = "two things may be missing")]
fn read(answer: &[u8]) -> Option<Option<Link>> {
    let hardware = number16(answer, 2)?;
    let index = i32::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    let properties = within(answer.get(INTERFACE..)?, libc::IFLA_LINKINFO)
        .filter(|info| within(info, libc::IFLA_INFO_KIND).is_some_and(|kind| kind == b"tun\0"))
        .and_then(|info| within(info, libc::IFLA_INFO_DATA));
    Some(properties.map(|properties| Link { index, hardware, ..driver_attributes(properties) }))
}

/// The attributes that `tun_fill_info` of tun.c writes; their numbers are in linux/if_link.h.
fn driver_attributes(properties: &[u8]) -> Link {
    let number = |kind| {
        let number = within(properties, kind)?.first_chunk()?;
        Some(u32::from_ne_bytes(*number))
    };
    Link {
        user: number(IFLA_TUN_OWNER),
        group: number(IFLA_TUN_GROUP),
        persistent: within(properties, IFLA_TUN_PERSIST).is_some_and(|value| value != [0]),
        queues: number(IFLA_TUN_NUM_QUEUES)
            .map(|queues| queues + number(IFLA_TUN_NUM_DISABLED_QUEUES).unwrap_or_default()),
        ..Link::default()
    }
}

/// Encodes an attribute. A value that is too long is an error: with a wrong length, the kernel would parse the
/// rest of the value as attributes.
fn attribute(kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let len = u16::try_from(ATTRIBUTE + value.len()).map_err(|_| does_not_fit())?;
    let mut attribute = len.to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    Ok(attribute)
}

fn does_not_fit() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it does not fit into a netlink message")
}

/// The value of the first attribute of this kind.
fn within(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(number16(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE..len)?;
        if number16(attributes, 2)? & ATTRIBUTE_KIND == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// `struct nlmsghdr`, `struct ifinfomsg` and `struct rtattr`.
const HEADER: usize = 16;
const INTERFACE: usize = 16;
const ATTRIBUTE: usize = 4;
/// A mask for the attribute's kind, without the two flag bits that describe the form of the value.
const ATTRIBUTE_KIND: u16 = 0x3fff;
/// The answer about an interface, without statistics, has about 1500 bytes.
const LARGEST_ANSWER: usize = 1 << 15;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_GROUP: u16 = 2;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: &[u8], properties: &[Vec<u8>]) -> Vec<u8> {
        let mut info = attribute(libc::IFLA_INFO_KIND, kind).unwrap();
        info.extend(attribute(libc::IFLA_INFO_DATA, &properties.concat()).unwrap());
        let mut answer = vec![0, 0, 0xfe, 0xff];
        answer[2..].copy_from_slice(&65534_u16.to_ne_bytes());
        answer.extend(7_i32.to_ne_bytes());
        answer.extend([0; 8]);
        answer.extend(attribute(libc::IFLA_IFNAME, b"tun0\0").unwrap());
        answer.extend(attribute(libc::IFLA_LINKINFO, &info).unwrap());
        answer
    }

    fn number(kind: u16, value: u32) -> Vec<u8> {
        attribute(kind, &value.to_ne_bytes()).unwrap()
    }

    #[test]
    fn a_device_of_several_queues() {
        let properties = [
            number(IFLA_TUN_OWNER, 12345),
            attribute(IFLA_TUN_PERSIST, &[1]).unwrap(),
            number(IFLA_TUN_NUM_QUEUES, 3),
            number(IFLA_TUN_NUM_DISABLED_QUEUES, 1),
        ];
        let seen = Link {
            index: 7,
            hardware: 65534,
            user: Some(12345),
            group: None,
            persistent: true,
            queues: Some(4),
        };
        assert_eq!(read(&answer(b"tun\0", &properties)), Some(Some(seen)));
        assert!(!seen.is_anybodys());
    }

    #[test]
    fn other_devices_and_half_an_answer() {
        let bridge = answer(b"bridge\0", &[number(8, 3)]);
        assert_eq!(read(&bridge), Some(None));
        let device = answer(b"tun\0", &[]);
        assert!(read(&device).unwrap().unwrap().is_anybodys());
        for len in 0..device.len() {
            // Even if attributes are missing, the parser does not read beyond the end.
            let _cut = read(&device[..len]);
        }
        assert_eq!(read(&device[..INTERFACE - 1]), None);
    }

    #[test]
    fn refusals_are_errors() {
        let refusal = |code: i32| {
            let kind = u16::try_from(libc::NLMSG_ERROR).unwrap().to_ne_bytes();
            let mut answer = vec![0; 4];
            answer.extend(kind);
            answer.resize(HEADER, 0);
            answer.extend(code.to_ne_bytes());
            answered(answer)
        };
        assert_eq!(refusal(0).unwrap(), Vec::<u8>::new());
        assert_eq!(refusal(-libc::ENODEV).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(answered(vec![0; 5]).is_err());
    }
}
