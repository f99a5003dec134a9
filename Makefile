SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Tools are pinned in hack/tools. `go tool` builds each of them once per user and version, into Go's build cache. The three that
# have a module of their own would change each other's dependencies.
TOOL := go tool -modfile=hack/tools/go.mod
CONTROLLER_GEN := $(TOOL) controller-gen
BUF := go tool -modfile=hack/tools/buf/go.mod buf
GOLANGCI_LINT := go tool -modfile=hack/tools/golangci-lint/go.mod golangci-lint-kube-api-linter
GO_LICENSES := go tool -modfile=hack/tools/go-licenses/go.mod go-licenses
CLUSTER := go run ./hack/cluster

# What tests against a real API server need. The assignment is a command of its own: in front of another one, that would run too where
# the binaries could not be built.
ASSETS := KUBEBUILDER_ASSETS="$$($(CLUSTER) assets)" && export KUBEBUILDER_ASSETS KUBEBUILDER_CONTROLPLANE_START_TIMEOUT=3m &&

# Images: the architectures that `make images-all` builds for, and the tag. Both are set on the command line alone: many an environment
# has a VERSION of something else, and the demo and the tests want the tag dev.
ARCHES := amd64 arm64
VERSION := dev

# What hack/images.sh builds with, where the reason for the tag is.
RELEASED := -trimpath -tags=grpcnotrace

# The FIPS 140-3 cryptographic module of a FIPS build: the one that Go's lib/fips140/certified.txt names. It comes with Go.
FIPS ?= v1.0.0
FIPS_TESTED := ./test/fips ./internal/envelope/... ./internal/rootkey/... ./internal/seal/... ./internal/kms/... ./internal/certs/... ./sidecar/... ./client ./cmd/sidecar

# Licences that what is linked may have. Their texts travel in the images: hack/licenses. The licence of go-jmespath is
# Apache-2.0, by the short notice that refers to it, which the tool does not know.
LICENCES := Apache-2.0,BSD-2-Clause,BSD-3-Clause,ISC,MIT,MPL-2.0
LICENCES_KNOWN := github.com/jmespath/go-jmespath

# How long `make fuzz` spends on each fuzz target.
FUZZTIME ?= 30s

##@ General

.PHONY: help
help: ## Show this help.
	@awk 'BEGIN {FS = ":.*## "; printf "Usage: make TARGET\n"} \
		/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-zA-Z0-9_-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Try it

.PHONY: demo
demo: ## Bring a local Kubernetes up, install Datakeys and show what it does, step by step.
	go run ./hack/demo

.PHONY: demo-down
demo-down: cluster-down ## Take the demo, and its cluster, down.

.PHONY: cluster-up
cluster-up: ## Start the local Kubernetes (the first time it is built: about 10 minutes).
	$(CLUSTER) up

.PHONY: cluster-down
cluster-down: ## Stop the local Kubernetes and leave nothing of it behind.
	$(CLUSTER) down

##@ Build

.PHONY: build
build: ## Build the commands into bin/.
	CGO_ENABLED=0 go build $(RELEASED) -o bin/ ./cmd/...

.PHONY: build-fips
build-fips: ## Build the commands with Go's FIPS 140-3 module, on by default, into bin/fips/.
	GOFIPS140=$(FIPS) CGO_ENABLED=0 go build $(RELEASED) -o bin/fips/ ./cmd/...

.PHONY: images
images: ## Build the images for this machine's architecture as OCI archives in dist/.
	VERSION=$(VERSION) hack/images.sh

.PHONY: images-all
images-all: ## Build the images for every architecture (ARCHES).
	VERSION=$(VERSION) ARCHES="$(ARCHES)" hack/images.sh

.PHONY: images-fips
images-fips: ## Build the images with Go's FIPS 140-3 module, on by default, as OCI archives in dist/fips/.
	GOFIPS140=$(FIPS) VERSION=$(VERSION)-fips DIST=dist/fips hack/images.sh

##@ Change

.PHONY: generate
generate: ## Generate Go code: deep copies, protobuf and gRPC.
	$(CONTROLLER_GEN) object paths=./api/v1alpha1
	$(BUF) generate --config hack/tools/buf/buf.yaml --template hack/tools/buf/buf.gen.yaml

