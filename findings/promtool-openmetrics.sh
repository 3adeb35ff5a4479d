#!/usr/bin/env bash
# `promtool check metrics` refuses valid OpenMetrics: it reads the text format that came before it. A line
# "# TYPE build info" ends it with "unknown metric type", and so does "stateset". The same program reads the same text
# as `promtool tsdb create-blocks-from openmetrics` (which wants timestamps), and Prometheus itself scrapes it. So an
# exporter that serves OpenMetrics by default and is checked with promtool has to offer the older format too.
#
# Seen with prometheus 2.42.0 of Debian 12: what is printed below. Unpacks the package in a temporary folder. Ends with
# 1 if promtool does otherwise.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq 'prometheus=2.42.0*'
ls ./*.deb
dpkg -x ./*.deb unpacked
promtool=unpacked/usr/bin/promtool
cat >metrics <<'METRICS'
# HELP build Which build runs.
# TYPE build info
build_info{version="1"} 1 1700000000
# EOF
METRICS

status=0
"$promtool" check metrics <metrics 2>said || status=$?
echo "check metrics: $status, $(grep -o 'unknown metric type.*' said || true)"
"$promtool" tsdb create-blocks-from openmetrics metrics blocks >/dev/null
echo "create-blocks-from openmetrics: $?"
[ "$status" = 1 ] && grep -q 'unknown metric type "info"' said
