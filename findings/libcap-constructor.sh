#!/usr/bin/env bash
# Loading libcap.so.2 makes system calls before any of its functions is called: its constructor looks for the
# highest capability with prctl(PR_CAPBSET_READ). glibc loads libcap together with NSS modules, such as
# libnss-mymachines, in the middle of getaddrinfo(), when a name is found neither in the files nor before them. So a
# thread whose seccomp filter was made from a trace of successful lookups is stopped by the first name that does not
# exist, on hosts that have such a module.
#
# Seen with libcap2 2.66 of Debian 12: what is printed below. Unpacks the package in a temporary folder; needs
# python3 and strace. Ends with 1 if the library does otherwise.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq 'libcap2=1:2.66*'
ls ./*.deb
dpkg -x ./*.deb unpacked
library=$(find unpacked -name 'libcap.so.2')
strace -e trace=prctl -o trace python3 -c "import ctypes, sys; ctypes.CDLL(sys.argv[1])" "$library"
grep 'PR_CAPBSET_READ' trace | head -3
grep -q 'prctl(PR_CAPBSET_READ' trace || { echo "no system call while it is loaded"; exit 1; }
