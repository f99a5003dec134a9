// Package certs makes the serving certificates of the manager: those of the key service and of the pod webhook.
//
// A few roots, certificate authorities of ten years, are kept in one Secret of the manager's namespace. Every replica
// reads them from there and mints its own leaf certificates in memory, of a day each, so that nothing has to be mounted,
// reloaded or restarted.
//
// Who has to trust the roots decides how they follow each other. A pod learns them when it is created and keeps them
// until it is deleted, which can be years later. So a successor is made when half of a root's life is over; it is in the
// bundle that new pods get from that moment on; and it signs only when it has been there for four years, in the old
// root's last year. A pod trusts the key service for at least four years, see [Authority] for the exact promise.
//
// That is why this is not github.com/open-policy-agent/cert-controller: there a new authority takes the place of the old
// one at once, and pods that run would trust it no longer. It also serves from a mounted Secret, which on the first
// install waits for the kubelet to bring the new content, about a minute.
package certs
