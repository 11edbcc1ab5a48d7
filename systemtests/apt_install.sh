#!/usr/bin/env bash
# Usage: apt_install.sh PACKAGE...
#
# Installs Debian packages as root, without starting the daemons that are in them: the tests run an
# engine and a Prometheus of their own, whose ports and networks must be free.
set -euo pipefail
policy=/usr/sbin/policy-rc.d # asked by packages before they start anything
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
