#!/bin/bash
# Before Envoy gets SIGTERM, which would cut every stream: takes it out of the Service, then waits
# until the last request has ended. `drain.sh SECONDS`: the longest wait.
#
# In bash alone, since Envoy's image has no curl.
set -eu

admin() { # METHOD PATH
	exec 3<>"/dev/tcp/127.0.0.1/${ADMIN_PORT:-9901}"
	printf '%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$1" "$2" >&3
	cat <&3
	exec 3>&-
}

active() {
	local name=http.gpt2serve.downstream_rq_active
	admin GET "/stats?filter=^$name\$" | tr -d '\r' | sed -n "s/^$name: //p"
}

# /ready answers 503 from now on, and connections are closed after the request that is running.
admin POST /healthcheck/fail >/dev/null
# Until every node knows that nothing is to be sent here, requests go on to come.
sleep "${SETTLE_SECONDS:-10}"
until [ "$(active)" = 0 ] || [ "$SECONDS" -ge "$1" ]; do
	sleep 0.5
done
