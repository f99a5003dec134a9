package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	nodeName       = "node"
	clusterDomain  = "cluster.local"
	podNetwork     = "10.88.0.0/16" // pods and Services are inside the namespace: every cluster has the same
	serviceNetwork = "10.96.0.0/16"
	dnsAddress     = "10.96.0.10"
	dnsReadyPort   = 8181
	proxyPort      = 10256
)

// serviceAddress is the first of the Service network, which the Service "kubernetes" gets.
var serviceAddress = netip.MustParsePrefix(serviceNetwork).Addr().Next()

// What the node runs, by the names of the binaries.
const (
	etcd              = "etcd"
	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
	proxy             = "kube-proxy"
	kubelet           = "kubelet"
	containerd        = "containerd"
	containerdShim    = "containerd-shim-runc-v2"
	coreDNS           = "coredns"
)

// daemonNames are in the order in which they start.
var daemonNames = []string{containerd, etcd, apiServer, controllerManager, scheduler, kubelet, proxy, coreDNS}

// nodeBinaries are in the order in which they are built.
var nodeBinaries = []string{
	etcd, apiServer, "kubectl", containerd, containerdShim, "ctr",
	controllerManager, scheduler, kubelet, proxy, coreDNS, "pause",
}

// A plan is everything that decides how the components run.
type plan struct {
	state, run string // folders
	id         string
	node       netip.Addr
	binaries   map[string]string
	cniDir     string
	runc       string
	pauseImage string
	pki        pkiFiles
}

// pkiFiles are the credentials of the components, made by newPKI.
type pkiFiles struct {
	dir     string
	ca      []byte
	users   map[string]credential // by component, and "admin"
	servers map[string]credential // by component
	saKey   string                // path of the key that signs ServiceAccount tokens
	saPub   string
}

// newPKI makes sure of all certificates that the node needs.
func newPKI(a *authority, node netip.Addr) (pkiFiles, error) {
	const masters = "system:masters"
	p := pkiFiles{dir: a.dir, ca: a.pem, users: map[string]credential{}, servers: map[string]credential{}}
	for name, s := range map[string]subject{
		"admin":           {name: "admin", organization: masters},
		apiServer:         {name: "kube-apiserver-kubelet-client", organization: masters},
		controllerManager: {name: "system:kube-controller-manager"},
		scheduler:         {name: "system:kube-scheduler"},
		proxy:             {name: "system:kube-proxy"},
		kubelet:           {name: "system:node:" + nodeName, organization: "system:nodes"},
		coreDNS:           {name: "coredns", organization: masters}, // there is no built-in role that fits
	} {
		s.file = name + "-client"
		c, err := a.leaf(s)
		if err != nil {
			return pkiFiles{}, err
		}
		p.users[name] = c
	}
	for name, s := range map[string]subject{
		apiServer: {
			dnsNames: []string{
				"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc." + clusterDomain,
			},
			addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), serviceAddress, node},
		},
		kubelet: {dnsNames: []string{nodeName}, addresses: []netip.Addr{node}},
	} {
		s.file, s.name = name, name
		c, err := a.leaf(s)
		if err != nil {
			return pkiFiles{}, err
		}
		p.servers[name] = c
	}
	var err error
	p.saKey, p.saPub, err = a.signingKey()
	return p, err
}

func (p pkiFiles) certFile(name string) string { return filepath.Join(p.dir, name+".crt") }
func (p pkiFiles) keyFile(name string) string  { return filepath.Join(p.dir, name+".key") }

func (p plan) server() string            { return "https://" + netip.AddrPortFrom(p.node, 6443).String() }
func (p plan) criSocket() string         { return filepath.Join(p.run, "containerd.sock") }
func (p plan) volumePlugins() string     { return filepath.Join(p.state, "kubelet", "volume-plugins") }
func (p plan) config(name string) string { return filepath.Join(p.state, "config", name) }
func (p plan) userConfig(name string) string {
	return filepath.Join(p.pki.dir, name+".kubeconfig")
}

// files are all configuration files of the node and their content.
func (p plan) files() (map[string][]byte, error) {
	files := map[string][]byte{
		filepath.Join(p.state, "kubeconfig"): kubeconfig(p.server(), p.pki.ca, "admin", p.pki.users["admin"]),
		p.config("containerd.toml"):          p.containerdConfig(),
		p.config("Corefile"):                 p.corefile(),
		// Pods that do not use the cluster's DNS have none: the node has no way out.
		p.config("resolv.conf"): []byte("# no name server\n"),
	}
	for name, c := range p.pki.users {
		files[p.userConfig(name)] = kubeconfig(p.server(), p.pki.ca, name, c)
	}
	for path, object := range map[string]any{
		p.config("kubelet.json"):                                p.kubeletConfig(),
		p.config("kube-proxy.json"):                             p.proxyConfig(),
		filepath.Join(p.state, "cni", "net.d", "pods.conflist"): p.cniConfig(),
	} {
		content, err := json.MarshalIndent(object, "", "  ")
		if err != nil {
			return nil, err
		}
		files[path] = append(content, '\n')
	}
	return files, nil
}

