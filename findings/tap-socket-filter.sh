#!/usr/bin/env bash
# A TAP device that stays keeps the socket filter that a program gave it (TUNATTACHFILTER). The next program
# that attaches *with* packet information (without IFF_NO_PI, which is the same bit as IFF_NOFILTER) has
# success from TUNSETIFF and the device's name, and is attached to nothing: every later call is EBADFD.
# TUNDETACHFILTER, from a descriptor that was attached with IFF_NO_PI, ends that.
#
# Seen on Linux 6.18.44, x86_64: what is printed below. In tun_attach() of drivers/net/tun.c the branch that
# gives the filter to the new descriptor leaves the function when that has succeeded.
# Needs root and python3; works in a network namespace of its own. Ends with 1 if the kernel does otherwise.
set -euo pipefail

uname -sr
exec unshare --net python3 - <<'PYTHON'
import ctypes, fcntl, os, struct, sys

TUNSETIFF, TUNSETPERSIST, TUNGETIFF = 0x400454CA, 0x400454CB, 0x800454D2
TUNATTACHFILTER, TUNDETACHFILTER = 0x401054D5, 0x401054D6
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000


def attach(flags):
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", flags))
    return tap


def state(tap):
    try:
        fcntl.ioctl(tap, TUNGETIFF, bytearray(40))
        return "attached"
    except OSError as error:
        return error.strerror


def tries():
    """Whether a program that attaches with, and without, packet information is attached."""
    for flags in (IFF_TAP, IFF_TAP | IFF_NO_PI):
        tap = attach(flags)
        yield state(tap)
        os.close(tap)


former = attach(IFF_TAP | IFF_NO_PI)
fcntl.ioctl(former, TUNSETPERSIST, 1)
# One instruction, "return all of it": a filter that lets every frame pass.
code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFFFFFF))
program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(code))
fcntl.ioctl(former, TUNATTACHFILTER, program)
os.close(former)
seen = {"with a filter left": list(tries())}
cleared = attach(IFF_TAP | IFF_NO_PI)
fcntl.ioctl(cleared, TUNDETACHFILTER, program)
os.close(cleared)
seen["after TUNDETACHFILTER"] = list(tries())
for when, (with_info, without) in seen.items():
    print(f"{when}: TUNSETIFF ok; with packet information {with_info}, without {without}")
expected = {
    "with a filter left": ["File descriptor in bad state", "attached"],
    "after TUNDETACHFILTER": ["attached", "attached"],
}
sys.exit(0 if seen == expected else 1)
PYTHON
