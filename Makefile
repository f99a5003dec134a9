SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Tools are pinned by hack/tools: `go tool` builds each of them once per user and version, into Go's build cache.
TOOL := go tool -modfile=hack/tools/go.mod
CONTROLLER_GEN := $(TOOL) controller-gen
KUSTOMIZE := $(TOOL) kustomize
BUF := go tool -modfile=hack/tools/buf/go.mod buf
CLUSTER := go run ./hack/cluster

##@ General

.PHONY: help
help: ## Show this help.
	@awk 'BEGIN {FS = ":.*## "; printf "Usage: make \033[36mTARGET\033[0m\n"} \
		/^##@ / {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
		/^[a-zA-Z0-9_-]+:.*## / {printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Generated files

.PHONY: generate
generate: ## Generate Go code: deep copies, apply configurations, protobuf and gRPC.
	$(CONTROLLER_GEN) object applyconfiguration paths=./api/v1alpha1
	$(BUF) generate --config hack/tools/buf/buf.yaml --template hack/tools/buf/buf.gen.yaml

.PHONY: manifests
manifests: ## Generate CRDs and RBAC rules from the Go markers.
	$(CONTROLLER_GEN) crd paths=./api/v1alpha1 output:crd:dir=config/crd/bases
