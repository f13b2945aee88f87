#!/bin/sh
# bpclient as installation scripts use it. Run by test_client_shell.py with sh, bash and dash;
# bpclient is in PATH, BPBROKER says which broker.
set -eu

fail() { echo "FAILED: $*" >&2; exit 99; }
same() { [ "$1" = "$2" ] || fail "expected [$2], got [$1]"; }
code() { wanted=$1; shift; got=0; "$@" >"$OUT" 2>"$ERR" || got=$?; same "$got" "$wanted"; [ ! -s "$OUT" ] || fail "stdout of $*: $(cat "$OUT")"; }

OUT=$(mktemp) ERR=$(mktemp)
trap 'rm -f "$OUT" "$ERR"' EXIT

# A variable gets the value and nothing else.
X=$(bpclient ping --data hello)
same "$X" hello
X=$(bpclient service register --name plain --data value)
same "$X" value

# Names and data with everything that a shell or an option parser might stumble over.
NEWLINE='
'
# shellcheck disable=SC2016 # they are not to expand
for data in 'two words' "it's" 'say "hi"' '$HOME `id` \n' '-x' '--name' '--cols a b' '-' '@/etc/passwd' 'é ü 漢字 🚀' \
    "line 1${NEWLINE}line 2" '*' '' ' ' '%s' '!' '[1, 2]' '5' 'null' '{"broken'; do
    bpclient service replace --name awkward --data-raw "$data" >/dev/null
    same "$(bpclient service get --name awkward)" "$data"
done
for name in 'two words' "it's" 'a/b' '-x' '--name' '--help' 'é漢' 'a=b' '%41' 'a?b&c#d' '"q"' '*' '@file' '~'; do
    bpclient service replace "--name=$name" --data "of $name" >/dev/null
    same "$(bpclient service get --name "$name")" "of $name"
    bpclient service delete --name "$name"
done

# Here-documents, files, pipes.
bpclient service replace --name doc --data - >/dev/null <<HERE
{"host": "$(uname -n)", "quote": "'\"", "list": [1, 2]}
HERE
same "$(bpclient service get --name doc --field quote)" "'\""
same "$(bpclient service get --name doc --field list)" '[1, 2]'
printf 'no newline at the end' >"$OUT"
bpclient service replace --name file --data "@$OUT" >/dev/null
same "$(bpclient service get --name file)" 'no newline at the end'
printf 'piped' | bpclient service replace --name pipe --data - >/dev/null
same "$(bpclient service get --name pipe)" piped

# Whatever is in an entry, eval assigns it and runs nothing.
rm -f "$OUT.evil"
bpclient service replace --name evil --data "{\"PATH\": \"/evil\", \"x\": \"'; touch $OUT.evil; '\", \"a b\": \"\$(touch $OUT.evil)\"}" >/dev/null
eval "$(bpclient -f shell service get --name evil)"
# shellcheck disable=SC2154 # eval has set them
same "$bp_x" "'; touch $OUT.evil; '"
# shellcheck disable=SC2154,SC2016 # as above
same "$bp_a_b" "\$(touch $OUT.evil)"
[ ! -e "$OUT.evil" ] || fail 'a value was run'
same "$(bpclient service get --name plain)" value

# A loop over names.
for number in 1 2 3; do bpclient service register --name "node-$number" --data "$number" >/dev/null; done
NAMES=''
for name in $(bpclient service list --prefix node- --keys); do NAMES="$NAMES $name"; done
same "$NAMES" ' node-1 node-2 node-3'
eval "$(bpclient -f shell service list --prefix node-)"
# shellcheck disable=SC2154 # eval has set them
same "$bp_count $bp_2_name $bp_2_str" '3 node-2 2'
same "$(bpclient -f csv-noheader service list --prefix node- --cols name _str | tr '\n' ' ')" 'node-1,1 node-2,2 node-3,3 '

# Failures: nothing on stdout, the code says what.
code 3 bpclient service get --name nope
code 4 bpclient service register --name plain --data other
code 2 bpclient service get
code 6 bpclient -b 127.0.0.1:1 --retry 0 ping
code 124 bpclient service get --name nope --wait 100ms
bpclient service get --name nope 2>/dev/null || X=default
same "$X" default
if bpclient service get --name nope >/dev/null 2>&1; then fail 'a missing entry is no success'; fi

# Running it all again does no harm.
bpclient service register --name me --data '{"a": 1}' --idempotent >/dev/null
bpclient service register --name me --data '{"a": 1}' --idempotent >/dev/null
bpclient service delete --name me
bpclient service delete --name me

# One writer of two wins; the loser knows.
TAG=$(bpclient service replace --name cas --data 1 --etag)
bpclient service replace --name cas --data 2 --if-match "$TAG" >/dev/null
code 4 bpclient service replace --name cas --data 3 --if-match "$TAG"
same "$(bpclient service get --name cas)" 2
echo 'all is well'
