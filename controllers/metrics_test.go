package controllers

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

func TestMetrics(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "team-a", Name: name} }
	ready := func(status metav1.ConditionStatus, reason string) []metav1.Condition {
		return []metav1.Condition{{Type: "Ready", Status: status, Reason: reason}}
	}
	request := func(name, reason string) *v1alpha1.DataKeyRequest {
		return &v1alpha1.DataKeyRequest{ObjectMeta: meta(name), Status: v1alpha1.DataKeyRequestStatus{Conditions: ready("True", reason)}}
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		&v1alpha1.MasterKey{ObjectMeta: meta("new")},
		&v1alpha1.MasterKey{ObjectMeta: meta("orders"), Status: v1alpha1.MasterKeyStatus{
			Conditions: ready("True", "Ready"), State: "Enabled", PrimaryVersion: new(int32(2)), DataKeysBehind: new(int32(3)),
			LastRotationTime: metav1.Unix(100, 0), NextRotationTime: metav1.Unix(200, 0),
			Versions: []v1alpha1.MasterKeyVersion{{Version: 2, DataKeys: new(int32(4))}, {Version: 1, DataKeys: new(int32(3))}},
		}},
		&v1alpha1.MasterKey{ObjectMeta: meta("leaving"), Status: v1alpha1.MasterKeyStatus{
			Conditions: ready("False", "PendingDeletion"), State: "PendingDeletion", DeletionTime: metav1.Unix(300, 0),
		}},
		request("a", "Ready"), request("b", "Ready"), request("c", "SecretConflict"), &v1alpha1.DataKeyRequest{ObjectMeta: meta("d")},
	).Build()
	want := `
		# HELP datakeys_data_key_requests The number of DataKeyRequests of a namespace, by the reason of their Ready condition.
		# TYPE datakeys_data_key_requests gauge
		datakeys_data_key_requests{namespace="team-a",reason=""} 1
		datakeys_data_key_requests{namespace="team-a",reason="Ready"} 2
		datakeys_data_key_requests{namespace="team-a",reason="SecretConflict"} 1
		# HELP datakeys_master_key_data_keys The number of DataKeyRequests with a generation that a version of a MasterKey wraps, for its newest 20 versions.
		# TYPE datakeys_master_key_data_keys gauge
		datakeys_master_key_data_keys{master_key="orders",namespace="team-a",version="1"} 3
		datakeys_master_key_data_keys{master_key="orders",namespace="team-a",version="2"} 4
		# HELP datakeys_master_key_data_keys_behind The number of DataKeyRequests with a generation that an older than the primary version of a MasterKey wraps.
		# TYPE datakeys_master_key_data_keys_behind gauge
		datakeys_master_key_data_keys_behind{master_key="orders",namespace="team-a"} 3
		# HELP datakeys_master_key_deletion_timestamp_seconds When the material of a MasterKey is to be destroyed, in Unix time; not there where it is not.
		# TYPE datakeys_master_key_deletion_timestamp_seconds gauge
		datakeys_master_key_deletion_timestamp_seconds{master_key="leaving",namespace="team-a"} 300
		# HELP datakeys_master_key_last_rotation_timestamp_seconds When the primary version of a MasterKey became so, in Unix time.
		# TYPE datakeys_master_key_last_rotation_timestamp_seconds gauge
		datakeys_master_key_last_rotation_timestamp_seconds{master_key="orders",namespace="team-a"} 100
		# HELP datakeys_master_key_next_rotation_timestamp_seconds When a MasterKey is to be rotated by time, in Unix time; not there where it is not.
		# TYPE datakeys_master_key_next_rotation_timestamp_seconds gauge
		datakeys_master_key_next_rotation_timestamp_seconds{master_key="orders",namespace="team-a"} 200
		# HELP datakeys_master_key_primary_version The primary version of a MasterKey.
		# TYPE datakeys_master_key_primary_version gauge
		datakeys_master_key_primary_version{master_key="orders",namespace="team-a"} 2
		# HELP datakeys_master_key_ready 1 for a MasterKey that is Ready, else 0, with the reason of the condition.
		# TYPE datakeys_master_key_ready gauge
		datakeys_master_key_ready{master_key="leaving",namespace="team-a",reason="PendingDeletion"} 0
		datakeys_master_key_ready{master_key="orders",namespace="team-a",reason="Ready"} 1
		# HELP datakeys_master_key_state 1 for the state of a MasterKey: Enabled, Disabled, PendingDeletion or Destroyed.
		# TYPE datakeys_master_key_state gauge
		datakeys_master_key_state{master_key="leaving",namespace="team-a",state="PendingDeletion"} 1
		datakeys_master_key_state{master_key="orders",namespace="team-a",state="Enabled"} 1
	`
	if err := testutil.CollectAndCompare(collector{c}, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(collector{c}); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, error %v", problems, err)
	}
}
