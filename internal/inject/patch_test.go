package inject

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

func TestPatchRefuses(t *testing.T) {
	const copied = ` is a name of the injected sidecar, and what has it here was not injected by this installation; rename it, or, if it ` +
		`comes from a copy of an injected pod, remove it`
	const wayOut = `; remove it, or leave the container out of the annotation datakeys.io/containers`
	for name, test := range map[string]struct {
		change func(*corev1.Pod)
		want   string
	}{
		"a container of the sidecar's name": {
			func(p *corev1.Pod) { p.Spec.Containers[0].Name = "datakeys" },
			`spec.containers[0].name: Invalid value: "datakeys":` + copied,
		},
		"an init container of the sidecar's name": {
			func(p *corev1.Pod) { p.Spec.InitContainers[0].Name = "datakeys" },
			`spec.initContainers[0].name: Invalid value: "datakeys":` + copied,
		},
		"the sidecar of another installation": {
			func(p *corev1.Pod) {
				sidecar := testSidecar(true)
				sidecar.KeyService = "datakeys-key-service.elsewhere.svc:8443"
				ours := sidecar.container(&p.Spec, &Request{DataKeys: []string{"orders"}, Wait: true})
				p.Spec.InitContainers = []corev1.Container{ours}
			},
			`spec.initContainers[0].name: Invalid value: "datakeys":` + copied,
		},
		"the sidecar with other data keys": {
			func(p *corev1.Pod) {
				sidecar := testSidecar(true)
				ours := sidecar.container(&p.Spec, &Request{DataKeys: []string{"others"}, Wait: true})
				p.Spec.InitContainers = []corev1.Container{ours}
			},
			`spec.initContainers[0].name: Invalid value: "datakeys":` + copied,
		},
		"the sidecar as an init container that ends": {
			func(p *corev1.Pod) {
				sidecar := testSidecar(true)
				ours := sidecar.container(&p.Spec, &Request{DataKeys: []string{"orders"}, Wait: true})
				ours.RestartPolicy = nil
				p.Spec.InitContainers = []corev1.Container{ours}
			},
			`spec.initContainers[0].restartPolicy: Required value: another admission webhook or client, built with a library from before native ` +
				`sidecars (Kubernetes 1.28), has removed restartPolicy: Always from the injected sidecar, and the pod would wait for it to end ` +
				`for ever: upgrade it, or let it leave this pod alone`,
		},
		"a volume of one of our names": {
			func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: "datakeys-key-0"}} },
			`spec.volumes[0].name: Invalid value: "datakeys-key-0":` + copied,
		},
		"another volume where the socket goes": {
			func(p *corev1.Pod) {
				p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "run", MountPath: "/run/datakeys/"}}
			},
			`spec.containers[0].volumeMounts[0].mountPath: Invalid value: "/run/datakeys/": is where the sidecar's socket is mounted` + wayOut,
		},
		"another volume where the socket goes, by a relative path": {
			func(p *corev1.Pod) {
				p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "run", MountPath: "run/datakeys"}}
			},
			`spec.containers[0].volumeMounts[0].mountPath: Invalid value: "run/datakeys": is where the sidecar's socket is mounted` + wayOut,
		},
		"another volume inside the socket's directory": {
			func(p *corev1.Pod) {
				p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "run", MountPath: "/run//datakeys/certs"}}
			},
			`spec.containers[0].volumeMounts[0].mountPath: Invalid value: "/run//datakeys/certs": is in the directory of the sidecar's socket, which is mounted read-only` + wayOut,
		},
		"the socket's volume mounted for writing": {
			func(p *corev1.Pod) {
				p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "datakeys-socket", MountPath: "/run/datakeys"}}
			},
			`spec.containers[0].volumeMounts[0].mountPath: Invalid value: "/run/datakeys": is where the sidecar's socket is mounted` + wayOut,
		},
		"a variable of ours with another value": {
			func(p *corev1.Pod) {
				p.Spec.InitContainers[0].Env = []corev1.EnvVar{{Name: "DATAKEYS_SOCKET", Value: "/tmp/socket"}}
			},
			`spec.initContainers[0].env[0]: Invalid value: "DATAKEYS_SOCKET": is the variable that holds the path of the sidecar's socket, ` +
				`/run/datakeys/datakeys.sock` + wayOut,
		},
		"a static pod": {
			func(p *corev1.Pod) { p.Annotations[corev1.MirrorPodAnnotationKey] = "hash" },
			`metadata.annotations[kubernetes.io/config.mirror]: Forbidden: a static pod has neither Secrets nor a token, and so cannot have ` +
				`data keys; run it as a DaemonSet, or remove the label datakeys.io/inject`,
		},
		"a Windows pod": {
			func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} },
			`spec.os: Forbidden: the sidecar runs on Linux only; remove the label datakeys.io/inject from a Windows pod`,
		},
		"a pod for Windows nodes": {
			func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"kubernetes.io/os": "windows"} },
			`spec.os: Forbidden: the sidecar runs on Linux only; remove the label datakeys.io/inject from a Windows pod`,
		},
		"a pod with options for Windows": {
			func(p *corev1.Pod) {
				p.Spec.SecurityContext = &corev1.PodSecurityContext{WindowsOptions: &corev1.WindowsSecurityContextOptions{}}
			},
			`spec.os: Forbidden: the sidecar runs on Linux only; remove the label datakeys.io/inject from a Windows pod`,
		},
		"a pod on the node's network and resolver": {
			func(p *corev1.Pod) { p.Spec.HostNetwork, p.Spec.DNSPolicy = true, corev1.DNSClusterFirst },
			`spec.dnsPolicy: Invalid value: "ClusterFirst": must be ClusterFirstWithHostNet with hostNetwork: the sidecar finds the key ` +
				`service by its Service's name`,
		},
		"a pod on the node's resolver": {
			func(p *corev1.Pod) { p.Spec.DNSPolicy = corev1.DNSDefault },
			`spec.dnsPolicy: Invalid value: "Default": must be ClusterFirst, or None with a dnsConfig that finds Services: the sidecar finds ` +
				`the key service by its Service's name`,
		},
		"a loopback port on the node's network": {
			func(p *corev1.Pod) {
				p.Annotations[v1alpha1.AnnotationLoopbackPort] = "8200"
				p.Spec.HostNetwork, p.Spec.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet
			},
			`metadata.annotations[datakeys.io/loopback-port]: Forbidden: a pod with hostNetwork has the loopback addresses of its node, where ` +
				`every process could connect; use the socket`,
		},
		"a loopback port that a container has": {
			func(p *corev1.Pod) {
				p.Annotations[v1alpha1.AnnotationLoopbackPort] = "8200"
				p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080}, {ContainerPort: 8200, Protocol: corev1.ProtocolTCP}}
			},
			`spec.containers[0].ports[1].containerPort: Invalid value: 8200: is the port of the annotation datakeys.io/loopback-port, on which ` +
				`the sidecar listens: name another one there`,
		},
		"a loopback port that an init container has": {
			func(p *corev1.Pod) {
				p.Annotations[v1alpha1.AnnotationLoopbackPort] = "8200"
				p.Spec.InitContainers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8200}}
			},
			`spec.initContainers[0].ports[0].containerPort: Invalid value: 8200: is the port of the annotation datakeys.io/loopback-port, on ` +
				`which the sidecar listens: name another one there`,
		},
		"another endpoint than the loopback port": {
			func(p *corev1.Pod) {
				p.Annotations[v1alpha1.AnnotationLoopbackPort] = "8200"
				p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "AWS_ENDPOINT_URL_KMS", Value: "https://kms.example"}}
			},
			`spec.containers[0].env[0]: Invalid value: "AWS_ENDPOINT_URL_KMS": is the variable that holds the address of the sidecar's loopback ` +
				`port, http://127.0.0.1:8200` + wayOut,
		},
		"the sidecar with another loopback port": {
			func(p *corev1.Pod) {
				p.Annotations[v1alpha1.AnnotationLoopbackPort] = "8200"
				sidecar := testSidecar(true)
				ours := sidecar.container(&p.Spec, &Request{DataKeys: []string{"orders"}, Wait: true, LoopbackPort: 8201})
				p.Spec.InitContainers = []corev1.Container{ours}
			},
			`spec.initContainers[0].name: Invalid value: "datakeys":` + copied,
		},
		"a lease longer than the cluster's": {
			func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationLeaseDuration] = "16s" },
			`metadata.annotations[datakeys.io/lease-duration]: Invalid value: "16s": must be a time of 5s to 15s, such as 15s: a pod may ` +
				`lower what is set for the cluster, and not raise it`,
		},
		"a lease that is too short": {
			func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationLeaseDuration] = "4999ms" },
			`metadata.annotations[datakeys.io/lease-duration]: Invalid value: "4999ms": must be a time of 5s to 15s, such as 15s: a pod may ` +
				`lower what is set for the cluster, and not raise it`,
		},
		"a coast time longer than the cluster's": {
			func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationCoastTime] = "61m" },
			`metadata.annotations[datakeys.io/coast-time]: Invalid value: "61m": must be a time of 0s to 1h0m0s, such as 1h0m0s: a pod may ` +
				`lower what is set for the cluster, and not raise it`,
		},
		"a coast time before now": {
			func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationCoastTime] = "-1s" },
			`metadata.annotations[datakeys.io/coast-time]: Invalid value: "-1s": must be a time of 0s to 1h0m0s, such as 1h0m0s: a pod may ` +
				`lower what is set for the cluster, and not raise it`,
		},
		"a coast time that is none": {
			func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationCoastTime] = "" },
			`metadata.annotations[datakeys.io/coast-time]: Invalid value: "": must be a time of 0s to 1h0m0s, such as 1h0m0s: a pod may ` +
				`lower what is set for the cluster, and not raise it`,
		},
		"both times wrong at once": {
			func(p *corev1.Pod) {
				p.Annotations[v1alpha1.AnnotationLeaseDuration], p.Annotations[v1alpha1.AnnotationCoastTime] = "15", "1 hour"
			},
			"2 errors",
		},
		"two faults at once": {
			func(p *corev1.Pod) { p.Spec.DNSPolicy, p.Spec.Containers[0].Name = corev1.DNSDefault, "datakeys" },
			"2 errors",
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := askingPod(map[string]string{v1alpha1.AnnotationDataKeys: "orders"})
			test.change(pod)
			request, _, errs := ParseRequest(pod)
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			patch, errs := Patch(pod, request, testSidecar(true))
			if got := describe(errs); got != test.want {
				t.Errorf("error\n got %s\nwant %s", got, test.want)
			}
			if len(patch) > 0 {
				t.Errorf("a refused pod has a patch: %v", patch)
			}
		})
	}
}

