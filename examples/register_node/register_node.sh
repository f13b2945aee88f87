#!/bin/sh
# Registers this server with data about it, and waits until the whole cluster is there.
#
#   register_node.sh CLUSTER NODE COUNT
#
# Prints the names of the nodes when there are COUNT of them. The broker is found
# by the entry CLUSTER, as in ../find_master_ip. May be run again at any time: an
# entry that is there is updated, keys that others have put into it are kept.
set -eu

[ $# -eq 3 ] || { echo "usage: $0 CLUSTER NODE COUNT" >&2; exit 2; }
cluster=$1
node=$2
count=$3
wait=${WAIT:-5m}

# PORT, not BPBROKER_PORT: Kubernetes sets that, to something else, for a service called bpbroker.
BPBROKER=$(bpclient --port "${PORT:-20443}" discover --name "$cluster" --wait "$wait")
export BPBROKER

# Data goes through a here-document: nothing in it has to be quoted for the command line.
bpclient service update --name "$cluster/$node" --own-ip --json --data - >/dev/null <<HERE
{
    "system": "$(uname -s)",
    "kernel": "$(uname -r)",
    "cpus": $(getconf _NPROCESSORS_ONLN)
}
HERE

bpclient service wait --prefix "$cluster/" --count "$count" --timeout "$wait"
