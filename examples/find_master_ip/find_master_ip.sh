#!/bin/sh
# Run on every server of a database cluster while it is being installed.
#
#   find_master_ip.sh CLUSTER master      on the master: makes itself known
#   find_master_ip.sh CLUSTER replica     on a replica: prints the master's IP address
#
# Nothing needs to be configured: the broker is found on the local network by
# the entry CLUSTER, which was registered there once:
#
#   bpclient -b localhost service register --name CLUSTER --data '{}' --idempotent
#
# Where the broker wants a key, set BPBROKER_TOKEN to what `bpbroker token` printed:
# then only the right broker is believed, and only it gets the key. Servers may boot
# in any order: each step waits for what it needs, for at most five minutes (WAIT).
set -eu

usage() { echo "usage: $0 CLUSTER master|replica" >&2; exit 2; }
[ $# -eq 2 ] || usage
cluster=$1
role=$2
case $role in master | replica) ;; *) usage ;; esac
wait=${WAIT:-5m}

# PORT, not BPBROKER_PORT: Kubernetes sets that, to something else, for a service called bpbroker.
BPBROKER=$(bpclient --port "${PORT:-20443}" discover --name "$cluster" --wait "$wait")
export BPBROKER

case $role in
    master)
        # --own-ip: this server's address as the broker sees it, as ip in the data.
        # --idempotent: running the installation again on the same server is no error.
        bpclient service register --name "$cluster-master" --own-ip --data '{"role": "master"}' --idempotent \
            --cols ip --format csv-noheader
        ;;
    replica)
        ip=$(bpclient service get --name "$cluster-master" --wait "$wait" --field ip)
        # A link-local address means nothing without the interface, which is the one that leads to the broker.
        case $ip in
            fe80:*) zone=${BPBROKER#*%}; [ "$zone" = "$BPBROKER" ] || ip="$ip%${zone%%]*}" ;;
        esac
        echo "$ip"
        ;;
esac
