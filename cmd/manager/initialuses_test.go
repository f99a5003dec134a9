package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

func TestUsesOfAnInitialVersionAreToldOnceAnHour(t *testing.T) {
	masterKey := func(name string) *v1alpha1.MasterKey {
		return &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: name}}
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	recorder := events.NewFakeRecorder(100)
	u := newInitialUses(recorder, fake.NewClientBuilder().WithScheme(scheme).WithObjects(masterKey("orders"), masterKey("other")).Build())
	for range 3 {
		for _, name := range []string{"orders", "other", "gone"} {
			for _, pod := range []string{"app-1", "app-2"} {
				key := kms.MasterKeyRef{KeyID: name, Namespace: "team-a", Name: name}
				u.InitialVersionUsed(key, kms.Pod{Namespace: "team-a", Name: pod}, "GenerateDataKey")
			}
		}
	}
	const want = "Warning InitialVersionUsed pod team-a/app-1 encrypts with version 1 of this key, which is what GenerateDataKey of " +
		"Alibaba Cloud KMS does: rotation does not reach that; use the Advance operation in its place"
	close(recorder.Events)
	var got []string
	for e := range recorder.Events {
		got = append(got, e)
	}
	if diff := cmp.Diff([]string{want, want}, got); diff != "" {
		t.Error(diff)
	}
}
