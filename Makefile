# What people type. "make help" explains it; test/run.sh and test/setup.sh hold the longer words.

SHELL := /bin/bash
BIN := $(CURDIR)/bin
TOOLS := $(CURDIR)/.tools
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
# Without grpc's page of traces nothing links html/template and what it initialises: half a millisecond of each call.
GO := CGO_ENABLED=0 GOFLAGS=-tags=grpcnotrace go
# Of Go's two collectors the one that touches less memory per kind of object: 90 KB of every shim.
SHIM_GC := nogreenteagc
PROGRAMS := gantry gantryd gantry-shim gantry-plugin
PREFIX ?= /usr/local
TEST_TIMEOUT ?= 30m
# Integration tests share two cores; each still has directories and namespaces of its own.
E2E_PARALLEL ?= 2

BUF := $(TOOLS)/buf-1.72.0
GOFUMPT := $(TOOLS)/gofumpt-0.12.0
GOLANGCI := $(TOOLS)/golangci-lint-2.15.0
EASYJSON := $(TOOLS)/easyjson-0.9.2

.DEFAULT_GOAL := help
.PHONY: help root run stop build install uninstall test unit laws escape e2e crash vm bench check format proto generate tools setup clean

help: ## explain the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## build, start a daemon of its own, run a container from the embedded image
	@test/run.sh start "$(BIN)"

stop: ## stop what "make run" started and leave the host as it was
	@test/run.sh stop "$(BIN)"

build: ## build the programs into bin/
	@mkdir -p $(BIN)
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/gantry ./ctl
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/gantryd ./daemon
	GOEXPERIMENT=$(SHIM_GC) $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/gantry-shim ./shim
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/gantry-plugin ./plugins/builtin

install: build ## install the programs, the configuration and the systemd unit below PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/etc/gantry $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 0755 $(addprefix $(BIN)/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin/
	test -e $(DESTDIR)/etc/gantry/gantryd.toml || install -m 0644 docs/gantryd.toml $(DESTDIR)/etc/gantry/gantryd.toml
	sed 's#@PREFIX@#$(PREFIX)#' docs/gantryd.service | install -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/gantryd.service
	test -n "$(DESTDIR)" || getent group gantry >/dev/null || groupadd --system gantry

uninstall: ## remove what install put there; /var/lib/gantry, the configuration and the group stay
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/lib/systemd/system/gantryd.service

# Without root most tests would be left out, and the rest would look like all of them.
root:
	@[ "$$(id -u)" = 0 ] || { echo "\"make $(or $(MAKECMDGOALS),$@)\" makes namespaces, mounts and containers: run it as root" >&2; exit 1; }

test: root setup build unit e2e crash vm ## everything that must pass: unit, laws, suites, escape, e2e, crash, vm

unit: root setup laws escape ## unit tests, laws, driver suites and escape (as root)
	go test -count=1 -timeout $(TEST_TIMEOUT) $$(go list ./... | grep -v "/test/")
	go test -count=1 -timeout $(TEST_TIMEOUT) -tags fault ./internal/meta ./internal/fault ./services/images
	go test -count=1 -timeout $(TEST_TIMEOUT) -tags insecure ./internal/insecure

laws: ## who may import whom, package comments, the store's drawing
	go test -count=1 ./test

escape: root setup ## attack: the known holes of container runtimes, with each guard and without it (as root)
	go test -count=1 -timeout $(TEST_TIMEOUT) ./test/escape
	go test -count=1 -timeout $(TEST_TIMEOUT) -tags insecure ./test/escape
	go test -count=1 -timeout $(TEST_TIMEOUT) -tags insecure -run TestProcfsOfLabels ./shim/runtime/native

e2e: root setup build ## the real programs, end to end (as root)
	go test -count=1 -timeout $(TEST_TIMEOUT) -parallel $(E2E_PARALLEL) ./test/harness ./test/e2e/...

crash: root setup build ## kill -9 of daemon, plugin and shim, everywhere (as root)
	go test -count=1 -timeout $(TEST_TIMEOUT) ./test/crash/...

vm: root setup build ## the oldest supported kernel under QEMU: cgroup v2 and v1
	go test -count=1 -timeout $(TEST_TIMEOUT) ./test/vm/...

bench: root setup build ## measure beside docker, podman, ctr, crun and runc, whichever are installed
	test/setup.sh bench
	go test -tags bench -count=1 -timeout 60m -v ./test/bench $(BENCH)

check: tools ## format, lint, protos, generated code, vet, changelog
	@test/check.sh "$(TOOLS)" "$(BUF)" "$(GOFUMPT)" "$(GOLANGCI)" "$(EASYJSON)"

format: tools ## format Go and protos
	$(GOFUMPT) -w $$(git ls-files '*.go' ':!:*.pb.go' ':!:*_easyjson.go')
	$(BUF) format -w proto

proto: tools ## generate Go from the protos
	PATH="$(TOOLS):$$PATH" $(BUF) generate

generate: proto ## that, and the readers of config.json
	shim/spec/generate.sh "$(EASYJSON)" shim/spec/spec_easyjson.go

setup: ## install the Debian packages that the tests use, where they are missing
	@test/setup.sh test

tools: $(BUF) $(GOFUMPT) $(GOLANGCI) $(EASYJSON) $(TOOLS)/protoc-gen-go ## build the tools of "make check" into .tools/

# Version in the name: a new version is a new file, and an old tool is never taken for it.
$(BUF):
	GOBIN=$(TOOLS) go install github.com/bufbuild/buf/cmd/buf@v1.72.0 && mv $(TOOLS)/buf $@
$(GOFUMPT):
	GOBIN=$(TOOLS) go install mvdan.cc/gofumpt@v0.12.0 && mv $(TOOLS)/gofumpt $@
$(GOLANGCI):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 && mv $(TOOLS)/golangci-lint $@
$(EASYJSON):
	GOBIN=$(TOOLS) go install github.com/mailru/easyjson/easyjson@v0.9.2 && mv $(TOOLS)/easyjson $@
$(TOOLS)/protoc-gen-go:
	GOBIN=$(TOOLS) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
	GOBIN=$(TOOLS) go install github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc@v1.2.10
	GOBIN=$(TOOLS) go install github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto@v0.6.1-0.20240319094008-0393e58bdf10
	GOBIN=$(TOOLS) go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12

clean: ## remove what was built
	rm -rf $(BIN)