func TestPatchTakes(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"a variable of ours with our value": func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{socketEnv}
		},
		"an endpoint of the pod's own, and no loopback port": func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "AWS_ENDPOINT_URL_KMS", Value: "https://kms.example"}}
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8200}}
		},
		"a conflict in a container that is not chosen": func(p *corev1.Pod) {
			p.Annotations[v1alpha1.AnnotationContainers] = "app"
			p.Spec.InitContainers[0].Env = []corev1.EnvVar{{Name: "DATAKEYS_SOCKET", Value: "/tmp/socket"}}
			p.Spec.InitContainers[0].VolumeMounts = []corev1.VolumeMount{{Name: "run", MountPath: "/run/datakeys"}}
		},
		"a pod that says that it runs on Linux": func(p *corev1.Pod) {
			p.Spec.OS = &corev1.PodOS{Name: corev1.Linux}
		},
		"a resolver of the pod's own": func(p *corev1.Pod) {
			p.Spec.HostNetwork, p.Spec.DNSPolicy = true, corev1.DNSNone
		},
		"a volume with one of our names and a number that is not used": func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "datakeys-key-1"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := askingPod(map[string]string{v1alpha1.AnnotationDataKeys: "orders"})
			change(pod)
			if patch, errs := inject(t, encode(t, pod), testSidecar(true)); len(errs) > 0 || len(patch) == 0 {
				t.Errorf("got %d operations and errors %v, want a patch", len(patch), errs)
			}
		})
	}
}

