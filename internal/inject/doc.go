// Package inject adds the sidecar to the pods that ask for it.
//
// [Patch] decides from the pod alone, with what the manager knows, and answers with JSON patch operations that only add. A
// pod is never decoded and written again: a field that this build does not know would be lost on the way. [Handler] is the
// thin admission webhook around it; it calls no network and has no side effects, so dry runs are the same as others.
//
// What a pod gets:
//   - the sidecar, as the first init container with restartPolicy Always, so that every other container, init containers
//     included, can use data keys, and a Job ends when its own containers do;
//   - its volumes: the pod's token for the key service, the Secret of each data key, and the socket's directory in memory;
//   - in each container that the pod chose, the socket's directory, read-only, and its path in an environment variable.
//
// How the sidecar holds the application back depends on what is known when the pod is created. If every data key is ready,
// a postStart hook waits for the few milliseconds that the sidecar takes. If not, a startup probe waits for as long as it
// takes: unlike a hook, it does not delay the deletion of the pod.
package inject