// daemons are the node's components; files must be what files returns.
func (p plan) daemons(files map[string][]byte) map[string]daemon {
	daemons := map[string]daemon{}
	add := func(name string, inputs []byte, args ...string) {
		daemons[name] = daemon{
			name:   name,
			args:   append([]string{p.binaries[name]}, args...),
			inputs: inputs,
			log:    filepath.Join(p.state, "log", name+".log"),
		}
	}
	pki := p.pki
	add(etcd, nil,
		"--name=etcd",
		"--data-dir="+filepath.Join(p.state, "etcd"),
		"--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--unsafe-no-fsync")
	add(apiServer, join(pki.ca, pki.users[apiServer].cert, pki.servers[apiServer].cert),
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address="+p.node.String(),
		"--secure-port=6443",
		"--allow-privileged",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--client-ca-file="+pki.certFile("ca"),
		"--tls-cert-file="+pki.certFile(apiServer),
		"--tls-private-key-file="+pki.keyFile(apiServer),
		"--cert-dir="+pki.dir,
		"--kubelet-client-certificate="+pki.certFile(apiServer+"-client"),
		"--kubelet-client-key="+pki.keyFile(apiServer+"-client"),
		"--kubelet-certificate-authority="+pki.certFile("ca"),
		// By name it would ask a DNS that does not know the node.
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+pki.saPub,
		"--service-account-signing-key-file="+pki.saKey,
		"--service-cluster-ip-range="+serviceNetwork)
	add(controllerManager, files[p.userConfig(controllerManager)],
		"--kubeconfig="+p.userConfig(controllerManager),
		"--root-ca-file="+pki.certFile("ca"),
		"--service-account-private-key-file="+pki.saKey,
		"--use-service-account-credentials",
		"--flex-volume-plugin-dir="+p.volumePlugins(),
		"--cluster-signing-cert-file="+pki.certFile("ca"),
		"--cluster-signing-key-file="+pki.keyFile("ca"),
		// With the default of 20 requests a second its controllers take 4 s longer to start.
		"--kube-api-qps=100", "--kube-api-burst=200",
		"--leader-elect=false")
	add(scheduler, files[p.userConfig(scheduler)],
		"--kubeconfig="+p.userConfig(scheduler),
		"--leader-elect=false")
	add(containerd, files[p.config("containerd.toml")],
		"--config="+p.config("containerd.toml"))
	add(kubelet, join(files[p.config("kubelet.json")], files[p.userConfig(kubelet)], pki.servers[kubelet].cert),
		"--config="+p.config("kubelet.json"),
		"--kubeconfig="+p.userConfig(kubelet),
		"--root-dir="+filepath.Join(p.state, "kubelet"),
		"--cert-dir="+pki.dir,
		"--hostname-override="+nodeName,
		"--node-ip="+p.node.String())
	add(proxy, join(files[p.config("kube-proxy.json")], files[p.userConfig(proxy)]),
		"--config="+p.config("kube-proxy.json"))
	add(coreDNS, join(files[p.config("Corefile")], files[p.userConfig(coreDNS)]),
		"-conf="+p.config("Corefile"))
	return daemons
}

