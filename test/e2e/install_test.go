//go:build e2e

package e2e

import (
	"context"
	"testing"
)

// TestHelmInstall runs everything against the Helm install. The search for leaks comes last: it looks through what the others
// left behind.
func TestHelmInstall(t *testing.T) {
	t.Run("pods", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T){
			"a Deployment reads its data key":     deploymentReadsItsDataKey,
			"a Job completes":                     jobCompletes,
			"a Job fails":                         jobFails,
			"a CronJob's Job completes":           cronJobCompletes,
			"a Deployment is rolled":              deploymentIsRolled,
			"a StatefulSet is rolled":             statefulSetIsRolled,
			"keys are there to the end":           keysAreThereToTheEnd,
			"a sidecar is killed":                 sidecarIsKilled,
			"generations come and go":             generationsComeAndGo,
			"others strip the sidecar":            othersStripTheSidecar,
			"others strip the sidecar last":       othersStripTheSidecarLast,
			"an init container reads a data key":  initContainerReadsADataKey,
			"pods of any user":                    podsOfAnyUser,
			"a key pair and an aad are read":      keyPairAndAADAreRead,
			"an unlabelled pod is untouched":      unlabelledPodIsUntouched,
			"a ServiceAccount without permission": serviceAccountWithoutPermission,
			"a data key that comes late":          dataKeyThatComesLate,
			"a key is disabled for a while":       keyIsDisabledForAWhile,
			"clients of the clouds":               clientsOfTheClouds,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t)
			})
		}
	})
	t.Run("the webhook is away", webhookIsAway)
	t.Run("the leader is killed while requests are made", leaderIsKilledWhileRequestsAreMade)
	t.Run("the root key is changed", rootKeyIsChanged)
	t.Run("what a sidecar costs", sidecarCost)
	t.Run("drills", func(t *testing.T) { // the last one ends every MasterKey of the cluster
		t.Run("a MasterKey is deleted", masterKeyIsDeleted)
		t.Run("a namespace is deleted", namespaceIsDeleted)
		t.Run("the custom resource definitions are deleted", definitionsAreDeleted)
	})
	t.Run("nothing leaked", nothingLeaked)
}

// TestKustomizeInstall installs with kubectl alone on an empty cluster, and reads the samples' data key.
func TestKustomizeInstall(t *testing.T) {
	const state = ".cluster-e2e-k" // kept short: sockets lie below it
	t.Cleanup(func() {
		if err := run(context.WithoutCancel(t.Context()), state, "go", "run", "./hack/cluster", "down"); err != nil {
			t.Error(err)
		}
	})
	for _, command := range [][]string{
		{"hack/install.sh", "up"},
		{"go", "run", "./hack/cluster", "kubectl", "apply", "-k", "config/default"},
		{"go", "run", "./hack/cluster", "kubectl", "-n", systemNamespace, "rollout", "status", "deployment/datakeys-manager", "--timeout=3m"},
		{"go", "run", "./hack/cluster", "kubectl", "apply", "-k", "config/samples"},
	} {
		if err := run(t.Context(), state, command[0], command[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	c, err := connect(state)
	if err != nil {
		t.Fatal(err)
	}
	c.waitPodReady(t, "demo", "reader")
	stdout, stderr, err := c.exec(t.Context(), "demo", "reader", "app", "/reader", "sha256", "orders")
	if err != nil || !hexSHA256.Match(stdout) {
		t.Errorf("the reader said %q, %q, error %v", stdout, stderr, err)
	}
}
