package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// reader shows that a pod with the permission reads the key, as often as it likes, and that two pods get the same key.
func (d *demo) reader(ctx context.Context) error {
	d.step("Read the key in a pod")
	if err := d.apply(ctx, "config/samples/role.yaml"); err != nil {
		return err
	}
	d.say("Kubernetes RBAC decides: ServiceAccount reader may decrypt datakeyrequests/orders, nothing else.")
	if err := d.freshPod(ctx, "reader", "config/samples/pod.yaml"); err != nil {
		return err
	}
	if err := d.waitForPod(ctx, "reader"); err != nil {
		return err
	}
	d.say(`The pod has a label and an annotation, and no key, no credential and no library. Before its application started, a
sidecar was injected in front of it, which got the ciphertext from the mounted Secret, had it decrypted by the key
service under the pod's own identity, and now issues the key on a unix socket that only this pod has.
The application asks the socket, and prints the SHA-256 of the key, never the key. Twice:`)
	var err error
	if d.sha256, err = d.read(ctx, "reader"); err != nil {
		return err
	}
	again, err := d.read(ctx, "reader")
	if err != nil {
		return err
	}

	d.say("And a second pod of that ServiceAccount, reader-2, once:")
	if err := d.secondReader(ctx); err != nil {
		return err
	}
	if err := d.waitForPod(ctx, "reader-2"); err != nil {
		return err
	}
	other, err := d.read(ctx, "reader-2")
	if err != nil {
		return err
	}
	if again != d.sha256 || other != d.sha256 {
		return fmt.Errorf("three reads of one data key differ: %s, %s, %s", d.sha256, again, other)
	}
	d.say("Three times the same key, in two pods. (reader-2 goes now.)")
	_, err = d.kubectl(ctx, "delete", "pod", "reader-2", "--namespace="+namespace, "--wait=false")
	return err
}

// stranger shows that a pod without the permission gets no key.
func (d *demo) stranger(ctx context.Context) error {
	d.step("Try it without the permission")
	if err := d.freshPod(ctx, "stranger", "config/samples/stranger.yaml"); err != nil {
		return err
	}
	if err := d.waitForPod(ctx, "stranger"); err != nil {
		return err
	}
	d.say(`The same pod, but for ServiceAccount stranger, which nobody gave a right to. The ciphertext is mounted here too. Such a pod
would be held back before its application starts; this one has the annotation datakeys.io/wait: "false", so that you can ask.`)
	d.show("kubectl", "-n", namespace, "exec", "stranger", "-c", "app", "--", "/reader", "sha256", "orders")
	err := d.waitFor(ctx, 30*time.Second, "the socket refuses the key to pod stranger", func(ctx context.Context) (string, bool, error) {
		said, err := d.readerSays(ctx, "stranger")
		if err == nil {
			return "", false, fmt.Errorf("pod stranger was given the key with the SHA-256 %s", said)
		}
		_, refusal, found := strings.Cut(err.Error(), "reader: ")
		if !found {
			return "", false, err
		}
		refusal, _, _ = strings.Cut(refusal, "\n")
		return refusal, strings.HasPrefix(refusal, "HTTP 403 "), nil
	})
	if err != nil {
		return err
	}
	return d.waitFor(ctx, 30*time.Second, "pod stranger has an event "+v1alpha1.ReasonDataKeyDenied, func(ctx context.Context) (string, bool, error) {
		said, err := d.kubectl(ctx, "get", "events", "--namespace="+namespace,
			"--field-selector=involvedObject.name=stranger,reason="+v1alpha1.ReasonDataKeyDenied, "--output=jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
		if err != nil || said == "" {
			return "", false, err
		}
		return "The pod has an event: " + v1alpha1.ReasonDataKeyDenied + ": " + lastLine(said), true, nil
	})
}

// freshPod applies a pod from a file. One of an earlier run goes first: its sidecar may be of an older image.
func (d *demo) freshPod(ctx context.Context, name, file string) error {
	if _, err := d.kubectl(ctx, "delete", "pod", name, "--namespace="+namespace, "--ignore-not-found", "--wait"); err != nil {
		return err
	}
	return d.apply(ctx, file)
}

// waitForPod waits until a pod is Ready and tells what its containers do meanwhile.
func (d *demo) waitForPod(ctx context.Context, name string) error {
	return d.waitFor(ctx, 3*time.Minute, "pod "+name+" is Ready", func(ctx context.Context) (string, bool, error) {
		var pod corev1.Pod
		if err := d.get(ctx, &pod, "pod", name); err != nil {
			return "", false, err
		}
		if pod.Name != "" && len(pod.Spec.InitContainers) == 0 {
			return "", false, errors.New("pod " + name + " was created without a sidecar: is the webhook datakeys-injector in place?")
		}
		state, done := podState(&pod)
		return "pod " + name + ": " + state, done, nil
	})
}

// podState is a pod's state in words, and whether it is Ready.
func podState(pod *corev1.Pod) (string, bool) {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return "Ready", true
		}
	}
	var parts []string
	for _, container := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		state := "waiting"
		switch {
		case container.State.Running != nil:
			state = "running"
		case container.State.Terminated != nil:
			state = "ended: " + container.State.Terminated.Reason
		case container.State.Waiting != nil && container.State.Waiting.Reason != "PodInitializing":
			state = container.State.Waiting.Reason
		}
		parts = append(parts, container.Name+" "+state)
	}
	if len(parts) == 0 {
		return "not started yet", false
	}
	return strings.Join(parts, ", "), false
}

// read has the application of a pod ask for the key, and returns the SHA-256 that it printed.
func (d *demo) read(ctx context.Context, pod string) (string, error) {
	d.show("kubectl", "-n", namespace, "exec", pod, "-c", "app", "--", "/reader", "sha256", "orders")
	sum, err := d.readerSays(ctx, pod)
	if err != nil {
		return "", err
	}
	d.say("%s", sum)
	return sum, nil
}

// readerSays runs the demo's application once more in a pod, with the verb that never prints the key.
func (d *demo) readerSays(ctx context.Context, pod string) (string, error) {
	said, err := d.kubectl(ctx, "exec", pod, "--namespace="+namespace, "--container=app", "--", "/reader", "sha256", "orders")
	return strings.TrimSpace(said), err
}

// secondReader applies the sample pod under the name reader-2.
func (d *demo) secondReader(ctx context.Context) error {
	sample, err := os.ReadFile("config/samples/pod.yaml")
	if err != nil {
		return err
	}
	d.show("sed", "'s/  name: reader$/  name: reader-2/'", "config/samples/pod.yaml", "|", "kubectl", "apply", "-f", "-")
	renamed := strings.Replace(string(sample), "\n  name: reader\n", "\n  name: reader-2\n", 1)
	if _, err := d.kubectl(ctx, "delete", "pod", "reader-2", "--namespace="+namespace, "--ignore-not-found", "--wait"); err != nil {
		return err
	}
	said, err := d.kubectlWithInput(ctx, renamed, "apply", "-f", "-")
	d.say("%s", strings.TrimSpace(said))
	return err
}
