# Holdfast: "make demo" shows it, "make test" proves it. Every target installs
# what it needs from Debian's packages and the Go module proxy, once.
#
#   make demo              two sites on this machine: protect, lose, recover
#   make demo-loop N=20    the demonstration N times, stopping at no failure
#   make lifecycle N=5     out and home again with a real guest, N times, plain and with PostgreSQL
#   make test              vet, archtest, all tests, whole-system tests included
#   make build             bin/holdfast
#   make lint              vet and archtest alone
#   make bench             the figures of bench/
#   make soak              10 000 kills of what works with a vault, 10 000 damaged objects
#   make fuzz FUZZTIME=20s every fuzz target for that long
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := build
.PHONY: demo demo-loop lifecycle test build lint bench soak fuzz prepare clean

N ?= 20
FUZZTIME ?= 20s
TIMEOUT ?= 25m
export CGO_ENABLED ?= 0
# Sets PATH so that "go" is one that can build this, after installing what is
# missing. GOTOOLCHAIN=local: what is found is used, nothing else is fetched.
READY = GO=$$(.ci/prepare) && export PATH="$$(dirname "$$GO"):$$PATH" GOTOOLCHAIN=local
READY_GO = GO=$$(.ci/prepare go) && export PATH="$$(dirname "$$GO"):$$PATH" GOTOOLCHAIN=local

prepare:
	@$(READY)
	go version

build:
	@$(READY_GO)
	go build -trimpath -o bin/ ./cmd/...

demo:
	@$(READY)
	go build -trimpath -o bin/ ./cmd/...
	go run ./internal/systest/demo -binary bin/holdfast

demo-loop:
	@$(READY)
	go build -trimpath -o bin/ ./cmd/...
	go build -o bin/demo ./internal/systest/demo
	good=0
	for i in $$(seq $(N)); do
		echo "=== demo $$i of $(N)"
		if bin/demo -binary bin/holdfast; then good=$$((good + 1)); else echo "=== demo $$i FAILED"; fi
	done
	echo "$$good of $(N) demonstrations passed"
	[ "$$good" = "$(N)" ]

lint:
	@$(READY_GO)
	go vet ./... ./.ci/count
	go test -count=1 ./internal/archtest

lifecycle:
	@$(READY)
	HOLDFAST_SYSTEST=1 go test -count=$(N) -timeout 120m -run '^TestLifecycle(Postgres)?$$' -v ./internal/systest

test:
	@$(READY)
	go vet ./... ./.ci/count
	HOLDFAST_SYSTEST=1 go run ./.ci/count -timeout $(TIMEOUT) ./... ./.ci/count

bench:
	@$(READY)
	go build -trimpath -o bin/ ./cmd/...
	go run ./bench

soak:
	@$(READY_GO)
	go build -o bin/soak ./tools/soak
	bin/soak -damage 10000
	bin/soak -kills 10000

fuzz:
	@$(READY_GO)
	for package in $$(go list ./...); do
		dir=$$(go list -f '{{.Dir}}' $$package)
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$dir"/*_test.go 2>/dev/null | cut -c6-); do
			echo "=== $$package $$target"
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package
		done
	done

clean:
	rm -rf bin .demo