func TestResources(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	limited := func(requests, limits corev1.ResourceList) *corev1.PodSpec {
		return &corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}}}
	}
	memory := func(size string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(size)}
	}
	bestEffort, guaranteed := limited(nil, nil), limited(list("2", "1Gi"), list("2", "1Gi"))
	byDefault := DefaultResources()
	changed := func(change func(*Resources)) Resources {
		r := DefaultResources()
		change(&r)
		return r
	}
	own := changed(func(r *Resources) {
		r.CPURequest, r.MemoryRequest, r.MemoryLimit = resource.MustParse("10m"), resource.MustParse("32Mi"), resource.MustParse("48Mi")
	})
	burst := corev1.ResourceRequirements{Requests: list("5m", "20Mi"), Limits: memory("64Mi")}
	same := func(list corev1.ResourceList) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: list, Limits: list}
	}
	for name, test := range map[string]struct {
		of   Resources
		spec *corev1.PodSpec
		want corev1.ResourceRequirements
	}{
		"a pod without resources":                  {byDefault, bestEffort, burst},
		"a pod with requests below its limits":     {byDefault, limited(list("1", "1Gi"), list("2", "1Gi")), burst},
		"a pod with a memory limit only":           {byDefault, limited(nil, memory("1Gi")), burst},
		"a Guaranteed pod":                         {byDefault, guaranteed, same(list("100m", "64Mi"))},
		"a Guaranteed pod that states limits only": {byDefault, limited(nil, list("2", "1Gi")), same(list("100m", "64Mi"))},
		"resources at the pod's level": {
			byDefault,
			&corev1.PodSpec{Resources: &corev1.ResourceRequirements{Limits: list("1", "1Gi")}, Containers: make([]corev1.Container, 1)},
			corev1.ResourceRequirements{},
		},
		"resources of the cluster's own": {
			own, bestEffort, corev1.ResourceRequirements{Requests: list("10m", "32Mi"), Limits: memory("48Mi")},
		},
		"resources of the cluster's own in a Guaranteed pod": {own, guaranteed, same(list("100m", "48Mi"))},
		"a limit of the processor": {
			changed(func(r *Resources) { r.CPULimit = resource.MustParse("50m") }), bestEffort,
			corev1.ResourceRequirements{Requests: list("5m", "20Mi"), Limits: list("50m", "64Mi")},
		},
		"a limit of the processor in a Guaranteed pod": {
			changed(func(r *Resources) { r.CPULimit = resource.MustParse("50m") }), guaranteed, same(list("50m", "64Mi")),
		},
		"more asked of the processor than a Guaranteed pod gets by default": {
			changed(func(r *Resources) { r.CPURequest = resource.MustParse("200m") }), guaranteed, same(list("200m", "64Mi")),
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := test.of.of(test.spec)
			if string(encode(t, got)) != string(encode(t, test.want)) {
				t.Errorf("got %s, want %s", encode(t, got), encode(t, test.want))
			}
		})
	}
}

