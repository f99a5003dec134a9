// Package v1alpha1 holds the kinds of the group datakeys.io: MasterKey and DataKeyRequest.
//
// +kubebuilder:object:generate=true
// +groupName=datakeys.io
package v1alpha1
