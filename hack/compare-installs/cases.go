package main

import (
	"errors"
	"fmt"
	"strings"
)

// chartCase is one rendering of the chart with values of its own.
type chartCase struct {
	arguments []string
	// contains stands in what is rendered, or in the error where refused is true.
	contains []string
	// lacks stands nowhere in it.
	lacks   []string
	refused bool
}

var chartCases = map[string]chartCase{
	"images of another registry reach the manager and the pods": {
		arguments: []string{"--set=image.manager.repository=r.example/m,image.sidecar.repository=r.example/s,image.sidecar.tag=v9,image.pullPolicy=Always"},
		contains:  []string{"image: r.example/m:dev", "--sidecar-image=r.example/s:v9", "--sidecar-image-pull-policy=Always"},
	},
	"images are pinned by a digest after the tag": {
		arguments: []string{"--set=image.manager.tag=v9@sha256:01,image.sidecar.tag=v9@sha256:02"},
		contains:  []string{"image: datakeys/manager:v9@sha256:01\n", "--sidecar-image=datakeys/sidecar:v9@sha256:02\n"},
	},
	"a digest without a tag is refused": {
		arguments: []string{"--set=image.manager.tag=@sha256:01"},
		contains:  []string{"/image/manager/tag"},
		refused:   true,
	},
	"everything follows the release's namespace": {
		arguments: []string{"--namespace=elsewhere"},
		contains:  []string{"namespace: elsewhere", "- elsewhere"},
		lacks:     []string{"datakeys-system"},
	},
	"the manager meets the restricted Pod Security Standard": {
		contains: []string{
			"runAsNonRoot: true", "runAsUser: 65532", "type: RuntimeDefault", "allowPrivilegeEscalation: false", "readOnlyRootFilesystem: true",
			"drop:\n                - ALL",
		},
		lacks: []string{"privileged:", "hostNetwork", "hostPath", "add:"},
	},
	"no definition needs the format library of CEL, which Kubernetes takes in new rules from 1.32 on": {
		lacks: []string{"format.dns", "format.label", "format.named", "format.qualified", "format.u", "format.byte", "format.date"},
	},
	"no role has a right by wildcard": {
		lacks: []string{"verbs: [\"*\"]", "resources: [\"*\"]", "apiGroups: [\"*\"]", "- '*'", "- \"*\""},
	},
	"the network policy can be left out": {
		arguments: []string{"--set=networkPolicy.enabled=false"},
		lacks:     []string{"kind: NetworkPolicy"},
	},
	"the roles for people need not extend the cluster's": {
		arguments: []string{"--set=aggregateRoles=false"},
		contains:  []string{"name: datakeys-admin", "name: datakeys-user"},
		lacks:     []string{"aggregate-to-"},
	},
	"a ServiceMonitor comes with its Service and its opening in the network policy": {
		arguments: []string{"--set=metrics.serviceMonitor.enabled=true", "--set-json=metrics.scrapeFrom=[{\"namespaceSelector\":{}}]"},
		contains:  []string{"kind: ServiceMonitor", "name: datakeys-metrics", "port: 8080"},
	},
	"Prometheus takes the label namespace of a metric for that of the key, not for the manager's": {
		arguments: []string{"--set=metrics.serviceMonitor.enabled=true", "--set-json=metrics.scrapeFrom=[{\"namespaceSelector\":{}}]"},
		contains:  []string{"honorLabels: true"},
	},
	"a ServiceMonitor that the network policy would shut out is refused": {
		arguments: []string{"--set=metrics.serviceMonitor.enabled=true"},
		contains:  []string{"metrics.scrapeFrom"},
		refused:   true,
	},
	"a root key without a scheme is refused": {
		arguments: []string{"--set=rootKey.uri=/etc/root.key"},
		contains:  []string{"rootKey"},
		refused:   true,
	},
	"a root key with credentials is refused": {
		arguments: []string{"--set=rootKey.uri=transit://me:secret@vault.example:8200/transit/datakeys"},
		contains:  []string{"rootKey"},
		refused:   true,
	},
	"a change of the root key reaches the manager, with what the new one needs": {
		arguments: []string{
			"--set=rootKey.uri=transit://vault.example:8200/transit/datakeys,rootKey.previousUri=secret://datakeys-root-key,sealingKeyRotationInterval=720h",
			"--set-json=extraEnv=[{\"name\":\"VAULT_TOKEN_FILE\",\"value\":\"/vault/token\"}]",
			"--set-json=extraVolumes=[{\"name\":\"vault\",\"emptyDir\":{}}]",
			"--set-json=extraVolumeMounts=[{\"name\":\"vault\",\"mountPath\":\"/vault\"}]",
			"--set-json=extraContainers=[{\"name\":\"agent\",\"image\":\"r.example/agent\"}]",
			"--set-json=networkPolicy.extraEgress=[{\"ports\":[{\"port\":8200}]}]",
		},
		contains: []string{
			"name: DATAKEYS_ROOT_KEY\n              value: \"transit://vault.example:8200/transit/datakeys\"",
			"name: DATAKEYS_PREVIOUS_ROOT_KEY\n              value: \"secret://datakeys-root-key\"",
			"--sealing-key-rotation-interval=720h", "name: VAULT_TOKEN_FILE", "mountPath: /vault", "emptyDir: {}", "image: r.example/agent", "port: 8200",
		},
	},
	"a previous root key whose value is empty is none": {
		arguments: []string{"--set=rootKey.previousUri=null"},
		contains:  []string{"name: DATAKEYS_ROOT_KEY\n"},
		lacks:     []string{"DATAKEYS_PREVIOUS_ROOT_KEY"},
	},
	"limits of pods and resources of sidecars reach the manager": {
		arguments: []string{
			"--set=podLimits.callsPerSecond=1000000,podLimits.refusalsPerSecond=5",
			"--set=sidecar.resources.requests.cpu=0.01,sidecar.resources.requests.memory=32Mi,sidecar.resources.limits.cpu=1,sidecar.resources.limits.memory=48Mi",
		},
		contains: []string{
			"--pod-calls-per-second=1000000\n", "--pod-refusals-per-second=5\n", "--sidecar-cpu-request=0.01\n", "--sidecar-cpu-limit=1\n",
			"--sidecar-memory-request=32Mi\n", "--sidecar-memory-limit=48Mi\n",
		},
	},
	"leases reach the manager": {
		arguments: []string{"--set=leases.duration=5s,leases.coastTime=0s"},
		contains:  []string{"--lease-duration=5s\n", "--coast-time=0s\n"},
	},
	"the longest leases reach the manager": {
		arguments: []string{"--set=leases.duration=5m,leases.coastTime=24h"},
		contains:  []string{"--lease-duration=5m\n", "--coast-time=24h\n"},
	},
	"a lease that the manager refuses is refused": {
		arguments: []string{"--set=leases.duration=4s"},
		contains:  []string{"duration"},
		refused:   true,
	},
	"a coast time that the manager refuses is refused": {
		arguments: []string{"--set=leases.coastTime=25h"},
		contains:  []string{"coastTime"},
		refused:   true,
	},
	"the rate of rewraps reaches the manager": {
		arguments: []string{"--set=rewrapsPerSecond=100000"},
		contains:  []string{"--rewraps-per-second=100000\n"},
	},
	"a rate of rewraps at which nothing is wrapped anew is refused": {
		arguments: []string{"--set=rewrapsPerSecond=0"},
		contains:  []string{"rewrapsPerSecond"},
		refused:   true,
	},
	"a rotation interval that the manager refuses is refused": {
		arguments: []string{"--set=sealingKeyRotationInterval=30m"},
		contains:  []string{"sealingKeyRotationInterval"},
		refused:   true,
	},
	"a limit that would hold back an honest pod is refused": {
		arguments: []string{"--set=podLimits.callsPerSecond=10"},
		contains:  []string{"callsPerSecond"},
		refused:   true,
	},
	"memory that is no quantity is refused": {
		arguments: []string{"--set=sidecar.resources.limits.memory=plenty"},
		contains:  []string{"memory"},
		refused:   true,
	},
	"a resource that a sidecar does not have is refused": {
		arguments: []string{"--set=sidecar.resources.limits.gpu=1"},
		contains:  []string{"gpu"},
		refused:   true,
	},
	"a name that is no value is refused": {
		arguments: []string{"--set=replicaCount=3"},
		contains:  []string{"replicaCount"},
		refused:   true,
	},
	"a chart that this one is a dependency of may call its condition enabled": {
		arguments: []string{"--set=enabled=true"},
	},
	"a network policy without the peers of the key service, which would let in everybody, is refused": {
		arguments: []string{"--set=networkPolicy.keyServiceFrom=null"},
		contains:  []string{"keyServiceFrom"},
		refused:   true,
	},
	"a network policy without the API server's ports, which would let everything out, is refused": {
		arguments: []string{"--set=networkPolicy.apiServerPorts=null"},
		contains:  []string{"apiServerPorts"},
		refused:   true,
	},
	"a network policy is not left out by an empty value": {
		arguments: []string{"--set=networkPolicy.enabled=null"},
		contains:  []string{"enabled"},
		refused:   true,
	},
	"a part of the values that is empty is refused by its name": {
		arguments: []string{"--set=leases=null,metrics.serviceMonitor=null,sealingKeyRotationInterval=null"},
		contains:  []string{"'leases'", "'serviceMonitor'", "'sealingKeyRotationInterval'"},
		refused:   true,
	},
	"no replica at all is refused": {
		arguments: []string{"--set=replicas=0"},
		contains:  []string{"replicas"},
		refused:   true,
	},
	"kube-system stays out of the webhook's reach": {
		arguments: []string{"--set=webhook.excludedNamespaces={mine}"},
		contains:  []string{"excludedNamespaces"},
		refused:   true,
	},
	"nothing secret is made in a template": {
		lacks: []string{"kind: Secret\n", "caBundle:", "BEGIN ", "tls.key"},
	},
	"the definitions are kept on uninstall": {
		contains: []string{"helm.sh/resource-policy: keep"},
	},
}

// check compares one rendering with what the case says of it.
func (c chartCase) check(rendered []byte, failure error) error {
	text := string(rendered)
	switch {
	case c.refused && failure == nil:
		return errors.New("it was rendered, want an error")
	case c.refused:
		text = failure.Error()
	case failure != nil:
		return failure
	}
	for _, want := range c.contains {
		if !strings.Contains(text, want) {
			return fmt.Errorf("%q is missing", want)
		}
	}
	for _, unwanted := range c.lacks {
		if strings.Contains(text, unwanted) {
			return fmt.Errorf("%q is there", unwanted)
		}
	}
	return nil
}
