#!/usr/bin/env bash
# A service with DynamicUser=yes cannot use the system's bus of Debian 12: dbus-daemon authenticates it ("OK"), and
# closes the connection at its first message. A service with a user of the system can, and so can root.
#
# dbus-daemon looks up the groups of whoever connects. systemd starts it with SYSTEMD_NSS_DYNAMIC_BYPASS=1, so that the
# lookup never waits for systemd; with that, nss-systemd does not answer for dynamic users, and dbus-daemon takes the
# user for unknown. That libnss-systemd is installed, and `getent passwd` in a shell knows the user, changes nothing.
# So a sandboxed service cannot ask the manager whether it is being stopped or restarted; `ExecStop=+...`, which is
# root, can.
#
# Seen with systemd 252.39-1~deb12u2, dbus 1.14.10-1~deb12u1 and libnss-systemd of the same version.
# Needs root, debootstrap and systemd-nspawn, some 300 MB and three minutes. Ends with 1 if the programs do otherwise.
set -euo pipefail

root=$(mktemp -d)
machine=
stop() {
    [ -z "$machine" ] || kill -KILL "$machine" 2>/dev/null || true
    sleep 1
    rm -rf --one-file-system "$root"
}
trap stop EXIT

debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,libnss-systemd bookworm "$root" >/dev/null
chroot "$root" dpkg-query -W systemd dbus libnss-systemd

systemd-nspawn --quiet --directory="$root" --boot --register=no --keep-unit --private-network --console=pipe \
    >/dev/null 2>&1 </dev/null &
nspawn=$!
for _ in $(seq 50); do
    machine=$(pgrep --parent "$nspawn" || true)
    [ -z "$machine" ] || [ ! -S "/proc/$machine/root/run/dbus/system_bus_socket" ] || break
    sleep 0.2
done
inside() { nsenter --target "$machine" --all timeout 60 "$@"; }
inside systemctl is-system-running --wait >/dev/null || true

# asks AS: what `busctl` says when it is run as this user, the first words of it.
asks() {
    inside systemd-run --quiet --wait --pipe --property="$1" busctl --system status 2>&1 | head -n 1 || true
}

known=$(asks User=nobody)
dynamic=$(asks DynamicUser=yes)
printf 'User=nobody:     %s\nDynamicUser=yes: %s\n' "$known" "$dynamic"
[[ $known == BusAddress=* && $dynamic == *"Transport endpoint is not connected" ]]