// TestSidecarReadsItsToken goes through users and groups of pod and containers with the rules by which the kubelet gives a
// projected token to a user: Kubernetes, "Projected Volumes", "securityContext interactions". It also shows that a token
// of the application that one user alone could read before is no more open after.
func TestSidecarReadsItsToken(t *testing.T) {
	users := []*int64{nil, new(int64(0)), new(int64(1000)), new(int64(12345)), new(sidecarID)}
	cases := 0
	for _, podUser := range users {
		for _, initUser := range users {
			for _, appUser := range users {
				for _, fsGroup := range []*int64{nil, new(int64(2000))} {
					pod := askingPod(map[string]string{v1alpha1.AnnotationDataKeys: "orders"})
					pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: podUser, FSGroup: fsGroup}
					pod.Spec.InitContainers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: initUser}
					pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: appUser}
					before := agreedUser(&pod.Spec)

					raw := encode(t, pod)
					patch, errs := inject(t, raw, testSidecar(true))
					if len(errs) > 0 {
						t.Fatal(errs)
					}
					pod = decode(t, apply(t, raw, patch))
					sidecar := pod.Spec.InitContainers[0].SecurityContext
					user := podUser
					if sidecar.RunAsUser != nil {
						user = sidecar.RunAsUser
					}
					if user == nil || *user == 0 {
						t.Fatalf("pod %v init %v app %v: the sidecar's user is %v", show(podUser), show(initUser), show(appUser), show(user))
					}
					owner := agreedUser(&pod.Spec)
					readable := owner != nil && *owner == *user || // mode 0600, its own
						owner == nil && fsGroup != nil || // mode 0640, by the group of all containers
						owner == nil && fsGroup == nil // the volume's mode
					if !readable {
						t.Errorf("pod %v init %v app %v: user %d cannot read the token of %d",
							show(podUser), show(initUser), show(appUser), *user, *owner)
					}
					if before != nil && *before != 0 && (owner == nil || *owner != *before) {
						t.Errorf("pod %v init %v app %v: tokens were user %d's, now %v's",
							show(podUser), show(initUser), show(appUser), *before, show(owner))
					}
					cases++
				}
			}
		}
	}
	if cases != 250 {
		t.Errorf("%d cases, want 250", cases)
	}
}

func show(id *int64) any {
	if id == nil {
		return "unset"
	}
	return *id
}