.PHONY: manifests
manifests: ## Generate CRDs and RBAC rules from Go markers, and copy them into the chart.
	$(CONTROLLER_GEN) crd paths=./api/v1alpha1 output:crd:dir=config/crd/bases
	$(CONTROLLER_GEN) rbac:roleName=datakeys-manager paths="{./controllers/...,./internal/...,./cmd/manager/...}" output:rbac:dir=config/rbac
	mkdir -p charts/datakeys/files/crds
	cp config/crd/bases/*.yaml charts/datakeys/files/crds/
	cp config/rbac/role.yaml charts/datakeys/files/role.yaml

.PHONY: fmt
fmt: ## Format the Go code.
	$(GOLANGCI_LINT) fmt

##@ Check

.PHONY: verify
verify: ## Everything that can be checked without running it; fails too if a generated file is out of date.
	hack/verify.sh

.PHONY: lint
lint: ## Run the linters.
	$(GOLANGCI_LINT) run
	$(GOLANGCI_LINT) run --config .golangci-kal.yml ./api/v1alpha1/...
	$(BUF) lint --config hack/tools/buf/buf.yaml

.PHONY: lint-selftest
lint-selftest: ## Break every import rule on purpose and see the linters report it.
	hack/lint-selftest.sh

.PHONY: licences
licences: ## Fail if something that is linked has a licence that is unknown or not allowed.
	@out=$$($(GO_LICENSES) check ./cmd/... ./hack/demo/reader --allowed_licenses=$(LICENCES) --ignore=$(LICENCES_KNOWN) 2>&1) || \
		{ grep -v '^[IW/]' <<<"$$out" >&2; echo "Allowed are $(LICENCES), see the Makefile." >&2; exit 1; }

.PHONY: vulncheck
vulncheck: ## Look for known vulnerabilities (asks the Go vulnerability database over the network).
	$(TOOL) govulncheck ./...

##@ Test

.PHONY: test
test: test-unit test-fips test-e2e ## Run all tests.

.PHONY: test-packages
test-packages: # Debian's packages that the tests need: a C compiler for the race detector, what clients are written in, OpenSSL and SoftHSM
	@command -v gcc >/dev/null || hack/apt.sh gcc libc6-dev
	@command -v node >/dev/null || hack/apt.sh nodejs
	@command -v python3 >/dev/null || hack/apt.sh python3
	@command -v javac >/dev/null || hack/apt.sh default-jdk-headless
	@command -v curl >/dev/null || hack/apt.sh curl
	@command -v openssl >/dev/null || hack/apt.sh openssl
	@command -v softhsm2-util >/dev/null || hack/apt.sh softhsm2
	@test -x /usr/bin/aws || hack/apt.sh awscli
	@test -d /usr/lib/python3/dist-packages/boto3 || hack/apt.sh python3-boto3
	@command -v npm >/dev/null || hack/apt.sh npm

# What tells the same stories of whole managers hundreds of times takes too long with the race detector; other tests have told it each.
LONG_STORIES := ^(TestLifecycleSurvivesEveryWrite|TestModel)$$

.PHONY: test-unit
test-unit: test-packages ## Run the unit tests and those against a real API server, with the race detector where that is bearable.
	$(ASSETS) go test -race -timeout 20m -skip '$(LONG_STORIES)' ./...
	$(ASSETS) go test -timeout 20m -run '$(LONG_STORIES)' ./cmd/manager

.PHONY: test-fips
test-fips: test-packages build-fips ## Start the commands of a FIPS build, and run the tests of what does cryptography with its module alone.
	$(ASSETS) GOFIPS140=$(FIPS) GODEBUG=fips140=only go test $(FIPS_TESTED)

.PHONY: test-e2e
test-e2e: test-packages images ## Run the tests of the local Kubernetes, then the end-to-end tests on one; these wait more than they work.
	go test -tags e2e -v -count=1 -p 1 -parallel 8 -timeout 40m ./hack/cluster ./test/e2e

.PHONY: bench
bench: ## Measure what applications get of a sidecar beside the least that it could cost, and its memory; about 5 minutes. ARGS are for hack/bench.
	CGO_ENABLED=0 go build $(RELEASED) -ldflags '-s -w' -o dist/sidecar-bench ./cmd/sidecar
	CGO_ENABLED=0 go build -o dist/bench ./hack/bench
	dist/bench -sidecar dist/sidecar-bench $(ARGS)

.PHONY: benchmarks
benchmarks: ## Run Go's benchmarks of all rooms.
	go test -run '^$$' -bench . -benchmem ./...

.PHONY: scale
scale: ## Measure the manager with 10,000 DataKeyRequests beside a bare client, and idle; about 20 minutes. ARGS are for hack/scale.
	CGO_ENABLED=0 go build $(RELEASED) -o dist/manager-scale ./cmd/manager
	$(ASSETS) go run ./hack/scale -manager dist/manager-scale $(ARGS)

.PHONY: measured
measured: images ## Measure revocation and coast on a local cluster, 50 pods side by side; about 25 minutes.
	go test -tags e2e,measured -v -count=1 -timeout 1h ./test/e2e -run '^(TestRevocation|TestCoast)$$'

.PHONY: soak
soak: images ## Use sidecars for an hour under mixed load with rotations; ARGS are for the test, such as "-soak 20m", the least in which a sidecar settles.
	go test -tags e2e,measured -v -count=1 -timeout 2h ./test/e2e -run '^TestSoak$$' $(ARGS)

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME.
	hack/fuzz.sh $(FUZZTIME)
