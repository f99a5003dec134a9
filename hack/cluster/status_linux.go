package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// stateFile, in the run folder, names the cluster's folder.
const stateFile = "state"

// A check is one thing that must hold for the cluster to be usable.
type check struct {
	what  string
	check func(context.Context) error
}

// checks are made from the host, over the node's address. A node that was Ready before since does not count.
func (p plan) checks(api *apiClient, since time.Time) []check {
	return []check{
		{"the API server", func(ctx context.Context) error { return api.get(ctx, "/readyz", nil) }},
		{"the node to be Ready", func(ctx context.Context) error { return nodeReady(ctx, api, since) }},
		// Without it no pod is admitted to the namespace.
		{"ServiceAccount default", func(ctx context.Context) error {
			return api.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
		}},
		{"the scheduler", p.probe("https", 10259, "/healthz")},
		{"the controller manager", p.probe("https", 10257, "/healthz")},
		{"kube-proxy", p.probe("http", proxyPort, "/healthz")},
		{"CoreDNS", p.probe("http", dnsReadyPort, "/ready")},
	}
}

// probe asks a health port of the node, which says nothing worth a proof of who answers.
func (p plan) probe(scheme string, port uint16, path string) func(context.Context) error {
	client := &http.Client{Timeout: apiTimeout, Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // certificates made in memory at each start
		DisableKeepAlives: true,
	}}
	url := scheme + "://" + netip.AddrPortFrom(p.node, port).String() + path
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s", url, response.Status)
		}
		return nil
	}
}

func nodeReady(ctx context.Context, api *apiClient, since time.Time) error {
	var node struct {
		Status struct {
			Conditions []struct {
				Type, Status, Message string
				LastHeartbeatTime     time.Time
			}
		}
	}
	if err := api.get(ctx, "/api/v1/nodes/"+nodeName, &node); err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type != "Ready" {
			continue
		}
		if c.Status != "True" {
			return fmt.Errorf("the node is not Ready: %s", c.Message)
		}
		if c.LastHeartbeatTime.Before(since.Truncate(time.Second)) {
			return errors.New("the kubelet has not reported since it started")
		}
		return nil
	}
	return errors.New("the node has no condition Ready yet")
}

// status tells what runs, and fails unless all does.
func (n *node) status(ctx context.Context) error {
	alive := 0
	for _, name := range daemonNames {
		r, ok := readRecord(n.records(), name)
		if !ok {
			_, _ = fmt.Fprintf(n.out, "%-24s does not run\n", name)
			continue
		}
		alive++
		_, _ = fmt.Fprintf(n.out, "%-24s runs, process %d, log %s\n", name, r.PID, filepath.Join(n.state, "log", name+".log"))
	}
	n.tellOthers()
	if alive == 0 {
		_, _ = fmt.Fprintln(n.out, "the cluster does not run; start it with: go run ./hack/cluster up")
		return exitError(1)
	}
	problems, err := n.problems(ctx)
	if err != nil {
		return err
	}
	for _, problem := range problems {
		_, _ = fmt.Fprintln(n.out, problem)
	}
	if alive < len(daemonNames) || len(problems) > 0 {
		_, _ = fmt.Fprintln(n.out, "the cluster is not whole; mend it with: go run ./hack/cluster up")
		return exitError(1)
	}
	_, _ = fmt.Fprintf(n.out, "the cluster runs\nexport KUBECONFIG=%s\n", n.kubeconfig())
	return nil
}

func (n *node) problems(ctx context.Context) ([]string, error) {
	if n.folderGone() {
		return []string{"the folder of the cluster is gone"}, nil
	}
	w, whole, err := openNetwork(n.id)
	if err != nil {
		return nil, err
	}
	if !whole {
		return []string{"the network of the node is not whole"}, nil
	}
	ca, err := os.ReadFile(filepath.Join(n.state, "pki", "ca.crt"))
	if err != nil {
		return nil, err
	}
	admin, err := readCredential(filepath.Join(n.state, "pki"), "admin-client")
	if err != nil {
		return nil, err
	}
	p := plan{state: n.state, run: n.run, id: n.id, node: w.node}
	api, err := newAPIClient(p.server(), ca, admin)
	if err != nil {
		return nil, err
	}
	var problems []string
	for _, c := range p.checks(api, time.Time{}) {
		if err := c.check(ctx); err != nil {
			problems = append(problems, fmt.Sprintf("waiting for %s: %v", c.what, err))
		}
	}
	return problems, nil
}

// otherClusters lists the folders of the machine's other clusters of this kind: one may be left from a checkout that has
// been deleted.
func (n *node) otherClusters() []string {
	dirs, _ := filepath.Glob(runPrefix + "*")
	var states []string
	for _, dir := range dirs {
		state, err := os.ReadFile(filepath.Join(dir, stateFile))
		if err == nil && dir != n.run {
			states = append(states, strings.TrimSpace(string(state)))
		}
	}
	return states
}

func (n *node) tellOthers() {
	for _, state := range n.otherClusters() {
		_, _ = fmt.Fprintf(n.out, "another cluster on this machine: %s; to end it: go run ./hack/cluster -state %[1]s down\n", state)
	}
}
