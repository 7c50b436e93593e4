#!/bin/sh
# Builds the real etcd, etcdctl, etcdutl and etcd's benchmark tool, static, at the versions
# that go.mod beside this script pins, into the directory given (default: .cache/peers at
# the root of the repository, which git ignores). A binary that is there already, and is not
# older than go.mod, is kept. The tests look for them in $QUORATE_PEERS, then in the default.
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
dir=${1:-${QUORATE_PEERS:-$here/../../.cache/peers}}
mkdir -p "$dir"
dir=$(CDPATH= cd -- "$dir" && pwd)

build() { # build NAME PACKAGE
	if [ -x "$dir/$1" ] && [ ! "$here/go.mod" -nt "$dir/$1" ]; then
		return
	fi
	echo "building $1 into $dir" >&2
	# Into a name of its own and then renamed: a build that is cut short leaves nothing
	# that a later run would take for the real thing.
	(cd "$here" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$dir/.$1.$$" "$2")
	mv "$dir/.$1.$$" "$dir/$1"
}

build etcd go.etcd.io/etcd/server/v3
build etcdctl go.etcd.io/etcd/etcdctl/v3
build etcdutl go.etcd.io/etcd/etcdutl/v3
build benchmark go.etcd.io/etcd/v3/tools/benchmark
