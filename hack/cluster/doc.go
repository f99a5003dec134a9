/*
Command cluster runs a real Kubernetes of one node on a Linux machine, built from pinned Go modules.

Nothing is downloaded but Go modules (hack/cluster/modules, one module for each project, so that their dependencies do
not mix) and, where they are missing, a few Debian packages. No image registry is used: images are loaded from archives.

	go run ./hack/cluster up        start it, or mend it, or say that it runs
	go run ./hack/cluster down      end it and leave nothing behind but the built binaries
	go run ./hack/cluster -h        the other verbs

# Where things are

The state is in .cluster at the root of the checkout; -state or DATAKEYS_CLUSTER name another folder.

	kubeconfig       administrator of the cluster, usable from the host, self-contained
	etcd/            the data files of etcd: what the API server stores, values of Secrets in clear
	log/NAME.log     what each component wrote; a restart appends
	podlogs/         what containers wrote: NAMESPACE_POD_UID/CONTAINER/N.log
	containerd/      images and container file systems
	kubelet/         volumes of the pods
	pki/             certificate authority, keys, and one kubeconfig for each component
	config/          the configuration files of the components
	cni/             network configuration, and the addresses given to pods

Sockets, process records and all else that cannot survive a reboot are in /run/datakeys-ID. The binaries are in
datakeys/cluster in the user's cache folder, one folder for each version, shared by all checkouts.

# How it is built

All components run on the host as plain processes, in a network namespace of their own. ID, a short hash of the state
folder's path, is part of the name of everything that the whole machine shares (network namespace, link, control group,
/run folder), so two checkouts run two clusters side by side. The host reaches the node over a veth pair; pods and
Services live in the namespace, where the API server is too and so can call webhooks. The node has no way out to other
networks.

Every step of up looks first whether its result is already there. So up after a crash, a kill -9, an interrupted up or a
reboot does what is missing, and the objects in etcd stay. Only when etcd or the API server cannot start again on the
old data, or when somebody has removed the folder, does up say so and begin with an empty cluster.

A folder may hold other things too, but none by the names above: up refuses to overwrite them, and down removes what a
cluster has made and nothing else.

etcd runs without fsync: a cluster survives the death of any process, but perhaps not that of the machine.
*/
package main
