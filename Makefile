# make build    bin/quorate, one static binary
# make test     everything that must pass: format, vet, staticcheck, unit tests with the
#               race detector, and the tests against the real etcd; about ten minutes
# make unit     the quick part of it
# make sim      simulated clusters, a seed each
# make fuzz     each fuzz test for FUZZTIME
# make peers    build the real etcd, etcdctl, etcdutl and benchmark to test against

GO       ?= go
FUZZTIME ?= 30s

# Where the real etcd is looked for, and built if it is not there.
QUORATE_PEERS ?= $(CURDIR)/.cache/peers

# Modules under test/ that have tests. test/peers is only what builds the peers.
TEST_MODULES := $(filter-out test/peers,$(patsubst %/go.mod,%,$(wildcard test/go.mod test/*/go.mod)))

STATICCHECK = $(GO) tool -modfile=$(CURDIR)/tools/go.mod staticcheck

.PHONY: build test unit sim fmt vet staticcheck peers peer-tests fuzz clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/quorate ./cmd/quorate

test: fmt vet staticcheck unit sim peer-tests

# Without the peers: what compares with them is slow enough without the race detector.
unit:
	env -u QUORATE_PEERS $(GO) test -race -timeout 8m ./...

# Simulated clusters, as many as fit into about a minute: SEEDS=1000000 BUDGET=0 FROM=... for
# a long run by hand.
FROM   ?= 1
SEEDS  ?= 5000
BUDGET ?= 50s
sim:
	$(GO) test -timeout 0 -run 'TestReplay|TestSeeds|TestLeases|TestFew' ./internal/sim -from $(FROM) -seeds $(SEEDS) -budget $(BUDGET)

fmt:
	@out=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$out" ]; then echo "not formatted (run gofmt -w):"; echo "$$out"; exit 1; fi

vet:
	set -e; for m in . $(TEST_MODULES); do (cd $$m && $(GO) vet ./...); done

staticcheck:
	set -e; for m in . $(TEST_MODULES); do (cd $$m && $(STATICCHECK) ./...); done

peers:
	sh test/peers/build.sh "$(QUORATE_PEERS)"

# Go cannot know that the programs which these tests start have changed: no cached results.
# The hostile clients come last and alone, for they leave nothing of the machine to others.
peer-tests: export QUORATE_PEERS := $(QUORATE_PEERS)
peer-tests: build peers
	QUORATE_BIN=$(CURDIR)/bin/quorate $(GO) test -count 1 -run 'Against|TestEtcd' ./internal/ctl ./internal/mvcc
	set -e; for m in $(TEST_MODULES); do \
		(cd $$m && QUORATE_BIN=$(CURDIR)/bin/quorate $(GO) test -count 1 -timeout 10m $$($(GO) list ./... | grep -v /hostile)); \
	done
	cd test && QUORATE_BIN=$(CURDIR)/bin/quorate $(GO) test -count 1 -timeout 10m ./hostile

fuzz:
	set -e; for f in $$(git grep -lE '^func Fuzz' -- '*_test.go'); do \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$f); do \
			echo "$$name in $$f"; \
			(cd $$(dirname $$f) && $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) .); \
		done; \
	done

clean:
	rm -rf bin .cache