func join(parts ...[]byte) []byte {
	var all []byte
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

// snapshotter is how containerd stacks image layers: by overlays, but where the state lies on one already, as it does
// in many containers, by copies.
func (p plan) snapshotter() string {
	var s unix.Statfs_t
	if unix.Statfs(p.state, &s) == nil && s.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return "overlayfs"
}

func (p plan) containerdConfig() []byte {
	q := strconv.Quote // a TOML string takes the same escapes for what a path may hold
	return fmt.Appendf(nil, `version = 3
root = %[1]s
state = %[2]s
# Plugins of node resources and their socket in a folder that all containerds of the machine share.
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
  address = %[3]s

[plugins.'io.containerd.internal.v1.opt']
  path = %[4]s

[plugins.'io.containerd.cri.v1.images']
  snapshotter = %[5]s
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = %[6]s

[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE, as in many virtual machines and containers, runc may not lower the score below the caller's.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[7]s]
    conf_dir = %[8]s
    use_internal_loopback = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    runtime_path = %[9]s
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = %[10]s
      Root = %[11]s
`,
		q(filepath.Join(p.state, "containerd")), q(filepath.Join(p.run, "containerd")), q(p.criSocket()),
		q(filepath.Join(p.state, "containerd", "opt")), q(p.snapshotter()), q(p.pauseImage), q(p.cniDir),
		q(filepath.Join(p.state, "cni", "net.d")), q(p.binaries[containerdShim]), q(p.runc),
		q(filepath.Join(p.run, "runc")))
}

// corefile names its file from the folder that daemons run in: blanks and quotation marks of that folder's path have a meaning
// of their own here.
func (p plan) corefile() []byte {
	return fmt.Appendf(nil, `%[1]s:53 in-addr.arpa:53 {
  bind %[2]s
  errors
  ready %[2]s:%[3]d
  kubernetes %[1]s in-addr.arpa {
    kubeconfig %[4]s datakeys
  }
}
# The node has no way out: a name outside the cluster does not exist, which callers learn at once.
.:53 {
  bind %[2]s
  errors
  template IN ANY {
    rcode NXDOMAIN
  }
}
`, clusterDomain, p.node, dnsReadyPort, filepath.Join("pki", coreDNS+".kubeconfig"))
}

func (p plan) kubeletConfig() any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": p.pki.certFile("ca")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"tlsCertFile":              p.pki.certFile(kubelet),
		"tlsPrivateKeyFile":        p.pki.keyFile(kubelet),
		"containerRuntimeEndpoint": "unix://" + p.criSocket(),
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + p.cgroup().name,
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"clusterDNS":               []string{dnsAddress},
		"clusterDomain":            clusterDomain,
		"resolvConf":               p.config("resolv.conf"),
		"podLogsDir":               filepath.Join(p.state, podLogs),
		"volumePluginDir":          p.volumePlugins(),
		// The disk is the machine's: how full others made it is no reason to evict pods or to delete images, which
		// could not be pulled again.
		"evictionHard":                map[string]any{"memory.available": "50Mi", "nodefs.available": "100Mi", "imagefs.available": "100Mi"},
		"imageGCHighThresholdPercent": 100,
		// How often a pod is looked at without cause, and so how soon a changed Secret reaches its volume: 1 min by
		// default. How pods start does not depend on it.
		"syncFrequency": "10s",
	}
}

func (p plan) proxyConfig() any {
	return map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "iptables",
		"clientConnection":   map[string]any{"kubeconfig": p.userConfig(proxy)},
		"clusterCIDR":        podNetwork,
		"detectLocalMode":    "ClusterCIDR",
		"hostnameOverride":   nodeName,
		"healthzBindAddress": netip.AddrPortFrom(p.node, proxyPort).String(),
		// The limits of connection tracking are the machine's.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0},
	}
}

// cniConfig joins each pod to the node by a link of its own: unlike on a bridge, all that pods send each other is
// routed, and so passes the rules of kube-proxy without br_netfilter, which a kernel may lack.
func (p plan) cniConfig() any {
	return map[string]any{
		"cniVersion": "1.0.0",
		"name":       p.cniNetwork(),
		"plugins": []any{
			map[string]any{
				"type":   "ptp",
				"ipMasq": true, // so that the host can answer pods
				"ipam": map[string]any{
					"type":    "host-local",
					"dataDir": filepath.Join(p.state, "cni", "addresses"),
					"ranges":  []any{[]any{map[string]any{"subnet": podNetwork}}},
					"routes":  []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	}
}

func (p plan) cniNetwork() string { return "datakeys-" + p.id }
func (p plan) cgroup() cgroupTree { return cgroupTree{name: "datakeys-" + p.id} }

// dnsService is the Service of the cluster's DNS and where it leads: CoreDNS is no pod, but a process of the node.
func (p plan) dnsService() map[string]any {
	metadata := func(labels map[string]any) map[string]any {
		return map[string]any{"name": "kube-dns", "namespace": "kube-system", "labels": labels}
	}
	ports := func() []any {
		return []any{
			map[string]any{"name": "dns", "port": 53, "protocol": "UDP"},
			map[string]any{"name": "dns-tcp", "port": 53, "protocol": "TCP"},
		}
	}
	return map[string]any{
		"/api/v1/namespaces/kube-system/services/kube-dns": map[string]any{
			"apiVersion": "v1", "kind": "Service",
			"metadata": metadata(map[string]any{"k8s-app": "kube-dns"}),
			"spec":     map[string]any{"clusterIP": dnsAddress, "ports": ports()},
		},
		"/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns": map[string]any{
			"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
			"metadata":    metadata(map[string]any{"kubernetes.io/service-name": "kube-dns"}),
			"addressType": "IPv4",
			"endpoints":   []any{map[string]any{"addresses": []string{p.node.String()}}},
			"ports":       ports(),
		},
	}
}
